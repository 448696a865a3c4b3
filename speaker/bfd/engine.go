package bfd

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/clarionlb/clarion/internal/wake"
)

// Config are the settings of a Runner.
type Config struct {
	// Log receives one line for each change from and to Up.
	Log *slog.Logger
}

// Runner runs sessions for its clients.
type Runner struct {
	log      *slog.Logger
	open     func(endpoint, *inbox) (socket, error)
	openEcho func(*inbox) (echoSocket, error)
	changed  wake.Signal // what clients want has changed
	inbox    *inbox

	mu          sync.Mutex
	clients     []*Client
	sessions    map[Peer]*session
	byMine      map[uint32]*session
	timers      timers
	sockets     map[endpoint]socket
	echoes      echoSocket          // nil while no session has the echo function, or it cannot be opened
	echoProblem string              // why it cannot
	problems    map[endpoint]string // why a socket cannot be opened
}

// Client is a user of a Runner.
type Client struct {
	runner   *Runner
	onChange func(Status)
	want     map[Peer]Profile // guarded by runner.mu
}

// endpoint is what a socket is for.
type endpoint struct {
	v6, multihop bool
	vrf          string
}

func (p Peer) endpoint() endpoint { return endpoint{p.Remote.Is6(), p.Multihop, p.VRF} }

// socket sends for the sessions of one endpoint and puts what it receives into the Runner's inbox.
type socket interface {
	// send sends without waiting. An error means that the packet is lost.
	send(b []byte, local, remote netip.Addr) error
	// drain puts everything into the inbox that the kernel has received so far.
	drain()
	close()
}

// received is a packet from the network.
type received struct {
	endpoint
	echo     bool // an echo packet that came back; data is its payload
	from, to netip.Addr
	ttl      uint8
	data     [packetLen]byte
}

// session is a session in the Runner. Its fields are guarded by Runner.mu.
type session struct {
	Peer
	*machine
	since      time.Time
	was        State // before since
	ups, downs uint64
	problem    string
	sent       time.Time // the last packet, zero for none
	next       time.Time // when to send the next packet, zero for never
	echo       echo
	leaving    time.Time // nobody wants it any more; when it may be forgotten
	at         time.Time // when it needs attention, in timers
	index      int       // in timers, -1 when it needs none
}

// New is a Runner without sessions. It does nothing before Run.
func New(c Config) *Runner {
	return &Runner{
		log: c.Log, open: listen, openEcho: listenEcho, changed: wake.New(), inbox: newInbox(),
		sessions: map[Peer]*session{}, byMine: map[uint32]*session{},
		sockets: map[endpoint]socket{}, problems: map[endpoint]string{},
	}
}

// Client adds a user. onChange is called when the state of a session that it wants has changed; it must return soon and
// must not call Set of this Runner's clients from within, but may let another goroutine do so.
func (r *Runner) Client(onChange func(Status)) *Client {
	c := &Client{runner: r, onChange: onChange}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clients = append(r.clients, c)
	return c
}

// Set makes want the sessions of the client; it is the whole truth each time, and does not wait. If two clients want a
// session with the same Peer, the Profile of the client that was added first counts. A session that nobody wants any
// more goes AdminDown, which tells the peer not to take its end for a failure (RFC 5882 section 4.2).
func (c *Client) Set(want []Session) {
	m := make(map[Peer]Profile, len(want))
	for _, w := range want {
		m[w.Peer] = w.Profile
	}
	c.runner.mu.Lock()
	c.want = m
	c.runner.mu.Unlock()
	c.runner.changed.Set()
}

// Status is the status of the client's sessions, in order of their addresses.
func (c *Client) Status() []Status {
	c.runner.mu.Lock()
	defer c.runner.mu.Unlock()
	var all []Status
	for peer := range c.want {
		if s := c.runner.sessions[peer]; s != nil {
			all = append(all, s.status())
		}
	}
	slices.SortFunc(all, func(a, b Status) int {
		return cmp.Or(a.Remote.Compare(b.Remote), a.Local.Compare(b.Local), cmp.Compare(a.VRF, b.VRF))
	})
	return all
}

func (s *session) status() Status {
	st := Status{
		Peer: s.Peer, State: s.state, Was: s.was, Since: s.since, Diag: s.diag, RemoteDiag: s.remoteDiag, RemoteState: s.remoteState,
		Transmit: s.interval(), Detection: s.detection(), Ups: s.ups, Downs: s.downs, Problem: s.problem,
		Echo: s.echoInterval(), Echoes: !s.echoed.IsZero(),
	}
	if st.Echo > 0 {
		st.Problem = cmp.Or(st.Problem, s.echo.problem(st.Echoes, s.profile.Multiplier))
	}
	if s.heard.IsZero() {
		st.RemoteState = Down
	}
	return st
}

// Run runs the sessions until ctx ends. It then falls silent without telling the peers: a client for which that is a
// failure has told them by then, and one that restarts does not want them to know.
func (r *Runner) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	retry := time.NewTicker(time.Second) // of sockets that could not be opened
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, s := range r.sockets {
				s.close()
			}
			clear(r.sockets)
			if r.echoes != nil {
				r.echoes.close()
				r.echoes = nil
			}
			return nil
		case <-r.changed:
			r.work((*Runner).sync)
		case <-retry.C:
			r.work((*Runner).reopen)
		case <-r.inbox.filled:
			r.work((*Runner).receive)
		case <-timer.C:
			r.work((*Runner).expire)
		}
		r.mu.Lock()
		if len(r.timers) > 0 {
			timer.Reset(time.Until(r.timers[0].at))
		}
		r.mu.Unlock()
	}
}

// change is a change of state that clients are to be told of.
type change struct {
	Status
	tell []func(Status)
}

// work runs f with the Runner locked, and then tells the clients of the changes that f returns.
func (r *Runner) work(f func(*Runner) []change) {
	r.mu.Lock()
	changes := f(r)
	r.mu.Unlock()
	for _, c := range changes {
		for _, tell := range c.tell {
			tell(c.Status)
		}
	}
}

// changedState notes that a session has just changed its state from before.
func (r *Runner) changedState(s *session, before State, now time.Time) change {
	s.since, s.was = now, before
	args := []any{"peer", s.Remote, "state", s.state, "diag", s.diag, "remoteState", s.remoteState, "remoteDiag", s.remoteDiag}
	switch {
	case s.state == Up:
		s.ups++
		r.log.Info("BFD session is up", args...)
	case before == Up:
		s.downs++
		r.log.Warn("BFD session is down", args...)
	}
	c := change{Status: s.status()}
	for _, client := range r.clients {
		if _, ok := client.want[s.Peer]; ok {
			c.tell = append(c.tell, client.onChange)
		}
	}
	return c
}

// sync makes the sessions those that clients want.
func (r *Runner) sync() []change {
	now := time.Now()
	want := map[Peer]Profile{}
	for _, c := range slices.Backward(r.clients) {
		for peer, profile := range c.want {
			want[peer] = profile
		}
	}
	for peer, profile := range want {
		if !peer.canEcho() {
			profile.Echo = 0
		}
		s := r.sessions[peer]
		if s == nil {
			s = &session{Peer: peer, machine: newMachine(profile, r.discriminator()), since: now, index: -1, echo: newEcho()}
			r.sessions[peer], r.byMine[s.mine] = s, s
			r.log.Debug("BFD session is wanted", "peer", peer.Remote, "local", peer.Local)
		} else if s.profile != profile || !s.leaving.IsZero() {
			s.leaving = time.Time{}
			s.configure(profile)
		}
		r.schedule(s, now)
	}
	for peer, s := range r.sessions {
		if _, ok := want[peer]; ok || !s.leaving.IsZero() {
			continue
		}
		// RFC 5880 section 6.8.16: the peer is told for as long as it may take it to notice.
		s.enter(AdminDown, DiagAdministratively)
		s.leaving = now
		if !s.heard.IsZero() {
			s.leaving = now.Add(time.Duration(s.profile.Multiplier) * slow)
			r.transmit(s, s.packet(), now)
		}
		r.schedule(s, now)
	}
	return r.reopen()
}

// discriminator draws one that no session has.
func (r *Runner) discriminator() uint32 {
	for {
		if d := rand.Uint32(); d != 0 && r.byMine[d] == nil {
			return d
		}
	}
}

// reopen opens the sockets that sessions need and closes those that none needs.
func (r *Runner) reopen() []change {
	need := map[endpoint]bool{}
	for peer := range r.sessions {
		need[peer.endpoint()] = true
	}
	for e := range need {
		if r.sockets[e] != nil {
			continue
		}
		s, err := r.open(e, r.inbox)
		if err != nil {
			if r.problems[e] != err.Error() {
				r.log.Error("BFD cannot run", "reason", err)
			}
			r.problems[e] = err.Error()
			continue
		}
		r.sockets[e] = s
		delete(r.problems, e)
	}
	for e, s := range r.sockets {
		if !need[e] {
			s.close()
			delete(r.sockets, e)
		}
	}
	r.reopenEcho()
	return nil
}

// receive takes in what sockets have received.
func (r *Runner) receive() []change {
	now := time.Now()
	var changes []change
	for _, in := range r.inbox.take() {
		if in.echo {
			r.echoCameBack(in, now)
			continue
		}
		p, err := parse(in.data[:])
		if err != nil {
			r.log.Debug("BFD packet dropped", "from", in.from, "reason", err)
			continue
		}
		s := r.find(in, p)
		if s == nil || !s.ttlIsRight(in.ttl) {
			r.log.Debug("BFD packet dropped", "from", in.from, "ttl", in.ttl, "found", s != nil)
			continue
		}
		before := s.state
		if answer, ok := s.machine.receive(p, now); ok {
			r.transmit(s, answer, now)
		}
		if s.state != before {
			changes = append(changes, r.changedState(s, before, now))
		}
		r.schedule(s, now)
	}
	return changes
}

// find is the session that a packet is for, nil if there is none (RFC 5880 section 6.3, RFC 5881 section 3).
func (r *Runner) find(in received, p packet) *session {
	if p.yours != 0 {
		s := r.byMine[p.yours]
		if s != nil && (s.endpoint() != in.endpoint || s.Remote != in.from) {
			return nil
		}
		return s
	}
	for _, local := range []netip.Addr{in.to, {}} {
		if s := r.sessions[Peer{Remote: in.from, Local: local, Multihop: in.multihop, VRF: in.vrf}]; s != nil {
			return s
		}
	}
	return nil
}

// ttlIsRight says whether a packet may have come with that TTL: across one link with 255 only, because nobody beyond
// can send that (RFC 5881 section 5), else with the configured minimum (RFC 5883 section 6).
func (s *session) ttlIsRight(ttl uint8) bool {
	if !s.Multihop {
		return ttl == 255
	}
	return ttl >= cmp.Or(s.profile.MinTTL, 254)
}

// transmit sends a packet of a session.
func (r *Runner) transmit(s *session, p packet, now time.Time) {
	s.sent = now
	sock := r.sockets[s.endpoint()]
	if sock == nil {
		s.problem = r.problems[s.endpoint()]
		return
	}
	var b [packetLen]byte
	s.problem = ""
	if err := sock.send(p.append(b[:0]), s.Local, s.Remote); err != nil {
		s.problem = fmt.Sprintf("send to %s: %v", s.Remote, err)
	}
}

// expire does what is due.
func (r *Runner) expire() []change {
	var changes []change
	for len(r.timers) > 0 {
		now := time.Now()
		s := r.timers[0]
		if s.at.After(now) {
			break
		}
		if !s.leaving.IsZero() && !s.leaving.After(now) {
			heap.Remove(&r.timers, s.index)
			delete(r.sessions, s.Peer)
			delete(r.byMine, s.mine)
			continue
		}
		if d := s.detection(); d > 0 && !s.heard.Add(d).After(now) {
			// This process may have slept, with packets waiting: the peer is down only if the kernel has none either.
			if sock := r.sockets[s.endpoint()]; sock != nil {
				sock.drain()
				changes = append(changes, r.receive()...)
			}
			if d := s.detection(); d > 0 && !s.heard.Add(d).After(now) {
				before := s.state
				if s.machine.expire() {
					changes = append(changes, r.changedState(s, before, now))
					r.transmit(s, s.packet(), now)
				}
			}
		}
		changes = append(changes, r.expireEcho(s, now)...)
		if !s.next.IsZero() && !s.next.After(now) {
			r.transmit(s, s.packet(), now)
			s.next = time.Time{}
		}
		r.schedule(s, now)
	}
	return changes
}

// schedule brings a session's timers in line with its state.
func (r *Runner) schedule(s *session, now time.Time) {
	if i := s.interval(); i == 0 {
		s.next = time.Time{}
	} else if wait := jitter(i, s.profile.Multiplier, rand.Float64()); s.sent.IsZero() {
		s.next = now // the first packet
	} else if s.next.IsZero() || s.next.Before(s.sent) || s.next.After(s.sent.Add(i)) { // just sent, or the interval has become shorter
		s.next = s.sent.Add(wait)
	}
	s.echo.schedule(s.echoInterval(), s.profile.Multiplier, now)
	at := s.next
	for _, t := range []time.Time{s.leaving, s.heard.Add(s.detection()), s.echo.next, s.echoed.Add(s.echoDetection())} {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	s.at = at
	switch {
	case at.IsZero() && s.index >= 0:
		heap.Remove(&r.timers, s.index)
	case at.IsZero():
	case s.index >= 0:
		heap.Fix(&r.timers, s.index)
	default:
		heap.Push(&r.timers, s)
	}
}

// timers is a heap of sessions, the one that is due first at the top.
type timers []*session

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at.Before(t[j].at) }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i]; t[i].index, t[j].index = i, j }

func (t *timers) Push(x any) {
	s := x.(*session)
	s.index = len(*t)
	*t = append(*t, s)
}

func (t *timers) Pop() any {
	old := *t
	s := old[len(old)-1]
	old[len(old)-1] = nil
	s.index = -1
	*t = old[:len(old)-1]
	return s
}

// inbox holds packets between sockets and the Runner.
type inbox struct {
	filled wake.Signal
	mu     sync.Mutex
	queue  []received
}

// inboxSize bounds the queue; more packets than that are dropped, as a full socket buffer would.
const inboxSize = 8192

func newInbox() *inbox { return &inbox{filled: wake.New()} }

// fill adds what next returns, until it returns false. The lock is held throughout, so that a packet is always either
// with the kernel or in the queue.
func (i *inbox) fill(next func() (received, bool)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for {
		p, ok := next()
		if !ok {
			break
		}
		if len(i.queue) < inboxSize {
			i.queue = append(i.queue, p)
		}
	}
	if len(i.queue) > 0 {
		i.filled.Set()
	}
}

func (i *inbox) take() []received {
	i.mu.Lock()
	defer i.mu.Unlock()
	q := i.queue
	i.queue = nil
	return q
}
