package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"text/template"
	"time"
)

// Router is one of the lab's top-of-rack routers: FRR's zebra, bfdd and bgpd.
type Router struct {
	Name string // "router1" and on
	l    *Lab
	n    int
}

// Router returns router n, counted from 1.
func (l *Lab) Router(n int) *Router {
	return &Router{Name: fmt.Sprintf("router%d", n), l: l, n: n}
}

// Routers returns all routers.
func (l *Lab) Routers() []*Router {
	var out []*Router
	for i := range l.opts.Routers {
		out = append(out, l.Router(i+1))
	}
	return out
}

// RouterASN is the routers' own AS number. Nodes may use any other.
const RouterASN = 64512

// bgpdConfig lets every host of the LAN open a session. A test that wants more adds it with Vtysh.
var bgpdConfig = template.Must(template.New("bgpd").Parse(`hostname {{.Name}}
log timestamp precision 3
router bgp {{.ASN}}
 bgp router-id {{.RouterID}}
 bgp log-neighbor-changes
 no bgp default ipv4-unicast
 no bgp ebgp-requires-policy
 bgp bestpath as-path multipath-relax
 neighbor nodes4 peer-group
 neighbor nodes4 remote-as external
 neighbor nodes6 peer-group
 neighbor nodes6 remote-as external
 bgp listen limit 500
 bgp listen range {{.LAN4}} peer-group nodes4
 bgp listen range {{.LAN6}} peer-group nodes6
 address-family ipv4 unicast
  neighbor nodes4 activate
  neighbor nodes6 activate
  maximum-paths 16
 exit-address-family
 address-family ipv6 unicast
  neighbor nodes4 activate
  neighbor nodes6 activate
  maximum-paths 16
 exit-address-family
exit
`))

func (r *Router) dir() string { return filepath.Join(r.l.state, r.Name) }

// bgpd is bgpd's configuration.
func (r *Router) bgpd() ([]byte, error) {
	var b bytes.Buffer
	err := bgpdConfig.Execute(&b, map[string]any{"Name": r.Name, "ASN": RouterASN, "RouterID": r.l.Host(r.Name).IPv4,
		"LAN4": lanPrefix4, "LAN6": lanPrefix6})
	return b.Bytes(), err
}

// start runs the three daemons and returns when bgpd takes connections.
func (r *Router) start(ctx context.Context) error {
	frr, err := user.Lookup("frr")
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(frr.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(frr.Gid)
	if err != nil {
		return err
	}
	bgpd, err := r.bgpd()
	if err != nil {
		return err
	}
	hostname := []byte("hostname " + r.Name + "\n")
	if err := os.Mkdir(r.dir(), 0o755); err != nil {
		return err
	}
	for name, text := range map[string][]byte{"zebra.conf": hostname, "bfdd.conf": hostname, "bgpd.conf": bgpd, "vtysh.conf": nil} {
		if err := os.WriteFile(filepath.Join(r.dir(), name), text, 0o644); err != nil {
			return err
		}
	}
	if err := os.Chown(r.dir(), uid, gid); err != nil {
		return err
	}
	for _, d := range []struct {
		name  string
		args  []string
		ready func() error
	}{
		{"zebra", nil, func() error { return exists(filepath.Join(r.dir(), "zserv.api")) }},
		{"bfdd", []string{"--bfdctl", filepath.Join(r.dir(), "bfdd.sock")}, func() error { return exists(filepath.Join(r.dir(), "bfdd.vty")) }},
		{"bgpd", nil, func() error { return r.l.connectable(ctx, r.Name, r.l.Host(r.Name).IPv4.String()+":179") }},
	} {
		command := append([]string{"/usr/lib/frr/" + d.name, "-u", "frr", "-g", "frr", "-P", "0", "--log", "stdout",
			"-f", filepath.Join(r.dir(), d.name+".conf"), "-i", filepath.Join(r.dir(), d.name+".pid"),
			"-z", filepath.Join(r.dir(), "zserv.api"), "--vty_socket", r.dir()}, d.args...)
		p, err := r.l.Start(r.Name, d.name, command)
		if err != nil {
			return err
		}
		if err := p.waitReady(ctx, 20*time.Second, d.ready); err != nil {
			return err
		}
	}
	r.l.pr.step("%s: FRR takes BGP sessions, AS %d", r.Name, RouterASN)
	return nil
}

func exists(path string) error {
	_, err := os.Stat(path)
	return err
}

// Vtysh carries out FRR commands, each as if typed, and returns what they print; a command that FRR refuses is an error.
// To configure, begin with "configure terminal". The nodes' sessions belong to the peer groups nodes4 and nodes6, so
// "router bgp 64512", "neighbor nodes4 bfd" has bfdd watch them.
func (r *Router) Vtysh(ctx context.Context, commands ...string) (string, error) {
	args := []string{"--vty_socket", r.dir(), "--config_dir", r.dir()}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	return r.l.run(r.Name, exec.CommandContext(ctx, "vtysh", args...))
}

// NextHops are the gateways that the router's kernel has for exactly this prefix, sorted; none if it has no such
// route. A host's link-local address, which FRR prefers where a session offers both, is given as the host's IPv6 address.
func (r *Router) NextHops(ctx context.Context, prefix netip.Prefix) ([]netip.Addr, error) {
	family := "-4"
	if prefix.Addr().Is6() {
		family = "-6"
	}
	out, err := r.l.Exec(ctx, r.Name, "ip", "-j", family, "route", "show", "exact", prefix.String())
	if err != nil {
		return nil, err
	}
	// A gateway of the other family is in "via" (RFC 8950 routes).
	type hop struct {
		Gateway netip.Addr
		Via     struct{ Host netip.Addr }
	}
	var routes []struct {
		hop
		Nexthops []hop
	}
	if err := json.Unmarshal([]byte(out), &routes); err != nil {
		return nil, fmt.Errorf("%s: ip route: %w", r.Name, err)
	}
	var hops []netip.Addr
	for _, rt := range routes {
		for _, h := range append(rt.Nexthops, rt.hop) {
			for _, a := range []netip.Addr{h.Gateway, h.Via.Host} {
				if a.IsValid() {
					hops = append(hops, r.l.global(a))
				}
			}
		}
	}
	slices.SortFunc(hops, netip.Addr.Compare)
	return slices.Compact(hops), nil
}

// global is a host's IPv6 address for its link-local one, and any other address itself.
func (l *Lab) global(a netip.Addr) netip.Addr {
	for _, h := range l.hosts() {
		if h.LinkLocal == a {
			return h.IPv6
		}
	}
	return a
}

// BGPPath is one of the paths that a router has for a prefix.
type BGPPath struct {
	Peer             netip.Addr // from whom
	NextHops         []netip.Addr
	ASPath           string
	LocalPref        uint32
	MED              uint32
	Communities      []string
	LargeCommunities []string
	Valid            bool
	Best             bool // the best one itself
	Multipath        bool // used beside the best one, or the best one itself
	Stale            bool // kept by graceful restart
}

// BGPPaths are the paths that bgpd has for exactly this prefix, sorted by peer; none if it has no such route.
func (r *Router) BGPPaths(ctx context.Context, prefix netip.Prefix) ([]BGPPath, error) {
	out, err := r.Vtysh(ctx, "show bgp "+family(prefix.Addr())+" unicast "+prefix.String()+" json")
	if err != nil {
		return nil, err
	}
	type communities struct{ List []string }
	var table struct {
		Paths []struct {
			Aspath         struct{ String string }
			LocPrf         uint32
			Metric         uint32 // the MED
			Valid          bool
			Stale          bool
			Multipath      bool
			Bestpath       struct{ Overall bool }
			Community      communities
			LargeCommunity communities
			Nexthops       []struct{ IP netip.Addr }
			Peer           struct{ PeerID netip.Addr }
		}
	}
	if err := json.Unmarshal([]byte(out), &table); err != nil {
		return nil, fmt.Errorf("%s: show bgp %s: %w", r.Name, prefix, err)
	}
	var paths []BGPPath
	for _, p := range table.Paths {
		path := BGPPath{Peer: p.Peer.PeerID, ASPath: p.Aspath.String, LocalPref: p.LocPrf, MED: p.Metric,
			Communities: p.Community.List, LargeCommunities: p.LargeCommunity.List,
			Valid: p.Valid, Best: p.Bestpath.Overall, Multipath: p.Multipath || p.Bestpath.Overall, Stale: p.Stale}
		for _, n := range p.Nexthops {
			path.NextHops = append(path.NextHops, n.IP)
		}
		paths = append(paths, path)
	}
	slices.SortFunc(paths, func(a, b BGPPath) int { return a.Peer.Compare(b.Peer) })
	return paths, nil
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "ipv4"
	}
	return "ipv6"
}

// BGPPeers are the states of the router's BGP sessions, such as "Established", by the peer's address.
func (r *Router) BGPPeers(ctx context.Context) (map[netip.Addr]string, error) {
	out, err := r.Vtysh(ctx, "show bgp neighbors json")
	if err != nil {
		return nil, err
	}
	// The neighbours are keys beside others, such as "bgpNoSuchNeighbor".
	var all map[string]json.RawMessage
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, fmt.Errorf("%s: show bgp neighbors: %w", r.Name, err)
	}
	peers := map[netip.Addr]string{}
	for k, v := range all {
		a, err := netip.ParseAddr(k)
		if err != nil {
			continue
		}
		var p struct{ BGPState string }
		if err := json.Unmarshal(v, &p); err != nil {
			return nil, fmt.Errorf("%s: show bgp neighbors: %s: %w", r.Name, k, err)
		}
		peers[a] = p.BGPState
	}
	return peers, nil
}
