package bgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/speaker/bfd"
)

const (
	// refusedWait is the time between attempts when the peer answers but refuses the session.
	refusedWait = 1500 * time.Millisecond
	// movedCheck is how often the address of a peer that is not configured is looked up again.
	movedCheck = 2 * time.Second
)

// ending says why a session is to end, and so how.
type ending uint8

const (
	goOn         ending = iota
	endOfVersion        // the Peer has changed: another session of the same name follows
	endOfPeer           // the Peer is gone
	endOfRun            // Run ends
)

// session is the session of one Peer. Its goroutine, run, is the only one that touches the library.
type session struct {
	speaker *Speaker
	peer    Peer
	log     *slog.Logger
	after   <-chan struct{} // closed when the session before this one of the same name is over; nil for none
	done    chan struct{}   // closed when this one is over
	changed chan struct{}   // routes have changed
	bfdDown chan string     // BFD went down, and why
	ctx     context.Context // ends when the session is to end
	cancel  context.CancelFunc
	in, out *counters // go on across sessions of the same name

	mu     sync.Mutex
	how    ending
	routes []route.Route
	status SessionStatus
	logged string // the last reason for not coming up that was logged
	relay  *relay // of the established session, nil without one
}

func newSession(s *Speaker, p Peer, after <-chan struct{}) *session {
	ctx, cancel := context.WithCancel(context.Background())
	return &session{
		speaker: s, peer: p, log: s.config.Log.With("peer", p.Name), after: after,
		done: make(chan struct{}), changed: make(chan struct{}, 1), bfdDown: make(chan string, 1),
		ctx: ctx, cancel: cancel, in: &counters{}, out: &counters{},
		status: SessionStatus{Peer: p.Name, Address: p.Address, Since: time.Now()},
	}
}

// replace is the session that follows when the Peer changes to p.
func (s *session) replace(p Peer) *session {
	how := endOfPeer
	if p.place() == s.peer.place() {
		how = endOfVersion
	}
	s.stop(how)
	next := newSession(s.speaker, p, s.done)
	next.in, next.out = s.in, s.out
	s.mu.Lock()
	defer s.mu.Unlock()
	next.status.Ups = s.status.Ups
	return next
}

// place is what of a Peer says where the session is. Only between the same ends does the router take the next session for
// a continuation of this one.
func (p Peer) place() Peer {
	return Peer{
		LocalASN: p.LocalASN, Address: p.Address, Interface: p.Interface, DefaultGateway: p.DefaultGateway, Port: p.Port,
		Source: p.Source, VRF: p.VRF,
	}
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *session) setRoutes(r []route.Route) {
	s.mu.Lock()
	s.routes = r
	s.mu.Unlock()
	poke(s.changed)
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
	if s.relay != nil {
		st.Sent4, st.Sent6, st.Received, st.LastUpdate = s.relay.counts()
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

// check says why the Peer cannot have a session, nil if it can.
func (p Peer) check() error {
	where := 0
	for _, b := range []bool{p.Address.IsValid(), p.Interface != "", p.DefaultGateway != GatewayNone} {
		if b {
			where++
		}
	}
	seconds := func(d time.Duration, least, most int) bool {
		return d%time.Second == 0 && d >= time.Duration(least)*time.Second && d <= time.Duration(most)*time.Second
	}
	switch {
	case where != 1:
		return errors.New("exactly one of address, interface and default gateway must say where the peer is")
	case p.LocalASN == 0:
		return errors.New("the local AS number is 0")
	case p.Dynamic == DynamicNone && p.PeerASN == 0:
		return errors.New("the peer's AS number is 0")
	case !p.RouterID.Is4() || p.RouterID.IsUnspecified():
		return errors.New("there is no router ID; on a node without an IPv4 address one must be configured")
	case p.HoldTime != 0 && !seconds(p.HoldTime, 3, math.MaxUint16): // RFC 4271 section 4.2
		return fmt.Errorf("hold time %s is neither 0 nor whole seconds from 3s to 65535s", p.HoldTime)
	case p.Keepalive != 0 && !seconds(p.Keepalive, 1, math.MaxUint16/3):
		return fmt.Errorf("keepalive time %s is not whole seconds from 1s to 21845s", p.Keepalive)
	case !seconds(p.GracefulRestart, 0, 4095): // RFC 4724 section 3
		return fmt.Errorf("restart time %s is not whole seconds up to 4095s", p.GracefulRestart)
	case len(p.Password) > 80:
		return errors.New("the password is longer than 80 bytes")
	case p.TTLSecurity && p.MultiHop:
		return errors.New("TTL security and multi-hop exclude each other")
	}
	if p.BFD != (bfd.Profile{}) {
		return p.BFD.Validate()
	}
	return nil
}

// families are those that the session carries, given the address of the peer.
func (p Peer) families(remote netip.Addr) []bgp.Family {
	if p.DualStack || p.Interface != "" {
		return []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC}
	}
	return []bgp.Family{familyOf(remote)}
}

// run keeps the session until it is to end.
func (s *session) run() {
	defer close(s.done)
	defer s.cancel()
	if s.after != nil {
		<-s.after // it ends in bounded time
	}
	defer func() {
		if s.reason() != endOfVersion {
			s.speaker.watch(s, nil)
		}
	}()
	if err := s.peer.check(); err != nil {
		s.speaker.watch(s, nil)
		s.fail(Idle, err)
		<-s.ctx.Done()
		return
	}
	var routers *routers
	if s.peer.Interface != "" {
		routers = newRouters(s.peer.Interface)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { routers.run(s.ctx) })
	}
	k := &keeper{session: s, routers: routers, restarted: true}
	defer k.close()
	for s.ctx.Err() == nil {
		wait := k.attempt()
		if routers != nil {
			routers.ask()
		}
		select {
		case <-s.ctx.Done():
		case <-time.After(wait):
		}
	}
}

// keeper is what run has in hand.
type keeper struct {
	*session
	routers   *routers
	lib       *library
	restarted bool // no session has been established since the process, or the Peer, was new
	accepted  chan *net.TCPConn
	unlisten  func() // not nil while waiting for a passive peer
	listened  netip.Addr
}

func (k *keeper) close() {
	k.stopListening()
	if k.lib != nil {
		k.lib.stop()
	}
}

func (k *keeper) stopListening() {
	if k.unlisten != nil {
		k.unlisten()
		k.unlisten = nil
		select {
		case c := <-k.accepted:
			c.Close()
		default:
		}
	}
}

// attempt makes one connection and holds the session on it until it ends. It returns how long to wait before the next.
func (k *keeper) attempt() time.Duration {
	retry := cmp.Or(k.peer.ConnectTime, time.Second)
	retry -= time.Duration(rand.Int64N(int64(retry / 4))) // RFC 4271 section 10: a jitter of 75 to 100 %
	remote, err := k.locate()
	if err != nil {
		k.fail(Idle, err)
		return min(retry, time.Second)
	}
	k.update(func(st *SessionStatus) { st.Address = remote })
	k.watchPath(remote)
	started := time.Now()
	wire, err := k.connect(remote)
	if k.ctx.Err() != nil {
		return 0
	}
	if err != nil {
		k.fail(Active, err)
		return retry - time.Since(started)
	}
	wasUp, err := k.hold(wire, remote)
	switch {
	case wasUp:
		return 50 * time.Millisecond
	case k.ctx.Err() == nil:
		k.fail(Active, err)
	}
	return refusedWait
}

// locate finds the address of the peer.
func (k *keeper) locate() (netip.Addr, error) {
	switch {
	case k.routers != nil:
		return k.routers.latest()
	case k.peer.DefaultGateway != GatewayNone:
		return gateway(k.peer.DefaultGateway)
	}
	return k.peer.Address, nil
}

// connect opens the TCP connection, or waits for the peer to open it.
func (k *keeper) connect(remote netip.Addr) (*net.TCPConn, error) {
	if !k.peer.Passive {
		k.update(func(st *SessionStatus) { st.State = max(st.State, Connect) })
		// Short attempts: the SYN that the kernel repeats after one second, then two, comes too late for a peer that is
		// back by then.
		c, err := dial(k.ctx, k.peer, remote, time.Second)
		if err != nil {
			err = explain(err, k.peer)
		}
		return c, err
	}
	if k.unlisten == nil || k.listened != remote {
		k.stopListening()
		k.accepted = make(chan *net.TCPConn, 1)
		cancel, err := k.speaker.listen.wait(k.peer, remote, k.accepted)
		if err != nil {
			return nil, err
		}
		k.unlisten, k.listened = cancel, remote
	}
	k.update(func(st *SessionStatus) { st.State = Active })
	var moved <-chan time.Time
	if !k.peer.Address.IsValid() {
		moved = time.After(movedCheck)
	}
	select {
	case c := <-k.accepted:
		raw, err := c.SyscallConn()
		if err == nil {
			err = control(raw, func(fd int) error { return setTTL(fd, k.peer, remote.Is6()) })
		}
		if err != nil {
			c.Close()
			return nil, err
		}
		return c, nil
	case <-moved:
		return nil, errors.New("the peer has not connected yet")
	case <-k.ctx.Done():
		return nil, k.ctx.Err()
	}
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

// plain is err without addresses of the connection, whose port is another each time.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// hold runs the session on a connection until it ends, and says why, and whether it was established.
func (k *keeper) hold(wire *net.TCPConn, remote netip.Addr) (wasUp bool, err error) {
	r := newRelay(wire, k.in, k.out, k.peer.MaxPrefixes)
	if f := k.speaker.config.OnUpdate; f != nil {
		r.onUpdate = func() { f(k.peer.Name) }
	}
	// A session that is to end does not sit out a handshake.
	interrupt := context.AfterFunc(k.ctx, func() { wire.Close() })
	defer interrupt()
	defer func() { r.close(err) }() // for what fails early
	local := wire.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	over := k.during(OpenSent)
	defer func() { over() }()
	theirs, err := r.open(k.ourOpen(remote))
	if err != nil {
		return false, err
	}
	if err := k.acceptable(theirs); err != nil {
		return false, err
	}

	internal := theirs.asn == k.peer.LocalASN
	carries := func(f bgp.Family) bool { return slices.Contains(k.peer.families(remote), f) && theirs.carries(f) }
	v4, v6 := carries(bgp.RF_IPv4_UC), carries(bgp.RF_IPv6_UC)
	if !v4 && !v6 {
		var missing []byte // the capabilities that would do, as in an OPEN (RFC 5492 section 5)
		for _, f := range k.peer.families(remote) {
			missing = append(missing, byte(bgp.BGP_CAP_MULTIPROTOCOL), 4, byte(f.Afi()>>8), byte(f.Afi()), 0, f.Safi())
		}
		return false, notify(2, 7, missing)
	}
	addrs, err := neighbours(local)
	if err != nil {
		return false, err
	}
	hops := chooseNextHops(local, addrs, v4, v6, theirs.v4over6)
	if k.lib == nil {
		if k.lib, err = startLibrary(k.peer, k.peer.families(remote)); err != nil {
			return false, err
		}
	}
	// Every path first: the library sends End-of-RIB behind what it has when the session comes up.
	if err := k.announce(hops, internal, false); err != nil {
		return false, err
	}
	lib, err := k.lib.connect()
	if err != nil {
		return false, err
	}
	var pumps sync.WaitGroup
	defer func() {
		r.close(err)
		pumps.Wait()
		r.drain(lib)
		k.lib.disconnect()
		lib.Close()
	}()
	over()
	over = k.during(OpenConfirm)
	silence := openWait
	if h := min(k.peer.HoldTime, theirs.hold); h > 0 {
		silence = min(silence, h)
	}
	if err := r.introduce(lib, k.forLibrary(theirs), silence); err != nil {
		return false, err
	}

	ended := make(chan error, 2)
	pumps.Go(func() { ended <- r.outbound() })
	if err := k.lib.establish(r.start); err != nil {
		return false, err
	}
	pumps.Go(func() {
		if err := r.inbound(); err != nil {
			ended <- err
		}
	})
	if !interrupt() {
		return false, k.ctx.Err()
	}
	over()
	if err := k.up(r, theirs, local, hops, v4, v6); err != nil {
		return false, err
	}
	err = k.serve(r, remote, hops, internal, ended)
	k.down(err)
	return true, err
}

// serve keeps the routes of the established session current until it ends, and says why.
func (k *keeper) serve(r *relay, remote netip.Addr, hops nextHops, internal bool, ended <-chan error) error {
	var moved <-chan time.Time
	if !k.peer.Address.IsValid() {
		t := time.NewTicker(movedCheck)
		defer t.Stop()
		moved = t.C
	}
	for {
		select {
		case err := <-ended:
			return err
		case <-k.changed:
			if err := k.announce(hops, internal, false); err != nil {
				return err
			}
		case <-r.refresh:
			if err := k.lib.refresh(); err != nil {
				return err
			}
		case why := <-k.bfdDown:
			return fmt.Errorf("BFD: %s: %w", why, notify(6, 10, nil)) // RFC 9384
		case <-moved:
			if now, err := k.locate(); k.routers == nil && err == nil && now != remote {
				return fmt.Errorf("the default gateway is now %s: %w", now, notify(6, 3, nil))
			}
		case c := <-k.accepted:
			// The peer would not connect again if it still had this session (RFC 4724 section 5 says so for peers with
			// graceful restart; RFC 4271 section 6.8 leaves it to configuration).
			select {
			case k.accepted <- c:
			default: // and then another
				c.Close()
			}
			return errors.New("the peer has opened a new connection")
		case <-k.ctx.Done():
			return k.leave(hops, internal, ended)
		}
	}
}

// leave ends the established session as the reason for it demands.
func (k *keeper) leave(hops nextHops, internal bool, ended <-chan error) error {
	how := k.reason()
	if k.peer.GracefulRestart > 0 && how != endOfPeer {
		return nil // the peer takes the end of the connection for a restart and keeps the routes (RFC 4724 section 4.2)
	}
	if k.speaker.config.Leave > 0 && len(k.lib.have) > 0 {
		if err := k.announce(hops, internal, true); err != nil {
			return err
		}
		select {
		case err := <-ended:
			return err
		case <-time.After(k.speaker.config.Leave):
		}
	}
	if how == endOfRun {
		return notify(6, 2, nil) // Administrative Shutdown (RFC 4486)
	}
	return notify(6, 3, nil) // Peer De-configured
}

// announce makes the wanted routes those of the library, marked as about to go if leaving.
func (k *keeper) announce(hops nextHops, internal, leaving bool) error {
	k.mu.Lock()
	routes := k.routes
	k.mu.Unlock()
	want := make(map[netip.Prefix]path, len(routes))
	for _, r := range routes {
		hop := hops.of(r.Prefix)
		if !r.Prefix.IsValid() || !hop.IsValid() {
			continue
		}
		if leaving { // RFC 8326 section 4: the community for the peer, and preferences for routers that ignore it
			lowest, highest := uint32(0), uint32(math.MaxUint32)
			r.Attrs = r.Attrs.Merge(route.Attrs{Communities: []route.Community{route.GracefulShutdown}})
			r.LocalPref, r.MED = &lowest, &highest
		}
		want[r.Prefix.Masked()] = path{r.Attrs, hop}
	}
	return k.lib.set(want, internal)
}

// ourOpen is the OPEN that the peer gets.
func (k *keeper) ourOpen(remote netip.Addr) open {
	fs := k.peer.families(remote)
	o := open{asn: k.peer.LocalASN, id: k.peer.RouterID, hold: k.peer.HoldTime, families: fs, refresh: true}
	o.v4over6 = remote.Is6() && slices.Contains(fs, bgp.RF_IPv4_UC)
	if name, err := os.Hostname(); err == nil && len(name) < 64 {
		o.name = name
	}
	if k.peer.GracefulRestart > 0 {
		// Traffic goes on while this process restarts, so the Forwarding State bit is always true; without it some
		// routers drop the routes that they kept (RFC 4724 section 4.2).
		var tuples []*bgp.CapGracefulRestartTuple
		for _, f := range fs {
			tuples = append(tuples, bgp.NewCapGracefulRestartTuple(f, true))
		}
		o.restart = bgp.NewCapGracefulRestart(k.restarted, false, uint16(k.peer.GracefulRestart/time.Second), tuples)
	}
	return o
}

// acceptable says whether the session with a peer that gave this OPEN is allowed.
func (k *keeper) acceptable(theirs open) error {
	as := theirs.asn
	internal := as == k.peer.LocalASN
	switch {
	case k.peer.Dynamic == DynamicNone && as != k.peer.PeerASN:
		return fmt.Errorf("the peer has AS number %d, not %d: %w", as, k.peer.PeerASN, notify(2, 2, nil))
	case k.peer.Dynamic == DynamicInternal && !internal:
		return fmt.Errorf("the peer has AS number %d, which is not the local one: %w", as, notify(2, 2, nil))
	case k.peer.Dynamic == DynamicExternal && internal:
		return fmt.Errorf("the peer has the local AS number %d: %w", as, notify(2, 2, nil))
	case theirs.hold != 0 && theirs.hold < 3*time.Second: // RFC 4271 section 6.2
		return fmt.Errorf("the peer demands a hold time of %s: %w", theirs.hold, notify(2, 6, nil))
	case theirs.id.IsUnspecified(), internal && theirs.id == k.peer.RouterID: // RFC 6286 section 2.2
		return fmt.Errorf("the peer has the router ID %s: %w", theirs.id, notify(2, 3, nil))
	}
	return nil
}

// forLibrary is the peer's OPEN as the library is told of it: only what it is to act on.
func (k *keeper) forLibrary(theirs open) open {
	theirs.name = ""
	if k.peer.HoldTime == 0 { // which the library cannot be configured to
		theirs.hold = 0
	}
	return theirs
}

// up takes note of a session that is established now.
func (k *keeper) up(r *relay, theirs open, local netip.Addr, hops nextHops, v4, v6 bool) error {
	hold, keepalive, err := k.lib.negotiated()
	if err != nil {
		return err
	}
	if hold == 0 {
		keepalive = 0
	}
	k.restarted = false
	select {
	case <-k.bfdDown: // it was about an earlier session
	default:
	}
	k.mu.Lock()
	k.relay, k.logged = r, ""
	k.mu.Unlock()
	k.update(func(st *SessionStatus) {
		st.State, st.Local, st.Since, st.Ups = Established, local, time.Now(), st.Ups+1
		st.PeerASN, st.PeerRouterID, st.IPv4, st.IPv6 = theirs.asn, theirs.id, v4, v6
		st.HoldTime, st.Keepalive = hold, keepalive
		st.GracefulRestart = k.peer.GracefulRestart > 0 && theirs.restart != nil
		if st.Problem = hops.problem; st.Problem == "" && k.peer.BFD != (bfd.Profile{}) && k.speaker.bfd == nil {
			st.Problem = "BFD is not available"
		}
	})
	st := k.snapshot()
	k.log.Info("BGP session is up", "address", st.Address, "local", st.Local, "asn", st.PeerASN, "holdTime", hold, "keepalive", keepalive,
		"ipv4", v4, "ipv6", v6, "gracefulRestart", st.GracefulRestart, "problem", st.Problem)
	poke(k.changed) // routes may have changed since they were given to the library
	return nil
}

// down takes note of the end of an established session. An err of nil is a restart that the peer bridges.
func (k *keeper) down(err error) {
	if err == nil {
		err = errors.New("restart of the session")
	}
	level := slog.LevelWarn
	if k.ctx.Err() != nil { // as wanted
		level = slog.LevelInfo
	}
	k.log.Log(context.Background(), level, "BGP session is down", "reason", err)
	k.mu.Lock()
	k.relay = nil
	k.mu.Unlock()
	k.update(func(st *SessionStatus) {
		*st = SessionStatus{Peer: st.Peer, Address: st.Address, State: Active, Since: time.Now(), Ups: st.Ups, LastError: err.Error()}
	})
}

// fail takes note of why there is no session. A reason that stays the same is logged once.
func (s *session) fail(state State, err error) {
	s.mu.Lock()
	same := s.logged == err.Error()
	s.logged = err.Error()
	s.mu.Unlock()
	if !same {
		s.log.Warn("BGP session does not come up", "reason", err)
	}
	s.update(func(st *SessionStatus) { st.State, st.LastError = state, err.Error() })
}
