package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
)

// world is a cluster on a local network.
type world struct {
	t    *testing.T
	rand *rand.Rand
	now  int     // ticks
	loss float64 // of frames

	speakers []*speaker
	segment  []int    // of the local network that each node is on
	part     []int    // of the group that each node is in, of those on its segment
	deaf     [][]bool // i does not hear j in the group, though j may hear i
	gated    []bool   // nodes whose Service proxy is unhealthy
	stubborn bool     // each speaker is wrong about others, for ever
	facts    *facts
	made     int // Services so far
	frames   []frame
	plans    map[knowledge]*plan

	changed  int                // when anything changed last that speakers decide by
	quiet    int                // how long nothing must have changed before the network is judged
	patience int                // how long, at that time, two may answer for an address, since frames get lost
	moment   bool               // in this tick, somebody has begun or ceased to answer for something
	double   map[netip.Addr]int // addresses that are answered for by two on a segment, and since when

	judged, whole, slowest     int
	last                       *settled
	moved, unavoidable, guests int
}

// facts are what the API server says. They are not changed but replaced.
type facts struct {
	services []*announce.Service
	addrs    []netip.Addr // of each of them
	excluded []bool       // of the nodes
}

// frame is an announcement.
type frame struct {
	from, at int
	addr     netip.Addr
}

// knowledge is all that a speaker plans by.
type knowledge struct {
	facts        *facts
	alive, gates uint32
}

// speaker is one node's.
type speaker struct {
	running  bool
	joinAt   int // when it has found the others, or has given up
	joined   bool
	knows    knowledge
	factsDue int
	due      []int // when it notices that another has died, come, or changed
	plan     *plan
	blind    uint32 // nodes that it takes for dead, for ever
	wrong    uint32 // nodes whose gates it has the wrong way round, for ever
	held     map[netip.Addr]*holding
	addrs    []netip.Addr // of them
}

// holding is an address that a speaker owns or stands by for.
type holding struct {
	rank          int   // 0: it is to own it; n: the nth to take it
	ceding        bool  // it answers, but clients only, until another one does
	announcements []int // when to make them
	watches       int   // the member that it watches, or one of these
	poll, misses  int
	yields        bool // to one that ranks before it
	takeAt        int  // when nobody: when it takes it
	since, last   int  // of claims by members that do not yield
	sought        int  // since when everybody is asked who else has it, 0: nobody is
	seek          int  // when to ask next
}

const (
	self   = -1 // it answers
	nobody = -2 // it knows of nobody who answers
)

// schedule of the announcements after an address is taken. Later ones come every refresh: too rarely to find out by them
// that two parts of a network that have two owners have grown together without the speakers hearing of each other in
// the group. For that, who takes members that rank before it for dead asks everybody, after longer and longer pauses.
var schedule = []int{0, 10, 50, 100}

const (
	refresh      = 6000
	seekLeast    = 20
	seekMost     = 1000
	pollInterval = 5
	pollMisses   = 3

	patience = 300 // that nobody is heard to answer, times the rank
	turnOf   = 100 // between two backups after the one that answered fell silent
	contest  = 150 // of two that do not agree; then the lower number decides
	forgets  = 500 // when the next contest is another one
)

// settled is who owned what when all was well known.
type settled struct {
	facts  *facts
	owners map[netip.Addr]int
	alive  uint32
}

func name(i int) string { return fmt.Sprintf("node%d", i) }

func newWorld(t *testing.T, r *rand.Rand, nodes, addrs int) *world {
	w := &world{
		t: t, rand: r, segment: make([]int, nodes), part: make([]int, nodes), gated: make([]bool, nodes),
		plans: map[knowledge]*plan{}, facts: &facts{excluded: make([]bool, nodes)}, double: map[netip.Addr]int{},
	}
	for range addrs {
		w.addService(w.facts)
	}
	for range nodes {
		w.deaf = append(w.deaf, make([]bool, nodes))
		w.speakers = append(w.speakers, &speaker{due: make([]int, nodes), held: map[netip.Addr]*holding{}})
	}
	for i := range nodes {
		w.start(i)
	}
	return w
}

func (w *world) addService(f *facts) {
	w.made++
	s := &announce.Service{
		Namespace: "default", Name: fmt.Sprint("s", w.made),
		LocalExternal: w.rand.IntN(4) == 0, Endpoints4: announce.Endpoints{Ready: w.endpoints()},
	}
	f.services = append(f.services, s)
	f.addrs = append(f.addrs, netip.AddrFrom4([4]byte{198, 18, byte(w.made * 37), byte(w.made >> 8)}))
}

func (w *world) endpoints() map[string]int {
	out := map[string]int{}
	for range w.rand.IntN(5) {
		out[name(w.rand.IntN(len(w.segment)))]++
	}
	return out
}

// change makes the API server say something else.
func (w *world) change(edit func(*facts)) {
	f := &facts{slices.Clone(w.facts.services), slices.Clone(w.facts.addrs), slices.Clone(w.facts.excluded)}
	edit(f)
	w.facts = f
	clear(w.plans)
	for _, s := range w.speakers {
		s.factsDue = w.now + w.rand.IntN(15)
	}
	w.changed = w.now
}

func (w *world) start(i int) {
	s := w.speakers[i]
	if !s.running {
		*s = speaker{running: true, due: s.due, blind: s.blind, wrong: s.wrong, held: map[netip.Addr]*holding{}, joinAt: w.now + 60, knows: knowledge{facts: w.facts, alive: 1 << i}}
		w.changed = w.now
	}
}

func (w *world) stop(i int) {
	w.speakers[i].running = false
	w.changed, w.moment = w.now, true
}

// event is something that happens to a cluster.
func (w *world) event() {
	n := len(w.speakers)
	i := w.rand.IntN(n)
	switch w.rand.IntN(16) {
	case 0, 1, 2:
		w.stop(i)
	case 3, 4, 5, 6:
		w.start(i)
	case 7: // the network falls apart
		for j := range n {
			w.segment[j] = w.rand.IntN(2)
		}
	case 8: // the group falls apart, the network does not
		for j := range n {
			w.part[j] = w.rand.IntN(3)
		}
	case 9: // some hear less than the others
		for range n {
			w.deaf[w.rand.IntN(n)][w.rand.IntN(n)] = true
		}
	case 10: // a speaker takes others for dead that are not, for a moment
		for range 3 {
			if j := w.rand.IntN(n); j != i {
				w.speakers[i].knows.alive &^= 1 << j
				w.speakers[i].plan = nil
			}
		}
	case 11, 12:
		w.heal()
	case 13:
		w.gated[i] = !w.gated[i]
	case 14:
		w.change(func(f *facts) {
			if j := w.rand.IntN(len(f.services)); w.rand.IntN(2) == 0 && len(f.services) > 20 {
				f.services, f.addrs = slices.Delete(f.services, j, j+1), slices.Delete(f.addrs, j, j+1)
			} else {
				w.addService(f)
			}
		})
	case 15:
		w.change(func(f *facts) {
			if w.rand.IntN(3) == 0 {
				f.excluded[i] = !f.excluded[i]
			}
			s := *f.services[0]
			s.Endpoints4.Ready = w.endpoints()
			f.services[0] = &s
		})
	}
	w.changed, w.moment = w.now, true
}

// heal repairs the network and the group, and what ails the nodes.
func (w *world) heal() {
	clear(w.segment)
	clear(w.part)
	clear(w.gated)
	for i := range w.deaf {
		clear(w.deaf[i])
	}
	w.changed, w.moment = w.now, true
}

// talks says whether speaker i hears speaker j in the group.
func (w *world) talks(i, j int) bool {
	return w.speakers[j].running && w.segment[i] == w.segment[j] && w.part[i] == w.part[j] && !w.deaf[i][j]
}

func (w *world) tick() {
	w.now++
	for i, s := range w.speakers {
		if s.running {
			w.learn(i, s)
		}
	}
	arrived := slices.IndexFunc(w.frames, func(f frame) bool { return f.at >= w.now })
	if arrived < 0 {
		arrived = len(w.frames)
	}
	heard := w.frames[:arrived:arrived]
	w.frames = slices.Clone(w.frames[arrived:])
	for _, f := range heard {
		for i, s := range w.speakers {
			if i != f.from && s.running && w.segment[i] == w.segment[f.from] && w.rand.Float64() >= w.loss {
				w.hear(i, s, f)
			}
		}
	}
	for i, s := range w.speakers {
		if !s.running {
			continue
		}
		for _, addr := range s.addrs {
			w.act(i, addr, s.held[addr])
		}
	}
	w.judge()
}

// learn brings what a speaker knows closer to what is so, and has it plan by it.
func (w *world) learn(i int, s *speaker) {
	old := s.knows
	if s.knows.facts != w.facts && w.now >= s.factsDue {
		s.knows.facts = w.facts
	}
	for j, other := range w.speakers {
		alive := i == j || w.talks(i, j) && other.joined
		bit := uint32(1) << j
		is, gate := s.knows.alive&bit != 0, s.knows.gates&bit != 0
		if is == alive && (!alive || gate == w.gated[j]) {
			s.due[j] = 0
			continue
		}
		if s.due[j] == 0 && i != j {
			s.due[j] = w.now + 1 + w.rand.IntN(25)
		}
		if w.now < s.due[j] {
			continue
		}
		s.due[j] = 0
		s.knows.alive, s.knows.gates = s.knows.alive&^bit, s.knows.gates&^bit
		if alive {
			s.knows.alive |= bit
			if w.gated[j] {
				s.knows.gates |= bit
			}
		}
	}
	joined := s.joined
	others := false
	for j := range w.speakers {
		others = others || i != j && w.talks(i, j)
	}
	s.joined = s.joined || w.now >= s.joinAt || others && w.now >= s.joinAt-30
	if s.joined && (s.plan == nil || s.knows != old || !joined) {
		w.changed = w.now
		w.set(i, s)
		if s.knows.alive&^old.alive != 0 {
			w.repeat(i, s)
		}
	}
}

// view is what a speaker believes.
func (s *speaker) view() knowledge {
	return knowledge{s.knows.facts, s.knows.alive &^ s.blind, s.knows.gates ^ s.wrong}
}

// set gives a speaker's layer 2 the addresses that it now owns or stands by for.
func (w *world) set(i int, s *speaker) {
	s.plan = w.planFor(s.view())
	want := map[netip.Addr]*holding{}
	s.addrs = nil
	for _, addr := range s.knows.facts.addrs {
		rank := slices.Index(s.plan.ranked(addr), name(i))
		if rank < 0 || want[addr] != nil {
			continue
		}
		s.addrs = append(s.addrs, addr)
		h := s.held[addr]
		better := s.plan.better(addr, name(i))
		dead := rank == 0 && w.dead(s, better)
		switch {
		case h == nil && rank == 0:
			h = &holding{}
			w.take(h)
		case h == nil:
			h = &holding{rank: rank}
			w.await(h, patience*rank)
			w.ask(i, addr, h)
		case rank > 0 && h.rank == 0 && h.watches == self:
			h.ceding = true
		case rank == 0 && h.rank > 0 && h.watches != self && !(h.watches >= 0 && dead),
			rank == 0 && h.watches >= 0 && h.yields && !slices.Contains(better, name(h.watches)):
			w.take(h)
		}
		h.rank = rank
		h.ceding = h.ceding && rank > 0
		switch {
		case !dead:
			h.sought = 0
		case h.sought == 0:
			h.sought, h.seek = w.now, w.now+seekLeast
		}
		want[addr] = h
	}
	slices.SortFunc(s.addrs, netip.Addr.Compare)
	s.held = want
	w.moment = true
}

// await has a speaker take an address after a time if nobody is heard to answer.
func (w *world) await(h *holding, wait int) {
	h.watches, h.takeAt = nobody, w.now+wait+15+w.rand.IntN(5)
}

// repeat has a speaker that learns of another announce everything once more: the network may have grown together.
func (w *world) repeat(i int, s *speaker) {
	for _, addr := range s.addrs {
		if s.answers(addr) {
			w.announce(i, addr)
		}
	}
}

// dead says whether a speaker takes one of some nodes for dead.
func (w *world) dead(s *speaker, nodes []string) bool {
	for j := range w.speakers {
		if slices.Contains(nodes, name(j)) && s.view().alive>>j&1 == 0 {
			return true
		}
	}
	return false
}

func (w *world) take(h *holding) {
	*h = holding{rank: h.rank, watches: self, since: h.since, last: h.last, sought: h.sought, seek: h.seek}
	w.moment = true
	for _, after := range schedule {
		h.announcements = append(h.announcements, w.now+after)
	}
}

// planFor is what a speaker decides. Speakers that know the same share a plan; now and then it is checked that they would
// have come to the same.
func (w *world) planFor(k knowledge) *plan {
	p := w.plans[k]
	if p != nil && w.rand.IntN(50) > 0 {
		return p
	}
	own := w.makePlan(k)
	if p != nil {
		for _, addr := range k.facts.addrs {
			if a, b := p.owners[addr], own.owners[addr]; a != b {
				w.t.Fatalf("tick %d: from the same view one speaker gives %s to %q and another one to %q", w.now, addr, a, b)
			}
		}
	}
	w.plans[k] = own
	return own
}

func (w *world) makePlan(k knowledge) *plan {
	v := &announce.View{
		Config: &config.Config{L2: []config.L2Advertisement{{Name: "all", Pools: config.Names{All: true}}}},
		PoolOf: func(netip.Addr) string { return "lan" }, Nodes: map[string]*announce.Node{},
	}
	for j := range w.speakers {
		n := &announce.Node{Name: name(j), Alive: k.alive>>j&1 == 1}
		if k.gates>>j&1 == 1 {
			n.Gate = "its Service proxy is unhealthy"
		}
		if k.facts.excluded[j] {
			n.Excluded = "it is"
		}
		v.Nodes[n.Name] = n
	}
	claims := map[netip.Addr][]announce.Claim{}
	for i, s := range k.facts.services {
		claims[k.facts.addrs[i]] = append(claims[k.facts.addrs[i]], announce.Claim{Service: s, Type: v1beta1.AddressLoadBalancerIP})
	}
	p := &plan{v, claims, map[netip.Addr]string{}, map[netip.Addr][]string{}}
	for addr, on := range claims {
		p.owners[addr] = v.Layer2(addr, on).Owner
	}
	return p
}

// plan is what a speaker decides by what it knows.
type plan struct {
	view   *announce.View
	claims map[netip.Addr][]announce.Claim
	owners map[netip.Addr]string
	ranks  map[netip.Addr][]string
}

// ranked are the nodes that can answer for an address, best first.
func (p *plan) ranked(addr netip.Addr) []string {
	nodes, ok := p.ranks[addr]
	if !ok && p.owners[addr] != "" {
		for _, c := range p.view.ExplainLayer2(addr, p.claims[addr]).Candidates {
			if c.Why == "" {
				nodes = append(nodes, c.Node)
			}
		}
	}
	p.ranks[addr] = nodes
	return nodes
}

func (p *plan) better(addr netip.Addr, node string) []string {
	return p.view.Better(addr, p.claims[addr], node)
}

// hear is the rule of the wire: a member with a better right is yielded to, any other is told, as long as that helps.
func (w *world) hear(i int, s *speaker, f frame) {
	h := s.held[f.addr]
	if h == nil {
		return
	}
	yields := slices.Contains(s.plan.better(f.addr, name(i)), name(f.from))
	if h.watches == self && !yields && !h.ceding {
		first := h.last == 0 || w.now-h.last > forgets
		if first {
			h.since = w.now
		}
		h.last = w.now
		if w.now-h.since <= contest || f.from > i {
			if first {
				w.take(h)
			}
			w.announce(i, f.addr)
			return
		}
	}
	*h = holding{rank: h.rank, watches: f.from, yields: yields, poll: w.now + pollInterval, sought: h.sought, seek: h.seek}
	w.moment = true
}

func (w *world) announce(i int, addr netip.Addr) {
	f := frame{from: i, at: w.now, addr: addr}
	if !slices.Contains(w.frames, f) {
		w.frames = append(w.frames, f)
	}
}

// act announces an address, asks the member that has it whether it still does, or takes it when nobody has it.
func (w *world) act(i int, addr netip.Addr, h *holding) {
	switch {
	case h.watches == self:
		if len(h.announcements) > 0 && w.now >= h.announcements[0] {
			if h.announcements = h.announcements[1:]; len(h.announcements) == 0 {
				h.announcements = append(h.announcements, w.now+refresh*9/10+w.rand.IntN(refresh/5))
			}
			w.announce(i, addr)
		}
		if h.sought > 0 && w.now >= h.seek {
			h.seek = w.now + min(max((w.now-h.sought)/100, seekLeast), seekMost)
			w.ask(i, addr, h)
		}
	case h.watches == nobody && w.now >= h.takeAt:
		if w.ask(i, addr, h); h.watches == nobody {
			w.take(h)
		}
	case h.watches >= 0 && w.now >= h.poll:
		h.poll = w.now + pollInterval
		if h.misses++; w.segment[i] == w.segment[h.watches] && w.speakers[h.watches].confirms(addr) && w.rand.Float64() >= w.loss {
			h.misses = 0
		}
		switch {
		case h.misses < pollMisses:
		case h.rank <= 1:
			w.take(h)
		default:
			w.await(h, turnOf*(h.rank-1))
		}
	}
}

// ask has everybody on a speaker's segment who answers for an address say so to that speaker.
func (w *world) ask(i int, addr netip.Addr, h *holding) {
	for j, s := range w.speakers {
		if j != i && w.segment[j] == w.segment[i] && s.confirms(addr) && w.rand.Float64() >= w.loss {
			if s := w.speakers[i]; s.held[addr] == h {
				w.hear(i, s, frame{from: j, addr: addr})
			} else {
				h.watches, h.poll = j, w.now+pollInterval // it is being set
			}
		}
	}
}

// confirms says whether a speaker tells members that it answers for an address.
func (s *speaker) confirms(addr netip.Addr) bool {
	return s.answers(addr) && !s.held[addr].ceding
}

func (s *speaker) answers(addr netip.Addr) bool {
	h := s.held[addr]
	return s.running && h != nil && h.watches == self
}

// answering are the nodes that answer for each address.
func (w *world) answering() map[netip.Addr][]int {
	out := map[netip.Addr][]int{}
	for i, s := range w.speakers {
		for _, addr := range s.addrs {
			if s.answers(addr) {
				out[addr] = append(out[addr], i)
			}
		}
	}
	return out
}

// judge notes who answers for what beside another, and looks at the whole when nothing has happened for long enough.
func (w *world) judge() {
	if w.moment {
		w.moment = false
		was := w.double
		w.double = map[netip.Addr]int{}
		for addr, nodes := range w.answering() {
			segments := map[int]bool{}
			for _, i := range nodes {
				segments[w.segment[i]] = true
			}
			if len(segments) == len(nodes) {
				continue
			}
			if since, ok := was[addr]; ok {
				w.double[addr] = since
			} else {
				w.double[addr] = w.now
			}
		}
		if len(was) > 0 && len(w.double) == 0 {
			w.slowest = max(w.slowest, w.now-w.changed)
		}
	}
	if w.now != w.changed+w.quiet {
		return
	}
	w.judged++
	answering := w.answering()
	for addr, since := range w.double {
		if w.now-since >= w.patience {
			w.t.Fatalf("tick %d: after %d quiet ticks %s is still answered for by nodes %v on segments %v", w.now, w.quiet, addr, answering[addr], w.segment)
		}
	}
	known := true // everyone knows those that it can talk to, both ways
	for i, s := range w.speakers {
		for j := range w.speakers {
			if s.running && !w.stubborn && i != j && w.segment[i] == w.segment[j] && w.deaf[i][j] {
				known = false
			}
		}
	}
	if !known {
		return
	}
	for seg := range 2 {
		for _, addr := range w.facts.addrs {
			n, able := 0, false
			for _, i := range answering[addr] {
				if w.segment[i] == seg {
					n++
				}
			}
			if _, ok := w.double[addr]; ok {
				n = min(n, 1) // for the moment
			}
			for i, s := range w.speakers {
				alone := knowledge{w.facts, 1 << i, 0}
				if w.stubborn {
					able = able || s.running && w.segment[i] == seg && slices.Contains(w.planFor(s.view()).ranked(addr), name(i))
					continue
				}
				if s.running && w.segment[i] == seg {
					able = able || w.planFor(alone).owners[addr] != ""
				}
			}
			if able != (n == 1) {
				w.t.Fatalf("tick %d: %s is answered for by %v, segments %v, parts %v, and somebody could: %v", w.now, addr, answering[addr], w.segment, w.part, able)
			}
		}
	}
	w.measure(answering)
}

// measure counts what has moved since all was well known last, when only speakers have come and gone since.
func (w *world) measure(answering map[netip.Addr][]int) {
	s := settled{facts: w.facts, owners: map[netip.Addr]int{}}
	for i, sp := range w.speakers {
		if w.segment[i] != 0 || w.part[i] != 0 || w.gated[i] {
			return
		}
		if sp.running {
			s.alive |= 1 << i
		}
	}
	w.whole++
	for addr, nodes := range answering {
		s.owners[addr] = nodes[0]
	}
	if old := w.last; old != nil && old.facts == s.facts {
		for addr, was := range old.owners {
			is, still := s.owners[addr]
			if !still {
				continue
			}
			forced := s.alive>>was&1 == 0 || old.alive>>is&1 == 0
			if forced {
				w.unavoidable++
			}
			if was != is {
				w.moved++
				if !forced {
					w.guests++
				}
			}
		}
	}
	w.last = &s
}
