package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"github.com/clarionlb/clarion/test/lab"
)

// heard is an ARP frame that the client received and that says who has an address.
type heard struct {
	at      time.Time
	addr    netip.Addr
	host    string
	unasked bool // an announcement
}

// ear listens to ARP on the client's link, and asks.
type ear struct {
	b      *bench
	client *arp.Client
	self   netip.Addr
	hosts  map[string]string // by hardware address
	closed atomic.Bool
	done   chan struct{}

	mu     sync.Mutex
	frames []heard
}

// listen opens an ear on the client's link.
func (b *bench) listen() (*ear, error) {
	e := &ear{b: b, self: b.Host("client").IPv4, hosts: map[string]string{}, done: make(chan struct{})}
	for _, n := range b.Nodes() {
		e.hosts[b.Host(n).MAC.String()] = n
	}
	err := b.In("client", func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c, err := packet.Listen(ifi, packet.Raw, unix.ETH_P_ARP, nil)
		if err != nil {
			return err
		}
		// A thousand addresses may be announced at once.
		raw, err := c.SyscallConn()
		if err == nil {
			var failed error
			err = raw.Control(func(fd uintptr) {
				failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
			})
			err = errors.Join(err, failed)
		}
		if err == nil {
			e.client, err = arp.New(ifi, c)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ARP on the client: %w", err)
	}
	go e.read()
	return e, nil
}

func (e *ear) read() {
	defer close(e.done)
	for {
		p, _, err := e.client.Read()
		now := time.Now()
		if e.closed.Load() {
			return
		}
		if err != nil || p.SenderIP == e.self || p.SenderIP == netip.IPv4Unspecified() {
			continue
		}
		unasked := p.SenderIP == p.TargetIP
		if p.Operation != arp.OperationReply && !unasked {
			continue
		}
		host := e.hosts[p.SenderHardwareAddr.String()]
		if host == "" {
			host = p.SenderHardwareAddr.String()
		}
		e.mu.Lock()
		e.frames = append(e.frames, heard{now, p.SenderIP, host, unasked})
		e.mu.Unlock()
	}
}

// heard are the frames so far about an address; about all if it is invalid.
func (e *ear) heard(addr netip.Addr) []heard {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := slices.Clone(e.frames)
	if addr.IsValid() {
		out = slices.DeleteFunc(out, func(h heard) bool { return h.addr != addr })
	}
	return out
}

// ask sends one question to all.
func (e *ear) ask(addr netip.Addr) error {
	p, err := arp.NewPacket(arp.OperationRequest, e.client.HardwareAddr(), e.self, make(net.HardwareAddr, 6), addr)
	if err != nil {
		return err
	}
	return e.client.WriteTo(p, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
}

// asking asks every so often until stop is called.
func (e *ear) asking(addr netip.Addr, every time.Duration) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			_ = e.ask(addr) // what is not asked is not answered, which shows
			select {
			case <-tick.C:
			case <-end:
				return
			}
		}
	}()
	return func() { close(end); <-ended }
}

func (e *ear) close() {
	e.closed.Store(true)
	_ = e.client.Close()
	<-e.done
}

// disputed is how long an address was claimed by more than one host, from the first claim by another host than the one
// before it to the last such claim, when claims are frames in the order of arrival. One change of hosts is no dispute.
func disputed(frames []heard) time.Duration {
	var changes []time.Time
	for i := 1; i < len(frames); i++ {
		if frames[i].host != frames[i-1].host {
			changes = append(changes, frames[i].at)
		}
	}
	if len(changes) < 2 {
		return 0
	}
	return changes[len(changes)-1].Sub(changes[0])
}

func interfaceIndex(name string) (int, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	return ifi.Index, nil
}

// questionFrame is an Ethernet frame to all with an ARP request for 0.0.0.0, the last four bytes.
func questionFrame(from lab.Host) []byte {
	f := slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, from.MAC, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, from.MAC)
	f = append(f, from.IPv4.AsSlice()...)
	return append(f, make([]byte, 10)...)
}
