// Package bfd runs Bidirectional Forwarding Detection sessions: RFC 5880 in asynchronous mode without authentication,
// with the echo function over one hop of IPv4, over RFC 5881 (one hop, UDP port 3784) and RFC 5883 (several hops, port 4784), for
// IPv4 and IPv6. It tells its clients within the detection time when a peer, or the path to it, has died.
//
// It knows neither BGP nor Kubernetes. fsm.go decides and does no I/O, packet.go is the codec, engine.go holds the
// sessions and their timers, socket.go and echo.go are the network.
package bfd

import (
	"fmt"
	"net/netip"
	"time"
)

// Peer says who a session is with. Two sessions with the same Peer are the same session.
type Peer struct {
	// Remote is the peer's address. A link-local address has a zone.
	Remote netip.Addr
	// Local is the address that packets are sent from. Zero: the kernel's choice.
	Local netip.Addr
	// Multihop says that routers may lie between (RFC 5883).
	Multihop bool
	// VRF is the device that packets are bound to, "" for none.
	VRF string
}

// Profile are the settings of a session. The zero Profile means no BFD.
type Profile struct {
	// Receive is the shortest time between packets that this side can take, 10 ms to 60 s.
	Receive time.Duration
	// Transmit is the shortest time between packets that this side wants to send, 10 ms to 60 s. While the session is
	// not Up it is at least one second (RFC 5880 section 6.8.3).
	Transmit time.Duration
	// Multiplier is how many packets of ours may be missed before the peer takes the session down, 2 to 255.
	Multiplier uint8
	// Passive sends nothing before a packet of the peer was received (RFC 5880 section 6.1).
	Passive bool
	// MinTTL is the lowest TTL that packets of a Multihop session may arrive with, 1 to 255. 0 means 254. Packets of
	// other sessions must arrive with 255 (RFC 5881 section 5).
	MinTTL uint8
	// Echo is the shortest time between echo packets, both those that this side sends and those that it is ready to send
	// back, 10 ms to 60 s; 0 switches the echo function off. Only sessions over one hop of IPv4 have it; see echo.go.
	Echo time.Duration
}

// Session is a session that a client wants.
type Session struct {
	Peer
	Profile
}

// Validate says what is wrong with the settings, nil if nothing is.
func (p Profile) Validate() error {
	for _, v := range []struct {
		name string
		d    time.Duration
	}{{"receive interval", p.Receive}, {"transmit interval", p.Transmit}} {
		if v.d < 10*time.Millisecond || v.d > time.Minute {
			return fmt.Errorf("bfd: %s %s is not between 10ms and 1m", v.name, v.d)
		}
	}
	if p.Echo != 0 && (p.Echo < 10*time.Millisecond || p.Echo > time.Minute) {
		return fmt.Errorf("bfd: echo interval %s is not between 10ms and 1m", p.Echo)
	}
	if p.Multiplier < 2 {
		return fmt.Errorf("bfd: detect multiplier %d is not between 2 and 255", p.Multiplier)
	}
	return nil
}

// State is the state of a session (RFC 5880 section 6.8.1).
type State uint8

// The numbers are those of the State field of a packet (RFC 5880 section 4.1).
const (
	AdminDown State = iota
	Down
	Init
	Up
)

func (s State) String() string {
	return [...]string{"AdminDown", "Down", "Init", "Up"}[s&3]
}

// Diag is why a session left the state Up (RFC 5880 section 4.1).
type Diag uint8

// The diagnostics that this implementation sets; others are only received.
const (
	DiagNone             Diag = 0
	DiagTimeExpired      Diag = 1
	DiagEchoFailed       Diag = 2
	DiagNeighborDown     Diag = 3
	DiagAdministratively Diag = 7
)

func (d Diag) String() string {
	names := [...]string{
		"no diagnostic", "control detection time expired", "echo function failed", "neighbor signaled session down",
		"forwarding plane reset", "path down", "concatenated path down", "administratively down", "reverse concatenated path down",
	}
	if int(d) < len(names) {
		return names[d]
	}
	return fmt.Sprintf("diagnostic %d", uint8(d))
}

// Status is how a session is.
type Status struct {
	Peer
	// State of this side, Since when, and what it Was before.
	State, Was State
	Since      time.Time
	// Diag is why the session last left Up; RemoteDiag is what the peer last gave as its own reason.
	Diag, RemoteDiag Diag
	// RemoteState is the state that the peer reported last.
	RemoteState State
	// Transmit is the time between our packets before jitter, Detection the time without a packet after which the peer
	// is down; both as negotiated now. Detection is 0 before the first packet of the peer.
	Transmit, Detection time.Duration
	// Echo is the time between echo packets as negotiated now, 0 when none are sent; Echoes says that they come back.
	Echo   time.Duration
	Echoes bool
	// Ups and Downs count the changes to and from Up.
	Ups, Downs uint64
	// Problem is why packets, or echo packets, cannot be sent or do not come back, "" if all is well.
	Problem string
}
