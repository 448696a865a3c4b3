package interop

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/speaker/bfd"
	"github.com/clarionlb/clarion/speaker/bgp"
)

// gobgpTools builds GoBGP's daemon and CLI, as gobgp/go.mod pins them, unless the go command still has them, and hands
// their paths to the test in the environment: in a network namespace of its own it could not download anything.
func gobgpTools() (env []string) {
	for _, name := range []string{"gobgpd", "gobgp"} {
		var message bytes.Buffer
		cmd := exec.Command("go", "tool", "-modfile=gobgp/go.mod", "-n", name)
		cmd.Stderr = &message
		path, err := cmd.Output()
		if err != nil {
			path = fmt.Appendf(nil, "!%v: %s", err, &message)
		}
		env = append(env, "CLARION_INTEROP_"+name+"="+strings.TrimSpace(string(path)))
	}
	return env
}

func gobgpTool(t testing.TB, name string) string {
	t.Helper()
	path := os.Getenv("CLARION_INTEROP_" + name)
	if why, failed := strings.CutPrefix(path, "!"); failed {
		t.Fatalf("%s cannot be built: %s", name, why)
	}
	return path
}

// Neighbors of gobgpd, to which lines and tables can be added.
const (
	gobgp4 = "neighbor-address = \"{node4}\"\npeer-as = 65001\n"
	gobgp6 = "neighbor-address = \"{node6}\"\npeer-as = 65001\n"
)

var (
	ipv4     = []string{"ipv4-unicast"}
	ipv6     = []string{"ipv6-unicast"}
	families = slices.Concat(ipv4, ipv6)
)

// gobgp starts gobgpd with this AS number and neighbor, and these families, which restart gracefully. Its sessions carry
// what their families say, and have no FIB behind them: what it has is what its table says.
func (r *router) gobgp(asn uint32, neighbor string, families []string) *process {
	r.t.Helper()
	conf := fmt.Sprintf("[global.config]\nas = %d\nrouter-id = \"10.255.0.3\"\n[[neighbors]]\n[neighbors.config]\n%s"+
		"[neighbors.graceful-restart.config]\nenabled = true\nrestart-time = 30\n", asn, neighbor)
	if !strings.Contains(neighbor, "timers") {
		conf += "[neighbors.timers.config]\nconnect-retry = 1\nidle-hold-time-after-reset = 1\n"
	}
	for _, f := range families {
		conf += fmt.Sprintf("[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = %q\n[neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true\n", f)
	}
	r.write("gobgpd.toml", r.expand(conf))
	return r.gobgpd()
}

func (r *router) gobgpd() *process {
	cmd := r.daemon(gobgpTool(r.t, "gobgpd"), "-f", r.dir+"/gobgpd.toml", "--pprof-disable", "-p")
	r.eventually(10*time.Second, "gobgpd is up", func() bool {
		out, err := r.tryCLI("neighbor")
		return err == nil && strings.Contains(out, "AS")
	})
	return cmd
}

func (r *router) tryCLI(args ...string) (string, error) {
	r.t.Helper()
	for i := range args {
		args[i] = r.expand(args[i])
	}
	out, err := exec.Command("ip", append([]string{"netns", "exec", r.ns, gobgpTool(r.t, "gobgp")}, args...)...).CombinedOutput()
	return string(out), err
}

// cli runs a command of GoBGP's.
func (r *router) cli(args ...string) string {
	r.t.Helper()
	out, err := r.tryCLI(args...)
	if err != nil {
		r.t.Fatalf("gobgp %q: %v\n%s", args, err, out)
	}
	return out
}

// gobgpNeighbor is what gobgpd says about its session with the node.
func (r *router) gobgpNeighbor(address string) (v any) {
	r.t.Helper()
	out := r.cli("-j", "neighbor", address)
	d := json.NewDecoder(strings.NewReader(out))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		r.t.Fatalf("%v in %s", err, out)
	}
	return v
}

// gobgpRoute is how gobgpd sees a prefix: next hop, AS path and attributes, "" if it does not have it. A stale route
// begins with "S".
func (r *router) gobgpRoute(prefix string) string {
	r.t.Helper()
	family := "ipv4"
	if strings.Contains(prefix, ":") {
		family = "ipv6"
	}
	out, err := r.tryCLI("global", "rib", prefix, "-a", family)
	if err != nil { // "Network not in table"
		return ""
	}
	out = strings.TrimSpace(out)
	mark, rest, _ := strings.Cut(out[strings.LastIndex(out, "\n")+1:], ">")
	fields := strings.Fields(rest)
	i := slices.IndexFunc(fields, func(s string) bool { return strings.HasPrefix(s, "[{") })
	if i < 3 {
		return ""
	}
	fields = append(fields[1:i-1], fields[i:]...) // without prefix and age
	return strings.TrimRight(mark, "*") + strings.Join(fields, " ")
}

func TestRoutesAsGoBGPSeesThem(t *testing.T) {
	all := route.Attrs{
		Communities: []route.Community{community("65001:7"), community("no-export"), community("large:65001:1:2")},
		LocalPref:   num(250), MED: num(30), Prepend: 2, Bandwidth: 125e6,
	}
	v6 := func(p *bgp.Peer) { p.Address = placeholder6 }
	internal := func(p *bgp.Peer) { p.PeerASN = 65001 }
	both := func(p *bgp.Peer) { p.DualStack = true }
	const communities = "{Communities: 65001:7, no-export} {Extcomms: [65001:125000000]} {LargeCommunity: [ 65001:1:2]}]"
	for _, tt := range []struct {
		name, neighbor string
		asn            uint32 // 0 for 64512
		families       []string
		peer           func(*bgp.Peer)
		attrs          route.Attrs
		want4, want6   string // "" if gobgpd must not have the route
	}{
		{name: "external, no attributes", neighbor: gobgp4, families: ipv4, want4: "{node4} 65001 [{Origin: i}]"},
		{name: "external, all attributes", neighbor: gobgp4, families: ipv4, attrs: all, want4: "{node4} 65001 65001 65001 [{Origin: i} {Med: 30} " + communities},
		{name: "internal, no attributes", asn: 65001, neighbor: gobgp4, families: ipv4, peer: internal, want4: "{node4} [{Origin: i} {LocalPref: 100}]"},
		{name: "internal, all attributes", asn: 65001, neighbor: gobgp4, families: ipv4, peer: internal, attrs: all,
			want4: "{node4} [{Origin: i} {Med: 30} {LocalPref: 250} " + communities},
		{name: "IPv6", neighbor: gobgp6, families: ipv6, peer: v6, want6: "{node6} 65001 [{Origin: i}]"},
		{name: "both families over IPv4", neighbor: gobgp4, families: families, peer: both, want4: "{node4} 65001 [{Origin: i}]", want6: "{node6} 65001 [{Origin: i}]"},
		{name: "both families over IPv4, but the session is for one", neighbor: gobgp4, families: families, want4: "{node4} 65001 [{Origin: i}]"},
		{name: "one family, but the session is for both", neighbor: gobgp4, families: ipv6, peer: both, want6: "{node6} 65001 [{Origin: i}]"},
		{name: "both families over IPv6", neighbor: gobgp6, families: families, peer: func(p *bgp.Peer) { v6(p); both(p) },
			want4: "{node4} 65001 [{Origin: i}]", want6: "{node6} 65001 [{Origin: i}]"},
		{name: "four-byte AS numbers", asn: 4200000001, neighbor: strings.Replace(gobgp4, "65001", "4200000002", 1), families: ipv4,
			peer: func(p *bgp.Peer) { p.LocalASN, p.PeerASN = 4200000002, 4200000001 }, attrs: route.Attrs{Bandwidth: 125e6},
			want4: "{node4} 4200000002 [{Origin: i} {Extcomms: [23456:125000000]}]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRouter(t)
			r.gobgp(cmp.Or(tt.asn, 64512), tt.neighbor, tt.families)
			n := newNode(t, bgp.Config{})
			rs := routes("203.0.113.1/32", "2001:db8:ffff::/64")
			for i := range rs {
				rs[i].Attrs = tt.attrs
			}
			n.speaker.Set([]bgp.Session{r.session(tt.peer, rs...)})
			n.established(r.ns, 15*time.Second)
			var got [2]string
			want := [2]string{r.expand(tt.want4), r.expand(tt.want6)}
			defer func() {
				if t.Failed() {
					t.Logf("got  %q\nwant %q", got, want)
				}
			}()
			r.eventually(3*time.Second, "gobgpd has the routes", func() bool {
				got = [2]string{r.gobgpRoute("203.0.113.1/32"), r.gobgpRoute("2001:db8:ffff::/64")}
				return got == want
			})
		})
	}
}

// A session in each way that a Peer can ask for, as TestSessionsWithFRR has them.
func TestSessionsWithGoBGP(t *testing.T) {
	const (
		password = "auth-password = \"s3cret\"\n"
		ttl      = "[neighbors.ttl-security.config]\nenabled = true\nttl-min = 255\n"
		hold     = "[neighbors.timers.config]\nconnect-retry = 1\nidle-hold-time-after-reset = 1\nhold-time = 12\nkeepalive-interval = 4\n"
	)
	for _, tt := range []struct {
		name, neighbor string
		asn            uint32
		families       []string // nil for IPv4
		setup          func(r *router)
		peer           func(*bgp.Peer)
		fails          string // part of LastError when the session must not come up
		want           func(s bgp.SessionStatus) bool
		cannot         string // why gobgpd has no such session
	}{
		{name: "external number given"},
		{name: "wrong number", peer: func(p *bgp.Peer) { p.PeerASN = 64999 }, fails: "the peer has AS number 64512, not 64999"},
		{name: "other local number", peer: func(p *bgp.Peer) { p.LocalASN = 65002 }, fails: "received NOTIFICATION 2/2 (OPEN message error, bad peer AS)"},
		{name: "any external", peer: func(p *bgp.Peer) { p.PeerASN, p.Dynamic = 0, bgp.DynamicExternal }},
		{name: "any external, but internal", asn: 65001, peer: func(p *bgp.Peer) { p.Dynamic = bgp.DynamicExternal }, fails: "the peer has the local AS number 65001"},
		{name: "internal", asn: 65001, peer: func(p *bgp.Peer) { p.Dynamic = bgp.DynamicInternal }},
		{name: "internal, but external", peer: func(p *bgp.Peer) { p.Dynamic = bgp.DynamicInternal }, fails: "the peer has AS number 64512, which is not the local one"},
		{name: "password", neighbor: gobgp4 + password, peer: func(p *bgp.Peer) { p.Password = "s3cret" }},
		{name: "password over IPv6", neighbor: gobgp6 + password, families: ipv6, peer: func(p *bgp.Peer) { p.Address, p.Password = placeholder6, "s3cret" }},
		{name: "wrong password", neighbor: gobgp4 + password, peer: func(p *bgp.Peer) { p.Password = "other" }, fails: "the passwords differ"},
		{name: "TTL security", neighbor: gobgp4 + ttl, peer: func(p *bgp.Peer) { p.TTLSecurity = true }},
		{name: "TTL security over IPv6", cannot: "gobgpd 4.8 answers an IPv6 SYN with a hop limit of 64, which TTL security drops"},
		{name: "multi-hop", neighbor: gobgp4 + "[neighbors.ebgp-multihop.config]\nenabled = true\nmultihop-ttl = 3\n[neighbors.transport.config]\nlocal-address = \"198.51.100.1\"\n",
			setup: func(r *router) {
				sh(r.t, "ip -n %s addr add 198.51.100.1/32 dev lo; ip route add 198.51.100.1 via %s", r.ns, r.peer.v4)
			},
			peer: func(p *bgp.Peer) { p.Address, p.MultiHop = netip.MustParseAddr("198.51.100.1"), true }},
		{name: "passive", peer: func(p *bgp.Peer) { p.Passive = true }},
		{name: "passive with password", neighbor: gobgp4 + password, peer: func(p *bgp.Peer) { p.Passive, p.Password = true, "s3cret" }},
		{name: "passive with TTL security", neighbor: gobgp4 + ttl, peer: func(p *bgp.Peer) { p.Passive, p.TTLSecurity = true, true }},
		{name: "passive with TTL security over IPv6", neighbor: gobgp6 + ttl, families: ipv6, peer: func(p *bgp.Peer) { p.Address, p.Passive, p.TTLSecurity = placeholder6, true, true }},
		{name: "passive over IPv6", neighbor: gobgp6, families: ipv6, peer: func(p *bgp.Peer) { p.Address, p.Passive = placeholder6, true }},
		{name: "source address", neighbor: strings.Replace(gobgp4, "{node4}", "198.51.100.9", 1),
			setup: func(r *router) {
				sh(r.t, "ip addr add 198.51.100.9/32 dev %s; ip -n %s route add 198.51.100.9 via %s", r.node.ifname, r.ns, r.node.v4)
			},
			peer: func(p *bgp.Peer) { p.Source = netip.MustParseAddr("198.51.100.9") }},
		{name: "gateway of the default route",
			setup: func(r *router) { sh(r.t, "ip route add default via %s", r.peer.v4) },
			peer:  func(p *bgp.Peer) { p.Address, p.DefaultGateway = netip.Addr{}, bgp.GatewayIPv4 }},
		{name: "gateway of the IPv6 default route", neighbor: gobgp6, families: ipv6,
			setup: func(r *router) { sh(r.t, "ip -6 route add default via %s", r.peer.v6) },
			peer:  func(p *bgp.Peer) { p.Address, p.DefaultGateway = netip.Addr{}, bgp.GatewayIPv6 }},
		{name: "same router ID, internal", asn: 65001, peer: func(p *bgp.Peer) { p.PeerASN, p.RouterID = 65001, netip.MustParseAddr("10.255.0.3") }, fails: "router ID"},
		{name: "a BGP role, which gobgpd does not know", peer: func(p *bgp.Peer) { p.Customer = true }},
		{name: "graceful restart", peer: func(p *bgp.Peer) { p.GracefulRestart = 30 * time.Second },
			want: func(s bgp.SessionStatus) bool { return s.GracefulRestart }},
		{name: "no graceful restart on our side", want: func(s bgp.SessionStatus) bool { return !s.GracefulRestart }},
		{name: "its hold time is shorter", neighbor: gobgp4 + hold, peer: func(p *bgp.Peer) { p.HoldTime, p.Keepalive = 90*time.Second, 20*time.Second },
			want: func(s bgp.SessionStatus) bool { return s.HoldTime == 12*time.Second && s.Keepalive == 4*time.Second }},
		{name: "our hold time is shorter", neighbor: gobgp4 + hold, peer: func(p *bgp.Peer) { p.Keepalive = time.Second },
			want: func(s bgp.SessionStatus) bool { return s.HoldTime == 9*time.Second && s.Keepalive == time.Second }},
		{name: "no hold time", neighbor: gobgp4 + hold, peer: func(p *bgp.Peer) { p.HoldTime = 0 },
			want: func(s bgp.SessionStatus) bool { return s.HoldTime == 0 && s.Keepalive == 0 }},
		{name: "no hold time on its side", cannot: "gobgpd takes a hold time of 0 in its configuration for its default"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.cannot != "" {
				t.Skip(tt.cannot)
			}
			if !strings.HasPrefix(tt.name, "passive") && !strings.Contains(tt.name, "default route") { // those share a port or a route
				t.Parallel()
			}
			r := newRouter(t)
			if tt.setup != nil {
				tt.setup(r)
			}
			if tt.neighbor == "" {
				tt.neighbor = gobgp4
			}
			if tt.families == nil {
				tt.families = ipv4
			}
			r.gobgp(cmp.Or(tt.asn, 64512), tt.neighbor, tt.families)
			n := newNode(t, bgp.Config{})
			n.speaker.Set([]bgp.Session{r.session(tt.peer, routes("203.0.113.1/32", "2001:db8:ffff::/64")...)})
			if tt.fails != "" {
				r.eventually(15*time.Second, "the session fails with "+tt.fails, func() bool { return strings.Contains(n.status(r.ns).LastError, tt.fails) })
				return
			}
			s := n.established(r.ns, 20*time.Second)
			r.eventually(3*time.Second, "gobgpd has a route", func() bool {
				return r.gobgpRoute("203.0.113.1/32") != "" || r.gobgpRoute("2001:db8:ffff::/64") != ""
			})
			if tt.want != nil && !tt.want(s) {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// What gobgpd does and suffers while a session stands: routes change, its operator resets and shuts it down, it stops
// answering, it is killed.
func TestLifeWithGoBGP(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	d := r.gobgp(64512, gobgp4+"[neighbors.timers.config]\nconnect-retry = 1\nidle-hold-time-after-reset = 1\nhold-time = 3\nkeepalive-interval = 1\n", families)
	n := newNode(t, bgp.Config{Leave: 1500 * time.Millisecond})
	set := func(f func(p *bgp.Peer), prefixes ...string) {
		n.speaker.Set([]bgp.Session{r.session(func(p *bgp.Peer) {
			p.HoldTime, p.DualStack = 3*time.Second, true
			if f != nil {
				f(p)
			}
		}, routes(prefixes...)...)})
	}
	has := func(prefix string, is bool) {
		t.Helper()
		r.eventually(3*time.Second, fmt.Sprintf("gobgpd has %s: %v", prefix, is), func() bool { return (r.gobgpRoute(prefix) != "") == is })
	}
	again := func(what string) {
		t.Helper()
		ups := n.status(r.ns).Ups
		r.eventually(15*time.Second, "the session is up after "+what, func() bool { s := n.status(r.ns); return s.State == bgp.Established && s.Ups > ups })
	}
	set(nil, "203.0.113.1/32", "203.0.113.2/32", "2001:db8:ffff::/64")
	n.established(r.ns, 15*time.Second)
	has("203.0.113.2/32", true)
	has("2001:db8:ffff::/64", true)
	set(nil, "203.0.113.1/32")
	has("203.0.113.2/32", false)
	has("2001:db8:ffff::/64", false)
	has("203.0.113.1/32", true)

	for i := range 20 {
		r.cli("global", "rib", "add", fmt.Sprintf("192.0.2.%d/32", i))
	}
	r.eventually(3*time.Second, "its prefixes are counted", func() bool { return n.status(r.ns).Received == 20 })
	r.cli("global", "rib", "del", "192.0.2.7/32")
	r.eventually(3*time.Second, "one that it withdraws is not", func() bool { return n.status(r.ns).Received == 19 })
	// It never asks for a refresh: "softresetin" looks at what it has kept.

	lastError := func(what string) {
		t.Helper()
		r.eventually(8*time.Second, "the reason is "+what, func() bool { return strings.Contains(n.status(r.ns).LastError, what) })
	}
	r.cli("neighbor", "{node4}", "reset")
	lastError("received NOTIFICATION 6/4 (cease, administrative reset)")
	n.established(r.ns, 15*time.Second)
	signal(t, d, syscall.SIGSTOP)
	lastError("sent NOTIFICATION 4/0 (hold timer expired)")
	signal(t, d, syscall.SIGCONT)
	n.established(r.ns, 15*time.Second)
	signal(t, d, syscall.SIGKILL)
	_ = d.Wait()
	r.eventually(5*time.Second, "the session is down", func() bool { return n.status(r.ns).State != bgp.Established })
	r.gobgpd()
	n.established(r.ns, 15*time.Second)
	has("203.0.113.1/32", true)

	ups := n.status(r.ns).Ups
	options := func(p *bgp.Peer) { p.MaxPrefixes, p.ConnectTime = 5, 2*time.Second }
	set(options, "203.0.113.1/32")
	set(func(p *bgp.Peer) { options(p); p.RouterID = netip.MustParseAddr("192.0.2.77") }, "203.0.113.1/32")
	r.eventually(15*time.Second, "the new router ID is in use", func() bool {
		return n.status(r.ns).State == bgp.Established && at(r.gobgpNeighbor("{node4}"), "state", "router_id") == "192.0.2.77"
	})
	if got := n.status(r.ns).Ups; got != ups+1 {
		t.Errorf("%d sessions after one change", got-ups)
	}
	for i := range 6 {
		r.cli("global", "rib", "add", fmt.Sprintf("192.0.2.%d/32", i))
	}
	lastError("sent NOTIFICATION 6/1 (cease, maximum number of prefixes reached)")
	set(nil, "203.0.113.1/32")
	again("a limit")
	has("203.0.113.1/32", true)

	go n.stop()
	r.eventually(time.Second, "the route is marked", func() bool {
		s := r.gobgpRoute("203.0.113.1/32")
		return strings.Contains(s, "{Med: 4294967295}") && strings.Contains(s, "{Communities: planned-shut}")
	})
	has("203.0.113.1/32", false)
	n.stop()
}

// With graceful restart gobgpd keeps the routes while the speaker is away, and drops at End-of-RIB those that are not
// wanted any more.
func TestGracefulRestartWithGoBGP(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	r.gobgp(64512, gobgp4, families)
	restart := func(p *bgp.Peer) { p.GracefulRestart, p.DualStack = 30*time.Second, true }
	n := newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(restart, routes("203.0.113.1/32", "203.0.113.2/32", "2001:db8:ffff::/64")...)})
	n.established(r.ns, 15*time.Second)
	r.eventually(3*time.Second, "the routes are there", func() bool {
		return r.gobgpRoute("203.0.113.2/32") != "" && r.gobgpRoute("2001:db8:ffff::/64") != ""
	})
	n.stop()
	for _, p := range []string{"203.0.113.1/32", "203.0.113.2/32", "2001:db8:ffff::/64"} {
		r.eventually(3*time.Second, p+" is stale", func() bool { return strings.HasPrefix(r.gobgpRoute(p), "S") })
	}
	n = newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(restart, routes("203.0.113.1/32", "2001:db8:ffff::/64")...)})
	n.established(r.ns, 15*time.Second)
	r.eventually(3*time.Second, "the wanted routes are fresh, and the unwanted one is gone", func() bool {
		return r.gobgpRoute("203.0.113.2/32") == "" && strings.HasPrefix(r.gobgpRoute("203.0.113.1/32"), r.node.v4.String()) &&
			strings.HasPrefix(r.gobgpRoute("2001:db8:ffff::/64"), r.node.v6.String())
	})
}

func TestManyRoutesWithGoBGP(t *testing.T) {
	const many = 10000
	r := newRouter(t)
	r.gobgp(64512, gobgp4, families)
	n := newNode(t, bgp.Config{})
	rs := manyRoutes(many)
	dual := func(p *bgp.Peer) { p.DualStack = true }
	has := func(v4, v6 int) {
		t.Helper()
		r.eventually(15*time.Second, fmt.Sprintf("gobgpd has %d and %d", v4, v6), func() bool {
			v := r.gobgpNeighbor("{node4}")
			var got [2]int64 // a number of 0 is left out
			for i := range got {
				n, _ := at(v, "afi_safis", i, "state", "accepted").(json.Number)
				got[i], _ = n.Int64()
			}
			return got == [2]int64{int64(v4), int64(v6)}
		})
	}
	n.speaker.Set([]bgp.Session{r.session(dual, rs...)})
	n.established(r.ns, 15*time.Second)
	has(many, many/10)
	for i := range rs {
		rs[i].Attrs = route.Attrs{Communities: []route.Community{{A: 1, B: 2}}}
	}
	n.speaker.Set([]bgp.Session{r.session(dual, rs...)})
	r.eventually(10*time.Second, "the last has changed", func() bool {
		return strings.Contains(r.gobgpRoute(rs[len(rs)-1].Prefix.String()), "{Communities: 1:2}")
	})
	n.speaker.Set([]bgp.Session{r.session(dual, rs[0])})
	has(1, 0)
}

func TestBFDWithGoBGP(t *testing.T) {
	const settings = "[neighbors.bfd.config]\nenabled = true\ndesired-minimum-tx-interval = 100000\nrequired-minimum-receive = 100000\ndetection-multiplier = 3\n"
	for _, tt := range []struct {
		name, neighbor string
		families       []string
		peer           func(*bgp.Peer)
		cannot         string
	}{
		{name: "IPv4", neighbor: gobgp4, families: ipv4},
		{name: "IPv6", neighbor: gobgp6, families: ipv6, peer: func(p *bgp.Peer) { p.Address = placeholder6 }},
		{name: "multi-hop", cannot: "gobgpd has BFD of a single hop only"},
		{name: "echo", cannot: "gobgpd has no echo function"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.cannot != "" {
				t.Skip(tt.cannot)
			}
			r := newRouter(t)
			r.gobgp(64512, tt.neighbor+settings, tt.families)
			n := newNode(t, bgp.Config{})
			n.speaker.Set([]bgp.Session{r.session(func(p *bgp.Peer) {
				p.BFD = fast
				if tt.peer != nil {
					tt.peer(p)
				}
			})})
			n.established(r.ns, 15*time.Second)
			up := func() bool {
				s := n.status(r.ns)
				return s.State == bgp.Established && s.BFD != nil && s.BFD.State == bfd.Up && s.BFD.Detection == 300*time.Millisecond
			}
			r.eventually(10*time.Second, "BFD is up", up)
			sh(t, "ip netns exec %s nft 'add table inet f; add chain inet f in { type filter hook input priority 0; iifname eth0 drop; }; add chain inet f out { type filter hook output priority 0; oifname eth0 drop; }'", r.ns)
			r.eventually(3*time.Second, "the session is down", func() bool { return n.status(r.ns).State != bgp.Established })
			sh(t, "ip netns exec %s nft flush ruleset", r.ns)
			r.eventually(30*time.Second, "all is up again", up)
		})
	}
}

func TestUnnumberedWithGoBGP(t *testing.T) {
	t.Skip("gobgpd sends no router advertisements: it wants another program on its node to, and reads the neighbor's address once, when it starts")
}
