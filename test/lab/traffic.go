package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"

	"github.com/clarionlb/clarion/test/lab/internal/wire"
)

// RequestTimeout bounds each request of HTTP, UDP, SCTP and the streams.
const RequestTimeout = 2 * time.Second

// parallel is how many requests HTTP and UDP have under way.
const parallel = 16

// Reply is what came of one request. Every request is a flow of its own, from a new port.
type Reply struct {
	Server    string         // the pod that answered
	Node      string         // its node
	Client    netip.AddrPort // the client's address as the pod saw it
	Forwarded string         // X-Forwarded-For as the pod saw it
	Sent      time.Time
	Took      time.Duration
	Err       error
}

// HTTP makes n requests for a URL with an IP address for a host, from a lab host's namespace.
func (l *Lab) HTTP(ctx context.Context, from, url string, n int) []Reply {
	return many(n, func() Reply { return l.oneHTTP(ctx, from, url) })
}

// UDP sends n datagrams to an address and port, each from a new socket.
func (l *Lab) UDP(ctx context.Context, from, address string, n int) []Reply {
	return many(n, func() Reply { return l.oneUDP(ctx, from, address) })
}

func many(n int, one func() Reply) []Reply {
	out := make([]Reply, n)
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i := range out {
		slots <- struct{}{}
		wg.Go(func() {
			out[i] = one()
			<-slots
		})
	}
	wg.Wait()
	return out
}

// request times f and reads the answer it returns.
func request(ctx context.Context, f func(context.Context) ([]byte, error)) Reply {
	ctx, cancel := context.WithTimeout(ctx, RequestTimeout)
	defer cancel()
	r := Reply{Sent: time.Now()}
	b, err := f(ctx)
	r.Took = time.Since(r.Sent)
	var a wire.Answer
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err == nil {
		r.Client, err = netip.ParseAddrPort(a.Client)
	}
	r.Server, r.Node, r.Forwarded, r.Err = a.Server, a.Node, a.Forwarded, err
	return r
}

func (l *Lab) oneHTTP(ctx context.Context, from, url string) Reply {
	return request(ctx, func(ctx context.Context) ([]byte, error) {
		c := http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				return l.Dial(ctx, from, network, addr)
			},
		}}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		res, err := c.Do(req)
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err == nil && res.StatusCode != http.StatusOK {
			err = errors.New(res.Status)
		}
		return b, err
	})
}

func (l *Lab) oneUDP(ctx context.Context, from, address string) Reply {
	return request(ctx, func(ctx context.Context) ([]byte, error) {
		c, err := l.Dial(ctx, from, "udp", address)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		stop := context.AfterFunc(ctx, func() { c.Close() })
		defer stop()
		if _, err := io.WriteString(c, "hello"); err != nil {
			return nil, err
		}
		b := make([]byte, 2048)
		n, err := c.Read(b)
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return b[:n], err
	})
}

// SCTP sends an INIT to an address and port and waits for the INIT ACK from there.
func (l *Lab) SCTP(ctx context.Context, from, address string) error {
	ctx, cancel := context.WithTimeout(ctx, RequestTimeout)
	defer cancel()
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	network := "ip4:132"
	if to.Addr().Is6() {
		network = "ip6:132"
	}
	c, err := l.Dial(ctx, from, network, to.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	init := wire.Init{SrcPort: uint16(32768 + rand.IntN(28000)), DstPort: to.Port(), InitiateTag: rand.Uint32() | 1}
	if _, err := c.Write(init.Marshal()); err != nil {
		return err
	}
	b := make([]byte, 2048)
	for {
		// ReadFrom, not Read, takes IPv4's header off.
		n, _, err := c.(net.PacketConn).ReadFrom(b)
		if err != nil {
			return fmt.Errorf("sctp %s: no INIT ACK: %w", address, errors.Join(ctx.Err(), err))
		}
		got, err := wire.ParseInit(b[:n])
		if err == nil && got.Ack && got.SrcPort == to.Port() && got.DstPort == init.SrcPort && got.VerificationTag == init.InitiateTag {
			return nil
		}
	}
}

// Stream is traffic that goes on while a test does something else.
type Stream struct {
	end, ended chan struct{}
	mu         sync.Mutex
	replies    []Reply
}

// StreamHTTP makes a request every so often, until Stop.
func (l *Lab) StreamHTTP(ctx context.Context, from, url string, every time.Duration) *Stream {
	return stream(every, func() Reply { return l.oneHTTP(ctx, from, url) })
}

// StreamUDP sends a datagram from a new socket every so often, until Stop.
func (l *Lab) StreamUDP(ctx context.Context, from, address string, every time.Duration) *Stream {
	return stream(every, func() Reply { return l.oneUDP(ctx, from, address) })
}

func stream(every time.Duration, one func() Reply) *Stream {
	s := &Stream{end: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		var wg sync.WaitGroup
		defer wg.Wait()
		for {
			wg.Go(func() {
				r := one()
				s.mu.Lock()
				defer s.mu.Unlock()
				s.replies = append(s.replies, r)
			})
			select {
			case <-tick.C:
			case <-s.end:
				return
			}
		}
	}()
	return s
}

// Replies are those that have come so far, in the order of sending; requests under way are not among them.
func (s *Stream) Replies() []Reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.Clone(s.replies)
	slices.SortFunc(out, func(a, b Reply) int { return a.Sent.Compare(b.Sent) })
	return out
}

// Stop ends the stream, waits for the requests under way and returns all replies in the order of sending. Call it once.
func (s *Stream) Stop() []Reply {
	close(s.end)
	<-s.ended
	return s.Replies()
}

// Lost are the replies with an error.
func Lost(replies []Reply) []Reply {
	var out []Reply
	for _, r := range replies {
		if r.Err != nil {
			out = append(out, r)
		}
	}
	return out
}

// Outage is the time from the first lost request to the last, by when they were sent; 0 if none or one was lost.
func Outage(replies []Reply) time.Duration {
	lost := Lost(replies)
	if len(lost) == 0 {
		return 0
	}
	return lost[len(lost)-1].Sent.Sub(lost[0].Sent)
}

// CountServers counts the answers by pod; requests without an answer count under "".
func CountServers(replies []Reply) map[string]int {
	out := map[string]int{}
	for _, r := range replies {
		out[r.Server]++
	}
	return out
}

// CountNodes counts the answers by the pods' nodes; requests without an answer count under "".
func CountNodes(replies []Reply) map[string]int {
	out := map[string]int{}
	for _, r := range replies {
		out[r.Node]++
	}
	return out
}

// WhoHas asks the LAN once, by ARP or NDP from a host's eth0, who has an address, collects the answers for so long and
// returns the hosts by name, sorted; an unknown host is named by its MAC address. Each host counts once.
func (l *Lab) WhoHas(from string, addr netip.Addr, wait time.Duration) ([]string, error) {
	var macs []net.HardwareAddr
	err := l.In(from, func() (err error) {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if addr.Is4() {
			macs, err = whoHas4(ifi, l.Host(from).IPv4, addr, wait)
		} else {
			macs, err = whoHas6(ifi, addr, wait)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("who has %s: %w", addr, err)
	}
	var out []string
	for _, mac := range macs {
		name := mac.String()
		for _, h := range l.hosts() {
			if slices.Equal(h.MAC, mac) {
				name = h.Name
			}
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func whoHas4(ifi *net.Interface, self, addr netip.Addr, wait time.Duration) ([]net.HardwareAddr, error) {
	c, err := arp.Dial(ifi)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	req, err := arp.NewPacket(arp.OperationRequest, ifi.HardwareAddr, self, make(net.HardwareAddr, 6), addr)
	if err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	if err := c.WriteTo(req, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}); err != nil {
		return nil, err
	}
	var out []net.HardwareAddr
	for {
		p, _, err := c.Read()
		if timeout(err) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if p.Operation == arp.OperationReply && p.SenderIP == addr {
			out = append(out, p.SenderHardwareAddr)
		}
	}
}

func whoHas6(ifi *net.Interface, addr netip.Addr, wait time.Duration) ([]net.HardwareAddr, error) {
	c, _, err := ndp.Listen(ifi, ndp.LinkLocal)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	group, err := ndp.SolicitedNodeMulticast(addr)
	if err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	ns := &ndp.NeighborSolicitation{TargetAddress: addr, Options: []ndp.Option{
		&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: ifi.HardwareAddr}}}
	if err := c.WriteTo(ns, nil, group); err != nil {
		return nil, err
	}
	var out []net.HardwareAddr
	for {
		m, _, _, err := c.ReadFrom()
		if timeout(err) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		na, ok := m.(*ndp.NeighborAdvertisement)
		if !ok || na.TargetAddress != addr {
			continue
		}
		for _, o := range na.Options {
			if a, ok := o.(*ndp.LinkLayerAddress); ok && a.Direction == ndp.Target {
				out = append(out, a.Addr)
			}
		}
	}
}

func timeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
