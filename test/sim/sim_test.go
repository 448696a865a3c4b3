// Package sim plays the decisions about layer 2 through thousands of failures with a virtual clock: the plan of
// internal/announce as it is, a group of speakers whose views of each other lag and err, and a local network on which
// owners announce, yield and defend. It judges what clients would see: one station that answers for each address.
package sim

import (
	"math/rand/v2"
	"testing"
)

// A tick stands for about 10 ms.
const (
	// quiet is how long nothing must have happened before the network is judged.
	quiet = 260
	// An announcement that gets lost is made up for by the next: see the schedule.
	quietLossy = 500
)

// Views that differ for ever, each in its own way: nobody knows what others do not answer, and the network has to tell. What
// two parts of a network do not know of each other they hear when the next announcement is due, a minute later.
func TestDisagreement(t *testing.T) {
	for seed := range uint64(4) {
		const nodes = 5
		w := newWorld(t, rand.New(rand.NewPCG(seed, 3)), nodes, 12)
		w.quiet, w.stubborn = refresh*11/10+patience*nodes, true
		for i, s := range w.speakers {
			for range w.rand.IntN(4) {
				s.blind |= 1 << w.rand.IntN(nodes)
				s.wrong |= 1 << w.rand.IntN(nodes)
			}
			s.blind &^= 1 << i
		}
		for range 80 {
			w.event()
			for range w.rand.IntN([]int{30, 3 * w.quiet}[w.rand.IntN(2)]) {
				w.tick()
			}
		}
		for w.now < w.changed+w.quiet+1 {
			w.tick()
		}
		if w.judged < 10 {
			t.Errorf("the network was judged %d times: the test tests nothing", w.judged)
		}
	}
}

func TestFailures(t *testing.T) {
	for _, tt := range []struct {
		what           string
		seed           uint64
		events, addrs  int
		loss           float64
		quiet          int
		patience       int
		wantJudgements int
	}{
		{"eight speakers", 1, 3000, 40, 0, quiet, 0, 400},
		{"frames get lost", 2, 1200, 30, 0.02, quietLossy, 60, 150},
	} {
		t.Run(tt.what, func(t *testing.T) {
			w := newWorld(t, rand.New(rand.NewPCG(tt.seed, 0)), 8, tt.addrs)
			w.loss, w.quiet, w.patience = tt.loss, tt.quiet, tt.patience
			for range tt.events {
				w.event()
				// Some events come while the last ones are still being digested.
				for range w.rand.IntN([]int{5, 30, 2*tt.quiet + 60}[w.rand.IntN(3)]) {
					w.tick()
				}
			}
			w.heal()
			for w.now < w.changed+tt.quiet+1 {
				w.tick()
			}
			t.Logf("%d ticks, %d judgements, %d of them of a whole network", w.now, w.judged, w.whole)
			if tt.loss == 0 {
				t.Logf("no address was answered for by two later than %d ticks after a change", w.slowest)
			}
			t.Logf("speakers that came and went owned %d addresses; %d moved, %d of them were not at home", w.unavoidable, w.moved, w.guests)
			if w.judged < tt.wantJudgements || w.whole < tt.wantJudgements/4 {
				t.Errorf("the network was judged %d times, %d times whole: the test tests nothing", w.judged, w.whole)
			}
			if float64(w.moved) > 1.5*float64(w.unavoidable) {
				t.Errorf("%d addresses moved where %d had to", w.moved, w.unavoidable)
			}
		})
	}
}
