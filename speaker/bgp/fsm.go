package bgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/clarionlb/clarion/speaker/bfd"
)

const (
	// openWait is how long the peer may take to answer our OPEN. RFC 4271 section 8.2.2 suggests 4 minutes; a router
	// that is there answers at once, and one that is not should not hold up the next attempt.
	openWait = 20 * time.Second
	// refusedWait is the time between attempts when the peer answers but refuses the session.
	refusedWait = 1500 * time.Millisecond
)

// damping is the DampPeerOscillations of RFC 4271 section 8.1.1: how long a session stays Idle after the one before. A
// session that has lived ends the damping.
type damping struct{ wait time.Duration }

const (
	dampFirst = 50 * time.Millisecond
	dampMost  = time.Minute
	dampLived = 30 * time.Second
)

// after is the wait after a session that lived for this long.
func (d *damping) after(lived time.Duration) time.Duration {
	if lived >= dampLived {
		d.wait = 0
	}
	d.wait = min(max(2*d.wait, dampFirst), dampMost)
	return d.wait
}

// machine is a session on its way through the states of RFC 4271 section 8.2.2. Only the session's goroutine touches it.
type machine struct {
	*session
	routers   *routers // of Interface
	damping   damping
	wait      time.Duration // to stay Idle for
	restarted bool          // no session has been established since the process, or the Identity, was new

	peer   Peer    // as it was when the connection was made
	seen   Options // taken in last
	remote netip.Addr

	accepted chan net.Conn // of a passive session
	unlisten func()        // not nil while waiting for a passive peer
	listened netip.Addr

	sent, received []byte     // OPEN messages, for observers
	watchers       []*watcher // that have seen the session
	agreed         agreement
	rib            rib
	since          time.Time // Established; zero otherwise
}

// state is a state of RFC 4271 section 8.2.2: it returns the next one, nil when the session is to end, and why this one
// has ended if that is not what it is for.
type state func(*machine) (next state, why error)

// run walks through the states until the session is to end.
func (s *session) run() {
	defer close(s.done)
	defer s.cancel()
	for _, over := range s.after {
		<-over // it ends in bounded time
	}
	m := &machine{session: s, restarted: true, accepted: make(chan net.Conn, 1)}
	if name := s.identity.Interface; name != "" {
		m.routers = newRouters(name)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { m.routers.run(s.ctx) })
	}
	for st := state(idle); st != nil; {
		next, why := st(m)
		if st = next; why != nil || m.conn != nil && s.ctx.Err() != nil {
			m.ended(why)
		}
		if s.ctx.Err() != nil {
			st = nil
		}
	}
	m.stopListening()
	if s.reason() != endOfVersion {
		s.speaker.watch(s.at, nil)
	}
}

// idle waits for as long as the last session, or attempt, demands, and finds the peer (IdleHoldTimer).
func idle(m *machine) (state, error) {
	if !m.pause() {
		return nil, nil
	}
	m.peer = m.wanted()
	m.seen = m.peer.Options
	if err := m.peer.check(); err != nil {
		m.speaker.watch(m.at, nil)
		m.fail(Idle, err)
		m.wait = time.Hour // until it changes
		return idle, nil
	}
	remote, err := m.locate()
	if err != nil {
		m.fail(Idle, err)
		m.wait = min(m.retry(), time.Second)
		return idle, nil
	}
	m.remote = remote
	m.update(func(st *SessionStatus) { st.Address = remote })
	m.watchPath(m.peer, remote)
	if m.peer.Passive {
		return active, nil // event 4, ManualStart_with_PassiveTcpEstablishment
	}
	return connect, nil // event 1, ManualStart
}

// pause waits for m.wait, or until there are Options that were not seen yet. It is false when the session is to end.
func (m *machine) pause() bool {
	timer := time.NewTimer(m.wait)
	defer timer.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-m.news:
			if m.wanted().Options != m.seen {
				return true
			}
		}
	}
}

// locate finds the address of the peer.
func (m *machine) locate() (netip.Addr, error) {
	switch {
	case m.routers != nil:
		return m.routers.latest()
	case m.identity.DefaultGateway != GatewayNone:
		return netip.Addr{}, m.speaker.noGateway(m.identity.DefaultGateway)
	}
	return m.identity.Address, nil
}

// retry is the time between attempts to connect (ConnectRetryTimer, with the jitter of RFC 4271 section 10).
func (m *machine) retry() time.Duration {
	return jitter(cmp.Or(m.wanted().ConnectTime, time.Second))
}

func jitter(d time.Duration) time.Duration { return d - rand.N(d/4+1) }

// connect opens the TCP connection.
func connect(m *machine) (state, error) {
	m.update(func(st *SessionStatus) { st.State = max(st.State, Connect) })
	started := time.Now()
	c, err := m.speaker.kernel.dial(m.ctx, m.peer, m.remote)
	if err != nil { // event 18, TcpConnectionFails
		m.wait = max(0, m.retry()-time.Since(started))
		if m.routers != nil {
			m.routers.ask()
		}
		return idle, explain(err, m.peer)
	}
	m.hold(c)
	return openSent, nil // event 16, Tcp_CR_Acked
}

// active waits for the peer to connect.
func active(m *machine) (state, error) {
	if m.unlisten == nil || m.listened != m.remote {
		m.stopListening()
		cancel, err := m.speaker.kernel.listen(m.peer, m.remote, m.deliver)
		if err != nil {
			m.wait = m.retry()
			return idle, err
		}
		m.unlisten, m.listened = cancel, m.remote
	}
	m.update(func(st *SessionStatus) { st.State = Active })
	var moved <-chan time.Time
	if m.routers != nil {
		moved = time.After(time.Second)
	}
	for {
		select {
		case c := <-m.accepted:
			m.hold(c)
			return openSent, nil // event 17, TcpConnectionConfirmed
		case <-moved:
			m.wait = 0
			return idle, nil // and look again where the peer is
		case <-m.news:
			if m.wanted().Options != m.peer.Options {
				m.wait = 0
				return idle, nil
			}
		case <-m.ctx.Done():
			return nil, nil
		}
	}
}

// deliver takes in a connection that the peer has opened, instead of any before it. The peer would not connect again if
// it still had the other session (RFC 4724 section 5 says so for peers with graceful restart; RFC 4271 section 6.8 leaves
// it to configuration). Both connections are of the peer's making, so that the identifiers decide nothing.
func (m *machine) deliver(c net.Conn) {
	m.refuse()
	select {
	case m.accepted <- c:
	default: // another came at the same moment, to a listener before this one
		c.Close()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil {
		m.conn.supersede()
	}
}

func (m *machine) stopListening() {
	if m.unlisten == nil {
		return
	}
	m.unlisten()
	m.unlisten = nil
	m.refuse()
}

// refuse closes a connection that waits to be taken.
func (m *machine) refuse() {
	select {
	case c := <-m.accepted:
		c.Close()
	default:
	}
}

// hold makes c the connection of the session.
func (m *machine) hold(c net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conn = newConn(c, m.in, m.out)
}

// cutShort closes the connection as soon as the session is to end, so that it does not sit out a handshake. What it starts
// may still run after stop, and so must not touch the machine.
func (m *machine) cutShort() (stop func() bool) {
	c := m.conn.Conn
	return context.AfterFunc(m.ctx, func() { c.Close() })
}

// openSent sends our OPEN and waits for the peer's.
func openSent(m *machine) (state, error) {
	defer m.cutShort()()
	defer m.during(OpenSent)()
	m.wait = refusedWait
	var err error
	if m.sent, err = m.peer.open(m.remote, m.restarted).bytes(); err != nil {
		return idle, fmt.Errorf("make OPEN: %w", err)
	}
	if err := m.tell(m.sent); err != nil {
		return idle, m.conn.said(err)
	}
	msg, typ, err := m.conn.receive(openWait)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded): // event 10, HoldTimer_Expires
		return idle, fmt.Errorf("no OPEN from the peer within %s: %w", openWait, notify(4, 0))
	case err != nil: // events 18, 21, 22, 24, 25
		return idle, err
	case typ != bgp.BGP_MSG_OPEN: // RFC 6608
		return idle, notify(5, 1, typ)
	}
	m.received = append([]byte(nil), msg...)
	theirs, err := parseOpen(msg)
	if err != nil {
		return idle, err
	}
	if m.agreed, err = m.peer.agree(theirs, m.remote); err != nil { // event 22, BGPOpenMsgErr
		return idle, err
	}
	m.conn.sendHold = max(sendHold, 2*m.agreed.hold)
	return openConfirm, nil // event 19, BGPOpen
}

// openConfirm confirms the peer's OPEN and waits for it to confirm ours.
func openConfirm(m *machine) (state, error) {
	defer m.cutShort()()
	defer m.during(OpenConfirm)()
	if err := m.tell(keepalive); err != nil {
		return idle, m.conn.said(err)
	}
	silence := openWait
	if m.agreed.hold > 0 {
		silence = min(silence, m.agreed.hold)
	}
	_, typ, err := m.conn.receive(silence)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded): // event 10, HoldTimer_Expires
		return idle, notify(4, 0)
	case err != nil:
		return idle, err
	case typ != bgp.BGP_MSG_KEEPALIVE: // RFC 6608
		return idle, notify(5, 2, typ)
	}
	return established, nil // event 26, KeepAliveMsg
}

// tell sends a message at once.
func (m *machine) tell(msg []byte) error {
	if err := m.conn.send(msg); err != nil {
		return err
	}
	return m.conn.flush()
}

// established keeps the peer's routes current until the session ends.
func established(m *machine) (state, error) {
	defer context.AfterFunc(m.ctx, m.conn.hasten)()
	m.cameUp()
	go func() {
		defer close(m.conn.over)
		m.conn.ended = m.read()
		m.conn.hasten() // a write that hangs would not notice
	}()
	why := m.serve()
	m.conn.close(why)
	<-m.conn.over
	return idle, why
}

// serve writes what the peer is to know until the session ends, and says why.
func (m *machine) serve() error {
	err := m.sync(false)
	if err == nil {
		err = endOfRIB(m.agreed.carries, m.send)
	}
	if err = cmp.Or(err, m.conn.flush()); err != nil {
		return m.conn.reason(err)
	}
	var due <-chan time.Time // KeepaliveTimer
	if m.agreed.keepalive > 0 {
		t := time.NewTicker(jitter(m.agreed.keepalive))
		defer t.Stop()
		due = t.C
	}
	for {
		var err error
		select {
		case <-m.conn.over:
			return m.conn.ended
		case <-m.news:
			m.seen = m.wanted().Options
			if err := m.limit(); err != nil { // it may have been lowered
				return err
			}
			err = m.sync(false)
		case <-due: // event 11, KeepaliveTimer_Expires
			err = m.tell(keepalive)
		case why := <-m.bfdDown:
			return fmt.Errorf("BFD: %s: %w", why, notify(6, 10)) // RFC 9384
		case <-m.ctx.Done(): // event 2, ManualStop
			return m.leave()
		}
		if err != nil {
			return m.conn.reason(err)
		}
	}
}

// send sends an UPDATE, and shows it to observers.
func (m *machine) send(update []byte) error {
	err := m.conn.send(update)
	if err == nil {
		m.observed(func(o Observer) { o.Sent(m.at.peer, m.conn.remote, update) })
	}
	return err
}

// sync makes what is wanted now what the peer has been sent, and what the Options say now what holds.
func (m *machine) sync(leaving bool) error {
	m.show()
	m.mu.Lock()
	want, routes, addrs := m.want, m.routes, m.addrs
	m.mu.Unlock()
	if want.BFD != m.peer.BFD {
		m.peer.BFD = want.BFD
		m.watchPath(want, m.remote)
	}
	if want.LinkBandwidth != m.rib.links {
		m.rib.links, m.rib.again = want.LinkBandwidth, [2]bool{true, true}
	}
	for f := range m.rib.again {
		m.rib.again[f] = m.conn.refresh[f].Swap(false) || m.rib.again[f]
	}
	hops := m.rib.hops
	if on, known := neighbours(addrs, m.conn.local.Addr(), m.conn.link); known || hops == (nextHops{}) {
		hops, m.conn.noHop = chooseNextHops(m.conn.local.Addr(), on, want.Options, m.agreed)
	} // else the address of the session itself is gone, and soon the session
	before := m.out[bgp.BGP_MSG_UPDATE].Load()
	if err := m.rib.sync(routes, hops, leaving, m.send); err != nil {
		return err
	}
	if err := m.conn.flush(); err != nil {
		return err
	}
	for f, n := range m.rib.counts() {
		m.conn.sent[f].Store(int64(n))
	}
	if f := m.speaker.config.OnUpdate; f != nil && m.out[bgp.BGP_MSG_UPDATE].Load() != before {
		f(m.at.peer)
	}
	problem := m.problem(want)
	m.update(func(st *SessionStatus) { st.Problem = problem })
	return nil
}

// problem is what is wrong although the session is up.
func (m *machine) problem(want Peer) string {
	var all []string
	add := func(is bool, format string, args ...any) {
		if is {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	add(m.conn.noHop != "", "%s", m.conn.noHop)
	add(want.BFD != (bfd.Profile{}) && m.speaker.bfd == nil, "BFD is not available")
	add(len(m.rib.tooBig) > 0, "%d prefixes are not announced: their communities fill more than one message", len(m.rib.tooBig))
	add(m.conn.tooMany.Load(), "the peer announces more than %d prefixes; they are not counted any more", m.conn.received.Load()-1)
	add(want.HoldTime != m.peer.HoldTime || want.Keepalive != m.peer.Keepalive,
		"the hold and keepalive times of the BGPPeer count from the next session on; this one has %s and %s", m.agreed.hold, m.agreed.keepalive)
	return strings.Join(all, "; ")
}

// read takes in what the peer sends until the session ends, and says why (HoldTimer: each message starts it anew).
func (m *machine) read() error {
	in := newReceived()
	var refreshed [2]time.Time
	for {
		msg, typ, err := m.conn.receive(m.agreed.hold)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // event 10, HoldTimer_Expires
			return notify(4, 0)
		case err != nil && m.conn.superseded():
			return errors.New("the peer has opened a new connection")
		case err != nil:
			return err
		}
		switch typ {
		case bgp.BGP_MSG_OPEN: // RFC 6608
			return notify(5, 3, typ)
		case bgp.BGP_MSG_UPDATE:
			in.take(msg, max(m.maxPrefixes.Load(), countedAtMost))
			m.conn.received.Store(in.n)
			if err := m.limit(); err != nil {
				return err
			}
			if in.known == nil && !m.conn.tooMany.Swap(true) {
				m.news.Set()
			}
		case bgp.BGP_MSG_ROUTE_REFRESH: // RFC 2918
			if len(msg) != headerLen+4 { // outbound route filters (RFC 5291) were not offered
				return notify(7, 1, msg...)
			}
			if afi := uint16(msg[headerLen])<<8 | uint16(msg[headerLen+1]); msg[headerLen+3] == bgp.SAFI_UNICAST && (afi == bgp.AFI_IP || afi == bgp.AFI_IP6) {
				m.refresh(index(afi == bgp.AFI_IP6), &refreshed)
			}
		}
	}
}

// limit says why the session ends if the peer announces more prefixes than it may.
func (m *machine) limit() error {
	if most := m.maxPrefixes.Load(); most > 0 && m.conn.received.Load() > most {
		return fmt.Errorf("the peer announces more than %d prefixes: %w", most, notify(6, 1)) // RFC 4486 section 4
	}
	return nil
}

// refreshEvery is the least time between two refreshes of a family, each of which costs as much as a new session.
const refreshEvery = time.Second

// refresh has the routes of a family sent again. last is when that was, or will be, done last.
func (m *machine) refresh(family int, last *[2]time.Time) {
	now, at := time.Now(), &last[family]
	if at.After(now) {
		return
	}
	if *at = at.Add(refreshEvery); at.Before(now) {
		*at = now
	}
	c := m.conn
	time.AfterFunc(at.Sub(now), func() {
		c.refresh[family].Store(true)
		m.news.Set()
	})
}

// leave ends the established session as the reason for it demands.
func (m *machine) leave() error {
	how := m.reason()
	if m.identity.GracefulRestart > 0 && how != endOfPeer {
		return nil // the peer takes the end of the connection for a restart and keeps the routes (RFC 4724 section 4.2)
	}
	if m.speaker.config.Leave > 0 && m.rib.counts() != [2]int{} {
		if err := m.sync(true); err != nil {
			return err
		}
		select {
		case <-m.conn.over:
			return m.conn.ended
		case <-time.After(m.speaker.config.Leave):
		}
	}
	if how == endOfRun {
		return shutdown(2, "the BGP speaker of this node ends") // Administrative Shutdown (RFC 4486)
	}
	return notify(6, 3) // Peer De-configured
}

// cameUp takes note of a session that is established now.
func (m *machine) cameUp() {
	m.restarted, m.since = false, time.Now()
	select {
	case <-m.bfdDown: // it was about an earlier session
	default:
	}
	a, local := m.agreed, m.conn.local.Addr()
	m.rib = rib{localASN: m.identity.LocalASN, internal: a.internal, as4: a.theirs.as4, links: m.peer.LinkBandwidth, tooBig: map[netip.Prefix]bool{}}
	m.mu.Lock()
	m.logged = ""
	m.mu.Unlock()
	m.watchers = nil
	m.log.Info("BGP session is up", "address", m.remote, "local", local, "asn", a.theirs.asn, "holdTime", a.hold, "keepalive", a.keepalive,
		"ipv4", a.carries[0], "ipv6", a.carries[1], "gracefulRestart", a.restart)
	m.update(func(st *SessionStatus) {
		st.State, st.Local, st.Since, st.Ups = Established, local, m.since, st.Ups+1
		st.PeerASN, st.PeerRouterID, st.IPv4, st.IPv6 = a.theirs.asn, a.theirs.id, a.carries[0], a.carries[1]
		st.HoldTime, st.Keepalive, st.GracefulRestart = a.hold, a.keepalive, a.restart
	})
}

// ended takes note of why there is no session any more, or not yet, and ends the connection if there is one.
func (m *machine) ended(why error) {
	if m.conn != nil {
		if m.conn.superseded() {
			why, m.wait = errors.New("the peer has opened a new connection"), dampFirst
		}
		m.conn.close(why)
	}
	switch {
	case !m.since.IsZero():
		m.wait = m.damping.after(time.Since(m.since))
		m.wait += rand.N(m.wait/4 + 1) // so that the sessions of many nodes spread
		m.since = time.Time{}
		m.down(why)
		m.observed(func(o Observer) { o.Down(m.at.peer, m.conn.remote, why) })
	case m.ctx.Err() == nil:
		m.fail(Active, why)
	}
	m.mu.Lock()
	m.conn = nil
	m.mu.Unlock()
}

// damped says that sessions die young, and how long the next one is put off, "" when that is no time to speak of.
func (m *machine) damped() string {
	if m.damping.wait < time.Second {
		return ""
	}
	return fmt.Sprintf(" (sessions with this peer end soon after they begin; the next attempt is in about %s)", m.damping.wait.Round(time.Second))
}
