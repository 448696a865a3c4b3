package bfd

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// network is the memory between Runners in a test.
type network struct {
	mu      sync.Mutex
	sockets map[netip.Addr]*fakeSocket
	rand    *rand.Rand
	cut     bool
	delay   time.Duration                   // at most, drawn for each packet, so that they overtake each other
	double  bool                            // every third packet arrives twice
	lose    func(from, to netip.Addr) bool  // nil for no loss
	watch   func(from netip.Addr, p packet) // nil
	ttl     uint8
	echoes  int  // that were sent
	deaf    bool // no echo packet comes back
	forge   bool // what comes back is not what was sent
	moves   bool // a peer's hardware address is always another when it is looked up again
}

func newNetwork(seed uint64) *network {
	return &network{sockets: map[netip.Addr]*fakeSocket{}, rand: rand.New(rand.NewPCG(seed, 0)), ttl: 255}
}

// fakeSocket is the socket of a Runner that has one address.
type fakeSocket struct {
	endpoint
	net    *network
	addr   netip.Addr
	box    *inbox
	hidden []received // what the kernel has and the process has not been woken for
	sleep  bool
}

func (s *fakeSocket) send(b []byte, local, remote netip.Addr) error {
	n := s.net
	n.mu.Lock()
	defer n.mu.Unlock()
	p, err := parse(b)
	if err != nil {
		panic(err)
	}
	if n.watch != nil {
		n.watch(s.addr, p)
	}
	if n.cut || n.lose != nil && n.lose(s.addr, remote) {
		return nil
	}
	in := received{endpoint: s.endpoint, from: s.addr, to: remote, ttl: n.ttl}
	copy(in.data[:], b)
	times := 1
	if n.double && n.rand.IntN(3) == 0 {
		times = 2
	}
	for range times {
		if n.delay == 0 {
			n.deliver(remote, in)
			continue
		}
		time.AfterFunc(time.Duration(n.rand.Int64N(int64(n.delay))), func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.deliver(remote, in)
		})
	}
	return nil
}

// fakeEcho is a Runner's socket for echo packets, which the network sends back.
type fakeEcho struct {
	net  *network
	addr netip.Addr
	box  *inbox
}

func (s *fakeEcho) send(peer Peer, payload [packetLen]byte, _ time.Time) error {
	n := s.net
	n.mu.Lock()
	defer n.mu.Unlock()
	n.echoes++
	if n.cut || n.deaf || n.lose != nil && n.lose(s.addr, peer.Remote) {
		return nil
	}
	in := received{echo: true, ttl: echoTTL - 1, data: payload}
	if n.forge {
		in.data[packetLen-9]++
	}
	n.sockets[s.addr].put(in)
	return nil
}

func (s *fakeEcho) moved(Peer) bool {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	return s.net.moves
}

func (s *fakeEcho) drain() {}
func (s *fakeEcho) close() {}

// deliver hands over a packet. n.mu is held.
func (n *network) deliver(to netip.Addr, in received) {
	s := n.sockets[to]
	if s == nil || n.cut {
		return
	}
	if s.sleep {
		s.hidden = append(s.hidden, in)
		return
	}
	s.put(in)
}

func (s *fakeSocket) put(ins ...received) {
	s.box.fill(func() (received, bool) {
		if len(ins) == 0 {
			return received{}, false
		}
		in := ins[0]
		ins = ins[1:]
		return in, true
	})
}

func (s *fakeSocket) drain() {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	s.put(s.hidden...)
	s.hidden = nil
}

func (s *fakeSocket) close() {}

// end is one Runner with one client in a network.
type end struct {
	addr   netip.Addr
	client *Client
	mu     sync.Mutex
	events []string
	last   Status
}

// start runs a Runner at addr until the test ends.
func (n *network) start(t *testing.T, addr netip.Addr) *end {
	e := &end{addr: addr}
	r := New(Config{Log: slog.New(slog.DiscardHandler)})
	r.open = func(ep endpoint, box *inbox) (socket, error) {
		s := &fakeSocket{endpoint: ep, net: n, addr: addr, box: box}
		n.mu.Lock()
		n.sockets[addr] = s
		n.mu.Unlock()
		return s, nil
	}
	r.openEcho = func(box *inbox) (echoSocket, error) { return &fakeEcho{n, addr, box}, nil }
	e.client = r.Client(func(st Status) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.last = st
		e.events = append(e.events, fmt.Sprintf("%s (%s)", st.State, st.Diag))
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return e
}

func (e *end) want(other *end, p Profile) {
	e.client.Set([]Session{{Peer{Remote: other.addr, Local: e.addr}, p}})
}

func (e *end) state() State {
	st := e.client.Status()
	if len(st) == 0 {
		return AdminDown
	}
	return st[0].State
}

// told is what the client was told last.
func (e *end) told() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

func (e *end) log() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return fmt.Sprint(e.events)
}

var (
	addrA = netip.MustParseAddr("192.0.2.1")
	addrB = netip.MustParseAddr("192.0.2.2")
	fast  = Profile{Receive: 100 * ms, Transmit: 100 * ms, Multiplier: 3}
)

// pair is two ends that are Up.
func pair(t *testing.T, n *network, pa, pb Profile) (a, b *end) {
	t.Helper()
	a, b = n.start(t, addrA), n.start(t, addrB)
	a.want(b, pa)
	b.want(a, pb)
	time.Sleep(5 * time.Second)
	if a.state() != Up || b.state() != Up {
		t.Fatalf("a is %s %s, b is %s %s", a.state(), a.log(), b.state(), b.log())
	}
	return a, b
}

func TestUpAndDetection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(1)
		a, b := pair(t, n, fast, Profile{Receive: 200 * ms, Transmit: 50 * ms, Multiplier: 5})
		sa, sb := a.client.Status()[0], b.client.Status()[0]
		// max(100, 200) and 5 × max(100, 50); max(50, 100) and 3 × max(200, 100).
		if sa.Transmit != 200*ms || sa.Detection != 500*ms || sb.Transmit != 100*ms || sb.Detection != 600*ms {
			t.Errorf("a %s %s, b %s %s", sa.Transmit, sa.Detection, sb.Transmit, sb.Detection)
		}
		n.mu.Lock()
		n.cut = true
		n.mu.Unlock()
		cut := time.Now()
		time.Sleep(2 * time.Second)
		if a.state() != Down || b.state() != Down {
			t.Fatal("a cut link is not noticed")
		}
		if got := a.told().Since.Sub(cut); got < 400*ms || got > 500*ms || a.told().Diag != DiagTimeExpired {
			t.Errorf("a noticed after %s: %s", got, a.told().Diag)
		}
		if got := b.told().Since.Sub(cut); got < 400*ms || got > 600*ms {
			t.Errorf("b noticed after %s", got)
		}
		n.mu.Lock()
		n.cut = false
		n.mu.Unlock()
		time.Sleep(3 * time.Second)
		if a.state() != Up || b.state() != Up {
			t.Errorf("after the link was back a is %s: %s, b is %s: %s", a.state(), a.log(), b.state(), b.log())
		}
		if st := a.client.Status()[0]; st.Ups != 2 || st.Downs != 1 {
			t.Errorf("%d ups, %d downs", st.Ups, st.Downs)
		}
	})
}

// What a bad network does to packets must not look like a dead peer, as long as fewer than the multiplier are lost in a
// row, and must not do more than make it flap once back up.
func TestBadNetwork(t *testing.T) {
	for seed := range uint64(5) {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(seed)
			n.delay, n.double = 40*ms, true
			row := map[netip.Addr]int{}
			n.lose = func(from, _ netip.Addr) bool {
				if row[from] < 1 && n.rand.IntN(3) == 0 {
					row[from]++
					return true
				}
				row[from] = 0
				return false
			}
			a, b := n.start(t, addrA), n.start(t, addrB)
			a.want(b, Profile{Receive: 100 * ms, Transmit: 100 * ms, Multiplier: 3})
			b.want(a, Profile{Receive: 100 * ms, Transmit: 100 * ms, Multiplier: 3})
			time.Sleep(20 * time.Second)
			downs := a.client.Status()[0].Downs + b.client.Status()[0].Downs
			time.Sleep(10 * time.Minute)
			if got := a.client.Status()[0].Downs + b.client.Status()[0].Downs - downs; got != 0 || a.state() != Up || b.state() != Up {
				t.Errorf("seed %d: %d false downs; a %s, b %s", seed, got, a.state(), b.state())
			}
		})
	}
}

// Between a session that is not Up packets are a second apart, and then as agreed, with jitter.
func TestIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(3)
		type sent struct {
			at    time.Time
			state State
		}
		var from []sent
		n.watch = func(addr netip.Addr, p packet) {
			if addr == addrA && !p.final {
				from = append(from, sent{time.Now(), p.state})
			}
		}
		a := n.start(t, addrA)
		a.want(&end{addr: addrB}, fast)
		time.Sleep(10 * time.Second)
		b := n.start(t, addrB)
		b.want(a, fast)
		time.Sleep(10 * time.Second)
		n.mu.Lock()
		defer n.mu.Unlock()
		var ups int
		for i, s := range from[1:] {
			gap := s.at.Sub(from[i].at)
			switch {
			case s.state == Down && from[i].state == Down && (gap < 750*ms || gap > time.Second):
				t.Errorf("%s between packets while Down", gap)
			case s.state == Up && from[i].state == Up:
				ups++
				if gap > 100*ms || gap < 75*ms && ups > 3 {
					t.Errorf("%s between packets while Up", gap)
				}
			}
		}
		if ups < 85 || ups > 140 {
			t.Errorf("%d packets in ten seconds", ups)
		}
	})
}

// A process that has slept, its peer's packets waiting in the kernel, does not take the peer for dead.
func TestSleepIsNotDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(4)
		a, b := pair(t, n, fast, fast)
		n.mu.Lock()
		n.sockets[addrA].sleep = true // nothing wakes a for packets from here on; only asking the kernel shows them
		n.mu.Unlock()
		time.Sleep(10 * time.Second)
		if st := a.client.Status()[0]; st.Downs != 0 || b.state() != Up {
			t.Errorf("a went down: %s", a.log())
		}
	})
}

func TestEndingASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(5)
		a, b := pair(t, n, fast, fast)
		a.client.Set(nil)
		time.Sleep(time.Second)
		if b.told().State != Down || b.told().Diag != DiagNeighborDown || b.told().RemoteState != AdminDown {
			t.Errorf("b hears %+v", b.told())
		}
		if a.client.Status() != nil {
			t.Error("a still has the session")
		}
		time.Sleep(10 * time.Second)
		a.want(b, fast)
		time.Sleep(5 * time.Second)
		if a.state() != Up || b.state() != Up {
			t.Errorf("a %s, b %s after the session is wanted again", a.state(), b.state())
		}
		a.client.Set(nil)
		time.Sleep(50 * ms)
		a.want(b, fast) // before it is forgotten
		time.Sleep(5 * time.Second)
		if a.state() != Up || b.state() != Up {
			t.Errorf("a %s, b %s after a change of mind", a.state(), b.state())
		}
	})
}

// Settings change in a session that stays Up.
func TestReconfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(6)
		a, b := pair(t, n, fast, fast)
		for _, p := range []Profile{
			{Receive: 50 * ms, Transmit: 500 * ms, Multiplier: 3}, {Receive: time.Second, Transmit: 20 * ms, Multiplier: 2},
			{Receive: 20 * ms, Transmit: 20 * ms, Multiplier: 10}, fast,
		} {
			a.want(b, p)
			time.Sleep(3 * time.Second)
			sa, sb := a.client.Status()[0], b.client.Status()[0]
			if sa.Transmit != max(p.Transmit, 100*ms) || sb.Transmit != max(p.Receive, 100*ms) || sb.Detection != time.Duration(p.Multiplier)*max(p.Transmit, 100*ms) {
				t.Errorf("%+v: a sends every %s; b every %s, detects in %s", p, sa.Transmit, sb.Transmit, sb.Detection)
			}
			if sa.Downs+sb.Downs != 0 {
				t.Errorf("%+v: a %s, b %s", p, a.log(), b.log())
			}
		}
	})
}

func TestPassive(t *testing.T) {
	passive := fast
	passive.Passive = true
	synctest.Test(t, func(t *testing.T) {
		pair(t, newNetwork(7), passive, fast)
	})
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(8)
		n.watch = func(from netip.Addr, p packet) { t.Errorf("%s sends %+v", from, p) }
		a, b := n.start(t, addrA), n.start(t, addrB)
		a.want(b, passive)
		b.want(a, passive)
		time.Sleep(time.Minute)
	})
}

// Packets that do not belong to a session, or come from too far, change nothing.
func TestStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(9)
		a, b := pair(t, n, fast, fast)
		r := a.client.runner
		r.mu.Lock()
		mine := r.sessions[Peer{Remote: addrB, Local: addrA}].mine
		r.mu.Unlock()
		down := packet{state: Down, multiplier: 3, mine: 99, yours: mine, desiredTx: slow, requiredRx: slow}
		fake := func(from netip.Addr, ttl uint8, p packet, e endpoint) {
			in := received{endpoint: e, from: from, to: addrA, ttl: ttl}
			copy(in.data[:], p.append(nil))
			n.mu.Lock()
			n.sockets[addrA].put(in)
			n.mu.Unlock()
		}
		fake(addrB, 254, down, endpoint{})
		fake(netip.MustParseAddr("192.0.2.66"), 255, down, endpoint{})
		fake(addrB, 255, down, endpoint{multihop: true})
		other := down
		other.yours++
		fake(addrB, 255, other, endpoint{})
		time.Sleep(time.Second)
		if a.client.Status()[0].Downs != 0 || b.client.Status()[0].Downs != 0 {
			t.Errorf("a %s, b %s", a.log(), b.log())
		}
		fake(addrB, 255, down, endpoint{}) // and this one would
		time.Sleep(10 * ms)
		if a.client.Status()[0].Downs != 1 {
			t.Error("the packet that belongs to the session was ignored too")
		}
	})
}

// Routers may lie between the ends of a multihop session, but no more than configured.
func TestMultihop(t *testing.T) {
	for ttl, want := range map[uint8]State{254: Up, 250: Up, 249: Down} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(10)
			n.ttl = ttl
			a, b := n.start(t, addrA), n.start(t, addrB)
			p := fast
			p.MinTTL = 250
			a.client.Set([]Session{{Peer{Remote: addrB, Local: addrA, Multihop: true}, p}})
			b.client.Set([]Session{{Peer{Remote: addrA, Multihop: true}, p}})
			time.Sleep(10 * time.Second)
			if a.state() != want || b.state() != want {
				t.Errorf("TTL %d: a %s, b %s", ttl, a.state(), b.state())
			}
		})
	}
}

// Two clients share a session; it lives as long as one of them wants it.
func TestClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(11)
		a, b := pair(t, n, fast, fast)
		second := a.client.runner.Client(func(Status) {})
		second.Set([]Session{{Peer{Remote: addrB, Local: addrA}, Profile{Receive: time.Second, Transmit: time.Second, Multiplier: 9}}})
		a.client.Set(nil)
		time.Sleep(10 * time.Second)
		if st := second.Status(); len(st) != 1 || st[0].State != Up || st[0].Downs != 0 || st[0].Transmit != time.Second {
			t.Errorf("the other client has %+v", st)
		}
		second.Set(nil)
		time.Sleep(time.Second)
		if b.state() != Down {
			t.Error("nobody wants the session, and it is still there")
		}
	})
}

func BenchmarkPacket(b *testing.B) {
	var buf [packetLen]byte
	for b.Loop() {
		if _, err := parse(validPacket().append(buf[:0])); err != nil {
			b.Fatal(err)
		}
	}
}
