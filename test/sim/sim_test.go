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
