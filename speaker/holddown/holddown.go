// Package holddown decides when what was withdrawn may be announced again: withdraw at once, announce only what has
// been stable for a while, and for the longer the more often it came and went. So a Service that flaps costs the
// routers a bounded number of changes, and clients a way that is missing rather than one that breaks.
//
// It is a table of small state machines, one a key. It has no clock, no goroutines and no locks; the caller says what
// time it is.
package holddown

import "time"

// Table decides for each key. Its rules:
//
//   - A key that is not known passes at once: so nothing that was announced waits because of a restart, and what was
//     never withdrawn does not wait at all.
//   - Not to be announced takes effect at once.
//   - A key that was withdrawn passes again when it has been announceable for its delay without a break. The delay is
//     base after the first withdrawal, doubles with each further one, and is never more than max. A break in the wait
//     starts the wait again, but does not make it longer: nobody saw the key.
//   - A withdrawal that was planned makes the next wait no longer.
//   - Whenever a key has neither come nor gone for max, its delay is halved. One that is less than base is none, and a
//     withdrawn key without a delay is forgotten.
//
// The zero Table, and one with a base that is not positive, passes everything. A Table is used by one goroutine at a time.
type Table[K comparable] struct {
	base, max time.Duration
	keys      map[K]*record
	swept     time.Time // when what was to be forgotten was looked for
}

// record is what is known of a key that is announced, is waiting, or was withdrawn lately.
type record struct {
	want  bool
	pass  bool
	since time.Time     // when want changed, or the delay was halved
	until time.Time     // want, but not pass: when it may pass
	delay time.Duration // that the next wait has
}

// New returns a Table with delays from base to max. A max that is less than base counts as base.
func New[K comparable](base, max time.Duration) *Table[K] {
	if max < base {
		max = base
	}
	return &Table[K]{base: base, max: max, keys: map[K]*record{}}
}

// Filter takes in whether a key is announceable now, and says whether it may be announced. If it is announceable but has
// to wait, retryAt is when Filter will let it pass if nothing happens until then; otherwise retryAt is zero. Asking
// before that changes nothing. now must not go back.
//
// When a key is withdrawn or gone, Filter has to be told once, with announceable false, if it is to wait on its return
// and to be forgotten one day.
func (t *Table[K]) Filter(now time.Time, key K, announceable bool) (pass bool, retryAt time.Time) {
	return t.filter(now, key, announceable, false)
}

// Leave is Filter for a key that is not announceable any more because that was planned, such as by a rollout.
func (t *Table[K]) Leave(now time.Time, key K) { t.filter(now, key, false, true) }

func (t *Table[K]) filter(now time.Time, key K, announceable, planned bool) (pass bool, retryAt time.Time) {
	if t.base <= 0 {
		return announceable, time.Time{}
	}
	t.sweep(now)
	r := t.keys[key]
	if r == nil {
		if announceable {
			t.keys[key] = &record{want: true, pass: true, since: now}
		}
		return announceable, time.Time{}
	}
	t.decay(r, now)
	switch {
	case announceable && !r.want:
		r.want, r.since, r.until = true, now, now.Add(r.delay)
	case !announceable && r.want:
		if r.pass && !planned {
			r.delay = t.longer(r.delay)
		}
		r.want, r.pass, r.since = false, false, now
	}
	if !r.want {
		return false, time.Time{}
	}
	if !r.pass && now.Before(r.until) {
		return false, r.until
	}
	r.pass = true
	return true, time.Time{}
}

// longer is the delay after one more withdrawal.
func (t *Table[K]) longer(delay time.Duration) time.Duration {
	if delay > t.max/2 {
		return t.max
	}
	return max(2*delay, t.base)
}

// decay halves the delay for each max of time in which nothing has happened.
func (t *Table[K]) decay(r *record, now time.Time) {
	for r.delay > 0 && now.Sub(r.since) >= t.max {
		r.since = r.since.Add(t.max)
		if r.delay /= 2; r.delay < t.base {
			r.delay = 0
		}
	}
}

// sweep forgets, once in a while, what was withdrawn long ago.
func (t *Table[K]) sweep(now time.Time) {
	if now.Sub(t.swept) < t.max {
		return
	}
	t.swept = now
	for key, r := range t.keys {
		if t.decay(r, now); !r.want && r.delay == 0 {
			delete(t.keys, key)
		}
	}
}
