package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/trace"
	"github.com/clarionlb/clarion/speaker/guard"
)

// newTracer is a tracer on node a, with the Service web at 192.0.2.1, announced on the local network, and stray at an
// address that no advertisement selects. web has an endpoint on each of the nodes a and b.
func newTracer(t *testing.T, edit func(*corev1.Service, *discoveryv1.EndpointSlice)) *tracer {
	w := newWorld(t)
	web, es := svc("web", "192.0.2.1"), endpoints("web", "a", "b")
	web.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "sctp", Port: 9, Protocol: corev1.ProtocolSCTP}}
	es.Ports = []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr(int32(8080)), Protocol: ptr(corev1.ProtocolTCP)}}
	es.Endpoints[1].Addresses = []string{"10.244.0.2"}
	if edit != nil {
		edit(web, es)
	}
	stray := svc("stray", "203.0.113.7")
	w.set(lanPool(), web, stray, es, node("a", "192.0.2.11"), node("b", "192.0.2.12"),
		&v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "lan"}, Spec: v1beta1.L2AdvertisementSpec{IPAddressPools: []string{"lan"}}})
	w.alive("a", "b")
	api := fake.NewClientBuilder().WithScheme(w.informers.Scheme).WithObjects(web.DeepCopy(), stray, es.DeepCopy()).Build()
	return &tracer{
		node: "a", reconciler: w.r, guarded: func() guard.Status { return guard.Status{} }, api: api, log: slog.New(slog.DiscardHandler),
		traces: make(chan struct{}, maxTraces), checks: make(chan struct{}, maxAtOnce),
	}
}

// planned are the connections that would be opened for an address.
func (t *tracer) planned(test *testing.T, addr string) (out []string) {
	a := netip.MustParseAddr(addr)
	t.reconciler.snapshot.Lock()
	claims := t.announced(a)
	t.reconciler.snapshot.Unlock()
	for _, c := range claims {
		checks, err := t.plan(test.Context(), a, c)
		if err != nil {
			test.Fatal(err)
		}
		for _, x := range checks {
			out = append(out, fmt.Sprintf("%s/%s", x.To, x.Protocol))
		}
	}
	return out
}

// A speaker connects to the ports of announced addresses and to the endpoints that it may be sent to, and to nothing else,
// whoever writes EndpointSlices.
func TestTraceConnectsToNothingElse(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*corev1.Service, *discoveryv1.EndpointSlice)
		addr string
		want []string
	}{
		{"announced", nil, "192.0.2.1", []string{"192.0.2.1:80/TCP", "192.0.2.1:9/SCTP", "10.244.0.1:8080/TCP", "10.244.0.2:8080/TCP"}},
		{"not announced", nil, "203.0.113.7", nil},
		{"nobody's", nil, "192.0.2.2", nil},
		{"a node's", nil, "192.0.2.11", nil},
		{"loopback", nil, "127.0.0.1", nil},
		{"Local", func(s *corev1.Service, _ *discoveryv1.EndpointSlice) {
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}, "192.0.2.1", []string{"192.0.2.1:80/TCP", "192.0.2.1:9/SCTP", "10.244.0.1:8080/TCP"}},
		{"not ready", func(_ *corev1.Service, es *discoveryv1.EndpointSlice) { es.Endpoints[0].Conditions.Ready = ptr(false) }, "192.0.2.1",
			[]string{"192.0.2.1:80/TCP", "192.0.2.1:9/SCTP", "10.244.0.2:8080/TCP"}},
		{"aimed at the node", func(_ *corev1.Service, es *discoveryv1.EndpointSlice) {
			es.Endpoints[0].Addresses, es.Endpoints[1].Addresses = []string{"127.0.0.1"}, []string{"169.254.169.254"}
		}, "192.0.2.1", []string{"192.0.2.1:80/TCP", "192.0.2.1:9/SCTP"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := newTracer(t, tt.edit).planned(t, tt.addr); !slices.Equal(got, tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

func TestTraceAnswers(t *testing.T) {
	tr := newTracer(t, func(s *corev1.Service, es *discoveryv1.EndpointSlice) { // no connection is opened
		s.Spec.Ports, es.Endpoints = s.Spec.Ports[1:], es.Endpoints[:1]
	})
	tr.proxy = func(context.Context) proxyHealth { return proxyHealth{ok: true} }
	ask := func(query string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		tr.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, trace.Path+"?"+query, nil))
		return w
	}
	var r trace.Report
	if w := ask("address=192.0.2.1"); w.Code != http.StatusOK || json.Unmarshal(w.Body.Bytes(), &r) != nil {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	if r.Node != "a" || r.Proxy == nil || !*r.Proxy || len(r.Checks) != 1 || r.Checks[0].Outcome != "Failed" {
		t.Errorf("%+v", r)
	}
	addr := netip.MustParseAddr("192.0.2.1")
	for since, want := range map[time.Duration]bool{0: true, newFor: false} {
		tr.reconciler.fit[addr] = &fitness{since: time.Now().Add(-since)}
		if r, err := tr.report(t.Context(), addr); err != nil || r.New != want {
			t.Errorf("servable for %v: new: %v, %v", since, r.New, err)
		}
	}
	for query, want := range map[string]int{"address=203.0.113.7": 404, "address=web": 400, "": 400, "address=fe80::1%25eth0": 400} {
		if w := ask(query); w.Code != want {
			t.Errorf("%s: %d, want %d: %s", query, w.Code, want, w.Body)
		}
	}
	for range maxTraces {
		tr.traces <- struct{}{}
	}
	if w := ask("address=192.0.2.1"); w.Code != http.StatusTooManyRequests {
		t.Errorf("%d while others are being made", w.Code)
	}
}

// Many endpoints are not all tried.
func TestTraceIsBounded(t *testing.T) {
	tr := newTracer(t, func(s *corev1.Service, es *discoveryv1.EndpointSlice) {
		s.Spec.Ports[0].Protocol, es.Ports[0].Protocol = corev1.ProtocolSCTP, ptr(corev1.ProtocolSCTP) // no connection is opened
		for i := range 100 {
			es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.1.%d", i)}})
		}
	})
	r, err := tr.report(t.Context(), netip.MustParseAddr("192.0.2.1"))
	if err != nil || len(r.Checks) != maxChecks || r.Left != 2+2+100-maxChecks {
		t.Errorf("%d checks, %d left, %v", len(r.Checks), r.Left, err)
	}
}

func TestTraceListensOnLoopbackOnly(t *testing.T) {
	for s, ok := range map[string]bool{"127.0.0.1:9122": true, "[::1]:9122": true, "0": true, ":9122": false, "0.0.0.0:9122": false, "192.0.2.11:9122": false, "127.0.0.1:0": false, "localhost:9122": false} {
		if _, err := loopback(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}
