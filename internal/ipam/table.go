// Package ipam decides which addresses a Service gets. Its Table is the only memory of allocation that the controller
// has; all of it can be rebuilt from the Services and pools in the API.
//
// What it promises, whatever the order of events:
//
//  1. An assigned address stays: no restart, change of leader, other Service or edit of a pool moves it, unless that
//     pool says onShrink: Reallocate, the Service itself asks for something else, or the address is quarantined.
//  2. Load adopts what is assigned, the oldest Service first, before it gives out anything new.
//  3. No address is given twice, nor one that somebody has without Clarion: Services of other controllers, and external
//     IPs, are tenants as others are, but for that they are never decided on. Nor is one that the cluster has itself
//     (pool.NewSetBeside). An address that a Service moves away from is free only once the Service's status no longer
//     names it (Published), nor can because a write of it is under way. Of two Services that claim one address the older
//     keeps it, if they cannot both.
//  4. Services share an address only with the same sharing key and disjoint ports, and where externalTrafficPolicy is
//     Local only with the same endpoints; across namespaces only where the pool allows it. What is shared by MetalLB's
//     wider rules when it is adopted stays so.
//  5. What waits is served by age, and pools are tried in one order; addresses are given from the lowest, or by Homes,
//     which are data. No map order decides anything.
//  6. Assigning is a fixed point: the same request again changes nothing.
//  7. An address that a foreign host on the local network uses is in quarantine: it is given to nobody while the host is
//     heard and for QuarantineTime after, and a Service that has it gets another in the same pass, unless it asked for
//     that very address.
//  8. A released address rests for its pool's reuseDelay: only the Service that had it may ask for it earlier, and
//     others are given it only when their pool has no other.
//  9. No tenant is told another namespace's names.
//
// The package is pure. It must not read a clock, log, or know of the Kubernetes client; time is an argument.
package ipam

import (
	"net/netip"
	"slices"
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
	resting  map[netip.Addr]Rest
	last     map[types.NamespacedName][2]netip.Addr // resting addresses by who had them
	banned   map[netip.Addr]time.Time               // when the quarantine ends; zero while the host is heard
	homes    Homes
	load     map[string]int        // of each node, in addresses that Services have
	home     map[netip.Addr]string // under which node each of them is counted

	waiting map[wait]*btree.BTreeG[waiter]
	touched []touch // may help those that wait
	redo    []id    // lost an address to an older Service
	dirty   []types.NamespacedName
}

// id is a place in Table.services.
type id int32

type service struct {
	req     Request
	have    [2]holding   // by family
	sent    []netip.Addr // what Assign returned last, until it is in the Service's status, or Assign is asked again
	left    []netip.Addr // moved away from, but in the Service's status, or sent to be in it
	result  Result
	notices notices
	waits   []wait
	dirty   bool
}

// holding is an address and the pool that it belongs to, or did last.
type holding struct {
	addr  netip.Addr
	pool  string
	shown bool // the Service's status has named it
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

// wait is something whose change may help a Service: an address, or a family of a pool, or what a namespace has of that.
type wait struct {
	addr      netip.Addr
	pool      string
	family    pool.Family
	namespace string
}

// touch is a change of who has an address. The namespace is that of a Service that has come to have it, or has it no more.
type touch struct {
	addr      netip.Addr
	namespace string
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
		resting: map[netip.Addr]Rest{},
		last:    map[types.NamespacedName][2]netip.Addr{},
		banned:  map[netip.Addr]time.Time{},
		load:    map[string]int{},
		home:    map[netip.Addr]string{},
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
	for a, ten := range t.tenants {
		if s := t.space(a); s != nil {
			s.take(a)
			for n := range ten.len() {
				if ns := t.services[ten.at(n)].req.Service.Namespace; !t.before(ten, n, ns) {
					s.count[ns]++
				}
			}
		}
	}
	for a, r := range t.resting {
		s := t.space(a)
		if s != nil {
			r = s.atMost(r, now)
		}
		if s == nil || !t.assignable(s.pool, a) || !now.Before(r.Until) {
			t.forget(r)
			continue
		}
		s.take(a)
		s.rest.ReplaceOrInsert(r)
		t.resting[a] = r
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
		if s.result.Reason == v1beta1.ReasonForeign {
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
	res.Notice = s.notices.String()
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
	s.req.Current, s.req.Managed, s.notices, s.sent = current, true, nil, nil
	for f := range s.have {
		h := &s.have[f]
		h.shown = h.shown || slices.Contains(current, h.addr)
	}
	t.leave(i, now)
	t.settle(now)
}

// Leaves is the address of a family that a Service moves away from, if it may have that until its status names the next
// one; otherwise the zero Addr.
func (t *Table) Leaves(key types.NamespacedName, f pool.Family) netip.Addr {
	if i, ok := t.ids[key]; ok {
		for _, a := range t.services[i].left {
			if ten := t.tenants[a]; pool.FamilyOf(a) == f && !t.quarantined(a) && t.set.Find(a) != nil && ten.len() == 1 {
				return a
			}
		}
	}
	return netip.Addr{}
}

// Release frees everything a Service has: it is gone, or no longer asks for addresses.
func (t *Table) Release(key types.NamespacedName, now time.Time) {
	i, ok := t.ids[key]
	if !ok {
		return
	}
	t.unwait(i)
	s := &t.services[i]
	held := s.req.Held
	s.req.Current, s.req.Held, s.sent = nil, nil, nil
	for f := range s.have {
		t.drop(i, pool.Family(f), now)
	}
	t.leave(i, now)
	for _, a := range held {
		t.tenancy(i, a, now)
	}
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
		for _, a := range req.Held {
			t.tenancy(i, a, now)
		}
		return i
	}
	t.unwait(i)
	s := &t.services[i]
	same := s.req.sameSharing(req)
	before, held := s.req.SharingKey, s.req.Held
	s.req, s.sent = *req, nil
	for _, a := range slices.Concat(held, req.Held) {
		t.tenancy(i, a, now)
	}
	if !same {
		for _, a := range slices.Concat(s.left, held, req.Held, []netip.Addr{s.have[0].addr, s.have[1].addr}) {
			if a.IsValid() {
				t.reshare(before, a)
				t.reshare(req.SharingKey, a)
				t.touched = append(t.touched, touch{addr: a})
			}
		}
	}
	if req.Other { // it was Clarion's
		for f := range s.have {
			t.drop(i, pool.Family(f), now)
		}
		s.result, s.notices = Result{}, nil
	}
	t.leave(i, now)
	return i
}

// review decides on a Service that nobody asked about. One that moves away from an address is looked at in any case, since
// it may have come to lose that.
func (t *Table) review(i id, now time.Time) {
	if !t.decide(i, now) && len(t.services[i].left) == 0 {
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
		to := t.touched[len(t.touched)-1]
		t.touched = t.touched[:len(t.touched)-1]
		if len(t.waiting) == 0 {
			continue
		}
		a := to.addr
		t.offer(wait{addr: a}, a, now)
		p := t.set.Find(a)
		if p == nil {
			continue
		}
		f := pool.FamilyOf(a)
		if to.namespace != "" && p.MaxPerNamespace > 0 {
			t.offer(wait{pool: p.Name, family: f, namespace: to.namespace}, a, now)
		}
		if ten, used := t.tenants[a]; used && t.services[ten.first].req.SharingKey != "" { // to be shared beyond the quota
			for n := range ten.len() {
				t.offer(wait{pool: p.Name, family: f, namespace: t.services[ten.at(n)].req.Service.Namespace}, a, now)
			}
		}
		if !t.quarantined(a) {
			t.offer(wait{pool: p.Name, family: f}, a, now)
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
			if key = t.services[ten.first].req.SharingKey; key == "" && !w.addr.IsValid() && w.namespace == "" {
				return
			}
		}
		this := next
		if w.addr.IsValid() || w.namespace != "" || key == "" || key == t.services[this.id].req.SharingKey {
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

// trace keeps a holding's pool current. A pool that no longer has the address stays its pool.
func (t *Table) trace(h *holding) {
	if h.addr.IsValid() {
		if p := t.set.Of(h.addr); p != nil {
			h.pool = p.Name
		}
	}
}

// onShrink is what the pool of a holding says should happen when it has the address no more. One that cannot be read says
// Keep, since a bad edit must not move anything.
func (t *Table) onShrink(h *holding) v1beta1.ShrinkPolicy {
	if p := t.set.Pool(h.pool); p != nil && p.Err == nil {
		return p.OnShrink
	}
	return v1beta1.ShrinkKeep
}

// hold gives a Service an address. Whether it may have it was decided before.
func (t *Table) hold(i id, a netip.Addr) {
	s := &t.services[i]
	h := &s.have[pool.FamilyOf(a)]
	*h = holding{addr: a}
	t.trace(h)
	if n := slices.Index(s.left, a); n >= 0 {
		s.left = slices.Delete(s.left, n, n+1)
	}
	t.tenancy(i, a, time.Time{})
	t.settleHome(a, &s.req)
	t.reshare(s.req.SharingKey, a)
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
	}
	t.tenancy(i, a, now)
}

// named says whether the Service's status names a, or is about to.
func (s *service) named(a netip.Addr) bool {
	return slices.Contains(s.req.Current, a) || slices.Contains(s.sent, a)
}

// decided says whether the Service has a by a decision of this Table.
func (s *service) decided(a netip.Addr) bool {
	return s.have[pool.FamilyOf(a)].addr == a || slices.Contains(s.left, a)
}

// leave frees what a Service has moved away from and its status no longer names.
func (t *Table) leave(i id, now time.Time) {
	s := &t.services[i]
	left := s.left
	s.left = nil
	for _, a := range left {
		if s.named(a) {
			s.left = append(s.left, a)
		}
	}
	for _, a := range left {
		t.tenancy(i, a, now)
	}
}

// tenancy makes Service i a tenant of a or not, as what it has and holds says. When the last tenant leaves the address is
// free, or rests.
func (t *Table) tenancy(i id, a netip.Addr, now time.Time) {
	s := &t.services[i]
	ten, used := t.tenants[a]
	at := -1
	for n := 0; used && n < ten.len(); n++ {
		if ten.at(n) == i {
			at = n
		}
	}
	is := s.decided(a) || slices.Contains(s.req.Held, a)
	if is == (at >= 0) {
		return
	}
	sp, ns := t.space(a), s.req.Service.Namespace
	if is {
		if sp != nil && !t.inNamespace(a, ns) {
			sp.count[ns]++
		}
		if used {
			ten.more = append(ten.more, i)
		} else {
			ten = tenants{first: i}
			if r, ok := t.resting[a]; ok {
				t.forget(r)
			}
			if sp != nil {
				sp.take(a)
			}
		}
		t.tenants[a] = ten
		t.touched = append(t.touched, touch{a, ns})
		return
	}
	switch {
	case ten.len() == 1:
		delete(t.tenants, a)
		t.settleHome(a, nil)
		switch {
		case sp == nil || !t.assignable(sp.pool, a) || t.quarantined(a):
		case sp.pool.ReuseDelay > 0:
			t.rest(Rest{a, s.req.Service, now.Add(sp.pool.ReuseDelay)})
		default:
			sp.give(a)
		}
	case at == 0:
		ten.first, ten.more = ten.more[0], slices.Clone(ten.more[1:])
		t.tenants[a] = ten
	default:
		ten.more = slices.Delete(ten.more, at-1, at)
		t.tenants[a] = ten
	}
	if sp != nil && !t.inNamespace(a, ns) {
		if sp.count[ns]--; sp.count[ns] == 0 {
			delete(sp.count, ns)
		}
	}
	t.reshare(s.req.SharingKey, a)
	t.touched = append(t.touched, touch{a, ns})
}

// inNamespace says whether a Service of a namespace has a.
func (t *Table) inNamespace(a netip.Addr, ns string) bool {
	ten, used := t.tenants[a]
	return used && t.before(ten, ten.len(), ns)
}

// before says whether one of the first n of ten is of a namespace.
func (t *Table) before(ten tenants, n int, ns string) bool {
	for k := range n {
		if t.services[ten.at(k)].req.Service.Namespace == ns {
			return true
		}
	}
	return false
}

// full says whether a namespace has as many addresses of a family of p as it may.
func (t *Table) full(p *pool.Pool, f pool.Family, ns string) bool {
	return p.MaxPerNamespace > 0 && t.spaces[p][f].count[ns] >= p.MaxPerNamespace
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
func name(n types.NamespacedName) string { return n.Namespace + "/" + n.Name }

// nameTo is how a message to the user of a request names a Service: not at all when it is another namespace's.
func nameTo(n types.NamespacedName, r *Request) string {
	if n.Namespace == r.Service.Namespace {
		return name(n)
	}
	return "a Service of another namespace"
}

func (t *Table) name(i id, to *Request) string { return nameTo(t.services[i].req.Service, to) }
