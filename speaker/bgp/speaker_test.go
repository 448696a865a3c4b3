package bgp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/speaker/bfd"
)

// router is a peer on the loopback interface that does what the test says.
type router struct {
	t testing.TB
	*net.TCPListener
}

func newRouter(t testing.TB) *router {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &router{t, l}
}

// peer is a Peer that means the router.
func (r *router) peer() Peer {
	return Peer{
		Name: "router", LocalASN: 65001, PeerASN: 64512, Address: netip.MustParseAddr("127.0.0.1"), Port: uint16(r.Addr().(*net.TCPAddr).Port),
		RouterID: netip.MustParseAddr("192.0.2.1"), HoldTime: 90 * time.Second,
	}
}

// conn is a connection to the speaker, from the router's side.
type conn struct {
	t testing.TB
	*net.TCPConn
	r *bufio.Reader

	theirs open // the speaker's OPEN

	mu    sync.Mutex
	table map[netip.Prefix]bool
	ended error // of the reading side
}

func (r *router) accept() *conn {
	r.t.Helper()
	r.SetDeadline(time.Now().Add(30 * time.Second))
	c, err := r.AcceptTCP()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return &conn{t: r.t, TCPConn: c, r: bufio.NewReader(c), table: map[netip.Prefix]bool{}}
}

// next reads a message. It must not be called by more than one goroutine.
func (c *conn) next() ([]byte, uint8, error) {
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	return readMessage(c.r, new([maxMessage]byte))
}

func (c *conn) write(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Error(err)
	}
}

// routerOpen is what the router says of itself by default.
func routerOpen() open {
	return open{asn: 64512, id: netip.MustParseAddr("192.0.2.2"), hold: 180 * time.Second, families: []bgp.Family{bgp.RF_IPv4_UC}, refresh: true}
}

// establish goes through the handshake.
func (c *conn) establish(ours open) {
	c.t.Helper()
	msg, typ, err := c.next()
	if err != nil || typ != bgp.BGP_MSG_OPEN {
		c.t.Fatalf("instead of an OPEN: type %d, %v", typ, err)
	}
	if c.theirs, err = parseOpen(msg); err != nil {
		c.t.Fatal(err)
	}
	b, err := ours.bytes()
	if err != nil {
		c.t.Fatal(err)
	}
	c.write(b)
	if _, typ, err := c.next(); err != nil || typ != bgp.BGP_MSG_KEEPALIVE {
		c.t.Fatalf("instead of a KEEPALIVE: type %d, %v", typ, err)
	}
	c.write(keepalive)
}

// follow keeps the table up to date in the background.
func (c *conn) follow() {
	go func() {
		for {
			msg, typ, err := readMessage(c.r, new([maxMessage]byte))
			if err == nil && typ == bgp.BGP_MSG_NOTIFICATION {
				err = parseNotification(msg, false)
			}
			c.mu.Lock()
			if err != nil {
				c.ended = err
				c.mu.Unlock()
				return
			}
			if typ == bgp.BGP_MSG_UPDATE {
				prefixes(msg, func(p netip.Prefix) { c.table[p] = true }, func(p netip.Prefix) { delete(c.table, p) })
			}
			c.mu.Unlock()
		}
	}()
	c.SetReadDeadline(time.Time{})
}

func (c *conn) has(want map[netip.Prefix]bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Equal(c.table, want)
}

// run runs a Speaker until the test ends or the returned function is called.
func run(t testing.TB, c Config) (*Speaker, func()) {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := New(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return s, stop
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func (s *Speaker) only() SessionStatus {
	if all := s.Status(); len(all) == 1 {
		return all[0]
	}
	return SessionStatus{}
}

func routesTo(prefixes ...string) (rs []route.Route) {
	for _, p := range prefixes {
		rs = append(rs, route.Route{Prefix: netip.MustParsePrefix(p)})
	}
	return rs
}

func TestOpenSaysWhatIsConfigured(t *testing.T) {
	r := newRouter(t)
	p := r.peer()
	p.LocalASN, p.HoldTime, p.GracefulRestart = 4200000001, 0, 75*time.Second
	s, _ := run(t, Config{})
	s.Set([]Session{{Peer: p}})
	c := r.accept()
	c.establish(routerOpen())
	got := c.theirs
	if got.asn != 4200000001 || got.id != p.RouterID || got.hold != 0 || !slices.Equal(got.families, []bgp.Family{bgp.RF_IPv4_UC}) || got.v4over6 {
		t.Errorf("OPEN says %+v", got)
	}
	gr := func(c *conn) string {
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
	eventually(t, "the session is up", func() bool { return s.only().State == Established })
	if st := s.only(); st.HoldTime != 0 || st.Keepalive != 0 {
		t.Errorf("timers %s, %s", st.HoldTime, st.Keepalive)
	}
	c.Close()
	c = r.accept()
	c.establish(routerOpen())
	if want := "restarted false, notification false, 75 s, forwarding true"; gr(c) != want {
		t.Errorf("after a broken connection OPEN says %s; want %s", gr(c), want)
	}
}

// A router deletes what it kept over a restart when End-of-RIB comes, so every route must come before.
func TestEndOfRIBComesLast(t *testing.T) {
	r := newRouter(t)
	p := r.peer()
	p.GracefulRestart = time.Minute
	s, _ := run(t, Config{})
	var rs []route.Route
	for i := range 3000 {
		rs = append(rs, route.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32)})
	}
	s.Set([]Session{{p, rs}})
	c := r.accept()
	o := routerOpen()
	o.restart = bgp.NewCapGracefulRestart(false, false, 120, nil)
	c.establish(o)
	n := 0
	for n < len(rs) {
		msg, typ, err := c.next()
		if err != nil {
			t.Fatalf("after %d routes: %v", n, err)
		}
		if typ != bgp.BGP_MSG_UPDATE {
			continue
		}
		announced, withdrawn := counted(msg)
		if len(announced) == 0 || len(withdrawn) != 0 {
			t.Fatalf("after %d routes: %d announced, %d withdrawn", n, len(announced), len(withdrawn))
		}
		n += len(announced)
	}
	if msg, _, err := c.next(); err != nil || string(msg) != string(message(2, 0, 0, 0, 0)) {
		t.Errorf("instead of End-of-RIB: % x, %v", msg, err)
	}
	if !s.only().GracefulRestart {
		t.Error("status does not say that graceful restart is agreed on")
	}
}

func TestHowASessionEnds(t *testing.T) {
	for _, tt := range []struct {
		name    string
		restart time.Duration
		leave   time.Duration
		end     func(s *Speaker, p Peer, stop func())
		want    string // what the router sees
	}{
		{"end of the process", 0, 50 * time.Millisecond, func(_ *Speaker, _ Peer, stop func()) { stop() }, "marked; received NOTIFICATION 6/2 (cease, administrative shutdown)"},
		{"the same at once", 0, -1, func(_ *Speaker, _ Peer, stop func()) { stop() }, "received NOTIFICATION 6/2 (cease, administrative shutdown)"},
		{"the same with graceful restart", time.Minute, 50 * time.Millisecond, func(_ *Speaker, _ Peer, stop func()) { stop() }, "EOF"},
		{"peer gone", 0, 50 * time.Millisecond, func(s *Speaker, _ Peer, _ func()) { s.Set(nil) }, "marked; received NOTIFICATION 6/3 (cease, peer de-configured)"},
		{"peer gone with graceful restart", time.Minute, -1, func(s *Speaker, _ Peer, _ func()) { s.Set(nil) }, "received NOTIFICATION 6/3 (cease, peer de-configured)"},
		{"peer changed with graceful restart", time.Minute, -1, func(s *Speaker, p Peer, _ func()) { p.Keepalive = time.Second; s.Set([]Session{{Peer: p}}) }, "EOF"},
		{"other router with graceful restart", time.Minute, -1, func(s *Speaker, p Peer, _ func()) {
			p.Address = netip.MustParseAddr("127.0.0.9")
			s.Set([]Session{{Peer: p}})
		}, "received NOTIFICATION 6/3 (cease, peer de-configured)"},
		{"peer changed", 0, -1, func(s *Speaker, p Peer, _ func()) { p.Keepalive = time.Second; s.Set([]Session{{Peer: p}}) }, "received NOTIFICATION 6/3 (cease, peer de-configured)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRouter(t)
			p := r.peer()
			p.GracefulRestart = tt.restart
			s, stop := run(t, Config{Leave: tt.leave})
			s.Set([]Session{{p, routesTo("203.0.113.1/32")}})
			c := r.accept()
			c.establish(routerOpen())
			eventually(t, "the session is up and the route sent", func() bool { st := s.only(); return st.State == Established && st.Sent4 == 1 })
			go tt.end(s, p, stop)
			got := ""
			for {
				msg, typ, err := c.next()
				if err == nil && typ == bgp.BGP_MSG_NOTIFICATION {
					err = parseNotification(msg, false)
				}
				if err != nil {
					got += err.Error()
					break
				}
				// Community 65535:0 and the highest MED (RFC 8326).
				if strings.Contains(string(msg), "\xc0\x08\x04\xff\xff\x00\x00") && strings.Contains(string(msg), "\x80\x04\x04\xff\xff\xff\xff") {
					got += "marked; "
				}
			}
			if got != tt.want {
				t.Errorf("the router sees %q, want %q", got, tt.want)
			}
		})
	}
}

// What is wrong with a peer is said in words, and ends nothing else.
func TestWhatPeersGetWrong(t *testing.T) {
	openWith := func(f func(o *open)) func(c *conn) {
		return func(c *conn) {
			o := routerOpen()
			f(&o)
			b, _ := o.bytes()
			c.write(b)
		}
	}
	for _, tt := range []struct {
		name string
		act  func(c *conn) // after the speaker's OPEN
		want string
	}{
		{"closes", func(c *conn) { c.Close() }, "the peer closed the connection"},
		{"refuses", func(c *conn) { c.write(message(3, 6, 5)) }, "received NOTIFICATION 6/5 (cease, connection rejected)"},
		{"gives a reason", func(c *conn) { c.write(message(3, 6, 2, 7, 'u', 'p', 'g', 'r', 'a', 'd', 'e')) }, `administrative shutdown): "upgrade"`},
		{"is no router", func(c *conn) { c.write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, "sent NOTIFICATION 1/1 (message header error, connection not synchronized)"},
		{"starts with a keepalive", func(c *conn) { c.write(keepalive) }, "sent NOTIFICATION 5/1"},
		{"has another AS number", openWith(func(o *open) { o.asn = 64513 }), "the peer has AS number 64513, not 64512: sent NOTIFICATION 2/2"},
		{"has a hold time of 2 s", openWith(func(o *open) { o.hold = 2 * time.Second }), "sent NOTIFICATION 2/6 (OPEN message error, unacceptable hold time)"},
		{"has router ID 0", openWith(func(o *open) { o.id = netip.IPv4Unspecified() }), "sent NOTIFICATION 2/3"},
		{"carries another family", openWith(func(o *open) { o.families = []bgp.Family{bgp.RF_IPv6_UC} }), "sent NOTIFICATION 2/7 (OPEN message error, unsupported capability)"},
		{"says OPEN twice", func(c *conn) {
			b, _ := routerOpen().bytes()
			c.write(b)
			c.write(keepalive)
			c.write(b)
		}, "sent NOTIFICATION 5/3 (finite state machine error, unexpected message in Established)"},
		{"sends a message of no type", func(c *conn) {
			b, _ := routerOpen().bytes()
			c.write(b)
			c.write(keepalive)
			c.write(message(9, 0))
		}, "sent NOTIFICATION 1/3 (message header error, bad message type)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, other := newRouter(t), newRouter(t)
			p := other.peer()
			p.Name = "other"
			s, _ := run(t, Config{Leave: -1})
			s.Set([]Session{{Peer: r.peer()}, {p, routesTo("203.0.113.1/32")}})
			good := other.accept()
			good.establish(routerOpen())
			good.follow()
			bad := r.accept()
			if _, _, err := bad.next(); err != nil {
				t.Fatal(err)
			}
			tt.act(bad)
			var got string
			eventually(t, "the reason is "+tt.want, func() bool {
				for _, st := range s.Status() {
					if st.Peer == "router" {
						got = st.LastError
					}
				}
				return strings.Contains(got, tt.want)
			})
			eventually(t, "the other session has its route", func() bool {
				return good.has(map[netip.Prefix]bool{netip.MustParsePrefix("203.0.113.1/32"): true})
			})
		})
	}
}

// UPDATEs that have killed BGP speakers, and others that make no sense, are dropped, and the session goes on.
func TestHostileUpdates(t *testing.T) {
	r := newRouter(t)
	s, _ := run(t, Config{Leave: -1})
	s.Set([]Session{{Peer: r.peer()}})
	c := r.accept()
	c.establish(routerOpen())
	c.follow()
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
	for _, b := range hostile {
		c.write(message(2, b...))
	}
	eventually(t, "all have been received", func() bool { return s.only().MessagesIn.Update == uint64(len(hostile)) })
	s.Set([]Session{{r.peer(), routesTo("203.0.113.1/32")}})
	eventually(t, "the session goes on", func() bool { return c.has(map[netip.Prefix]bool{netip.MustParsePrefix("203.0.113.1/32"): true}) })
	if st := s.only(); st.Ups != 1 || st.LastError != "" {
		t.Errorf("status %+v", st)
	}
}

// Whatever happens to the connection and however the routes change meanwhile, the router ends up with what is wanted.
func TestRoutesConverge(t *testing.T) {
	r := newRouter(t)
	s, _ := run(t, Config{Leave: -1})
	random := rand.New(rand.NewPCG(7, 7))
	want := map[netip.Prefix]bool{}
	change := func() {
		for range random.IntN(20) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(random.IntN(64))}), 32)
			if random.IntN(2) == 0 {
				want[p] = true
			} else {
				delete(want, p)
			}
		}
		var rs []route.Route
		for p := range want {
			rs = append(rs, route.Route{Prefix: p, Attrs: route.Attrs{Prepend: random.IntN(3)}})
		}
		s.Set([]Session{{r.peer(), rs}})
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
					runtime.Gosched()
				}
			}
		})
		c.establish(routerOpen())
		c.follow()
		close(stop)
		changing.Wait()
		eventually(t, fmt.Sprintf("round %d: the router has the routes", round), func() bool { return c.has(want) })
		for range random.IntN(3) {
			change()
			eventually(t, fmt.Sprintf("round %d: the router has the changes", round), func() bool { return c.has(want) })
		}
		eventually(t, fmt.Sprintf("round %d: the status says so", round), func() bool { return s.only().Sent4 == len(want) })
		if random.IntN(2) == 0 {
			c.write(message(3, 6, 4))
		}
		c.Close()
	}
}

// A peer that answers nothing, and one that takes nothing off its connection, hold up neither Set nor Status nor another
// session, nor the end of Run.
func TestDeadPeers(t *testing.T) {
	mute, stuck, good := newRouter(t), newRouter(t), newRouter(t)
	s, stop := run(t, Config{Leave: -1})
	name := func(r *router, n string) Peer { p := r.peer(); p.Name = n; return p }
	var many []route.Route
	for i := range 4000 { // in 10 MB, more than the kernel keeps for a peer that reads nothing
		var a route.Attrs
		for j := range 600 {
			a.Communities = append(a.Communities, route.Community{A: uint32(i), B: uint32(j)})
		}
		many = append(many, route.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32), Attrs: a})
	}
	set := func(rs []route.Route) {
		s.Set([]Session{{name(mute, "mute"), rs}, {name(stuck, "stuck"), rs}, {name(good, "good"), rs}})
	}
	set(routesTo("203.0.113.1/32"))
	mute.accept()
	c := stuck.accept()
	_ = c.SetReadBuffer(4096)
	c.establish(routerOpen())
	g := good.accept()
	g.establish(routerOpen())
	g.follow()
	set(many)
	want := map[netip.Prefix]bool{}
	for _, r := range many {
		want[r.Prefix] = true
	}
	eventually(t, "the good router has everything", func() bool { return g.has(want) })
	eventually(t, "the status says so", func() bool {
		st := s.Status() // in order of names
		return len(st) == 3 && st[0].State == Established && st[0].Sent4 == len(many) && st[1].State == OpenSent && st[2].State == Established && st[2].Sent4 < len(many)
	})
	stop()
	eventually(t, "the good router was told", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		var n *notification
		return errors.As(g.ended, &n) && n.code == 6
	})
}

// A peer that goes on refusing does not go on changing the status, which others may write to an API server each time.
func TestStatusRests(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	var changes atomic.Int32
	s, _ := run(t, Config{Leave: -1, OnChange: func() { changes.Add(1) }})
	s.Set([]Session{{Peer: r.peer()}})
	refuse := func() {
		c := r.accept()
		if _, _, err := c.next(); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	refuse()
	eventually(t, "the reason is there", func() bool { return s.only().LastError == "the peer closed the connection" && s.only().State == Active })
	before := changes.Load()
	for range 2 {
		refuse()
	}
	if n := changes.Load() - before; n != 0 {
		t.Errorf("%d changes of status although nothing has changed", n)
	}
}

func TestPassive(t *testing.T) {
	port := func() uint16 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return uint16(l.Addr().(*net.TCPAddr).Port)
	}()
	s, _ := run(t, Config{Leave: -1, ListenPort: port})
	r := &router{t: t}
	dial := func(from string) (*conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { c.Close() })
		return &conn{t: r.t, TCPConn: c.(*net.TCPConn), r: bufio.NewReader(c), table: map[netip.Prefix]bool{}}, nil
	}
	peer := func(addr string) Peer {
		return Peer{Name: addr, LocalASN: 65001, PeerASN: 64512, Address: netip.MustParseAddr(addr), RouterID: netip.MustParseAddr("192.0.2.1"), HoldTime: 90 * time.Second, Passive: true}
	}
	s.Set([]Session{{peer("127.0.0.2"), routesTo("203.0.113.2/32")}, {peer("127.0.0.3"), routesTo("203.0.113.3/32")}})
	connect := func(from string) (c *conn) {
		eventually(t, "a connection from "+from, func() (ok bool) {
			var err error
			c, err = dial(from)
			return err == nil
		})
		return c
	}
	two, three := connect("127.0.0.2"), connect("127.0.0.3")
	for _, c := range []*conn{two, three} {
		c.establish(routerOpen())
		c.follow()
	}
	eventually(t, "each has its route", func() bool {
		return two.has(map[netip.Prefix]bool{netip.MustParsePrefix("203.0.113.2/32"): true}) && three.has(map[netip.Prefix]bool{netip.MustParsePrefix("203.0.113.3/32"): true})
	})
	stranger := connect("127.0.0.4")
	if _, _, err := stranger.next(); !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("a stranger gets %v", err)
	}
	// The router has lost its side of the session and connects again.
	again := connect("127.0.0.2")
	again.establish(routerOpen())
	again.follow()
	eventually(t, "the new connection has the route", func() bool {
		return again.has(map[netip.Prefix]bool{netip.MustParsePrefix("203.0.113.2/32"): true})
	})
	// Nobody waits any more, so nobody listens.
	s.Set(nil)
	eventually(t, "the port is closed", func() bool {
		c, err := dial("127.0.0.2")
		if err == nil {
			c.Close()
		}
		return err != nil
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
		s := newSession(New(Config{Log: slog.New(slog.DiscardHandler)}), Peer{}, nil)
		s.bfdChanged(tt.st)
		if got := len(s.bfdDown) == 1; got != tt.want {
			t.Errorf("from %s to %s, the peer in %s: ends the session %v", tt.st.Was, tt.st.State, tt.st.RemoteState, got)
		}
	}
}

// Sessions that come and go leave nothing behind.
func TestNothingIsLeftBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	r := newRouter(t)
	s, stop := run(t, Config{Leave: -1})
	for i := range 5 {
		p := r.peer()
		p.Keepalive = time.Duration(i+1) * time.Second
		s.Set([]Session{{p, routesTo("203.0.113.1/32")}})
		for range 3 {
			c := r.accept()
			c.establish(routerOpen())
			eventually(t, "the session is up", func() bool { return s.only().State == Established })
			c.Close()
		}
		r.accept() // and one that gets no further
	}
	stop()
	defer func() {
		if t.Failed() {
			stacks := make([]byte, 1<<20)
			t.Logf("%s", stacks[:runtime.Stack(stacks, true)])
		}
	}()
	eventually(t, "every goroutine is gone", func() bool { return runtime.NumGoroutine() <= before })
}

func TestPeersThatCannotWork(t *testing.T) {
	for want, f := range map[string]func(*Peer){
		"exactly one of address":         func(p *Peer) { p.Address = netip.Addr{} },
		"exactly one of":                 func(p *Peer) { p.Interface = "eth0" },
		"the local AS number is 0":       func(p *Peer) { p.LocalASN = 0 },
		"the peer's AS number is 0":      func(p *Peer) { p.PeerASN = 0 },
		"there is no router ID":          func(p *Peer) { p.RouterID = netip.MustParseAddr("2001:db8::1") },
		"hold time 1s":                   func(p *Peer) { p.HoldTime = time.Second },
		"hold time 3.5s":                 func(p *Peer) { p.HoldTime = 3500 * time.Millisecond },
		"keepalive time 8h20m0s":         func(p *Peer) { p.Keepalive = 30000 * time.Second },
		"restart time":                   func(p *Peer) { p.GracefulRestart = 2 * time.Hour },
		"the password is longer than 80": func(p *Peer) { p.Password = strings.Repeat("x", 81) },
		"exclude each other":             func(p *Peer) { p.TTLSecurity, p.MultiHop = true, true },
		"receive interval 0s":            func(p *Peer) { p.BFD.Multiplier = 3 },
	} {
		s, stop := run(t, Config{})
		p := newRouter(t).peer()
		f(&p)
		s.Set([]Session{{Peer: p}})
		eventually(t, want, func() bool {
			st := s.only()
			return st.State == Idle && strings.Contains(st.LastError, want)
		})
		stop()
	}
}
