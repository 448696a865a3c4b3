package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
)

func TestRequestOf(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*corev1.Service)
		want string // of what request reads, the parts that are not as without edit
	}{
		{"plain", func(*corev1.Service) {}, ""},
		{"annotations", func(s *corev1.Service) {
			s.Annotations[v1beta1.AnnotationAddresses] = " 203.0.113.1 , 2001:db8::1 "
			s.Annotations[v1beta1.AnnotationAddressPool] = "b, a,b,,"
			s.Annotations[v1beta1.AnnotationAllowSharedIP] = " key "
		}, "addresses [203.0.113.1 2001:db8::1] pools [b a] key key"},
		{"MetalLB's annotations", func(s *corev1.Service) {
			s.Annotations["metallb.io/loadBalancerIPs"] = "203.0.113.1"
			s.Annotations["metallb.universe.tf/address-pool"] = "a"
			s.Annotations["metallb.universe.tf/allow-shared-ip"] = "old"
			s.Annotations["metallb.io/allow-shared-ip"] = "new"
		}, "addresses [203.0.113.1] pools [a] key new"},
		{"ours go first, even when empty", func(s *corev1.Service) {
			s.Annotations["metallb.io/address-pool"] = "a"
			s.Annotations[v1beta1.AnnotationAddressPool] = ""
		}, ""},
		{"field", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "203.0.113.1" }, "addresses [203.0.113.1]"},
		{"field and annotation agree", func(s *corev1.Service) {
			s.Spec.LoadBalancerIP = "203.0.113.1"
			s.Annotations[v1beta1.AnnotationAddresses] = "2001:db8::1,203.0.113.1"
		}, "addresses [2001:db8::1 203.0.113.1]"},
		{"field and annotation disagree", func(s *corev1.Service) {
			s.Spec.LoadBalancerIP = "203.0.113.1"
			s.Annotations[v1beta1.AnnotationAddresses] = "203.0.113.2"
		}, "problem spec.loadBalancerIP is 203.0.113.1, annotation clarionlb.io/addresses says 203.0.113.2: remove one of them"},
		{"field is wrong", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "web" }, `problem spec.loadBalancerIP: "web" is not an IP address`},
		{"two of a family", func(s *corev1.Service) { s.Annotations["metallb.io/loadBalancerIPs"] = "203.0.113.1,203.0.113.2" },
			`problem annotation metallb.io/loadBalancerIPs: "203.0.113.1,203.0.113.2" has two addresses of one family: ask for at most one of each`},
		{"dual stack", func(s *corev1.Service) {
			s.Spec.ClusterIPs = []string{"fd00::1", "10.0.0.1"}
			s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
		}, "families [IPv6 IPv4] all"},
		{"PreferDualStack with one cluster address", func(s *corev1.Service) {
			s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyPreferDualStack)
		}, ""},
		{"local", func(s *corev1.Service) {
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			s.Spec.Selector = map[string]string{"b": "2", "a": "1"}
		}, "local a=1,b=2"},
		{"local without selector", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }, "local endpoints of web"},
		{"selector of a Cluster Service", func(s *corev1.Service) { s.Spec.Selector = map[string]string{"a": "1"} }, ""},
		{"status", func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.9"}, {Hostname: "x"}, {IP: "2001:db8::9"}}
			s.Status.Conditions = []metav1.Condition{{Type: v1beta1.ConditionAllocated}}
		}, "current [203.0.113.9 2001:db8::9] managed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			svc := &corev1.Service{}
			svc.Namespace, svc.Name, svc.Annotations = "default", "web", map[string]string{}
			svc.Spec.Type, svc.Spec.ClusterIPs = corev1.ServiceTypeLoadBalancer, []string{"10.0.0.1"}
			svc.Spec.Ports = []corev1.ServicePort{{Protocol: "TCP", Port: 80}, {Protocol: "UDP", Port: 53}}
			tt.edit(svc)
			// What the cache keeps is enough.
			if _, err := trimService(svc); err != nil {
				t.Fatal(err)
			}
			r := allocate.Class{Name: v1beta1.LoadBalancerClass, Default: true}.Request(svc, labels.Set{"ns": "label"})
			var got []string
			add := func(name string, v any, usual string) {
				if s := fmt.Sprint(v); s != usual {
					got = append(got, strings.TrimSpace(name+" "+s))
				}
			}
			add("families", r.Families, "[IPv4]")
			if r.RequireAll {
				got = append(got, "all")
			}
			add("addresses", r.Addresses, "[]")
			add("pools", r.Pools, "[]")
			add("key", r.SharingKey, "")
			add("local", r.Local, "")
			add("problem", r.Problem, "")
			add("ports", r.Ports, "[{TCP 80} {UDP 53}]")
			add("current", r.Current, "[]")
			if r.Managed {
				got = append(got, "managed")
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
		})
	}
}

func FuzzAnnotations(f *testing.F) {
	f.Add("203.0.113.1,2001:db8::1", "a,b", "")
	f.Add("::ffff:1.2.3.4", ",,", "1.2.3.4")
	f.Add("fe80::1%eth0", " a , a", "x")
	f.Fuzz(func(t *testing.T, addresses, pools, ip string) {
		svc := &corev1.Service{}
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		svc.Annotations = map[string]string{v1beta1.AnnotationAddresses: addresses, v1beta1.AnnotationAddressPool: pools}
		svc.Spec.LoadBalancerIP = ip
		r := allocate.Class{Name: v1beta1.LoadBalancerClass, Default: true}.Request(svc, nil)
		if r.Problem != "" && len(r.Addresses) > 0 || len(r.Addresses) > 2 {
			t.Fatalf("read as %+v", r)
		}
		families := map[bool]netip.Addr{}
		for _, a := range r.Addresses {
			if _, twice := families[a.Is4()]; twice || !a.IsValid() || a.Is4In6() || a.Zone() != "" {
				t.Fatalf("read as %+v", r)
			}
			families[a.Is4()] = a
		}
		seen := map[string]bool{}
		for _, p := range r.Pools {
			if p == "" || seen[p] || strings.TrimSpace(p) != p {
				t.Fatalf("pools are %q", r.Pools)
			}
			seen[p] = true
		}
	})
}

// TestFieldsAbsent: Services of an API server that does not have the fields that are deprecated, or are new.
func TestFieldsAbsent(t *testing.T) {
	for _, tt := range []struct{ name, object, want string }{
		{"no externalIPs, no loadBalancerIP", `{"metadata":{"namespace":"default","name":"web"},"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.1","clusterIPs":["10.96.0.1"],"ipFamilies":["IPv4"],
			"ports":[{"port":80}]},"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.1"}]}}}`, "families [IPv4] has [203.0.113.1] holds []"},
		{"null", `{"metadata":{"namespace":"default","name":"web"},"spec":{"type":"LoadBalancer","clusterIPs":["10.96.0.1"],"externalIPs":null,"loadBalancerIP":""},"status":{"loadBalancer":{}}}`, "families [IPv4] has [] holds []"},
		{"nothing", `{"metadata":{"namespace":"default","name":"web"},"spec":{"type":"LoadBalancer"}}`, "families [] has [] holds []"},
		{"as they were", `{"metadata":{"namespace":"default","name":"web"},"spec":{"type":"LoadBalancer","clusterIPs":["10.96.0.1"],"externalIPs":["192.0.2.1"]}}`, "families [IPv4] has [] holds [192.0.2.1]"},
	} {
		svc := &corev1.Service{}
		if err := json.Unmarshal([]byte(tt.object), svc); err != nil {
			t.Fatal(err)
		}
		o, err := trimService(svc)
		if err != nil {
			t.Fatal(err)
		}
		r := allocate.Class{Name: v1beta1.LoadBalancerClass, Default: true}.Request(o.(*corev1.Service), nil)
		if got := fmt.Sprintf("families %v has %v holds %v", r.Families, r.Current, r.Held); got != tt.want || r.Problem != "" {
			t.Errorf("%s: %s, problem %q; want %s", tt.name, got, r.Problem, tt.want)
		}
	}
}
