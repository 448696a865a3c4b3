package layer2

import (
	"math/rand/v2"
	"slices"
	"time"
)

// A backup asks the member that holds an address whether it still does. What it watches is the node: one question after
// the other, about its addresses in turn, so that the cost follows the nodes that are watched and not the addresses.

// claimant is another station that says, or said, that it has an address. A member's is in one of its node's rings.
type claimant struct {
	h       *holding
	claim   Claim
	index   int // of the interface
	verdict Verdict
	since   time.Time
	heard   time.Time
	asked   time.Time
	misses  int   // questions in a row without an answer
	task    *task // of a foreign host
	behalf  MAC   // of a member: whom it stands in for, zero for none
	node    *node // of a member
	at      int   // in the ring
}

// ring is claims that are asked about in turn.
type ring struct {
	all  []*claimant
	next int
}

func (r *ring) add(v *claimant) {
	v.at = len(r.all)
	r.all = append(r.all, v)
}

func (r *ring) remove(v *claimant) {
	last := r.all[len(r.all)-1]
	r.all[v.at], last.at = last, v.at
	r.all = r.all[:len(r.all)-1]
}

func (r *ring) turn() *claimant {
	v := r.all[r.next%len(r.all)]
	r.next = (r.next + 1) % len(r.all)
	return v
}

type nodeKey struct {
	mac   MAC
	index int // of the interface
}

// node is a member as it is heard on one interface.
type node struct {
	key  nodeKey
	held ring // for which this node keeps silent: whether the member answers is watched
	// lost are those that were taken from it when it fell silent, since when. It is still asked, after longer and longer
	// pauses, since nobody else may tell when a network that fell apart is whole again. rush is how many to ask for without a pause.
	lost  ring
	since time.Time
	rush  int

	latest *claimant // of those held, the one that was heard last
	open   *claimant // of those held, the one that was asked last
	doubt  *claimant // of those held, one that was not answered though the node may be there
	misses int       // questions in a row without any answer
	missed time.Time // when the first of them was asked
	kernel *kernel
	alone  time.Time // since when this node stands in for its speaker; zero: it does not

	watch, recall *task
	counted       [2]bool // in Responder.watched and Responder.silent
}

func (n *node) add(v *claimant) { n.held.add(v) }

func (n *node) remove(v *claimant) {
	for _, p := range []**claimant{&n.latest, &n.open, &n.doubt} {
		if *p == v {
			*p = nil
		}
	}
	n.held.remove(v)
}

// answered is for what the node says of an address that it holds.
func (n *node) answered(v *claimant) { n.latest, n.misses, v.misses = v, 0, 0 }

// turn is what follows when a question has had its time: which address to ask about, or the addresses for which the node
// does not answer any more, one or all of them. The node counts as silent after limit questions in a row without an
// answer; an address after limit of its own, between which the node has answered for others.
func (n *node) turn(now time.Time, limit int) (ask *claimant, over []*claimant) {
	if v := n.open; v != nil {
		n.open = nil
		if v.heard.Before(v.asked) {
			if n.misses++; n.misses == 1 {
				n.missed = v.asked
			}
			if n.misses >= limit {
				return nil, slices.Clone(n.held.all)
			}
			if n.doubt == nil {
				n.doubt = v
			}
			if n.latest != v {
				ask = n.latest // the most likely to be answered, if the node is there at all
			}
		} else if d := n.doubt; d != nil && d.heard.Before(d.asked) {
			if d.misses++; d.misses >= limit {
				return nil, []*claimant{d}
			}
			ask = d
		} else {
			n.doubt = nil
		}
	}
	if ask == nil {
		ask = n.held.turn()
	}
	n.open, ask.asked = ask, now
	return ask, nil
}

// calm reports whether every question was answered, by the kernel where this node stands in for the speaker.
func (n *node) calm() bool {
	return n.misses == 0 && n.doubt == nil || !n.alone.IsZero() && n.misses <= 1
}

// follow records that a member has an address for which this node keeps silent.
func (r *Responder) follow(h *holding, c heard, verdict Verdict, now time.Time) {
	v := h.holders[c.index]
	if v == nil || v.claim.MAC != c.claim.MAC {
		if v != nil { // it gave the address away, or it will say otherwise
			r.forget(v)
		}
		key := nodeKey{c.claim.MAC, c.index}
		if lost := h.lost[key]; lost != nil {
			r.forget(lost)
		}
		v = &claimant{h: h, index: c.index, since: now, node: r.node(key)}
		h.holders[c.index] = v
		v.node.add(v)
		r.tend(v.node, now)
		r.plan.cancel(h.question)
		r.changed = true
	}
	v.claim, v.verdict, v.heard, v.behalf = c.claim, verdict, now, c.behalf
	if !c.by.station() || c.by == c.claim.MAC { // else others say so
		v.node.answered(v)
		v.node.alone = time.Time{}
	}
}

func (r *Responder) node(key nodeKey) *node {
	n := r.nodes[key]
	if n == nil {
		n = &node{key: key, kernel: &kernel{}}
		n.watch = newTask(func(now time.Time) time.Time { return r.watchNode(n, now) })
		n.recall = newTask(func(now time.Time) time.Time { return r.recall(n, now) })
		r.nodes[key] = n
	}
	return n
}

// tend plans what a node's rings need.
func (r *Responder) tend(n *node, now time.Time) {
	for i, has := range []bool{len(n.held.all) > 0, len(n.lost.all) > 0} {
		count := []*int{&r.watched, &r.silent}[i]
		switch {
		case has && !n.counted[i]:
			*count++
		case !has && n.counted[i]:
			*count--
		}
		n.counted[i] = has
	}
	if len(n.held.all) == 0 {
		n.misses, n.alone = 0, time.Time{}
		r.plan.cancel(n.watch)
	} else if n.watch.index < 0 {
		r.listenFor(n, now)
		r.plan.set(n.watch, now.Add(r.pace(n, now)))
	}
	if len(n.lost.all) == 0 {
		r.plan.cancel(n.recall)
	} else if n.recall.index < 0 {
		r.plan.set(n.recall, now.Add(r.recallPace(n, now)))
	}
	if len(n.held.all)+len(n.lost.all) == 0 {
		delete(r.nodes, n.key)
		r.unlistenFor(n)
	}
}

// pace is the time until the next question to a node. All questions together are about 200 a second at most, each node's as
// many as the next one's. Several nodes are asked at one time, since what costs is to wake up for it.
func (r *Responder) pace(n *node, now time.Time) time.Duration {
	const most = 16 // in one beat
	if !n.calm() {
		return r.config.PollInterval * 2 / 5
	}
	mean := max(r.config.PollInterval, time.Duration(r.watched)*5*time.Millisecond)
	wait := r.beat.at.Sub(now)
	if r.beat.asked == most || wait <= mean/2 || wait > mean {
		wait = mean - rand.N(mean/8+1) // two that watch each other do not go in step
		r.beat.at, r.beat.asked = now.Add(wait), 0
	}
	r.beat.asked++
	return wait
}

// recallPace is the time between two questions to a node that fell silent: at most 50 a second to all of them together.
func (r *Responder) recallPace(n *node, now time.Time) time.Duration {
	return max(fade(now.Sub(n.since)), time.Duration(r.silent)*20*time.Millisecond)
}

// fade is the time between two questions about what has been amiss for so long: often enough to find a network whole
// again within moments of a short break.
func fade(since time.Duration) time.Duration {
	return min(max(since/100, 200*time.Millisecond), 10*time.Second)
}

// watchNode asks a node for the next of its addresses.
func (r *Responder) watchNode(n *node, now time.Time) (next time.Time) {
	for len(n.held.all) > 0 {
		if s := n.held.all[0].h.slots[n.key.index]; s == nil || !s.port.link.Carrier {
			n.open, n.misses = nil, 0
			return now.Add(r.pace(n, now)) // the silence is this node's
		}
		if !n.alone.IsZero() && r.standIn(n, now) {
			continue
		}
		ask, over := n.turn(now, r.config.PollMisses)
		gone := len(over) == len(n.held.all)
		if n.alone.IsZero() && r.begin(n, gone, now) {
			continue
		}
		for _, v := range over {
			r.lapse(v, gone, now)
		}
		if ask != nil {
			r.poll(ask)
			r.askKernel(n, now)
			return now.Add(r.pace(n, now))
		}
	}
	return time.Time{}
}

// poll asks a station whether it still has an address. What it answers is a claim.
func (r *Responder) poll(v *claimant) {
	if s := v.h.slots[v.index]; s != nil && s.port.link.Carrier {
		frame, err := poll(v.h.addr, s.port.link.MAC, v.claim.MAC, s.port.link.linkLocal())
		r.send(v.h, s.port, frame, err)
	}
}

// lapse ends that a member holds an address. Where the member itself is silent, or its interface is gone, the first backup
// takes the address at once, and the others when those before them had time to; where it only does not answer for this
// address any more, somebody else may, and everybody is asked first.
func (r *Responder) lapse(v *claimant, gone bool, now time.Time) {
	h := v.h
	if v.behalf.station() && r.succeed(v, now) {
		return
	}
	r.lose(v, now)
	switch {
	case len(h.holders) > 0:
	case gone && h.want.Rank <= 1, h.state == StandingIn:
		r.happen(h, silent, v.claim.MAC.String(), now)
	default:
		r.await(h, time.Duration(max(h.want.Rank-1, 0))*turnOf, now)
	}
}

// lose records that a member is silent, or is not to hold the address any more.
func (r *Responder) lose(v *claimant, now time.Time) {
	n := v.node
	delete(v.h.holders, v.index)
	n.remove(v)
	n.since = now
	n.lost.add(v)
	v.h.lost[n.key] = v
	r.cover(v.h)
	r.changed = true
	r.tend(n, now)
}

// forget ends all records of a claimant, and with a foreign host's the conflict.
func (r *Responder) forget(v *claimant) {
	h, n := v.h, v.node
	switch {
	case n == nil:
		r.plan.cancel(v.task)
		delete(h.foreign, v.claim.MAC)
		r.report(h.conflict(v), true)
		return
	case h.holders[v.index] == v:
		delete(h.holders, v.index)
		n.remove(v)
	default:
		delete(h.lost, n.key)
		n.lost.remove(v)
	}
	r.cover(h)
	r.changed = true
	r.tend(n, time.Now())
}

// recall asks a node that fell silent for one of the addresses that it had.
func (r *Responder) recall(n *node, now time.Time) (next time.Time) {
	if len(n.lost.all) == 0 {
		return time.Time{}
	}
	r.poll(n.lost.turn())
	if n.rush--; n.rush > 0 {
		return now.Add(rushGap)
	}
	n.rush = 0
	return now.Add(r.recallPace(n, now))
}

// rushGap is the time between questions that are asked without a pause.
const rushGap = 200 * time.Microsecond

// welcome is for a member that is back. Its answer was for this node only: told, alone as well, that the address was here,
// it announces itself to all. Its other addresses are asked for at once, and so are those that are sought.
func (r *Responder) welcome(h *holding, c heard, now time.Time) {
	if n := r.nodes[nodeKey{c.claim.MAC, c.index}]; n != nil && len(n.lost.all) > 0 && n.rush == 0 {
		n.rush = len(n.lost.all)
		r.plan.set(n.recall, now)
	}
	if len(r.sought.all) > 0 && r.rush == 0 {
		r.rush = len(r.sought.all)
		r.plan.set(r.seeking, now)
	}
	if s := h.slots[c.index]; s != nil && h.state == Answering {
		frames, err := announcement(h.addr, s.port.link.MAC)
		if err == nil {
			copy(frames[0], c.claim.MAC[:])
			r.send(h, s.port, frames[0], nil)
		}
	}
}

// seek begins or ends that an address that this node answers for is sought elsewhere.
func (r *Responder) seek(h *holding, on bool, now time.Time) {
	switch {
	case on && h.sought == nil:
		h.sought = &claimant{h: h}
		r.sought.add(h.sought)
		r.soughtSince = now
		if at := now.Add(r.seekPace(now)); r.seeking.index < 0 || r.seeking.at.After(at) {
			r.plan.set(r.seeking, at)
		}
	case !on && h.sought != nil:
		r.sought.remove(h.sought)
		h.sought = nil
	}
}

// seekPace is the time between two questions to everybody, which all stations of the network hear: at most five a second
// are about all addresses together. One answer is enough to have all asked for at once.
func (r *Responder) seekPace(now time.Time) time.Duration {
	return max(fade(now.Sub(r.soughtSince))/time.Duration(len(r.sought.all)), 200*time.Millisecond)
}

// seekNext asks everybody who has an address that this node answers for. A member's answer is a claim, which Judge judges.
func (r *Responder) seekNext(now time.Time) (next time.Time) {
	if len(r.sought.all) == 0 {
		r.rush = 0
		return time.Time{}
	}
	r.inquire(r.sought.turn().h)
	if r.rush--; r.rush > 0 {
		return now.Add(rushGap)
	}
	r.rush = 0
	return now.Add(r.seekPace(now))
}

// pollForeign asks a foreign host whether it is still there.
func (r *Responder) pollForeign(v *claimant, now time.Time) (next time.Time) {
	s := v.h.slots[v.index]
	if s == nil || !s.port.link.Carrier {
		v.asked, v.misses = time.Time{}, 0
		return now.Add(foreignPoll) // the silence is this node's
	}
	if !v.asked.IsZero() {
		if v.misses++; v.misses >= foreignMisses {
			r.leaves(v, now)
			return time.Time{}
		}
	}
	v.asked = now
	r.poll(v)
	return now.Add(foreignRetry)
}

// leaves ends a foreign host's claim.
func (r *Responder) leaves(v *claimant, now time.Time) {
	r.forget(v)
	if len(v.h.foreign) == 0 {
		r.happen(v.h, departed, v.claim.MAC.String(), now)
	}
}
