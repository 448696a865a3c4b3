package main

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/clarionlb/clarion/internal/allocate"
	"github.com/clarionlb/clarion/internal/ipam"
)

// A write that takes longer than slowWrite makes its namespace slow, as an admission webhook does that hangs. Of a slow
// namespace few statuses are written at once, so that it delays itself alone.
const (
	slowWrite  = time.Second
	fastWrites = serviceWorkers / 2
	slowWrites = 1
)

// turns is whose statuses are being written, by namespace.
type turns struct {
	busy   map[string]int
	slow   map[string]bool
	parked map[string]map[key]bool // those that wait for others of their namespace
}

func newTurns() turns {
	return turns{map[string]int{}, map[string]bool{}, map[string]map[key]bool{}}
}

// inTurn writes, or has the Service looked at again when another write of its namespace is over.
func (s *services) inTurn(k key, write func() (reconcile.Result, error)) (reconcile.Result, error) {
	t, ns := &s.turns, k.Namespace
	s.mu.Lock()
	most := fastWrites
	if t.slow[ns] {
		most = slowWrites
	}
	if t.busy[ns] >= most {
		if t.parked[ns] == nil {
			t.parked[ns] = map[key]bool{}
		}
		t.parked[ns][k] = true
		s.mu.Unlock()
		return reconcile.Result{}, nil
	}
	t.busy[ns]++
	s.mu.Unlock()

	start := time.Now()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.busy[ns]--; t.busy[ns] == 0 {
			delete(t.busy, ns)
		}
		if took := time.Since(start); took > slowWrite && !t.slow[ns] {
			t.slow[ns] = true
			s.log.Warn("statuses of a namespace are written slowly, so one by one", "namespace", ns, "took", took)
		} else if took <= slowWrite {
			delete(t.slow, ns)
		}
		for k := range t.parked[ns] { // one for the one that is over, or as many as may when it is fast again
			delete(t.parked[ns], k)
			s.queue.Add(reconcile.Request{NamespacedName: k})
			if t.slow[ns] {
				break
			}
		}
		if len(t.parked[ns]) == 0 {
			delete(t.parked, ns)
		}
	}()
	return write()
}

// How somebody who rewrites the addresses in a Service's status is answered: at once for the first contestPatience times,
// then not before contestFirst, twice that, and so on to contestLast. After contestOver without it all is as before.
const (
	contestPatience = 3
	contestFirst    = 2 * time.Second
	contestLast     = 5 * time.Minute
	contestOver     = 15 * time.Minute
)

// contest is what this controller wrote last into a Service's status, and how somebody else took it.
type contest struct {
	wrote []netip.Addr
	times int       // it was written over
	next  time.Time // not to be written again before
}

// contested says how long to wait before a Service's addresses are written again, because somebody else keeps rewriting
// them. The user is told when it comes to that.
func (s *services) contested(svc *corev1.Service, res *ipam.Result) time.Duration {
	k, addrs, now := client.ObjectKeyFromObject(svc), res.Addresses(), time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.contests[k]
	switch {
	case c == nil || !slices.Equal(c.wrote, addrs) || sameIngress(svc, addrs) && allocate.Managed(svc):
		return 0
	case now.Before(c.next):
		return c.next.Sub(now)
	case now.Sub(c.next) > contestOver:
		c.times = 0
	}
	if c.times++; c.times == contestPatience {
		s.log.Warn("status is contested", "service", k.String(), "wrote", addrs, "found", allocate.Ingress(svc))
		s.event(svc, corev1.EventTypeWarning, "StatusContested", fmt.Sprintf("somebody else rewrites the addresses in the status, %v to %v; they are written again, "+
			"but ever more rarely; kubectl get service %s -o yaml --show-managed-fields tells who it is", addrs, allocate.Ingress(svc), svc.Name))
	}
	c.next = now
	if over := c.times - contestPatience; over >= 0 {
		c.next = now.Add(min(contestFirst<<min(over, 16), contestLast))
	}
	return 0
}
