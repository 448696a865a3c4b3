// Package announce decides who announces what, to whom, and why not: the owner of every address on the local network,
// and the routes that a node gives to its BGP peers. It is pure: it does no I/O, reads no clock and holds no logger;
// equal views give equal decisions on every node, whatever the order of events. The reasons it returns beside a decision
// are what conditions, events and the CLI show.
//
// A decision is made for one address at a time, with all the Services that claim it, so that Services that share an
// address have one owner and the cost of a change follows the change.
package announce

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/speaker/route"
)

// View is what a node knows of the cluster, apart from the Services.
type View struct {
	// Config is the usable configuration.
	Config *config.Config
	// PoolOf names the pool of an address; "" when it is in none.
	PoolOf func(netip.Addr) string
	// Nodes are the cluster's nodes, by name.
	Nodes map[string]*Node
}

// Node is what the decisions need to know of a node.
type Node struct {
	Name   string
	Labels labels.Set
	// Excluded says why the node never announces ("" if it may): it carries the label
	// node.kubernetes.io/exclude-from-external-load-balancers, or its network is unavailable.
	Excluded string
	// PodCIDRs of the node.
	PodCIDRs []netip.Prefix

	// Alive says that the node's speaker is a member of the group of speakers. The rest is what it told its fellows.
	Alive bool
	// Links are the interfaces it can announce on, nil when not known.
	Links []Link
	// Gate says why the node should not attract traffic while others can ("" if it may): its Service proxy is
	// unhealthy, or it is being drained. Gates never empty the set of candidates.
	Gate string
}

// Link is an interface that addresses can be announced on.
type Link struct {
	Name string
	// Up says that the link has carrier.
	Up bool
	// Excluded says that the link carries only addresses whose advertisement names it.
	Excluded bool
}

// Service is what the decisions need to know of a Service.
type Service struct {
	// Namespace and Name identify it.
	Namespace, Name string
	Labels          labels.Set
	// LocalExternal and LocalInternal are its traffic policies (externalTrafficPolicy, internalTrafficPolicy: Local).
	LocalExternal, LocalInternal bool
	// Endpoints4 and Endpoints6 are its endpoints of each family.
	Endpoints4, Endpoints6 Endpoints
}

// Key is the Service as namespace/name.
func (s *Service) Key() string { return s.Namespace + "/" + s.Name }

// Endpoints counts the endpoints of a Service that can take traffic, by node; those without a node are under "".
type Endpoints struct {
	// Ready endpoints.
	Ready map[string]int
	// Terminating endpoints that still serve (KEP-1669). They count only when no endpoint is ready.
	Terminating map[string]int
}

// usable are the endpoints that traffic should be drawn to.
func (e Endpoints) usable() map[string]int {
	if len(e.Ready) > 0 {
		return e.Ready
	}
	return e.Terminating
}

// Claim is an address that a Service has, and in which way.
type Claim struct {
	Service *Service
	Type    v1beta1.AddressType // LoadBalancerIP, ExternalIP or ClusterIP
}

// HasEndpoint says whether the Service has an endpoint, on any node, that can serve an address.
func (c Claim) HasEndpoint(addr netip.Addr) bool { return len(c.endpoints(addr)) > 0 }

func (c Claim) endpoints(addr netip.Addr) map[string]int {
	if addr.Is4() {
		return c.Service.Endpoints4.usable()
	}
	return c.Service.Endpoints6.usable()
}

// local says whether only nodes with an endpoint of their own can serve the claim.
func (c Claim) local() bool {
	if c.Type == v1beta1.AddressClusterIP {
		return c.Service.LocalInternal
	}
	return c.Service.LocalExternal
}

// Candidate is a node and its place in a ranking.
type Candidate struct {
	Node string
	// Why says why the node cannot announce; "" when it can.
	Why string
	// Gate says why the node can, but should not while another can; "" when nothing speaks against it.
	Gate string
	// Weight is the sum of the advertisement's preferences for the node.
	Weight int
	// Interfaces are the names and patterns that the node announces on; empty: all of them. Layer 2 only.
	Interfaces []string

	dead bool // the only thing that speaks against it is that its speaker is not alive
	hash uint64
}

// Layer2 is the decision about one address on the local network.
type Layer2 struct {
	// Owner is the node that answers for the address, "" when none does.
	Owner string
	// Interfaces that the owner answers on; empty: all of them.
	Interfaces []string
	// Advertised says that an L2Advertisement announces the address.
	Advertised bool
	// Candidates are all nodes, best first, those that cannot announce last.
	Candidates []Candidate
	// Why says why there is no owner; "" when there is one.
	Why string
}

// ForLayer2 decides which node owns an address on the local network.
func (v *View) ForLayer2(addr netip.Addr, claims []Claim) Layer2 {
	claims = ofType(claims, v1beta1.AddressLoadBalancerIP)
	var d Layer2
	ads, why := v.l2ads(addr, claims)
	if why != "" {
		d.Why = why
		return d
	}
	d.Advertised = true
	for _, name := range sortedKeys(v.Nodes) {
		n := v.Nodes[name]
		c := Candidate{Node: name, Gate: n.Gate, hash: hash(name, addr)}
		var matched []*config.L2Advertisement
		for _, ad := range ads {
			if ad.Nodes.Match(n.Labels) {
				matched = append(matched, ad)
			}
		}
		c.Why = n.cannot(addr, claims)
		if c.Why == "" && len(matched) == 0 {
			c.Why = "no L2Advertisement selects the node"
		}
		if c.Why == "" && !n.Alive {
			c.Why, c.dead = "its speaker is not alive", true
		}
		if c.Why == "" {
			c.interfaces(n, matched)
		}
		for _, ad := range matched {
			for _, p := range ad.Prefer {
				if p.Nodes.Matches(n.Labels) {
					c.Weight += p.Weight
				}
			}
		}
		d.Candidates = append(d.Candidates, c)
	}
	slices.SortFunc(d.Candidates, compareCandidates)
	if len(d.Candidates) == 0 {
		d.Why = "there is no node"
	} else if best := d.Candidates[0]; best.Why != "" {
		d.Why = "no node can announce it: " + reasons(d.Candidates)
	} else {
		d.Owner, d.Interfaces = best.Node, best.Interfaces
	}
	return d
}

func compareCandidates(a, b Candidate) int {
	return cmp.Or(
		cmp.Compare(rank(a), rank(b)),
		cmp.Compare(b.Weight, a.Weight),
		cmp.Compare(b.hash, a.hash),
		cmp.Compare(a.Node, b.Node))
}

// Before are the nodes that have a better right to the address than a node has, though their speakers may be taken for
// dead: when one of them is heard to claim the address, it is alive after all, and the node has to yield to it.
func (d Layer2) Before(node string) map[string]bool {
	i := slices.IndexFunc(d.Candidates, func(c Candidate) bool { return c.Node == node })
	if i < 0 {
		return nil
	}
	out := map[string]bool{}
	for _, c := range d.Candidates {
		if c.dead {
			c.Why = ""
		}
		if c.Node != node && compareCandidates(c, d.Candidates[i]) < 0 {
			out[c.Node] = true
		}
	}
	return out
}

// rank puts nodes that can announce before those that should not, and those before nodes that cannot.
func rank(c Candidate) int {
	switch {
	case c.Why != "":
		return 2
	case c.Gate != "":
		return 1
	}
	return 0
}

// l2ads are the advertisements that announce an address, or why there are none.
func (v *View) l2ads(addr netip.Addr, claims []Claim) (ads []*config.L2Advertisement, why string) {
	if len(claims) == 0 {
		return nil, "no Service has the address"
	}
	pool := v.PoolOf(addr)
	why = fmt.Sprintf("no L2Advertisement selects %s", poolName(pool))
	for i := range v.Config.L2 {
		ad := &v.Config.L2[i]
		if !ad.Pools.Has(pool) {
			continue
		}
		if !slices.ContainsFunc(claims, func(c Claim) bool { return ad.Services.Match(c.Service.Labels) }) {
			why = fmt.Sprintf("no L2Advertisement of %s selects the Service's labels", poolName(pool))
			continue
		}
		ads = append(ads, ad)
	}
	if len(ads) > 0 {
		why = ""
	}
	return ads, why
}

func poolName(pool string) string {
	if pool == "" {
		return "addresses outside every pool"
	}
	return fmt.Sprintf("the pool %q", pool)
}

// interfaces fills in what a node announces on: the union of the advertisements' interfaces, those that the node has.
// A node that has none of them, or none at all, cannot announce; one whose link is down should not.
func (c *Candidate) interfaces(n *Node, ads []*config.L2Advertisement) {
	for _, ad := range ads {
		if len(ad.Interfaces) == 0 {
			c.Interfaces = nil
			break
		}
		c.Interfaces = append(c.Interfaces, ad.Interfaces...)
	}
	slices.Sort(c.Interfaces)
	c.Interfaces = slices.Compact(c.Interfaces)
	if n.Links == nil {
		return // not known: not empty
	}
	present, up := false, false
	for _, l := range n.Links {
		if len(c.Interfaces) == 0 && !l.Excluded || MatchAny(c.Interfaces, l.Name) {
			present, up = true, up || l.Up
		}
	}
	switch {
	case !present && len(c.Interfaces) > 0:
		c.Why = "it has no interface " + strings.Join(c.Interfaces, " or ")
	case !present:
		c.Why = "it has no interface to announce on"
	case !up:
		c.Gate = cmp.Or(c.Gate, "its link is down")
	}
}

// cannot says why a node cannot serve any of the claims on an address; "" when it can serve one.
func (n *Node) cannot(addr netip.Addr, claims []Claim) string {
	if n.Excluded != "" {
		return n.Excluded
	}
	why := ""
	for _, c := range claims {
		eps := c.endpoints(addr)
		switch {
		case len(eps) == 0:
			why = cmp.Or(why, fmt.Sprintf("the Service %s has no ready endpoint", c.Service.Key()))
		case c.local() && eps[n.Name] == 0:
			why = fmt.Sprintf("the Service %s has traffic policy Local and no ready endpoint there", c.Service.Key())
		default:
			return ""
		}
	}
	return why
}

// reasons sums up why nodes cannot announce: each reason once, with its nodes.
func reasons(cs []Candidate) string {
	nodes := map[string][]string{}
	for _, c := range cs {
		nodes[c.Why] = append(nodes[c.Why], c.Node)
	}
	var out []string
	for _, why := range sortedKeys(nodes) {
		who := nodes[why]
		slices.Sort(who)
		if len(who) == len(cs) {
			return why
		}
		if len(who) > 3 {
			who = append(who[:3:3], fmt.Sprintf("%d more", len(who)-3))
		}
		out = append(out, strings.Join(who, ", ")+": "+why)
	}
	return strings.Join(out, "; ")
}

func ofType(claims []Claim, t v1beta1.AddressType) []Claim {
	var out []Claim
	for _, c := range claims {
		if c.Type == t {
			out = append(out, c)
		}
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// Export is a prefix that a node announces to a peer.
type Export struct {
	Peer string
	route.Route
}

// BGP is the decision about one address, or one range of the cluster, on one node.
type BGP struct {
	// Exports are the prefixes to announce, a peer each, sorted. Prefixes of several addresses that aggregate to one
	// are merged by Merge.
	Exports []Export
	// Advertised says that a BGPAdvertisement announces the address.
	Advertised bool
	// Why says why nothing is announced, or "" when something is.
	Why string
}

// ForBGP decides what a node announces to its peers for one address.
func (v *View) ForBGP(node string, addr netip.Addr, claims []Claim) BGP {
	var d BGP
	me := v.Nodes[node]
	if me == nil {
		d.Why = fmt.Sprintf("there is no node %q", node)
		return d
	}
	d.Why = "no BGPAdvertisement announces it"
	byPeer := map[peerPrefix]route.Attrs{}
	for i := range v.Config.BGP {
		ad := &v.Config.BGP[i]
		mine := v.admitted(ad, addr, claims)
		if len(mine) == 0 {
			continue
		}
		d.Advertised = true
		if why := v.mayExport(me, ad, func(n *Node) string { return n.cannot(addr, mine) }); why != "" {
			d.Why = why
			continue
		}
		attrs := ad.Attrs
		if ad.Weighted {
			attrs.Bandwidth = bandwidth(node, addr, mine)
		}
		v.export(byPeer, me, ad, ad.Aggregate(addr), attrs, &d.Why)
	}
	d.Exports = sortExports(byPeer)
	if len(d.Exports) > 0 {
		d.Why = ""
	}
	return d
}

// ForRange decides what a node announces to its peers for a range of the cluster: a ServiceCIDR, which every node can
// serve, or, with t PodCIDR, a range of the node's own.
func (v *View) ForRange(node string, prefix netip.Prefix, t v1beta1.AddressType) BGP {
	var d BGP
	me := v.Nodes[node]
	if me == nil {
		d.Why = fmt.Sprintf("there is no node %q", node)
		return d
	}
	d.Why = "no BGPAdvertisement announces it"
	byPeer := map[peerPrefix]route.Attrs{}
	for i := range v.Config.BGP {
		ad := &v.Config.BGP[i]
		if !ad.Types[t] {
			continue
		}
		d.Advertised = true
		why := ""
		if t == v1beta1.AddressPodCIDR {
			if !ad.Nodes.Match(me.Labels) {
				why = "no BGPAdvertisement selects the node"
			}
		} else {
			why = v.mayExport(me, ad, func(n *Node) string { return n.Excluded })
		}
		if why != "" {
			d.Why = why
			continue
		}
		v.export(byPeer, me, ad, prefix, ad.Attrs, &d.Why)
	}
	d.Exports = sortExports(byPeer)
	if len(d.Exports) > 0 {
		d.Why = ""
	}
	return d
}

// admitted are the claims on an address that an advertisement announces.
func (v *View) admitted(ad *config.BGPAdvertisement, addr netip.Addr, claims []Claim) []Claim {
	var out []Claim
	for _, c := range claims {
		if ad.Types[c.Type] && ad.Services.Match(c.Service.Labels) &&
			(c.Type != v1beta1.AddressLoadBalancerIP || ad.Pools.Has(v.PoolOf(addr))) {
			out = append(out, c)
		}
	}
	return out
}

// mayExport says why a node may not announce what an advertisement announces, "" when it may. cannot says why a node
// cannot serve it at all. A gated node may not while a fellow without a gate can; gates never withdraw the last route.
func (v *View) mayExport(me *Node, ad *config.BGPAdvertisement, cannot func(*Node) string) string {
	if !ad.Nodes.Match(me.Labels) {
		return "no BGPAdvertisement selects the node"
	}
	if why := cannot(me); why != "" {
		return why
	}
	if me.Gate == "" {
		return ""
	}
	for _, n := range v.Nodes {
		if n != me && n.Alive && n.Gate == "" && ad.Nodes.Match(n.Labels) && cannot(n) == "" {
			return me.Gate
		}
	}
	return ""
}

type peerPrefix struct {
	peer   string
	prefix netip.Prefix
}

// export adds a prefix for every peer of the advertisement that the node has a session with.
func (v *View) export(to map[peerPrefix]route.Attrs, me *Node, ad *config.BGPAdvertisement, p netip.Prefix, attrs route.Attrs, why *string) {
	found := false
	for i := range v.Config.Peers {
		peer := &v.Config.Peers[i]
		if !ad.Peers.Has(peer.Name) || !peer.Nodes.Match(me.Labels) {
			continue
		}
		found = true
		k := peerPrefix{peer.Name, p}
		if old, ok := to[k]; ok {
			to[k] = old.Merge(attrs)
		} else {
			to[k] = attrs
		}
	}
	if !found {
		*why = "no BGPPeer of the BGPAdvertisement selects the node"
	}
}

func sortExports(m map[peerPrefix]route.Attrs) []Export {
	out := make([]Export, 0, len(m))
	for k, a := range m {
		out = append(out, Export{k.peer, route.Route{Prefix: k.prefix, Attrs: a}})
	}
	slices.SortFunc(out, compareExports)
	return out
}

func compareExports(a, b Export) int {
	return cmp.Or(cmp.Compare(a.Peer, b.Peer), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
}

// Merge joins the exports of many addresses and ranges to the routes of each peer, sorted, each prefix once.
func Merge(all [][]Export) map[string][]route.Route {
	sorted := slices.Concat(all...)
	slices.SortFunc(sorted, compareExports)
	out := map[string][]route.Route{}
	for _, e := range sorted {
		rs := out[e.Peer]
		if n := len(rs); n > 0 && rs[n-1].Prefix == e.Prefix {
			rs[n-1].Attrs = rs[n-1].Attrs.Merge(e.Attrs)
			continue
		}
		out[e.Peer] = append(rs, e.Route)
	}
	return out
}

// bandwidthPerEndpoint is the link bandwidth that one endpoint stands for, in bytes per second: 1 Gbit/s.
const bandwidthPerEndpoint = 125e6

// bandwidth is the node's weight: in proportion to its ready endpoints. With policy Cluster any node reaches every
// endpoint, but the endpoints of its own are still the ones it reaches without a hop; a node without one weighs least.
func bandwidth(node string, addr netip.Addr, claims []Claim) float32 {
	n := 0
	for _, c := range claims {
		n += c.endpoints(addr)[node]
	}
	return bandwidthPerEndpoint * float32(max(n, 1))
}
