// Package world is what the end-to-end tests have in common: a lab with Clarion in it, Services that live as long as their
// test, and what is expected of them from outside.
package world

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/lab"
)

// Settle is how long the cluster may take to do what it is told: a bound for failing tests, not a measurement.
const Settle = 20 * time.Second

// TargetPort is the one that web pods listen on.
var TargetPort = intstr.FromInt32(8080)

// World is a lab with Clarion in it.
type World struct {
	*lab.Lab
	Clarion *lab.Clarion
}

// New is a lab that is not up yet, with Clarion's types.
func New(o lab.Options) *World {
	log.SetLogger(logr.Discard()) // that of the API client, which has nothing to say
	o.Scheme = runtime.NewScheme()
	_ = clientgoscheme.AddToScheme(o.Scheme)
	_ = v1beta1.AddToScheme(o.Scheme)
	o.Progress = os.Stderr
	return &World{Lab: lab.New(o)}
}

// NeedRoot ends the process of a test that is not root.
func NeedRoot() {
	if os.Geteuid() != 0 {
		fmt.Println("the end-to-end tests need root: they make network namespaces")
		os.Exit(1)
	}
}

// KeepLogs saves what all programs have printed from the lab's end, and says where.
func (w *World) KeepLogs() string {
	dir, err := os.MkdirTemp("", "clarion-logs-")
	if err == nil {
		err = os.CopyFS(dir, os.DirFS(filepath.Join(w.Dir(), "log")))
	}
	return fmt.Sprintf("the logs of all programs: %s (error: %v)", dir, err)
}

// Must fails the test if there is an error.
func Must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Eventually waits until f returns nil, and fails the test with f's last error when it does not.
func Eventually(t *testing.T, f func() error) {
	t.Helper()
	Must(t, lab.Eventually(t.Context(), Settle, f))
}

// WebPods runs two pods with the label app=web on every node.
func (w *World) WebPods(ctx context.Context) error {
	for _, node := range w.Nodes() {
		for i := range 2 {
			spec := lab.PodSpec{Name: fmt.Sprintf("web-%s-%d", node, i), Node: node, Labels: map[string]string{"app": "web", "node": node}}
			if _, err := w.RunPod(ctx, spec); err != nil {
				return err
			}
		}
	}
	return nil
}

// Service makes a Service of type LoadBalancer for the web pods, TCP port 80 and UDP port 7, changed by edit, until the
// test ends.
func (w *World) Service(t *testing.T, name string, edit func(*corev1.Service)) *corev1.Service {
	t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{}, Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, TargetPort: TargetPort, Protocol: corev1.ProtocolTCP},
				{Name: "echo", Port: 7, TargetPort: TargetPort, Protocol: corev1.ProtocolUDP},
			},
		},
	}
	if edit != nil {
		edit(svc)
	}
	Must(t, w.Client().Create(t.Context(), svc))
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(w.Client().Delete(context.Background(), svc)); err != nil {
			t.Error(err)
		}
	})
	return svc
}

// Get reads an object anew.
func (w *World) Get(ctx context.Context, obj client.Object) error {
	return w.Client().Get(ctx, client.ObjectKeyFromObject(obj), obj)
}

// Addresses waits until a Service has n addresses, and returns them.
func (w *World) Addresses(t *testing.T, svc *corev1.Service, n int) []netip.Addr {
	t.Helper()
	var out []netip.Addr
	Eventually(t, func() error {
		if err := w.Get(t.Context(), svc); err != nil {
			return err
		}
		if out = Ingress(svc); len(out) != n {
			return fmt.Errorf("%s has the addresses %v, want %d; conditions: %s", svc.Name, out, n, Conditions(svc.Status.Conditions))
		}
		return nil
	})
	return out
}

// Ingress are the addresses in a Service's status.
func Ingress(svc *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, i := range svc.Status.LoadBalancer.Ingress {
		out = append(out, netip.MustParseAddr(i.IP))
	}
	return out
}

// Conditions are conditions as text.
func Conditions(cs []metav1.Condition) string {
	var b strings.Builder
	for _, c := range cs {
		fmt.Fprintf(&b, "\n  %s=%s %s: %s", c.Type, c.Status, c.Reason, c.Message)
	}
	return b.String()
}

// Condition waits until an object has a condition of that status whose reason and message contain the words.
func (w *World) Condition(t *testing.T, obj client.Object, of func() []metav1.Condition, typ string, status metav1.ConditionStatus, words ...string) {
	t.Helper()
	Eventually(t, func() error {
		if err := w.Get(t.Context(), obj); err != nil {
			return err
		}
		c := meta.FindStatusCondition(of(), typ)
		if c == nil || c.Status != status {
			return fmt.Errorf("%s: want %s=%s, have%s", obj.GetName(), typ, status, Conditions(of()))
		}
		for _, word := range words {
			if !strings.Contains(c.Reason+" "+c.Message, word) {
				return fmt.Errorf("%s: condition %s should say %q, says %s: %s", obj.GetName(), typ, word, c.Reason, c.Message)
			}
		}
		return nil
	})
}

// Alone is the prefix of one address.
func Alone(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// AddrOf is a host's address of the same family as another.
func AddrOf(h lab.Host, like netip.Addr) netip.Addr {
	if like.Is4() {
		return h.IPv4
	}
	return h.IPv6
}

// NextHops waits until the kernel of every router has exactly these nodes as next hops for a prefix.
func (w *World) NextHops(t *testing.T, prefix netip.Prefix, nodes ...string) {
	t.Helper()
	var want []netip.Addr
	for _, n := range nodes {
		want = append(want, AddrOf(w.Host(n), prefix.Addr()))
	}
	slices.SortFunc(want, netip.Addr.Compare)
	Eventually(t, func() error {
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

// Reachable waits until a number of requests in a row to a URL, more than there are ways through the cluster, are all answered:
// kube-proxies follow the API each in its own time, some a moment after the routers.
func (w *World) Reachable(t *testing.T, from, address string) {
	t.Helper()
	u, err := url.Parse(address)
	Must(t, err)
	to := net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80"))
	Eventually(t, func() error {
		// A whole request would wait longer than the cluster needs to become ready.
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		c, err := w.Dial(ctx, from, "tcp", to)
		if err != nil {
			return err
		}
		c.Close()
		return w.AllAnswer(t.Context(), from, address, 60)
	})
}

// AllAnswer says which of a number of requests got no answer.
func (w *World) AllAnswer(ctx context.Context, from, url string, n int) error {
	if lost := lab.Lost(w.HTTP(ctx, from, url, n)); len(lost) > 0 {
		return fmt.Errorf("%s to %s: %d of %d requests unanswered; the first: %w", from, url, len(lost), n, lost[0].Err)
	}
	return nil
}

// AnsweredBut is Answered but for so many connections that may be reset when routes change: a router that spreads flows by
// their hash sends some of those under way to another node, which does not know them.
func AnsweredBut(t *testing.T, what string, resets int, replies []lab.Reply) {
	t.Helper()
	left := resets
	replies = slices.DeleteFunc(replies, func(r lab.Reply) bool {
		reset := errors.Is(r.Err, syscall.ECONNRESET)
		if reset {
			left--
		}
		return reset && left >= 0
	})
	if left < resets {
		t.Logf("%s: %d connections under way were reset", what, resets-left)
	}
	Answered(t, what, replies)
}

// Answered fails the test if one of the replies is missing.
func Answered(t *testing.T, what string, replies []lab.Reply) {
	t.Helper()
	if lost := lab.Lost(replies); len(lost) > 0 {
		t.Errorf("%s: %d of %d requests got no answer, over %v; the first: %v", what, len(lost), len(replies), lab.Outage(replies), lost[0].Err)
	}
}
