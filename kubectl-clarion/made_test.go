package main

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/digest"
)

// made is a cluster that was made up: a pool for the local network, one for two routers, and Services in both. The
// speakers do what they should.
type made struct {
	client.Client
	t     testing.TB
	nodes []string
}

var madeNames = []string{"shop/web", "shop/checkout", "shop/images", "mail/smtp", "mail/imap", "media/stream", "media/rtmp", "git/ssh", "git/https", "chat/gateway", "data/postgres", "data/kafka", "iot/mqtt", "auth/login", "dns/resolver", "ci/runner"}

func makeUp(t testing.TB, nodes, services int) *made {
	t.Helper()
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	m := &made{t: t}
	builder := fake.NewClientBuilder().WithScheme(scheme)
	ready := []metav1.Condition{{Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready"}}
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name, Generation: 1} }
	builder.WithObjects(&coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: v1beta1.LeaseName, Namespace: "clarion-system", Annotations: map[string]string{
			v1beta1.AnnotationClass: v1beta1.LoadBalancerClass, v1beta1.AnnotationDefaultClass: "true", v1beta1.AnnotationIgnoreExcludeLabel: "false", v1beta1.AnnotationVersion: "v0.1.0"}},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: new("controller-7d4f_0b1c"), LeaseDurationSeconds: new(int32(15)), RenewTime: &metav1.MicroTime{Time: clock}},
	})
	for i := range nodes {
		name := fmt.Sprintf("node%d", i+1)
		if nodes > 9 {
			name = fmt.Sprintf("node%03d", i+1)
		}
		m.nodes = append(m.nodes, name)
		n := &corev1.Node{ObjectMeta: named(name)}
		if nodes > 9 {
			n.Labels = map[string]string{corev1.LabelTopologyZone: fmt.Sprintf("rack%d", 1+i*4/nodes)}
		}
		builder.WithObjects(n, &v1beta1.Speaker{ObjectMeta: named(name)})
	}
	half := services / 2
	lan, routed := netip.MustParseAddr("192.0.2.64"), netip.MustParseAddr("203.0.113.0")
	lanRange, routedRange, lanSize, routedSize := "192.0.2.64-192.0.2.159", "203.0.113.0/26", int64(96), int64(64)
	if services > 100 {
		lan, routed = netip.MustParseAddr("10.64.0.0"), netip.MustParseAddr("10.96.0.0")
		lanRange, routedRange, lanSize, routedSize = "10.64.0.0/18", "10.96.0.0/18", 1<<14, 1<<14
	}
	status := func(used, size int64) v1beta1.IPAddressPoolStatus {
		return v1beta1.IPAddressPoolStatus{AssignedIPv4: used, AvailableIPv4: size - used, Conditions: ready}
	}
	local := &v1beta1.IPAddressPool{ObjectMeta: named("lan"), Spec: v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{v1beta1.AddressRange(lanRange)}}, Status: status(int64(services-half), lanSize)}
	far := &v1beta1.IPAddressPool{ObjectMeta: named("public"), Spec: v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{v1beta1.AddressRange(routedRange)}}, Status: status(int64(half), routedSize)}
	if services <= 100 {
		local.Spec.ExcludeAddresses = []v1beta1.AddressRange{"192.0.2.150-192.0.2.159"}
		local.Spec.Reservations = []v1beta1.Reservation{{Address: "192.0.2.100", Namespace: "shop", Name: "legacy"}, {Address: "192.0.2.101", Namespace: "shop", Name: "legacy2"}}
		local.Status.Resting = []v1beta1.RestingAddress{{Address: "192.0.2.90", Service: "shop/old", Until: metav1.Time{Time: clock.Add(time.Minute)}}}
		local.Status.Quarantined = []string{"192.0.2.120"}
		local.Status.AvailableIPv4 -= 14
	}
	builder.WithObjects(local, far,
		&v1beta1.L2Advertisement{ObjectMeta: named("lan"), Spec: v1beta1.L2AdvertisementSpec{IPAddressPools: []string{"lan"}}, Status: v1beta1.AdvertisementStatus{Conditions: ready}},
		&v1beta1.BGPAdvertisement{ObjectMeta: named("public"), Spec: v1beta1.BGPAdvertisementSpec{IPAddressPools: []string{"public"}, AddressTypes: []v1beta1.AddressType{v1beta1.AddressLoadBalancerIP}, AggregationLength: new(int32(32)), AggregationLengthV6: new(int32(128))}, Status: v1beta1.AdvertisementStatus{Conditions: ready}},
	)
	for i := range 2 {
		builder.WithObjects(&v1beta1.BGPPeer{ObjectMeta: named(fmt.Sprintf("tor%d", i+1)), Spec: v1beta1.BGPPeerSpec{MyASN: 64500, PeerASN: new(int64(64512)), PeerAddress: fmt.Sprintf("192.0.2.%d", i+1), PeerPort: 179}, Status: v1beta1.BGPPeerStatus{Conditions: ready}})
	}
	for i := range services {
		namespace, name := fmt.Sprintf("team%d", i%40), fmt.Sprintf("app%05d", i)
		if i < len(madeNames) {
			var x metav1.ObjectMeta
			for j, c := range madeNames[i] {
				if c == '/' {
					x = metav1.ObjectMeta{Namespace: madeNames[i][:j], Name: madeNames[i][j+1:]}
				}
			}
			namespace, name = x.Namespace, x.Name
		}
		addr, in := lan, "lan"
		if i%2 == 1 {
			addr, in = routed, "public"
			routed = routed.Next()
		} else {
			lan = lan.Next()
		}
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster, ClusterIP: netip.AddrFrom4([4]byte{10, 32, byte(i >> 8), byte(i)}).String(), Ports: []corev1.ServicePort{{Port: 443, Protocol: corev1.ProtocolTCP}}}}
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: addr.String()}}
		svc.Status.Conditions = []metav1.Condition{{Type: v1beta1.ConditionAllocated, Status: metav1.ConditionTrue, Reason: "Allocated", Message: addr.String() + " from the pool " + in}}
		slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}}, AddressType: discoveryv1.AddressTypeIPv4}
		for j := range 2 {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.%d.%d", i%250, j+2)}, NodeName: new(m.nodes[(i*3+j*2)%len(m.nodes)]), Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true)}})
		}
		builder.WithObjects(svc, slice)
	}
	m.Client = builder.Build()
	m.settle()
	return m
}

// settle lets the speakers do what they should, when those of some nodes are dead.
func (m *made) settle(dead ...string) {
	m.t.Helper()
	change := func(f func(name string, s *v1beta1.SpeakerStatus)) {
		for _, name := range m.nodes {
			if !slices.Contains(dead, name) {
				var sp v1beta1.Speaker
				m.edit(name, &sp, func() { f(name, &sp.Status) })
			}
		}
	}
	since := metav1.Time{Time: clock.Add(-time.Hour)}
	change(func(_ string, s *v1beta1.SpeakerStatus) {
		s.Version, s.Interfaces, s.Missing = "v0.1.0", []string{"eth0"}, dead
		s.Conditions = []metav1.Condition{{Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready"}}
		s.Sessions = nil
		for _, peer := range []string{"tor1", "tor2"} {
			s.Sessions = append(s.Sessions, v1beta1.SessionStatus{Peer: peer, Address: "192.0.2." + peer[3:], State: v1beta1.Established, Since: &since, Families: []string{"IPv4"}, HoldTimeSeconds: 90, BFD: "Up", BFDDetectionMilliseconds: 900})
		}
	})
	c, err := load(m.t.Context(), m, reading{namespace: "clarion-system", now: func() time.Time { return clock }, progress: &progress{}})
	if err != nil {
		m.t.Fatal(err)
	}
	owned := map[string][]netip.Addr{}
	routes := 0
	for _, addr := range c.snap.All() {
		if c.snap.View().PoolOf(addr) == "public" {
			routes++
		}
		if owner := c.snap.Owner(addr).Owner; owner != "" {
			owned[owner] = append(owned[owner], addr)
		}
	}
	change(func(name string, s *v1beta1.SpeakerStatus) {
		var sum digest.Sum
		for _, addr := range owned[name] {
			sum += digest.Address(addr)
		}
		s.LocalNetwork = &v1beta1.Layer2Status{Answered: int32(len(owned[name])), Digest: sum.String()}
		for i := range s.Sessions {
			s.Sessions[i].PrefixesIPv4 = int32(routes)
		}
	})
}

// edit changes an object.
func (m *made) edit(name string, o client.Object, f func()) {
	m.t.Helper()
	namespace := o.GetNamespace()
	if err := m.Get(m.t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, o); err != nil {
		m.t.Fatal(err)
	}
	f()
	err := error(nil)
	if _, ok := o.(*corev1.Service); ok { // whose status is apart
		err = m.Status().Update(m.t.Context(), o)
	} else {
		err = m.Update(m.t.Context(), o)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// breakSession takes a node's session with a peer down.
func (m *made) breakSession(node, peer, why string) {
	m.t.Helper()
	var sp v1beta1.Speaker
	m.edit(node, &sp, func() {
		for i := range sp.Status.Sessions {
			if s := &sp.Status.Sessions[i]; s.Peer == peer {
				s.State, s.LastError, s.BFD, s.PrefixesIPv4 = "Active", why, "Down", 0
			}
		}
	})
}
