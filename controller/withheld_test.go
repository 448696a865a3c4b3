package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
)

func defaultNamespace() *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
}

func look(t *testing.T, s *services, c client.Client, k key) *corev1.Service {
	t.Helper()
	if _, err := s.Reconcile(t.Context(), reconcile.Request{NamespacedName: k}); err != nil {
		t.Fatal(err)
	}
	svc := &corev1.Service{}
	if err := c.Get(t.Context(), k, svc); err != nil {
		t.Fatal(err)
	}
	return svc
}

func stuckPools(t *testing.T, c client.Client, more ...v1beta1.IPAddressPool) *services {
	s := newServices(t, c, c, append([]v1beta1.IPAddressPool{newPool("lan", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"198.51.100.0/29", "2001:db8:1::/120"}}),
		newPool("stuck", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.1/32", "2001:db8:2::/120"}})}, more...)...)
	s.poolCounts["stuck"] = &count{err: errors.New("the disk is full")}
	return s
}

// TestMovedFromQuarantined: what a Service moves away from is quarantined while it waits for the next.
func TestMovedFromQuarantined(t *testing.T) {
	for _, how := range []string{"quarantine", "shrink"} {
		svc := webService("web", "")
		c := fake.NewClientBuilder().WithStatusSubresource(svc).WithObjects(svc, defaultNamespace()).Build()
		s := stuckPools(t, c)
		defer s.queue.ShutDown()
		k := client.ObjectKeyFromObject(svc)
		svc = look(t, s, c, k)
		old := allocate.Ingress(svc)[0]
		svc.Annotations = map[string]string{v1beta1.AnnotationAddressPool: "stuck"}
		if err := c.Update(t.Context(), svc); err != nil {
			t.Fatal(err)
		}
		look(t, s, c, k)
		switch how {
		case "quarantine":
			s.table.Quarantine(map[netip.Addr]bool{old: true}, time.Now())
		case "shrink":
			s.table.SetPools(allocate.Pools([]v1beta1.IPAddressPool{newPool("lan", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"198.51.100.7/32"}, OnShrink: v1beta1.ShrinkReallocate}),
				newPool("stuck", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.1/32"}})}), time.Now())
		}
		if d := s.table.Dirty(); len(d) == 0 {
			t.Errorf("%s: the Service is not even looked at", how)
		}
		svc = look(t, s, c, k)
		if got := allocate.Ingress(svc); len(got) > 0 {
			u := s.table.Usage()["lan"]
			t.Errorf("%s: the status still names %v: %s; pool lan counts %v kept %v", how, got, allocatedSays(svc), u.Assigned, u.Kept)
		}
	}
}

func allocatedSays(svc *corev1.Service) string {
	for _, c := range svc.Status.Conditions {
		if c.Type == v1beta1.ConditionAllocated {
			return c.Reason + ": " + c.Message
		}
	}
	return ""
}

// TestEndorsed: somebody writes an address that is not the Service's into its status while it waits.
func TestEndorsed(t *testing.T) {
	for what, x := range map[string]string{"in no pool": "8.8.8.8", "another class's": "198.51.100.3", "in quarantine": "198.51.100.4"} {
		svc := webService("web", "")
		svc.Annotations = map[string]string{v1beta1.AnnotationAddressPool: "stuck"}
		other := webService("metal", "")
		other.Spec.LoadBalancerClass = new("metallb")
		other.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.3"}}
		c := fake.NewClientBuilder().WithStatusSubresource(svc).WithObjects(svc, other, defaultNamespace()).Build()
		s := stuckPools(t, c)
		defer s.queue.ShutDown()
		s.table.Quarantine(map[netip.Addr]bool{netip.MustParseAddr("198.51.100.4"): true}, time.Now())
		k := client.ObjectKeyFromObject(svc)
		look(t, s, c, client.ObjectKeyFromObject(other))
		svc = look(t, s, c, k)
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: x}}
		if err := c.Status().Update(t.Context(), svc); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			svc = look(t, s, c, k)
		}
		if got := allocate.Ingress(svc); len(got) > 0 {
			t.Errorf("%s: the status keeps %v: %s", what, got, allocatedSays(svc))
		}
	}
}

// TestOtherFamily: the loss of one family's address withdraws the other's, which only moves.
func TestOtherFamily(t *testing.T) {
	svc := webService("web", "")
	svc.Spec.ClusterIPs = []string{"10.96.0.7", "fd00::7"}
	c := fake.NewClientBuilder().WithStatusSubresource(svc).WithObjects(svc, defaultNamespace()).Build()
	s := stuckPools(t, c)
	defer s.queue.ShutDown()
	k := client.ObjectKeyFromObject(svc)
	svc = look(t, s, c, k)
	had := allocate.Ingress(svc)
	svc.Annotations = map[string]string{v1beta1.AnnotationAddresses: "2001:db8:2::9"} // moves to stuck
	if err := c.Update(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	svc = look(t, s, c, k)
	t.Logf("had %v, then %v: %s", had, allocate.Ingress(svc), allocatedSays(svc))
	s.table.Quarantine(map[netip.Addr]bool{had[0]: true}, time.Now())
	svc = look(t, s, c, k)
	if got := allocate.Ingress(svc); len(got) != 2 || got[1] != had[1] {
		t.Errorf("IPv4 lost: the status names %v, want %v beside it: %s", got, had[1], allocatedSays(svc))
	}
}

// TestWaitsGrow: Services that come and go while a pool cannot be written.
func TestWaitsGrow(t *testing.T) {
	c := fake.NewClientBuilder().WithStatusSubresource(&corev1.Service{}).WithObjects(defaultNamespace()).Build()
	s := stuckPools(t, c, newPool("big", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.114.0/24"}}))
	s.poolCounts["big"] = &count{err: errors.New("the disk is full")}
	defer s.queue.ShutDown()
	for n := range 40 {
		svc := webService(fmt.Sprint("web-", n), "")
		svc.Annotations = map[string]string{v1beta1.AnnotationAddressPool: "big"}
		if err := c.Create(t.Context(), svc); err != nil {
			t.Fatal(err)
		}
		k := client.ObjectKeyFromObject(svc)
		look(t, s, c, k)
		if err := c.Delete(t.Context(), svc); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Reconcile(t.Context(), reconcile.Request{NamespacedName: k}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.poolCounts["big"].waits); n > 0 {
		t.Errorf("%d Services wait that are deleted", n)
	}
}

// TestSeenLate: an event from before a decision comes while its write is under way: the address is given twice.
func TestSeenLate(t *testing.T) {
	web, next := webService("web", ""), webService("next", "")
	next.CreationTimestamp = metav1.Now()
	before := webService("web", "") // as it was made: a ClusterIP Service with an external IP
	before.Spec.Type, before.Spec.ExternalIPs = corev1.ServiceTypeClusterIP, []string{"192.0.2.77"}
	before.ResourceVersion = "1"
	var s *services
	var c client.WithWatch
	first := true
	c = fake.NewClientBuilder().WithStatusSubresource(web).WithObjects(web, next, defaultNamespace()).
		WithInterceptorFuncs(interceptor.Funcs{SubResourcePatch: func(ctx context.Context, cl client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			if first {
				first = false
				s.seen(before)
				if _, err := s.Reconcile(ctx, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(next)}); err != nil {
					t.Error(err)
				}
			}
			return cl.SubResource(sub).Patch(ctx, o, p, opts...)
		}}).Build()
	s = newServices(t, c, c, newPool("lan", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"198.51.100.0/32"}}))
	defer s.queue.ShutDown()
	got := look(t, s, c, client.ObjectKeyFromObject(web))
	svc := &corev1.Service{}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(next), svc); err != nil {
		t.Fatal(err)
	}
	t.Log(allocate.Ingress(got), allocatedSays(got), allocate.Ingress(svc), allocatedSays(svc))
	if len(allocate.Ingress(got))*len(allocate.Ingress(svc)) > 0 && allocate.Ingress(got)[0] == allocate.Ingress(svc)[0] {
		t.Errorf("the status of both names %v", allocate.Ingress(svc))
	}
}
