package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
	"github.com/clarionlb/clarion/internal/announce"
)

// newServices is a reconciler, already loaded, with pools and nothing else.
func newServices(t *testing.T, cached client.Client, live client.Reader, pools ...v1beta1.IPAddressPool) *services {
	s := &services{
		client: cached, live: live, class: allocate.Class{Name: v1beta1.LoadBalancerClass, Default: true}, leads: true, holds: func() bool { return true },
		events: events.NewFakeRecorder(100), log: slog.New(slog.DiscardHandler), changed: func() {}, waits: func() {}, claims: func(_ netip.Addr, ask func([]announce.Claim)) { ask(nil) },
		loaded: true, turns: newTurns(), born: map[key]time.Time{}, told: map[key]types.UID{}, memory: newMemory(),
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]()),
	}
	var err error
	if s.counters, err = newCounters(prometheus.NewRegistry()); err != nil {
		t.Fatal(err)
	}
	s.table.SetPools(allocate.Pools(pools), time.Now())
	for _, p := range pools { // as if others had addresses of it
		s.poolCounts[p.Name] = &count{some: true}
	}
	return s
}

func newPool(name string, spec v1beta1.IPAddressPoolSpec) v1beta1.IPAddressPool {
	return v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
}

// TestNewNamespace: a Service that is known before its namespace is gets no address of a pool for others.
func TestNewNamespace(t *testing.T) {
	svc := newService("web")
	svc.Spec.ClusterIPs = []string{"10.96.0.7"}
	cached := fake.NewClientBuilder().WithStatusSubresource(svc).WithObjects(svc).Build()
	live := fake.NewClientBuilder().Build()
	s := newServices(t, cached, live, newPool("a-public", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"198.51.100.0/24"}}),
		newPool("tenants", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.0/24"}, ServiceAllocation: &v1beta1.ServiceAllocation{
			Priority: 1, NamespaceSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"tenant": "yes"}}}}}))
	req := reconcile.Request{NamespacedName: client.ObjectKeyFromObject(svc)}

	if _, err := s.Reconcile(t.Context(), req); !apierrors.IsNotFound(err) {
		t.Errorf("without its namespace: error %v, want that there is none", err)
	}
	if res, known := s.table.Result(req.NamespacedName); known {
		t.Errorf("without its namespace it was given %v", res.Addresses())
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", Labels: map[string]string{"tenant": "yes"}}}
	if err := live.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reconcile(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if err := cached.Get(t.Context(), req.NamespacedName, svc); err != nil || len(allocate.Ingress(svc)) != 1 || allocate.Ingress(svc)[0].String() != "203.0.113.0" {
		t.Errorf("with its namespace it has %v, %v; want 203.0.113.0", allocate.Ingress(svc), err)
	}
}

// TestTypeChangedAway: a Service that is no LoadBalancer any more keeps its address until its status does not say so.
func TestTypeChangedAway(t *testing.T) {
	svc := newService("web")
	svc.Spec.ClusterIPs = []string{"10.96.0.7"}
	var fails error
	c := fake.NewClientBuilder().WithStatusSubresource(svc).
		WithObjects(svc, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}).
		WithInterceptorFuncs(interceptor.Funcs{SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			if fails != nil {
				return fails
			}
			return c.SubResource(sub).Patch(ctx, o, p, opts...)
		}}).Build()
	s := newServices(t, c, c, newPool("lan", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.0/24"}}))
	req := reconcile.Request{NamespacedName: client.ObjectKeyFromObject(svc)}
	step := func() (again bool) {
		t.Helper()
		res, err := s.Reconcile(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Get(t.Context(), req.NamespacedName, svc); err != nil {
			t.Fatal(err)
		}
		return res.RequeueAfter > 0
	}
	if again := step(); again || !allocate.Managed(svc) || len(allocate.Ingress(svc)) != 1 {
		t.Fatalf("status is %+v", svc.Status)
	}
	svc.Spec.Type = corev1.ServiceTypeClusterIP
	if err := c.Update(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	fails = errors.New("no")
	if again := step(); !again {
		t.Error("a write that failed is not tried again")
	}
	if _, known := s.table.Result(req.NamespacedName); !known {
		t.Error("its address is free though its status names it")
	}
	fails = nil
	if again := step(); again || len(svc.Status.Conditions) > 0 || len(allocate.Ingress(svc)) > 0 {
		t.Errorf("status is %+v", svc.Status)
	}
	step() // the cache says so now
	if _, known := s.table.Result(req.NamespacedName); known {
		t.Error("its address is not free")
	}
}

// TestTellClass: the user of a Service that nobody serves is told once: soon when it has no class or
// one that only Clarion could have, when the controller of its class has had minutes, and not any more when it is old.
func TestTellClass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			name  string
			class *string
			wait  time.Duration
		}{
			{"plain", nil, 5 * time.Minute},
			{"mistyped", new("clarionlb.io/clarino"), 5 * time.Second},
			{"classy", new("example.com/lb"), 5 * time.Minute},
		} {
			c := fake.NewClientBuilder().Build()
			s := newServices(t, c, c)
			s.class.Default = false
			defer s.queue.ShutDown()
			told := func() string {
				select {
				case e := <-s.events.(*events.FakeRecorder).Events:
					return e
				default:
					return ""
				}
			}
			svc := newService(tt.name)
			svc.UID, svc.CreationTimestamp, svc.Spec.LoadBalancerClass = types.UID(tt.name), metav1.Now(), tt.class
			if wait := s.tellClass(svc); wait != tt.wait {
				t.Errorf("%s: waits %s, want %s", tt.name, wait, tt.wait)
			}
			time.Sleep(tt.wait - time.Second)
			if wait, e := s.tellClass(svc), told(); wait != time.Second || e != "" {
				t.Errorf("%s: early: waits %s, says %q", tt.name, wait, e)
			}
			time.Sleep(time.Second)
			if wait, e := s.tellClass(svc), told(); wait != 0 || !strings.Contains(e, "OtherClass") {
				t.Errorf("%s: waits %s, says %q", tt.name, wait, e)
			}
			if wait, e := s.tellClass(svc), told(); wait != 0 || e != "" {
				t.Errorf("%s: again: waits %s, says %q", tt.name, wait, e)
			}
			time.Sleep(time.Hour)
			s.told = map[key]types.UID{} // as after a restart
			if wait, e := s.tellClass(svc), told(); wait != 0 || e != "" {
				t.Errorf("%s: old: waits %s, says %q", tt.name, wait, e)
			}
		}
	})
}

// TestSeenForgets: a standby remembers nothing of Services that waited and are gone.
func TestSeenForgets(t *testing.T) {
	c := fake.NewClientBuilder().Build()
	s := newServices(t, c, c)
	defer s.queue.ShutDown()
	s.leads = false
	for range 3 {
		svc := newService("web")
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.seen(svc)
		if len(s.born) != 1 {
			t.Fatalf("waiting: %v", s.born)
		}
		if !s.unseen(svc) || len(s.born) > 0 {
			t.Errorf("still waiting: %v", s.born)
		}
	}
}

// BenchmarkGone is the deletion of all of so many Services that were announced, one by one.
func BenchmarkGone(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				s := &services{memory: newMemory()}
				var names []key
				for i := range n {
					names = append(names, key{Name: fmt.Sprint(i)})
					s.isAnnounced(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), names[i])
				}
				for _, k := range names {
					s.forget(k)
				}
				if len(s.announced)+len(s.announces) > 0 {
					b.Fatalf("%d addresses are not forgotten", len(s.announced))
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/Service")
		})
	}
}
