package main

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/speaker/bgp"
	"github.com/clarionlb/clarion/speaker/layer2"
)

// What an event costs a speaker where there are 1,000 nodes and 10,000 Services with an address each, half of them of
// externalTrafficPolicy Local, and as many that are announced nowhere.
func BenchmarkScale(b *testing.B) {
	for _, how := range []string{"layer2", "BGP"} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		c := newScale(b, how)
		start := time.Now()
		c.step()
		first := time.Since(start)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.Run(how+"/first", func(b *testing.B) {
			b.ReportMetric(first.Seconds()*1000, "ms")
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
		})
		for _, bb := range []struct {
			what  string
			event func(i int)
		}{
			{"endpoints/Cluster", func(i int) { c.flap(2 * (i % 5000)) }},
			{"endpoints/Local", func(i int) { c.flap(2*(i%5000) + 1) }},
			{"endpoints/nowhere", func(i int) { c.flap(services + i%5000) }},
			{"labels", func(i int) { c.relabel(1 + i%900) }},
		} {
			b.Run(how+"/"+bb.what, func(b *testing.B) {
				b.ReportAllocs()
				i, start := 0, cpu()
				for ; b.Loop(); i++ {
					bb.event(i)
					c.step()
				}
				b.ReportMetric(float64(cpu()-start)/float64(i), "ns-of-a-core/op")
			})
		}
		runtime.KeepAlive(c)
	}
}

// cpu is what the process has used of the cores so far: it does not grow with what else the machine does.
func cpu() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// nowhere is where what is to be announced goes.
type nowhere struct{}

func (nowhere) Status() layer2.Status                  { return layer2.Status{} }
func (nowhere) Set([]layer2.Address)                   {}
func (nowhere) Change([]layer2.Address, ...netip.Addr) {}

type noSessions struct{}

func (noSessions) Set([]bgp.Session) {}

const (
	scaleNodes = 1000
	services   = 10000
)

// scale is a world of that size. Objects are made again for every event, as a watch does.
type scale struct {
	*world
	up map[int]bool // which Services have one endpoint more
	on map[int]bool // which nodes have one label more
}

func newScale(b *testing.B, how string) *scale {
	c := &scale{newWorld(b), map[int]bool{}, map[int]bool{}}
	w := c.world
	alive := map[string]snapshot.Member{}
	for i := range scaleNodes {
		name := fmt.Sprint("n", i)
		w.add(c.node(i))
		alive[name] = snapshot.Member{SessionUp: true, Links: []announce.Link{{Name: "eth0", Up: true}}}
	}
	w.r.node, w.r.layer2, w.r.bgp, w.r.guard = "n500", nowhere{}, noSessions{}, nil
	w.r.snapshot.Lock()
	w.r.snapshot.Members(alive)
	w.r.snapshot.Unlock()
	w.r.setJoined()
	w.add(&v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "ext"}, Spec: v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"198.18.0.0/16"}}})
	if how == "BGP" {
		w.add(peer("tor1", "192.0.2.253", nil))
		w.add(peer("tor2", "192.0.2.254", nil))
		w.add(&v1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}})
	} else {
		w.add(&v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}})
	}
	for i := range 2 * services {
		name := fmt.Sprint("s", i)
		s := svc(name)
		s.Spec.ClusterIPs = []string{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()}
		if i < services {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}).String()}}
			if i%2 == 1 {
				s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			}
		} else {
			s.Spec.Type = corev1.ServiceTypeClusterIP
		}
		w.add(s)
		w.add(c.slice(i))
	}
	return c
}

// add makes an object exist, and decides nothing yet.
func (w *world) add(o client.Object) {
	inf, err := w.informers.FakeInformerFor(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	inf.Add(o)
}

func (c *scale) node(i int) *corev1.Node {
	n := node(fmt.Sprint("n", i), netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}).String())
	n.Labels = map[string]string{"rack": fmt.Sprint(i % 40)}
	if c.on[i] {
		n.Labels["new"] = "yes"
	}
	return n
}

func (c *scale) slice(i int) *discoveryv1.EndpointSlice {
	nodes := []string{fmt.Sprint("n", i%scaleNodes), fmt.Sprint("n", i*7%scaleNodes), fmt.Sprint("n", i*13%scaleNodes)}
	if c.up[i] {
		nodes = append(nodes, "n500")
	}
	return endpoints(fmt.Sprint("s", i), nodes...)
}

func (c *scale) flap(i int) {
	c.up[i] = !c.up[i]
	es := c.slice(i)
	inf, _ := c.informers.FakeInformerFor(c.t.Context(), es)
	inf.Update(es, es)
}

func (c *scale) relabel(i int) {
	c.on[i] = !c.on[i]
	n := c.node(i)
	inf, _ := c.informers.FakeInformerFor(c.t.Context(), n)
	inf.Update(n, n)
}
