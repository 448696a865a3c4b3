package layer2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"
)

// MAC is a 48-bit hardware address, comparable so that it can key a map.
type MAC [6]byte

// String returns the usual colon form.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// station reports whether m can be the address of one station: neither zero nor a group address.
func (m MAC) station() bool { return m != MAC{} && m[0]&1 == 0 }

var (
	broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes  = netip.MustParseAddr("ff02::1")
	any4      = netip.IPv4Unspecified()
	any6      = netip.IPv6Unspecified()
)

const (
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
	etherLen  = 14
	ipv6Len   = 40
	protoICMP = 58
	hopLimit  = 255
)

// message is what a neighbour protocol frame says, whichever protocol it is.
type message struct {
	// ask is set when the frame wants to know who has target: an ARP request, a neighbour solicitation.
	ask      bool
	target   netip.Addr
	asker    netip.Addr // unspecified in a probe (RFC 5227 section 1.1, RFC 4862 section 5.4)
	askerMAC MAC        // where the answer goes
	poll     bool       // it is a question as poll makes it: to one station, for an address that it may have given up

	// claim is the address that the sender says it has; the zero Addr when it says nothing.
	claim    netip.Addr
	claimMAC MAC
	by       MAC // the station that sent it, if that is another one: it stands in for claimMAC, if it is a member
}

// probe reports whether the frame asks whether target is free.
func (m message) probe() bool { return m.ask && m.asker.IsUnspecified() }

// unicast reports whether a can be the address of one station.
func unicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

var errFrame = errors.New("malformed frame")

// parse reads an Ethernet frame that holds ARP or a neighbour solicitation or advertisement.
func parse(frame []byte) (m message, err error) {
	if len(frame) < etherLen {
		return message{}, fmt.Errorf("ethernet: %w", errFrame)
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherARP:
		m, err = parseARP(frame[etherLen:])
		m.poll = m.probe()
	case etherIPv6:
		m, err = parseNDP(MAC(frame[6:12]), frame[etherLen:])
	default:
		return message{}, fmt.Errorf("ethernet type: %w", errFrame)
	}
	m.poll = m.poll && frame[0]&1 == 0
	if source := MAC(frame[6:12]); m.claim.IsValid() && m.claimMAC != source && source.station() {
		m.by = source
	}
	return m, err
}

// parseARP follows RFC 826, with the readings of RFC 5227 for a zero sender and for sender == target.
func parseARP(b []byte) (message, error) {
	var p arp.Packet
	if err := p.UnmarshalBinary(b); err != nil {
		return message{}, fmt.Errorf("arp: %w: %w", errFrame, err)
	}
	if p.HardwareType != 1 || p.ProtocolType != 0x0800 || p.HardwareAddrLength != 6 || p.IPLength != 4 {
		return message{}, fmt.Errorf("arp: not IPv4 over Ethernet: %w", errFrame)
	}
	sender := MAC(p.SenderHardwareAddr)
	if !sender.station() {
		return message{}, fmt.Errorf("arp: sender %s: %w", sender, errFrame)
	}
	var m message
	if !p.SenderIP.IsUnspecified() {
		m.claim, m.claimMAC = p.SenderIP, sender
	}
	switch p.Operation {
	case arp.OperationRequest:
		if !unicast(p.TargetIP) {
			return message{}, fmt.Errorf("arp: target %s: %w", p.TargetIP, errFrame)
		}
		// A request for the sender's own address announces it and wants no answer.
		if p.TargetIP != p.SenderIP {
			m.ask, m.target, m.asker, m.askerMAC = true, p.TargetIP, p.SenderIP, sender
		}
	case arp.OperationReply:
	default:
		return message{}, fmt.Errorf("arp: operation %d: %w", p.Operation, errFrame)
	}
	return m, nil
}

// parseNDP accepts what RFC 4861 sections 7.1.1 and 7.1.2 call valid.
func parseNDP(source MAC, b []byte) (message, error) {
	bad := func(what string) (message, error) { return message{}, fmt.Errorf("ndp: %s: %w", what, errFrame) }
	if len(b) < ipv6Len || b[0]>>4 != 6 || b[6] != protoICMP {
		return bad("header")
	}
	if b[7] != hopLimit {
		return bad("hop limit")
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n < 24 || n > len(b)-ipv6Len {
		return bad("length")
	}
	src, dst, icmp := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[ipv6Len:ipv6Len+n]
	if icmp[1] != 0 || !checksumOK(b[8:40], icmp) {
		return bad("code or checksum")
	}
	if !source.station() {
		return bad("source hardware address")
	}
	parsed, err := ndp.ParseMessage(icmp)
	if err != nil {
		return message{}, fmt.Errorf("ndp: %w: %w", errFrame, err)
	}
	switch p := parsed.(type) {
	case *ndp.NeighborSolicitation:
		if !unicast(p.TargetAddress) {
			return bad("target")
		}
		mac, option := hardwareAddr(p.Options, ndp.Source, source)
		m := message{ask: true, target: p.TargetAddress, asker: src, askerMAC: mac, poll: dst.IsMulticast()}
		if src.IsUnspecified() {
			if option || !isSolicitedNode(dst) {
				return bad("duplicate address probe")
			}
		} else {
			m.claim, m.claimMAC = src, mac
		}
		return m, nil
	case *ndp.NeighborAdvertisement:
		if !unicast(p.TargetAddress) || p.Solicited && dst.IsMulticast() {
			return bad("target")
		}
		mac, _ := hardwareAddr(p.Options, ndp.Target, source)
		return message{claim: p.TargetAddress, claimMAC: mac}, nil
	}
	return bad("type")
}

// hardwareAddr returns the link-layer address option of the wanted kind, or the frame's source without one:
// a unicast solicitation may come without the option and is answered all the same (RFC 4861 section 4.3).
func hardwareAddr(options []ndp.Option, kind ndp.Direction, source MAC) (mac MAC, option bool) {
	for _, o := range options {
		if lla, ok := o.(*ndp.LinkLayerAddress); ok && lla.Direction == kind && len(lla.Addr) == len(mac) {
			if mac = MAC(lla.Addr); mac.station() {
				return mac, true
			}
		}
	}
	return source, false
}

// checksumOK verifies the ICMPv6 checksum over addrs (source and destination) and the message. A packet socket may
// also see a frame whose local sender left the checksum to the hardware: it then holds the sum of the pseudo-header only.
func checksumOK(addrs, icmp []byte) bool {
	pseudo := sum(0, addrs) + uint32(len(icmp)) + protoICMP
	return fold(sum(pseudo, icmp)) == 0xffff || fold(pseudo) == binary.BigEndian.Uint16(icmp[2:])
}

func sum(s uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// solicitedNode is the group on which neighbours ask for addr (RFC 4291 section 2.7.1).
func solicitedNode(addr netip.Addr) netip.Addr {
	a := addr.As16()
	return netip.AddrFrom16([16]byte{0xff, 0x02, 11: 0x01, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]})
}

func isSolicitedNode(a netip.Addr) bool {
	return a.Is6() && a == solicitedNode(a)
}

// groupMAC is the Ethernet group of an IPv6 multicast address (RFC 2464 section 7).
func groupMAC(a netip.Addr) MAC {
	b := a.As16()
	return MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// answer is the frame of the station mac that tells the asker of m that target is at a station, itself or one that it
// stands in for: what a switch learns from the frame is true.
func answer(m message, mac, at MAC) ([]byte, error) {
	if m.target.Is4() {
		return arpFrame(arp.OperationReply, mac, m.askerMAC, at, m.target, m.askerMAC, m.asker)
	}
	// RFC 4861 section 7.2.4: R=0; S=1 to a known asker; O=1, the address is neither anycast nor proxied.
	na := &ndp.NeighborAdvertisement{Solicited: true, Override: true, TargetAddress: m.target, Options: lla(ndp.Target, at)}
	if m.probe() {
		na.Solicited = false
		return ndpFrame(na, mac, groupMAC(allNodes), m.target, allNodes)
	}
	return ndpFrame(na, mac, m.askerMAC, m.target, m.asker)
}

// announcement is the frames that tell all neighbours that addr is at mac. IPv4 takes two: the request form of
// RFC 5227 section 3, which every receiver merges, and a reply whose target hardware address is the sender's own,
// because some stacks look at replies only, and Linux ignores one to the broadcast address for a second after an update.
func announcement(addr netip.Addr, mac MAC) ([][]byte, error) {
	if addr.Is4() {
		request, err := arpFrame(arp.OperationRequest, mac, broadcast, mac, addr, MAC{}, addr)
		if err != nil {
			return nil, err
		}
		reply, err := arpFrame(arp.OperationReply, mac, broadcast, mac, addr, mac, addr)
		return [][]byte{request, reply}, err
	}
	// RFC 4861 section 7.2.6.
	na := &ndp.NeighborAdvertisement{Override: true, TargetAddress: addr, Options: lla(ndp.Target, mac)}
	frame, err := ndpFrame(na, mac, groupMAC(allNodes), addr, allNodes)
	return [][]byte{frame}, err
}

// probe asks everybody whether addr is in use (RFC 5227 section 2.1.1, RFC 4862 section 5.4.2).
func probe(addr netip.Addr, mac MAC) ([]byte, error) {
	if addr.Is4() {
		return arpFrame(arp.OperationRequest, mac, broadcast, mac, any4, MAC{}, addr)
	}
	group := solicitedNode(addr)
	return ndpFrame(&ndp.NeighborSolicitation{TargetAddress: addr}, mac, groupMAC(group), any6, group)
}

// poll asks the station to whether it still has addr, without claiming it. from is a link-local IPv6 address of the
// asking interface; without one the question is a probe, whose answer goes to all nodes. In IPv6 the packet is for the
// group, though the frame is for one station: that station's kernel does not have the address, and would route a packet
// to it, or say that it is unreachable.
func poll(addr netip.Addr, mac, to MAC, from netip.Addr) ([]byte, error) {
	if addr.Is4() {
		return arpFrame(arp.OperationRequest, mac, to, mac, any4, MAC{}, addr)
	}
	question := &ndp.NeighborSolicitation{TargetAddress: addr}
	if from.IsValid() {
		question.Options = lla(ndp.Source, mac)
	} else {
		from = any6
	}
	return ndpFrame(question, mac, to, from, solicitedNode(addr))
}

// unspecified is the address of an asker that has none, of the family of like.
func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return any4
	}
	return any6
}

func lla(kind ndp.Direction, mac MAC) []ndp.Option {
	return []ndp.Option{&ndp.LinkLayerAddress{Direction: kind, Addr: mac[:]}}
}

func arpFrame(op arp.Operation, from, to, sha MAC, spa netip.Addr, tha MAC, tpa netip.Addr) ([]byte, error) {
	p, err := arp.NewPacket(op, sha[:], spa, tha[:], tpa)
	if err != nil {
		return nil, fmt.Errorf("arp for %s: %w", tpa, err)
	}
	b, err := p.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("arp for %s: %w", tpa, err)
	}
	return append(etherHeader(from, to, etherARP), b...), nil
}

func ndpFrame(m ndp.Message, from, to MAC, src, dst netip.Addr) ([]byte, error) {
	icmp, err := ndp.MarshalMessageChecksum(m, src, dst)
	if err != nil {
		return nil, fmt.Errorf("%s to %s: %w", ipv6.ICMPType(m.Type()), dst, err)
	}
	b := etherHeader(from, to, etherIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(icmp)))
	b = append(b, protoICMP, hopLimit)
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	return append(b, icmp...), nil
}

func etherHeader(from, to MAC, etherType uint16) []byte {
	b := make([]byte, 0, 128)
	b = append(b, to[:]...)
	b = append(b, from[:]...)
	return binary.BigEndian.AppendUint16(b, etherType)
}
