package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/speaker/layer2"
)

// group100 are a hundred speakers that have seen each other alive.
func group100(t *testing.T) (names []string, all map[string]*absent) {
	for n := range 100 {
		names = append(names, fmt.Sprintf("node%02d", n))
	}
	all = map[string]*absent{}
	for _, me := range names {
		a := newAbsent(me, nil, nil, slog.New(slog.DiscardHandler))
		for _, n := range names {
			a.setNode(n, false)
		}
		a.setAlive(alive(names))
		if missing, more, _ := a.missing(time.Now()); len(missing) > 0 || more > 0 {
			t.Fatalf("%s misses %s and %d", me, missing, more)
		}
		all[me] = a
	}
	return names, all
}

func alive(names []string) map[string]bool {
	out := map[string]bool{}
	for _, n := range names {
		out[n] = true
	}
	return out
}

// However many speakers there are, each missing one is named by three, and no object grows with their number: when one
// dies, when a rack does, when the network is cut in halves, and on a node that is cut off.
func TestMissingIsNamedByThree(t *testing.T) {
	for _, sides := range [][]int{{1, 99}, {99, 1}, {30, 70}, {50, 50}} {
		names, all := group100(t)
		parts := [][]string{names[:sides[0]], names[sides[0]:]}
		named, longest := map[string]int{}, 0
		for i, part := range parts {
			for _, me := range part {
				a := all[me]
				a.setAlive(alive(part))
				now := time.Now()
				missing, more, again := a.missing(now)
				if minority := len(part) <= len(parts[1-i]); minority != (again > 0) || minority && len(missing) > 0 {
					t.Errorf("%v: %s names %d at once, and more in %s", sides, me, len(missing), again)
				}
				if again > 0 {
					missing, more, _ = a.missing(now.Add(again))
				}
				if len(missing) == 0 && more > 0 || len(missing) > 0 && len(missing)+int(more) != len(parts[1-i]) {
					t.Errorf("%v: %s misses %d and %d more, of %d", sides, me, len(missing), more, len(parts[1-i]))
				}
				longest = max(longest, len(missing))
				for _, n := range missing {
					named[n]++
				}
			}
		}
		if longest > maxMissing {
			t.Errorf("%v: one names %d", sides, longest)
		}
		for _, part := range parts {
			if len(part) == 99 { // whom the one that is cut off names, as far as it goes
				continue
			}
			for _, n := range part {
				if named[n] != reporters {
					t.Errorf("%v: %s is named by %d", sides, n, named[n])
				}
			}
		}
	}
}

// A node without a speaker is missed by nobody, one that had one is, and its hardware addresses are known, though gossip
// has never heard of either. The API server is asked for each seldom.
func TestAbsentAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := map[string][]time.Duration{}
		met := map[string]int{}
		start := time.Now()
		a := newAbsent("a", nil, func(node string, macs []layer2.MAC) { met[node] = len(macs) }, slog.New(slog.DiscardHandler))
		a.get = func(_ context.Context, node string) (*v1beta1.Speaker, error) {
			asked[node] = append(asked[node], time.Since(start))
			if node == "dead" {
				return &v1beta1.Speaker{Status: v1beta1.SpeakerStatus{HardwareAddresses: []string{"02:00:00:00:00:01"}}}, nil
			}
			return nil, apierrors.NewNotFound(schema.GroupResource{}, node)
		}
		for _, n := range []string{"a", "b", "dead", "none"} {
			a.setNode(n, false)
		}
		a.setAlive(alive([]string{"a", "b"}))
		go a.run(t.Context())
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if got, _, _ := a.missing(time.Now()); !slices.Equal(got, []string{"dead"}) {
			t.Errorf("missing: %v", got)
		}
		if len(asked["a"])+len(asked["b"]) > 0 || len(asked["dead"]) != 1 || met["dead"] != 1 {
			t.Errorf("asked: %v, met: %v", asked, met)
		}
		if n := len(asked["none"]); n < 12 || n > 32 || asked["none"][0] != askFirst {
			t.Errorf("asked %d times for the node without a speaker: %v", n, asked["none"])
		}
		n := len(asked["none"])
		for range 100 { // a foreign host that claims addresses
			a.unknown()
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		if more := len(asked["none"]) - n; more != 1 {
			t.Errorf("asked %d times for a foreign host", more)
		}
		a.setNode("dead", true)
		if got, _, _ := a.missing(time.Now()); len(got) > 0 {
			t.Errorf("missing, though their nodes are gone: %v", got)
		}
	})
}

// A node whose speaker is alive, and whose Node object is made again or is seen later than the speaker, is not missed.
func TestNodeMadeAgainIsNotMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsent("a", nil, func(string, []layer2.MAC) {}, slog.New(slog.DiscardHandler))
		a.get = func(context.Context, string) (*v1beta1.Speaker, error) { return &v1beta1.Speaker{}, nil }
		go a.run(t.Context())
		names := []string{"a", "b", "c", "d", "e", "f"}
		for _, n := range names {
			a.setNode(n, false)
		}
		a.setAlive(alive(append(names, "late")))
		a.setNode("b", true)
		a.setNode("b", false)
		a.setNode("late", false)
		time.Sleep(time.Minute)
		if got := a.lost(); len(got) > 0 {
			t.Errorf("missing, though their speakers are alive: %v", got)
		}
		a.setAlive(alive(names[2:]))
		if got := a.lost(); !slices.Equal(got, []string{"b", "late"}) {
			t.Errorf("missing: %v", got)
		}
	})
}

// lost are those that are missing, whoever is to name them.
func (a *absent) lost() (out []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, p := range a.nodes {
		if p.has && !p.alive {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
