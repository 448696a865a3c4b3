package guard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/clarionlb/clarion/internal/wake"
)

type family struct {
	name   string
	number int
	is4    bool
}

var families = []family{{"IPv4", netlink.FAMILY_V4, true}, {"IPv6", netlink.FAMILY_V6, false}}

// kernel is the routing of one network namespace.
type kernel struct {
	handle *netlink.Handle
	events *nl.NetlinkSocket
}

// openKernel opens the namespace of the calling thread.
func openKernel() (*kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	events, err := nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("subscribe to routes and rules: %w", err)
	}
	return &kernel{h, events}, nil
}

func (k *kernel) close() { k.handle.Close() }

// stopWatching makes watch return.
func (k *kernel) stopWatching() { k.events.Close() }

// watch pokes touched whenever a rule or route of the guard's table has changed, or events were lost.
func (k *kernel) watch(touched wake.Signal) error {
	for {
		messages, from, err := k.events.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			touched.Set()
			continue
		case err != nil:
			return err
		case from.Pid != nl.PidKernel:
			continue
		}
		for _, m := range messages {
			if tableOf(m.Data) == Table {
				touched.Set()
			}
		}
	}
}

// tableOf is the routing table that a message about a route or rule is about, 0 for another message. Those about rules
// have the header and the table attribute of those about routes (linux/fib_rules.h).
func tableOf(message []byte) uint32 {
	if len(message) < unix.SizeofRtMsg {
		return 0
	}
	attrs, err := nl.ParseRouteAttr(message[unix.SizeofRtMsg:])
	if err != nil {
		return 0
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_TABLE && len(a.Value) == 4 {
			return nl.NativeEndian().Uint32(a.Value)
		}
	}
	return 0
}

// apply makes what the guard has of a family the routes to the prefixes of want, sorted and all of that family, and a rule
// for each of its interfaces. It returns which of both are in the kernel then, without the prefixes if no rule leads to them, and
// whether it changed anything. One that fails does not keep others from being guarded.
func (k *kernel) apply(f family, want Want) (done Want, changed bool, err error) {
	var errs []error
	step := func(err error, format string, args ...any) bool {
		changed = true
		if err != nil {
			errs = append(errs, fmt.Errorf(format+": %w", append(args, err)...))
		}
		return err == nil
	}
	routes, err := k.handle.RouteListFiltered(f.number, &netlink.Route{Table: Table, Protocol: Protocol}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	if err != nil && !unsupported(err) {
		return done, false, fmt.Errorf("list %s routes: %w", f.name, err)
	}
	rules, err := k.handle.RuleList(f.number)
	if err != nil && !unsupported(err) {
		return done, false, fmt.Errorf("list %s rules: %w", f.name, err)
	}

	have := map[netip.Prefix]bool{}
	var surplus []netlink.Route
	for _, r := range routes {
		p := destination(&r)
		_, wanted := slices.BinarySearchFunc(want.Prefixes, p, netip.Prefix.Compare)
		switch {
		case wanted && !have[p] && r.Type == unix.RTN_UNREACHABLE:
			have[p] = true
		case wanted:
			// Of another type, in the way of the right one, or the same again.
			step(remove(k.handle.RouteDel(&r)), "remove the route to %s", p)
		default:
			surplus = append(surplus, r)
		}
	}
	for _, p := range want.Prefixes {
		if !have[p] {
			have[p] = step(k.handle.RouteReplace(unreachable(p)), "add an unreachable route to %s", p)
		}
	}

	// A rule that is not as it should be goes first: the kernel may take it for the right one. One for an interface that
	// is not wanted goes after the wanted are there, and before the routes that it leads to.
	ruled := map[string]bool{}
	var stale []netlink.Rule
	for _, r := range rules {
		switch {
		case r.Family != f.number || r.Table != Table || r.Protocol != Protocol:
		case !proper(&r) || ruled[r.IifName]:
			step(remove(k.handle.RuleDel(&r)), "remove an %s rule", f.name)
		case slices.Contains(want.Interfaces, r.IifName):
			ruled[r.IifName] = true
		default:
			stale = append(stale, r)
		}
	}
	for _, name := range want.Interfaces {
		if ruled[name] || step(k.handle.RuleAdd(rule(f, name)), "add an %s rule for %s", f.name, name) {
			done.Interfaces = append(done.Interfaces, name)
		}
	}
	for _, r := range stale {
		step(remove(k.handle.RuleDel(&r)), "remove the %s rule for %s", f.name, r.IifName)
	}
	for _, r := range surplus {
		step(remove(k.handle.RouteDel(&r)), "remove the route to %s", destination(&r))
	}
	for _, p := range want.Prefixes {
		if have[p] && len(done.Interfaces) > 0 {
			done.Prefixes = append(done.Prefixes, p)
		}
	}
	return done, changed, errors.Join(errs...)
}

// unsupported says that the kernel does not know the family: there is nothing of it to list.
func unsupported(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// remove takes it for success that there was nothing to remove.
func remove(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// unreachable is the route that answers packets to a prefix with an ICMP error.
func unreachable(p netip.Prefix) *netlink.Route {
	return &netlink.Route{
		Dst:      &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		Type:     unix.RTN_UNREACHABLE,
		Table:    Table,
		Protocol: Protocol,
	}
}

// destination is the prefix that a route is to.
func destination(r *netlink.Route) netip.Prefix {
	a, _ := netip.AddrFromSlice(r.Dst.IP) // of a default route too: the library sets it
	ones, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(a, ones)
}

// rule leads what comes in by an interface to the guard's table.
func rule(f family, name string) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Table, r.Priority, r.Protocol, r.IifName = f.number, Table, Priority, Protocol, name
	return r
}

// proper says whether a rule of the guard's table is as it should be: for all packets that come in by an interface.
func proper(r *netlink.Rule) bool {
	return r.Priority == Priority && r.IifName != "" && r.IifName != "lo" && !r.Invert &&
		r.Src == nil && r.Dst == nil && r.OifName == "" && r.Mark == 0 && r.Tos == 0 && r.IPProto == 0
}
