package bgp

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clarionlb/clarion/internal/netnstest"
)

// What the kernel says of addresses: one that a host on the link has deprecated is still one to be reached at, if there
// is no better.
func TestAddressesOfTheNode(t *testing.T) {
	ns := netnstest.New(t)
	ns.IP(t, "link add up0 type veth peer name up1")
	ns.IP(t, "link set up0 up")
	want := map[string]string{}
	for _, a := range []struct{ prefix, option, is string }{
		{"192.0.2.1/24", "", "true false"}, {"192.0.2.2/24", "", "true true"}, {"198.51.100.1/32", "", "true true"},
		{"2001:db8::1/64", "nodad", "true false"}, {"2001:db8::2/64", "nodad preferred_lft 0", "true true"},
		{"2001:db8::3/128", "nodad", "true true"},
	} {
		ns.IP(t, "address add "+a.prefix+" dev up0 "+a.option)
		want[netip.MustParsePrefix(a.prefix).Addr().String()] = a.is
	}
	got := map[string]string{}
	if err := ns.Enter(func() error {
		all := addresses{}
		err := all.read()
		for _, a := range all {
			if _, ok := want[a.addr.String()]; ok {
				got[a.addr.String()] = fmt.Sprint(a.usable, a.floating)
			}
		}
		return err
	}); err != nil || !maps.Equal(got, want) {
		t.Errorf("usable, floating: %v, want %v, %v", got, want, err)
	}
}

// What the kernel says of a single address is what a reading of all says; an address that was usable stays so while a link
// that has returned makes sure of it, a new one waits.
func TestAddressesFollow(t *testing.T) {
	ns := netnstest.New(t, "net.ipv6.conf.all.accept_dad=1", "net.ipv6.conf.default.accept_dad=1", "net.ipv6.conf.all.keep_addr_on_down=1")
	ns.IP(t, "link add up0 type veth peer name up1")
	ns.IP(t, "link set up0 up")
	ns.IP(t, "link set up1 up")
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan string, 100)
	done := make(chan error)
	go func() {
		done <- ns.Enter(func() error { // the sockets stay in this namespace
			linux{}.watch(ctx, func(all []address, err error) {
				var lines []string
				for _, a := range all {
					if a.addr.IsGlobalUnicast() {
						lines = append(lines, fmt.Sprint(a.addr, " ", a.usable))
					}
				}
				slices.Sort(lines)
				told <- fmt.Sprint(strings.Join(lines, ", "), err)
			})
			return nil
		})
	}()
	expect := func(want, never string) {
		t.Helper()
		for limit := time.After(10 * time.Second); ; {
			select {
			case got := <-told:
				if got == want+"<nil>" {
					return
				}
				if never != "" && strings.Contains(got, never) {
					t.Fatalf("told %q", got)
				}
			case <-limit:
				t.Fatalf("never told %q", want)
			}
		}
	}
	expect("", "")
	ns.Run(t, "ip", "address", "add", "192.0.2.1/24", "dev", "up0")
	expect("192.0.2.1 true", "")
	ns.Run(t, "ip", "address", "add", "192.0.2.1/25", "dev", "up0") // the length of its prefix changes
	expect("192.0.2.1 true, 192.0.2.1 true", "")
	ns.Run(t, "ip", "address", "del", "192.0.2.1/24", "dev", "up0")
	expect("192.0.2.1 true", "")
	ns.Run(t, "ip", "address", "add", "192.0.2.1/24", "dev", "up0")
	ns.Run(t, "ip", "address", "del", "192.0.2.1/25", "dev", "up0")
	expect("192.0.2.1 true", "")
	ns.Run(t, "ip", "address", "add", "2001:db8::1/64", "dev", "up0")
	expect("192.0.2.1 true, 2001:db8::1 false", "") // new: it waits
	expect("192.0.2.1 true, 2001:db8::1 true", "")
	usable := func(all addresses) (usable bool) {
		t.Helper()
		if err := ns.Enter(all.read); err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			usable = usable || a.addr == netip.MustParseAddr("2001:db8::1") && a.usable
		}
		return usable
	}
	known := addresses{}
	if !usable(known) {
		t.Error("an address that is the node's is not usable")
	}
	ns.Run(t, "ip", "link", "set", "up0", "down")
	ns.Run(t, "ip", "link", "set", "up0", "up")
	if !usable(known) || usable(addresses{}) {
		t.Error("on a link that has returned an address is usable if, and only if, it was before")
	}
	if out := ns.Run(t, "ip", "-6", "address", "show", "dev", "up0"); !strings.Contains(out, "2001:db8::1/64 scope global tentative") {
		t.Fatalf("the kernel does not make sure of the address again: %s", out)
	}
	ns.Run(t, "ip", "address", "add", "192.0.2.2/24", "dev", "up0")
	expect("192.0.2.1 true, 192.0.2.2 true, 2001:db8::1 true", "2001:db8::1 false")
	ns.Run(t, "ip", "address", "del", "192.0.2.1/24", "dev", "up0") // and those of its network with it
	expect("2001:db8::1 true", "2001:db8::1 false")
	ns.Run(t, "ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "up0")
	expect("2001:db8::1 true", "") // and looks for gateways
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// BenchmarkAddresses is what a change costs on a node with 10,000 addresses, as kube-proxy in its IPVS mode gives it.
func BenchmarkAddresses(b *testing.B) {
	all := addresses{}
	_, prefix, _ := net.ParseCIDR("198.18.0.0/32")
	for i := range 10_000 {
		prefix.IP = net.IPv4(198, 18, byte(i>>8), byte(i))
		all.take(prefix, 2, 0, true)
	}
	prefix.IP = net.IPv4(192, 0, 2, 1)
	for here := true; b.Loop(); here = !here {
		all.take(prefix, 1, 0, here)
		_, _ = neighbours(all.list(), nodeAddr, 0)
	}
}

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
		{name: "both over IPv4, three IPv6 addresses", local: "192.0.2.1", others: "192.0.2.1 2001:db8::8 2001:db8::7 2001:db8::9", v4: true, v6: true, want4: "192.0.2.1", want6: "2001:db8::7"},
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
		got, problem := chooseNextHops(addr(tt.local), others, Options{}, agreement{carries: [2]bool{tt.v4, tt.v6}, v4over6: tt.v4over})
		if got != (nextHops{addr(tt.want4), addr(tt.want6)}) || tt.problem == "" != (problem == "") || !strings.Contains(problem, tt.problem) {
			t.Errorf("%s: %s, %q; want %s, %s, %q", tt.name, got, problem, tt.want4, tt.want6, tt.problem)
		}
	}
}
