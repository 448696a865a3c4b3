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

// answerFor has clients answered in the words of a member, which is told so if it waits for that. It reports whether this
// node is the one to do so. Where it is chosen though the speaker of the member is alive, as when that one's node is drained,
// the member is silent for its sake.
func (r *Responder) answerFor(v *claimant, now time.Time) bool {
	h := v.h
	if h.want.Rank > 1 || h.want.Rank == 0 && !h.want.Seek || v.behalf.station() {
		return false
	}
	r.happen(h, restarts, v.claim.MAC.String(), now)
	h.cover()
	if s := h.slots[v.index]; s != nil && r.config.Restarting(v.claim.MAC) {
		frame, err := answer(message{target: h.addr, asker: unspecified(h.addr), askerMAC: v.claim.MAC, ask: true}, s.port.link.MAC, v.claim.MAC)
		if err == nil {
			copy(frame, v.claim.MAC[:])
		}
		r.send(h, s.port, frame, err)
	}
	return true
}

// cover has the readers answer for the members that are stood in for, and for nobody else.
func (h *holding) cover() {
	if h.state != StandingIn {
		h.covers.Store(nil)
		return
	}
	macs := make(map[int]MAC, len(h.holders))
	for index, v := range h.holders {
		macs[index] = v.claim.MAC
	}
	h.covers.Store(&macs)
}

// together reports whether a claim leaves it at that this node stands in: it is that of the member itself, which is about
// to end, or of one that ranks behind this node and stands in for the same member.
func (r *Responder) together(h *holding, c heard, e event, now time.Time) bool {
	v := h.holders[c.index]
	switch {
	case v == nil:
	case v.claim.MAC == c.claim.MAC && r.config.Restarting(c.claim.MAC):
		v.heard = now
		v.node.answered(v)
		return true
	case v.claim.MAC == c.behalf:
		return e == worse
	}
	return false
}
