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

	"github.com/clarionlb/clarion/internal/interfaces"
	"github.com/clarionlb/clarion/internal/wake"
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

	// Rank is whose turn it is: 0 owns the address, n is the nth to take it when nobody answers for it. A backup keeps
	// silent while another member answers, and asks that one all the time whether it still does: the first one takes over
	// when that one is silent (see Config.PollInterval), the others a second after the one before them. An address that nobody answers, whoever is to own it, is taken after 3 s times the rank. What was taken is
	// kept until a member is heard that Judge says to yield to. What this node answered for when its rank fell it goes on
	// answering for, except to the questions of members, until one of them is heard to have it.
	Rank int

	// Used says that another member has announced the address before, so that Probe only finds out whether that one still
	// holds it. A foreign host that claims the address meanwhile is one that came later: it is told, and does not keep the
	// address from being announced.
	Used bool

	// Seek says that a member that ranks before this node may hold the address where this node does not hear it now. While
	// the address is answered, the network is asked whether it is whole again, after longer and longer pauses.
	Seek bool
}

func (a Address) equal(b Address) bool {
	return a.Addr == b.Addr && a.Probe == b.Probe && a.Rank == b.Rank && a.Used == b.Used && a.Seek == b.Seek &&
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
	// Foreign is a host that is no member: the conflict is reported, and an address that was announced before is defended,
	// at most once in 10 s (RFC 5227 section 2.4).
	Foreign Verdict = iota
	// Yield is a member that ranks before this node: answering stops at once. It resumes when that member does not answer
	// for the address any more, or when Judge, asked again after a Set, says otherwise. A member that fell silent is still
	// asked, after longer and longer pauses, and yielded to again if it is back: a Judge that ranks all members it knows, whether it
	// believes them to be alive or not, has a network that fell apart healed within moments.
	Yield
	// Defend is a member that ranks behind this node: the address is announced again at once, so that it hears us. If it
	// does not yield within two seconds, the members do not agree, and the one with the lower hardware address keeps the address.
	Defend
	// Leave is a member that ranks behind this node and may keep what it has, since addresses do not fail back: as Yield
	// while this node does not answer, as Defend when both do.
	Leave
	// Ignore is a station that may say so, such as this node by another interface.
	Ignore
)

// Conflict is a foreign host's claim to an address of the set.
type Conflict struct {
	Claim
	Since time.Time
	// Before is set when the claim was heard while probing for the first time ever (RFC 5227 section 2.1), not for a
	// takeover: the address has not been announced and will not be until the foreign host is gone.
	Before bool
	// Over is set in the last report of a conflict: the foreign host no longer answers for the address, is known for a
	// member, or the address left the set.
	Over bool
}

// Config is what a Responder is made with. The zero Config works.
type Config struct {
	Log *slog.Logger // nil: slog.Default()

	// Exclude are patterns of the interfaces that only a name in Address.Interfaces can select. nil: interfaces.DefaultExclude.
	Exclude []string

	// Refresh is the mean time between the periodic announcements of an address on a link, 10 % more or less. It has to
	// be shorter than the time after which switches forget a silent station (usually 300 s). 0: 60 s; negative: none.
	Refresh time.Duration

	// PollInterval is the time between two questions to a member that is watched, whatever the number of its addresses; it
	// is longer where more than 15 members are. After PollMisses of them without an answer the member is silent; all but
	// the first of these come after two fifths of the interval. 0: 75 ms and 3, which makes 135 to 210 ms. A longer time
	// tolerates busier nodes.
	PollInterval time.Duration
	PollMisses   int

	// StandIn is how long a backup stands in for a member that restarts, or whose speaker is silent while its node is there,
	// before it takes its addresses. 0: 60 s; negative: it takes them at once.
	StandIn time.Duration
	// Restarting says whether a member is about to end and to come back: it is stood in for while it still answers. Kernel
	// are addresses that the kernel of a member's node answers for, which tells whether that is there. Both are asked by a
	// hardware address of the member, and are called as Judge is. nil: none is, and none are known.
	Restarting func(MAC) bool
	Kernel     func(MAC) []netip.Addr

	// Judge classifies other claimants. It is called by Run's goroutine, must not block, and must not call the Responder's
	// methods. nil: all are foreign.
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

	wake      wake.Signal // want changed
	claims    chan heard
	malformed atomic.Uint64
	lost      atomic.Uint64
	own       atomic.Pointer[map[MAC]bool] // hardware addresses of this node
	readers   sync.WaitGroup

	mu          sync.Mutex
	want        map[netip.Addr]Address
	dirty       map[netip.Addr]bool // of want and held, what the next sync looks at
	relinked    bool                // links differ from what the last sync saw
	anew        bool                // everything is to be announced again
	held        map[netip.Addr]*holding
	links       map[int]Link
	ports       map[portKey]*port
	plan        agenda
	retry       *task // to look at the ports again
	nodes       map[nodeKey]*node
	crowd       int  // things that this step has planned one after the other
	sought      ring // what is sought elsewhere, since when the last one was added
	soughtSince time.Time
	rush        int      // how many of them to ask for without a pause
	watched     int      // nodes that hold addresses
	silent      int      // nodes that lost some when they fell silent
	beat        struct { // when calm nodes are asked next, and how many
		at    time.Time
		asked int
	}
	seeking *task
	news    news     // to be logged
	calls   []func() // callbacks to be made without the lock
	changed bool     // OnChange is due
}

// New returns a Responder that does nothing until Run is called.
func New(config Config) *Responder {
	if config.Log == nil {
		config.Log = slog.Default()
	}
	if config.Exclude == nil {
		config.Exclude = interfaces.DefaultExclude()
	}
	config.Refresh = cmp.Or(config.Refresh, 60*time.Second)
	config.PollInterval = cmp.Or(config.PollInterval, 75*time.Millisecond)
	config.PollMisses = cmp.Or(config.PollMisses, 3)
	config.StandIn = cmp.Or(config.StandIn, 60*time.Second)
	if config.Restarting == nil {
		config.Restarting = func(MAC) bool { return false }
	}
	if config.Kernel == nil {
		config.Kernel = func(MAC) []netip.Addr { return nil }
	}
	if config.Judge == nil {
		config.Judge = func(Claim) Verdict { return Foreign }
	}
	r := &Responder{
		log:    config.Log,
		config: config,
		watch:  watchLinks,
		dial:   dialRaw,
		wake:   wake.New(),
		claims: make(chan heard, 4096),
		want:   map[netip.Addr]Address{},
		dirty:  map[netip.Addr]bool{},
		held:   map[netip.Addr]*holding{},
		links:  map[int]Link{},
		ports:  map[portKey]*port{},
		nodes:  map[nodeKey]*node{},
	}
	r.own.Store(&map[MAC]bool{})
	r.retry = newTask(func(now time.Time) time.Time { return r.syncPorts(now) })
	r.seeking = newTask(func(now time.Time) time.Time { return r.seekNext(now) })
	return r
}

// Set says which addresses to answer for: all of them, replacing what was said before. An address that is not in want
// is not answered for any more when Set returns. Of an address named twice the interfaces are united. Set may be called
// at any time, also before Run, and by several goroutines; it never waits for the network.
func (r *Responder) Set(want []Address) {
	r.mu.Lock()
	next := make(map[netip.Addr]bool, len(want))
	for _, a := range want {
		if a.Addr = plain(a.Addr); !unicast(a.Addr) {
			continue
		}
		if next[a.Addr] {
			a = unite(a, r.want[a.Addr])
		}
		next[a.Addr] = true
		r.wish(a)
	}
	for addr := range r.want {
		if !next[addr] {
			r.unwish(addr)
		}
	}
	r.mu.Unlock()
	r.Rejudge()
}

// Rejudge has Judge asked again about all who claim addresses of the set: for a caller who has learned who they are.
func (r *Responder) Rejudge() {
	r.mu.Lock()
	for addr, h := range r.held {
		if len(h.holders)+len(h.lost)+len(h.foreign) > 0 {
			r.dirty[addr] = true
		}
	}
	r.mu.Unlock()
	r.wake.Set()
}

// Change is Set for a caller that knows in what its want differs from before: gone are the addresses that are not in it any
// more, and what is not named stays. It costs what it names. An address for which Judge says something new is to be named.
func (r *Responder) Change(want []Address, gone ...netip.Addr) {
	r.mu.Lock()
	for _, a := range want {
		if a.Addr = plain(a.Addr); unicast(a.Addr) {
			r.wish(a)
			r.dirty[a.Addr] = true
		}
	}
	for _, addr := range gone {
		r.unwish(plain(addr))
	}
	r.mu.Unlock()
	r.wake.Set()
}

func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// unite is what two that ask for the same address get.
func unite(a, b Address) Address {
	if len(a.Interfaces) > 0 && len(b.Interfaces) > 0 {
		a.Interfaces = slices.Concat(b.Interfaces, a.Interfaces)
	} else {
		a.Interfaces = nil
	}
	a.Rank, a.Used, a.Seek = min(a.Rank, b.Rank), a.Used && b.Used, a.Seek || b.Seek
	return a
}

func (r *Responder) wish(a Address) {
	if old, ok := r.want[a.Addr]; !ok || !old.equal(a) {
		a.Interfaces = slices.Clone(a.Interfaces)
		r.want[a.Addr] = a
		r.dirty[a.Addr] = true
	}
}

func (r *Responder) unwish(addr netip.Addr) {
	delete(r.want, addr)
	if h := r.held[addr]; h != nil {
		h.left = true
		h.quiet.Store(true)
		h.covers.Store(nil)
		r.dirty[addr] = true
	}
}

// Announce announces again, once and 500 addresses a second, all that is answered: for a caller who learns that the network has changed behind the
// links, and that stations there may believe the addresses to be elsewhere.
func (r *Responder) Announce() {
	r.mu.Lock()
	r.anew = true
	r.mu.Unlock()
	r.wake.Set()
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
			for range len(r.claims) { // a member that takes a thousand addresses over says so at once
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
	r.links, r.relinked = links, true
	if r.config.OnLinks != nil {
		r.calls = append(r.calls, r.config.OnLinks)
	}
}

// step does what is due and returns how long nothing else will be.
func (r *Responder) step(now time.Time) time.Duration {
	r.mu.Lock()
	r.crowd = 0
	r.sync(now)
	if r.anew {
		r.anew = false
		r.repeat(now)
	}
	r.plan.due(now)
	rest := time.Hour
	if at, ok := r.plan.next(); ok {
		rest = at.Sub(now)
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
		r.drop(h, time.Now())
	}
	for key, p := range r.ports {
		r.closePort(key, p, time.Now())
	}
	r.plan.cancel(r.retry)
	r.links, r.calls = map[int]Link{}, nil
	for addr := range r.want {
		r.dirty[addr] = true
	}
	r.news.flush(r.log)
	r.mu.Unlock()
	r.readers.Wait()
}

// portKey is one protocol on one interface.
type portKey struct {
	index int
	v6    bool
}

// port is what is answered on one link, and the wire for it.
type port struct {
	link   Link       // changed by Run only, under the lock
	wire   wire       // nil: it could not be opened yet
	held   sync.Map   // of netip.Addr to *holding: what is answered, as readers see it
	peers  sync.Map   // of kernelKey to *kernel: those whose answers are listened for, as readers see them
	count  int        // of them
	fresh  []*holding // of them, those that have no slot yet
	stale  bool       // the filter or the groups are not those of held
	due    time.Time  // not before then are they replaced again
	failed string     // why that could not be done
	groups map[netip.Addr]bool
	view   atomic.Pointer[portView]
}

// portView is what a reader needs, replaced as a whole.
type portView struct {
	name  string
	index int
	mac   MAC
}

func (p *port) listen(h *holding) {
	if _, ok := p.held.Swap(h.addr, h); !ok {
		p.count++
		p.fresh = append(p.fresh, h)
		p.stale = true
	}
}

func (p *port) unlisten(h *holding) {
	if p.held.CompareAndDelete(h.addr, h) {
		p.count--
		p.fresh = slices.DeleteFunc(p.fresh, func(o *holding) bool { return o == h })
		p.stale = true
	}
}

// sync brings the holdings and the ports to what is wanted on the links that there are.
func (r *Responder) sync(now time.Time) {
	if r.relinked {
		r.relinked = false
		for key, p := range r.ports {
			r.relink(key, p, now)
		}
		for addr := range r.want {
			r.dirty[addr] = true
		}
	}
	if len(r.dirty) == 0 {
		return
	}
	for addr := range r.dirty {
		r.place(addr, now)
	}
	clear(r.dirty)
	if next := r.syncPorts(now); !next.IsZero() {
		r.plan.set(r.retry, next)
	}
}

// relink takes over how a port's link is by now.
func (r *Responder) relink(key portKey, p *port, now time.Time) {
	link, ok := r.links[key.index]
	if !ok || link.generation != p.link.generation {
		r.closePort(key, p, now)
		return
	}
	afresh := link.MAC != p.link.MAC || link.Carrier && !p.link.Carrier
	r.changed = r.changed || link.Carrier != p.link.Carrier
	p.link = link
	p.view.Store(&portView{link.Name, link.Index, link.MAC})
	if afresh {
		p.each(func(h *holding) {
			if s := h.slots[key.index]; s != nil {
				r.revive(h, s, now)
			}
		})
	}
}

func (p *port) each(do func(*holding)) {
	p.held.Range(func(_, h any) bool { do(h.(*holding)); return true })
}

// place brings one address to what is wanted, and to the ports of the links that it selects.
func (r *Responder) place(addr netip.Addr, now time.Time) {
	want, ok := r.want[addr]
	h := r.held[addr]
	if h != nil && (!ok || h.left) {
		if !ok && h.state == Answering {
			r.inquire(h) // see gaveUp
		}
		r.drop(h, now)
		h = nil
	}
	if !ok {
		return
	}
	if h == nil {
		h = r.hold(want)
		r.held[addr] = h
	}
	r.wanted(h, want, now)
	for index, l := range r.links {
		key := portKey{index, addr.Is6()}
		p := r.ports[key]
		switch {
		case h.selects(l):
			if p == nil {
				p = &port{link: l, groups: map[netip.Addr]bool{}}
				p.view.Store(&portView{l.Name, l.Index, l.MAC})
				r.ports[key] = p
			}
			p.listen(h)
		case p != nil:
			if s := h.slots[index]; s != nil && h.state == Answering {
				r.question(h, s) // see gaveUp
			}
			p.unlisten(h)
			r.detach(h, index, now)
		}
	}
}

// closePort ends a port that nothing is to be answered on, or whose link is gone.
func (r *Responder) closePort(key portKey, p *port, now time.Time) {
	delete(r.ports, key)
	p.each(func(h *holding) { r.detach(h, key.index, now) })
	if p.wire != nil {
		p.wire.close()
	}
}

// filterRetry is the time until a port that could not be opened, or could not listen for all, is tried again.
const filterRetry = time.Second

// syncPorts opens, closes and refilters ports, and returns when it is to be called again, the zero Time for not again.
func (r *Responder) syncPorts(now time.Time) (next time.Time) {
	for key, p := range r.ports {
		switch {
		case p.count == 0:
			r.closePort(key, p, now)
			continue
		case p.stale && !p.due.After(now):
			text := ""
			start := time.Now()
			err := r.refilter(key, p)
			// Where one address comes after the other, the filter is replaced for several at a time: a tenth of the time.
			p.due = now.Add(10 * time.Since(start))
			if err != nil {
				p.due, text = now.Add(filterRetry), err.Error()
				if text != p.failed {
					r.log.Warn("layer2: cannot answer fully", "interface", p.link.Name, "ipv6", key.v6, "error", err)
				}
			}
			p.stale, p.failed = text != "", text
			if p.wire != nil {
				for _, h := range p.fresh {
					r.attach(h, p, key.index, now)
				}
				p.fresh = nil
			}
		}
		if p.stale && (next.IsZero() || p.due.Before(next)) {
			next = p.due
		}
	}
	return next
}

// refilter opens the port or changes what it listens for. On an error it does what it can.
func (r *Responder) refilter(key portKey, p *port) error {
	addrs := make([]netip.Addr, 0, p.count)
	p.each(func(h *holding) { addrs = append(addrs, h.addr) })
	slices.SortFunc(addrs, netip.Addr.Compare)
	listen := addrs
	p.peers.Range(func(key, _ any) bool { listen = append(listen, key.(kernelKey).addr); return true })
	var failed error
	if p.wire == nil {
		w, err := r.dial(p.link, key.v6, listen)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		p.wire = w
		r.readers.Go(func() { readLoop(w, func(frame []byte) { r.receive(p, frame) }) })
	} else if err := p.wire.listen(listen); err != nil {
		failed = fmt.Errorf("filter: %w", err)
	}
	if key.v6 {
		failed = errors.Join(failed, p.regroup(addrs))
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
		if h := p.find(m.target); h != nil {
			h.requests.Add(1)
			if m.probe() && !m.poll && h.quiet.Load() {
				h.asker.Store(&stamp{mac: m.askerMAC, at: time.Now()})
			}
			if covers := h.covers.Load(); covers != nil {
				if at, ok := (*covers)[view.index]; ok && m.askerMAC != at {
					r.reply(h, p, m, view.mac, at)
				}
			} else if !h.quiet.Load() && !(h.ceding.Load() && (m.poll || m.probe())) {
				r.reply(h, p, m, view.mac, view.mac)
			} else if m.probe() && h.probing.Load() {
				r.hear(h, heard{claim: Claim{m.target, view.name, m.askerMAC, true}, index: view.index})
			}
		}
	}
	if !m.claim.IsValid() || own[m.by] {
		return
	}
	switch h := p.find(m.claim); {
	case h == nil:
		if k, ok := p.peers.Load(kernelKey{m.claim, m.claimMAC}); ok && !m.by.station() {
			k.(*kernel).heard.Store(time.Now().UnixNano())
		}
	case !own[m.claimMAC]:
		h.claims.Add(1)
		r.hear(h, heard{claim: Claim{m.claim, view.name, m.claimMAC, false}, index: view.index, by: m.by})
	case m.by.station():
		h.covered.Store(time.Now().UnixNano())
	}
}

func (p *port) find(addr netip.Addr) *holding {
	h, _ := p.held.Load(addr)
	found, _ := h.(*holding)
	return found
}

func (r *Responder) reply(h *holding, p *port, m message, mac, at MAC) {
	if frame, err := answer(m, mac, at); r.send(h, p, frame, err) {
		h.replies.Add(1)
	}
}

// heard is a claim and how it came in.
type heard struct {
	claim  Claim
	index  int // of the interface
	by     MAC // the station that sent it, if it is not the claimant; zero otherwise
	behalf MAC // the member that the claimant stands in for, zero for none
}

// hear passes a claim on to Run, unless the same station said the same a moment ago: a station that floods the network
// must not keep Run from hearing others.
func (r *Responder) hear(h *holding, c heard) {
	const moment = 5 * time.Millisecond
	now := time.Now()
	from := cmp.Or(c.by, c.claim.MAC)
	if last := h.last.Load(); last != nil && last.mac == from && last.of == c.claim.MAC && now.Sub(last.at) < moment {
		return
	}
	select {
	case r.claims <- c:
		h.last.Store(&stamp{from, c.claim.MAC, now})
	default:
		r.lost.Add(1)
	}
}
