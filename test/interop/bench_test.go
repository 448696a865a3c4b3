package interop

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/speaker/bfd"
	"github.com/clarionlb/clarion/speaker/bgp"
)

// The benchmarks print figures that README and issues speak of: go test -run '^$' -bench . -benchtime 1x ./test/interop

// bfdPeerProcess is the process at the other end of the BFD benchmarks: its environment says how many sessions, from
// consecutive addresses of the router's link, with which profile.
func bfdPeerProcess(spec string) {
	var node, first string
	var n, interval, multiplier int
	if _, err := fmt.Sscan(spec, &node, &first, &n, &interval, &multiplier); err != nil {
		panic(err)
	}
	runner := bfd.New(bfd.Config{Log: slog.New(slog.DiscardHandler)})
	runner.Client(func(bfd.Status) {}).Set(bfdSessions(netip.MustParseAddr(first), netip.MustParseAddr(node), n, interval, multiplier, true))
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	_ = runner.Run(ctx)
}

// bfdSessions are n sessions between one address and n consecutive ones.
func bfdSessions(first, other netip.Addr, n, interval, multiplier int, firstIsLocal bool) (all []bfd.Session) {
	p := bfd.Profile{Receive: time.Duration(interval) * time.Millisecond, Transmit: time.Duration(interval) * time.Millisecond, Multiplier: uint8(multiplier)}
	for range n {
		peer := bfd.Peer{Local: first, Remote: other}
		if !firstIsLocal {
			peer = bfd.Peer{Local: other, Remote: first}
		}
		all = append(all, bfd.Session{Peer: peer, Profile: p})
		first = first.Next()
	}
	return all
}

// bfdBench is n sessions that are up between this process and one in a router's namespace.
func bfdBench(b *testing.B, r *router, n, interval, multiplier int) (peer *exec.Cmd, client *bfd.Client, events <-chan bfd.Status) {
	for i := 1; i < n; i++ {
		sh(b, "ip -n %s addr add 198.18.%d.%d/24 dev eth0", r.ns, r.n, 2+i)
	}
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	peer = exec.Command("ip", "netns", "exec", r.ns, exe)
	peer.Env = append(os.Environ(), fmt.Sprintf("CLARION_INTEROP_BFD=%s %s %d %d %d", r.node.v4, r.peer.v4, n, interval, multiplier))
	stdin, err := peer.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := peer.Start(); err != nil {
		b.Fatal(err)
	}
	runner := bfd.New(bfd.Config{Log: slog.New(slog.DiscardHandler)})
	c := make(chan bfd.Status, 10000)
	client = runner.Client(func(s bfd.Status) { c <- s })
	client.Set(bfdSessions(r.peer.v4, r.node.v4, n, interval, multiplier, false))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = runner.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		<-done
		stdin.Close()
		_ = peer.Process.Kill()
		_ = peer.Wait()
	})
	bfdAllUp(b, client, n, time.Duration(interval*multiplier)*time.Millisecond)
	return peer, client, c
}

func bfdAllUp(b *testing.B, client *bfd.Client, n int, detection time.Duration) {
	eventually(b, 20*time.Second, "every BFD session is up", func() bool {
		up := 0
		for _, s := range client.Status() {
			if s.State == bfd.Up && s.Detection == detection {
				up++
			}
		}
		return up == n
	})
}

// heard listens to the BFD packets of a router and says when the last one came.
func heard(b *testing.B, r *router) (last func() time.Time) {
	ifi, err := net.InterfaceByName(r.node.ifname)
	if err != nil {
		b.Fatal(err)
	}
	c, err := packet.Listen(ifi, packet.Raw, unix.ETH_P_IP, nil)
	if err != nil {
		b.Fatal(err)
	}
	var at atomic.Pointer[time.Time]
	done := make(chan struct{})
	go func() {
		defer close(done)
		for frame := make([]byte, 2048); ; {
			n, _, err := c.ReadFrom(frame)
			now := time.Now()
			if err != nil {
				return
			}
			const ethernet, ip, control = 14, 20, 3784 // RFC 5881 section 4
			if n >= ethernet+ip+4 && frame[ethernet+9] == unix.IPPROTO_UDP && [4]byte(frame[ethernet+12:]) == r.peer.v4.As4() &&
				binary.BigEndian.Uint16(frame[ethernet+ip+2:]) == control {
				at.Store(&now)
			}
		}
	}()
	b.Cleanup(func() { c.Close(); <-done })
	return func() time.Time { return *at.Load() }
}

// A frozen peer is noticed after 1.0 to 1.35 times the detection time, which begins with its last packet (RFC 5880
// section 6.8.4).
func BenchmarkBFDDetection(b *testing.B) {
	r := newRouter(b)
	last := heard(b, r)
	peer, client, events := bfdBench(b, r, 1, 50, 3)
	var took []time.Duration
	for b.Loop() {
		for range 20 {
			for len(events) > 0 {
				<-events
			}
			time.Sleep(rand.N(50 * time.Millisecond)) // at any time between two packets
			_ = peer.Process.Signal(syscall.SIGSTOP)
			for s := range events {
				if s.State == bfd.Down {
					break
				}
			}
			took = append(took, time.Since(last()))
			_ = peer.Process.Signal(syscall.SIGCONT)
			bfdAllUp(b, client, 1, 150*time.Millisecond)
		}
	}
	slices.Sort(took)
	b.ReportMetric(took[0].Seconds()*1000, "min-ms")
	b.ReportMetric(took[len(took)/2].Seconds()*1000, "p50-ms")
	b.ReportMetric(took[len(took)-1].Seconds()*1000, "max-ms")
	b.ReportMetric(0, "ns/op")
}

// How much of a core 100 sessions at 50 ms take, seen from the process at the other end, which does nothing else.
func BenchmarkBFDLoad(b *testing.B) {
	peer, client, _ := bfdBench(b, newRouter(b), 100, 50, 3)
	var used, over time.Duration
	for b.Loop() {
		before, start := cpu(b, peer.Process.Pid), time.Now()
		time.Sleep(5 * time.Second)
		used += cpu(b, peer.Process.Pid) - before
		over += time.Since(start)
	}
	downs := uint64(0)
	for _, s := range client.Status() {
		downs += s.Downs
	}
	b.ReportMetric(100*float64(used)/float64(over), "%core")
	b.ReportMetric(float64(downs), "downs")
	b.ReportMetric(0, "ns/op")
}

// No session goes down because the node is busy.
func BenchmarkBFDOnABusyNode(b *testing.B) {
	_, client, _ := bfdBench(b, newRouter(b), 10, 300, 3)
	var hogs []*exec.Cmd
	for range 2 * runtime.NumCPU() {
		c := exec.Command("sh", "-c", "while :; do :; done")
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		hogs = append(hogs, c)
	}
	defer func() {
		for _, c := range hogs {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}()
	seconds := 30
	if s, err := strconv.Atoi(os.Getenv("CLARION_BUSY_SECONDS")); err == nil {
		seconds = s
	}
	for b.Loop() {
		time.Sleep(time.Duration(seconds) * time.Second)
	}
	downs := uint64(0)
	for _, s := range client.Status() {
		downs += s.Downs
	}
	b.ReportMetric(float64(downs), "downs")
	b.ReportMetric(0, "ns/op")
}

// cpu is the processor time that a process has used.
func cpu(b *testing.B, pid int) time.Duration {
	// The process is in this PID namespace, but /proc may be of another: ask the clock of the process itself.
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil { // as clock_getcpuclockid(3)
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// timeline is an Observer that knows when the last session came up, and the longest time from a session up to its last
// UPDATE given to the connection.
type timeline struct {
	mu   sync.Mutex
	ups  map[string]time.Time
	up   time.Time
	ours time.Duration
}

func (l *timeline) Up(peer string, _, _ netip.AddrPort, _, _ []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up = time.Now()
	l.ups[peer] = l.up
}

func (l *timeline) Sent(peer string, _ netip.AddrPort, _ []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ours = max(l.ours, time.Since(l.ups[peer]))
}

func (*timeline) Down(string, netip.AddrPort, error) {}

// announce opens sessions with routers that are to have n prefixes, and reports how long that took from when the last
// session was up: until the routers have them all; how much of it was the speaker's; and what memory the speaker needs for it.
func announce(b *testing.B, n int, have func(r *router) bool, rs ...*router) {
	b.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(50)) // as in the speaker
	var prefixes []route.Route
	for i := range n {
		prefixes = append(prefixes, route.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(18 + i>>16), byte(i >> 8), byte(i)}), 32)})
	}
	for b.Loop() {
		table := route.TableOf(prefixes...)
		idle := resident(b)
		node, line := newNode(b, bgp.Config{}), &timeline{ups: map[string]time.Time{}}
		defer node.speaker.Observe(line)()
		var sessions []bgp.Session
		for _, r := range rs {
			s := r.session(nil)
			s.Routes = table
			sessions = append(sessions, s)
		}
		node.speaker.Set(sessions)
		for _, r := range rs {
			r.eventually(60*time.Second, "every prefix is there", func() bool { return have(r) })
		}
		line.mu.Lock()
		b.ReportMetric(time.Since(line.up).Seconds()*1000, "ms")
		b.ReportMetric(line.ours.Seconds()*1000, "ours-ms")
		line.mu.Unlock()
		b.ReportMetric(float64(resident(b)-idle)/(1<<20), "MiB")
		runtime.KeepAlive(prefixes)
		node.stop()
	}
	b.ReportMetric(0, "ns/op")
}

// How long 10,000 prefixes take to be in the tables of two routers, and what they cost in memory.
func BenchmarkRoutes(b *testing.B) {
	r1, r2 := newRouter(b), newRouter(b)
	r1.frr(external4)
	r2.frr(external4)
	announce(b, 10_000, func(r *router) bool {
		return strings.Contains(r.vtysh("show bgp ipv4 unicast statistics json"), ":10000")
	}, r1, r2)
}

// The same of 100,000 prefixes and one router, BIRD, which does not hand them to its kernel.
func BenchmarkManyRoutes(b *testing.B) {
	r := newRouter(b)
	r.birdAlone(birdIPv4, channel4)
	announce(b, 100_000, func(r *router) bool { return strings.Contains(r.birdc("show route count"), "100000 of 100000") }, r)
}

// How often a session comes up with a router that refuses every UPDATE, and how long another router waits for a change
// meanwhile.
func BenchmarkRefusing(b *testing.B) {
	seconds := 60
	if s, err := strconv.Atoi(os.Getenv("CLARION_REFUSING_SECONDS")); err == nil {
		seconds = s
	}
	l, err := net.Listen("tcp", "127.0.0.1:1790")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go refuse(c)
		}
	}()
	good := newRouter(b)
	good.frr(external4)
	bad := good.session(func(p *bgp.Peer) {
		p.Name, p.Address, p.Port, p.MultiHop = "bad", netip.MustParseAddr("127.0.0.1"), 1790, true
	})
	for b.Loop() {
		node := newNode(b, bgp.Config{})
		var slowest time.Duration
		for end, i := time.Now().Add(time.Duration(seconds)*time.Second), 0; time.Now().Before(end); i++ {
			change := routes(fmt.Sprintf("203.0.113.%d/32", i%250))
			bad.Routes = route.TableOf(change...)
			start := time.Now()
			node.speaker.Set([]bgp.Session{bad, good.session(nil, change...)})
			node.established(good.ns, 10*time.Second)
			good.eventually(5*time.Second, "the change is there", func() bool { return good.routeText(change[0].Prefix.String()) != "" })
			if i > 0 { // the session was up
				slowest = max(slowest, time.Since(start))
			}
			time.Sleep(200 * time.Millisecond)
		}
		b.ReportMetric(float64(node.status("bad").Ups), "sessions")
		b.ReportMetric(slowest.Seconds()*1000, "slowest-ms")
		if n := node.status(good.ns).Ups; n != 1 {
			b.Errorf("%d sessions with the other router", n)
		}
		node.stop()
	}
	b.ReportMetric(0, "ns/op")
}

// refuse is a router that answers every UPDATE with a NOTIFICATION.
func refuse(c net.Conn) {
	defer c.Close()
	message := func(typ byte, body ...byte) []byte {
		return append(append(bytes.Repeat([]byte{0xff}, 16), 0, byte(19+len(body)), typ), body...)
	}
	_, _ = c.Write(slices.Concat(message(1, 4, 64512>>8, 64512&0xff, 0, 90, 10, 255, 0, 9, 0), message(4)))
	for head := make([]byte, 19); ; {
		if _, err := io.ReadFull(c, head); err != nil {
			return
		}
		if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(head[16:]))-19); err != nil {
			return
		}
		if head[18] == 2 {
			_, _ = c.Write(message(3, 3, 1)) // malformed attribute list
			return
		}
	}
}

// resident is the memory of this process.
func resident(b *testing.B) int64 {
	runtime.GC()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	pages, _ := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
