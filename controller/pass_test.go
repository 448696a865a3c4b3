package main

import (
	"context"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
)

// TestRecreated: the status of a pool is written over that of one of the same name that was made since.
func TestRecreated(t *testing.T) {
	lan := newPool("lan", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"198.51.100.0/24"}})
	lan.UID, lan.Generation = "old", 7
	lan.Status.Conditions = []metav1.Condition{{Type: v1beta1.ConditionReady, Status: "True", Reason: "Ready", ObservedGeneration: 7}}
	first := true
	c := fake.NewClientBuilder().WithScheme(schemeOf(t)).WithStatusSubresource(&lan).WithObjects(&lan, defaultNamespace()).
		WithIndex(&corev1.Service{}, "spec.type", func(o client.Object) []string { return []string{string(o.(*corev1.Service).Spec.Type)} }).
		WithInterceptorFuncs(interceptor.Funcs{SubResourcePatch: func(ctx context.Context, cl client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			if first {
				first = false
				_ = cl.Delete(ctx, &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "lan"}})
				n := newPool("lan", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.0/28"}})
				n.UID, n.Generation = "new", 1
				_ = cl.Create(ctx, &n)
			}
			return cl.SubResource(sub).Patch(ctx, o, p, opts...)
		}}).Build()
	s := newServices(t, c, c)
	defer s.queue.ShutDown()
	ps := newPools(s, c)
	s.loaded = false
	if _, err := ps.Reconcile(t.Context(), allPools); err != nil {
		t.Error(err)
	}
	var got v1beta1.IPAddressPool
	_ = c.Get(t.Context(), client.ObjectKey{Name: "lan"}, &got)
	if got.UID == "new" && got.Status.AvailableIPv4 > 0 {
		t.Errorf("pool %s of generation %d has a status of another: %d available, observed generation %d", got.UID, got.Generation, got.Status.AvailableIPv4, got.Status.Conditions[0].ObservedGeneration)
	}
}

// TestLoadDrops: another controller's Service gets an address while load reads: it is given to one of ours.
func TestLoadDrops(t *testing.T) {
	web := webService("web", "")
	metal := webService("metal", "")
	metal.Spec.LoadBalancerClass = new("metallb")
	lan := newPool("lan", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"198.51.100.0/24"}})
	lan.Status.AssignedIPv4 = 1
	var s *services
	lists := 0
	c := fake.NewClientBuilder().WithScheme(schemeOf(t)).WithStatusSubresource(web, &lan).WithObjects(web, metal, &lan, defaultNamespace()).
		WithIndex(&corev1.Service{}, "spec.type", func(o client.Object) []string { return []string{string(o.(*corev1.Service).Spec.Type)} }).
		WithInterceptorFuncs(interceptor.Funcs{List: func(ctx context.Context, cl client.WithWatch, l client.ObjectList, o ...client.ListOption) error {
			err := cl.List(ctx, l, o...)
			if _, is := l.(*corev1.ServiceList); is {
				if lists++; lists == 1 { // the page is read; now the other controller writes, and the watch says so
					m := &corev1.Service{}
					_ = cl.Get(ctx, client.ObjectKeyFromObject(metal), m)
					m.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.0"}}
					if err := cl.Status().Update(ctx, m); err != nil {
						t.Error(err)
					}
					s.seen(m)
				}
			}
			return err
		}}).Build()
	s = newServices(t, c, c)
	defer s.queue.ShutDown()
	newPools(s, c)
	s.loaded = false
	got := look(t, s, c, client.ObjectKeyFromObject(web))
	if a := allocate.Ingress(got); len(a) == 1 && a[0] == netip.MustParseAddr("198.51.100.0") {
		t.Errorf("given %v, which another controller's Service had before it was decided: %s", a, allocatedSays(got))
	}
}
