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
	exports := r.snapshot.View().ForBGP(r.node, addr, claims).Exports
	pass, retry := r.holddown.Filter(now, addr, len(exports) > 0)
	delete(r.heldDown, addr)
	if !pass {
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
	for _, e := range old {
		r.digests[e.Peer] -= digest.Route(addr, e.Prefix)
	}
	for _, e := range exports {
		r.digests[e.Peer] += digest.Route(addr, e.Prefix)
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

func equalExport(a, b announce.Export) bool {
	return a.Peer == b.Peer && a.Prefix == b.Prefix && a.Attrs.Equal(b.Attrs)
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
		out.BFD = bfd.Profile{Receive: b.Receive, Transmit: b.Transmit, Multiplier: b.Multiplier, Passive: b.Passive, MinTTL: b.MinimumTTL, Echo: b.Echo}
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
