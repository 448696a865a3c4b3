package interop

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/speaker/bgp"
)

const (
	external4 = `
router bgp 64512
 bgp router-id 10.255.0.1
 no bgp ebgp-requires-policy
 neighbor {node4} remote-as 65001
 neighbor {node4} timers connect 1
`
	internal4 = `
router bgp 65001
 bgp router-id 10.255.0.1
 neighbor {node4} remote-as 65001
 neighbor {node4} timers connect 1
`
	both4 = `
 address-family ipv6 unicast
  neighbor {node4} activate
`
	external6 = `
router bgp 64512
 bgp router-id 10.255.0.1
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 neighbor {node6} remote-as 65001
 neighbor {node6} timers connect 1
 address-family ipv6 unicast
  neighbor {node6} activate
`
)

func num(v uint32) *uint32 { return &v }

func community(s string) route.Community {
	c, err := route.ParseCommunity(s, nil)
	if err != nil {
		panic(err)
	}
	return c
}

// What the router makes of a route, for each kind of session and each attribute.
func TestRoutesAsFRRSeesThem(t *testing.T) {
	all := route.Attrs{
		Communities: []route.Community{community("65001:7"), community("no-export"), community("large:65001:1:2")},
		LocalPref:   num(250), MED: num(30), Prepend: 2, Bandwidth: 125e6,
	}
	v4, v6 := netip.MustParsePrefix("203.0.113.1/32"), netip.MustParsePrefix("2001:db8:ffff::/64")
	internal := func(p *bgp.Peer) { p.PeerASN = 65001 }
	for _, tt := range []struct {
		name, conf string
		peer       func(*bgp.Peer)
		attrs      route.Attrs
		want4      string // "" if the router must not have the route
		want6      string
	}{{
		name: "external, no attributes", conf: external4,
		want4: "via {node4} path 65001",
	}, {
		name: "external, all attributes", conf: external4, attrs: all,
		want4: "via {node4} path 65001 65001 65001 metric 30 community 65001:7 no-export largeCommunity 65001:1:2 extendedCommunity LB:65001:125000000 (1.000 Gbps)",
	}, {
		name: "internal, no attributes", conf: internal4, peer: internal,
		want4: "via {node4} path Local locPrf 100",
	}, {
		name: "internal, all attributes", conf: internal4, peer: internal, attrs: all,
		want4: "via {node4} path Local metric 30 locPrf 250 community 65001:7 no-export largeCommunity 65001:1:2 extendedCommunity LB:65001:125000000 (1.000 Gbps)",
	}, {
		name: "IPv6", conf: external6, peer: func(p *bgp.Peer) { p.Address = placeholder6 },
		want6: "via {node6} path 65001",
	}, {
		name: "both families over IPv4", conf: external4 + both4, peer: func(p *bgp.Peer) { p.DualStack = true },
		want4: "via {node4} path 65001", want6: "via {node6} path 65001",
	}, {
		name: "both families over IPv4, but the session is for one", conf: external4 + both4,
		want4: "via {node4} path 65001",
	}, {
		name:  "both families over IPv6",
		conf:  external6 + " exit-address-family\n address-family ipv4 unicast\n  neighbor {node6} activate\n",
		peer:  func(p *bgp.Peer) { p.Address, p.DualStack = placeholder6, true },
		want4: "via {node4} path 65001", want6: "via {node6} path 65001",
	}, {
		name: "four-byte AS numbers",
		conf: strings.NewReplacer("64512", "4200000001", "65001", "4200000002").Replace(external4),
		peer: func(p *bgp.Peer) { p.LocalASN, p.PeerASN = 4200000002, 4200000001 }, attrs: route.Attrs{Bandwidth: 125e6},
		want4: "via {node4} path 4200000002 extendedCommunity LB:23456:125000000 (1.000 Gbps)",
	}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRouter(t)
			r.frr(tt.conf)
			n := newNode(t, bgp.Config{})
			session := r.session(func(p *bgp.Peer) {
				if tt.peer != nil {
					tt.peer(p)
				}
			}, route.Route{Prefix: v4, Attrs: tt.attrs}, route.Route{Prefix: v6, Attrs: tt.attrs})
			n.speaker.Set([]bgp.Session{session})
			n.established(r.ns, 5*time.Second)
			check := func() (string, string) { return r.routeText(v4.String()), r.routeText(v6.String()) }
			want4, want6 := r.expand(tt.want4), r.expand(tt.want6)
			defer func() {
				if t.Failed() {
					got4, got6 := check()
					t.Logf("IPv4:\n got %s\nwant %s\nIPv6:\n got %s\nwant %s", got4, want4, got6, want6)
				}
			}()
			r.eventually(3*time.Second, "the router has the routes", func() bool {
				got4, got6 := check()
				return got4 == want4 && got6 == want6
			})
			for family, want := range map[string]string{"-4": want4, "-6": want6} { // and it can forward
				if want != "" {
					r.eventually(3*time.Second, "the kernel has the route "+family, func() bool {
						return strings.Contains(sh(t, "ip -n %s %s route", r.ns, family), "proto bgp")
					})
				}
			}
		})
	}
}

// A session in each way that a Peer can ask for; without or with another peer setting it does not come up.
func TestSessionsWithFRR(t *testing.T) {
	for _, tt := range []struct {
		name, conf string
		setup      func(r *router)
		peer       func(*bgp.Peer)
		fails      string // part of LastError when the session must not come up
	}{
		{name: "external number given", conf: external4},
		{name: "wrong number", conf: external4, peer: func(p *bgp.Peer) { p.PeerASN = 64999 }, fails: "the peer has AS number 64512, not 64999"},
		{name: "other local number", conf: external4, peer: func(p *bgp.Peer) { p.LocalASN = 65002 }, fails: "received NOTIFICATION 2/2 (OPEN message error, bad peer AS)"},
		{name: "any external", conf: external4, peer: func(p *bgp.Peer) { p.PeerASN, p.Dynamic = 0, bgp.DynamicExternal }},
		{name: "any external, but internal", conf: internal4, peer: func(p *bgp.Peer) { p.Dynamic = bgp.DynamicExternal }, fails: "the peer has the local AS number 65001"},
		{name: "internal", conf: internal4, peer: func(p *bgp.Peer) { p.Dynamic = bgp.DynamicInternal }},
		{name: "internal, but external", conf: external4, peer: func(p *bgp.Peer) { p.Dynamic = bgp.DynamicInternal }, fails: "the peer has AS number 64512, which is not the local one"},
		{name: "password", conf: external4 + " neighbor {node4} password s3cret\n", peer: func(p *bgp.Peer) { p.Password = "s3cret" }},
		{name: "password over IPv6", conf: strings.Replace(external6, " address-family", " neighbor {node6} password s3cret\n address-family", 1), peer: func(p *bgp.Peer) {
			p.Address, p.Password = placeholder6, "s3cret"
		}},
		{name: "wrong password", conf: external4 + " neighbor {node4} password s3cret\n", peer: func(p *bgp.Peer) { p.Password = "other" }, fails: "the passwords differ"},
		{name: "TTL security", conf: external4 + " neighbor {node4} ttl-security hops 1\n", peer: func(p *bgp.Peer) { p.TTLSecurity = true }},
		{name: "TTL security over IPv6", conf: strings.Replace(external6, " address-family", " neighbor {node6} ttl-security hops 1\n address-family", 1), peer: func(p *bgp.Peer) {
			p.Address, p.TTLSecurity = placeholder6, true
		}},
		{name: "multi-hop", conf: "router bgp 64512\n no bgp ebgp-requires-policy\n neighbor {node4} remote-as 65001\n neighbor {node4} update-source 198.51.100.1\n neighbor {node4} ebgp-multihop 3\n",
			setup: func(r *router) {
				sh(r.t, "ip -n %s addr add 198.51.100.1/32 dev lo; ip route add 198.51.100.1 via %s", r.ns, r.peer.v4)
			},
			peer: func(p *bgp.Peer) { p.Address, p.MultiHop = netip.MustParseAddr("198.51.100.1"), true }},
		{name: "passive", conf: external4, peer: func(p *bgp.Peer) { p.Passive = true }},
		{name: "passive with password", conf: external4 + " neighbor {node4} password s3cret\n", peer: func(p *bgp.Peer) { p.Passive, p.Password = true, "s3cret" }},
		{name: "passive with TTL security", conf: external4 + " neighbor {node4} ttl-security hops 1\n", peer: func(p *bgp.Peer) { p.Passive, p.TTLSecurity = true, true }},
		{name: "passive over IPv6", conf: external6, peer: func(p *bgp.Peer) { p.Address, p.Passive = placeholder6, true }},
		{name: "source address", conf: strings.ReplaceAll(external4, "{node4}", "198.51.100.9") + " neighbor 198.51.100.9 disable-connected-check\n",
			setup: func(r *router) {
				sh(r.t, "ip addr add 198.51.100.9/32 dev %s; ip -n %s route add 198.51.100.9 via %s", r.node.ifname, r.ns, r.node.v4)
			},
			peer: func(p *bgp.Peer) { p.Source = netip.MustParseAddr("198.51.100.9") }},
		{name: "missing source address", conf: external4, peer: func(p *bgp.Peer) { p.Source = netip.MustParseAddr("198.51.100.77") }, fails: "no interface has the source address 198.51.100.77"},
		{name: "gateway of the default route", conf: external4,
			setup: func(r *router) { sh(r.t, "ip route add default via %s", r.peer.v4) },
			peer:  func(p *bgp.Peer) { p.Address, p.DefaultGateway = netip.Addr{}, bgp.GatewayIPv4 }},
		{name: "gateway of the IPv6 default route", conf: external6,
			setup: func(r *router) { sh(r.t, "ip -6 route add default via %s", r.peer.v6) },
			peer:  func(p *bgp.Peer) { p.Address, p.DefaultGateway = netip.Addr{}, bgp.GatewayIPv6 }},
		{name: "no default route", conf: external4, peer: func(p *bgp.Peer) { p.Address, p.DefaultGateway = netip.Addr{}, bgp.GatewayIPv4 }, fails: "the node has no IPv4 default route"},
		{name: "no BGP at the peer's port", conf: external4, peer: func(p *bgp.Peer) { p.Port = 1179 }, fails: "the peer refuses TCP connections"},
		{name: "same router ID, internal", conf: strings.Replace(internal4, "10.255.0.1", "{node4}", 1), peer: func(p *bgp.Peer) { p.PeerASN = 65001 }, fails: "router ID"},
		{name: "hold time 2 s", conf: external4, peer: func(p *bgp.Peer) { p.HoldTime = 2 * time.Second }, fails: "hold time 2s is neither 0 nor"},
		{name: "no router ID", conf: external4, peer: func(p *bgp.Peer) { p.RouterID = netip.Addr{} }, fails: "there is no router ID"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !strings.HasPrefix(tt.name, "passive") && !strings.Contains(tt.name, "default route") { // those share a port or a route
				t.Parallel()
			}
			r := newRouter(t)
			if tt.setup != nil {
				tt.setup(r)
			}
			r.frr(tt.conf)
			n := newNode(t, bgp.Config{})
			n.speaker.Set([]bgp.Session{r.session(tt.peer, routes("203.0.113.1/32", "2001:db8:ffff::/64")...)})
			if tt.fails != "" {
				r.eventually(5*time.Second, "the session fails with "+tt.fails, func() bool { return strings.Contains(n.status(r.ns).LastError, tt.fails) })
				return
			}
			n.established(r.ns, 8*time.Second)
			r.eventually(3*time.Second, "the router has a route", func() bool {
				return r.routeText("203.0.113.1/32") != "" || r.routeText("2001:db8:ffff::/64") != ""
			})
			s := n.status(r.ns)
			starts := strings.Contains(s.LastError, "received NOTIFICATION 5/0") // a bgpd that has just started may say so to an OPEN
			if s.Sent4+s.Sent6 != 1 || !s.Local.IsValid() || !s.PeerRouterID.IsValid() || s.LastError != "" && !starts && !strings.Contains(tt.name, "passive") {
				t.Errorf("status %+v", s)
			}
		})
	}
}

func TestUnnumbered(t *testing.T) {
	r := newRouter(t)
	sh(t, "ip -n %s addr flush dev eth0 scope global; ip addr flush dev %s scope global", r.ns, r.node.ifname)
	r.frr(`
router bgp 64512
 bgp router-id 10.255.0.1
 no bgp ebgp-requires-policy
 neighbor eth0 interface remote-as external
 neighbor eth0 timers connect 1
 address-family ipv6 unicast
  neighbor eth0 activate
 exit-address-family
 neighbor eth0 bfd
 neighbor eth0 bfd profile fast
`)
	r.bfdProfile()
	n := newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(func(p *bgp.Peer) {
		p.Address, p.Interface, p.PeerASN, p.Dynamic, p.BFD = netip.Addr{}, r.node.ifname, 0, bgp.DynamicExternal, fast
	}, routes("203.0.113.1/32", "2001:db8:ffff::/64")...)})
	n.established(r.ns, 15*time.Second)
	r.eventually(3*time.Second, "the router forwards IPv4 to an IPv6 next hop", func() bool {
		return strings.Contains(sh(t, "ip -n %s route", r.ns), "203.0.113.1 nhid") || strings.Contains(sh(t, "ip -n %s route", r.ns), "203.0.113.1 via inet6 fe80::")
	})
	r.eventually(3*time.Second, "the router forwards IPv6", func() bool {
		return strings.Contains(sh(t, "ip -n %s -6 route", r.ns), "2001:db8:ffff::/64")
	})
	r.eventually(10*time.Second, "BFD is up on both sides", func() bool { return bfdUp(n, r) })

	// The neighbour changes its address, as another router in its place would.
	sh(t, "ip -n %[1]s link set eth0 down; ip -n %[1]s link set eth0 address 02:00:00:00:09:09; ip -n %[1]s link set eth0 up", r.ns)
	r.eventually(30*time.Second, "the session is up with the new address", func() bool {
		s := n.status(r.ns)
		return s.State == bgp.Established && strings.HasPrefix(s.Address.String(), "fe80::ff:fe00:909")
	})
}

// The peer is whoever the default route goes to.
func TestDefaultGatewayMoves(t *testing.T) {
	a, b := newRouter(t), newRouter(t)
	a.frr(external4)
	b.frr(external4)
	sh(t, "ip route add default via %s", a.peer.v4)
	n := newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{a.session(func(p *bgp.Peer) { p.Address, p.DefaultGateway = netip.Addr{}, bgp.GatewayIPv4 }, routes("203.0.113.1/32")...)})
	n.established(a.ns, 5*time.Second)
	sh(t, "ip route replace default via %s", b.peer.v4)
	eventually(t, 8*time.Second, "the new gateway has the route", func() bool { return b.routeText("203.0.113.1/32") != "" })
	eventually(t, 8*time.Second, "the old gateway has it no more", func() bool { return a.routeText("203.0.113.1/32") == "" })
	eventually(t, 8*time.Second, "the status has the address of the new one", func() bool { return n.status(a.ns).Address == b.peer.v4 })
}

func TestTimers(t *testing.T) {
	for _, tt := range []struct {
		name            string
		hold, keepalive time.Duration
		theirs          string
		want            [2]time.Duration
	}{
		{"ours is shorter", 9 * time.Second, 0, "60 180", [2]time.Duration{9 * time.Second, 3 * time.Second}},
		{"ours with a keepalive time", 9 * time.Second, time.Second, "60 180", [2]time.Duration{9 * time.Second, time.Second}},
		{"theirs is shorter", 90 * time.Second, 20 * time.Second, "4 12", [2]time.Duration{12 * time.Second, 4 * time.Second}},
		{"none for us", 0, 0, "60 180", [2]time.Duration{}},
		{"none for them", 90 * time.Second, 0, "0 0", [2]time.Duration{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRouter(t)
			r.frr(external4 + " neighbor {node4} timers " + tt.theirs + "\n")
			n := newNode(t, bgp.Config{})
			n.speaker.Set([]bgp.Session{r.session(func(p *bgp.Peer) { p.HoldTime, p.Keepalive = tt.hold, tt.keepalive })})
			s := n.established(r.ns, 5*time.Second)
			if got := [2]time.Duration{s.HoldTime, s.Keepalive}; got != tt.want {
				t.Errorf("status has %v, want %v", got, tt.want)
			}
			v := r.json("show bgp neighbors {node4} json")
			if got := at(v, r.node.v4.String(), "bgpTimerHoldTimeMsecs"); fmt.Sprint(got) != fmt.Sprint(tt.want[0].Milliseconds()) {
				t.Errorf("the router holds for %v ms, want %s", got, tt.want[0])
			}
		})
	}
}

// A peer that falls silent is noticed when the hold time is over, and is back as soon as it answers again.
func TestSilentPeer(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	bgpd := r.frr(external4 + " neighbor {node4} timers 1 3\n")
	n := newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(func(p *bgp.Peer) { p.HoldTime = 3 * time.Second }, routes("203.0.113.1/32")...)})
	n.established(r.ns, 5*time.Second)
	signal(t, bgpd, syscall.SIGSTOP)
	r.eventually(5*time.Second, "the hold time ends the session", func() bool {
		s := n.status(r.ns)
		return s.State != bgp.Established && strings.Contains(s.LastError, "sent NOTIFICATION 4/0 (hold timer expired)")
	})
	signal(t, bgpd, syscall.SIGCONT)
	n.established(r.ns, 3*time.Second) // 2 s and a busy machine
}

// A peer that nothing comes back from is tried again often enough, and does not hold up another.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	a, b := newRouter(t), newRouter(t)
	a.frr(external4)
	b.frr(external4)
	sh(t, "ip netns exec %s nft 'add table ip f; add chain ip f in { type filter hook input priority 0; policy drop; }'", a.ns)
	n := newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{a.session(nil, routes("203.0.113.1/32")...), b.session(nil, routes("203.0.113.1/32")...)})
	n.established(b.ns, 3*time.Second)
	eventually(t, 5*time.Second, "the attempt fails", func() bool {
		return strings.Contains(n.status(a.ns).LastError, "no answer to TCP connections")
	})
	n.speaker.Set([]bgp.Session{a.session(nil, routes("203.0.113.2/32")...), b.session(nil, routes("203.0.113.2/32")...)})
	eventually(t, 2*time.Second, "the other peer has the change", func() bool { return b.routeText("203.0.113.2/32") != "" })
	sh(t, "ip netns exec %s nft flush ruleset", a.ns)
	n.established(a.ns, 3*time.Second)
	eventually(t, 2*time.Second, "it has the change as well", func() bool { return a.routeText("203.0.113.2/32") != "" })
}

// A router that restarts has the session and the routes back at once.
func TestRouterRestarts(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	bgpd := r.frr(external4)
	n := newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(nil, routes("203.0.113.1/32")...)})
	n.established(r.ns, 5*time.Second)
	signal(t, bgpd, syscall.SIGKILL)
	_ = bgpd.Wait()
	eventually(t, 5*time.Second, "the session is down", func() bool { return n.status(r.ns).State != bgp.Established })
	r.bgpd()
	n.established(r.ns, 3*time.Second)
	r.eventually(2*time.Second, "it has the route again", func() bool { return r.routeText("203.0.113.1/32") != "" })

	// The router's operator resets the session.
	ups := n.status(r.ns).Ups
	r.vtysh("clear bgp {node4}")
	eventually(t, 5*time.Second, "the session is up again", func() bool { s := n.status(r.ns); return s.Ups == ups+1 && s.State == bgp.Established })
	if got := n.status(r.ns).LastError; !strings.Contains(got, "received NOTIFICATION 6/4 (cease, administrative reset)") {
		t.Errorf("last error %q", got)
	}

	r.vtysh("conf t", "router bgp 64512", "neighbor {node4} shutdown message maintenance until nine")
	eventually(t, 5*time.Second, "the operator's words are shown", func() bool {
		return strings.Contains(n.status(r.ns).LastError, `administrative shutdown): "maintenance until nine"`)
	})
}

func signal(t *testing.T, p *process, sig syscall.Signal) {
	t.Helper()
	if err := p.signal(sig); err != nil {
		t.Fatal(err)
	}
}

// Without graceful restart, routers are asked to move traffic before the routes go; a changed or removed peer likewise.
func TestLeaving(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	r.frr(external4)
	n := newNode(t, bgp.Config{Leave: 1500 * time.Millisecond})
	n.speaker.Set([]bgp.Session{r.session(nil, routes("203.0.113.1/32")...)})
	n.established(r.ns, 5*time.Second)
	r.eventually(2*time.Second, "the route is there", func() bool { return r.routeText("203.0.113.1/32") != "" })
	go n.stop()
	r.eventually(time.Second, "the route is marked", func() bool {
		return strings.Contains(r.routeText("203.0.113.1/32"), "metric 4294967295") && strings.Contains(r.routeText("203.0.113.1/32"), "community graceful-shutdown")
	})
	r.eventually(3*time.Second, "the route is gone", func() bool { return r.routeText("203.0.113.1/32") == "" })
	v := r.json("show bgp neighbors {node4} json")
	if got := at(v, r.node.v4.String(), "lastResetDueTo"); got != "BGP Notification received" {
		t.Errorf("last reset due to %v", got)
	}
	n.stop()
}

// With graceful restart a speaker that ends and starts again is not noticed in the router's forwarding, and a route that
// is not wanted any more goes.
func TestGracefulRestart(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	r.frr(external4 + both4)
	r.vtysh("conf t", "router bgp 64512", "no neighbor {node4} activate", "neighbor {node4} activate")
	restart := func(p *bgp.Peer) { p.GracefulRestart, p.DualStack = 30*time.Second, true }
	n := newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(restart, routes("203.0.113.1/32", "203.0.113.2/32", "2001:db8:ffff::/64")...)})
	s := n.established(r.ns, 5*time.Second)
	if !s.GracefulRestart {
		t.Error("status does not say that graceful restart is agreed")
	}
	kernel := func(f, prefix string) bool {
		return strings.Contains(sh(t, "ip -n %s %s route", r.ns, f), prefix+" ")
	}
	r.eventually(3*time.Second, "the routes are in the kernel", func() bool {
		return kernel("-4", "203.0.113.1") && kernel("-4", "203.0.113.2") && kernel("-6", "2001:db8:ffff::/64")
	})
	monitor := r.daemon("ip", "monitor", "route")
	n.stop()
	r.eventually(3*time.Second, "the router waits for the restart", func() bool {
		return at(r.json("show bgp neighbors {node4} json"), r.node.v4.String(), "bgpState") != "Established"
	})
	n = newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(restart, routes("203.0.113.1/32", "2001:db8:ffff::/64")...)})
	n.established(r.ns, 5*time.Second)
	r.eventually(3*time.Second, "the unwanted route is gone", func() bool { return !kernel("-4", "203.0.113.2") })
	if !kernel("-4", "203.0.113.1") || !kernel("-6", "2001:db8:ffff::/64") {
		t.Error("a wanted route is gone")
	}
	signal(t, monitor, syscall.SIGTERM)
	_ = monitor.Wait()
	for _, line := range strings.Split(r.output("ip"), "\n") {
		if strings.HasPrefix(line, "Deleted") && (strings.Contains(line, "203.0.113.1 ") || strings.Contains(line, "2001:db8:ffff::/64")) {
			t.Errorf("a wanted route was gone for a while: %s", line)
		}
	}
}

// A changed identity replaces the session once; equal settings and changed options leave it alone.
func TestPeerChanges(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	r.frr(external4)
	n := newNode(t, bgp.Config{Leave: 100 * time.Millisecond})
	set := func(f func(*bgp.Peer)) { n.speaker.Set([]bgp.Session{r.session(f, routes("203.0.113.1/32")...)}) }
	set(nil)
	n.established(r.ns, 5*time.Second)
	for range 5 {
		set(nil)
	}
	established := func() any {
		return at(r.json("show bgp neighbors {node4} json"), r.node.v4.String(), "connectionsEstablished")
	}
	if got := established(); got != json.Number("1") {
		t.Errorf("the router counts %v sessions after settings that are equal", got)
	}
	options := func(p *bgp.Peer) { p.HoldTime, p.MaxPrefixes, p.ConnectTime = 12*time.Second, 5, 2*time.Second }
	set(options)
	r.eventually(5*time.Second, "the status says when the hold time counts", func() bool {
		return strings.Contains(n.status(r.ns).Problem, "count from the next session on; this one has 9s and 3s")
	})
	if got := established(); got != json.Number("1") {
		t.Errorf("the router counts %v sessions after other options", got)
	}
	set(func(p *bgp.Peer) { options(p); p.RouterID = netip.MustParseAddr("192.0.2.77") })
	r.eventually(5*time.Second, "the new router ID and hold time are in use", func() bool {
		s := n.status(r.ns)
		return s.State == bgp.Established && s.HoldTime == 12*time.Second && s.Problem == "" &&
			at(r.json("show bgp neighbors {node4} json"), r.node.v4.String(), "remoteRouterId") == "192.0.2.77"
	})
	if got := established(); got != json.Number("2") {
		t.Errorf("the router counts %v sessions after one change", got)
	}
	n.speaker.Set(nil)
	r.eventually(3*time.Second, "the session is gone", func() bool {
		return at(r.json("show bgp neighbors {node4} json"), r.node.v4.String(), "bgpState") != "Established" && len(n.speaker.Status()) == 0
	})
}

// What the peer sends is counted and not used, whatever it is, and is limited.
func TestPeerAnnounces(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	conf := external4
	for i := range 20 {
		conf += fmt.Sprintf(" network 192.0.2.%d/32\n", i)
	}
	r.frr(conf + " no bgp network import-check\n")
	n := newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(func(p *bgp.Peer) { p.MaxPrefixes = 21 }, routes("203.0.113.1/32")...)})
	n.established(r.ns, 5*time.Second)
	// The router also gives us our own back.
	r.eventually(8*time.Second, "the prefixes are counted", func() bool { return n.status(r.ns).Received == 21 })
	r.vtysh("conf t", "router bgp 64512", "address-family ipv4 unicast", "no network 192.0.2.7/32")
	r.eventually(8*time.Second, "a withdrawn one is not", func() bool { return n.status(r.ns).Received == 20 })
	r.vtysh("clear bgp {node4} soft in")                                                                                                                        // a ROUTE-REFRESH
	r.eventually(3*time.Second, "the refresh was answered", func() bool { s := n.status(r.ns); return s.MessagesIn.Refresh == 1 && s.MessagesOut.Update == 3 }) // with End-of-RIB
	r.vtysh("conf t", "router bgp 64512", "address-family ipv4 unicast", "network 192.0.2.101/32", "network 192.0.2.102/32")
	r.eventually(8*time.Second, "more than allowed end the session", func() bool {
		return strings.Contains(n.status(r.ns).LastError, "sent NOTIFICATION 6/1 (cease, maximum number of prefixes reached)")
	})
}

// Many routes arrive, change and go.
func TestManyRoutes(t *testing.T) {
	const many = 10000
	r := newRouter(t)
	r.frr(external4 + both4)
	n := newNode(t, bgp.Config{})
	rs := manyRoutes(many)
	dual := func(p *bgp.Peer) { p.DualStack = true }
	n.speaker.Set([]bgp.Session{r.session(dual, rs...)})
	n.established(r.ns, 5*time.Second)
	start := time.Now()
	count := func(family string) int64 {
		n, _ := at(r.json("show bgp "+family+" unicast summary json"), "peers", r.node.v4.String(), "pfxRcd").(json.Number)
		i, _ := n.Int64()
		return i
	}
	r.eventually(10*time.Second, "all are there", func() bool { return count("ipv4") == many && count("ipv6") == many/10 })
	t.Logf("all there %s after the session was up", time.Since(start))
	if s := n.status(r.ns); s.Sent4 != many || s.Sent6 != many/10 {
		t.Errorf("status says %d and %d prefixes", s.Sent4, s.Sent6)
	}
	for i := range rs {
		rs[i].Attrs = route.Attrs{Communities: []route.Community{{A: 1, B: 2}}}
	}
	n.speaker.Set([]bgp.Session{r.session(dual, rs...)})
	r.eventually(10*time.Second, "the last has changed", func() bool {
		return strings.Contains(r.routeText(rs[len(rs)-1].Prefix.String()), "community 1:2")
	})
	n.speaker.Set([]bgp.Session{r.session(dual, rs[0])})
	r.eventually(10*time.Second, "all but one are gone", func() bool { return count("ipv4") == 1 && count("ipv6") == 0 })
	if s := n.status(r.ns); s.Sent4 != 1 || s.Sent6 != 0 {
		t.Errorf("status says %d and %d prefixes", s.Sent4, s.Sent6)
	}
}
