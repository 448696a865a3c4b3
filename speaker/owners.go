package main

import (
	"net/netip"
	"slices"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/speaker/layer2"
)

// duty is this node's part in answering for an address on the local network: it owns it, or it is the backup.
type duty struct {
	layer2.Address
	services []string
	better   []string // the nodes with a better right, sorted
}

func (p duty) equal(q duty) bool {
	return p.Rank == q.Rank && p.Seek == q.Seek && slices.Equal(p.Interfaces, q.Interfaces) && slices.Equal(p.services, q.services) && slices.Equal(p.better, q.better)
}

// confirm is how a node that is to take over from one that it takes for dead makes sure on the wire that it is.
var confirm = layer2.Probe{Count: 3, Interval: 30 * time.Millisecond}

// decideLayer2 says whether this node's part in answering for an address on the local network has changed.
func (r *reconciler) decideLayer2(addr netip.Addr) bool {
	s := r.snapshot
	d := s.Owner(addr)
	old, had := r.duties[addr]
	owned := had && old.Rank == 0
	if d.Owner != r.node && d.Backup != r.node {
		if d.Owner != "" && s.Claimed(addr) {
			r.known[addr] = true
		}
		if !had {
			return false
		}
		delete(r.duties, addr)
		r.better.Delete(addr)
		if owned {
			r.logGivenUp(addr, d.Owner)
		}
		return true
	}
	claims := s.ClaimsOn(addr)
	p := duty{Address: layer2.Address{Addr: addr, Interfaces: s.View().Interfaces(addr, claims, r.node)}, better: s.View().Better(addr, claims, r.node)}
	for _, c := range claims {
		if c.Type == v1beta1.AddressLoadBalancerIP {
			p.services = append(p.services, c.Service.Key())
		}
	}
	if d.Owner != r.node {
		p.Rank = 1
	} else {
		dead := r.anyDead(p.better)
		switch {
		case owned:
			p.Probe, p.Used = old.Probe, old.Used // goes on as it was begun
		case !r.known[addr]:
			p.Probe = r.acd
		case dead:
			// That a better node is dead is hearsay. While it is heard to answer, layer2 leaves it the address.
			p.Probe, p.Used = confirm, true
		}
		p.Seek = dead // it may be cut off rather than dead
	}
	r.known[addr] = true
	r.duties[addr] = p
	r.better.Store(addr, p.better)
	switch {
	case owned && p.Rank > 0:
		r.logGivenUp(addr, d.Owner)
	case !owned && p.Rank == 0:
		r.log.Info("takes address", "address", addr, "interfaces", p.Interfaces)
	}
	return !had || !p.equal(old)
}

func (r *reconciler) logGivenUp(addr netip.Addr, owner string) {
	why := "node " + owner + " ranks before it"
	if owner == "" {
		why = r.snapshot.View().ExplainLayer2(addr, r.snapshot.ClaimsOn(addr)).Why
	}
	r.log.Info("gives up address", "address", addr, "why", why)
}

// anyDead says whether the speaker of one of some nodes is not known to be alive.
func (r *reconciler) anyDead(nodes []string) bool {
	return slices.ContainsFunc(nodes, func(n string) bool {
		node := r.snapshot.View().Nodes[n]
		return node != nil && !node.Alive
	})
}

// note takes in which addresses Services have. first says that nothing was known before: what there is then, others may
// have announced for long.
func (r *reconciler) note(addrs []netip.Addr, first bool) {
	for _, addr := range addrs {
		if _, ok := r.known[addr]; !r.snapshot.Claimed(addr) {
			delete(r.known, addr)
		} else if !ok {
			r.known[addr] = first
		}
	}
}

// hasBetterRight says whether a node has a better right than this one to an address that this one owns. It takes no lock.
func (r *reconciler) hasBetterRight(node string, addr netip.Addr) bool {
	nodes, _ := r.better.Load(addr)
	better, _ := nodes.([]string)
	_, found := slices.BinarySearch(better, node)
	return found
}
