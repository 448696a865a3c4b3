package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/digest"
)

var (
	now  = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	addr = ownedByB()

	other = netip.MustParseAddr("203.0.113.9")
)

// ownedByB is an address of which b is the owner among three nodes.
func ownedByB() netip.Addr {
	v := &announce.View{
		Config: &config.Config{L2: []config.L2Advertisement{{Name: "lan", Pools: config.Names{All: true}}}},
		PoolOf: func(netip.Addr) string { return "lan" }, Nodes: map[string]*announce.Node{},
	}
	for _, n := range []string{"a", "b", "c"} {
		v.Nodes[n] = &announce.Node{Name: n, Alive: true}
	}
	a := netip.MustParseAddr("203.0.113.10")
	for v.Layer2(a, oneClaim()).Owner != "b" {
		a = a.Next()
	}
	return a
}

func oneClaim() []announce.Claim {
	return []announce.Claim{{Type: v1beta1.AddressLoadBalancerIP, Service: &announce.Service{
		Namespace: "default", Name: "web", Endpoints4: announce.Endpoints{Ready: map[string]int{"": 1}}}}}
}

// world is a cluster of nodes a, b … with the peers tor1 and tor2, whose speakers are alive and have all sessions.
type world struct {
	view     *announce.View
	speakers map[string]*v1beta1.Speaker
	claims   []announce.Claim
}

func ago(d time.Duration) *metav1.Time { return &metav1.Time{Time: now.Add(-d)} }

func newWorld(nodes int) *world {
	all := config.Names{All: true}
	w := &world{
		view: &announce.View{
			Config: &config.Config{
				BGP: []config.BGPAdvertisement{{Name: "all", Pools: all, Peers: all, Types: map[v1beta1.AddressType]bool{v1beta1.AddressLoadBalancerIP: true}, Length4: 32, Length6: 128}},
				Peers: []config.Peer{
					{Name: "tor1", Address: netip.MustParseAddr("192.0.2.1"), Port: 179, Created: now.Add(-time.Hour)},
					{Name: "tor2", Address: netip.MustParseAddr("192.0.2.2"), Port: 179, Created: now.Add(-time.Hour)},
				},
			},
			PoolOf: func(netip.Addr) string { return "lan" }, Nodes: map[string]*announce.Node{},
		},
		speakers: map[string]*v1beta1.Speaker{},
		claims:   oneClaim(),
	}
	for i := range nodes {
		name := string(rune('a' + i))
		w.view.Nodes[name] = &announce.Node{Name: name, Alive: true, SessionUp: true}
		sp := &v1beta1.Speaker{}
		for _, p := range w.view.Config.Peers {
			sp.Status.Sessions = append(sp.Status.Sessions, v1beta1.SessionStatus{Peer: p.Name, State: "Established", Since: ago(time.Minute)})
		}
		w.speakers[name] = sp
	}
	return w
}

func (w *world) each(f func(node string, n *announce.Node, s *v1beta1.SpeakerStatus)) {
	for name, n := range w.view.Nodes {
		f(name, n, &w.speakers[name].Status)
	}
}

func (w *world) sessions(state, lastError string, since *metav1.Time) {
	w.each(func(_ string, _ *announce.Node, s *v1beta1.SpeakerStatus) {
		for i := range s.Sessions {
			s.Sessions[i].State, s.Sessions[i].LastError, s.Sessions[i].Since = state, lastError, since
		}
	})
}

// local makes the address one of the local network, and only that.
func (w *world) local() {
	w.both()
	w.view.Config.BGP = nil
}

// both makes it one of the local network too. Its owner is node b.
func (w *world) both() {
	w.each(func(_ string, n *announce.Node, _ *v1beta1.SpeakerStatus) {
		n.Links = []announce.Link{{Name: "eth0", Up: true}}
	})
	w.view.Config.L2 = []config.L2Advertisement{{Name: "lan", Pools: config.Names{All: true}}}
}

// book is what is known of the world, with all there is to be known of the address.
func (w *world) book() *Book {
	b := New()
	for name, sp := range w.speakers {
		b.Speaker(name, sp)
	}
	b.Use(w.view)
	b.Set(addr, w.claims, w.view.Layer2(addr, w.claims))
	b.Touched(now)
	return b
}

func (w *world) of() Explanation { return w.book().Of(addr, now) }

// answers makes a node answer for addresses.
func (w *world) answers(node string, addrs ...netip.Addr) {
	var sum digest.Sum
	for _, a := range addrs {
		sum += digest.Address(a)
	}
	w.speakers[node].Status.LocalNetwork = &v1beta1.Layer2Status{Answered: int32(len(addrs)), Digest: sum.String()}
}

var foreign = v1beta1.AddressConflict{Address: addr.String(), HardwareAddress: "02:00:00:00:00:99", Interface: "eth0"}

func TestExplanations(t *testing.T) {
	for _, tt := range []struct {
		name         string
		edit         func(*world)
		reason, text string
	}{
		{"by BGP", func(*world) {}, v1beta1.ReasonAnnounced, "by BGP to tor1, tor2 from a, b, c"},
		{"by BGP, with one session of many", func(w *world) {
			w.sessions("Active", "", nil)
			w.speakers["b"].Status.Sessions[1].State = "Established"
		}, v1beta1.ReasonAnnounced, "by BGP to tor2 from b"},
		{"on the local network", func(w *world) { w.local(); w.answers("b", addr) }, v1beta1.ReasonAnnounced, "by ARP from node b on eth0"},
		{"in both ways", func(w *world) { w.both(); w.answers("b", addr) }, v1beta1.ReasonAnnounced, "by ARP from node b on eth0 and by BGP to tor1, tor2 from a, b, c"},
		{"on the local network, named only", func(w *world) {
			w.local()
			w.answers("b", addr, other)
			w.speakers["b"].Status.LocalNetwork.Latest = []string{addr.String()}
		}, v1beta1.ReasonAnnounced, "by ARP from node b on eth0"},
		{"not named, and the digest is another", func(w *world) { w.local(); w.answers("b", addr, other) }, v1beta1.ReasonPending, "node b is about to announce it"},
		{"the speaker is of an earlier release, and does not say what it answers", func(w *world) {
			w.local()
			w.speakers["b"].Status.Conditions = []metav1.Condition{{Type: v1beta1.ConditionReady}}
		}, v1beta1.ReasonAnnounced, "by ARP from node b on eth0"},
		{"the speaker has written nothing", func(w *world) { w.local(); delete(w.speakers, "b") }, v1beta1.ReasonPending, "node b is about to announce it"},
		{"it says why not", func(w *world) {
			w.local()
			w.answers("b")
			w.speakers["b"].Status.LocalNetwork.Unanswered = []v1beta1.AddressException{{Address: addr.String(), Reason: "no carrier"}}
		}, v1beta1.ReasonNotAnswered, "node b should answer for it and does not: no carrier"},
		{"another node besides", func(w *world) {
			w.local()
			w.answers("b")
			w.speakers["b"].Status.LocalNetwork.Unanswered = []v1beta1.AddressException{{Address: addr.String(), Reason: "node c answers for it"}}
			w.answers("c", addr)
			w.speakers["c"].Status.LocalNetwork.Besides = []v1beta1.AddressException{{Address: addr.String()}}
		}, v1beta1.ReasonAnnounced, "by ARP from node c on eth0"},
		{"two nodes", func(w *world) {
			w.local()
			w.answers("b", addr)
			w.answers("c", addr)
			w.speakers["c"].Status.LocalNetwork.Besides = []v1beta1.AddressException{{Address: addr.String()}}
		}, v1beta1.ReasonAnnounced, "by ARP from node b on eth0 and by ARP from node c on eth0"},
		{"a node that could not, besides", func(w *world) {
			w.local()
			w.answers("b")
			w.view.Nodes["c"].Excluded = "the node is not to"
			w.answers("c", addr)
			w.speakers["c"].Status.LocalNetwork.Besides = []v1beta1.AddressException{{Address: addr.String()}}
		}, v1beta1.ReasonAnnounced, "by ARP from another node than b"},
		{"another node, of more than are named", func(w *world) {
			w.local()
			w.answers("b")
			w.speakers["b"].Status.LocalNetwork.UnansweredMore = 1
			w.answers("c", addr)
			w.speakers["c"].Status.LocalNetwork.BesidesMore = 1
		}, v1beta1.ReasonAnnounced, "by ARP from another node than b"},

		{"a foreign host, while a node answers", func(w *world) {
			w.local()
			w.answers("b", addr)
			w.speakers["a"].Status.Conflicts = []v1beta1.AddressConflict{foreign}
		}, v1beta1.ReasonAddressConflict, "by ARP from node b on eth0, but 02:00:00:00:00:99 uses it too, on the network of eth0 of node a; free the address or exclude it from its pool"},
		{"a foreign host, while nobody answers", func(w *world) {
			w.local()
			w.speakers["a"].Status.Conflicts = []v1beta1.AddressConflict{foreign}
		}, v1beta1.ReasonAddressConflict, "02:00:00:00:00:99 uses it on the network of eth0 of node a; free the address or exclude it from its pool"},
		{"what a dead speaker wrote last", func(w *world) {
			w.local()
			w.answers("b", addr)
			w.speakers["b"].Status.Conflicts = []v1beta1.AddressConflict{foreign}
			w.view.Nodes["b"].Alive = false
			w.view.Nodes["c"].Alive = false
		}, v1beta1.ReasonPending, "node a is about to announce it"},

		{"sessions that are young", func(w *world) { w.sessions("Active", "", ago(2*time.Second)) }, v1beta1.ReasonPending,
			"no BGP session for it is up: a, b, c: BGPPeer tor1: Active; a, b, c: BGPPeer tor2: Active"},
		{"sessions that never came", func(w *world) { w.sessions("Active", "", ago(time.Minute)) }, v1beta1.ReasonSessionDown,
			"no BGP session for it is up: a, b, c: BGPPeer tor1: Active; a, b, c: BGPPeer tor2: Active"},
		{"sessions that say why", func(w *world) { w.sessions("Active", "no route to the peer", ago(2*time.Second)) }, v1beta1.ReasonSessionDown,
			"no BGP session for it is up: a, b, c: BGPPeer tor1: Active (no route to the peer); a, b, c: BGPPeer tor2: Active (no route to the peer)"},
		{"sessions by a clock that is wrong", func(w *world) { w.sessions("Active", "", ago(-time.Hour)) }, v1beta1.ReasonSessionDown,
			"no BGP session for it is up: a, b, c: BGPPeer tor1: Active; a, b, c: BGPPeer tor2: Active"},
		{"one node has lost its session, the others are dead", func(w *world) {
			w.sessions("Active", "hold timer expired", ago(2*time.Second))
			w.view.Nodes["b"].Alive = false
			delete(w.view.Nodes, "c")
			w.speakers["a"].Status.Sessions = w.speakers["a"].Status.Sessions[:1]
			w.view.Config.Peers = w.view.Config.Peers[:1]
		}, v1beta1.ReasonSessionDown, "no BGP session for it is up: a: BGPPeer tor1: Active (hold timer expired); b: its speaker is not alive"},
		{"no speaker has run", func(w *world) {
			w.speakers = nil
			for _, n := range w.view.Nodes {
				n.Alive = false
			}
		}, v1beta1.ReasonSessionDown, "no BGP session for it is up: a, b, c: its speaker is not alive"},
		{"no session is opened", func(w *world) {
			w.each(func(_ string, _ *announce.Node, s *v1beta1.SpeakerStatus) {
				s.Sessions, s.Problems = nil, []v1beta1.Problem{{Object: "BGPPeer/tor1", Message: "spec.passwordSecret: there is no Secret clarion-system/tor1"}}
			})
		}, v1beta1.ReasonSessionDown, "no BGP session for it is up: a, b, c: BGPPeer tor1: not open: spec.passwordSecret: there is no Secret clarion-system/tor1; a, b, c: BGPPeer tor2: not open"},
		{"no session is opened yet", func(w *world) {
			w.each(func(_ string, _ *announce.Node, s *v1beta1.SpeakerStatus) { s.Sessions = nil })
			w.view.Config.Peers[0].Created = now.Add(-time.Second)
		}, v1beta1.ReasonPending, "no BGP session for it is up: a, b, c: BGPPeer tor1: not open; a, b, c: BGPPeer tor2: not open"},

		{"no endpoint", func(w *world) { w.claims[0].Service.Endpoints4 = announce.Endpoints{} }, v1beta1.ReasonNoReadyEndpoint, "the Service has no ready endpoint"},
		{"no advertisement", func(w *world) { w.view.Config.BGP = nil }, v1beta1.ReasonNoAdvertisement,
			`no L2Advertisement selects the pool "lan", and no BGPAdvertisement; create one or change the selectors of one`},
		{"no advertisement of an external address", func(w *world) { w.claims[0].Type = v1beta1.AddressExternalIP }, v1beta1.ReasonNoAdvertisement,
			"no BGPAdvertisement announces it; create one or change the selectors of one"},
		{"no node for BGP", func(w *world) {
			w.view.Nodes["a"].Excluded = "the node is not to"
			w.claims[0].Service.LocalExternal = true
			w.claims[0].Service.Endpoints4.Ready = map[string]int{"a": 1}
		}, v1beta1.ReasonNoEligibleNode, "b, c: the Service default/web has traffic policy Local and no ready endpoint there; a: the node is not to"},
		{"no node in any way", func(w *world) {
			bgp := w.view.Config.BGP
			w.local()
			w.view.Config.BGP = bgp
			w.each(func(_ string, n *announce.Node, _ *v1beta1.SpeakerStatus) { n.Excluded = "the node is not to" })
		}, v1beta1.ReasonNoEligibleNode, "no node can announce it: the node is not to; a, b, c: the node is not to"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(3)
			tt.edit(w)
			v := w.of()
			if v.Reason != tt.reason || v.Text != tt.text {
				t.Errorf("got  %s: %s\nwant %s: %s", v.Reason, v.Text, tt.reason, tt.text)
			}
		})
	}
}

// What is said of an address that many nodes announce stays as it is when one more does, or one less.
func TestManyNodes(t *testing.T) {
	const want = "by BGP to tor1, tor2 from more than 5 nodes"
	for _, n := range []int{6, 7, 20} {
		if v := newWorld(n).of(); v.Text != want {
			t.Errorf("%d nodes: %q, want %q", n, v.Text, want)
		}
	}
	w := newWorld(7)
	for i := range 8 {
		w.view.Config.Peers = append(w.view.Config.Peers, config.Peer{Name: fmt.Sprint("rack", i)})
		w.speakers["a"].Status.Sessions = append(w.speakers["a"].Status.Sessions, v1beta1.SessionStatus{Peer: fmt.Sprint("rack", i), State: "Established"})
	}
	if v := w.of(); v.Text != "by BGP to more than 5 peers from more than 5 nodes" {
		t.Errorf("many peers: %q", v.Text)
	}
}

// A prefix is mixed when one router gets it from some nodes with a weight and from others without.
func TestMixedWeights(t *testing.T) {
	router1, router2 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	b := New()
	b.Use(&announce.View{Config: &config.Config{
		BGP: []config.BGPAdvertisement{{Name: "weighted", Weighted: true}, {Name: "plain"}},
		Peers: []config.Peer{
			{Name: "rack1", Address: router1, Port: 179}, {Name: "rack2", Address: router1, Port: 179}, {Name: "spine", Address: router2, Port: 179},
		},
	}})
	one := func(node, peer string, weighted bool) Route {
		return Route{Node: node, Peer: peer, Prefix: netip.PrefixFrom(addr, 32), weighted: weighted}
	}
	down := one("b", "rack1", false)
	down.Problem = "Active"
	for _, tt := range []struct {
		what string
		a, b Route
		want string
	}{
		{"both weighted", one("a", "rack1", true), one("b", "rack1", true), ""},
		{"neither", one("a", "rack1", false), one("b", "rack1", false), ""},
		{"one of two nodes", one("a", "rack1", true), one("b", "rack1", false), "b announce it without"},
		{"one of two nodes, which does not reach the router", one("a", "rack1", true), down, ""},
		{"to one router by two BGPPeers", one("a", "rack1", false), one("b", "rack2", true), "a announce it without"},
		{"to different routers", one("a", "rack1", false), one("b", "spine", true), ""},
	} {
		if got := b.mixed([]Route{tt.a, tt.b}); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
}

// A session whose speaker says for long that it announces other addresses than it should is not said to announce them.
func TestRoutesThatDiffer(t *testing.T) {
	w := newWorld(3)
	says := func(node string, sums ...digest.Sum) {
		for i, sum := range sums {
			w.speakers[node].Status.Sessions[i].Digest = sum.String()
		}
	}
	is := digest.Address(addr)
	for node := range w.speakers {
		says(node, is, is)
	}
	b, at := w.book(), now
	check := func(what, reason, text string, touched bool) {
		t.Helper()
		all, _ := b.Touched(at)
		if got := b.Of(addr, at); got.Reason != reason || got.Text != text {
			t.Errorf("%s: %s %q, want %s %q", what, got.Reason, got.Text, reason, text)
		}
		if slices.Contains(all, addr) != touched {
			t.Errorf("%s: to be said anew: %v, want %v", what, !touched, touched)
		}
	}
	step := func(what string, after time.Duration, reason, text string, touched bool) {
		t.Helper()
		for node, sp := range w.speakers {
			b.Speaker(node, sp)
		}
		at = at.Add(after)
		check(what, reason, text, touched)
	}
	const all, two = "by BGP to tor1, tor2 from a, b, c", "by BGP to tor1, tor2 from a, c"
	step("all agree", 0, v1beta1.ReasonAnnounced, all, false)
	says("b", 0, 0)
	step("one announces nothing", time.Minute, v1beta1.ReasonAnnounced, all, false)
	_, again := b.Touched(at)
	if want := at.Add(b.lag()); !again.Equal(want) {
		t.Errorf("looked at again at %v, want %v", again, want)
	}
	at = again
	check("one has announced nothing for long", v1beta1.ReasonAnnounced, two, true)
	w.speakers["b"].Status.HeldDown = []string{addr.String()}
	step("it holds it down", 0, v1beta1.ReasonAnnounced, all, true)
	w.speakers["b"].Status.HeldDown = nil
	says("b", is, is)
	step("it announces it", 0, v1beta1.ReasonAnnounced, all, false)
	for node := range w.speakers {
		says(node, is+1, is+1)
	}
	step("all announce something else", 0, v1beta1.ReasonAnnounced, all, false)
	step("for long", b.lag(), v1beta1.ReasonViewsDiffer, "a, b, c: BGPPeer tor1: "+differs+"; a, b, c: BGPPeer tor2: "+differs, true)
	b.Set(addr, nil, announce.Layer2{})
	b.Touched(at)
	b.Set(addr, w.claims, w.view.Layer2(addr, w.claims))
	for node := range w.speakers {
		says(node, is, is)
	}
	step("it was forgotten, and is there again", 0, v1beta1.ReasonAnnounced, all, true)
}
