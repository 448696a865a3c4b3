package ipam

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/clarionlb/clarion/internal/pool"
)

// QuarantineTime is how long an address stays in quarantine after the stranger that uses it was last heard.
const QuarantineTime = 10 * time.Minute

// ban is an address in quarantine.
type ban struct {
	who  string    // uses it; for people
	ends time.Time // zero while who is heard
}

func (b ban) notice(a netip.Addr) string {
	if b.who == "" {
		return "a stranger on the local network uses " + a.String()
	}
	return a.String() + " is used by " + b.who + ", a stranger on the local network"
}

// Quarantine says which addresses strangers on the local network are heard to use now, all of them, and by whom. It puts
// those into quarantine that are new, and releases those of which nothing was heard for QuarantineTime. Services that
// have an address that began its quarantine get another, the oldest first; those whose result changed are in Dirty. What
// began and what ended is returned, sorted.
//
// Before Load, what was in quarantine when the Table's predecessor ended is said to be heard once, and then what is: no
// address gets out earlier for a restart.
func (t *Table) Quarantine(heard map[netip.Addr]string, now time.Time) (began, ended []netip.Addr) {
	for a, b := range t.banned {
		switch who, still := heard[a]; {
		case still:
			t.banned[a] = ban{who: who}
		case b.ends.IsZero():
			t.banned[a] = ban{who: b.who, ends: now.Add(QuarantineTime)}
		case !now.Before(b.ends):
			delete(t.banned, a)
			ended = append(ended, a)
		}
	}
	for a, who := range heard {
		if !t.quarantined(a) {
			t.banned[a] = ban{who: who}
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
	t.touched = append(append(t.touched, ended...), began...)
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
	for _, b := range t.banned {
		if !b.ends.IsZero() && (first.IsZero() || b.ends.Before(first)) {
			first = b.ends
		}
	}
	return first
}

// Quarantined is the addresses of the pool of that name that are in quarantine, sorted.
func (t *Table) Quarantined(name string) []netip.Addr {
	p := t.set.Pool(name)
	var out []netip.Addr
	for _, a := range slices.SortedFunc(maps.Keys(t.banned), netip.Addr.Compare) {
		if p != nil && t.set.Find(a) == p {
			out = append(out, a)
		}
	}
	return out
}

// quarantined says whether nobody may be given a.
func (t *Table) quarantined(a netip.Addr) bool {
	_, is := t.banned[a]
	return is
}

// barred says whether a Service may not keep a: it is quarantined, and the Service did not ask for just that one.
func (t *Table) barred(r *Request, a netip.Addr) bool {
	return t.quarantined(a) && r.requested(pool.FamilyOf(a)) != a
}
