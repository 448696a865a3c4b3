package main

import (
	"time"

	"sigs.k8s.io/controller-runtime/pkg/reconcile"
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
