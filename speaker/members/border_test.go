package members

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"
)

// garbage opens connections to a speaker, says on each that it will send size bytes as a member that starts to exchange
// all it knows, sends as many as are taken, and holds them. It returns what was taken of all of them.
func garbage(t testing.TB, from netip.Addr, to netip.AddrPort, conns int, size uint32) (taken int64, stop func()) {
	head := append([]byte{244, 7}, "clarion"...) // memberlist's label
	head = append(head, 10)                      // encrypted
	head = binary.BigEndian.AppendUint32(head, size)
	block := make([]byte, 64<<10)
	var all []net.Conn
	var mu sync.Mutex
	var writers sync.WaitGroup
	d := net.Dialer{Timeout: time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	for range conns {
		conn, err := d.Dial("tcp", to.String())
		if err != nil {
			continue
		}
		all = append(all, conn)
		writers.Go(func() {
			_ = conn.SetWriteDeadline(time.Now().Add(800 * time.Millisecond)) // the speaker gives up after 1 s
			_, _ = conn.Write(head)
			for n := 0; n < int(size); {
				w, err := conn.Write(block)
				n += w
				mu.Lock()
				taken += int64(w)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	writers.Wait()
	return taken, func() {
		for _, c := range all {
			c.Close()
		}
	}
}

// Who is no node gets nothing read; a node that sends garbage, or more than all there is to say, does not get more read
// than that; and both do not keep the others from gossiping.
func TestGarbage(t *testing.T) {
	f := newFleet(t, 2)
	all := f.startAll()
	node, other := f.addr(0), f.addr(99)
	for _, s := range all {
		s.SetSources([]netip.Addr{f.addr(0), f.addr(1)})
	}
	target := all[1]
	for _, from := range []netip.Addr{other, node} {
		_, stop := garbage(t, from, target.self, 50, 1<<20)
		b := target.border
		b.mu.Lock()
		open, held := b.open, b.held
		b.mu.Unlock()
		if open > maxConnsPerIP || held > maxConnsPerIP*(bytesBeside+2*bytesPerNode) || from == other && open+held > 0 {
			t.Errorf("from %s: %d connections are open, with %d bytes read of them", from, open, held)
		}
		meta := Meta{Links: []Link{{Name: "from" + from.String()[:9], Carrier: from == node}}}
		all[0].SetMeta(meta)
		eventually(t, "news under garbage", func() bool {
			v := target.View()
			return len(v.Members) == 2 && v.Members[0].Meta.Equal(meta)
		})
		stop()
	}
	eventually(t, "everything is given back", func() bool {
		b := target.border
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.open == 0 && b.held == 0 && len(b.conns) == 0
	})
}

// Packets of others than nodes are dropped; without any known node, nobody is.
func TestSources(t *testing.T) {
	f := newFleet(t, 1)
	var b border
	tr, err := listen(f.peers[0], &b)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Shutdown()
	send := func(from netip.Addr, text string) {
		conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(f.peers[0]))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
	}
	want := func(text string) {
		t.Helper()
		if p := <-tr.PacketCh(); string(p.Buf) != text {
			t.Errorf("received %q, want %q", p.Buf, text)
		}
	}
	send(f.addr(5), "nobody is known")
	want("nobody is known")
	b.setSources([]netip.Addr{f.addr(6)})
	send(f.addr(5), "no node")
	send(f.addr(6), "a node")
	want("a node")
	b.setSources(nil)
	send(f.addr(5), "nobody is known any more")
	want("nobody is known any more")
}

// The limits hold for every connection and for all of them, and what is closed no longer counts.
func TestBorder(t *testing.T) {
	var b border
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }
	for i := range maxConns {
		if !b.enter(addr(i)) {
			t.Fatalf("connection %d is refused", i+1)
		}
	}
	if b.enter(addr(99)) {
		t.Error("one more than the limit is let in")
	}
	b.leave(addr(0))
	if !b.enter(addr(99)) {
		t.Error("there is room, and it is refused")
	}
	b.setSources([]netip.Addr{addr(1)})
	limit := bytesBeside + bytesPerNode
	if b.take(0, limit) != nil || b.take(limit, 1) == nil {
		t.Error("the limit of a connection does not hold")
	}
	for b.take(0, limit) == nil {
	}
	if b.held > bytesAtOnce {
		t.Errorf("%d bytes are held", b.held)
	}
	b.release(limit)
	if b.take(0, limit) != nil {
		t.Error("what was given back is not free")
	}
}

// BenchmarkGarbage prints how much larger the heap gets, at its largest, by 500 connections of garbage at a time, of 10 MiB
// each; from a node and from who is none.
func BenchmarkGarbage(b *testing.B) {
	for _, who := range []string{"node", "other"} {
		b.Run(who, func(b *testing.B) {
			f := newFleet(b, 2)
			all := f.startAll()
			for _, s := range all {
				s.SetSources([]netip.Addr{f.addr(0), f.addr(1)})
			}
			from := f.addr(0)
			if who == "other" {
				from = f.addr(99)
			}
			most, before := uint64(0), runtime.MemStats{}
			for b.Loop() {
				runtime.GC()
				runtime.ReadMemStats(&before)
				done, watched := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(watched)
					for {
						var now runtime.MemStats
						runtime.ReadMemStats(&now)
						if now.HeapInuse > before.HeapInuse {
							most = max(most, now.HeapInuse-before.HeapInuse)
						}
						select {
						case <-done:
							return
						case <-time.After(5 * time.Millisecond):
						}
					}
				}()
				_, stop := garbage(b, from, all[1].self, 500, 10<<20)
				close(done)
				<-watched
				stop()
			}
			b.ReportMetric(float64(most)/(1<<20), "MiB-heap")
			if len(all[1].View().Members) != 2 {
				b.Error("a member was lost")
			}
		})
	}
}
