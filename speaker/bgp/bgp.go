// Package bgp keeps BGP sessions and the routes announced in them current (RFC 4271). It announces only: what a peer sends
// is counted and dropped.
//
// Set takes the whole truth: the sessions, and for each a Table of routes. fsm.go are the states of a session as
// functions; rib.go is what a peer has been sent, and what it has to be told; message.go and open.go are what goes over
// the wire, made and read by GoBGP's codec but for UPDATEs of peers, which are only counted; socket.go and address.go are
// the kernel.
//
// It does not know Kubernetes, and no type of the codec leaves it.
package bgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/internal/wake"
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

// LinkBandwidth says which of its two forms the link bandwidth community has (RFC 10005 section 2).
type LinkBandwidth uint8

// The non-transitive form stays with the peer's AS; routers may hand the transitive one on.
const (
	LinkBandwidthNonTransitive LinkBandwidth = iota
	LinkBandwidthTransitive
	LinkBandwidthBoth
)

// Peer says who a session is with and how it is held. It is comparable.
type Peer struct {
	// Name identifies the peer; no two in one Set have the same.
	Name string
	Identity
	Options
}

// Identity is what of a Peer makes a session: the protocol cannot change it in one that stands, so that another Identity
// is another session.
type Identity struct {
	// LocalASN is the AS number that this side gives.
	LocalASN uint32
	// PeerASN is the AS number that the peer must have; ignored unless Dynamic is DynamicNone.
	PeerASN uint32
	// Dynamic replaces PeerASN.
	Dynamic Dynamic

	// Exactly one of Address, Interface and DefaultGateway says where the peer is. Interface means the router behind a
	// network interface, whose link-local address is learned from its router advertisements. DefaultGateway means a
	// session with each gateway of the default route.
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
	Auth
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
	// Customer says in OPEN that this side is the customer of the peer, and takes only a peer that is the provider or
	// says nothing of it (RFC 9234).
	Customer bool

	// twin is the name of the peer that has the session with the same router, "" for none.
	twin string
}

// Auth is what the segments of a session are signed with.
type Auth struct {
	// Password is the key of TCP MD5 signatures (RFC 2385), at most 80 bytes, "" for none.
	Password string
}

// Options are what of a Peer may change while its session stands.
type Options struct {
	// HoldTime is the proposed hold time: 0 for a session without keepalives, else whole seconds, 3 to 65535
	// (RFC 4271 section 4.2). There is no default here: see DefaultHoldTime. A change counts from the next OPEN on.
	HoldTime time.Duration
	// Keepalive is the longest time between keepalives, whole seconds; 0 for a third of the hold time that is agreed on,
	// which is also the most. A change counts from the next OPEN on.
	Keepalive time.Duration
	// ConnectTime is the longest time between attempts to connect, whole seconds; 0 for 1 s.
	ConnectTime time.Duration
	// BFD are the settings of the BFD session beside the BGP session. The zero Profile means none.
	BFD bfd.Profile
	// MaxPrefixes ends the session when the peer announces more prefixes than this; 0 for no limit, beyond the 100,000
	// that are counted.
	MaxPrefixes uint32
	// LinkBandwidth is the form of the link bandwidth community.
	LinkBandwidth LinkBandwidth
	// Own4 and Own6 are the addresses that the node is known by. As next hops they are preferred over others on the same
	// interface, which may move to another node; zero for none.
	Own4, Own6 netip.Addr
}

// Session is a peer and everything that is to be announced to it.
type Session struct {
	Peer Peer
	// Routes; those of a family that the session does not carry are left out.
	Routes route.Table
}

// Observer sees what happens in sessions, for example to report it to a monitoring station (RFC 7854). Its methods are
// called by the goroutine of the session, in order, and must return soon. They must not keep the messages.
type Observer interface {
	// Up is called when a session is established, with the OPEN messages of both sides, before anything is sent.
	Up(peer string, local, remote netip.AddrPort, sent, received []byte)
	// Sent is called with each UPDATE message that has been given to the connection.
	Sent(peer string, remote netip.AddrPort, update []byte)
	// Down is called when an established session has ended. A *Notification in reason is the message that ended it.
	Down(peer string, remote netip.AddrPort, reason error)
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
	// Leave is for how long routes stay announced with the GRACEFUL_SHUTDOWN community (RFC 8326) before a session
	// without graceful restart ends, so that routers move traffic first. 0 for 1 s, negative for not at all.
	Leave time.Duration
}

// Speaker holds the sessions.
type Speaker struct {
	config  Config
	kernel  kernel
	bfd     *bfd.Client
	changed wake.Signal // Set has been called, or the node's routes or addresses have changed

	mu       sync.Mutex
	want     []Session // nil before Set
	gateways map[Gateway]gateways
	addrs    []address          // the node's; nil while they are not known
	sessions map[place]*session // the current session of each place
	ending   []*session         // that were stopped, until they are over
	watchers []*watcher         // never changed in place

	bfdMu   sync.Mutex
	bfdWant map[place]bfd.Session // beside the sessions
}

// place says which of the sessions of a Peer: one whose address is that of the default route's gateways has several.
type place struct {
	peer    string
	gateway netip.Addr
}

// gateways are those of a default route, or why there are none.
type gateways struct {
	addrs []netip.Addr
	err   error
}

// New is a Speaker without sessions. It does nothing before Run.
func New(c Config) *Speaker {
	c.Leave = cmp.Or(c.Leave, time.Second)
	return newSpeaker(c, linux{newListeners()})
}

func newSpeaker(c Config, k kernel) *Speaker {
	s := &Speaker{
		config: c, kernel: k, changed: wake.New(), gateways: map[Gateway]gateways{},
		sessions: map[place]*session{}, bfdWant: map[place]bfd.Session{},
	}
	if c.BFD != nil {
		s.bfd = c.BFD.Client(s.bfdChanged)
	}
	return s
}

// Set makes want the sessions to hold and the routes to announce in them; it is the whole truth each time. It never
// waits for the network. No session is opened before the first Set, so that the first End-of-RIB comes after all routes.
// Of peers that turn out to be the same router, the first has a session.
func (s *Speaker) Set(want []Session) {
	s.mu.Lock()
	s.want = append([]Session{}, want...)
	s.mu.Unlock()
	s.changed.Set()
}

// Run holds the sessions until ctx ends, and then ends them: those with graceful restart silently, the others by
// GRACEFUL_SHUTDOWN, Config.Leave of time and a Cease. BFD must go on until Run has returned.
func (s *Speaker) Run(ctx context.Context) error {
	var all sync.WaitGroup // every session that was started, replaced ones included
	var watch sync.WaitGroup
	watch.Go(func() { s.kernel.watch(ctx, s.look) })
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-s.changed:
			if s.reconcile(&all) {
				s.report()
			}
		}
	}
	s.mu.Lock()
	for _, ses := range s.sessions {
		ses.stop(endOfRun)
	}
	s.mu.Unlock()
	all.Wait()
	watch.Wait()
	s.kernel.close()
	return nil
}

// look takes in the addresses of the node, and its default routes. What cannot be read stays what it was.
func (s *Speaker) look(addrs []address, err error) {
	if err != nil {
		s.config.Log.Warn("the node's addresses cannot be read; next hops stay what they are", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil || s.addrs == nil {
		s.addrs = append([]address{}, addrs...)
	}
	for g := range s.gateways {
		s.findGateways(g)
	}
	s.changed.Set()
}

// findGateways looks up the gateways of a default route. Those of one that is gone for a moment stay. s.mu is held.
func (s *Speaker) findGateways(g Gateway) {
	next := s.gateways[g]
	addrs, err := s.kernel.gateways(g)
	if next.err = err; err == nil {
		next.addrs = addrs
	}
	s.gateways[g] = next
}

// report tells that the status of a session has changed.
func (s *Speaker) report() {
	if s.config.OnChange != nil {
		s.config.OnChange()
	}
}

// wanted is the session of each place. s.mu is held.
func (s *Speaker) wanted() map[place]Session {
	all := make(map[place]Session, len(s.want))
	var used []Peer // that have a session
	add := func(gateway netip.Addr, w Session) {
		p := &w.Peer
		if i := slices.IndexFunc(used, func(o Peer) bool { return o.sameRouter(p.Identity) }); i >= 0 {
			p.twin = used[i].Name
		} else {
			used = append(used, *p)
		}
		all[place{p.Name, gateway}] = w
	}
	for _, w := range s.want {
		g := w.Peer.DefaultGateway
		if g == GatewayNone {
			add(netip.Addr{}, w)
			continue
		}
		if _, known := s.gateways[g]; !known {
			s.findGateways(g)
		}
		found := s.gateways[g]
		if len(found.addrs) == 0 {
			all[place{peer: w.Peer.Name}] = w // its status says why
		}
		for _, a := range found.addrs {
			w.Peer.DefaultGateway, w.Peer.Address = GatewayNone, a
			add(a, w)
		}
	}
	return all
}

// reconcile makes the sessions those of s.want. A session is over, and its connection closed, before the next one of its
// place, or of another peer with the same router, connects: a router takes two for a collision. gone says that one has no
// next.
func (s *Speaker) reconcile(all *sync.WaitGroup) (gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.want == nil || s.addrs == nil {
		return false
	}
	s.ending = slices.DeleteFunc(s.ending, func(ses *session) bool {
		select {
		case <-ses.done:
			return true
		default:
			return false
		}
	})
	want := s.wanted()
	for at, ses := range s.sessions {
		w, ok := want[at]
		if ok && w.Peer.Identity == ses.identity {
			continue
		}
		how := endOfPeer
		if ok && w.Peer.ends() == ses.identity.ends() {
			how = endOfVersion
		}
		ses.stop(how)
		if s.ending = append(s.ending, ses); !ok {
			delete(s.sessions, at)
			gone = true
		}
	}
	for at, w := range want {
		ses := s.sessions[at]
		if ses != nil && ses.identity == w.Peer.Identity {
			ses.take(w, s.addrs)
			continue
		}
		ses = newSession(s, at, w.Peer, ses)
		ses.take(w, s.addrs)
		for _, old := range s.ending {
			if old.at == at || old.identity.sameRouter(ses.identity) {
				ses.after = append(ses.after, old.done)
			}
		}
		s.sessions[at] = ses
		all.Go(ses.run)
	}
	return gone
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
	case p.twin != "":
		where := "that on interface " + p.Interface
		if p.Address.IsValid() {
			where = p.Address.String()
		}
		return fmt.Errorf("the peer %q is the same router, %s; its session is used", p.twin, where)
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
	case !seconds(p.Keepalive, 0, math.MaxUint16):
		return fmt.Errorf("keepalive time %s is not whole seconds up to 65535s", p.Keepalive)
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
		return families[:]
	}
	return []bgp.Family{families[index(remote.Is6())]}
}

// external says that the peer can only be of another AS.
func (i Identity) external() bool {
	return i.Dynamic == DynamicExternal || i.Dynamic == DynamicNone && i.PeerASN != i.LocalASN
}

// ends is what of an Identity says between which ends the session is. Only between the same ends does the router take
// the next session for a continuation of this one.
func (i Identity) ends() Identity {
	return Identity{
		LocalASN: i.LocalASN, Address: i.Address, Interface: i.Interface, DefaultGateway: i.DefaultGateway, Port: i.Port,
		Source: i.Source, VRF: i.VRF,
	}
}

// sameRouter says that sessions of the two could be with one router: that behind an interface may have any link-local
// address there.
func (i Identity) sameRouter(o Identity) bool {
	if cmp.Or(i.Port, port) != cmp.Or(o.Port, port) || i.VRF != o.VRF {
		return false
	}
	if i.Interface == "" && o.Interface == "" {
		return i.Address == o.Address && i.Address.IsValid()
	}
	return cmp.Or(i.Interface, i.Address.Zone()) == cmp.Or(o.Interface, o.Address.Zone())
}
