package plan

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
	"github.com/clarionlb/clarion/internal/announce"
)

var options = Options{Class: allocate.Class{Name: v1beta1.LoadBalancerClass, Default: true}, Now: time.Date(2026, 1, 1, 1, 0, 0, 0, time.UTC)}

// What is planned from the API's objects alone is what a controller and speakers that have been at work all the while come
// to when the edit is made, whatever came before.
func TestPlanIsWhatHappens(t *testing.T) {
	walks := 60
	if testing.Short() {
		walks = 10
	}
	moved, unsure := 0, 0
	for seed := range walks {
		rng := rand.New(rand.NewPCG(uint64(seed), 1))
		live, err := New(t.Context(), options, cluster(rng))
		if err != nil {
			t.Fatal(err)
		}
		for step := range 20 {
			edit, what := randomEdit(rng, live)
			planned, err := New(t.Context(), options, live.Objects())
			if err != nil {
				t.Fatal(err)
			}
			want := live.Services()
			if diff := cmp.Diff(want, planned.Services(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Fatalf("walk %d, before step %d, %s: who has what (-live +read anew):\n%s", seed, step, what, diff)
			}
			got := planned.Try(edit)
			happened := live.Try(edit)
			if len(got.Kept) > 0 { // the last usable form of an object is in no object
				if !slices.Equal(got.Kept, happened.Kept) {
					t.Fatalf("walk %d, step %d, %s: kept %s, live %s", seed, step, what, got.Kept, happened.Kept)
				}
				unsure++
				continue
			}
			opts := cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
			if diff := cmp.Diff(got, happened, opts); diff != "" {
				t.Fatalf("walk %d, step %d, %s (-planned +happened):\n%s", seed, step, what, diff)
			}
			moved += len(got.Services) + len(got.Moves) + len(got.Added) + len(got.Withdrawn)
		}
	}
	if t.Logf("%d things changed in %d walks; %d edits of %d were beside objects that cannot be used", moved, walks, unsure, 20*walks); moved < 10*walks || unsure > 10*walks {
		t.Error("the edits do nothing")
	}
}

// What another controller gave to Services is theirs once a pool has it, and the plan says so: docs/moving.md. A node's
// address is no pool's; of two Services that share none the older keeps it.
func TestTakeOver(t *testing.T) {
	theirs := func(name string, age time.Duration, port int32, addresses ...string) *corev1.Service {
		s := &corev1.Service{ObjectMeta: named(name)}
		s.Namespace, s.CreationTimestamp = "default", metav1.NewTime(options.Now.Add(-age))
		s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIPs: []string{"10.96.0.1"}, Ports: []corev1.ServicePort{{Port: port, Protocol: corev1.ProtocolTCP}}}
		for _, a := range addresses {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
		}
		return s
	}
	node := &corev1.Node{ObjectMeta: named("node1")}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}
	w, err := New(t.Context(), options, []client.Object{
		&corev1.Namespace{ObjectMeta: named("default")}, node,
		theirs("kept", 9*time.Minute, 80, "198.51.100.5"),
		theirs("two", 8*time.Minute, 80, "198.51.100.6", "198.51.100.7"),
		theirs("older", 7*time.Minute, 80, "198.51.100.8"),
		theirs("younger", 6*time.Minute, 443, "198.51.100.8"),
		theirs("node", 5*time.Minute, 80, "192.0.2.1"),
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &v1beta1.IPAddressPool{ObjectMeta: named("lan")}
	p.Spec.Addresses = []v1beta1.AddressRange{"198.51.100.0/28", "192.0.2.0/28"}
	r := w.Try(Edit{Write: []client.Object{p}})
	var got []string
	for _, c := range r.Services {
		got = append(got, fmt.Sprint(c.After.Name, c.After.Addresses))
	}
	want := []string{"default/kept[198.51.100.5]", "default/older[198.51.100.8]", "default/two[198.51.100.6]", "default/younger[192.0.2.0]"}
	if diff := cmp.Diff(want, got); diff != "" { // the one with a node's address is left alone
		t.Error(diff)
	}
}

// An Outcome, which is worked out for many nodes at once, has for each of them what the decisions about that node are.
func TestOutcomeIsEveryNodesDecision(t *testing.T) {
	routes, differ := 0, 0
	for seed := range 40 {
		rng := rand.New(rand.NewPCG(uint64(seed), 2))
		w, err := New(t.Context(), options, cluster(rng))
		if err != nil {
			t.Fatal(err)
		}
		for step := range 20 {
			edit, what := randomEdit(rng, w)
			w.Do(edit)
			up := Sessions(w.Speakers())
			var numbers Nodes
			numbers.set("node4", "one that is gone", "node2") // in no order
			got := Of(w.snap, &numbers, up)
			type route struct{ node, peer, prefix string }
			want, reached := map[route][]byte{}, map[netip.Addr][]string{}
			for _, node := range slices.Sorted(maps.Keys(w.snap.View().Nodes)) {
				if !w.snap.View().Nodes[node].Alive {
					continue
				}
				var all [][]announce.Export
				for _, addr := range w.snap.All() {
					exports := w.snap.View().ForBGP(node, addr, w.snap.ClaimsOn(addr)).Exports
					all = append(all, exports)
					if slices.ContainsFunc(exports, func(e announce.Export) bool { return up(node, e.Peer) }) {
						reached[addr] = append(reached[addr], node)
					}
				}
				for peer, of := range announce.Merge(all) {
					for _, r := range of {
						want[route{node, peer, r.Prefix.String()}] = r.AppendKey(nil)
					}
				}
			}
			is := map[route][]byte{}
			for p, from := range got.routes {
				if routes++; len(from) > 1 {
					differ++
				}
				for _, s := range from {
					for _, node := range numbers.of(s.nodes) {
						is[route{node, p.Peer, p.Prefix.String()}] = s.attrs.AppendKey(nil)
					}
				}
			}
			if diff := cmp.Diff(want, is, cmp.AllowUnexported(route{})); diff != "" {
				t.Fatalf("walk %d, step %d, %s (-one by one +at once):\n%s", seed, step, what, diff)
			}
			for _, addr := range w.snap.All() {
				if nodes := numbers.of(got.Addresses[addr].nodes); !slices.Equal(nodes, reached[addr]) {
					t.Fatalf("walk %d, step %d, %s: %s is announced by %s, want %s", seed, step, what, addr, nodes, reached[addr])
				}
			}
		}
	}
	if t.Logf("%d routes, %d of them with other attributes on some nodes", routes, differ); differ < 100 {
		t.Error("nodes do not differ")
	}
}

func named(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, UID: types.UID(name), Generation: 1}
}

// cluster is four nodes with a zone each, and a few Services.
func cluster(rng *rand.Rand) (out []client.Object) {
	for i := range 4 {
		name := fmt.Sprintf("node%d", i+1)
		n := &corev1.Node{ObjectMeta: named(name)}
		n.Labels = map[string]string{"zone": fmt.Sprint(i % 2)}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.0.2.%d", i+1)}}
		sp := &v1beta1.Speaker{ObjectMeta: named(name)}
		sp.Status.Interfaces = []string{"eth0"}
		sp.Status.Conditions = []metav1.Condition{{Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue}}
		for _, p := range []string{"tor1", "tor2"} {
			sp.Status.Sessions = append(sp.Status.Sessions, v1beta1.SessionStatus{Peer: p, State: v1beta1.Established})
		}
		out = append(out, n, sp)
	}
	out = append(out, &corev1.Namespace{ObjectMeta: named("default")}, randomPool(rng, "lan"), randomL2(rng, "lan"), randomBgp(rng, "routed"), randomPeer(rng, "tor1"), randomPeer(rng, "tor2"))
	for i := range 6 {
		out = append(out, randomService(rng, fmt.Sprintf("s%d", i)), randomSlice(rng, fmt.Sprintf("s%d", i)))
	}
	return out
}

func randomPool(rng *rand.Rand, name string) *v1beta1.IPAddressPool {
	p := &v1beta1.IPAddressPool{ObjectMeta: named(name)}
	first := rng.IntN(4)
	p.Spec.Addresses = []v1beta1.AddressRange{v1beta1.AddressRange(fmt.Sprintf("198.51.100.%d-198.51.100.%d", first, first+1+rng.IntN(8)))}
	if rng.IntN(3) == 0 {
		p.Spec.Addresses = append(p.Spec.Addresses, "192.0.2.0-192.0.2.8")
	}
	p.Spec.OnShrink = []v1beta1.ShrinkPolicy{v1beta1.ShrinkKeep, v1beta1.ShrinkReallocate}[rng.IntN(2)]
	p.Spec.ReuseDelay = &metav1.Duration{Duration: time.Duration(rng.IntN(2)) * time.Minute}
	return p
}

func zone(rng *rand.Rand) v1beta1.Selectors {
	if rng.IntN(2) == 0 {
		return nil
	}
	return v1beta1.Selectors{{MatchLabels: map[string]string{"zone": fmt.Sprint(rng.IntN(3))}}}
}

func randomL2(rng *rand.Rand, name string) *v1beta1.L2Advertisement {
	ad := &v1beta1.L2Advertisement{ObjectMeta: named(name)}
	ad.Spec.NodeSelectors = zone(rng)
	if rng.IntN(4) == 0 {
		ad.Spec.IPAddressPools = []string{[]string{"lan", "other"}[rng.IntN(2)]}
	}
	return ad
}

func randomBgp(rng *rand.Rand, name string) *v1beta1.BGPAdvertisement {
	ad := &v1beta1.BGPAdvertisement{ObjectMeta: named(name)}
	ad.Spec.AddressTypes = []v1beta1.AddressType{v1beta1.AddressLoadBalancerIP}
	ad.Spec.AggregationLength, ad.Spec.AggregationLengthV6 = new(int32(30+rng.IntN(3))), new(int32(128))
	ad.Spec.NodeSelectors, ad.Spec.Weighted = zone(rng), rng.IntN(4) == 0
	if rng.IntN(3) == 0 {
		ad.Spec.Communities = []v1beta1.CommunityReference{[]v1beta1.CommunityReference{"64500:1", "undefined"}[rng.IntN(2)]}
	}
	return ad
}

func randomPeer(rng *rand.Rand, name string) *v1beta1.BGPPeer {
	p := &v1beta1.BGPPeer{ObjectMeta: named(name)}
	p.Spec = v1beta1.BGPPeerSpec{MyASN: 64500, PeerASN: new(int64(64512 + rng.IntN(2))), PeerAddress: "203.0.113." + name[3:], NodeSelectors: zone(rng)}
	if rng.IntN(2) == 0 {
		p.Spec.HoldTime = &metav1.Duration{Duration: 30 * time.Second}
	}
	return p
}

func randomService(rng *rand.Rand, name string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: named(name)}
	s.Namespace = "default"
	s.CreationTimestamp = metav1.NewTime(options.Now.Add(-time.Duration(1+name[1]) * time.Minute))
	s.Spec = corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, ClusterIPs: []string{"10.96.0.1"}, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
		Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
	}
	if rng.IntN(3) == 0 {
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	if rng.IntN(3) == 0 {
		s.Annotations = map[string]string{v1beta1.AnnotationAddresses: fmt.Sprintf("198.51.100.%d", rng.IntN(8))}
	}
	if rng.IntN(5) == 0 {
		s.Spec.Type = corev1.ServiceTypeClusterIP
	}
	return s
}

func randomSlice(rng *rand.Rand, name string) *discoveryv1.EndpointSlice {
	e := &discoveryv1.EndpointSlice{ObjectMeta: named(name), AddressType: discoveryv1.AddressTypeIPv4}
	e.Namespace, e.Labels = "default", map[string]string{discoveryv1.LabelServiceName: name}
	for range rng.IntN(3) {
		is := discoveryv1.Endpoint{Addresses: []string{"10.244.0.1"}, NodeName: new(fmt.Sprintf("node%d", 1+rng.IntN(4)))}
		if rng.IntN(3) == 0 {
			is.Conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)}
		}
		e.Endpoints = append(e.Endpoints, is)
	}
	return e
}

// randomEdit is an edit as people make them, one or two at a time.
func randomEdit(rng *rand.Rand, w *World) (e Edit, what string) {
	for range 1 + rng.IntN(2) {
		var o client.Object
		node := fmt.Sprintf("node%d", 1+rng.IntN(4))
		switch rng.IntN(9) {
		case 0:
			o = randomPool(rng, []string{"lan", "other"}[rng.IntN(2)])
		case 1:
			o = randomL2(rng, []string{"lan", "other"}[rng.IntN(2)])
		case 2:
			o = randomBgp(rng, []string{"routed", "other"}[rng.IntN(2)])
		case 3:
			o = randomPeer(rng, []string{"tor1", "tor2", "tor3"}[rng.IntN(3)])
		case 4, 5:
			o = randomService(rng, fmt.Sprintf("s%d", rng.IntN(8)))
		case 6:
			o = randomSlice(rng, fmt.Sprintf("s%d", rng.IntN(8)))
		case 7:
			n := w.Object(&corev1.Node{ObjectMeta: named(node)}).DeepCopyObject().(*corev1.Node)
			n.Annotations = map[string]string{v1beta1.AnnotationDrain: fmt.Sprint(rng.IntN(2) == 0)}
			o = n
		case 8:
			sp := &v1beta1.Speaker{ObjectMeta: named(node)}
			sp.Status.Interfaces, sp.Status.Drained = []string{"eth0"}, rng.IntN(2) == 0
			sp.Status.Conditions = []metav1.Condition{{Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue}}
			sp.Status.Sessions = []v1beta1.SessionStatus{{Peer: "tor1", State: []string{v1beta1.Established, "Active"}[rng.IntN(2)]}}
			o = sp
		}
		if slices.ContainsFunc(slices.Concat(e.Write, e.Delete), func(x client.Object) bool { return keyOf(x) == keyOf(o) }) {
			continue
		}
		old := w.Object(o)
		if svc, ok := o.(*corev1.Service); ok && old != nil { // whoever edits it leaves its status
			svc.Status = *old.(*corev1.Service).Status.DeepCopy()
		}
		inUse := false
		if p, ok := o.(*v1beta1.IPAddressPool); ok && old != nil {
			p.Status = *old.(*v1beta1.IPAddressPool).Status.DeepCopy()
			inUse = p.Status.AssignedIPv4 > 0 || len(p.Status.Kept) > 0 // the API server refuses to delete it
		}
		_, isNode := o.(*corev1.Node)
		what += fmt.Sprintf("%v ", keyOf(o))
		if old != nil && rng.IntN(4) == 0 && !isNode && !inUse {
			e.Delete = append(e.Delete, old)
			what += "deleted "
		} else {
			e.Write = append(e.Write, o)
		}
	}
	return e, what
}
