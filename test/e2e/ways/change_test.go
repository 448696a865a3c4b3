package ways

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

// drain is how long a pod goes on serving when it is told to end: longer than the cluster needs to look elsewhere.
const drain = 3 * time.Second

// While things change no request fails that could have been served.
func testChange(t *testing.T, w *way) {
	t.Run("Scale", testScale(w))
	t.Run("Rollout/Cluster", testRollout(w, corev1.ServiceExternalTrafficPolicyCluster))
	t.Run("Rollout/Local", testRollout(w, corev1.ServiceExternalTrafficPolicyLocal))
	t.Run("Type", testType(w))
	t.Run("Ports", testPorts(w))
	t.Run("PoolRenamed", testPoolRenamed(w))
}

// terminate ends pods at the same time, and waits.
func terminate(t *testing.T, pods ...*lab.Pod) {
	t.Helper()
	errs := make(chan error)
	for _, p := range pods {
		go func() { errs <- p.Terminate(t.Context()) }()
	}
	for range pods {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// 0, 1, 10, 1 and 0 endpoints.
func testScale(w *way) func(*testing.T) {
	return func(t *testing.T) {
		label := map[string]string{"app": "scaled"}
		svc := w.service(t, "scaled", func(svc *corev1.Service) { svc.Spec.Selector = label })
		addrs := w.addresses(t, svc)
		for _, a := range addrs {
			w.NextHops(t, world.Alone(a)) // no endpoint: nothing to announce
		}
		nodes := w.Nodes()
		n := 0
		run := func() *lab.Pod {
			n++
			return w.pod(t, lab.PodSpec{Name: fmt.Sprintf("scaled-%d", n), Node: nodes[n%len(nodes)], Labels: label, Drain: drain})
		}
		first := run()
		for _, a := range addrs {
			w.NextHops(t, world.Alone(a), nodes...)
		}
		w.steady(t, "outside", []string{url(addrs[0]), url(addrs[1])}, func() {
			var more []*lab.Pod
			for range 9 {
				more = append(more, run())
			}
			for _, a := range addrs {
				world.Eventually(t, func() error {
					if got := lab.CountServers(w.HTTP(t.Context(), "outside", url(a), 100)); len(got) != 10 {
						return fmt.Errorf("%s: %d pods answer, want 10: %v", a, len(got), got)
					}
					return nil
				})
			}
			terminate(t, more...)
		})
		terminate(t, first)
		for _, a := range addrs {
			w.NextHops(t, world.Alone(a))
		}
	}
}

// A rolling update: each pod is replaced by one on another node, which becomes ready before the old one is told to end.
func testRollout(w *way, policy corev1.ServiceExternalTrafficPolicy) func(*testing.T) {
	return func(t *testing.T) {
		label := map[string]string{"app": "rolled"}
		nodes := w.Nodes()
		run := func(version, i int) *lab.Pod {
			return w.pod(t, lab.PodSpec{Name: fmt.Sprintf("rolled-%d-%d", version, i), Node: nodes[(i+version)%len(nodes)], Labels: label, Drain: drain, NotReady: true})
		}
		var old []*lab.Pod
		for i := range 2 {
			old = append(old, run(1, i))
			world.Must(t, old[i].SetReady(t.Context(), true))
		}
		svc := w.service(t, "rolled", func(svc *corev1.Service) {
			svc.Spec.Selector, svc.Spec.ExternalTrafficPolicy = label, policy
		})
		addrs := w.addresses(t, svc)
		serving := func(pods ...*lab.Pod) {
			t.Helper()
			on := nodes
			if policy == corev1.ServiceExternalTrafficPolicyLocal {
				on = nil
				for _, p := range pods {
					on = append(on, p.Spec.Node)
				}
				slices.Sort(on)
				on = slices.Compact(on)
			}
			for _, a := range addrs {
				w.NextHops(t, world.Alone(a), on...)
			}
		}
		serving(old...)
		resets := 0
		if policy == corev1.ServiceExternalTrafficPolicyLocal {
			resets = 2 * len(old) * len(w.Routers()) // each pod's coming and going changes the routes of each router
		}
		w.steadyBut(t, "outside", []string{url(addrs[0]), url(addrs[1])}, resets, func() {
			var current []*lab.Pod
			for i := range old {
				next := run(2, i)
				world.Must(t, next.SetReady(t.Context(), true))
				current = append(current, next)
				terminate(t, old[i])
				serving(append(slices.Clone(current), old[i+1:]...)...)
			}
		})
	}
}

// A Service's type changes from LoadBalancer to ClusterIP, to NodePort and back; its ClusterIP answers all the while.
func testType(w *way) func(*testing.T) {
	return func(t *testing.T) {
		svc := w.service(t, "typed", nil)
		first := w.addresses(t, svc)
		inner := clusterIPs(svc)
		w.steady(t, "outside", []string{url(inner[0]), url(inner[1])}, func() {
			gone := func() {
				t.Helper()
				for _, a := range first {
					w.NextHops(t, world.Alone(a))
				}
				world.Eventually(t, func() error {
					if err := w.Get(t.Context(), svc); err != nil {
						return err
					}
					if len(svc.Status.LoadBalancer.Ingress) > 0 || len(svc.Status.Conditions) > 0 {
						return fmt.Errorf("type %s: the status is still %v%s", svc.Spec.Type, svc.Status.LoadBalancer, world.Conditions(svc.Status.Conditions))
					}
					return nil
				})
			}
			w.change(t, svc, func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeClusterIP })
			gone()
			w.change(t, svc, func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeNodePort })
			gone()
			for _, node := range w.Nodes() {
				w.Reachable(t, "outside", "http://"+at(w.Host(node).IPv4, uint16(svc.Spec.Ports[0].NodePort))+"/")
			}
			w.change(t, svc, func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeLoadBalancer })
			for _, a := range w.addresses(t, svc) {
				w.NextHops(t, world.Alone(a), w.Nodes()...)
				w.Reachable(t, "outside", url(a))
			}
		})
	}
}

// Ports are added and removed; the one that stays answers all the while.
func testPorts(w *way) func(*testing.T) {
	return func(t *testing.T) {
		svc := w.service(t, "ported", nil)
		addrs := w.addresses(t, svc)
		w.steady(t, "outside", []string{url(addrs[0]), url(addrs[1])}, func() {
			w.change(t, svc, func(svc *corev1.Service) {
				svc.Spec.Ports[1] = corev1.ServicePort{Name: "alt", Port: 8080, TargetPort: world.TargetPort}
			})
			for _, a := range addrs {
				w.Reachable(t, "outside", "http://"+at(a, 8080)+"/")
			}
			w.change(t, svc, func(svc *corev1.Service) { svc.Spec.Ports[1].Port = 8081 })
			for _, a := range addrs {
				w.Reachable(t, "outside", "http://"+at(a, 8081)+"/")
			}
			w.change(t, svc, func(svc *corev1.Service) { svc.Spec.Ports = svc.Spec.Ports[:1] })
		})
		if got := w.addresses(t, svc); !slices.Equal(got, addrs) {
			t.Errorf("the addresses are %v, were %v", got, addrs)
		}
	}
}

// renamed is a pool that is announced for its label, whatever its name is.
const renamed = `
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: %s, labels: {tier: gold}}
spec: {addresses: [198.19.7.0/28, "2001:db8:f:7::/124"], autoAssign: false%s}
`

// allocated waits until a Service's condition Allocated says the words.
func (w *way) allocated(t *testing.T, svc *corev1.Service, words string) {
	t.Helper()
	world.Eventually(t, func() error {
		if err := w.Get(t.Context(), svc); err != nil {
			return err
		}
		if c := meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAllocated); c == nil || !strings.Contains(c.Message, words) {
			return fmt.Errorf("%s: the condition does not say %q:%s", svc.Name, words, world.Conditions(svc.Status.Conditions))
		}
		return nil
	})
}

// A pool gets another name: what it has is first excluded from it, then a pool of the new name takes it over, and the old
// one can be deleted. Its Services keep their addresses and are served all the while.
func testPoolRenamed(w *way) func(*testing.T) {
	return func(t *testing.T) {
		before, after := fmt.Sprintf(renamed, "gold", ""), fmt.Sprintf(renamed, "golden", "")
		w.apply(t, `
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: gold}
spec: {ipAddressPoolSelectors: [{matchLabels: {tier: gold}}]}
`)
		world.Must(t, w.Apply(t.Context(), before))
		t.Cleanup(func() {
			ctx := context.Background()
			if err := lab.Eventually(ctx, 10*time.Second, func() error { return errors.Join(w.Delete(ctx, before), w.Delete(ctx, after)) }); err != nil {
				t.Error(err)
			}
		})
		svc := w.service(t, "golden", func(svc *corev1.Service) { svc.Annotations[v1beta1.AnnotationAddressPool] = "gold" })
		addrs := w.addresses(t, svc)
		if !netip.MustParsePrefix("198.19.7.0/28").Contains(addrs[0]) {
			t.Fatalf("the Service got %v", addrs)
		}
		w.steady(t, "outside", []string{url(addrs[0]), url(addrs[1])}, func() {
			if err := w.Delete(t.Context(), before); err == nil || !strings.Contains(err.Error(), "onShrink") {
				t.Errorf("a pool in use was deleted: %v", err)
			}
			world.Must(t, w.Apply(t.Context(), fmt.Sprintf(renamed, "gold", `, excludeAddresses: [198.19.7.0/28, "2001:db8:f:7::/124"]`)))
			w.allocated(t, svc, "pool gold excludes it")
			world.Must(t, w.Apply(t.Context(), after))
			w.change(t, svc, func(svc *corev1.Service) { svc.Annotations[v1beta1.AnnotationAddressPool] = "golden" })
			w.allocated(t, svc, "from pool golden")
			world.Eventually(t, func() error { return w.Delete(t.Context(), before) })
			for _, a := range addrs {
				w.NextHops(t, world.Alone(a), w.Nodes()...)
			}
		})
		if got := w.addresses(t, svc); !slices.Equal(got, addrs) {
			t.Errorf("the addresses are %v, were %v", got, addrs)
		}
	}
}
