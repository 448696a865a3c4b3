package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
)

// TestPoolOfFirstAddress: a pool cannot be deleted from the moment on when the first address of it is in a Service's status,
// until it is in none; and again after that.
func TestPoolOfFirstAddress(t *testing.T) {
	a := newAPI(t)
	a.run("controller")
	watching, err := client.NewWithWatch(cluster.Config(), client.Options{Scheme: cluster.Client().Scheme()})
	a.ok(err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a watch that ends fails the test
	defer cancel()
	w, err := watching.Watch(ctx, &corev1.ServiceList{}, client.InNamespace("default"))
	a.ok(err)
	defer w.Stop()
	// until waits until the Service is deleted, or has an address.
	until := func(name string, typ watch.EventType) {
		t.Helper()
		for e := range w.ResultChan() {
			if svc, ok := e.Object.(*corev1.Service); ok && svc.Name == name && (e.Type == watch.Deleted) == (typ == watch.Deleted) && (typ == watch.Deleted || len(svc.Status.LoadBalancer.Ingress) > 0) {
				return
			}
		}
		t.Fatalf("%s: no event %s", name, typ)
	}
	refused := func(name string) {
		t.Helper()
		if err := a.Delete(t.Context(), &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: name}}); !apierrors.IsForbidden(err) {
			t.Fatalf("deletion of pool %s, whose address a Service has had for no time: %v", name, err)
		}
	}
	for n := range 5 {
		name := fmt.Sprintf("pool-%d", n)
		a.pool(name, func(s *v1beta1.IPAddressPoolSpec) { s.AutoAssign = new(false) }, v1beta1.AddressRange(fmt.Sprintf("203.0.113.%d/32", 10+n)), v1beta1.AddressRange(fmt.Sprintf("2001:db8::%d/128", n)))
		a.condition(name, v1beta1.ConditionReady, metav1.ConditionTrue)
		for _, families := range [][]corev1.IPFamily{{corev1.IPv4Protocol}, {corev1.IPv6Protocol}, {corev1.IPv4Protocol}} {
			svc := a.service("web", func(s *corev1.Service) {
				s.Annotations[v1beta1.AnnotationAddressPool] = name
				s.Spec.IPFamilies = families
			})
			until("web", watch.Modified)
			refused(name)
			a.ok(a.Delete(t.Context(), svc))
			until("web", watch.Deleted)
		}
		a.eventually(func() error {
			return a.Delete(t.Context(), &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: name}})
		})
	}
}

// TestPoolNotWritable: while the status of a pool cannot be written, no first address of it is published, and its Services
// are told why; Services of other pools get theirs.
func TestPoolNotWritable(t *testing.T) {
	a := newAPI(t)
	ctx := context.Background()
	named := metav1.ObjectMeta{Name: "test-no-status"}
	policy := &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: named, Spec: admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
			Operations: []admissionv1.OperationType{admissionv1.Update},
			Rule:       admissionv1.Rule{APIGroups: []string{v1beta1.GroupVersion.Group}, APIVersions: []string{"*"}, Resources: []string{"ipaddresspools/status"}},
		}}}},
		Validations: []admissionv1.Validation{{Expression: "object.metadata.name != 'stuck'", Message: "the disk is full"}},
	}}
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: named, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: named.Name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
	}}
	remove := func() {
		a.ok(client.IgnoreNotFound(a.Delete(ctx, binding)))
		a.ok(client.IgnoreNotFound(a.Delete(ctx, policy)))
	}
	t.Cleanup(remove)
	a.ok(a.Create(ctx, policy))
	a.ok(a.Create(ctx, binding))
	a.pool("stuck", func(s *v1beta1.IPAddressPoolSpec) { s.AutoAssign = new(false) }, "203.0.113.0/29")
	a.pool("free", nil, "198.51.100.0/29")
	n := int64(0)
	a.eventually(func() error { // the policy takes its time
		p := &v1beta1.IPAddressPool{}
		a.ok(a.Get(ctx, client.ObjectKey{Name: "stuck"}, p))
		n++
		p.Status.AvailableIPv4 = n
		if err := a.Status().Update(ctx, p); !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) {
			return fmt.Errorf("the status can still be written: %v", err)
		}
		return nil
	})
	a.run("controller")
	stuck := a.service("stuck", func(s *corev1.Service) { s.Annotations[v1beta1.AnnotationAddressPool] = "stuck" })
	a.service("other", nil)
	a.wants("other", "Allocated", []string{"198.51.100.0"})
	a.eventually(func() error {
		var events eventsv1.EventList
		a.ok(a.List(ctx, &events, client.InNamespace("default")))
		if !slices.ContainsFunc(events.Items, func(e eventsv1.Event) bool {
			return e.Regarding.UID == stuck.UID && e.Reason == v1beta1.ReasonPoolStatusNotWritten && strings.Contains(e.Note, "pool stuck")
		}) {
			return fmt.Errorf("the users of the Service are not told why they wait")
		}
		return nil
	})
	a.eventually(func() error {
		var events eventsv1.EventList
		a.ok(a.List(ctx, &events))
		if !slices.ContainsFunc(events.Items, func(e eventsv1.Event) bool {
			return e.Regarding.Kind == "IPAddressPool" && e.Regarding.Name == "stuck" && strings.Contains(e.Note, "the disk is full")
		}) {
			return fmt.Errorf("administrators are not told why the pool's status cannot be written")
		}
		return nil
	})
	if svc := a.get("stuck"); len(svc.Status.LoadBalancer.Ingress) > 0 {
		t.Errorf("an address is published that its pool does not count: %+v", svc.Status)
	}
	remove()
	a.wants("stuck", "Allocated", []string{"203.0.113.0"})
}

// TestPoolNotCounted: what a Service lost is taken out of its status though the address in its place cannot be published,
// what it moves away from is not; the Service is told why once, and gets the address when the pool's status can be written.
func TestPoolNotCounted(t *testing.T) {
	for _, lost := range []bool{true, false} {
		t.Run(fmt.Sprintf("lost=%t", lost), func(t *testing.T) {
			svc := newService("web")
			svc.Spec.ClusterIPs = []string{"10.96.0.7"}
			c := fake.NewClientBuilder().WithStatusSubresource(svc).WithObjects(svc, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}).Build()
			s := newServices(t, c, c, newPool("lan", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"198.51.100.1/32"}}),
				newPool("stuck", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.1/32"}}))
			defer s.queue.ShutDown()
			delete(s.poolCounts, "stuck")
			k := client.ObjectKeyFromObject(svc)
			step := func(address, reason, message string) {
				t.Helper()
				if _, err := s.Reconcile(t.Context(), reconcile.Request{NamespacedName: k}); err != nil {
					t.Fatal(err)
				}
				if err := c.Get(t.Context(), k, svc); err != nil {
					t.Fatal(err)
				}
				if got := allocate.Ingress(svc); len(got) != min(1, len(address)) || len(got) == 1 && got[0].String() != address {
					t.Errorf("the status names %v, want %q", got, address)
				}
				if c := meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAllocated); c == nil || c.Reason != reason || !strings.Contains(c.Message, message) {
					t.Errorf("the condition is %+v, want reason %s with %q", c, reason, message)
				}
			}
			queued := func(want int, when string) {
				t.Helper()
				if got := s.queue.Len(); got != want {
					t.Errorf("%s: %d Services are looked at, want %d", when, got, want)
				}
				for range s.queue.Len() {
					r, _ := s.queue.Get()
					s.queue.Done(r)
				}
			}
			step("198.51.100.1", v1beta1.ReasonAllocated, "pool lan")
			old := "198.51.100.1"
			if lost {
				s.table.Quarantine(map[netip.Addr]bool{netip.MustParseAddr(old): true}, time.Now())
				old = ""
			} else {
				svc.Annotations = map[string]string{v1beta1.AnnotationAddressPool: "stuck"}
				if err := c.Update(t.Context(), svc); err != nil {
					t.Fatal(err)
				}
			}
			queued(0, "at first")
			step("198.51.100.1", v1beta1.ReasonAllocated, "pool lan")
			status, full := &v1beta1.IPAddressPoolStatus{AssignedIPv4: 1}, errors.New("the disk is full")
			s.wrote("stuck", status, full)
			queued(1, "the status of the pool cannot be written")
			step(old, v1beta1.ReasonPoolStatusNotWritten, "203.0.113.1 is given when the status of pool stuck can be written")
			s.wrote("stuck", status, full)
			queued(0, "it still cannot")
			s.wrote("stuck", status, nil)
			queued(1, "it is written")
			step("203.0.113.1", v1beta1.ReasonAllocated, "pool stuck")
		})
	}
}
