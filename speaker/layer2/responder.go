// Package layer2 answers ARP and NDP for a set of addresses that are on no interface, so that neighbours on the local
// network send their packets to this node.
//
// It owns the packet sockets, the announcements and the watch for others that claim the same addresses. Which
// addresses those are, and who ranks before whom, is its caller's business: it knows nothing of Kubernetes, and asks
// Config.Judge about other claimants.
package layer2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Address is an address to be answered for.
type Address struct {
	// Addr is a unicast IPv4 or IPv6 address. Others are ignored.
	Addr netip.Addr

	// Interfaces are names or shell patterns (path.Match) of the interfaces to answer on. Empty means every usable
	// interface that Config.Exclude does not match; a named interface is used even if it is excluded.
	Interfaces []string

	// Probe asks the network whether the address is free before it is announced for the first time since it entered the
	// set. The zero Probe announces at once.
	Probe Probe

	// Standby keeps silent while another speaker holds the address, asks that one all the time whether it still does, and
	// takes over when it no longer answers, within PollMisses + 1 times Config.PollInterval. An address of which no holder
	// was ever heard stays silent. What was taken over is kept, until a holder is heard that Judge says to yield to.
	Standby bool

	// Used says that another speaker has announced the address before, so that Probe only finds out whether that one still
	// holds it. A stranger who claims the address meanwhile is one who came later: it is told, and does not keep the
	// address from being announced.
	Used bool

	// Seek says that a speaker with a better right to the address may hold it where this node does not hear it now. While
	// the address is answered, the network is asked whether it is whole again, ever more rarely.
	Seek bool
}

func (a Address) equal(b Address) bool {
	return a.Addr == b.Addr && a.Probe == b.Probe && a.Standby == b.Standby && a.Used == b.Used && a.Seek == b.Seek &&
		slices.Equal(a.Interfaces, b.Interfaces)
}

// Probe is how to find out whether an address is free.
type Probe struct {
	Count    int           // questions asked; 0: none
	Interval time.Duration // between them and after the last one
}

// DefaultProbe takes 600 ms: RFC 5227 section 1.1 with times for a network of today.
func DefaultProbe() Probe { return Probe{Count: 3, Interval: 200 * time.Millisecond} }

// Claim is what another station says about an address of the set.
type Claim struct {
	Addr      netip.Addr
	Interface string // on which it was heard
	MAC       MAC    // of the claimant
	// Probe is set when the station does not have the address yet but is about to take it. Such a claim is judged only
	// while the address is probed here as well, for the first time ever.
	Probe bool
}

// Verdict is what to do about a Claim.
type Verdict int

const (
	// Stranger is a station that has no business with the address: the conflict is reported, and an address that was
	// announced before is defended, at most once in 10 s (RFC 5227 section 2.4).
	Stranger Verdict = iota
	// Yield is a speaker with a better right: answering stops at once. It resumes when that speaker does not answer for
	// the address any more, or when Judge, asked again after a Set, says otherwise. A speaker that fell silent is asked
	// on, ever more rarely, and yielded to again if it is back: a Judge that ranks all speakers it knows, whether it
	// believes them to be alive or not, has a network that fell apart healed within moments.
	Yield
	// Defend is a speaker with a lesser right: the address is announced again at once, so that it hears us.
	Defend
	// Ignore is a station that may say so, such as this node by another interface.
	Ignore
)

// Conflict is a stranger's claim to an address of the set.
type Conflict struct {
	Claim
	Since time.Time
	// Before is set when the claim was heard while probing for the first time ever (RFC 5227 section 2.1), not for a
	// takeover: the address has not been announced and will not be until the stranger is gone.
	Before bool
	// Over is set in the last report of a conflict: the stranger no longer answers for the address, is a stranger no
	// more, or the address left the set.
	Over bool
}

// Config is what a Responder is made with. The zero Config works.
type Config struct {
	Log *slog.Logger // nil: slog.Default()

	// Exclude are patterns of the interfaces that only a name in Address.Interfaces can select. nil: DefaultExclude.
	Exclude []string

	// Refresh is the mean time between the periodic announcements of an address on a link, 10 % more or less. It has to
	// be shorter than the time after which switches forget a silent station (usually 300 s). 0: 60 s; negative: none.
	Refresh time.Duration

	// PollInterval and PollMisses say when a holder is silent: it has left PollMisses questions, PollInterval apart,
	// unanswered. 0: 50 ms and 3. A longer time tolerates busier nodes.
	PollInterval time.Duration
	PollMisses   int

	// Judge classifies other claimants. It is called by Run's goroutine and must not block. nil: all are strangers.
	Judge func(Claim) Verdict

	// OnConflict, OnLinks and OnChange are called by Run's goroutine when a conflict begins or ends, when the result of
	// Links changed, and when the State or Interfaces of an address changed. They must not block; they may call the
	// Responder's methods. Any may be nil.
	OnConflict func(Conflict)
	OnLinks    func()
	OnChange   func()
}

// Responder answers ARP and NDP.
type Responder struct {
	log    *slog.Logger
	config Config
	watch  func() (*linkEvents, error)
	dial   dialer

	wake      chan struct{} // want changed
	claims    chan heard
	malformed atomic.Uint64
	lost      atomic.Uint64
	own       atomic.Pointer[map[MAC]bool] // hardware addresses of this node
	readers   sync.WaitGroup

	mu      sync.Mutex
	want    map[netip.Addr]Address
	fresh   bool // want or links differ from what the last sync saw
	rejudge bool
	anew    bool // everything is to be announced again
	held    map[netip.Addr]*holding
	links   map[int]Link
	ports   map[portKey]*port
	failed  map[portKey]string // why a port could not be opened
	plan    agenda
	retry   *task
	watched map[MAC]int // how many addresses each speaker holds that is asked whether it still does
	ghosts  int         // rivals that are lost
	seekers int         // holdings that are sought elsewhere
	news    news        // to be logged
	calls   []func()    // callbacks to be made without the lock
	changed bool        // OnChange is due
}

// New returns a Responder that does nothing until Run is called.
func New(config Config) *Responder {
	if config.Log == nil {
		config.Log = slog.Default()
	}
	if config.Exclude == nil {
		config.Exclude = DefaultExclude()
	}
	config.Refresh = cmp.Or(config.Refresh, 60*time.Second)
	config.PollInterval = cmp.Or(config.PollInterval, 50*time.Millisecond)
	config.PollMisses = cmp.Or(config.PollMisses, 3)
	if config.Judge == nil {
		config.Judge = func(Claim) Verdict { return Stranger }
	}
	r := &Responder{
		log:     config.Log,
		config:  config,
		watch:   watchLinks,
		dial:    dialRaw,
		wake:    make(chan struct{}, 1),
		claims:  make(chan heard, 4096),
		want:    map[netip.Addr]Address{},
		held:    map[netip.Addr]*holding{},
		watched: map[MAC]int{},
		links:   map[int]Link{},
		ports:   map[portKey]*port{},
		failed:  map[portKey]string{},
	}
	r.own.Store(&map[MAC]bool{})
	r.retry = newTask(func(time.Time) time.Time {
		r.fresh = true
		return time.Time{}
	})
	return r
}

// Set says which addresses to answer for: all of them, replacing what was said before. An address that is not in want
// is not answered for any more when Set returns. Of an address named twice the interfaces are united. Set may be called
// at any time, also before Run, and by several goroutines; it never waits for the network.
func (r *Responder) Set(want []Address) {
	next := make(map[netip.Addr]Address, len(want))
	for _, a := range want {
		a.Addr = a.Addr.Unmap().WithZone("")
		if !unicast(a.Addr) {
			continue
		}
		a.Interfaces = slices.Clone(a.Interfaces)
		if twin, ok := next[a.Addr]; ok {
			if len(a.Interfaces) > 0 && len(twin.Interfaces) > 0 {
				a.Interfaces = append(a.Interfaces, twin.Interfaces...)
			} else {
				a.Interfaces = nil
			}
			a.Standby, a.Used, a.Seek = a.Standby && twin.Standby, a.Used && twin.Used, a.Seek || twin.Seek
		}
		next[a.Addr] = a
	}
	r.mu.Lock()
	r.fresh = r.fresh || !maps.EqualFunc(next, r.want, Address.equal)
	r.want, r.rejudge = next, true
	for addr, h := range r.held {
		_, ok := next[addr]
		h.left = h.left || !ok
		h.quiet.Store(h.left || h.state != Answering)
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Announce announces again, once, all that is answered: for a caller who learns that the network has changed behind the
// links, and that stations there may believe the addresses to be elsewhere.
func (r *Responder) Announce() {
	r.mu.Lock()
	r.anew = true
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Links returns the usable links, by name. It is empty while Run does not run.
func (r *Responder) Links() []Link {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sortedLinks(r.links)
}

// Run answers and announces until ctx ends, and then returns nil when every socket is closed. It returns an error only
// if the kernel's interfaces cannot be watched in the first place. All sockets belong to the network namespace of the
// thread that calls Run. A Responder runs once at a time.
func (r *Responder) Run(ctx context.Context) error {
	events, err := r.watch()
	if err != nil {
		return fmt.Errorf("layer2: %w", err)
	}
	defer func() { events.close() }()
	defer r.stop()
	r.setLinks(events)

	alarm := time.NewTimer(time.Hour)
	defer alarm.Stop()
	for {
		alarm.Reset(r.step(time.Now()))
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-alarm.C:
		case h := <-r.claims:
			r.judge(h)
			for range len(r.claims) { // a fellow that takes a thousand addresses over says so at once
				r.judge(<-r.claims)
			}
		case u, ok := <-events.links:
			if ok {
				events.table.applyLink(u)
			} else if events = r.rewatch(ctx, events); events == nil {
				return nil
			}
			r.setLinks(events)
		case u, ok := <-events.addrs:
			if ok {
				events.applyAddr(u)
			} else if events = r.rewatch(ctx, events); events == nil {
				return nil
			}
			r.setLinks(events)
		}
	}
}

// rewatch replaces a subscription that broke, as it does when the kernel had more to say than the socket could hold.
// What is answered stays answered meanwhile. It returns nil when ctx ended.
func (r *Responder) rewatch(ctx context.Context, broken *linkEvents) *linkEvents {
	broken.close()
	for {
		events, err := r.watch()
		if err == nil {
			r.log.Info("layer2: watching links again, messages were lost")
			return events
		}
		r.log.Warn("layer2: links are not watched", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// setLinks takes over what the kernel said about interfaces, including what is already waiting to be read.
func (r *Responder) setLinks(events *linkEvents) {
	for len(events.links) > 0 {
		events.table.applyLink(<-events.links)
	}
	for len(events.addrs) > 0 {
		events.applyAddr(<-events.addrs)
	}
	links, own := events.table.usable(r.config.Exclude)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.own.Store(&own)
	if maps.EqualFunc(links, r.links, Link.equal) {
		return
	}
	for index, l := range links {
		if old, ok := r.links[index]; !ok || old.Name != l.Name || old.Carrier != l.Carrier || old.MAC != l.MAC {
			r.log.Info("layer2: link", "interface", l.Name, "carrier", l.Carrier, "mac", l.MAC.String())
		}
	}
	for index, l := range r.links {
		if _, ok := links[index]; !ok {
			r.log.Info("layer2: link gone", "interface", l.Name)
		}
	}
	r.links, r.fresh = links, true
	if r.config.OnLinks != nil {
		r.calls = append(r.calls, r.config.OnLinks)
	}
}

// step does what is due and returns how long nothing else will be.
func (r *Responder) step(now time.Time) time.Duration {
	r.reconsider(now)
	r.mu.Lock()
	if r.fresh {
		r.fresh = false
		r.sync(now)
	}
	if r.anew {
		r.anew = false
		r.repeat(now)
	}
	r.plan.due(now)
	rest := time.Hour
	if at, ok := r.plan.next(); ok {
		rest = at.Sub(now)
	}
	if r.fresh {
		rest = 0
	}
	calls := r.calls
	if r.changed && r.config.OnChange != nil {
		calls = append(calls, r.config.OnChange)
	}
	r.calls, r.changed = nil, false
	r.news.flush(r.log)
	r.mu.Unlock()
	for _, call := range calls {
		call()
	}
	return rest
}

// stop closes everything, so that a later Run starts afresh from what is wanted.
func (r *Responder) stop() {
	r.mu.Lock()
	for _, h := range r.held {
		r.drop(h)
	}
	for key, p := range r.ports {
		delete(r.ports, key)
		p.wire.close()
	}
	r.plan.cancel(r.retry)
	clear(r.failed)
	r.links, r.fresh, r.calls = map[int]Link{}, true, nil
	r.news.flush(r.log)
	r.mu.Unlock()
	r.readers.Wait()
}

// portKey is one protocol on one interface.
type portKey struct {
	index int
	v6    bool
}

// port is an open wire and the addresses that are answered on it.
type port struct {
	link   Link // changed by Run only, under the lock
	wire   wire
	addrs  []netip.Addr // sorted; what the wire's filter lets through
	groups map[netip.Addr]bool
	view   atomic.Pointer[portView]
}

// portView is what a reader needs, replaced as a whole.
type portView struct {
	name  string
	index int
	mac   MAC
	held  map[netip.Addr]*holding
}

// sync brings the holdings and the ports to what is wanted on the links that there are.
func (r *Responder) sync(now time.Time) {
	for addr, h := range r.held {
		if _, ok := r.want[addr]; !ok || h.left {
			r.drop(h)
		}
	}
	for addr, want := range r.want {
		h := r.held[addr]
		if h == nil {
			h = r.hold(want)
			r.held[addr] = h
			r.begin(h, now)
		} else if h.want.Standby && !want.Standby && h.state == Standby {
			h.want = want
			r.become(h, Answering, "chosen", now)
		} else if !h.want.Standby && want.Standby && h.state != Standby {
			h.want = want
			r.become(h, Standby, "another is chosen", now)
		}
		h.want = want
		r.search(h, now)
	}
	wants := map[portKey]map[netip.Addr]*holding{}
	for addr, h := range r.held {
		for index, l := range r.links {
			key := portKey{index, addr.Is6()}
			if !h.selects(l) {
				continue
			}
			if wants[key] == nil {
				wants[key] = map[netip.Addr]*holding{}
			}
			wants[key][addr] = h
		}
	}
	stale := func(key portKey, p *port) bool {
		return wants[key] == nil || p.link.generation != r.links[key.index].generation
	}
	for addr, h := range r.held {
		for index, s := range h.slots {
			if key := (portKey{index, addr.Is6()}); stale(key, s.port) || wants[key][addr] == nil {
				r.detach(h, index)
			}
		}
	}
	for key, p := range r.ports {
		if stale(key, p) {
			delete(r.ports, key)
			p.wire.close()
		}
	}
	failing := false
	for key, held := range wants {
		if err := r.setPort(key, held, now); err != nil {
			failing = true
			if text := err.Error(); r.failed[key] != text {
				r.failed[key] = text
				r.log.Warn("layer2: cannot answer fully", "interface", r.links[key.index].Name, "ipv6", key.v6, "error", err)
			}
		} else {
			delete(r.failed, key)
		}
	}
	if failing {
		r.plan.set(r.retry, now.Add(time.Second))
	}
}

// setPort opens the port or changes what it answers for. On an error it does what it can.
func (r *Responder) setPort(key portKey, held map[netip.Addr]*holding, now time.Time) error {
	link := r.links[key.index]
	addrs := slices.SortedFunc(maps.Keys(held), netip.Addr.Compare)
	p := r.ports[key]
	var failed error
	if p == nil {
		w, err := r.dial(link, key.v6, addrs)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		p = &port{link: link, wire: w, addrs: addrs, groups: map[netip.Addr]bool{}}
		p.view.Store(&portView{link.Name, link.Index, link.MAC, held})
		r.ports[key] = p
		r.readers.Go(func() { readLoop(w, func(frame []byte) { r.receive(p, frame) }) })
	} else {
		if !slices.Equal(addrs, p.addrs) {
			if err := p.wire.listen(addrs); err != nil {
				failed = fmt.Errorf("filter: %w", err)
			} else {
				p.addrs = addrs
			}
		}
		p.view.Store(&portView{link.Name, link.Index, link.MAC, held})
	}
	afresh := link.MAC != p.link.MAC || link.Carrier && !p.link.Carrier
	lost := !link.Carrier && p.link.Carrier
	p.link = link
	if key.v6 {
		failed = errors.Join(failed, p.regroup(addrs))
	}
	for _, h := range held {
		switch s := h.slots[key.index]; {
		case s == nil:
			r.attach(h, p, key.index, now)
		case afresh:
			r.revive(h, s, now)
		case lost:
			r.changed = true
		}
	}
	return failed
}

// regroup makes the node a member of the groups on which neighbours ask for addrs, and of no others.
func (p *port) regroup(addrs []netip.Addr) error {
	groups := make(map[netip.Addr]bool, len(addrs))
	var failed error
	for _, a := range addrs {
		g := solicitedNode(a)
		if groups[g] = true; p.groups[g] {
			continue
		}
		if err := p.wire.join(g); err != nil {
			failed = err // the same for all, as a rule: one is enough to report
		} else {
			p.groups[g] = true
		}
	}
	for g := range p.groups {
		if !groups[g] {
			p.wire.leave(g)
			delete(p.groups, g)
		}
	}
	return failed
}

// receive handles one frame, in the reader's goroutine: what has to be fast is done here, without a lock.
func (r *Responder) receive(p *port, frame []byte) {
	m, err := parse(frame)
	if err != nil {
		r.malformed.Add(1)
		return
	}
	view, own := p.view.Load(), *r.own.Load()
	if m.ask && !own[m.askerMAC] {
		if h := view.held[m.target]; h != nil {
			h.requests.Add(1)
			if !h.quiet.Load() {
				r.reply(h, p, m, view.mac)
			} else if m.probe() && h.probing.Load() {
				r.hear(h, heard{Claim{m.target, view.name, m.askerMAC, true}, view.index})
			}
		}
	}
	if m.claim.IsValid() && !own[m.claimMAC] {
		if h := view.held[m.claim]; h != nil {
			h.claims.Add(1)
			r.hear(h, heard{Claim{m.claim, view.name, m.claimMAC, false}, view.index})
		}
	}
}

func (r *Responder) reply(h *holding, p *port, m message, mac MAC) {
	frame, err := answer(m, mac)
	if err == nil {
		err = p.wire.send(frame)
	}
	if err != nil {
		h.failures.Add(1)
		return
	}
	h.replies.Add(1)
}

// heard is a claim and the index of the interface that it came in by.
type heard struct {
	claim Claim
	index int
}

// hear passes a claim on to Run, unless the same station said the same a moment ago: a station that floods the network
// must not keep Run from hearing others.
func (r *Responder) hear(h *holding, c heard) {
	const moment = 5 * time.Millisecond
	now := time.Now()
	if last := h.last.Load(); last != nil && last.mac == c.claim.MAC && now.Sub(last.at) < moment {
		return
	}
	select {
	case r.claims <- c:
		h.last.Store(&stamp{c.claim.MAC, now})
	default:
		r.lost.Add(1)
	}
}
