package bgp

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernel is what the sessions need of the node's network.
type kernel interface {
	// dial connects to the peer at remote.
	dial(ctx context.Context, p Peer, remote netip.Addr) (net.Conn, error)
	// listen delivers the connections of a passive peer until cancel is called.
	listen(p Peer, remote netip.Addr, deliver func(net.Conn)) (cancel func(), err error)
	// close ends all listening.
	close()
	// gateways are those of the default route.
	gateways(Gateway) ([]netip.Addr, error)
	// watch calls changed with the addresses of every interface, now and when they or the default routes have changed, or
	// with why they cannot be read, until ctx ends.
	watch(ctx context.Context, changed func([]address, error))
}

// linux is the kernel that this process runs on.
type linux struct{ *listeners }

// address is an address of the node. One with nothing but addr, link and bits is a key of addresses.
type address struct {
	addr     netip.Addr // without a zone
	link     int        // index of the interface
	bits     int        // of its network; while these change, an interface has an IPv4 address with both
	usable   bool       // global, and not tentative
	floating bool       // may move or go soon: beside another of its network, a host's alone, temporary, or deprecated
}

// addresses are those of the node, by address, interface and length of the prefix.
type addresses map[address]address

func keyOf(prefix *net.IPNet, link int) (key address, ok bool) {
	ip, ok := netip.AddrFromSlice(prefix.IP)
	bits, _ := prefix.Mask.Size()
	return address{addr: ip.Unmap(), link: link, bits: bits}, ok
}

// take takes in what the kernel says of an address that is here, or gone, and says whether that is new.
func (all addresses) take(prefix *net.IPNet, link, flags int, here bool) (changed bool) {
	// IFA_F_SECONDARY means temporary for IPv6. Any host on the link can deprecate an address by a router advertisement;
	// it receives all the same.
	const unusable, floating = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED, unix.IFA_F_SECONDARY | unix.IFA_F_DEPRECATED
	key, ok := keyOf(prefix, link)
	if !ok {
		return false
	}
	was, known := all[key]
	if !here {
		delete(all, key)
		return known
	}
	is := key
	is.usable = flags&unusable == 0 && is.addr.IsGlobalUnicast()
	is.floating = flags&floating != 0 || is.bits == is.addr.BitLen()
	// When a link returns, its addresses are tentative once more (RFC 4862 section 5.4); nobody else had them before.
	is.usable = is.usable || was.usable && flags&unix.IFA_F_DADFAILED == 0
	all[key] = is
	return !known || was != is
}

// read makes all what the kernel has.
func (all addresses) read() error {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	old := maps.Clone(all)
	for _, a := range list {
		all.take(a.IPNet, a.LinkIndex, a.Flags, true)
		key, _ := keyOf(a.IPNet, a.LinkIndex)
		delete(old, key)
	}
	maps.DeleteFunc(all, func(key, _ address) bool { _, gone := old[key]; return gone })
	return nil
}

func (all addresses) list() []address {
	return slices.AppendSeq(make([]address, 0, len(all)), maps.Values(all))
}

// settle is how long changes of addresses and routes are collected before they are looked at.
const settle = 200 * time.Millisecond

// watch reads all addresses once, and then only what the kernel says of single ones: a node may have ten thousand.
func (linux) watch(ctx context.Context, changed func([]address, error)) {
	all := addresses{}
	for ctx.Err() == nil {
		addrs, routes := make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64)
		done := make(chan struct{})
		err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: func(error) {}})
		if err == nil {
			err = netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: func(error) {}})
		}
		err = cmp.Or(all.read(), err)
		changed(all.list(), err)
		var due <-chan time.Time
		for ok := err == nil; ok && ctx.Err() == nil; {
			touched := false
			select {
			case <-ctx.Done():
			case a, open := <-addrs:
				ok = open
				touched = open && all.take(&a.LinkAddress, a.LinkIndex, a.Flags, a.NewAddr)
			case r, open := <-routes:
				ok = open
				touched = r.Route.Table == unix.RT_TABLE_MAIN && isDefault(r.Route)
			case <-due:
				due = nil
				changed(all.list(), nil)
			}
			if touched && due == nil {
				due = time.After(settle)
			}
		}
		close(done)
		select { // what was missed, or cannot be subscribed to, is looked at again
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0 && r.Dst.IP.IsUnspecified()
}

// gateways are those of the default route with the lowest metric: several, sorted, if it has several next hops, or if
// there are several such routes.
func (linux) gateways(g Gateway) ([]netip.Addr, error) {
	family, name := netlink.FAMILY_V4, "IPv4"
	if g == GatewayIPv6 {
		family, name = netlink.FAMILY_V6, "IPv6"
	}
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list %s routes: %w", name, err)
	}
	routes = slices.DeleteFunc(routes, func(r netlink.Route) bool { return !isDefault(r) || r.Type != unix.RTN_UNICAST })
	if len(routes) == 0 {
		return nil, fmt.Errorf("the node has no %s default route", name)
	}
	best := slices.MinFunc(routes, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) }).Priority
	var all []netip.Addr
	add := func(ip net.IP, link int) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			all = append(all, withZone(a.Unmap(), link))
		}
	}
	for _, r := range routes {
		if r.Priority != best {
			continue
		}
		add(r.Gw, r.LinkIndex)
		for _, hop := range r.MultiPath {
			add(hop.Gw, hop.LinkIndex)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("the node's %s default route has no gateway", name)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all), nil
}

// withZone is a with the interface of that index as its zone if it is a link-local address.
func withZone(a netip.Addr, link int) netip.Addr {
	if !a.Is6() || !a.IsLinkLocalUnicast() {
		return a
	}
	ifi, err := net.InterfaceByIndex(link)
	if err != nil { // just gone; connecting says so
		return a
	}
	return a.WithZone(ifi.Name)
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

// onLink says that no router lies between this node and remote, as seen from a VRF, "" for none.
func onLink(remote netip.Addr, vrf string) bool {
	if remote.IsLinkLocalUnicast() {
		return true
	}
	var routes []netlink.Route
	var err error
	if vrf == "" {
		routes, err = netlink.RouteGet(remote.AsSlice())
	} else {
		routes, err = netlink.RouteGetWithOptions(remote.AsSlice(), &netlink.RouteGetOptions{VrfName: vrf})
	}
	return err == nil && len(routes) > 0 && routes[0].Gw == nil && len(routes[0].MultiPath) == 0
}

// neighbours are the usable addresses of the interface that has the address local: that of index link, or, if it is 0, the
// one with the lowest index. known is false if there is no such interface.
func neighbours(all []address, local netip.Addr, link int) (on []address, known bool) {
	first := math.MaxInt
	for _, a := range all {
		if a.addr == local.WithZone("") && (link == 0 || a.link == link) {
			first = min(first, a.link)
		}
	}
	for _, a := range all {
		if a.link == first && a.usable {
			on = append(on, a)
		}
	}
	return on, first < math.MaxInt
}

// nextHops are the next hops of the routes of each family, IPv4 and IPv6; an invalid one means that the family is not
// announced.
type nextHops [2]netip.Addr

// chooseNextHops finds what routes point to: this node, at an address that the peer can use. local is the address of the
// session, and on are the addresses of its interface. Of several, the node's own is preferred, and then one that does
// not look as if it moved between nodes; among equals, the lowest. problem says why a family that the session carries is not
// announced, "" if none is missing.
func chooseNextHops(local netip.Addr, on []address, own Options, a agreement) (h nextHops, problem string) {
	bare := local.WithZone("") // a next hop is on the link of the session anyway
	best := func(is4 bool) (found netip.Addr) {
		rank := 0
		for _, a := range on {
			if a.addr.Is4() != is4 {
				continue
			}
			r := 2
			switch {
			case a.addr == own.Own4 || a.addr == own.Own6:
				r = 3
			case a.floating:
				r = 1
			}
			if r > rank || r == rank && a.addr.Less(found) {
				found, rank = a.addr, r
			}
		}
		return found
	}
	if a.carries[0] {
		switch {
		case local.Is4():
			h[0] = local
		case local.IsLinkLocalUnicast() && a.v4over6: // unnumbered: the peer need not have a route to any other address
			h[0] = bare
		default:
			// A next hop of the route's own family needs no agreement (RFC 8950 section 4).
			if h[0] = best(true); !h[0].IsValid() && a.v4over6 {
				h[0] = bare
			}
			if !h[0].IsValid() {
				problem = fmt.Sprintf("IPv4 routes are not announced: the interface of %s has no IPv4 address, and the peer does not take IPv6 next hops (RFC 8950)", local)
			}
		}
	}
	if a.carries[1] {
		if h[1] = bare; local.Is4() {
			if h[1] = best(false); !h[1].IsValid() {
				problem = fmt.Sprintf("IPv6 routes are not announced: the interface of %s has no global IPv6 address", local)
			}
		}
	}
	return h, problem
}
