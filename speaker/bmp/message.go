package bmp

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// The types of messages (RFC 7854 section 4.1).
const (
	routeMonitoring  = 0
	statisticsReport = 1
	peerDown         = 2
	peerUp           = 3
	initiation       = 4
	termination      = 5
)

const version = 3

// Flags of the per-peer header (RFC 7854 section 4.2, RFC 8671 section 4).
const (
	flagIPv6       = 0x80 // V
	flagPostPolicy = 0x40 // L
	flagAdjRIBOut  = 0x10 // O
)

// Types of the TLVs in Initiation and Termination messages (RFC 7854 sections 4.4 and 4.5).
const (
	tlvSysDescr = 1
	tlvSysName  = 2
	tlvReason   = 1
)

// reasonClosed is "session administratively closed" (RFC 7854 section 4.5).
const reasonClosed = 0

// Reasons of a Peer Down message (RFC 7854 section 4.9).
const (
	downLocalNotification  = 1 // followed by the NOTIFICATION
	downLocal              = 2 // followed by the number of an event of the state machine, 0 for none of them
	downRemoteNotification = 3 // followed by the NOTIFICATION
	downRemote             = 4
	downUnmonitored        = 5 // the session may go on, but is not told of any more
)

// statPostPolicyOut is the number of routes in the post-policy Adj-RIB-Out, a 64-bit gauge (RFC 8671 section 6.2).
const statPostPolicyOut = 15

// peer is what the per-peer header says of a session (RFC 7854 section 4.2).
type peer struct {
	addr netip.Addr
	asn  uint32
	id   [4]byte
}

// message puts the common header before the parts of a message (RFC 7854 section 4.1).
func message(typ byte, parts ...[]byte) []byte {
	n := 6
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, 0, n)
	b = append(b, version)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = append(b, typ)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// header is the per-peer header of a global instance peer (RFC 7854 section 4.2). out is set in messages about the
// Adj-RIB-Out, and is not in those about the session (RFC 8671 section 5).
func (p peer) header(out bool, at time.Time) []byte {
	var flags byte
	if p.addr.Is6() {
		flags |= flagIPv6
	}
	if out {
		flags |= flagPostPolicy | flagAdjRIBOut
	}
	b := append(make([]byte, 0, 42), 0, flags)
	b = append(b, make([]byte, 8)...) // distinguisher: none
	addr := address(p.addr)
	b = append(b, addr[:]...)
	b = binary.BigEndian.AppendUint32(b, p.asn)
	b = append(b, p.id[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(at.Unix()))
	return binary.BigEndian.AppendUint32(b, uint32(at.Nanosecond()/1000))
}

// address is an address in 16 bytes: IPv4 in the last four, behind zeros.
func address(a netip.Addr) (b [16]byte) {
	if a.Is4() {
		v4 := a.As4()
		copy(b[12:], v4[:])
		return b
	}
	return a.As16()
}

func tlv(typ uint16, value []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, typ)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	return append(b, value...)
}

// up is a Peer Up message, with the OPEN messages of both sides (RFC 7854 section 4.10).
func (p peer) up(local, remote netip.AddrPort, sent, received []byte, at time.Time) []byte {
	addr := address(local.Addr())
	ports := binary.BigEndian.AppendUint16(nil, local.Port())
	ports = binary.BigEndian.AppendUint16(ports, remote.Port())
	return message(peerUp, p.header(false, at), addr[:], ports, sent, received)
}

// down is a Peer Down message.
func (p peer) down(reason byte, data []byte, at time.Time) []byte {
	return message(peerDown, p.header(false, at), []byte{reason}, data)
}

// route is a Route Monitoring message with an UPDATE that was sent (RFC 7854 section 4.6, RFC 8671 section 4).
func (p peer) route(update []byte, at time.Time) []byte {
	return message(routeMonitoring, p.header(true, at), update)
}

// stats is a Statistics Report (RFC 7854 section 4.8).
func (p peer) stats(routes int, at time.Time) []byte {
	count := binary.BigEndian.AppendUint32(nil, 1)
	return message(statisticsReport, p.header(true, at), count, tlv(statPostPolicyOut, binary.BigEndian.AppendUint64(nil, uint64(routes))))
}
