package main

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"

	"github.com/clarionlb/clarion/api/v1beta1"
)

// A node that gets its first endpoint of a Service with policy Local announces all its addresses when its Service proxy
// says that it serves the Service, or has had its time; a node whose last endpoint terminates stays, as the last choice,
// until the endpoint is gone. What was there when the speaker started goes on without a question.
func TestLocalServiceThatMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var serves atomic.Bool
		var questions atomic.Int32
		w := newWorld(t)
		w.events = events.NewFakeRecorder(10)
		w.r.asks = func(_ context.Context, at netip.AddrPort) bool {
			if at != netip.MustParseAddrPort("192.0.2.11:30080") {
				t.Errorf("asked at %s", at)
			}
			questions.Add(1)
			return serves.Load()
		}
		local := func(name string, addrs ...string) *corev1.Service {
			s := svc(name, addrs...)
			s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 30080
			return s
		}
		on := func(service string, v6 bool, ready []string, terminating ...string) *discoveryv1.EndpointSlice {
			es := endpoints(service, ready...)
			yes, no := true, false
			for _, n := range terminating {
				es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.244.0.2"}, NodeName: &n,
					Conditions: discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}})
			}
			if v6 {
				es.Name, es.AddressType = es.Name+"6", discoveryv1.AddressTypeIPv6
			}
			return es
		}
		both := func(ready []string, terminating ...string) {
			w.set(on("web", false, ready, terminating...), on("web", true, ready, terminating...))
		}
		expect := func(what string, n int) {
			t.Helper()
			synctest.Wait()
			w.step()
			if len(w.r.exports) != n {
				t.Errorf("%s: %d addresses are announced, want %d", what, len(w.r.exports), n)
			}
		}
		pool := lanPool()
		pool.Spec.Addresses = append(pool.Spec.Addresses, "2001:db8::/64")
		w.set(pool, local("web", "192.0.2.1", "2001:db8::1"), node("b", "192.0.2.12"),
			on("web", false, []string{"a"}), on("web", true, []string{"a"}), peer("tor", "192.0.2.254", nil),
			&v1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}})
		w.set(node("a", "192.0.2.11")) // the first step: the node is known
		if expect("at the start", 2); questions.Load() != 0 {
			t.Errorf("%d questions at the start", questions.Load())
		}
		both([]string{"b"}, "a")
		expect("terminating", 2)
		for _, all := range w.r.exports {
			for _, e := range all {
				if e.MED == nil || len(e.Communities) == 0 {
					t.Errorf("terminating: %s is not the last choice: %+v", e.Prefix, e.Attrs)
				}
			}
		}
		both([]string{"b"})
		expect("gone", 0)
		both([]string{"a", "b"})
		expect("the Service proxy does not serve yet", 0)
		time.Sleep(100 * time.Millisecond)
		serves.Store(true)
		time.Sleep(readyInterval)
		expect("it serves", 2)
		asked := questions.Load()
		time.Sleep(time.Minute)
		if expect("later", 2); questions.Load() != asked {
			t.Error("it is asked though it serves")
		}
		both([]string{"b"})
		serves.Store(false)
		both([]string{"a", "b"})
		expect("back, and it does not serve yet", 0)
		time.Sleep(readyLimit)
		expect("its time is up", 2)
	})
}
