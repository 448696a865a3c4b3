package layer2

import (
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/clarionlb/clarion/internal/interfaces"
)

// holding is an address of the set. The atomics are shared with the readers; the rest belongs to Responder.mu.
type holding struct {
	addr   netip.Addr
	want   Address
	state  State
	reason string
	since  time.Time
	slots  map[int]*slot // by interface index

	question *task     // the next question whether anybody has it, in Probing and in Standby without a holder
	asked    int       // questions so far
	takeAt   time.Time // in Standby without a holder: when it is taken if nobody answers

	holders  map[int]*claimant     // in Standby: the member that was heard last to answer on each interface
	lost     map[nodeKey]*claimant // members that it was taken from
	foreign  map[MAC]*claimant
	sought   *claimant // itself, if it is sought elsewhere
	left     bool      // was out of the set since the last sync, even if it is in it again
	defended time.Time
	contests map[MAC]*contest // members that rank behind this node and claimed it while it answered
	yielded  MAC              // to which of them it was yielded last

	quiet   atomic.Bool                 // not answered, but for covers
	covers  atomic.Pointer[map[int]MAC] // in StandingIn: the hardware address that is told to clients, by interface index
	covered atomic.Int64                // when a station last said that it stands in for this node, in Unix nanoseconds
	ceding  atomic.Bool                 // answered for clients only: another member is chosen, and takes it when it hears nobody answer
	probing atomic.Bool
	last    atomic.Pointer[stamp]
	asker   atomic.Pointer[stamp] // the station that last asked who has the address, while this node is quiet

	requests, replies, announcements, claims, failures atomic.Uint64
}

// contest is when a member claimed an address, again and again.
type contest struct{ since, last time.Time }

// stamp is when a station was heard.
type stamp struct {
	mac MAC
	of  MAC // whom it spoke of, if it said where an address is
	at  time.Time
}

// slot is a holding on one port.
type slot struct {
	port  *port
	start time.Time // of the announcements
	step  int       // announcements made since
	task  *task
}

// maxForeign is how many foreign hosts with one address are kept track of: a flood of invented ones costs nothing. Members
// are as many as there are nodes.
const maxForeign = 8

const (
	defendInterval = 10 * time.Second // DEFEND_INTERVAL, RFC 5227 section 1.1
	// At this pace a foreign host is asked whether it is still there.
	foreignPoll    = 30 * time.Second
	foreignRetry   = time.Second
	foreignMisses  = 3
	contestLasts   = 1500 * time.Millisecond // then the lower hardware address decides
	contestForgets = 5 * time.Second
	// A backup that never heard anybody answer waits so long, times its rank; one whose holder fell silent, times the
	// backups before it.
	patience    = 3 * time.Second
	turnOf      = time.Second
	questions   = 3 // before an address is taken, and to find out whom to watch
	questionGap = 50 * time.Millisecond
)

// announceAt are the times of the announcements after an address or a link came; periodic ones follow.
func announceAt(step int) (after time.Duration, ok bool) {
	times := [...]time.Duration{0, 100 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}
	if step >= len(times) {
		return 0, false
	}
	return times[step], true
}

// selects reports whether the address is to be answered on l.
func (h *holding) selects(l Link) bool {
	if len(h.want.Interfaces) == 0 {
		return !l.Excluded
	}
	return interfaces.Match(h.want.Interfaces, l.Name)
}

func (r *Responder) hold(want Address) *holding {
	h := &holding{addr: want.Addr, want: want, slots: map[int]*slot{},
		holders: map[int]*claimant{}, lost: map[nodeKey]*claimant{}, foreign: map[MAC]*claimant{}, contests: map[MAC]*contest{}}
	h.quiet.Store(true)
	h.question = newTask(func(now time.Time) time.Time { return r.ask(h, now) })
	return h
}

// drop forgets a holding.
func (r *Responder) drop(h *holding, now time.Time) {
	h.quiet.Store(true)
	h.probing.Store(false)
	for _, v := range h.claimants() {
		r.forget(v)
	}
	for index := range h.slots {
		r.detach(h, index, now)
	}
	for _, p := range r.ports {
		p.unlisten(h)
	}
	r.plan.cancel(h.question)
	r.seek(h, false, now)
	delete(r.held, h.addr)
	r.news.add(string(h.state)+" ended", "no longer wanted", h.addr)
	r.changed = true
}

// claimants are all other stations that have or had the address.
func (h *holding) claimants() (all []*claimant) {
	all = slices.AppendSeq(all, maps.Values(h.holders))
	all = slices.AppendSeq(all, maps.Values(h.lost))
	return slices.AppendSeq(all, maps.Values(h.foreign))
}

// wanted takes in what Set says of an address, old or new, and what Judge says by now of those who claim it.
func (r *Responder) wanted(h *holding, want Address, now time.Time) {
	before := h.want.Rank
	h.want = want
	for _, v := range h.lost {
		if verdict := r.config.Judge(v.claim); verdict == Foreign || verdict == Ignore {
			r.forget(v)
		}
	}
	h.ceding.Store(want.Rank > 0 && h.state == Answering && (before == 0 || h.ceding.Load()))
	var relieved, bound bool // who kept this node from answering does not any more; somebody does
	for _, v := range h.holders {
		switch verdict := r.config.Judge(v.claim); verdict {
		case Foreign, Ignore:
			r.forget(v)
			relieved = true
		default:
			relieved = relieved || verdict == Defend && v.verdict != Defend
			// Where it is only said that a better member is dead, or where this node may not take back, it is left alone.
			bound = bound || verdict == Leave || verdict == Yield && want.Probe.Count > 0
			v.verdict = verdict
		}
	}
	for _, v := range h.foreign {
		if r.config.Judge(v.claim) != Foreign {
			r.leaves(v, now)
		}
	}
	switch held := len(h.holders) > 0; {
	case h.state == StandingIn && !held:
		r.happen(h, silent, "", now)
	case want.Rank > 0 && (before == 0 || h.state == unset):
		r.happen(h, backup, "", now)
	case want.Rank > 0 && relieved && !held:
		r.await(h, time.Duration(want.Rank-1)*turnOf, now)
	case want.Rank > 0 || bound: // it is left with the member that has it
	case before > 0 || h.state == unset || relieved:
		e := chosen
		if want.Probe.Count > 0 && !held && !relieved {
			e = unused
		}
		r.happen(h, e, "", now)
	}
	r.seek(h, want.Seek && h.state == Answering, now)
}

// happen takes an address through an event. who, if not empty, is whose doing it is.
func (r *Responder) happen(h *holding, e event, who string, now time.Time) {
	state, reason := h.state.next(e)
	if state == h.state {
		return
	}
	if who != "" {
		reason += ": " + who
	}
	h.state, h.reason, h.since = state, reason, now
	h.quiet.Store(state != Answering)
	h.ceding.Store(false)
	r.cover(h)
	h.last.Store(nil) // what was said before counts afresh
	h.probing.Store(state == Probing && !h.want.Used)
	r.changed = true
	r.news.add(string(state), reason, h.addr)
	r.plan.cancel(h.question)
	if state != Standby && state != StandingIn {
		for _, v := range h.holders {
			r.lose(v, now)
		}
	}
	switch state {
	case Answering, StandingIn:
		for _, s := range h.slots {
			r.revive(h, s, now)
		}
	case Probing:
		h.asked = 0
		r.plan.set(h.question, r.spread(now, 200*time.Microsecond))
	case Standby:
		if len(h.holders) == 0 {
			r.await(h, patience*time.Duration(max(h.want.Rank, 1)), now)
		}
	}
	r.seek(h, h.want.Seek && state == Answering, now)
}

// spread is a time for one of many things that are due together.
func (r *Responder) spread(now time.Time, gap time.Duration) time.Time {
	r.crowd++
	return now.Add(time.Duration(r.crowd-1) * gap)
}

// await has everybody asked for an address that this node stands by for, and takes it after a time if nobody answers.
func (r *Responder) await(h *holding, wait time.Duration, now time.Time) {
	// Two that yielded to each other must not both take it at the same time.
	h.asked, h.takeAt = 0, now.Add(wait+questions*questionGap+rand.N(questionGap))
	r.plan.set(h.question, r.spread(now, 200*time.Microsecond))
}

// ask sends the next question on every port that can carry one. Without any it waits for a link to come.
func (r *Responder) ask(h *holding, now time.Time) (next time.Time) {
	switch {
	case h.state == Probing && h.asked >= h.want.Probe.Count,
		h.state == Standby && !now.Before(h.takeAt) && len(h.foreign) == 0:
		r.happen(h, unanswered, "", now)
		return time.Time{}
	case h.state == Standby && !now.Before(h.takeAt): // a foreign host may be why nobody answers: is it still there?
		h.takeAt = now.Add(patience * time.Duration(max(h.want.Rank, 1)))
		for _, v := range h.foreign {
			r.plan.set(v.task, now)
		}
	}
	if !r.inquire(h) {
		return time.Time{}
	}
	h.asked++
	if h.state == Probing {
		return now.Add(h.want.Probe.Interval)
	}
	last := h.takeAt.Add(-questions * questionGap)
	if h.asked >= questions && now.Before(last) {
		return last
	}
	return now.Add(questionGap)
}

// inquire asks everybody on every port who has an address, and reports whether any port could carry that.
func (r *Responder) inquire(h *holding) (sent bool) {
	for _, s := range h.slots {
		if !s.port.link.Carrier {
			continue
		}
		r.question(h, s)
		sent = true
	}
	return sent
}

// question asks everybody on a port, and reports whether it could.
func (r *Responder) question(h *holding, s *slot) bool {
	frame, err := probe(h.addr, s.port.link.MAC)
	return r.send(h, s.port, frame, err)
}

// send sends a frame about an address, unless err says that there is none, and reports whether it could.
func (r *Responder) send(h *holding, p *port, frame []byte, err error) bool {
	if err == nil {
		err = p.wire.send(frame)
	}
	if err != nil {
		h.failures.Add(1)
	}
	return err == nil
}

// attach starts answering on a port.
func (r *Responder) attach(h *holding, p *port, index int, now time.Time) {
	s := &slot{port: p}
	s.task = newTask(func(now time.Time) time.Time { return r.announce(h, s, now) })
	h.slots[index] = s
	r.revive(h, s, now)
}

func (r *Responder) detach(h *holding, index int, now time.Time) {
	s := h.slots[index]
	if s == nil {
		return
	}
	r.plan.cancel(s.task)
	delete(h.slots, index)
	r.changed = true
	for _, v := range h.claimants() {
		switch {
		case v.index != index:
		case v == h.holders[index]:
			r.lapse(v, true, now)
		case v.node == nil:
			r.leaves(v, now)
		}
	}
}

// revive starts the announcements of a slot from the first one, or the questions where nothing may be announced.
func (r *Responder) revive(h *holding, s *slot, now time.Time) {
	r.changed = true
	s.step, s.start = 0, now
	switch {
	case h.state.Answers():
		r.plan.set(s.task, now)
	case h.question.index >= 0:
	case h.state == Probing:
		r.plan.set(h.question, now)
	case h.state == Standby && len(h.holders) == 0:
		r.await(h, patience*time.Duration(max(h.want.Rank, 1)), now)
	}
}

// announce is one announcement of an address on a port, or, of one that this node stands in for, a question instead, by
// whose answer it learns of others that do the same.
func (r *Responder) announce(h *holding, s *slot, now time.Time) (next time.Time) {
	tell := r.declare
	if h.state == StandingIn {
		tell = r.question
	}
	if !h.state.Answers() || !s.port.link.Carrier {
		return time.Time{}
	}
	if !tell(h, s) {
		const again = 50 * time.Millisecond // the queue was full, or the link is about to be reported down
		return now.Add(again)
	}
	s.step++
	if after, ok := announceAt(s.step); ok {
		return s.start.Add(after)
	}
	if r.config.Refresh < 0 || h.state == StandingIn {
		return time.Time{}
	}
	return now.Add(time.Duration(float64(r.config.Refresh) * (0.9 + 0.2*rand.Float64())))
}

// declare tells all neighbours on a port that the address is here, and reports whether it could.
func (r *Responder) declare(h *holding, s *slot) bool {
	frames, err := announcement(h.addr, s.port.link.MAC)
	if err != nil {
		return r.send(h, s.port, nil, err)
	}
	for _, f := range frames {
		if !r.send(h, s.port, f, nil) {
			return false
		}
	}
	h.announcements.Add(1)
	return true
}

// repeat announces everything that is answered again, 500 addresses a second.
func (r *Responder) repeat(now time.Time) {
	i := 0
	for _, h := range r.held {
		if h.state != Answering {
			continue
		}
		for _, s := range h.slots {
			at := now.Add(time.Duration(i) * 2 * time.Millisecond)
			if s.task.index < 0 || s.task.at.After(at) {
				r.plan.set(s.task, at)
			}
		}
		i++
	}
}

// judge handles a claim that a reader heard.
func (r *Responder) judge(c heard) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.held[c.claim.Addr]
	if h == nil {
		return
	}
	verdict := r.config.Judge(c.claim)
	if by := c.claim; c.by.station() {
		by.MAC = c.by
		switch says := r.config.Judge(by); {
		case says == Foreign:
		case says == Defend && (verdict == Yield || verdict == Leave) && h.turn() && !h.state.Answers():
			// It is this node's turn to stand in: the member itself is watched.
		default: // who stands in for a member has the address, as far as the others go
			verdict, c.claim, c.behalf = says, by, c.claim.MAC
		}
	}
	switch {
	case verdict == Ignore:
	case verdict == Foreign:
		r.intrude(h, c, now)
	case !c.claim.Probe: // a member's question is no claim
		r.meet(h, c, verdict, now)
	}
}

// meet is for a member that says that it has the address.
func (r *Responder) meet(h *holding, c heard, verdict Verdict, now time.Time) {
	if v := h.foreign[c.claim.MAC]; v != nil {
		r.forget(v)
	}
	e := better
	if (verdict == Defend || verdict == Leave && h.state == Answering) && !h.ceding.Load() {
		e = worse
	}
	switch {
	case e != worse:
	case h.state == Answering && r.defend(h, c, now):
		e, h.yielded = lower, c.claim.MAC
	case h.state == Standby && h.want.Rank == 0 && h.yielded.station() && h.yielded != c.claim.MAC && !c.behalf.station():
		e = chosen // the one that did not yield has it no more, and this one may
	}
	if h.state == StandingIn && r.together(h, c, e, now) {
		return
	}
	if back := h.lost[nodeKey{c.claim.MAC, c.index}]; e == better && (back != nil || h.sought != nil) {
		r.welcome(h, c, now)
	}
	r.happen(h, e, c.claim.MAC.String(), now)
	if h.state == Standby {
		r.follow(h, c, verdict, now)
	}
}

// intrude is for a host that is no member and has the address, or is about to take it.
func (r *Responder) intrude(h *holding, c heard, now time.Time) {
	v := h.foreign[c.claim.MAC]
	fresh := v == nil
	if fresh {
		if len(h.foreign) >= maxForeign {
			return
		}
		v = &claimant{h: h, since: now}
		v.task = newTask(func(now time.Time) time.Time { return r.pollForeign(v, now) })
		h.foreign[c.claim.MAC] = v
	}
	v.claim, v.index, v.verdict, v.heard, v.misses, v.asked = c.claim, c.index, Foreign, now, 0, time.Time{}
	r.plan.set(v.task, now.Add(foreignPoll))
	if h.state == Answering {
		if s := h.slots[c.index]; s != nil && now.Sub(h.defended) >= defendInterval {
			h.defended = now
			r.declare(h, s)
		}
	}
	if !h.want.Used { // else it is announced within moments, which is the defence
		r.happen(h, foreign, c.claim.MAC.String(), now)
	}
	if fresh {
		r.report(h.conflict(v), false)
	}
}

// defend announces an address against a member that ranks behind this node, so that it hears us. Where the two do not agree
// about their ranks the one with the lower hardware address keeps it: defend reports whether that is the other one.
func (r *Responder) defend(h *holding, c heard, now time.Time) (yield bool) {
	const damping = 10 * time.Millisecond
	s := h.slots[c.index]
	if s == nil {
		return false
	}
	maps.DeleteFunc(h.contests, func(_ MAC, t *contest) bool { return now.Sub(t.last) > contestForgets })
	t := h.contests[c.claim.MAC]
	if t == nil {
		t = &contest{since: now}
		h.contests[c.claim.MAC] = t
	}
	t.last = now
	lasted := now.Sub(t.since)
	if own := s.port.link.MAC; lasted > contestLasts && slices.Compare(c.claim.MAC[:], own[:]) < 0 {
		return true
	}
	if now.Sub(h.defended) >= max(damping, lasted/4) {
		h.defended = now
		if lasted == 0 { // in two seconds we say it again, and the other one, if it has not yielded, will answer
			r.revive(h, s, now)
		} else {
			r.declare(h, s)
		}
	}
	return false
}

// report tells of a conflict that began or is over.
func (r *Responder) report(c Conflict, over bool) {
	c.Over = over
	message := "layer2: address conflict"
	if over {
		message = "layer2: address conflict is over"
	}
	r.log.Warn(message, "address", c.Addr.String(), "mac", c.MAC.String(), "interface", c.Interface, "announced", !c.Before)
	r.changed = true
	if r.config.OnConflict != nil {
		r.calls = append(r.calls, func() { r.config.OnConflict(c) })
	}
}

func (h *holding) conflict(v *claimant) Conflict {
	return Conflict{Claim: v.claim, Since: v.since, Before: h.state == Contested}
}

// news collects transitions for the log: a thousand addresses that move together are one line.
type news map[newsKey][]netip.Addr

type newsKey struct{ what, reason string }

func (n *news) add(what, reason string, addr netip.Addr) {
	if *n == nil {
		*n = news{}
	}
	key := newsKey{what, reason}
	(*n)[key] = append((*n)[key], addr)
}

func (n *news) flush(log *slog.Logger) {
	for key, addrs := range *n {
		const shown = 8
		slices.SortFunc(addrs, netip.Addr.Compare)
		var names []string
		for _, a := range addrs[:min(shown, len(addrs))] {
			names = append(names, a.String())
		}
		if len(addrs) > shown {
			names = append(names, strconv.Itoa(len(addrs)-shown)+" more")
		}
		log.Info("layer2: addresses", "state", key.what, "reason", key.reason, "addresses", strings.Join(names, " "))
	}
	*n = nil
}
