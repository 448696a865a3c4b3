package ipam

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/pool"
)

// judged is an address as it stands for one Service.
type judged struct {
	addr netip.Addr
	pool *pool.Pool // that has it, nil when none has
	out  string     // why the Service should not have it, though it may keep it; empty when it should
	lost string     // why the Service may not keep it; empty when it may

	// Why the Service is not given it; no reason when it may be given it. The Service that stands against it, if one
	// does, is the subject of why.
	reason string
	why    string
	by     id // -1: none does
}

// judge says how an address stands for a Service, whether it has it or not.
func (t *Table) judge(i id, a netip.Addr, now time.Time) judged {
	r := &t.services[i].req
	j := judged{addr: a, pool: t.set.Find(a), by: -1}
	p := j.pool
	refuse := func(reason, why string) {
		if j.reason == "" {
			j.reason, j.why = reason, why
		}
	}
	reservedForIt := false
	switch {
	case p == nil:
		why, use := t.set.WhyNot(a)
		j.out = why
		if use != nil {
			refuse(v1beta1.ReasonAddressInUse, why)
		}
		refuse(v1beta1.ReasonAddressNotInPool, why)
	case p.Err != nil: // it counts as giving what it has
		refuse(v1beta1.ReasonAddressNotInPool, "pool "+p.Name+" is not valid")
	case p.Avoids(a):
		j.out = "pool " + p.Name + " avoids addresses that end in .0 and .255"
		refuse(v1beta1.ReasonAddressNotInPool, j.out)
	default:
		owner, reserved := p.Reserved[a]
		reservedForIt = reserved && owner == r.Service
		if reserved && !reservedForIt {
			j.out = "pool " + p.Name + " reserves it for " + nameTo(owner, r)
			refuse(v1beta1.ReasonAddressReserved, j.out)
		} else if ok, why := p.Admits(r.Service.Namespace, r.NamespaceLabels, r.Labels); !ok && !reserved {
			j.out = "pool " + p.Name + " " + why
			refuse(v1beta1.ReasonNoMatchingPool, j.out)
		}
	}
	if t.quarantined(a) {
		refuse(v1beta1.ReasonAddressQuarantined, foreignHost+"it, or did so a short while ago")
		if r.requested(pool.FamilyOf(a)) != a {
			j.lost = foreignHost + a.String()
		}
	}
	t.judgeTenants(i, &j)
	if rest, rests := t.resting[a]; rests && rest.Last != r.Service && now.Before(rest.Until) {
		refuse(v1beta1.ReasonAddressResting, "it was released a short while ago, and rests")
	}
	if j.reason == "" && !reservedForIt && t.full(p, pool.FamilyOf(a), r.Service.Namespace) && !t.inNamespace(a, r.Service.Namespace) {
		refuse(v1beta1.ReasonQuotaExceeded, "pool "+p.Name+" gives a namespace no more: see its maxPerNamespace")
	}
	return j
}

// judgeTenants says how an address stands for a Service because of the others that have it. The oldest that the Service
// cannot join is named. One that has it already loses it to one whom it cannot be beside; what only a pool or another
// namespace forbids stays, as adopted.
func (t *Table) judgeTenants(i id, j *judged) {
	s, f := &t.services[i], pool.FamilyOf(j.addr)
	r := &s.req
	ten, used := t.tenants[j.addr]
	has := s.have[f].addr == j.addr
	for n := 0; used && n < ten.len(); n++ {
		k := ten.at(n)
		o := &t.services[k].req
		if k == i {
			continue
		}
		decided := t.services[k].decided(j.addr)
		reason, why := v1beta1.ReasonAddressInUse, ""
		apart := whyApart(r, o)
		switch {
		case !decided:
			why = "has it, and not from Clarion"
		case apart != "":
			why = "has it and " + apart
		case r.Service.Namespace != o.Service.Namespace && r.Local != "":
			why = "has it and does not share it across namespaces, with externalTrafficPolicy Local"
		case r.Service.Namespace != o.Service.Namespace && (j.pool == nil || !j.pool.CrossNamespace):
			why = "has it and does not share it across namespaces, as its pool says"
		default:
			continue
		}
		if decided && r.SharingKey != "" && o.SharingKey != "" {
			reason = v1beta1.ReasonSharingConflict
		}
		if j.by < 0 && j.reason == "" || j.by >= 0 && o.older(&t.services[j.by].req) {
			j.reason, j.why, j.by = reason, why, k
		}
		switch {
		case !has || t.services[k].have[f].addr != j.addr:
		case apart != "":
			j.lost = j.addr.String() + " cannot be shared any longer with " + t.name(k, r)
		case o.older(r) && j.out == "":
			j.out = "it is shared with another namespace, which its pool does not allow"
		}
	}
}

// plan is what should happen to a Service's address of one family.
type plan struct {
	keep judged       // what it has and keeps; the zero judged when there is nothing
	lost string       // why it does not keep what it has
	from []netip.Addr // addresses to give it, in place of what it has, the lowest first

	// When the Service cannot have what it should: why, and what may help.
	reason string
	detail string
	admins Note
	passed []Passed
	waits  []wait
}

// decide brings a Service's addresses and result up to date with its request, the pools and the other Services, and
// says whether the result changed.
func (t *Table) decide(i id, now time.Time) bool {
	t.unwait(i)
	s := &t.services[i]
	if s.req.Other {
		return false
	}
	var res Result
	if t.foreign(s) {
		res.Reason = v1beta1.ReasonForeign
	} else {
		reason, detail := problem(&s.req)
		var plans [2]plan // by family
		for f := range plans {
			plans[f] = t.plan(i, pool.Family(f), reason == "", now)
		}
		t.commit(i, &plans, now)
		res = t.result(i, &plans, reason, detail)
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
func problem(r *Request) (reason, detail string) {
	switch {
	case r.Problem != "":
		return v1beta1.ReasonInvalidRequest, r.Problem
	case len(r.Families) == 0:
		return v1beta1.ReasonInvalidRequest, "the Service has no cluster addresses"
	}
	for _, a := range r.Addresses {
		if f := pool.FamilyOf(a); !slices.Contains(r.Families, f) {
			return v1beta1.ReasonFamilyMismatch, a.String() + " is requested, but the Service has no " + f.String() + " among its ipFamilies"
		}
	}
	return "", ""
}

// plan decides about one family of a Service. One whose request cannot be read keeps what it has.
func (t *Table) plan(i id, f pool.Family, readable bool, now time.Time) (p plan) {
	s := &t.services[i]
	r, h := &s.req, &s.have[f]
	wanted := len(r.Families) == 0 || slices.Contains(r.Families, f)
	if h.addr.IsValid() && wanted {
		j := t.judge(i, h.addr, now)
		if p.lost = j.lost; p.lost == "" && (h.shown || j.out == "") { // what nobody has seen is not kept
			p.keep = j
		}
	}
	if !readable || !wanted {
		return p
	}
	if want := r.requested(f); want.IsValid() {
		if want == p.keep.addr {
			return p
		}
		j := t.judge(i, want, now)
		if o := j.pool; o != nil && o.Gives(want) && !r.wants(o) {
			j.reason, j.why, j.by = v1beta1.ReasonAddressNotInPool, "it is in pool "+o.Name+", not in a requested one", -1
		}
		if j.reason == "" {
			p.from = []netip.Addr{want}
			return p
		}
		p.refused(t, r, &j)
		return p
	}
	if a := p.keep.addr; a.IsValid() && t.inRequested(r, a) && (p.keep.out == "" || t.onShrink(h) != v1beta1.ShrinkReallocate) {
		return p
	}
	pools := t.order(r)
	if p.from = t.pick(i, f, pools, now); len(p.from) == 0 {
		t.explain(&p, i, f, pools)
	}
	return p
}

// refused takes in why the Service is not given the address that it asks for. Another namespace's Service is not named
// to it.
func (p *plan) refused(t *Table, r *Request, j *judged) {
	ask := j.addr.String() + " is requested, but "
	p.reason, p.detail = j.reason, ask+j.why
	if j.by >= 0 {
		p.detail = ask + t.name(j.by, r) + " " + j.why
		if o := &t.services[j.by].req; o.Service.Namespace != r.Service.Namespace {
			p.admins = Note{j.pool.Name, j.addr.String() + " is requested by " + name(r.Service) + ", but " + name(o.Service) + " " + j.why}
		}
	}
	switch j.reason {
	case v1beta1.ReasonQuotaExceeded:
		p.waits = []wait{{addr: j.addr}, {pool: j.pool.Name, family: pool.FamilyOf(j.addr), namespace: r.Service.Namespace}}
	case v1beta1.ReasonAddressInUse, v1beta1.ReasonSharingConflict, v1beta1.ReasonAddressQuarantined, v1beta1.ReasonAddressResting:
		p.waits = []wait{{addr: j.addr}}
	}
}

// wants says whether a Service may get an address that it asks for, or is reserved for it, from p.
func (r *Request) wants(p *pool.Pool) bool {
	return len(r.Pools) == 0 || slices.Contains(r.Pools, p.Name)
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

// commit makes a Service's plans true. With RequireAll the first addresses are given together or not at all.
func (t *Table) commit(i id, plans *[2]plan, now time.Time) {
	s := &t.services[i]
	all := true
	for f := range plans {
		p := &plans[f]
		all = all && p.reason == ""
		if p.keep.addr.IsValid() {
			continue
		}
		s.notices = s.notices.and(p.lost)
		t.drop(i, pool.Family(f), now)
	}
	if !all && s.req.RequireAll && s.have == [2]holding{} {
		return
	}
	for f, a := range t.choose(&s.req, plans) {
		if a.IsValid() {
			t.drop(i, pool.Family(f), now)
			t.hold(i, a)
			plans[f].keep.out = ""
		}
	}
}

const foreignHost = "a foreign host on the local network uses "

// notices are why a Service lost what it had, since its status was written.
type notices []string

func (n notices) and(text string) notices {
	if text == "" || slices.Contains(n, text) {
		return n
	}
	return append(n, text)
}

func (n notices) String() string {
	var b strings.Builder
	for i, text := range n {
		addr, again := strings.CutPrefix(text, foreignHost)
		switch {
		case i > 0 && again && strings.HasPrefix(n[i-1], foreignHost):
			text = " and " + addr
		case i > 0:
			text = "; " + text
		}
		b.WriteString(text)
	}
	return b.String()
}

// result is how a request stands after its plans were committed. Reason and detail are what is wrong with it in itself.
func (t *Table) result(i id, plans *[2]plan, reason, detail string) Result {
	s := &t.services[i]
	r := &s.req
	res := Result{Reason: reason, Detail: detail}
	got, kept := 0, false
	for _, f := range r.Families {
		if a := s.have[f].addr; a.IsValid() {
			as := Assignment{Address: a, OutOfPool: plans[f].keep.out}
			if p := t.set.Find(a); p != nil {
				as.Pool = p.Name
			}
			res.Assigned[got] = as
			got++
			if r.SharingKey != "" {
				t.wait(i, []wait{{addr: a}}) // who else has it makes a difference
			}
			kept = kept || as.OutOfPool != ""
		}
	}
	for _, f := range r.Families {
		p := &plans[f]
		if reason != "" || p.reason == "" {
			continue
		}
		t.wait(i, p.waits)
		res.Passed = append(res.Passed, p.passed...)
		// A second address is welcome, not owed, unless the Service insists on it or asks for something about it.
		if !r.RequireAll && !p.keep.addr.IsValid() && got > 0 && !r.requested(f).IsValid() {
			continue
		}
		if res.Reason == "" {
			res.Reason = p.reason
		}
		if res.Admins == (Note{}) {
			res.Admins = p.admins
		}
		if p.detail != "" {
			if res.Detail != "" {
				res.Detail += "; "
			}
			res.Detail += p.detail
		}
	}
	switch {
	case res.Reason != "":
	case kept:
		res.Reason = v1beta1.ReasonOutOfPool
	default:
		res.Reason = v1beta1.ReasonAllocated
	}
	return res
}

// adopt takes over what the Service's status says. An address that the Service has moved away from is not taken back;
// one that it would get in place of another has to be right in every way.
func (t *Table) adopt(i id, now time.Time) {
	s := &t.services[i]
	r := &s.req
	if r.Other || len(r.Current) == 0 || t.foreign(s) {
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
		if h.addr == a {
			h.shown = true
			continue
		}
		if h.addr.IsValid() && slices.Contains(s.left, a) {
			continue
		}
		if h.addr.IsValid() {
			j := t.judge(i, a, now)
			if j.out != "" || j.pool.Err != nil || j.lost != "" || j.by >= 0 && !t.services[j.by].decided(a) {
				continue
			}
		}
		if t.claim(i, a, now) {
			t.drop(i, f, now)
			t.hold(i, a)
			h.shown = true
		}
	}
}

// claim settles who keeps an address that the status of Service i names: the older one, where they cannot both. It says
// whether i may have it; younger Services that cannot be beside it are evicted. What others than Clarion gave is theirs
// beside.
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
		if j == i || !t.services[j].decided(a) || whyApart(&s.req, o) == "" {
			continue
		}
		if o.older(&s.req) {
			s.notices = notices{a.String() + " belongs to " + t.name(j, &s.req) + ", which is older"}
			return false
		}
		evicted = append(evicted, j)
	}
	f := pool.FamilyOf(a)
	for _, j := range evicted {
		if t.services[j].have[f].addr == a {
			t.services[j].notices = notices{a.String() + " belongs to " + t.name(i, &t.services[j].req) + ", which is older"}
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

// pick is the addresses from which one is chosen for a Service that asks for none: one that is reserved for it, one that
// it had a short while ago, one that it can share, the lowest free ones, the one that has rested longest.
func (t *Table) pick(i id, f pool.Family, pools []*pool.Pool, now time.Time) []netip.Addr {
	r := &t.services[i].req
	for _, a := range t.set.Reserved(r.Service) {
		if pool.FamilyOf(a) == f {
			if j := t.judge(i, a, now); j.reason == "" && r.wants(j.pool) {
				return []netip.Addr{a}
			}
		}
	}
	var admit []*pool.Pool
	for _, p := range pools {
		if ok, _ := admits(p, r); ok {
			admit = append(admit, p)
		}
	}
	if a := t.last[r.Service][f]; a.IsValid() {
		if j := t.judge(i, a, now); j.reason == "" && slices.Contains(admit, j.pool) {
			return []netip.Addr{a}
		}
	}
	best := len(admit)
	var found netip.Addr
	for _, a := range t.shared[r.SharingKey] {
		if pool.FamilyOf(a) != f {
			continue
		}
		if at := slices.Index(admit[:best], t.set.Find(a)); at >= 0 && t.judge(i, a, now).reason == "" {
			best, found = at, a
		}
	}
	if found.IsValid() {
		return []netip.Addr{found}
	}
	for _, p := range admit {
		if t.full(p, f, r.Service.Namespace) {
			continue
		}
		sp := t.spaces[p][f]
		t.expire(sp, now)
		if free := sp.lowest(t.window()); len(free) > 0 {
			return free
		}
		if rest, ok := sp.rest.Min(); ok {
			return []netip.Addr{rest.Addr}
		}
	}
	return nil
}

// explain says why pick found nothing, and what could change that.
func (t *Table) explain(out *plan, i id, f pool.Family, pools []*pool.Pool) {
	r := &t.services[i].req
	out.reason = v1beta1.ReasonNoMatchingPool
	pass := func(pool, why string) { out.passed = append(out.passed, Passed{f, pool, why}) }
	for _, name := range r.Pools {
		if t.set.Pool(name) == nil {
			pass(name, "does not exist")
		}
	}
	for _, p := range pools {
		ok, why := admits(p, r)
		if ok && p.MaxPerNamespace > 0 {
			out.waits = append(out.waits, wait{pool: p.Name, family: f, namespace: r.Service.Namespace})
		}
		switch {
		case !ok:
			pass(p.Name, why)
		case p.Capacity(f) == 0:
			pass(p.Name, "has none")
		case t.full(p, f, r.Service.Namespace):
			if out.reason == v1beta1.ReasonNoMatchingPool {
				out.reason = v1beta1.ReasonQuotaExceeded
			}
			pass(p.Name, "gives a namespace no more: see its maxPerNamespace")
		default:
			out.reason = v1beta1.ReasonPoolExhausted
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
}
