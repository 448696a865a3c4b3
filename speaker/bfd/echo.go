package bfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	rawsocket "github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The echo function (RFC 5880 section 6.4, RFC 5881 section 4): this side sends UDP packets to its own address by way of
// the peer's hardware address, and the peer's forwarding plane, without the help of its BFD, sends them back. They test the
// path and the forwarding of both sides. Source and destination are the session's local address, so that nothing is said
// to anybody else; the kernel drops what comes back, as a packet from outside with an address of its own, after it was
// seen here. That is why they are sent and received on AF_PACKET.
//
// Control packets go on at their own intervals: a session goes down by whichever of the two notices first.

const (
	portEcho = 3785
	echoLen  = 20 + 8 + packetLen // IPv4 and UDP headers, payload
	echoTTL  = 255                // of which one forwarding takes off one
	// echoLookup is how long what the kernel knows of the way to a peer is believed.
	echoLookup = time.Second
)

// echo is the echo function of a session. The zero value has not sent anything.
type echo struct {
	secret uint64    // only who receives the packets can send them back
	next   time.Time // when to send, zero for never
	sent   int       // packets since the session went up, as far as that matters
	err    error     // why none can be sent
}

func newEcho() echo { return echo{secret: rand.Uint64()} }

// canEcho says whether sessions with the peer may have the echo function.
func (p Peer) canEcho() bool { return p.Remote.Is4() && !p.Multihop }

// schedule brings the time of the next packet in line with the interval, 0 for none.
func (e *echo) schedule(interval time.Duration, multiplier uint8, now time.Time) {
	switch {
	case interval == 0:
		e.next, e.sent, e.err = time.Time{}, 0, nil
	case e.next.IsZero() || e.next.After(now.Add(interval)):
		e.next = now.Add(jitter(interval, multiplier, rand.Float64()))
	}
}

// problem says what is wrong with the echo function, "" if nothing is, or it is too early to tell.
func (e *echo) problem(back bool, multiplier uint8) string {
	switch {
	case e.err != nil:
		return "echo: " + e.err.Error()
	case !back && e.sent > 2*int(multiplier):
		return "echo: the peer sends no echo packets back, so only control packets watch the path; it must forward IPv4"
	}
	return ""
}

// payload identifies the session and proves that the packet was received from here.
func (s *session) payload() [packetLen]byte {
	var b [packetLen]byte
	binary.BigEndian.PutUint32(b[:], s.mine)
	binary.BigEndian.PutUint64(b[8:], s.echo.secret)
	return b
}

// echoCameBack takes in an echo packet. Anything that is not exactly ours is ignored.
func (r *Runner) echoCameBack(in received, now time.Time) {
	s := r.byMine[binary.BigEndian.Uint32(in.data[:])]
	if s == nil || s.echoInterval() == 0 || in.ttl != echoTTL-1 || in.data != s.payload() {
		return
	}
	s.echoed = now
	r.schedule(s, now)
}

// expireEcho sends the echo packet that is due, and notes if none has come back for too long.
func (r *Runner) expireEcho(s *session, now time.Time) (changes []change) {
	overdue := func() bool { d := s.echoDetection(); return d > 0 && !s.echoed.Add(d).After(now) }
	if overdue() && r.echoes != nil {
		r.echoes.drain() // this process may have slept, with packets waiting
		changes = r.receive()
	}
	if overdue() && r.echoes != nil && r.echoes.moved(s.Peer) {
		s.echoed, s.echo.sent = time.Time{}, 0 // they went to where the peer was
	}
	if overdue() {
		before := s.state
		if s.machine.expireEcho() {
			changes = append(changes, r.changedState(s, before, now))
			r.transmit(s, s.packet(), now)
		}
	}
	if s.echo.next.IsZero() || s.echo.next.After(now) || s.echoInterval() == 0 {
		return changes
	}
	s.echo.next = time.Time{}
	if r.echoes == nil {
		s.echo.err = errors.New(r.echoProblem)
		return changes
	}
	payload := s.payload()
	s.echo.sent++
	s.echo.err = r.echoes.send(s.Peer, payload, now)
	return changes
}

// reopenEcho opens the socket for echo packets when a session needs one, and closes it when none does.
func (r *Runner) reopenEcho() {
	need := false
	for _, s := range r.sessions {
		need = need || s.profile.Echo > 0
	}
	switch {
	case need && r.echoes == nil:
		e, err := r.openEcho(r.inbox)
		if err != nil {
			if r.echoProblem != err.Error() {
				r.log.Error("BFD cannot send echo packets", "reason", err)
			}
			r.echoProblem = err.Error()
			return
		}
		r.echoes, r.echoProblem = e, ""
	case !need && r.echoes != nil:
		r.echoes.close()
		r.echoes = nil
	}
}

// echoSocket sends echo packets by way of peers, and puts what comes back into the Runner's inbox.
type echoSocket interface {
	// send sends without waiting. An error means that the packet is lost.
	send(peer Peer, payload [packetLen]byte, now time.Time) error
	// moved looks up the way to the peer again, and says whether the peer's hardware address is another now.
	moved(peer Peer) bool
	// drain puts everything into the inbox that the kernel has received so far.
	drain()
	close()
}

// echoPath is the way to a peer.
type echoPath struct {
	local netip.Addr
	link  int
	mac   net.HardwareAddr
	err   error
	at    time.Time // when it was looked up
}

// kernelEcho is a socket that receives IPv4 from all interfaces, filtered to echo packets.
type kernelEcho struct {
	inbox *inbox
	conn  *rawsocket.Conn
	raw   syscall.RawConn
	paths map[Peer]echoPath // used by the Runner only
	wg    sync.WaitGroup
}

// echoFilter passes the IPv4 packets that are UDP to the port of echo packets, not fragments, and as long as ours.
var echoFilter = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 0, Size: 1}, // version and header length
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0x45, SkipTrue: 9},
	bpf.LoadAbsolute{Off: 2, Size: 2}, // length
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: echoLen, SkipTrue: 7},
	bpf.LoadAbsolute{Off: 6, Size: 2}, // fragmentation
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 5},
	bpf.LoadAbsolute{Off: 9, Size: 1}, // protocol
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 3},
	bpf.LoadAbsolute{Off: 22, Size: 2}, // destination port
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: portEcho, SkipTrue: 1},
	bpf.RetConstant{Val: echoLen},
	bpf.RetConstant{Val: 0},
}

// listenEcho opens the socket for echo packets.
func listenEcho(box *inbox) (echoSocket, error) {
	program, err := bpf.Assemble(echoFilter)
	if err != nil {
		return nil, fmt.Errorf("filter for BFD echo packets: %w", err)
	}
	conn, err := rawsocket.Listen(&net.Interface{}, rawsocket.Datagram, unix.ETH_P_IP, &rawsocket.Config{Filter: program})
	if err != nil {
		return nil, fmt.Errorf("open the socket for BFD echo packets: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open the socket for BFD echo packets: %w", err)
	}
	k := &kernelEcho{inbox: box, conn: conn, raw: raw, paths: map[Peer]echoPath{}}
	k.wg.Go(func() {
		for k.raw.Read(func(fd uintptr) bool { return k.fill(int(fd)) }) == nil {
		}
	})
	return k, nil
}

func (k *kernelEcho) close() {
	k.conn.Close()
	k.wg.Wait()
}

func (k *kernelEcho) drain() {
	_ = k.raw.Control(func(fd uintptr) { k.fill(int(fd)) }) // fails when the socket is closed
}

// fill puts everything that the kernel has into the inbox, and says whether there was something.
func (k *kernelEcho) fill(fd int) (some bool) {
	k.inbox.fill(func() (received, bool) {
		for {
			var b [echoLen]byte
			n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_DONTWAIT)
			if err != nil {
				return received{}, false
			}
			some = true
			if n == echoLen && [4]byte(b[12:]) == [4]byte(b[16:]) {
				return received{echo: true, ttl: b[8], data: [packetLen]byte(b[28:])}, true
			}
		}
	})
	return some
}

// way is the way to a peer, as the kernel knows it, looked up at most once in echoLookup.
func (k *kernelEcho) way(peer Peer, now time.Time) echoPath {
	p, ok := k.paths[peer]
	if !ok || now.Sub(p.at) >= echoLookup {
		p = lookUp(peer)
		p.at = now
		k.paths[peer] = p
	}
	return p
}

func (k *kernelEcho) moved(peer Peer) bool {
	old := k.paths[peer]
	delete(k.paths, peer)
	return old.mac.String() != k.way(peer, time.Now()).mac.String()
}

func lookUp(peer Peer) (p echoPath) {
	routes, err := netlink.RouteGetWithOptions(peer.Remote.AsSlice(), &netlink.RouteGetOptions{VrfName: peer.VRF, SrcAddr: peer.Local.AsSlice()})
	switch {
	case err != nil:
		p.err = fmt.Errorf("route to %s: %w", peer.Remote, err)
		return p
	case len(routes) != 1 || len(routes[0].Gw) > 0:
		p.err = fmt.Errorf("%s is not on a network of this node", peer.Remote)
		return p
	}
	p.link = routes[0].LinkIndex
	if p.local = peer.Local; !p.local.IsValid() {
		p.local, _ = netip.AddrFromSlice(routes[0].Src.To4())
	}
	neighbors, err := netlink.NeighList(p.link, unix.AF_INET)
	if err != nil {
		p.err = fmt.Errorf("hardware address of %s: %w", peer.Remote, err)
		return p
	}
	for _, n := range neighbors {
		if n.IP.Equal(peer.Remote.AsSlice()) && len(n.HardwareAddr) == 6 {
			p.mac = n.HardwareAddr
			return p
		}
	}
	p.err = fmt.Errorf("hardware address of %s is not known", peer.Remote)
	return p
}

func (k *kernelEcho) send(peer Peer, payload [packetLen]byte, now time.Time) error {
	p := k.way(peer, now)
	if p.err != nil {
		return p.err
	}
	to := &unix.SockaddrLinklayer{Ifindex: p.link, Halen: 6, Protocol: bigEndian(unix.ETH_P_IP)}
	copy(to.Addr[:], p.mac)
	var err error
	if cerr := k.raw.Control(func(fd uintptr) {
		err = unix.Sendto(int(fd), echoPacket(p.local.As4(), payload), unix.MSG_DONTWAIT, to)
	}); cerr != nil {
		return cerr
	}
	return err
}

// echoPacket is an IPv4 packet from an address to itself, without a UDP checksum.
func echoPacket(local [4]byte, payload [packetLen]byte) []byte {
	b := make([]byte, echoLen)
	b[0], b[1] = 0x45, 0xc0 // internetwork control, as control packets
	binary.BigEndian.PutUint16(b[2:], echoLen)
	b[8], b[9] = echoTTL, unix.IPPROTO_UDP
	copy(b[12:], local[:])
	copy(b[16:], local[:])
	binary.BigEndian.PutUint16(b[10:], headerChecksum(b[:20]))
	binary.BigEndian.PutUint16(b[20:], portEcho)
	binary.BigEndian.PutUint16(b[22:], portEcho)
	binary.BigEndian.PutUint16(b[24:], 8+packetLen)
	copy(b[28:], payload[:])
	return b
}

// headerChecksum is that of an IPv4 header (RFC 1071).
func headerChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func bigEndian(v uint16) uint16 { return v<<8 | v>>8 }
