// Package ipam decides which addresses a Service gets. Its Table is the only memory of allocation that the controller
// has; all of it can be rebuilt from the Services and pools in the API.
//
// What it promises, whatever the order of events:
//
//  1. An assigned address stays: no restart, change of leader, other Service or edit of a pool moves it, unless that
//     pool says onShrink: Reallocate, the Service itself asks for something else, or the address is quarantined.
//  2. Load adopts what is assigned, the oldest Service first, before it gives out anything new.
//  3. No address is given twice. An address that a Service moves away from is free only once the Service's status no
//     longer names it (Published), nor can because a write of it is under way. Of two Services that claim one address
//     the older keeps it. Addresses that the cluster has itself are given to nobody (pool.NewSetBeside).
//  4. Services share an address only with the same sharing key and disjoint ports, and where externalTrafficPolicy is
//     Local only with the same endpoints; across namespaces only where the pool allows it.
//  5. The same inputs give the same result: what waits is served by age, pools are tried by priority and name,
//     addresses from the lowest. No map order decides anything.
//  6. Assigning is a fixed point: the same request again changes nothing.
//  7. An address that a stranger on the local network uses is in quarantine: it is given to nobody while the stranger
//     is heard and for QuarantineTime after, and a Service that has it gets another in the same pass, unless it asked
//     for that very address.
//
// The package is pure. It must not read a clock, log, or know of the Kubernetes client; time is an argument.
package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/btree"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/pool"
)

// Table is who has which address. It is not safe for concurrent use.
type Table struct {
	set      *pool.Set
	spaces   map[*pool.Pool]*[2]*space
	services []service
	unused   []id
	ids      map[types.NamespacedName]id
	tenants  map[netip.Addr]tenants
	shared   map[string][]netip.Addr // by sharing key, ascending
	resting  map[netip.Addr]resting
	last     map[types.NamespacedName][2]netip.Addr // resting addresses by who had them
	banned   map[netip.Addr]ban
	former   map[netip.Addr]string // the pools of addresses that were in none any longer when this Table was new

	waiting map[wait]*btree.BTreeG[waiter]
	touched []netip.Addr // may help those that wait
	redo    []id         // lost an address to an older Service
	dirty   []types.NamespacedName
}

// id is a place in Table.services.
type id int32

type service struct {
	req    Request
	have   [2]holding   // by family
	sent   []netip.Addr // what Assign returned last, until it is in the Service's status, or Assign is asked again
	left   []netip.Addr // moved away from, but in the Service's status, or sent to be in it
	result Result
	notice string
	waits  []wait
	dirty  bool
}

// holding is an address, the last pool that had it, and what that pool says should happen when it has it no more.
type holding struct {
	addr   netip.Addr
	pool   string
	shrink v1beta1.ShrinkPolicy
}

// tenants is the Services on one address; nearly always there is just one.
type tenants struct {
	first id
	more  []id
}

func (t tenants) len() int { return 1 + len(t.more) }

func (t tenants) at(n int) id {
	if n == 0 {
		return t.first
	}
	return t.more[n-1]
}

// wait is something whose change may help a Service: an address, or a family of a pool.
type wait struct {
	addr   netip.Addr
	pool   string
	family pool.Family
}

type waiter struct {
	created time.Time
	service types.NamespacedName
	id      id
}

// NewTable returns a Table without pools and Services.
func NewTable() *Table {
	return &Table{
		set:     pool.NewSet(),
		spaces:  map[*pool.Pool]*[2]*space{},
		ids:     map[types.NamespacedName]id{},
		tenants: map[netip.Addr]tenants{},
		shared:  map[string][]netip.Addr{},
		resting: map[netip.Addr]resting{},
		last:    map[types.NamespacedName][2]netip.Addr{},
		banned:  map[netip.Addr]ban{},
		waiting: map[wait]*btree.BTreeG[waiter]{},
	}
}

// Load fills an empty Table after SetPools: it adopts what the Services' statuses say, the oldest Service first, and
// then assigns what is missing, in the same order.
func (t *Table) Load(reqs []Request, now time.Time) {
	ids := make([]id, len(reqs))
	for n := range reqs {
		ids[n] = t.store(&reqs[n], now)
	}
	t.byAge(ids)
	for _, i := range ids {
		t.adopt(i, now)
	}
	for _, i := range ids {
		t.review(i, now)
	}
	t.settle(now)
}

// SetPools replaces the pools. Every Service is looked at again, the oldest first; those whose result changed are in
// Dirty.
func (t *Table) SetPools(set *pool.Set, now time.Time) {
	t.set = set
	t.spaces = make(map[*pool.Pool]*[2]*space, len(set.Preferred()))
	for _, p := range set.Preferred() {
		both := &[2]*space{newSpace(p), newSpace(p)}
		for _, r := range p.Addresses {
			both[pool.FamilyOf(r.First)].free.ReplaceOrInsert(r)
		}
		for a := range p.Reserved {
			both[pool.FamilyOf(a)].take(a)
		}
		t.spaces[p] = both
	}
	for a := range t.tenants {
		if s := t.space(a); s != nil {
			s.take(a)
			s.assigned++
			if s.pool.Gives(a) {
				s.taken++
			}
		}
	}
	for a, r := range t.resting {
		s := t.space(a)
		if s == nil || !t.assignable(s.pool, a) {
			t.forget(r)
			continue
		}
		s.take(a)
		s.rest.ReplaceOrInsert(r)
	}
	for a := range t.banned {
		if s := t.space(a); s != nil {
			s.take(a)
		}
	}

	ids := make([]id, 0, len(t.ids))
	for _, i := range t.ids {
		ids = append(ids, i)
	}
	t.byAge(ids)
	for _, i := range ids {
		s := &t.services[i]
		for f := range s.have {
			t.trace(&s.have[f])
		}
		if s.result.Reason == Foreign {
			t.adopt(i, now)
		}
	}
	for _, i := range ids {
		t.review(i, now)
	}
	t.settle(now)
}

// Assign takes in a Service that is new or has changed and decides on it. Others whose result changes with it are in
// Dirty. Whoever asks writes the answer into the Service's status, and calls Published, or Assign again if that failed,
// when the write is no longer under way.
func (t *Table) Assign(req Request, now time.Time) Result {
	i := t.store(&req, now)
	t.adopt(i, now)
	t.decide(i, now)
	t.settle(now)
	s := &t.services[i]
	res := s.result
	res.Notice = s.notice
	s.sent = res.Addresses()
	return res
}

// Published says which addresses the Service's status names now. What it moved away from is free from then on.
func (t *Table) Published(key types.NamespacedName, current []netip.Addr, now time.Time) {
	i, ok := t.ids[key]
	if !ok {
		return
	}
	s := &t.services[i]
	s.req.Current, s.req.Managed, s.notice, s.sent = current, true, "", nil
	t.leave(i, now)
	t.settle(now)
}

// Release frees everything a Service has: it is gone, or no longer asks for addresses.
func (t *Table) Release(key types.NamespacedName, now time.Time) {
	i, ok := t.ids[key]
	if !ok {
		return
	}
	t.unwait(i)
	s := &t.services[i]
	s.req.Current, s.sent = nil, nil
	for f := range s.have {
		t.drop(i, pool.Family(f), now)
	}
	t.leave(i, now)
	delete(t.ids, key)
	*s = service{waits: s.waits}
	t.unused = append(t.unused, i)
	t.settle(now)
}

// Dirty returns the Services, other than those it was called about, whose result changed since the last call.
func (t *Table) Dirty() []types.NamespacedName {
	out := t.dirty
	t.dirty = nil
	for _, name := range out {
		if i, ok := t.ids[name]; ok {
			t.services[i].dirty = false
		}
	}
	return out
}

// Result is how the Service's request stands.
func (t *Table) Result(key types.NamespacedName) (Result, bool) {
	i, ok := t.ids[key]
	if !ok {
		return Result{}, false
	}
	return t.services[i].result, true
}

// Usage is how full a pool is, by family. The numbers stop at math.MaxInt64.
type Usage struct {
	// Capacity is the addresses that the pool may give out, Assigned those of its addresses that Services have, and
	// Available those that it could still give to any Service that it admits. Quarantined are those of its addresses
	// that are in quarantine, whether or not a Service has them.
	Capacity, Assigned, Available, Quarantined [2]int64
}

// Usage is how full the pool of that name is; zero when there is no such pool.
func (t *Table) Usage(name string) Usage {
	var u Usage
	p := t.set.Pool(name)
	if p == nil {
		return u
	}
	for f, s := range t.spaces[p] {
		u.Capacity[f] = p.Capacity(pool.Family(f))
		u.Assigned[f] = s.assigned
		u.Available[f] = u.Capacity[f]
		if u.Capacity[f] < 1<<63-1 {
			u.Available[f] -= s.taken
		}
	}
	for a := range p.Reserved {
		f := pool.FamilyOf(a)
		if _, used := t.tenants[a]; !used && p.Gives(a) && u.Capacity[f] < 1<<63-1 {
			u.Available[f]--
		}
	}
	for a := range t.banned {
		if t.set.Find(a) != p {
			continue
		}
		f := pool.FamilyOf(a)
		u.Quarantined[f]++
		if _, used := t.tenants[a]; !used && t.assignable(p, a) && u.Capacity[f] < 1<<63-1 {
			u.Available[f]--
		}
	}
	return u
}

func (t *Table) byAge(ids []id) {
	slices.SortFunc(ids, func(a, b id) int {
		if t.services[a].req.older(&t.services[b].req) {
			return -1
		}
		return 1
	})
}

// store takes a request in without deciding on it.
func (t *Table) store(req *Request, now time.Time) id {
	i, known := t.ids[req.Service]
	if !known {
		if n := len(t.unused); n > 0 {
			i, t.unused = t.unused[n-1], t.unused[:n-1]
		} else {
			i = id(len(t.services))
			t.services = append(t.services, service{})
		}
		t.ids[req.Service] = i
		t.services[i].req = *req
		return i
	}
	t.unwait(i)
	s := &t.services[i]
	same := s.req.sameSharing(req)
	before := s.req.SharingKey
	s.req, s.sent = *req, nil
	if !same {
		for _, a := range append(s.left[:len(s.left):len(s.left)], s.have[0].addr, s.have[1].addr) {
			if a.IsValid() {
				t.reshare(before, a)
				t.reshare(req.SharingKey, a)
				t.touched = append(t.touched, a)
			}
		}
	}
	t.leave(i, now)
	return i
}

// review decides on a Service that nobody asked about.
func (t *Table) review(i id, now time.Time) {
	if !t.decide(i, now) {
		return
	}
	if s := &t.services[i]; !s.dirty {
		s.dirty = true
		t.dirty = append(t.dirty, s.req.Service)
	}
}

// settle lets what has changed reach those whom it helps, until nothing more follows.
func (t *Table) settle(now time.Time) {
	for {
		if len(t.redo) > 0 {
			t.byAge(t.redo)
			i := t.redo[0]
			t.redo = t.redo[1:]
			t.review(i, now)
			continue
		}
		if len(t.touched) == 0 {
			return
		}
		a := t.touched[len(t.touched)-1]
		t.touched = t.touched[:len(t.touched)-1]
		if len(t.waiting) == 0 {
			continue
		}
		t.offer(wait{addr: a}, a, now)
		if p := t.set.Find(a); p != nil && !t.quarantined(a) {
			t.offer(wait{pool: p.Name, family: pool.FamilyOf(a)}, a, now)
		}
	}
}

// offer tries those who wait for w, the oldest first, for as long as address a can be had. Who waits for that very
// address is told of any change in who has it.
func (t *Table) offer(w wait, a netip.Addr, now time.Time) {
	queue := t.waiting[w]
	if queue == nil {
		return
	}
	next, ok := queue.Min()
	for ok {
		key := ""
		if ten, used := t.tenants[a]; used {
			if key = t.services[ten.first].req.SharingKey; key == "" && !w.addr.IsValid() {
				return
			}
		}
		this := next
		if w.addr.IsValid() || key == "" || key == t.services[this.id].req.SharingKey {
			t.review(this.id, now)
		}
		ok = false
		queue.AscendGreaterOrEqual(this, func(w waiter) bool {
			if w == this {
				return true
			}
			next, ok = w, true
			return false
		})
	}
}

func olderWaiter(a, b waiter) bool {
	ra, rb := Request{Created: a.created, Service: a.service}, Request{Created: b.created, Service: b.service}
	return ra.older(&rb)
}

func (t *Table) wait(i id, waits []wait) {
	s := &t.services[i]
	me := waiter{s.req.Created, s.req.Service, i}
	for _, w := range waits {
		queue := t.waiting[w]
		if queue == nil {
			queue = btree.NewG(treeDegree, olderWaiter)
			t.waiting[w] = queue
		}
		queue.ReplaceOrInsert(me)
	}
	s.waits = append(s.waits, waits...)
}

func (t *Table) unwait(i id) {
	s := &t.services[i]
	me := waiter{s.req.Created, s.req.Service, i}
	for _, w := range s.waits {
		if queue := t.waiting[w]; queue != nil {
			queue.Delete(me)
			if queue.Len() == 0 {
				delete(t.waiting, w)
			}
		}
	}
	s.waits = s.waits[:0]
}

// space is where a is counted; nil when no pool has it.
func (t *Table) space(a netip.Addr) *space {
	p := t.set.Find(a)
	if p == nil {
		return nil
	}
	return t.spaces[p][pool.FamilyOf(a)]
}

// assignable says whether a pool gives a to whoever comes.
func (t *Table) assignable(p *pool.Pool, a netip.Addr) bool {
	_, reserved := p.Reserved[a]
	return !reserved && p.Gives(a)
}

// trace keeps a holding's pool and policy current. The policy of a pool that is gone lives on in the holding; a pool
// that cannot be read has none, since a bad edit must not move anything.
func (t *Table) trace(h *holding) {
	if !h.addr.IsValid() {
		return
	}
	p := t.within(h.addr)
	if p != nil {
		h.pool = p.Name
	} else {
		h.pool = cmp.Or(h.pool, t.former[h.addr])
		p = t.set.Pool(h.pool)
	}
	switch {
	case p != nil && p.Err != nil:
		h.shrink = v1beta1.ShrinkKeep
	case p != nil:
		h.shrink = p.OnShrink
	}
}

// within is the pool that has an address, or would have it if it did not exclude it; nil when there is none.
func (t *Table) within(a netip.Addr) *pool.Pool {
	return cmp.Or(t.set.Find(a), t.set.Writes(a))
}

// Kept is the addresses that Services keep from the pool of that name though it does not include them any more, sorted.
func (t *Table) Kept(name string) []netip.Addr {
	var out []netip.Addr
	for a, ten := range t.tenants {
		s := &t.services[ten.first]
		if s.have[pool.FamilyOf(a)].pool == name && s.have[pool.FamilyOf(a)].addr == a && t.within(a) == nil {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Remember says which pools had addresses that Services keep, as far as that was known before this Table was new: see
// Kept. It comes before Load.
func (t *Table) Remember(kept map[netip.Addr]string) { t.former = kept }

// hold gives a Service an address. Whether it may have it was decided before.
func (t *Table) hold(i id, a netip.Addr) {
	s, f := &t.services[i], pool.FamilyOf(a)
	s.have[f] = holding{addr: a, shrink: v1beta1.ShrinkKeep}
	t.trace(&s.have[f])
	if n := slices.Index(s.left, a); n >= 0 {
		s.left = slices.Delete(s.left, n, n+1)
	} else if ten, used := t.tenants[a]; used {
		ten.more = append(ten.more, i)
		t.tenants[a] = ten
	} else {
		t.tenants[a] = tenants{first: i}
		if r, ok := t.resting[a]; ok {
			t.forget(r)
		}
		if sp := t.space(a); sp != nil {
			sp.take(a)
			sp.assigned++
			if sp.pool.Gives(a) {
				sp.taken++
			}
		}
	}
	if s.req.SharingKey != "" {
		t.reshare(s.req.SharingKey, a)
		t.touched = append(t.touched, a)
	}
}

// drop takes an address from a Service. It stays the Service's as long as the Service's status may name it.
func (t *Table) drop(i id, f pool.Family, now time.Time) {
	s := &t.services[i]
	a := s.have[f].addr
	if !a.IsValid() {
		return
	}
	s.have[f] = holding{}
	if s.named(a) {
		s.left = append(s.left, a)
		return
	}
	t.free(i, a, now)
}

// named says whether the Service's status names a, or is about to.
func (s *service) named(a netip.Addr) bool {
	return slices.Contains(s.req.Current, a) || slices.Contains(s.sent, a)
}

// leave frees what a Service has moved away from and its status no longer names.
func (t *Table) leave(i id, now time.Time) {
	s := &t.services[i]
	s.left = slices.DeleteFunc(s.left, func(a netip.Addr) bool {
		if s.named(a) {
			return false
		}
		t.free(i, a, now)
		return true
	})
}

// free ends a Service's tenancy. The address rests when it was the last tenant.
func (t *Table) free(i id, a netip.Addr, now time.Time) {
	key := t.services[i].req.SharingKey
	ten := t.tenants[a]
	switch {
	case ten.len() > 1:
		if ten.first == i {
			ten.first = ten.more[0]
			ten.more = slices.Delete(ten.more, 0, 1)
		} else {
			ten.more = slices.DeleteFunc(ten.more, func(other id) bool { return other == i })
		}
		t.tenants[a] = ten
	default:
		delete(t.tenants, a)
		sp := t.space(a)
		if sp == nil {
			break
		}
		sp.assigned--
		if sp.pool.Gives(a) {
			sp.taken--
		}
		switch {
		case !t.assignable(sp.pool, a) || t.quarantined(a):
		case sp.pool.ReuseDelay > 0:
			r := resting{now, a, t.services[i].req.Service}
			sp.rest.ReplaceOrInsert(r)
			t.resting[a] = r
			mine := t.last[r.last]
			mine[pool.FamilyOf(a)] = a
			t.last[r.last] = mine
		default:
			sp.give(a)
		}
	}
	t.reshare(key, a)
	t.touched = append(t.touched, a)
}

// forget ends an address's rest without making it free.
func (t *Table) forget(r resting) {
	delete(t.resting, r.addr)
	if sp := t.space(r.addr); sp != nil {
		sp.rest.Delete(r)
	}
	mine, f := t.last[r.last], pool.FamilyOf(r.addr)
	if mine[f] != r.addr {
		return
	}
	mine[f] = netip.Addr{}
	if mine == ([2]netip.Addr{}) {
		delete(t.last, r.last)
	} else {
		t.last[r.last] = mine
	}
}

// expire makes those addresses free that have rested long enough.
func (t *Table) expire(sp *space, now time.Time) {
	for {
		r, ok := sp.rest.Min()
		if !ok || now.Sub(r.at) < sp.pool.ReuseDelay {
			return
		}
		t.forget(r)
		sp.give(r.addr)
	}
}

// reshare brings the index of shared addresses up to date for one key and one address.
func (t *Table) reshare(key string, a netip.Addr) {
	if key == "" {
		return
	}
	open := false
	if ten, used := t.tenants[a]; used {
		for n := range ten.len() {
			open = open || t.services[ten.at(n)].req.SharingKey == key
		}
	}
	list := t.shared[key]
	n, listed := slices.BinarySearchFunc(list, a, netip.Addr.Compare)
	switch {
	case open && !listed:
		list = slices.Insert(list, n, a)
	case !open && listed:
		list = slices.Delete(list, n, n+1)
	}
	if len(list) == 0 {
		delete(t.shared, key)
	} else {
		t.shared[key] = list
	}
}

// name is how a message names a Service.
func name(n types.NamespacedName) string {
	return strings.Join([]string{n.Namespace, n.Name}, "/")
}
