package ipam

import (
	"net/netip"
	"slices"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/pool"
)

// plan is what should happen to a Service's address of one family.
type plan struct {
	take netip.Addr // give it this one, in place of what it has
	out  string     // why the pool no longer gives it what it keeps

	// When the Service cannot have what it should: why, and what may help.
	reason Reason
	detail string
	passed []Passed
	waits  []wait
	moving bool // it has an address, but should have another
}

// decide brings a Service's addresses and result up to date with its request, the pools and the other Services, and
// says whether the result changed.
func (t *Table) decide(i id, now time.Time) bool {
	t.unwait(i)
	s := &t.services[i]
	r := &s.req
	var res Result
	if t.foreign(s) {
		res.Reason = Foreign
		changed := !res.Equal(&s.result)
		s.result = res
		return changed
	}
	for f := range s.have {
		f := pool.Family(f)
		a := s.have[f].addr
		if !a.IsValid() {
			continue
		}
		if len(r.Families) > 0 && !slices.Contains(r.Families, f) {
			t.drop(i, f, now)
		} else if t.barred(r, a) {
			if s.notice != "" {
				s.notice += "; "
			}
			s.notice += t.banned[a].notice(a)
			t.drop(i, f, now)
		} else if other := t.misfit(i, a); other >= 0 {
			s.notice = a.String() + " cannot be shared any longer with " + name(t.services[other].req.Service)
			t.drop(i, f, now)
		}
	}

	reason, detail := problem(r)
	var plans [2]plan
	failed := false
	for n, f := range r.Families {
		if reason != "" {
			plans[n] = plan{out: t.whyOut(r, s.have[f].addr), reason: reason}
			continue
		}
		plans[n] = t.plan(i, f, now)
		failed = failed || plans[n].reason != ""
	}
	if !(failed && r.RequireAll && s.have == [2]holding{}) {
		for n, f := range r.Families {
			if plans[n].take.IsValid() {
				t.drop(i, f, now)
				t.hold(i, plans[n].take)
			}
		}
	}

	got := 0
	for n, f := range r.Families {
		h := &s.have[f]
		if !h.addr.IsValid() {
			continue
		}
		a := Assignment{Address: h.addr, OutOfPool: plans[n].out}
		if p := t.set.Find(h.addr); p != nil {
			a.Pool = p.Name
		}
		res.Assigned[got] = a
		got++
	}
	res.Reason, res.Detail = reason, detail
	for n, f := range r.Families {
		p := &plans[n]
		if reason != "" || p.reason == "" {
			continue
		}
		t.wait(i, p.waits)
		res.Passed = append(res.Passed, p.passed...)
		// A second address is welcome, not owed, unless the Service insists on it or asks for something about it.
		if !r.RequireAll && !p.moving && got > 0 && !r.requested(f).IsValid() {
			continue
		}
		if res.Reason == "" {
			res.Reason = p.reason
		}
		if p.detail != "" {
			if res.Detail != "" {
				res.Detail += "; "
			}
			res.Detail += p.detail
		}
	}
	if res.Reason == "" {
		res.Reason = Allocated
		for _, a := range res.Assigned {
			if a.OutOfPool != "" {
				res.Reason = OutOfPool
			}
		}
	}
	changed := !res.Equal(&s.result)
	s.result = res
	return changed
}

// foreign says whether somebody else gave the Service its addresses: Clarion never wrote its status, and none of them is
// in a pool. Such a Service is left alone until a pool has one.
func (t *Table) foreign(s *service) bool {
	if s.req.Managed || len(s.req.Current) == 0 || s.have != [2]holding{} || len(s.left) > 0 {
		return false
	}
	return !slices.ContainsFunc(s.req.Current, func(a netip.Addr) bool { return t.set.Find(a) != nil })
}

// problem is what is wrong with a request whatever the pools are.
func problem(r *Request) (Reason, string) {
	if r.Problem != "" {
		return InvalidRequest, r.Problem
	}
	if len(r.Families) == 0 {
		return InvalidRequest, "the Service has no cluster addresses"
	}
	for _, a := range r.Addresses {
		if f := pool.FamilyOf(a); !slices.Contains(r.Families, f) {
			return FamilyMismatch, a.String() + " is requested, but the Service has no " + f.String() + " among its ipFamilies"
		}
	}
	return "", ""
}

// plan decides about one family of a Service whose request can be read.
func (t *Table) plan(i id, f pool.Family, now time.Time) plan {
	s := &t.services[i]
	r, h := &s.req, &s.have[f]
	out := ""
	if h.addr.IsValid() {
		out = t.whyOut(r, h.addr)
	}
	if want := r.requested(f); want.IsValid() {
		if want == h.addr {
			return plan{out: out}
		}
		p := t.planFor(i, want)
		if p.reason != "" {
			p.out, p.moving = out, h.addr.IsValid()
		}
		return p
	}
	if h.addr.IsValid() {
		if t.inRequested(r, h.addr) && (out == "" || h.shrink != v1beta1.ShrinkReallocate) {
			return plan{out: out}
		}
	}
	if a, ok := t.pick(i, f, now); ok {
		return plan{take: a}
	}
	p := t.explain(i, f)
	p.out, p.moving = out, h.addr.IsValid()
	return p
}

// inRequested says whether a is where the Service wants its addresses from. It still is when an older pool has taken it
// over, and may be when no pool has it any longer.
func (t *Table) inRequested(r *Request, a netip.Addr) bool {
	if len(r.Pools) == 0 || t.set.Find(a) == nil && t.set.Writes(a) == nil {
		return true
	}
	return slices.ContainsFunc(r.Pools, func(name string) bool {
		p := t.set.Pool(name)
		return p != nil && p.Written.Contains(a)
	})
}

// planFor decides about an address that the Service asks for.
func (t *Table) planFor(i id, a netip.Addr) plan {
	r := &t.services[i].req
	fail := func(reason Reason, why string, waits ...wait) plan {
		return plan{reason: reason, detail: a.String() + " is requested, but " + why, waits: waits}
	}
	p := t.set.Find(a)
	switch {
	case p == nil:
		why, used := t.set.WhyNot(a)
		if used {
			return fail(AddressInUse, why)
		}
		return fail(AddressNotInPool, why)
	case p.Avoids(a):
		return fail(AddressNotInPool, t.whyOut(r, a))
	case p.Err != nil:
		return fail(AddressNotInPool, "pool "+p.Name+" is not valid")
	case len(r.Pools) > 0 && !slices.Contains(r.Pools, p.Name):
		return fail(AddressNotInPool, "it is in pool "+p.Name+", not in a requested one")
	}
	if why := t.whyOut(r, a); why != "" {
		if _, reserved := p.Reserved[a]; reserved {
			return fail(AddressReserved, why)
		}
		return fail(NoMatchingPool, why)
	}
	if t.quarantined(a) {
		return fail(AddressQuarantined, "a stranger on the local network uses it, or did so a short while ago", wait{addr: a})
	}
	if other, why := t.apart(i, a, p); other >= 0 {
		o := &t.services[other].req
		reason := AddressInUse
		if r.SharingKey != "" && o.SharingKey != "" {
			reason = SharingConflict
		}
		return fail(reason, name(o.Service)+" has it and "+why, wait{addr: a})
	}
	return plan{take: a}
}

// whyOut is why the pool that has a, if any, does not give it to the Service; empty when it does. A pool that cannot be
// read counts as giving what it has.
func (t *Table) whyOut(r *Request, a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	p := t.set.Find(a)
	if p == nil {
		why, _ := t.set.WhyNot(a)
		return why
	}
	if p.Err != nil {
		return ""
	}
	if p.Avoids(a) {
		return "pool " + p.Name + " avoids addresses that end in .0 and .255"
	}
	if owner, reserved := p.Reserved[a]; reserved && owner != r.Service {
		return "pool " + p.Name + " reserves it for " + name(owner)
	}
	if ok, why := p.Admits(r.Service.Namespace, r.NamespaceLabels, r.Labels); !ok {
		return "pool " + p.Name + " " + why
	}
	return ""
}

// apart finds the oldest Service that has a and that Service i cannot share it with, and why; -1 when there is none.
func (t *Table) apart(i id, a netip.Addr, p *pool.Pool) (oldest id, why string) {
	oldest = -1
	ten, used := t.tenants[a]
	if !used {
		return oldest, ""
	}
	r := &t.services[i].req
	for n := range ten.len() {
		j := ten.at(n)
		o := &t.services[j].req
		if j == i || oldest >= 0 && t.services[oldest].req.older(o) {
			continue
		}
		if apart := whyApart(r, o); apart != "" {
			oldest, why = j, apart
		} else if r.Service.Namespace != o.Service.Namespace && !p.CrossNamespace {
			oldest, why = j, "is in another namespace, across which pool "+p.Name+" does not share"
		}
	}
	return oldest, why
}

// forcesApart says whether the pool of a takes an address that is shared across namespaces from the younger Services.
func (t *Table) forcesApart(a netip.Addr, r, o *Request) bool {
	p := t.set.Find(a)
	return p != nil && p.Err == nil && p.OnShrink == v1beta1.ShrinkReallocate && !p.CrossNamespace &&
		r.Service.Namespace != o.Service.Namespace
}

// misfit finds a Service on the same address with which Service i must not be any longer; -1 when there is none. The
// one that is asked about is the one that changed, except that a pool's change moves the younger.
func (t *Table) misfit(i id, a netip.Addr) id {
	ten := t.tenants[a]
	r := &t.services[i].req
	for n := range ten.len() {
		j := ten.at(n)
		if j == i || t.services[j].have[pool.FamilyOf(a)].addr != a {
			continue
		}
		o := &t.services[j].req
		if whyApart(r, o) != "" || o.older(r) && t.forcesApart(a, r, o) {
			return j
		}
	}
	return -1
}

// adopt takes over what the Service's status says. An address that the Service has moved away from is not taken back;
// one that it would get in place of another has to be right in every way.
func (t *Table) adopt(i id, now time.Time) {
	s := &t.services[i]
	r := &s.req
	if len(r.Current) == 0 || t.foreign(s) {
		return
	}
	var seen [2]bool
	for _, a := range r.Current {
		f := pool.FamilyOf(a)
		if seen[f] || !slices.Contains(r.Families, f) {
			continue
		}
		seen[f] = true
		h := &s.have[f]
		if h.addr == a || h.addr.IsValid() && slices.Contains(s.left, a) {
			continue
		}
		if p := t.set.Find(a); h.addr.IsValid() && (p == nil || p.Err != nil || t.whyOut(r, a) != "" || t.barred(r, a)) {
			continue
		}
		if t.claim(i, a, now) {
			t.drop(i, f, now)
			t.hold(i, a)
		}
	}
}

// claim settles who keeps an address that the status of Service i names: the older one. It says whether i may have it;
// younger Services that cannot share it are evicted.
func (t *Table) claim(i id, a netip.Addr, now time.Time) bool {
	ten, used := t.tenants[a]
	if !used {
		return true
	}
	s := &t.services[i]
	var evicted []id
	for n := range ten.len() {
		j := ten.at(n)
		o := &t.services[j].req
		if j == i || whyApart(&s.req, o) == "" && !t.forcesApart(a, &s.req, o) {
			continue
		}
		if o.older(&s.req) {
			s.notice = a.String() + " belongs to " + name(o.Service) + ", which is older"
			return false
		}
		evicted = append(evicted, j)
	}
	f := pool.FamilyOf(a)
	for _, j := range evicted {
		if t.services[j].have[f].addr == a {
			t.services[j].notice = a.String() + " belongs to " + name(s.req.Service) + ", which is older"
			t.drop(j, f, now)
			t.redo = append(t.redo, j)
		}
	}
	return true
}

// order is the pools that a request is tried with, the preferred first.
func (t *Table) order(r *Request) []*pool.Pool {
	if len(r.Pools) == 0 {
		return t.set.Preferred()
	}
	var out []*pool.Pool
	for _, name := range r.Pools {
		if p := t.set.Pool(name); p != nil {
			out = append(out, p)
		}
	}
	return out
}

// admits says whether a pool gives addresses to a Service that does not ask for one by name, and if not, why.
func admits(p *pool.Pool, r *Request) (bool, string) {
	if len(r.Pools) == 0 && !p.AutoAssign {
		return false, "assigns only on request"
	}
	if p.Err != nil {
		return false, "is not valid"
	}
	return p.Admits(r.Service.Namespace, r.NamespaceLabels, r.Labels)
}

// pick chooses an address for a Service that asks for none: one that is reserved for it, one that it had a short while
// ago, one that it can share, the lowest free one, the one that has rested longest.
func (t *Table) pick(i id, f pool.Family, now time.Time) (netip.Addr, bool) {
	r := &t.services[i].req
	for _, a := range t.set.Reserved(r.Service) {
		p := t.set.Find(a)
		if pool.FamilyOf(a) != f || t.whyOut(r, a) != "" || t.quarantined(a) || len(r.Pools) > 0 && !slices.Contains(r.Pools, p.Name) {
			continue
		}
		if other, _ := t.apart(i, a, p); other < 0 {
			return a, true
		}
	}
	pools := t.order(r)
	if a := t.last[r.Service][f]; a.IsValid() {
		p := t.set.Find(a)
		if ok, _ := admits(p, r); ok && slices.Contains(pools, p) {
			return a, true
		}
	}
	if shared := t.shared[r.SharingKey]; len(shared) > 0 {
		for _, p := range pools {
			if ok, _ := admits(p, r); !ok {
				continue
			}
			for _, a := range shared {
				if pool.FamilyOf(a) != f || t.set.Find(a) != p || t.whyOut(r, a) != "" || t.quarantined(a) {
					continue
				}
				if other, _ := t.apart(i, a, p); other < 0 {
					return a, true
				}
			}
		}
	}
	for _, p := range pools {
		if ok, _ := admits(p, r); !ok {
			continue
		}
		sp := t.spaces[p][f]
		t.expire(sp, now)
		if a, ok := sp.lowest(); ok {
			return a, true
		}
		if rest, ok := sp.rest.Min(); ok {
			return rest.addr, true
		}
	}
	return netip.Addr{}, false
}

// explain says why pick found nothing, and what could change that.
func (t *Table) explain(i id, f pool.Family) plan {
	r := &t.services[i].req
	out := plan{reason: NoMatchingPool}
	pass := func(pool, why string) { out.passed = append(out.passed, Passed{f, pool, why}) }
	for _, name := range r.Pools {
		if t.set.Pool(name) == nil {
			pass(name, "does not exist")
		}
	}
	for _, p := range t.order(r) {
		if ok, why := admits(p, r); !ok {
			pass(p.Name, why)
			continue
		}
		switch {
		case p.Capacity(f) == 0:
			pass(p.Name, "has none")
		default:
			out.reason = PoolExhausted
			out.waits = append(out.waits, wait{pool: p.Name, family: f})
			pass(p.Name, "has none left")
		}
	}
	for _, a := range t.set.Reserved(r.Service) {
		if pool.FamilyOf(a) == f {
			out.waits = append(out.waits, wait{addr: a})
		}
	}
	if len(out.passed) == 0 {
		pass("", "there is no IPAddressPool: create one")
	}
	return out
}
