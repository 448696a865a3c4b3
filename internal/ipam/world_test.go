package ipam

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/pool"
)

// world is an API server's content and a controller, as far as allocation sees them. Everything in it but the Table is
// what would outlive a controller.
type world struct {
	t        testing.TB
	now      time.Time
	pools    map[string]*v1beta1.IPAddressPool
	services map[types.NamespacedName]*object
	heard    map[netip.Addr]bool // what foreign hosts use, as speakers say
	nodes    pool.Ranges         // the nodes' addresses
	listed   []netip.Addr        // the pools' statuses say that it is in quarantine
	rests    []Rest              // the pools' statuses say that they rest
	table    *Table
	queue    []types.NamespacedName
}

// object is a Service and its status.
type object struct {
	req     Request // without Current and Managed
	status  []netip.Addr
	managed bool
	message string
	stuck   bool    // its status cannot be written
	slow    bool    // it is written later
	written *Result // what is written then
}

func newWorld(t testing.TB) *world {
	w := &world{
		t:        t,
		now:      time.Unix(1_000_000, 0),
		pools:    map[string]*v1beta1.IPAddressPool{},
		services: map[types.NamespacedName]*object{},
		heard:    map[netip.Addr]bool{},
	}
	w.restart()
	return w
}

func (w *world) set() *pool.Set {
	var ps []*pool.Pool
	for _, obj := range w.pools {
		p, _ := pool.Parse(obj) // a pool that is wrong carries its error
		ps = append(ps, p)
	}
	return pool.NewSetBeside([]pool.Use{{Kind: "Node", By: "a node", Addresses: w.nodes}}, ps...)
}

func (w *world) request(key types.NamespacedName) Request {
	o := w.services[key]
	r := o.req
	if r.Other = r.Other || r.Terminating; r.Other {
		r.Held = append(slices.Clone(r.Held), o.status...)
		return r
	}
	r.Current, r.Managed = o.status, o.managed
	return r
}

func (w *world) requests() []Request {
	var out []Request
	for key := range w.services { // in any order: Load sorts
		out = append(out, w.request(key))
	}
	return out
}

// restart replaces the controller by one that knows nothing.
func (w *world) restart() {
	w.table = w.fresh()
	w.table.Dirty()
	for _, o := range w.services {
		o.slow, o.written = false, nil // it is never sent
	}
	w.queue = slices.SortedFunc(maps.Keys(w.services), compareNames)
	w.run()
}

// fresh is the Table of a controller that has just started.
func (w *world) fresh() *Table {
	t := NewTable()
	t.SetPools(w.set(), w.now)
	past := map[netip.Addr]bool{}
	for _, a := range w.listed {
		past[a] = true
	}
	t.Remember(w.rests, w.now)
	t.Quarantine(past, w.now)
	t.Quarantine(w.heard, w.now)
	t.Load(w.requests(), w.now)
	return t
}

// listen lets the controller hear what speakers say, and writes what it says of quarantine.
func (w *world) listen() {
	w.table.Quarantine(w.heard, w.now)
	w.table.Expire(w.now)
	w.run()
	w.listed, w.rests = nil, nil
	for n, u := range w.table.Usage() {
		w.listed = append(w.listed, u.Quarantined...)
		w.rests = append(w.rests, u.Resting...)
		w.pools[n].Status.Kept = nil
		for _, a := range u.Kept {
			w.pools[n].Status.Kept = append(w.pools[n].Status.Kept, a.String())
		}
	}
}

func compareNames(a, b types.NamespacedName) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// run reconciles until nothing is left to do.
func (w *world) run() {
	for n := 0; ; n++ {
		w.queue = append(w.queue, w.table.Dirty()...)
		if len(w.queue) == 0 {
			return
		}
		if n > 10000 {
			w.t.Fatal("the controller does not come to rest")
		}
		key := w.queue[0]
		w.queue = w.queue[1:]
		w.reconcile(key)
	}
}

// reconcile does what the controller does for one Service.
func (w *world) reconcile(key types.NamespacedName) {
	o, ok := w.services[key]
	if !ok {
		w.table.Release(key, w.now)
		return
	}
	if o.written != nil {
		return // it is its turn when the write is over
	}
	res := w.table.Assign(w.request(key), w.now)
	switch {
	case res.Reason == v1beta1.ReasonForeign || o.stuck || w.request(key).Other:
	case o.slow:
		o.written = &res
	default:
		w.publish(key, &res)
	}
}

// publish writes what was decided. Nobody else was given it in between.
func (w *world) publish(key types.NamespacedName, res *Result) {
	o := w.services[key]
	for _, a := range res.Addresses() {
		if !w.table.has(w.table.ids[key], a) {
			w.t.Fatalf("%s is written into the status of %s, which does not have it any more", a, key)
		}
	}
	o.status, o.managed, o.message = res.Addresses(), true, res.Reason+": "+res.Message()
	if res.Admins.Text != "" {
		o.message += " [pool " + res.Admins.Pool + ": " + res.Admins.Text + "]"
	}
	w.table.Published(key, o.status, w.now)
}

func (w *world) setPools() {
	w.table.SetPools(w.set(), w.now)
	w.run()
}

// do runs one line of a script.
func (w *world) do(line string) {
	w.t.Helper()
	f := strings.Fields(line)
	var opts = map[string]string{}
	word := func(n int) string {
		if n >= len(f) || strings.Contains(f[n], "=") {
			return ""
		}
		return f[n]
	}
	for _, s := range f {
		if k, v, ok := strings.Cut(s, "="); ok {
			opts[k] = v
		}
	}
	switch f[0] {
	case "pool":
		w.pools[word(1)] = w.parsePool(word(1), opts)
		w.setPools()
	case "delete-pool":
		delete(w.pools, word(1))
		w.setPools()
	case "service":
		for _, n := range f[1:] {
			if strings.Contains(n, "=") {
				continue
			}
			key := parseName(n)
			w.services[key] = w.parseService(key, opts)
			w.queue = append(w.queue, key)
		}
		w.run()
	case "delete":
		for _, n := range f[1:] {
			delete(w.services, parseName(n))
			w.queue = append(w.queue, parseName(n))
		}
		w.run()
	case "write": // by hand, or by another controller
		o := w.services[parseName(word(1))]
		o.status, o.written = parseAddrs(opts["status"]), nil
		w.queue = append(w.queue, parseName(word(1)))
		w.run()
	case "restart":
		w.restart()
	case "stick", "unstick":
		w.services[parseName(word(1))].stuck = f[0] == "stick"
		w.queue = append(w.queue, parseName(word(1)))
		w.run()
	case "slow": // the Service's next write takes until "land"
		w.services[parseName(word(1))].slow = true
	case "land":
		o := w.services[parseName(word(1))]
		if o.written != nil {
			w.publish(parseName(word(1)), o.written)
		}
		o.slow, o.written = false, nil
		w.queue = append(w.queue, parseName(word(1)))
		w.run()
	case "nodes": // have addresses
		w.nodes = nil
		for _, a := range f[1:] {
			w.nodes = pool.Union(append(w.nodes, pool.FromAddr(netip.MustParseAddr(a)))...)
		}
		w.setPools()
	case "wait":
		d, err := time.ParseDuration(word(1))
		if err != nil {
			w.t.Fatal(err)
		}
		w.now = w.now.Add(d)
	case "host": // a foreign one uses addresses
		for _, a := range f[1:] {
			w.heard[netip.MustParseAddr(a)] = true
		}
	case "gone": // is the foreign host
		for _, a := range f[1:] {
			delete(w.heard, netip.MustParseAddr(a))
		}
	case "usage":
	default:
		w.t.Fatalf("no such step: %q", line)
	}
	w.listen()
}

func (w *world) parsePool(name string, opts map[string]string) *v1beta1.IPAddressPool {
	obj := &v1beta1.IPAddressPool{}
	obj.Name = name
	obj.CreationTimestamp = metav1.NewTime(w.now)
	if old := w.pools[name]; old != nil {
		obj.CreationTimestamp = old.CreationTimestamp
	} else {
		w.now = w.now.Add(time.Second)
	}
	s := &obj.Spec
	if _, has := opts["alloc"]; has || opts["priority"]+opts["ns"]+opts["nsLabel"]+opts["label"]+opts["max"] != "" {
		s.ServiceAllocation = &v1beta1.ServiceAllocation{}
	}
	for k, v := range opts {
		switch k {
		case "addr":
			for _, r := range strings.Split(v, ",") {
				s.Addresses = append(s.Addresses, v1beta1.AddressRange(r))
			}
		case "exclude":
			for _, r := range strings.Split(v, ",") {
				s.ExcludeAddresses = append(s.ExcludeAddresses, v1beta1.AddressRange(r))
			}
		case "reserve":
			for _, r := range strings.Split(v, ",") {
				addr, owner, _ := strings.Cut(r, "@")
				n := parseName(owner)
				s.Reservations = append(s.Reservations, v1beta1.Reservation{Address: addr, Namespace: n.Namespace, Name: n.Name})
			}
		case "auto":
			auto := v == "true"
			s.AutoAssign = &auto
		case "alloc":
		case "buggy":
			s.AvoidBuggyIPs = v == "avoid"
		case "priority":
			s.ServiceAllocation.Priority, _ = strconv.Atoi(v)
		case "ns":
			s.ServiceAllocation.Namespaces = strings.Split(v, ",")
		case "nsLabel":
			s.ServiceAllocation.NamespaceSelectors = []metav1.LabelSelector{{MatchLabels: map[string]string{v: "yes"}}}
		case "label":
			s.ServiceAllocation.ServiceSelectors = []metav1.LabelSelector{{MatchLabels: map[string]string{v: "yes"}}}
		case "onShrink":
			s.OnShrink = v1beta1.ShrinkPolicy(v)
		case "max":
			n, _ := strconv.Atoi(v)
			s.ServiceAllocation.MaxPerNamespace = int32(n)
		case "reuse":
			d, err := time.ParseDuration(v)
			if err != nil {
				w.t.Fatal(err)
			}
			s.ReuseDelay = &metav1.Duration{Duration: d}
		case "share":
			s.Sharing = &v1beta1.Sharing{CrossNamespace: v == "across"}
		default:
			w.t.Fatalf("pool has no option %q", k)
		}
	}
	return obj
}

func (w *world) parseService(key types.NamespacedName, opts map[string]string) *object {
	o := &object{req: Request{
		Service:  key,
		Created:  w.now,
		Families: []pool.Family{pool.IPv4},
		Ports:    []Port{{"TCP", 80}},
	}}
	if old := w.services[key]; old != nil {
		o.req.Created, o.status, o.managed, o.message = old.req.Created, old.status, old.managed, old.message
		o.stuck, o.slow = old.stuck, old.slow // a write under way fails
	} else {
		w.now = w.now.Add(time.Second)
	}
	r := &o.req
	for k, v := range opts {
		switch k {
		case "families":
			r.Families = nil
			for _, f := range v {
				r.Families = append(r.Families, map[rune]pool.Family{'4': pool.IPv4, '6': pool.IPv6}[f])
			}
		case "policy":
			r.RequireAll = v == "require"
		case "addr":
			r.Addresses = parseAddrs(v)
		case "pools":
			r.Pools = strings.Split(v, ",")
		case "key":
			r.SharingKey = v
		case "ports":
			r.Ports = nil
			for _, p := range strings.Split(v, ",") {
				n, err := strconv.Atoi(p)
				if err != nil {
					w.t.Fatal(err)
				}
				r.Ports = append(r.Ports, Port{"TCP", uint16(n)})
			}
		case "local":
			r.Local = v
		case "external":
			r.Held = parseAddrs(v)
		case "other":
			r.Other = v == "true"
		case "terminating":
			r.Terminating = v == "true"
		case "problem":
			r.Problem = v
		case "label":
			r.Labels = labels.Set{v: "yes"}
		case "nsLabel":
			r.NamespaceLabels = labels.Set{v: "yes"}
		case "status":
			o.status = parseAddrs(v)
		case "managed":
			o.managed = v == "true"
		default:
			w.t.Fatalf("service has no option %q", k)
		}
	}
	return o
}

func parseName(s string) types.NamespacedName {
	if ns, n, ok := strings.Cut(s, "/"); ok {
		return types.NamespacedName{Namespace: ns, Name: n}
	}
	return types.NamespacedName{Namespace: "default", Name: s}
}

func parseAddrs(s string) []netip.Addr {
	var out []netip.Addr
	for _, a := range strings.Split(s, ",") {
		if a != "" {
			out = append(out, netip.MustParseAddr(a))
		}
	}
	return out
}

func shortName(n types.NamespacedName) string {
	if n.Namespace == "default" {
		return n.Name
	}
	return name(n)
}

// lines is what users see of each Service.
func (w *world) lines() map[string]string {
	out := map[string]string{}
	for key, o := range w.services {
		out[shortName(key)] = o.message
		if !o.managed {
			out[shortName(key)] = "not ours " + fmt.Sprint(o.status)
		}
	}
	return out
}

// usage is what users see of each pool.
func (w *world) usage() string {
	var b strings.Builder
	usage := w.table.Usage()
	for _, n := range slices.Sorted(maps.Keys(w.pools)) {
		u := usage[n]
		fmt.Fprintf(&b, "%s: IPv4 %d assigned, %d available; IPv6 %d assigned, %d available\n", n,
			u.Assigned[0], u.Available[0], u.Assigned[1], u.Available[1])
		if q := u.Quarantined; len(q) > 0 {
			fmt.Fprintf(&b, "%s: quarantined %v\n", n, q)
		}
		if len(u.Kept) > 0 {
			fmt.Fprintf(&b, "%s: kept %v\n", n, u.Kept)
		}
		for _, r := range u.Resting {
			fmt.Fprintf(&b, "%s: %s rests for %s after %s\n", n, r.Addr, r.Until.Sub(w.now), shortName(r.Last))
		}
	}
	return b.String()
}

// has says whether a is Service i's, maybe beside others.
func (t *Table) has(i id, a netip.Addr) bool {
	ten, found := t.tenants[a]
	for k := 0; found && k < ten.len(); k++ {
		if ten.at(k) == i {
			return true
		}
	}
	return false
}

// check fails the test when the Table contradicts itself or a promise of the package is broken.
func (w *world) check() {
	w.t.Helper()
	t := w.table
	// What the statuses say, together, is allowed.
	type claim struct {
		key types.NamespacedName
		o   *object
	}
	on := map[netip.Addr][]claim{}
	for key, o := range w.services {
		for _, a := range o.status {
			if !o.stuck && !o.slow && o.managed && !o.req.Other && !o.req.Terminating {
				on[a] = append(on[a], claim{key, o})
			}
		}
	}
	for a, claims := range on {
		for i, c := range claims {
			for _, d := range claims[:i] {
				if why := whyApart(&c.o.req, &d.o.req); why != "" {
					w.t.Fatalf("%s and %s both have %s: %s", c.key, d.key, a, why)
				}
			}
		}
	}
	// Tenants and holdings agree.
	n := 0
	for key, i := range t.ids {
		s := &t.services[i]
		if s.req.Service != key {
			w.t.Fatalf("%s is stored as %s", key, s.req.Service)
		}
		for f, h := range s.have {
			if a := h.addr; a.IsValid() && t.quarantined(a) && s.req.requested(pool.Family(f)) != a && !s.req.Terminating {
				w.t.Fatalf("%s has %s, which is in quarantine", key, a)
			}
			held := []netip.Addr{h.addr}
			if f == 0 {
				held = append(held, s.left...)
				for _, a := range s.req.Held {
					if a != s.have[0].addr && a != s.have[1].addr && !slices.Contains(held, a) {
						held = append(held, a)
					}
				}
			}
			for _, a := range held {
				if !a.IsValid() {
					continue
				}
				n++
				if !t.has(i, a) {
					w.t.Fatalf("%s has %s but is not its tenant", key, a)
				}
			}
		}
	}
	for a, ten := range t.tenants {
		n -= ten.len()
		if _, rests := t.resting[a]; rests {
			w.t.Fatalf("%s is in use and resting", a)
		}
	}
	for a := range t.banned {
		if _, rests := t.resting[a]; rests {
			w.t.Fatalf("%s is in quarantine and resting", a)
		}
	}
	for a := range w.heard {
		if !t.quarantined(a) {
			w.t.Fatalf("%s is used by a foreign host and not in quarantine", a)
		}
	}
	if n != 0 {
		w.t.Fatalf("tenants and holdings differ by %d", n)
	}
	// Every address that a pool gives is in exactly one place.
	for p, both := range t.spaces {
		for f, sp := range both {
			var free []pool.Range
			var last netip.Addr
			sp.free.Ascend(func(r pool.Range) bool {
				if last.IsValid() && !last.Next().Less(r.First) {
					w.t.Fatalf("free ranges of %s overlap or touch at %s", p.Name, r)
				}
				last = r.Last
				free = append(free, r)
				return true
			})
			places := pool.Ranges(free)
			for a := range t.banned {
				if places.Contains(a) {
					w.t.Fatalf("%s is in quarantine and free", a)
				}
			}
			available := places.Size(pool.Family(f))
			count := map[string]int{}
			for a, ten := range t.tenants {
				if t.space(a) == sp {
					if places.Contains(a) {
						w.t.Fatalf("%s is in use and free", a)
					}
					namespaces := map[string]bool{}
					for n := range ten.len() {
						namespaces[t.services[ten.at(n)].req.Service.Namespace] = true
					}
					for ns := range namespaces {
						count[ns]++
					}
				}
			}
			if !maps.Equal(count, sp.count) {
				w.t.Fatalf("pool %s counts %v %s addresses by namespace, has %v", p.Name, sp.count, pool.Family(f), count)
			}
			for _, r := range free {
				for a := r.First; r.Contains(a) && r.Size() < 1000; a = a.Next() {
					if p.Avoids(a) {
						available-- // in the free ranges until it is met
					}
				}
			}
			available += int64(sp.rest.Len())
			if got := t.Usage()[p.Name].Available[f]; p.Err == nil && got < 1000 && got != available {
				w.t.Fatalf("pool %s counts %d available %s addresses, has %d", p.Name, got, pool.Family(f), available)
			}
			sp.rest.Ascend(func(r Rest) bool {
				if places.Contains(r.Addr) || t.resting[r.Addr] != r {
					w.t.Fatalf("%s rests and is free, or is not known to rest", r.Addr)
				}
				return true
			})
			for _, r := range p.Addresses {
				for a := r.First; p.Err == nil && r.Contains(a) && r.Size() < 1000; a = a.Next() {
					_, used := t.tenants[a]
					_, rests := t.resting[a]
					_, reserved := p.Reserved[a]
					if t.space(a) == sp && !used && !rests && !reserved && !t.quarantined(a) && !p.Avoids(a) && !places.Contains(a) {
						w.t.Fatalf("%s of pool %s is lost", a, p.Name)
					}
				}
			}
		}
	}
	for key, list := range t.shared {
		for _, a := range list {
			ten, used := t.tenants[a]
			open := false
			for k := 0; used && k < ten.len(); k++ {
				open = open || t.services[ten.at(k)].req.SharingKey == key
			}
			if !open {
				w.t.Fatalf("%s is listed for key %q, which nobody on it has", a, key)
			}
		}
	}
}
