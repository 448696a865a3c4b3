// Package explain says of an address who announces it, or why nobody does: it puts what the speakers say that they do
// beside what they should do, as announce decides it. The condition Announced and the answers of kubectl clarion are both
// made of it. It is pure.
//
// Speakers do not list what they announce: they write a digest of it and what differs from the decision. A Book keeps the
// digests that they should write, and follows each address, session and speaker that changes: what is explained anew is
// what the change can have touched.
package explain

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/digest"
	"github.com/clarionlb/clarion/internal/interfaces"
	"github.com/clarionlb/clarion/internal/text"
)

// Explanation is who announces an address, or why nobody does.
type Explanation struct {
	// Reason is for programs: one of the condition Announced.
	Reason string
	// Text is for people. It does not depend on how many more nodes than a few announce the address.
	Text string
	// Announced says whether anybody announces the address.
	Announced bool
}

// Detail is an Explanation with all that it rests on.
type Detail struct {
	Explanation
	// Layer2 is the decision about the address on the local network, with its candidates.
	Layer2 announce.Layer2
	// Answers are the nodes that answer ARP or NDP for it, sorted.
	Answers []Answer
	// Unanswered says why nobody answers though a node should; "" otherwise.
	Unanswered string
	// Routes are what nodes have for their peers, by node and peer.
	Routes []Route
	// NoRoute are the nodes that have nothing for any peer, sorted, by why.
	NoRoute map[string][]string
	// Conflicts are the claims of foreign hosts.
	Conflicts []Conflict
}

// Answer is a node that answers for an address on the local network.
type Answer struct {
	// Node is "" when it is known that one of the nodes answers, and not which.
	Node string
	// Interfaces that it answers on, nil when they are not known.
	Interfaces []string
}

// Route is what a node announces to a peer, if there is a session.
type Route struct {
	Node, Peer string
	Prefix     netip.Prefix
	// Problem says why it does not reach the peer; "" when it does.
	Problem string

	weighted bool
	young    time.Time // until when it is too early to say why; zero: it is not
}

// Conflict is a foreign host's claim that a node has heard.
type Conflict struct {
	Node string
	v1beta1.AddressConflict
}

// Youth is for how long a session that is not up, and has no error, may be said to be about to come up, and for how long
// a speaker may lag behind with what it says of itself.
const Youth = 10 * time.Second

// differs is why a route is not said to reach a peer though the session is up.
const differs = "its speaker announces other addresses than it should; it may see the cluster differently"

// NotAlive is why nothing reaches anybody from a node whose speaker is not alive.
const NotAlive = "its speaker is not alive"

// Book is what is known of addresses and speakers. It is not for several goroutines at once.
type Book struct {
	view     *announce.View
	peers    map[string]*config.Peer
	weighted bool // a BGPAdvertisement is

	speakers  map[string]*speaker
	conflicts map[netip.Addr][]Conflict // by what speakers say; those of dead ones do not count
	besides   map[netip.Addr][]string   // the nodes that say that they answer though another should

	addrs  map[netip.Addr]*address
	owned  map[string]*owned // by node
	groups map[string]*group
	byNode map[string]map[*group]bool // those in which a node may have routes
	routed map[session]*routed

	touched map[netip.Addr]bool
	compare map[string]bool  // nodes whose digests have to be compared
	doubted map[session]bool // the same for sessions, and those whose digests are not what they should be
	stale   map[*group]bool  // to be evaluated anew
	whole   bool             // all speakers together say the digest that they should
}

// address is what is known of one.
type address struct {
	addr      netip.Addr
	claims    []announce.Claim
	layer2    announce.Layer2
	sum       digest.Sum
	group     *group
	confirmed string // the owner that was seen to answer
}

// owned is what a node should answer for.
type owned struct {
	addrs   map[*address]bool
	sum     digest.Sum
	agrees  bool          // with what the speaker says
	changed time.Time     // when either of them changed last, while they do not; zero once the lag is over
	seen    [2]digest.Sum // what it should answer for and what it says, exceptions aside, as compared last
}

// New is an empty Book.
func New() *Book {
	return &Book{
		view: &announce.View{Config: &config.Config{}}, peers: map[string]*config.Peer{}, speakers: map[string]*speaker{},
		conflicts: map[netip.Addr][]Conflict{}, besides: map[netip.Addr][]string{}, addrs: map[netip.Addr]*address{},
		owned: map[string]*owned{}, groups: map[string]*group{}, byNode: map[string]map[*group]bool{}, routed: map[session]*routed{},
		touched: map[netip.Addr]bool{}, compare: map[string]bool{}, doubted: map[session]bool{}, stale: map[*group]bool{},
	}
}

// Use takes in a view in which the configuration or some nodes have changed. What it refers to must not be changed while
// it is used. Addresses on which another decision was made have to be Set after it.
func (b *Book) Use(view *announce.View) {
	b.view = view
	clear(b.peers)
	for i := range view.Config.Peers {
		p := &view.Config.Peers[i]
		b.peers[p.Name] = p
	}
	b.weighted = slices.ContainsFunc(view.Config.BGP, func(ad config.BGPAdvertisement) bool { return ad.Weighted })
	for _, g := range b.groups {
		b.stale[g] = true
	}
	for node := range b.speakers {
		b.compare[node] = true
	}
	for in := range b.routed {
		b.doubted[in] = true
	}
	for _, of := range []map[netip.Addr]bool{keys(b.conflicts), keys(b.besides)} { // who is dead does not count
		for addr := range of {
			b.touched[addr] = true
		}
	}
}

// Addrs are the addresses that were Set, in no order.
func (b *Book) Addrs() iter.Seq[netip.Addr] { return maps.Keys(b.addrs) }

func keys[V any](m map[netip.Addr]V) map[netip.Addr]bool {
	out := make(map[netip.Addr]bool, len(m))
	for k := range m {
		out[k] = true
	}
	return out
}

// Set takes in the Services that claim an address, none when it is to be forgotten, and the decision on who owns it on
// the local network.
func (b *Book) Set(addr netip.Addr, claims []announce.Claim, layer2 announce.Layer2) {
	a := b.addrs[addr]
	if a == nil {
		if len(claims) == 0 {
			return
		}
		a = &address{addr: addr, sum: digest.Address(addr)}
		b.addrs[addr] = a
	}
	b.touched[addr] = true
	if a.layer2.Owner != layer2.Owner {
		b.own(a, false)
		a.layer2 = layer2
		b.own(a, true)
	}
	a.claims, a.layer2 = claims, layer2
	b.join(a)
	if len(claims) == 0 {
		b.own(a, false)
		delete(b.addrs, addr)
	}
}

// own counts an address for its owner, or does so no more.
func (b *Book) own(a *address, is bool) {
	node := a.layer2.Owner
	if node == "" {
		return
	}
	o := b.owned[node]
	if o == nil {
		o = &owned{addrs: map[*address]bool{}}
		b.owned[node] = o
	}
	if is {
		o.addrs[a] = true
		o.sum += a.sum
	} else {
		delete(o.addrs, a)
		o.sum -= a.sum
	}
	a.confirmed = ""
	b.compare[node] = true
}

// Touched are the addresses whose explanation may be another one than at the last call, and when it has to be called
// again though nothing has happened; zero: never.
func (b *Book) Touched(now time.Time) (addrs []netip.Addr, again time.Time) {
	b.evaluateStale(now)
	again = b.verifyRoutes(now)
	b.evaluateStale(now)
	whole := b.agree()
	for node := range b.compare {
		b.verify(node, whole, now)
	}
	if whole != b.whole {
		b.whole = whole
		for node := range b.owned {
			if !b.compare[node] {
				b.verify(node, whole, now)
			}
		}
	}
	clear(b.compare)
	for node, o := range b.owned {
		switch due := o.changed.Add(Youth); {
		case o.agrees || !b.alive(node) || o.changed.IsZero():
		case now.Before(due):
			if again.IsZero() || due.Before(again) {
				again = due
			}
		default: // the views differ for good
			o.changed = time.Time{}
			for a := range o.addrs {
				a.confirmed = ""
				b.touched[a.addr] = true
			}
		}
	}
	for addr := range b.touched {
		addrs = append(addrs, addr)
	}
	clear(b.touched)
	return addrs, again
}

func (b *Book) alive(node string) bool {
	n := b.view.Nodes[node]
	return n != nil && n.Alive
}

// agree says whether what all living speakers say that they answer is together what it should be: then each address is
// answered by one node, though perhaps not by the one that should.
func (b *Book) agree() bool {
	var should, is digest.Sum
	for node, o := range b.owned {
		if should += o.sum; len(o.addrs) > 0 && !b.alive(node) {
			return false
		}
	}
	for node, sp := range b.speakers {
		if b.alive(node) {
			is += sp.sum
		}
	}
	return should == is
}

// verify compares what a speaker says that it answers with what it should, apart from the exceptions that it names.
func (b *Book) verify(node string, whole bool, now time.Time) {
	o, sp := b.owned[node], b.speakers[node]
	if o == nil {
		return
	}
	agrees, seen := false, [2]digest.Sum{o.sum}
	if sp != nil {
		seen[1] = sp.sum
	}
	if sp != nil && b.alive(node) && sp.more == 0 {
		want := o.sum
		for addr := range sp.unanswered {
			if a := b.addrs[addr]; a != nil && o.addrs[a] {
				want -= a.sum
			}
		}
		for addr := range sp.besides {
			if a := b.addrs[addr]; a == nil || !o.addrs[a] {
				want += digest.Address(addr)
			}
		}
		agrees = want == sp.sum
	}
	if !agrees && (o.agrees || o.seen != seen) {
		o.changed = now
	}
	o.agrees, o.seen = agrees, seen
	for a := range o.addrs {
		confirmed := ""
		switch {
		case sp == nil || sp.unanswered[a.addr] != "":
		case agrees || sp.latest[a.addr] || sp.silent || a.confirmed == node:
			confirmed = node
		case whole:
			confirmed = somebody
		}
		if confirmed != a.confirmed {
			a.confirmed = confirmed
			b.touched[a.addr] = true
		}
	}
}

// somebody stands for the node that answers for an address when it is not known which does.
const somebody = "?"

// answers are the nodes that answer for an address, sorted. If there is none, why says why, and the reason is one of the
// condition Announced, "" when no node should.
func (b *Book) answers(a *address, now time.Time) (by []Answer, reason, why string) {
	owner := a.layer2.Owner
	add := func(node string) {
		by = append(by, Answer{node, b.interfaces(node, b.view.Interfaces(a.addr, a.claims, node))})
	}
	if nodes := b.besides[a.addr]; len(nodes) > 0 {
		can := map[string]bool{} // a node's word counts for what it could announce
		for _, c := range b.view.ExplainLayer2(a.addr, a.claims).Candidates {
			can[c.Node] = c.Why == ""
		}
		for _, node := range nodes {
			if node != owner && can[node] {
				add(node)
			}
		}
	}
	o, sp := b.owned[owner], b.speakers[owner]
	switch {
	case owner == "":
	case a.confirmed == owner:
		add(owner)
	case a.confirmed == somebody && len(by) == 0:
		by = append(by, Answer{})
	case sp == nil:
		reason, why = v1beta1.ReasonPending, "node "+owner+" is about to announce it"
	case sp.unanswered[a.addr] != "":
		reason, why = v1beta1.ReasonNotAnswered, "node "+owner+" should answer for it and does not: "+sp.unanswered[a.addr]
	case !o.changed.IsZero() && now.Sub(o.changed) < Youth:
		reason, why = v1beta1.ReasonPending, "node "+owner+" is about to announce it"
	case sp.more > 0:
		reason, why = v1beta1.ReasonNotAnswered, fmt.Sprintf("node %s should answer for it, and says that it does not for %d of its addresses, more than it names", owner, sp.more+len(sp.unanswered))
	default:
		reason, why = v1beta1.ReasonViewsDiffer, "node "+owner+" should answer for it, and says that it answers for other addresses than it should; it may see the cluster differently"
	}
	if len(by) > 0 {
		reason, why = "", ""
	}
	slices.SortFunc(by, func(x, y Answer) int { return cmp.Compare(x.Node, y.Node) })
	return by, reason, why
}

// AnsweredBy are the addresses that a node is known to answer for on the local network, sorted.
func (b *Book) AnsweredBy(node string) (addrs []netip.Addr) {
	if o := b.owned[node]; o != nil {
		for a := range o.addrs {
			if a.confirmed == node {
				addrs = append(addrs, a.addr)
			}
		}
	}
	if sp := b.speakers[node]; sp != nil && b.alive(node) {
		for addr := range sp.besides {
			addrs = append(addrs, addr)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// interfaces are those of a node that names or patterns select; all that are not excluded when there are none.
func (b *Book) interfaces(node string, patterns []string) (out []string) {
	n := b.view.Nodes[node]
	if n == nil {
		return nil
	}
	for _, l := range n.Links {
		if l.Up && (len(patterns) == 0 && !l.Excluded || interfaces.Match(patterns, l.Name)) {
			out = append(out, l.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// heard are the claims on an address that living speakers have heard.
func (b *Book) heard(addr netip.Addr) (out []Conflict) {
	for _, c := range b.conflicts[addr] {
		if b.alive(c.Node) {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(x, y Conflict) int { return cmp.Compare(x.Node, y.Node) })
	return out
}

// Of explains an address that was Set.
func (b *Book) Of(addr netip.Addr, now time.Time) Explanation {
	a := b.addrs[addr]
	if a == nil {
		return Explanation{Reason: v1beta1.ReasonPending, Text: "it is not known yet"}
	}
	by, reason, why := b.answers(a, now)
	return b.explain(a, by, reason, why, b.heard(addr), now)
}

// Detail explains an address that was Set, with all that it rests on.
func (b *Book) Detail(addr netip.Addr, now time.Time) Detail {
	a := b.addrs[addr]
	if a == nil {
		return Detail{}
	}
	by, reason, why := b.answers(a, now)
	d := Detail{Layer2: b.view.ExplainLayer2(addr, a.claims), Answers: by, Unanswered: why, Conflicts: b.heard(addr)}
	d.Routes, d.NoRoute, _ = b.routes(a, b.nodes(), now)
	for i := range d.Routes {
		if r := &d.Routes[i]; r.Problem == "" && b.speakers[r.Node].heldDown[addr] {
			r.Problem = "held down: it came and went too often"
		}
	}
	d.Explanation = b.explain(a, by, reason, why, d.Conflicts, now)
	return d
}

func (b *Book) nodes() []string { return slices.Sorted(maps.Keys(b.view.Nodes)) }

func (b *Book) explain(a *address, by []Answer, reason, why string, heard []Conflict, now time.Time) (out Explanation) {
	sum := a.group.sum
	var how []string
	protocol := "NDP"
	if a.addr.Is4() {
		protocol = "ARP"
	}
	for _, x := range by {
		one := "by " + protocol + " from node " + x.Node
		if x.Node == "" {
			one = "by " + protocol + " from another node than " + a.layer2.Owner
		}
		if len(x.Interfaces) > 0 {
			one += " on " + strings.Join(x.Interfaces, ", ")
		}
		how = append(how, one)
	}
	if sum.up != "" {
		how = append(how, sum.up)
	}
	if len(how) > 0 {
		out = Explanation{v1beta1.ReasonAnnounced, strings.Join(how, " and "), true}
		if len(heard) > 0 {
			out.Reason, out.Text = v1beta1.ReasonAddressConflict, out.Text+", but "+heard[0].text(" too,")
		}
		return out
	}
	set := func(reason, why string) { out.Reason, out.Text = reason, why }
	isLB := slices.ContainsFunc(a.claims, func(c announce.Claim) bool { return c.Type == v1beta1.AddressLoadBalancerIP })
	switch {
	case len(heard) > 0:
		set(v1beta1.ReasonAddressConflict, heard[0].text(""))
	case isLB && !sum.advertised && b.view.PoolOf(a.addr) == "":
		set(v1beta1.ReasonNotInPool, announce.NotInPool)
	case !slices.ContainsFunc(a.claims, func(c announce.Claim) bool { return c.HasEndpoint(a.addr) }):
		set(v1beta1.ReasonNoReadyEndpoint, "the Service has no ready endpoint")
	case !a.layer2.Advertised && !sum.advertised:
		none := "no BGPAdvertisement announces it"
		if isLB {
			none = a.layer2.Why + ", and no BGPAdvertisement"
		}
		set(v1beta1.ReasonNoAdvertisement, none+"; create one or change the selectors of one")
	case reason != "":
		set(reason, why)
	case sum.down != "":
		set(v1beta1.ReasonSessionDown, "no BGP session for it is up: "+sum.down)
		switch {
		case now.Before(sum.young):
			out.Reason = v1beta1.ReasonPending
		case sum.differs:
			set(v1beta1.ReasonViewsDiffer, sum.down)
		}
	default:
		var whys []string
		if a.layer2.Advertised {
			whys = append(whys, b.view.ExplainLayer2(a.addr, a.claims).Why)
		}
		if sum.advertised {
			_, none, _ := b.routes(a, b.nodes(), now)
			whys = append(whys, summary(none))
		}
		set(v1beta1.ReasonNoEligibleNode, strings.Join(whys, "; "))
	}
	return out
}

func (c *Conflict) text(too string) string {
	return fmt.Sprintf("%s uses it%s on the network of %s of node %s; free the address or exclude it from its pool", c.HardwareAddress, too, c.Interface, c.Node)
}

// SessionState is the state of a session that is not up, with the reason where there is one.
func SessionState(s v1beta1.SessionStatus) string {
	if s.LastError == "" {
		return s.State
	}
	return s.State + " (" + s.LastError + ")"
}

// with adds a name to those that named is to list.
func with(names []string, name string) []string {
	if len(names) > text.Most || slices.Contains(names, name) {
		return names
	}
	return append(names, name)
}

// named lists names, or says that there are more than a few: what is said of thousands of Services must not change with
// each node that comes or goes.
func named(what string, names []string) string {
	if len(names) > text.Most {
		return fmt.Sprintf("more than %d %s", text.Most, what)
	}
	return strings.Join(slices.Sorted(slices.Values(names)), ", ")
}

// summary lists a few reasons, each with its nodes.
func summary(whys map[string][]string) string {
	var out []string
	for _, why := range slices.Sorted(maps.Keys(whys)) {
		if len(out) == text.Most {
			out = append(out, "and more")
			break
		}
		out = append(out, named("nodes", whys[why])+": "+why)
	}
	return strings.Join(out, "; ")
}
