package verdict

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
)

var (
	now  = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	addr = netip.MustParseAddr("203.0.113.1")
)

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
		claims: []announce.Claim{{Type: v1beta1.AddressLoadBalancerIP, Service: &announce.Service{
			Namespace: "default", Name: "web", Endpoints4: announce.Endpoints{Ready: map[string]int{"": 1}}}}},
	}
	for i := range nodes {
		name := string(rune('a' + i))
		w.view.Nodes[name] = &announce.Node{Name: name, Alive: true}
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
	w.view.Config.BGP = nil
	w.view.Config.L2 = []config.L2Advertisement{{Name: "lan", Pools: config.Names{All: true}}}
}

func (w *world) of() Verdict {
	return New(w.view, w.speakers, now).Of(addr, w.claims)
}

var stranger = v1beta1.AddressConflict{Address: addr.String(), HardwareAddress: "02:00:00:00:00:99", Interface: "eth0"}

func TestVerdicts(t *testing.T) {
	answers := func(w *world, node string) {
		w.speakers[node].Status.Layer2 = []v1beta1.Layer2Status{{Address: addr.String(), Interfaces: []string{"eth0"}}}
	}
	for _, tt := range []struct {
		name         string
		edit         func(*world)
		reason, text string
	}{
		{"by BGP", func(*world) {}, Announced, "by BGP to tor1, tor2 from a, b, c"},
		{"by BGP, with one session of many", func(w *world) {
			w.sessions("Active", "", nil)
			w.speakers["b"].Status.Sessions[1].State = "Established"
		}, Announced, "by BGP to tor2 from b"},
		{"on the local network", func(w *world) { w.local(); answers(w, "b") }, Announced, "by ARP from node b on eth0"},
		{"in both ways", func(w *world) { answers(w, "b") }, Announced, "by ARP from node b on eth0 and by BGP to tor1, tor2 from a, b, c"},

		{"a stranger, while a node answers", func(w *world) {
			w.local()
			answers(w, "a")
			w.speakers["b"].Status.Conflicts = []v1beta1.AddressConflict{stranger}
		}, AddressConflict, "by ARP from node a on eth0, but 02:00:00:00:00:99 uses it too, on the network of eth0 of node b; free the address or exclude it from its pool"},
		{"a stranger, while nobody answers", func(w *world) {
			w.local()
			w.speakers["b"].Status.Conflicts = []v1beta1.AddressConflict{stranger}
		}, AddressConflict, "02:00:00:00:00:99 uses it on the network of eth0 of node b; free the address or exclude it from its pool"},
		{"last words of a dead speaker", func(w *world) {
			w.local()
			answers(w, "b")
			w.speakers["b"].Status.Conflicts = []v1beta1.AddressConflict{stranger}
			w.view.Nodes["b"].Alive = false
			w.view.Nodes["c"].Alive = false
		}, Pending, "node a is about to announce it"},

		{"sessions that are young", func(w *world) { w.sessions("Active", "", ago(2*time.Second)) }, Pending,
			"no BGP session for it is up: a, b, c: BGPPeer tor1: Active; a, b, c: BGPPeer tor2: Active"},
		{"sessions that never came", func(w *world) { w.sessions("Active", "", ago(time.Minute)) }, SessionDown,
			"no BGP session for it is up: a, b, c: BGPPeer tor1: Active; a, b, c: BGPPeer tor2: Active"},
		{"sessions that say why", func(w *world) { w.sessions("Active", "no route to the peer", ago(2*time.Second)) }, SessionDown,
			"no BGP session for it is up: a, b, c: BGPPeer tor1: Active (no route to the peer); a, b, c: BGPPeer tor2: Active (no route to the peer)"},
		{"sessions by a clock that is wrong", func(w *world) { w.sessions("Active", "", ago(-time.Hour)) }, SessionDown,
			"no BGP session for it is up: a, b, c: BGPPeer tor1: Active; a, b, c: BGPPeer tor2: Active"},
		{"one node has lost its session, the others are dead", func(w *world) {
			w.sessions("Active", "hold timer expired", ago(2*time.Second))
			w.view.Nodes["b"].Alive = false
			delete(w.view.Nodes, "c")
			w.speakers["a"].Status.Sessions = w.speakers["a"].Status.Sessions[:1]
			w.view.Config.Peers = w.view.Config.Peers[:1]
		}, SessionDown, "no BGP session for it is up: a: BGPPeer tor1: Active (hold timer expired); b: its speaker is not alive"},
		{"no speaker has run", func(w *world) {
			w.speakers = nil
			for _, n := range w.view.Nodes {
				n.Alive = false
			}
		}, SessionDown, "no BGP session for it is up: a, b, c: its speaker is not alive"},
		{"no session is opened", func(w *world) {
			w.each(func(_ string, _ *announce.Node, s *v1beta1.SpeakerStatus) {
				s.Sessions, s.Problems = nil, []v1beta1.Problem{{Object: "BGPPeer/tor1", Message: "spec.passwordSecret: there is no Secret clarion-system/tor1"}}
			})
		}, SessionDown, "no BGP session for it is up: a, b, c: BGPPeer tor1: not open: spec.passwordSecret: there is no Secret clarion-system/tor1; a, b, c: BGPPeer tor2: not open"},
		{"no session is opened yet", func(w *world) {
			w.each(func(_ string, _ *announce.Node, s *v1beta1.SpeakerStatus) { s.Sessions = nil })
			w.view.Config.Peers[0].Created = now.Add(-time.Second)
		}, Pending, "no BGP session for it is up: a, b, c: BGPPeer tor1: not open; a, b, c: BGPPeer tor2: not open"},

		{"no endpoint", func(w *world) { w.claims[0].Service.Endpoints4 = announce.Endpoints{} }, NoReadyEndpoint, "the Service has no ready endpoint"},
		{"no advertisement", func(w *world) { w.view.Config.BGP = nil }, NoAdvertisement,
			`no L2Advertisement selects the pool "lan", and no BGPAdvertisement; create one or change the selectors of one`},
		{"no advertisement of an external address", func(w *world) { w.claims[0].Type = v1beta1.AddressExternalIP }, NoAdvertisement,
			"no BGPAdvertisement announces it; create one or change the selectors of one"},
		{"no node for BGP", func(w *world) {
			w.view.Nodes["a"].Excluded = "the node is not to"
			w.claims[0].Service.LocalExternal = true
			w.claims[0].Service.Endpoints4.Ready = map[string]int{"a": 1}
		}, NoEligibleNode, "b, c: the Service default/web has traffic policy Local and no ready endpoint there; a: the node is not to"},
		{"no node in any way", func(w *world) {
			bgp := w.view.Config.BGP
			w.local()
			w.view.Config.BGP = bgp
			w.each(func(_ string, n *announce.Node, _ *v1beta1.SpeakerStatus) { n.Excluded = "the node is not to" })
		}, NoEligibleNode, "no node can announce it: the node is not to; a, b, c: the node is not to"},
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
	j := New(&announce.View{Config: &config.Config{
		BGP: []config.BGPAdvertisement{{Name: "weighted", Weighted: true}, {Name: "plain"}},
		Peers: []config.Peer{
			{Name: "rack1", Address: router1, Port: 179}, {Name: "rack2", Address: router1, Port: 179}, {Name: "spine", Address: router2, Port: 179},
		},
	}}, nil, now)
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
		if got := j.mixed([]Route{tt.a, tt.b}); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
}
