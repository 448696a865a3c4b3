package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/digest"
)

// group are addresses that the same nodes announce to the same peers in the same way: what is said of their routes is
// worked out once for all of them, and again only when a node that may have routes for them has changed.
type group struct {
	key   string
	addrs map[*address]bool
	nodes []string // that may have routes; nil: all
	sum   sum

	digest   digest.Sum // of addrs
	sessions []session  // in which they should be announced, whether these are up or not
}

// session is a node's sessions for one BGPPeer.
type session struct{ node, peer string }

// routed is what should be announced in a session.
type routed struct {
	sum     digest.Sum
	seen    [2]digest.Sum // what should be and what the speaker says, held down aside, as compared last
	changed time.Time     // when either of them changed last, while they do not agree
	differs bool          // they have not agreed for so long that the speaker does not merely lag behind
}

// sum is what is said of the routes of a group.
type sum struct {
	advertised bool      // a BGPAdvertisement announces the addresses
	up         string    // who announces them to whom; "" when nobody does
	down       string    // why no route reaches a peer, when none does and there are some
	differs    bool      // that is for no other reason than that speakers say another digest than they should
	young      time.Time // until when it is too early to say so
}

// join puts an address into the group that it belongs to now; into none when it has no claims.
func (b *Book) join(a *address) {
	key, nodes := "", []string(nil)
	if len(a.claims) > 0 {
		key, nodes = b.key(a)
	}
	g := a.group
	if g != nil && g.key == key {
		return
	}
	if g != nil {
		b.route(g, -a.sum)
		if delete(g.addrs, a); len(g.addrs) == 0 {
			delete(b.groups, g.key)
			for _, node := range g.index() {
				delete(b.byNode[node], g)
			}
		}
		a.group = nil
	}
	if key == "" {
		return
	}
	if g = b.groups[key]; g == nil {
		g = &group{key: key, addrs: map[*address]bool{}, nodes: nodes}
		b.groups[key], b.stale[g] = g, true
		for _, node := range g.index() {
			if b.byNode[node] == nil {
				b.byNode[node] = map[*group]bool{}
			}
			b.byNode[node][g] = true
		}
	}
	g.addrs[a] = true
	a.group = g
	b.route(g, a.sum)
}

// route takes in that addresses have come to a group, by their digest, or have gone, by its negative.
func (b *Book) route(g *group, change digest.Sum) {
	g.digest += change
	b.expect(g.sessions, change)
}

// expect adds to the digests of what should be announced in some sessions.
func (b *Book) expect(sessions []session, change digest.Sum) {
	for _, in := range sessions {
		if b.routed[in] == nil {
			b.routed[in] = &routed{}
		}
		b.routed[in].sum += change
		b.doubted[in] = true
	}
}

// lag is for how long what a speaker says may differ from what it should before it says so: it writes less often the more
// speakers there are.
func (b *Book) lag() time.Duration { return Youth + time.Duration(len(b.speakers))*20*time.Millisecond }

// verifyRoutes compares what speakers say that they announce in their sessions with what they should, and returns when it
// has to be looked at again; zero: when something has changed.
func (b *Book) verifyRoutes(now time.Time) (again time.Time) {
	for in := range b.doubted {
		x, sp := b.routed[in], b.speakers[in.node]
		if x == nil || sp == nil || !b.alive(in.node) {
			delete(b.doubted, in)
			continue
		}
		seen := [2]digest.Sum{x.sum, sp.digests[in.peer]}
		for addr := range sp.heldDown {
			if a := b.addrs[addr]; a != nil && a.group != nil && slices.Contains(a.group.sessions, in) {
				seen[0] -= a.sum
			}
		}
		differs := false
		if _, says := sp.digests[in.peer]; !says || sp.heldMore || seen[0] == seen[1] {
			delete(b.doubted, in)
			x.changed = time.Time{}
		} else {
			if x.changed.IsZero() || x.seen != seen {
				x.changed = now
			}
			due := x.changed.Add(b.lag())
			if differs = !now.Before(due); !differs && (again.IsZero() || due.Before(again)) {
				again = due
			}
			differs = differs || x.differs
		}
		if x.seen = seen; x.differs != differs {
			x.differs = differs
			b.staleAt(in.node)
		}
	}
	return again
}

// staleAt has the groups evaluated anew in which a node may have routes.
func (b *Book) staleAt(node string) {
	for _, in := range []string{"", node} {
		for g := range b.byNode[in] {
			b.stale[g] = true
		}
	}
}

// evaluateStale evaluates the groups that are stale.
func (b *Book) evaluateStale(now time.Time) {
	for g := range b.stale {
		if b.groups[g.key] != g {
			continue
		}
		if was := g.sum; b.evaluate(g, now) != was {
			for a := range g.addrs {
				b.touched[a.addr] = true
			}
		}
	}
	clear(b.stale)
}

// index are the keys of a group in Book.byNode; "" stands for all nodes.
func (g *group) index() []string {
	if g.nodes == nil {
		return []string{""}
	}
	return g.nodes
}

// key is the same for addresses of which announce.View.ForBGP says the same on every node, apart from the prefix: it
// depends on the advertisements that admit a claim, on why others do not, and on where the endpoints of the admitted claims are. nodes are those
// that can have routes, nil when that are all.
func (b *Book) key(a *address) (key string, nodes []string) {
	pool := b.view.PoolOf(a.addr)
	var k strings.Builder
	fmt.Fprint(&k, a.addr.Is4(), pool == "")
	everywhere := false
	for i := range b.view.Config.BGP {
		ad := &b.view.Config.BGP[i]
		mine, refused := b.view.Admitted(ad, a.addr, a.claims)
		if len(mine) == 0 {
			if refused != "" {
				fmt.Fprintf(&k, " %s: %s", ad.Name, refused)
			}
			continue
		}
		fmt.Fprintf(&k, " %s", ad.Name)
		if slices.ContainsFunc(mine, func(c announce.Claim) bool { return c.Anywhere(a.addr) }) {
			everywhere = true
			continue
		}
		for _, c := range mine {
			own := b.view.Own(a.addr, []announce.Claim{c}) // those whose endpoints all terminate announce it, too
			fmt.Fprintf(&k, " %s %s %v %v", c.Type, c.Service.Key(), c.EndpointNodes(a.addr), own)
			nodes = append(nodes, own...)
		}
	}
	if everywhere {
		return k.String(), nil
	}
	slices.Sort(nodes)
	return k.String(), append([]string{}, slices.Compact(nodes)...)
}

// evaluate works out what is said of a group's routes.
func (b *Book) evaluate(g *group, now time.Time) sum {
	var a *address
	for a = range g.addrs {
		break
	}
	nodes := g.nodes
	if nodes == nil {
		nodes = b.nodes()
	}
	routes, _, advertised := b.routes(a, nodes, now)
	if len(nodes) == 0 {
		advertised = b.advertised(a)
	}
	s := sum{advertised: advertised, differs: len(routes) > 0}
	var from, to []string
	down := map[string][]string{}
	b.expect(g.sessions, -g.digest)
	g.sessions = g.sessions[:0]
	for _, r := range routes {
		if in := (session{r.Node, r.Peer}); !slices.Contains(g.sessions[max(0, len(g.sessions)-1):], in) {
			g.sessions = append(g.sessions, in)
		}
		s.differs = s.differs && r.Problem == differs
		if r.Problem == "" {
			from, to = with(from, r.Node), with(to, r.Peer)
			continue
		}
		why := "BGPPeer " + r.Peer + ": " + r.Problem
		if r.Problem == NotAlive { // sorted behind those of the living, who know more
			why = NotAlive
		}
		down[why] = with(down[why], r.Node)
		if r.young.After(s.young) {
			s.young = r.young
		}
	}
	b.expect(g.sessions, g.digest)
	if len(from) > 0 {
		s.up = "by BGP to " + named("peers", to) + " from " + named("nodes", from) + b.mixed(routes)
		s.young = time.Time{}
	} else {
		s.down = summary(down)
	}
	g.sum = s
	return s
}

// advertised says whether a BGPAdvertisement announces an address that no node can serve.
func (b *Book) advertised(a *address) bool {
	for node := range b.view.Nodes {
		return b.view.ForBGP(node, a.addr, a.claims).Advertised
	}
	return false
}

// routes are what some nodes have for their peers, and the others of them by why they have nothing.
func (b *Book) routes(a *address, nodes []string, now time.Time) (routes []Route, none map[string][]string, advertised bool) {
	none = map[string][]string{}
	for _, node := range nodes {
		if b.view.Nodes[node] == nil {
			continue
		}
		d := b.view.ForBGP(node, a.addr, a.claims)
		if !d.Advertised { // on no node
			none[d.Why] = nodes
			return nil, none, false
		}
		advertised = true
		if len(d.Exports) == 0 {
			none[d.Why] = append(none[d.Why], node)
		}
		if routes == nil && len(d.Exports) > 0 {
			routes = make([]Route, 0, len(nodes)*len(d.Exports)) // the most, where all nodes are alike
		}
		for _, e := range d.Exports {
			st := b.state(node, e.Peer, a.addr, now)
			routes = append(routes, Route{node, e.Peer, e.Prefix, st.problem, e.Bandwidth > 0, st.young})
		}
	}
	return routes, none, advertised
}

// state is what becomes of what a node has for a peer.
func (b *Book) state(node, peer string, addr netip.Addr, now time.Time) state {
	sp := b.speakers[node]
	if !b.alive(node) || sp == nil {
		return state{problem: NotAlive}
	}
	if st, ok := sp.sessions[peer]; ok {
		family := "IPv6"
		if addr.Is4() {
			family = "IPv4"
		}
		if st.problem == "" && len(st.families) > 0 && !strings.Contains(st.families, family) {
			return state{problem: "the session carries no " + family}
		}
		if x := b.routed[session{node, peer}]; st.problem == "" && x != nil && x.differs {
			return state{problem: differs}
		}
		return st.at(now)
	}
	st := state{problem: "not open"}
	if p := b.peers[peer]; p != nil {
		st.since = p.Created
	}
	return st.at(now)
}

// mixed says that weights have no effect because a router gets a prefix from some nodes without one; "" if none does.
func (b *Book) mixed(routes []Route) string {
	if !b.weighted {
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
		if p := b.peers[r.Peer]; p != nil && p.Address.IsValid() { // two BGPPeers may be one router, for different nodes
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
			return fmt.Sprintf(" (the weights have no effect: %s announce it without one, so that routers ignore those of the other nodes; have one weighted BGPAdvertisement select all the nodes)", named("nodes", plain[to]))
		}
	}
	return ""
}
