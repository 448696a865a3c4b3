package layer2

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// wire is one protocol on one link: ARP or IPv6 neighbour discovery.
type wire interface {
	// listen replaces the filter, without losing a frame: the kernel lets through what concerns addrs.
	listen(addrs []netip.Addr) error
	// join and leave keep the node a member of the group, so that snooping switches deliver it.
	join(group netip.Addr) error
	leave(group netip.Addr)
	// send never waits: a frame that does not fit into the queue is an error.
	send(frame []byte) error
	// receive waits for a frame. After close it returns net.ErrClosed.
	receive(buf []byte) (int, error)
	close()
}

// dialer opens a wire whose filter is in place before the first frame can arrive.
type dialer func(link Link, v6 bool, addrs []netip.Addr) (wire, error)

// rawWire is a packet socket. It sees neighbour solicitations that a raw ICMPv6 socket is never given: the unicast
// ones for an address that the kernel does not have.
type rawWire struct {
	link   Link
	conn   *packet.Conn
	raw    syscall.RawConn
	filter func([]span) []bpf.Instruction
	groups []groupSocket
	closed atomic.Bool
}

func dialRaw(link Link, v6 bool, addrs []netip.Addr) (wire, error) {
	w := &rawWire{link: link, filter: arpFilter}
	proto := etherARP
	if v6 {
		w.filter, proto = ndpFilter, etherIPv6
	}
	ifi := &net.Interface{Index: link.Index, Name: link.Name, HardwareAddr: link.MAC[:]}
	err := fit(addrs, w.filter, tooLarge, func(prog []bpf.RawInstruction) (err error) {
		w.conn, err = packet.Listen(ifi, packet.Raw, proto, &packet.Config{Filter: prog})
		return err
	})
	if err != nil {
		return nil, err
	}
	if w.raw, err = w.conn.SyscallConn(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func tooLarge(err error) bool { return errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EINVAL) }

func (w *rawWire) listen(addrs []netip.Addr) error {
	return fit(addrs, w.filter, tooLarge, w.conn.SetBPF)
}

func (w *rawWire) send(frame []byte) error {
	var sent error
	err := w.raw.Write(func(fd uintptr) bool {
		to := &unix.SockaddrLinklayer{Ifindex: w.link.Index, Halen: 6}
		copy(to.Addr[:], frame[:6])
		sent = unix.Sendto(int(fd), frame, unix.MSG_DONTWAIT, to)
		return true
	})
	return errors.Join(err, os.NewSyscallError("sendto", sent))
}

func (w *rawWire) receive(buf []byte) (n int, err error) {
	wait := w.raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), buf)
		return err != unix.EAGAIN
	})
	if w.closed.Load() {
		return 0, net.ErrClosed // the poller has an error of its own for this, which it keeps to itself
	}
	if wait != nil {
		return 0, wait
	}
	return n, os.NewSyscallError("read", err)
}

func (w *rawWire) close() {
	w.closed.Store(true)
	w.conn.Close()
	for _, g := range w.groups {
		unix.Close(g.fd)
	}
}

// groupSocket holds memberships. The kernel takes their memory from the socket's option memory, so that one socket
// has room for a few hundred only.
type groupSocket struct {
	fd      int
	members map[netip.Addr]bool
}

func membership(group netip.Addr, index int) *unix.IPv6Mreq {
	return &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(index)}
}

func (w *rawWire) join(group netip.Addr) error {
	const perSocket = 300
	for _, g := range w.groups {
		if len(g.members) < perSocket {
			err := os.NewSyscallError("join "+group.String(), unix.SetsockoptIPv6Mreq(g.fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, membership(group, w.link.Index)))
			if err == nil {
				g.members[group] = true
			}
			return err
		}
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	w.groups = append(w.groups, groupSocket{fd, map[netip.Addr]bool{}})
	return w.join(group)
}

func (w *rawWire) leave(group netip.Addr) {
	for _, g := range w.groups {
		if g.members[group] {
			delete(g.members, group)
			// It fails only when the interface, and the membership with it, is gone.
			_ = unix.SetsockoptIPv6Mreq(g.fd, unix.IPPROTO_IPV6, unix.IPV6_LEAVE_GROUP, membership(group, w.link.Index))
		}
	}
}

// readLoop hands every frame to handle until the wire is closed. An interface that goes down ends one read with an
// error and works again later, so that no error but closing ends the loop.
func readLoop(w wire, handle func([]byte)) {
	buf := make([]byte, 2048)
	const least, most = time.Millisecond, 100 * time.Millisecond
	for wait := least; ; {
		n, err := w.receive(buf)
		switch {
		case err == nil:
			wait = least
			handle(buf[:n])
		case errors.Is(err, net.ErrClosed):
			return
		default:
			time.Sleep(wait)
			wait = min(2*wait, most)
		}
	}
}
