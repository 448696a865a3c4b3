package bgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// port is that of BGP.
const port = 179

// dialTime is how long an attempt to connect may take: the SYN that the kernel repeats after one second, then two, comes
// too late for a peer that is back by then.
const dialTime = time.Second

// dial connects to the peer at remote.
func (linux) dial(ctx context.Context, p Peer, remote netip.Addr) (net.Conn, error) {
	d := net.Dialer{
		Timeout:   dialTime,
		KeepAlive: -1, // the protocol has its own
		Control: func(_, _ string, c syscall.RawConn) error {
			return control(c, func(fd int) error {
				return cmp.Or(bind(fd, p.VRF), p.Auth.set(fd, remote, p.VRF), setTTL(fd, p, remote.Is6()))
			})
		},
	}
	if p.Source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.Source, 0))
	}
	return d.DialContext(ctx, "tcp", netip.AddrPortFrom(remote, cmp.Or(p.Port, port)).String())
}

// control runs f on the socket, between its creation and its use.
func control(c syscall.RawConn, f func(fd int) error) error {
	var ferr error
	if err := c.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// bind binds the socket to a VRF, "" for none.
func bind(fd int, vrf string) error {
	if vrf == "" {
		return nil
	}
	if err := unix.BindToDevice(fd, vrf); err != nil {
		return fmt.Errorf("bind to VRF %s: %w", vrf, err)
	}
	return nil
}

// setTTL sets what packets of the session leave with, and the least they may arrive with.
func setTTL(fd int, p Peer, v6 bool) error {
	level, ttl, least := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_MINTTL
	if v6 {
		level, ttl, least = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_MINHOPCOUNT
	}
	var err error
	switch {
	case p.TTLSecurity: // RFC 5082 section 3
		err = cmp.Or(unix.SetsockoptInt(fd, level, ttl, 255), unix.SetsockoptInt(fd, level, least, 255))
	case p.external() && !p.MultiHop:
		err = unix.SetsockoptInt(fd, level, ttl, 1)
	}
	if err != nil {
		return fmt.Errorf("set TTL: %w", err)
	}
	return nil
}

// set makes the socket sign what it sends to remote, and drop what comes from there without the same signature
// (RFC 2385).
func (a Auth) set(fd int, remote netip.Addr, vrf string) error {
	if a == (Auth{}) {
		return nil
	}
	return setMD5(fd, remote, vrf, a.Password)
}

// setMD5 sets the key for remote, or takes it back if password is "".
func setMD5(fd int, remote netip.Addr, vrf, password string) error {
	sig := unix.TCPMD5Sig{Keylen: uint16(len(password))}
	copy(sig.Key[:], password)
	// Addr is a struct sockaddr without its first field.
	if remote.Is4() {
		sig.Addr.Family = unix.AF_INET
		copy(sig.Addr.Data[2:], remote.AsSlice())
	} else {
		sig.Addr.Family = unix.AF_INET6
		copy(sig.Addr.Data[6:], remote.AsSlice())
	}
	if vrf != "" {
		ifi, err := net.InterfaceByName(vrf)
		if err != nil {
			return fmt.Errorf("set TCP MD5 key: VRF %s: %w", vrf, err)
		}
		sig.Ifindex, sig.Flags = int32(ifi.Index), unix.TCP_MD5SIG_FLAG_IFINDEX
	}
	if err := unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG_EXT, &sig); err != nil {
		return fmt.Errorf("set TCP MD5 key: %w", err)
	}
	return nil
}

// listeners are the sockets that passive peers connect to: one for each family and VRF, open while a peer waits there.
type listeners struct {
	mu   sync.Mutex
	open map[listenKey]*listener
	all  sync.WaitGroup
}

type listenKey struct {
	v6  bool
	vrf string
}

type listener struct {
	*net.TCPListener
	waiting map[netip.Addr]waiting
}

func newListeners() *listeners {
	return &listeners{open: map[listenKey]*listener{}}
}

// waiting is a passive peer.
type waiting struct {
	peer    Peer
	deliver func(net.Conn)
}

// listen delivers connections of remote until cancel is called. It is an error if another peer waits for the same address.
func (l *listeners) listen(p Peer, remote netip.Addr, deliver func(net.Conn)) (cancel func(), err error) {
	key := listenKey{remote.Is6(), p.VRF}
	l.mu.Lock()
	defer l.mu.Unlock()
	ls := l.open[key]
	if ls == nil {
		if ls, err = l.bind(key); err != nil {
			return nil, err
		}
	}
	if _, taken := ls.waiting[remote]; taken {
		return nil, fmt.Errorf("two passive peers have the address %s", remote)
	}
	if err := onSocket(ls, func(fd int) error { return p.Auth.set(fd, remote, p.VRF) }); err != nil {
		if len(ls.waiting) == 0 {
			l.shut(key)
		}
		return nil, err
	}
	ls.waiting[remote] = waiting{p, deliver}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(ls.waiting, remote)
		if len(ls.waiting) == 0 && l.open[key] == ls {
			l.shut(key)
		} else { // fails if there is none
			_ = onSocket(ls, func(fd int) error { return setMD5(fd, remote, p.VRF, "") })
		}
	}, nil
}

func onSocket(s syscall.Conn, f func(fd int) error) error {
	c, err := s.SyscallConn()
	if err != nil {
		return err
	}
	return control(c, f)
}

// bind opens a listener. l.mu is held.
func (l *listeners) bind(key listenKey) (*listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error {
			if err := bind(fd, key.vrf); err != nil {
				return err
			}
			// Peers with GTSM expect it from the first packet on; others take it as well.
			if key.v6 {
				return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255)
			}
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, 255)
		})
	}}
	lc.SetMultipathTCP(false) // it excludes MD5 signatures
	network, address := "tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), port)
	if key.v6 {
		network, address = "tcp6", netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	}
	n, err := lc.Listen(context.Background(), network, address.String())
	if err != nil {
		return nil, err
	}
	ls := &listener{n.(*net.TCPListener), map[netip.Addr]waiting{}}
	l.open[key] = ls
	l.all.Go(func() { l.accept(ls) })
	return ls, nil
}

func (l *listeners) accept(ls *listener) {
	for {
		c, err := ls.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors, for example
			time.Sleep(100 * time.Millisecond)
			continue
		}
		remote := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		l.mu.Lock()
		w, ok := ls.waiting[remote]
		l.mu.Unlock()
		if !ok || onSocket(c, func(fd int) error { return setTTL(fd, w.peer, remote.Is6()) }) != nil {
			c.Close()
			continue
		}
		w.deliver(c)
	}
}

// shut closes a listener. l.mu is held.
func (l *listeners) shut(key listenKey) {
	l.open[key].Close()
	delete(l.open, key)
}

// close closes every listener and waits for them.
func (l *listeners) close() {
	l.mu.Lock()
	for key := range l.open {
		l.shut(key)
	}
	l.mu.Unlock()
	l.all.Wait()
}
