package ipam

import (
	"net/netip"

	"github.com/google/btree"

	"github.com/clarionlb/clarion/internal/pool"
)

// space is the addresses of one family of one pool that nobody has: the free ones as ranges, so that a /64 costs no
// more than a /28, and the resting ones in the order in which their rests end. Reserved addresses are in neither.
type space struct {
	pool  *pool.Pool
	free  *btree.BTreeG[pool.Range]
	rest  *btree.BTreeG[Rest]
	count map[string]int // addresses that Services have, by namespace
}

const treeDegree = 16

func newSpace(p *pool.Pool) *space {
	return &space{
		pool: p,
		free: btree.NewG(treeDegree, func(a, b pool.Range) bool { return a.First.Less(b.First) }),
		rest: btree.NewG(treeDegree, func(a, b Rest) bool {
			if c := a.Until.Compare(b.Until); c != 0 {
				return c < 0
			}
			return a.Addr.Less(b.Addr)
		}),
		count: map[string]int{},
	}
}

// before is the free range that starts at a or before it.
func (s *space) before(a netip.Addr) (r pool.Range, ok bool) {
	s.free.DescendLessOrEqual(pool.Range{First: a}, func(found pool.Range) bool {
		r, ok = found, true
		return false
	})
	return r, ok
}

// take makes a not free. It may be called for an address that is not.
func (s *space) take(a netip.Addr) {
	r, ok := s.before(a)
	if !ok || !r.Contains(a) {
		return
	}
	if r.First == a {
		s.free.Delete(r)
	} else {
		s.free.ReplaceOrInsert(pool.Range{First: r.First, Last: a.Prev()})
	}
	if r.Last != a {
		s.free.ReplaceOrInsert(pool.Range{First: a.Next(), Last: r.Last})
	}
}

// give makes a free, joining it to its neighbours. It must not be free already.
func (s *space) give(a netip.Addr) {
	r := pool.Range{First: a, Last: a}
	if left, ok := s.before(a); ok && left.Last.Next() == a {
		r.First = left.First
	}
	if next := a.Next(); next.IsValid() {
		if right, ok := s.free.Get(pool.Range{First: next}); ok {
			s.free.Delete(right)
			r.Last = right.Last
		}
	}
	s.free.ReplaceOrInsert(r)
}

// lowest is the lowest free addresses, n of them at most. Addresses that the pool avoids are taken out when they come
// first: it never gives them.
func (s *space) lowest(n int) (out []netip.Addr) {
	for {
		r, ok := s.free.Min()
		if !ok || !s.pool.Avoids(r.First) {
			break
		}
		s.take(r.First)
	}
	s.free.Ascend(func(r pool.Range) bool {
		for a := r.First; r.Contains(a) && len(out) < n; a = a.Next() {
			if !s.pool.Avoids(a) {
				out = append(out, a)
			}
		}
		return len(out) < n
	})
	return out
}
