package pool

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
)

// Family is an address family. Its value indexes arrays of length two.
type Family uint8

const (
	IPv4 Family = iota
	IPv6
)

// FamilyOf is the family of a valid address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// String is the family's name as Kubernetes writes it: IPv4 or IPv6.
func (f Family) String() string {
	if f == IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// Range is the addresses from First to Last, both included, both of one family, First not after Last.
type Range struct {
	First, Last netip.Addr
}

// ParseRange reads a CIDR, which stands for its network whatever its host bits, a range "first-last" or a single address.
// Ranges with an address that cannot be announced are refused; see ParseAddr.
func ParseRange(s string) (Range, error) {
	r, err := parseRange(s)
	if err != nil {
		return Range{}, err
	}
	return r, announceable(s, r)
}

// hostBits is what a CIDR should be written as, empty when it is written so, or is none.
func hostBits(s string) string {
	if p, err := netip.ParsePrefix(s); err == nil && p != p.Masked() {
		return p.Masked().String()
	}
	return ""
}

func parseRange(s string) (Range, error) {
	if first, last, isRange := strings.Cut(s, "-"); isRange {
		a, err := parseAddr(strings.TrimSpace(first))
		if err != nil {
			return Range{}, err
		}
		b, err := parseAddr(strings.TrimSpace(last))
		if err != nil {
			return Range{}, err
		}
		if a.Is4() != b.Is4() {
			return Range{}, fmt.Errorf("%q mixes IPv4 and IPv6: a range must be of one family", s)
		}
		if b.Less(a) {
			return Range{}, fmt.Errorf("%q starts after its end: write %s-%s", s, b, a)
		}
		return Range{a, b}, nil
	}
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return Range{}, fmt.Errorf("%q is not a CIDR such as 203.0.113.0/24", s)
		}
		if p.Addr().Is4In6() {
			return Range{}, fmt.Errorf("%q is an IPv4-mapped IPv6 prefix: write it as IPv4", s)
		}
		return FromPrefix(p), nil
	}
	a, err := parseAddr(s)
	return FromAddr(a), err
}

// ParseAddr reads an address that can be announced: without a zone, not IPv4-mapped, and neither unspecified, loopback,
// link-local, multicast nor the broadcast address.
func ParseAddr(s string) (netip.Addr, error) {
	a, err := parseAddr(s)
	if err != nil {
		return netip.Addr{}, err
	}
	return a, announceable(s, FromAddr(a))
}

// announceable is nil when every address of r, which is written as s, can be a Service's: hosts and routers take the
// others for their own, or for everybody's, whoever announces them (RFC 6890, RFC 4291 section 2.4).
func announceable(s string, r Range) error {
	for _, never := range [...]struct{ prefix, is string }{
		{"0.0.0.0/32", "unspecified"}, {"127.0.0.0/8", "loopback"}, {"169.254.0.0/16", "link-local"},
		{"224.0.0.0/4", "multicast"}, {"255.255.255.255/32", "broadcast"},
		{"::/128", "unspecified"}, {"::1/128", "loopback"}, {"fe80::/10", "link-local"}, {"ff00::/8", "multicast"},
	} {
		n := FromPrefix(netip.MustParsePrefix(never.prefix))
		if both := (Ranges{r}).Overlap(Ranges{n}); len(both) > 0 {
			what := ""
			if both[0] != r {
				what = "has " + both[0].String() + ", which "
			}
			return fmt.Errorf("%q %sis %s: no Service can be reached there", s, what, never.is)
		}
	}
	return nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", s)
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("%q is an IPv4-mapped IPv6 address: write %s", s, a.Unmap())
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%q has a zone: write %s", s, a.WithZone(""))
	}
	return a, nil
}

// FromAddr is one address.
func FromAddr(a netip.Addr) Range { return Range{a, a} }

// FromPrefix is the addresses of a valid prefix.
func FromPrefix(p netip.Prefix) Range {
	p = p.Masked()
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return Range{p.Addr(), last}
}

// Contains says whether a is one of the addresses.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// Size is the number of addresses; it stops at math.MaxInt64.
func (r Range) Size() int64 {
	first, last := r.First.As16(), r.Last.As16()
	lo, borrow := bits.Sub64(binary.BigEndian.Uint64(last[8:]), binary.BigEndian.Uint64(first[8:]), 0)
	hi, _ := bits.Sub64(binary.BigEndian.Uint64(last[:8]), binary.BigEndian.Uint64(first[:8]), borrow)
	if hi > 0 || lo >= math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(lo) + 1
}

// String is "first-last", or the address when there is only one.
func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// Ranges is a set of addresses: sorted, disjoint and with gaps between its members, IPv4 before IPv6. The functions of
// this package return and expect it in that form.
type Ranges []Range

// Union is the addresses that are in any of the given ranges, which may be in any order and overlap.
func Union(rs ...Range) Ranges {
	sorted := slices.Clone(rs)
	slices.SortFunc(sorted, func(a, b Range) int {
		return cmp.Or(a.First.Compare(b.First), a.Last.Compare(b.Last))
	})
	var out Ranges
	for _, r := range sorted {
		if n := len(out); n > 0 && touches(out[n-1], r) {
			if out[n-1].Last.Less(r.Last) {
				out[n-1].Last = r.Last
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// touches says whether b, which does not start before a, overlaps a or follows it without a gap.
func touches(a, b Range) bool {
	if a.First.BitLen() != b.First.BitLen() {
		return false
	}
	next := a.Last.Next()
	return !next.IsValid() || b.First.Compare(next) <= 0
}

// Contains says whether a is in the set, in O(log n).
func (rs Ranges) Contains(a netip.Addr) bool {
	i, found := slices.BinarySearchFunc(rs, a, func(r Range, a netip.Addr) int { return r.First.Compare(a) })
	return found || i > 0 && rs[i-1].Contains(a)
}

// Size is the number of addresses of a family; it stops at math.MaxInt64.
func (rs Ranges) Size(f Family) int64 {
	var n int64
	for _, r := range rs {
		if FamilyOf(r.First) == f {
			n = saturatingAdd(n, r.Size())
		}
	}
	return n
}

// Overlap is the addresses that are in both sets.
func (rs Ranges) Overlap(other Ranges) Ranges {
	var out Ranges
	for i, j := 0, 0; i < len(rs) && j < len(other); {
		a, b := rs[i], other[j]
		first, last := a.First, a.Last
		if first.Less(b.First) {
			first = b.First
		}
		if b.Last.Less(last) {
			last = b.Last
		}
		if !last.Less(first) && first.BitLen() == last.BitLen() {
			out = append(out, Range{first, last})
		}
		if a.Last.Less(b.Last) {
			i++
		} else {
			j++
		}
	}
	return out
}

// Minus is the addresses that are in rs and not in other.
func (rs Ranges) Minus(other Ranges) Ranges {
	var out Ranges
	j := 0
	for _, r := range rs {
		for j < len(other) && other[j].Last.Less(r.First) {
			j++
		}
		rest, left := r, true
		for k := j; left && k < len(other) && !rest.Last.Less(other[k].First); k++ {
			cut := other[k]
			if rest.First.Less(cut.First) {
				out = append(out, Range{rest.First, cut.First.Prev()})
			}
			if left = cut.Last.Less(rest.Last); left {
				rest.First = cut.Last.Next()
			}
		}
		if left {
			out = append(out, rest)
		}
	}
	return out
}

// String lists the ranges, the first few of them when there are many.
func (rs Ranges) String() string {
	const most = 8
	var b strings.Builder
	for i, r := range rs {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(rs)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(r.String())
	}
	return b.String()
}

func saturatingAdd(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
