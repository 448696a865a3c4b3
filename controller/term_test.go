package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
)

func schemeOf(t *testing.T) *runtime.Scheme {
	s := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(s), v1beta1.AddToScheme(s)); err != nil {
		t.Fatal(err)
	}
	return s
}

func newPools(s *services, c client.Client) *pools {
	p := &pools{client: c, services: s, log: slog.New(slog.DiscardHandler), queued: make(chan struct{}), written: map[string]*written{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())}
	s.changed, s.waits, s.pools = p.later, p.soon, p.read
	return p
}

func webService(name, addr string) *corev1.Service {
	svc := newService(name)
	svc.Spec.ClusterIPs = []string{"10.96.0.7"}
	if addr != "" {
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: addr}}
		svc.Status.Conditions = []metav1.Condition{{Type: v1beta1.ConditionAllocated, Status: metav1.ConditionTrue, Reason: v1beta1.ReasonAllocated, Message: addr + " from pool lan", LastTransitionTime: metav1.Now()}}
	}
	return svc
}

// TestTermEndsInPoolPass: a term ends (and another begins) while pools.Reconcile is between load and usageOn.
func TestTermEndsInPoolPass(t *testing.T) {
	for _, again := range []bool{false, true} {
		svc := webService("web", "198.51.100.1")
		lan := newPool("lan", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"198.51.100.0/24"}})
		lan.Status = v1beta1.IPAddressPoolStatus{AssignedIPv4: 1, Quarantined: []string{"198.51.100.9"},
			Resting: []v1beta1.RestingAddress{{Address: "198.51.100.8", Service: "default/old", Until: metav1.NewTime(time.Now().Add(time.Hour))}}}
		lan.Spec.ReuseDelay = &metav1.Duration{Duration: time.Hour}
		var s *services
		ended := false
		c := fake.NewClientBuilder().WithScheme(schemeOf(t)).WithStatusSubresource(svc, &lan).
			WithObjects(svc, &lan, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}).
			WithIndex(&corev1.Service{}, "spec.type", func(o client.Object) []string { return []string{string(o.(*corev1.Service).Spec.Type)} }).
			WithInterceptorFuncs(interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, o ...client.ListOption) error {
				if _, is := l.(*v1beta1.SpeakerList); is && !ended && s.loaded {
					ended = true
					_ = s.lead(ctx, false)
					if again {
						_ = s.lead(ctx, true)
					}
				}
				return c.List(ctx, l, o...)
			}}).Build()
		s = newServices(t, c, c)
		defer s.queue.ShutDown()
		p := newPools(s, c)
		s.loaded = false
		if _, err := p.Reconcile(t.Context(), allPools); err != nil {
			t.Log(err)
		}
		got := &v1beta1.IPAddressPool{}
		if err := c.Get(t.Context(), client.ObjectKey{Name: "lan"}, got); err != nil {
			t.Fatal(err)
		}
		if got.Status.AssignedIPv4 != 1 || len(got.Status.Quarantined) != 1 || len(got.Status.Resting) != 1 {
			t.Errorf("again=%t: status written after the term: %+v", again, got.Status)
		}
	}
}

// TestTermEndsInServicePass: the same between load and Assign in services.Reconcile.
func TestTermEndsInServicePass(t *testing.T) {
	svc := webService("web", "198.51.100.1")
	lan := newPool("lan", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"198.51.100.0/24"}})
	var s *services
	ended := false
	c := fake.NewClientBuilder().WithScheme(schemeOf(t)).WithStatusSubresource(svc, &lan).
		WithObjects(svc, &lan, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}).
		WithInterceptorFuncs(interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, k client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if _, is := o.(*corev1.Service); is && !ended && s.loaded {
				ended = true
				_ = s.lead(ctx, false)
			}
			return c.Get(ctx, k, o, opts...)
		}}).Build()
	s = newServices(t, c, c, lan)
	defer s.queue.ShutDown()
	if _, err := s.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(svc)}); err != nil {
		t.Log(err)
	}
	got := &corev1.Service{}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(svc), got); err != nil {
		t.Fatal(err)
	}
	cond := meta.FindStatusCondition(got.Status.Conditions, v1beta1.ConditionAllocated)
	if a := allocate.Ingress(got); len(a) != 1 || a[0] != netip.MustParseAddr("198.51.100.1") || cond.Reason != v1beta1.ReasonAllocated || cond.Message != "198.51.100.1 from pool lan" {
		t.Errorf("decided without pools: %v, %s: %s", a, cond.Reason, cond.Message)
	}
}
