package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/speaker/layer2"
	"github.com/clarionlb/clarion/speaker/members"
)

// heard counts what a membership passes on.
type heard struct {
	members, ready, known int
}

func newTestMembership(name string, log slog.Handler) (*membership, *heard) {
	h := &heard{}
	return newMembership(membershipConfig{
		members: members.Config{Name: name, Port: members.DefaultPort, Log: slog.New(log)}, log: slog.New(log),
		onMembers: func(map[string]snapshot.Member) { h.members++ },
		onJoined:  func() {}, onNodeKnown: func() { h.known++ }, onReady: func() { h.ready++ },
	}), h
}

// What is announced is announced again when a member comes, or comes back, who may not have heard it: once it is ready,
// not when it only says something new, and not for this speaker itself.
func TestMembersThatBecomeReady(t *testing.T) {
	m, h := newTestMembership("node1", slog.DiscardHandler)
	self := members.Member{Name: "node1", Meta: members.Meta{Ready: true}}
	two := members.Member{Name: "node2", Meta: members.Meta{Ready: true, ProxyHealthy: true}}
	for _, step := range []struct {
		what  string
		view  []members.Member
		ready int
	}{
		{"alone", []members.Member{self}, 0},
		{"one that is starting", []members.Member{self, {Name: "node2"}}, 0},
		{"it is ready", []members.Member{self, two}, 1},
		{"it says something new", []members.Member{self, {Name: "node2", Meta: members.Meta{Ready: true, Draining: true}}}, 1},
		{"it is gone", []members.Member{self}, 1},
		{"it is back", []members.Member{self, two}, 2},
		{"one of another release", []members.Member{self, two, {Name: "node3", Unknown: "version 9"}}, 3},
	} {
		m.take(members.View{Members: step.view, Joined: true})
		if h.ready != step.ready {
			t.Errorf("%s: told %d times so far, want %d", step.what, h.ready, step.ready)
		}
	}
	told := h.members
	m.take(members.View{Members: []members.Member{self}})
	if h.members != told {
		t.Error("a speaker that joins again, with another address, takes the others for dead meanwhile")
	}
}

// Who replaces the key of the group sees in the log of every speaker which keys it has, in the order of their use. What
// cannot be a key changes nothing.
func TestMembershipKeys(t *testing.T) {
	var out bytes.Buffer
	m, _ := newTestMembership("node1", slog.NewTextHandler(&out, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.MessageKey {
				return slog.Attr{}
			}
			return a
		},
	}))
	line := func(b byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) + "\n" }
	for _, step := range []struct{ what, text, log string }{
		{"the first", line(1), "level=INFO sha256=72cd6e84"},
		{"the same again", "\n" + line(1), ""},
		{"a second one", line(1) + line(2), `level=INFO sha256="72cd6e84 75877bb4"`},
		{"the second one first", line(2) + line(1), `level=INFO sha256="75877bb4 72cd6e84"`},
		{"too short", "AAAA\n", "level=ERROR"},
		{"nothing", "", ""},
		{"the new one alone", line(2), "level=INFO sha256=75877bb4"},
	} {
		out.Reset()
		m.setKeys([]byte(step.text))
		if got := strings.TrimSpace(out.String()); got != step.log {
			t.Errorf("%s: logged %q, want %q", step.what, got, step.log)
		}
	}
}

// podLinks are the links of a node with pods: an uplink that all nodes have, eth1 if it is to have one, and those of the
// pods.
func podLinks(node, pods int, eth1 bool) []layer2.Link {
	links := []layer2.Link{{Name: "eth0", MAC: layer2.MAC{2, 0, 0, 0, 0, byte(node)}, Carrier: true, Physical: true}}
	if eth1 {
		links = append(links, layer2.Link{Name: "eth1", MAC: layer2.MAC{2, 0, 0, 0, 1, byte(node)}, Carrier: true, Physical: true})
	}
	for i := range pods {
		links = append(links, layer2.Link{Name: fmt.Sprintf("cali%011d", i), MAC: layer2.MAC{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}, Carrier: true, Excluded: true})
	}
	return links
}

// With many pods on every node, and an L2Advertisement that names an interface that two of three nodes have, all nodes
// choose the same owner of every address, which has that interface. The views come by the real gossip.
func TestNodesWithManyPodsChooseTheSameOwners(t *testing.T) {
	for _, tt := range []struct {
		what  string
		named []string // what the L2Advertisement names
	}{
		{"an uplink", []string{"eth1"}},
		{"more than can be told", []string{"eth1", "cali*"}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			names := []string{"a", "b", "c"}
			var all []*membership
			changed := make(chan struct{}, 1)
			for i, name := range names {
				m := newMembership(membershipConfig{
					members: members.Config{Name: name, Port: members.DefaultPort, Log: slog.New(slog.DiscardHandler)}, log: slog.New(slog.DiscardHandler),
					onMembers: func(map[string]snapshot.Member) {
						select {
						case changed <- struct{}{}:
						default:
						}
					},
					onJoined: func() {}, onNodeKnown: func() {}, onReady: func() {},
				})
				m.edit(func(meta *members.Meta) { meta.ProxyHealthy = true })
				m.setLinks(podLinks(i, 60, i > 0))
				m.setNamed(tt.named)
				m.setKeys([]byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32))))
				for j, other := range names {
					addr := netip.AddrFrom4([4]byte{127, 3, byte(len(tt.named)), byte(j + 1)})
					m.setNode(other, []netip.Addr{addr}, false)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { _ = m.run(ctx); close(done) }()
				t.Cleanup(func() { cancel(); <-done })
				all = append(all, m)
			}
			complete := func() bool {
				for _, m := range all {
					m.mu.Lock()
					n := len(m.alive)
					m.mu.Unlock()
					if n < len(all) {
						return false
					}
				}
				return true
			}
			for !complete() {
				<-changed
			}
			unanswered := 0
			for n := range 40 {
				addr := netip.AddrFrom4([4]byte{203, 0, 113, byte(n)})
				owners := 0
				for i, m := range all {
					for _, owned := range ownedBy(names[i], m, addr, "eth1") {
						if owners++; i == 0 {
							t.Errorf("%s is owned by the node without eth1 in its own view: %v", owned, m.alive[names[0]])
						}
					}
				}
				if owners != 1 {
					unanswered++
				}
			}
			if unanswered > 0 {
				t.Errorf("of 40 addresses %d do not have one owner", unanswered)
			}
		})
	}
}

// ownedBy is which of an address a node owns as it sees the others, when an L2Advertisement names an interface.
func ownedBy(name string, m *membership, addr netip.Addr, on string) []netip.Addr {
	v := announce.View{
		Config: &config.Config{L2: []config.L2Advertisement{{Name: "lan", Interfaces: []string{on}, Pools: config.Names{All: true}}}},
		PoolOf: func(netip.Addr) string { return "pool" }, Nodes: map[string]*announce.Node{},
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for other, says := range m.alive {
		v.Nodes[other] = &announce.Node{Name: other, Alive: true, Links: says.Links, Gate: says.Gate}
	}
	web := &announce.Service{Name: "web", Endpoints4: announce.Endpoints{Ready: map[string]int{"a": 1}}}
	if v.Layer2(addr, []announce.Claim{{Service: web, Type: v1beta1.AddressLoadBalancerIP}}).Owner == name {
		return []netip.Addr{addr}
	}
	return nil
}

// What a node tells of its links: those that an address could be announced on. Those of pods come and go without a word.
func TestLinksThatAreTold(t *testing.T) {
	var out bytes.Buffer
	m, _ := newTestMembership("node1", slog.NewTextHandler(&out, nil))
	told := func() (names []string) {
		links, _ := m.told()
		for _, l := range links {
			names = append(names, l.Name)
		}
		return names
	}
	m.setNamed(nil)
	m.setLinks(podLinks(1, 200, true))
	if got := told(); !slices.Equal(got, []string{"eth0", "eth1"}) {
		t.Errorf("told are %v", got)
	}
	before := m.meta
	m.setLinks(podLinks(1, 201, true))
	if &before.Links[0] != &m.meta.Links[0] {
		t.Error("a pod's interface came, and what is told was made again")
	}
	m.setNamed([]string{"cali00000000007"})
	if got := told(); !slices.Equal(got, []string{"eth0", "eth1", "cali00000000007"}) {
		t.Errorf("with one that an L2Advertisement names, told are %v", got)
	}
	if out.Len() > 0 {
		t.Errorf("logged %s", out.String())
	}
	m.setNamed([]string{"*"})
	if got := told(); len(got) < 20 || got[0] != "eth0" || got[1] != "eth1" {
		t.Errorf("of more than can be told, told are %v", got)
	}
	if _, leftOut := m.told(); !strings.Contains(out.String(), "level=WARN") || len(leftOut) == 0 {
		t.Error("interfaces are left out silently")
	}
}

// A hardware address is a node's while the node says so, or has said so last, until the node is gone, and for a while after; then it is that of
// a foreign host. What one node has no other can claim.
func TestHardwareAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h := newTestMembership("node1", slog.DiscardHandler)
		one, two := layer2.MAC{2, 0, 0, 0, 0, 1}, layer2.MAC{2, 0, 0, 0, 0, 2}
		m.setNode("node2", []netip.Addr{netip.MustParseAddr("192.0.2.12")}, false)
		alive := func(name string, mac layer2.MAC) members.View {
			return members.View{Joined: true, Members: []members.Member{{Name: name, Meta: members.Meta{Ready: true, Links: []members.Link{{Name: "eth0", MAC: mac}}}}}}
		}
		want := func(what string, mac layer2.MAC, node string, known int) {
			t.Helper()
			if got := m.nodeOf(mac); got != node || h.known != known {
				t.Errorf("%s: it is that of %q, made known %d times; want %q, %d", what, got, h.known, node, known)
			}
		}
		m.take(alive("node2", one))
		want("told", one, "node2", 1)
		restarting := alive("node2", one)
		restarting.Members[0].Meta.Restarting = true
		m.take(restarting)
		if got := m.addressesOf(one); !m.restarting(one) || m.restarting(two) || len(got) != 1 {
			t.Errorf("node2 restarts: %t, another one: %t, addresses %v", m.restarting(one), m.restarting(two), got)
		}
		m.take(members.View{Joined: true})
		m.take(members.View{Joined: true})
		if !m.restarting(one) {
			t.Error("node2 has left, and may answer for a moment")
		}
		if time.Sleep(endTime); m.restarting(one) {
			t.Error("node2 restarts for ever")
		}
		m.take(restarting)
		if m.take(alive("node2", one)); m.restarting(one) {
			t.Error("node2 restarts though it is back")
		}
		m.setStations("node3", []layer2.MAC{one})
		want("another one claims it", one, "node2", 1)
		m.setStations("node3", nil)
		m.take(members.View{Joined: true})
		time.Sleep(time.Hour)
		want("the speaker is dead for an hour", one, "node2", 1)
		m.setNode("node2", nil, true)
		time.Sleep(forgetTime - time.Second)
		want("its Node is gone", one, "node2", 1)
		time.Sleep(2 * time.Second)
		want("and has been for a while", one, "", 1)
		m.setStations("node3", []layer2.MAC{one, two})
		want("another node has it", one, "node3", 2)
		m.take(alive("node4", two))
		m.setStations("node3", []layer2.MAC{one})
		want("it is in another node now", two, "node4", 2)
	})
}

// A node that gets another address is found there, and one whose object has no addresses for a moment stays.
func TestNodeGetsAnotherAddress(t *testing.T) {
	m, _ := newTestMembership("a", slog.DiscardHandler)
	m.setNamed(nil)
	m.setKeys([]byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32))))
	first, second := netip.MustParseAddr("127.3.9.1"), netip.MustParseAddr("127.3.9.2")
	m.setNode("a", []netip.Addr{first, second}, false)
	c := m.cluster
	for _, step := range []struct {
		what  string
		addrs []netip.Addr
		want  netip.Addr
	}{
		{"no address", nil, first},
		{"another order", []netip.Addr{second, first}, first},
		{"the first one is gone", []netip.Addr{second}, second},
	} {
		m.setNode("a", step.addrs, false)
		if m.addr != step.want || (m.cluster == c) != (step.want == first) {
			t.Errorf("%s: the speaker is at %s, want %s, with a cluster for it", step.what, m.addr, step.want)
		}
	}
}

// A speaker stays at the address that it is known by when its node gets another first one, and is looked for at both.
func TestPeersAfterANodeGotAnotherFirstAddress(t *testing.T) {
	m := newMembership(membershipConfig{members: members.Config{Name: "a", Port: 7946}, log: slog.New(slog.DiscardHandler),
		onMembers: func(map[string]snapshot.Member) {}, onJoined: func() {}, onReady: func() {}, onNodeKnown: func() {}})
	a := netip.MustParseAddr
	m.setNode("a", []netip.Addr{a("192.0.2.1")}, false)
	m.setNode("b", []netip.Addr{a("192.0.2.2")}, false)
	m.take(members.View{Joined: true, Members: []members.Member{{Name: "b", Addr: netip.MustParseAddrPort("192.0.2.2:7946")}}})
	want := func(what, peers string) {
		t.Helper()
		if got := fmt.Sprint(m.peers()); got != peers {
			t.Errorf("%s: %s, want %s", what, got, peers)
		}
	}
	want("at first", "[192.0.2.2:7946]")
	m.setNode("b", []netip.Addr{a("192.0.2.102"), a("192.0.2.2")}, false)
	want("another comes first", "[192.0.2.102:7946 192.0.2.2:7946]")
	m.setNode("b", []netip.Addr{a("192.0.2.102")}, false)
	want("the first one goes", "[192.0.2.102:7946]")
}

// A node that was broken into and tells other hardware addresses with each message does not fill the others.
func TestHardwareAddressesThatChange(t *testing.T) {
	m := newMembership(membershipConfig{members: members.Config{Name: "a"}, log: slog.New(slog.DiscardHandler),
		onMembers: func(map[string]snapshot.Member) {}, onJoined: func() {}, onReady: func() {}, onNodeKnown: func() {}})
	for i := range 200 {
		links := make([]members.Link, 28)
		for j := range links {
			links[j].MAC = [6]byte{2, 0, 0, byte(i >> 8), byte(i), byte(j)}
		}
		m.take(members.View{Joined: true, Members: []members.Member{{Name: "broken", Meta: members.Meta{Links: links}}}})
	}
	if n := len(*m.hardware.Load()); n > forgetMost+28 {
		t.Errorf("%d hardware addresses are remembered", n)
	}
	if m.nodeOf(layer2.MAC{2, 0, 0, 0, 199, 3}) != "broken" {
		t.Error("one that it tells now is not known")
	}
}
