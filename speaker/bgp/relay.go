package bgp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

const (
	// openWait is how long the peer may take to answer our OPEN. RFC 4271 section 8.2.2 suggests 4 minutes; a router
	// that is there answers at once, and one that is not should not hold up the next attempt.
	openWait = 20 * time.Second
	// sendHold is how long the peer may take nothing off the connection before it is closed (RFC 9687 section 3).
	sendHold = 8 * time.Minute
	// quiet is how long the library, when asked to, says nothing only if it has nothing to say.
	quiet = 20 * time.Millisecond
)

// Counters count messages by type.
type Counters struct {
	Open, Update, Notification, Keepalive, Refresh uint64
}

type counters struct {
	open, update, notification, keepalive, refresh atomic.Uint64
}

func (c *counters) count(typ uint8) {
	switch typ {
	case bgp.BGP_MSG_OPEN:
		c.open.Add(1)
	case bgp.BGP_MSG_UPDATE:
		c.update.Add(1)
	case bgp.BGP_MSG_NOTIFICATION:
		c.notification.Add(1)
	case bgp.BGP_MSG_KEEPALIVE:
		c.keepalive.Add(1)
	case bgp.BGP_MSG_ROUTE_REFRESH:
		c.refresh.Add(1)
	}
}

func (c *counters) load() Counters {
	return Counters{c.open.Load(), c.update.Load(), c.notification.Load(), c.keepalive.Load(), c.refresh.Load()}
}

// relay carries the messages of one TCP connection between the peer and the library. It hands on as little as possible:
// to the library an OPEN of our making, and a KEEPALIVE for each message; to the peer an OPEN of our making, and then what
// the library says.
type relay struct {
	wire, lib net.Conn
	fromWire  *bufio.Reader
	fromLib   *bufio.Reader
	buf       [maxMessage]byte // what receive has read
	in, out   *counters        // of the session, across connections
	max       uint32           // prefixes that the peer may announce, 0 for no limit
	refresh   chan struct{}    // the peer wants all routes again
	onUpdate  func()           // an UPDATE has been written; nil for no interest

	closing sync.Once
	writing sync.Mutex // held while writing, which may take long
	toWire  *bufio.Writer

	mu           sync.Mutex
	sent4, sent6 map[netip.Prefix]struct{} // what the peer has been told of
	received     map[netip.Prefix]struct{} // what the peer has told of
	lastUpdate   time.Time
}

func newRelay(wire net.Conn, in, out *counters, limit uint32) *relay {
	return &relay{
		wire: wire, in: in, out: out, max: limit, refresh: make(chan struct{}, 1),
		fromWire: bufio.NewReaderSize(wire, 1<<16), toWire: bufio.NewWriterSize(wire, 1<<16),
		sent4: map[netip.Prefix]struct{}{}, sent6: map[netip.Prefix]struct{}{}, received: map[netip.Prefix]struct{}{},
	}
}

// open sends our OPEN and returns the peer's.
func (r *relay) open(ours open) (open, error) {
	b, err := ours.bytes()
	if err != nil {
		return open{}, fmt.Errorf("make OPEN: %w", err)
	}
	if err := r.send(b, true, sendHold); err != nil {
		return open{}, err
	}
	msg, typ, err := r.receiveWithin(openWait)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return open{}, fmt.Errorf("no OPEN from the peer within %s", openWait)
	}
	if err != nil {
		return open{}, err
	}
	if typ != bgp.BGP_MSG_OPEN {
		return open{}, notify(5, 1, []byte{typ})
	}
	return parseOpen(msg)
}

// introduce plays the peer's OPEN to the library, on the connection lib, throws away the library's own, and waits for the
// peer's KEEPALIVE, which makes the session established, within the time that it may be silent for.
func (r *relay) introduce(lib net.Conn, theirs open, silence time.Duration) error {
	r.lib, r.fromLib = lib, bufio.NewReaderSize(lib, 1<<16)
	b, err := theirs.bytes()
	if err != nil {
		return fmt.Errorf("make OPEN for the library: %w", err)
	}
	if _, err := r.lib.Write(b); err != nil {
		return fmt.Errorf("write to the library: %w", err)
	}
	for _, want := range []uint8{bgp.BGP_MSG_OPEN, bgp.BGP_MSG_KEEPALIVE} {
		msg, typ, err := readMessage(r.fromLib, new([maxMessage]byte))
		switch {
		case err != nil:
			return fmt.Errorf("read from the library: %w", err)
		case typ == bgp.BGP_MSG_NOTIFICATION:
			return parseNotification(msg, true)
		case typ != want:
			return fmt.Errorf("the library sends a message of type %d instead of %d", typ, want)
		}
	}
	if err := r.send(keepalive, true, sendHold); err != nil {
		return err
	}
	_, typ, err := r.receiveWithin(silence)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return notify(4, 0, nil)
	case err != nil:
		return err
	case typ != bgp.BGP_MSG_KEEPALIVE:
		return notify(5, 2, []byte{typ})
	}
	return nil
}

// start tells the library that the session is established.
func (r *relay) start() error {
	if _, err := r.lib.Write(keepalive); err != nil {
		return fmt.Errorf("write to the library: %w", err)
	}
	return nil
}

// receiveWithin is receive that fails with os.ErrDeadlineExceeded after some time.
func (r *relay) receiveWithin(d time.Duration) (msg []byte, typ uint8, err error) {
	r.wire.SetReadDeadline(time.Now().Add(d))
	defer r.wire.SetReadDeadline(time.Time{})
	return r.receive()
}

// receive reads a message of the peer. A NOTIFICATION is returned as an error.
func (r *relay) receive() (msg []byte, typ uint8, err error) {
	msg, typ, err = readMessage(r.fromWire, &r.buf)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, 0, errors.New("the peer closed the connection")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, 0, err
	case err != nil:
		return nil, 0, plain(err)
	}
	r.in.count(typ)
	if typ == bgp.BGP_MSG_NOTIFICATION {
		return nil, 0, parseNotification(msg, false)
	}
	return msg, typ, nil
}

// send writes a message to the peer, or, unless it is urgent, keeps it for the next one that is.
func (r *relay) send(msg []byte, urgent bool, within time.Duration) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	r.wire.SetWriteDeadline(time.Now().Add(within))
	_, err := r.toWire.Write(msg)
	if err == nil && urgent {
		err = r.toWire.Flush()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return notify(8, 0, nil)
	}
	if err == nil {
		r.out.count(msg[18])
	}
	return plain(err)
}

// inbound relays what the peer sends until the connection or the session ends. The error says why, nil if the library
// has ended it.
func (r *relay) inbound() error {
	for {
		msg, typ, err := r.receive()
		if err != nil {
			return err
		}
		switch typ {
		case bgp.BGP_MSG_OPEN:
			return notify(5, 3, []byte{typ})
		case bgp.BGP_MSG_UPDATE:
			if err := r.count(msg); err != nil {
				return err
			}
		case bgp.BGP_MSG_ROUTE_REFRESH:
			if len(msg) != headerLen+4 { // outbound route filters (RFC 5291) were not offered
				return notify(7, 1, msg)
			}
			poke(r.refresh)
		}
		// Whatever it is shows that the peer is alive, and that is all the library needs to know of it.
		if _, err := r.lib.Write(keepalive); err != nil {
			return nil // the library has ended the session, and outbound has the reason
		}
	}
}

func (r *relay) count(update []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	over := false
	prefixes(update, func(p netip.Prefix) {
		if over = over || r.max > 0 && len(r.received) >= int(r.max) && !has(r.received, p); !over {
			r.received[p] = struct{}{}
		}
	}, func(p netip.Prefix) { delete(r.received, p) })
	if over {
		return notify(6, 1, nil) // RFC 4486 section 4
	}
	return nil
}

func has[K comparable, V any](m map[K]V, k K) bool { _, ok := m[k]; return ok }

// outbound relays what the library says until it ends the session.
func (r *relay) outbound() error {
	var buf [maxMessage]byte
	for {
		msg, typ, err := readMessage(r.fromLib, &buf)
		if err != nil {
			return fmt.Errorf("read from the library: %w", err)
		}
		if typ == bgp.BGP_MSG_NOTIFICATION {
			return parseNotification(msg, true) // close sends it
		}
		if typ == bgp.BGP_MSG_UPDATE {
			r.note(msg)
		}
		last := r.fromLib.Buffered() == 0
		if err := r.send(msg, last, sendHold); err != nil {
			return err
		}
		if last && typ == bgp.BGP_MSG_UPDATE && r.onUpdate != nil {
			r.onUpdate()
		}
	}
}

// note keeps account of an UPDATE that is being sent.
func (r *relay) note(update []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of := func(p netip.Prefix) map[netip.Prefix]struct{} {
		if p.Addr().Is4() {
			return r.sent4
		}
		return r.sent6
	}
	prefixes(update, func(p netip.Prefix) { of(p)[p] = struct{}{} }, func(p netip.Prefix) { delete(of(p), p) })
	r.lastUpdate = time.Now()
}

// close ends the connection, after a NOTIFICATION if err is one that this side sends. Only the first call counts.
func (r *relay) close(err error) { r.closing.Do(func() { r.closeFor(err) }) }

func (r *relay) closeFor(err error) {
	r.wire.SetWriteDeadline(time.Now().Add(time.Second)) // ends one that hangs
	var n *notification
	if errors.As(err, &n) && n.sent && r.send(n.bytes(), true, time.Second) == nil {
		// Closing with unread data would reset the connection and could overtake the message.
		if c, ok := r.wire.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
			r.wire.SetReadDeadline(time.Now().Add(250 * time.Millisecond))
			_, _ = io.Copy(io.Discard, r.wire)
		}
	}
	r.wire.Close()
	if r.lib != nil {
		r.lib.SetReadDeadline(time.Now()) // ends outbound
	}
}

// drain throws away what the library still has to say to a peer that is gone. A session that is taken from it while it
// has messages to send leaves a goroutine of the library behind, with those messages.
func (r *relay) drain(lib net.Conn) {
	var buf [maxMessage]byte
	for {
		lib.SetReadDeadline(time.Now().Add(quiet))
		if _, err := lib.Read(buf[:]); err != nil {
			return
		}
	}
}

// counts are the prefixes that have been sent, by family, and received, and when the last UPDATE was sent.
func (r *relay) counts() (sent4, sent6, received int, lastUpdate time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sent4), len(r.sent6), len(r.received), r.lastUpdate
}
