package ipam

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/pool"
)

// TestProperties walks through random events and checks the promises of the package after each of them. A failure
// prints the steps that lead to it.
func TestProperties(t *testing.T) {
	walks := 500
	if testing.Short() {
		walks = 50
	}
	for seed := range walks {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			walk(t, rand.New(rand.NewPCG(uint64(seed), 1)), 120)
		})
	}
}

// deposed is a controller that was stopped and does not know yet that another has taken over.
type deposed struct {
	table *Table
	seen  map[types.NamespacedName]*object // as they were when it was stopped
}

func walk(t *testing.T, rng *rand.Rand, steps int) {
	w := newWorld(t)
	var log []string
	defer func() {
		if t.Failed() {
			t.Log("steps:\n" + strings.Join(log, "\n"))
		}
	}()
	reallocate := rng.IntN(2) == 0
	var old *deposed
	for range steps {
		before, heldBefore := map[types.NamespacedName]object{}, map[types.NamespacedName][]netip.Addr{}
		for key, o := range w.services {
			before[key], heldBefore[key] = *o, w.request(key).Held
		}
		line := randomStep(rng, w, reallocate)
		if old != nil && rng.IntN(8) == 0 {
			line = "deposed " + shortName(randomService(rng))
		}
		log = append(log, line)
		f := strings.Fields(line)
		var written []netip.Addr
		switch f[0] {
		case "write":
			_, status, _ := strings.Cut(line, "status=")
			written = parseAddrs(status)
			w.do(line)
		case "deposed":
			written = old.write(w, parseName(f[1]))
			w.listen()
		case "restart":
			old = &deposed{w.table, maps.Clone(before0(w.services))}
			w.do(line)
		default:
			w.do(line)
		}
		w.check()

		// Nobody lost an address but those whom the step is about.
		for key, was := range before {
			is, ok := w.services[key]
			wanted := strings.Split(was.message, ":")[0]
			if waits := wanted != v1beta1.ReasonAllocated && wanted != v1beta1.ReasonOutOfPool; waits && (reallocate || len(was.req.Addresses)+len(was.req.Pools) > 0) {
				continue // it has been waiting to move
			}
			shrunk := f[0] == "pool" || f[0] == "delete-pool" || f[0] == "nodes"
			if !ok || !was.managed || was.stuck || was.slow || aboutIt(f, key) || reallocate && shrunk {
				continue
			}
			for _, a := range was.status {
				if slices.Contains(is.status, a) || !slices.ContainsFunc(was.req.Families, func(f pool.Family) bool { return f == pool.FamilyOf(a) }) {
					continue
				}
				if w.table.quarantined(a) && !slices.Contains(was.req.Addresses, a) {
					continue
				}
				if claimedByOlder(w, before, written, key, a) {
					continue
				}
				if len(was.req.Pools) > 0 && !w.table.inRequested(&was.req, a) {
					continue // it is no longer what the Service asks for
				}
				t.Fatalf("%q took %s from %s (%s), which has %v (%s) now", line, a, key, was.message, is.status, is.message)
			}
		}

		// Nobody is given what somebody has without Clarion.
		for key, is := range w.services {
			was := before[key]
			for _, a := range is.status {
				if slices.Contains(was.status, a) || slices.Contains(written, a) || strings.Contains(line, "status=") || w.request(key).Other || !is.managed || f[0] == "land" {
					continue
				}
				for other := range before {
					if other != key && w.services[other] != nil && slices.Contains(w.request(other).Held, a) && slices.Contains(heldBefore[other], a) &&
						!slices.Contains(w.services[other].status, a) {
						t.Fatalf("%q gave %s to %s, which %s has", line, a, key, other)
					}
				}
			}
		}

		// The same again changes nothing, and so does a restart, whatever the order of the Services.
		quiet := true
		for _, o := range w.services {
			quiet = quiet && !o.stuck && !o.slow
		}
		if !quiet {
			continue
		}
		results := map[types.NamespacedName]Result{}
		for key := range w.services {
			results[key], _ = w.table.Result(key)
		}
		for key, was := range results {
			if is := w.table.Assign(w.request(key), w.now); !alike(w, key, &is, &was) {
				t.Fatalf("after %q: %s: the same request changed %+v to %+v", line, key, was, is)
			}
		}
		if dirty := w.table.Dirty(); len(dirty) > 0 {
			t.Fatalf("after %q: the same requests changed %v", line, dirty)
		}
		w.check()
		fresh := w.fresh()
		for key, was := range results {
			is, _ := fresh.Result(key)
			if !slices.Equal(is.Addresses(), was.Addresses()) || !reallocate && !alike(w, key, &is, &was) {
				t.Fatalf("after %q: %s: a restart changes %+v to %+v", line, key, was, is)
			}
		}
	}
}

// alike compares two results for the same Service. One that gets all its addresses or none may be told of the lack of
// either, when it lacks both.
func alike(w *world, key types.NamespacedName, a, b *Result) bool {
	if w.services[key].req.RequireAll && !a.Satisfied() && !b.Satisfied() {
		return a.Assigned == b.Assigned
	}
	return a.Equal(b)
}

// before0 copies the objects, so that later writes do not show.
func before0(in map[types.NamespacedName]*object) map[types.NamespacedName]*object {
	out := map[types.NamespacedName]*object{}
	for key, o := range in {
		c := *o
		out[key] = &c
	}
	return out
}

// write is a write of a controller that has lost its lease: it succeeds if the Service has not changed since, as the
// API server sees to. It returns what was written.
func (d *deposed) write(w *world, key types.NamespacedName) []netip.Addr {
	seen, is := d.seen[key], w.services[key]
	if seen == nil || is == nil || !slices.Equal(seen.status, is.status) || seen.message != is.message ||
		fmt.Sprint(seen.req) != fmt.Sprint(is.req) {
		return nil
	}
	r := seen.req
	r.Current, r.Managed = seen.status, seen.managed
	res := d.table.Assign(r, w.now)
	if res.Reason == v1beta1.ReasonForeign {
		return nil
	}
	is.status, is.managed, is.written = res.Addresses(), true, nil
	written := is.status
	w.queue = append(w.queue, key)
	w.run()
	return written
}

// aboutIt says whether a step is about that Service.
func aboutIt(f []string, key types.NamespacedName) bool {
	return slices.Contains(f[1:], shortName(key)) && f[0] != "pool"
}

// claimedByOlder says whether the status of an older Service named a before the step, or by it: then the younger has to
// give way.
func claimedByOlder(w *world, before map[types.NamespacedName]object, written []netip.Addr, key types.NamespacedName, a netip.Addr) bool {
	for other, o := range before {
		if other != key && o.req.older(&w.services[key].req) && (slices.Contains(o.status, a) || slices.Contains(written, a)) {
			return true
		}
	}
	return false
}

func randomService(rng *rand.Rand) types.NamespacedName {
	return types.NamespacedName{Namespace: pick(rng, "default", "other"), Name: fmt.Sprint("s", rng.IntN(6))}
}

func pick[T any](rng *rand.Rand, of ...T) T { return of[rng.IntN(len(of))] }

func randomStep(rng *rand.Rand, w *world, reallocate bool) string {
	key := randomService(rng)
	n := shortName(key)
	exists := w.services[key] != nil
	switch rng.IntN(23) {
	case 0, 1, 2:
		line := "pool " + pick(rng, "p1", "p2", "p3") + " addr=" + pick(rng,
			"203.0.113.0/30", "203.0.113.2-203.0.113.5", "203.0.113.4/31,2001:db8::/127", "2001:db8::1-2001:db8::3", "203.0.113.0/29,2001:db8::/64")
		line += pick(rng, "", "", " exclude=203.0.113.3", " exclude=203.0.113.0-203.0.113.2", " exclude=bad")
		line += pick(rng, "", "", " reserve=203.0.113.4@s1", " reserve=203.0.113.2@other/s2")
		line += pick(rng, "", "", " priority=1", " auto=false", " ns=default", " label=gold")
		line += pick(rng, "", " reuse=0s", " reuse=5s", " buggy=avoid")
		line += pick(rng, "", "", " max=1", " max=2")
		line += pick(rng, "", "", " share=across")
		if reallocate {
			line += pick(rng, "", " onShrink=Reallocate")
		}
		return line
	case 3:
		return "delete-pool " + pick(rng, "p1", "p2", "p3")
	case 4, 5:
		return "delete " + n
	case 6:
		return "restart"
	case 7:
		return "wait " + pick(rng, "1s", "10s", "2m", "9m", "11m")
	case 8:
		if !exists {
			return "wait 1s"
		}
		return pick(rng, "stick ", "unstick ", "unstick ", "slow ", "land ", "land ") + n
	case 9:
		if !exists {
			return "wait 1s"
		}
		return "write " + n + " status=" + pick(rng, "", "203.0.113.1", "203.0.113.2", "203.0.113.4,2001:db8::1", "192.0.2.1", "2001:db8::2,203.0.113.0")
	case 10, 11:
		return pick(rng, "host ", "gone ") + pick(rng, "203.0.113.0", "203.0.113.1", "203.0.113.2", "203.0.113.4", "203.0.113.1 2001:db8::1", "192.0.2.1")
	case 12:
		return "nodes" + pick(rng, "", " 203.0.113.2", " 203.0.113.4 2001:db8::1")
	}
	line := "service " + n
	line += " families=" + pick(rng, "4", "4", "6", "46", "64")
	line += pick(rng, "", " policy=require")
	line += pick(rng, "", "", "", " addr=203.0.113.1", " addr=203.0.113.4", " addr=203.0.113.2,2001:db8::1", " addr=192.0.2.1")
	line += pick(rng, "", "", "", " pools=p1", " pools=p2,p3")
	line += pick(rng, "", " key=a", " key=a", " key=b")
	line += fmt.Sprint(" ports=", pick(rng, "80", "443", "80,443", "8080"))
	line += pick(rng, "", "", " local=x", " local=y")
	line += pick(rng, "", "", " label=gold", " problem=nonsense")
	line += pick(rng, "", "", "", "", " external=203.0.113.1", " external=203.0.113.2,2001:db8::1", " other=true", " terminating=true")
	if !exists {
		line += pick(rng, "", "", "", " status=203.0.113.2 managed=true", " status=192.0.2.9", " status=203.0.113.0")
	}
	return line
}

// TestWaitersAreServedByAge fills a pool and lets Services wait: what is released goes to the oldest who can use it,
// and nobody else is bothered.
func TestWaitersAreServedByAge(t *testing.T) {
	w := newWorld(t)
	w.do("pool lan addr=203.0.113.0/30 reuse=0s")
	w.do("service a b c d")
	w.do("service six families=6")
	w.do("service w1 w2 w3")
	w.table.Release(parseName("b"), w.now)
	if got := w.table.Dirty(); !slices.Equal(got, []types.NamespacedName{parseName("w1")}) {
		t.Errorf("the release changed %v, want w1 alone", got)
	}
}

// TestMassRelease releases a full pool with as many waiting; it must not cost a look at every waiter for each.
func TestMassRelease(t *testing.T) {
	tab := benchTable(t, "198.18.0.0/19")
	reqs := benchRequests(16384)
	for _, r := range reqs {
		tab.Assign(r, time.Time{})
	}
	for _, r := range reqs[:8192] {
		tab.Release(r.Service, time.Time{})
	}
	for _, r := range reqs[8192:] {
		if res, _ := tab.Result(r.Service); res.Reason != v1beta1.ReasonAllocated {
			t.Fatalf("%s: %s", r.Service, res.Message())
		}
	}
}
