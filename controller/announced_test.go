package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/speaker/announce"
	"github.com/clarionlb/clarion/speaker/route"
)

// A prefix is mixed when one router gets it from some nodes with a weight and from others without.
func TestMixedWeights(t *testing.T) {
	router1, router2 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	view := &announce.View{Config: &config.Config{
		BGP: []config.BGPAdvertisement{{Name: "weighted", Weighted: true}, {Name: "plain"}},
		Peers: []config.Peer{
			{Name: "rack1", Address: router1, Port: 179}, {Name: "rack2", Address: router1, Port: 179}, {Name: "spine", Address: router2, Port: 179},
		},
	}}
	export := func(peer string, bandwidth float32) []announce.Export {
		return []announce.Export{{Peer: peer, Route: route.Route{Prefix: netip.MustParsePrefix("203.0.113.1/32"), Attrs: route.Attrs{Bandwidth: bandwidth}}}}
	}
	for _, tt := range []struct {
		what string
		a, b []announce.Export
		want string
	}{
		{"both weighted", export("rack1", 1), export("rack1", 3), ""},
		{"neither", export("rack1", 0), export("rack1", 0), ""},
		{"one of two nodes", export("rack1", 1), export("rack1", 0), "b announce it without"},
		{"to one router by two BGPPeers", export("rack1", 0), export("rack2", 3), "a announce it without"},
		{"to different routers", export("rack1", 0), export("spine", 3), ""},
	} {
		w := newWeights(view)
		w.add(view, "a", tt.a)
		w.add(view, "b", tt.b)
		if got := w.mixed(); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
}
