package main

import (
	"context"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/wake"
	"github.com/clarionlb/clarion/speaker/layer2"
)

// absent knows which nodes have a speaker that is not alive. Speakers do not watch each other's objects, since then all
// would hear what each of them writes. They know each other from gossip, and of nodes that gossip does not know they ask
// the API server, seldom, whether they have a speaker at all.
type absent struct {
	me  string
	get func(ctx context.Context, node string) (*v1beta1.Speaker, error)
	met func(node string, macs []layer2.MAC) // called with the hardware addresses of a speaker that the API server knows
	log *slog.Logger

	wake wake.Signal

	mu    sync.Mutex
	alive map[string]bool // the nodes whose speakers are alive, be there a Node object or not
	nodes map[string]*presence
	since time.Time // since when half of the speakers or more are missing; zero: they are not
	asked time.Time // when all were asked for anew because of a host that nobody knows
}

// presence is what is known of the speaker of a node.
type presence struct {
	alive bool
	has   bool      // it has, or had, a speaker
	ask   time.Time // when the API server is to be asked; zero: it need not
	rest  time.Duration
}

// How long a speaker waits before it asks for a node that gossip does not know; how long until it asks again when that has
// none, doubling up to a most; and how often at most all such nodes are asked for because an unknown host is heard.
const (
	askFirst   = 10 * time.Second
	askRest    = time.Minute
	askMost    = time.Hour
	askUnknown = 30 * time.Second
)

// reporters is how many living speakers name each missing one in their objects. One would do, but for those that have died
// as well and are not missed yet.
const reporters = 3

// maxMissing is how many missing speakers one names.
const maxMissing = 32

// minorityDelay is how much later a speaker reports that misses half of all or more: it may be cut off itself, and then the
// others say that of it first.
const minorityDelay = 2 * time.Second

func newAbsent(me string, c client.Reader, met func(string, []layer2.MAC), log *slog.Logger) *absent {
	get := func(ctx context.Context, node string) (*v1beta1.Speaker, error) {
		o := &v1beta1.Speaker{}
		return o, c.Get(ctx, client.ObjectKey{Name: node}, o)
	}
	return &absent{me: me, get: get, met: met, log: log, wake: wake.New(), nodes: map[string]*presence{}}
}

// setNode takes in that there is a node, or no more.
func (a *absent) setNode(name string, gone bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch p := a.nodes[name]; {
	case gone:
		delete(a.nodes, name)
	case p == nil && name != a.me:
		if p = (&presence{ask: time.Now().Add(askFirst), rest: askRest}); a.alive[name] {
			p.alive, p.has, p.ask = true, true, time.Time{}
		}
		a.nodes[name] = p
		a.wake.Set()
	}
}

// setAlive takes in whose speakers are alive. The map is not changed any more.
func (a *absent) setAlive(alive map[string]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.alive = alive
	for name, p := range a.nodes {
		if p.alive = alive[name]; p.alive {
			p.has, p.ask = true, time.Time{}
		}
	}
}

// unknown says that a host was heard on the local network that is no node's, as far as is known.
func (a *absent) unknown() {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if now.Sub(a.asked) < askUnknown {
		return
	}
	a.asked = now
	for _, p := range a.nodes {
		if !p.alive && !p.has {
			p.ask = now
		}
	}
	a.wake.Set()
}

// missing are the speakers that are missing and that this one is to name, sorted, and how many there are beside them; none
// before again is over.
func (a *absent) missing(now time.Time) (names []string, more int32, again time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	living, lost := []string{a.me}, []string(nil)
	for name, p := range a.nodes {
		if p.alive {
			living = append(living, name)
		} else if p.has {
			lost = append(lost, name)
		}
	}
	if len(lost) < len(living) {
		a.since = time.Time{}
	} else if a.since.IsZero() {
		a.since = now
	}
	if wait := a.since.Add(minorityDelay).Sub(now); !a.since.IsZero() && wait > 0 {
		return nil, 0, wait
	}
	for _, name := range lost {
		if reports(a.me, name, living) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	names = names[:min(len(names), maxMissing)]
	if len(names) > 0 {
		more = int32(len(lost) - len(names))
	}
	return names, more, 0
}

// reports says whether one speaker is among those of the living that report a missing one: those for which a hash of both
// names is the highest. It looks at no more of them than it has to.
func reports(me, missing string, living []string) bool {
	mine, before := score(missing, me), 0
	for _, name := range living {
		if s := score(missing, name); name != me && (s > mine || s == mine && name < me) {
			if before++; before == reporters {
				return false
			}
		}
	}
	return true
}

func score(missing, name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(missing + "\x00" + name))
	n := h.Sum64() // of which the last letters of the name have changed few bits
	n = (n ^ n>>33) * 0xff51afd7ed558ccd
	return n ^ n>>33
}

// run asks until ctx ends.
func (a *absent) run(ctx context.Context) {
	for {
		name, wait := a.next(time.Now())
		if name != "" {
			a.ask(ctx, name)
			continue
		}
		var due <-chan time.Time
		if wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		case <-due:
		}
	}
}

// next is a node to ask for now, or how long there is none; 0: for ever.
func (a *absent) next(now time.Time) (name string, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for node, p := range a.nodes {
		if p.ask.IsZero() {
			continue
		}
		d := p.ask.Sub(now)
		if d <= 0 {
			return node, 0
		}
		if wait == 0 || d < wait {
			wait = d
		}
	}
	return "", wait
}

func (a *absent) ask(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	o, err := a.get(ctx, name)
	var macs []layer2.MAC
	if err == nil {
		for _, text := range o.Status.HardwareAddresses {
			if mac, err := net.ParseMAC(text); err == nil && len(mac) == 6 {
				macs = append(macs, layer2.MAC(mac))
			}
		}
	} else if !apierrors.IsNotFound(err) {
		a.log.Warn("cannot read the Speaker object of another node", "other", name, "error", err)
	}
	a.mu.Lock()
	if p := a.nodes[name]; p != nil {
		p.ask, p.has = time.Time{}, p.has || err == nil
		if !p.has {
			p.ask = time.Now().Add(p.rest + rand.N(p.rest))
			p.rest = min(2*p.rest, askMost)
		}
	}
	a.mu.Unlock()
	if err == nil {
		a.met(name, macs)
	}
}
