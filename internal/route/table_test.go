package route

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// A Table is what a map would be, whatever its history, and Diff finds exactly what differs.
func TestTableIsAMapThatDoesNotChange(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 3))
	prefix := func() netip.Prefix {
		a := netip.AddrFrom4([4]byte{198, 18, byte(random.IntN(6)), byte(random.IntN(256))})
		if random.IntN(3) == 0 {
			return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(random.IntN(256))}), 128)
		}
		return netip.PrefixFrom(a, 24+8*random.IntN(2)).Masked()
	}
	type version struct {
		table Table
		want  map[netip.Prefix]int
	}
	versions := []version{{Table{}, map[netip.Prefix]int{}}}
	for range 300 {
		old := versions[random.IntN(len(versions))]
		want := maps.Clone(old.want)
		var set []Route
		var remove []netip.Prefix
		for range random.IntN(40) {
			r := Route{Prefix: prefix(), Attrs: Attrs{Prepend: random.IntN(3)}}
			set = append(set, r)
			want[r.Prefix] = r.Prepend
		}
		for range random.IntN(20) {
			p := prefix()
			remove = append(remove, p)
			delete(want, p)
		}
		versions = append(versions, version{old.table.With(set, remove), want})
	}
	for i, v := range versions {
		have := map[netip.Prefix]int{}
		for r := range v.table.All() {
			have[r.Prefix] = r.Prepend
		}
		n4, n6 := v.table.Len()
		if !maps.Equal(have, v.want) || n4+n6 != len(v.want) {
			t.Fatalf("version %d has %d routes, counts %d and %d, want %d", i, len(have), n4, n6, len(v.want))
		}
		other := versions[random.IntN(len(versions))]
		v.table.Diff(other.table, func(was, is *Route) {
			switch {
			case is == nil:
				delete(have, was.Prefix)
				have[was.Prefix] = was.Prepend
			case was == nil:
				delete(have, is.Prefix)
			default:
				have[was.Prefix] = was.Prepend
			}
		})
		if !maps.Equal(have, other.want) {
			t.Fatalf("the difference between two versions does not lead from one to the other")
		}
	}
}

// What one change costs when there are 10,000 routes: to make the next Table, and to find the difference.
func BenchmarkOneChange(b *testing.B) {
	var rs []Route
	for i := range 10000 {
		rs = append(rs, Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32)})
	}
	t := TableOf(rs...)
	b.ReportAllocs()
	for b.Loop() {
		next := t.With([]Route{{Prefix: rs[77].Prefix, Attrs: Attrs{Prepend: 1}}}, nil)
		n := 0
		next.Diff(t, func(_, _ *Route) { n++ })
		if n != 1 {
			b.Fatal(n)
		}
	}
}
