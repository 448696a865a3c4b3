package main

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/tools/events"

	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/digest"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/internal/wake"
	"github.com/clarionlb/clarion/speaker/bgp"
	"github.com/clarionlb/clarion/speaker/guard"
	"github.com/clarionlb/clarion/speaker/holddown"
	"github.com/clarionlb/clarion/speaker/layer2"
)

// reconciler turns what is known into decisions and hands them to the sinks. Events change the snapshot and wake the loop;
// it decides anew what they concern, and tells layer 2, BGP and the guard what has changed.
type reconciler struct {
	reconcilerConfig
	wake wake.Signal

	// The snapshot's lock guards the following.
	joined   bool     // the other speakers are known: layer 2 may announce
	outside  []string // the node's interfaces that packets from outside come in by, nil when not known yet
	secrets  map[string]map[string][]byte
	roles    map[netip.Addr]role // what this node does on the local network
	leavers  map[netip.Addr]bool // those of them that it answers for until somebody else does
	answered map[netip.Addr]bool // in a step: what layer 2 answers for; nil: not asked yet
	known    map[netip.Addr]bool // addresses that Services have; true: somebody may have announced it already
	exports  map[netip.Addr][]announce.Export
	digests  map[string]digest.Sum // of exports, by peer
	heldDown map[netip.Addr]bool   // addresses that are held down
	weights  map[netip.Addr]weight
	ranges   [][]announce.Export
	cidrs    []netip.Prefix           // ServiceCIDRs that are announced
	draining time.Time                // since when this node is being drained; zero: it is not
	later    map[netip.Addr]time.Time // when an address has to be looked at again though nothing has changed
	problems []config.Problem         // with configuration objects, on this node
	keys     map[string]key           // the password of each peer's session
	tables   *tables                  // the routes of each peer
	addrs    []netip.Addr             // the Node's when it last had some
	id       netip.Addr               // the router ID where none is configured

	woken  atomic.Int64            // when the first event came that no step has seen, in Unix nanoseconds; 0: there is none
	first  bool                    // nothing was known before this step
	fit    map[netip.Addr]*fitness // what this node could serve; see ready
	asked  map[uint16]asked        // by port; see ready
	leaves map[netip.Addr]bool     // announced from endpoints that terminate
	// unproven are addresses that are announced though the Service proxy has not said in time that it serves them, with the
	// port where it was asked.
	unproven map[netip.Addr]uint16

	unsent   atomic.Int64 // when the event came that the routes were last changed for; 0: they have been sent
	rankings sync.Map     // of each of roles
	orphan   atomic.Bool  // there is no Node, or none yet: the others decide without this speaker
}

// reconcilerConfig is what a reconciler is made with.
type reconcilerConfig struct {
	node, namespace string
	log             *slog.Logger
	snapshot        *snapshot.Snapshot
	layer2          interface {
		Set([]layer2.Address)
		Change(want []layer2.Address, gone ...netip.Addr)
		Status() layer2.Status
	}
	bgp       interface{ Set([]bgp.Session) }
	asks      func(context.Context, netip.AddrPort) bool // whether the Service proxy serves a Service, by its health check; nil: it is not asked
	synced    func(context.Context) proxyHealth          // what the Service proxy says of itself; nil: it is not asked
	guard     interface{ Set(guard.Want) }               // nil: nothing is guarded
	events    events.EventRecorder
	changed   func()                    // called after every step that changed something that the status shows
	named     func(interfaces []string) // called with the interfaces that L2Advertisements name, whenever they may have changed
	drainTime time.Duration
	acd       layer2.Probe // of an address that nobody has announced before (RFC 5227)
	holddown  *holddown.Table[netip.Addr]
}

func newReconciler(c reconcilerConfig) *reconciler {
	return &reconciler{
		reconcilerConfig: c, wake: wake.New(), secrets: map[string]map[string][]byte{}, roles: map[netip.Addr]role{},
		leavers: map[netip.Addr]bool{}, known: map[netip.Addr]bool{}, exports: map[netip.Addr][]announce.Export{},
		digests: map[string]digest.Sum{}, heldDown: map[netip.Addr]bool{}, weights: map[netip.Addr]weight{}, later: map[netip.Addr]time.Time{}, keys: map[string]key{}, fit: map[netip.Addr]*fitness{}, asked: map[uint16]asked{}, leaves: map[netip.Addr]bool{}, unproven: map[netip.Addr]uint16{}, tables: newTables(),
	}
}

// poke makes the loop look at the snapshot.
func (r *reconciler) poke() {
	r.woken.CompareAndSwap(0, time.Now().UnixNano())
	r.wake.Set()
}

// sent is called when an UPDATE has been sent to a peer. It says how long after the event that caused it that was, if it
// is the first.
func (r *reconciler) sent() (took time.Duration, ok bool) {
	at := r.unsent.Swap(0)
	return time.Since(time.Unix(0, at)), at != 0
}

// pause is how long events are collected before they are decided on. The first after a quiet time is decided on at once.
const pause = 5 * time.Millisecond

// run decides until ctx ends. It must not begin before the snapshot is complete: unknown is not empty.
func (r *reconciler) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		r.step(now)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if next := r.next(); next.IsZero() {
			timer.Reset(time.Hour)
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
		}
	}
}

// next is when step has to be called though nothing has changed, zero if there is no such time.
func (r *reconciler) next() time.Time {
	r.snapshot.Lock()
	defer r.snapshot.Unlock()
	var first time.Time
	if r.snapshot.Node(r.node) == nil {
		return first // see step
	}
	add := func(t time.Time) {
		if first.IsZero() || t.Before(first) {
			first = t
		}
	}
	for _, t := range r.later {
		add(t)
	}
	if !r.draining.IsZero() && !r.snapshot.View().Nodes[r.node].Drained {
		add(r.draining.Add(r.drainTime))
	}
	return first
}

// setJoined lets layer 2 announce.
func (r *reconciler) setJoined() {
	r.snapshot.Lock()
	if !r.joined {
		r.joined = true
		r.snapshot.MarkAll()
	}
	r.snapshot.Unlock()
	r.poke()
}

// setOutside takes in by which of the node's interfaces packets from outside come in.
func (r *reconciler) setOutside(names []string) {
	r.snapshot.Lock()
	if r.outside == nil || !slices.Equal(names, r.outside) {
		r.outside = names
		r.snapshot.MarkAll()
	}
	r.snapshot.Unlock()
	r.poke()
}

// secret takes in a Secret of Clarion's namespace.
func (r *reconciler) secret(name string, data map[string][]byte, gone bool) {
	r.snapshot.Lock()
	if old, had := r.secrets[name]; had == gone || !maps.EqualFunc(old, data, bytes.Equal) {
		if r.secrets[name] = data; gone {
			delete(r.secrets, name)
		}
		r.snapshot.MarkAll()
	}
	r.snapshot.Unlock()
	r.poke()
}

// step decides anew what is dirty, and tells the sinks if that changed anything.
func (r *reconciler) step(now time.Time) {
	s := r.snapshot
	s.Lock()
	defer s.Unlock()
	event := r.woken.Swap(0)
	orphan := s.Node(r.node) == nil
	if r.orphan.Swap(orphan) != orphan && orphan && len(r.roles) > 0 {
		r.log.Warn("the Node is gone: what is announced stays, and an address on the local network until another speaker is heard to have it")
	}
	if orphan {
		return
	}
	for addr, t := range r.later {
		if !t.After(now) {
			delete(r.later, addr)
			s.Mark(addr)
		}
	}
	if !r.draining.IsZero() && now.Sub(r.draining) >= r.drainTime {
		s.SetDrained(r.node, true)
	}
	first := s.View().Config == nil
	r.first = first
	changes := s.Changes()
	r.note(changes.Addrs, first)
	if changes.All {
		var named []string
		for _, ad := range s.View().Config.L2 {
			named = append(named, ad.Interfaces...)
		}
		slices.Sort(named)
		r.named(slices.Compact(named))
	}
	me := changes.All || slices.Contains(changes.Nodes, r.node)
	if me {
		r.watchDraining(now)
	}
	for _, addr := range changes.Addrs {
		r.seeFit(addr)
	}
	routes := changes.Addrs
	if me = me || len(changes.Nodes) > 0 && s.View().Nodes[r.node].Gate != ""; me { // whether a gate withdraws depends on the others
		r.decideRanges()
		if !changes.All {
			routes = s.All()
		}
	}
	if !me && len(changes.Nodes) > 0 { // another one may have been the last way
		routes = slices.AppendSeq(slices.Clone(routes), maps.Keys(r.heldDown))
	}
	r.answered = nil
	bgpChanged, guarded := me, me // guarded: what packets come here for has changed
	for _, addr := range routes {
		was := len(r.exports[addr]) > 0
		bgpChanged = r.decideBGP(addr, s.ClaimsOn(addr), now) || bgpChanged
		guarded = guarded || was != (len(r.exports[addr]) > 0)
	}
	if bgpChanged { // before layer 2 is decided, which takes a while where there are many addresses
		r.unsent.Store(event)
		r.bgp.Set(r.sessions())
	}
	var l2 []layer2.Address
	var gone []netip.Addr
	decide := func(addr netip.Addr) {
		_, was := r.roles[addr]
		if !r.decideLayer2(addr) {
			return
		}
		if d, is := r.roles[addr]; is {
			l2, guarded = append(l2, d.Address), guarded || !was
		} else {
			gone, guarded = append(gone, addr), true
		}
	}
	for _, addr := range changes.Addrs {
		decide(addr)
	}
	if len(changes.Nodes) > 0 { // who ranks before this one, and who of these is alive, may have changed
		for _, addr := range slices.Collect(maps.Keys(r.roles)) {
			decide(addr)
		}
	}
	if guarded && r.guard != nil && r.outside != nil { // before the links are known, what was guarded stays
		r.guard.Set(r.guarded())
	}
	switch {
	case !r.joined:
	case changes.All:
		l2 = l2[:0]
		for _, d := range r.roles {
			l2 = append(l2, d.Address)
		}
		r.layer2.Set(l2)
	case len(l2)+len(gone) > 0:
		r.layer2.Change(l2, gone...)
	}
	if changes.All || bgpChanged || len(l2)+len(gone) > 0 {
		r.changed()
	}
}

// watchDraining notes since when this node is being drained.
func (r *reconciler) watchDraining(now time.Time) {
	switch is := r.snapshot.View().Nodes[r.node].Draining; {
	case is && r.draining.IsZero():
		r.draining = now
		r.log.Info("node is being drained: its routes are the last choice now, and withdrawn later where others serve", "after", r.drainTime)
	case !is && !r.draining.IsZero():
		r.draining = time.Time{}
		r.snapshot.SetDrained(r.node, false)
		r.log.Info("node is no longer being drained")
	}
}

// guarded is all that this node draws packets for: what of it the Service proxy does not rewrite, because it does not know
// it, or does not know it yet, must not go back to where it came from. It would be sent here again, and the proxy would
// not touch the flow any more, as the kernel remembers that it was not rewritten.
func (r *reconciler) guarded() guard.Want {
	w := guard.Want{Prefixes: slices.Clone(r.cidrs), Interfaces: r.outside}
	add := func(a netip.Addr) { w.Prefixes = append(w.Prefixes, netip.PrefixFrom(a, a.BitLen())) }
	for addr := range r.exports {
		add(addr)
	}
	for addr := range r.roles {
		add(addr)
	}
	return w
}
