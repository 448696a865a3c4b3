package ipam

import (
	"net/netip"
	"slices"
	"time"

	"github.com/clarionlb/clarion/internal/pool"
)

// QuarantineTime is how long an address stays in quarantine after the foreign host that uses it was last heard.
const QuarantineTime = 10 * time.Minute

// Quarantine says which addresses foreign hosts on the local network are heard to use now, all of them. It puts those into
// quarantine that are new, and releases those of which nothing was heard for QuarantineTime. Services that have an address
// that began its quarantine get another, the oldest first; those whose result changed are in Dirty. What began and what
// ended is returned, sorted.
//
// Before Load, what was in quarantine when the Table's predecessor ended is said to be heard once, and after it what is: no
// address gets out earlier for a restart.
func (t *Table) Quarantine(heard map[netip.Addr]bool, now time.Time) (began, ended []netip.Addr) {
	for a, ends := range t.banned {
		switch {
		case heard[a]:
			t.banned[a] = time.Time{}
		case ends.IsZero():
			t.banned[a] = now.Add(QuarantineTime)
		case !now.Before(ends):
			delete(t.banned, a)
			ended = append(ended, a)
		}
	}
	for a := range heard {
		if !t.quarantined(a) {
			t.banned[a] = time.Time{}
			began = append(began, a)
		}
	}
	slices.SortFunc(began, netip.Addr.Compare)
	slices.SortFunc(ended, netip.Addr.Compare)

	var losers []id
	for _, a := range began {
		if r, ok := t.resting[a]; ok {
			t.forget(r)
		}
		if sp := t.space(a); sp != nil {
			sp.take(a)
		}
		if ten, used := t.tenants[a]; used {
			for n := range ten.len() {
				losers = append(losers, ten.at(n))
			}
		}
	}
	for _, a := range ended {
		if _, used := t.tenants[a]; used {
			continue
		}
		if sp := t.space(a); sp != nil && t.assignable(sp.pool, a) {
			sp.give(a)
		}
	}
	for _, a := range slices.Concat(ended, began) {
		t.touched = append(t.touched, touch{addr: a})
	}
	t.settle(now) // those that wait come before those that lose an address now
	slices.Sort(losers)
	losers = slices.Compact(losers) // one may lose two
	t.byAge(losers)
	for _, i := range losers {
		t.review(i, now)
	}
	t.settle(now)
	return began, ended
}

// QuarantineEnds is when Quarantine has to be called next to release an address though nothing new is heard; zero: never.
func (t *Table) QuarantineEnds() time.Time {
	var first time.Time
	for _, ends := range t.banned {
		if !ends.IsZero() && (first.IsZero() || ends.Before(first)) {
			first = ends
		}
	}
	return first
}

// Holders are the requests of the Services that were given a. They must not be changed.
func (t *Table) Holders(a netip.Addr) (out []*Request) {
	ten, used := t.tenants[a]
	for n := 0; used && n < ten.len(); n++ {
		if s := &t.services[ten.at(n)]; s.have[pool.FamilyOf(a)].addr == a {
			out = append(out, &s.req)
		}
	}
	return out
}

// quarantined says whether nobody may be given a.
func (t *Table) quarantined(a netip.Addr) bool {
	_, is := t.banned[a]
	return is
}
