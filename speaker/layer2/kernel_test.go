package layer2

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// In these tests the Linux kernel of another host, and its tools, are the judges of what we say.

// tap reads and writes frames on an interface inside a namespace.
type tap struct {
	conn *packet.Conn
	mu   sync.Mutex
	got  []message
}

func (ns namespace) tap(t *testing.T, name string) *tap {
	t.Helper()
	c := &tap{}
	err := ns.Enter(func() error {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		c.conn, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, _, err := c.conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if m, err := parse(buf[:n]); err == nil {
				c.mu.Lock()
				c.got = append(c.got, m)
				c.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() { c.conn.Close(); <-done })
	return c
}

func (c *tap) send(t *testing.T, frames ...[]byte) {
	t.Helper()
	for _, f := range frames {
		if _, err := c.conn.WriteTo(f, &packet.Addr{HardwareAddr: f[:6]}); err != nil {
			t.Fatal(err)
		}
	}
}

// heard reports how often mac said that it has addr.
func (c *tap) heard(addr netip.Addr, mac MAC) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.got {
		if m.claim == addr && m.claimMAC == mac {
			n++
		}
	}
	return n
}

// routed makes the external addresses neighbours of the host.
func (ns namespace) routed(t *testing.T) {
	t.Helper()
	ns.Run(t, "ip", "route", "add", vip4.String()+"/32", "dev", "eth0")
	ns.Run(t, "ip", "route", "add", vip6.String()+"/128", "dev", "eth0")
}

func both() []Address { return []Address{{Addr: vip4}, {Addr: vip6}} }

// resolves reports whether the kernel's own resolution finds addr at mac.
func (ns namespace) resolves(t *testing.T, addr netip.Addr, mac MAC) bool {
	t.Helper()
	ns.forget(t, addr.String())
	ns.OK("ping", "-c1", "-W1", addr.String()) // nobody answers the echo itself
	got, _ := ns.neighbour(t, addr.String())
	return got == mac.String()
}

func arping(addr netip.Addr) []string {
	if addr.Is6() {
		return []string{"ndisc6", "-1", "-r1", "-w", "1000", addr.String(), "eth0"}
	}
	return []string{"arping", "-c1", "-w1", "-I", "eth0", addr.String()}
}

// answered waits until a tool of the host gets an answer for addr; a loaded machine may lose a frame.
func (ns namespace) answered(t *testing.T, addr netip.Addr) {
	t.Helper()
	eventually(t, addr.String()+" is answered", func() bool { return ns.OK(arping(addr)...) })
}

func TestKernelResolves(t *testing.T) {
	l := newLAN(t, 2)
	client, node := l.hosts[0], l.hosts[1]
	client.routed(t)
	r := node.start(t, Config{})
	r.Set(both())
	answering(t, r, "eth0", vip4.String(), vip6.String())
	for _, addr := range bothFamilies {
		eventually(t, "the kernel finds "+addr.String(), func() bool { return client.resolves(t, addr, node.mac(t, "eth0")) })
		client.answered(t, addr)
		if client.OK(arping(addr.Next())...) {
			t.Errorf("%s is answered and not ours", addr.Next())
		}
		// The kernel verifies an entry by asking the station itself.
		client.Run(t, "ip", "neigh", "replace", addr.String(), "lladdr", node.mac(t, "eth0").String(), "dev", "eth0", "nud", "probe")
		eventually(t, addr.String()+" verified by a unicast question", func() bool {
			_, state := client.neighbour(t, addr.String())
			return state == "REACHABLE"
		})
	}
	eventually(t, "a probe for an address that we have is answered", func() bool {
		return !client.OK("arping", "-D", "-c1", "-w1", "-I", "eth0", vip4.String())
	})
	client.Run(t, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=1")
	client.Run(t, "ip", "addr", "add", vip6.String()+"/64", "dev", "eth0")
	eventually(t, "duplicate address detection fails", func() bool {
		return strings.Contains(client.Run(t, "ip", "-6", "addr", "show", "dev", "eth0"), "dadfailed")
	})
	r.Set(nil)
	for _, addr := range bothFamilies {
		if client.OK(arping(addr)...) {
			t.Errorf("%s is answered after it left the set", addr)
		}
	}
}

// A neighbour that believes the address to be elsewhere is corrected at once, whatever happened on our side.
func TestKernelLearnsAnnouncements(t *testing.T) {
	l := newLAN(t, 2)
	client, node := l.hosts[0], l.hosts[1]
	client.routed(t)
	r := node.start(t, Config{})
	mislead := func() {
		for _, addr := range bothFamilies {
			client.Run(t, "ip", "neigh", "replace", addr.String(), "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "reachable")
		}
	}
	corrected := func(what string) {
		t.Helper()
		since := time.Now()
		for _, addr := range bothFamilies {
			want := node.mac(t, "eth0").String()
			eventually(t, fmt.Sprintf("%s: %s is announced", what, addr), func() bool { got, _ := client.neighbour(t, addr.String()); return got == want })
		}
		t.Logf("%s: known after %v at the latest", what, time.Since(since).Round(time.Millisecond))
		for _, addr := range bothFamilies {
			client.answered(t, addr)
		}
	}
	mislead()
	r.Set(both())
	corrected("taken over")

	node.Run(t, "ip", "link", "set", "eth0", "down")
	answering(t, r, "", vip4.String(), vip6.String())
	mislead()
	node.Run(t, "ip", "link", "set", "eth0", "up")
	corrected("interface down and up")

	l.hub.Run(t, "ip", "link", "set", "eth0-1", "down")
	answering(t, r, "", vip4.String(), vip6.String())
	mislead()
	l.hub.Run(t, "ip", "link", "set", "eth0-1", "up")
	corrected("carrier lost and back")

	mislead()
	node.Run(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:55")
	corrected("hardware address changed")

	node.Run(t, "ip", "link", "del", "eth0")
	answering(t, r, "", vip4.String(), vip6.String())
	mislead()
	l.plug(t, 1, "eth0")
	corrected("interface deleted and created again")
}

func TestKernelInterfaces(t *testing.T) {
	t.Run("without an IPv4 address", func(t *testing.T) {
		l := newLAN(t, 2)
		l.hosts[1].Run(t, "ip", "addr", "flush", "dev", "eth0")
		r := l.hosts[1].start(t, Config{})
		r.Set(both())
		answering(t, r, "eth0", vip4.String(), vip6.String())
		for _, addr := range bothFamilies {
			l.hosts[0].answered(t, addr)
		}
	})
	t.Run("without IPv6", func(t *testing.T) {
		l := newLAN(t, 2)
		l.hosts[1].Run(t, "sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")
		r := l.hosts[1].start(t, Config{})
		r.Set(both())
		answering(t, r, "eth0", vip4.String())
		l.hosts[0].answered(t, vip4)
	})
	t.Run("not selected", func(t *testing.T) {
		l := newLAN(t, 2)
		l.plug(t, 1, "eth1")
		tap := l.hosts[0].tap(t, "eth0")
		r := l.hosts[1].start(t, Config{})
		r.Set([]Address{{Addr: vip4, Interfaces: []string{"eth1"}}, {Addr: vip6, Interfaces: []string{"eth[1-9]"}}})
		answering(t, r, "eth1", vip4.String(), vip6.String())
		l.hosts[0].routed(t)
		for _, addr := range bothFamilies {
			eventually(t, addr.String()+" is found on eth1", func() bool { return l.hosts[0].resolves(t, addr, l.hosts[1].mac(t, "eth1")) })
		}
		if n := tap.heard(vip4, l.hosts[1].mac(t, "eth0")); n > 0 {
			t.Errorf("%d frames said that the address is on eth0", n)
		}
		// Two interfaces on one network: our own frames are no conflict.
		r.Set(nil)
		answering(t, r, "", vip4.String(), vip6.String())
		r.Set(both())
		answering(t, r, "eth0 eth1", vip4.String(), vip6.String())
		eventually(t, "both have announced", func() bool {
			return tap.heard(vip4, l.hosts[1].mac(t, "eth0")) > 2 && tap.heard(vip4, l.hosts[1].mac(t, "eth1")) > 2
		})
		if s := r.address(vip4.String()); s.Claims != 0 {
			t.Errorf("own frames counted as claims: %+v", s)
		}
	})
	t.Run("bridge", func(t *testing.T) {
		l := newLAN(t, 2)
		node := l.hosts[1]
		r := node.start(t, Config{})
		r.Set(both())
		answering(t, r, "eth0", vip4.String())
		node.Run(t, "ip", "link", "add", "br-ext", "type", "bridge", "forward_delay", "0")
		node.Run(t, "ip", "link", "set", "br-ext", "up")
		node.Run(t, "ip", "link", "set", "eth0", "master", "br-ext")
		answering(t, r, "br-ext", vip4.String(), vip6.String())
		l.hosts[0].routed(t)
		for _, addr := range bothFamilies {
			eventually(t, addr.String()+" is found on the bridge", func() bool { return l.hosts[0].resolves(t, addr, node.mac(t, "br-ext")) })
		}
		node.Run(t, "ip", "link", "set", "eth0", "nomaster")
		answering(t, r, "eth0", vip4.String(), vip6.String())
		eventually(t, "found on eth0 after it left the bridge", func() bool { return l.hosts[0].resolves(t, vip4, node.mac(t, "eth0")) })
	})
	for kind, link := range map[string][]string{
		"macvlan": {"ip", "link", "add", "link", "eth0", "name", "sub0", "type", "macvlan", "mode", "bridge"},
		"vlan":    {"ip", "link", "add", "link", "eth0", "name", "sub0", "type", "vlan", "id", "7"},
	} {
		t.Run(kind, func(t *testing.T) {
			l := newLAN(t, 2)
			client, node := l.hosts[0], l.hosts[1]
			if !node.OK(link...) {
				t.Skip("the kernel has no " + kind)
			}
			if kind == "vlan" {
				client.Run(t, link...)
				client.Run(t, "ip", "link", "set", "sub0", "up")
			}
			node.Run(t, "ip", "link", "set", "sub0", "up")
			r := node.start(t, Config{})
			r.Set([]Address{{Addr: vip4, Interfaces: []string{"sub0"}}, {Addr: vip6, Interfaces: []string{"sub0"}}})
			answering(t, r, "sub0", vip4.String(), vip6.String())
			on := map[string]string{"macvlan": "eth0", "vlan": "sub0"}[kind]
			eventually(t, "answered on "+on, func() bool {
				return client.OK("arping", "-c1", "-w1", "-I", on, vip4.String()) && client.OK("ndisc6", "-1", "-r1", "-w", "1000", vip6.String(), on)
			})
			if kind == "vlan" && client.OK(arping(vip4)...) {
				t.Error("answered outside the VLAN")
			}
		})
	}
	t.Run("tagged frames of a VLAN that has no interface", func(t *testing.T) {
		l := newLAN(t, 2)
		r := l.hosts[1].start(t, Config{})
		r.Set(both())
		answering(t, r, "eth0", vip4.String(), vip6.String())
		tap := l.hosts[0].tap(t, "eth0")
		sender := l.hosts[0].mac(t, "eth0")
		for _, addr := range bothFamilies {
			f, err := probe(addr, sender)
			if err != nil {
				t.Fatal(err)
			}
			tagged := slices.Concat(f[:12], []byte{0x81, 0x00, 0x00, 0x07}, f[12:])
			rounds := uint64(0)
			eventually(t, addr.String()+" asked for without a tag is answered", func() bool {
				tap.send(t, tagged, f)
				rounds++
				return r.address(addr.String()).Replies > 0
			})
			if n := r.address(addr.String()).Requests; n > rounds {
				t.Errorf("%s: %d requests for %d questions, the tagged ones are for another network", addr, n, rounds)
			}
		}
	})
}

// Nothing that comes in may end the answering.
func TestKernelMalformed(t *testing.T) {
	l := newLAN(t, 2)
	r := l.hosts[1].start(t, Config{})
	r.Set(both())
	answering(t, r, "eth0", vip4.String(), vip6.String())
	tap := l.hosts[0].tap(t, "eth0")
	sender := l.hosts[0].mac(t, "eth0")
	for _, addr := range bothFamilies {
		good, err := poll(addr, sender, broadcast, host6)
		if err != nil {
			t.Fatal(err)
		}
		for i := range good[etherLen:] {
			for _, bit := range []byte{1, 0x80, 0xff} {
				bad := slices.Clone(good)
				bad[etherLen+i] ^= bit
				tap.send(t, bad)
			}
			tap.send(t, good[:etherLen+i])
		}
		l.hosts[0].answered(t, addr)
	}
	if r.Status().Malformed == 0 {
		t.Error("no frame was counted as malformed")
	}
}

// Frames about others do not even wake the process.
func TestKernelFiltersForeign(t *testing.T) {
	l := newLAN(t, 2)
	r := l.hosts[1].start(t, Config{})
	r.Set(both())
	answering(t, r, "eth0", vip4.String(), vip6.String())
	tap := l.hosts[0].tap(t, "eth0")
	sender := l.hosts[0].mac(t, "eth0")
	passed := func() (n uint32) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, p := range r.ports {
			stats, err := p.wire.(*rawWire).conn.Stats()
			if err != nil {
				t.Fatal(err)
			}
			n += stats.Packets
		}
		return n
	}
	passed()
	const storm = 5000
	for i := range storm {
		for _, addr := range []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), vip6.Next()} {
			f, err := probe(addr, sender)
			if err != nil {
				t.Fatal(err)
			}
			tap.send(t, f)
		}
	}
	for _, addr := range bothFamilies { // comes after all the others
		l.hosts[0].answered(t, addr)
	}
	if n := passed(); n < 2 || n > 10 {
		t.Errorf("%d of %d frames passed", n, 2*storm)
	}
}

func TestKernelThousands(t *testing.T) {
	for _, optmem := range []string{"131072", "20480"} {
		t.Run(optmem, func(t *testing.T) {
			l := newLAN(t, 2)
			client, node := l.hosts[0], l.hosts[1]
			node.Run(t, "sysctl", "-qw", "net.core.optmem_max="+optmem)
			var addrs []Address
			for i := range 2000 {
				addrs = append(addrs, Address{Addr: netip.AddrFrom4([4]byte{198, 18, byte(i >> 6), byte(i << 2)})})
				addrs = append(addrs, Address{Addr: netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 1, 12: byte(i >> 16), 13: byte(i), 14: byte(i >> 8)})})
			}
			r := node.start(t, Config{})
			for n := 250; n <= len(addrs); n *= 2 { // the filter is replaced on the way
				r.Set(addrs[:n])
			}
			r.Set(addrs)
			eventually(t, "all are answered", func() bool {
				s := r.Status().Addresses
				return len(s) == len(addrs) && !slices.ContainsFunc(s, func(a AddressStatus) bool { return len(a.Interfaces) == 0 || a.Announcements == 0 })
			})
			for i := 0; i < len(addrs); i += 399 {
				client.answered(t, addrs[i].Addr)
			}
			if n := strings.Count(node.Run(t, "cat", "/proc/net/igmp6"), "ff0200000000000000000001ff"); n < 2000 {
				t.Errorf("member of %d solicited-node groups, want 2000", n)
			}
			r.Set(nil)
			eventually(t, "the groups are left", func() bool {
				return strings.Count(node.Run(t, "cat", "/proc/net/igmp6"), "ff0200000000000000000001ff") < 10
			})
		})
	}
}

func TestKernelConflict(t *testing.T) {
	l := newLAN(t, 2)
	client, node := l.hosts[0], l.hosts[1]
	conflicts := make(chan Conflict, 100)
	r := node.start(t, Config{OnConflict: func(c Conflict) {
		if !c.Over {
			conflicts <- c
		}
	}})
	for _, addr := range bothFamilies {
		client.Run(t, "ip", "addr", "add", netip.PrefixFrom(addr, addr.BitLen()).String(), "dev", "eth0")
		r.Set([]Address{{Addr: addr, Probe: DefaultProbe()}})
		if c := <-conflicts; c.Addr != addr || c.MAC != client.mac(t, "eth0") || !c.Before || c.Interface != "eth0" {
			t.Errorf("conflict %+v", c)
		}
		if got := r.address(addr.String()); got.State != Contested || got.Announcements != 0 {
			t.Errorf("%+v, want it contested and never announced", got)
		}
		client.Run(t, "ip", "addr", "del", netip.PrefixFrom(addr, addr.BitLen()).String(), "dev", "eth0")
	}
	r.Set(nil)
	r.Set(addresses(vip4.String()))
	answering(t, r, "eth0", vip4.String())
	client.Run(t, "ip", "addr", "add", vip4.String()+"/32", "dev", "eth0")
	client.Run(t, "arping", "-U", "-c1", "-I", "eth0", vip4.String())
	if c := <-conflicts; c.Addr != vip4 || c.Before || c.MAC != client.mac(t, "eth0") {
		t.Errorf("conflict %+v", c)
	}
	answering(t, r, "eth0", vip4.String())
}

// Two speakers on a real network: one owner; when it stops the other takes over, and the neighbours follow.
func TestKernelTakeover(t *testing.T) {
	l := newLAN(t, 3)
	client := l.hosts[0]
	client.routed(t)
	better := l.hosts[1].mac(t, "eth0")
	judge := func(c Claim) Verdict {
		if c.MAC == better {
			return Yield
		}
		return Defend
	}
	two := l.hosts[2].start(t, Config{Judge: judge})
	two.Set(both())
	answering(t, two, "eth0", vip4.String(), vip6.String())
	one, stop := l.hosts[1].startUntil(t, Config{Judge: judge})
	one.Set(both())
	for _, addr := range bothFamilies {
		eventually(t, "the worse one yields", func() bool { return two.address(addr.String()).Holder == better })
		eventually(t, addr.String()+" is found at the better one", func() bool { return client.resolves(t, addr, better) })
	}
	stop()
	for _, addr := range bothFamilies {
		want := l.hosts[2].mac(t, "eth0").String()
		eventually(t, addr.String()+" is known to have moved", func() bool { got, _ := client.neighbour(t, addr.String()); return got == want })
	}
}

// A network of two switches falls apart into one of each, with an owner and a client behind both, and is joined again
// while nothing says so: no link of a node changed, and the speakers do not hear of each other. There is one owner within
// moments, and the clients behind both switches know it.
func TestKernelSplitHeals(t *testing.T) {
	l := newLAN(t, 4)
	near, far := l.hosts[2], l.hosts[3]
	l.hub.Run(t, "ip", "link", "add", "br1", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
	l.hub.Run(t, "ip", "link", "set", "br1", "up")
	for _, port := range []string{"eth0-1", "eth0-3"} {
		l.hub.Run(t, "ip", "link", "set", port, "master", "br1")
	}
	l.hub.Run(t, "ip", "link", "add", "trunk0", "type", "veth", "peer", "name", "trunk1")
	l.hub.Run(t, "ip", "link", "set", "trunk0", "master", "br0")
	l.hub.Run(t, "ip", "link", "set", "trunk1", "master", "br1", "up")
	better, worse := l.hosts[0].mac(t, "eth0"), l.hosts[1].mac(t, "eth0")
	judge := func(c Claim) Verdict {
		switch c.MAC {
		case better:
			return Yield
		case worse:
			return Defend
		}
		return Foreign
	}
	one, two := l.hosts[0].start(t, Config{Judge: judge, Refresh: -1}), l.hosts[1].start(t, Config{Judge: judge, Refresh: -1})
	one.Set(both())
	two.Set([]Address{{Addr: vip4, Seek: true}, {Addr: vip6, Seek: true}})
	near.routed(t)
	far.routed(t)
	for _, addr := range bothFamilies {
		eventually(t, addr.String()+" is found on both sides", func() bool { return near.resolves(t, addr, better) && far.resolves(t, addr, worse) })
		eventually(t, "the announcements of the beginning are over", func() bool {
			return one.address(addr.String()).Announcements == 5 && two.address(addr.String()).Announcements == 5
		})
		// An entry that is believed in for now: only an announcement changes it.
		far.Run(t, "ip", "neigh", "replace", addr.String(), "lladdr", worse.String(), "dev", "eth0", "nud", "permanent")
		far.Run(t, "ip", "neigh", "change", addr.String(), "dev", "eth0", "nud", "reachable")
	}
	l.hub.Run(t, "ip", "link", "set", "trunk0", "up")
	healed := time.Now()
	for _, addr := range bothFamilies {
		eventually(t, addr.String()+" has one owner", func() bool {
			return two.address(addr.String()).Holder == better && one.address(addr.String()).State == Answering
		})
		eventually(t, addr.String()+" is known behind the other switch to have moved", func() bool {
			got, _ := far.neighbour(t, addr.String())
			return got == better.String()
		})
	}
	t.Logf("whole again after %v", time.Since(healed).Round(time.Millisecond))
}

// A holder that is asked all the time whether it still is must not have its kernel route the questions, or refuse them.
func TestKernelPollsAreNotRouted(t *testing.T) {
	l := newLAN(t, 2)
	holder, standby := l.hosts[0], l.hosts[1]
	holder.Run(t, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1", "net.ipv6.icmp.ratelimit=0")
	holder.Run(t, "ip", "-6", "route", "add", "unreachable", vip6.String()+"/128")
	better := holder.mac(t, "eth0")
	one := holder.start(t, Config{})
	one.Set(addresses(vip6.String()))
	answering(t, one, "eth0", vip6.String())
	two := standby.start(t, Config{Judge: func(Claim) Verdict { return Yield }})
	eventually(t, "the standby has a link-local address", func() bool {
		links := two.Links()
		return len(links) == 1 && links[0].linkLocal().IsValid()
	})
	two.Set([]Address{{Addr: vip6, Rank: 1}})
	eventually(t, "the standby watches", func() bool { return two.address(vip6.String()).Holder == better })
	before := holder.errorsSent(t)
	asked := one.address(vip6.String()).Requests
	eventually(t, "asked many times", func() bool { return one.address(vip6.String()).Requests > asked+20 })
	if n := holder.errorsSent(t) - before; n > 0 {
		t.Errorf("the holder's kernel sent %d ICMPv6 errors about questions that were answered", n)
	}
	if got := one.address(vip6.String()); got.Replies+1 < got.Requests { // one may be under way
		t.Errorf("%d of %d questions answered", got.Replies, got.Requests)
	}
}

// errorsSent is how many times the kernel inside has said that an IPv6 address is unreachable.
func (ns namespace) errorsSent(t *testing.T) (n int) {
	t.Helper()
	for line := range strings.Lines(ns.Run(t, "cat", "/proc/net/snmp6")) {
		if f := strings.Fields(line); f[0] == "Icmp6OutDestUnreachs" {
			if _, err := fmt.Sscan(f[1], &n); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}

// After Run nothing is left: no socket, no goroutine.
func TestKernelLeavesNothing(t *testing.T) {
	l := newLAN(t, 1)
	sockets := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, fd := range fds {
			if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:") {
				n++
			}
		}
		return n
	}
	before := sockets()
	for range 3 {
		r, stop := l.hosts[0].startUntil(t, Config{})
		r.Set(both())
		answering(t, r, "eth0", vip4.String(), vip6.String())
		stop()
	}
	eventually(t, "all sockets are closed", func() bool { return sockets() == before })
}
