// Package ways proves, from a client's side, every way into a cluster that Kubernetes knows, with Clarion announcing:
// LoadBalancer, NodePort, ClusterIPs from outside, DNS, Services without selectors, an Ingress, equipment that was
// there before; in IPv4 and IPv6, with kube-proxy in each of its modes, and while things change.
package ways

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/lab"
)

// settle is how long the cluster may take to do what it is told: a bound for failing tests, not a measurement.
const settle = 20 * time.Second

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
spec: {addressTypes: [ExternalIP], serviceSelectors: [{matchLabels: {announce: external-ips}}]}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: cluster-ips}
spec: {addressTypes: [ClusterIP], serviceSelectors: [{matchLabels: {announce: cluster-ip}}]}
`

// world is a lab with Clarion in it, configured, with web pods on every node (label app: web).
type world struct {
	*lab.Lab
	clarion *lab.Clarion
	mode    string // kube-proxy's
}

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("the end-to-end tests need root: they make network namespaces")
		os.Exit(1)
	}
	log.SetLogger(logr.Discard()) // that of the API client, which has nothing to say
	os.Exit(m.Run())
}

func TestWays(t *testing.T) {
	rows := []struct {
		name string
		run  func(*testing.T, *world)
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
func up(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	o.Scheme = runtime.NewScheme()
	_ = clientgoscheme.AddToScheme(o.Scheme)
	_ = v1beta1.AddToScheme(o.Scheme)
	o.Progress = os.Stderr
	l := lab.New(o)
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
			dir, err := os.MkdirTemp("", "clarion-ways-")
			if err == nil {
				err = os.CopyFS(dir, os.DirFS(filepath.Join(l.Dir(), "log")))
			}
			t.Logf("the logs of all programs: %s (error: %v)", dir, err)
		}
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	// Not the test's context: that ends before the clean-up, which still needs the lab.
	must(t, l.Up(context.Background()))
	return l
}

// start brings up a world.
func start(t *testing.T, mode string) *world {
	t.Helper()
	w := &world{mode: mode, Lab: up(t, lab.Options{Name: "ways", ProxyMode: mode,
		ProxyArgs: []string{"--nodeport-addresses=192.0.2.0/24,2001:db8::/64"}})}
	ctx := t.Context()
	var err error
	w.clarion, err = w.StartClarion(ctx, lab.ClarionOptions{})
	must(t, err)
	must(t, w.StartDNS(ctx))
	for _, node := range w.Nodes() {
		for i := range 2 {
			w.pod(t, lab.PodSpec{Name: fmt.Sprintf("web-%s-%d", node, i), Node: node, Labels: map[string]string{"app": "web", "node": node}})
		}
	}
	must(t, w.Apply(ctx, config))
	for _, p := range []string{"10.96.0.0/16", "fd00:96::/112"} {
		w.nextHops(t, netip.MustParsePrefix(p), w.Nodes()...)
	}
	return w
}

// eventually waits until f returns nil, and fails the test with f's last error when it does not.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	if err := lab.Eventually(t.Context(), settle, f); err != nil {
		t.Fatal(err)
	}
}

// pod runs a pod until the test ends.
func (w *world) pod(t *testing.T, spec lab.PodSpec) *lab.Pod {
	t.Helper()
	p, err := w.RunPod(t.Context(), spec)
	must(t, err)
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

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// apply applies manifests until the test ends.
func (w *world) apply(t *testing.T, manifests string) {
	t.Helper()
	must(t, w.Apply(t.Context(), manifests))
	t.Cleanup(func() {
		if err := w.Delete(context.Background(), manifests); err != nil {
			t.Error(err)
		}
	})
}

var targetPort = intstr.FromInt32(8080)

// service makes a dual-stack Service of type LoadBalancer for the web pods, TCP port 80 and UDP port 7, changed by edit,
// until the test ends.
func (w *world) service(t *testing.T, name string, edit func(*corev1.Service)) *corev1.Service {
	t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{}, Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": "web"},
			IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyRequireDualStack),
			IPFamilies:     []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, TargetPort: targetPort, Protocol: corev1.ProtocolTCP},
				{Name: "echo", Port: 7, TargetPort: targetPort, Protocol: corev1.ProtocolUDP},
			},
		},
	}
	if edit != nil {
		edit(svc)
	}
	must(t, w.Client().Create(t.Context(), svc))
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(w.Client().Delete(context.Background(), svc)); err != nil {
			t.Error(err)
		}
	})
	return svc
}

// onLAN asks for an address that is announced by layer 2; without it a Service is announced by BGP.
func onLAN(svc *corev1.Service) { svc.Annotations[v1beta1.AnnotationAddressPool] = "lan" }

// local sets externalTrafficPolicy Local.
func local(svc *corev1.Service) {
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

// change changes a Service.
func (w *world) change(t *testing.T, svc *corev1.Service, edit func(*corev1.Service)) {
	t.Helper()
	must(t, w.get(t.Context(), svc))
	before := svc.DeepCopy()
	edit(svc)
	must(t, w.Client().Patch(t.Context(), svc, client.MergeFrom(before)))
}

func (w *world) get(ctx context.Context, obj client.Object) error {
	return w.Client().Get(ctx, client.ObjectKeyFromObject(obj), obj)
}

// addresses waits until a Service has both its addresses, and returns them, IPv4 first.
func (w *world) addresses(t *testing.T, svc *corev1.Service) []netip.Addr {
	t.Helper()
	var out []netip.Addr
	eventually(t, func() error {
		if err := w.get(t.Context(), svc); err != nil {
			return err
		}
		out = ingress(svc)
		if len(out) != 2 || !out[0].Is4() || !out[1].Is6() {
			return fmt.Errorf("%s has the addresses %v, want one IPv4 and one IPv6; conditions: %s", svc.Name, out, conditions(svc.Status.Conditions))
		}
		return nil
	})
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

func ingress(svc *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, i := range svc.Status.LoadBalancer.Ingress {
		out = append(out, netip.MustParseAddr(i.IP))
	}
	return out
}

func conditions(cs []metav1.Condition) string {
	var b strings.Builder
	for _, c := range cs {
		fmt.Fprintf(&b, "\n  %s=%s %s: %s", c.Type, c.Status, c.Reason, c.Message)
	}
	return b.String()
}

// at is an address and port as text.
func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// url is the one of port 80 of an address.
func url(a netip.Addr) string { return "http://" + at(a, 80) + "/" }

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// of is a host's address of the same family as another.
func of(h lab.Host, like netip.Addr) netip.Addr {
	if like.Is4() {
		return h.IPv4
	}
	return h.IPv6
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// nextHops waits until the kernel of every router has exactly these nodes as next hops for a prefix.
func (w *world) nextHops(t *testing.T, prefix netip.Prefix, nodes ...string) {
	t.Helper()
	var want []netip.Addr
	for _, n := range nodes {
		want = append(want, of(w.Host(n), prefix.Addr()))
	}
	slices.SortFunc(want, netip.Addr.Compare)
	eventually(t, func() error {
		for _, r := range w.Routers() {
			got, err := r.NextHops(t.Context(), prefix)
			if err != nil {
				return err
			}
			if !slices.Equal(got, want) {
				return fmt.Errorf("%s: next hops of %s are %v, want %v", r.Name, prefix, got, want)
			}
		}
		return nil
	})
}

// reachable waits until a number of requests in a row, more than there are ways through the cluster, are all answered:
// kube-proxies follow the API each in its own time, some a moment after the routers.
func (w *world) reachable(t *testing.T, from, url string) {
	t.Helper()
	address := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")
	eventually(t, func() error {
		// A whole request would wait longer than the cluster needs to become ready.
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		c, err := w.Dial(ctx, from, "tcp", address)
		if err != nil {
			return err
		}
		c.Close()
		return w.allAnswer(t.Context(), from, url, 40)
	})
}

func (w *world) allAnswer(ctx context.Context, from, url string, n int) error {
	if lost := lab.Lost(w.HTTP(ctx, from, url, n)); len(lost) > 0 {
		return fmt.Errorf("%s to %s: %d of %d requests unanswered; the first: %w", from, url, len(lost), n, lost[0].Err)
	}
	return nil
}

// answered fails the test if one of the replies is missing.
func answered(t *testing.T, what string, replies []lab.Reply) {
	t.Helper()
	if lost := lab.Lost(replies); len(lost) > 0 {
		t.Errorf("%s: %d of %d requests got no answer, over %v; the first: %v", what, len(lost), len(replies), lab.Outage(replies), lost[0].Err)
	}
}

// steady runs f while requests are made, and fails the test if one of them gets no answer.
func (w *world) steady(t *testing.T, from string, urls []string, f func()) {
	t.Helper()
	w.steadyBut(t, from, urls, 0, f)
}

// steadyBut is steady but for so many connections to each URL that may be reset when routes change: a router that
// spreads flows by their hash sends some of those under way to another node, which does not know them.
func (w *world) steadyBut(t *testing.T, from string, urls []string, resets int, f func()) {
	t.Helper()
	for _, u := range urls {
		w.reachable(t, from, u)
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
		eventually(t, func() error {
			if n := len(s.Replies()); n < more {
				return fmt.Errorf("%s: %d requests of %d have ended", urls[i], n, more)
			}
			return nil
		})
		left := resets
		replies := slices.DeleteFunc(stops[i](), func(r lab.Reply) bool {
			reset := errors.Is(r.Err, syscall.ECONNRESET)
			if reset {
				left--
			}
			return reset && left >= 0
		})
		answered(t, "during the change: "+urls[i], replies)
		if left < resets {
			t.Logf("%s: %d connections under way were reset", urls[i], resets-left)
		}
	}
}
