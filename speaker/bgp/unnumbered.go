package bgp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"

	"github.com/clarionlb/clarion/internal/wake"
)

const (
	// searchInterval and restInterval are between our router advertisements, and between solicitations, before and
	// after a router has been heard. Routers learn the node's address from nothing else.
	searchInterval = time.Second
	restInterval   = 10 * time.Second
)

var (
	allNodes   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::2")
)

// routers finds the router behind an interface by its router advertisements (RFC 4861), and makes this node known by
// its own. They offer nothing: their router lifetime is 0, so that no host takes the node for a default gateway.
type routers struct {
	name  string      // of the interface
	asked wake.Signal // the router heard last does not answer; there may be another

	mu   sync.Mutex
	addr netip.Addr // heard last, with its zone
	err  error      // why none can be heard
}

func newRouters(name string) *routers { return &routers{name: name, asked: wake.New()} }

// latest is the link-local address of the router that was heard last.
func (r *routers) latest() (netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.err != nil:
		return netip.Addr{}, r.err
	case !r.addr.IsValid():
		return netip.Addr{}, fmt.Errorf("no router advertisement has been heard on %s", r.name)
	}
	return r.addr, nil
}

// ask makes the routers on the link say where they are.
func (r *routers) ask() { r.asked.Set() }

func (r *routers) set(addr netip.Addr, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if addr.IsValid() {
		r.addr = addr
	}
	r.err = err
}

// run listens and advertises until ctx ends, also when the interface goes and comes back.
func (r *routers) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := r.serve(ctx)
		r.set(netip.Addr{}, err)
		select {
		case <-ctx.Done():
		case <-time.After(searchInterval):
		}
	}
}

// serve works on the interface as it is now, until that fails.
func (r *routers) serve(ctx context.Context) error {
	ifi, err := net.InterfaceByName(r.name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", r.name, err)
	}
	conn, _, err := ndp.Listen(ifi, ndp.LinkLocal)
	if err != nil {
		return fmt.Errorf("listen for router advertisements on %s: %w", r.name, err)
	}
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterAdvertisement)
	filter.Accept(ipv6.ICMPTypeRouterSolicitation)
	if err := errors.Join(conn.SetControlMessage(ipv6.FlagHopLimit, true), conn.SetICMPFilter(&filter), conn.JoinGroup(allRouters)); err != nil {
		conn.Close()
		return fmt.Errorf("listen for router advertisements on %s: %w", r.name, err)
	}
	r.set(netip.Addr{}, nil)

	solicited := wake.New()
	ended := make(chan error, 1)
	go func() { ended <- r.listen(conn, solicited) }()
	err = r.advertise(ctx, conn, ifi.HardwareAddr, solicited, ended)
	conn.Close()
	return err
}

// listen takes in messages until the connection fails.
func (r *routers) listen(conn *ndp.Conn, solicited wake.Signal) error {
	for {
		msg, cm, from, err := conn.ReadFrom()
		var ne net.Error
		if errors.As(err, &ne) {
			return fmt.Errorf("listen for router advertisements on %s: %w", r.name, err)
		}
		if err != nil || cm == nil || cm.HopLimit != ndp.HopLimit { // malformed, or not from this link (RFC 4861 section 6.1)
			continue
		}
		switch msg.(type) {
		case *ndp.RouterAdvertisement:
			if from.IsLinkLocalUnicast() {
				r.set(from.WithZone(r.name), nil)
			}
		case *ndp.RouterSolicitation:
			solicited.Set()
		}
	}
}

// advertise sends advertisements, at once when a solicitation was heard, and solicitations while there is no router,
// until ctx or the connection ends. It returns after listen has.
func (r *routers) advertise(ctx context.Context, conn *ndp.Conn, mac net.HardwareAddr, heard <-chan struct{}, ended <-chan error) error {
	var options []ndp.Option
	if len(mac) == 6 {
		options = []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: mac}}
	}
	ra, rs := &ndp.RouterAdvertisement{Options: options}, &ndp.RouterSolicitation{Options: options}
	search := true
	for {
		err := conn.WriteTo(ra, nil, allNodes)
		interval := restInterval
		if _, unheard := r.latest(); search || unheard != nil {
			interval = searchInterval
			err = errors.Join(err, conn.WriteTo(rs, nil, allRouters))
		}
		if err != nil {
			conn.Close()
			<-ended
			return fmt.Errorf("advertise on %s: %w", r.name, err)
		}
		search = false
		// No more often than once in searchInterval. RFC 4861 section 6.2.6 asks for three seconds, but a router that has
		// just started need not wait for that long.
		pause, solicited, asked := time.After(searchInterval), (<-chan struct{})(nil), (<-chan struct{})(nil)
		for rest, waiting := time.After(interval), true; waiting; {
			select {
			case <-pause:
				solicited, asked = heard, r.asked
			case <-solicited:
				waiting = false
			case <-asked:
				search, waiting = true, false
			case <-rest:
				waiting = false
			case err := <-ended:
				return err
			case <-ctx.Done():
				conn.Close()
				<-ended
				return ctx.Err()
			}
		}
	}
}
