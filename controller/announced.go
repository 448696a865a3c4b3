package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/speaker/announce"
)

// Reasons of the condition Announced.
const (
	reasonAnnounced       = "Announced"       // every address is announced by someone
	reasonPending         = "Pending"         // a speaker is about to
	reasonNoAdvertisement = "NoAdvertisement" // no L2Advertisement or BGPAdvertisement selects an address
	reasonNoEndpoint      = "NoReadyEndpoint" // nothing could answer
	reasonNoNode          = "NoEligibleNode"  // an advertisement selects it, but no node can announce it
	reasonSessionDown     = "SessionDown"     // by BGP only, and no session with the peers is up
	reasonConflict        = "AddressConflict" // a stranger on the local network uses an address
)

// reports is what the live speakers say, by what it is about. What a dead one wrote last is no longer true.
type reports struct {
	nodes     []string                                    // all, sorted
	conflicts map[netip.Addr]string                       // the first on each address
	layer2    map[netip.Addr][]string                     // who answers for an address, sorted by node
	sessions  map[string]map[string]v1beta1.SessionStatus // by node and peer
}

func readReports(view *announce.View, speakers map[string]*v1beta1.Speaker) *reports {
	r := &reports{
		nodes:     slices.Sorted(maps.Keys(view.Nodes)),
		conflicts: map[netip.Addr]string{}, layer2: map[netip.Addr][]string{}, sessions: map[string]map[string]v1beta1.SessionStatus{},
	}
	for _, node := range r.nodes {
		sp := speakers[node]
		if sp == nil || !view.Nodes[node].Alive {
			continue
		}
		for _, c := range sp.Status.Conflicts {
			addr, err := netip.ParseAddr(c.Address)
			if _, known := r.conflicts[addr]; err == nil && !known {
				r.conflicts[addr] = fmt.Sprintf("%s uses it on the network of %s of node %s; free the address or exclude it from its pool", c.HardwareAddress, c.Interface, node)
			}
		}
		for _, l := range sp.Status.Layer2 {
			if addr, err := netip.ParseAddr(l.Address); err == nil {
				r.layer2[addr] = append(r.layer2[addr], fmt.Sprintf("by %s from node %s on %s", neighbourProtocol(addr), node, strings.Join(l.Interfaces, ", ")))
			}
		}
		r.sessions[node] = make(map[string]v1beta1.SessionStatus, len(sp.Status.Sessions))
		for _, ses := range sp.Status.Sessions {
			r.sessions[node][ses.Peer] = ses
		}
	}
	return r
}

// announced is the condition Announced of a Service: what the speakers say they do about each of its addresses, and if
// that is nothing, why, as announce decides it. The snapshot must be locked.
func announced(s *snapshot.Snapshot, r *reports, addrs []netip.Addr) metav1.Condition {
	c := metav1.Condition{Type: v1beta1.ConditionAnnounced, Status: metav1.ConditionTrue, Reason: reasonAnnounced}
	var texts []string
	for _, addr := range addrs {
		by, reason, why := announcedAddr(s, r, addr)
		if reason == "" {
			texts = append(texts, fmt.Sprintf("%s %s", addr, by))
			continue
		}
		if c.Status == metav1.ConditionTrue {
			c.Status, c.Reason = metav1.ConditionFalse, reason
		}
		texts = append(texts, fmt.Sprintf("%s is not announced: %s", addr, why))
	}
	c.Message = strings.Join(texts, "; ")
	return c
}

// announcedAddr says by whom an address is announced, or else why it is not.
func announcedAddr(s *snapshot.Snapshot, r *reports, addr netip.Addr) (by, reason, why string) {
	if conflict, ok := r.conflicts[addr]; ok {
		return "", reasonConflict, conflict
	}
	view, claims := s.View(), s.ClaimsOn(addr)
	how := slices.Clone(r.layer2[addr])

	var from, down, whys []string
	advertised, trying := false, false // trying: it is too early to say why a session is down
	weights := newWeights(view)
	for _, node := range r.nodes {
		d := view.ForBGP(node, addr, claims)
		advertised = advertised || d.Advertised
		if d.Why != "" {
			if d.Advertised {
				whys = append(whys, node+": "+d.Why)
			}
			continue
		}
		sessions := r.sessions[node]
		up := slices.ContainsFunc(d.Exports, func(e announce.Export) bool { return sessions[e.Peer].State == "Established" })
		if up {
			from = append(from, node)
			weights.add(view, node, d.Exports)
			continue
		}
		for _, e := range d.Exports {
			ses := sessions[e.Peer]
			trying = trying || ses.LastError == ""
			down = append(down, strings.TrimSpace(fmt.Sprintf("%s: the session with BGPPeer %s is %s %s", node, e.Peer, cmp.Or(ses.State, "not open"), ses.LastError)))
		}
	}
	if len(from) > 0 {
		how = append(how, "by BGP from "+few(from)+weights.mixed())
	}
	if len(how) > 0 {
		return strings.Join(how, " and "), "", ""
	}

	l2 := s.Layer2().Explain(addr)
	switch {
	case !slices.ContainsFunc(claims, func(c announce.Claim) bool { return c.HasEndpoint(addr) }):
		return "", reasonNoEndpoint, "the Service has no ready endpoint"
	case !l2.Advertised && !advertised:
		return "", reasonNoAdvertisement, l2.Why + ", and no BGPAdvertisement; create one or change the selectors of one"
	case l2.Owner != "":
		return "", reasonPending, "node " + l2.Owner + " is about to announce it"
	case len(down) > 0 && trying:
		return "", reasonPending, few(down)
	case len(down) > 0:
		return "", reasonSessionDown, few(down)
	case l2.Advertised:
		whys = append([]string{l2.Why}, whys...)
	}
	return "", reasonNoNode, few(whys)
}

// weights are the nodes that announce an address to a router and prefix without weight, and those that do with one.
type weights map[string]*[2][]string

// newWeights is nil where no BGPAdvertisement is weighted, and then there is nothing to say.
func newWeights(view *announce.View) weights {
	if !slices.ContainsFunc(view.Config.BGP, func(ad config.BGPAdvertisement) bool { return ad.Weighted }) {
		return nil
	}
	return weights{}
}

func (w weights) add(view *announce.View, node string, exports []announce.Export) {
	if w == nil {
		return
	}
	for _, e := range exports {
		router := e.Peer
		for _, p := range view.Config.Peers {
			if p.Name == e.Peer && p.Address.IsValid() { // two BGPPeers may be one router, for different nodes
				router = netip.AddrPortFrom(p.Address, p.Port).String() + p.VRF
			}
		}
		key := router + " " + e.Prefix.String()
		if w[key] == nil {
			w[key] = &[2][]string{}
		}
		with := 0
		if e.Bandwidth > 0 {
			with = 1
		}
		w[key][with] = append(w[key][with], node)
	}
}

// mixed says that weights have no effect because some nodes send none; "" if there is no such prefix.
func (w weights) mixed() string {
	for _, key := range slices.Sorted(maps.Keys(w)) {
		if nodes := w[key]; len(nodes[0]) > 0 && len(nodes[1]) > 0 {
			return fmt.Sprintf(" (weighted in vain: %s announce it without a weight, for which routers ignore those of the others; have one weighted BGPAdvertisement select all the nodes)", few(nodes[0]))
		}
	}
	return ""
}

func neighbourProtocol(a netip.Addr) string {
	if a.Is4() {
		return "ARP"
	}
	return "NDP"
}

// few lists some of many.
func few(all []string) string {
	const most = 5
	if n := len(all); n > most {
		return strings.Join(all[:most], ", ") + fmt.Sprintf(" and %d more", n-most)
	}
	return strings.Join(all, ", ")
}
