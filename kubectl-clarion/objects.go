package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/explain"
	"github.com/clarionlb/clarion/internal/plan"
	"github.com/clarionlb/clarion/internal/pool"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/internal/text"
)

// begin is an explanation of an object that says nothing yet.
func (c *cluster) begin(kind, name string) explanation {
	return explanation{Object: kind + "/" + name, NotShown: c.notShown()}
}

// answer sets the answer, and whether it is a good one; what is decided without knowing all is none.
func (e *explanation) set(c *cluster, fine bool, format string, args ...any) {
	if e.Answer = fmt.Sprintf(format, args...); !c.blind() {
		e.Fine = &fine
	}
}

func (e *explanation) fact(label, format string, args ...any) {
	e.Facts = append(e.Facts, line{label, fmt.Sprintf(format, args...)})
}

// lines adds a section, unless it is empty.
func (e *explanation) lines(title string, lines ...line) {
	if len(lines) > 0 {
		e.Sections = append(e.Sections, section{title, lines})
	}
}

// ready adds what the controller says of an object, and says whether it is well.
func (e *explanation) ready(c *cluster, of *object) bool {
	fine := true
	for _, t := range []string{v1beta1.ConditionReady, v1beta1.ConditionConflict, v1beta1.ConditionEstablished} {
		cond := meta.FindStatusCondition(of.conditions, t)
		switch {
		case cond != nil:
			e.fact(t, "%s, %s: %s", cond.Status, cond.Reason, cond.Message)
			fine = fine && (cond.Status == metav1.ConditionTrue) != (t == v1beta1.ConditionConflict)
			if cond.ObservedGeneration > 0 && cond.ObservedGeneration < of.generation {
				e.fact("", "from before the last edit, which the controller has not looked at")
				fine = false
			}
		case t == v1beta1.ConditionReady:
			e.fact(t, "the controller has not looked at it")
			fine = false
		}
	}
	return fine
}

// object is a configuration object by its kind and name.
func (c *cluster) object(kind, name string) (*object, error) {
	for i := range c.objects {
		if c.objects[i].name == kind+"/"+name {
			return &c.objects[i], nil
		}
	}
	if err := c.hidden[kind]; err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("there is no %s %s", kind, name)
}

// holders are the Services that have an address, or addresses in a pool, by address.
func (c *cluster) holders(in func(netip.Addr) bool) map[netip.Addr][]string {
	out := map[netip.Addr][]string{}
	for _, addr := range c.snap.All() {
		if in(addr) {
			for _, claim := range c.snap.ClaimsOn(addr) {
				out[addr] = append(out[addr], claim.Service.Key())
			}
			out[addr] = slices.Compact(out[addr])
		}
	}
	return out
}

func sortedAddrs[V any](m map[netip.Addr]V) []netip.Addr {
	return slices.SortedFunc(maps.Keys(m), netip.Addr.Compare)
}

func explainPool(_ context.Context, c *cluster, _ *connection, name string) (explanation, error) {
	o, err := c.object("IPAddressPool", name)
	if err != nil {
		return explanation{}, err
	}
	p := c.pools[slices.IndexFunc(c.pools, func(p *v1beta1.IPAddressPool) bool { return p.Name == name })]
	e, s := c.begin("IPAddressPool", name), p.Status
	var ranges []string
	for _, r := range p.Spec.Addresses {
		ranges = append(ranges, string(r))
	}
	e.fact("Addresses", "%s", text.Few(ranges))
	fine := e.ready(c, o)
	parsed, _ := pool.Parse(p)
	if !parsed.AutoAssign {
		e.fact("Assigns", "only to Services that ask for it by name")
	}
	used, free := s.AssignedIPv4+s.AssignedIPv6, s.AvailableIPv4+s.AvailableIPv6
	said := fmt.Sprintf("%s: IPv4: %d used, %d free; IPv6: %d used, %d free", name, s.AssignedIPv4, s.AvailableIPv4, s.AssignedIPv6, s.AvailableIPv6)
	if free == 0 && used > 0 {
		said += "; it is full"
		fine = false
	}
	var ways []line
	for i := range c.snap.View().Config.L2 {
		if ad := &c.snap.View().Config.L2[i]; ad.Pools.Has(name) {
			ways = append(ways, line{"layer 2", "L2Advertisement " + ad.Name})
		}
	}
	for i := range c.snap.View().Config.BGP {
		if ad := &c.snap.View().Config.BGP[i]; ad.Pools.Has(name) && ad.Types[v1beta1.AddressLoadBalancerIP] {
			ways = append(ways, line{"BGP", "BGPAdvertisement " + ad.Name})
		}
	}
	if len(ways) == 0 && !c.blind() {
		said, fine = said+", but no advertisement announces them", false
	}
	e.set(c, fine, "%s.", said)
	e.lines("Announced by", ways...)
	var held []line
	holders := c.holders(func(a netip.Addr) bool { return c.snap.View().PoolOf(a) == name })
	for _, a := range sortedAddrs(holders) {
		held = append(held, line{Text: fmt.Sprintf("%s  %s", a, strings.Join(holders[a], ", "))})
	}
	e.lines("Used", held...)
	var others []line
	for _, a := range s.Kept {
		others = append(others, line{"kept", a + ": a Service has it, though the pool no longer does"})
	}
	for _, a := range s.Quarantined {
		others = append(others, line{"foreign", a + ": another host uses it"})
	}
	for _, r := range s.Resting {
		others = append(others, line{"resting", fmt.Sprintf("%s: was %s's, free at %s", r.Address, r.Service, stamp(r.Until.Time))})
	}
	e.lines("Not free", others...)
	return e, nil
}

// selected are the nodes that selectors match.
func (c *cluster) selected(nodes config.Selectors) []string {
	var out []string
	for _, name := range sortedKeys(c.snap.View().Nodes) {
		if nodes.Match(c.snap.View().Nodes[name].Labels) {
			out = append(out, name)
		}
	}
	return out
}

func explainPeer(_ context.Context, c *cluster, _ *connection, name string) (explanation, error) {
	o, err := c.object("BGPPeer", name)
	if err != nil {
		return explanation{}, err
	}
	e := c.begin("BGPPeer", name)
	spec := c.snap.BGPPeer(name).Spec
	where := cmp.Or(spec.PeerAddress, spec.Interface)
	if where == "" {
		where = "the gateway of the default route"
	}
	e.fact("Router", "%s", where)
	fine := e.ready(c, o)
	i := slices.IndexFunc(c.snap.View().Config.Peers, func(p config.Peer) bool { return p.Name == name })
	if i < 0 {
		e.set(c, false, "%s is not usable, so that no session is opened.", name)
		return e, nil
	}
	p := &c.snap.View().Config.Peers[i]
	asn := fmt.Sprint(p.PeerASN)
	if p.PeerASN == 0 {
		asn = cmp.Or(p.Dynamic, "any")
	}
	e.fact("AS", "%s, ours is %d", asn, p.LocalASN)
	up := 0
	var sessions []line
	of := c.sessionsWith(p)
	for _, x := range of {
		if x.up {
			up++
		}
		sessions = append(sessions, line{x.node, x.text})
	}
	var ads []line
	for i := range c.snap.View().Config.BGP {
		if ad := &c.snap.View().Config.BGP[i]; ad.Peers.Has(name) {
			ads = append(ads, line{Text: "BGPAdvertisement " + ad.Name})
		}
	}
	said := fmt.Sprintf("%s: %d of %d sessions are up", name, up, len(of))
	switch {
	case len(of) == 0:
		said, fine = said+": its nodeSelectors match no node", false
	case len(ads) == 0:
		said, fine = said+", but no BGPAdvertisement announces anything to it", false
	}
	e.set(c, fine && up == len(of), "%s.", said)
	e.lines("Sessions", sessions...)
	e.lines("Announced to it by", ads...)
	return e, nil
}

// peering is a session that a node has or should have with a peer.
type peering struct {
	node string
	is   *v1beta1.SessionStatus // nil: it is not open
	up   bool
	text string
}

// sessionsWith are the sessions with a peer, by node.
func (c *cluster) sessionsWith(p *config.Peer) (out []peering) {
	for _, node := range c.selected(p.Nodes) {
		sp := c.speakers[node]
		if !c.alive[node] {
			out = append(out, peering{node: node, text: explain.NotAlive})
			continue
		}
		said, problems := "not open", ""
		for _, q := range sp.Status.Problems {
			if q.Object == "BGPPeer/"+p.Name {
				problems += ": " + q.Message
			}
		}
		before := len(out)
		for i := range sp.Status.Sessions {
			s := &sp.Status.Sessions[i]
			if s.Peer != p.Name {
				continue
			}
			x := peering{node: node, is: s, up: s.State == v1beta1.Established}
			if said = explain.SessionState(*s); x.up {
				said = fmt.Sprintf("up, %d IPv4 and %d IPv6 prefixes", s.PrefixesIPv4, s.PrefixesIPv6)
			}
			if s.Since != nil {
				said += ", since " + stamp(s.Since.Time)
			}
			if s.BFD != "" {
				said += ", BFD " + s.BFD
			}
			if x.up && s.LastError != "" {
				said += "; went down before that: " + s.LastError
			}
			x.text = said + problems
			out = append(out, x)
		}
		if len(out) == before {
			out = append(out, peering{node: node, text: said + problems})
		}
	}
	return out
}

func explainNode(_ context.Context, c *cluster, _ *connection, name string) (explanation, error) {
	n := c.snap.Node(name)
	if n == nil {
		if err := c.hidden["Node"]; err != nil {
			return explanation{}, err
		}
		return explanation{}, fmt.Errorf("there is no Node %s", name)
	}
	e, sp := c.begin("Node", name), c.speakers[name]
	view := c.snap.View()
	fine := c.alive[name]
	switch {
	case sp == nil:
		e.fact("Speaker", "none has run there")
	case snapshot.Ended(sp):
		e.fact("Speaker", "it has ended")
	case !c.alive[name]:
		e.fact("Speaker", "no other speaker sees it alive")
	default:
		e.fact("Speaker", "alive, %s, Ready %s", cmp.Or(sp.Status.Version, "of no version that it says"), conditionStatus(sp.Status.Conditions, v1beta1.ConditionReady))
		if m := missingOf(sp); m != "" {
			e.fact("Misses", "%s", m)
		}
		e.fact("Links", "%s", orNone(strings.Join(sp.Status.Interfaces, ", ")))
		if sp.Status.Gate != "" {
			e.fact("Gate", "attracts no traffic while others can: %s", sp.Status.Gate)
			fine = false
		}
		for _, s := range sp.Status.Sessions {
			e.fact("BGP", "%s", sessionsOf([]v1beta1.SessionStatus{s}))
			fine = fine && s.State == v1beta1.Established
		}
		for _, p := range sp.Status.Problems {
			e.fact("Problem", "%s: %s", p.Object, p.Message)
			fine = false
		}
		for _, a := range sp.Status.Conflicts {
			e.fact("Conflict", "%s: %s", a.Address, conflictText(explain.Conflict{Node: name, AddressConflict: a}))
			fine = false
		}
	}
	if why := view.Nodes[name].Excluded; why != "" {
		e.fact("Excluded", "%s", why)
	}
	if c.blind() {
		e.set(c, false, "%s: what it announces cannot be judged without what is not shown.", name)
		return e, nil
	}

	var nodes plan.Nodes
	up := plan.Sessions(c.speakers)
	before := plan.Of(c.snap, &nodes, up)
	var owns, backs []line
	answers := map[netip.Addr]bool{}
	for _, a := range c.book.AnsweredBy(name) {
		answers[a] = true
	}
	for _, addr := range sortedAddrs(before.Addresses) {
		a := before.Addresses[addr]
		said := fmt.Sprintf("%s  %s", addr, strings.Join(a.Services, ", "))
		switch {
		case a.Owner == name && !answers[addr]:
			owns, fine = append(owns, line{Text: said + ", and it is not seen to answer"}), false
		case a.Owner == name:
			owns = append(owns, line{Text: said})
		case answers[addr]:
			owns = append(owns, line{Text: said + ", though " + cmp.Or(a.Owner, "nobody") + " should"})
		case a.Backup == name:
			backs = append(backs, line{Text: said + ", after " + a.Owner})
		}
	}
	routes := before.RoutesOf(name)
	var tells []line
	for _, peer := range sortedKeys(routes) {
		said := fmt.Sprintf("%s: %s", text.Count(len(routes[peer]), "prefix"), few(routes[peer]))
		if !up(name, peer) {
			said += ", once a session is up"
		}
		tells = append(tells, line{peer, said})
	}
	said := fmt.Sprintf("%s answers for %s, is the backup of %d, and announces to %s.", name, text.Count(len(owns), "address"), len(backs), text.Count(len(tells), "peer"))
	if !c.alive[name] {
		said = name + " announces nothing: its speaker is not alive."
	}
	e.set(c, fine, "%s", said)
	e.lines("Answers for", owns...)
	e.lines("Is the backup of", backs...)
	e.lines("Announces to", tells...)
	if c.alive[name] {
		effect := c.lose(before, &nodes, name)
		lines := effectLines(effect)
		if len(lines) == 0 {
			lines = []line{{Text: "nothing would change"}}
		}
		e.lines("If it went", lines...)
	}
	return e, nil
}

// lose is what would happen if the speakers of some nodes died.
func (c *cluster) lose(before plan.Outcome, nodes *plan.Nodes, lost ...string) plan.Effect {
	rest := map[string]*v1beta1.Speaker{}
	for n := range c.alive {
		if !slices.Contains(lost, n) { // who is alive is known
			sp := *c.speakers[n]
			sp.Status.Missing, sp.Status.MissingMore = nil, 0
			rest[n] = &sp
		}
	}
	c.snap.Speakers(rest)
	c.snap.Changes()
	after := plan.Of(c.snap, nodes, plan.Sessions(rest))
	c.snap.Speakers(c.speakers)
	c.snap.Changes()
	return plan.Compare(before, after)
}

// effectLines is an effect for people.
func effectLines(e plan.Effect) (out []line) {
	for _, l := range e.Lost {
		out = append(out, line{"lost", fmt.Sprintf("%s of %s: nobody would announce it: %s", l.Address, strings.Join(l.Services, ", "), l.Why)})
	}
	for _, m := range e.Moves {
		out = append(out, line{"layer 2", fmt.Sprintf("%s of %s moves from %s to %s", m.Address, strings.Join(m.Services, ", "), cmp.Or(m.From, "nobody"), cmp.Or(m.To, "nobody"))})
	}
	for _, x := range []struct {
		label  string
		routes []plan.Routes
	}{{"added", e.Added}, {"withdrawn", e.Withdrawn}, {"changed", e.Changed}} {
		out = append(out, routeLines(x.label, x.routes)...)
	}
	if e.Flows > 0 {
		out = append(out, line{"flows", fmt.Sprintf("TCP connections through %s of an address and a node may be reset", text.Count(e.Flows, "pair"))})
	}
	return out
}

// routeLines are routes for people, by peer: one by one, or, where many come from the same nodes, counted.
func routeLines(label string, routes []plan.Routes) (out []line) {
	type from struct{ peer, nodes string }
	prefixes := map[from][]netip.Prefix{}
	of := func(r plan.Routes) from { return from{r.Peer, text.Few(r.Nodes)} }
	for _, r := range routes {
		prefixes[of(r)] = append(prefixes[of(r)], r.Prefix)
	}
	for _, r := range routes {
		switch all := prefixes[of(r)]; {
		case len(all) <= 4*text.Most:
			out = append(out, line{label, fmt.Sprintf("route %s for %s by %s", r.Prefix, r.Peer, text.Few(r.Nodes))})
		case r.Prefix == all[0]:
			out = append(out, line{label, fmt.Sprintf("%s for %s by %s: %s", text.Count(len(all), "route"), r.Peer, text.Few(r.Nodes), few(all))})
		}
	}
	return out
}

// few lists some of many prefixes, and counts the others.
func few(all []netip.Prefix) string {
	var out []string
	for _, p := range all {
		out = append(out, p.String())
	}
	return text.Few(out)
}

func explainAddress(_ context.Context, c *cluster, _ *connection, name string) (explanation, error) {
	addr, err := netip.ParseAddr(name)
	if err != nil {
		return explanation{}, fmt.Errorf("%q is no address", name)
	}
	addr = addr.Unmap()
	e := c.begin("Address", addr.String())
	if c.blind() {
		e.set(c, false, "%s cannot be judged without what is not shown.", addr)
		return e, nil
	}
	in := c.snap.View().PoolOf(addr)
	if in != "" {
		e.fact("Pool", "%s", in)
	}
	for _, p := range c.pools {
		if slices.Contains(p.Status.Quarantined, addr.String()) {
			e.fact("Foreign", "another host uses it, so that pool %s does not give it out", p.Name)
		}
		for _, r := range p.Status.Resting {
			if r.Address == addr.String() {
				e.fact("Resting", "it was %s's, and is free at %s", r.Service, stamp(r.Until.Time))
			}
		}
	}
	if has := c.snap.View().Has(addr); has != "" {
		e.fact("Has it", "%s", has)
	}
	claims := c.snap.ClaimsOn(addr)
	if len(claims) == 0 {
		if in == "" {
			e.set(c, true, "%s is in no IPAddressPool, and no Service has it.", addr)
		} else {
			e.set(c, true, "%s is in the pool %s, and no Service has it.", addr, in)
		}
		return e, nil
	}
	var of []string
	for _, cl := range claims {
		of = append(of, fmt.Sprintf("%s (%s)", cl.Service.Key(), cl.Type))
	}
	a := c.address(addr, claims[0].Type)
	e.fact("Services", "%s", strings.Join(of, ", "))
	e.Sections, e.Addresses = append(e.Sections, a.section("")), append(e.Addresses, a.report())
	if a.Announced {
		e.set(c, a.Reason == v1beta1.ReasonAnnounced, "%s is announced %s.", addr, a.Text)
	} else {
		e.set(c, false, "nobody announces %s: %s.", addr, a.Text)
	}
	return e, nil
}

// namesOf is a set of objects for people.
func namesOf(n config.Names) string {
	if n.All {
		return "all"
	}
	return orNone(strings.Join(sortedKeys(n.Set), ", "))
}

func selectorsOf(s config.Selectors) string {
	if len(s) == 0 {
		return "all"
	}
	var out []string
	for _, x := range s {
		out = append(out, cmp.Or(labels.Selector.String(x), "all"))
	}
	return strings.Join(out, " or ")
}

// explainAdvertisement explains what the two kinds of advertisements have in common.
func (c *cluster) explainAdvertisement(kind, name string, usable bool, pools config.Names, services, nodes config.Selectors) (explanation, error) {
	o, err := c.object(kind, name)
	if err != nil {
		return explanation{}, err
	}
	e := c.begin(kind, name)
	fine := e.ready(c, o)
	if !usable {
		e.set(c, false, "%s is not usable, and announces nothing.", name)
		return e, nil
	}
	e.fact("Pools", "%s", namesOf(pools))
	e.fact("Services", "%s", selectorsOf(services))
	on := c.selected(nodes)
	e.fact("Nodes", "%s: %s", selectorsOf(nodes), orNone(text.Few(on)))
	n := 0
	for _, addr := range c.snap.All() {
		if p := c.snap.View().PoolOf(addr); p == "" || !pools.Has(p) {
			continue
		}
		for _, cl := range c.snap.ClaimsOn(addr) {
			if cl.Type == v1beta1.AddressLoadBalancerIP && services.Match(cl.Service.Labels) {
				n++
				break
			}
		}
	}
	e.set(c, fine && len(on) > 0, "%s selects %s of Services of type LoadBalancer, and %s.", name, text.Count(n, "address"), text.Count(len(on), "node"))
	return e, nil
}

func explainL2(_ context.Context, c *cluster, _ *connection, name string) (explanation, error) {
	ad := config.L2Advertisement{}
	i := slices.IndexFunc(c.snap.View().Config.L2, func(a config.L2Advertisement) bool { return a.Name == name })
	if i >= 0 {
		ad = c.snap.View().Config.L2[i]
	}
	e, err := c.explainAdvertisement("L2Advertisement", name, i >= 0, ad.Pools, ad.Services, ad.Nodes)
	if i >= 0 && err == nil {
		e.fact("Links", "%s", cmp.Or(strings.Join(ad.Interfaces, ", "), "all"))
	}
	return e, err
}

func explainBGP(_ context.Context, c *cluster, _ *connection, name string) (explanation, error) {
	ad := config.BGPAdvertisement{}
	i := slices.IndexFunc(c.snap.View().Config.BGP, func(a config.BGPAdvertisement) bool { return a.Name == name })
	if i >= 0 {
		ad = c.snap.View().Config.BGP[i]
	}
	e, err := c.explainAdvertisement("BGPAdvertisement", name, i >= 0, ad.Pools, ad.Services, ad.Nodes)
	if i < 0 || err != nil {
		return e, err
	}
	var types []string
	for t := range ad.Types {
		types = append(types, string(t))
	}
	slices.Sort(types)
	e.fact("Types", "%s", strings.Join(types, ", "))
	e.fact("Peers", "%s", namesOf(ad.Peers))
	return e, nil
}

// explainUsed explains an object that others refer to.
func explainUsed(kind string, uses func(c *cluster, name string) []string) func(context.Context, *cluster, *connection, string) (explanation, error) {
	return func(_ context.Context, c *cluster, _ *connection, name string) (explanation, error) {
		o, err := c.object(kind, name)
		if err != nil {
			return explanation{}, err
		}
		e := c.begin(kind, name)
		fine := e.ready(c, o)
		by := uses(c, name)
		if len(by) == 0 {
			e.set(c, fine, "%s is used by nothing.", name)
		} else {
			e.set(c, fine, "%s is used by %s.", name, text.Few(by))
		}
		return e, nil
	}
}

// usersOfProfile are the BGPPeers with a BFDProfile.
func usersOfProfile(c *cluster, name string) (out []string) {
	for _, o := range c.objects {
		if peer, ok := strings.CutPrefix(o.name, "BGPPeer/"); ok && c.snap.BGPPeer(peer).Spec.BFDProfile == name {
			out = append(out, "BGPPeer "+peer)
		}
	}
	return out
}

// usersOfCommunity are the BGPAdvertisements that use a name that a Community defines.
func usersOfCommunity(c *cluster, name string) (out []string) {
	o, err := c.object("Community", name)
	if err != nil {
		return nil
	}
	for _, other := range c.objects {
		ad, ok := other.is.(*v1beta1.BGPAdvertisement)
		if ok && slices.ContainsFunc(o.is.(*v1beta1.Community).Spec.Communities, func(a v1beta1.CommunityAlias) bool {
			return slices.Contains(ad.Spec.Communities, v1beta1.CommunityReference(a.Name))
		}) {
			out = append(out, "BGPAdvertisement "+ad.Name)
		}
	}
	return out
}
