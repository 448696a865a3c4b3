package bfd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	portSingleHop = 3784 // RFC 5881 section 4
	portMultihop  = 4784 // RFC 5883 section 5
	firstSource   = 49152
)

func (e endpoint) port() uint16 {
	if e.multihop {
		return portMultihop
	}
	return portSingleHop
}

// kernelSocket is a pair of UDP sockets, one bound to the port of the protocol to receive, one bound to a source port in
// the range that RFC 5881 section 4 demands to send.
type kernelSocket struct {
	endpoint
	inbox   *inbox
	in, out *net.UDPConn
	inRaw   syscall.RawConn
	outRaw  syscall.RawConn
	names   map[int]string // of interfaces, by index, as received from
	indexes map[string]int // of interfaces, by name, as sent to
	wg      sync.WaitGroup
}

// listen opens the sockets of an endpoint.
func listen(e endpoint, box *inbox) (socket, error) {
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	bind := func(port uint16, set func(fd int) error) (*net.UDPConn, error) {
		network, addr := "udp4", any4
		if e.v6 {
			network, addr = "udp6", any6
		}
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) {
				if e.vrf != "" {
					if err = unix.BindToDevice(int(fd), e.vrf); err != nil {
						err = fmt.Errorf("bind to VRF %s: %w", e.vrf, err)
						return
					}
				}
				err = set(int(fd))
			}); cerr != nil {
				return cerr
			}
			return err
		}}
		c, err := lc.ListenPacket(context.Background(), network, netip.AddrPortFrom(addr, port).String())
		if err != nil {
			return nil, err
		}
		return c.(*net.UDPConn), nil
	}
	in, err := bind(e.port(), func(fd int) error {
		if e.v6 {
			return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
		}
		return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTTL, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
	})
	if err != nil {
		return nil, fmt.Errorf("listen for BFD: %w", err)
	}
	var out *net.UDPConn
	for range 20 {
		out, err = bind(uint16(firstSource+rand.IntN(1<<16-firstSource)), func(fd int) error {
			// Packets to peers that do not answer ARP wait in the kernel; they must not use up the room of others.
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)
			if e.v6 {
				return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255), unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0xc0))
			}
			// Internetwork control (RFC 2474 section 4.2.2.1): a full queue in a router must not look like a dead one.
			return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, 255), unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, 0xc0))
		})
		if err == nil || !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		in.Close()
		return nil, fmt.Errorf("bind BFD source port: %w", err)
	}
	s := &kernelSocket{endpoint: e, inbox: box, in: in, out: out, names: map[int]string{}, indexes: map[string]int{}}
	s.inRaw, _ = in.SyscallConn() // fails on a nil connection only
	s.outRaw, _ = out.SyscallConn()
	s.wg.Go(s.read)
	return s, nil
}

func (s *kernelSocket) close() {
	s.in.Close()
	s.out.Close()
	s.wg.Wait()
}

// read fills the inbox until the socket is closed.
func (s *kernelSocket) read() {
	// The callback returns false to be called again when there is something to read.
	for s.inRaw.Read(func(fd uintptr) bool { return s.fill(int(fd)) }) == nil {
	}
}

func (s *kernelSocket) drain() {
	_ = s.inRaw.Control(func(fd uintptr) { s.fill(int(fd)) }) // fails when the socket is closed
}

// fill puts everything that the kernel has into the inbox, and says whether there was something.
func (s *kernelSocket) fill(fd int) (some bool) {
	s.inbox.fill(func() (received, bool) {
		for {
			p, ok, err := s.recv(fd)
			if err != nil {
				return received{}, false
			}
			some = true
			if ok {
				return p, true
			}
		}
	})
	return some
}

// recv receives one packet without waiting. It is not ok if it is no BFD packet.
func (s *kernelSocket) recv(fd int) (p received, ok bool, err error) {
	var buf [packetLen + 64]byte // room to see that one is longer, as with authentication
	var oob [128]byte
	n, oobn, _, from, err := unix.Recvmsg(fd, buf[:], oob[:], unix.MSG_DONTWAIT)
	if err != nil || n < packetLen {
		return p, false, err
	}
	p.endpoint = s.endpoint
	copy(p.data[:], buf[:])
	link := 0
	switch from := from.(type) {
	case *unix.SockaddrInet4:
		p.from = netip.AddrFrom4(from.Addr)
	case *unix.SockaddrInet6:
		p.from = netip.AddrFrom16(from.Addr)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return p, false, nil
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL && len(m.Data) >= 4,
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT && len(m.Data) >= 4:
			p.ttl = uint8(*(*int32)(unsafe.Pointer(&m.Data[0])))
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&m.Data[0]))
			p.to, link = netip.AddrFrom4(info.Addr), int(info.Ifindex)
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&m.Data[0]))
			p.to, link = netip.AddrFrom16(info.Addr), int(info.Ifindex)
		}
	}
	if p.from.Is6() && p.from.IsLinkLocalUnicast() {
		p.from = p.from.WithZone(s.name(link))
	}
	return p, true, nil
}

// name is the name of an interface. A new interface has a new index, so that what is known stays true, but for renaming.
func (s *kernelSocket) name(index int) string {
	n, ok := s.names[index]
	if !ok {
		if ifi, err := net.InterfaceByIndex(index); err == nil {
			n = ifi.Name
			s.names[index] = n
		}
	}
	return n
}

func (s *kernelSocket) send(b []byte, local, remote netip.Addr) error {
	var to unix.Sockaddr
	var oob []byte
	if s.v6 {
		sa := &unix.SockaddrInet6{Addr: remote.As16(), Port: int(s.port())}
		if z := remote.Zone(); z != "" {
			if s.indexes[z] == 0 {
				ifi, err := net.InterfaceByName(z)
				if err != nil {
					return err
				}
				s.indexes[z] = ifi.Index
			}
			sa.ZoneId = uint32(s.indexes[z])
		}
		if local.IsValid() {
			oob = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: local.As16(), Ifindex: sa.ZoneId})
		}
		to = sa
	} else {
		to = &unix.SockaddrInet4{Addr: remote.As4(), Port: int(s.port())}
		if local.IsValid() {
			oob = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: local.As4()})
		}
	}
	var err error
	if cerr := s.outRaw.Control(func(fd uintptr) { _, err = unix.SendmsgN(int(fd), b, oob, to, unix.MSG_DONTWAIT) }); cerr != nil {
		return cerr
	}
	if err != nil {
		delete(s.indexes, remote.Zone()) // it may be another interface by now
	}
	return err
}
