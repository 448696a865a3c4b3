// Package guard keeps packets for addresses that no Service has from going round in circles.
//
// A node that announces the range of the ClusterIPs draws packets for every address of it. The Service proxy rewrites
// the destination of those that belong to a Service, before they are routed. The others would follow the node's default
// route, back to the router, which sends them here again until their hop limit is used up. The guard has the kernel
// answer them with an ICMP error instead: for each interface that leads outside, and each family, a policy rule sends
// what comes in by it through a table of its own, in which the guarded prefixes are unreachable and nothing else is
// found.
//
//   - What a process or a pod of the node sends comes in by no such interface, and is not touched. A pod's packet to an
//     address that no Service has leaves by the default route as before; the guard sees it if the router returns it.
//   - What the proxy has rewritten has another destination, and is not touched.
//   - Addresses of the node itself, such as the ClusterIPs on kube-ipvs0 with kube-proxy in IPVS mode, are found in the
//     table "local", whose rule comes first.
//   - To the outside, an address of a Service without endpoints is unreachable too: the kernel routes before it filters,
//     so that a "reject" of the proxy in the forwarding path is not reached.
//
// A Service proxy that translates what comes from outside only behind the routing decision, by a route of its own for
// the range, does not go together with the guard.
//
// The kernel keeps a rule whose interface disappears and applies it to the next one of that name, so that a guarded
// interface need not exist.
//
// Another program may remove rules and routes that are not its own; the guard puts its own back. It knows them by
// their table and protocol, so that it finds again what a process left that was killed.
package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/clarionlb/clarion/internal/wake"
)

// How the guard's rules and routes are told from those of others.
const (
	// Table is the number of the guard's routing table, "clar" in ASCII: far from the small numbers that people choose.
	Table = 0x636c6172
	// Priority is that of the guard's rules. It comes after the rule of the table "local", which is at 0, or at up to
	// 100 where a network plug-in moves it, and before the rules that send packets out by another default route, which
	// are customary from 512 on.
	Priority = 400
	// Protocol is the originator of the guard's rules and routes (rtm_protocol, FRA_PROTOCOL): a number that neither
	// the kernel nor a routing daemon known to iproute2 uses.
	Protocol = 67
)

// pause is the least time between two looks at the kernel that events or failures cause: a program that insists on
// removing the rules must not keep the guard busy.
const pause = time.Second

// Config is what a Guard is made with. The zero Config works.
type Config struct {
	Log *slog.Logger // nil: slog.Default()
	// OnChange is called after the Status has changed, by Run's goroutine. It must return soon. May be nil.
	OnChange func()
}

// Want is what to guard, and against whom. Without either there is nothing to guard.
type Want struct {
	// Prefixes may overlap. None may hold addresses that the node forwards to as they are, such as those of pods. Those
	// of length 0 are left out, as they would hold those too; so are IPv4-mapped ones.
	Prefixes []netip.Prefix
	// Interfaces are the names of those by which packets come in from outside the node, whether they exist or not. lo
	// is left out, as what the node itself sends comes in by it, and so is the empty name, which would mean them all.
	Interfaces []string
}

// Status is what the guard has achieved.
type Status struct {
	// Prefixes are guarded: the kernel has their routes, and a rule of their family that leads to them. Sorted; empty
	// without Interfaces.
	Prefixes []netip.Prefix
	// Interfaces are those with such a rule for every family of Prefixes. Sorted.
	Interfaces []string
	// Err is why others are not, nil if all that are wanted are and nothing else is left of the guard's. It is tried
	// again every second.
	Err error
}

// Guard makes prefixes unreachable for packets from outside.
type Guard struct {
	log      *slog.Logger
	onChange func()
	changed  wake.Signal // want changed

	mu     sync.Mutex
	want   *Want // in order, each once; nil until the first Set
	status Status
}

// New returns a Guard that does nothing until Run is called.
func New(c Config) *Guard {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.OnChange == nil {
		c.OnChange = func() {}
	}
	return &Guard{log: c.Log, onChange: c.OnChange, changed: wake.New()}
}

// Set says what to guard: all of it, replacing what was said before. Before the first Set, what an earlier process left
// stays. Set may be called at any time and by several goroutines; it keeps nothing of w and does not wait for the kernel.
func (g *Guard) Set(w Want) {
	var next Want
	for _, p := range w.Prefixes {
		if p.Bits() > 0 && !p.Addr().Is4In6() {
			next.Prefixes = append(next.Prefixes, p.Masked())
		}
	}
	for _, name := range w.Interfaces {
		if name != "" && name != "lo" {
			next.Interfaces = append(next.Interfaces, name)
		}
	}
	slices.SortFunc(next.Prefixes, netip.Prefix.Compare)
	slices.Sort(next.Interfaces)
	next.Prefixes, next.Interfaces = slices.Compact(next.Prefixes), slices.Compact(next.Interfaces)
	g.mu.Lock()
	same := g.want != nil && slices.Equal(g.want.Prefixes, next.Prefixes) && slices.Equal(g.want.Interfaces, next.Interfaces)
	g.want = &next
	g.mu.Unlock()
	if !same {
		g.changed.Set()
	}
}

// Status returns what is guarded.
func (g *Guard) Status() Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Status{slices.Clone(g.status.Prefixes), slices.Clone(g.status.Interfaces), g.status.Err}
}

// Run guards until ctx ends, in the network namespace of the calling thread, and then removes every rule and route of
// the guard. It ends early, with an error, only when the kernel's routing cannot be watched; what is guarded stays then,
// and Run may be called again. It needs CAP_NET_ADMIN; what the kernel refuses is in the Status.
func (g *Guard) Run(ctx context.Context) error {
	k, err := openKernel()
	if err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	defer k.close()
	touched, broken := wake.New(), make(chan error, 1)
	var watcher sync.WaitGroup
	watcher.Go(func() { broken <- k.watch(touched) })
	defer watcher.Wait()
	defer k.stopWatching()

	g.mu.Lock()
	if g.want != nil { // an earlier Run may have known already
		g.changed.Set()
	}
	g.mu.Unlock()
	var due, rested <-chan time.Time // when to look again, and from when on a change may be looked at
	var looked time.Time
	changed := g.changed
	for {
		repair := false
		select {
		case <-ctx.Done():
			return g.apply(k, Want{}, false)
		case err := <-broken:
			return fmt.Errorf("guard: watch routing: %w", err)
		case <-rested:
			rested, changed = nil, g.changed
			continue
		case <-changed:
		case <-touched:
			if due == nil {
				due = time.After(time.Until(looked.Add(pause)))
			}
			continue
		case <-due:
			repair = true
		}
		due = nil
		start := time.Now()
		g.mu.Lock()
		want := g.want
		g.mu.Unlock()
		if want != nil && g.apply(k, *want, repair) != nil {
			due = time.After(pause)
		}
		// A look costs what there is, not what has changed: where prefixes come one after the other, several wait for one.
		if looked = time.Now(); !repair {
			rested, changed = time.After(10*looked.Sub(start)), nil
		}
	}
}

// apply brings the kernel to what is wanted, and records and logs what came of it. repair says that nothing else is
// wanted than before.
func (g *Guard) apply(k *kernel, want Want, repair bool) error {
	now := Status{Interfaces: slices.Clone(want.Interfaces)}
	var errs []error
	changed := false
	for _, f := range families {
		var mine Want
		if len(want.Interfaces) > 0 {
			mine.Prefixes = slices.DeleteFunc(slices.Clone(want.Prefixes), func(p netip.Prefix) bool { return p.Addr().Is4() != f.is4 })
		}
		if len(mine.Prefixes) > 0 {
			mine.Interfaces = want.Interfaces
		}
		done, touched, err := k.apply(f, mine)
		if len(done.Prefixes) > 0 {
			now.Prefixes = append(now.Prefixes, done.Prefixes...)
			now.Interfaces = slices.DeleteFunc(now.Interfaces, func(name string) bool { return !slices.Contains(done.Interfaces, name) })
		}
		changed = changed || touched
		errs = append(errs, err)
	}
	if len(now.Prefixes) == 0 {
		now.Interfaces = nil
	}
	if err := errors.Join(errs...); err != nil {
		now.Err = fmt.Errorf("guard: %w", err)
	}

	g.mu.Lock()
	old := g.status
	g.status = now
	g.mu.Unlock()
	same := slices.Equal(old.Prefixes, now.Prefixes) && slices.Equal(old.Interfaces, now.Interfaces)
	sameErr := text(old.Err) == text(now.Err)
	switch {
	case !same:
		g.log.Info("what is guarded changed", difference(old, now)...)
	case repair && changed && old.Err == nil:
		g.log.Warn("another program had changed the guard's rules or routes", "prefixes", len(now.Prefixes), "interfaces", now.Interfaces)
	}
	switch {
	case now.Err != nil && !sameErr:
		g.log.Error("prefixes are not guarded as wanted", "error", now.Err)
	case old.Err != nil && !sameErr:
		g.log.Info("prefixes are guarded as wanted again", "prefixes", len(now.Prefixes), "interfaces", now.Interfaces)
	}
	if !same || !sameErr {
		g.onChange()
	}
	return now.Err
}

// difference is what is to be logged of a change: how many prefixes came and went and the first few of them, and the
// interfaces if they are others.
func difference(old, now Status) []any {
	attrs := []any{"prefixes", len(now.Prefixes)}
	for _, d := range []struct {
		key  string
		a, b []netip.Prefix
	}{{"added", old.Prefixes, now.Prefixes}, {"removed", now.Prefixes, old.Prefixes}} {
		const most = 5
		more, first := 0, []netip.Prefix{}
		for _, p := range d.b {
			if _, had := slices.BinarySearchFunc(d.a, p, netip.Prefix.Compare); had {
				continue
			}
			if more++; more <= most {
				first = append(first, p)
			}
		}
		if more > 0 {
			attrs = append(attrs, d.key, first)
		}
		if more > most {
			attrs = append(attrs, d.key+" beside", more-most)
		}
	}
	if !slices.Equal(old.Interfaces, now.Interfaces) {
		attrs = append(attrs, "interfaces", now.Interfaces, "interfaces before", old.Interfaces)
	}
	return attrs
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
