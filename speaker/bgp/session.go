package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/internal/wake"
)

// ending says why a session is to end, and so how.
type ending uint8

const (
	goOn         ending = iota
	endOfVersion        // the Identity has changed: another session of the same place follows
	endOfPeer           // the Peer is gone
	endOfRun            // Run ends
)

// session is what others know of the session of one Identity. Its goroutine is run.
type session struct {
	speaker     *Speaker
	at          place
	identity    Identity
	log         *slog.Logger
	after       []<-chan struct{} // closed when sessions are over that were with the same router, or of the same place
	done        chan struct{}     // closed when this one is over
	news        wake.Signal       // what take has set is another, or the peer wants routes again
	bfdDown     chan string       // BFD went down, and why
	ctx         context.Context   // ends when the session is to end
	cancel      context.CancelFunc
	in, out     *counters // go on across sessions of the same place
	maxPrefixes atomic.Int64

	mu     sync.Mutex
	how    ending
	want   Peer
	routes route.Table
	addrs  []address // of the node
	status SessionStatus
	logged string // the reason for not coming up that was logged last
	failed string // the reason of the last attempt
	conn   *conn  // nil without a connection; written by the goroutine of the session only
}

// newSession is the session that follows old, nil for the first one of a place.
func newSession(s *Speaker, at place, p Peer, old *session) *session {
	ctx, cancel := context.WithCancel(context.Background())
	log := s.config.Log.With("peer", at.peer)
	if at.gateway.IsValid() {
		log = log.With("gateway", at.gateway)
	}
	next := &session{
		speaker: s, at: at, identity: p.Identity, log: log,
		done: make(chan struct{}), news: wake.New(), bfdDown: make(chan string, 1),
		ctx: ctx, cancel: cancel, in: &counters{}, out: &counters{},
		status: SessionStatus{Peer: at.peer, Address: p.Address, Since: time.Now()},
	}
	if old != nil {
		next.in, next.out = old.in, old.out
		next.status.Ups = old.snapshot().Ups
	}
	return next
}

// take makes w what the session is to be, on a node with these addresses.
func (s *session) take(w Session, addrs []address) {
	s.maxPrefixes.Store(int64(w.Peer.MaxPrefixes))
	s.mu.Lock()
	s.want, s.routes, s.addrs = w.Peer, w.Routes, addrs
	s.mu.Unlock()
	s.news.Set()
}

func (s *session) wanted() Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.want
}

// stop makes the session end; it does not wait. The strongest reason counts.
func (s *session) stop(how ending) {
	s.mu.Lock()
	s.how = max(s.how, how)
	s.mu.Unlock()
	s.cancel()
}

func (s *session) reason() ending {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.how
}

func (s *session) snapshot() SessionStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	if c := s.conn; c != nil && st.State == Established {
		st.Sent4, st.Sent6, st.Received = int(c.sent[0].Load()), int(c.sent[1].Load()), int(c.received.Load())
	}
	st.MessagesIn, st.MessagesOut = s.in.load(), s.out.load()
	return st
}

// update changes the status, and reports it if it is another then.
func (s *session) update(f func(*SessionStatus)) {
	s.mu.Lock()
	before := s.status
	f(&s.status)
	changed := s.status != before
	s.mu.Unlock()
	if changed {
		s.speaker.report()
	}
}

// during shows a state that should pass at once, but only if it does not: a session that is tried again and again
// would change its status each time.
func (s *session) during(state State) (over func() bool) {
	return time.AfterFunc(time.Second, func() {
		s.update(func(st *SessionStatus) {
			if st.State < state {
				st.State = state
			}
		})
	}).Stop
}

// down takes note of the end of an established session. A why of nil is a restart that the peer bridges.
func (m *machine) down(why error) {
	if why == nil {
		why = errors.New("restart of the session")
	}
	level, reason := slog.LevelWarn, why.Error()+m.damped()
	if m.ctx.Err() != nil { // as wanted
		level, reason = slog.LevelInfo, why.Error()
	}
	m.log.Log(context.Background(), level, "BGP session is down", "reason", reason)
	m.update(func(st *SessionStatus) {
		*st = SessionStatus{Peer: st.Peer, Address: st.Address, State: Active, Since: time.Now(), Ups: st.Ups, LastError: reason}
	})
}

// fail takes note of why there is no session. A reason that stays the same is logged once. One that came of an attempt
// takes the place of another only when it has come twice running: a router that is off fails connections in turn for want
// of an answer to TCP and to ARP, and one on a bad day says something else each time.
func (s *session) fail(state State, err error) {
	reason := err.Error()
	s.mu.Lock()
	shown := s.logged == "" || state == Idle || reason == s.failed
	fresh := shown && reason != s.logged
	if s.failed = reason; shown {
		s.logged = reason
	}
	s.mu.Unlock()
	if fresh {
		s.log.Warn("BGP session does not come up", "reason", err)
	}
	s.update(func(st *SessionStatus) {
		if st.State = state; shown {
			st.LastError = reason
		}
	})
}

// noGateway says why a session with a default gateway has no address.
func (s *Speaker) noGateway(g Gateway) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.gateways[g].err; err != nil {
		return err
	}
	return errors.New("the default route has just changed")
}

// explain says in an operator's words why connecting failed.
func explain(err error, p Peer) error {
	var ne net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("the peer refuses TCP connections: it does not run BGP, or does not know this node as a neighbor")
	case errors.Is(err, syscall.EADDRNOTAVAIL) && p.Source.IsValid():
		return fmt.Errorf("no interface has the source address %s", p.Source)
	case errors.As(err, &ne) && ne.Timeout() && p.Password != "":
		return errors.New("no answer to TCP connections: the peer is down, or the passwords differ")
	case errors.As(err, &ne) && ne.Timeout():
		return errors.New("no answer to TCP connections")
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return errors.New("no route to the peer, or no answer to ARP or neighbor discovery")
	}
	return plain(err)
}
