// Package route says what a BGP route to be advertised is: a prefix and its attributes. It owns the syntax of
// communities and the rule by which advertisements that meet on one prefix merge. It is pure: it knows neither
// Kubernetes nor a BGP library.
package route

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Community is a standard community (RFC 1997) or a large one (RFC 8092). The zero value is the standard community 0:0.
type Community struct {
	// Large says that the community is a large one.
	Large bool
	// A, B and C are its numbers. A standard community has A and B, each at most 65535.
	A, B, C uint32
}

// GracefulShutdown asks routers to prefer any other route (RFC 8326).
var GracefulShutdown = Community{A: 65535, B: 0}

// wellKnown are the names of standard communities in the IANA registry "BGP Well-known Communities".
var wellKnown = map[string]Community{
	"graceful-shutdown":   GracefulShutdown,     // RFC 8326
	"accept-own":          {A: 65535, B: 1},     // RFC 7611
	"blackhole":           {A: 65535, B: 666},   // RFC 7999
	"no-export":           {A: 65535, B: 65281}, // RFC 1997
	"no-advertise":        {A: 65535, B: 65282}, // RFC 1997
	"no-export-subconfed": {A: 65535, B: 65283}, // RFC 1997
	"no-peer":             {A: 65535, B: 65284}, // RFC 3765
}

// ParseCommunity reads "N:N", "large:N:N:N" or a well-known name. Other names are looked up in aliases, which may be
// nil. The error names what is wrong.
func ParseCommunity(s string, aliases map[string]Community) (Community, error) {
	rest, large := strings.CutPrefix(s, "large:")
	if !large && !strings.Contains(s, ":") {
		if c, ok := wellKnown[s]; ok {
			return c, nil
		}
		if c, ok := aliases[s]; ok {
			return c, nil
		}
		return Community{}, fmt.Errorf("community %q is neither a well-known name nor defined by a Community object", s)
	}
	bits, want := 16, 2
	if large {
		bits, want = 32, 3
	}
	parts := strings.Split(rest, ":")
	if len(parts) != want {
		return Community{}, fmt.Errorf("community %q must be N:N or large:N:N:N", s)
	}
	var n [3]uint32
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 10, bits)
		if err != nil {
			return Community{}, fmt.Errorf("community %q: %q is not a number between 0 and %d", s, p, uint64(1)<<bits-1)
		}
		n[i] = uint32(v)
	}
	return Community{Large: large, A: n[0], B: n[1], C: n[2]}, nil
}

// String is the community as it is written in configuration: "N:N" or "large:N:N:N".
func (c Community) String() string {
	if c.Large {
		return fmt.Sprintf("large:%d:%d:%d", c.A, c.B, c.C)
	}
	return fmt.Sprintf("%d:%d", c.A, c.B)
}

// Compare orders communities: standard before large, then by their numbers.
func (c Community) Compare(d Community) int {
	switch {
	case c.Large != d.Large && d.Large:
		return -1
	case c.Large != d.Large:
		return 1
	}
	return cmp.Or(cmp.Compare(c.A, d.A), cmp.Compare(c.B, d.B), cmp.Compare(c.C, d.C))
}

// Attrs are the attributes of a route that a user can set. The zero value sets none.
type Attrs struct {
	// Communities, sorted and without duplicates.
	Communities []Community
	// LocalPref is the LOCAL_PREF of an iBGP session, nil for the default of 100 (RFC 4271 section 5.1.5).
	LocalPref *uint32
	// MED is the MULTI_EXIT_DISC, nil for none (RFC 4271 section 5.1.4).
	MED *uint32
	// Prepend is how many times the local AS number is put before the AS path, besides once as always.
	Prepend int
	// Bandwidth is the link bandwidth in bytes per second (RFC 10005), 0 for none.
	Bandwidth float32
}

// Equal says whether two sets of attributes are the same.
func (a Attrs) Equal(b Attrs) bool {
	return slices.Equal(a.Communities, b.Communities) && equal(a.LocalPref, b.LocalPref) && equal(a.MED, b.MED) &&
		a.Prepend == b.Prepend && a.Bandwidth == b.Bandwidth
}

// AppendKey appends bytes to b that are the same for equal Attrs, and only for those.
func (a Attrs) AppendKey(b []byte) []byte {
	for _, v := range []*uint32{a.LocalPref, a.MED} {
		if v == nil {
			b = append(b, 0)
		} else {
			b = binary.BigEndian.AppendUint32(append(b, 1), *v)
		}
	}
	b = binary.BigEndian.AppendUint32(b, uint32(a.Prepend))
	b = binary.BigEndian.AppendUint32(b, math.Float32bits(a.Bandwidth))
	for _, c := range a.Communities {
		large := byte(0)
		if c.Large {
			large = 1
		}
		b = append(b, large)
		for _, n := range []uint32{c.A, c.B, c.C} {
			b = binary.BigEndian.AppendUint32(b, n)
		}
	}
	return b
}

func equal(a, b *uint32) bool { return a == b || a != nil && b != nil && *a == *b }

// Merge is the rule for advertisements that meet on one prefix: communities united, the highest local preference, the
// lowest MED, the longest prepend and the largest bandwidth. An attribute that only one of them sets is kept. The rule
// is commutative, associative and idempotent, so that the order of advertisements does not matter.
func (a Attrs) Merge(b Attrs) Attrs {
	u := slices.Concat(a.Communities, b.Communities)
	slices.SortFunc(u, Community.Compare)
	return Attrs{
		Communities: slices.Compact(u),
		LocalPref:   pick(a.LocalPref, b.LocalPref, func(x, y uint32) uint32 { return max(x, y) }),
		MED:         pick(a.MED, b.MED, func(x, y uint32) uint32 { return min(x, y) }),
		Prepend:     max(a.Prepend, b.Prepend),
		Bandwidth:   max(a.Bandwidth, b.Bandwidth),
	}
}

func pick(a, b *uint32, f func(x, y uint32) uint32) *uint32 {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	v := f(*a, *b)
	return &v
}

// Route is a prefix and the attributes it is advertised with. The next hop is the node itself.
type Route struct {
	// Prefix, masked.
	Prefix netip.Prefix
	Attrs
}
