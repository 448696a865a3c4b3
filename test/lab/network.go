package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The lab's address plan; doc.go has the picture.
const (
	lanPrefix4, lanPrefix6   = "192.0.2.0/24", "2001:db8::/64"
	wanPrefix4, wanPrefix6   = "198.51.100.0/24", "2001:db8:1::/64"
	onLink4, onLink6         = "203.0.113.0/24", "2001:db8:f::/64"
	podRange4, podRange6     = "10.244.0.0/16", "fd00:244::/32"
	clusterIP4, clusterIP6   = "10.96.0.0/16", "fd00:96::/112"
	apiService4, apiService6 = "10.96.0.1", "fd00:96::1"
)

// Host is a place in the lab with a namespace and an address on the LAN (for "outside", on the WAN).
type Host struct {
	Name       string
	NS         string
	IPv4, IPv6 netip.Addr
	LinkLocal  netip.Addr       // of eth0
	MAC        net.HardwareAddr // of eth0
}

const (
	firstNode   = 11 // node1's last address byte
	clientIndex = 100
	control     = "control"
)

// Nodes are the names of the nodes, "node1" and on.
func (l *Lab) Nodes() []string {
	var out []string
	for i := range l.opts.Nodes {
		out = append(out, fmt.Sprintf("node%d", i+1))
	}
	return out
}

// Host describes "control", "nodeN", "routerN" (its LAN side), "client" or "outside"; other names panic.
func (l *Lab) Host(name string) Host {
	for _, h := range l.hosts() {
		if h.Name == name {
			return h
		}
	}
	panic("lab: no host " + name)
}

// HostOf names who has an address: a host, a pod's host, or the node whose pod network has it as gateway (which is what a
// pod sees of a client that its own node has rewritten). An address of nobody's is returned as text.
func (l *Lab) HostOf(a netip.Addr) string {
	for _, h := range l.hosts() {
		if a == h.IPv4 || a == h.IPv6 || a.WithZone("") == h.LinkLocal {
			return h.Name
		}
	}
	for i, node := range l.Nodes() {
		v4, v6 := podPrefixes(i + 1)
		if a == v4.Addr().Next() || a == v6.Addr().Next() {
			return node
		}
	}
	for _, p := range l.Pods() {
		if a == p.IPv4 || a == p.IPv6 {
			return p.Host
		}
	}
	return a.String()
}

func (l *Lab) hosts() []Host {
	lan := func(name string, n int) Host { return l.host(name, 0, n) }
	out := []Host{lan(control, 10)}
	for i, n := range l.Nodes() {
		out = append(out, lan(n, firstNode+i))
	}
	if l.opts.ControlPlaneOnly {
		return out
	}
	for i := range l.opts.Routers {
		out = append(out, lan(fmt.Sprintf("router%d", i+1), i+1))
	}
	return append(out, lan("client", clientIndex), l.host("outside", 1, clientIndex))
}

// host gives host n of network 0 (LAN) or 1 (WAN) its addresses: the same decimal digits in IPv4 and IPv6.
func (l *Lab) host(name string, network byte, n int) Host {
	h := Host{Name: name, NS: l.NS(name), MAC: net.HardwareAddr{2, 0, 0, 0, network, byte(n)}}
	// RFC 4291, appendix A: the universal bit of the MAC address is inverted.
	h.LinkLocal = netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 11: 0xff, 12: 0xfe, 14: network, 15: byte(n)})
	if network == 0 {
		h.IPv4 = netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n))
		h.IPv6 = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n))
	} else {
		h.IPv4 = netip.MustParseAddr(fmt.Sprintf("198.51.100.%d", n))
		h.IPv6 = netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", n))
	}
	return h
}

// podPrefixes are the ranges of a node's pods; n counts from 1.
func podPrefixes(n int) (v4, v6 netip.Prefix) {
	return netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n)), netip.MustParsePrefix(fmt.Sprintf("fd00:244:%d::/64", n))
}

// sysctls are written in every namespace before it has interfaces, which inherit "default".
var sysctls = []string{
	"net/ipv4/ip_forward=1",
	"net/ipv6/conf/all/forwarding=1",
	"net/ipv6/conf/default/forwarding=1",
	"net/ipv4/conf/all/rp_filter=0",
	"net/ipv4/conf/default/rp_filter=0",
	// A packet whose way back is over the link it came from is normal here; redirects would only bypass the routers.
	"net/ipv4/conf/all/send_redirects=0",
	"net/ipv4/conf/default/send_redirects=0",
	"net/ipv4/conf/all/accept_redirects=0",
	"net/ipv4/conf/default/accept_redirects=0",
	"net/ipv6/conf/all/accept_redirects=0",
	"net/ipv6/conf/default/accept_redirects=0",
	"net/ipv6/conf/all/accept_ra=0",
	"net/ipv6/conf/default/accept_ra=0",
	"net/ipv6/conf/all/accept_dad=0",
	"net/ipv6/conf/default/accept_dad=0",
	"net/ipv6/conf/all/keep_addr_on_down=1",
	"net/ipv6/conf/default/keep_addr_on_down=1",
	"net/ipv4/fib_multipath_hash_policy=1",
	"net/ipv6/fib_multipath_hash_policy=1",
}

// bridgeSysctls keep the switch a switch: no netfilter for IP in it.
var bridgeSysctls = []string{
	"net/bridge/bridge-nf-call-iptables=0",
	"net/bridge/bridge-nf-call-ip6tables=0",
	"net/bridge/bridge-nf-call-arptables=0",
}

// writeSysctls sets kernel parameters of the calling thread's namespace. One that this kernel lacks is passed over.
func writeSysctls(list []string) error {
	for _, s := range list {
		name, value, _ := strings.Cut(s, "=")
		err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// at runs f with netlink in a host's namespace.
func (l *Lab) at(host string, f func(*netlink.Handle) error) error {
	ns, err := netns.GetFromPath(filepath.Join(netnsDir, l.NS(host)))
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := f(h); err != nil {
		return fmt.Errorf("host %s: %w", host, err)
	}
	return nil
}

func (l *Lab) makeNetwork() error {
	hosts := l.hosts()
	names := []string{"switch"}
	for _, h := range hosts {
		names = append(names, h.Name)
	}
	if err := l.addNamespaces(names...); err != nil {
		return err
	}
	if err := l.makeSwitch(); err != nil {
		return err
	}
	for _, h := range hosts {
		if err := l.makeHost(h); err != nil {
			return err
		}
	}
	return l.introduce()
}

// introduce makes routers and hosts known to each other, as they are in a rack that has run for a while. A kernel does
// not choose a next hop whose neighbour entry is being resolved; a flow that began in that moment would go
// to another node when it is done, and be reset there. Entries are stale: they are verified when used and fail as usual.
// They are marked as learned outside, since those are not collected as garbage.
func (l *Lab) introduce() error {
	know := func(on, iface string, neighbours []Host) error {
		return l.at(on, func(n *netlink.Handle) error {
			link, err := n.LinkByName(iface)
			if err != nil {
				return err
			}
			for _, h := range neighbours {
				if h.Name == on {
					continue
				}
				for _, a := range []netip.Addr{h.IPv4, h.IPv6, h.LinkLocal} {
					err := n.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: a.AsSlice(), HardwareAddr: h.MAC,
						State: netlink.NUD_STALE, Flags: netlink.NTF_EXT_LEARNED})
					if err != nil {
						return fmt.Errorf("neighbour %s: %w", a, err)
					}
				}
			}
			return nil
		})
	}
	var lan, wan, routers, wanSides []Host
	for _, h := range l.hosts() {
		switch {
		case h.Name == "outside":
			wan = append(wan, h)
		case strings.HasPrefix(h.Name, "router"):
			routers = append(routers, h)
			lan = append(lan, h)
		default:
			lan = append(lan, h)
		}
	}
	for i, r := range routers {
		wanSides = append(wanSides, l.host(r.Name, 1, i+1))
		if err := errors.Join(know(r.Name, "eth0", lan), know(r.Name, "eth1", wan)); err != nil {
			return err
		}
	}
	for _, h := range lan {
		if err := know(h.Name, "eth0", routers); err != nil {
			return err
		}
	}
	for _, h := range wan {
		if err := know(h.Name, "eth0", wanSides); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) makeSwitch() error {
	if err := l.In("switch", func() error { return writeSysctls(bridgeSysctls) }); err != nil {
		return err
	}
	return l.at("switch", func(h *netlink.Handle) error {
		no := false
		for _, name := range []string{"lan", "wan"} {
			br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}, MulticastSnooping: &no}
			if err := h.LinkAdd(br); err != nil {
				return fmt.Errorf("bridge %s: %w", name, err)
			}
			// No IPv6 address of its own: a switch has nothing to say on the LAN.
			if err := h.LinkSetIP6AddrGenMode(br, 1); err != nil {
				return err
			}
			if err := h.LinkSetUp(br); err != nil {
				return err
			}
		}
		return nil
	})
}

// makeHost connects a host to the switch and gives it addresses and routes.
func (l *Lab) makeHost(h Host) error {
	list := sysctls
	var router int
	if _, err := fmt.Sscanf(h.Name, "router%d", &router); err == nil {
		// Hashes of different seeds: otherwise router1 would only see flows of one half of the hash space, because the
		// client chose it by the same hash, and would never use the nodes of the other half.
		list = append(list[:len(list):len(list)], fmt.Sprintf("net/ipv4/fib_multipath_hash_seed=%d", router))
	}
	if err := l.In(h.Name, func() error { return writeSysctls(list) }); err != nil {
		return err
	}
	bridge := "lan"
	if h.Name == "outside" {
		bridge = "wan"
	}
	if err := l.plug(bridge, h.Name, h.Name, "eth0", h.MAC); err != nil {
		return err
	}
	wan := l.host("", 1, router)
	if router > 0 {
		if err := l.plug("wan", h.Name+"-wan", h.Name, "eth1", wan.MAC); err != nil {
			return err
		}
	}
	if strings.HasPrefix(h.Name, "node") {
		if err := l.masquerade(h.Name); err != nil {
			return err
		}
	}
	return l.at(h.Name, func(n *netlink.Handle) error {
		if err := linkUp(n, "lo"); err != nil {
			return err
		}
		if err := addAddrs(n, "eth0", netip.PrefixFrom(h.IPv4, 24), netip.PrefixFrom(h.IPv6, 64)); err != nil {
			return err
		}
		if router > 0 {
			if err := addAddrs(n, "eth1", netip.PrefixFrom(wan.IPv4, 24), netip.PrefixFrom(wan.IPv6, 64)); err != nil {
				return err
			}
			for _, p := range []string{onLink4, onLink6} {
				if err := addRoute(n, "eth0", netip.MustParsePrefix(p)); err != nil {
					return err
				}
			}
			return nil
		}
		return l.addRoutes(n, h)
	})
}

// addRoutes gives a host its default routes and, between nodes, the ways to each other's pods.
func (l *Lab) addRoutes(n *netlink.Handle, h Host) error {
	network := byte(0)
	if h.Name == "outside" {
		network = 1
	}
	var via4, via6 []netip.Addr
	for i := range l.opts.Routers {
		r := l.host("", network, i+1)
		via4, via6 = append(via4, r.IPv4), append(via6, r.IPv6)
	}
	// kube-apiserver wants a default route even where there is no router.
	if err := addRoute(n, "eth0", netip.MustParsePrefix("0.0.0.0/0"), via4...); err != nil {
		return err
	}
	if err := addRoute(n, "eth0", netip.MustParsePrefix("::/0"), via6...); err != nil {
		return err
	}
	if !strings.HasPrefix(h.Name, "node") {
		return nil
	}
	for i, name := range l.Nodes() {
		if name == h.Name {
			continue
		}
		other := l.Host(name)
		v4, v6 := podPrefixes(i + 1)
		if err := addRoute(n, "eth0", v4, other.IPv4); err != nil {
			return err
		}
		if err := addRoute(n, "eth0", v6, other.IPv6); err != nil {
			return err
		}
	}
	return nil
}

// plug makes a cable from a port of a bridge to an interface of a host.
func (l *Lab) plug(bridge, port, host, iface string, mac net.HardwareAddr) error {
	ns, err := netns.GetFromPath(filepath.Join(netnsDir, l.NS(host)))
	if err != nil {
		return err
	}
	defer ns.Close()
	return l.at("switch", func(h *netlink.Handle) error {
		br, err := h.LinkByName(bridge)
		if err != nil {
			return err
		}
		veth := &netlink.Veth{
			LinkAttrs:        netlink.LinkAttrs{Name: port, MasterIndex: br.Attrs().Index},
			PeerName:         iface,
			PeerHardwareAddr: mac,
			PeerNamespace:    netlink.NsFd(ns),
		}
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("link %s: %w", port, err)
		}
		if err := h.LinkSetIP6AddrGenMode(veth, 1); err != nil {
			return err
		}
		return h.LinkSetUp(veth)
	})
}

func linkUp(n *netlink.Handle, name string) error {
	link, err := n.LinkByName(name)
	if err != nil {
		return err
	}
	return n.LinkSetUp(link)
}

func addAddrs(n *netlink.Handle, iface string, prefixes ...netip.Prefix) error {
	link, err := n.LinkByName(iface)
	if err != nil {
		return err
	}
	if err := n.LinkSetUp(link); err != nil {
		return err
	}
	for _, p := range prefixes {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := n.AddrAdd(link, a); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	return nil
}

// addRoute adds a route to dst over an interface, through any of the gateways when there are some.
func addRoute(n *netlink.Handle, iface string, dst netip.Prefix, via ...netip.Addr) error {
	link, err := n.LinkByName(iface)
	if err != nil {
		return err
	}
	r := &netlink.Route{Dst: ipNet(dst)}
	switch len(via) {
	case 0:
		r.LinkIndex = link.Attrs().Index
		if dst.Addr().Is4() {
			r.Scope = unix.RT_SCOPE_LINK
		}
	case 1:
		r.LinkIndex, r.Gw = link.Attrs().Index, via[0].AsSlice()
	default:
		for _, a := range via {
			r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: link.Attrs().Index, Gw: a.AsSlice()})
		}
	}
	if err := n.RouteAdd(r); err != nil {
		return fmt.Errorf("route %s: %w", dst, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// masquerade hides pods behind their node's address when they speak to something outside the pod network, which has
// no route to pods. Replies to connections from outside are not new connections and keep the pod's address.
func (l *Lab) masquerade(node string) error {
	rules := fmt.Sprintf(`
table ip lab { chain postrouting { type nat hook postrouting priority 110
  ip saddr %[1]s ip daddr != %[1]s oifname eth0 masquerade
}
}
table ip6 lab { chain postrouting { type nat hook postrouting priority 110
  ip6 saddr %[2]s ip6 daddr != %[2]s oifname eth0 masquerade
}
}
`, podRange4, podRange6)
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	_, err := l.run(node, cmd)
	return err
}
