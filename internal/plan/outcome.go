// Package plan says what an edit would do before it is made: it puts what follows from the cluster as it is beside what
// would follow from it as it would be. Both are decided by the packages that the controller and the speakers decide with.
// It is pure: time is an argument.
package plan

import (
	"cmp"
	"maps"
	"math/big"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/internal/text"
)

// Nodes numbers nodes, so that a set of them is the number with their bits. Outcomes that are compared share one; that of
// the zero value has no node yet.
type Nodes struct {
	names   []string
	numbers map[string]int
}

// set is that of some nodes.
func (n *Nodes) set(names ...string) *big.Int {
	out := new(big.Int)
	for _, name := range names {
		i, ok := n.numbers[name]
		if !ok {
			if i = len(n.names); i == 0 {
				n.numbers = map[string]int{}
			}
			n.numbers[name], n.names = i, append(n.names, name)
		}
		out.SetBit(out, i, 1)
	}
	return out
}

// of are the names of a set, sorted.
func (n *Nodes) of(set *big.Int) (out []string) {
	for i, name := range n.names {
		if set.Bit(i) == 1 {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// count is how many nodes are in a set.
func count(set *big.Int) (n int) {
	for _, w := range set.Bits() {
		n += bits.OnesCount(uint(w))
	}
	return n
}

func empty(set *big.Int) bool       { return set == nil || set.Sign() == 0 }
func both(a, b *big.Int) *big.Int   { return new(big.Int).And(a, b) }
func either(a, b *big.Int) *big.Int { return new(big.Int).Or(a, b) }
func except(a, b *big.Int) *big.Int { return new(big.Int).AndNot(a, b) }

// Path is a prefix that is announced to a peer.
type Path struct {
	Peer   string
	Prefix netip.Prefix
}

func (p Path) compare(o Path) int {
	return cmp.Or(cmp.Compare(p.Peer, o.Peer), p.Prefix.Addr().Compare(o.Prefix.Addr()), cmp.Compare(p.Prefix.Bits(), o.Prefix.Bits()))
}

// source is a set of nodes that announce something with the same attributes.
type source struct {
	nodes *big.Int
	attrs route.Attrs
}

// sources are those of one path, each node in one of them.
type sources []source

// join adds one; attributes that meet on a node merge.
func (all sources) join(s source) sources {
	var next sources // sets that are new, or were cut out of others
	for i := range all {
		meet := both(all[i].nodes, s.nodes)
		if empty(meet) {
			continue
		}
		s.nodes = except(s.nodes, meet)
		if merged := all[i].attrs.Merge(s.attrs); !merged.Equal(all[i].attrs) {
			all[i].nodes = except(all[i].nodes, meet)
			next = append(next, source{meet, merged})
		}
	}
	for _, n := range append(next, s) {
		if i := slices.IndexFunc(all, func(x source) bool { return x.attrs.Equal(n.attrs) }); i >= 0 {
			all[i].nodes = either(all[i].nodes, n.nodes)
		} else {
			all = append(all, n)
		}
	}
	return slices.DeleteFunc(all, func(x source) bool { return empty(x.nodes) })
}

func (all sources) nodes() *big.Int {
	out := new(big.Int)
	for _, s := range all {
		out.Or(out, s.nodes)
	}
	return out
}

// Outcome is who announces what, by decision.
type Outcome struct {
	// Addresses are those that may be announced.
	Addresses map[netip.Addr]*Address
	// routes of Services' addresses and of the cluster's ranges, with what is announced with them.
	routes map[Path]sources
	nodes  *Nodes
}

// Address is who announces an address.
type Address struct {
	// Services (namespace/name) that have it, sorted.
	Services []string
	// Owner answers for it on the local network, and Backup is the next; "" for none.
	Owner, Backup string
	// Why nobody announces it; "" when somebody does.
	Why string

	nodes *big.Int // those with a route for it in a session that is up
}

// Announced says whether anybody announces it.
func (a *Address) Announced() bool { return a != nil && (a.Owner != "" || !empty(a.nodes)) }

// RoutesOf are the prefixes that a node announces to each peer, sorted.
func (o *Outcome) RoutesOf(node string) map[string][]netip.Prefix {
	out, is := map[string][]netip.Prefix{}, o.nodes.set(node)
	for p, from := range o.routes {
		if !empty(both(from.nodes(), is)) {
			out[p.Peer] = append(out[p.Peer], p.Prefix)
		}
	}
	for _, prefixes := range out {
		slices.SortFunc(prefixes, netip.Prefix.Compare)
	}
	return out
}

// Of is what follows from a snapshot, as of its last Changes. It must be locked. up says whether a node has, or will have,
// a session with a peer. It takes a time that grows with the addresses, and hardly with the nodes: most of these are alike.
func Of(s *snapshot.Snapshot, numbers *Nodes, up func(node, peer string) bool) Outcome {
	view := s.View()
	out := Outcome{Addresses: map[netip.Addr]*Address{}, routes: map[Path]sources{}, nodes: numbers}
	var nodes []string // that announce
	for _, name := range slices.Sorted(maps.Keys(view.Nodes)) {
		if view.Nodes[name].Alive {
			nodes = append(nodes, name)
		}
	}
	living, inSession := numbers.set(nodes...), map[string]*big.Int{}
	for _, p := range view.Config.Peers {
		inSession[p.Name] = numbers.set(slices.DeleteFunc(slices.Clone(nodes), func(node string) bool { return !up(node, p.Name) })...)
	}
	// add takes in what the nodes of a set announce, and returns those that have a session for it.
	add := func(from *big.Int, exports []announce.Export) *big.Int {
		reach := new(big.Int)
		for _, e := range exports {
			p := Path{e.Peer, e.Prefix}
			out.routes[p] = out.routes[p].join(source{from, e.Attrs})
			reach.Or(reach, both(from, inSession[e.Peer]))
		}
		return reach
	}
	alike := view.Alike(nodes)
	sets := make([]*big.Int, len(alike))
	for i, of := range alike {
		sets[i] = numbers.set(of...)
	}
	for _, addr := range s.All() {
		claims, l2 := s.ClaimsOn(addr), s.Owner(addr)
		a := &Address{Owner: l2.Owner, Backup: l2.Backup, nodes: new(big.Int)}
		for _, c := range claims {
			a.Services = append(a.Services, c.Service.Key())
		}
		slices.Sort(a.Services)
		a.Services = slices.Compact(a.Services)
		whyNot := map[string]*big.Int{} // the nodes that do not announce it by BGP
		decide := func(node string, set *big.Int) {
			d := view.ForBGP(node, addr, claims)
			a.nodes.Or(a.nodes, add(set, d.Exports))
			why := cmp.Or(d.Why, "no session for it is up")
			if !d.Advertised { // by no node, since that does not depend on the node
				set = new(big.Int)
			}
			if whyNot[why] == nil {
				whyNot[why] = new(big.Int)
			}
			whyNot[why].Or(whyNot[why], set)
		}
		if len(view.Config.BGP) > 0 {
			own := new(big.Int)
			for _, node := range view.Own(addr, claims) {
				if is := numbers.set(node); !empty(both(is, living)) {
					own.Or(own, is)
					decide(node, is)
				}
			}
			for i, set := range sets {
				if set = except(set, own); !empty(set) {
					first := slices.IndexFunc(alike[i], func(node string) bool { return !empty(both(numbers.set(node), set)) })
					decide(alike[i][first], set)
				}
			}
		}
		if !a.Announced() {
			if a.Why = l2.Why; l2.Advertised {
				a.Why = view.ExplainLayer2(addr, claims).Why
			} else {
				for _, why := range slices.Sorted(maps.Keys(whyNot)) {
					if a.Why += "; " + why; !empty(whyNot[why]) {
						a.Why += " (" + text.Few(numbers.of(whyNot[why])) + ")"
					}
				}
			}
		}
		out.Addresses[addr] = a
	}
	if len(view.Config.BGP) > 0 {
		for _, node := range nodes {
			is := numbers.set(node)
			for _, p := range s.ServiceCIDRs() {
				add(is, view.ForRange(node, p, v1beta1.AddressServiceCIDR).Exports)
			}
			for _, p := range s.Node(node).PodCIDRs {
				add(is, view.ForRange(node, p, v1beta1.AddressPodCIDR).Exports)
			}
		}
	}
	return out
}

// Routes are those of one path, by the nodes that they come from, sorted.
type Routes struct {
	Path
	Nodes []string
}

// Move is an address that another node answers for on the local network.
type Move struct {
	Address  netip.Addr
	Services []string
	// From and To are "" for nobody.
	From, To string
}

// Loss is an address that a Service keeps and that nobody announces any more.
type Loss struct {
	Address  netip.Addr
	Services []string
	Why      string
}

// Effect is the difference between two outcomes, each list sorted.
type Effect struct {
	Moves                     []Move
	Added, Withdrawn, Changed []Routes
	// Lost are the addresses that lose their last announcer, though a Service has them still.
	Lost []Loss
	// Gained are those that somebody announces for the first time.
	Gained []Loss
	// Flows is through how many pairs of an address and a node there may be TCP connections that the edit resets: those
	// through the node that answered for the address, and, as routers spread them anew, those through every node that had a
	// route for it, when these nodes change.
	Flows int
}

// Empty says that nothing would change.
func (e *Effect) Empty() bool {
	return len(e.Moves)+len(e.Added)+len(e.Withdrawn)+len(e.Changed)+len(e.Lost)+len(e.Gained) == 0
}

// Count is how many routes there are.
func Count(of []Routes) (n int) {
	for _, r := range of {
		n += len(r.Nodes)
	}
	return n
}

// Compare is what one outcome has that another has not, of the same Nodes.
func Compare(before, after Outcome) (e Effect) {
	for addr, was := range before.Addresses {
		is := after.Addresses[addr]
		if is == nil { // its Services have it no more, which is told of them
			is = &Address{nodes: new(big.Int)}
		}
		if was.Owner != is.Owner {
			e.Moves = append(e.Moves, Move{addr, was.Services, was.Owner, is.Owner})
			if was.Owner != "" {
				e.Flows++
			}
		}
		if was.nodes.Cmp(is.nodes) != 0 {
			e.Flows += count(was.nodes)
		}
		if len(is.Services) > 0 && was.Announced() && !is.Announced() {
			e.Lost = append(e.Lost, Loss{addr, is.Services, is.Why})
		}
	}
	for addr, is := range after.Addresses {
		was := before.Addresses[addr]
		if was == nil && is.Owner != "" {
			e.Moves = append(e.Moves, Move{addr, is.Services, "", is.Owner})
		}
		if !was.Announced() && is.Announced() {
			e.Gained = append(e.Gained, Loss{Address: addr, Services: is.Services})
		}
	}
	named := map[string][]string{} // many paths have the same nodes
	note := func(to *[]Routes, p Path, set *big.Int) {
		if empty(set) {
			return
		}
		key := string(set.Bytes())
		if named[key] == nil {
			named[key] = before.nodes.of(set)
		}
		*to = append(*to, Routes{p, named[key]})
	}
	for p, from := range before.routes {
		was, now := from.nodes(), after.routes[p].nodes()
		same := new(big.Int)
		for _, a := range from {
			for _, b := range after.routes[p] {
				if a.attrs.Equal(b.attrs) {
					same.Or(same, both(a.nodes, b.nodes))
				}
			}
		}
		note(&e.Withdrawn, p, except(was, now))
		note(&e.Added, p, except(now, was))
		note(&e.Changed, p, except(both(was, now), same))
	}
	for p, from := range after.routes {
		if before.routes[p] == nil {
			note(&e.Added, p, from.nodes())
		}
	}
	slices.SortFunc(e.Moves, func(a, b Move) int { return a.Address.Compare(b.Address) })
	for _, l := range [][]Loss{e.Lost, e.Gained} {
		slices.SortFunc(l, func(a, b Loss) int { return a.Address.Compare(b.Address) })
	}
	for _, r := range [][]Routes{e.Added, e.Withdrawn, e.Changed} {
		slices.SortFunc(r, func(a, b Routes) int { return a.compare(b.Path) })
	}
	return e
}

// Sessions says of every node and peer whether there is a session that is up, by what the living speakers say.
func Sessions(speakers map[string]*v1beta1.Speaker) func(node, peer string) bool {
	up := map[[2]string]bool{}
	for node, sp := range speakers {
		for _, s := range sp.Status.Sessions {
			if s.State == v1beta1.Established {
				up[[2]string{node, s.Peer}] = true
			}
		}
	}
	return func(node, peer string) bool { return up[[2]string{node, peer}] }
}
