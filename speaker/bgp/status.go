package bgp

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/clarionlb/clarion/speaker/bfd"
)

// State is the state of a session (RFC 4271 section 8.2.2).
type State uint8

// Connect is the first attempt to connect, Active are further ones, or waiting for the peer to connect; Idle is a session
// that cannot be tried, for the reason in LastError. OpenSent and OpenConfirm show only if they last.
const (
	Idle State = iota
	Connect
	Active
	OpenSent
	OpenConfirm
	Established
)

func (s State) String() string {
	return [...]string{"Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established"}[s]
}

// SessionStatus is how a session is.
type SessionStatus struct {
	// Peer is the name of the peer.
	Peer string
	// Address of the peer, zero while it is not known, and Local address of the session, zero without a connection.
	Address, Local netip.Addr
	State          State
	// Since is when the session entered or left Established, or was wanted first.
	Since time.Time
	// Ups counts how often it entered Established.
	Ups uint64
	// LastError is why the session last went down or does not come up, "" if there was nothing. It remains when the
	// session is up again.
	LastError string
	// Problem is what is wrong although the session is up, "" if nothing is: a family that cannot be announced, BFD that
	// cannot run, a change of the Options that does not count yet.
	Problem string

	// What follows is of the established session, and zero without one.

	// PeerASN and PeerRouterID are what the peer gave in its OPEN.
	PeerASN      uint32
	PeerRouterID netip.Addr
	// IPv4 and IPv6 are the families that both sides carry.
	IPv4, IPv6 bool
	// HoldTime and Keepalive are the negotiated timers, 0 for none.
	HoldTime, Keepalive time.Duration
	// GracefulRestart says that both sides agreed on it, with the peer keeping routes for as long as we asked.
	GracefulRestart bool
	// Sent4 and Sent6 count the prefixes that are announced to the peer, Received those that it announces and
	// that are counted.
	Sent4, Sent6, Received int

	// BFD is the BFD session, nil without one.
	BFD *bfd.Status
	// MessagesIn and MessagesOut count since the session was wanted first.
	MessagesIn, MessagesOut Counters
}

// Status is the status of every session that is wanted, sorted by peer and address: a peer that is the gateway of a
// default route has as many as the route has gateways.
func (s *Speaker) Status() []SessionStatus {
	paths := s.bfdStatus()
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]SessionStatus, 0, len(s.sessions))
	for at, ses := range s.sessions {
		st := ses.snapshot()
		st.BFD = paths[at]
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b SessionStatus) int {
		return cmp.Or(strings.Compare(a.Peer, b.Peer), a.Address.Compare(b.Address))
	})
	return all
}
