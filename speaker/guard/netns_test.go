package guard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/clarionlb/clarion/internal/netnstest"
)

// namespace is a network namespace that lives as long as the test.
type namespace struct{ netnstest.Namespace }

func newNamespace(t testing.TB) namespace {
	return namespace{netnstest.New(t,
		"net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
		"net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.default.send_redirects=0",
		"net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")}
}

// newNode is a namespace with two interfaces.
func newNode(t *testing.T) namespace {
	t.Helper()
	ns := newNamespace(t)
	ns.IP(t, "link add eth0 type bridge")
	ns.IP(t, "link add eth1 type bridge")
	return ns
}

// routing is all rules and routes of the namespace, without what the kernel counts.
func (ns namespace) routing(t testing.TB) string {
	t.Helper()
	return ns.IP(t, "-4 rule") + ns.IP(t, "-6 rule") + ns.IP(t, "-4 route show table all") + ns.IP(t, "-6 route show table all")
}

// guarded is the rules and routes of the namespace that are the guard's, as ip(8) shows them, in order.
func (ns namespace) guarded(t testing.TB) string {
	t.Helper()
	var lines []string
	for _, f := range []string{"-4", "-6"} {
		for _, what := range []string{"rule", "route show table all"} {
			for _, l := range strings.Split(ns.IP(t, f+" -d "+what), "\n") {
				if strings.Contains(l, fmt.Sprint(Table)) {
					lines = append(lines, f+" "+strings.Join(strings.Fields(l), " "))
				}
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// start runs a Guard inside until stop is called, at the latest at the end of the test.
func (ns namespace) start(t *testing.T) (g *Guard, stop func()) {
	t.Helper()
	g = New(Config{Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ns.Enter(func() error { return g.Run(ctx) }) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return g, stop
}

// want is prefixes to guard against interfaces, both separated by spaces.
func want(interfaces, prefixes string) (w Want) {
	w.Interfaces = strings.Fields(interfaces)
	for _, p := range strings.Fields(prefixes) {
		w.Prefixes = append(w.Prefixes, netip.MustParsePrefix(p))
	}
	return w
}

// set guards prefixes against interfaces, both in order, and waits until that is so, and no more.
func (g *Guard) set(t *testing.T, interfaces, prefixes string) {
	t.Helper()
	w := want(interfaces, prefixes)
	g.Set(w)
	if len(w.Interfaces) == 0 || len(w.Prefixes) == 0 {
		w = Want{}
	}
	eventually(t, fmt.Sprintf("%v guarded", w), func() bool {
		s := g.Status()
		return s.Err == nil && slices.Equal(s.Prefixes, w.Prefixes) && slices.Equal(s.Interfaces, w.Interfaces)
	})
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(bytes.TrimSpace(b)))
	return len(b), nil
}

// eventually polls a state until it holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// network is a client behind a router that sends the range of the Services to a node with a pod. The default route of
// the node is back to the router.
type network struct{ client, router, node, pod namespace }

// side is the addresses of one family.
type side struct {
	name                               string
	services                           netip.Prefix
	unused, service, fromPod, own      netip.Addr // in services: without, with a Service, one with its endpoint at the client, on an interface of the node
	rejected                           netip.Addr // in services: a Service without endpoints
	clientAddr, nodeAddr, podAddr      netip.Addr
	gateway                            netip.Addr // the node, as the pod sees it
	ipVersion, icmpNetwork, unspecific string
	answer                             string // the guard's ICMP error, without its source
	unreachable                        error  // what connect says of it
}

var sides = []side{
	{
		name: "IPv4", services: netip.MustParsePrefix("198.18.0.0/16"),
		unused: netip.MustParseAddr("198.18.0.99"), service: netip.MustParseAddr("198.18.0.10"),
		fromPod: netip.MustParseAddr("198.18.0.12"), own: netip.MustParseAddr("198.18.0.11"), rejected: netip.MustParseAddr("198.18.0.13"),
		clientAddr: netip.MustParseAddr("198.51.100.2"), nodeAddr: netip.MustParseAddr("192.0.2.11"), podAddr: netip.MustParseAddr("198.19.0.2"),
		gateway:   netip.MustParseAddr("198.19.0.1"),
		ipVersion: "-4", icmpNetwork: "ip4:icmp", unspecific: "0.0.0.0",
		answer: "destination unreachable, code 1, from ", unreachable: unix.EHOSTUNREACH,
	},
	{
		name: "IPv6", services: netip.MustParsePrefix("2001:db8:96::/112"),
		unused: netip.MustParseAddr("2001:db8:96::99"), service: netip.MustParseAddr("2001:db8:96::10"),
		fromPod: netip.MustParseAddr("2001:db8:96::12"), own: netip.MustParseAddr("2001:db8:96::11"), rejected: netip.MustParseAddr("2001:db8:96::13"),
		clientAddr: netip.MustParseAddr("2001:db8:51::2"), nodeAddr: netip.MustParseAddr("2001:db8:2::11"), podAddr: netip.MustParseAddr("2001:db8:44::2"),
		gateway: netip.MustParseAddr("2001:db8:44::1"),
		// ICMPv6 has no code for a host that is known to be unreachable by a route; the kernel says "no route" (RFC 4443 section 3.1).
		ipVersion: "-6", icmpNetwork: "ip6:ipv6-icmp", unspecific: "::",
		answer: "destination unreachable, code 0, from ", unreachable: unix.ENETUNREACH,
	},
}

func newNetwork(t *testing.T) network {
	t.Helper()
	n := network{newNamespace(t), newNamespace(t), newNamespace(t), newNamespace(t)}
	for _, ns := range []namespace{n.router, n.node} {
		ns.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	}
	wire(t, n.client, "eth0", []string{"198.51.100.2/24", "2001:db8:51::2/64"}, n.router, "outside", []string{"198.51.100.1/24", "2001:db8:51::1/64"})
	wire(t, n.pod, "eth0", []string{"198.19.0.2/24", "2001:db8:44::2/64"}, n.node, "veth0", []string{"198.19.0.1/24", "2001:db8:44::1/64"})
	n.client.IP(t, "route add default via 198.51.100.1")
	n.client.IP(t, "route add default via 2001:db8:51::1")
	n.pod.IP(t, "route add default via 198.19.0.1")
	n.pod.IP(t, "route add default via 2001:db8:44::1")
	n.plug(t)
	return n
}

// plug connects the node, by eth0, with the router.
func (n network) plug(t *testing.T) {
	t.Helper()
	wire(t, n.node, "eth0", []string{"192.0.2.11/24", "2001:db8:2::11/64"}, n.router, "inside", []string{"192.0.2.1/24", "2001:db8:2::1/64"})
	n.node.IP(t, "route add default via 192.0.2.1")
	n.node.IP(t, "route add default via 2001:db8:2::1")
	for _, s := range sides {
		n.router.IP(t, fmt.Sprintf("route add %s via %s", s.services, s.nodeAddr))
		n.router.IP(t, fmt.Sprintf("route add %s via %s", s.podAddr, s.nodeAddr))
	}
}

// wire connects two namespaces.
func wire(t *testing.T, a namespace, nameA string, addrsA []string, b namespace, nameB string, addrsB []string) {
	t.Helper()
	a.IP(t, fmt.Sprintf("link add %s type veth peer name %s netns %s", nameA, nameB, b))
	for _, end := range []struct {
		ns    namespace
		name  string
		addrs []string
	}{{a, nameA, addrsA}, {b, nameB, addrsB}} {
		for _, addr := range end.addrs {
			end.ns.IP(t, "addr add "+addr+" dev "+end.name)
		}
		end.ns.IP(t, "link set "+end.name+" up")
	}
}

// capture reads the IP packets of an interface, both ways.
func (ns namespace) capture(t *testing.T, name string) *packet.Conn {
	t.Helper()
	var c *packet.Conn
	err := ns.Enter(func() error {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		c, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// send sends one UDP packet from inside.
func (ns namespace) send(t *testing.T, to netip.AddrPort) {
	t.Helper()
	err := ns.Enter(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("hello"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// probe sends one packet from the client or the pod to an address. It returns the ICMP error that the sender gets, and
// how often the packet passed between router and node.
func (n network) probe(t *testing.T, sender namespace, s side, to netip.Addr) (icmpError string, passed int) {
	t.Helper()
	link := n.router.capture(t, "inside")
	var errs *icmp.PacketConn
	if err := sender.Enter(func() (err error) { errs, err = icmp.ListenPacket(s.icmpNetwork, s.unspecific); return err }); err != nil {
		t.Fatal(err)
	}
	defer errs.Close()
	deadline := time.Now().Add(10 * time.Second) // only a failing test waits for it
	if err := errors.Join(errs.SetReadDeadline(deadline), link.SetReadDeadline(deadline)); err != nil {
		t.Fatal(err)
	}

	sender.send(t, netip.AddrPortFrom(to, 9))
	buf := make([]byte, 2048)
	for icmpError == "" {
		size, from, err := errs.ReadFrom(buf)
		if err != nil {
			t.Fatalf("no ICMP error about %s: %v", to, err)
		}
		icmpError = describe(s, buf[:size], from, to)
	}
	// The packet is gone by now. The next one marks the end of the capture.
	n.client.send(t, netip.AddrPortFrom(s.nodeAddr, 9))
	for {
		size, _, err := link.ReadFrom(buf)
		if err != nil {
			t.Fatalf("capture: %v", err)
		}
		switch udpTo(buf[:size]) {
		case to:
			passed++
		case s.nodeAddr:
			return icmpError, passed
		}
	}
}

// describe is an ICMP error about a packet to an address, "" for another message.
func describe(s side, b []byte, from net.Addr, to netip.Addr) string {
	proto, at, size := ipv4.ICMPTypeEcho.Protocol(), 16, 4
	if s.unused.Is6() {
		proto, at, size = ipv6.ICMPTypeEchoRequest.Protocol(), 24, 16
	}
	m, err := icmp.ParseMessage(proto, b)
	if err != nil {
		return ""
	}
	var quoted []byte
	switch body := m.Body.(type) {
	case *icmp.DstUnreach:
		quoted = body.Data
	case *icmp.TimeExceeded:
		quoted = body.Data
	}
	if len(quoted) < at+size || !bytes.Equal(quoted[at:at+size], to.AsSlice()) {
		return ""
	}
	return fmt.Sprintf("%v, code %d, from %v", m.Type, m.Code, from)
}

// udpTo is the destination of a UDP packet in an Ethernet frame, the zero Addr of another frame.
func udpTo(frame []byte) netip.Addr {
	switch ip := frame[14:]; {
	case len(ip) >= 20 && ip[0]>>4 == 4 && ip[9] == unix.IPPROTO_UDP:
		return netip.AddrFrom4([4]byte(ip[16:20]))
	case len(ip) >= 40 && ip[0]>>4 == 6 && ip[6] == unix.IPPROTO_UDP:
		return netip.AddrFrom16([16]byte(ip[24:40]))
	}
	return netip.Addr{}
}

// serve answers every TCP connection to a port inside with a word.
func (ns namespace) serve(t *testing.T, at netip.AddrPort, word string) {
	t.Helper()
	var l net.Listener
	if err := ns.Enter(func() (err error) { l, err = net.Listen("tcp", at.String()); return err }); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte(word))
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

// fetch connects from inside and returns what it is told.
func (ns namespace) fetch(to netip.AddrPort) (word string, err error) {
	err = ns.Enter(func() error {
		c, err := net.DialTimeout("tcp", to.String(), 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		buf := make([]byte, 64)
		size, err := c.Read(buf)
		word = string(buf[:size])
		return err
	})
	return word, err
}
