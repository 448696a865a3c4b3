// Package e2e proves Clarion's main job from outside, on the lab's real cluster: a client on the LAN and a client behind
// the routers reach Services by their external addresses, while things are added, broken and restarted.
package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/lab"
)

// The cluster that all tests share, and Clarion in it.
var (
	cluster *lab.Lab
	clarion *lab.Clarion
)

// settle is how long the cluster may take to do what it is told: a bound for failing tests, not a measurement.
const settle = 20 * time.Second

// config is what a user would write for both ways of announcing; every test adds its own Services.
const config = `
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: lan}
spec:
  addresses: [192.0.2.200-192.0.2.250, "2001:db8::200-2001:db8::2ff"]
  serviceAllocation: {priority: 10}
---
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: lan}
spec: {ipAddressPools: [lan], interfaces: [eth0]}
---
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: routed}
spec:
  addresses: [198.18.0.0/24, "2001:db8:f::/112"]
  autoAssign: false
---
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: router1}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.1, dualStackAddressFamily: true, enableGracefulRestart: true}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: router2}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.2, dualStackAddressFamily: true, enableGracefulRestart: true}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: routed}
spec: {ipAddressPools: [routed], peers: [router1, router2]}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: clusterips}
spec: {addressTypes: [ServiceCIDR], peers: [router1, router2]}
`

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("the end-to-end tests need root: they make network namespaces")
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := func() int {
		defer stop()
		scheme := runtime.NewScheme()
		_ = clientgoscheme.AddToScheme(scheme)
		_ = v1beta1.AddToScheme(scheme)
		cluster = lab.New(lab.Options{Name: "e2e", Scheme: scheme, Progress: os.Stderr})
		defer func() {
			if err := cluster.Down(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
		if err := start(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code := m.Run()
		if code != 0 {
			keepLogs()
		}
		return code
	}()
	os.Exit(code)
}

// keepLogs saves what the cluster's programs have printed from the lab's end.
func keepLogs() {
	dir, err := os.MkdirTemp("", "clarion-e2e-")
	if err == nil {
		err = os.CopyFS(dir, os.DirFS(filepath.Join(cluster.Dir(), "log")))
	}
	fmt.Fprintf(os.Stderr, "the logs of all programs: %s (error: %v)\n", dir, err)
}

// start brings up the lab and Clarion, two web pods on every node, and the configuration.
func start(ctx context.Context) error {
	if err := cluster.Up(ctx); err != nil {
		return err
	}
	var err error
	if clarion, err = cluster.StartClarion(ctx, lab.ClarionOptions{Race: true, SpeakerArgs: []string{"--drain-time=2s"}}); err != nil {
		return err
	}
	for _, node := range cluster.Nodes() {
		for i := range 2 {
			spec := lab.PodSpec{Name: fmt.Sprintf("web-%s-%d", node, i), Node: node, Labels: map[string]string{"app": "web", "node": node}}
			if _, err := cluster.RunPod(ctx, spec); err != nil {
				return err
			}
		}
	}
	if err := cluster.Apply(ctx, config); err != nil {
		return err
	}
	return lab.Eventually(ctx, settle, func() error {
		for _, r := range cluster.Routers() {
			peers, err := r.BGPPeers(ctx)
			if err != nil {
				return err
			}
			for _, n := range cluster.Nodes() {
				if s := peers[cluster.Host(n).IPv4]; s != "Established" {
					return fmt.Errorf("%s: the session with %s is %q", r.Name, n, s)
				}
			}
		}
		return nil
	})
}

// eventually waits until f returns nil, and fails the test with f's last error when it does not.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	if err := lab.Eventually(t.Context(), settle, f); err != nil {
		t.Fatal(err)
	}
}

// service makes a Service of type LoadBalancer for the web pods, changed by edit, and removes it after the test.
func service(t *testing.T, name string, edit func(*corev1.Service)) *corev1.Service {
	t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, TargetPort: targetPort, Protocol: corev1.ProtocolTCP},
				{Name: "echo", Port: 7, TargetPort: targetPort, Protocol: corev1.ProtocolUDP},
			},
		},
	}
	if edit != nil {
		edit(svc)
	}
	if err := cluster.Client().Create(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(cluster.Client().Delete(context.Background(), svc)); err != nil {
			t.Error(err)
		}
	})
	return svc
}

// routed asks for an address that is announced by BGP.
func routed(svc *corev1.Service) {
	svc.Annotations = map[string]string{v1beta1.AnnotationAddressPool: "routed"}
}

func get(ctx context.Context, obj client.Object) error {
	return cluster.Client().Get(ctx, client.ObjectKeyFromObject(obj), obj)
}

// addresses waits until a Service has n addresses, and returns them.
func addresses(t *testing.T, svc *corev1.Service, n int) []netip.Addr {
	t.Helper()
	var out []netip.Addr
	eventually(t, func() error {
		if err := get(t.Context(), svc); err != nil {
			return err
		}
		out = ingress(svc)
		if len(out) != n {
			return fmt.Errorf("%s has the addresses %v, want %d; conditions: %s", svc.Name, out, n, conditions(svc.Status.Conditions))
		}
		return nil
	})
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

// condition waits until an object has a condition of that status whose reason and message contain the words.
func condition(t *testing.T, obj client.Object, of func() []metav1.Condition, typ string, status metav1.ConditionStatus, words ...string) {
	t.Helper()
	eventually(t, func() error {
		if err := get(t.Context(), obj); err != nil {
			return err
		}
		c := meta.FindStatusCondition(of(), typ)
		if c == nil || c.Status != status {
			return fmt.Errorf("%s: want %s=%s, have%s", obj.GetName(), typ, status, conditions(of()))
		}
		for _, w := range words {
			if !strings.Contains(c.Reason+" "+c.Message, w) {
				return fmt.Errorf("%s: condition %s should say %q, says %s: %s", obj.GetName(), typ, w, c.Reason, c.Message)
			}
		}
		return nil
	})
}

// nodeAddrs are the LAN addresses of nodes, sorted.
func nodeAddrs(v6 bool, nodes ...string) []netip.Addr {
	var out []netip.Addr
	for _, n := range nodes {
		if h := cluster.Host(n); v6 {
			out = append(out, h.IPv6)
		} else {
			out = append(out, h.IPv4)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// nextHops waits until the kernel of every router has exactly these nodes as next hops for a prefix.
func nextHops(t *testing.T, prefix netip.Prefix, nodes ...string) {
	t.Helper()
	want := nodeAddrs(prefix.Addr().Is6(), nodes...)
	eventually(t, func() error {
		for _, r := range cluster.Routers() {
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
func reachable(t *testing.T, from, url string) {
	t.Helper()
	eventually(t, func() error {
		if lost := lab.Lost(cluster.HTTP(t.Context(), from, url, 60)); len(lost) > 0 {
			return fmt.Errorf("%s: %d of 60 requests unanswered; the first: %w", url, len(lost), lost[0].Err)
		}
		return nil
	})
}

// answered fails the test if one of the replies is missing.
func answered(t *testing.T, what string, replies []lab.Reply) {
	t.Helper()
	if lost := lab.Lost(replies); len(lost) > 0 {
		t.Errorf("%s: %d of %d requests got no answer; the first: %v", what, len(lost), len(replies), lost[0].Err)
	}
}
