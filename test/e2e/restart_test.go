package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

// connections are kept open and used all the time, each with requests one after the other.
type connections struct {
	stop   context.CancelFunc
	done   sync.WaitGroup
	mu     sync.Mutex
	all    int
	used   int
	broken []error
}

// keep opens n connections from the client on the LAN to port 80 of each address.
func keep(t *testing.T, n int, addrs ...netip.Addr) *connections {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	c := &connections{stop: stop}
	for _, addr := range addrs {
		for range n {
			conn, err := cluster.Dial(t.Context(), "client", "tcp", netip.AddrPortFrom(addr, 80).String())
			if err != nil {
				t.Fatal(err)
			}
			c.all++
			c.done.Go(func() {
				defer conn.Close()
				if err := c.use(ctx, conn); err != nil {
					c.mu.Lock()
					defer c.mu.Unlock()
					c.broken = append(c.broken, fmt.Errorf("%s: %w", addr, err))
				}
			})
		}
	}
	return c
}

// use makes a request over a connection 20 times a second until ctx ends.
func (c *connections) use(ctx context.Context, conn net.Conn) error {
	r := bufio.NewReader(conn)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		buf := make([]byte, 4096)
		for err == nil {
			_, err = resp.Body.Read(buf)
		}
		c.mu.Lock()
		c.used++
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// whole ends the connections and fails the test if one has broken.
func (c *connections) whole(t *testing.T, what string) {
	t.Helper()
	c.stop()
	c.done.Wait()
	t.Logf("%s: %d of %d connections broken, %d requests over them", what, len(c.broken), c.all, c.used)
	for _, err := range c.broken {
		t.Errorf("%s: %v", what, err)
	}
	if c.used < 10*c.all {
		t.Errorf("%s: only %d requests over %d connections", what, c.used, c.all)
	}
}

// newcomers are clients that have never heard of an address: before each request a host of the LAN, which sends no others,
// forgets it.
func newcomers(t *testing.T, addrs ...netip.Addr) (stop func(what string)) {
	t.Helper()
	const newcomer = "router1"
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	var mu sync.Mutex
	var replies []lab.Reply
	for _, addr := range addrs {
		done.Go(func() {
			for ctx.Err() == nil {
				if err := forget(newcomer, addr); err != nil {
					t.Error(err)
					return
				}
				got := cluster.HTTP(context.Background(), newcomer, "http://"+netip.AddrPortFrom(addr, 80).String()+"/", 1)
				mu.Lock()
				replies = append(replies, got...)
				mu.Unlock()
				time.Sleep(20 * time.Millisecond) // a pace, and no more
			}
		})
	}
	end := sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(end)
	return func(what string) {
		t.Helper()
		end()
		slowest := slices.MaxFunc(replies, func(a, b lab.Reply) int { return int(a.Took - b.Took) })
		t.Logf("%s: %d new clients, %d not served, the slowest after %s", what, len(replies), len(lab.Lost(replies)), slowest.Took)
		world.Answered(t, what+": new clients", replies)
	}
}

// forget removes what a host knows of the hardware address of a neighbour.
func forget(host string, addr netip.Addr) error {
	return cluster.In(host, func() error {
		routes, err := netlink.RouteGet(addr.AsSlice())
		if err != nil {
			return err
		}
		_ = netlink.NeighDel(&netlink.Neigh{LinkIndex: routes[0].LinkIndex, IP: addr.AsSlice()}) // it may not know any
		return nil
	})
}

// Speakers that are restarted, one after the other, or that crash, break no connection to an address on the local network,
// and keep nobody from making one: their nodes forward on, and others answer for them meanwhile.
func TestRestartKeepsConnections(t *testing.T) {
	var addrs []netip.Addr
	owners := map[string]bool{}
	for i := 0; i < 4 || len(owners) < len(cluster.Nodes()) && i < 20; i++ {
		svc := cluster.Service(t, fmt.Sprintf("kept-%d", i), func(svc *corev1.Service) {
			if i%2 == 1 {
				svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
			}
		})
		addr := cluster.Addresses(t, svc, 1)[0]
		addrs = append(addrs, addr)
		owners[owner(t, addr, "")] = true
		cluster.Reachable(t, "client", "http://"+netip.AddrPortFrom(addr, 80).String()+"/")
	}
	before := ownersOf(t, addrs)
	restart := func(node string, end func(*lab.Process), rest time.Duration) {
		t.Helper()
		sp := cluster.Clarion.Speakers[node]
		end(sp)
		time.Sleep(rest) // what a kubelet takes
		if err := sp.Restart(); err != nil {
			t.Fatal(err)
		}
		established(t, node)
	}
	for _, tt := range []struct {
		what string
		end  func(*lab.Process)
		rest time.Duration
	}{
		{"rolling restart", func(p *lab.Process) {
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
		}, time.Second},
		{"crashes", (*lab.Process).Kill, 3 * time.Second},
	} {
		conns := keep(t, (40+len(addrs)-1)/len(addrs), addrs...)
		var streams []*lab.Stream
		for _, addr := range addrs {
			streams = append(streams, cluster.StreamHTTP(t.Context(), "client", "http://"+netip.AddrPortFrom(addr, 80).String()+"/", 20*time.Millisecond))
		}
		stop := newcomers(t, addrs[0], addrs[1])
		for _, node := range cluster.Nodes() {
			restart(node, tt.end, tt.rest)
		}
		stop(tt.what)
		var replies []lab.Reply
		for _, s := range streams {
			replies = append(replies, s.Stop()...)
		}
		world.Answered(t, tt.what, replies)
		conns.whole(t, tt.what)
		t.Logf("%s: %d requests, %d lost", tt.what, len(replies), len(lab.Lost(replies)))
	}
	if after := ownersOf(t, addrs); !slices.Equal(before, after) {
		t.Errorf("owners before %v, after %v", before, after)
	}
}

// ownersOf are the nodes that answer for addresses, one each.
func ownersOf(t *testing.T, addrs []netip.Addr) (out []string) {
	t.Helper()
	for _, addr := range addrs {
		out = append(out, owner(t, addr, ""))
	}
	return out
}

// A Deployment of one pod with policy Local rolls from node to node: the new pod is ready before the old one is told to end,
// which serves a while longer. Nobody notices, by layer 2 and by BGP.
func TestRolloutOfOnePod(t *testing.T) {
	nodes := cluster.Nodes()
	local := func(svc *corev1.Service) {
		svc.Spec.Selector, svc.Spec.ExternalTrafficPolicy = map[string]string{"app": "one"}, corev1.ServiceExternalTrafficPolicyLocal
	}
	run := func(i int) *lab.Pod {
		t.Helper()
		p, err := cluster.RunPod(t.Context(), lab.PodSpec{Name: fmt.Sprintf("one-%d", i), Node: nodes[i%len(nodes)], Labels: map[string]string{"app": "one"}, Drain: 3 * time.Second})
		world.Must(t, err)
		return p
	}
	pod := run(0)
	t.Cleanup(func() { _ = pod.Delete(context.Background()) })
	lan := cluster.Addresses(t, cluster.Service(t, "one-lan", local), 1)[0]
	far := cluster.Addresses(t, cluster.Service(t, "one-routed", func(svc *corev1.Service) { routed(svc); local(svc) }), 1)[0]
	owner(t, lan, "")
	cluster.NextHops(t, world.Alone(far), nodes[0])
	from := map[netip.Addr]string{lan: "client", far: "outside"}
	streams := map[netip.Addr]*lab.Stream{}
	for addr, host := range from {
		cluster.Reachable(t, host, fmt.Sprintf("http://%s/", addr))
		streams[addr] = cluster.StreamUDP(t.Context(), host, netip.AddrPortFrom(addr, 7).String(), 5*time.Millisecond)
	}
	for i := range 4 {
		next := run(i + 1)
		world.Must(t, pod.Terminate(t.Context()))
		pod = next
		cluster.NextHops(t, world.Alone(far), pod.Spec.Node)
		world.Eventually(t, func() error {
			who, err := cluster.WhoHas("client", lan, 300*time.Millisecond)
			if err == nil && !slices.Equal(who, []string{pod.Spec.Node}) {
				err = fmt.Errorf("%s is answered by %v, want %s", lan, who, pod.Spec.Node)
			}
			return err
		})
	}
	for addr, s := range streams {
		replies := s.Stop()
		t.Logf("%s: %d datagrams, %d lost", addr, len(replies), len(lab.Lost(replies)))
		world.Answered(t, fmt.Sprintf("%s, in four rollouts", addr), replies)
	}
}
