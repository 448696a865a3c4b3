// Package plan says what an edit would do before it is made: it puts what follows from the cluster as it is beside what
// would follow from it as it would be. Both are decided by the packages that the controller and the speakers decide with.
// It is pure: time is an argument.
package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/internal/text"
)

// Route is a prefix that a node announces to a peer.
type Route struct {
	Node, Peer string
	Prefix     netip.Prefix
}

func (r Route) compare(o Route) int {
	return cmp.Or(cmp.Compare(r.Peer, o.Peer), r.Prefix.Addr().Compare(o.Prefix.Addr()), cmp.Compare(r.Prefix.Bits(), o.Prefix.Bits()), cmp.Compare(r.Node, o.Node))
}

// Outcome is who announces what, by decision.
type Outcome struct {
	// Addresses are those that may be announced.
	Addresses map[netip.Addr]*Address
	// Routes of Services' addresses and of the cluster's ranges, with what is announced with them.
	Routes map[Route]route.Attrs
}

// Address is who announces an address.
type Address struct {
	// Services (namespace/name) that have it, sorted.
	Services []string
	// Owner answers for it on the local network, and Backup is the next; "" for none.
	Owner, Backup string
	// Nodes are those with a route for it in a session that is up, sorted.
	Nodes []string
	// Why nobody announces it; "" when somebody does.
	Why string
}

// Announced says whether anybody announces it.
func (a *Address) Announced() bool { return a != nil && (a.Owner != "" || len(a.Nodes) > 0) }

// Of is what follows from a snapshot, as of its last Changes. It must be locked. up says whether a node has, or will have,
// a session with a peer.
func Of(s *snapshot.Snapshot, up func(node, peer string) bool) Outcome {
	view := s.View()
	out := Outcome{Addresses: map[netip.Addr]*Address{}, Routes: map[Route]route.Attrs{}}
	var nodes []string // that announce
	for _, name := range slices.Sorted(maps.Keys(view.Nodes)) {
		if view.Nodes[name].Alive {
			nodes = append(nodes, name)
		}
	}
	add := func(node string, exports []announce.Export) (reaches bool) {
		for _, e := range exports {
			r := Route{node, e.Peer, e.Prefix}
			if old, is := out.Routes[r]; is {
				out.Routes[r] = old.Merge(e.Attrs)
			} else {
				out.Routes[r] = e.Attrs
			}
			reaches = reaches || up(node, e.Peer)
		}
		return reaches
	}
	for _, addr := range s.All() {
		claims, l2 := s.ClaimsOn(addr), s.Owner(addr)
		a := &Address{Owner: l2.Owner, Backup: l2.Backup}
		for _, c := range claims {
			a.Services = append(a.Services, c.Service.Key())
		}
		slices.Sort(a.Services)
		a.Services = slices.Compact(a.Services)
		whyNot := map[string][]string{} // the nodes that do not announce it by BGP
		if len(view.Config.BGP) > 0 {
			for _, node := range nodes {
				d := view.ForBGP(node, addr, claims)
				if add(node, d.Exports) {
					a.Nodes = append(a.Nodes, node)
				}
				why := cmp.Or(d.Why, "no session for it is up")
				if whyNot[why] = append(whyNot[why], node); !d.Advertised {
					break // by no node, since that does not depend on the node
				}
			}
		}
		if !a.Announced() {
			if a.Why = l2.Why; l2.Advertised {
				a.Why = view.ExplainLayer2(addr, claims).Why
			} else {
				for _, why := range slices.Sorted(maps.Keys(whyNot)) {
					a.Why += "; " + why + " (" + text.Few(whyNot[why]) + ")"
				}
			}
		}
		out.Addresses[addr] = a
	}
	if len(view.Config.BGP) > 0 {
		for _, node := range nodes {
			for _, p := range s.ServiceCIDRs() {
				add(node, view.ForRange(node, p, v1beta1.AddressServiceCIDR).Exports)
			}
			for _, p := range s.Node(node).PodCIDRs {
				add(node, view.ForRange(node, p, v1beta1.AddressPodCIDR).Exports)
			}
		}
	}
	return out
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
	Added, Withdrawn, Changed []Route
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

// Compare is what one outcome has that another has not.
func Compare(before, after Outcome) (e Effect) {
	for addr, was := range before.Addresses {
		is := after.Addresses[addr]
		if is == nil { // its Services have it no more, which is told of them
			is = &Address{}
		}
		if was.Owner != is.Owner {
			e.Moves = append(e.Moves, Move{addr, was.Services, was.Owner, is.Owner})
			if was.Owner != "" {
				e.Flows++
			}
		}
		if len(was.Nodes) > 0 && !slices.Equal(was.Nodes, is.Nodes) {
			e.Flows += len(was.Nodes)
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
	for r, attrs := range before.Routes {
		if now, is := after.Routes[r]; !is {
			e.Withdrawn = append(e.Withdrawn, r)
		} else if !now.Equal(attrs) {
			e.Changed = append(e.Changed, r)
		}
	}
	for r := range after.Routes {
		if _, was := before.Routes[r]; !was {
			e.Added = append(e.Added, r)
		}
	}
	slices.SortFunc(e.Moves, func(a, b Move) int { return a.Address.Compare(b.Address) })
	for _, l := range [][]Loss{e.Lost, e.Gained} {
		slices.SortFunc(l, func(a, b Loss) int { return a.Address.Compare(b.Address) })
	}
	for _, r := range [][]Route{e.Added, e.Withdrawn, e.Changed} {
		slices.SortFunc(r, Route.compare)
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
