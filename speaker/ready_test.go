package main

import (
	"context"
	"fmt"
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
	"github.com/clarionlb/clarion/speaker/layer2"
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
		w.r.synced = func(context.Context) proxyHealth { return proxyHealth{ok: true} }
		local := func(name string, addrs ...string) *corev1.Service {
			s := svc(name, addrs...)
			s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 30080
			return s
		}
		on := func(service string, v6 bool, ready []string, ends ...string) *discoveryv1.EndpointSlice {
			es := endpoints(service, ready...)
			for _, n := range ends {
				es.Endpoints = append(es.Endpoints, terminating(n))
			}
			if v6 {
				es.Name, es.AddressType = es.Name+"6", discoveryv1.AddressTypeIPv6
			}
			return es
		}
		both := func(ready []string, ends ...string) {
			w.set(on("web", false, ready, ends...), on("web", true, ready, ends...))
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
		if expect("its time is up", 2); len(w.r.unproven) != 2 {
			t.Errorf("of %v it is not said that the Service proxy did not say that it serves them", w.r.unproven)
		}
		serves.Store(true)
		time.Sleep(readyLate)
		if expect("it serves after all", 2); len(w.r.unproven) != 0 {
			t.Errorf("%v is still said to be announced without the Service proxy's word", w.r.unproven)
		}
	})
}

// At layer 2 a node takes an address of a Service with policy Local, or stands by for it, when its Service proxy serves it;
// and the one whose endpoint terminates goes on until somebody else is heard, or the endpoint is gone. A new Service with
// policy Cluster waits until the proxy has written rules since.
func TestLayer2ServiceThatMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var serves atomic.Bool
		var wrote atomic.Int64
		w := newWorld(t)
		w.r.asks = func(context.Context, netip.AddrPort) bool { return serves.Load() }
		w.r.synced = func(context.Context) proxyHealth {
			h := proxyHealth{ok: true, Newer: new(bool)}
			h.Status = map[string]struct {
				LastUpdated time.Time `json:"lastUpdated"`
			}{"IPv4": {time.Unix(0, wrote.Load())}}
			return h
		}
		expect := func(what, l2 string) {
			t.Helper()
			synctest.Wait()
			w.step()
			w.want(what, l2, "")
		}
		w.set(lanPool(), &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}}, node("a", "192.0.2.11"), node("b", "192.0.2.12"))
		w.r.setJoined()
		w.alive("a", "b")
		local := svc("web", "192.0.2.1")
		local.Spec.ExternalTrafficPolicy, local.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 30080
		w.set(local, endpoints("web", "b"))
		expect("it is elsewhere", "")
		w.set(endpoints("web", "a"))
		expect("it comes here, and the proxy does not know", "")
		serves.Store(true)
		time.Sleep(readyInterval)
		expect("the proxy serves it", "192.0.2.1")
		w.answered = map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): true}
		moves := endpoints("web", "b")
		moves.Endpoints = append(moves.Endpoints, terminating("a"))
		w.set(moves)
		expect("it moves away", "192.0.2.1 leaving")
		w.set(endpoints("web", "b"))
		expect("it is gone", "")

		cluster := svc("other", "192.0.2.2")
		w.set(cluster, endpoints("other", "b"))
		expect("new, and the proxy has not written it", "")
		time.Sleep(100 * time.Millisecond)
		wrote.Store(time.Now().UnixNano())
		time.Sleep(readyInterval)
		expect("it has", "192.0.2.2 standby")

		w.r.acd = layer2.DefaultProbe()
		w.set(svc("third", "192.0.2.7"), endpoints("third", "b"))
		expect("new and this node's, and the proxy has not written it", "192.0.2.2 standby")
		time.Sleep(100 * time.Millisecond)
		wrote.Store(time.Now().UnixNano())
		time.Sleep(readyInterval)
		expect("it has, and whether somebody else has the address is asked", "192.0.2.2 standby; 192.0.2.7 probes {3 200ms}")
	})
}

// Of several Services with policy Local that share an address it is enough that the Service proxy serves one: it goes on to
// say no at the ports of those that have no endpoint on the node.
func TestSharedAddressOfLocalServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		w := newWorld(t)
		w.r.asks = func(_ context.Context, at netip.AddrPort) bool {
			asked.Add(1)
			return at.Port() == 30080
		}
		w.r.synced = func(context.Context) proxyHealth { return proxyHealth{ok: true} }
		w.set(lanPool(), &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}}, node("a", "192.0.2.11"), node("b", "192.0.2.12"))
		w.r.setJoined()
		w.alive("a", "b")
		for name, port := range map[string]int32{"here": 30080, "there": 30081} {
			s := svc(name, "192.0.2.1")
			s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, port
			w.set(s)
		}
		w.set(endpoints("there", "b"), endpoints("here", "a"))
		synctest.Wait()
		w.step()
		time.Sleep(2 * readyLimit)
		synctest.Wait()
		w.step()
		if len(w.r.unproven) > 0 {
			t.Errorf("%v is said to be announced without the Service proxy's word, which was there at once", w.r.unproven)
		}
		if n := asked.Load(); n > 10 {
			t.Errorf("%d questions about an address that is known to be served", n)
		}
	})
}

// A thousand new Services ask the Service proxy about a thousand questions a second, not each as often as one alone.
func TestManyNewServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 1000
		var questions atomic.Int32
		var serves atomic.Bool
		w := newWorld(t)
		w.r.asks = func(context.Context, netip.AddrPort) bool { questions.Add(1); return serves.Load() }
		w.r.synced = func(context.Context) proxyHealth { return proxyHealth{ok: true} }
		p := lanPool()
		p.Spec.Addresses = []v1beta1.AddressRange{"198.18.0.0/16"}
		w.set(p, &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}}, node("a", "192.0.2.11"))
		w.r.setJoined()
		w.alive("a")
		w.step()
		for i := range many {
			s := svc(fmt.Sprintf("web-%d", i), fmt.Sprintf("198.18.%d.%d", i/250, i%250))
			s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, int32(30000+i)
			w.set(s, endpoints(s.Name, "a"))
		}
		synctest.Wait()
		w.step()
		time.Sleep(readyLimit - time.Millisecond)
		synctest.Wait()
		if n := questions.Load(); n < many || n > 5*many {
			t.Errorf("%d questions in %v", n, readyLimit)
		}
		serves.Store(true) // the questions end
		time.Sleep(readyLate)
	})
}
