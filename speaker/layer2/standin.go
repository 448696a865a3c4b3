package layer2

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// A node forwards on while its speaker is restarted, and its connections with it. They break when another node takes the
// address. So the backup stands in for the speaker: it tells clients the hardware address of the member, in frames of its
// own, until the speaker answers again, the member's kernel does not answer any more for the node's own address, or
// Config.StandIn is over. Both may answer at the same time, since they say the same.

// kernel is that of a member's node, as it is heard on one interface.
type kernel struct {
	addrs []netip.Addr // that it is asked for
	heard atomic.Int64 // Unix nanoseconds; written by readers
}

type kernelKey struct {
	addr netip.Addr
	mac  MAC
}

// answered says whether the kernel has been heard since a time.
func (k *kernel) answered(since time.Time) bool { return k.heard.Load() >= since.UnixNano() }

// listenFor has the kernel of a member's node heard.
func (r *Responder) listenFor(n *node, now time.Time) {
	if r.config.StandIn < 0 {
		return
	}
	if addrs := r.config.Kernel(n.key.mac); !slices.Equal(addrs, n.kernel.addrs) {
		r.unlistenFor(n)
		n.kernel.addrs = slices.Clone(addrs)
	}
	for _, a := range n.kernel.addrs {
		if p := r.ports[portKey{n.key.index, a.Is6()}]; p != nil {
			if _, ok := p.peers.LoadOrStore(kernelKey{a, n.key.mac}, n.kernel); !ok {
				p.stale = true
				r.plan.set(r.retry, now)
			}
		}
	}
}

func (r *Responder) unlistenFor(n *node) {
	for _, a := range n.kernel.addrs {
		if p := r.ports[portKey{n.key.index, a.Is6()}]; p != nil {
			p.peers.Delete(kernelKey{a, n.key.mac})
			p.stale = true // the next to be listened for, or not any more, takes it along
		}
	}
}

// askKernel asks a node's kernel whether it is there, if its speaker may not be.
func (r *Responder) askKernel(n *node, now time.Time) {
	if n.misses == 0 && n.alone.IsZero() {
		return
	}
	r.listenFor(n, now)
	for _, a := range n.kernel.addrs {
		if p := r.ports[portKey{n.key.index, a.Is6()}]; p != nil && p.wire != nil {
			if frame, err := poll(a, p.link.MAC, n.key.mac, p.link.linkLocal()); err == nil {
				_ = p.wire.send(frame) // it is asked again
			}
		}
	}
}

// begin begins to stand in for the speaker of a node that is watched, if it is about to restart, or is silent while its
// kernel is not.
func (r *Responder) begin(n *node, silent bool, now time.Time) bool {
	switch {
	case r.config.StandIn < 0, !silent && !r.config.Restarting(n.key.mac), silent && !n.kernel.answered(n.missed):
		return false
	}
	n.alone, n.misses, n.open, n.doubt = now, 0, nil, nil
	for _, v := range slices.Clone(n.held.all) {
		if silent && v.gaveUp() || !r.answerFor(v, now) && silent {
			r.lapse(v, true, now)
		}
	}
	return true
}

// gaveUp reports whether a member has asked who has the address since it said that it has it, as a speaker does that gives
// it up though it may be wanted to answer for it: its node may not be able to serve it, and its silence is no crash.
func (v *claimant) gaveUp() bool {
	const behind = 10 * time.Millisecond // what a member says is noted somewhat later than what it asks
	last := v.h.asker.Load()
	return last != nil && last.mac == v.claim.MAC && last.at.After(v.heard.Add(-behind))
}

// standIn ends that this node stands in for a speaker when its time is up, and for an address that is another node's turn.
// It reports whether something has changed.
func (r *Responder) standIn(n *node, now time.Time) bool {
	last := n.open
	if last != nil && n.kernel.answered(last.asked) {
		n.misses = 0
	}
	switch {
	case now.Sub(n.alone) >= r.config.StandIn:
		for _, v := range slices.Clone(n.held.all) {
			r.lapse(v, true, now)
		}
		return true
	case last != nil && last.heard.Before(last.asked) && !r.answerFor(last, now):
		r.lapse(last, true, now)
		return true
	}
	return false
}

// turn says whether this node is the one to stand in for a member. Where it is chosen though the speaker of the member is
// alive, as when that one's node is drained, the member is silent for its sake.
func (h *holding) turn() bool { return h.want.Rank == 1 || h.want.Rank == 0 && h.want.Seek }

// answerFor has clients answered in the words of a member, which is told so if it waits for that. It reports whether this
// node does so: when it is its turn, and on when its rank falls meanwhile, since nobody else is known to do so.
func (r *Responder) answerFor(v *claimant, now time.Time) bool {
	h := v.h
	switch {
	case v.behalf.station():
		return r.succeed(v, now)
	case !h.turn() && (h.state != StandingIn || h.want.Rank == 0):
		return false
	}
	r.happen(h, restarts, v.claim.MAC.String(), now)
	r.cover(h)
	r.tell(v)
	return true
}

// succeed has this node stand in for the one that another member stood in for, which ends, is silent or gives the
// address up. That node is asked at once whether it is still there.
func (r *Responder) succeed(v *claimant, now time.Time) bool {
	h, c := v.h, heard{claim: v.claim, index: v.index, by: v.claim.MAC}
	c.claim.MAC = v.behalf
	verdict := r.config.Judge(c.claim)
	if !h.turn() || h.slots[v.index] == nil || r.config.StandIn < 0 || verdict != Yield && verdict != Leave {
		return false
	}
	r.tell(v)
	r.follow(h, c, verdict, now)
	h.holders[v.index].heard = v.heard // not by now
	n := h.holders[v.index].node
	if n.alone.IsZero() {
		n.alone, n.misses = now, 1
		r.plan.set(n.watch, now)
	}
	r.happen(h, restarts, v.behalf.String(), now)
	r.cover(h)
	return true
}

// tell says to a member that is about to restart that this node stands in for it, or for whom it stands in itself.
func (r *Responder) tell(v *claimant) {
	h := v.h
	if s := h.slots[v.index]; s != nil && r.config.Restarting(v.claim.MAC) {
		frame, err := answer(message{target: h.addr, asker: unspecified(h.addr), askerMAC: v.claim.MAC, ask: true}, s.port.link.MAC, v.claim.MAC)
		if err == nil {
			copy(frame, v.claim.MAC[:])
		}
		r.send(h, s.port, frame, err)
	}
}

// cover has the readers answer for the members that are stood in for, and for nobody else. On a link on which neither speaker
// nor kernel answers it is answered in the words of a node that is there on another link, as that would do itself.
func (r *Responder) cover(h *holding) {
	if h.state != StandingIn {
		h.covers.Store(nil)
		return
	}
	macs := make(map[int]MAC, len(h.holders))
	for key, lost := range h.lost {
		for _, v := range h.holders {
			if addrs := r.config.Kernel(key.mac); len(addrs) > 0 && slices.Equal(addrs, r.config.Kernel(v.claim.MAC)) {
				macs[key.index] = lost.claim.MAC
			}
		}
	}
	for index, v := range h.holders {
		macs[index] = v.claim.MAC
	}
	h.covers.Store(&macs)
}

// together reports whether a claim leaves it at that this node stands in: it is that of the member itself, which is about
// to end, or of one that stands in for the same member, and ranks behind this node or is about to end.
func (r *Responder) together(h *holding, c heard, e event, now time.Time) bool {
	v := h.holders[c.index]
	switch {
	case v == nil:
	case v.claim.MAC == c.claim.MAC && r.config.Restarting(c.claim.MAC):
		v.heard = now
		v.node.answered(v)
		r.tell(v) // the first time may have been lost
		return true
	case v.claim.MAC == c.behalf:
		return e == worse || r.config.Restarting(c.claim.MAC)
	}
	return false
}
