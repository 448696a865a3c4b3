package announce

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
)

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
