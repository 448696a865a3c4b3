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
	// sendHold is how long the peer may take nothing off the connection before it is closed, or twice the hold time if
	// that is more (RFC 9687 section 4).
	sendHold = 8 * time.Minute
	// hurry is sendHold once the session is to end.
	hurry = time.Second
	// lingering is how long a connection stays open for the peer to read a NOTIFICATION.
	lingering = 250 * time.Millisecond
)

// conn is the TCP connection of a session. One goroutine writes; another may read.
type conn struct {
	net.Conn
	local, remote netip.AddrPort
	in, out       *counters // of the session, across connections
	r             *bufio.Reader
	w             *bufio.Writer
	buf           [maxMessage]byte // what receive has read
	link          int              // index of the interface of a link-local address, else 0
	broken        bool             // a write has failed, perhaps in the middle of a message, or the end has been said
	sendHold      time.Duration
	noHop         string // why a family is not announced, "" if none is missing

	// What others may look at while the session is established.
	sent     [2]atomic.Int64 // prefixes by family
	received atomic.Int64
	tooMany  atomic.Bool    // more was received than is counted
	refresh  [2]atomic.Bool // the peer wants the routes of a family again

	over  chan struct{} // closed when reading has ended
	ended error         // why, once it has

	mu      sync.Mutex
	hurried bool // no write is waited for any longer than hurry
	closed  bool // the deadline for reading is not moved any more
	newer   bool // the peer has opened another connection instead
}

func newConn(c net.Conn, in, out *counters) *conn {
	port := func(a net.Addr) netip.AddrPort {
		p := a.(*net.TCPAddr).AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	n := &conn{
		Conn: c, local: port(c.LocalAddr()), remote: port(c.RemoteAddr()), in: in, out: out,
		r: bufio.NewReaderSize(c, 1<<14), w: bufio.NewWriterSize(c, 1<<15), sendHold: sendHold,
		over: make(chan struct{}),
	}
	if ifi, err := net.InterfaceByName(n.local.Addr().Zone()); err == nil {
		n.link = ifi.Index
	}
	return n
}

// receive reads a message within d, 0 for any time. A NOTIFICATION is returned as an error.
func (c *conn) receive(d time.Duration) (msg []byte, typ uint8, err error) {
	var deadline time.Time
	if d > 0 {
		deadline = time.Now().Add(d)
	}
	c.mu.Lock()
	if !c.closed {
		c.SetReadDeadline(deadline)
	}
	c.mu.Unlock()
	msg, typ, err = readMessage(c.r, &c.buf)
	var n *Notification
	switch {
	case err == nil:
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, 0, ErrClosedByPeer
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &n):
		return nil, 0, err
	default:
		return nil, 0, plain(err)
	}
	c.in[typ].Add(1)
	if typ == bgp.BGP_MSG_NOTIFICATION {
		return nil, 0, parseNotification(msg)
	}
	return msg, typ, nil
}

// send writes a message to the peer, or keeps it for flush.
func (c *conn) send(msg []byte) error {
	c.patience()
	_, err := c.w.Write(msg)
	return c.written(err, msg[headerLen-1])
}

// flush writes what send has kept.
func (c *conn) flush() error {
	c.patience()
	return c.written(c.w.Flush(), 0)
}

// patience sets how long the next write may take.
func (c *conn) patience() {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.sendHold
	if c.hurried {
		d = hurry
	}
	c.SetWriteDeadline(time.Now().Add(d))
}

func (c *conn) written(err error, typ uint8) error {
	switch {
	case err == nil && typ > 0:
		c.out[typ].Add(1)
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.broken = true
		return fmt.Errorf("the peer takes nothing: %w", notify(8, 0))
	case err != nil:
		c.broken = true
		return plain(err)
	}
	return nil
}

// reason is why a session ends that cannot be written to: the peer's own reason if it gave one.
func (c *conn) reason(err error) error {
	select {
	case <-c.over:
		return c.ended
	case <-time.After(lingering):
		return err
	}
}

// said is reason where nobody reads: what the peer said before it closed the connection.
func (c *conn) said(err error) error {
	for {
		_, _, last := c.receive(lingering)
		var n *Notification
		switch {
		case last == nil:
		case errors.As(last, &n) && !n.Sent:
			return last
		default:
			return err
		}
	}
}

// hasten gives writes, also one that hangs, no more than hurry.
func (c *conn) hasten() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hurried = true
	c.SetWriteDeadline(time.Now().Add(hurry))
}

// supersede ends the connection because the peer has opened another.
func (c *conn) supersede() {
	c.mu.Lock()
	c.newer = true
	c.mu.Unlock()
	c.Conn.Close()
}

func (c *conn) superseded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newer
}

// close ends the connection, after a NOTIFICATION if why is one that this side sends. Only the first call counts.
func (c *conn) close(why error) {
	var n *Notification
	c.hasten()
	if errors.As(why, &n) && n.Sent && !c.broken && c.send(n.Bytes()) == nil && c.flush() == nil {
		// Closing with unread data would reset the connection and could overtake the message.
		if w, ok := c.Conn.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
			c.mu.Lock()
			c.closed = true
			c.SetReadDeadline(time.Now().Add(lingering))
			c.mu.Unlock()
			_, _ = io.Copy(io.Discard, c.Conn)
		}
	}
	c.broken = true
	c.Conn.Close()
}

// plain is err without addresses of the connection, whose port is another each time.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
