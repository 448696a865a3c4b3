package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/rest"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/clarionlb/clarion/internal/trace"
)

// forwarder is an API server that forwards ports of a pod to this machine's loopback, with WebSockets or, as an older one,
// without.
func forwarder(t *testing.T, path string, websockets bool) *rest.Config {
	t.Helper()
	forward := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != path {
			http.Error(w, "forbidden", http.StatusForbidden)
			return
		}
		if _, err := httpstream.Handshake(r, w, []string{"portforward.k8s.io"}); err != nil {
			return
		}
		streams := make(chan httpstream.Stream, 2)
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error { streams <- s; return nil })
		if conn == nil {
			return
		}
		defer conn.Close()
		complain, data := <-streams, <-streams
		for s, kind := range map[httpstream.Stream]string{complain: corev1.StreamTypeError, data: corev1.StreamTypeData} {
			if got := s.Headers().Values(corev1.StreamType); !slices.Equal(got, []string{kind}) { // or kubelets wait for the other
				t.Errorf("a stream for %s is of the types %q", kind, got)
			}
		}
		c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", data.Headers().Get(corev1.PortHeader)))
		if err != nil {
			fmt.Fprint(complain, err)
			complain.Close()
			<-conn.CloseChan()
			return
		}
		defer c.Close()
		go func() { _, _ = io.Copy(c, data) }()
		_, _ = io.Copy(data, c)
		data.Close()
		complain.Close()
		<-conn.CloseChan()
	})
	s := httptest.NewTLSServer(proxy.NewTranslatingHandler(forward, proxy.NewTunnelingHandler(forward), func(r *http.Request) bool {
		return websockets && wsstream.IsWebSocketRequestWithTunnelingProtocol(r)
	}))
	t.Cleanup(s.Close)
	return &rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// The speaker of a node is asked through its pod, at the port that its flags say.
func TestForwarded(t *testing.T) {
	speaker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != trace.Path || r.URL.Query().Get("address") != "192.0.2.200" {
			http.Error(w, "no such address", http.StatusNotFound)
			return
		}
		fmt.Fprint(w, `{"node": "node1", "guarded": true}`)
	}))
	defer speaker.Close()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	pod := func(node, flag string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "clarion-system", Name: "speaker-" + node, Labels: map[string]string{"app.kubernetes.io/component": "speaker"}},
			Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Args: []string{"--log-level=DEBUG", flag}}}},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning},
		}
	}
	at := "--trace-bind-address=" + strings.TrimPrefix(speaker.URL, "http://")
	conn := &connection{
		Reader: fake.NewClientBuilder().WithObjects(pod("node1", at), pod("node2", "--trace-bind-address=0"), pod("node3", "--trace-bind-address="+nobody.Addr().String()), pod("node4", at)).
			WithIndex(&corev1.Pod{}, "spec.nodeName", func(o client.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} }).Build(),
		config: forwarder(t, "/api/v1/namespaces/clarion-system/pods/speaker-node1/portforward", true),
	}
	a := &app{system: "clarion-system"}
	addr := netip.MustParseAddr("192.0.2.200")
	for _, websockets := range []bool{true, false} {
		conn.config = forwarder(t, "/api/v1/namespaces/clarion-system/pods/speaker-node1/portforward", websockets)
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if r, err := a.forwarded(t.Context(), conn, "node1", addr); err != nil || r.Node != "node1" || !r.Guarded {
					t.Errorf("WebSockets: %v: %+v, %v", websockets, r, err)
				}
			})
		}
		all.Wait()
	}
	for _, tt := range []struct{ node, path, addr, want string }{
		{"node1", "", "192.0.2.201", "404 Not Found: no such address"},
		{"node2", "", "192.0.2.200", "--trace-bind-address=0"},
		{"node3", "speaker-node3", "192.0.2.200", "port-forward"},
		{"node4", "", "192.0.2.200", "forbidden"},
		{"node5", "", "192.0.2.200", "no pod of the speaker runs there"},
	} {
		if tt.path != "" {
			conn.config = forwarder(t, "/api/v1/namespaces/clarion-system/pods/"+tt.path+"/portforward", true)
		}
		if _, err := a.forwarded(t.Context(), conn, tt.node, netip.MustParseAddr(tt.addr)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want …%s…", tt.node, err, tt.want)
		}
		if tt.path != "" {
			conn.config = forwarder(t, "/api/v1/namespaces/clarion-system/pods/speaker-node1/portforward", true)
		}
	}
}
