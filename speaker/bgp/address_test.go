package bgp

import (
	"net/netip"
	"strings"
	"testing"
)

func TestNextHops(t *testing.T) {
	addr := func(s string) netip.Addr {
		if s == "" {
			return netip.Addr{}
		}
		return netip.MustParseAddr(s)
	}
	for _, tt := range []struct {
		name           string
		local          string
		others         string // addresses of the interface
		v4, v6, v4over bool
		want4, want6   string
		problem        string
	}{
		{name: "IPv4", local: "192.0.2.1", others: "192.0.2.1 2001:db8::1", v4: true, want4: "192.0.2.1"},
		{name: "IPv6", local: "2001:db8::1", others: "192.0.2.1 2001:db8::1", v6: true, want6: "2001:db8::1"},
		{name: "both over IPv4", local: "192.0.2.1", others: "192.0.2.1 2001:db8::1", v4: true, v6: true, want4: "192.0.2.1", want6: "2001:db8::1"},
		{name: "both over IPv4, no IPv6 address", local: "192.0.2.1", others: "192.0.2.1", v4: true, v6: true, want4: "192.0.2.1", problem: "IPv6 routes are not announced"},
		{name: "both over IPv6", local: "2001:db8::1", others: "192.0.2.1 2001:db8::1", v4: true, v6: true, v4over: true, want4: "192.0.2.1", want6: "2001:db8::1"},
		{name: "both over IPv6, no IPv4 address", local: "2001:db8::1", others: "2001:db8::1", v4: true, v6: true, v4over: true, want4: "2001:db8::1", want6: "2001:db8::1"},
		{name: "both over IPv6, no IPv4 address, and the peer cannot do without", local: "2001:db8::1", others: "2001:db8::1", v4: true, v6: true, want6: "2001:db8::1", problem: "IPv4 routes are not announced"},
		{name: "unnumbered", local: "fe80::1%eth1", others: "192.0.2.1 2001:db8::1", v4: true, v6: true, v4over: true, want4: "fe80::1", want6: "fe80::1"},
		{name: "unnumbered, and the peer cannot do without IPv4", local: "fe80::1%eth1", others: "192.0.2.1", v4: true, v6: true, want4: "192.0.2.1", want6: "fe80::1"},
	} {
		var others []address
		for f := range strings.FieldsSeq(tt.others) {
			others = append(others, address{addr: addr(f), usable: true})
		}
		got := chooseNextHops(addr(tt.local), others, Options{}, agreement{v4: tt.v4, v6: tt.v6, v4over6: tt.v4over})
		if got.v4 != addr(tt.want4) || got.v6 != addr(tt.want6) || tt.problem == "" != (got.problem == "") || !strings.Contains(got.problem, tt.problem) {
			t.Errorf("%s: %s, %s, %q; want %s, %s, %q", tt.name, got.v4, got.v6, got.problem, tt.want4, tt.want6, tt.problem)
		}
	}
}
