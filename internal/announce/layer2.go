package announce

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
)

// Plan says which node owns which address on the local network. All addresses are decided together, because none of the
// nodes that are equally good for an address is to hold more than its share of them, and in the same order everywhere:
// that of the oldest Service first, then that of the addresses.
//
// The nodes that can serve an address, as far as the API server knows, form classes by the weight that the
// advertisements prefer them with. In each class the address has a home: the node with the highest score among those
// that are home to fewer than their share of the addresses up to this one; see score and share. Which speakers are alive,
// and what they say of their nodes, does not matter to that.
//
// The owner comes from the best class in which a node is alive and nothing speaks against it, or failing that, from the
// best in which a node is alive. It is the home if that is such a node. If not, the address is a guest: of the node with
// the highest score among those that hold fewer than their share. Where there are guests, the latest of them makes room
// for an address that is at home.
//
// It follows that
//   - among nodes that can serve the same addresses, none holds more than its share;
//   - a speaker that dies or is drained moves what it owned, and takes no more than its own when it is back. While others
//     are out too, their addresses, being guests, may move beside;
//   - a new Service moves no other address, or one guest at most while a node is out;
//   - a Service that has no ready endpoint for a time keeps its place, and moves no other; but for those with policy Local,
//     which are at home where their endpoints are;
//   - an address that is given back moves a few others (5 of 1,000, on average), since it counted for the shares of those
//     after it;
//   - a Node object that comes or goes changes all shares, and moves others beside what that node owns: on average two
//     thirds as many, and the fewer the more addresses there are for each node.
type Plan struct {
	view   View
	nodes  []*Node // by name
	index  map[string]int
	scores []uint64 // the nodes' half of a score
	usable []int    // the nodes that may announce
	addrs  []*planned
	byAddr map[netip.Addr]*planned

	terrains map[string]*terrain // by the indices of the advertisements
	shapes   map[string]*shape   // by terrain and the nodes that can serve
	homes    map[string]*group   // by its nodes
	hosts    map[string]*group   // by its nodes
	key      []byte              // scratch
}

// planned is an address in a Plan.
type planned struct {
	addr    netip.Addr
	claims  []Claim // of type LoadBalancerIP
	created time.Time
	score   uint64 // the address' half of a score

	shape *shape // nil when there are none
	homes []int  // in each class of the shape
	owner int    // -1: none
}

// terrain is what the nodes are to the addresses of the same advertisements.
type terrain struct {
	id    int
	sites []site // by node
}

type site struct {
	Candidate
	selected bool   // by an advertisement
	now      string // why the node cannot announce anything at the moment, "" when it can
}

// shape is what addresses have in common that the same nodes can serve in the same way.
type shape struct {
	terrain *terrain
	idle    bool     // no node can serve for want of endpoints, and any could
	classes []*group // of the nodes that can serve, by weight
	hosts   *group   // the nodes that the owner is chosen from; nil: none
	class   int      // that hosts are in
	spare   []int    // the nodes that it would be chosen from if those were not there
}

// group is a set of nodes that are equally good for some addresses.
type group struct {
	nodes  []int
	load   []int        // the addresses of each of them
	guests [][]*planned // those of them that are not at home there, in their order
	count  int          // all addresses
}

// slack is how much more than the mean a node may hold.
const slack = 1.25

// share is the largest number of addresses that one of some nodes may hold: slack times the mean, rounded up. There is
// always a node that holds fewer than the share when one more address comes, since together they have room for more
// than all.
func share(addrs, nodes int) int {
	const num, den = int(slack * 4), 4
	return (addrs*num + nodes*den - 1) / (nodes * den)
}

// PlanLayer2 decides which nodes own addresses on the local network. Claims of other types than LoadBalancerIP do not
// count. It takes a few milliseconds for 2,000 addresses and 50 nodes. What the view and the claims refer to must not be
// changed while the Plan is used.
func (v *View) PlanLayer2(claims map[netip.Addr][]Claim) *Plan {
	p := &Plan{
		view: *v, index: make(map[string]int, len(v.Nodes)), byAddr: make(map[netip.Addr]*planned, len(claims)),
		terrains: map[string]*terrain{}, shapes: map[string]*shape{}, homes: map[string]*group{}, hosts: map[string]*group{},
	}
	for _, name := range sortedKeys(v.Nodes) {
		p.index[name] = len(p.nodes)
		n := v.Nodes[name]
		if n.Excluded == "" {
			p.usable = append(p.usable, len(p.nodes))
		}
		p.nodes = append(p.nodes, n)
		p.scores = append(p.scores, hashNode(name))
	}
	for addr, on := range claims {
		if on = ofType(on, v1beta1.AddressLoadBalancerIP); len(on) > 0 {
			x := &planned{addr: addr, claims: on, created: on[0].Service.Created, score: hashAddr(addr), owner: -1}
			for _, c := range on[1:] {
				if c.Service.Created.Before(x.created) {
					x.created = c.Service.Created
				}
			}
			p.addrs = append(p.addrs, x)
			p.byAddr[addr] = x
		}
	}
	slices.SortFunc(p.addrs, func(a, b *planned) int { return cmp.Or(a.created.Compare(b.created), a.addr.Compare(b.addr)) })
	var ads []int
	for _, x := range p.addrs {
		if ads = v.l2ads(ads[:0], x); len(ads) > 0 {
			x.shape = p.shape(x, ads)
			p.decide(x)
		}
	}
	return p
}

// decide finds an address its homes and its owner.
func (p *Plan) decide(x *planned) {
	for _, g := range x.shape.classes {
		g.count++
		i := p.first(g, x, share(g.count, len(g.nodes)))
		g.load[i]++
		x.homes = append(x.homes, g.nodes[i])
	}
	g := x.shape.hosts
	if g == nil {
		return
	}
	g.count++
	limit := share(g.count, len(g.nodes))
	i, atHome := slices.BinarySearch(g.nodes, x.homes[x.shape.class])
	if !atHome {
		p.host(g, x, limit)
		return
	}
	x.owner = g.nodes[i]
	g.load[i]++
	if last := len(g.guests[i]) - 1; g.load[i] > limit && last >= 0 {
		guest := g.guests[i][last]
		g.guests[i] = g.guests[i][:last]
		g.load[i]--
		p.host(g, guest, limit)
	}
}

// host makes an address a guest.
func (p *Plan) host(g *group, x *planned, limit int) {
	i := p.first(g, x, limit)
	x.owner = g.nodes[i]
	g.load[i]++
	g.guests[i] = append(g.guests[i], x)
}

// first is the node of a group, by position, that scores highest for an address of those that hold less than the limit.
func (p *Plan) first(g *group, x *planned, limit int) int {
	best, most := -1, uint64(0)
	for i, n := range g.nodes {
		if g.load[i] < limit {
			if s := score(p.scores[n], x.score); best < 0 || s > most {
				best, most = i, s
			}
		}
	}
	return best
}

// shape finds the nodes that can serve an address, and those that could own it now.
func (p *Plan) shape(x *planned, ads []int) *shape {
	t := p.terrain(ads)
	able, idle := p.able(x)
	p.key = p.bits(binary.AppendUvarint(p.key[:0], uint64(t.id)), able)
	if idle {
		p.key = append(p.key, 1)
	}
	s := p.shapes[string(p.key)]
	if s != nil {
		return s
	}
	s = &shape{terrain: t, idle: idle}
	p.shapes[string(p.key)] = s
	able = slices.DeleteFunc(slices.Clone(able), func(n int) bool { return !t.sites[n].selected })
	slices.SortStableFunc(able, func(a, b int) int { return cmp.Compare(t.sites[b].Weight, t.sites[a].Weight) })
	const none = 2 // no rank
	var hosts []int
	first, second := none, none
	for len(able) > 0 {
		n := 1
		for n < len(able) && t.sites[able[n]].Weight == t.sites[able[0]].Weight {
			n++
		}
		class := able[:n]
		able = able[n:]
		for r := range second {
			switch nodes := t.ranked(class, r); {
			case len(nodes) == 0:
			case r < first:
				s.spare, second = hosts, first
				hosts, first, s.class = nodes, r, len(s.classes)
			case r < second:
				s.spare, second = nodes, r
			}
		}
		s.classes = append(s.classes, p.group(p.homes, class))
	}
	if len(hosts) > 0 && !idle {
		s.hosts = p.group(p.hosts, hosts)
	}
	return s
}

// ranked are the nodes that can announce now, and have a rank; see rank.
func (t *terrain) ranked(nodes []int, r int) []int {
	var out []int
	for _, n := range nodes {
		if s := &t.sites[n]; s.now == "" && rank(s.Candidate) == r {
			out = append(out, n)
		}
	}
	return out
}

// able are the nodes that can serve one of the claims on an address, as far as the API server knows; see Node.cannot. If
// there are none, and only because endpoints are missing that could be anywhere, they are those that could: idle.
func (p *Plan) able(x *planned) (nodes []int, idle bool) {
	var out []int
	for _, c := range x.claims {
		eps := c.endpoints(x.addr)
		if !c.local() {
			if len(eps) > 0 {
				return p.usable, false
			}
			idle = true
		}
		for name, count := range eps {
			if n, ok := p.index[name]; ok && count > 0 && p.nodes[n].Excluded == "" {
				out = append(out, n)
			}
		}
	}
	if idle && len(out) == 0 {
		return p.usable, true
	}
	slices.Sort(out)
	return slices.Compact(out), false
}

// terrain finds out what the nodes are to the addresses that some advertisements announce.
func (p *Plan) terrain(ads []int) *terrain {
	p.key = p.key[:0]
	for _, i := range ads {
		p.key = binary.AppendUvarint(p.key, uint64(i))
	}
	t := p.terrains[string(p.key)]
	if t == nil {
		t = &terrain{id: len(p.terrains), sites: make([]site, len(p.nodes))}
		for i, n := range p.nodes {
			t.sites[i] = p.view.site(n, ads)
		}
		p.terrains[string(p.key)] = t
	}
	return t
}

func (v *View) site(n *Node, ads []int) site {
	s := site{Candidate: Candidate{Node: n.Name, Gate: n.Gate}}
	var matched []*config.L2Advertisement
	var names []string
	for _, i := range ads {
		ad := &v.Config.L2[i]
		names = append(names, fmt.Sprintf("%q", ad.Name))
		if !ad.Nodes.Match(n.Labels) {
			continue
		}
		matched = append(matched, ad)
		for _, p := range ad.Prefer {
			if p.Nodes.Matches(n.Labels) {
				s.Weight += p.Weight
			}
		}
	}
	s.selected = len(matched) > 0
	switch {
	case !s.selected:
		s.now = "the nodeSelectors of L2Advertisement " + strings.Join(names, ", ") + " do not match it"
	case !n.Alive:
		s.now = "its speaker is not alive"
	default:
		if s.now = s.interfaces(n, matched); s.now != "" {
			s.now += " (L2Advertisement " + strings.Join(names, ", ") + ")"
		}
	}
	return s
}

// interfaces fills in what a node announces on: the union of the advertisements' interfaces, those that the node has.
// A node that has none of them, or none at all, cannot announce; one whose link is down should not.
func (c *Candidate) interfaces(n *Node, ads []*config.L2Advertisement) (cannot string) {
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
		return "" // not known: not empty
	}
	present, up := false, false
	for _, l := range n.Links {
		if len(c.Interfaces) == 0 && !l.Excluded || MatchAny(c.Interfaces, l.Name) {
			present, up = true, up || l.Up
		}
	}
	switch {
	case !present && len(c.Interfaces) > 0:
		return "it has no interface " + strings.Join(c.Interfaces, " or ")
	case !present:
		return "it has no interface to announce on"
	case !up:
		c.Gate = cmp.Or(c.Gate, "its link is down")
	}
	return ""
}

// group is that of some nodes.
func (p *Plan) group(in map[string]*group, nodes []int) *group {
	p.key = p.bits(p.key[:0], nodes)
	g := in[string(p.key)]
	if g == nil {
		g = &group{nodes: nodes, load: make([]int, len(nodes)), guests: make([][]*planned, len(nodes))}
		in[string(p.key)] = g
	}
	return g
}

// bits appends a set of nodes to a key.
func (p *Plan) bits(key []byte, nodes []int) []byte {
	at := len(key)
	key = append(key, make([]byte, (len(p.nodes)+7)/8)...)
	for _, n := range nodes {
		key[at+n/8] |= 1 << (n % 8)
	}
	return key
}

// l2ads appends the advertisements that announce an address, as indices.
func (v *View) l2ads(out []int, x *planned) []int {
	pool := ""
	for i := range v.Config.L2 {
		if i == 0 {
			pool = v.PoolOf(x.addr)
		}
		ad := &v.Config.L2[i]
		if ad.Pools.Has(pool) && slices.ContainsFunc(x.claims, func(c Claim) bool { return ad.Services.Match(c.Service.Labels) }) {
			out = append(out, i)
		}
	}
	return out
}

// Owner is the node that answers for an address, and the interfaces it answers on, all when there are none; "" when no
// node does.
func (p *Plan) Owner(addr netip.Addr) (node string, interfaces []string) {
	x := p.byAddr[addr]
	if x == nil || x.owner < 0 {
		return "", nil
	}
	s := &x.shape.terrain.sites[x.owner]
	return s.Node, s.Interfaces
}

// OwnedBy are the addresses that a node owns, those of the oldest Services first.
func (p *Plan) OwnedBy(node string) []netip.Addr {
	var out []netip.Addr
	for _, x := range p.addrs {
		if x.owner >= 0 && p.nodes[x.owner].Name == node {
			out = append(out, x.addr)
		}
	}
	return out
}

// StandbyFor are the addresses that a node stands by for: it would own them if the owner were not there, the share that
// it may hold left aside. It is to notice first, on the wire, when the owner falls silent. In no order.
func (p *Plan) StandbyFor(node string) []netip.Addr {
	me, ok := p.index[node]
	if !ok {
		return nil
	}
	var out []netip.Addr
	for _, x := range p.addrs {
		if x.owner < 0 || x.owner == me {
			continue
		}
		nodes := x.shape.hosts.nodes
		if len(nodes) == 1 {
			nodes = x.shape.spare
		}
		best, most := -1, uint64(0)
		for _, n := range nodes {
			if s := score(p.scores[n], x.score); n != x.owner && (best < 0 || s > most) {
				best, most = n, s
			}
		}
		if best == me {
			out = append(out, x.addr)
		}
	}
	return out
}

// Before are the nodes that have a better right to an address than a node has: when one of them is heard to claim it, the
// node has to yield, and any other has to yield to the node.
//
// The order of rights is: by weight, the home of the address before the others of its class, then by score. It leaves out
// who is alive, whose link is up, whose Service proxy is healthy and who is being drained, and how many addresses
// anybody holds for such reasons, since two nodes of which each does not know what the other one knows have to agree on
// which of them yields. A node that cannot serve the address, as far as the API server knows, has no right at all. When
// every node that can serve is alive and has no gate, the owner is the first in the order.
func (p *Plan) Before(addr netip.Addr, node string) map[string]bool {
	x := p.byAddr[addr]
	if x == nil || x.shape == nil || x.shape.idle {
		return nil
	}
	me, ok := p.index[node]
	out := map[string]bool{}
	for class, g := range x.shape.classes {
		home := x.homes[class]
		mine := ok && slices.Contains(g.nodes, me)
		for _, n := range g.nodes {
			if !mine || n != me && me != home && (n == home || p.compare(x, n, me) < 0) {
				out[p.nodes[n].Name] = true
			}
		}
		if mine {
			break
		}
	}
	return out
}

// compare orders nodes by their score for an address.
func (p *Plan) compare(x *planned, a, b int) int {
	return cmp.Or(cmp.Compare(score(p.scores[b], x.score), score(p.scores[a], x.score)), cmp.Compare(a, b))
}

// Layer2 is the decision about one address on the local network.
type Layer2 struct {
	// Owner is the node that answers for the address, "" when none does.
	Owner string
	// Interfaces that the owner answers on; empty: all of them.
	Interfaces []string
	// Advertised says that an L2Advertisement announces the address.
	Advertised bool
	// Candidates are all nodes: the owner, then the others, best first, those that cannot announce last.
	Candidates []Candidate
	// Why says why there is no owner; "" when there is one.
	Why string
}

// Candidate is a node and its place in a ranking.
type Candidate struct {
	Node string
	// Why says why the node cannot announce; "" when it can.
	Why string
	// Gate says why the node can, but should not while another can; "" when nothing speaks against it.
	Gate string
	// Full says why a node that scores higher than the owner, and is as good in every other respect, is not the owner; ""
	// when it is not such a node.
	Full string
	// Weight is the sum of the advertisements' preferences for the node.
	Weight int
	// Interfaces are the names and patterns that the node announces on; empty: all of them. Layer 2 only.
	Interfaces []string
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

// Explain is the decision about an address with its reasons.
func (p *Plan) Explain(addr netip.Addr) Layer2 {
	x := p.byAddr[addr]
	switch {
	case x == nil:
		return Layer2{Why: "no Service has the address"}
	case x.shape == nil:
		return Layer2{Why: p.view.noL2ad(addr)}
	}
	d := Layer2{Advertised: true}
	order := make([]int, len(p.nodes))
	why := make([]Candidate, len(p.nodes))
	for i, n := range p.nodes {
		s := &x.shape.terrain.sites[i]
		order[i], why[i] = i, s.Candidate
		why[i].Why = cmp.Or(n.cannot(addr, x.claims), s.now)
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(
			cmp.Compare(rank(why[a]), rank(why[b])),
			cmp.Compare(why[b].Weight, why[a].Weight),
			p.compare(x, a, b))
	})
	if x.owner >= 0 { // it is one of the best, though not always the one that scores highest
		i := slices.Index(order, x.owner)
		copy(order[1:], order[:i])
		order[0] = x.owner
	}
	for _, i := range order {
		if x.owner >= 0 && slices.Contains(x.shape.hosts.nodes, i) && p.compare(x, i, x.owner) < 0 {
			why[i].Full = "it had its share of the addresses when this one was given out"
		}
		d.Candidates = append(d.Candidates, why[i])
	}
	switch {
	case x.owner >= 0:
		d.Owner, d.Interfaces = d.Candidates[0].Node, d.Candidates[0].Interfaces
	case len(order) == 0:
		d.Why = "there is no node"
	default:
		d.Why = "no node can announce it: " + reasons(d.Candidates)
	}
	return d
}

// noL2ad says why no L2Advertisement announces an address that a Service has.
func (v *View) noL2ad(addr netip.Addr) string {
	pool := v.PoolOf(addr)
	name := "addresses outside every pool"
	if pool != "" {
		name = fmt.Sprintf("the pool %q", pool)
	}
	if slices.ContainsFunc(v.Config.L2, func(ad config.L2Advertisement) bool { return ad.Pools.Has(pool) }) {
		return fmt.Sprintf("no L2Advertisement of %s selects the Service's labels", name)
	}
	return "no L2Advertisement selects " + name
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
