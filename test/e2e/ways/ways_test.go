// Package ways proves, from a client's side, every way into a cluster that Kubernetes knows, with Clarion announcing:
// LoadBalancer, NodePort, ClusterIPs from outside, DNS, Services without selectors, an Ingress, equipment that was
// there before; in IPv4 and IPv6, with kube-proxy in each of its modes, and while things change.
package ways

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

// config announces addresses of the LAN by layer 2, others by BGP, and what has the label "announce" as the label says.
const config = `
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: lan}
spec: {addresses: [192.0.2.200-192.0.2.250, "2001:db8::200-2001:db8::2ff"], autoAssign: false}
---
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: lan}
spec: {ipAddressPools: [lan], interfaces: [eth0]}
---
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: routed}
spec: {addresses: [198.18.0.0/24, "2001:db8:f::/112"]}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: router1}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.1, dualStackAddressFamily: true}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: router2}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.2, dualStackAddressFamily: true}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: routed}
spec: {ipAddressPools: [routed]}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: clusterips}
spec: {addressTypes: [ServiceCIDR]}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: external-ips}
spec: {addressTypes: [ExternalIP], externalIPRanges: [198.19.0.0/24, "2001:db8:e::/64"], serviceSelectors: [{matchLabels: {announce: external-ips}}]}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: cluster-ips}
spec: {addressTypes: [ClusterIP], serviceSelectors: [{matchLabels: {announce: cluster-ip}}]}
`

// way is a world, configured, with web pods on every node (label app: web).
type way struct {
	*world.World
	mode string // kube-proxy's
}

func TestMain(m *testing.M) {
	world.NeedRoot()
	os.Exit(m.Run())
}

func TestWays(t *testing.T) {
	rows := []struct {
		name string
		run  func(*testing.T, *way)
	}{
		{"LoadBalancer", testLoadBalancer},
		{"NodePort", testNodePort},
		{"ClusterIP", testClusterIP},
		{"DNS", testDNS},
		{"LeftAlone", testLeftAlone},
		{"WithoutSelector", testWithoutSelector},
		{"Ingress", testIngress},
		{"Equipment", testEquipment},
		{"Change", testChange},
	}
	for _, mode := range []string{"iptables", "nftables"} {
		t.Run(mode, func(t *testing.T) {
			w := start(t, mode)
			for _, row := range rows {
				t.Run(row.name, func(t *testing.T) { row.run(t, w) })
			}
		})
	}
}

// up brings up a lab that is taken down with the test, also when the process is told to end, and keeps its logs if the
// test fails.
func up(t *testing.T, o lab.Options) *world.World {
	t.Helper()
	l := world.New(o)
	told := make(chan os.Signal, 1)
	signal.Notify(told, os.Interrupt, syscall.SIGTERM)
	go func() {
		if _, ok := <-told; ok {
			_ = l.Down()
			os.Exit(1)
		}
	}()
	t.Cleanup(func() {
		signal.Stop(told)
		close(told)
		if t.Failed() {
			t.Log(l.KeepLogs())
		}
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	// Not the test's context: that ends before the clean-up, which still needs the lab.
	world.Must(t, l.Up(context.Background()))
	return l
}

// start brings up a world.
func start(t *testing.T, mode string) *way {
	t.Helper()
	w := &way{mode: mode, World: up(t, lab.Options{Name: "ways", ProxyMode: mode,
		ProxyArgs: []string{"--nodeport-addresses=192.0.2.0/24,2001:db8::/64"}})}
	ctx := t.Context()
	var err error
	w.Clarion, err = w.StartClarion(ctx, lab.ClarionOptions{})
	world.Must(t, err)
	world.Must(t, w.StartDNS(ctx))
	world.Must(t, w.WebPods(ctx))
	world.Must(t, w.Apply(ctx, config))
	for _, p := range []string{"10.96.0.0/16", "fd00:96::/112"} {
		w.NextHops(t, netip.MustParsePrefix(p), w.Nodes()...)
	}
	return w
}

// pod runs a pod until the test ends.
func (w *way) pod(t *testing.T, spec lab.PodSpec) *lab.Pod {
	t.Helper()
	p, err := w.RunPod(t.Context(), spec)
	world.Must(t, err)
	t.Cleanup(func() {
		if !slices.Contains(w.Pods(), p) {
			return // the test has deleted it
		}
		if err := p.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p
}

// apply applies manifests until the test ends.
func (w *way) apply(t *testing.T, manifests string) {
	t.Helper()
	world.Must(t, w.Apply(t.Context(), manifests))
	t.Cleanup(func() {
		// A pool is not deleted while its status counts addresses, some of Services that have just been deleted.
		ctx := context.Background()
		if err := lab.Eventually(ctx, 10*time.Second, func() error { return w.Delete(ctx, manifests) }); err != nil {
			t.Error(err)
		}
	})
}

// service makes a dual-stack Service of type LoadBalancer for the web pods, changed by edit, until the test ends.
func (w *way) service(t *testing.T, name string, edit func(*corev1.Service)) *corev1.Service {
	t.Helper()
	return w.Service(t, name, func(svc *corev1.Service) {
		svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
		svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
		if edit != nil {
			edit(svc)
		}
	})
}

// onLAN asks for an address that is announced by layer 2; without it a Service is announced by BGP.
func onLAN(svc *corev1.Service) { svc.Annotations[v1beta1.AnnotationAddressPool] = "lan" }

// local sets externalTrafficPolicy Local.
func local(svc *corev1.Service) {
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

// change changes a Service.
func (w *way) change(t *testing.T, svc *corev1.Service, edit func(*corev1.Service)) {
	t.Helper()
	world.Must(t, w.Get(t.Context(), svc))
	before := svc.DeepCopy()
	edit(svc)
	world.Must(t, w.Client().Patch(t.Context(), svc, client.MergeFrom(before)))
}

// addresses waits until a Service has both its addresses, and returns them, IPv4 first.
func (w *way) addresses(t *testing.T, svc *corev1.Service) []netip.Addr {
	t.Helper()
	out := w.Addresses(t, svc, 2)
	if !out[0].Is4() || !out[1].Is6() {
		t.Fatalf("%s has the addresses %v, want one IPv4 and one IPv6", svc.Name, out)
	}
	return out
}

// clusterIPs are a Service's own addresses.
func clusterIPs(svc *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, ip := range svc.Spec.ClusterIPs {
		out = append(out, netip.MustParseAddr(ip))
	}
	return out
}

// at is an address and port as text.
func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// url is the one of port 80 of an address.
func url(a netip.Addr) string { return "http://" + at(a, 80) + "/" }

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// steady runs f while requests are made, and fails the test if one of them gets no answer.
func (w *way) steady(t *testing.T, from string, urls []string, f func()) {
	t.Helper()
	w.steadyBut(t, from, urls, 0, f)
}

// steadyBut is steady but for so many connections to each URL that may be reset; see AnsweredBut.
func (w *way) steadyBut(t *testing.T, from string, urls []string, resets int, f func()) {
	t.Helper()
	for _, u := range urls {
		w.Reachable(t, from, u)
	}
	var streams []*lab.Stream
	var stops []func() []lab.Reply
	for _, u := range urls {
		s := w.StreamHTTP(t.Context(), from, u, 20*time.Millisecond)
		stop := sync.OnceValue(s.Stop)
		defer stop() // also when f ends the test
		streams, stops = append(streams, s), append(stops, stop)
	}
	f()
	for i, s := range streams {
		more := len(s.Replies()) + 50 // some of them after the change
		world.Eventually(t, func() error {
			if n := len(s.Replies()); n < more {
				return fmt.Errorf("%s: %d requests of %d have ended", urls[i], n, more)
			}
			return nil
		})
		world.AnsweredBut(t, "during the change: "+urls[i], resets, stops[i]())
	}
}
