package bgp

import (
	"slices"
	"sync/atomic"

	"github.com/clarionlb/clarion/internal/route"
)

// watcher is an Observer until it is gone.
type watcher struct {
	Observer
	gone atomic.Bool
}

// Observe shows to o every session that is established, with the routes that were announced in it, and then what happens
// in all sessions, until stop is called. It does not wait for the sessions; a call under way when stop is called may
// still come.
func (s *Speaker) Observe(o Observer) (stop func()) {
	w := &watcher{Observer: o}
	change := func(f func([]*watcher) []*watcher) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.watchers = f(slices.Clone(s.watchers))
		for _, ses := range s.sessions {
			ses.news.Set()
		}
	}
	change(func(all []*watcher) []*watcher { return append(all, w) })
	return func() {
		w.gone.Store(true)
		change(func(all []*watcher) []*watcher {
			return slices.DeleteFunc(all, func(x *watcher) bool { return x == w })
		})
	}
}

// show brings the observers of the session up to date: one that is new sees what has happened so far.
func (m *machine) show() {
	m.speaker.mu.Lock()
	all := m.speaker.watchers
	m.speaker.mu.Unlock()
	for _, w := range all {
		if slices.Contains(m.watchers, w) {
			continue
		}
		w.Up(m.at.peer, m.conn.local, m.conn.remote, m.sent, m.received)
		if m.rib.counts() != [2]int{} {
			sent := func(update []byte) error {
				w.Sent(m.at.peer, m.conn.remote, update)
				return nil
			}
			fresh := m.rib // as if the peer had been sent nothing yet
			fresh.sent = route.Table{}
			_ = fresh.sync(m.rib.sent, m.rib.hops, m.rib.leaving, sent) // fails only with sent
			_ = endOfRIB(m.agreed.carries, sent)
		}
	}
	m.watchers = all
}

// observed calls f for those who watch the session.
func (m *machine) observed(f func(Observer)) {
	for _, w := range m.watchers {
		if !w.gone.Load() {
			f(w)
		}
	}
}
