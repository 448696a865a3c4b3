// Package snapshot reduces Kubernetes objects to what decisions are made of, and keeps track of which addresses have to
// be decided anew. The speaker decides from it what to announce; the controller says from it what is announced and why
// not. It does no I/O but for Watch, which feeds it from a cache.
package snapshot

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/pool"
)

// Snapshot is what is known of the cluster. It must be locked while its methods, other than Watch, or what they returned
// are used.
type Snapshot struct {
	sync.Mutex
	defaultClass bool

	services map[string]*announce.Service                    // by namespace/name
	claimed  map[string]map[netip.Addr][]v1beta1.AddressType // the addresses of each of them
	byAddr   map[netip.Addr]map[string]bool                  // the Services that claim an address
	slices   map[string]map[string]endpointSlice             // of each Service, by name of the slice
	nodes    map[string]*Node
	fellows  map[string]Fellow
	drained  map[string]bool           // nodes whose time to be drained is up
	cidrs    map[string][]netip.Prefix // of each ServiceCIDR
	objects  objects

	view     announce.View
	layer2   *announce.Plan // nil when it has to be made anew
	problems []config.Problem
	pools    *pool.Set
	lastPool map[netip.Addr]string             // the pool that an address was in when it last was in one
	kept     map[netip.Addr]string             // the pools of addresses that are in none, as the pools' statuses say
	gone     map[string]*v1beta1.IPAddressPool // deleted pools that may be among them

	dirty       map[netip.Addr]bool // addresses to decide anew
	lost        map[string]bool     // Services that have lost an address
	dirtyAll    bool                // every address and range
	dirtyConfig bool                // the configuration objects have changed
}

type objects struct {
	pools map[string]*v1beta1.IPAddressPool
	l2    map[string]*v1beta1.L2Advertisement
	bgp   map[string]*v1beta1.BGPAdvertisement
	peers map[string]*v1beta1.BGPPeer
	bfd   map[string]*v1beta1.BFDProfile
	comms map[string]*v1beta1.Community
}

// endpointSlice counts the endpoints of one slice.
type endpointSlice struct {
	v6 bool
	announce.Endpoints
}

// Node is what a Node object says.
type Node struct {
	// UID of the object.
	UID    types.UID
	Labels labels.Set
	// Addresses are the node's InternalIPs.
	Addresses []netip.Addr
	PodCIDRs  []netip.Prefix

	notReady bool   // see NotReady
	excluded string // why the node never announces
	draining string // why it should not while others can
}

// Fellow is what a live speaker says of its node.
type Fellow struct {
	// Links that addresses can be announced on, nil when not known.
	Links []announce.Link
	// Gate says why the node should not attract traffic while others can; "" if it may.
	Gate string
}

// New is a Snapshot in which nothing is known. With defaultClass, Services of type LoadBalancer without a class are
// Clarion's.
func New(defaultClass bool) *Snapshot {
	return &Snapshot{
		defaultClass: defaultClass,
		services:     map[string]*announce.Service{},
		claimed:      map[string]map[netip.Addr][]v1beta1.AddressType{},
		byAddr:       map[netip.Addr]map[string]bool{},
		slices:       map[string]map[string]endpointSlice{},
		nodes:        map[string]*Node{},
		fellows:      map[string]Fellow{},
		drained:      map[string]bool{},
		cidrs:        map[string][]netip.Prefix{},
		objects: objects{
			map[string]*v1beta1.IPAddressPool{}, map[string]*v1beta1.L2Advertisement{}, map[string]*v1beta1.BGPAdvertisement{},
			map[string]*v1beta1.BGPPeer{}, map[string]*v1beta1.BFDProfile{}, map[string]*v1beta1.Community{},
		},
		lastPool:    map[netip.Addr]string{},
		gone:        map[string]*v1beta1.IPAddressPool{},
		dirty:       map[netip.Addr]bool{},
		lost:        map[string]bool{},
		dirtyConfig: true,
	}
}

// Changes are what has to be decided anew.
type Changes struct {
	// Addrs are the addresses to decide anew, in no order.
	Addrs []netip.Addr
	// Services (namespace/name) are those that have or had these addresses, in no order.
	Services []string
	// All says that something has changed that every address, range and session depends on.
	All bool
}

// Changes returns what has to be decided anew since the last call, and brings View up to date.
func (s *Snapshot) Changes() Changes {
	s.configure()
	c := Changes{All: s.dirtyAll}
	if c.All {
		s.refresh()
		for addr := range s.byAddr {
			s.dirty[addr] = true
		}
	}
	for addr := range s.dirty {
		c.Addrs = append(c.Addrs, addr)
		for key := range s.byAddr[addr] {
			s.lost[key] = true
		}
	}
	if c.All || len(c.Addrs) > 0 {
		s.layer2 = nil
	}
	c.Services = slices.Collect(maps.Keys(s.lost))
	s.dirty, s.lost, s.dirtyAll = map[netip.Addr]bool{}, map[string]bool{}, false
	return c
}

// SetDrained says whether the time that a node was given to be drained is up.
func (s *Snapshot) SetDrained(node string, drained bool) {
	if s.drained[node] != drained {
		s.drained[node] = drained
		s.dirtyAll = true
	}
}

// Mark makes the next Changes include an address.
func (s *Snapshot) Mark(addr netip.Addr) { s.dirty[addr] = true }

// MarkAll makes the next Changes everything.
func (s *Snapshot) MarkAll() { s.dirtyAll = true }

// View is the cluster as of the last Changes.
func (s *Snapshot) View() *announce.View { return &s.view }

// Layer2 is who owns which address on the local network, as of the last Changes. A change to one address can move others.
func (s *Snapshot) Layer2() *announce.Plan {
	if s.layer2 == nil {
		claims := map[netip.Addr][]announce.Claim{}
		for _, addrs := range s.claimed {
			for addr, types := range addrs {
				if claims[addr] == nil && slices.Contains(types, v1beta1.AddressLoadBalancerIP) {
					claims[addr] = s.ClaimsOn(addr)
				}
			}
		}
		s.layer2 = s.view.PlanLayer2(claims)
	}
	return s.layer2
}

// Problems are those of the configuration objects as of the last Changes.
func (s *Snapshot) Problems() []config.Problem { return s.problems }

// Meetings says of every BGPAdvertisement which others it meets on a prefix: see config.Config.Meetings.
func (s *Snapshot) Meetings() map[string][]string {
	return s.view.Config.Meetings(slices.Sorted(maps.Keys(s.objects.pools)), slices.Sorted(maps.Keys(s.objects.peers)))
}

// Node is what is known of a node, nil if nothing is.
func (s *Snapshot) Node(name string) *Node { return s.nodes[name] }

// BGPPeer is the object of that name, nil if there is none. It must not be changed.
func (s *Snapshot) BGPPeer(name string) *v1beta1.BGPPeer { return s.objects.peers[name] }

// ServiceCIDRs are the ranges that the ClusterIPs of the cluster are in, sorted.
func (s *Snapshot) ServiceCIDRs() []netip.Prefix {
	out := slices.Concat(slices.Collect(maps.Values(s.cidrs))...)
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// Addresses are the addresses of a Service (namespace/name) of one type, sorted.
func (s *Snapshot) Addresses(key string, t v1beta1.AddressType) []netip.Addr {
	var out []netip.Addr
	for addr, types := range s.claimed[key] {
		if slices.Contains(types, t) {
			out = append(out, addr)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Fellows takes in the speakers that are alive, and what they say of their nodes.
func (s *Snapshot) Fellows(alive map[string]Fellow) {
	if !maps.EqualFunc(alive, s.fellows, func(a, b Fellow) bool { return a.Gate == b.Gate && slices.Equal(a.Links, b.Links) }) {
		s.fellows = alive
		s.dirtyAll = true
	}
}

// NotReady says whether Kubernetes has lost a node: its condition Ready is there and not True. It notices some 40 seconds
// late, and also when only its own agent on the node has died, so that no announcement depends on it.
func NotReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue
	})
}

// NotReady says whether Kubernetes has lost the node of that name; see the function of that name.
func (s *Snapshot) NotReady(node string) bool {
	n := s.nodes[node]
	return n != nil && n.notReady
}

// Ended says whether a speaker has ended, by its own last words.
func Ended(sp *v1beta1.Speaker) bool {
	c := meta.FindStatusCondition(sp.Status.Conditions, v1beta1.ConditionReady)
	return c != nil && c.Status == metav1.ConditionFalse && c.Reason == v1beta1.ReasonEnded
}

// Living are the nodes whose speakers are alive, by the members that each speaker last wrote to see, its own among them:
// those that more than half of the speakers name. The last words of those that died stay, so those on nodes that are not
// ready do not count, if there are others; nor do those that say that they have ended.
func Living(speakers map[string]*v1beta1.Speaker, notReady func(node string) bool) map[string]bool {
	votes, voters := map[string]int{}, 0
	for _, all := range []bool{false, true} {
		for node, sp := range speakers {
			if !Ended(sp) && (all || !notReady(node)) {
				voters++
				for _, m := range sp.Status.Members {
					votes[m]++
				}
			}
		}
		if voters > 0 {
			break
		}
	}
	out := map[string]bool{}
	for node, sp := range speakers {
		if 2*votes[node] > voters && !Ended(sp) {
			out[node] = true
		}
	}
	return out
}

// Speakers takes in what all speakers have written of themselves: who is alive, and what those say of their nodes. It is
// for whoever is no speaker; speakers know that from each other, and sooner.
func (s *Snapshot) Speakers(speakers map[string]*v1beta1.Speaker) {
	alive := map[string]Fellow{}
	for name := range Living(speakers, s.NotReady) {
		status := &speakers[name].Status
		fe := Fellow{Gate: status.Gate}
		for _, i := range status.Interfaces {
			fe.Links = append(fe.Links, announce.Link{Name: i, Up: true}) // which of them are up is not told
		}
		alive[name] = fe
		s.SetDrained(name, status.Drained)
	}
	s.Fellows(alive)
}

// service takes in a Service, nil when it is gone.
func (s *Snapshot) service(key string, svc *corev1.Service) {
	old := s.services[key]
	if svc == nil {
		s.claims(key, nil)
		delete(s.services, key)
		return
	}
	next := &announce.Service{
		Namespace: svc.Namespace, Name: svc.Name, Labels: svc.Labels, Created: svc.CreationTimestamp.Time,
		LocalExternal: svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		LocalInternal: svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
	}
	if old != nil {
		next.Endpoints4, next.Endpoints6 = old.Endpoints4, old.Endpoints6
	} else {
		next.Endpoints4, next.Endpoints6 = sumEndpoints(s.slices[key])
	}
	changed := old == nil || !old.Created.Equal(next.Created) || !maps.Equal(old.Labels, next.Labels) || old.LocalExternal != next.LocalExternal || old.LocalInternal != next.LocalInternal
	s.services[key] = next
	s.claims(key, s.addressesOf(svc))
	if changed {
		s.touch(key)
	}
}

// addressesOf are the addresses that a Service has, and in which way.
func (s *Snapshot) addressesOf(svc *corev1.Service) map[netip.Addr][]v1beta1.AddressType {
	out := map[netip.Addr][]v1beta1.AddressType{}
	add := func(t v1beta1.AddressType, in ...string) {
		for _, a := range in {
			if addr, err := netip.ParseAddr(a); err == nil {
				out[addr.Unmap()] = append(out[addr.Unmap()], t)
			}
		}
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	if s.ours(svc) {
		for _, i := range svc.Status.LoadBalancer.Ingress {
			add(v1beta1.AddressLoadBalancerIP, i.IP)
		}
	}
	add(v1beta1.AddressExternalIP, svc.Spec.ExternalIPs...)
	add(v1beta1.AddressClusterIP, svc.Spec.ClusterIPs...)
	return out
}

// ours says whether the addresses in the status of a Service were given by the controller of this Clarion: the Service
// is of its class, and carries its condition.
func (s *Snapshot) ours(svc *corev1.Service) bool {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return false
	}
	if c := svc.Spec.LoadBalancerClass; c != nil && *c != v1beta1.LoadBalancerClass || c == nil && !s.defaultClass {
		return false
	}
	return slices.ContainsFunc(svc.Status.Conditions, func(c metav1.Condition) bool { return c.Type == v1beta1.ConditionAllocated })
}

// claims replaces the addresses of a Service; those it gained or lost have to be decided anew.
func (s *Snapshot) claims(key string, next map[netip.Addr][]v1beta1.AddressType) {
	old := s.claimed[key]
	for addr, types := range old {
		if !slices.Equal(types, next[addr]) {
			s.dirty[addr] = true
		}
		if next[addr] == nil {
			s.lost[key] = true
			if delete(s.byAddr[addr], key); len(s.byAddr[addr]) == 0 {
				delete(s.byAddr, addr)
				delete(s.lastPool, addr)
			}
		}
	}
	for addr, types := range next {
		if !slices.Equal(types, old[addr]) {
			s.dirty[addr] = true
		}
		if s.byAddr[addr] == nil {
			s.byAddr[addr] = map[string]bool{}
		}
		s.byAddr[addr][key] = true
	}
	if len(next) == 0 {
		delete(s.claimed, key)
		return
	}
	s.claimed[key] = next
}

// touch marks the addresses of a Service to be decided anew.
func (s *Snapshot) touch(key string) {
	for addr := range s.claimed[key] {
		s.dirty[addr] = true
	}
}

// endpointSlice takes in an EndpointSlice, nil when it is gone.
func (s *Snapshot) endpointSlice(service, name string, es *discoveryv1.EndpointSlice) {
	if es == nil {
		if delete(s.slices[service], name); len(s.slices[service]) == 0 {
			delete(s.slices, service)
		}
	} else {
		if s.slices[service] == nil {
			s.slices[service] = map[string]endpointSlice{}
		}
		s.slices[service][name] = countEndpoints(es)
	}
	svc := s.services[service]
	if svc == nil {
		return
	}
	e4, e6 := sumEndpoints(s.slices[service])
	if equalEndpoints(e4, svc.Endpoints4) && equalEndpoints(e6, svc.Endpoints6) {
		return
	}
	next := *svc
	next.Endpoints4, next.Endpoints6 = e4, e6
	s.services[service] = &next
	s.touch(service)
}

func equalEndpoints(a, b announce.Endpoints) bool {
	return maps.Equal(a.Ready, b.Ready) && maps.Equal(a.Terminating, b.Terminating)
}

// countEndpoints counts a slice's endpoints as the Service proxy does: ready ones (unset means ready), and beside them
// those that terminate but still serve (KEP-1669).
func countEndpoints(es *discoveryv1.EndpointSlice) endpointSlice {
	out := endpointSlice{v6: es.AddressType == discoveryv1.AddressTypeIPv6, Endpoints: announce.Endpoints{Ready: map[string]int{}, Terminating: map[string]int{}}}
	for i := range es.Endpoints {
		e := &es.Endpoints[i]
		is := func(b *bool, unset bool) bool {
			if b == nil {
				return unset
			}
			return *b
		}
		node := ""
		if e.NodeName != nil {
			node = *e.NodeName
		}
		switch ready := is(e.Conditions.Ready, true); {
		case len(e.Addresses) == 0:
		case ready:
			out.Ready[node]++
		case is(e.Conditions.Serving, ready) && is(e.Conditions.Terminating, false):
			out.Terminating[node]++
		}
	}
	return out
}

func sumEndpoints(in map[string]endpointSlice) (e4, e6 announce.Endpoints) {
	e4 = announce.Endpoints{Ready: map[string]int{}, Terminating: map[string]int{}}
	e6 = announce.Endpoints{Ready: map[string]int{}, Terminating: map[string]int{}}
	for _, es := range in {
		to := e4
		if es.v6 {
			to = e6
		}
		for n, c := range es.Ready {
			to.Ready[n] += c
		}
		for n, c := range es.Terminating {
			to.Terminating[n] += c
		}
	}
	return e4, e6
}

// node takes in a Node, nil when it is gone.
func (s *Snapshot) node(name string, n *corev1.Node) {
	if n == nil {
		delete(s.nodes, name)
		s.dirtyAll = true
		return
	}
	next := factsOf(n)
	if old := s.nodes[name]; old == nil || !old.equal(next) {
		s.nodes[name] = next
		s.dirtyAll = true
	}
}

// Taints that say that a node is about to go.
const (
	taintOutOfService = "node.kubernetes.io/out-of-service" // KEP-2268
	taintToBeDeleted  = "ToBeDeletedByClusterAutoscaler"    // the cluster autoscaler's
)

func factsOf(n *corev1.Node) *Node {
	f := &Node{UID: n.UID, Labels: n.Labels, notReady: NotReady(n)}
	if _, ok := n.Labels[corev1.LabelNodeExcludeBalancers]; ok {
		f.excluded = "the node has the label " + corev1.LabelNodeExcludeBalancers
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionTrue {
			f.excluded = "the node's network is unavailable (condition NetworkUnavailable)"
		}
	}
	if n.Annotations[v1beta1.AnnotationDrain] == "true" {
		f.draining = "the node is being drained (annotation " + v1beta1.AnnotationDrain + ")"
	}
	for _, t := range n.Spec.Taints {
		if t.Key == taintOutOfService || t.Key == taintToBeDeleted {
			f.draining = "the node is about to go (taint " + t.Key + ")"
		}
	}
	for _, c := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(c); err == nil {
			f.PodCIDRs = append(f.PodCIDRs, p.Masked())
		}
	}
	for _, a := range n.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			f.Addresses = append(f.Addresses, addr.Unmap())
		}
	}
	return f
}

func (f *Node) equal(g *Node) bool {
	return f.UID == g.UID && maps.Equal(f.Labels, g.Labels) && f.notReady == g.notReady && f.excluded == g.excluded && f.draining == g.draining &&
		slices.Equal(f.PodCIDRs, g.PodCIDRs) && slices.Equal(f.Addresses, g.Addresses)
}

// serviceCIDR takes in a ServiceCIDR, nil when it is gone.
func (s *Snapshot) serviceCIDR(name string, c *networkingv1.ServiceCIDR) {
	var next []netip.Prefix
	if c != nil {
		for _, x := range c.Spec.CIDRs {
			if p, err := netip.ParsePrefix(x); err == nil {
				next = append(next, p.Masked())
			}
		}
	}
	if !slices.Equal(next, s.cidrs[name]) {
		s.cidrs[name] = next
		s.dirtyAll = true
	}
}

// gonePools are the deleted pools that addresses still count for; the others are forgotten.
func (s *Snapshot) gonePools() []*v1beta1.IPAddressPool {
	used := map[string]bool{}
	for _, name := range s.lastPool {
		used[name] = true
	}
	maps.DeleteFunc(s.gone, func(name string, _ *v1beta1.IPAddressPool) bool { return !used[name] || s.objects.pools[name] != nil })
	return slices.Collect(maps.Values(s.gone))
}

// configure parses the configuration objects anew, if they have changed.
func (s *Snapshot) configure() {
	if !s.dirtyConfig {
		return
	}
	s.dirtyConfig, s.dirtyAll = false, true
	o := config.Objects{
		Gone:              s.gonePools(),
		Pools:             slices.Collect(maps.Values(s.objects.pools)),
		L2Advertisements:  slices.Collect(maps.Values(s.objects.l2)),
		BGPAdvertisements: slices.Collect(maps.Values(s.objects.bgp)),
		BGPPeers:          slices.Collect(maps.Values(s.objects.peers)),
		BFDProfiles:       slices.Collect(maps.Values(s.objects.bfd)),
		Communities:       slices.Collect(maps.Values(s.objects.comms)),
	}
	last := s.view.Config
	if s.view.Config, s.problems = config.Parse(o); last != nil {
		s.view.Config.Keep(last, s.problems)
	}
	pools := make([]*pool.Pool, 0, len(o.Pools))
	for _, obj := range o.Pools {
		p, _ := pool.Parse(obj) // what is wrong with a pool is the controller's to say
		pools = append(pools, p)
	}
	s.pools = pool.NewSet(pools...)
}

// refresh brings the view of the nodes up to date.
func (s *Snapshot) refresh() {
	s.view.PoolOf = s.poolOf
	s.view.Nodes = make(map[string]*announce.Node, len(s.nodes))
	for name, f := range s.nodes {
		fe, alive := s.fellows[name]
		gate := f.draining
		if gate == "" {
			gate = fe.Gate
		}
		s.view.Nodes[name] = &announce.Node{
			Name: name, Labels: f.Labels, Excluded: f.excluded, PodCIDRs: f.PodCIDRs, Alive: alive, Links: fe.Links, Gate: gate,
			Draining: f.draining != "", Drained: f.draining != "" && s.drained[name],
		}
	}
}

// poolOf names the pool of an address: that which it is in, else that which it was in last, so that an edit of a pool
// that leaves a Service its address leaves its announcements too. What a pool has lost its status remembers. A pool that
// is gone is remembered only as long as this Snapshot.
func (s *Snapshot) poolOf(addr netip.Addr) string {
	name := s.kept[addr]
	if p := cmp.Or(s.pools.Find(addr), s.pools.Writes(addr)); p != nil {
		name = p.Name
	}
	if name == "" {
		return s.lastPool[addr]
	}
	s.lastPool[addr] = name
	return name
}

// ClaimsOn are the Services that claim an address, in a fixed order.
func (s *Snapshot) ClaimsOn(addr netip.Addr) []announce.Claim {
	var out []announce.Claim
	for _, key := range slices.Sorted(maps.Keys(s.byAddr[addr])) {
		for _, t := range s.claimed[key][addr] {
			out = append(out, announce.Claim{Service: s.services[key], Type: t})
		}
	}
	return out
}
