package main

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/digest"
	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/speaker/bfd"
	"github.com/clarionlb/clarion/speaker/bgp"
	corev1 "k8s.io/api/core/v1"
)

// weight is the link bandwidth that an address was announced with last, and since when.
type weight struct {
	sent float32
	at   time.Time
}

// weightInterval is the shortest time between two weights of an address: each may move flows.
const weightInterval = 500 * time.Millisecond

// decideBGP says whether what this node announces to its peers for an address has changed.
func (r *reconciler) decideBGP(addr netip.Addr, claims []announce.Claim, now time.Time) bool {
	view := r.snapshot.View()
	exports := view.ForBGP(r.node, addr, claims).Exports
	if len(exports) > 0 && len(r.exports[addr]) == 0 && !r.ready(addr, claims) {
		exports = nil
	}
	if len(exports) == 0 && r.leaves[addr] {
		r.holddown.Leave(now, addr)
	}
	if delete(r.leaves, addr); len(exports) > 0 && view.Leaves(r.node, addr, claims) {
		r.leaves[addr] = true
	}
	pass, retry := r.holddown.Filter(now, addr, len(exports) > 0)
	delete(r.heldDown, addr)
	if !pass && (len(exports) == 0 || !view.Leads(r.node, addr, claims)) { // one node goes on, or there would be no way at all
		if len(exports) > 0 {
			r.heldDown[addr] = true
		}
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
	if slices.EqualFunc(exports, old, equalExport) {
		return false
	}
	sum := digest.Address(addr)
	for i, e := range old {
		if i == 0 || old[i-1].Peer != e.Peer {
			r.digests[e.Peer] -= sum
		}
	}
	for i, e := range exports {
		if i == 0 || exports[i-1].Peer != e.Peer {
			r.digests[e.Peer] += sum
		}
	}
	r.tables.note(old, exports)
	return true
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

func equalExport(a, b announce.Export) bool {
	return a.Peer == b.Peer && a.Prefix == b.Prefix && a.Attrs.Equal(b.Attrs)
}

func (r *reconciler) decideRanges() {
	s := r.snapshot
	r.tables.whole = true
	r.ranges = r.ranges[:0]
	r.cidrs = r.cidrs[:0]
	for _, p := range s.ServiceCIDRs() {
		exports := s.View().ForRange(r.node, p, v1beta1.AddressServiceCIDR).Exports
		if r.ranges = append(r.ranges, exports); len(exports) > 0 {
			r.cidrs = append(r.cidrs, p)
		}
	}
	for _, p := range s.Node(r.node).PodCIDRs {
		r.ranges = append(r.ranges, s.View().ForRange(r.node, p, v1beta1.AddressPodCIDR).Exports)
	}
}

// tables are the routes of each peer. What one address changes costs what it changes.
type tables struct {
	byPeer map[string]route.Table
	// whole says that all is to be made again; otherwise dirty are the prefixes whose routes are.
	whole bool
	dirty map[netip.Prefix]bool
	// sources are the different exports for each prefix of several addresses, by peer and attributes: merging is idempotent,
	// so that it does not matter how many addresses have one.
	sources map[netip.Prefix]map[string]*source
}

// source is an export that some addresses have.
type source struct {
	announce.Export
	addresses int
}

func newTables() *tables {
	return &tables{byPeer: map[string]route.Table{}, dirty: map[netip.Prefix]bool{}, sources: map[netip.Prefix]map[string]*source{}}
}

// note takes in that what is announced for an address was old and is exports.
func (t *tables) note(old, exports []announce.Export) {
	for _, e := range exports { // first, so that an export that stays is there all the time
		t.count(e, 1)
	}
	for _, e := range old {
		t.count(e, -1)
	}
}

// count takes in that one more, or one less, address has an export.
func (t *tables) count(e announce.Export, by int) {
	if e.Prefix.IsSingleIP() {
		t.dirty[e.Prefix] = true
		return
	}
	of := t.sources[e.Prefix]
	if of == nil {
		of = map[string]*source{}
		t.sources[e.Prefix] = of
	}
	key := string(e.Attrs.AppendKey([]byte(e.Peer + "/"))) // no name has a slash
	s := of[key]
	if s == nil {
		s = &source{Export: e}
		of[key] = s
		t.dirty[e.Prefix] = true
	}
	if s.addresses += by; s.addresses > 0 {
		return
	}
	t.dirty[e.Prefix] = true
	if delete(of, key); len(of) == 0 {
		delete(t.sources, e.Prefix)
	}
}

// update makes byPeer what all the exports are now.
func (t *tables) update(exports map[netip.Addr][]announce.Export, ranges [][]announce.Export) {
	if t.whole {
		next := map[string]route.Table{}
		for peer, routes := range announce.Merge(slices.AppendSeq(slices.Clone(ranges), maps.Values(exports))) {
			next[peer] = route.TableOf(routes...)
		}
		t.byPeer = next
	} else if len(t.dirty) > 0 {
		var parts [][]announce.Export
		of := func(all []announce.Export) {
			if all = slices.DeleteFunc(slices.Clone(all), func(e announce.Export) bool { return !t.dirty[e.Prefix] }); len(all) > 0 {
				parts = append(parts, all)
			}
		}
		for p := range t.dirty {
			if p.IsSingleIP() {
				of(exports[p.Addr()])
			}
			for _, s := range t.sources[p] {
				parts = append(parts, []announce.Export{s.Export})
			}
		}
		for _, all := range ranges {
			of(all)
		}
		merged := announce.Merge(parts)
		for peer := range merged {
			if _, ok := t.byPeer[peer]; !ok {
				t.byPeer[peer] = route.Table{}
			}
		}
		dirty := slices.Collect(maps.Keys(t.dirty))
		for peer, table := range t.byPeer {
			there := make(map[netip.Prefix]bool, len(merged[peer]))
			for _, r := range merged[peer] {
				there[r.Prefix] = true
			}
			t.byPeer[peer] = table.With(merged[peer], slices.DeleteFunc(slices.Clone(dirty), func(p netip.Prefix) bool { return there[p] }))
		}
	}
	t.whole = false
	clear(t.dirty)
}

// sessions are the BGP sessions of this node and their routes.
func (r *reconciler) sessions() []bgp.Session {
	s := r.snapshot
	r.tables.update(r.exports, r.ranges)
	r.problems = r.problems[:0]
	if addrs := s.Node(r.node).Addresses; len(addrs) > 0 { // a Node without addresses for a moment keeps those it had
		r.addrs = slices.Clone(addrs)
	}
	// An identifier that would change costs every session: it stays while the Node names no other IPv4 addresses.
	if is4 := netip.Addr.Is4; !r.id.IsValid() || slices.ContainsFunc(r.addrs, is4) && !slices.Contains(r.addrs, r.id) {
		r.id = routerID(r.node, r.addrs)
	}
	var out []bgp.Session
	used := map[router]*config.Peer{}
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
		at := routerOf(p)
		if other := used[at]; other != nil {
			problem("%s: the older BGPPeer %q is the same router, %s; its session is used", at.field(), other.Name, at)
			continue
		}
		used[at] = p
		password, err := r.password(p)
		if err != nil {
			problem("spec.passwordSecret: %v", err)
			if password == "" {
				continue
			}
		}
		if ns := p.SecretNamespace; p.SecretName != "" && ns != "" && ns != r.namespace {
			problem("spec.passwordSecret.namespace: Secrets are read in the namespace %s only, not in %s; that of this name there is used", r.namespace, ns)
		}
		out = append(out, bgp.Session{Peer: r.peer(p, password), Routes: r.tables.byPeer[p.Name]})
	}
	return out
}

// router is what tells one router from another, as far as a BGPPeer says.
type router struct {
	address   netip.Addr
	port      uint16
	vrf       string
	link      string
	gatewayOf string
}

func routerOf(p *config.Peer) router {
	return router{p.Address, p.Port, p.VRF, p.Interface, p.Gateway}
}

// field is the field that says where the router is.
func (r router) field() string {
	switch {
	case r.link != "":
		return "spec.interface"
	case r.gatewayOf != "":
		return "spec.autoDiscovery"
	}
	return "spec.peerAddress"
}

func (r router) String() string {
	where := netip.AddrPortFrom(r.address, r.port).String()
	switch {
	case r.link != "":
		where = "that on interface " + r.link
	case r.gatewayOf != "":
		where = "the gateway of the " + r.gatewayOf + " default route"
	}
	if r.vrf != "" {
		where += " in VRF " + r.vrf
	}
	return where
}

// password is that of a peer's session. When its Secret is gone, it is the last one, with an error all the same.
func (r *reconciler) password(p *config.Peer) (string, error) {
	password := p.Password
	last, had := r.keys[p.Name]
	if p.SecretName != "" {
		secret, ok := r.secrets[p.SecretName]
		if password = string(secret[corev1.BasicAuthPasswordKey]); password == "" {
			what := "there is no Secret %s/%s"
			if ok {
				what = "the Secret %s/%s has no key \"password\""
			}
			if last.password == "" {
				return "", fmt.Errorf(what+"; no session is opened until there is", r.namespace, p.SecretName)
			}
			err := fmt.Errorf(what+"; the session goes on with the last password", r.namespace, p.SecretName)
			if !last.lost {
				r.events.Eventf(r.snapshot.BGPPeer(p.Name), nil, corev1.EventTypeWarning, "PasswordLost", "Peer", "node %s: %v", r.node, err)
			}
			last.lost = true
			r.keys[p.Name] = last
			return last.password, err
		}
	}
	if had && last.password != password {
		r.events.Eventf(r.snapshot.BGPPeer(p.Name), nil, corev1.EventTypeNormal, "PasswordChanged", "Peer", "node %s: the session is opened anew with the new password", r.node)
	}
	r.keys[p.Name] = key{password: password}
	return password, nil
}

// key is the password that a peer's session was last given.
type key struct {
	password string
	lost     bool // its Secret is gone
}

// peer is a BGPPeer as this node sees it.
func (r *reconciler) peer(p *config.Peer, password string) bgp.Peer {
	out := bgp.Peer{
		Name: p.Name,
		Identity: bgp.Identity{
			LocalASN: p.LocalASN, PeerASN: p.PeerASN, Address: p.Address, Interface: p.Interface, Port: p.Port,
			Source: p.Source, RouterID: p.RouterID, VRF: p.VRF, Auth: bgp.Auth{Password: password},
			GracefulRestart: p.GracefulRestart, MultiHop: p.MultiHop, TTLSecurity: p.TTLSecurity, Passive: p.Passive,
			DualStack: p.DualStack, Customer: p.Customer,
			Dynamic:        map[string]bgp.Dynamic{"internal": bgp.DynamicInternal, "external": bgp.DynamicExternal}[p.Dynamic],
			DefaultGateway: map[string]bgp.Gateway{"IPv4": bgp.GatewayIPv4, "IPv6": bgp.GatewayIPv6}[p.Gateway],
		},
		Options: bgp.Options{
			HoldTime: bgp.DefaultHoldTime, MaxPrefixes: p.MaxPrefixes,
			LinkBandwidth: map[string]bgp.LinkBandwidth{"transitive": bgp.LinkBandwidthTransitive, "both": bgp.LinkBandwidthBoth}[p.LinkBandwidth],
		},
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
		out.BFD = bfd.Profile{Receive: b.Receive, Transmit: b.Transmit, Multiplier: b.Multiplier, Passive: b.Passive, MinTTL: b.MinimumTTL, Echo: b.Echo}
	}
	for _, a := range r.addrs {
		if own := &out.Own4; a.Is4() && !own.IsValid() {
			*own = a
		}
		if own := &out.Own6; a.Is6() && !own.IsValid() {
			*own = a
		}
	}
	if !out.RouterID.IsValid() {
		out.RouterID = r.id
	}
	return out
}

// routerID is the BGP identifier of a node: its IPv4 address, or a number made of its name (RFC 6286 asks only for a
// number that is unique within the AS) that looks like the address of a host, as some routers demand.
func routerID(node string, addrs []netip.Addr) netip.Addr {
	for _, a := range addrs {
		if a.Is4() {
			return a
		}
	}
	h := fnv.New32a()
	h.Write([]byte(node))
	n := h.Sum32() | 1
	return netip.AddrFrom4([4]byte{byte(n>>24)%223 + 1, byte(n >> 16), byte(n >> 8), byte(n)})
}
