package layer2

import (
	"log/slog"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// State is what a Responder does about an address.
type State string

const (
	// Probing: finding out whether the address is free; silent.
	Probing State = "Probing"
	// Answering: answered and announced on the address's interfaces.
	Answering State = "Answering"
	// Standby: another speaker holds the address; silent, until that one is.
	Standby State = "Standby"
	// Contested: a stranger had the address before it was announced for the first time; silent, until that one is.
	Contested State = "Contested"
)

// States are all of them.
func States() []State { return []State{Probing, Answering, Standby, Contested} }

// holding is an address of the set. The atomics are shared with the readers; the rest belongs to Responder.mu.
type holding struct {
	addr   netip.Addr
	want   Address
	state  State
	reason string
	since  time.Time
	slots  map[int]*slot // by interface index
	asked  int           // probes sent
	probe  *task
	seek   *task
	sought time.Time // since when it is sought elsewhere; zero: it is not
	rivals map[MAC]*rival
	left   bool // was out of the set since the last sync, even if it is in it again
	// defended is when the address was last defended against a stranger.
	defended time.Time

	quiet   atomic.Bool // not answered
	probing atomic.Bool
	last    atomic.Pointer[stamp]

	requests, replies, announcements, claims, failures atomic.Uint64
}

// stamp is when a station was heard.
type stamp struct {
	mac MAC
	at  time.Time
}

// slot is a holding on one port.
type slot struct {
	port  *port
	start time.Time // of the announcements
	step  int       // announcements made since
	task  *task
}

// rival is another claimant of a holding's address.
type rival struct {
	claim   Claim
	index   int // of the interface
	verdict Verdict
	since   time.Time
	heard   time.Time
	// lost is when a speaker that this node yielded to fell silent, and the address was taken from it; zero while it is
	// not. It is asked on, since nobody else may tell when a network that fell apart is whole again.
	lost time.Time
	// unanswered is when it was asked first since it was heard; zero when nothing is open.
	unanswered time.Time
	misses     int
	task       *task
}

// holds reports whether the rival is a speaker that this node keeps silent for.
func (v *rival) holds() bool { return v.verdict == Yield && v.lost.IsZero() }

// A few claimants are kept, so that a flood of invented ones costs nothing.
const maxRivals = 8

// The defence interval and the pace at which a stranger is asked whether it is still there.
const (
	defendInterval = 10 * time.Second // DEFEND_INTERVAL, RFC 5227 section 1.1
	strangerPoll   = 30 * time.Second
	strangerRetry  = time.Second
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
	return matchAny(h.want.Interfaces, l.Name)
}

func (r *Responder) hold(want Address) *holding {
	h := &holding{addr: want.Addr, want: want, slots: map[int]*slot{}, rivals: map[MAC]*rival{}}
	h.quiet.Store(true)
	h.probe = newTask(func(now time.Time) time.Time { return r.ask(h, now) })
	h.seek = newTask(func(now time.Time) time.Time { return r.seek(h, now) })
	return h
}

// begin puts a new holding into its first state.
func (r *Responder) begin(h *holding, now time.Time) {
	switch {
	case h.want.Standby:
		r.become(h, Standby, "another speaker is chosen", now)
	case h.want.Probe.Count > 0:
		r.become(h, Probing, "not announced before", now)
	default:
		r.become(h, Answering, "chosen", now)
	}
}

// drop forgets a holding.
func (r *Responder) drop(h *holding) {
	h.quiet.Store(true)
	h.probing.Store(false)
	for index := range h.slots {
		r.detach(h, index)
	}
	for _, v := range h.rivals {
		r.forget(h, v)
	}
	r.plan.cancel(h.probe)
	r.unsearch(h)
	delete(r.held, h.addr)
	r.news.add(string(h.state)+" ended", "no longer wanted", h.addr)
	r.changed = true
}

// become changes the state, and starts or ends what goes with it.
func (r *Responder) become(h *holding, state State, reason string, now time.Time) {
	h.state, h.reason, h.since = state, reason, now
	h.quiet.Store(state != Answering)
	h.probing.Store(state == Probing && !h.want.Used)
	r.changed = true
	r.news.add(string(state), reason, h.addr)
	r.plan.cancel(h.probe)
	switch state {
	case Answering:
		for _, v := range h.rivals {
			if v.holds() {
				r.lose(v, now)
			}
		}
		for _, s := range h.slots {
			r.revive(h, s, now)
		}
	case Probing, Standby:
		// In Standby the questions find out whom to watch.
		h.asked = 0
		r.plan.set(h.probe, now)
	}
	r.search(h, now)
}

// search begins or ends that an address is sought elsewhere.
func (r *Responder) search(h *holding, now time.Time) {
	switch wanted := h.want.Seek && h.state == Answering; {
	case !wanted:
		r.unsearch(h)
	case h.sought.IsZero():
		h.sought = now
		r.seekers++
		r.plan.set(h.seek, now.Add(r.seekPace(h, now)))
	}
}

func (r *Responder) unsearch(h *holding) {
	if !h.sought.IsZero() {
		h.sought = time.Time{}
		r.seekers--
	}
	r.plan.cancel(h.seek)
}

// seek asks everybody who has an address that this node answers for. A fellow's answer is a claim, which Judge judges.
func (r *Responder) seek(h *holding, now time.Time) (next time.Time) {
	r.question(h)
	return now.Add(r.seekPace(h, now))
}

// seekPace is the time between two such questions. All stations of the network hear them: at most five a second are about
// all addresses together. One answer is enough to have all asked for at once.
func (r *Responder) seekPace(h *holding, now time.Time) time.Duration {
	return max(fade(now.Sub(h.sought)), time.Duration(r.seekers)*200*time.Millisecond)
}

// fade is the time between two questions about what has been amiss for so long: often enough to find a network whole
// again within moments of a short break.
func fade(since time.Duration) time.Duration {
	return min(max(since/100, 200*time.Millisecond), 10*time.Second)
}

// attach starts answering on a port.
func (r *Responder) attach(h *holding, p *port, index int, now time.Time) {
	s := &slot{port: p}
	s.task = newTask(func(now time.Time) time.Time { return r.announce(h, s, now) })
	h.slots[index] = s
	r.revive(h, s, now)
}

func (r *Responder) detach(h *holding, index int) {
	r.plan.cancel(h.slots[index].task)
	delete(h.slots, index)
	r.changed = true
}

// revive starts the announcements of a slot from the first one, or the questions where nothing may be announced.
func (r *Responder) revive(h *holding, s *slot, now time.Time) {
	r.changed = true
	s.step, s.start = 0, now
	switch h.state {
	case Answering:
		r.plan.set(s.task, now)
	case Probing, Standby:
		if h.probe.index < 0 {
			r.plan.set(h.probe, now)
		}
	}
}

// announce is one announcement of an address on a port.
func (r *Responder) announce(h *holding, s *slot, now time.Time) (next time.Time) {
	if h.state != Answering || !s.port.link.Carrier {
		return time.Time{}
	}
	if !r.declare(h, s) {
		const again = 50 * time.Millisecond // the queue was full, or the link is about to be reported down
		return now.Add(again)
	}
	s.step++
	if after, ok := announceAt(s.step); ok {
		return s.start.Add(after)
	}
	if r.config.Refresh < 0 {
		return time.Time{}
	}
	return now.Add(time.Duration(float64(r.config.Refresh) * (0.9 + 0.2*rand.Float64())))
}

// declare tells all neighbours on a port that the address is here, and reports whether it could.
func (r *Responder) declare(h *holding, s *slot) bool {
	frames, err := announcement(h.addr, s.port.link.MAC)
	for _, f := range frames {
		if err == nil {
			err = s.port.wire.send(f)
		}
	}
	if err != nil {
		h.failures.Add(1)
		return false
	}
	h.announcements.Add(1)
	return true
}

// ask sends the next probe on every port that can carry one. Without any it waits for a link to come.
func (r *Responder) ask(h *holding, now time.Time) (next time.Time) {
	limit := h.want.Probe
	if h.state == Standby {
		limit = Probe{Count: 3, Interval: r.config.PollInterval}
	}
	if h.asked >= limit.Count {
		if h.state == Probing {
			r.become(h, Answering, "nobody else has it", now)
		}
		return time.Time{}
	}
	if !r.question(h) {
		return time.Time{}
	}
	h.asked++
	return now.Add(limit.Interval)
}

// question asks everybody on every port who has an address, and reports whether any port could carry that.
func (r *Responder) question(h *holding) (sent bool) {
	for _, s := range h.slots {
		if !s.port.link.Carrier {
			continue
		}
		frame, err := probe(h.addr, s.port.link.MAC)
		if err == nil {
			err = s.port.wire.send(frame)
		}
		if err != nil {
			h.failures.Add(1)
		}
		sent = true
	}
	return sent
}

// repeat announces everything that is answered again.
func (r *Responder) repeat(now time.Time) {
	soon := now.Add(50 * time.Millisecond)
	for _, h := range r.held {
		for _, s := range h.slots {
			if h.state != Answering || !s.port.link.Carrier || r.declare(h, s) {
				continue
			}
			if s.task.index < 0 || s.task.at.After(soon) { // the queue was full
				r.plan.set(s.task, soon)
			}
		}
	}
}

// judge handles a claim that a reader heard.
func (r *Responder) judge(c heard) {
	verdict := r.config.Judge(c.claim)
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.held[c.claim.Addr]
	if h == nil || verdict == Ignore || c.claim.Probe && verdict != Stranger {
		return // a fellow's question is no claim
	}
	v := h.rivals[c.claim.MAC]
	if v == nil {
		if len(h.rivals) >= maxRivals {
			return
		}
		v = &rival{claim: c.claim, since: now, verdict: Ignore}
		v.task = newTask(func(now time.Time) time.Time { return r.poll(h, v, now) })
		h.rivals[c.claim.MAC] = v
	}
	v.heard, v.unanswered, v.misses, v.index, v.claim = now, time.Time{}, 0, c.index, c.claim
	before, back := v.verdict, !v.lost.IsZero()
	r.classify(h, v, verdict)
	switch verdict {
	case Yield:
		if back || !h.sought.IsZero() {
			r.welcome(h, v, now)
		}
		if h.state != Standby {
			r.become(h, Standby, "held by "+c.claim.MAC.String()+", which ranks before this node", now)
		}
		r.plan.set(v.task, now.Add(r.pace(v)))
		// Of two that hold it one is about to leave, and must not count when the other one falls silent.
		for _, w := range h.rivals {
			if soon := now.Add(doubtful); w != v && w.holds() && w.task.at.After(soon) {
				r.plan.set(w.task, soon)
			}
		}
	case Defend:
		r.forget(h, v)
		switch h.state {
		case Probing, Contested:
			r.become(h, Answering, "held by "+c.claim.MAC.String()+", which ranks behind this node", now)
		case Answering:
			const damping = 10 * time.Millisecond
			r.defend(h, c.index, now, damping)
		}
	case Stranger:
		r.plan.set(v.task, now.Add(strangerPoll))
		switch h.state {
		case Probing:
			if h.want.Used {
				break // it is announced within moments, which is the defence
			}
			r.become(h, Contested, "held by a stranger, "+c.claim.MAC.String(), now)
		case Answering:
			r.defend(h, c.index, now, defendInterval)
		}
		if before != Stranger {
			r.report(h.conflict(v), false)
		}
	}
}

// classify records the verdict about a rival; a conflict with what is no stranger after all is over.
func (r *Responder) classify(h *holding, v *rival, verdict Verdict) {
	if v.verdict == Stranger && verdict != Stranger {
		r.report(h.conflict(v), true)
	}
	r.setRival(v, verdict, time.Time{})
}

// setRival keeps count of the rivals that are asked often and of those that are asked in case they come back.
func (r *Responder) setRival(v *rival, verdict Verdict, lost time.Time) {
	count := func(n int) {
		switch {
		case v.holds():
			if r.watched[v.claim.MAC] += n; r.watched[v.claim.MAC] == 0 {
				delete(r.watched, v.claim.MAC)
			}
		case !v.lost.IsZero():
			r.ghosts += n
		}
	}
	count(-1)
	v.verdict, v.lost = verdict, lost
	count(1)
}

// lose records that a holder is silent, or is not to hold the address any more.
func (r *Responder) lose(v *rival, now time.Time) {
	r.setRival(v, Yield, now)
	v.unanswered, v.misses = time.Time{}, 0
	r.plan.set(v.task, now.Add(r.ghostPace(v, now)))
}

// ghostPace is the time between two questions to a speaker that fell silent: at most 50 a second to all of them together.
func (r *Responder) ghostPace(v *rival, now time.Time) time.Duration {
	return max(fade(now.Sub(v.lost)), time.Duration(r.ghosts)*20*time.Millisecond)
}

// welcome is for a speaker that is back. Its answer was for this node only: told, alone as well, that the address was
// here, it announces itself to all. Its other addresses are asked for at once, and so are those that are sought.
func (r *Responder) welcome(h *holding, v *rival, now time.Time) {
	for _, o := range r.held {
		if !o.sought.IsZero() && o.seek.at.After(now) {
			r.plan.set(o.seek, now)
		}
		if w := o.rivals[v.claim.MAC]; w != nil && !w.lost.IsZero() && w.task.at.After(now) {
			r.plan.set(w.task, now)
		}
	}
	s := h.slots[v.index]
	if s == nil || h.state != Answering {
		return
	}
	frames, err := announcement(h.addr, s.port.link.MAC)
	if err == nil {
		copy(frames[0], v.claim.MAC[:])
		err = s.port.wire.send(frames[0])
	}
	if err != nil {
		h.failures.Add(1)
	}
}

// forget ends the watch over a rival.
func (r *Responder) forget(h *holding, v *rival) {
	r.classify(h, v, Ignore)
	r.plan.cancel(v.task)
	delete(h.rivals, v.claim.MAC)
}

// defend announces the address on one port, unless that was done less than interval ago.
func (r *Responder) defend(h *holding, index int, now time.Time, interval time.Duration) {
	s := h.slots[index]
	if s == nil || now.Sub(h.defended) < interval {
		return
	}
	h.defended = now
	r.declare(h, s)
}

// doubtful is the time between two questions to a speaker that holds an address which another one holds too.
const doubtful = 500 * time.Millisecond

// pace is a time between two questions about one address to the speaker that holds it, such that one node asks at most
// 200 a second, each speaker as many, and about all its addresses in turn: one that holds many is found silent as fast as
// one that holds few; see silent.
func (r *Responder) pace(v *rival) time.Duration {
	least := r.config.PollInterval
	mean := max(least, time.Duration(len(r.watched)*r.watched[v.claim.MAC])*5*time.Millisecond)
	return least + rand.N(2*(mean-least)+1)
}

// poll asks a rival whether it still has the address. What it answers is a claim, which ends the waiting.
func (r *Responder) poll(h *holding, v *rival, now time.Time) (next time.Time) {
	pace, retry, limit := r.pace(v), r.config.PollInterval, r.config.PollMisses
	switch {
	case v.verdict == Stranger:
		pace, retry, limit = strangerPoll, strangerRetry, 3
	case !v.lost.IsZero():
		pace = r.ghostPace(v, now)
		retry, limit = pace, math.MaxInt
	}
	s := h.slots[v.index]
	if s == nil && !v.lost.IsZero() {
		return now.Add(pace)
	}
	if s == nil {
		r.silent(h, v, "its interface is gone", now)
		return time.Time{}
	}
	if !s.port.link.Carrier {
		v.unanswered, v.misses = time.Time{}, 0
		return now.Add(pace) // the silence is this node's
	}
	if !v.unanswered.IsZero() {
		if v.misses++; v.misses >= limit {
			r.silent(h, v, "it does not answer any more", now)
			return time.Time{}
		}
	} else {
		v.unanswered = now
	}
	frame, err := poll(h.addr, s.port.link.MAC, v.claim.MAC, s.port.link.linkLocal())
	if err == nil {
		err = s.port.wire.send(frame)
	}
	if err != nil {
		h.failures.Add(1)
	}
	return now.Add(retry)
}

// silent ends a rival that no longer answers for the address. When it is a speaker from which nothing was heard about
// any other address either, it ends for all of them.
func (r *Responder) silent(h *holding, v *rival, why string, now time.Time) {
	if v.verdict != Yield {
		r.lapse(h, v, why, now)
		return
	}
	var all []*holding
	for _, o := range r.held {
		if w := o.rivals[v.claim.MAC]; w != nil && w.holds() {
			if w.heard.After(v.unanswered) {
				r.lapse(h, v, why, now)
				return
			}
			all = append(all, o)
		}
	}
	for _, o := range all {
		r.lapse(o, o.rivals[v.claim.MAC], why, now)
	}
}

// lapse ends that a rival stands in the way, and takes the address if it was the only one.
func (r *Responder) lapse(h *holding, v *rival, why string, now time.Time) {
	verdict := v.verdict
	if v.holds() {
		r.lose(v, now)
	} else {
		r.forget(h, v)
	}
	for _, other := range h.rivals {
		if other.holds() || other.verdict == Stranger && verdict == Stranger {
			return
		}
	}
	switch {
	case verdict == Yield && h.state == Standby:
		r.become(h, Answering, "was held by "+v.claim.MAC.String()+": "+why, now)
	case verdict == Stranger && h.state == Contested:
		r.become(h, Probing, "was held by "+v.claim.MAC.String()+": "+why, now)
	}
}

// reconsider asks for the verdicts again after a Set, since the caller may think otherwise of the claimants by now.
func (r *Responder) reconsider(now time.Time) {
	type record struct {
		h     *holding
		v     *rival
		claim Claim
	}
	var records []record
	r.mu.Lock()
	if r.rejudge {
		for _, h := range r.held {
			for _, v := range h.rivals {
				records = append(records, record{h, v, v.claim})
			}
		}
	}
	r.rejudge = false
	r.mu.Unlock()
	for _, c := range records {
		verdict := r.config.Judge(c.claim)
		r.mu.Lock()
		// Another verdict than before ends the record; what the station says next is judged afresh.
		if v := c.v; verdict != v.verdict && c.h.rivals[c.claim.MAC] == v {
			switch {
			case c.h.want.Standby: // chosen or not is for Set to say
			case v.holds():
				r.lapse(c.h, v, "it no longer ranks before this node", now)
			case v.verdict == Stranger:
				r.lapse(c.h, v, "it is no stranger after all", now)
			}
			r.forget(c.h, v)
		}
		r.mu.Unlock()
	}
}

func (h *holding) conflict(v *rival) Conflict {
	return Conflict{Claim: v.claim, Since: v.since, Before: h.state == Contested}
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
