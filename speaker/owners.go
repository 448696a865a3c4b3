package main

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/speaker/layer2"
)

// duty is what this node does about an address on the local network: it owns it, or it stands by.
type duty struct {
	layer2.Address
	services []string
	before   map[string]bool // the nodes with a better right
}

func (p duty) equal(q duty) bool {
	return p.Standby == q.Standby && p.Seek == q.Seek && slices.Equal(p.Interfaces, q.Interfaces) && slices.Equal(p.services, q.services) && maps.Equal(p.before, q.before)
}

// confirm is how a node that is to take over from one that it takes for dead makes sure on the wire that it is.
var confirm = layer2.Probe{Count: 3, Interval: 30 * time.Millisecond}

// decideLayer2 says whether this node's part in announcing addresses on the local network has changed. A change to one
// address can move others.
func (r *reconciler) decideLayer2() bool {
	plan := r.snapshot.Layer2()
	next := map[netip.Addr]duty{}
	add := func(addr netip.Addr, standby bool) duty {
		_, interfaces := plan.Owner(addr)
		p := duty{Address: layer2.Address{Addr: addr, Interfaces: interfaces, Standby: standby}, before: plan.Before(addr, r.node)}
		for _, c := range r.snapshot.ClaimsOn(addr) {
			if c.Type == v1beta1.AddressLoadBalancerIP {
				p.services = append(p.services, c.Service.Key())
			}
		}
		next[addr] = p
		return p
	}
	for _, addr := range plan.StandbyFor(r.node) {
		add(addr, true)
	}
	var holders map[netip.Addr]bool
	for _, addr := range plan.OwnedBy(r.node) {
		p := add(addr, false)
		switch old, had := r.duties[addr]; {
		case had && !old.Standby:
			p.Probe, p.Used = old.Probe, old.Used // goes on as it was begun
		case !r.known[addr]:
			p.Probe = r.acd
		case r.anyDead(p.before):
			// That a better node is dead is hearsay. While it is heard to answer it has the address.
			if holders == nil {
				holders = r.holders()
			}
			p.Standby, p.Probe, p.Used = holders[addr], confirm, true
		}
		p.Seek = r.anyDead(p.before) // it may be cut off rather than dead
		next[addr] = p
	}
	changed := !maps.EqualFunc(r.duties, next, duty.equal)
	for addr, old := range r.duties {
		if p, ok := next[addr]; !old.Standby && (!ok || p.Standby) {
			owner, _ := plan.Owner(addr)
			why := "node " + owner + " has the better right"
			if owner == "" {
				why = plan.Explain(addr).Why
			}
			r.log.Info("gives up address", "address", addr, "why", why)
		}
	}
	for addr, p := range next {
		if old, had := r.duties[addr]; !p.Standby && (!had || old.Standby) {
			r.log.Info("takes address", "address", addr, "interfaces", p.Interfaces)
		}
	}
	r.duties = next
	for addr, announced := range r.known {
		if owner, _ := plan.Owner(addr); !announced && owner != "" {
			r.known[addr] = true
		}
	}
	return changed
}

// anyDead says whether the speaker of one of some nodes is not known to be alive.
func (r *reconciler) anyDead(nodes map[string]bool) bool {
	for n := range nodes {
		if node := r.snapshot.View().Nodes[n]; node != nil && !node.Alive {
			return true
		}
	}
	return false
}

// holders are the addresses that another speaker is heard to answer for.
func (r *reconciler) holders() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, a := range r.layer2.Status().Addresses {
		out[a.Addr] = a.State == layer2.Standby && a.Holder != layer2.MAC{}
	}
	return out
}

// note takes in which addresses Services have. first says that nothing was known before: what there is then, others may
// have announced for long.
func (r *reconciler) note(addrs []netip.Addr, first bool) {
	for _, addr := range addrs {
		if _, ok := r.known[addr]; len(r.snapshot.ClaimsOn(addr)) == 0 {
			delete(r.known, addr)
		} else if !ok {
			r.known[addr] = first
		}
	}
}

// hasBetterRight says whether a node has a better right than this one to an address that this one owns. It takes no lock.
func (r *reconciler) hasBetterRight(node string, addr netip.Addr) bool {
	rights := r.rights.Load()
	return rights != nil && (*rights)[addr][node]
}
