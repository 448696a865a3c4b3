package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/speaker/bgp"
	"github.com/clarionlb/clarion/speaker/guard"
	"github.com/clarionlb/clarion/speaker/holddown"
	"github.com/clarionlb/clarion/speaker/layer2"
)

// sinks records the truth that layer 2, BGP and the guard were last given.
type sinks struct {
	layer2, bgp string
	passwords   map[string]string // of the BGP sessions
	guard       []netip.Prefix
	layer2Calls int
	wanted      map[netip.Addr]layer2.Address
	answered    map[netip.Addr]bool // besides what is wanted with rank 0
}

type layer2Sink struct{ *sinks }

func (s layer2Sink) Status() (out layer2.Status) {
	for addr := range s.answered {
		out.Addresses = append(out.Addresses, layer2.AddressStatus{Addr: addr, State: layer2.Answering})
	}
	return out
}

func (s layer2Sink) Set(want []layer2.Address) {
	s.wanted = map[netip.Addr]layer2.Address{}
	s.Change(want)
}

func (s layer2Sink) Change(want []layer2.Address, gone ...netip.Addr) {
	for _, addr := range gone {
		delete(s.wanted, addr)
	}
	for _, a := range want {
		s.wanted[a.Addr] = a
	}
	var out []string
	for _, a := range s.wanted {
		text := strings.TrimSpace(a.Addr.String() + " " + strings.Join(a.Interfaces, ","))
		if a.Rank > 0 {
			text += []string{"", " standby", " leaving"}[a.Rank]
		}
		if a.Probe.Count > 0 {
			text += fmt.Sprintf(" probes %v", a.Probe)
		}
		out = append(out, text)
	}
	slices.Sort(out)
	s.sinks.layer2 = strings.Join(out, "; ")
	s.layer2Calls++
}

type bgpSink struct{ *sinks }

func (s bgpSink) Set(want []bgp.Session) {
	var out []string
	s.passwords = map[string]string{}
	for _, w := range want {
		s.passwords[w.Peer.Name] = w.Peer.Password
		text := w.Peer.Name + " as " + w.Peer.RouterID.String() + ":"
		for _, r := range byPrefix(w.Routes) {
			text += " " + r.Prefix.String()
		}
		out = append(out, text)
	}
	slices.Sort(out)
	s.sinks.bgp = strings.Join(out, "; ")
}

func byPrefix(t route.Table) []route.Route {
	return slices.SortedFunc(t.All(), func(a, b route.Route) int { return a.Prefix.Compare(b.Prefix) })
}

type guardSink struct{ *sinks }

func (s guardSink) Set(want guard.Want) { s.sinks.guard = want.Prefixes }

// world is a reconciler on node a with a cluster that a test makes up.
type world struct {
	t         testing.TB
	have      map[string]client.Object
	r         *reconciler
	informers *informertest.FakeInformers
	now       time.Time
	events    *events.FakeRecorder
	*sinks
}

func newWorld(t testing.TB) *world {
	scheme := runtime.NewScheme()
	_ = clientgoscheme.AddToScheme(scheme)
	_ = v1beta1.AddToScheme(scheme)
	w := &world{t: t, have: map[string]client.Object{}, informers: &informertest.FakeInformers{Scheme: scheme}, sinks: &sinks{layer2: "never told", bgp: "never told"}}
	snap := snapshot.New(snapshot.Options{})
	w.events = events.NewFakeRecorder(10)
	w.r = newReconciler(reconcilerConfig{
		node: "a", namespace: "clarion-system", log: slog.New(slog.DiscardHandler), snapshot: snap, layer2: layer2Sink{w.sinks}, bgp: bgpSink{w.sinks},
		guard: guardSink{w.sinks}, events: w.events, changed: func() {}, named: func([]string) {}, holddown: holddown.New[netip.Addr](0, 0),
	})
	w.r.setOutside([]string{"eth0"})
	if _, err := snap.Watch(t.Context(), w.informers, slog.New(slog.DiscardHandler), w.r.poke); err != nil {
		t.Fatal(err)
	}
	return w
}

// set makes objects exist as given, and decides.
func (w *world) set(objs ...client.Object) {
	w.t.Helper()
	for _, o := range objs {
		inf, err := w.informers.FakeInformerFor(w.t.Context(), o)
		if err != nil {
			w.t.Fatal(err)
		}
		key := fmt.Sprintf("%T %s/%s", o, o.GetNamespace(), o.GetName())
		if old := w.have[key]; old != nil {
			o.SetGeneration(old.GetGeneration() + 1)
			inf.Update(old, o)
		} else {
			inf.Add(o)
		}
		w.have[key] = o
	}
	w.step()
}

func (w *world) del(o client.Object) {
	inf, err := w.informers.FakeInformerFor(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	inf.Delete(o)
	w.step()
}

func (w *world) alive(names ...string) {
	m := map[string]snapshot.Member{}
	for _, n := range names {
		m[n] = snapshot.Member{SessionUp: true, Links: []announce.Link{{Name: "eth0", Up: true}}}
	}
	w.r.snapshot.Lock()
	w.r.snapshot.Members(m)
	w.r.snapshot.Unlock()
	w.step()
}

// step lets time pass that no hold-back outlasts, and decides.
func (w *world) step() {
	w.now = w.now.Add(time.Hour)
	w.r.step(w.now)
}

func (w *world) want(what, l2, bgp string) {
	w.t.Helper()
	if w.sinks.layer2 != l2 || w.sinks.bgp != bgp {
		w.t.Errorf("%s:\nlayer 2 %q, want %q\nBGP %q, want %q", what, w.sinks.layer2, l2, w.sinks.bgp, bgp)
	}
}

func node(name string, addrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

func svc(name string, addrs ...string) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.9"},
		Status:     corev1.ServiceStatus{Conditions: []metav1.Condition{{Type: v1beta1.ConditionAllocated}}},
	}
	for _, a := range addrs {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
	}
	return s
}

func endpoints(service string, nodes ...string) *discoveryv1.EndpointSlice {
	es := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: service + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, n := range nodes {
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.244.0.1"}, NodeName: &n})
	}
	return es
}

// terminating is an endpoint on a node that serves still, and is about to go.
func terminating(node string) discoveryv1.Endpoint {
	yes, no := true, false
	return discoveryv1.Endpoint{Addresses: []string{"10.244.0.2"}, NodeName: &node,
		Conditions: discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}}
}

func peer(name, addr string, edit func(*v1beta1.BGPPeer)) *v1beta1.BGPPeer {
	p := &v1beta1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1beta1.BGPPeerSpec{MyASN: 64500, PeerASN: ptr(int64(64512)), PeerAddress: addr}}
	if edit != nil {
		edit(p)
	}
	return p
}

func lanPool() *v1beta1.IPAddressPool {
	return &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "lan"}, Spec: v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"192.0.2.0/24"}}}
}

// The life of a Service as the sinks see it.
func TestSinksGetTheWholeTruth(t *testing.T) {
	w := newWorld(t)
	lan := lanPool()
	routed := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "routed"}, Spec: v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.0/24"}}}
	w.set(lan, routed, svc("web", "192.0.2.1"), svc("api", "203.0.113.1"), endpoints("web", "a"), endpoints("api", "a", "b"),
		&v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "lan"}, Spec: v1beta1.L2AdvertisementSpec{IPAddressPools: []string{"lan"}, Interfaces: []string{"eth0"}}},
		&v1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}, Spec: v1beta1.BGPAdvertisementSpec{
			IPAddressPools: []string{"routed"}, AddressTypes: []v1beta1.AddressType{v1beta1.AddressLoadBalancerIP, v1beta1.AddressServiceCIDR}}},
		peer("tor", "192.0.2.254", nil))
	w.want("before the node is known", "never told", "never told")

	w.set(node("a", "192.0.2.11"), node("b", "192.0.2.12"))
	w.want("before the members are known", "never told", "tor as 192.0.2.11: 203.0.113.1/32")

	w.alive("a")
	w.r.setJoined()
	w.step()
	w.want("joined", "192.0.2.1 eth0", "tor as 192.0.2.11: 203.0.113.1/32")

	calls := w.layer2Calls
	w.set(svc("web", "192.0.2.1"))
	w.set(endpoints("web", "a"))
	if w.layer2Calls != calls {
		t.Error("layer 2 was told though nothing had changed")
	}

	w.set(&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16"}}})
	w.want("a ServiceCIDR", "192.0.2.1 eth0", "tor as 192.0.2.11: 10.96.0.0/16 203.0.113.1/32")
	slices.SortFunc(w.guard, netip.Prefix.Compare)
	if got := fmt.Sprint(w.guard); got != "[10.96.0.0/16 192.0.2.1/32 203.0.113.1/32]" {
		t.Errorf("guarded: %v, want the announced range and addresses", got)
	}

	w.set(endpoints("api"))
	w.want("no endpoint", "192.0.2.1 eth0", "tor as 192.0.2.11: 10.96.0.0/16")

	local := svc("web", "192.0.2.1")
	local.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	w.set(local, endpoints("web", "b"))
	w.want("Local, and no local endpoint", "", "tor as 192.0.2.11: 10.96.0.0/16")

	w.set(endpoints("web", "a"))
	w.want("Local", "192.0.2.1 eth0", "tor as 192.0.2.11: 10.96.0.0/16")

	w.del(node("a"))
	w.want("the node is no longer known: fail static", "192.0.2.1 eth0", "tor as 192.0.2.11: 10.96.0.0/16")
	w.set(node("a", "192.0.2.11"))

	w.del(local)
	w.want("deleted", "", "tor as 192.0.2.11: 10.96.0.0/16")
}

// With the guard switched off nothing is guarded, and everything is announced.
func TestWithoutGuard(t *testing.T) {
	w := newWorld(t)
	w.r.guard = nil
	w.set(lanPool(), node("a", "192.0.2.11"), svc("web", "192.0.2.1"), endpoints("web", "a"), peer("tor", "192.0.2.254", nil),
		&v1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}})
	w.want("without guard", "never told", "tor as 192.0.2.11: 192.0.2.1/32")
}

// What is wrong with one peer is said of that peer, and the others have their sessions.
func TestSessionsOfBadPeers(t *testing.T) {
	w := newWorld(t)
	secret := func(name string) func(*v1beta1.BGPPeer) {
		return func(p *v1beta1.BGPPeer) { p.Spec.PasswordSecret = &v1beta1.SecretReference{Name: name} }
	}
	w.set(node("a", "2001:db8::1"),
		peer("good", "192.0.2.1", nil),
		peer("twin", "192.0.2.1", func(p *v1beta1.BGPPeer) { p.CreationTimestamp = metav1.Unix(1, 0) }),
		peer("nosecret", "192.0.2.2", secret("missing")),
		peer("nokey", "192.0.2.3", secret("empty")),
		peer("elsewhere", "192.0.2.4", func(p *v1beta1.BGPPeer) {
			p.Spec.NodeSelectors = []metav1.LabelSelector{{MatchLabels: map[string]string{"rack": "r9"}}}
		}))
	w.r.secret("empty", map[string][]byte{}, false)
	w.step()
	id := routerID("a", nil)
	if !id.Is4() || id == routerID("b", nil) {
		t.Errorf("router IDs of nodes without an IPv4 address: %s and %s", id, routerID("b", nil))
	}
	w.want("bad peers", "never told", fmt.Sprintf("good as %s:", id))
	var got []string
	for _, p := range w.r.problems {
		got = append(got, p.Name+": "+p.Message)
	}
	slices.Sort(got)
	want := []string{
		`nokey: spec.passwordSecret: the Secret clarion-system/empty has no key "password"; no session is opened until there is`,
		`nosecret: spec.passwordSecret: there is no Secret clarion-system/missing; no session is opened until there is`,
		`twin: spec.peerAddress: the older BGPPeer "good" is the same router, 192.0.2.1:179; its session is used`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("problems:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	w.r.secret("missing", map[string][]byte{"password": []byte("s3cret")}, false)
	w.step()
	w.want("the Secret is there", "never told", fmt.Sprintf("good as %s:; nosecret as %s:", id, id))

	w.r.secret("missing", map[string][]byte{"password": []byte("n3w")}, false)
	w.step()
	select {
	case e := <-w.events.Events:
		if !strings.Contains(e, "PasswordChanged") {
			t.Errorf("event %q", e)
		}
	default:
		t.Error("no event says that the password was changed")
	}

	// A Secret that a tool deletes and makes again, and a Node without addresses, cost no session.
	before := w.sinks.bgp
	w.r.secret("missing", nil, true)
	w.step()
	if got := w.sinks.passwords["nosecret"]; got != "n3w" || w.sinks.bgp != before {
		t.Errorf("without its Secret the session has the password %q; sessions %s", got, w.sinks.bgp)
	}
	if len(w.events.Events) != 1 || !strings.Contains(<-w.events.Events, "PasswordLost") {
		t.Error("no event says that the Secret is gone")
	}
	if !slices.ContainsFunc(w.r.problems, func(p config.Problem) bool {
		return p.Name == "nosecret" && strings.Contains(p.Message, "there is no Secret clarion-system/missing; the session goes on with the last password")
	}) {
		t.Errorf("problems: %+v", w.r.problems)
	}
	w.r.secret("missing", map[string][]byte{"password": []byte("n3w")}, false)
	w.step()
	if len(w.events.Events) != 0 {
		t.Errorf("the same Secret is back: %s", <-w.events.Events)
	}
	w.set(node("a", "192.0.2.99"))
	w.step()
	with := w.sinks.bgp
	w.set(node("a"))
	w.step()
	if w.sinks.bgp != with || !strings.Contains(with, "good as 192.0.2.99:") {
		t.Errorf("without addresses: %s, with: %s", w.sinks.bgp, with)
	}
}

// A member that this node takes for dead, but that has the better right, is yielded to when it is heard.
func TestRights(t *testing.T) {
	w := newWorld(t)
	w.set(lanPool(), &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}}, node("a"), node("b"), node("c"))
	w.r.setJoined()
	better := 0
	for i := range 60 {
		name := fmt.Sprintf("s%d", i)
		addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		w.set(svc(name, addr.String()), endpoints(name, "a"))
		w.alive("a", "b", "c")
		d, ok := w.r.roles[addr]
		mine := ok && d.Rank == 0
		w.alive("a")
		if d, ok := w.r.roles[addr]; !ok || d.Rank > 0 {
			t.Fatalf("the only live node does not own %s", addr)
		}
		heard := w.r.verdict("b", addr) == layer2.Yield || w.r.verdict("c", addr) == layer2.Yield
		if heard == mine {
			t.Errorf("%s: owner when all are alive: %v; somebody else has the better right: %v", addr, mine, heard)
		}
		if heard {
			better++
		}
	}
	if better == 0 || better == 60 {
		t.Errorf("of 60 addresses others have the better right to %d: the test says nothing", better)
	}
}

// A node that is being drained makes its routes the last choice first, and withdraws them when time is up.
func TestDrain(t *testing.T) {
	w := newWorld(t)
	w.r.drainTime = 30 * time.Second
	w.set(lanPool(), node("a", "192.0.2.11"), node("b", "192.0.2.12"), svc("web", "192.0.2.1"), endpoints("web", "a", "b"), peer("tor", "192.0.2.254", nil),
		&v1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}})
	w.alive("a", "b")
	exports := func() string {
		var out []string
		for _, e := range w.r.exports[netip.MustParseAddr("192.0.2.1")] {
			out = append(out, fmt.Sprint(e.Prefix, e.Communities))
		}
		return strings.Join(out, " ")
	}
	if got := exports(); got != "192.0.2.1/32 []" {
		t.Fatalf("before: %s", got)
	}
	drained := node("a", "192.0.2.11")
	drained.Annotations = map[string]string{v1beta1.AnnotationDrain: "true"}
	inf, _ := w.informers.FakeInformerFor(t.Context(), drained)
	inf.Update(drained, drained)
	w.r.step(w.now)
	if got, next := exports(), w.r.next(); got != "192.0.2.1/32 [65535:0]" || !next.Equal(w.now.Add(30*time.Second)) {
		t.Errorf("draining: %s, next look in %v", got, next.Sub(w.now))
	}
	w.r.step(w.now.Add(29 * time.Second))
	if got := exports(); got != "192.0.2.1/32 [65535:0]" {
		t.Errorf("still draining: %s", got)
	}
	inf.Delete(drained) // and nobody is there to be drained: there is nothing to wait for
	w.r.step(w.now.Add(29 * time.Second))
	if next := w.r.next(); !next.IsZero() {
		t.Errorf("next look in %v without a Node", next.Sub(w.now))
	}
	inf.Add(drained)
	w.r.step(w.now.Add(30 * time.Second))
	if got, next := exports(), w.r.next(); got != "" || !next.IsZero() {
		t.Errorf("drained: %q, next look at %v", got, next)
	}
	inf.Update(drained, node("a", "192.0.2.11"))
	w.r.step(w.now.Add(40 * time.Second))
	if got := exports(); got != "192.0.2.1/32 []" {
		t.Errorf("back: %s", got)
	}
}

// A weight that has just been sent is not changed again at once.
func TestWeightsAreNotChangedTooOften(t *testing.T) {
	w := newWorld(t)
	w.set(lanPool(), node("a", "192.0.2.11"), svc("web", "192.0.2.1"), endpoints("web", "a"), peer("tor", "192.0.2.254", nil),
		&v1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}, Spec: v1beta1.BGPAdvertisementSpec{Weighted: true}})
	addr := netip.MustParseAddr("192.0.2.1")
	sent := func(now time.Time, n int) float32 {
		nodes := slices.Repeat([]string{"a"}, n)
		es := endpoints("web", nodes...)
		inf, _ := w.informers.FakeInformerFor(t.Context(), es)
		inf.Update(es, es)
		w.r.step(now)
		return w.r.exports[addr][0].Bandwidth / 125e6
	}
	now := w.now.Add(time.Hour)
	if got := sent(now, 4); got != 4 {
		t.Errorf("4 endpoints weigh %v", got)
	}
	if got := sent(now.Add(100*time.Millisecond), 8); got != 4 {
		t.Errorf("8 endpoints weigh %v a moment later, want still 4", got)
	}
	if next := w.r.next(); !next.Equal(now.Add(weightInterval)) {
		t.Errorf("next look at %v, want %v", next, now.Add(weightInterval))
	}
	w.r.step(now.Add(weightInterval))
	if got := w.r.exports[addr][0].Bandwidth / 125e6; got != 8 {
		t.Errorf("8 endpoints weigh %v in the end", got)
	}
}

// A Service whose endpoints come and go is withdrawn at once, and announced again only after a while, but for one node of
// those that can, so that there is always a way. A rollout is no such coming and going.
func TestFlappingServiceIsHeldDown(t *testing.T) {
	w := newWorld(t)
	w.r.holddown = holddown.New[netip.Addr](time.Second, time.Minute)
	w.set(lanPool(), node("a", "192.0.2.11"), node("b", "192.0.2.12"), peer("tor", "192.0.2.254", nil),
		&v1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}})
	members := func(others ...string) {
		all := map[string]snapshot.Member{"a": {SessionUp: true}}
		for _, o := range others {
			all[o] = snapshot.Member{SessionUp: true}
		}
		w.r.snapshot.Lock()
		w.r.snapshot.Members(all)
		w.r.snapshot.Unlock()
	}
	members("b")
	w.step()
	leads, follows := netip.Addr{}, netip.Addr{}
	for i := 1; !leads.IsValid() || !follows.IsValid(); i++ {
		addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		w.set(svc("web", addr.String()), endpoints("web", "a", "b"))
		w.r.snapshot.Lock()
		if first := w.r.snapshot.View().Leads("a", addr, w.r.snapshot.ClaimsOn(addr)); first {
			leads = addr
		} else {
			follows = addr
		}
		if w.r.snapshot.View().Leads("b", addr, w.r.snapshot.ClaimsOn(addr)) != (follows == addr) {
			t.Errorf("%s has two first nodes, or none", addr)
		}
		w.r.snapshot.Unlock()
	}
	inf, _ := w.informers.FakeInformerFor(t.Context(), endpoints("web"))
	at := func(addr netip.Addr, now time.Time, want bool, es *discoveryv1.EndpointSlice) {
		t.Helper()
		inf.Update(es, es)
		w.r.step(now)
		if got := len(w.r.exports[addr]) > 0; got != want {
			t.Errorf("after %v: %s is announced: %t, want %t", now.Sub(w.now), addr, got, want)
		}
	}
	for _, addr := range []netip.Addr{leads, follows} {
		w.set(svc("web", addr.String()), endpoints("web", "a", "b"))
		now := w.now
		at(addr, now, true, endpoints("web", "a", "b"))
		at(addr, now.Add(10*time.Millisecond), false, endpoints("web"))
		at(addr, now.Add(20*time.Millisecond), addr == leads, endpoints("web", "a", "b"))
		if next := w.r.next(); addr == follows && !next.Equal(now.Add(1020*time.Millisecond)) {
			t.Errorf("next look %v later", next.Sub(now))
		}
	}
	members()
	if w.r.step(w.now.Add(30 * time.Millisecond)); len(w.r.exports[follows]) == 0 {
		t.Error("the other node is dead, and there is no way")
	}
	members("b")
	w.step()
	w.set(svc("web", follows.String()), endpoints("web", "b"))
	local := svc("web", follows.String())
	local.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	w.set(local)
	w.r.holddown = holddown.New[netip.Addr](time.Second, time.Minute)
	for i := range 7 {
		now := w.now.Add(time.Duration(i) * 5 * time.Second)
		at(follows, now, true, endpoints("web", "a", "b"))
		es := endpoints("web", "b")
		es.Endpoints = append(es.Endpoints, terminating("a"))
		at(follows, now.Add(time.Second), true, es)
		at(follows, now.Add(2*time.Second), false, endpoints("web", "b"))
	}
}

// The second in line stands by. One that takes over from a node that is said to be dead first makes sure of that. What nobody has announced before is looked for on the network first.
func TestTakeover(t *testing.T) {
	w := newWorld(t)
	w.r.acd = layer2.DefaultProbe()
	w.set(lanPool(), &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}}, node("a"), node("b"), svc("web", "192.0.2.1"), endpoints("web", "a"))
	w.r.setJoined()
	w.alive("a", "b")
	w.alive("b")
	for i := range 40 { // until one is found that is b's when both are alive
		addr := fmt.Sprintf("192.0.2.%d", i)
		w.set(svc("web", addr))
		w.alive("a", "b")
		if w.r.roles[netip.MustParseAddr(addr)].Rank > 0 {
			w.want("the other one owns it", addr+" standby", "")
			w.alive("a")
			w.want("the other one is said to be dead", addr+" probes {3 30ms}", "")
			w.set(svc("web", "192.0.2.201"))
			w.want("an address that nobody has announced before", "192.0.2.201 probes {3 200ms}", "")
			w.set(svc("other", "192.0.2.202"))
			w.want("another event does not cut the search short", "192.0.2.201 probes {3 200ms}", "")
			return
		}
	}
	t.Fatal("a owns every address")
}

// What this node answers for when two others come before it is answered until one of them is heard to do so; then it is
// no longer this node's. With failback Never it is this node's for as long as it can serve it, and it leaves to others,
// too, what they have.
func TestLeaving(t *testing.T) {
	for _, failback := range []v1beta1.Failback{v1beta1.FailbackAlways, v1beta1.FailbackNever} {
		t.Run(string(failback), func(t *testing.T) {
			w := newWorld(t)
			w.set(lanPool(), &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}, Spec: v1beta1.L2AdvertisementSpec{Failback: failback}},
				node("a"), node("b"), node("c"))
			w.r.setJoined()
			w.alive("a", "b", "c")
			last, first := netip.Addr{}, netip.Addr{} // a is the last for one and the first for the other
			for i := 1; !last.IsValid() || !first.IsValid(); i++ {
				addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
				w.set(svc("web", addr.String()), endpoints("web", "a"))
				switch d, ok := w.r.roles[addr]; {
				case !ok:
					last = addr
				case d.Rank == 0:
					first = addr
				}
			}
			w.set(svc("web", last.String()))
			w.want("the others own it", "", "")
			w.alive("a")
			w.want("the others are gone", last.String()+" probes {3 30ms}", "")
			w.answered = map[netip.Addr]bool{last: true}
			w.alive("a", "b", "c")
			w.want("the others are back", last.String()+" leaving", "")
			if v := w.r.verdict("b", last); v != layer2.Yield {
				t.Errorf("another one that answers gets %v, want to be yielded to", v)
			}
			w.set(endpoints("web"))
			w.want("no endpoint", "", "")
			w.set(endpoints("web", "a"))
			w.want("and again", "", "")
			w.alive("a")
			w.alive("a", "b", "c")
			w.answered = nil
			w.r.answersChanged()
			w.step()
			w.want("one of the others is heard", "", "")

			w.set(svc("web", first.String()))
			probe, behind := "", layer2.Defend
			if failback == v1beta1.FailbackNever {
				probe, behind = " probes {3 30ms}", layer2.Leave
			}
			w.alive("b", "c")
			w.alive("a", "b", "c")
			w.want("this one is back", first.String()+probe, "")
			if v := w.r.verdict("b", first); v != behind {
				t.Errorf("another one that answers gets %v, want %v", v, behind)
			}
			w.alive("a", "c")
			if v := w.r.verdict("b", first); v != behind {
				t.Errorf("another one that answers and is said to be dead gets %v, want %v", v, behind)
			}
			w.r.snapshot.Lock()
			w.r.snapshot.Members(map[string]snapshot.Member{"a": {}, "b": {Gate: "the node's Service proxy is unhealthy"}, "c": {}})
			w.r.snapshot.Unlock()
			w.step()
			if v := w.r.verdict("b", first); v != layer2.Defend {
				t.Errorf("another one that answers and should not gets %v, want to be told", v)
			}
		})
	}
}

// A node whose Node is deleted keeps what it answers for until another one has it, and does not defend it: for the others it
// is none that could have it.
func TestNodeGone(t *testing.T) {
	w := newWorld(t)
	me := node("a")
	w.set(lanPool(), &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}}, me, node("b"), svc("web", "192.0.2.1"), endpoints("web", "b"))
	w.r.setJoined()
	w.alive("a")
	addr := netip.MustParseAddr("192.0.2.1")
	w.alive("a", "b")
	if v := w.r.verdict("c", addr); v != layer2.Defend {
		t.Fatalf("one that has no right gets %v, want to be told", v)
	}
	before := w.sinks.layer2
	w.del(me)
	w.want("the Node is gone", before, "")
	if v := w.r.verdict("c", addr); v != layer2.Yield {
		t.Errorf("another one gets %v when the Node is gone, want to be yielded to", v)
	}
	delete(w.have, "*v1.Node /a")
	w.set(node("a"))
	if v := w.r.verdict("c", addr); v != layer2.Defend {
		t.Errorf("one that has no right gets %v when the Node is back, want to be told", v)
	}
}
