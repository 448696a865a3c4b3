package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
)

// failing is a cache that cannot have some kinds.
type failing struct {
	*informertest.FakeInformers
	err func(client.Object) error
}

func (f failing) GetInformer(ctx context.Context, o client.Object, opts ...cache.InformerGetOption) (cache.Informer, error) {
	if err := f.err(o); err != nil {
		return nil, err
	}
	return f.FakeInformers.GetInformer(ctx, o, opts...)
}

// A cluster that does not know ServiceCIDRs is watched all the same, and says so once; any other failure is one.
func TestWatchWithoutServiceCIDRs(t *testing.T) {
	noMatch := &meta.NoKindMatchError{GroupKind: networkingv1.SchemeGroupVersion.WithKind("ServiceCIDR").GroupKind(), SearchedVersions: []string{"v1"}}
	for _, tt := range []struct {
		name string
		err  func(client.Object) error
		want string // in the error
		log  int    // lines
	}{
		{"all kinds", func(client.Object) error { return nil }, "", 0},
		{"no ServiceCIDR", func(o client.Object) error {
			if _, is := o.(*networkingv1.ServiceCIDR); is {
				return noMatch
			}
			return nil
		}, "", 1},
		{"ServiceCIDR fails", func(o client.Object) error {
			if _, is := o.(*networkingv1.ServiceCIDR); is {
				return errors.New("no route to host")
			}
			return nil
		}, "no route to host", 0},
		{"no Service", func(o client.Object) error {
			if _, is := o.(*corev1.Service); is {
				return &meta.NoKindMatchError{GroupKind: corev1.SchemeGroupVersion.WithKind("Service").GroupKind()}
			}
			return nil
		}, "Service", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			scheme := runtime.NewScheme()
			if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1beta1.AddToScheme(scheme)); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			informers := &informertest.FakeInformers{Scheme: scheme}
			s := New(Options{})
			synced, err := s.Watch(t.Context(), failing{informers, tt.err}, slog.New(slog.NewTextHandler(&log, nil)), func() {})
			switch {
			case tt.want == "" && err != nil:
				t.Fatal(err)
			case tt.want != "":
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want %q", err, tt.want)
				}
				return
			}
			for _, has := range synced {
				if has == nil {
					t.Error("a kind that is not there is waited for")
				}
			}
			if n := strings.Count(log.String(), "\n"); n != tt.log {
				t.Errorf("logged %d lines, want %d:\n%s", n, tt.log, log.String())
			}
			nodes, err := informers.FakeInformerFor(t.Context(), &corev1.Node{})
			if err != nil {
				t.Fatal(err)
			}
			nodes.Add(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
			s.Lock()
			defer s.Unlock()
			if s.Node("a") == nil {
				t.Error("the other kinds are not watched")
			}
		})
	}
}

// What a cache drops changes no decision.
func TestTrim(t *testing.T) {
	yes, no := true, false
	policy := corev1.ServiceInternalTrafficPolicyLocal
	full := func() (*corev1.Service, *discoveryv1.EndpointSlice, *corev1.Node) {
		svc := loadBalancer("web", "192.0.2.1")
		svc.Labels, svc.Annotations = map[string]string{"tier": "gold"}, map[string]string{"a": "b"}
		svc.Spec.ClusterIPs = []string{"10.96.0.1", "fd00::1"}
		svc.Spec.ExternalIPs = []string{"198.51.100.1"}
		svc.Spec.ExternalTrafficPolicy, svc.Spec.InternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal, &policy
		svc.Spec.Ports = []corev1.ServicePort{{Port: 80}}
		svc.Status.LoadBalancer.Ingress[0].Hostname = "web.example.com"
		es := slice(endpoint("a", &yes, nil, nil), endpoint("a", &yes, nil, nil), endpoint("b", &no, &yes, &yes), endpoint("", nil, nil, nil))
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{NodeName: ptr("c")}) // without an address
		es.Namespace, es.Name, es.Labels = "default", "web-x", map[string]string{discoveryv1.LabelServiceName: "web"}
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"rack": "1"}, Annotations: map[string]string{v1beta1.AnnotationDrain: "true", "x": "y"}}}
		n.Spec.PodCIDRs, n.Spec.Taints = []string{"10.244.0.0/24"}, []corev1.Taint{{Key: taintOutOfService}}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.9"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.9"}}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionFalse}}
		return svc, es, n
	}
	known := func(trim func(any) (any, error)) string {
		s := New(Options{})
		svc, es, n := full()
		for _, o := range []any{svc, es, n} {
			if _, err := trim(o); err != nil {
				t.Fatal(err)
			}
		}
		s.node("a", n)
		s.service("default/web", svc)
		s.endpointSlice("default/"+es.Labels[discoveryv1.LabelServiceName], es.Name, es)
		s.Changes()
		out := fmt.Sprintf("%+v %+v", *s.nodes["a"], s.claimed)
		for _, c := range s.ClaimsOn(netip.MustParseAddr("192.0.2.1")) {
			out += fmt.Sprintf(" %+v", *c.Service)
		}
		return out
	}
	if got, want := known(Trim), known(func(o any) (any, error) { return o, nil }); got != want {
		t.Errorf("with what is left is known\n%s\nand otherwise\n%s", got, want)
	}
}

// The endpoints of a slice that an edit of its label gives to another Service are not those of the one before: speakers
// that saw the edit know the same as those that started after it.
func TestSliceOfAnotherService(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1beta1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	informers := &informertest.FakeInformers{Scheme: scheme}
	s := New(Options{})
	if _, err := s.Watch(t.Context(), informers, slog.New(slog.DiscardHandler), func() {}); err != nil {
		t.Fatal(err)
	}
	slices, err := informers.FakeInformerFor(t.Context(), &discoveryv1.EndpointSlice{})
	if err != nil {
		t.Fatal(err)
	}
	of := func(service string) *discoveryv1.EndpointSlice {
		out := slice(endpoint("a", nil, nil, nil))
		out.Namespace, out.Name, out.Labels = "default", "x", map[string]string{discoveryv1.LabelServiceName: service}
		return out
	}
	s.service("default/web", loadBalancer("web", "192.0.2.1"))
	s.service("default/api", loadBalancer("api", "192.0.2.2"))
	slices.Add(of("web"))
	slices.Update(of("web"), of("api"))
	if web, api := s.services["default/web"].Endpoints4.Ready["a"], s.services["default/api"].Endpoints4.Ready["a"]; web != 0 || api != 1 {
		t.Errorf("%d and %d endpoints", web, api)
	}
	slices.Delete(of("api"))
	if len(s.slices) > 0 {
		t.Errorf("kept: %v", s.slices)
	}
}
