package route

import (
	"iter"
	"net/netip"
	"slices"
)

// buckets is how many parts a Table has. Few enough to copy their headers for a change of one route, many enough that the
// routes beside it are few.
const buckets = 512

// Table is an immutable set of routes, at most one for each prefix. Tables that come of one another by With share what
// did not change, so that making one costs what the change costs, and so does comparing them. The zero Table is empty.
type Table struct {
	parts  *[buckets][]Route // each sorted by prefix
	n4, n6 int
}

// TableOf is the Table of some routes. Of several with one prefix the last counts.
func TableOf(routes ...Route) Table { return Table{}.With(routes, nil) }

// With is the Table with some routes added or replaced, and then some prefixes removed.
func (t Table) With(set []Route, remove []netip.Prefix) Table {
	parts := new([buckets][]Route)
	if t.parts != nil {
		*parts = *t.parts
	}
	t.parts = parts
	var own [buckets]bool // copied already
	find := func(p netip.Prefix) (part *[]Route, i int, found bool) {
		b := bucket(p)
		if part = &parts[b]; !own[b] {
			*part, own[b] = slices.Clone(*part), true
		}
		i, found = slices.BinarySearchFunc(*part, p, func(r Route, p netip.Prefix) int { return r.Prefix.Compare(p) })
		return part, i, found
	}
	count := func(p netip.Prefix, by int) {
		if p.Addr().Is4() {
			t.n4 += by
		} else {
			t.n6 += by
		}
	}
	for _, r := range set {
		part, i, found := find(r.Prefix)
		if found {
			(*part)[i] = r
			continue
		}
		*part = slices.Insert(*part, i, r)
		count(r.Prefix, 1)
	}
	for _, p := range remove {
		if part, i, found := find(p); found {
			*part = slices.Delete(*part, i, i+1)
			count(p, -1)
		}
	}
	return t
}

// bucket is the part of a Table that a prefix is in: a hash (FNV-1a) of it.
func bucket(p netip.Prefix) uint32 {
	h := uint32(2166136261)
	for _, b := range p.Addr().As16() {
		h = (h ^ uint32(b)) * 16777619
	}
	h = (h ^ uint32(p.Bits())) * 16777619
	return (h ^ h>>16) % buckets
}

// Len is how many IPv4 and IPv6 routes the Table has.
func (t Table) Len() (v4, v6 int) { return t.n4, t.n6 }

// All are the routes, in an order that stays the same for equal Tables.
func (t Table) All() iter.Seq[Route] {
	return func(yield func(Route) bool) {
		if t.parts == nil {
			return
		}
		for _, part := range t.parts {
			for _, r := range part {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// Diff calls f for each prefix whose route is another in t than in old: with nil for a route that is not there.
func (t Table) Diff(old Table, f func(was, is *Route)) {
	var none [buckets][]Route
	if t.parts == nil {
		t.parts = &none
	}
	if old.parts == nil {
		old.parts = &none
	}
	for i := range t.parts {
		was, is := old.parts[i], t.parts[i]
		if len(was) == len(is) && (len(is) == 0 || &was[0] == &is[0]) {
			continue
		}
		for len(was) > 0 || len(is) > 0 {
			switch c := first(was, is); {
			case c < 0:
				f(&was[0], nil)
				was = was[1:]
			case c > 0:
				f(nil, &is[0])
				is = is[1:]
			default:
				if !was[0].Attrs.Equal(is[0].Attrs) {
					f(&was[0], &is[0])
				}
				was, is = was[1:], is[1:]
			}
		}
	}
}

// first says which of two sorted lists, not both empty, has the lowest prefix: the one with the sign of the result.
func first(a, b []Route) int {
	switch {
	case len(a) == 0:
		return 1
	case len(b) == 0:
		return -1
	}
	return a[0].Prefix.Compare(b[0].Prefix)
}
