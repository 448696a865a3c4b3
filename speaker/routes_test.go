package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/route"
)

// Two BGPPeers are one router only if all that says where it is is the same.
func TestOneRouterOneSession(t *testing.T) {
	w := newWorld(t)
	younger := func(edit func(*v1beta1.BGPPeerSpec)) func(p *v1beta1.BGPPeer) {
		return func(p *v1beta1.BGPPeer) { p.CreationTimestamp = metav1.Unix(1, 0); edit(&p.Spec) }
	}
	link := func(s *v1beta1.BGPPeerSpec) { s.PeerAddress, s.Interface = "", "eth1" }
	w.set(node("a", "192.0.2.10"),
		peer("plain", "192.0.2.1", nil),
		peer("vrf", "192.0.2.1", younger(func(s *v1beta1.BGPPeerSpec) { s.VRF = "red" })),
		peer("vrf2", "192.0.2.1", younger(func(s *v1beta1.BGPPeerSpec) { s.VRF = "red" })),
		peer("link", "", func(p *v1beta1.BGPPeer) { link(&p.Spec) }),
		peer("link2", "", younger(link)))
	w.step()
	w.want("twins", "never told", "link as 192.0.2.10:; plain as 192.0.2.10:; vrf as 192.0.2.10:")
	var got []string
	for _, p := range w.r.problems {
		got = append(got, p.Name+": "+p.Message)
	}
	slices.Sort(got)
	want := []string{
		`link2: spec.interface: the older BGPPeer "link" is the same router, that on interface eth1; its session is used`,
		`vrf2: spec.peerAddress: the older BGPPeer "vrf" is the same router, 192.0.2.1:179 in VRF red; its session is used`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("problems:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A router ID that changes ends every session: addresses of the Node that are gone for a moment, or named in another
// order, do not change it.
func TestRouterIDStays(t *testing.T) {
	w := newWorld(t)
	w.set(peer("tor", "192.0.2.1", nil))
	for _, tt := range []struct {
		addrs []string
		id    string
	}{
		{[]string{"192.0.2.10", "198.51.100.10", "2001:db8::10"}, "192.0.2.10"},
		{[]string{"2001:db8::10"}, "192.0.2.10"},
		{nil, "192.0.2.10"},
		{[]string{"198.51.100.10", "192.0.2.10", "2001:db8::10"}, "192.0.2.10"},
		{[]string{"198.51.100.10"}, "198.51.100.10"},
	} {
		w.set(node("a", tt.addrs...))
		w.step()
		w.want(fmt.Sprint(tt.addrs), "never told", "tor as "+tt.id+":")
	}
}

// Whatever changes, the routes that are kept up to date change by change are those that all exports make.
func TestTablesFollow(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	tb := newTables()
	exports := map[netip.Addr][]announce.Export{}
	ranges := [][]announce.Export{{{Peer: "x", Route: route.Route{Prefix: netip.MustParsePrefix("192.0.2.0/28")}}}}
	tb.whole = true
	for round := range 500 {
		for range random.IntN(5) {
			addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(random.IntN(64))})
			var next []announce.Export
			for _, peer := range []string{"x", "y"} {
				for _, bits := range []int{28, 32} {
					if random.IntN(3) > 0 {
						next = append(next, announce.Export{Peer: peer, Route: route.Route{Prefix: netip.PrefixFrom(addr, bits).Masked(), Attrs: route.Attrs{Prepend: random.IntN(4)}}})
					}
				}
			}
			tb.note(exports[addr], next)
			if exports[addr] = next; len(next) == 0 {
				delete(exports, addr)
			}
		}
		tb.update(exports, ranges)
		want := announce.Merge(slices.AppendSeq(slices.Clone(ranges), maps.Values(exports)))
		for peer, table := range tb.byPeer {
			if got := byPrefix(table); !slices.EqualFunc(got, want[peer], func(a, b route.Route) bool { return a.Prefix == b.Prefix && a.Attrs.Equal(b.Attrs) }) {
				t.Fatalf("round %d: peer %s has %v, want %v", round, peer, got, want[peer])
			}
		}
		if len(want) > len(tb.byPeer) {
			t.Fatalf("round %d: a peer is missing", round)
		}
	}
}

// One address more, or less, in a prefix that others are in costs nothing, however many they are.
func TestAggregatesRest(t *testing.T) {
	tb := newTables()
	export := func(prepend int) []announce.Export {
		return []announce.Export{{Peer: "x", Route: route.Route{Prefix: netip.MustParsePrefix("198.18.0.0/16"), Attrs: route.Attrs{Prepend: prepend}}}}
	}
	for _, tt := range []struct {
		what      string
		old, next []announce.Export
		dirty     bool
	}{
		{"the first", nil, export(1), true},
		{"another like it", nil, export(1), false},
		{"one that is different", nil, export(2), true},
		{"one of two becomes like the third", export(1), export(2), false},
		{"one of two goes", export(2), nil, false},
		{"the last of its kind goes", export(1), nil, true},
		{"the last goes", export(2), nil, true},
	} {
		if tb.note(tt.old, tt.next); len(tb.dirty) > 0 != tt.dirty {
			t.Errorf("%s: dirty are %v", tt.what, tb.dirty)
		}
		tb.update(nil, nil)
	}
	if len(tb.sources) != 0 {
		t.Errorf("left are %v", tb.sources)
	}
}
