package holddown

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Each row is asked at a time after the start whether the key may be announced.
func TestFilter(t *testing.T) {
	type ask struct {
		at    time.Duration
		up    bool
		pass  bool
		retry time.Duration // after the start, 0 for none
	}
	const s = time.Second
	for _, tt := range []struct {
		name      string
		base, max time.Duration
		asks      []ask
	}{
		{"new keys do not wait", s, 60 * s, []ask{{0, true, true, 0}, {s, true, true, 0}}},
		{"nor those that were seen before they could be announced", s, 60 * s, []ask{{0, false, false, 0}, {5 * s, true, true, 0}}},
		{"off", 0, 60 * s, []ask{{0, true, true, 0}, {s, false, false, 0}, {s, true, true, 0}, {s, false, false, 0}, {s, true, true, 0}}},
		{"negative is off", -s, s, []ask{{0, true, true, 0}, {s, false, false, 0}, {s, true, true, 0}}},
		{"back after base", s, 60 * s, []ask{{0, true, true, 0}, {10 * s, false, false, 0}, {11 * s, true, false, 12 * s}, {12*s - 1, true, false, 12 * s}, {12 * s, true, true, 0}}},
		{"the delay doubles up to max", s, 5 * s, []ask{
			{0, true, true, 0},
			{0, false, false, 0}, {0, true, false, s}, {s, true, true, 0},
			{s, false, false, 0}, {s, true, false, 3 * s}, {3 * s, true, true, 0},
			{3 * s, false, false, 0}, {3 * s, true, false, 7 * s}, {7 * s, true, true, 0},
			{7 * s, false, false, 0}, {7 * s, true, false, 12 * s}, {12*s - 1, true, false, 12 * s}, // no decay: never stable for max
			{12 * s, true, true, 0},
		}},
		{"a break in the wait starts it again, as long as before", s, 60 * s, []ask{
			{0, true, true, 0}, {s, false, false, 0}, {s, true, false, 2 * s},
			{1900 * time.Millisecond, false, false, 0}, {1950 * time.Millisecond, true, false, 2950 * time.Millisecond},
			{2900 * time.Millisecond, false, false, 0}, {2900 * time.Millisecond, true, false, 3900 * time.Millisecond},
			{3900 * time.Millisecond, true, true, 0},
		}},
		{"one that nobody let pass in time was not announced", s, 60 * s, []ask{
			{0, true, true, 0}, {s, false, false, 0}, {s, true, false, 2 * s}, {9 * s, false, false, 0}, {9 * s, true, false, 10 * s},
		}},
		{"the delay is halved while the key stays announced", s, 8 * s, []ask{
			{0, true, true, 0},
			{0, false, false, 0}, {0, true, false, s}, {s, true, true, 0},
			{s, false, false, 0}, {s, true, false, 3 * s}, {3 * s, true, true, 0}, // 2 s, and 1 s from 9 s on
			{10 * s, false, false, 0}, {10 * s, true, false, 12 * s},
		}},
		{"the delay is halved while the key stays withdrawn", s, 8 * s, []ask{
			{0, true, true, 0},
			{0, false, false, 0}, {0, true, false, s}, {s, true, true, 0},
			{s, false, false, 0}, // 2 s, and 1 s from 9 s on
			{9 * s, true, false, 10 * s},
		}},
		{"what was withdrawn for long is new", s, 8 * s, []ask{{0, true, true, 0}, {s, false, false, 0}, {9 * s, true, true, 0}, {10 * s, false, false, 0}, {10 * s, true, false, 11 * s}}},
		{"max less than base", 5 * s, s, []ask{{0, true, true, 0}, {0, false, false, 0}, {0, true, false, 5 * s}, {5 * s, true, true, 0}, {5 * s, false, false, 0}, {5 * s, true, false, 10 * s}, {10 * s, true, true, 0}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := New[string](tt.base, tt.max)
			for _, a := range tt.asks {
				pass, retry := h.Filter(start.Add(a.at), "key", a.up)
				want := time.Time{}
				if a.retry != 0 {
					want = start.Add(a.retry)
				}
				if pass != a.pass || !retry.Equal(want) {
					t.Fatalf("at %v, announceable %v: pass %v, again at %v; want %v, %v", a.at, a.up, pass, retry.Sub(start), a.pass, a.retry)
				}
			}
		})
	}
}

func TestZeroTable(t *testing.T) {
	var h Table[int]
	for i := range 10 {
		if pass, retry := h.Filter(start, 1, i%2 == 0); pass != (i%2 == 0) || !retry.IsZero() {
			t.Fatalf("ask %d: pass %v, again at %v", i, pass, retry)
		}
	}
}

// history is what an observer of one key knows, from which he can tell what the Table owes him.
type history struct {
	base, max time.Duration
	up        bool
	changed   time.Time // up did
	passing   bool
	retry     time.Time
	// withdrawals since the key was last stable for max: the delay is at least that of so many.
	withdrawals int
}

// check takes in an answer and returns what is wrong with it.
func (h *history) check(now time.Time, up, pass bool, retry time.Time) error {
	if now.Sub(h.changed) >= h.max {
		h.withdrawals = 0
	}
	turned := up != h.up
	if turned {
		if !up && h.passing {
			h.withdrawals++
		}
		h.up, h.changed = up, now
	}
	wait := time.Duration(0)
	for range h.withdrawals {
		wait = min(max(2*wait, h.base), h.max)
	}
	wasPassing, lastRetry := h.passing, h.retry
	h.passing, h.retry = pass, retry
	stable := now.Sub(h.changed)
	switch {
	case !up && pass:
		return fmt.Errorf("not withdrawn at once")
	case (!up || pass) && !retry.IsZero():
		return fmt.Errorf("nothing to wait for, and yet told to ask again")
	case !up:
		return nil
	case pass && !wasPassing && stable < wait:
		return fmt.Errorf("announced after %v, at least %v was due", stable, wait)
	case pass:
		return nil
	case wasPassing && !turned:
		return fmt.Errorf("withdrawn although announceable")
	case stable >= h.max:
		return fmt.Errorf("not announced after %v, max is %v", stable, h.max)
	case !retry.After(now) || retry.After(h.changed.Add(h.max)):
		return fmt.Errorf("told to ask again in %v, having waited for %v of at most %v", retry.Sub(now), stable, h.max)
	case !turned && !retry.Equal(lastRetry):
		return fmt.Errorf("the wait was until %v and is until %v", lastRetry, retry)
	}
	return nil
}

// Whatever happens to many keys, each gets what it is owed; asking in between, and what happens to others, makes no
// difference to it; and in the end everything is announced, or forgotten.
func TestProperties(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		base := time.Duration(1+r.IntN(3000)) * time.Millisecond
		limit := base * time.Duration(1+r.IntN(100)) * 2 / 3 // may be less than base
		h := New[int](base, limit)
		limit = max(limit, base)
		const keys = 4
		var alone [keys]*Table[int] // hears of one key only, and is asked only when it matters
		var seen [keys]history
		for k := range keys {
			alone[k], seen[k] = New[int](base, limit), history{base: base, max: limit, changed: start}
		}
		now := start
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d, base %v, max %v, at %v: %s", seed, base, limit, now.Sub(start), fmt.Sprintf(format, args...))
		}
		ask := func(k int, up bool) {
			t.Helper()
			matters := up != seen[k].up || !seen[k].retry.IsZero() && !now.Before(seen[k].retry)
			pass, retry := h.Filter(now, k, up)
			if matters {
				if p, again := alone[k].Filter(now, k, up); p != pass || !again.Equal(retry) {
					fail("key %d: pass %v, again at %v; alone it would be %v, %v", k, pass, retry, p, again)
				}
			}
			if err := seen[k].check(now, up, pass, retry); err != nil {
				fail("key %d, announceable %v: %v", k, up, err)
			}
		}
		// Like the speaker: asks at each event, and when it was told to.
		advance := func(to time.Time) {
			t.Helper()
			for {
				next := -1
				for k := range keys {
					at := seen[k].retry
					if !at.IsZero() && !at.After(to) && (next < 0 || at.Before(seen[next].retry)) {
						next = k
					}
				}
				if next < 0 {
					now = to
					return
				}
				now = seen[next].retry
				if ask(next, true); !seen[next].passing {
					fail("key %d does not pass when it was told to ask again", next)
				}
			}
		}
		for range 300 {
			gap := time.Duration(r.Int64N(int64(base)))
			if r.IntN(4) == 0 {
				gap = time.Duration(r.Int64N(int64(limit) * 3 / 2))
			}
			advance(now.Add(gap))
			k := r.IntN(keys)
			ask(k, seen[k].up != (r.IntN(3) > 0)) // an event, or just a question
		}

		for k := range keys {
			ask(k, true)
		}
		advance(now.Add(limit))
		for k := range keys {
			if !seen[k].passing {
				fail("key %d is stable and not announced", k)
			}
			ask(k, false)
		}
		// Each max halves the delay; 2^7 is more than the largest ratio of max to base here.
		for range 9 {
			now = now.Add(limit)
			h.Filter(now, -1, false)
		}
		if len(h.keys) > 0 {
			fail("%d withdrawn keys are remembered", len(h.keys))
		}
	}
}

// However a key flaps, routers see a bounded number of announcements: as many as the delay takes to grow to max, and
// from then on one in each max of time.
func TestFlappingIsBounded(t *testing.T) {
	const base, limit, steps = time.Second, 64 * time.Second, 7
	for _, period := range []time.Duration{time.Millisecond, 900 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second, 31 * time.Second, 63 * time.Second} {
		h := New[string](base, limit)
		announced, passing, up := 0, false, false
		now := start
		for ; now.Sub(start) < 20*limit; now = now.Add(period) {
			up = !up
			pass, retry := h.Filter(now, "key", up)
			if !pass && up && retry.Before(now.Add(period)) {
				pass, _ = h.Filter(retry, "key", up)
			}
			if pass && !passing {
				announced++
			}
			passing = pass
		}
		if most := steps + 1 + 20; announced > most {
			t.Errorf("period %v: announced %d times in %v, at most %d are allowed", period, announced, now.Sub(start), most)
		}
	}
}

// Keys that come once and go do not add up.
func TestMemory(t *testing.T) {
	h := New[int](time.Second, 8*time.Second)
	now, most := start, 0
	for k := range 10_000 {
		now = now.Add(100 * time.Millisecond)
		h.Filter(now, k, true)
		h.Filter(now, k, false)
		most = max(most, len(h.keys))
	}
	// A delay of base is forgotten after max, and looked for as often: two times 8 s of 10 keys each.
	if most > 170 {
		t.Errorf("%d keys are remembered at once", most)
	}
}
