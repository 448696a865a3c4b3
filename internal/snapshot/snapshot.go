// Package snapshot reduces Kubernetes objects to what decisions are made of, and keeps track of which addresses have to
// be decided anew. The speaker decides from it what to announce; the controller says from it what is announced and why
// not. It does no I/O but for Watch, which feeds it from a cache.
package snapshot

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
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
	options Options

	services map[string]*announce.Service        // by namespace/name
	claimed  map[string][]claim                  // the addresses of each of them, sorted
	byAddr   map[netip.Addr][]string             // the Services that claim an address, sorted
	slices   map[string]map[string]endpointSlice // of each Service, by name of the slice
	nodes    map[string]*Node
	nodeOf   map[netip.Addr]string // the nodes by all their addresses
	members  map[string]Member
	drained  map[string]bool           // nodes whose time to be drained is up
	cidrs    map[string][]netip.Prefix // of each ServiceCIDR
	objects  objects

	view     announce.View
	owners   map[netip.Addr]*announce.Layer2 // the decisions on addresses that an L2Advertisement announces
	problems []config.Problem
	pools    *pool.Set
	earlier  map[string]*v1beta1.IPAddressPool // pools as they were before an edit that the controller has not seen
	before   *pool.Set                         // of these
	kept     map[netip.Addr]string             // the pools of addresses that are in none, as the pools' statuses say
	matter   kinds                             // addresses of which types may be announced

	dirty       map[netip.Addr]bool // addresses to decide anew
	lost        map[string]bool     // Services that have lost an address
	dirtyNodes  map[string]bool     // nodes that have changed
	dirtyAll    bool                // every address and range
	dirtyConfig bool                // the configuration objects have changed
}

// Options are what a Snapshot is made with.
type Options struct {
	// IgnoreExcludeLabel lets nodes announce that carry the label node.kubernetes.io/exclude-from-external-load-balancers.
	IgnoreExcludeLabel bool
}

// claim is an address that a Service has.
type claim struct {
	addr netip.Addr
	as   kinds
}

// kinds is a set of address types.
type kinds uint8

// addressTypes are the members of kinds, a bit each, in this order.
var addressTypes = [...]v1beta1.AddressType{v1beta1.AddressLoadBalancerIP, v1beta1.AddressExternalIP, v1beta1.AddressClusterIP}

const (
	loadBalancerIP kinds = 1 << iota
	externalIP
	clusterIP
)

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
	others    []netip.Addr // its other addresses
	PodCIDRs  []netip.Prefix

	notReady bool   // see NotReady
	excluded string // why the node never announces
	draining string // why it should not while others can
}

// Member is what a live speaker says of its node.
type Member struct {
	// Links that addresses can be announced on, nil when not known.
	Links []announce.Link
	// Gate says why the node should not attract traffic while others can; "" if it may.
	Gate string
	// SessionUp says that the speaker has a BGP session that is up.
	SessionUp bool
}

func (m Member) equal(n Member) bool {
	return m.Gate == n.Gate && m.SessionUp == n.SessionUp && (m.Links == nil) == (n.Links == nil) && slices.Equal(m.Links, n.Links)
}

// New is a Snapshot in which nothing is known.
func New(options Options) *Snapshot {
	return &Snapshot{
		options:  options,
		services: map[string]*announce.Service{},
		claimed:  map[string][]claim{},
		byAddr:   map[netip.Addr][]string{},
		slices:   map[string]map[string]endpointSlice{},
		nodes:    map[string]*Node{},
		nodeOf:   map[netip.Addr]string{},
		members:  map[string]Member{},
		drained:  map[string]bool{},
		cidrs:    map[string][]netip.Prefix{},
		objects: objects{
			map[string]*v1beta1.IPAddressPool{}, map[string]*v1beta1.L2Advertisement{}, map[string]*v1beta1.BGPAdvertisement{},
			map[string]*v1beta1.BGPPeer{}, map[string]*v1beta1.BFDProfile{}, map[string]*v1beta1.Community{},
		},
		owners:      map[netip.Addr]*announce.Layer2{},
		earlier:     map[string]*v1beta1.IPAddressPool{},
		dirty:       map[netip.Addr]bool{},
		lost:        map[string]bool{},
		dirtyNodes:  map[string]bool{},
		dirtyConfig: true,
	}
}

// Changes are what has to be decided anew.
type Changes struct {
	// Addrs are the addresses to decide anew, in no order: those whose Services have changed, and those that have another
	// owner or backup on the local network.
	Addrs []netip.Addr
	// Services (namespace/name) are those that have or had these addresses, in no order.
	Services []string
	// Nodes are the nodes that have come, gone or changed, in no order. What other nodes announce by BGP does not depend on
	// them but for gates; see announce.View.
	Nodes []string
	// All says that something has changed that every address, range and session depends on.
	All bool
}

// many is how many nodes have to change for it to be cheaper to decide every address anew than to look for those that
// are concerned.
const many = 16

// Changes returns what has to be decided anew since the last call, and brings View and Owner up to date.
func (s *Snapshot) Changes() Changes {
	matter := s.matter
	s.configure()
	c := Changes{All: s.dirtyAll, Nodes: slices.Collect(maps.Keys(s.dirtyNodes))}
	for _, name := range c.Nodes {
		s.view.SetNode(name, s.viewOf(name))
	}
	if matter |= s.matter; c.All {
		for key := range s.claimed {
			s.touch(key, matter)
		}
	}
	switch {
	case c.All, len(c.Nodes) == 0:
	case len(c.Nodes) >= many:
		for addr := range s.owners {
			s.moved(addr)
		}
	default:
		for addr, d := range s.owners {
			if slices.ContainsFunc(c.Nodes, func(name string) bool { return s.view.Moves(name, addr, d) }) {
				s.moved(addr)
			}
		}
	}
	for addr := range s.dirty {
		c.Addrs = append(c.Addrs, addr)
		s.decide(addr)
		for _, key := range s.byAddr[addr] {
			s.lost[key] = true
		}
	}
	c.Services = slices.Collect(maps.Keys(s.lost))
	clear(s.dirty)
	clear(s.lost)
	clear(s.dirtyNodes)
	s.dirtyAll = false
	return c
}

// decide remembers who owns an address on the local network, and says whether that is news.
func (s *Snapshot) decide(addr netip.Addr) bool {
	old := s.owners[addr]
	d := s.view.Layer2(addr, s.ClaimsOn(addr))
	if !d.Advertised {
		delete(s.owners, addr)
		return old != nil
	}
	s.owners[addr] = &d
	return old == nil || !d.Equal(*old)
}

// moved decides an address anew of which only the nodes may have changed.
func (s *Snapshot) moved(addr netip.Addr) {
	if s.decide(addr) {
		s.dirty[addr] = true
	}
}

// SetDrained says whether the time that a node was given to be drained is up.
func (s *Snapshot) SetDrained(node string, drained bool) {
	if s.drained[node] != drained {
		s.drained[node] = drained
		s.dirtyNodes[node] = true
	}
}

// Mark makes the next Changes include an address.
func (s *Snapshot) Mark(addr netip.Addr) { s.dirty[addr] = true }

// MarkAll makes the next Changes everything.
func (s *Snapshot) MarkAll() { s.dirtyAll = true }

// pending says whether the next Changes are any.
func (s *Snapshot) pending() bool {
	return len(s.dirty) > 0 || len(s.lost) > 0 || len(s.dirtyNodes) > 0 || s.dirtyAll || s.dirtyConfig
}

// View is the cluster as of the last Changes.
func (s *Snapshot) View() *announce.View { return &s.view }

// Owner is who owns an address on the local network, as of the last Changes.
func (s *Snapshot) Owner(addr netip.Addr) announce.Layer2 {
	if d := s.owners[addr]; d != nil {
		return *d
	}
	return s.view.Layer2(addr, s.ClaimsOn(addr))
}

// Owners are the decisions on all addresses that an L2Advertisement announces, as of the last Changes, in no order.
func (s *Snapshot) Owners() iter.Seq2[netip.Addr, *announce.Layer2] { return maps.All(s.owners) }

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
	for _, c := range s.claimed[key] {
		if c.as.has(t) {
			out = append(out, c.addr)
		}
	}
	return out
}

func (t kinds) has(x v1beta1.AddressType) bool {
	i := slices.Index(addressTypes[:], x)
	return i >= 0 && t>>i&1 == 1
}

// Members takes in the speakers that are alive, and what they say of their nodes. The map is the Snapshot's from then on.
func (s *Snapshot) Members(alive map[string]Member) {
	for name, m := range alive {
		if old, was := s.members[name]; !was || !m.equal(old) {
			s.dirtyNodes[name] = true
		}
	}
	for name := range s.members {
		if _, is := alive[name]; !is {
			s.dirtyNodes[name] = true
		}
	}
	s.members = alive
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

// service takes in a Service, nil when it is gone.
func (s *Snapshot) service(key string, svc *corev1.Service) {
	old := s.services[key]
	if svc == nil {
		s.claims(key, nil)
		delete(s.services, key)
		return
	}
	next := &announce.Service{
		Namespace: svc.Namespace, Name: svc.Name, Labels: svc.Labels,
		HealthPort:    uint16(svc.Spec.HealthCheckNodePort),
		LocalExternal: svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		LocalInternal: svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
	}
	if old != nil {
		next.Endpoints4, next.Endpoints6 = old.Endpoints4, old.Endpoints6
	} else {
		next.Endpoints4, next.Endpoints6 = sumEndpoints(s.slices[key])
	}
	changed := old == nil || !maps.Equal(old.Labels, next.Labels) || old.LocalExternal != next.LocalExternal || old.LocalInternal != next.LocalInternal
	s.services[key] = next
	s.claims(key, addressesOf(svc))
	if changed {
		s.touch(key, s.matter)
	}
}

// addressesOf are the addresses that a Service has, and in which way, sorted.
func addressesOf(svc *corev1.Service) []claim {
	if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	var out []claim
	add := func(as kinds, text string) {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return
		}
		c := claim{addr.Unmap(), as}
		if i := slices.IndexFunc(out, func(x claim) bool { return x.addr == c.addr }); i >= 0 {
			out[i].as |= as
			return
		}
		out = append(out, c)
	}
	if ours(svc) {
		for _, i := range svc.Status.LoadBalancer.Ingress {
			add(loadBalancerIP, i.IP)
		}
	}
	for _, text := range svc.Spec.ExternalIPs {
		add(externalIP, text)
	}
	for _, text := range svc.Spec.ClusterIPs {
		add(clusterIP, text)
	}
	slices.SortFunc(out, func(a, b claim) int { return a.addr.Compare(b.addr) })
	return out
}

// ours says whether the addresses in the status of a Service were given by the controller of this Clarion: the Service
// carries its condition.
func ours(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer &&
		slices.ContainsFunc(svc.Status.Conditions, func(c metav1.Condition) bool { return c.Type == v1beta1.ConditionAllocated })
}

// claims replaces the addresses of a Service; those it gained or lost have to be decided anew.
func (s *Snapshot) claims(key string, next []claim) {
	old := s.claimed[key]
	if slices.Equal(old, next) {
		return
	}
	for _, c := range old {
		i, still := slices.BinarySearchFunc(next, c.addr, claim.compare)
		if !still || next[i].as != c.as {
			s.mark(c.addr, c.as)
		}
		if !still {
			s.lost[key] = true
			keys := s.byAddr[c.addr]
			if j, ok := slices.BinarySearch(keys, key); ok {
				keys = slices.Delete(keys, j, j+1)
			}
			if s.byAddr[c.addr] = keys; len(keys) == 0 {
				delete(s.byAddr, c.addr)
			}
		}
	}
	for _, c := range next {
		i, had := slices.BinarySearchFunc(old, c.addr, claim.compare)
		if !had || old[i].as != c.as {
			s.mark(c.addr, c.as)
		}
		keys := s.byAddr[c.addr]
		if j, ok := slices.BinarySearch(keys, key); !ok {
			s.byAddr[c.addr] = slices.Insert(keys, j, key)
		}
	}
	if len(next) == 0 {
		delete(s.claimed, key)
		return
	}
	s.claimed[key] = next
}

func (c claim) compare(addr netip.Addr) int { return c.addr.Compare(addr) }

// mark notes that an address has to be decided anew, if it may be announced at all.
func (s *Snapshot) mark(addr netip.Addr, as kinds) {
	if as&s.matter != 0 {
		s.dirty[addr] = true
	}
}

// touch marks those addresses of a Service to be decided anew that are of certain types.
func (s *Snapshot) touch(key string, as kinds) {
	for _, c := range s.claimed[key] {
		if c.as&as != 0 {
			s.dirty[c.addr] = true
		}
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
	s.touch(service, s.matter)
}

func equalEndpoints(a, b announce.Endpoints) bool {
	return maps.Equal(a.Ready, b.Ready) && maps.Equal(a.Terminating, b.Terminating)
}

// countEndpoints counts a slice's endpoints as the Service proxy does: ready ones (unset means ready), and beside them
// those that terminate but still serve (KEP-1669).
func countEndpoints(es *discoveryv1.EndpointSlice) endpointSlice {
	out := endpointSlice{v6: es.AddressType == discoveryv1.AddressTypeIPv6}
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
			out.Ready = count(out.Ready, node, 1)
		case is(e.Conditions.Serving, ready) && is(e.Conditions.Terminating, false):
			out.Terminating = count(out.Terminating, node, 1)
		}
	}
	return out
}

// count adds to a number of a map, which is made when there is the first.
func count(to map[string]int, key string, n int) map[string]int {
	if to == nil {
		to = map[string]int{}
	}
	to[key] += n
	return to
}

// sumEndpoints are the endpoints of each family in some slices. Most Services have one slice, whose maps are used as they
// are: nobody changes them.
func sumEndpoints(in map[string]endpointSlice) (e4, e6 announce.Endpoints) {
	add := func(to *map[string]int, more map[string]int, first *bool) {
		switch {
		case len(more) == 0:
		case *to == nil:
			*to, *first = more, true
		default:
			if *first {
				*to, *first = maps.Clone(*to), false
			}
			for n, c := range more {
				(*to)[n] += c
			}
		}
	}
	var shared [2][2]bool
	for _, es := range in {
		to, family := &e4, 0
		if es.v6 {
			to, family = &e6, 1
		}
		add(&to.Ready, es.Ready, &shared[family][0])
		add(&to.Terminating, es.Terminating, &shared[family][1])
	}
	return e4, e6
}

// node takes in a Node, nil when it is gone.
func (s *Snapshot) node(name string, n *corev1.Node) {
	old := s.nodes[name]
	if n == nil {
		delete(s.nodes, name)
		s.dirtyNodes[name] = true
		s.renumbered(name, old, nil)
		return
	}
	next := factsOf(n, s.options)
	if old == nil || !old.equal(next) {
		s.nodes[name] = next
		s.dirtyNodes[name] = true
		s.renumbered(name, old, next)
	}
}

// renumbered notes which addresses a node has now: they are announced as nobody's external IPs.
func (s *Snapshot) renumbered(name string, old, next *Node) {
	if old == nil {
		old = &Node{}
	}
	if next == nil {
		next = &Node{}
	}
	if slices.Equal(old.Addresses, next.Addresses) && slices.Equal(old.others, next.others) && slices.Equal(old.PodCIDRs, next.PodCIDRs) {
		return
	}
	for _, a := range slices.Concat(old.Addresses, old.others) {
		if s.nodeOf[a] == name {
			delete(s.nodeOf, a)
		}
	}
	for _, a := range slices.Concat(next.Addresses, next.others) {
		s.nodeOf[a] = name
	}
	if s.matter&externalIP != 0 && !s.dirtyAll {
		for key := range s.claimed {
			s.touch(key, externalIP)
		}
	}
}

// Taints that say that a node is about to go.
const (
	taintOutOfService = "node.kubernetes.io/out-of-service" // KEP-2268
	taintToBeDeleted  = "ToBeDeletedByClusterAutoscaler"    // the cluster autoscaler's
)

func factsOf(n *corev1.Node, o Options) *Node {
	f := &Node{UID: n.UID, Labels: n.Labels, notReady: NotReady(n)}
	if _, ok := n.Labels[corev1.LabelNodeExcludeBalancers]; ok && !o.IgnoreExcludeLabel {
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
	f.Addresses, f.others = AddressesOf(n)
	return f
}

// AddressesOf are the addresses of a node: its InternalIPs, and the others.
func AddressesOf(n *corev1.Node) (internal, others []netip.Addr) {
	for _, a := range n.Status.Addresses {
		addr, err := netip.ParseAddr(a.Address)
		switch {
		case err != nil:
		case a.Type == corev1.NodeInternalIP:
			internal = append(internal, addr.Unmap())
		default:
			others = append(others, addr.Unmap())
		}
	}
	return internal, others
}

// NodeOf is what a Node object says of where it may announce, with nothing known of its speaker.
func NodeOf(n *corev1.Node) *announce.Node {
	f := factsOf(n, Options{})
	return &announce.Node{Name: n.Name, Labels: f.Labels, Excluded: f.excluded}
}

func (f *Node) equal(g *Node) bool {
	return f.UID == g.UID && maps.Equal(f.Labels, g.Labels) && f.notReady == g.notReady && f.excluded == g.excluded && f.draining == g.draining &&
		slices.Equal(f.PodCIDRs, g.PodCIDRs) && slices.Equal(f.Addresses, g.Addresses) && slices.Equal(f.others, g.others)
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

// configure parses the configuration objects anew, if they have changed.
func (s *Snapshot) configure() {
	if !s.dirtyConfig {
		return
	}
	s.dirtyConfig, s.dirtyAll = false, true
	o := config.Objects{
		Pools:             slices.Collect(maps.Values(s.objects.pools)),
		L2Advertisements:  slices.Collect(maps.Values(s.objects.l2)),
		BGPAdvertisements: slices.Collect(maps.Values(s.objects.bgp)),
		BGPPeers:          slices.Collect(maps.Values(s.objects.peers)),
		BFDProfiles:       slices.Collect(maps.Values(s.objects.bfd)),
		Communities:       slices.Collect(maps.Values(s.objects.comms)),
	}
	cfg, problems := config.Parse(o)
	if last := s.view.Config; last != nil {
		cfg.Keep(last, problems)
	}
	s.problems = problems
	s.pools, s.before = poolSet(s.objects.pools), poolSet(s.earlier)
	s.matter = loadBalancerIP
	for i := range cfg.BGP {
		for j, t := range addressTypes {
			if cfg.BGP[i].Types[t] {
				s.matter |= 1 << j
			}
		}
	}
	s.view = announce.View{Config: cfg, PoolOf: s.poolOf, Has: s.has, Nodes: make(map[string]*announce.Node, len(s.nodes))}
	for name := range s.nodes {
		s.view.Nodes[name] = s.viewOf(name)
	}
}

func poolSet(objects map[string]*v1beta1.IPAddressPool) *pool.Set {
	pools := make([]*pool.Pool, 0, len(objects))
	for _, obj := range objects {
		p, _ := pool.Parse(obj) // what is wrong with a pool is the controller's to say
		pools = append(pools, p)
	}
	return pool.NewSet(pools...)
}

// viewOf is a node as decisions see it, nil when there is no such node.
func (s *Snapshot) viewOf(name string) *announce.Node {
	f := s.nodes[name]
	if f == nil {
		return nil
	}
	m, alive := s.members[name]
	draining := f.draining != ""
	return &announce.Node{
		Name: name, Labels: f.Labels, Excluded: f.excluded, PodCIDRs: f.PodCIDRs, Alive: alive, SessionUp: m.SessionUp, Links: m.Links,
		Gate: cmp.Or(f.draining, m.Gate), Draining: draining, Drained: draining && s.drained[name],
	}
}

// poolOf names the pool of an address: that which it is in, else that which keeps it though an edit has taken it out, as
// its status says. Until the controller has seen an edit, what was before it counts too.
func (s *Snapshot) poolOf(addr netip.Addr) string {
	for _, set := range []*pool.Set{s.pools, s.before} {
		if p := cmp.Or(set.Find(addr), set.Writes(addr)); p != nil {
			return p.Name
		}
	}
	return s.kept[addr]
}

// All are the addresses that may be announced, in no order.
func (s *Snapshot) All() []netip.Addr {
	var out []netip.Addr
	for addr, keys := range s.byAddr {
		if slices.ContainsFunc(keys, func(key string) bool { return s.as(key, addr)&s.matter != 0 }) {
			out = append(out, addr)
		}
	}
	return out
}

// as is how a Service has an address.
func (s *Snapshot) as(key string, addr netip.Addr) kinds {
	if i, ok := slices.BinarySearchFunc(s.claimed[key], addr, claim.compare); ok {
		return s.claimed[key][i].as
	}
	return 0
}

// Claimed says whether a Service has an address.
func (s *Snapshot) Claimed(addr netip.Addr) bool { return s.byAddr[addr] != nil }

// has says what of the cluster has an address, as announce.View asks.
func (s *Snapshot) has(addr netip.Addr) string {
	if node, ok := s.nodeOf[addr]; ok {
		return "node " + node
	}
	within := func(ranges []netip.Prefix) bool {
		return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(addr) })
	}
	for _, ranges := range s.cidrs {
		if within(ranges) {
			return "the cluster's range of ClusterIPs"
		}
	}
	for name, n := range s.nodes {
		if within(n.PodCIDRs) {
			return "the pods of node " + name
		}
	}
	if slices.ContainsFunc(s.view.Config.Peers, func(p config.Peer) bool { return p.Address == addr || p.Source == addr }) {
		return "a BGP peer"
	}
	return ""
}

// ClaimsOn are the Services that claim an address, in a fixed order.
func (s *Snapshot) ClaimsOn(addr netip.Addr) []announce.Claim {
	var out []announce.Claim
	for _, key := range s.byAddr[addr] {
		as := s.as(key, addr)
		for j, t := range addressTypes {
			if as>>j&1 == 1 {
				out = append(out, announce.Claim{Service: s.services[key], Type: t})
			}
		}
	}
	return out
}
