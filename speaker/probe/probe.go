// Package probe finds out what happens to a connection that this node opens: whether it is answered, and what the kernel
// has made of its destination.
//
// A Service proxy rewrites the destination of a connection to a Service's address, by rules that this node's own
// connections meet too. The kernel's connection tracking remembers that, so that a connection which leaves the node as it
// is, to be answered by another node, is not mistaken for one that the node's own proxy serves.
package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Outcome is what became of a connection.
type Outcome string

// Outcomes.
const (
	// Answered: the connection was accepted, or a datagram came back.
	Answered Outcome = "Answered"
	// Refused: a reset, an ICMP error that says that nobody listens, or a rule of the node's own that rejects.
	Refused Outcome = "Refused"
	// Unreachable: an ICMP error, or nobody answered to ARP or neighbor discovery.
	Unreachable Outcome = "Unreachable"
	// Silent: no answer in time. Of a datagram that says little: no program has to answer one.
	Silent Outcome = "Silent"
	// Failed: the node could not try.
	Failed Outcome = "Failed"
)

// Result is an Outcome with what the kernel knows of the connection.
type Result struct {
	Outcome Outcome
	// Error is what the kernel said; nil when it is Answered.
	Error error
	// From is the address that the node connected from.
	From netip.AddrPort
	// RewrittenTo is where the kernel sent the connection instead; the zero value when it is not known to have been
	// rewritten, as of one that was refused: the kernel has forgotten it.
	RewrittenTo netip.AddrPort
	// AsItIs says that the kernel tracks the connection, and has sent it to the address that was asked for.
	AsItIs bool
	Took   time.Duration
}

// TCP opens a connection and closes it again.
func TCP(ctx context.Context, to netip.AddrPort) Result { return try(ctx, "tcp", to) }

// UDP sends an empty datagram and waits for an answer until ctx ends.
func UDP(ctx context.Context, to netip.AddrPort) Result { return try(ctx, "udp", to) }

func try(ctx context.Context, network string, to netip.AddrPort) (r Result) {
	begin := time.Now()
	defer func() { r.Took = time.Since(begin) }()
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error { // the source is known before the outcome
		var err error
		if outer := c.Control(func(fd uintptr) { r.From, err = bind(int(fd), to) }); outer != nil {
			return outer
		}
		return err
	}}
	c, err := d.DialContext(ctx, network, to.String())
	if err == nil {
		if network == "udp" {
			err = exchange(ctx, c)
		}
		defer c.Close()
	}
	r.Outcome, r.Error = outcome(err), err
	if r.From.IsValid() {
		if now, tracked := destination(network, r.From, to); tracked && now == to {
			r.AsItIs = true
		} else if tracked {
			r.RewrittenTo = now
		}
	}
	return r
}

// exchange sends an empty datagram and waits for another.
func exchange(ctx context.Context, c net.Conn) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := c.Write(nil); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

func outcome(err error) Outcome {
	switch {
	case err == nil:
		return Answered
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return Refused
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return Unreachable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return Silent
	}
	return Failed
}

// bind gives a socket the source address that the kernel would choose, and a port.
func bind(fd int, to netip.AddrPort) (netip.AddrPort, error) {
	c, err := net.Dial("udp", to.String()) // sends nothing
	if err != nil {
		return netip.AddrPort{}, err
	}
	from := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	c.Close()
	var at unix.Sockaddr = &unix.SockaddrInet6{Addr: from.As16()}
	if from.Is4() {
		at = &unix.SockaddrInet4{Addr: from.As4()}
	}
	if err := unix.Bind(fd, at); err != nil {
		return netip.AddrPort{}, os.NewSyscallError("bind", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(from, uint16(name.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(from, uint16(name.Port)), nil
	}
	return netip.AddrPort{}, errors.New("the socket is of no Internet protocol")
}
