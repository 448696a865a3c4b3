package bgp

import (
	"fmt"
	"math"
	"net/netip"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/clarionlb/clarion/internal/route"
)

// rib is the Adj-RIB-Out of one connection: what the peer has been sent. It keeps no route of its own, only the Table
// that it came from.
type rib struct {
	localASN uint32
	internal bool
	as4      bool // the peer knows AS numbers of four bytes
	links    LinkBandwidth

	sent    route.Table
	hops    nextHops
	leaving bool
	again   [2]bool               // the peer wants the routes of a family again: IPv4, IPv6
	tooBig  map[netip.Prefix]bool // of sent, but not announced: their attributes alone fill a message
	buf     []byte                // for keys
}

// group are prefixes of one family with equal attributes.
type group struct {
	family   int
	attrs    route.Attrs
	prefixes []netip.Prefix
}

// By family, IPv4 comes first.
var families = [2]bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC}

func index(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

func familyOf(p netip.Prefix) int { return index(p.Addr().Is6()) }

// diff is what the peer has to be told so that it has the routes of want with these next hops.
func (r *rib) diff(want route.Table, hops nextHops, leaving bool) (announced []group, withdrawn [2][]netip.Prefix) {
	byKey := map[string]int{}
	add := func(rt route.Route) {
		key := r.key(rt)
		i, ok := byKey[string(key)]
		if !ok {
			i = len(announced)
			byKey[string(key)] = i
			announced = append(announced, group{family: familyOf(rt.Prefix), attrs: rt.Attrs})
		}
		announced[i].prefixes = append(announced[i].prefixes, rt.Prefix)
	}
	withdraw := func(f int, p netip.Prefix) { withdrawn[f] = append(withdrawn[f], p) }
	// Whole families first: what they mean does not depend on the routes.
	var all, none [2]bool
	for f := range hops {
		all[f] = hops[f].IsValid() && (hops[f] != r.hops[f] || leaving != r.leaving || r.again[f])
		none[f] = !hops[f].IsValid() && r.hops[f].IsValid()
	}
	if all != [2]bool{} {
		for rt := range want.All() {
			if all[familyOf(rt.Prefix)] {
				add(rt)
			}
		}
	}
	if none != [2]bool{} {
		for rt := range r.sent.All() {
			if f := familyOf(rt.Prefix); none[f] {
				withdraw(f, rt.Prefix)
			}
		}
	}
	want.Diff(r.sent, func(was, is *route.Route) {
		if is == nil {
			if f := familyOf(was.Prefix); hops[f].IsValid() && r.hops[f].IsValid() {
				withdraw(f, was.Prefix)
			}
		} else if f := familyOf(is.Prefix); hops[f].IsValid() && !all[f] {
			add(*is)
		}
	})
	return announced, withdrawn
}

// key is equal for routes that one UPDATE can announce. It is valid until the next call.
func (r *rib) key(rt route.Route) []byte {
	r.buf = rt.Attrs.AppendKey(append(r.buf[:0], byte(familyOf(rt.Prefix))))
	return r.buf
}

// sync sends what brings the peer to want. It announces before it withdraws.
func (r *rib) sync(want route.Table, hops nextHops, leaving bool, send func(update []byte) error) error {
	announced, withdrawn := r.diff(want, hops, leaving)
	for _, g := range announced {
		for _, p := range g.prefixes {
			delete(r.tooBig, p)
		}
		if leaving { // RFC 8326 section 4: the community for the peer, and preferences for routers that ignore it
			lowest, highest := uint32(0), uint32(math.MaxUint32)
			g.attrs = g.attrs.Merge(route.Attrs{Communities: []route.Community{route.GracefulShutdown}})
			g.attrs.LocalPref, g.attrs.MED = &lowest, &highest
		}
		if err := r.announce(g, hops[g.family], send); err != nil {
			return err
		}
	}
	for f, ps := range withdrawn {
		for _, p := range ps {
			delete(r.tooBig, p)
		}
		if err := withdraw(f, ps, send); err != nil {
			return err
		}
	}
	r.sent, r.hops, r.leaving, r.again = want, hops, leaving, [2]bool{}
	return nil
}

// counts are the prefixes that the peer has been sent.
func (r *rib) counts() (n [2]int) {
	n[0], n[1] = r.sent.Len()
	for f, hop := range r.hops {
		if !hop.IsValid() {
			n[f] = 0
		}
	}
	return n
}

// Sizes of the parts of an UPDATE (RFC 4271 section 4.3): the header with the lengths of the two lists, and a
// multiprotocol attribute without next hop and prefixes (RFC 4760).
const (
	updateLen = headerLen + 4
	reachLen  = 4 + 5
)

// announce sends a group, in as few messages as it fits into.
func (r *rib) announce(g group, hop netip.Addr, send func([]byte) error) error {
	attrs := r.attributes(g.attrs)
	room := maxMessage - updateLen
	for _, a := range attrs {
		room -= a.Len()
	}
	classic := hop.Is4() // IPv4 routes with IPv6 next hops are RFC 8950
	if classic {
		room -= 3 + 4
	} else {
		room -= reachLen + 16
	}
	return pack(g.prefixes, room, func(nlri []bgp.PathNLRI) error {
		if nlri == nil {
			for _, p := range g.prefixes {
				r.tooBig[p] = true
			}
			return withdraw(g.family, g.prefixes, send) // of what may have been announced with other attributes
		}
		if classic {
			next, err := bgp.NewPathAttributeNextHop(hop)
			if err != nil {
				return fmt.Errorf("next hop %s: %w", hop, err)
			}
			// By type, as RFC 4271 section 5 wants: after ORIGIN and AS_PATH.
			all := append(append(append([]bgp.PathAttributeInterface{}, attrs[:2]...), next), attrs[2:]...)
			return write(nil, all, nlri, send)
		}
		reach, err := bgp.NewPathAttributeMpReachNLRI(families[g.family], nlri, hop)
		if err != nil {
			return fmt.Errorf("next hop %s: %w", hop, err)
		}
		return write(nil, append([]bgp.PathAttributeInterface{reach}, attrs...), nil, send) // first: RFC 7606 section 5.1
	})
}

func withdraw(family int, prefixes []netip.Prefix, send func([]byte) error) error {
	return pack(prefixes, maxMessage-updateLen-reachLen, func(nlri []bgp.PathNLRI) error {
		if family == 0 {
			return write(nlri, nil, nil, send)
		}
		unreach, err := bgp.NewPathAttributeMpUnreachNLRI(families[family], nlri)
		if err != nil {
			return err
		}
		return write(nil, []bgp.PathAttributeInterface{unreach}, nil, send)
	})
}

// pack calls f for as many of the prefixes at a time as take no more than room, and with nil if not even one does.
func pack(prefixes []netip.Prefix, room int, f func([]bgp.PathNLRI) error) error {
	for len(prefixes) > 0 {
		var nlri []bgp.PathNLRI
		used := 0
		for _, p := range prefixes {
			size := 1 + (p.Bits()+7)/8
			if used += size; used > room {
				break
			}
			n, err := bgp.NewIPAddrPrefix(p)
			if err != nil {
				return fmt.Errorf("prefix %s: %w", p, err)
			}
			nlri = append(nlri, bgp.PathNLRI{NLRI: n})
		}
		if err := f(nlri); err != nil || nlri == nil {
			return err
		}
		prefixes = prefixes[len(nlri):]
	}
	return nil
}

func write(withdrawn []bgp.PathNLRI, attrs []bgp.PathAttributeInterface, nlri []bgp.PathNLRI, send func([]byte) error) error {
	b, err := bgp.NewBGPUpdateMessage(withdrawn, attrs, nlri).Serialize()
	if err != nil {
		return fmt.Errorf("make UPDATE: %w", err)
	}
	return send(b)
}

// endOfRIB tells the peer that it has had every route of the families that it carries (RFC 4724 section 2).
func endOfRIB(carries [2]bool, send func([]byte) error) error {
	for f, family := range families {
		if !carries[f] {
			continue
		}
		b, err := bgp.NewEndOfRib(family).Serialize()
		if err == nil {
			err = send(b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// attributes are the path attributes but for the next hop, ORIGIN and AS_PATH first.
func (r *rib) attributes(a route.Attrs) []bgp.PathAttributeInterface {
	attrs := []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP)}
	path, as4path := r.path(a.Prepend)
	attrs = append(attrs, path)
	if a.MED != nil {
		attrs = append(attrs, bgp.NewPathAttributeMultiExitDisc(*a.MED))
	}
	if r.internal { // RFC 4271 section 5.1.5
		pref := uint32(100)
		if a.LocalPref != nil {
			pref = *a.LocalPref
		}
		attrs = append(attrs, bgp.NewPathAttributeLocalPref(pref))
	}
	var standard []uint32
	var large []*bgp.LargeCommunity
	for _, c := range a.Communities {
		if c.Large {
			large = append(large, bgp.NewLargeCommunity(c.A, c.B, c.C))
		} else {
			standard = append(standard, c.A<<16|c.B)
		}
	}
	if standard != nil {
		attrs = append(attrs, bgp.NewPathAttributeCommunities(standard))
	}
	if a.Bandwidth > 0 {
		attrs = append(attrs, bgp.NewPathAttributeExtendedCommunities(r.bandwidth(a.Bandwidth)))
	}
	if as4path != nil {
		attrs = append(attrs, as4path)
	}
	if large != nil {
		attrs = append(attrs, bgp.NewPathAttributeLargeCommunities(large))
	}
	return attrs
}

// path is the AS_PATH: empty for an internal peer, for which the own AS number would be a loop; else the own AS number,
// once and as often again as prepend says. A peer that knows only two bytes gets the real one beside it (RFC 6793).
func (r *rib) path(prepend int) (path, as4path bgp.PathAttributeInterface) {
	if r.internal {
		return bgp.NewPathAttributeAsPath(nil), nil
	}
	n := min(1+prepend, math.MaxUint8)
	four := make([]uint32, n)
	two := make([]uint16, n)
	for i := range four {
		four[i], two[i] = r.localASN, as2(r.localASN)
	}
	wide := bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, four)
	if r.as4 {
		return bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{wide}), nil
	}
	if r.localASN > math.MaxUint16 {
		as4path = bgp.NewPathAttributeAs4Path([]*bgp.As4PathParam{wide})
	}
	return bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{bgp.NewAsPathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, two)}), as4path
}

func as2(asn uint32) uint16 {
	if asn > math.MaxUint16 {
		return bgp.AS_TRANS
	}
	return uint16(asn)
}

// bandwidth are the link bandwidth extended communities (RFC 10005), whose AS number has two bytes.
func (r *rib) bandwidth(v float32) []bgp.ExtendedCommunityInterface {
	as := as2(r.localASN)
	nonTransitive := bgp.NewLinkBandwidthExtended(as, v)
	transitive := bgp.NewTwoOctetAsSpecificExtended(bgp.EC_SUBTYPE_LINK_BANDWIDTH, as, math.Float32bits(v), true)
	switch r.links {
	case LinkBandwidthTransitive:
		return []bgp.ExtendedCommunityInterface{transitive}
	case LinkBandwidthBoth:
		return []bgp.ExtendedCommunityInterface{transitive, nonTransitive}
	}
	return []bgp.ExtendedCommunityInterface{nonTransitive}
}
