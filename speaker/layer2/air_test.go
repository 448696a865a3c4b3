package layer2

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// air is a local network in memory, so that several Responders can be seen to agree in virtual time.
type air struct {
	mu    sync.Mutex
	start time.Time
	wires []*airWire
	sent  []airFrame
	last  []airFrame          // what the last question was answered with
	apart func(a, b MAC) bool // stations that do not hear each other
	nodes map[MAC]bool        // whose kernels answer for the address of kernel
	loses func(airFrame) bool // frames that arrive nowhere
}

type airFrame struct {
	at    time.Duration
	frame []byte
	message
}

func newAir() *air { return &air{start: time.Now()} }

// airWire is a wire of one Responder. Its filter is exact.
type airWire struct {
	air    *air
	link   Link
	v6     bool
	addrs  []netip.Addr
	groups map[netip.Addr]bool
	in     chan []byte
	closed chan struct{}
}

func (a *air) dial(link Link, v6 bool, addrs []netip.Addr) (wire, error) {
	w := &airWire{air: a, link: link, v6: v6, addrs: addrs, groups: map[netip.Addr]bool{}, in: make(chan []byte, 100_000), closed: make(chan struct{})}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wires = append(a.wires, w)
	return w, nil
}

func (w *airWire) listen(addrs []netip.Addr) error {
	w.air.mu.Lock()
	defer w.air.mu.Unlock()
	w.addrs = addrs
	return nil
}

func (w *airWire) join(group netip.Addr) error { w.groups[group] = true; return nil }
func (w *airWire) leave(group netip.Addr)      { delete(w.groups, group) }

func (w *airWire) send(frame []byte) error {
	w.air.transmit(frame)
	return nil
}

func (w *airWire) receive(buf []byte) (int, error) {
	select {
	case frame := <-w.in:
		return copy(buf, frame), nil
	case <-w.closed:
		return 0, net.ErrClosed
	}
}

func (w *airWire) close() {
	w.air.mu.Lock()
	defer w.air.mu.Unlock()
	w.air.wires = slices.DeleteFunc(w.air.wires, func(o *airWire) bool { return o == w })
	close(w.closed)
}

// transmit hands a frame to every wire that would hear it.
func (a *air) transmit(frame []byte) {
	m, err := parse(frame)
	if err != nil {
		panic(fmt.Sprintf("%x: %v", frame, err))
	}
	to, from := MAC(frame[:6]), MAC(frame[6:12])
	a.mu.Lock()
	var reply []byte
	if a.nodes[to] && m.ask && slices.Contains(kernelOf(to), m.target) && (a.apart == nil || !a.apart(to, from)) {
		if reply, err = answer(m, to, to); err != nil {
			panic(err)
		}
	}
	sent := airFrame{time.Since(a.start), frame, m}
	a.sent = append(a.sent, sent)
	for _, w := range a.wires {
		if a.loses != nil && a.loses(sent) {
			break
		}
		if w.link.MAC == from || to.station() && to != w.link.MAC || a.apart != nil && a.apart(from, w.link.MAC) {
			continue
		}
		if slices.Contains(w.addrs, m.target) || slices.Contains(w.addrs, m.claim) {
			w.in <- frame
		}
	}
	a.mu.Unlock()
	if reply != nil {
		a.transmit(reply)
	}
}

// kernelOf are the addresses of a station's node itself.
func kernelOf(m MAC) []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, m[5]}), netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 14: 1, 15: m[5]})}
}

// power turns a station's node on or off; its speaker is another thing.
func (a *air) power(m MAC, on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.nodes == nil {
		a.nodes = map[MAC]bool{}
	}
	a.nodes[m] = on
}

// part separates stations from each other.
func (a *air) part(apart func(a, b MAC) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.apart = apart
}

// lose has frames arrive nowhere.
func (a *air) lose(loses func(airFrame) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.loses = loses
}

// take returns what was sent since it was called last.
func (a *air) take() []airFrame {
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	sent := a.sent
	a.sent = nil
	return sent
}

// client is a station without a Responder.
var client = MAC{0x02, 0, 0, 0, 0xcc, 0xcc}

// ask asks for an address as a host of the network does and returns who answers.
func (a *air) ask(addr netip.Addr) (answers []MAC) {
	a.take()
	frame, err := arpFrame(1, client, broadcast, client, host4, MAC{}, addr)
	if addr.Is6() {
		frame, err = poll(addr, client, groupMAC(solicitedNode(addr)), host6)
	}
	if err != nil {
		panic(err)
	}
	a.transmit(frame)
	a.last = a.take()
	for _, f := range a.last {
		if f.claim == addr && MAC(f.frame[:6]) == client {
			answers = append(answers, f.claimMAC)
		}
	}
	return answers
}

// announced returns when an address was announced, each time once.
func announced(sent []airFrame, addr netip.Addr) (at []time.Duration) {
	for _, f := range sent {
		if f.claim == addr && !MAC(f.frame[:6]).station() && (len(at) == 0 || at[len(at)-1] != f.at) {
			at = append(at, f.at)
		}
	}
	return at
}

// station is a Responder on the air.
type station struct {
	*Responder
	air    *air
	events *linkEvents
	stop   func()
}

// mac is the address of the nth station's eth0.
func mac(n int) MAC { return MAC{0x02, 0, 0, 0, 0, byte(n)} }

// station starts a Responder that has an interface eth0 with carrier.
func (a *air) station(t *testing.T, n int, config Config) *station {
	t.Helper()
	config.Log = slog.New(slog.DiscardHandler)
	s := &station{Responder: New(config), air: a}
	s.watch = func() (*linkEvents, error) {
		e := &linkEvents{table: newLinkTable(), links: make(chan netlink.LinkUpdate, 64), addrs: make(chan netlink.AddrUpdate, 64), done: make(chan struct{})}
		go func() { <-e.done; close(e.links); close(e.addrs) }()
		e.table.setLink(device("eth0", 2, mac(n), true))
		s.events = e
		return e, nil
	}
	s.dial = a.dial
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.stop = func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		done <- nil
	}
	t.Cleanup(s.stop)
	synctest.Wait()
	return s
}

// device is an interface as the kernel reports it.
func device(name string, index int, m MAC, carrier bool) netlink.Link {
	d := &netlink.Dummy{}
	d.Name, d.Index, d.HardwareAddr, d.EncapType = name, index, m[:], "ether"
	d.RawFlags = unix.IFF_UP | unix.IFF_BROADCAST | unix.IFF_MULTICAST
	if carrier {
		d.RawFlags |= unix.IFF_RUNNING
	}
	return d
}

// change tells a station of an interface that came or changed, gone of one that went.
func (s *station) change(l netlink.Link) {
	synctest.Wait()
	s.events.links <- linkUpdate(unix.RTM_NEWLINK, l)
	synctest.Wait()
}

func (s *station) gone(l netlink.Link) {
	synctest.Wait()
	s.events.links <- linkUpdate(unix.RTM_DELLINK, l)
	synctest.Wait()
}

func linkUpdate(kind uint16, l netlink.Link) netlink.LinkUpdate {
	u := netlink.LinkUpdate{Link: l, Header: unix.NlMsghdr{Type: kind}}
	u.IfInfomsg.Index = int32(l.Attrs().Index)
	return u
}

// set is Set, and what follows at once has happened when it returns.
func (s *station) set(want ...Address) {
	s.Set(want)
	synctest.Wait()
}

// state is an address's state and interfaces.
func (s *station) state(addr netip.Addr) string {
	synctest.Wait()
	a := s.address(addr.String())
	return strings.TrimSpace(string(a.State) + " " + strings.Join(a.Interfaces, " "))
}
