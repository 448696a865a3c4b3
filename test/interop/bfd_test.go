package interop

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clarionlb/clarion/speaker/bfd"
	"github.com/clarionlb/clarion/speaker/bgp"
)

var fast = bfd.Profile{Receive: 100 * time.Millisecond, Transmit: 100 * time.Millisecond, Multiplier: 3}

// bfdProfile configures a profile like fast in bfdd.
func (r *router) bfdProfile(extra ...string) {
	r.t.Helper()
	r.vtysh(append([]string{"conf t", "bfd", "profile fast", "detect-multiplier 3", "receive-interval 100", "transmit-interval 100"}, extra...)...)
}

// bfdPeer is what bfdd says about its session with the node.
func (r *router) bfdPeer() any {
	r.t.Helper()
	out := r.json("show bfd peers json")
	return at(out, 0)
}

func bfdUp(n *node, r *router) bool {
	s := n.status(r.ns)
	return s.BFD != nil && s.BFD.State == bfd.Up && at(r.bfdPeer(), "status") == "up"
}

func TestBFDWithFRR(t *testing.T) {
	after := func(conf, line string) string { // bgpd wants the peer's AS number first
		i := strings.Index(conf, " timers connect 1\n") + len(" timers connect 1\n")
		return conf[:i] + line + conf[i:]
	}
	for _, tt := range []struct {
		name, conf, node string
		setup            func(r *router)
		peer             func(*bgp.Peer)
	}{
		{name: "IPv4", conf: external4, node: "{node4}"},
		{name: "IPv6", conf: external6, node: "{node6}", peer: func(p *bgp.Peer) { p.Address = placeholder6 }},
		{name: "internal", conf: internal4, node: "{node4}", peer: func(p *bgp.Peer) { p.PeerASN = 65001 }},
		{name: "passive", conf: external4, node: "{node4}", peer: func(p *bgp.Peer) { p.BFD.Passive = true }},
		{name: "multi-hop", conf: "router bgp 64512\n no bgp ebgp-requires-policy\n neighbor {node4} remote-as 65001\n neighbor {node4} update-source 198.51.100.1\n neighbor {node4} ebgp-multihop 3\n neighbor {node4} timers connect 1\n", node: "{node4}",
			setup: func(r *router) {
				sh(r.t, "ip -n %s addr add 198.51.100.1/32 dev lo; ip route add 198.51.100.1 via %s", r.ns, r.peer.v4)
			},
			peer: func(p *bgp.Peer) { p.Address, p.MultiHop = netip.MustParseAddr("198.51.100.1"), true }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRouter(t)
			if tt.setup != nil {
				tt.setup(r)
			}
			r.frr(after(tt.conf, " neighbor "+tt.node+" bfd\n neighbor "+tt.node+" bfd profile fast\n"))
			r.bfdProfile()
			n := newNode(t, bgp.Config{})
			n.speaker.Set([]bgp.Session{r.session(func(p *bgp.Peer) {
				p.BFD = fast
				if tt.peer != nil {
					tt.peer(p)
				}
			}, routes("203.0.113.1/32", "2001:db8:ffff::/64")...)})
			n.established(r.ns, 5*time.Second)
			r.eventually(10*time.Second, "BFD is up on both sides", func() bool { return bfdUp(n, r) })
			peer := r.bfdPeer()
			r.eventually(5*time.Second, "the timers are agreed on", func() bool {
				peer = r.bfdPeer()
				s := n.status(r.ns).BFD
				return s.Transmit == 100*time.Millisecond && s.Detection == 300*time.Millisecond &&
					fmt.Sprintf("%v %v %v", at(peer, "remote-receive-interval"), at(peer, "remote-transmit-interval"), at(peer, "remote-detect-multiplier")) == "100 100 3"
			})
			if got := at(peer, "multihop"); got != (tt.name == "multi-hop") {
				t.Errorf("multihop %v", got)
			}
			if n.status(r.ns).BFD.Downs != 0 {
				t.Errorf("BFD was down meanwhile: %+v\n%s", n.status(r.ns).BFD, n.log)
			}
		})
	}
}

// Both sides send echo packets that the other's kernel sends back, while control packets are rare; a path that loses
// packets of one direction of forwarding only is found by them.
func TestBFDEchoWithFRR(t *testing.T) {
	r := newRouter(t)
	sh(t, "sysctl -qw net.ipv4.ip_forward=1")
	r.frr(external4 + " neighbor {node4} bfd\n neighbor {node4} bfd profile fast\n")
	r.vtysh("conf t", "bfd", "profile fast", "detect-multiplier 3", "receive-interval 1000", "transmit-interval 1000", "echo-mode", "echo transmit-interval 50", "echo receive-interval 50")
	n := newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(func(p *bgp.Peer) {
		p.BFD = bfd.Profile{Receive: time.Second, Transmit: time.Second, Multiplier: 3, Echo: 50 * time.Millisecond}
	}, routes("203.0.113.1/32")...)})
	n.established(r.ns, 5*time.Second)
	r.eventually(15*time.Second, "BFD is up on both sides", func() bool { return bfdUp(n, r) })
	counted := func(name string) (n int) {
		_, _ = fmt.Sscan(fmt.Sprint(at(r.json("show bfd peers counters json"), 0, name)), &n)
		return n
	}
	r.eventually(10*time.Second, "echo packets of both sides come back", func() bool {
		return n.status(r.ns).BFD.Echoes && counted("echo-packet-input") > 20
	})
	r.eventually(5*time.Second, "the timers are agreed on", func() bool { return n.status(r.ns).BFD.Detection == 3*time.Second })
	if s := n.status(r.ns).BFD; s.Echo != 50*time.Millisecond || s.Problem != "" || s.Downs != 0 {
		t.Errorf("%+v", s)
	}
	sh(t, "ip netns exec %s sysctl -qw net.ipv4.ip_forward=0", r.ns) // the router's forwarding dies, its BFD does not notice
	r.eventually(3*time.Second, "the session has been down for want of echo packets", func() bool {
		return strings.Contains(n.status(r.ns).LastError, "BFD: echo function failed")
	})
	sh(t, "ip netns exec %s sysctl -qw net.ipv4.ip_forward=1", r.ns)
	n.established(r.ns, 15*time.Second)
	r.eventually(15*time.Second, "echo packets come back again", func() bool { return bfdUp(n, r) && n.status(r.ns).BFD.Echoes })
}

// A dead path is noticed by both sides in the detection time, and everything is back soon after the path is.
func TestBFDDetects(t *testing.T) {
	r := newRouter(t)
	r.frr(external4 + " neighbor {node4} bfd\n neighbor {node4} bfd profile fast\n")
	r.bfdProfile()
	n := newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(func(p *bgp.Peer) { p.BFD = fast }, routes("203.0.113.1/32")...)})
	n.established(r.ns, 5*time.Second)
	r.eventually(10*time.Second, "BFD is up on both sides", func() bool { return bfdUp(n, r) })
	r.eventually(5*time.Second, "the timers are agreed on", func() bool { return n.status(r.ns).BFD.Detection == 300*time.Millisecond })
	for round := range 2 {
		if round == 1 { // another session, beside the same BFD session
			n.speaker.Set([]bgp.Session{r.session(func(p *bgp.Peer) { p.BFD, p.GracefulRestart = fast, 12*time.Second }, routes("203.0.113.1/32")...)})
			r.eventually(8*time.Second, "there is another session", func() bool { return n.status(r.ns).GracefulRestart })
			r.eventually(8*time.Second, "BFD is up on both sides", func() bool { return bfdUp(n, r) })
		}
		// Packets vanish, with carrier on both sides.
		sh(t, "ip netns exec %s nft 'add table inet f; add chain inet f in { type filter hook input priority 0; policy drop; }; add chain inet f out { type filter hook output priority 0; oifname eth0 drop; }'", r.ns)
		cut := time.Now()
		r.eventually(3*time.Second, "the session is down", func() bool { return n.status(r.ns).State != bgp.Established })
		t.Logf("round %d: the speaker noticed after %s", round, time.Since(cut))
		r.eventually(3*time.Second, "the router has dropped the route", func() bool { return r.routeText("203.0.113.1/32") == "" })
		if s := n.status(r.ns); !strings.Contains(s.LastError, "BFD: control detection time expired") {
			t.Errorf("last error %q", s.LastError)
		}
		sh(t, "ip netns exec %s nft flush ruleset", r.ns)
		n.established(r.ns, 8*time.Second)
		r.eventually(8*time.Second, "BFD is up on both sides", func() bool { return bfdUp(n, r) })
		r.eventually(5*time.Second, "the route is back", func() bool { return r.routeText("203.0.113.1/32") != "" })
	}
	ups := n.status(r.ns).Ups
	time.Sleep(time.Second) // and nothing of it is left to end the new session
	if s := n.status(r.ns); s.State != bgp.Established || s.Ups != ups || s.BFD.Downs != 2 {
		t.Errorf("after recovery %+v, BFD %+v", s, s.BFD)
	}
}

// BFD of a peer that is frozen, and BFD that the operator of the router takes down.
func TestBFDOfTheRouterAlone(t *testing.T) {
	r := newRouter(t)
	r.frr(external4 + " neighbor {node4} bfd\n neighbor {node4} bfd profile fast\n")
	r.bfdProfile()
	n := newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(func(p *bgp.Peer) { p.BFD = fast }, routes("203.0.113.1/32")...)})
	n.established(r.ns, 5*time.Second)
	r.eventually(10*time.Second, "BFD is up on both sides", func() bool { return bfdUp(n, r) })
	ups := n.status(r.ns).Ups
	signal(t, r.bfdd, syscall.SIGSTOP)
	r.eventually(3*time.Second, "the session has been down", func() bool { return n.status(r.ns).State != bgp.Established || n.status(r.ns).Ups > ups })
	signal(t, r.bfdd, syscall.SIGCONT)
	r.eventually(15*time.Second, "all is up again", func() bool { return n.status(r.ns).State == bgp.Established && bfdUp(n, r) })
}

// Graceful restart and BFD together: a restart of the speaker leaves the routes in place.
func TestGracefulRestartWithBFD(t *testing.T) {
	r := newRouter(t)
	r.frr(external4 + " neighbor {node4} bfd\n neighbor {node4} bfd profile fast\n")
	r.bfdProfile()
	peer := func(p *bgp.Peer) { p.BFD, p.GracefulRestart = fast, 30*time.Second }
	n := newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(peer, routes("203.0.113.1/32")...)})
	n.established(r.ns, 5*time.Second)
	r.eventually(10*time.Second, "BFD is up on both sides", func() bool { return bfdUp(n, r) })
	kernel := func() bool { return strings.Contains(sh(t, "ip -n %s route", r.ns), "203.0.113.1 ") }
	r.eventually(3*time.Second, "the route is in the kernel", kernel)
	monitor := r.daemon("ip", "monitor", "route")
	n.stop()
	r.eventually(3*time.Second, "the router waits for the restart", func() bool {
		return at(r.json("show bgp neighbors {node4} json"), r.node.v4.String(), "bgpState") != "Established"
	})
	time.Sleep(time.Second) // longer than BFD needs to find the speaker gone
	n = newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(peer, routes("203.0.113.1/32")...)})
	n.established(r.ns, 5*time.Second)
	r.eventually(10*time.Second, "BFD is up on both sides", func() bool { return bfdUp(n, r) })
	signal(t, monitor, syscall.SIGTERM)
	_ = monitor.Wait()
	if out := r.output("ip"); strings.Contains(out, "Deleted 203.0.113.1") || !kernel() {
		t.Errorf("the route was gone for a while:\n%s", out)
	}
}

// Bound to a device as to a VRF. A kernel with VRFs is not needed for that, only for what it keeps apart.
func TestBoundToADevice(t *testing.T) {
	for _, passive := range []bool{false, true} {
		r := newRouter(t)
		r.frr(external4 + " neighbor {node4} bfd\n neighbor {node4} bfd profile fast\n")
		r.bfdProfile()
		n := newNode(t, bgp.Config{})
		peer := func(p *bgp.Peer) { p.VRF, p.BFD, p.Passive = r.node.ifname, fast, passive }
		n.speaker.Set([]bgp.Session{r.session(peer, routes("203.0.113.1/32")...)})
		n.established(r.ns, 8*time.Second)
		r.eventually(10*time.Second, "BFD is up on both sides", func() bool { return bfdUp(n, r) })
		n.speaker.Set([]bgp.Session{r.session(func(p *bgp.Peer) { p.VRF = "blue" })})
		r.eventually(5*time.Second, "a missing device is named", func() bool {
			return strings.Contains(n.status(r.ns).LastError, "bind to VRF blue: no such device")
		})
	}
}
