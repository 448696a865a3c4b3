package bgp

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// gateway is the gateway of the default route of a family, of the one with the lowest metric if there are several.
func gateway(g Gateway) (netip.Addr, error) {
	family, name := netlink.FAMILY_V4, "IPv4"
	if g == GatewayIPv6 {
		family, name = netlink.FAMILY_V6, "IPv6"
	}
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list %s routes: %w", name, err)
	}
	var best *netlink.Route
	for i, r := range routes {
		isDefault := r.Dst == nil || r.Dst.IP.IsUnspecified() && func() bool { ones, _ := r.Dst.Mask.Size(); return ones == 0 }()
		if isDefault && r.Type == unix.RTN_UNICAST && (best == nil || r.Priority < best.Priority) {
			best = &routes[i]
		}
	}
	if best == nil {
		return netip.Addr{}, fmt.Errorf("the node has no %s default route", name)
	}
	ip, link := best.Gw, best.LinkIndex
	if ip == nil && len(best.MultiPath) > 0 {
		ip, link = best.MultiPath[0].Gw, best.MultiPath[0].LinkIndex
	}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return netip.Addr{}, fmt.Errorf("the node's %s default route has no gateway", name)
	}
	return withZone(addr.Unmap(), link)
}

// withZone is a with the interface of that index as its zone if it is a link-local address.
func withZone(a netip.Addr, link int) (netip.Addr, error) {
	if !a.Is6() || !a.IsLinkLocalUnicast() {
		return a, nil
	}
	ifi, err := net.InterfaceByIndex(link)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("interface of %s: %w", a, err)
	}
	return a.WithZone(ifi.Name), nil
}

// localFor is the address that the kernel sends from to remote.
func localFor(remote netip.Addr) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(remote, 179)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// onLink says that no router lies between this node and remote.
func onLink(remote netip.Addr) bool {
	if remote.IsLinkLocalUnicast() {
		return true
	}
	routes, err := netlink.RouteGet(remote.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Gw == nil && len(routes[0].MultiPath) == 0
}

// neighbours are the global addresses of the interface that has the address local; none if there is no such interface.
func neighbours(local netip.Addr) ([]netip.Addr, error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	link := -1
	for _, a := range all {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == local.WithZone("") && (local.Zone() == "" || zoneIs(local.Zone(), a.LinkIndex)) {
			link = a.LinkIndex
		}
	}
	const unusable = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY
	var addrs []netip.Addr
	for _, a := range all {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ok && a.LinkIndex == link && a.Flags&unusable == 0 && ip.Unmap().IsGlobalUnicast() {
			addrs = append(addrs, ip.Unmap())
		}
	}
	return addrs, nil
}

func zoneIs(zone string, link int) bool {
	ifi, err := net.InterfaceByIndex(link)
	return err == nil && ifi.Name == zone
}

// nextHops are the next hops of the routes of each family; an invalid one means that the family is not announced.
type nextHops struct {
	v4, v6 netip.Addr
	// problem says why a family that the session carries is not announced, "" if none is missing.
	problem string
}

func (n nextHops) of(prefix netip.Prefix) netip.Addr {
	if prefix.Addr().Is4() {
		return n.v4
	}
	return n.v6
}

// chooseNextHops finds what routes point to: this node, at an address that the peer can use. local is the address of
// the session, addrs are the others of its interface, v4 and v6 are the families that both sides carry, and v4over6 says
// that they agreed on IPv6 next hops for IPv4 routes.
func chooseNextHops(local netip.Addr, addrs []netip.Addr, v4, v6, v4over6 bool) nextHops {
	var h nextHops
	bare := local.WithZone("") // a next hop is on the link of the session anyway
	first := func(is func(netip.Addr) bool) netip.Addr {
		for _, a := range addrs {
			if is(a) {
				return a
			}
		}
		return netip.Addr{}
	}
	if v4 {
		switch {
		case local.Is4():
			h.v4 = local
		case local.IsLinkLocalUnicast() && v4over6: // unnumbered: the peer need not have a route to any other address
			h.v4 = bare
		default:
			// A next hop of the route's own family needs no agreement (RFC 8950 section 4).
			if h.v4 = first(netip.Addr.Is4); !h.v4.IsValid() && v4over6 {
				h.v4 = bare
			}
			if !h.v4.IsValid() {
				h.problem = fmt.Sprintf("IPv4 routes are not announced: the interface of %s has no IPv4 address, and the peer does not take IPv6 next hops (RFC 8950)", local)
			}
		}
	}
	if v6 {
		if h.v6 = bare; local.Is4() {
			if h.v6 = first(netip.Addr.Is6); !h.v6.IsValid() {
				h.problem = fmt.Sprintf("IPv6 routes are not announced: the interface of %s has no global IPv6 address", local)
			}
		}
	}
	return h
}
