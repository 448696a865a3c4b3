package announce

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/interfaces"
)

// Layer2 is the decision about one address on the local network.
//
// Of the nodes that can serve the address, those that can announce it now come first, those with a gate after them, and
// those that cannot last. Among equals the higher weight is first: the sum of the advertisements' preferences for the
// node. Among those the higher score is: a hash of node and address, in which every node comes first for about as many
// addresses. The first is the owner, the second the backup.
//
// It follows that a Service that comes, goes or loses its endpoints moves no other address; that a node that leaves
// moves what it owned and no more; and that one that comes takes what it is the first for and no more.
type Layer2 struct {
	// Owner is the node that answers for the address, "" when none does.
	Owner string
	// Backup is the next node that can announce the address; "" when none can. It watches the owner.
	Backup string
	// Interfaces that the owner answers on; empty: all of them.
	Interfaces []string
	// Advertised says that an L2Advertisement announces the address.
	Advertised bool
	// Keep says that a node that answers goes on while it can serve, though a better one has come (failback Never).
	Keep bool
	// Why says why there is no owner; "" when there is one. Only ExplainLayer2 says what speaks against each node.
	Why string
	// Candidates are all nodes: the owner, the backup, then the others, best first, those that cannot announce last. Only
	// ExplainLayer2 gives them.
	Candidates []Candidate

	places *places
	claims []Claim // that it was made with
}

// Equal says whether two decisions are the same, apart from the candidates.
func (d Layer2) Equal(e Layer2) bool {
	return d.Owner == e.Owner && d.Backup == e.Backup && slices.Equal(d.Interfaces, e.Interfaces) && d.Advertised == e.Advertised &&
		d.Keep == e.Keep && d.Why == e.Why
}

// Candidate is a node and its place in a ranking.
type Candidate struct {
	Node string
	// Why says why the node cannot announce; "" when it can.
	Why string
	// Gate says why the node can, but should not while another can; "" when nothing speaks against it.
	Gate string
	// Weight is the sum of the advertisements' preferences for the node.
	Weight int
	// Interfaces are the names and patterns that the node announces on; empty: all of them.
	Interfaces []string
}

// rank puts nodes that can announce before those that should not, and those before nodes that cannot.
func (c *Candidate) rank() int8 {
	switch {
	case c.Why != "":
		return cannot
	case c.Gate != "":
		return gated
	}
	return able
}

// Ranks of candidates.
const (
	able int8 = iota
	gated
	cannot
)

// Layer2 decides who owns an address on the local network. Claims of other types than LoadBalancerIP do not count.
func (v *View) Layer2(addr netip.Addr, claims []Claim) Layer2 {
	v.prepare()
	p, why := v.placesOf(addr, claims)
	if p == nil {
		return Layer2{Why: why}
	}
	d := Layer2{Advertised: true, Keep: p.keep, places: p, claims: claims}
	first, second := -1, -1
	a := hashAddr(addr)
	idle := v.each(addr, claims, func(i int) {
		switch x := &p.of[i]; {
		case !x.serves || x.rank == cannot || i == first || i == second:
		case first < 0 || v.before(p, a, i, first):
			first, second = i, first
		case second < 0 || v.before(p, a, i, second):
			second = i
		}
	})
	if idle || first < 0 {
		d.Why = "no node can announce it"
		return d
	}
	d.Owner, d.Interfaces = v.nodes[first].Name, v.interfaces(v.nodes[first], p.ads)
	if second >= 0 {
		d.Backup = v.nodes[second].Name
	}
	return d
}

// Moves says whether a node that has changed, by SetNode, may have changed a decision on an address whose claims have not
// changed. It is never wrong when it denies that, and much cheaper than the decision.
func (v *View) Moves(node string, addr netip.Addr, d *Layer2) bool {
	switch {
	case d.places == nil:
		return false
	case d.Owner == node || d.Backup == node || d.Owner == "":
		return true
	}
	i, ok := v.index[node]
	if !ok || !d.places.of[i].serves || d.places.of[i].rank == cannot {
		return false
	}
	if !slices.ContainsFunc(d.claims, func(c Claim) bool {
		return c.Type == v1beta1.AddressLoadBalancerIP && (!c.local() || c.endpoints(addr)[node] > 0)
	}) {
		return false
	}
	backup, ok := v.index[d.Backup]
	return !ok || v.before(d.places, hashAddr(addr), i, backup)
}

// First is the node that owns an address when every speaker is alive and no gate is on: the first of those that could
// serve the claims; "" when there is none, or no L2Advertisement announces the address. A claim without endpoints is
// one that every node could serve.
func (v *View) First(addr netip.Addr, claims []Claim) string {
	v.prepare()
	p, _ := v.placesOf(addr, claims)
	if p == nil {
		return ""
	}
	first, a := -1, hashAddr(addr)
	consider := func(i int) {
		if p.of[i].serves && (first < 0 || v.outranks(p, a, i, first)) {
			first = i
		}
	}
	v.each(addr, claims, consider)
	if first < 0 {
		for i := range v.nodes {
			consider(i)
		}
	}
	if first < 0 {
		return ""
	}
	return v.nodes[first].Name
}

// May says whether a node is one of those of which First is the first.
func (v *View) May(addr netip.Addr, claims []Claim, node string) bool {
	v.prepare()
	p, _ := v.placesOf(addr, claims)
	me, known := v.index[node]
	if p == nil || !known || !p.of[me].serves {
		return false
	}
	any, mine := false, false
	v.each(addr, claims, func(i int) { any, mine = any || p.of[i].serves, mine || i == me })
	return mine || !any
}

// Better are the nodes that rank before a node for an address, sorted: when one of them is heard to
// claim it, the node has to yield, and any other has to yield to the node.
//
// The rank is by weight, then by score. It leaves out who is alive, whose link is up, whose Service proxy is
// healthy and who is being drained, since two nodes of which each does not know what the other one knows have to agree
// on which of them yields. A node that cannot serve the address, as far as the API server knows, has no rank.
func (v *View) Better(addr netip.Addr, claims []Claim, node string) []string {
	v.prepare()
	p, _ := v.placesOf(addr, claims)
	if p == nil {
		return nil
	}
	var out []string
	a := hashAddr(addr)
	me, mine := v.index[node]
	if mine = mine && p.of[me].serves; mine {
		mine = false
		v.each(addr, claims, func(i int) { mine = mine || i == me })
	}
	if v.each(addr, claims, func(i int) {
		if p.of[i].serves && (!mine || v.outranks(p, a, i, me)) {
			out = append(out, v.nodes[i].Name)
		}
	}) {
		return nil
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Fit are the nodes that can announce an address now, without a gate, sorted.
func (v *View) Fit(addr netip.Addr, claims []Claim) []string { return v.upTo(able, addr, claims) }

// Can says whether a node can announce an address now, be it with a gate.
func (v *View) Can(addr netip.Addr, claims []Claim, node string) bool {
	return slices.Contains(v.upTo(gated, addr, claims), node)
}

// upTo are the nodes that can serve an address and have at most a rank, sorted.
func (v *View) upTo(rank int8, addr netip.Addr, claims []Claim) (out []string) {
	v.prepare()
	p, _ := v.placesOf(addr, claims)
	if p == nil || v.each(addr, claims, func(i int) {
		if p.of[i].serves && p.of[i].rank <= rank {
			out = append(out, v.nodes[i].Name)
		}
	}) {
		return nil
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Interfaces are the names and patterns of those that a node announces an address on; empty: all of them.
func (v *View) Interfaces(addr netip.Addr, claims []Claim, node string) []string {
	v.prepare()
	if p, _ := v.placesOf(addr, claims); p != nil && v.Nodes[node] != nil {
		return v.interfaces(v.Nodes[node], p.ads)
	}
	return nil
}

// ExplainLayer2 is the decision of Layer2 with all candidates.
func (v *View) ExplainLayer2(addr netip.Addr, claims []Claim) Layer2 {
	d := v.Layer2(addr, claims)
	if d.places == nil {
		return d
	}
	d.Candidates = v.candidates(addr, claims, d.places)
	switch {
	case d.Owner != "":
	case len(d.Candidates) == 0:
		d.Why = "there is no node"
	default:
		d.Why += ": " + reasons(d.Candidates)
	}
	return d
}

// before orders nodes by who should answer for an address now; a is the address' half of a score.
func (v *View) before(p *places, a uint64, i, j int) bool {
	if x, y := p.of[i].rank, p.of[j].rank; x != y {
		return x < y
	}
	return v.outranks(p, a, i, j)
}

// outranks orders nodes by their right to an address.
func (v *View) outranks(p *places, a uint64, i, j int) bool {
	if x, y := p.of[i].weight, p.of[j].weight; x != y {
		return x > y
	}
	if x, y := score(v.hashes[i], a), score(v.hashes[j], a); x != y {
		return x > y
	}
	return v.nodes[i].Name < v.nodes[j].Name
}

// each calls f with the nodes that can serve one of the claims of type LoadBalancerIP on an address, as far as their
// endpoints say, some of them more than once. If there are none, and only because endpoints are missing that could be
// anywhere, it is idle, and they are all nodes.
func (v *View) each(addr netip.Addr, claims []Claim, f func(int)) (idle bool) {
	anywhere, all := false, false
	for _, c := range claims {
		if c.Type == v1beta1.AddressLoadBalancerIP && !c.local() {
			anywhere, all = true, all || len(c.endpoints(addr)) > 0
		}
	}
	if !all {
		found := false
		for _, c := range claims {
			if c.Type != v1beta1.AddressLoadBalancerIP || !c.local() {
				continue
			}
			for name, count := range c.endpoints(addr) {
				if i, ok := v.index[name]; ok && count > 0 {
					found = found || v.nodes[i].Excluded == ""
					f(i)
				}
			}
		}
		if found || !anywhere {
			return false
		}
	}
	for i := range v.nodes {
		f(i)
	}
	return !all
}

// placesOf are what the nodes are to an address; nil, and why, when no L2Advertisement announces it.
func (v *View) placesOf(addr netip.Addr, claims []Claim) (*places, string) {
	var on [8]int
	ads, claimed, pool := on[:0], false, ""
	for _, c := range claims {
		if claimed = c.Type == v1beta1.AddressLoadBalancerIP; claimed {
			break
		}
	}
	if !claimed {
		return nil, "no Service has the address"
	}
	if pool = v.PoolOf(addr); pool == "" {
		return nil, NotInPool
	}
	for i := range v.Config.L2 {
		ad := &v.Config.L2[i]
		if ad.Pools.Has(pool) && slices.ContainsFunc(claims, func(c Claim) bool {
			return c.Type == v1beta1.AddressLoadBalancerIP && ad.Services.Match(c.Service.Labels)
		}) {
			ads = append(ads, i)
		}
	}
	if len(ads) == 0 {
		if slices.ContainsFunc(v.Config.L2, func(ad config.L2Advertisement) bool { return ad.Pools.Has(pool) }) {
			return nil, fmt.Sprintf("no L2Advertisement of the pool %q selects the Service's labels", pool)
		}
		return nil, fmt.Sprintf("no L2Advertisement selects the pool %q", pool)
	}
	v.key = v.key[:0]
	for _, i := range ads {
		v.key = binary.AppendUvarint(v.key, uint64(i))
	}
	p := v.places[string(v.key)]
	if p == nil {
		p = &places{ads: slices.Clone(ads), of: make([]place, len(v.nodes))}
		p.keep = slices.ContainsFunc(ads, func(i int) bool { return v.Config.L2[i].Keep })
		for i, n := range v.nodes {
			p.of[i] = v.place(n, ads)
		}
		v.places[string(v.key)] = p
	}
	return p, ""
}

// place is what a node is to the addresses that some advertisements announce.
func (v *View) place(n *Node, ads []int) place {
	c, selected := v.candidate(n, ads)
	return place{weight: int32(c.Weight), rank: c.rank(), serves: selected && n.Excluded == ""}
}

// candidate is a node's place among those that announce what some advertisements announce, as far as it is the same for
// all addresses, and whether they select it.
func (v *View) candidate(n *Node, ads []int) (c Candidate, selected bool) {
	c = Candidate{Node: n.Name, Gate: n.Gate}
	for _, i := range ads {
		ad := &v.Config.L2[i]
		if !ad.Nodes.Match(n.Labels) {
			continue
		}
		selected = true
		for _, p := range ad.Prefer {
			if p.Nodes.Matches(n.Labels) {
				c.Weight += p.Weight
			}
		}
	}
	switch {
	case !selected:
		c.Why = "the nodeSelectors of L2Advertisement " + v.names(ads) + " do not match it"
	case !n.Alive:
		c.Why = "its speaker is not alive"
	default:
		c.Interfaces = v.interfaces(n, ads)
		if c.links(n); c.Why != "" {
			c.Why += " (L2Advertisement " + v.names(ads) + ")"
		}
	}
	return c, selected
}

func (v *View) names(ads []int) string {
	var out []string
	for _, i := range ads {
		out = append(out, fmt.Sprintf("%q", v.Config.L2[i].Name))
	}
	return strings.Join(out, ", ")
}

// interfaces are those that a node announces on: the union of those of the advertisements that select it; empty: all.
func (v *View) interfaces(n *Node, ads []int) (out []string) {
	for _, i := range ads {
		ad := &v.Config.L2[i]
		if !ad.Nodes.Match(n.Labels) {
			continue
		}
		if len(ad.Interfaces) == 0 {
			return nil
		}
		out = append(out, ad.Interfaces...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// links looks whether a node has one of the interfaces that it announces on. A node that has none of them, or none at all,
// cannot announce; one whose link is down should not.
func (c *Candidate) links(n *Node) {
	if n.Links == nil {
		return // not known: not empty
	}
	present, up := false, false
	for _, l := range n.Links {
		if len(c.Interfaces) == 0 && !l.Excluded || interfaces.Match(c.Interfaces, l.Name) {
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

// candidates are all nodes with what speaks against them, best first.
func (v *View) candidates(addr netip.Addr, claims []Claim, p *places) []Candidate {
	on := slices.DeleteFunc(slices.Clone(claims), func(c Claim) bool { return c.Type != v1beta1.AddressLoadBalancerIP })
	out := make([]Candidate, len(v.nodes))
	a := hashAddr(addr)
	for i, n := range v.nodes {
		out[i], _ = v.candidate(n, p.ads)
		out[i].Why = cmp.Or(n.cannot(addr, on), out[i].Why)
	}
	slices.SortFunc(out, func(x, y Candidate) int {
		if c := cmp.Compare(x.rank(), y.rank()); c != 0 {
			return c
		}
		if v.outranks(p, a, v.index[x.Node], v.index[y.Node]) {
			return -1
		}
		return 1
	})
	return out
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
