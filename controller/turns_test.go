package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
)

var lanPool = newPool("lan", v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"198.18.0.0/16"}})

// TestStatusContested: somebody who rewrites a status is answered at once a few times, then after longer and longer pauses, and the user is
// told once.
func TestStatusContested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := newService("web")
		svc.Spec.ClusterIPs = []string{"10.96.0.7"}
		writes := 0
		c := fake.NewClientBuilder().WithStatusSubresource(svc).WithObjects(svc, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}).
			WithInterceptorFuncs(interceptor.Funcs{SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
				writes++
				return c.SubResource(sub).Patch(ctx, o, p, opts...)
			}}).Build()
		s := newServices(t, c, c, lanPool)
		defer s.queue.ShutDown()
		req := reconcile.Request{NamespacedName: client.ObjectKeyFromObject(svc)}
		step := func() time.Duration {
			res, err := s.Reconcile(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			return res.RequeueAfter
		}
		rewrite := func() {
			if err := c.Get(t.Context(), req.NamespacedName, svc); err != nil {
				t.Fatal(err)
			}
			svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.7"}}
			if err := c.Status().Update(t.Context(), svc); err != nil {
				t.Fatal(err)
			}
		}
		step()
		for start := time.Now(); time.Since(start) < time.Hour; {
			rewrite()
			for wait := step(); wait > 0; wait = step() {
				time.Sleep(wait)
			}
		}
		if writes > 30 {
			t.Errorf("%d writes in an hour", writes)
		}
		told := 0
		for more := true; more; {
			select {
			case e := <-s.events.(*events.FakeRecorder).Events:
				if strings.Contains(e, "StatusContested") {
					told++
				}
			default:
				more = false
			}
		}
		if told != 1 {
			t.Errorf("the user was told %d times", told)
		}
		if step(); len(allocate.Ingress(svc)) != 1 {
			t.Errorf("status is %+v", svc.Status)
		}
		time.Sleep(contestLast + contestOver + time.Second)
		before := writes
		for range contestPatience {
			rewrite()
			step()
		}
		if writes != before+contestPatience {
			t.Errorf("after a quiet time it is answered %d of %d times", writes-before, contestPatience)
		}
	})
}

// TestSlowNamespace: writes that hang delay their own namespace only, and those are all written in the end.
func TestSlowNamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow, quick = 100, 50
		hangs := atomic.Bool{}
		hangs.Store(true)
		objects := []client.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "slow"}}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "quick"}}}
		add := func(ns string, n int) {
			for i := range n {
				svc := newService(fmt.Sprint("s", i))
				svc.Namespace, svc.Spec.ClusterIPs = ns, []string{"10.96.0.7"}
				objects = append(objects, svc)
			}
		}
		add("slow", slow)
		add("quick", quick)
		written := map[string]*atomic.Int32{"slow": {}, "quick": {}}
		c := fake.NewClientBuilder().WithStatusSubresource(&corev1.Service{}).WithObjects(objects...).
			WithInterceptorFuncs(interceptor.Funcs{SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
				if o.GetNamespace() == "slow" && hangs.Load() {
					<-ctx.Done()
					return ctx.Err()
				}
				written[o.GetNamespace()].Add(1)
				return c.SubResource(sub).Patch(ctx, o, p, opts...)
			}}).Build()
		s := newServices(t, c, c, lanPool)
		s.events = events.NewFakeRecorder(10 * (slow + quick))
		for _, o := range objects[2:] {
			s.queue.Add(reconcile.Request{NamespacedName: client.ObjectKeyFromObject(o)})
		}
		for range serviceWorkers {
			go func() {
				for {
					req, over := s.queue.Get()
					if over {
						return
					}
					if res, err := s.Reconcile(t.Context(), req); err != nil {
						t.Error(err)
					} else if res.RequeueAfter > 0 {
						s.queue.AddAfter(req, res.RequeueAfter)
					}
					s.queue.Done(req)
				}
			}()
		}
		synctest.Wait()
		if got := written["quick"].Load(); got != quick {
			t.Errorf("with another namespace hanging %d of %d are written at once", got, quick)
		}
		time.Sleep(10 * time.Minute)
		hangs.Store(false)
		time.Sleep(2 * time.Minute)
		if got := written["slow"].Load(); got != slow {
			t.Errorf("after it hung %d of %d are written", got, slow)
		}
		s.queue.ShutDown()
		synctest.Wait()
	})
}

// TestLoadBeside: what other controllers' Services and external IPs have is known before anything is given out.
func TestLoadBeside(t *testing.T) {
	ours, theirs, outside := newService("ours"), newService("theirs"), newService("outside")
	ours.Spec.ClusterIPs = []string{"10.96.0.7"}
	theirs.Spec.LoadBalancerClass, theirs.Status.LoadBalancer.Ingress = new("example.com/lb"), []corev1.LoadBalancerIngress{{IP: "198.18.0.0"}}
	outside.Spec.Type, outside.Spec.ExternalIPs = corev1.ServiceTypeClusterIP, []string{"198.18.0.1"}
	lan := lanPool
	lan.Status.AssignedIPv4 = 1
	lan.Status.Resting = []v1beta1.RestingAddress{{Address: "198.18.0.2", Service: "other/gone", Until: metav1.NewTime(time.Now().Add(time.Hour))}}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1beta1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(ours).WithObjects(ours, theirs, outside, &lan, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}).
		WithIndex(&corev1.Service{}, "spec.type", func(o client.Object) []string { return []string{string(o.(*corev1.Service).Spec.Type)} }).Build()
	// While it reads, nothing else waits for it.
	var s *services
	free := true
	live := interceptor.NewClient(c, interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
		if free = free && s.mu.TryLock(); free {
			s.mu.Unlock()
		}
		return c.List(ctx, list, opts...)
	}})
	s = newServices(t, c, live)
	p := &pools{client: c, services: s, log: s.log}
	s.pools = p.read
	if err := s.lead(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(ours)}); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(ours), ours); err != nil || fmt.Sprint(allocate.Ingress(ours)) != "[198.18.0.3]" {
		t.Errorf("it was given %v, %v; want the first that nobody has and that does not rest", allocate.Ingress(ours), err)
	}
	if !free {
		t.Error("everything waits for the API server's lists")
	}
	// A standby gives nothing.
	if err := s.lead(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), func() *corev1.Service { n := newService("next"); n.Spec.ClusterIPs = []string{"10.96.0.8"}; return n }()); err != nil {
		t.Fatal(err)
	}
	next := reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "default", Name: "next"}}
	if _, err := s.Reconcile(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	var got corev1.Service
	if err := c.Get(t.Context(), next.NamespacedName, &got); err != nil || allocate.Managed(&got) {
		t.Errorf("a standby wrote %+v, %v", got.Status, err)
	}
}
