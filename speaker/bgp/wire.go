package bgp

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// The parts of a message that the relay has to know (RFC 4271 section 4.1).
const (
	headerLen  = 19
	maxMessage = 4096 // no larger ones without RFC 8654, which is not offered
)

// keepalive is the KEEPALIVE message, which has no body (RFC 4271 section 4.4).
var keepalive = func() []byte {
	b := make([]byte, headerLen)
	for i := range 16 {
		b[i] = 0xff
	}
	b[17], b[18] = headerLen, bgp.BGP_MSG_KEEPALIVE
	return b
}()

// notification is a NOTIFICATION message, as the error that ends a session.
type notification struct {
	sent          bool // by this side
	code, subcode uint8
	text          string // Shutdown Communication of the sender (RFC 9003), "" for none
	data          []byte
}

func (n *notification) Error() string {
	from := "received"
	if n.sent {
		from = "sent"
	}
	s := fmt.Sprintf("%s NOTIFICATION %d/%d (%s)", from, n.code, n.subcode, notificationName(n.code, n.subcode))
	if n.text != "" {
		s += fmt.Sprintf(": %q", n.text)
	}
	return s
}

// notify is a NOTIFICATION that this side decides to send.
func notify(code, subcode uint8, data []byte) *notification {
	return &notification{sent: true, code: code, subcode: subcode, data: data}
}

// bytes is the message (RFC 4271 section 4.5).
func (n *notification) bytes() []byte {
	b := slices.Clone(keepalive)
	b[18] = bgp.BGP_MSG_NOTIFICATION
	b = append(b, n.code, n.subcode)
	b = append(b, n.data...)
	binary.BigEndian.PutUint16(b[16:], uint16(len(b)))
	return b
}

// parseNotification reads the message msg.
func parseNotification(msg []byte, sent bool) *notification {
	if len(msg) < headerLen+2 {
		return &notification{sent: sent}
	}
	n := &notification{sent: sent, code: msg[headerLen], subcode: msg[headerLen+1], data: slices.Clone(msg[headerLen+2:])}
	// The text is for the subcodes Administrative Shutdown and Administrative Reset of Cease (RFC 9003 section 2).
	if n.code == 6 && (n.subcode == 2 || n.subcode == 4) && len(n.data) > 0 && int(n.data[0]) < len(n.data) {
		n.text = string(n.data[1 : 1+int(n.data[0])])
	}
	return n
}

// notificationName names the codes of RFC 4271 section 4.5 and their registered additions.
func notificationName(code, subcode uint8) string {
	codes := []struct {
		name string
		subs []string // from subcode 1
	}{
		1: {"message header error", []string{"connection not synchronized", "bad message length", "bad message type"}},
		2: {"OPEN message error", []string{"unsupported version number", "bad peer AS", "bad BGP identifier", "unsupported optional parameter", "authentication failure", "unacceptable hold time", "unsupported capability", 11: ""}},
		3: {"UPDATE message error", []string{"malformed attribute list", "unrecognized well-known attribute", "missing well-known attribute", "attribute flags error", "attribute length error", "invalid ORIGIN attribute", "AS routing loop", "invalid NEXT_HOP attribute", "optional attribute error", "invalid network field", "malformed AS_PATH"}},
		4: {"hold timer expired", nil},
		5: {"finite state machine error", []string{"unexpected message in OpenSent", "unexpected message in OpenConfirm", "unexpected message in Established"}},
		6: {"cease", []string{"maximum number of prefixes reached", "administrative shutdown", "peer de-configured", "administrative reset", "connection rejected", "other configuration change", "connection collision resolution", "out of resources", "hard reset", "BFD down"}},
		7: {"ROUTE-REFRESH message error", []string{"invalid message length"}},
		8: {"send hold timer expired", nil},
	}
	if int(code) >= len(codes) || codes[code].name == "" {
		return "unknown error"
	}
	c := codes[code]
	if subcode == 0 || int(subcode) > len(c.subs) || c.subs[subcode-1] == "" {
		return c.name
	}
	return c.name + ", " + c.subs[subcode-1]
}

// readMessage reads one message into buf and returns it with its type. What no message may be is answered by the
// *notification in the error (RFC 4271 section 6.1).
func readMessage(r *bufio.Reader, buf *[maxMessage]byte) (msg []byte, typ uint8, err error) {
	if _, err := io.ReadFull(r, buf[:headerLen]); err != nil {
		return nil, 0, err
	}
	for _, b := range buf[:16] {
		if b != 0xff {
			return nil, 0, notify(1, 1, nil)
		}
	}
	n, typ := binary.BigEndian.Uint16(buf[16:]), buf[18]
	low, known := uint16(headerLen), true
	switch typ {
	case bgp.BGP_MSG_OPEN:
		low = 29
	case bgp.BGP_MSG_UPDATE, bgp.BGP_MSG_ROUTE_REFRESH:
		low = 23
	case bgp.BGP_MSG_NOTIFICATION:
		low = 21
	case bgp.BGP_MSG_KEEPALIVE:
	default:
		known = false
	}
	switch {
	case !known:
		return nil, 0, notify(1, 3, []byte{typ})
	case n < low || n > maxMessage || typ == bgp.BGP_MSG_KEEPALIVE && n != headerLen:
		return nil, 0, notify(1, 2, buf[16:18])
	}
	if _, err := io.ReadFull(r, buf[headerLen:n]); err != nil {
		return nil, 0, err
	}
	return buf[:n], typ, nil
}

// prefixes calls announced and withdrawn for the IPv4 and IPv6 unicast prefixes of the UPDATE message msg. It reads
// nothing else and stops at the first thing that does not fit, which is enough for counting.
func prefixes(msg []byte, announced, withdrawn func(netip.Prefix)) {
	body := msg[headerLen:]
	w, rest, ok := field16(body)
	if !ok {
		return
	}
	nlri(w, 4, withdrawn)
	attrs, rest, ok := field16(rest)
	if !ok {
		return
	}
	for len(attrs) >= 3 {
		flags, typ := attrs[0], attrs[1]
		n, head := int(attrs[2]), 3
		if flags&0x10 != 0 { // Extended Length (RFC 4271 section 4.3)
			if len(attrs) < 4 {
				return
			}
			n, head = int(binary.BigEndian.Uint16(attrs[2:])), 4
		}
		if len(attrs) < head+n {
			return
		}
		v := attrs[head : head+n]
		attrs = attrs[head+n:]
		if len(v) < 3 || v[2] != bgp.SAFI_UNICAST {
			continue
		}
		size := 0 // of an address, 0 for other kinds of destinations
		switch binary.BigEndian.Uint16(v) {
		case bgp.AFI_IP:
			size = 4
		case bgp.AFI_IP6:
			size = 16
		}
		switch bgp.BGPAttrType(typ) {
		case bgp.BGP_ATTR_TYPE_MP_REACH_NLRI: // RFC 4760 section 3: next hop and a reserved byte come first
			if len(v) >= 5 && len(v) >= 5+int(v[3]) {
				nlri(v[5+int(v[3]):], size, announced)
			}
		case bgp.BGP_ATTR_TYPE_MP_UNREACH_NLRI:
			nlri(v[3:], size, withdrawn)
		}
	}
	nlri(rest, 4, announced)
}

// field16 splits off a field that its length of two bytes precedes.
func field16(b []byte) (field, rest []byte, ok bool) {
	if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
		return nil, nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	return b[2:n], b[n:], true
}

// nlri calls f for the prefixes in b, whose addresses have size bytes (RFC 4271 section 4.3).
func nlri(b []byte, size int, f func(netip.Prefix)) {
	for len(b) > 0 && size > 0 {
		bits := int(b[0])
		n := (bits + 7) / 8
		if bits > size*8 || len(b) < 1+n {
			return
		}
		var a [16]byte
		copy(a[:], b[1:1+n])
		addr, _ := netip.AddrFromSlice(a[:size])
		f(netip.PrefixFrom(addr, bits).Masked())
		b = b[1+n:]
	}
}

// open is what an OPEN message says, as far as it matters here.
type open struct {
	asn      uint32
	id       netip.Addr
	hold     time.Duration
	families []bgp.Family
	refresh  bool
	// restart is the graceful restart capability (RFC 4724), nil without.
	restart *bgp.CapGracefulRestart
	// v4over6 says that IPv4 routes may have IPv6 next hops (RFC 8950).
	v4over6 bool
	// name is the host name that the sender gives, "" for none.
	name string
}

func (o open) carries(f bgp.Family) bool { return slices.Contains(o.families, f) }

// parseOpen reads an OPEN message. An error is a *notification that answers it (RFC 4271 section 6.2).
func parseOpen(msg []byte) (open, error) {
	m, err := bgp.ParseBGPMessage(msg)
	if err != nil {
		return open{}, notify(2, 0, nil)
	}
	body, ok := m.Body.(*bgp.BGPOpen)
	if !ok {
		return open{}, notify(5, 1, nil) // RFC 6608: unexpected message in OpenSent
	}
	if body.Version != 4 {
		return open{}, notify(2, 1, []byte{0, 4})
	}
	o := open{asn: uint32(body.MyAS), id: body.ID, hold: time.Duration(body.HoldTime) * time.Second}
	for _, p := range body.OptParams {
		caps, ok := p.(*bgp.OptionParameterCapability)
		if !ok {
			continue
		}
		for _, c := range caps.Capability {
			switch c := c.(type) {
			case *bgp.CapFourOctetASNumber:
				o.asn = c.CapValue
			case *bgp.CapMultiProtocol:
				o.families = append(o.families, c.CapValue)
			case *bgp.CapRouteRefresh:
				o.refresh = true
			case *bgp.CapGracefulRestart:
				o.restart = c
			case *bgp.CapExtendedNexthop:
				for _, t := range c.Tuples {
					o.v4over6 = o.v4over6 || t.NLRIAFI == bgp.AFI_IP && t.NLRISAFI == bgp.SAFI_UNICAST && t.NexthopAFI == bgp.AFI_IP6
				}
			case *bgp.CapFQDN:
				o.name = c.HostName
			}
		}
	}
	if o.families == nil { // a speaker without RFC 4760 means IPv4 unicast
		o.families = []bgp.Family{bgp.RF_IPv4_UC}
	}
	return o, nil
}

// bytes is the OPEN message.
func (o open) bytes() ([]byte, error) {
	var caps []bgp.ParameterCapabilityInterface
	for _, f := range o.families {
		caps = append(caps, bgp.NewCapMultiProtocol(f))
	}
	if o.refresh {
		caps = append(caps, bgp.NewCapRouteRefresh())
	}
	if o.restart != nil {
		caps = append(caps, o.restart)
	}
	if o.v4over6 {
		caps = append(caps, bgp.NewCapExtendedNexthop([]*bgp.CapExtendedNexthopTuple{bgp.NewCapExtendedNexthopTuple(bgp.RF_IPv4_UC, bgp.AFI_IP6)}))
	}
	if o.name != "" {
		caps = append(caps, bgp.NewCapFQDN(o.name, ""))
	}
	caps = append(caps, bgp.NewCapFourOctetASNumber(o.asn))
	as := uint16(bgp.AS_TRANS)
	if o.asn < 1<<16 {
		as = uint16(o.asn)
	}
	m, err := bgp.NewBGPOpenMessage(as, uint16(o.hold/time.Second), o.id, []bgp.OptionParameterInterface{bgp.NewOptionParameterCapability(caps)})
	if err != nil {
		return nil, err
	}
	return m.Serialize()
}
