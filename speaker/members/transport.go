package members

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Limits of what anybody can cost a speaker by its open port. memberlist reads a message in full before it knows whether
// the sender has a key, so the limits hold for every byte of a connection.
const (
	maxConns       = 32       // connections at a time that others opened
	maxConnsPerIP  = 4        // of those, from one address
	bytesPerNode   = 1 << 10  // of a complete exchange; a name, 512 bytes of Meta, and what is around them
	bytesBeside    = 64 << 10 // of a connection, whatever the number of nodes
	bytesAtOnce    = 4 << 20  // of all connections that are open at a time, at least
	nodesUnknown   = 5000     // nodes there may be, when nobody has said how many there are
	maxPacket      = 64 << 10 // bytes
	packetsBuffer  = 2 << 20  // of the kernel, in bytes
	acceptFailWait = time.Second
)

// border says who may send to a speaker, and how much. Its zero value lets everybody send.
type border struct {
	mu      sync.Mutex
	sources map[netip.Addr]bool // nil: not known
	conns   map[netip.Addr]int  // open ones that others opened, by address
	open    int                 // sum of conns
	held    int                 // bytes that open connections have delivered
}

// setSources says who may send. None at all cannot be, so it means that they are not known.
func (b *border) setSources(addrs []netip.Addr) {
	var next map[netip.Addr]bool
	if len(addrs) > 0 {
		next = make(map[netip.Addr]bool, len(addrs))
	}
	for _, a := range addrs {
		next[a.Unmap()] = true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sources = next
}

func (b *border) allows(a netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sources == nil || b.sources[a]
}

// enter says whether a connection that was opened from an address may stay; then leave must be called at its end.
func (b *border) enter(a netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sources != nil && !b.sources[a] || b.open >= maxConns || b.conns[a] >= maxConnsPerIP {
		return false
	}
	if b.conns == nil {
		b.conns = map[netip.Addr]int{}
	}
	b.conns[a]++
	b.open++
	return true
}

func (b *border) leave(a netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open--
	if b.conns[a]--; b.conns[a] == 0 {
		delete(b.conns, a)
	}
}

// limit is how many bytes a connection may deliver.
func (b *border) limit() int {
	nodes := len(b.sources)
	if b.sources == nil {
		nodes = nodesUnknown
	}
	return bytesBeside + nodes*bytesPerNode
}

// take says whether a connection that has delivered so many bytes may deliver n more.
func (b *border) take(delivered, n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch limit := b.limit(); {
	case delivered+n > limit:
		return fmt.Errorf("more than the %d bytes that so many speakers can have to say", limit)
	case b.held+n > max(bytesAtOnce, 2*limit):
		return errors.New("too many bytes are being received at a time")
	}
	b.held += n
	return nil
}

func (b *border) release(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held -= n
}

// stream is a connection within the limits of a border.
type stream struct {
	net.Conn
	border *border
	left   func() // called when it is closed

	mu        sync.Mutex
	delivered int
	closed    bool
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || n == 0 {
		return n, err
	}
	if err := s.border.take(s.delivered, n); err != nil {
		return 0, err
	}
	s.delivered += n
	return n, err
}

func (s *stream) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		s.border.release(s.delivered)
		s.left()
	}
	s.mu.Unlock()
	return s.Conn.Close()
}

// transport carries the gossip on one address of the node. It differs from memberlist's own in what it takes from whom,
// see border, and in that all it sends comes from that address, since others know the node by it.
type transport struct {
	border  *border
	addr    netip.AddrPort
	tcp     *net.TCPListener
	udp     *net.UDPConn
	packets chan *memberlist.Packet
	streams chan net.Conn
	ending  chan struct{}
	end     sync.Once
	loops   sync.WaitGroup
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// listen opens the port of an address.
func listen(addr netip.AddrPort, b *border) (*transport, error) {
	t := &transport{
		border: b, addr: addr, ending: make(chan struct{}), packets: make(chan *memberlist.Packet), streams: make(chan net.Conn),
	}
	var err error
	if t.tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr)); err != nil {
		return nil, err
	}
	if t.udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr)); err != nil {
		t.tcp.Close()
		return nil, err
	}
	_ = t.udp.SetReadBuffer(packetsBuffer) // as far as the kernel allows
	t.loops.Go(t.accept)
	t.loops.Go(t.receive)
	return t, nil
}

func (t *transport) accept() {
	for {
		conn, err := t.tcp.AcceptTCP()
		if err != nil {
			select {
			case <-t.ending:
				return
			case <-time.After(acceptFailWait): // out of file descriptors, perhaps
			}
			continue
		}
		from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().WithZone("")
		if !t.border.enter(from) {
			conn.Close()
			continue
		}
		s := &stream{Conn: conn, border: t.border, left: func() { t.border.leave(from) }}
		select {
		case t.streams <- s:
		case <-t.ending:
			s.Close()
		}
	}
}

func (t *transport) receive() {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(buf)
		at := time.Now()
		if err != nil {
			select {
			case <-t.ending:
				return
			default:
				continue // an ICMP error about a packet that was sent
			}
		}
		if n == 0 || !t.border.allows(from.Addr().Unmap().WithZone("")) {
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: at}
		select {
		case t.packets <- p:
		case <-t.ending:
			return
		}
	}
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.streams }

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.addr.Addr().AsSlice(), int(t.addr.Port()), nil
}

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (t *transport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	addr, err := netip.ParseAddrPort(to.Addr)
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.udp.WriteToUDPAddrPort(b, addr)
	return time.Now(), err
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *transport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.addr.Addr(), 0))}
	conn, err := d.Dial("tcp", to.Addr)
	if err != nil {
		return nil, err
	}
	return &stream{Conn: conn, border: t.border, left: func() {}}, nil
}

func (t *transport) Shutdown() error {
	t.end.Do(func() { close(t.ending) })
	err := errors.Join(t.tcp.Close(), t.udp.Close())
	t.loops.Wait()
	return err
}
