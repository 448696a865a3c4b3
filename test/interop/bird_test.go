package interop

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/speaker/bfd"
	"github.com/clarionlb/clarion/speaker/bgp"
)

// bird starts BIRD with a BGP protocol "node" made of the lines of session, and the families of channels.
func (r *router) bird(session, channels string) {
	r.t.Helper()
	r.birdAlone(session, channels, "protocol kernel { ipv4 { import none; export all; }; }", "protocol kernel { ipv6 { import none; export all; }; }")
}

// birdAlone is bird that hands nothing to the kernel, with more protocols.
func (r *router) birdAlone(session, channels string, protocols ...string) {
	r.t.Helper()
	if _, err := os.Stat("/usr/sbin/bird"); err != nil {
		r.t.Skip("BIRD is not installed")
	}
	r.write("bird.conf", r.expand(`
router id 10.255.0.2;
protocol device { scan time 1; }
`+strings.Join(protocols, "\n")+`
protocol bfd { interface "*" { min rx interval 100 ms; min tx interval 100 ms; multiplier 3; }; }
protocol bgp node {
 connect retry time 1; connect delay time 1; error wait time 1, 2;
 `+session+`
 `+channels+`
}
`))
	r.daemon("/usr/sbin/bird", "-f", "-c", r.dir+"/bird.conf", "-s", r.dir+"/bird.ctl", "-P", r.dir+"/bird.pid")
	r.eventually(5*time.Second, "bird is up", func() bool {
		_, err := os.Stat(filepath.Join(r.dir, "bird.ctl"))
		return err == nil && strings.Contains(r.birdc("show status"), "Daemon is up")
	})
}

func (r *router) birdc(command string) string {
	r.t.Helper()
	out, err := exec.Command("ip", "netns", "exec", r.ns, "birdc", "-r", "-s", r.dir+"/bird.ctl", command).CombinedOutput()
	if err != nil {
		return ""
	}
	return string(out)
}

const (
	birdIPv4 = "local {peer4} as 64512; neighbor {node4} as 65001;"
	birdIPv6 = "local {peer6} as 64512; neighbor {node6} as 65001;"
	channel4 = "ipv4 { import all; export none; };"
	channel6 = "ipv6 { import all; export none; };"
)

func TestRoutesAsBIRDSeesThem(t *testing.T) {
	all := route.Attrs{
		Communities: []route.Community{community("65001:7"), community("no-export"), community("large:65001:1:2")},
		LocalPref:   num(250), MED: num(30), Prepend: 2,
	}
	v4 := func(p *bgp.Peer) {}
	v6 := func(p *bgp.Peer) { p.Address = placeholder6 }
	for _, tt := range []struct {
		name, session, channels string
		peer                    func(*bgp.Peer)
		attrs                   route.Attrs
		want4, want6            []string // lines of "show route all"
	}{
		{name: "IPv4", session: birdIPv4, channels: channel4, peer: v4,
			want4: []string{"BGP.as_path: 65001\n", "BGP.next_hop: {node4}\n"}},
		{name: "IPv6", session: birdIPv6, channels: channel6, peer: v6,
			want6: []string{"BGP.as_path: 65001\n", "BGP.next_hop: {node6}"}},
		{name: "attributes", session: birdIPv4, channels: channel4, peer: v4, attrs: all,
			want4: []string{"BGP.as_path: 65001 65001 65001\n", "BGP.med: 30\n", "BGP.local_pref: 100\n", "BGP.community: (65001,7) (65535,65281)\n", "BGP.large_community: (65001, 1, 2)\n"}},
		{name: "internal", session: strings.ReplaceAll(birdIPv4, "64512", "65001"), channels: channel4, peer: func(p *bgp.Peer) { p.PeerASN = 65001 }, attrs: all,
			want4: []string{"BGP.as_path: \n", "BGP.local_pref: 250\n"}},
		{name: "password", session: birdIPv4 + ` password "s3cret";`, channels: channel4, peer: func(p *bgp.Peer) { p.Password = "s3cret" },
			want4: []string{"BGP.as_path: 65001\n"}},
		{name: "password over IPv6", session: birdIPv6 + ` password "s3cret";`, channels: channel6, peer: func(p *bgp.Peer) { p.Address, p.Password = placeholder6, "s3cret" },
			want6: []string{"BGP.as_path: 65001\n"}},
		{name: "TTL security", session: birdIPv4 + " ttl security on;", channels: channel4, peer: func(p *bgp.Peer) { p.TTLSecurity = true },
			want4: []string{"BGP.as_path: 65001\n"}},
		{name: "both families over IPv4", session: birdIPv4, channels: channel4 + channel6, peer: func(p *bgp.Peer) { p.DualStack = true },
			want4: []string{"BGP.next_hop: {node4}\n"}, want6: []string{"BGP.next_hop: {node6}"}},
		{name: "passive", session: birdIPv4, channels: channel4, peer: func(p *bgp.Peer) { p.Passive = true },
			want4: []string{"BGP.next_hop: {node4}\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRouter(t)
			r.bird(tt.session, tt.channels)
			n := newNode(t, bgp.Config{})
			rs := routes("203.0.113.1/32", "2001:db8:ffff::/64")
			for i := range rs {
				rs[i].Attrs = tt.attrs
			}
			n.speaker.Set([]bgp.Session{r.session(tt.peer, rs...)})
			n.established(r.ns, 8*time.Second)
			for prefix, want := range map[string][]string{"203.0.113.1/32": tt.want4, "2001:db8:ffff::/64": tt.want6} {
				if want == nil {
					continue
				}
				r.eventually(3*time.Second, "BIRD has "+prefix, func() bool { return strings.Contains(r.birdc("show route all "+prefix), "BGP.origin") })
				got := r.birdc("show route all " + prefix)
				for _, w := range want {
					if !strings.Contains(got, r.expand(w)) {
						t.Errorf("no %q in\n%s", r.expand(w), got)
					}
				}
			}
		})
	}
}

// BIRD follows RFC 4724 to the letter: it drops the routes if the Forwarding State bit is missing after the restart, and
// at the End-of-RIB those that have not been sent again.
func TestGracefulRestartWithBIRD(t *testing.T) {
	t.Parallel()
	r := newRouter(t)
	r.bird(birdIPv4+" graceful restart aware;", channel4+channel6)
	restart := func(p *bgp.Peer) { p.GracefulRestart, p.DualStack = 30*time.Second, true }
	n := newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(restart, routes("203.0.113.1/32", "203.0.113.2/32", "2001:db8:ffff::/64")...)})
	n.established(r.ns, 8*time.Second)
	kernel := func(f, prefix string) bool {
		return strings.Contains(sh(t, "ip -n %s %s route", r.ns, f), prefix+" ")
	}
	r.eventually(3*time.Second, "the routes are in the kernel", func() bool {
		return kernel("-4", "203.0.113.1") && kernel("-4", "203.0.113.2") && kernel("-6", "2001:db8:ffff::/64")
	})
	monitor := r.daemon("ip", "monitor", "route")
	n.stop()
	r.eventually(3*time.Second, "BIRD waits for the restart", func() bool { return !strings.Contains(r.birdc("show protocols node"), "Established") })
	n = newNode(t, bgp.Config{})
	n.speaker.Set([]bgp.Session{r.session(restart, routes("203.0.113.1/32", "2001:db8:ffff::/64")...)})
	n.established(r.ns, 8*time.Second)
	r.eventually(3*time.Second, "the unwanted route is gone", func() bool { return !kernel("-4", "203.0.113.2") })
	signal(t, monitor, syscall.SIGTERM)
	_ = monitor.Wait()
	for line := range strings.Lines(r.output("ip")) {
		if strings.HasPrefix(line, "Deleted") && (strings.Contains(line, "203.0.113.1 ") || strings.Contains(line, "2001:db8:ffff::/64")) {
			t.Errorf("a wanted route was gone for a while: %s", line)
		}
	}
}

func TestBFDWithBIRD(t *testing.T) {
	for name, tt := range map[string]struct {
		session, channel string
		peer             func(*bgp.Peer)
	}{
		"IPv4": {birdIPv4, channel4, func(p *bgp.Peer) { p.BFD = fast }},
		"IPv6": {birdIPv6, channel6, func(p *bgp.Peer) { p.Address, p.BFD = placeholder6, fast }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRouter(t)
			r.bird(tt.session+" bfd on;", tt.channel)
			n := newNode(t, bgp.Config{})
			n.speaker.Set([]bgp.Session{r.session(tt.peer)})
			n.established(r.ns, 8*time.Second)
			r.eventually(10*time.Second, "BFD is up on both sides", func() bool {
				s := n.status(r.ns).BFD
				return s != nil && s.State == bfd.Up && s.Detection == 300*time.Millisecond && strings.Contains(r.birdc("show bfd sessions"), " Up ")
			})
			if out := r.birdc("show bfd sessions"); !strings.Contains(out, "0.100") || !strings.Contains(out, "0.300") {
				t.Errorf("BIRD has other timers:\n%s", out)
			}
			sh(t, "ip netns exec %s nft 'add table inet f; add chain inet f in { type filter hook input priority 0; policy drop; }; add chain inet f out { type filter hook output priority 0; oifname eth0 drop; }'", r.ns)
			r.eventually(3*time.Second, "the session is down", func() bool { return n.status(r.ns).State != bgp.Established })
			r.eventually(3*time.Second, "BIRD says so too", func() bool { return strings.Contains(r.birdc("show protocols node"), "BFD") })
			sh(t, "ip netns exec %s nft flush ruleset", r.ns)
			r.eventually(15*time.Second, "all is up again", func() bool {
				s := n.status(r.ns)
				return s.State == bgp.Established && s.BFD.State == bfd.Up
			})
		})
	}
}

// What capabilities BIRD has, or lacks, and what becomes of the session.
func TestCapabilitiesWithBIRD(t *testing.T) {
	customer := func(p *bgp.Peer) { p.Customer = true }
	four := func(p *bgp.Peer) { p.LocalASN = 4200000002 }
	for _, tt := range []struct {
		name, session, channels string
		peer                    func(*bgp.Peer)
		fails                   string // part of LastError when the session must not come up
		want                    string // a line of "show route all"
	}{
		{name: "role provider", session: birdIPv4 + " local role provider; require roles;", peer: customer},
		{name: "role customer", session: birdIPv4 + " local role customer;", peer: customer, fails: "the peer has the BGP role 3, not that of a provider (0): sent NOTIFICATION 2/11"},
		{name: "role required", session: birdIPv4 + " local role provider; require roles;", fails: "received NOTIFICATION 2/11 (OPEN message error, role mismatch)"},
		{name: "no role", session: birdIPv4, peer: customer},
		{name: "no capability", session: birdIPv4 + " capabilities off;"},
		{name: "no capability, but a family that needs one", session: birdIPv6 + " capabilities off;", channels: channel6,
			peer: func(p *bgp.Peer) { p.Address = placeholder6 }, fails: "the peer carries none of this session's address families: sent NOTIFICATION 2/7"},
		{name: "AS numbers of two bytes", session: strings.Replace(birdIPv4, "as 65001", "external", 1) + " enable as4 off;", peer: four, want: "BGP.as_path: 4200000002\n"},
		{name: "no route refresh", session: birdIPv4 + " enable route refresh off;"},
		{name: "no hold time", session: birdIPv4 + " hold time 0;"},
		{name: "IPv4 with IPv6 next hops", session: birdIPv6, channels: "ipv4 { import all; export none; extended next hop; };" + channel6,
			peer: func(p *bgp.Peer) { p.Address, p.DualStack = placeholder6, true }, want: "BGP.next_hop: {node4}\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRouter(t)
			r.bird(tt.session, cmp.Or(tt.channels, channel4))
			n := newNode(t, bgp.Config{})
			n.speaker.Set([]bgp.Session{r.session(tt.peer, routes("203.0.113.1/32", "2001:db8:ffff::/64")...)})
			if tt.fails != "" {
				r.eventually(8*time.Second, "the session fails with "+tt.fails, func() bool { return strings.Contains(n.status(r.ns).LastError, tt.fails) })
				return
			}
			n.established(r.ns, 8*time.Second)
			want := r.expand(cmp.Or(tt.want, "BGP.next_hop: {node4}\n"))
			r.eventually(3*time.Second, "BIRD has "+want, func() bool { return strings.Contains(r.birdc("show route all 203.0.113.1/32"), want) })
		})
	}
}
