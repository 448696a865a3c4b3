package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// both is the ranges of sides, and everything is what the kernel holds when they are guarded against eth0.
const both = "198.18.0.0/16 2001:db8:96::/112"

var everything = kernelHas(
	"-4 400: from all iif eth0 lookup 1668047218 proto 67",
	"-4 unreachable 198.18.0.0/16 table 1668047218 proto 67 scope global",
	"-6 400: from all iif eth0 lookup 1668047218 proto 67",
	"-6 unreachable 2001:db8:96::/112 dev lo table 1668047218 proto 67 scope global metric 1024 pref medium",
)

func kernelHas(lines ...string) string { return strings.Join(lines, "\n") }

// A packet to an address of the range that no Service has goes in circles without the guard, and is answered by the
// node when it comes in by a guarded interface: the client's at its first arrival, the pod's only when the router sends
// it back, unless the pod's interface is guarded too.
func TestUnusedAddress(t *testing.T) {
	const circles = -1
	for _, tt := range []struct {
		interfaces  string
		client, pod int // how often the packet passes between router and node
	}{
		{"", circles, circles},
		{"eth0", 1, 2},
		{"eth0 veth0", 1, 0},
		{"veth0", circles, 0},
	} {
		// Each on nodes of its own, since the kernel limits the rate of its answers to an address.
		t.Run(tt.interfaces, func(t *testing.T) {
			n := newNetwork(t)
			check := func(when, name string, ns namespace, s side, want int, from ...netip.Addr) {
				t.Helper()
				icmp, passed := n.probe(t, ns, s, s.unused)
				if want == circles {
					if !strings.HasPrefix(icmp, "time exceeded") || passed < 50 {
						t.Errorf("%s: %s: the %s's packet passed %d times and was answered with %s", when, s.name, name, passed, icmp)
					}
					return
				}
				if passed != want || !slices.ContainsFunc(from, func(a netip.Addr) bool { return icmp == s.answer+a.String() }) {
					t.Errorf("%s: %s: the %s's packet passed %d times and was answered with %s, want %d and %s%v", when, s.name, name, passed, icmp, want, s.answer, from)
				}
				if _, err := ns.fetch(netip.AddrPortFrom(s.unused, 80)); !errors.Is(err, s.unreachable) {
					t.Errorf("%s: %s: the %s's connection fails with %v, want %v", when, s.name, name, err, s.unreachable)
				}
			}
			g, stop := n.node.start(t)
			g.set(t, tt.interfaces, both)
			for _, s := range sides {
				check("with the guard", "client", n.client, s, tt.client, s.nodeAddr)
				check("with the guard", "pod", n.pod, s, tt.pod, s.gateway, s.nodeAddr)
			}
			stop()
			for _, s := range sides {
				check("after the guard", "client", n.client, s, circles)
				check("after the guard", "pod", n.pod, s, circles)
			}
		})
	}
}

// An interface that disappears and comes back is guarded from its first packet on.
func TestInterfaceReturns(t *testing.T) {
	n := newNetwork(t)
	g, _ := n.node.start(t)
	g.set(t, "eth0", both)
	n.node.IP(t, "link del eth0")
	if got, want := n.node.guarded(t), strings.ReplaceAll(everything, "eth0", "eth0 [detached]"); got != want {
		t.Errorf("without the interface the kernel has\n%s\nwant\n%s", got, want)
	}
	n.plug(t)
	if got := n.node.guarded(t); got != everything {
		t.Errorf("the kernel has\n%s\nwant\n%s", got, everything)
	}
	for _, s := range sides {
		if icmp, passed := n.probe(t, n.client, s, s.unused); !strings.HasPrefix(icmp, "destination unreachable") || passed != 1 {
			t.Errorf("%s: the packet passed %d times and was answered with %s", s.name, passed, icmp)
		}
	}
}

// What has somewhere to go gets there: translated by the Service proxy, to an address of the node, or from the node. What
// the proxy rejects of the pod's is rejected.
func TestServicesAreReached(t *testing.T) {
	n := newNetwork(t)
	n.node.IP(t, "link add ipvs0 type bridge")
	rules := "table inet proxy {\n"
	for _, hook := range []string{"prerouting", "output"} {
		rules += "chain " + hook + " { type nat hook " + hook + " priority -100;\n"
		for _, s := range sides {
			family := map[bool]string{true: "ip", false: "ip6"}[s.unused.Is4()]
			rules += fmt.Sprintf("%s daddr %s tcp dport 80 dnat %s to %s\n", family, s.service, family, netip.AddrPortFrom(s.podAddr, 8080))
			rules += fmt.Sprintf("%s daddr %s tcp dport 80 dnat %s to %s\n", family, s.fromPod, family, netip.AddrPortFrom(s.clientAddr, 8080))
		}
		rules += "}\n"
	}
	rules += "chain forward { type filter hook forward priority 0;\n"
	for _, s := range sides {
		rules += fmt.Sprintf("%s daddr %s reject with icmpx port-unreachable\n", map[bool]string{true: "ip", false: "ip6"}[s.unused.Is4()], s.rejected)
	}
	rules += "}\n"
	nft := exec.Command("ip", "netns", "exec", n.node.Name, "nft", "-f", "-")
	nft.Stdin = strings.NewReader(rules + "}\n")
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s\n%s", err, out, rules)
	}
	for _, s := range sides {
		n.node.IP(t, fmt.Sprintf("addr add %s/%d dev ipvs0", s.own, s.own.BitLen()))
		n.pod.serve(t, netip.AddrPortFrom(s.podAddr, 8080), "pod")
		n.client.serve(t, netip.AddrPortFrom(s.clientAddr, 8080), "client")
		n.node.serve(t, netip.AddrPortFrom(s.own, 80), "node")
	}
	leaves := func() (out string) {
		for _, s := range sides {
			out += n.node.IP(t, "route get "+s.unused.String())
			out += n.node.IP(t, fmt.Sprintf("route get %s from %s iif veth0", s.unused, s.podAddr))
		}
		return out
	}
	before := leaves()

	g, _ := n.node.start(t)
	g.set(t, "eth0", both)
	for _, s := range sides {
		for _, tt := range []struct {
			name string
			from namespace
			to   netip.Addr
			want string
		}{
			{"client to a Service", n.client, s.service, "pod"},
			{"client to an address of the node", n.client, s.own, "node"},
			{"pod to a Service", n.pod, s.fromPod, "client"},
			{"pod to an address of the node", n.pod, s.own, "node"},
			{"node to a Service", n.node, s.service, "pod"},
			{"node to its own address", n.node, s.own, "node"},
		} {
			if got, err := tt.from.fetch(netip.AddrPortFrom(tt.to, 80)); got != tt.want {
				t.Errorf("%s: %s: reached %q, want %q (%v)", s.name, tt.name, got, tt.want, err)
			}
		}
		for _, tt := range []struct {
			name string
			from namespace
			want error
		}{{"client", n.client, s.unreachable}, {"pod", n.pod, unix.ECONNREFUSED}} {
			if _, err := tt.from.fetch(netip.AddrPortFrom(s.rejected, 80)); !errors.Is(err, tt.want) {
				t.Errorf("%s: %s to a Service without endpoints: %v, want %v", s.name, tt.name, err, tt.want)
			}
		}
	}
	if after := leaves(); after != before || strings.Count(after, "via") != 4 {
		t.Errorf("what the node and its pod send to an unused address leaves by\n%swant as before\n%s", after, before)
	}
}

// The guard follows what is wanted, adds nothing twice, and leaves nothing behind.
func TestKernelState(t *testing.T) {
	ns := newNode(t)
	ns.IP(t, "rule add priority 500 from 192.0.2.9 lookup 100")
	ns.IP(t, "route add unreachable 203.0.113.0/24 table 100")
	before := ns.routing(t)

	g, stop := ns.start(t)
	for _, tt := range []struct{ name, interfaces, prefixes, kernel string }{
		{"both", "eth0", both, everything},
		{"the same again", "eth0", both, everything},
		{"one family", "eth0", "198.18.0.0/16", kernelHas(
			"-4 400: from all iif eth0 lookup 1668047218 proto 67",
			"-4 unreachable 198.18.0.0/16 table 1668047218 proto 67 scope global",
		)},
		{"another range, and one inside", "eth0", "198.19.0.0/16 198.19.4.0/24", kernelHas(
			"-4 400: from all iif eth0 lookup 1668047218 proto 67",
			"-4 unreachable 198.19.0.0/16 table 1668047218 proto 67 scope global",
			"-4 unreachable 198.19.4.0/24 table 1668047218 proto 67 scope global",
		)},
		{"two interfaces", "eth0 eth1", both, kernelHas(
			"-4 400: from all iif eth0 lookup 1668047218 proto 67",
			"-4 400: from all iif eth1 lookup 1668047218 proto 67",
			"-4 unreachable 198.18.0.0/16 table 1668047218 proto 67 scope global",
			"-6 400: from all iif eth0 lookup 1668047218 proto 67",
			"-6 400: from all iif eth1 lookup 1668047218 proto 67",
			"-6 unreachable 2001:db8:96::/112 dev lo table 1668047218 proto 67 scope global metric 1024 pref medium",
		)},
		{"one kept, one that does not exist", "eth1 eth2", "198.18.0.0/16", kernelHas(
			"-4 400: from all iif eth1 lookup 1668047218 proto 67",
			"-4 400: from all iif eth2 [detached] lookup 1668047218 proto 67",
			"-4 unreachable 198.18.0.0/16 table 1668047218 proto 67 scope global",
		)},
		{"no prefixes", "eth0", "", ""},
		{"the other family", "eth0", "2001:db8:96::/112", kernelHas(
			"-6 400: from all iif eth0 lookup 1668047218 proto 67",
			"-6 unreachable 2001:db8:96::/112 dev lo table 1668047218 proto 67 scope global metric 1024 pref medium",
		)},
		{"no interfaces", "", both, ""},
	} {
		g.set(t, tt.interfaces, tt.prefixes)
		if got := ns.guarded(t); got != tt.kernel {
			t.Errorf("%s: the kernel has\n%s\nwant\n%s", tt.name, got, tt.kernel)
		}
	}
	g.set(t, "eth0", both)
	stop()
	if after := ns.routing(t); after != before {
		t.Errorf("left behind: the routing is\n%swant\n%s", after, before)
	}
}

// crash leaves behind what a Guard had in the kernel when its process was killed.
func (ns namespace) crash(t *testing.T, interfaces, prefixes string) {
	t.Helper()
	err := ns.Enter(func() error {
		k, err := openKernel()
		if err != nil {
			return err
		}
		defer k.close()
		defer k.stopWatching()
		return New(Config{Log: slog.New(slog.DiscardHandler)}).apply(k, want(interfaces, prefixes), false)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// watch returns a func that lists the changes to the guard's rules and routes since.
func (ns namespace) watch(t *testing.T) (changes func() []string) {
	t.Helper()
	var seen *kernel
	if err := ns.Enter(func() (err error) { seen, err = openKernel(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { seen.stopWatching(); seen.close() })
	names := map[uint16]string{
		unix.RTM_NEWRULE: "add rule", unix.RTM_DELRULE: "remove rule",
		unix.RTM_NEWROUTE: "add route", unix.RTM_DELROUTE: "remove route",
	}
	return func() (list []string) {
		ns.IP(t, "route add unreachable 203.0.113.0/24 table 100") // ends what is read of the events
		defer ns.IP(t, "route flush table 100")
		for {
			messages, _, err := seen.events.Receive()
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range messages {
				switch tableOf(m.Data) {
				case Table:
					list = append(list, names[m.Header.Type])
				case 100:
					return list
				}
			}
		}
	}
}

// A Guard takes over what one that was killed left, without a moment in which it is gone, and removes what of it is not
// wanted any more.
func TestCrash(t *testing.T) {
	for _, tt := range []struct {
		name, interfaces, prefixes string
		changes                    []string
	}{
		{"the same", "eth0", both, nil},
		{"interfaces that are not wanted", "eth0 eth1 gone", both, []string{"remove rule", "remove rule", "remove rule", "remove rule"}},
		{"a prefix that is not wanted", "eth0", "198.18.0.0/16 198.19.0.0/16 2001:db8:96::/112", []string{"remove route"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ns := newNode(t)
			before := ns.routing(t)
			ns.crash(t, tt.interfaces, tt.prefixes)
			changes := ns.watch(t)
			g, stop := ns.start(t)
			g.set(t, "eth0", both)
			if got := ns.guarded(t); got != everything {
				t.Errorf("the kernel has\n%s\nwant\n%s", got, everything)
			}
			if got := changes(); !slices.Equal(got, tt.changes) {
				t.Errorf("the guard did %q, want %q", got, tt.changes)
			}
			stop()
			if after := ns.routing(t); after != before {
				t.Errorf("left behind: the routing is\n%swant\n%s", after, before)
			}
		})
	}
}

// What is wanted is there before what is not is gone, and no rule leads to a table without routes.
func TestOrder(t *testing.T) {
	ns := newNode(t)
	g, _ := ns.start(t)
	for _, tt := range []struct {
		interfaces, prefixes string
		changes              []string
	}{
		{"eth0", "198.18.0.0/16", []string{"add route", "add rule"}},
		{"eth1", "198.19.0.0/16", []string{"add route", "add rule", "remove rule", "remove route"}},
		{"eth0 eth1", "198.19.0.0/16", []string{"add rule"}},
		{"eth0", "198.19.0.0/16", []string{"remove rule"}},
		{"", "198.19.0.0/16", []string{"remove rule", "remove route"}},
	} {
		changes := ns.watch(t)
		g.set(t, tt.interfaces, tt.prefixes)
		if got := changes(); !slices.Equal(got, tt.changes) {
			t.Errorf("to guard %s against %q, the guard did %q, want %q", tt.prefixes, tt.interfaces, got, tt.changes)
		}
	}
}

// While a speaker is replaced, the old one may end after the new one has begun: what it takes away comes back.
func TestOverlap(t *testing.T) {
	ns := newNode(t)
	older, stop := ns.start(t)
	older.set(t, "eth0", both)
	newer, _ := ns.start(t)
	newer.set(t, "eth0", both)
	stop()
	eventually(t, "the newer one's rules and routes", func() bool { return ns.guarded(t) == everything })
}

// Unknown is not empty: until the first Set, what was left stays. The first Set may say that nothing is to be guarded.
func TestLeftUntilFirstSet(t *testing.T) {
	ns := newNode(t)
	before := ns.routing(t)
	ns.crash(t, "eth0", both)
	g, stop := ns.start(t)
	// Changes in the guard's table make the guard look.
	ns.IP(t, fmt.Sprintf("route add unreachable 203.0.113.0/24 table %d", Table))
	ns.IP(t, fmt.Sprintf("route del unreachable 203.0.113.0/24 table %d", Table))
	if got := ns.guarded(t); got != everything {
		t.Errorf("before the first Set the kernel has\n%s\nwant\n%s", got, everything)
	}
	g.Set(Want{})
	eventually(t, "what was left is removed", func() bool { return ns.routing(t) == before })
	stop()
}

// Rules and routes of the guard that are not as they should be are put right, and those of others are left alone.
func TestWrongOnes(t *testing.T) {
	ns := newNode(t)
	own := fmt.Sprintf("table %d proto %d", Table, Protocol)
	for _, line := range []string{
		"rule add iif eth0 priority 399 " + own,                        // another priority
		"rule add not iif eth0 priority 400 " + own,                    // all but what it should catch, and the kernel takes it for the same
		"rule add not iif lo priority 400 " + own,                      // would catch what pods send
		"rule add iif eth0 priority 400 from 192.0.2.9 " + own,         // not for everybody
		"rule add iif eth1 priority 400 " + own,                        // not wanted any more
		"rule add priority 400 " + own,                                 // for everything
		"-6 rule add iif lo priority 400 " + own,                       // would catch what the node sends
		"-6 rule add iif eth0 priority 401 " + own,                     // another priority
		"route add blackhole 198.18.0.0/16 " + own,                     // no answer
		"route add unreachable 198.18.0.0/16 metric 5 " + own,          // twice
		"route add unreachable 203.0.113.0/24 " + own,                  // not wanted any more
		"route add unreachable default " + own,                         // never
		"-6 route add blackhole 2001:db8:96::/112 " + own,              // the same in IPv6
		"-6 route add unreachable 2001:db8:96::/112 metric 5 " + own,   //
		"-6 route add unreachable 2001:db8:97::/112 metric 512 " + own, //
	} {
		ns.IP(t, line)
	}
	foreign := []string{"rule add priority 500 from 192.0.2.9 lookup 100", "rule add iif eth0 priority 400 lookup 100", "route add unreachable 198.18.0.0/16 table 100"}
	for _, line := range foreign {
		ns.IP(t, line)
	}
	g, _ := ns.start(t)
	g.set(t, "eth0", both)
	want := []string{
		"-4 400: from all iif eth0 lookup 1668047218 proto 67",
		"-4 unreachable 198.18.0.0/16 ",
		"-6 400: from all iif eth0 lookup 1668047218 proto 67",
		"-6 unreachable 2001:db8:96::/112 ",
	}
	// One that had been there with another metric may have been kept.
	eventually(t, "the guard's rules and routes, each once", func() bool {
		lines := strings.Split(ns.guarded(t), "\n")
		if len(lines) != len(want) {
			return false
		}
		for i := range want {
			if !strings.HasPrefix(lines[i], want[i]) {
				return false
			}
		}
		return true
	})
	all := ns.routing(t)
	for _, line := range []string{"from 192.0.2.9 lookup 100", "iif eth0 lookup 100", "unreachable 198.18.0.0/16 table 100"} {
		if !strings.Contains(all, line) {
			t.Errorf("%q of another program is gone:\n%s", line, all)
		}
	}
}

// What another program removes or replaces comes back.
func TestRepair(t *testing.T) {
	ns := newNode(t)
	g, _ := ns.start(t)
	g.set(t, "eth0", both)
	table := fmt.Sprint(Table)
	for _, lines := range [][]string{
		{"-4 rule del priority 400", "-6 route flush table " + table},
		{"-6 rule del priority 400", "-4 route flush table " + table},
		{"rule add priority 400 proto 67 table " + table}, // for everything
		{"route replace blackhole 198.18.0.0/16 table " + table},
		{"-4 rule flush", "-6 rule flush", "-4 route flush table " + table, "-6 route flush table " + table}, // as a network manager does
	} {
		for _, line := range lines {
			ns.IP(t, line)
		}
		eventually(t, "the guard is back after "+strings.Join(lines, ", "), func() bool { return ns.guarded(t) == everything })
	}
}

// The guard works where IPv6 is switched off on the interfaces.
func TestIPv6SwitchedOff(t *testing.T) {
	ns := newNode(t)
	ns.Run(t, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.lo.disable_ipv6=1")
	g, _ := ns.start(t)
	g.set(t, "eth0", both)
	if got := ns.guarded(t); got != everything {
		t.Errorf("the kernel has\n%s\nwant\n%s", got, everything)
	}
}

// Ranges that would cut the pods off are not guarded, nor is what the node itself sends, and nothing twice.
func TestSetLeavesOut(t *testing.T) {
	ns := newNode(t)
	g, _ := ns.start(t)
	g.Set(Want{
		Prefixes: []netip.Prefix{
			{}, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"),
			netip.PrefixFrom(netip.MustParseAddr("::ffff:198.18.0.0"), 112),
			netip.PrefixFrom(netip.MustParseAddr("198.18.7.7"), 16), netip.MustParsePrefix("198.18.0.0/16"),
		},
		Interfaces: []string{"lo", "eth1", "", "eth0", "eth1"},
	})
	eventually(t, "the only proper prefix guarded", func() bool { return fmt.Sprint(g.Status().Prefixes) == "[198.18.0.0/16]" })
	want := kernelHas(
		"-4 400: from all iif eth0 lookup 1668047218 proto 67",
		"-4 400: from all iif eth1 lookup 1668047218 proto 67",
		"-4 unreachable 198.18.0.0/16 table 1668047218 proto 67 scope global",
	)
	if got := ns.guarded(t); got != want {
		t.Errorf("the kernel has\n%s\nwant\n%s", got, want)
	}
}

// What the kernel refuses is named, and does not keep the rest from being guarded.
func TestRefused(t *testing.T) {
	ns := newNode(t)
	g, _ := ns.start(t)
	g.Set(want("eth0 name-of-17-bytes", both))
	eventually(t, "an error", func() bool { return g.Status().Err != nil })
	s := g.Status()
	if fmt.Sprint(s.Prefixes, s.Interfaces) != "["+both+"] [eth0]" || !strings.Contains(s.Err.Error(), "name-of-17-bytes") {
		t.Errorf("Status: %v", s)
	}
	if got := ns.guarded(t); got != everything {
		t.Errorf("the kernel has\n%s\nwant\n%s", got, everything)
	}
	g.set(t, "eth0", both) // the error does not stay
}

// Without the right to change the routing the Status says so, and OnChange tells.
func TestNotPermitted(t *testing.T) {
	ns := newNode(t)
	changed := make(chan struct{}, 16)
	g := New(Config{Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)), OnChange: func() { changed <- struct{}{} }})
	g.Set(want("eth0", "198.18.0.0/16"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- ns.Enter(func() error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			if err := unix.Capset(&header, &none[0]); err != nil {
				return err
			}
			return g.Run(ctx)
		})
	}()
	<-changed
	if s := g.Status(); !errors.Is(s.Err, unix.EPERM) || len(s.Prefixes) > 0 || len(s.Interfaces) > 0 {
		t.Errorf("Status: %v", s)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("there was nothing to remove, and yet: %v", err)
	}
}
