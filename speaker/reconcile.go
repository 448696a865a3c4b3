package main

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/speaker/announce"
	"github.com/clarionlb/clarion/speaker/bfd"
	"github.com/clarionlb/clarion/speaker/bgp"
	"github.com/clarionlb/clarion/speaker/guard"
	"github.com/clarionlb/clarion/speaker/holddown"
	"github.com/clarionlb/clarion/speaker/layer2"
)

// reconciler turns what is known into decisions and hands them to the sinks. Events change the snapshot and wake the loop;
// it decides the dirty addresses anew and gives layer 2 and BGP the whole truth whenever it has changed.
type reconciler struct {
	node      string
	namespace string
	log       *slog.Logger
	layer2    interface {
		Set([]layer2.Address)
		Status() layer2.Status
	}
	bgp       interface{ Set([]bgp.Session) }
	guard     interface{ Set(guard.Want) } // nil: nothing is guarded
	events    events.EventRecorder
	changed   func() // called after every step that changed something that the status shows
	drainTime time.Duration
	acd       layer2.Probe // of an address that nobody has announced before (RFC 5227)
	wake      chan struct{}

	snapshot *snapshot.Snapshot // its lock guards the following too
	joined   bool               // the fellows are known: layer 2 may announce
	outside  []string           // the node's interfaces that packets from outside come in by, nil when not known yet
	secrets  map[string]map[string][]byte
	duties   map[netip.Addr]duty // what this node does on the local network
	known    map[netip.Addr]bool // addresses that Services have; true: somebody may have announced it already
	exports  map[netip.Addr][]announce.Export
	weights  map[netip.Addr]weight
	holddown *holddown.Table[netip.Addr]
	ranges   [][]announce.Export
	drawn    []netip.Prefix           // ServiceCIDRs that are announced
	draining time.Time                // since when this node is being drained; zero: it is not
	later    map[netip.Addr]time.Time // when an address has to be looked at again though nothing has changed
	problems []config.Problem         // with configuration objects, on this node
	keys     map[string]string        // the password of each peer's session

	woken  atomic.Int64                                   // when the first event came that no step has seen, in Unix nanoseconds; 0: there is none
	caused atomic.Int64                                   // when the event came that the routes were last changed for; 0: they have been sent
	rights atomic.Pointer[map[netip.Addr]map[string]bool] // the nodes with a better right to what is owned
}

// duty is what this node does about an address on the local network: it owns it, or it stands by.
type duty struct {
	layer2.Address
	services []string
	before   map[string]bool // the nodes with a better right
}

func (p duty) equal(q duty) bool {
	return p.Standby == q.Standby && p.Seek == q.Seek && slices.Equal(p.Interfaces, q.Interfaces) && slices.Equal(p.services, q.services) && maps.Equal(p.before, q.before)
}

func newReconciler(node, namespace string, snap *snapshot.Snapshot, log *slog.Logger) *reconciler {
	return &reconciler{
		node: node, namespace: namespace, log: log, wake: make(chan struct{}, 1), snapshot: snap,
		secrets: map[string]map[string][]byte{}, duties: map[netip.Addr]duty{}, known: map[netip.Addr]bool{}, exports: map[netip.Addr][]announce.Export{},
		weights: map[netip.Addr]weight{}, later: map[netip.Addr]time.Time{}, holddown: holddown.New[netip.Addr](0, 0), keys: map[string]string{},
	}
}

// poke makes the loop look at the snapshot.
func (r *reconciler) poke() {
	r.woken.CompareAndSwap(0, time.Now().UnixNano())
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// sent is called when an UPDATE has been sent to a peer. It says how long after the event that caused it that was, if it
// is the first.
func (r *reconciler) sent() (took time.Duration, ok bool) {
	at := r.caused.Swap(0)
	return time.Since(time.Unix(0, at)), at != 0
}

// run decides until ctx ends. It must not begin before the snapshot is complete: unknown is not empty.
func (r *reconciler) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		r.step(now)
		if next := r.next(); next.IsZero() {
			timer.Reset(time.Hour)
		} else {
			timer.Reset(next.Sub(now))
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

// again makes the loop decide everything anew, and layer 2 judge again whom it heard.
func (r *reconciler) again() {
	r.snapshot.Lock()
	r.snapshot.MarkAll()
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
	if s.Node(r.node) == nil {
		return // not known: what is announced stays
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
	changes := s.Changes()
	r.note(changes.Addrs, first)
	if changes.All {
		r.watchDraining(now)
		r.decideRanges()
	}
	l2Changed, bgpChanged := changes.All, changes.All
	for _, addr := range changes.Addrs {
		bgpChanged = r.decideBGP(addr, s.ClaimsOn(addr), now) || bgpChanged
	}
	if bgpChanged { // before layer 2 is decided, which takes a while where there are many addresses
		r.caused.Store(event)
		r.bgp.Set(r.sessions())
	}
	if onLAN := len(s.View().Config.L2) > 0 || len(r.duties) > 0; onLAN && (changes.All || len(changes.Addrs) > 0) {
		l2Changed = r.decideLayer2() || l2Changed
	}
	if (l2Changed || bgpChanged) && r.guard != nil && r.outside != nil { // before the links are known, what was guarded stays
		r.guard.Set(r.guarded())
	}
	if l2Changed && r.joined {
		want := make([]layer2.Address, 0, len(r.duties))
		rights := make(map[netip.Addr]map[string]bool, len(r.duties))
		for addr, p := range r.duties {
			want = append(want, p.Address)
			rights[addr] = p.before
		}
		r.rights.Store(&rights)
		r.layer2.Set(want)
	}
	if l2Changed || bgpChanged {
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

// weight is the link bandwidth that an address was announced with last, and since when.
type weight struct {
	sent float32
	at   time.Time
}

// weightInterval is the shortest time between two weights of an address: each may move flows.
const weightInterval = 500 * time.Millisecond

// decideBGP says whether what this node announces to its peers for an address has changed.
func (r *reconciler) decideBGP(addr netip.Addr, claims []announce.Claim, now time.Time) bool {
	exports := r.snapshot.View().ForBGP(r.node, addr, claims).Exports
	pass, retry := r.holddown.Filter(now, addr, len(exports) > 0)
	if !pass {
		if exports = nil; !retry.IsZero() {
			r.later[addr] = retry
		}
	}
	for i := range exports {
		exports[i].Bandwidth = r.weigh(addr, exports[i].Bandwidth, now)
	}
	old := r.exports[addr]
	if r.exports[addr] = exports; len(exports) == 0 {
		delete(r.exports, addr)
		delete(r.weights, addr)
	}
	return !slices.EqualFunc(exports, old, equalExport)
}

// weigh is the link bandwidth to announce an address with: in steps, and not changed too often.
func (r *reconciler) weigh(addr netip.Addr, exact float32, now time.Time) float32 {
	if exact == 0 {
		return 0
	}
	old := r.weights[addr]
	sent := announce.Weight(exact, old.sent)
	if sent == old.sent {
		return sent
	}
	if due := old.at.Add(weightInterval); old.sent > 0 && now.Before(due) {
		r.later[addr] = due
		return old.sent
	}
	r.weights[addr] = weight{sent, now}
	return sent
}

// guarded is all that this node draws packets for: what of it the Service proxy does not rewrite, because it does not know
// it, or does not know it yet, must not go back to where it came from. It would be sent here again, and the proxy would
// not touch the flow any more, as the kernel remembers that it was not rewritten.
func (r *reconciler) guarded() guard.Want {
	w := guard.Want{Prefixes: slices.Clone(r.drawn), Interfaces: r.outside}
	add := func(a netip.Addr) { w.Prefixes = append(w.Prefixes, netip.PrefixFrom(a, a.BitLen())) }
	for addr := range r.exports {
		add(addr)
	}
	for addr := range r.duties {
		add(addr)
	}
	return w
}

func equalExport(a, b announce.Export) bool {
	return a.Peer == b.Peer && a.Prefix == b.Prefix && a.Attrs.Equal(b.Attrs)
}

// confirm is how a node that is to take over from one that it takes for dead makes sure on the wire that it is.
var confirm = layer2.Probe{Count: 3, Interval: 30 * time.Millisecond}

// decideLayer2 says whether this node's part in announcing addresses on the local network has changed. A change to one
// address can move others.
func (r *reconciler) decideLayer2() bool {
	plan := r.snapshot.Layer2()
	next := map[netip.Addr]duty{}
	add := func(addr netip.Addr, standby bool) duty {
		_, interfaces := plan.Owner(addr)
		p := duty{Address: layer2.Address{Addr: addr, Interfaces: interfaces, Standby: standby}, before: plan.Before(addr, r.node)}
		for _, c := range r.snapshot.ClaimsOn(addr) {
			if c.Type == v1beta1.AddressLoadBalancerIP {
				p.services = append(p.services, c.Service.Key())
			}
		}
		next[addr] = p
		return p
	}
	for _, addr := range plan.StandbyFor(r.node) {
		add(addr, true)
	}
	var holders map[netip.Addr]bool
	for _, addr := range plan.OwnedBy(r.node) {
		p := add(addr, false)
		switch old, had := r.duties[addr]; {
		case had && !old.Standby:
			p.Probe, p.Used = old.Probe, old.Used // goes on as it was begun
		case !r.known[addr]:
			p.Probe = r.acd
		case r.anyDead(p.before):
			// That a better node is dead is hearsay. While it is heard to answer it has the address.
			if holders == nil {
				holders = r.holders()
			}
			p.Standby, p.Probe, p.Used = holders[addr], confirm, true
		}
		p.Seek = r.anyDead(p.before) // it may be cut off rather than dead
		next[addr] = p
	}
	changed := !maps.EqualFunc(r.duties, next, duty.equal)
	for addr, old := range r.duties {
		if p, ok := next[addr]; !old.Standby && (!ok || p.Standby) {
			owner, _ := plan.Owner(addr)
			why := "node " + owner + " has the better right"
			if owner == "" {
				why = plan.Explain(addr).Why
			}
			r.log.Info("gives up address", "address", addr, "why", why)
		}
	}
	for addr, p := range next {
		if old, had := r.duties[addr]; !p.Standby && (!had || old.Standby) {
			r.log.Info("takes address", "address", addr, "interfaces", p.Interfaces)
		}
	}
	r.duties = next
	for addr, announced := range r.known {
		if owner, _ := plan.Owner(addr); !announced && owner != "" {
			r.known[addr] = true
		}
	}
	return changed
}

// anyDead says whether the speaker of one of some nodes is not known to be alive.
func (r *reconciler) anyDead(nodes map[string]bool) bool {
	for n := range nodes {
		if node := r.snapshot.View().Nodes[n]; node != nil && !node.Alive {
			return true
		}
	}
	return false
}

// holders are the addresses that another speaker is heard to answer for.
func (r *reconciler) holders() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, a := range r.layer2.Status().Addresses {
		out[a.Addr] = a.State == layer2.Standby && a.Holder != layer2.MAC{}
	}
	return out
}

// note takes in which addresses Services have. first says that nothing was known before: what there is then, others may
// have announced for long.
func (r *reconciler) note(addrs []netip.Addr, first bool) {
	for _, addr := range addrs {
		if _, ok := r.known[addr]; len(r.snapshot.ClaimsOn(addr)) == 0 {
			delete(r.known, addr)
		} else if !ok {
			r.known[addr] = first
		}
	}
}

// hasBetterRight says whether a node has a better right than this one to an address that this one owns. It takes no lock.
func (r *reconciler) hasBetterRight(node string, addr netip.Addr) bool {
	rights := r.rights.Load()
	return rights != nil && (*rights)[addr][node]
}

func (r *reconciler) decideRanges() {
	s := r.snapshot
	r.ranges = r.ranges[:0]
	r.drawn = r.drawn[:0]
	for _, p := range s.ServiceCIDRs() {
		exports := s.View().ForRange(r.node, p, v1beta1.AddressServiceCIDR).Exports
		if r.ranges = append(r.ranges, exports); len(exports) > 0 {
			r.drawn = append(r.drawn, p)
		}
	}
	for _, p := range s.Node(r.node).PodCIDRs {
		r.ranges = append(r.ranges, s.View().ForRange(r.node, p, v1beta1.AddressPodCIDR).Exports)
	}
}

// sessions are the BGP sessions of this node and their routes.
func (r *reconciler) sessions() []bgp.Session {
	s := r.snapshot
	routes := announce.Merge(slices.AppendSeq(slices.Clone(r.ranges), maps.Values(r.exports)))
	r.problems = r.problems[:0]
	var out []bgp.Session
	used := map[netip.AddrPort]*config.Peer{}
	peers := slices.Clone(s.View().Config.Peers)
	slices.SortStableFunc(peers, func(a, b config.Peer) int { return a.Created.Compare(b.Created) })
	for i := range peers {
		p := &peers[i]
		if !p.Nodes.Match(s.Node(r.node).Labels) {
			continue
		}
		problem := func(format string, args ...any) {
			r.problems = append(r.problems, config.Problem{Kind: "BGPPeer", Name: p.Name, Message: fmt.Sprintf(format, args...)})
		}
		if at := netip.AddrPortFrom(p.Address, p.Port); p.Address.IsValid() {
			if other := used[at]; other != nil && other.VRF == p.VRF {
				problem("spec.peerAddress: the older BGPPeer %q is the same router, %s; its session is used", other.Name, at)
				continue
			}
			used[at] = p
		}
		password := p.Password
		if p.SecretName != "" {
			secret, ok := r.secrets[p.SecretName]
			if password = string(secret[corev1.BasicAuthPasswordKey]); password == "" {
				what := "there is no Secret %s/%s"
				if ok {
					what = "the Secret %s/%s has no key \"password\""
				}
				problem("spec.passwordSecret: "+what+"; no session is opened until there is", r.namespace, p.SecretName)
				continue
			}
		}
		if old, had := r.keys[p.Name]; had && old != password {
			r.events.Eventf(s.BGPPeer(p.Name), nil, corev1.EventTypeNormal, "PasswordChanged", "Peer", "node %s: the session is opened anew with the new password", r.node)
		}
		r.keys[p.Name] = password
		out = append(out, bgp.Session{Peer: r.peer(p, password), Routes: routes[p.Name]})
	}
	return out
}

// peer is a BGPPeer as this node sees it.
func (r *reconciler) peer(p *config.Peer, password string) bgp.Peer {
	out := bgp.Peer{
		Name: p.Name, LocalASN: p.LocalASN, PeerASN: p.PeerASN, Address: p.Address, Interface: p.Interface, Port: p.Port,
		Source: p.Source, RouterID: p.RouterID, VRF: p.VRF, HoldTime: bgp.DefaultHoldTime,
		Password: password, GracefulRestart: p.GracefulRestart, MultiHop: p.MultiHop, TTLSecurity: p.TTLSecurity,
		Passive: p.Passive, DualStack: p.DualStack, MaxPrefixes: p.MaxPrefixes,
		Dynamic:        map[string]bgp.Dynamic{"internal": bgp.DynamicInternal, "external": bgp.DynamicExternal}[p.Dynamic],
		DefaultGateway: map[string]bgp.Gateway{"IPv4": bgp.GatewayIPv4, "IPv6": bgp.GatewayIPv6}[p.Gateway],
	}
	for _, t := range []struct {
		from *time.Duration
		to   *time.Duration
	}{{p.HoldTime, &out.HoldTime}, {p.Keepalive, &out.Keepalive}, {p.ConnectTime, &out.ConnectTime}} {
		if t.from != nil {
			*t.to = *t.from
		}
	}
	if b := p.BFD; b != nil {
		out.BFD = bfd.Profile{Receive: b.Receive, Transmit: b.Transmit, Multiplier: b.Multiplier, Passive: b.Passive, MinTTL: b.MinimumTTL}
	}
	if !out.RouterID.IsValid() {
		out.RouterID = routerID(r.node, r.snapshot.Node(r.node).Addresses)
	}
	return out
}

// routerID is the BGP identifier of a node: its IPv4 address, or a number made of its name (RFC 6286 asks only for a
// number that is unique within the AS).
func routerID(node string, addrs []netip.Addr) netip.Addr {
	for _, a := range addrs {
		if a.Is4() {
			return a
		}
	}
	h := fnv.New32a()
	h.Write([]byte(node))
	n := h.Sum32() | 1
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}
