package bgp

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

const (
	headerLen  = bgp.BGP_HEADER_LENGTH
	maxMessage = bgp.BGP_MAX_MESSAGE_LENGTH // no larger ones without RFC 8654, which is not offered
)

// Counters count messages by type.
type Counters struct {
	Open, Update, Notification, Keepalive, Refresh uint64
}

// counters are Counters that a session goes on with from one connection to the next. The index is the type.
type counters [6]atomic.Uint64

func (c *counters) load() Counters {
	return Counters{c[1].Load(), c[2].Load(), c[3].Load(), c[4].Load(), c[5].Load()}
}

// keepalive is the KEEPALIVE message, which has no body (RFC 4271 section 4.4).
var keepalive = must(bgp.NewBGPKeepAliveMessage().Serialize())

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// Notification is a NOTIFICATION message, as the reason why a session ended (RFC 4271 section 4.5).
type Notification struct {
	// Sent is true for one that this side sends, false for one that it receives.
	Sent          bool
	Code, Subcode uint8
	Data          []byte
}

// notify is a Notification that this side decides to send.
func notify(code, subcode uint8, data ...byte) *Notification {
	return &Notification{Sent: true, Code: code, Subcode: subcode, Data: data}
}

// shutdown is a Cease with a text for the operator of the peer, at most 255 bytes (RFC 9003 section 2).
func shutdown(subcode uint8, text string) *Notification {
	return notify(bgp.BGP_ERROR_CEASE, subcode, append([]byte{byte(len(text))}, text...)...)
}

// Error names the codes, and adds the text that a Cease may have.
func (n *Notification) Error() string {
	from := "received"
	if n.Sent {
		from = "sent"
	}
	s := fmt.Sprintf("%s NOTIFICATION %d/%d (%s)", from, n.Code, n.Subcode, notificationName(n.Code, n.Subcode))
	if text := n.Text(); text != "" {
		s += fmt.Sprintf(": %q", text)
	}
	return s
}

// Text is the Shutdown Communication of an Administrative Shutdown or Reset (RFC 9003 section 2), "" for none. What cannot be
// printed is shown as "?": escaped it could be four times as long, and the API server refuses long events.
func (n *Notification) Text() string {
	if n.Code == bgp.BGP_ERROR_CEASE && (n.Subcode == 2 || n.Subcode == 4) && len(n.Data) > 0 && int(n.Data[0]) < len(n.Data) {
		return strings.Map(func(r rune) rune {
			if r == utf8.RuneError || !unicode.IsPrint(r) {
				return '?'
			}
			return r
		}, string(n.Data[1:1+int(n.Data[0])]))
	}
	return ""
}

// ErrClosedByPeer is why a session ended whose peer closed the connection without a NOTIFICATION.
var ErrClosedByPeer = errors.New("the peer closed the connection")

// Bytes is the message.
func (n *Notification) Bytes() []byte {
	b, err := bgp.NewBGPNotificationMessage(n.Code, n.Subcode, n.Data).Serialize()
	if err != nil {
		return must(bgp.NewBGPNotificationMessage(n.Code, n.Subcode, nil).Serialize())
	}
	return b
}

// parseNotification reads a NOTIFICATION message that was received.
func parseNotification(msg []byte) *Notification {
	return &Notification{Code: msg[headerLen], Subcode: msg[headerLen+1], Data: slices.Clone(msg[headerLen+2:])}
}

// notificationName names the codes of RFC 4271 section 4.5 and their registered additions.
func notificationName(code, subcode uint8) string {
	codes := []struct {
		name string
		subs []string // from subcode 1
	}{
		1: {"message header error", []string{"connection not synchronized", "bad message length", "bad message type"}},
		2: {"OPEN message error", []string{"unsupported version number", "bad peer AS", "bad BGP identifier", "unsupported optional parameter", "authentication failure", "unacceptable hold time", "unsupported capability", "", "", "", "role mismatch"}},
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
// *Notification in the error (RFC 4271 section 6.1).
func readMessage(r *bufio.Reader, buf *[maxMessage]byte) (msg []byte, typ uint8, err error) {
	if _, err := io.ReadFull(r, buf[:headerLen]); err != nil {
		return nil, 0, err
	}
	for _, b := range buf[:16] {
		if b != 0xff {
			return nil, 0, notify(1, 1)
		}
	}
	n, typ := binary.BigEndian.Uint16(buf[16:]), buf[18]
	low := uint16(headerLen)
	switch typ {
	case bgp.BGP_MSG_OPEN:
		low = 29
	case bgp.BGP_MSG_UPDATE, bgp.BGP_MSG_ROUTE_REFRESH:
		low = 23
	case bgp.BGP_MSG_NOTIFICATION:
		low = 21
	case bgp.BGP_MSG_KEEPALIVE:
	default:
		return nil, 0, notify(1, 3, typ)
	}
	if n < low || n > maxMessage || typ == bgp.BGP_MSG_KEEPALIVE && n != headerLen {
		return nil, 0, notify(1, 2, buf[16], buf[17])
	}
	if _, err := io.ReadFull(r, buf[headerLen:n]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, 0, err
	}
	return buf[:n], typ, nil
}

// prefixes calls announced and withdrawn for the IPv4 and IPv6 unicast prefixes of the UPDATE message msg, as they are on
// the wire, and v6 for IPv6. It reads nothing else and stops at the first thing that does not fit, which is enough for
// counting: nothing that a peer announces can end a session, or is worth parsing.
func prefixes(msg []byte, announced, withdrawn func(v6 bool, prefix []byte)) {
	body := msg[headerLen:]
	w, rest, ok := field16(body)
	if !ok {
		return
	}
	nlri(w, false, withdrawn)
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
		afi := binary.BigEndian.Uint16(v)
		if afi != bgp.AFI_IP && afi != bgp.AFI_IP6 {
			continue
		}
		switch bgp.BGPAttrType(typ) {
		case bgp.BGP_ATTR_TYPE_MP_REACH_NLRI: // RFC 4760 section 3: next hop and a reserved byte come first
			if len(v) >= 5 && len(v) >= 5+int(v[3]) {
				nlri(v[5+int(v[3]):], afi == bgp.AFI_IP6, announced)
			}
		case bgp.BGP_ATTR_TYPE_MP_UNREACH_NLRI:
			nlri(v[3:], afi == bgp.AFI_IP6, withdrawn)
		}
	}
	nlri(rest, false, announced)
}

// field16 splits off a field that its length of two bytes precedes.
func field16(b []byte) (field, rest []byte, ok bool) {
	if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
		return nil, nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	return b[2:n], b[n:], true
}

// nlri calls f for the prefixes in b (RFC 4271 section 4.3).
func nlri(b []byte, v6 bool, f func(v6 bool, prefix []byte)) {
	size := 4
	if v6 {
		size = 16
	}
	for len(b) > 0 {
		n := 1 + (int(b[0])+7)/8
		if n > 1+size || len(b) < n {
			return
		}
		f(v6, b[:n])
		b = b[n:]
	}
}

// countedAtMost is how many prefixes of a peer are counted, unless a higher limit is configured.
const countedAtMost = 100_000

// received counts the prefixes that a peer announces. It keeps a hash of each, until there are too many.
type received struct {
	seed  maphash.Seed
	known map[uint64]struct{} // nil when there were more than the limit
	n     int64               // how many; one more than the limit for all above it
}

func newReceived() *received {
	return &received{seed: maphash.MakeSeed(), known: map[uint64]struct{}{}}
}

// take counts what the UPDATE message msg says, up to limit.
func (r *received) take(msg []byte, limit int64) {
	if r.known == nil {
		return
	}
	key := func(v6 bool, prefix []byte) uint64 {
		var h maphash.Hash
		h.SetSeed(r.seed)
		if v6 {
			h.WriteByte(6)
		}
		// Bits beyond the length mean nothing (RFC 4271 section 4.3).
		whole := prefix[:1+int(prefix[0])/8]
		h.Write(whole)
		if len(whole) < len(prefix) {
			h.WriteByte(prefix[len(prefix)-1] &^ (0xff >> (prefix[0] % 8)))
		}
		return h.Sum64()
	}
	prefixes(msg, func(v6 bool, p []byte) {
		if int64(len(r.known)) <= limit {
			r.known[key(v6, p)] = struct{}{}
		}
	}, func(v6 bool, p []byte) { delete(r.known, key(v6, p)) })
	if r.n = int64(len(r.known)); r.n > limit {
		r.known = nil
	}
}
