package main

import (
	"net/netip"
	"slices"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/speaker/layer2"
)

// role is this node's part in answering for an address on the local network: it owns it, it is the backup, or it answers
// until somebody else does.
type role struct {
	layer2.Address
	ranking
	services []string
}

// ranking is what becomes of an address when another member claims it, too.
type ranking struct {
	better []string // the nodes that rank before this one, sorted: they are yielded to
	keep   []string // those behind it that may keep what they have (failback Never), or whose speakers are dead, sorted
}

func (p role) equal(q role) bool {
	return p.Rank == q.Rank && p.Seek == q.Seek && slices.Equal(p.Interfaces, q.Interfaces) && slices.Equal(p.services, q.services) &&
		slices.Equal(p.better, q.better) && slices.Equal(p.keep, q.keep)
}

// confirm is how a node that is to take over finds out on the wire whether somebody still answers.
var confirm = layer2.Probe{Count: 3, Interval: 30 * time.Millisecond}

// leaving is the rank for an address that this node answers for though two others come before it: until one of them is
// heard to answer, so that a move leaves no gap, or for as long as it can serve it, if the address does not fail back. From
// endpoints that terminate it can, until they are gone.
const leaving = 2

// decideLayer2 says whether this node's part in answering for an address on the local network has changed.
func (r *reconciler) decideLayer2(addr netip.Addr) bool {
	s := r.snapshot
	d := s.Owner(addr)
	old, had := r.roles[addr]
	owned := had && old.Rank == 0
	rank := leaving
	switch r.node {
	case d.Owner:
		rank = 0
	case d.Backup:
		rank = 1
	}
	claims := s.ClaimsOn(addr)
	if !had && rank != leaving && !r.ready(addr, claims) {
		return false
	}
	if d.Owner != "" && s.Claimed(addr) {
		defer func() { r.known[addr] = true }()
	}
	stays := func() bool {
		return s.View().Can(addr, claims, r.node) || s.View().Leaves(r.node, addr, claims)
	}
	if rank == leaving && !(had && stays() && r.answers(addr)) {
		if !had {
			return false
		}
		delete(r.roles, addr)
		delete(r.leavers, addr)
		r.rankings.Delete(addr)
		if owned {
			r.logGivenUp(addr, d.Owner)
		}
		return true
	}
	p := role{Address: layer2.Address{Addr: addr, Rank: rank, Interfaces: s.View().Interfaces(addr, claims, r.node)}}
	p.better = s.View().Better(addr, claims, r.node)
	if d.Keep {
		p.keep = s.View().Fit(addr, claims)
		for name, n := range s.View().Nodes { // its speaker may restart; if it is dead, it is soon heard not to have it
			if !n.Alive {
				p.keep = append(p.keep, name)
			}
		}
		slices.Sort(p.keep)
	}
	for _, c := range claims {
		if c.Type == v1beta1.AddressLoadBalancerIP {
			p.services = append(p.services, c.Service.Key())
		}
	}
	if rank == 0 {
		dead := r.anyDead(p.better)
		switch {
		case owned:
			p.Probe, p.Used = old.Probe, old.Used // goes on as it was begun
		case !r.known[addr]:
			p.Probe = r.acd
		case dead || d.Keep:
			// That a better node is dead is hearsay. While it is heard to answer, layer2 leaves it the address.
			p.Probe, p.Used = confirm, true
		}
		p.Seek = dead // it may be cut off rather than dead
	}
	if delete(r.leavers, addr); rank == leaving {
		r.leavers[addr] = true
	}
	r.roles[addr] = p
	r.rankings.Store(addr, p.ranking)
	switch {
	case owned && rank > 0:
		r.logGivenUp(addr, d.Owner)
	case !owned && rank == 0:
		r.log.Info("takes address", "address", addr, "interfaces", p.Interfaces)
	}
	return !had || !p.equal(old)
}

// answers says whether layer 2 answers for an address.
func (r *reconciler) answers(addr netip.Addr) bool {
	if r.answered == nil {
		r.answered = map[netip.Addr]bool{}
		for _, a := range r.layer2.Status().Addresses {
			r.answered[a.Addr] = a.State.Answers()
		}
	}
	return r.answered[addr]
}

// answersChanged has what is answered until somebody else does looked at again.
func (r *reconciler) answersChanged() {
	r.snapshot.Lock()
	some := len(r.leavers) > 0
	for addr := range r.leavers {
		r.snapshot.Mark(addr)
	}
	r.snapshot.Unlock()
	if some {
		r.poke()
	}
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

// verdict is what to do about another member that claims an address of this node. It takes no lock.
func (r *reconciler) verdict(node string, addr netip.Addr) layer2.Verdict {
	if r.orphan.Load() {
		return layer2.Yield // the others know more
	}
	x, _ := r.rankings.Load(addr)
	ranking, _ := x.(ranking)
	if _, better := slices.BinarySearch(ranking.better, node); better {
		return layer2.Yield
	}
	if _, keep := slices.BinarySearch(ranking.keep, node); keep {
		return layer2.Leave
	}
	return layer2.Defend
}
