// Package bgp keeps BGP sessions and the routes announced in them current. It announces only: what a peer sends is
// counted and dropped.
//
// The library (GoBGP) owns the BGP state machine, the routes and the messages made of them; one BgpServer per peer, so
// that each has its own AS number, router ID and attributes. This package owns the TCP connection to the peer and
// relays messages between it and the library over a loopback connection (relay.go). That is what lets a session be up
// again at once (the library idles for seconds after each failure), lets passive peers share one listener, shows every
// NOTIFICATION, and keeps the library from ever parsing an UPDATE of a peer.
//
// It does not know Kubernetes, and no type of the library leaves it.
package bgp

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/speaker/bfd"
)

// DefaultHoldTime is the hold time to use where none is configured.
const DefaultHoldTime = 90 * time.Second

// Dynamic says which AS numbers a peer may have in place of one that is configured.
type Dynamic uint8

const (
	// DynamicNone demands the configured AS number.
	DynamicNone Dynamic = iota
	// DynamicInternal demands the local AS number.
	DynamicInternal
	// DynamicExternal takes any but the local AS number.
	DynamicExternal
)

// Gateway says of which family the default route is whose gateway is the peer.
type Gateway uint8

// The values of Gateway.
const (
	GatewayNone Gateway = iota
	GatewayIPv4
	GatewayIPv6
)

// Peer says who a session is with and how it is held. It is comparable: a Peer that is equal to the one of before leaves
// its session alone, and one that differs in any field replaces it.
type Peer struct {
	// Name identifies the peer; no two in one Set have the same.
	Name string
	// LocalASN is the AS number that this side gives.
	LocalASN uint32
	// PeerASN is the AS number that the peer must have; ignored unless Dynamic is DynamicNone.
	PeerASN uint32
	// Dynamic replaces PeerASN.
	Dynamic Dynamic

	// Exactly one of Address, Interface and DefaultGateway says where the peer is. Interface means the router behind a
	// network interface, whose link-local address is learned from its router advertisements.
	Address        netip.Addr
	Interface      string
	DefaultGateway Gateway
	// Port is the TCP port of the peer, 0 for 179.
	Port uint16
	// Source is the local address of the session, zero for the kernel's choice.
	Source netip.Addr
	// RouterID is the BGP identifier, an IPv4 address.
	RouterID netip.Addr
	// VRF is the device that the session is bound to, "" for none.
	VRF string

	// HoldTime is the proposed hold time: 0 for a session without keepalives, else whole seconds, 3 to 65535
	// (RFC 4271 section 4.2). There is no default here: see DefaultHoldTime.
	HoldTime time.Duration
	// Keepalive is the time between keepalives when the peer agrees to HoldTime, whole seconds; 0 for a third of it.
	Keepalive time.Duration
	// ConnectTime is the longest time between attempts to connect, whole seconds; 0 for 1 s.
	ConnectTime time.Duration
	// Password is the key of TCP MD5 signatures (RFC 2385), at most 80 bytes, "" for none.
	Password string
	// BFD are the settings of the BFD session beside the BGP session. The zero Profile means none.
	BFD bfd.Profile
	// GracefulRestart is for how long the peer is asked to keep routes after the session broke (RFC 4724), whole
	// seconds, at most 4095; 0 means that they go when the session goes. It also decides how the session ends when Run
	// does: with it, without a NOTIFICATION, so that the peer keeps the routes.
	GracefulRestart time.Duration
	// MultiHop allows routers between this side and an external peer.
	MultiHop bool
	// TTLSecurity sends with a TTL of 255 and drops what arrives with less (RFC 5082).
	TTLSecurity bool
	// Passive waits for the peer to connect.
	Passive bool
	// DualStack carries both address families. Without it, a session carries the family of its own addresses. A session
	// on an Interface always carries both.
	DualStack bool
	// MaxPrefixes ends the session when the peer announces more prefixes than this; 0 for no limit.
	MaxPrefixes uint32
}

// Session is a peer and everything that is to be announced to it.
type Session struct {
	Peer Peer
	// Routes, at most one for each prefix. Those of a family that the session does not carry are left out.
	Routes []route.Route
}

// Config are the settings of a Speaker.
type Config struct {
	// Log receives one line for each session that comes up or goes down, with the reason.
	Log *slog.Logger
	// OnChange, if not nil, is called after the Status of a session has changed, except for its counters. It must
	// return soon and may call Status.
	OnChange func()
	// OnUpdate, if not nil, is called with the name of a peer after an UPDATE was written to it. It must return soon.
	OnUpdate func(peer string)
	// BFD runs the BFD sessions that peers ask for. Nil: such peers have none, and their Status says so.
	BFD *bfd.Runner
	// ListenPort is where Passive peers connect to, 0 for 179.
	ListenPort uint16
	// Leave is for how long routes stay announced with the GRACEFUL_SHUTDOWN community (RFC 8326) before a session
	// without graceful restart ends, so that routers move traffic first. 0 for 1 s, negative for not at all.
	Leave time.Duration
}

// Speaker holds the sessions.
type Speaker struct {
	config  Config
	bfd     *bfd.Client
	listen  *listeners
	changed chan struct{} // Set has been called

	mu       sync.Mutex
	want     map[string]Session
	sessions map[string]*session        // the current session of each name
	ending   map[string]<-chan struct{} // closed when the last session of a name that is gone is over

	bfdMu   sync.Mutex
	bfdWant map[string]bfd.Session // beside the sessions, by name
}

// New is a Speaker without sessions. It does nothing before Run.
func New(c Config) *Speaker {
	c.ListenPort = cmp.Or(c.ListenPort, 179)
	c.Leave = cmp.Or(c.Leave, time.Second)
	s := &Speaker{
		config:   c,
		listen:   newListeners(c.ListenPort),
		changed:  make(chan struct{}, 1),
		sessions: map[string]*session{},
		ending:   map[string]<-chan struct{}{},
		bfdWant:  map[string]bfd.Session{},
	}
	if c.BFD != nil {
		s.bfd = c.BFD.Client(s.bfdChanged)
	}
	return s
}

// Set makes want the sessions to hold and the routes to announce in them; it is the whole truth each time. It never
// waits for the network. No session is opened before the first Set, so that the first End-of-RIB comes after all routes.
func (s *Speaker) Set(want []Session) {
	m := make(map[string]Session, len(want))
	for _, w := range want {
		m[w.Peer.Name] = w
	}
	s.mu.Lock()
	s.want = m
	s.mu.Unlock()
	poke(s.changed)
}

// Run holds the sessions until ctx ends, and then ends them: those with graceful restart silently, the others by
// GRACEFUL_SHUTDOWN, Config.Leave of time and a Cease. BFD must go on until Run has returned.
func (s *Speaker) Run(ctx context.Context) error {
	var all sync.WaitGroup // every session that was started, replaced ones included
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-s.changed:
			s.reconcile(&all)
		}
	}
	s.mu.Lock()
	for _, ses := range s.sessions {
		ses.stop(endOfRun)
	}
	s.mu.Unlock()
	all.Wait()
	s.listen.close()
	return nil
}

// report tells that the status of a session has changed.
func (s *Speaker) report() {
	if s.config.OnChange != nil {
		s.config.OnChange()
	}
}

// reconcile makes the sessions those of s.want. A replaced session is over, and its connection closed, before the next
// one of its name connects: a router takes two for a collision.
func (s *Speaker) reconcile(all *sync.WaitGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.ending, func(_ string, done <-chan struct{}) bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	})
	for name, ses := range s.sessions {
		w, ok := s.want[name]
		switch {
		case !ok:
			ses.stop(endOfPeer)
			delete(s.sessions, name)
			s.ending[name] = ses.done
		case w.Peer != ses.peer:
			next := ses.replace(w.Peer)
			next.setRoutes(w.Routes)
			s.sessions[name] = next
			all.Go(next.run)
		default:
			ses.setRoutes(w.Routes)
		}
	}
	for name, w := range s.want {
		if s.sessions[name] == nil {
			ses := newSession(s, w.Peer, s.ending[name])
			delete(s.ending, name)
			ses.setRoutes(w.Routes)
			s.sessions[name] = ses
			all.Go(ses.run)
		}
	}
}
