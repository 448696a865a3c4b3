package bgp

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/speaker/bfd"
)

// network is a kernel of the test's own: the peers are at the other ends of pipes.
type network struct {
	mu       sync.Mutex
	dials    map[netip.Addr]chan net.Conn // by the peer's address; nobody answers at others
	fails    func() error                 // why the next connection fails; nil: none does
	writes   int                          // after so many a connection that the speaker opens takes nothing; 0: any number
	passive  map[netip.Addr]func(net.Conn)
	addrs    []address
	defaults []netip.Addr
	changed  func([]address, error)
}

// pipe is an end of a connection between two addresses.
type pipe struct {
	net.Conn
	local, remote netip.Addr
}

func (p pipe) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.local, 179)) }
func (p pipe) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.remote, 179))
}

// deaf is a connection whose other end is closed to writes after some.
type deaf struct {
	net.Conn
	writes int
}

func (d *deaf) Write(b []byte) (int, error) {
	if d.writes--; d.writes < 0 {
		return 0, syscall.EPIPE
	}
	return d.Conn.Write(b)
}

var nodeAddr = netip.MustParseAddr("192.0.2.1")

func connection(remote netip.Addr) (ours, theirs net.Conn) {
	a, b := net.Pipe()
	local := nodeAddr
	if remote.Is6() {
		local = netip.MustParseAddr("2001:db8::1")
	}
	return pipe{a, local, remote}, pipe{b, remote, local}
}

func (n *network) dial(ctx context.Context, _ Peer, remote netip.Addr) (net.Conn, error) {
	n.mu.Lock()
	to, fails, writes := n.dials[remote], n.fails, n.writes
	n.mu.Unlock()
	if fails != nil {
		return nil, fails()
	}
	ours, theirs := connection(remote)
	select {
	case to <- theirs:
		if writes > 0 {
			ours = &deaf{ours, writes}
		}
		return ours, nil
	case <-time.After(dialTime):
		return nil, os.ErrDeadlineExceeded
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *network) listen(_ Peer, remote netip.Addr, deliver func(net.Conn)) (func(), error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.passive[remote] = deliver
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.passive, remote)
	}, nil
}

func (n *network) gateways(Gateway) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.defaults) == 0 {
		return nil, errors.New("the node has no IPv4 default route")
	}
	return slices.Clone(n.defaults), nil
}

func (n *network) watch(ctx context.Context, changed func([]address, error)) {
	n.mu.Lock()
	n.changed = changed
	n.mu.Unlock()
	n.change(func() {})
	<-ctx.Done()
}

func (n *network) close() {}

// change changes what the node has, and lets the speaker know.
func (n *network) change(f func()) {
	n.mu.Lock()
	f()
	changed, addrs := n.changed, slices.Clone(n.addrs)
	n.mu.Unlock()
	changed(addrs, nil)
}

// world is a Speaker and its network, in virtual time.
type world struct {
	*Speaker
	*network
	t    *testing.T
	stop func()
}

// simulate runs f with a Speaker in virtual time. Nothing of it may be left when f returns.
func simulate(t *testing.T, c Config, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
		n := &network{dials: map[netip.Addr]chan net.Conn{}, passive: map[netip.Addr]func(net.Conn){}, addrs: []address{{addr: nodeAddr, link: 1, usable: true}}}
		w := &world{Speaker: newSpeaker(c, n), network: n, t: t}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := w.Run(ctx); err != nil {
				t.Error(err)
			}
		}()
		w.stop = func() { cancel(); <-done }
		synctest.Wait()
		f(w)
		w.stop()
	})
}

// router is a peer that does what the test says.
type router struct {
	w     *world
	addr  netip.Addr
	dials chan net.Conn
}

func (w *world) router(addr string) *router {
	r := &router{w, netip.MustParseAddr(addr), make(chan net.Conn)}
	w.locked(func() { w.dials[r.addr] = r.dials })
	return r
}

func (w *world) locked(f func()) {
	w.network.mu.Lock()
	defer w.network.mu.Unlock()
	f()
}

// peer is a Peer that means the router.
func (r *router) peer() Peer {
	return Peer{
		Name:     r.addr.String(),
		Identity: Identity{LocalASN: 65001, PeerASN: 64512, Address: r.addr, RouterID: nodeAddr},
		Options:  Options{HoldTime: 90 * time.Second},
	}
}

// end is a connection to the speaker, from the router's side.
type end struct {
	t *testing.T
	net.Conn
	r      *bufio.Reader
	theirs open // the speaker's OPEN

	mu    sync.Mutex
	table map[netip.Prefix]string // what was announced: next hop and AS path
	eors  int
	ended error // of the reading side
}

func newEnd(t *testing.T, c net.Conn) *end {
	t.Cleanup(func() { c.Close() })
	return &end{t: t, Conn: c, r: bufio.NewReader(c), table: map[netip.Prefix]string{}}
}

func (r *router) accept() *end {
	r.w.t.Helper()
	select {
	case c := <-r.dials:
		return newEnd(r.w.t, c)
	case <-time.After(5 * time.Minute):
		r.w.t.Fatal("the speaker does not connect")
		return nil
	}
}

// next reads a message. It must not be called by more than one goroutine.
func (c *end) next() ([]byte, uint8, error) {
	c.SetReadDeadline(time.Now().Add(time.Minute))
	return readMessage(c.r, new([maxMessage]byte))
}

func (c *end) write(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Error(err)
	}
}

// routerOpen is what the router says of itself by default.
func routerOpen() open {
	return open{asn: 64512, as4: true, id: netip.MustParseAddr("192.0.2.2"), hold: 180 * time.Second, families: []bgp.Family{bgp.RF_IPv4_UC}, refresh: true, role: -1}
}

// establish goes through the handshake.
func (c *end) establish(ours open) {
	c.t.Helper()
	msg, typ, err := c.next()
	if err != nil || typ != bgp.BGP_MSG_OPEN {
		c.t.Fatalf("instead of an OPEN: type %d, %v", typ, err)
	}
	if c.theirs, err = parseOpen(msg); err != nil {
		c.t.Fatal(err)
	}
	c.write(must(ours.bytes()))
	if _, typ, err := c.next(); err != nil || typ != bgp.BGP_MSG_KEEPALIVE {
		c.t.Fatalf("instead of a KEEPALIVE: type %d, %v", typ, err)
	}
	c.write(keepalive)
}

// follow keeps the table up to date in the background.
func (c *end) follow() {
	c.SetReadDeadline(time.Time{})
	go func() {
		for {
			msg, typ, err := readMessage(c.r, new([maxMessage]byte))
			if err == nil && typ == bgp.BGP_MSG_NOTIFICATION {
				err = parseNotification(msg)
			}
			c.mu.Lock()
			if err != nil {
				c.ended = err
				c.mu.Unlock()
				return
			}
			if typ == bgp.BGP_MSG_UPDATE {
				c.learn(msg)
			}
			c.mu.Unlock()
		}
	}()
}

// learn takes in an UPDATE as the codec reads it.
func (c *end) learn(msg []byte) {
	m, err := bgp.ParseBGPMessage(msg)
	if err != nil {
		c.t.Errorf("an UPDATE that cannot be read: % x: %v", msg, err)
		return
	}
	u := m.Body.(*bgp.BGPUpdate)
	if eor, _ := u.IsEndOfRib(); eor {
		c.eors++
	}
	what, hop := "", ""
	announced, withdrawn := u.NLRI, u.WithdrawnRoutes
	for _, a := range u.PathAttributes {
		switch a := a.(type) {
		case *bgp.PathAttributeMpReachNLRI:
			announced, hop = append(announced, a.Value...), a.Nexthop.String()
		case *bgp.PathAttributeMpUnreachNLRI:
			withdrawn = append(withdrawn, a.Value...)
		case *bgp.PathAttributeNextHop:
			hop = a.Value.String()
		default:
			if s := a.String(); !strings.Contains(s, "Origin") {
				what += " " + s
			}
		}
	}
	for _, n := range withdrawn {
		delete(c.table, n.NLRI.(*bgp.IPAddrPrefix).Prefix)
	}
	for _, n := range announced {
		c.table[n.NLRI.(*bgp.IPAddrPrefix).Prefix] = hop + what
	}
}

func (c *end) has(want map[netip.Prefix]bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range want {
		if c.table[p] == "" {
			return false
		}
	}
	return len(c.table) == len(want)
}

func (c *end) route(prefix string) string {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.table[netip.MustParsePrefix(prefix)]
}

// eventually waits until ok, in steps of virtual time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	synctest.Wait()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if synctest.Wait(); time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func (s *Speaker) only() SessionStatus {
	synctest.Wait()
	if all := s.Status(); len(all) == 1 {
		return all[0]
	}
	return SessionStatus{}
}

func routesTo(prefixes ...string) route.Table {
	var rs []route.Route
	for _, p := range prefixes {
		rs = append(rs, route.Route{Prefix: netip.MustParsePrefix(p)})
	}
	return route.TableOf(rs...)
}

func manyRoutes(n int, attrs func(i int) route.Attrs) (rs []route.Route, all map[netip.Prefix]bool) {
	all = map[netip.Prefix]bool{}
	for i := range n {
		r := route.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(18 + i>>16), byte(i >> 8), byte(i)}), 32)}
		if attrs != nil {
			r.Attrs = attrs(i)
		}
		rs = append(rs, r)
		all[r.Prefix] = true
	}
	return rs, all
}

func TestOpenSaysWhatIsConfigured(t *testing.T) {
	simulate(t, Config{Leave: -1}, func(w *world) {
		r := w.router("192.0.2.2")
		p := r.peer()
		p.LocalASN, p.HoldTime, p.GracefulRestart, p.Customer = 4200000001, 0, 75*time.Second, true
		w.Set([]Session{{Peer: p}})
		c := r.accept()
		c.establish(routerOpen())
		c.follow()
		got := c.theirs
		if got.asn != 4200000001 || got.id != p.RouterID || got.hold != 0 || !slices.Equal(got.families, []bgp.Family{bgp.RF_IPv4_UC}) || got.v4over6 || got.role != roleCustomer {
			t.Errorf("OPEN says %+v", got)
		}
		gr := func(c *end) string {
			if c.theirs.restart == nil {
				return "none"
			}
			forwarding := len(c.theirs.restart.Tuples) == 1 && c.theirs.restart.Tuples[0].Flags&0x80 != 0
			return fmt.Sprintf("restarted %v, notification %v, %d s, forwarding %v", c.theirs.restart.Flags&8 != 0, c.theirs.restart.Flags&4 != 0, c.theirs.restart.Time, forwarding)
		}
		// RFC 4724 section 4.1: restarted, as far as the peer can know, and forwarding goes on.
		if want := "restarted true, notification false, 75 s, forwarding true"; gr(c) != want {
			t.Errorf("the first OPEN says %s; want %s", gr(c), want)
		}
		if st := w.only(); st.State != Established || st.HoldTime != 0 || st.Keepalive != 0 {
			t.Errorf("status %+v", st)
		}
		time.Sleep(24 * time.Hour) // without a keepalive of either side
		if st := w.only(); st.Ups != 1 || st.State != Established {
			t.Errorf("without hold time: %+v", st)
		}
		c.Close()
		c = r.accept()
		c.establish(routerOpen())
		c.follow()
		if want := "restarted false, notification false, 75 s, forwarding true"; gr(c) != want {
			t.Errorf("after a broken connection OPEN says %s; want %s", gr(c), want)
		}
	})
}

// A router deletes what it kept over a restart when End-of-RIB comes, so every route must come before.
func TestEndOfRIBComesLast(t *testing.T) {
	simulate(t, Config{Leave: -1}, func(w *world) {
		r := w.router("192.0.2.2")
		p := r.peer()
		p.GracefulRestart = time.Minute
		rs, _ := manyRoutes(3000, nil)
		w.Set([]Session{{p, route.TableOf(rs...)}})
		c := r.accept()
		o := routerOpen()
		o.restart = bgp.NewCapGracefulRestart(false, false, 120, nil)
		c.establish(o)
		for messages := 0; len(c.table) < len(rs); messages++ {
			msg, typ, err := c.next()
			if err != nil || typ != bgp.BGP_MSG_UPDATE || c.eors > 0 {
				t.Fatalf("after %d routes: type %d, %v", len(c.table), typ, err)
			}
			if c.learn(msg); messages > 4 {
				t.Fatalf("only %d routes in %d messages", len(c.table), messages)
			}
		}
		if msg, _, err := c.next(); err != nil || string(msg) != string(message(2, 0, 0, 0, 0)) {
			t.Errorf("instead of End-of-RIB: % x, %v", msg, err)
		}
		c.follow()
		if st := w.only(); !st.GracefulRestart || st.Sent4 != len(rs) {
			t.Errorf("status %+v", st)
		}
	})
}

func TestHowASessionEnds(t *testing.T) {
	changed := func(w *world, p Peer) { p.Passive = true; w.Set([]Session{{Peer: p}}) }
	for _, tt := range []struct {
		name    string
		restart time.Duration
		leave   time.Duration
		end     func(w *world, p Peer)
		want    string // what the router sees
	}{
		{"end of the process", 0, 50 * time.Millisecond, nil, `marked; received NOTIFICATION 6/2 (cease, administrative shutdown): "the BGP speaker of this node ends"`},
		{"the same at once", 0, -1, nil, `received NOTIFICATION 6/2 (cease, administrative shutdown): "the BGP speaker of this node ends"`},
		{"the same with graceful restart", time.Minute, 50 * time.Millisecond, nil, "EOF"},
		{"peer gone", 0, 50 * time.Millisecond, func(w *world, _ Peer) { w.Set(nil) }, "marked; received NOTIFICATION 6/3 (cease, peer de-configured)"},
		{"peer gone with graceful restart", time.Minute, -1, func(w *world, _ Peer) { w.Set(nil) }, "received NOTIFICATION 6/3 (cease, peer de-configured)"},
		{"peer changed with graceful restart", time.Minute, -1, changed, "EOF"},
		{"other router with graceful restart", time.Minute, -1, func(w *world, p Peer) {
			p.Address = netip.MustParseAddr("192.0.2.9")
			w.Set([]Session{{Peer: p}})
		}, "received NOTIFICATION 6/3 (cease, peer de-configured)"},
		{"peer changed", 0, -1, changed, "received NOTIFICATION 6/3 (cease, peer de-configured)"},
		{"BFD", 0, -1, func(w *world, _ Peer) {
			w.sessions[place{peer: "192.0.2.2"}].bfdChanged(bfd.Status{Was: bfd.Up, State: bfd.Down, Diag: bfd.DiagTimeExpired, RemoteState: bfd.Up})
		}, "received NOTIFICATION 6/10 (cease, BFD down)"},
		{"hold time over", 0, -1, func(*world, Peer) { time.Sleep(90 * time.Second) }, "received NOTIFICATION 4/0 (hold timer expired)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			simulate(t, Config{Leave: tt.leave}, func(w *world) {
				r := w.router("192.0.2.2")
				p := r.peer()
				p.GracefulRestart = tt.restart
				w.Set([]Session{{p, routesTo("203.0.113.1/32")}})
				c := r.accept()
				c.establish(routerOpen())
				got := make(chan string)
				go func() {
					seen := ""
					for {
						msg, typ, err := readMessage(c.r, new([maxMessage]byte))
						if err == nil && typ == bgp.BGP_MSG_NOTIFICATION {
							err = parseNotification(msg)
						}
						if err != nil {
							got <- seen + err.Error()
							return
						}
						// Community 65535:0 and the highest MED (RFC 8326).
						if strings.Contains(string(msg), "\xc0\x08\x04\xff\xff\x00\x00") && strings.Contains(string(msg), "\x80\x04\x04\xff\xff\xff\xff") {
							seen += "marked; "
						}
					}
				}()
				c.SetReadDeadline(time.Time{})
				if st := w.only(); st.State != Established || st.Sent4 != 1 {
					t.Fatalf("before: %+v", st)
				}
				if tt.end == nil {
					go w.stop()
				} else {
					tt.end(w, p)
				}
				if got := <-got; got != tt.want {
					t.Errorf("the router sees %q, want %q", got, tt.want)
				}
			})
		})
	}
}

// The end of a peer that is not wanted any more is no failure to come up.
func TestUnwantedBeforeItCameUp(t *testing.T) {
	var lines lineCounter
	simulate(t, Config{Leave: -1, Log: slog.New(slog.NewTextHandler(&lines, nil))}, func(w *world) {
		r := w.router("192.0.2.2")
		for state := range OpenConfirm {
			w.Set([]Session{{Peer: r.peer()}})
			synctest.Wait()
			var c *end
			if state >= Active {
				c = r.accept()
			}
			if state >= OpenSent {
				_, _, _ = c.next()
				c.write(must(routerOpen().bytes()))
				synctest.Wait()
			}
			w.Set(nil)
			synctest.Wait()
		}
		if n := lines.n.Load(); n > 0 {
			t.Errorf("%d log lines", n)
		}
	})
}

// A peer that is gone from what is wanted while it hangs up, or says something, in the middle of the handshake ends only
// its own session.
func TestEndsAmidTheHandshake(t *testing.T) {
	simulate(t, Config{Leave: -1}, func(w *world) {
		r := w.router("192.0.2.2")
		for i := range 500 {
			w.Set([]Session{{Peer: r.peer()}})
			c := r.accept()
			if _, _, err := c.next(); err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 { // in OpenConfirm
				c.write(must(routerOpen().bytes()))
				if _, _, err := c.next(); err != nil {
					t.Fatal(err)
				}
			}
			go c.Close()
			w.Set(nil)
			eventually(t, "the session is gone", func() bool { return len(w.Status()) == 0 })
		}
	})
}

// What is wrong with a peer is said in words, and ends nothing else.
func TestWhatPeersGetWrong(t *testing.T) {
	openWith := func(f func(o *open)) func(c *end) {
		return func(c *end) {
			o := routerOpen()
			f(&o)
			c.write(must(o.bytes()))
		}
	}
	up := func(then ...byte) func(c *end) {
		return func(c *end) {
			c.write(must(routerOpen().bytes()))
			c.write(keepalive)
			c.write(then)
		}
	}
	for _, tt := range []struct {
		name string
		act  func(c *end) // after the speaker's OPEN
		want string
	}{
		{"closes", func(c *end) { c.Close() }, "the peer closed the connection"},
		{"says nothing", func(*end) {}, "no OPEN from the peer within 20s: sent NOTIFICATION 4/0"},
		{"does not confirm", func(c *end) { c.write(must(routerOpen().bytes())) }, "sent NOTIFICATION 4/0 (hold timer expired)"},
		{"does not confirm within its own hold time", func(c *end) {
			openWith(func(o *open) { o.hold = 3 * time.Second })(c)
			time.Sleep(4 * time.Second)
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.ended == nil {
				c.t.Error("after 4 s the router has not been told")
			}
		}, "sent NOTIFICATION 4/0 (hold timer expired)"},
		{"refuses", func(c *end) { c.write(message(3, 6, 5)) }, "received NOTIFICATION 6/5 (cease, connection rejected)"},
		{"gives a reason", func(c *end) { c.write(message(3, 6, 2, 7, 'u', 'p', 'g', 'r', 'a', 'd', 'e')) }, `administrative shutdown): "upgrade"`},
		{"is no router", func(c *end) { c.write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, "sent NOTIFICATION 1/1 (message header error, connection not synchronized)"},
		{"starts with a keepalive", func(c *end) { c.write(keepalive) }, "sent NOTIFICATION 5/1"},
		{"confirms with an UPDATE", func(c *end) { c.write(must(routerOpen().bytes())); c.write(message(2, 0, 0, 0, 0)) }, "sent NOTIFICATION 5/2"},
		{"has another version", func(c *end) { c.write(message(1, 3, 0xfc, 0, 0, 90, 192, 0, 2, 2, 0)) }, "sent NOTIFICATION 2/1"},
		{"has an optional parameter of no known type", func(c *end) { c.write(message(1, 4, 0xfc, 0, 0, 90, 192, 0, 2, 2, 3, 1, 1, 0)) }, "sent NOTIFICATION 2/4 (OPEN message error, unsupported optional parameter)"},
		{"has optional parameters cut short", func(c *end) { c.write(message(1, 4, 0xfc, 0, 0, 90, 192, 0, 2, 2, 255, 255, 0, 9, 2, 0, 9, 1)) }, "sent NOTIFICATION 2/0 (OPEN message error)"},
		{"has another AS number", openWith(func(o *open) { o.asn = 64513 }), "the peer has AS number 64513, not 64512: sent NOTIFICATION 2/2"},
		{"has AS number 0", openWith(func(o *open) { o.asn = 0 }), "the peer has the AS number 0: sent NOTIFICATION 2/2"},
		{"has a hold time of 2 s", openWith(func(o *open) { o.hold = 2 * time.Second }), "sent NOTIFICATION 2/6 (OPEN message error, unacceptable hold time)"},
		{"has router ID 0", openWith(func(o *open) { o.id = netip.IPv4Unspecified() }), "sent NOTIFICATION 2/3"},
		{"carries another family", openWith(func(o *open) { o.families = []bgp.Family{bgp.RF_IPv6_UC} }), "sent NOTIFICATION 2/7 (OPEN message error, unsupported capability)"},
		{"is a customer itself", openWith(func(o *open) { o.role = roleCustomer }), "sent NOTIFICATION 2/11 (OPEN message error, role mismatch)"},
		{"says OPEN twice", up(must(routerOpen().bytes())...), "sent NOTIFICATION 5/3 (finite state machine error, unexpected message in Established)"},
		{"sends a message of no type", up(message(9, 0)...), "sent NOTIFICATION 1/3 (message header error, bad message type)"},
		{"sends a message that is too long", up(append(slices.Repeat([]byte{0xff}, 16), 0x10, 1, 2)...), "sent NOTIFICATION 1/2 (message header error, bad message length)"},
		{"sends a short ROUTE-REFRESH", up(message(5, 0, 1, 0, 1, 0)...), "sent NOTIFICATION 7/1"},
		{"refuses an UPDATE", up(message(3, 3, 1)...), "received NOTIFICATION 3/1 (UPDATE message error, malformed attribute list)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			simulate(t, Config{Leave: -1}, func(w *world) {
				r, other := w.router("192.0.2.2"), w.router("192.0.2.3")
				p := r.peer()
				p.Customer = true
				w.Set([]Session{{Peer: p}, {other.peer(), routesTo("203.0.113.1/32")}})
				good := other.accept()
				good.establish(routerOpen())
				good.follow()
				bad := r.accept()
				if _, _, err := bad.next(); err != nil {
					t.Fatal(err)
				}
				bad.follow()
				tt.act(bad)
				eventually(w.t, "the reason is "+tt.want, func() bool { return strings.Contains(w.Status()[0].LastError, tt.want) })
				if good.route("203.0.113.1/32") == "" || w.Status()[1].Ups != 1 {
					t.Errorf("the other session: %+v", w.Status()[1])
				}
			})
		})
	}
}

// A peer that refuses what it is sent, whatever it is, does not see session after session, and sees the next one at once
// when one has lived.
func TestSessionsThatDieYoungAreDamped(t *testing.T) {
	simulate(t, Config{Leave: -1}, func(w *world) {
		r := w.router("192.0.2.2")
		w.Set([]Session{{r.peer(), routesTo("203.0.113.1/32")}})
		refuse := func() {
			c := r.accept()
			c.establish(routerOpen())
			if _, typ, err := c.next(); err != nil || typ != bgp.BGP_MSG_UPDATE {
				t.Errorf("type %d, %v", typ, err)
			}
			c.follow()
			c.write(message(3, 3, 1))
			c.Close()
		}
		n := 0
		for start := time.Now(); ; n++ {
			if refuse(); time.Since(start) > 10*time.Minute {
				break
			}
		}
		if n > 20 || n < 10 {
			t.Errorf("%d sessions in ten minutes, want at most 20", n)
		}
		if st := w.only(); !strings.Contains(st.LastError, "received NOTIFICATION 3/1") || !strings.Contains(st.LastError, "the next attempt is in about 1m0s") {
			t.Errorf("status says %q", st.LastError)
		}
		c := r.accept()
		c.establish(routerOpen())
		c.follow()
		for range 4 {
			time.Sleep(15 * time.Second)
			c.write(keepalive)
		}
		c.Close()
		before := time.Now()
		c = r.accept()
		c.establish(routerOpen())
		c.follow()
		if took := time.Since(before); took > 100*time.Millisecond {
			t.Errorf("after a session that lived the next one comes after %s", took)
		}
	})
}

// UPDATEs that have killed BGP speakers, and others that make no sense, are dropped, and the session goes on.
func TestHostileUpdates(t *testing.T) {
	attrs := func(attrs string) []byte {
		return append(append(message(2, 0, 0, byte(len(attrs)>>8), byte(len(attrs)))[headerLen:], attrs...), 24, 192, 0, 2)
	}
	hostile := [][]byte{
		// AS4_PATH before the last AS_PATH (CVE-2026-41643).
		attrs("\x40\x01\x01\x00" + "\xc0\x11\x06\x02\x01\x00\x00\xfd\xe9" + "\x40\x03\x04\xc0\x00\x02\x02" + "\x40\x02\x00"),
		// Prefix-SID with a short SRv6 sub-TLV (RFC 8669, RFC 9252).
		attrs("\x40\x01\x01\x00" + "\x40\x02\x00" + "\x40\x03\x04\xc0\x00\x02\x02" + "\xc0\x28\x08\x05\x00\x05\x00\x01\x00\x01\x00"),
		attrs("\x40\x01"),                 // cut short
		attrs("\xc0\x0e\xff\x00\x02\x01"), // a length beyond the message
		{0xff, 0xff, 0, 0},
		{0, 0, 0xff, 0xff},
		{0, 0, 0, 0, 33, 1, 2, 3, 4, 5},
	}
	random := rand.New(rand.NewPCG(1, 1))
	for range 500 {
		b := make([]byte, 4+random.IntN(200))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		hostile = append(hostile, b)
	}
	simulate(t, Config{Leave: -1}, func(w *world) {
		r := w.router("192.0.2.2")
		w.Set([]Session{{Peer: r.peer()}})
		c := r.accept()
		c.establish(routerOpen())
		c.follow()
		for _, b := range hostile {
			c.write(message(2, b...))
		}
		w.Set([]Session{{r.peer(), routesTo("203.0.113.1/32")}})
		if c.route("203.0.113.1/32") == "" {
			t.Error("the session does not go on")
		}
		if st := w.only(); st.Ups != 1 || st.LastError != "" || st.MessagesIn.Update != uint64(len(hostile)) {
			t.Errorf("status %+v", st)
		}
	})
}

// A full table is counted up to a point and costs no more than that; only a configured limit ends the session.
func TestFullTable(t *testing.T) {
	simulate(t, Config{Leave: -1}, func(w *world) {
		r := w.router("192.0.2.2")
		p := r.peer()
		w.Set([]Session{{Peer: p}})
		c := r.accept()
		c.establish(routerOpen())
		c.follow()
		sent := 0
		for sent < countedAtMost+2000 {
			body := []byte{0, 0, 0, 0}
			for range 500 {
				body = append(body, 32, 10, byte(sent>>16), byte(sent>>8), byte(sent))
				sent++
			}
			c.write(message(2, body...))
			if sent == 1000 {
				c.write(message(2, 0, 5, 32, 10, 0, 0, 7, 0, 0)) // one is withdrawn
				if got := w.only().Received; got != 999 {
					t.Errorf("%d prefixes are counted, want 999", got)
				}
			}
		}
		if st := w.only(); st.State != Established || !strings.Contains(st.Problem, "more than 100000 prefixes") {
			t.Errorf("status %+v", st)
		}
		p.MaxPrefixes = 10
		w.Set([]Session{{Peer: p}})
		eventually(w.t, "the limit ends the session, without another UPDATE", func() bool { return strings.Contains(w.only().LastError, "sent NOTIFICATION 6/1") })
	})
}

// Whatever happens to the connection and however the routes change meanwhile, the router ends up with what is wanted.
func TestRoutesConverge(t *testing.T) {
	simulate(t, Config{Leave: -1}, func(w *world) {
		r := w.router("192.0.2.2")
		random := rand.New(rand.NewPCG(7, 7))
		want := map[netip.Prefix]bool{}
		table := route.Table{}
		change := func() {
			var set []route.Route
			var remove []netip.Prefix
			for range random.IntN(20) {
				p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(random.IntN(64))}), 32)
				if want[p] = random.IntN(2) == 0; want[p] {
					set = append(set, route.Route{Prefix: p, Attrs: route.Attrs{Prepend: random.IntN(3)}})
				} else {
					remove = append(remove, p)
					delete(want, p)
				}
			}
			set = slices.DeleteFunc(set, func(r route.Route) bool { return !want[r.Prefix] })
			remove = slices.DeleteFunc(remove, func(p netip.Prefix) bool { return want[p] })
			table = table.With(set, remove)
			w.Set([]Session{{r.peer(), table}})
		}
		right := func(c *end) bool {
			synctest.Wait()
			c.mu.Lock()
			defer c.mu.Unlock()
			for rt := range table.All() {
				if got := c.table[rt.Prefix]; !strings.HasPrefix(got, nodeAddr.String()+" ") || strings.Count(got, "65001") != 1+rt.Prepend {
					return false
				}
			}
			return len(c.table) == len(want)
		}
		change()
		for round := range 40 {
			c := r.accept()
			stop := make(chan struct{})
			var changing sync.WaitGroup
			changing.Go(func() { // all through the handshake
				for {
					select {
					case <-stop:
						return
					default:
						change()
						time.Sleep(time.Microsecond)
					}
				}
			})
			c.establish(routerOpen())
			c.follow()
			close(stop)
			changing.Wait()
			if !right(c) {
				t.Fatalf("round %d: the router has %v, want %v", round, c.table, want)
			}
			for range random.IntN(3) {
				change()
				if !right(c) {
					t.Fatalf("round %d: after a change the router has %v, want %v", round, c.table, want)
				}
			}
			if random.IntN(3) == 0 { // a refresh changes nothing
				c.write(message(5, 0, 1, 0, 1))
				if !right(c) {
					t.Fatalf("round %d: after a refresh the router has %v, want %v", round, c.table, want)
				}
			}
			if st := w.only(); st.Sent4 != len(want) {
				t.Fatalf("round %d: status says %d of %d", round, st.Sent4, len(want))
			}
			if random.IntN(2) == 0 {
				c.write(message(3, 6, 4))
			}
			c.Close()
		}
	})
}

// A peer that asks for its routes all the time has them again once a second, and after the last time that it asked.
func TestRefreshFlood(t *testing.T) {
	simulate(t, Config{Leave: -1}, func(w *world) {
		r := w.router("192.0.2.2")
		w.Set([]Session{{r.peer(), routesTo("203.0.113.1/32")}})
		c := r.accept()
		c.establish(routerOpen())
		c.follow()
		synctest.Wait()
		before := w.only().MessagesOut.Update
		for range 1000 {
			c.write(message(5, 0, 1, 0, 1))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		if synctest.Wait(); w.only().MessagesOut.Update-before != 11 {
			t.Errorf("%d UPDATEs in answer to 1000 ROUTE-REFRESHes in 10 s", w.only().MessagesOut.Update-before)
		}
	})
}

// A peer that answers nothing, and one that takes nothing off its connection, hold up neither Set nor Status nor another
// session, nor the end of Run; the latter is given up after a while (RFC 9687).
func TestDeadPeers(t *testing.T) {
	simulate(t, Config{Leave: time.Second}, func(w *world) {
		mute, stuck, good := w.router("192.0.2.2"), w.router("192.0.2.3"), w.router("192.0.2.4")
		rs, all := manyRoutes(4000, func(i int) route.Attrs {
			var a route.Attrs
			for j := range 60 {
				a.Communities = append(a.Communities, route.Community{A: uint32(i), B: uint32(j)})
			}
			return a
		})
		set := func(t route.Table) {
			p := stuck.peer()
			p.HoldTime = 0
			w.Set([]Session{{mute.peer(), t}, {p, t}, {good.peer(), t}})
		}
		set(routesTo("203.0.113.1/32"))
		mute.accept()
		stuck.accept().establish(routerOpen())
		g := good.accept()
		g.establish(routerOpen())
		g.follow()
		time.Sleep(2 * time.Second)
		set(route.TableOf(rs...))
		synctest.Wait()
		if !g.has(all) {
			t.Error("the good router does not have everything")
		}
		st := w.Status() // in order of addresses
		if len(st) != 3 || st[0].State != OpenSent || st[1].State != Established || st[1].Sent4 != 0 || st[2].State != Established || st[2].Sent4 != len(all) {
			t.Errorf("status %+v", st)
		}
		for range 9 { // 8 minutes without a byte taken
			time.Sleep(52 * time.Second)
			g.write(keepalive)
		}
		if st := w.Status()[1]; st.State != Established {
			t.Errorf("a peer that takes nothing for less than 8 minutes: %+v", st)
		}
		eventually(w.t, "a peer that takes nothing is given up", func() bool {
			return strings.Contains(w.Status()[1].LastError, "NOTIFICATION 8/0 (send hold timer expired)")
		})
		stuck.accept().establish(routerOpen())
		before := time.Now()
		w.stop()
		if took := time.Since(before); took > 5*time.Second {
			t.Errorf("the end took %s", took)
		}
		var n *Notification
		if synctest.Wait(); !errors.As(g.ended, &n) || n.Code != 6 {
			t.Errorf("the good router was told %v", g.ended)
		}
	})
}

// A peer that takes nothing is given twice the hold time, if that is more than 8 minutes (RFC 9687 section 4).
func TestSendHoldTime(t *testing.T) {
	simulate(t, Config{Leave: -1}, func(w *world) {
		r := w.router("192.0.2.2")
		p := r.peer()
		p.HoldTime = 10 * time.Minute
		w.Set([]Session{{Peer: p}})
		c := r.accept()
		o := routerOpen()
		o.hold = p.HoldTime
		c.establish(o)
		if _, _, err := c.next(); err != nil { // End-of-RIB
			t.Fatal(err)
		}
		w.Set([]Session{{p, routesTo("203.0.113.1/32")}})
		for range 4 {
			time.Sleep(295 * time.Second)
			c.write(keepalive)
		}
		if st := w.only(); st.State != Established {
			t.Errorf("after less than twice the hold time: %+v", st)
		}
		eventually(t, "it is given up", func() bool { return strings.Contains(w.only().LastError, "NOTIFICATION 8/0") })
	})
}

// A peer that goes on refusing does not go on changing the status, which others may write to an API server each time.
func TestStatusRests(t *testing.T) {
	var changes atomic.Int32
	simulate(t, Config{Leave: -1, OnChange: func() { changes.Add(1) }}, func(w *world) {
		r := w.router("192.0.2.2")
		w.Set([]Session{{Peer: r.peer()}})
		refuse := func() {
			c := r.accept()
			if _, _, err := c.next(); err != nil {
				t.Error(err)
			}
			c.Close()
		}
		refuse()
		if st := w.only(); st.LastError != "the peer closed the connection" || st.State != Active {
			t.Errorf("status %+v", st)
		}
		before := changes.Load()
		for range 5 {
			refuse()
		}
		if synctest.Wait(); changes.Load() != before {
			t.Errorf("%d changes of status although nothing has changed", changes.Load()-before)
		}
	})
}

// Neither does a router that is off, whose neighbor entry fails in every fourth attempt while the others time out, nor one
// that gives another reason each time; a reason that lasts is shown.
func TestReasonsInTurn(t *testing.T) {
	for name, reason := range map[string]func(i int) error{
		"off": func(i int) error {
			if i%4 == 0 {
				return syscall.EHOSTUNREACH
			}
			return os.ErrDeadlineExceeded
		},
		"random": func(i int) error { return fmt.Errorf("reason %d", i) },
	} {
		t.Run(name, func(t *testing.T) {
			var changes atomic.Int32
			var lines lineCounter
			c := Config{Leave: -1, OnChange: func() { changes.Add(1) }, Log: slog.New(slog.NewTextHandler(&lines, nil))}
			simulate(t, c, func(w *world) {
				var attempts atomic.Int64
				r := w.router("192.0.2.2")
				w.locked(func() { w.fails = func() error { return reason(int(attempts.Add(1))) } })
				w.Set([]Session{{Peer: r.peer()}})
				time.Sleep(10 * time.Second)
				synctest.Wait()
				before := changes.Load()
				time.Sleep(10 * time.Minute)
				if synctest.Wait(); changes.Load() != before || lines.n.Load() > 2 || attempts.Load() < 500 {
					t.Errorf("%d changes of status and %d log lines for %d attempts", changes.Load()-before, lines.n.Load(), attempts.Load())
				}
				w.locked(func() { w.fails = func() error { return syscall.ECONNREFUSED } })
				time.Sleep(3 * time.Second)
				if synctest.Wait(); !strings.Contains(w.only().LastError, "refuses TCP connections") {
					t.Errorf("status %+v", w.only())
				}
			})
		})
	}
}

// lineCounter counts the lines of a log.
type lineCounter struct{ n atomic.Int64 }

func (l *lineCounter) Write(b []byte) (int, error) { l.n.Add(1); return len(b), nil }

// A passive session is opened by the peer, and opened anew when the peer says so, in every state.
func TestPassive(t *testing.T) {
	simulate(t, Config{Leave: -1}, func(w *world) {
		addr := netip.MustParseAddr("192.0.2.2")
		p := w.router("192.0.2.2").peer()
		p.Passive = true
		w.Set([]Session{{p, routesTo("203.0.113.2/32")}})
		connect := func() *end {
			synctest.Wait()
			ours, theirs := connection(addr)
			w.network.mu.Lock()
			deliver := w.passive[addr]
			w.network.mu.Unlock()
			if deliver == nil {
				t.Fatal("nobody waits")
			}
			deliver(ours)
			return newEnd(w.t, theirs)
		}
		lost := connect()
		if _, _, err := lost.next(); err != nil { // in OpenSent
			t.Fatal(err)
		}
		for range 2 {
			c := connect()
			c.establish(routerOpen())
			c.follow()
			if c.route("203.0.113.2/32") == "" {
				t.Error("the route is missing")
			}
		}
		if st := w.only(); st.Ups != 2 || !strings.Contains(st.LastError, "the peer has opened a new connection") {
			t.Errorf("status %+v", st)
		}
		w.Set(nil)
		synctest.Wait()
		w.locked(func() {
			if len(w.passive) != 0 {
				t.Error("somebody still waits")
			}
		})
	})
}

// Only the end of a BFD session that was up ends the BGP session, and not if the peer merely wants no BFD any more.
func TestWhatBFDMeans(t *testing.T) {
	for _, tt := range []struct {
		st   bfd.Status
		want bool
	}{
		{bfd.Status{Was: bfd.Up, State: bfd.Down, Diag: bfd.DiagTimeExpired, RemoteState: bfd.Up}, true},
		{bfd.Status{Was: bfd.Up, State: bfd.Down, Diag: bfd.DiagNeighborDown, RemoteState: bfd.Down}, true},
		{bfd.Status{Was: bfd.Up, State: bfd.Down, Diag: bfd.DiagNeighborDown, RemoteState: bfd.AdminDown}, false},
		{bfd.Status{Was: bfd.Init, State: bfd.Down, Diag: bfd.DiagTimeExpired}, false},
		{bfd.Status{Was: bfd.Down, State: bfd.Init}, false},
		{bfd.Status{Was: bfd.Init, State: bfd.Up, RemoteState: bfd.Up}, false},
	} {
		s := newSession(New(Config{Log: slog.New(slog.DiscardHandler)}), place{}, Peer{}, nil)
		s.bfdChanged(tt.st)
		if got := len(s.bfdDown) == 1; got != tt.want {
			t.Errorf("from %s to %s, the peer in %s: ends the session %v", tt.st.Was, tt.st.State, tt.st.RemoteState, got)
		}
	}
}

// What the protocol can change live is changed live; what it cannot says so.
func TestOptionsLeaveTheSession(t *testing.T) {
	simulate(t, Config{Leave: -1}, func(w *world) {
		r := w.router("192.0.2.2")
		p := r.peer()
		rs := route.TableOf(route.Route{Prefix: netip.MustParsePrefix("203.0.113.1/32"), Attrs: route.Attrs{Bandwidth: 125e6}})
		w.Set([]Session{{p, rs}})
		c := r.accept()
		c.establish(routerOpen())
		c.follow()
		plain := c.route("203.0.113.1/32")
		p.HoldTime, p.Keepalive, p.ConnectTime, p.MaxPrefixes, p.LinkBandwidth = 30*time.Second, 7*time.Second, 5*time.Second, 12, LinkBandwidthBoth
		p.BFD = bfd.Profile{Receive: time.Second, Transmit: time.Second, Multiplier: 3}
		w.Set([]Session{{p, rs}})
		if both := c.route("203.0.113.1/32"); len(both) <= len(plain) {
			t.Errorf("the route is %q, was %q", both, plain)
		}
		st := w.only()
		if st.Ups != 1 || st.State != Established || st.HoldTime != 90*time.Second {
			t.Errorf("status %+v", st)
		}
		for _, want := range []string{"BFD is not available", "count from the next session on; this one has 1m30s and 30s"} {
			if !strings.Contains(st.Problem, want) {
				t.Errorf("problem %q, want %q", st.Problem, want)
			}
		}
		c.Close()
		c = r.accept()
		c.establish(routerOpen())
		c.follow()
		if st := w.only(); st.Ups != 2 || st.HoldTime != 30*time.Second || st.Keepalive != 7*time.Second || strings.Contains(st.Problem, "next session") {
			t.Errorf("status of the next session %+v", st)
		}
	})
}

// BFD begins, changes and ends beside a session that stands.
func TestBFDFollowsOptions(t *testing.T) {
	c := Config{Leave: -1, BFD: bfd.New(bfd.Config{Log: slog.New(slog.DiscardHandler)})}
	simulate(t, c, func(w *world) {
		r := w.router("192.0.2.2")
		p := r.peer()
		p.Source = nodeAddr
		w.Set([]Session{{Peer: p}})
		e := r.accept()
		e.establish(routerOpen())
		e.follow()
		for _, profile := range []bfd.Profile{
			{Receive: time.Second, Transmit: time.Second, Multiplier: 3}, {Receive: time.Second, Transmit: time.Second, Multiplier: 5}, {},
		} {
			p.BFD = profile
			w.Set([]Session{{Peer: p}})
			synctest.Wait()
			w.bfdMu.Lock()
			got, watched := w.bfdWant[place{peer: p.Name}]
			w.bfdMu.Unlock()
			if got.Profile != profile || watched != (profile != bfd.Profile{}) {
				t.Errorf("the path is watched with %+v, want %+v", got, profile)
			}
		}
		if st := w.only(); st.Ups != 1 {
			t.Errorf("status %+v", st)
		}
	})
}

// A BFD session that ends before the BGP session is up has no part in it: the peer may be as slow as any.
func TestBFDDownBeforeTheSession(t *testing.T) {
	simulate(t, Config{Leave: -1}, func(w *world) {
		r := w.router("192.0.2.2")
		w.Set([]Session{{r.peer(), routesTo("203.0.113.1/32")}})
		c := r.accept()
		synctest.Wait() // in OpenSent
		w.sessions[place{peer: "192.0.2.2"}].bfdChanged(bfd.Status{Was: bfd.Up, State: bfd.Down, Diag: bfd.DiagTimeExpired, RemoteState: bfd.Up})
		c.establish(routerOpen())
		time.Sleep(time.Minute)
		c.follow()
		if got, st := c.route("203.0.113.1/32"), w.only(); got == "" || st.State != Established {
			t.Errorf("the route is %q, status %+v", got, st)
		}
	})
}

// Next hops follow the addresses of the node in a session that stands.
func TestNextHopsFollow(t *testing.T) {
	simulate(t, Config{Leave: -1}, func(w *world) {
		r := w.router("192.0.2.2")
		p := r.peer()
		p.DualStack, p.Own6 = true, netip.MustParseAddr("2001:db8::8")
		w.Set([]Session{{p, routesTo("203.0.113.1/32", "2001:db8:f::1/128")}})
		c := r.accept()
		o := routerOpen()
		o.families = []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC}
		c.establish(o)
		c.follow()
		if got := c.route("2001:db8:f::1/128"); got != "" || !strings.Contains(w.only().Problem, "no global IPv6 address") {
			t.Errorf("without an IPv6 address %q is announced, status %+v", got, w.only())
		}
		six := func(s string) address { return address{addr: netip.MustParseAddr(s), link: 1, usable: true} }
		four := address{addr: nodeAddr, link: 1, usable: true}
		for _, tt := range []struct {
			what  string
			addrs []address
			want  string
		}{
			{"a floating address", []address{four, {addr: netip.MustParseAddr("2001:db8::9"), link: 1, usable: true, floating: true}}, "2001:db8::9"},
			{"another beside it", []address{four, {addr: netip.MustParseAddr("2001:db8::9"), link: 1, usable: true, floating: true}, six("2001:db8::7")}, "2001:db8::7"},
			{"the node's own", []address{four, six("2001:db8::7"), six("2001:db8::8")}, "2001:db8::8"},
			{"the session's address also on other interfaces", []address{
				{addr: nodeAddr, link: 3, usable: true}, {addr: netip.MustParseAddr("2001:db8::8"), link: 3, usable: true}, four, six("2001:db8::7"),
			}, "2001:db8::7"},
			{"once more the node's own", []address{four, six("2001:db8::8")}, "2001:db8::8"},
			{"the session's address gone: it will not last", nil, "2001:db8::8"},
			{"renumbered", []address{four, six("2001:db8:1::5")}, "2001:db8:1::5"},
			{"none", []address{four}, ""},
		} {
			w.change(func() { w.network.addrs = tt.addrs })
			if got := c.route("2001:db8:f::1/128"); !strings.HasPrefix(got, tt.want) || (got == "") != (tt.want == "") {
				t.Errorf("%s: the next hop is %q, want %s", tt.what, got, tt.want)
			}
		}
		if st := w.only(); st.Ups != 1 || c.route("203.0.113.1/32") == "" {
			t.Errorf("status %+v", st)
		}
	})
}

// There is a session with each gateway of the default route; those of a route that is gone for a moment stay.
func TestEveryGateway(t *testing.T) {
	var changes atomic.Int32
	simulate(t, Config{Leave: -1, OnChange: func() { changes.Add(1) }}, func(w *world) {
		a, b := w.router("192.0.2.2"), w.router("192.0.2.3")
		p := a.peer()
		p.Name, p.Address, p.DefaultGateway = "tor", netip.Addr{}, GatewayIPv4
		w.Set([]Session{{p, routesTo("203.0.113.1/32")}})
		if st := w.only(); st.State != Idle || st.LastError != "the node has no IPv4 default route" {
			t.Errorf("without a default route: %+v", st)
		}
		w.change(func() { w.defaults = []netip.Addr{a.addr, b.addr} })
		var ends []*end
		for _, r := range []*router{a, b} {
			c := r.accept()
			c.establish(routerOpen())
			c.follow()
			if c.route("203.0.113.1/32") == "" {
				t.Errorf("%s does not have the route", r.addr)
			}
			ends = append(ends, c)
		}
		w.change(func() { w.defaults = nil })
		synctest.Wait()
		if st := w.Status(); len(st) != 2 || st[0].Ups != 1 || st[1].State != Established {
			t.Errorf("without a default route for a moment: %+v", st)
		}
		w.change(func() { w.defaults = []netip.Addr{b.addr} })
		if st := w.only(); st.Address != b.addr || st.Ups != 1 {
			t.Errorf("with one gateway left: %+v", st)
		}
		// One that never answered goes, and that is told too.
		w.change(func() { w.defaults = []netip.Addr{b.addr, netip.MustParseAddr("192.0.2.4")} })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		before := changes.Load()
		w.change(func() { w.defaults = []netip.Addr{b.addr} })
		if synctest.Wait(); len(w.Status()) != 1 || changes.Load() == before {
			t.Errorf("%d changes of status, %+v", changes.Load()-before, w.Status())
		}
		var n *Notification
		ends[0].mu.Lock()
		defer ends[0].mu.Unlock()
		if !errors.As(ends[0].ended, &n) || n.Code != 6 || n.Subcode != 3 {
			t.Errorf("the other was told %v", ends[0].ended)
		}
	})
}

// A router that a peer by address and the default route's gateway both mean has one session, that of the peer named first;
// the other says so, and takes over when it goes.
func TestOneRouterFoundTwice(t *testing.T) {
	for _, first := range []string{"address", "gateway"} {
		simulate(t, Config{Leave: -1}, func(w *world) {
			r := w.router("192.0.2.2")
			byAddress, byGateway := r.peer(), r.peer()
			byAddress.Name = "address"
			byGateway.Name, byGateway.Address, byGateway.DefaultGateway = "gateway", netip.Addr{}, GatewayIPv4
			w.change(func() { w.defaults = []netip.Addr{r.addr} })
			all := []Session{{Peer: byAddress}, {Peer: byGateway}}
			if first == "gateway" {
				slices.Reverse(all)
			}
			w.Set(all)
			c := r.accept()
			c.establish(routerOpen())
			c.follow()
			synctest.Wait()
			for _, st := range w.Status() {
				if st.Peer == first && st.State == Established {
					continue
				}
				if want := fmt.Sprintf("the peer %q is the same router, 192.0.2.2; its session is used", first); st.Peer == first || st.State != Idle || st.LastError != want {
					t.Errorf("%s first: %+v", first, st)
				}
			}
			w.Set(all[1:])
			c = r.accept()
			c.establish(routerOpen())
			c.follow()
			if st := w.only(); st.State != Established || st.Peer == first {
				t.Errorf("%s gone: %+v", first, st)
			}
		})
	}
	address := func(s string) Identity { return Identity{Address: netip.MustParseAddr(s)} }
	for _, tt := range []struct {
		first, second Identity
		want          string // why the second has no session
	}{
		{Identity{Interface: "eth1"}, Identity{DefaultGateway: GatewayIPv6}, "same router, fe80::1%eth1;"},
		{Identity{DefaultGateway: GatewayIPv6}, Identity{Interface: "eth1"}, "same router, that on interface eth1;"},
		{address("fe80::2%eth1"), Identity{Interface: "eth1"}, "same router, that on interface eth1;"},
		{address("192.0.2.2"), Identity{Address: netip.MustParseAddr("192.0.2.2"), Port: 179}, "same router, 192.0.2.2;"},
		{Identity{Interface: "eth2"}, Identity{DefaultGateway: GatewayIPv6}, ""},
		{address("fe80::2%eth1"), Identity{DefaultGateway: GatewayIPv6}, ""},
		{address("fe80::1%eth1"), Identity{Interface: "eth1", Port: 1179}, ""},
		{address("fe80::1%eth1"), Identity{Interface: "eth1", VRF: "red"}, ""},
		{Identity{}, address("192.0.2.2"), ""}, // one that says nothing is no router
	} {
		s := newSpeaker(Config{Log: slog.New(slog.DiscardHandler)}, &network{defaults: []netip.Addr{netip.MustParseAddr("fe80::1%eth1")}})
		s.Set([]Session{{Peer: Peer{Name: "first", Identity: tt.first}}, {Peer: Peer{Name: "second", Identity: tt.second}}})
		for at, w := range s.wanted() {
			if twin, err := w.Peer.twin, w.Peer.check(); (twin == "first") != (at.peer == "second" && tt.want != "") || twin != "" && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v and %+v: %s is the same as %q: %v", tt.first, tt.second, at.peer, twin, err)
			}
		}
	}
}

// A router takes two connections for a collision, so that the next session waits for the end of the one before. It goes on
// with its counters.
func TestOneConnectionAtATime(t *testing.T) {
	for name, change := range map[string]func(w *world, p, gateway Peer, other *router) *router{
		"edited": func(w *world, p, _ Peer, _ *router) *router {
			p.Customer = true
			w.Set([]Session{{Peer: p}})
			return nil
		},
		"edited twice": func(w *world, p, _ Peer, _ *router) *router {
			p.Customer = true
			w.Set([]Session{{Peer: p}})
			synctest.Wait()
			p.MultiHop = true
			w.Set([]Session{{Peer: p}})
			return nil
		},
		"another router": func(w *world, p, _ Peer, other *router) *router {
			p.Address = other.addr
			w.Set([]Session{{Peer: p}})
			return other
		},
		"deleted and made again": func(w *world, p, _ Peer, _ *router) *router {
			w.Set(nil)
			synctest.Wait()
			w.Set([]Session{{Peer: p}})
			return nil
		},
		"another peer finds it": func(w *world, p, gateway Peer, _ *router) *router {
			w.Set([]Session{{Peer: gateway}})
			return nil
		},
		"another peer finds it, the first one goes elsewhere": func(w *world, p, gateway Peer, other *router) *router {
			w.Set([]Session{{Peer: p}, {Peer: gateway}})
			synctest.Wait()
			p.Address = other.addr
			w.Set([]Session{{Peer: p}, {Peer: gateway}})
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, Config{Leave: time.Second}, func(w *world) {
				r, other := w.router("192.0.2.2"), w.router("192.0.2.3")
				p, gateway := r.peer(), r.peer()
				gateway.Name, gateway.Address, gateway.DefaultGateway = "gateway", netip.Addr{}, GatewayIPv4
				w.change(func() { w.defaults = []netip.Addr{r.addr} })
				w.Set([]Session{{p, routesTo("203.0.113.1/32")}})
				c := r.accept()
				c.establish(routerOpen())
				c.follow()
				synctest.Wait()
				next := cmp.Or(change(w, p, gateway, other), r).accept()
				synctest.Wait()
				c.mu.Lock()
				defer c.mu.Unlock()
				if c.ended == nil {
					t.Error("the next connection comes before the end of the first")
				}
				next.establish(routerOpen())
				next.follow()
				if st := w.only(); strings.HasPrefix(name, "edited") && (st.Ups != 2 || st.MessagesOut.Open != 2 || st.MessagesIn.Open != 2) {
					t.Errorf("status %+v", st)
				}
			})
		})
	}
}

// record is an Observer that writes down what it sees.
type record struct{ seen []string }

func (r *record) Up(peer string, _, remote netip.AddrPort, sent, received []byte) {
	r.seen = append(r.seen, fmt.Sprintf("up %s %s %d %d", peer, remote, sent[18], received[18]))
}
func (r *record) Sent(peer string, _ netip.AddrPort, update []byte) {
	r.seen = append(r.seen, fmt.Sprintf("sent %s %d", peer, len(update)))
}
func (r *record) Down(peer string, _ netip.AddrPort, reason error) {
	r.seen = append(r.seen, fmt.Sprintf("down %s %v", peer, reason))
}

func TestObserver(t *testing.T) {
	o := &record{}
	late := &record{}
	simulate(t, Config{Leave: -1}, func(w *world) {
		w.Observe(o)
		r := w.router("192.0.2.2")
		w.Set([]Session{{r.peer(), routesTo("203.0.113.1/32")}})
		c := r.accept()
		c.establish(routerOpen())
		c.follow()
		synctest.Wait()
		stop := w.Observe(late)
		synctest.Wait()
		stop()
	})
	want := []string{"up 192.0.2.2 192.0.2.2:179 1 1", "sent 192.0.2.2 48", "sent 192.0.2.2 23",
		`down 192.0.2.2 sent NOTIFICATION 6/2 (cease, administrative shutdown): "the BGP speaker of this node ends"`}
	if !slices.Equal(o.seen, want) {
		t.Errorf("seen %q, want %q", o.seen, want)
	}
	// Who comes later sees the same; who has gone does not see the end.
	if !slices.Equal(late.seen, want[:3]) {
		t.Errorf("seen later %q, want %q", late.seen, want[:3])
	}
}

func TestPeersThatCannotWork(t *testing.T) {
	for want, f := range map[string]func(*Peer){
		"exactly one of address":         func(p *Peer) { p.Address = netip.Addr{} },
		"exactly one of":                 func(p *Peer) { p.DefaultGateway, p.Interface = GatewayNone, "lo" },
		"the local AS number is 0":       func(p *Peer) { p.LocalASN = 0 },
		"the peer's AS number is 0":      func(p *Peer) { p.PeerASN = 0 },
		"there is no router ID":          func(p *Peer) { p.RouterID = netip.MustParseAddr("2001:db8::1") },
		"hold time 1s":                   func(p *Peer) { p.HoldTime = time.Second },
		"hold time 3.5s":                 func(p *Peer) { p.HoldTime = 3500 * time.Millisecond },
		"keepalive time 19h0m0s":         func(p *Peer) { p.Keepalive = 19 * time.Hour },
		"restart time":                   func(p *Peer) { p.GracefulRestart = 2 * time.Hour },
		"the password is longer than 80": func(p *Peer) { p.Password = strings.Repeat("x", 81) },
		"exclude each other":             func(p *Peer) { p.TTLSecurity, p.MultiHop = true, true },
		"receive interval 0s":            func(p *Peer) { p.BFD.Multiplier = 3 },
	} {
		p := (&router{addr: netip.MustParseAddr("192.0.2.2")}).peer()
		f(&p)
		if err := p.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	// One that is corrected at the moment that it is said to be wrong is tried as well.
	var correct func()
	simulate(t, Config{Leave: -1, OnChange: func() { correct() }}, func(w *world) {
		r := w.router("192.0.2.2")
		p := r.peer()
		p.HoldTime = time.Second
		correct = func() {
			w.Set([]Session{{Peer: r.peer()}})
			time.Sleep(time.Millisecond)
		}
		w.Set([]Session{{Peer: p}})
		r.accept().Close()
	})
	// One that cannot work is tried as soon as it can.
	simulate(t, Config{Leave: -1}, func(w *world) {
		r := w.router("192.0.2.2")
		p := r.peer()
		p.HoldTime = time.Second
		w.Set([]Session{{Peer: p}})
		if st := w.only(); st.State != Idle || !strings.Contains(st.LastError, "hold time 1s") {
			t.Errorf("status %+v", st)
		}
		before := time.Now()
		w.Set([]Session{{Peer: r.peer()}})
		r.accept().Close()
		if took := time.Since(before); took > time.Second {
			t.Errorf("tried after %s", took)
		}
	})
}

// TestRefusedWhileWeWrite: a peer that refuses the session and closes the connection before the speaker has written is quoted.
func TestRefusedWhileWeWrite(t *testing.T) {
	simulate(t, Config{}, func(w *world) {
		r := w.router("192.0.2.2")
		w.locked(func() { w.writes = 1 })
		w.Set([]Session{{Peer: r.peer()}})
		c := r.accept()
		if _, typ, err := c.next(); err != nil || typ != bgp.BGP_MSG_OPEN {
			t.Fatalf("instead of an OPEN: type %d, %v", typ, err)
		}
		ours := routerOpen()
		c.write(must(ours.bytes()))
		c.write(notify(2, 2).Bytes())
		c.Close()
		eventually(t, "the reason is the peer's", func() bool { return strings.Contains(w.only().LastError, "received NOTIFICATION 2/2") })
	})
}
