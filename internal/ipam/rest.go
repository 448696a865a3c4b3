package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/internal/pool"
)

// Rest is an address that was released a short while ago.
type Rest struct {
	Addr  netip.Addr
	Last  types.NamespacedName // the Service that had it
	Until time.Time            // when the pool's reuseDelay is over
}

// Remember says which addresses rested when the Table's predecessor ended. It comes after SetPools and before Load.
func (t *Table) Remember(rests []Rest, now time.Time) {
	for _, r := range rests {
		sp := t.space(r.Addr)
		if sp != nil {
			r = sp.atMost(r, now)
		}
		if _, rests := t.resting[r.Addr]; sp != nil && !rests && now.Before(r.Until) && t.assignable(sp.pool, r.Addr) && !t.quarantined(r.Addr) {
			sp.take(r.Addr)
			t.rest(r)
		}
	}
}

// atMost is a rest no longer than the pool says now: its reuseDelay was longer once, or a clock was ahead.
func (s *space) atMost(r Rest, now time.Time) Rest {
	if most := now.Add(s.pool.ReuseDelay); r.Until.After(most) {
		r.Until = most
	}
	return r
}

// rest lets an address rest that is neither free nor anybody's.
func (t *Table) rest(r Rest) {
	t.space(r.Addr).rest.ReplaceOrInsert(r)
	t.resting[r.Addr] = r
	mine := t.last[r.Last]
	mine[pool.FamilyOf(r.Addr)] = r.Addr
	t.last[r.Last] = mine
}

// forget ends an address's rest without making it free.
func (t *Table) forget(r Rest) {
	delete(t.resting, r.Addr)
	if sp := t.space(r.Addr); sp != nil {
		sp.rest.Delete(r)
	}
	mine, f := t.last[r.Last], pool.FamilyOf(r.Addr)
	if mine[f] != r.Addr {
		return
	}
	mine[f] = netip.Addr{}
	if mine == ([2]netip.Addr{}) {
		delete(t.last, r.Last)
	} else {
		t.last[r.Last] = mine
	}
}

// expire makes those addresses free that have rested long enough.
func (t *Table) expire(sp *space, now time.Time) {
	for {
		r, ok := sp.rest.Min()
		if !ok || now.Before(r.Until) {
			return
		}
		t.forget(r)
		sp.give(r.Addr)
		t.touched = append(t.touched, touch{addr: r.Addr})
	}
}

// Expire ends the rests that are over, for those that wait for these very addresses.
func (t *Table) Expire(now time.Time) {
	for _, p := range t.set.Preferred() {
		for _, sp := range t.spaces[p] {
			t.expire(sp, now)
		}
	}
	t.settle(now)
}

// NextExpiry is when Expire has to be called next; zero: never.
func (t *Table) NextExpiry() (next time.Time) {
	for _, both := range t.spaces {
		for _, sp := range both {
			if r, ok := sp.rest.Min(); ok && (next.IsZero() || r.Until.Before(next)) {
				next = r.Until
			}
		}
	}
	return next
}

// Usage is how full a pool is, by family. The numbers stop at math.MaxInt64.
type Usage struct {
	// Capacity is the addresses that the pool may give out, Assigned those of its addresses that Clarion gave to Services,
	// and Available those that it could still give to any Service that it admits.
	Capacity, Assigned, Available [2]int64
	// Quarantined are those of its addresses that are in quarantine, whether or not a Service has them, and Kept those that
	// Services keep though it does not include them any more, both sorted.
	Quarantined, Kept []netip.Addr
	// Resting are those that rest, in the order in which their rests end.
	Resting []Rest
}

// Usage is how full each pool is, by name.
func (t *Table) Usage() map[string]*Usage {
	out := make(map[string]*Usage, len(t.spaces))
	give := func(u *Usage, f pool.Family, n int64) {
		if u.Capacity[f] < 1<<63-1 {
			u.Available[f] += n
		}
	}
	for p, both := range t.spaces {
		u := &Usage{}
		for f, sp := range both {
			u.Capacity[f] = p.Capacity(pool.Family(f))
			u.Available[f] = u.Capacity[f]
			sp.rest.Ascend(func(r Rest) bool {
				u.Resting = append(u.Resting, r)
				return true
			})
		}
		for a := range p.Reserved {
			if _, used := t.tenants[a]; !used && p.Gives(a) {
				give(u, pool.FamilyOf(a), -1)
			}
		}
		out[p.Name] = u
	}
	for a, ten := range t.tenants {
		p, f := t.set.Find(a), pool.FamilyOf(a)
		assigned, last := false, ""
		for n := range ten.len() {
			if s := &t.services[ten.at(n)]; s.decided(a) || s.req.Terminating {
				assigned = true
				if s.have[f].addr == a {
					last = s.have[f].pool
				}
			}
		}
		if of := cmp.Or(p, t.set.Writes(a)); assigned && of != nil { // a pool counts what it has come to exclude, too
			out[of.Name].Assigned[f]++
		} else if u := out[last]; of == nil && u != nil {
			u.Kept = append(u.Kept, a)
		}
		if p == nil {
			continue
		}
		if p.Gives(a) {
			give(out[p.Name], f, -1)
		}
	}
	for a := range t.banned {
		p := t.set.Find(a)
		if p == nil {
			continue
		}
		u := out[p.Name]
		u.Quarantined = append(u.Quarantined, a)
		if _, used := t.tenants[a]; !used && t.assignable(p, a) {
			give(u, pool.FamilyOf(a), -1)
		}
	}
	for _, u := range out {
		slices.SortFunc(u.Kept, netip.Addr.Compare)
		slices.SortFunc(u.Quarantined, netip.Addr.Compare)
		slices.SortFunc(u.Resting, func(a, b Rest) int {
			if c := a.Until.Compare(b.Until); c != 0 {
				return c
			}
			return a.Addr.Compare(b.Addr)
		})
	}
	return out
}
