package layer2

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/clarionlb/clarion/internal/interfaces"
)

// Link is a network interface that can carry ARP and NDP: up, Ethernet-like, with broadcast and neighbour resolution,
// and not a port of a bridge or bond (the bridge or bond is; a member of a VRF is a link of its own).
type Link struct {
	Name    string
	Index   int
	MAC     MAC
	Carrier bool // frames can leave and arrive
	// Physical is set for a network adapter, a bond or team of them, and a VLAN.
	Physical bool
	// Excluded is set when Config.Exclude matches the name: the link serves only addresses that ask for it by name.
	Excluded bool
	// Prefixes are the addresses of the link with their prefix lengths, sorted. Often empty on a link for external addresses only.
	Prefixes []netip.Prefix

	generation int // differs between two interfaces that had the same index one after the other
}

// linkLocal is the IPv6 source for questions about neighbours, the zero Addr if there is none.
func (l Link) linkLocal() netip.Addr {
	for _, p := range l.Prefixes {
		if p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

func (l Link) equal(o Link) bool {
	return l.Name == o.Name && l.Index == o.Index && l.MAC == o.MAC && l.Carrier == o.Carrier &&
		l.Physical == o.Physical && l.Excluded == o.Excluded && l.generation == o.generation && slices.Equal(l.Prefixes, o.Prefixes)
}

// rawLink is what the kernel says about an interface.
type rawLink struct {
	name   string
	kind   string // the kernel's name for a virtual interface's type: vlan, bond, vrf …
	encap  string
	master int
	flags  uint32
	mac    net.HardwareAddr

	generation int
}

// linkTable is the interfaces of the network namespace.
type linkTable struct {
	links    map[int]rawLink
	prefixes map[int]map[netip.Prefix]bool
	seen     int // interfaces so far
}

func newLinkTable() *linkTable {
	return &linkTable{links: map[int]rawLink{}, prefixes: map[int]map[netip.Prefix]bool{}}
}

func (t *linkTable) setLink(l netlink.Link) {
	a := l.Attrs()
	if a.Name == "" {
		return // a partial message, as wireless drivers send
	}
	generation := t.links[a.Index].generation
	if generation == 0 {
		t.seen++
		generation = t.seen
	}
	t.links[a.Index] = rawLink{a.Name, l.Type(), a.EncapType, a.MasterIndex, a.RawFlags, a.HardwareAddr, generation}
}

func (t *linkTable) setAddr(index int, n net.IPNet, present bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return
	}
	ones, _ := n.Mask.Size()
	p := netip.PrefixFrom(addr.Unmap(), ones)
	if !present {
		delete(t.prefixes[index], p)
		return
	}
	if t.prefixes[index] == nil {
		t.prefixes[index] = map[netip.Prefix]bool{}
	}
	t.prefixes[index][p] = true
}

func (t *linkTable) applyLink(u netlink.LinkUpdate) {
	// A bridge tells about its ports in messages of its own family; a deletion there is a port leaving, not a link.
	if u.IfInfomsg.Family == unix.AF_BRIDGE {
		return
	}
	if u.Header.Type == unix.RTM_DELLINK {
		delete(t.links, int(u.Index))
		delete(t.prefixes, int(u.Index))
		return
	}
	t.setLink(u.Link)
}

// usable returns the links that can carry ARP and NDP, by index, and the hardware addresses of every interface: what
// comes from one of those is this node's own.
func (t *linkTable) usable(exclude []string) (map[int]Link, map[MAC]bool) {
	links, own := map[int]Link{}, map[MAC]bool{}
	for index, raw := range t.links {
		if len(raw.mac) != len(MAC{}) {
			continue
		}
		mac := MAC(raw.mac)
		if !mac.station() {
			continue
		}
		own[mac] = true
		const want, never = unix.IFF_UP | unix.IFF_BROADCAST, unix.IFF_LOOPBACK | unix.IFF_NOARP
		if raw.encap != "ether" || raw.flags&want != want || raw.flags&never != 0 {
			continue
		}
		if master, enslaved := t.links[raw.master]; raw.master != 0 && (!enslaved || master.kind != "vrf") {
			continue
		}
		links[index] = Link{
			Name: raw.name, Index: index, MAC: mac,
			Carrier:  raw.flags&unix.IFF_RUNNING != 0,
			Physical: slices.Contains([]string{"device", "bond", "team", "vlan"}, raw.kind),
			Excluded: interfaces.Match(exclude, raw.name),
			Prefixes: slices.SortedFunc(maps.Keys(t.prefixes[index]), netip.Prefix.Compare),

			generation: raw.generation,
		}
	}
	return links, own
}

func sortedLinks(links map[int]Link) []Link {
	return slices.SortedFunc(maps.Values(links), func(a, b Link) int { return cmp.Compare(a.Name, b.Name) })
}

// linkEvents is a subscription to the kernel's interface changes and the table that it keeps current.
type linkEvents struct {
	table *linkTable
	links chan netlink.LinkUpdate
	addrs chan netlink.AddrUpdate
	done  chan struct{}
	once  sync.Once
}

// watchLinks subscribes first and lists afterwards, so that no change is missed in between.
func watchLinks() (*linkEvents, error) {
	e := &linkEvents{
		table: newLinkTable(),
		links: make(chan netlink.LinkUpdate, 64),
		addrs: make(chan netlink.AddrUpdate, 64),
		done:  make(chan struct{}),
	}
	// A node that starts hundreds of pods at once makes thousands of messages; what overflows costs a new listing.
	const buffer = 1 << 20
	if err := netlink.LinkSubscribeWithOptions(e.links, e.done, netlink.LinkSubscribeOptions{ReceiveBufferSize: buffer}); err != nil {
		return nil, fmt.Errorf("subscribe to links: %w", err)
	}
	if err := netlink.AddrSubscribeWithOptions(e.addrs, e.done, netlink.AddrSubscribeOptions{ReceiveBufferSize: buffer}); err != nil {
		close(e.addrs)
		e.close()
		return nil, fmt.Errorf("subscribe to addresses: %w", err)
	}
	if err := e.list(); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *linkEvents) list() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		e.table.setLink(l)
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		e.table.setAddr(a.LinkIndex, *a.IPNet, true)
	}
	return nil
}

// applyAddr records an address that came or went.
func (e *linkEvents) applyAddr(u netlink.AddrUpdate) {
	e.table.setAddr(u.LinkIndex, u.LinkAddress, u.NewAddr)
}

// close ends the subscription and waits for its goroutines. It may be called twice.
func (e *linkEvents) close() {
	e.once.Do(func() { close(e.done) })
	for range e.links {
	}
	for range e.addrs {
	}
}
