// Package verdict says of an address who announces it, or why nobody does: it puts what the speakers say that they do
// beside what they should do, as announce decides it. The condition Announced and the answers of kubectl clarion are both
// made of it. It is pure.
package verdict

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
)

// Reasons of verdicts, which are those of the condition Announced.
const (
	Announced       = "Announced"       // by someone
	Pending         = "Pending"         // a speaker is about to
	NoAdvertisement = "NoAdvertisement" // no L2Advertisement or BGPAdvertisement selects the address
	NoReadyEndpoint = "NoReadyEndpoint" // nothing could answer
	NoEligibleNode  = "NoEligibleNode"  // an advertisement selects it, but no node can announce it
	SessionDown     = "SessionDown"     // by BGP only, and no session with the peers is up
	AddressConflict = "AddressConflict" // a stranger on the local network uses it, whether or not it is announced
)

// Verdict is who announces an address, or why nobody does.
type Verdict struct {
	// Reason is for programs, one of those above.
	Reason string
	// Text is for people. It does not depend on how many more nodes than a few announce the address.
	Text string
	// Answers are the nodes that answer ARP or NDP for it, sorted.
	Answers []Answer
	// Routes are what nodes have for their peers, by node and peer.
	Routes []Route
	// NoRoute are the nodes that have nothing for any peer, sorted, by why.
	NoRoute map[string][]string
	// Conflicts are the claims of strangers.
	Conflicts []Conflict
}

// Answer is what a node does about an address on the local network.
type Answer struct {
	Node       string
	Interfaces []string
}

// Route is what a node announces to a peer, if there is a session.
type Route struct {
	Node, Peer string
	Prefix     netip.Prefix
	// Problem says why it does not reach the peer; "" when it does.
	Problem string

	weighted bool
	young    bool // it is too early to say why
}

// Conflict is a stranger's claim that a node has heard.
type Conflict struct {
	Node string
	v1beta1.AddressConflict
}

// Announced says whether anybody announces the address.
func (v *Verdict) Announced() bool {
	return len(v.Answers) > 0 || slices.ContainsFunc(v.Routes, func(r Route) bool { return r.Problem == "" })
}

// Youth is for how long a session that is not up, and has no error, may be said to be about to come up.
const Youth = 10 * time.Second

// Judge gives verdicts by what is known at one time. What its view refers to must not be changed while it is used.
type Judge struct {
	view      *announce.View
	now       time.Time
	nodes     []string // sorted
	answers   map[netip.Addr][]Answer
	conflicts map[netip.Addr][]Conflict
	sessions  map[session]state
	peers     map[string]*config.Peer
	weighted  bool // a BGPAdvertisement is
}

type session struct{ node, peer string }

// state is what becomes of the routes in a session.
type state struct {
	problem string
	young   bool
}

// New is a Judge. Of the speakers, those count that are alive in the view: what a dead one wrote last is no longer true.
func New(view *announce.View, speakers map[string]*v1beta1.Speaker, now time.Time) *Judge {
	j := &Judge{
		view: view, now: now, nodes: slices.Sorted(maps.Keys(view.Nodes)), answers: map[netip.Addr][]Answer{},
		conflicts: map[netip.Addr][]Conflict{}, sessions: map[session]state{}, peers: map[string]*config.Peer{},
		weighted: slices.ContainsFunc(view.Config.BGP, func(ad config.BGPAdvertisement) bool { return ad.Weighted }),
	}
	for i := range view.Config.Peers {
		p := &view.Config.Peers[i]
		j.peers[p.Name] = p
	}
	for _, node := range j.nodes {
		sp := speakers[node]
		if sp == nil || !view.Nodes[node].Alive {
			continue
		}
		for _, c := range sp.Status.Conflicts {
			if addr, err := netip.ParseAddr(c.Address); err == nil {
				j.conflicts[addr] = append(j.conflicts[addr], Conflict{node, c})
			}
		}
		for _, l := range sp.Status.Layer2 {
			if addr, err := netip.ParseAddr(l.Address); err == nil {
				j.answers[addr] = append(j.answers[addr], Answer{node, l.Interfaces})
			}
		}
		for _, p := range sp.Status.Problems {
			if peer, ok := strings.CutPrefix(p.Object, "BGPPeer/"); ok {
				j.sessions[session{node, peer}] = state{problem: "not open: " + p.Message}
			}
		}
		for _, s := range sp.Status.Sessions {
			st := state{}
			if s.State != Established {
				st.problem = SessionState(s)
				st.young = s.LastError == "" && s.Since != nil && j.young(s.Since.Time)
			}
			j.sessions[session{node, s.Peer}] = st
		}
	}
	return j
}

// Established is the state of a session in which routes are exchanged (RFC 4271 section 8.2.2).
const Established = "Established"

// SessionState is the state of a session that is not up, with the reason where there is one.
func SessionState(s v1beta1.SessionStatus) string {
	if s.LastError == "" {
		return s.State
	}
	return s.State + " (" + s.LastError + ")"
}

// young says whether something was a short while ago, by the clock of whatever machine.
func (j *Judge) young(t time.Time) bool { return j.now.Sub(t).Abs() < Youth }

// NotAlive is why nothing reaches anybody from a node whose speaker is not alive.
const NotAlive = "its speaker is not alive"

// state is what becomes of what a node has for a peer.
func (j *Judge) state(node, peer string) state {
	if !j.view.Nodes[node].Alive {
		return state{problem: NotAlive}
	}
	if st, ok := j.sessions[session{node, peer}]; ok {
		return st
	}
	p := j.peers[peer]
	return state{problem: "not open", young: p != nil && j.young(p.Created)}
}

// Of is the verdict on an address that Services claim.
func (j *Judge) Of(addr netip.Addr, claims []announce.Claim) Verdict {
	v := Verdict{Answers: j.answers[addr], Conflicts: j.conflicts[addr], NoRoute: map[string][]string{}}
	byBGP, young := false, false
	for _, node := range j.nodes {
		d := j.view.ForBGP(node, addr, claims)
		byBGP = byBGP || d.Advertised
		if !d.Advertised { // on no node
			v.NoRoute[d.Why] = j.nodes
			break
		}
		if len(d.Exports) == 0 {
			v.NoRoute[d.Why] = append(v.NoRoute[d.Why], node)
		}
		if v.Routes == nil && len(d.Exports) > 0 {
			v.Routes = make([]Route, 0, len(j.nodes)*len(d.Exports)) // the most, where all nodes are alike
		}
		for _, e := range d.Exports {
			st := j.state(node, e.Peer)
			v.Routes = append(v.Routes, Route{node, e.Peer, e.Prefix, st.problem, e.Bandwidth > 0, st.young})
			young = young || st.young
		}
	}

	if by := j.by(addr, &v); by != "" {
		v.Reason, v.Text = Announced, by
		if len(v.Conflicts) > 0 {
			v.Reason, v.Text = AddressConflict, by+", but "+v.Conflicts[0].text(" too,")
		}
		return v
	}
	l2 := j.view.ExplainLayer2(addr, claims)
	set := func(reason, text string) { v.Reason, v.Text = reason, text }
	switch {
	case len(v.Conflicts) > 0:
		set(AddressConflict, v.Conflicts[0].text(""))
	case !slices.ContainsFunc(claims, func(c announce.Claim) bool { return c.HasEndpoint(addr) }):
		set(NoReadyEndpoint, "the Service has no ready endpoint")
	case !l2.Advertised && !byBGP:
		why := "no BGPAdvertisement announces it"
		if slices.ContainsFunc(claims, func(c announce.Claim) bool { return c.Type == v1beta1.AddressLoadBalancerIP }) {
			why = l2.Why + ", and no BGPAdvertisement"
		}
		set(NoAdvertisement, why+"; create one or change the selectors of one")
	case l2.Owner != "":
		set(Pending, "node "+l2.Owner+" is about to announce it")
	case len(v.Routes) > 0:
		down := map[string][]string{}
		for _, r := range v.Routes {
			why := "BGPPeer " + r.Peer + ": " + r.Problem
			if r.Problem == NotAlive { // sorted behind those of the living, who know more
				why = NotAlive
			}
			down[why] = with(down[why], r.Node)
		}
		set(SessionDown, "no BGP session for it is up: "+sum(down))
		if young {
			v.Reason = Pending
		}
	default:
		var whys []string
		if l2.Advertised {
			whys = append(whys, l2.Why)
		}
		if byBGP {
			whys = append(whys, sum(v.NoRoute))
		}
		set(NoEligibleNode, strings.Join(whys, "; "))
	}
	return v
}

func (c *Conflict) text(too string) string {
	return fmt.Sprintf("%s uses it%s on the network of %s of node %s; free the address or exclude it from its pool", c.HardwareAddress, too, c.Interface, c.Node)
}

// by says who announces an address, "" if nobody does.
func (j *Judge) by(addr netip.Addr, v *Verdict) string {
	var how, nodes, peers []string
	protocol := "NDP"
	if addr.Is4() {
		protocol = "ARP"
	}
	for _, a := range v.Answers {
		how = append(how, fmt.Sprintf("by %s from node %s on %s", protocol, a.Node, strings.Join(a.Interfaces, ", ")))
	}
	for _, r := range v.Routes {
		if r.Problem == "" {
			nodes, peers = with(nodes, r.Node), with(peers, r.Peer)
		}
	}
	if len(nodes) > 0 {
		how = append(how, "by BGP to "+named("peers", peers)+" from "+named("nodes", nodes)+j.mixed(v.Routes))
	}
	return strings.Join(how, " and ")
}

// mixed says that weights have no effect because a router gets a prefix from some nodes without one; "" if none does.
func (j *Judge) mixed(routes []Route) string {
	if !j.weighted {
		return ""
	}
	type path struct {
		router string
		prefix netip.Prefix
	}
	var paths []path
	weighted, plain := map[path]bool{}, map[path][]string{}
	for _, r := range routes {
		if r.Problem != "" {
			continue
		}
		to := path{r.Peer, r.Prefix}
		if p := j.peers[r.Peer]; p != nil && p.Address.IsValid() { // two BGPPeers may be one router, for different nodes
			to.router = netip.AddrPortFrom(p.Address, p.Port).String() + p.VRF
		}
		if paths = append(paths, to); r.weighted {
			weighted[to] = true
		} else {
			plain[to] = with(plain[to], r.Node)
		}
	}
	for _, to := range paths {
		if weighted[to] && len(plain[to]) > 0 {
			return fmt.Sprintf(" (weighted in vain: %s announce it without a weight, for which routers ignore those of the others; have one weighted BGPAdvertisement select all the nodes)", named("nodes", plain[to]))
		}
	}
	return ""
}

// few is how many of anything are named.
const few = 5

// with adds a name to those that named is to list.
func with(names []string, name string) []string {
	if len(names) > few || slices.Contains(names, name) {
		return names
	}
	return append(names, name)
}

// named lists names, or says that there are more than a few: what is said of thousands of Services must not change with
// each node that comes or goes.
func named(what string, names []string) string {
	if len(names) > few {
		return fmt.Sprintf("more than %d %s", few, what)
	}
	return strings.Join(slices.Sorted(slices.Values(names)), ", ")
}

// sum lists a few reasons, each with its nodes.
func sum(whys map[string][]string) string {
	var out []string
	for _, why := range slices.Sorted(maps.Keys(whys)) {
		if len(out) == few {
			out = append(out, "and more")
			break
		}
		out = append(out, named("nodes", whys[why])+": "+why)
	}
	return strings.Join(out, "; ")
}
