package snapshot

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
)

func ptr[T any](v T) *T { return &v }

func loadBalancer(name string, addrs ...string) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}},
		Status:     corev1.ServiceStatus{Conditions: []metav1.Condition{{Type: v1beta1.ConditionAllocated, Status: metav1.ConditionTrue}}},
	}
	for _, a := range addrs {
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
	}
	return svc
}

func slice(endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints}
}

func endpoint(node string, ready, serving, terminating *bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{"10.244.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ready, Serving: serving, Terminating: terminating}}
	if node != "" {
		e.NodeName = &node
	}
	return e
}

// known is a snapshot in which the first changes have been taken.
func known() *Snapshot {
	s := New(Options{})
	s.node("a", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	s.Changes()
	return s
}

func addrs(c Changes) string {
	slices.SortFunc(c.Addrs, netip.Addr.Compare)
	return strings.Trim(fmt.Sprint(c.Addrs), "[]")
}

// Which addresses of a Service are announced, and of which Services.
func TestClaims(t *testing.T) {
	for _, tt := range []struct {
		what string
		edit func(*corev1.Service)
		want string
	}{
		{"ours", func(*corev1.Service) {}, "[LoadBalancerIP]"},
		{"of our class", func(s *corev1.Service) { s.Spec.LoadBalancerClass = ptr(v1beta1.LoadBalancerClass) }, "[LoadBalancerIP]"},
		{"of a class that a flag names", func(s *corev1.Service) { s.Spec.LoadBalancerClass = ptr("example.com/other") }, "[LoadBalancerIP]"},
		{"given by somebody else", func(s *corev1.Service) { s.Status.Conditions = nil }, "[]"},
		{"no longer of type LoadBalancer", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }, "[]"},
		{"external address as well", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.1"} }, "[LoadBalancerIP ExternalIP]"},
		{"headless", func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }, "[]"},
		{"ExternalName", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }, "[]"},
	} {
		s := known()
		svc := loadBalancer("web", "192.0.2.1")
		tt.edit(svc)
		s.service("default/web", svc)
		var types []v1beta1.AddressType
		for _, c := range s.ClaimsOn(netip.MustParseAddr("192.0.2.1")) {
			types = append(types, c.Type)
		}
		if got := fmt.Sprint(types); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.what, got, tt.want)
		}
	}
}

// A change makes dirty what depends on it, and nothing else.
func TestCostFollowsTheChange(t *testing.T) {
	s := known()
	s.service("default/web", loadBalancer("web", "192.0.2.1"))
	s.service("default/api", loadBalancer("api", "192.0.2.2"))
	s.Changes()
	step := func(what, want string, all bool, f func()) {
		t.Helper()
		f()
		c := s.Changes()
		got := addrs(c)
		if slices.Sort(c.Nodes); len(c.Nodes) > 0 {
			got = strings.TrimSpace(fmt.Sprint(c.Nodes) + " " + got)
		}
		if c.All != all || !all && got != want {
			t.Errorf("%s: dirty %q all=%v, want %q all=%v", what, got, c.All, want, all)
		}
	}
	yes, no := true, false
	step("nothing", "", false, func() {})
	step("same Service", "", false, func() { s.service("default/web", loadBalancer("web", "192.0.2.1")) })
	step("endpoint", "192.0.2.1", false, func() { s.endpointSlice("default/web", "web-1", slice(endpoint("a", &yes, nil, nil))) })
	step("same endpoints in other slices", "", false, func() {
		s.endpointSlice("default/web", "web-2", slice(endpoint("a", &no, nil, nil)))
	})
	step("endpoints of an unknown Service", "", false, func() { s.endpointSlice("default/later", "x", slice(endpoint("a", &yes, nil, nil))) })
	step("address moved", "192.0.2.1 192.0.2.3", false, func() { s.service("default/web", loadBalancer("web", "192.0.2.3")) })
	step("policy", "192.0.2.3", false, func() {
		svc := loadBalancer("web", "192.0.2.3")
		svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		s.service("default/web", svc)
	})
	step("deleted", "192.0.2.3", false, func() { s.service("default/web", nil) })
	step("heartbeat of a node", "", false, func() {
		s.node("a", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}})
	})
	step("loss of a node", "[a]", false, func() {
		s.node("a", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}}})
	})
	step("label of a node", "[a]", false, func() {
		s.node("a", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"x": "y"}}})
	})
	step("member", "[a]", false, func() { s.Members(map[string]Member{"a": {}}) })
	step("same member", "", false, func() { s.Members(map[string]Member{"a": {}}) })
	step("ServiceCIDR", "", true, func() {
		s.serviceCIDR("kubernetes", &networkingv1.ServiceCIDR{Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16"}}})
	})
	ad := &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "x", Generation: 1}}
	step("advertisement", "", true, func() { configObject(s, s.objects.l2)("x", ad, false) })
	written := ad.DeepCopy()
	written.Status.Conditions = []metav1.Condition{{Type: v1beta1.ConditionReady}}
	step("status of an advertisement", "", false, func() { configObject(s, s.objects.l2)("x", written, false) })
	lan := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "lan", Generation: 1}, Spec: v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"192.0.2.0/24"}}}
	step("pool", "", true, func() { s.pool("lan", lan, false) })
	s.endpointSlice("default/api", "x", slice(endpoint("a", &yes, nil, nil)))
	step("ready", "192.0.2.2", false, func() {})
	step("the owner is gone", "[a] 192.0.2.2", false, func() { s.Members(map[string]Member{}) })
	step("a node that has nothing to do with it", "[b]", false, func() {
		s.node("b", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.99"}}}})
	})
	step("a backup comes", "[a b] 192.0.2.2", false, func() { s.Members(map[string]Member{"a": {}, "b": {}}) })
	ads := &v1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: "x", Generation: 1}, Spec: v1beta1.BGPAdvertisementSpec{AddressTypes: []v1beta1.AddressType{v1beta1.AddressClusterIP}}}
	step("ClusterIPs are announced", "", true, func() { configObject(s, s.objects.bgp)("x", ads, false) })
	step("endpoint of a ClusterIP", "10.96.0.1 192.0.2.2", false, func() { s.endpointSlice("default/api", "x", slice(endpoint("b", &yes, nil, nil))) })
}

// Endpoints are counted as the Service proxy counts them.
func TestEndpoints(t *testing.T) {
	yes, no := true, false
	s := known()
	s.service("default/web", loadBalancer("web", "192.0.2.1"))
	for _, tt := range []struct {
		what               string
		e                  discoveryv1.Endpoint
		ready, terminating int
	}{
		{"ready", endpoint("a", &yes, &yes, &no), 1, 0},
		{"unset means ready", endpoint("a", nil, nil, nil), 1, 0},
		{"not ready", endpoint("a", &no, &no, &no), 0, 0},
		{"terminating but serving", endpoint("a", &no, &yes, &yes), 0, 1},
		{"terminating and done", endpoint("a", &no, &no, &yes), 0, 0},
		{"not ready though serving", endpoint("a", &no, &yes, &no), 0, 0},
	} {
		s.endpointSlice("default/web", "one", slice(tt.e))
		e := s.services["default/web"].Endpoints4
		if e.Ready["a"] != tt.ready || e.Terminating["a"] != tt.terminating {
			t.Errorf("%s: %+v, want %d ready, %d terminating", tt.what, e, tt.ready, tt.terminating)
		}
	}
	six := slice(endpoint("", &yes, nil, nil))
	six.AddressType = discoveryv1.AddressTypeIPv6
	s.endpointSlice("default/web", "one", six)
	if svc := s.services["default/web"]; len(svc.Endpoints4.Ready) != 0 || svc.Endpoints6.Ready[""] != 1 {
		t.Errorf("an IPv6 endpoint without a node: %+v %+v", svc.Endpoints4, svc.Endpoints6)
	}
}

// An address that an edit of its pool took out of it keeps the announcements of the pool: until the controller has seen
// the edit as before it, then as the status says.
func TestPoolOfAnAddressThatFellOut(t *testing.T) {
	s := known()
	a := netip.MustParseAddr("192.0.2.1")
	s.service("default/web", loadBalancer("web", a.String()))
	lan := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "lan", UID: "1"}}
	set := func(what, spec string, generation, seen int64, want string, kept ...string) {
		t.Helper()
		lan = lan.DeepCopy()
		lan.Generation = generation
		lan.Spec.Addresses = []v1beta1.AddressRange{v1beta1.AddressRange(spec)}
		lan.Status.Kept = kept
		lan.Status.Conditions = []metav1.Condition{{Type: v1beta1.ConditionReady, ObservedGeneration: seen}}
		s.pool("lan", lan, false)
		s.Changes()
		if p := s.View().PoolOf(a); p != want {
			t.Errorf("%s: pool %q, want %q", what, p, want)
		}
	}
	set("new", "192.0.2.0/24", 1, 0, "lan")
	set("seen", "192.0.2.0/24", 1, 1, "lan")
	set("edited", "198.51.100.0/24", 2, 1, "lan")
	set("edited again", "203.0.113.0/24", 3, 2, "lan", a.String())
	set("seen and kept", "203.0.113.0/24", 3, 3, "lan", a.String())
	set("seen and not kept", "203.0.113.0/24", 3, 3, "")
	set("edited back", "192.0.2.0/24", 4, 3, "lan")
	set("edited", "203.0.113.0/24", 5, 4, "lan")
	set("seen and not kept", "203.0.113.0/24", 5, 5, "")
	set("edited back", "192.0.2.0/24", 6, 5, "lan")
	s.pool("lan", lan, true)
	if s.Changes(); s.View().PoolOf(a) != "" {
		t.Error("the pool is gone, and still has the address")
	}
}

// What of the cluster has an address is never announced as an external IP; when that changes, external IPs are decided anew.
func TestHas(t *testing.T) {
	s := known()
	ad := &v1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: v1beta1.BGPAdvertisementSpec{
		AddressTypes: []v1beta1.AddressType{v1beta1.AddressExternalIP}, ExternalIPRanges: []v1beta1.CIDR{"0.0.0.0/0"}}}
	configObject(s, s.objects.bgp)("x", ad, false)
	configObject(s, s.objects.peers)("tor", &v1beta1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "tor"}, Spec: v1beta1.BGPPeerSpec{MyASN: 1, PeerASN: ptr(int64(2)), PeerAddress: "192.0.2.254"}}, false)
	s.serviceCIDR("kubernetes", &networkingv1.ServiceCIDR{Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16"}}})
	svc := loadBalancer("web", "198.51.100.1")
	svc.Spec.ExternalIPs = []string{"192.0.2.2"}
	s.service("default/web", svc)
	s.Changes()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24"}}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: "192.0.2.2"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.2"}, {Type: corev1.NodeHostName, Address: "b"}}}}
	s.node("b", n)
	if got := addrs(s.Changes()); got != "192.0.2.2" {
		t.Errorf("to be decided anew with the node: %q", got)
	}
	for addr, want := range map[string]string{
		"192.0.2.2": "node b", "203.0.113.2": "node b", "10.244.1.9": "the pods of node b", "10.96.0.1": "the cluster's range of ClusterIPs", "192.0.2.254": "a BGP peer", "8.8.8.8": "",
	} {
		if got := s.View().Has(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s belongs to %q, want %q", addr, got, want)
		}
	}
	s.node("b", nil)
	if got := addrs(s.Changes()); got != "192.0.2.2" || s.View().Has(netip.MustParseAddr("192.0.2.2")) != "" {
		t.Errorf("to be decided anew without the node: %q", got)
	}
}

// Whose speakers are alive, by what the living and the dead have written last: "a:bc" is that a misses b and c, and "a!"
// that a has ended; "+3" that it misses three that it does not name.
func TestLiving(t *testing.T) {
	for _, tt := range []struct{ name, speakers, lost, want string }{
		{"all", "a: b: c:", "", "abc"},
		{"one dead", "a: b:a c:", "", "bc"},
		{"one of two dead", "a: b:a", "", "b"},
		{"the only one", "a:", "", "a"},
		{"nobody has written", "", "", ""},
		{"one that is cut off, and says so first", "a:bcd b: c: d:", "", "a"}, // which it waits with
		{"one that is cut off", "a:bcd b:a c: d:", "", "bcd"},
		{"one that is cut off, and names those that name it", "a:bcd b:a c:a d:a", "", "bcd"},
		{"one that is cut off, and does not name all", "a:bc+3 b:a c: d: e: f:", "", "bcdef"},
		{"most died together", "a: b: c: d:abc", "", "d"},
		{"what a dead speaker said of one that is back", "a:b b: c:a", "", "bc"},
		{"what the dead said of each other, and of the living", "a:bc b: c:a d:ab", "", "cd"},
		{"two sides of different sizes", "a:de b: c: d:a+2 e:bc+1", "", "abc"},
		{"two sides of one size", "a:cd b: c:ab d:", "", "ab"},
		{"one that nobody knows", "a:z b:", "", "ab"},
		{"one says of itself that it is missing", "a:a b:", "", "ab"},
		{"one was lost by Kubernetes only", "a: b: c:", "a", "abc"},
		{"the words of one that Kubernetes has lost", "a:bc b: c:", "a", "abc"},
		{"Kubernetes has lost all nodes", "a: b:a c:", "abc", "bc"},
		{"one has ended, and others miss it", "a! b:a c:", "", "bc"},
		{"all have ended", "a! b! c!", "", ""},
		{"what one said that has ended does not count", "a:b! b: c:", "", "bc"},
		{"some have ended, another died, and Kubernetes knows", "a! b:c c:b", "b", "c"},
	} {
		speakers := map[string]*v1beta1.Speaker{}
		for _, f := range strings.Fields(tt.speakers) {
			ready := metav1.Condition{Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1beta1.ReasonReady}
			missing, ended := strings.CutSuffix(strings.TrimPrefix(f[1:], ":"), "!")
			if ended {
				ready.Status, ready.Reason = metav1.ConditionFalse, v1beta1.ReasonEnded
			}
			names, more, _ := strings.Cut(missing, "+")
			n, _ := strconv.Atoi(more)
			sp := &v1beta1.Speaker{Status: v1beta1.SpeakerStatus{MissingMore: int32(n), Conditions: []metav1.Condition{ready}}}
			if names != "" {
				sp.Status.Missing = strings.Split(names, "")
			}
			speakers[f[:1]] = sp
		}
		living := Living(speakers, func(node string) bool { return strings.Contains(tt.lost, node) })
		if got := strings.Join(slices.Sorted(maps.Keys(living)), ""); got != tt.want {
			t.Errorf("%s: alive are %q, want %q", tt.name, got, tt.want)
		}
	}
}

// What speakers write of themselves is what whoever is no speaker decides by: who is alive, on which interfaces, and that
// the time of a node that is drained is up.
func TestSpeakers(t *testing.T) {
	s := New(Options{})
	for _, n := range []string{"a", "b", "c"} {
		s.node(n, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n, Annotations: map[string]string{v1beta1.AnnotationDrain: map[string]string{"a": "true"}[n]}}})
	}
	sp := func(interfaces ...string) *v1beta1.Speaker {
		return &v1beta1.Speaker{Status: v1beta1.SpeakerStatus{Interfaces: interfaces}}
	}
	speakers := map[string]*v1beta1.Speaker{"a": sp("eth0", "eth1"), "b": sp(), "c": {}}
	speakers["a"].Status.Missing = []string{"c"}
	tell := func(want string) {
		t.Helper()
		s.Speakers(speakers)
		s.Changes()
		got := ""
		for _, name := range slices.Sorted(maps.Keys(s.View().Nodes)) {
			n := s.View().Nodes[name]
			got += fmt.Sprintf("%s alive=%v drained=%v links=%v; ", name, n.Alive, n.Drained, n.Links)
		}
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	tell("a alive=true drained=false links=[{eth0 true false} {eth1 true false}]; b alive=true drained=false links=[]; c alive=false drained=false links=[]; ")
	speakers["a"].Status.Drained = true
	tell("a alive=true drained=true links=[{eth0 true false} {eth1 true false}]; b alive=true drained=false links=[]; c alive=false drained=false links=[]; ")
	speakers["a"].Status.Drained = false
	delete(speakers, "b")
	tell("a alive=true drained=false links=[{eth0 true false} {eth1 true false}]; b alive=false drained=false links=[]; c alive=false drained=false links=[]; ")
}

// Of its links, what a speaker writes is what it tells the others.
func TestLinksThatSpeakersWrite(t *testing.T) {
	ready := []metav1.Condition{{Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue}}
	for _, tt := range []struct {
		what   string
		writes v1beta1.SpeakerStatus
		tells  []announce.Link
	}{
		{"nothing yet", v1beta1.SpeakerStatus{}, nil},
		{"no link", v1beta1.SpeakerStatus{Conditions: ready}, []announce.Link{}},
		{"one for addresses that name it", v1beta1.SpeakerStatus{Conditions: ready,
			Interfaces: []string{"eth0", "br-x"}, InterfacesDown: []string{"eth0"}, InterfacesNamedOnly: []string{"br-x"}},
			[]announce.Link{{Name: "eth0"}, {Name: "br-x", Up: true, Excluded: true}}},
	} {
		s := known()
		s.Speakers(map[string]*v1beta1.Speaker{"a": {Status: tt.writes}})
		if got, want := s.members["a"], (Member{Links: tt.tells}); !got.equal(want) {
			t.Errorf("%s: %+v, want %+v", tt.what, got, want)
		}
	}
}

// A slip in an edit of a BGPAdvertisement or a BGPPeer, or in what it names, withdraws nothing from those who knew its
// last usable form. Deleting it does.
func TestLastUsableForm(t *testing.T) {
	s := known()
	generation := int64(0)
	meta := func(name string) metav1.ObjectMeta {
		generation++
		return metav1.ObjectMeta{Name: name, UID: "1", Generation: generation}
	}
	ad := func(gone bool, nodes ...metav1.LabelSelector) {
		configObject(s, s.objects.bgp)("ad", &v1beta1.BGPAdvertisement{ObjectMeta: meta("ad"), Spec: v1beta1.BGPAdvertisementSpec{
			Communities: []v1beta1.CommunityReference{"blue"}, NodeSelectors: nodes}}, gone)
	}
	peer := func(address string) {
		configObject(s, s.objects.peers)("tor", &v1beta1.BGPPeer{ObjectMeta: meta("tor"), Spec: v1beta1.BGPPeerSpec{MyASN: 1, PeerASN: ptr(int64(2)), PeerAddress: address}}, false)
	}
	blue := func(gone bool) {
		configObject(s, s.objects.comms)("names", &v1beta1.Community{ObjectMeta: meta("names"), Spec: v1beta1.CommunitySpec{
			Communities: []v1beta1.CommunityAlias{{Name: "blue", Value: "64500:1"}}}}, gone)
	}
	in := metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "rack", Operator: "in", Values: []string{"1"}}}}
	local := func(nodes ...metav1.LabelSelector) {
		configObject(s, s.objects.l2)("lan", &v1beta1.L2Advertisement{ObjectMeta: meta("lan"), Spec: v1beta1.L2AdvertisementSpec{NodeSelectors: nodes}}, false)
	}
	expect := func(what, want string, problems int) {
		t.Helper()
		s.Changes()
		got := ""
		for _, a := range s.View().Config.L2 {
			got += a.Name + "; "
		}
		for _, a := range s.View().Config.BGP {
			got += fmt.Sprintf("%s %v; ", a.Name, a.Attrs.Communities)
		}
		for _, p := range s.View().Config.Peers {
			got += fmt.Sprintf("%s %s; ", p.Name, p.Address)
		}
		if got != want {
			t.Errorf("%s: in use is %q, want %q", what, got, want)
		}
		if len(s.Problems()) != problems {
			t.Errorf("%s: problems %v, want %d", what, s.Problems(), problems)
		}
	}
	ad(false)
	peer("192.0.2.1")
	local()
	expect("what was never usable", "lan; tor 192.0.2.1; ", 1)
	blue(false)
	const all = "lan; ad [64500:1]; tor 192.0.2.1; "
	expect("all is well", all, 0)
	blue(true)
	expect("the community is deleted", all, 1)
	ad(false, in)
	expect("two slips in one object", all, 2)
	peer("tor1.example.com")
	expect("a slip in the peer", all, 3)
	local(in)
	expect("a slip in an L2Advertisement", "ad [64500:1]; tor 192.0.2.1; ", 4)
	peer("192.0.2.2")
	expect("the peer is right again", "ad [64500:1]; tor 192.0.2.2; ", 3)
	ad(true)
	expect("the advertisement is deleted", "tor 192.0.2.2; ", 1)
}

// A speaker that starts after the edit learns from the pool's status that the address was the pool's.
func TestPoolOfAKeptAddress(t *testing.T) {
	s := known()
	a := netip.MustParseAddr("192.0.2.1")
	s.service("default/web", loadBalancer("web", a.String()))
	lan := &v1beta1.IPAddressPool{
		ObjectMeta: metav1.ObjectMeta{Name: "lan", UID: "1", Generation: 1},
		Spec:       v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"198.51.100.0/24"}},
	}
	s.pool("lan", lan, false)
	s.Changes()
	if p := s.View().PoolOf(a); p != "" {
		t.Fatalf("pool %q", p)
	}
	lan = lan.DeepCopy()
	lan.Status.Kept = []string{a.String()}
	s.pool("lan", lan, false)
	if c := s.Changes(); c.All || !slices.Equal(c.Addrs, []netip.Addr{a}) {
		t.Errorf("to be decided anew: %+v, want %s", c, a)
	}
	if p := s.View().PoolOf(a); p != "lan" {
		t.Errorf("pool %q, want lan", p)
	}
	s.pool("other", &v1beta1.IPAddressPool{
		ObjectMeta: metav1.ObjectMeta{Name: "other", UID: "2", Generation: 1},
		Spec:       v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"192.0.2.0/24"}},
	}, false)
	s.Changes()
	if p := s.View().PoolOf(a); p != "other" {
		t.Errorf("pool %q, want that which has it now", p)
	}
}

// Whatever the order of events, what is known in the end is the same: the index of addresses matches the Services.
func TestRandomEvents(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	s := known()
	for range 5000 {
		name := fmt.Sprintf("s%d", r.IntN(5))
		switch r.IntN(3) {
		case 0:
			s.service("default/"+name, nil)
		case 1:
			s.service("default/"+name, loadBalancer(name, fmt.Sprintf("192.0.2.%d", r.IntN(4)), fmt.Sprintf("192.0.2.%d", r.IntN(4))))
		case 2:
			s.endpointSlice("default/"+name, "x", slice(endpoint("a", nil, nil, nil)))
		}
		if r.IntN(4) == 0 {
			s.Changes()
		}
		n := 0
		for addr, keys := range s.byAddr {
			if len(keys) == 0 || !slices.IsSorted(keys) {
				t.Fatalf("%s is kept for %v", addr, keys)
			}
			for _, key := range keys {
				if n++; s.as(key, addr) == 0 || s.services[key] == nil {
					t.Fatalf("%s is held for %s, which does not claim it", addr, key)
				}
			}
		}
		for _, m := range s.claimed {
			n -= len(m)
		}
		if n != 0 {
			t.Fatalf("the index and the claims differ by %d", n)
		}
	}
}

// Whatever the events, who owns what is what would be decided from scratch, and what has changed was reported.
func TestOwners(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		s := known()
		pool := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "lan", Generation: 1}, Spec: v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"192.0.2.0/25"}}}
		s.pool("lan", pool, false)
		configObject(s, s.objects.l2)("all", &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"},
			Spec: v1beta1.L2AdvertisementSpec{NodeSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"x": "y"}}}}}, false)
		told := map[netip.Addr]announce.Layer2{}
		for range 200 {
			for range 1 + r.IntN(2*many)*r.IntN(2) {
				node, svc := fmt.Sprint("n", r.IntN(2*many)), fmt.Sprint("s", r.IntN(40))
				switch r.IntN(6) {
				case 0:
					s.node(node, nil)
				case 1, 2:
					s.node(node, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node, Labels: map[string]string{"x": []string{"y", "y", "z"}[r.IntN(3)]}}})
				case 3:
					alive := maps.Clone(s.members)
					if alive[node] = (Member{Gate: []string{"", "", "it should not"}[r.IntN(3)]}); r.IntN(3) == 0 {
						delete(alive, node)
					}
					s.Members(alive)
				case 4:
					o := loadBalancer(svc, fmt.Sprintf("192.0.2.%d", r.IntN(140)))
					if r.IntN(3) == 0 {
						o.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
					}
					s.service("default/"+svc, o)
				case 5:
					s.endpointSlice("default/"+svc, "x", slice(endpoint(node, nil, nil, nil), endpoint(fmt.Sprint("n", r.IntN(2*many)), nil, nil, nil)))
				}
			}
			c := s.Changes()
			scratch := &announce.View{Config: s.View().Config, PoolOf: s.View().PoolOf, Nodes: maps.Clone(s.View().Nodes)}
			now := map[netip.Addr]announce.Layer2{}
			for addr := range s.byAddr {
				if d := scratch.Layer2(addr, s.ClaimsOn(addr)); d.Advertised {
					now[addr] = d
				}
				if is, want := s.Owner(addr), scratch.Layer2(addr, s.ClaimsOn(addr)); !is.Equal(want) {
					t.Fatalf("%s: %+v, from scratch %+v", addr, is, want)
				}
			}
			for addr, d := range told {
				if !d.Equal(now[addr]) && !slices.Contains(c.Addrs, addr) {
					t.Fatalf("%s was %+v, is %+v, and nobody was told", addr, d, now[addr])
				}
			}
			told = now
			n := 0
			for addr, d := range s.Owners() {
				if n++; !d.Equal(now[addr]) {
					t.Fatalf("%s: %+v is listed, want %+v", addr, d, now[addr])
				}
			}
			if n != len(now) {
				t.Fatalf("%d decisions are listed, want %d", n, len(now))
			}
		}
	}
}
