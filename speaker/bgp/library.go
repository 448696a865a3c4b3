package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/clarionlb/clarion/internal/route"
)

// libraryGlobals guards variables of the library's packages that StartBgp writes, always with the same values, and that
// any server reads when it adds, deletes or sends paths.
var libraryGlobals sync.RWMutex

// batch is how many paths the library gets at a time, so that it goes on serving the session in between.
const batch = 500

const (
	stateActive      = api.PeerState_SESSION_STATE_ACTIVE
	stateEstablished = api.PeerState_SESSION_STATE_ESTABLISHED
)

// library is the BgpServer of one peer. It listens on a loopback port for connections of the relay, which stands for
// the peer. Its methods are for one goroutine.
type library struct {
	peer     Peer
	families []bgp.Family
	server   *server.BgpServer
	port     int
	relay    netip.Addr // the address that the relay connects from, zero without a connection
	have     map[netip.Prefix]path
}

// path is what the library has for a prefix.
type path struct {
	route.Attrs
	nextHop netip.Addr
}

func (p path) equal(q path) bool { return p.nextHop == q.nextHop && p.Attrs.Equal(q.Attrs) }

func startLibrary(p Peer, families []bgp.Family) (*library, error) {
	l := &library{peer: p, families: families, have: map[netip.Prefix]path{}}
	l.server = server.NewBgpServer(server.LoggerOption(slog.New(slog.DiscardHandler), nil))
	go l.server.Serve()
	ids := make([]uint32, len(families)) // without a list the library makes a table for each family it knows
	for i, f := range families {
		ids[i] = uint32(familyIndex(f))
	}
	var err error
	for range 10 { // somebody else may take the free port first
		if l.port, err = freePort(); err != nil {
			break
		}
		libraryGlobals.Lock()
		err = l.server.StartBgp(context.Background(), &api.StartBgpRequest{Global: &api.Global{
			Asn: p.LocalASN, RouterId: p.RouterID.String(), Families: ids,
			ListenAddresses: []string{"127.0.0.1"}, ListenPort: int32(l.port),
		}})
		libraryGlobals.Unlock()
		if err == nil {
			return l, nil
		}
	}
	l.server.Stop()
	return nil, fmt.Errorf("start BGP library: %w", err)
}

// familyIndex is the number that Global.Families has for a family.
func familyIndex(f bgp.Family) int {
	if f == bgp.RF_IPv4_UC {
		return 0
	}
	return 1
}

func freePort() (int, error) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// connect opens a fresh session of the library, which knows nothing of earlier ones and does not idle after them, and
// returns the connection on which this side plays the peer.
func (l *library) connect() (*net.TCPConn, error) {
	l.disconnect()
	// The address is drawn anew each time: other processes on the node cannot know it before it is in use.
	a := netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(254)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))})
	p := &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: a.String(), LocalAsn: l.peer.LocalASN},
		Transport: &api.Transport{PassiveMode: true},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime: uint64(l.peer.HoldTime / time.Second), KeepaliveInterval: uint64(l.peer.Keepalive / time.Second),
		}},
		GracefulRestart: &api.GracefulRestart{Enabled: l.peer.GracefulRestart > 0, RestartTime: uint32(l.peer.GracefulRestart / time.Second)},
	}
	for _, f := range l.families {
		p.AfiSafis = append(p.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: &api.Family{Afi: api.Family_Afi(f.Afi()), Safi: api.Family_Safi(f.Safi())}, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: l.peer.GracefulRestart > 0}},
		})
	}
	if err := l.server.AddPeer(context.Background(), &api.AddPeerRequest{Peer: p}); err != nil {
		return nil, fmt.Errorf("add peer to BGP library: %w", err)
	}
	l.relay = a
	// It closes connections that come before it waits for them.
	if err := l.await(stateActive); err != nil {
		return nil, err
	}
	c, err := net.DialTCP("tcp4", &net.TCPAddr{IP: a.AsSlice()}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: l.port})
	if err != nil {
		return nil, fmt.Errorf("connect to BGP library: %w", err)
	}
	return c, nil
}

// establish calls start, which is to make the session established, and waits until it is. A path that is added while the
// library is on the way there would be lost: it is too late for the first routes and too early to be sent on its own.
func (l *library) establish(start func() error) error {
	libraryGlobals.RLock()
	defer libraryGlobals.RUnlock()
	if err := start(); err != nil {
		return err
	}
	return l.await(stateEstablished)
}

// refresh sends every route again (RFC 2918).
func (l *library) refresh() error {
	libraryGlobals.RLock()
	defer libraryGlobals.RUnlock()
	err := l.server.ResetPeer(context.Background(), &api.ResetPeerRequest{Address: l.relay.String(), Soft: true, Direction: api.ResetPeerRequest_DIRECTION_OUT})
	if err != nil {
		return fmt.Errorf("send routes again: %w", err)
	}
	return nil
}

// disconnect ends the session of the library. Its routes stay.
func (l *library) disconnect() {
	if l.relay.IsValid() {
		// The only error is that there is no such peer.
		_ = l.server.DeletePeer(context.Background(), &api.DeletePeerRequest{Address: l.relay.String()})
		l.relay = netip.Addr{}
	}
}

func (l *library) stop() {
	l.disconnect()
	l.server.Stop()
}

// await waits until the session is in a state that it is about to enter.
func (l *library) await(state api.PeerState_SessionState) error {
	for range 5000 {
		if p := l.state(); p != nil && p.State.SessionState == state {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("the BGP library does not enter %s", state)
}

// state is what the library knows about the session, nil without one.
func (l *library) state() (p *api.Peer) {
	_ = l.server.ListPeer(context.Background(), &api.ListPeerRequest{Address: l.relay.String()}, func(q *api.Peer) { p = q })
	return p
}

// set makes want the paths of the library. It adds before it deletes, and remembers what the library has taken.
func (l *library) set(want map[netip.Prefix]path, internal bool) error {
	var add, del []*apiutil.Path
	var addKeys, delKeys []netip.Prefix
	for prefix, p := range want {
		if have, ok := l.have[prefix]; !ok || !have.equal(p) {
			addKeys = append(addKeys, prefix)
		}
	}
	slices.SortFunc(addKeys, netip.Prefix.Compare)
	attrs := map[string][]bgp.PathAttributeInterface{}
	for _, prefix := range addKeys {
		p := want[prefix]
		key := p.key()
		if attrs[key] == nil {
			attrs[key] = p.attributes(l.peer.LocalASN, internal)
		}
		a, err := libraryPath(prefix, p.nextHop, attrs[key])
		if err != nil {
			return err
		}
		add = append(add, a)
	}
	for prefix, p := range l.have {
		if _, ok := want[prefix]; ok {
			continue
		}
		d, err := libraryPath(prefix, p.nextHop, nil)
		if err != nil {
			return err
		}
		del, delKeys = append(del, d), append(delKeys, prefix)
	}
	for n := 0; n < len(add); n += batch {
		end := min(n+batch, len(add))
		libraryGlobals.RLock()
		_, err := l.server.AddPath(apiutil.AddPathRequest{Paths: add[n:end]})
		libraryGlobals.RUnlock()
		if err != nil {
			return fmt.Errorf("add paths to BGP library: %w", err)
		}
		for _, k := range addKeys[n:end] {
			l.have[k] = want[k]
		}
	}
	for n := 0; n < len(del); n += batch {
		end := min(n+batch, len(del))
		libraryGlobals.RLock()
		err := l.server.DeletePath(apiutil.DeletePathRequest{Paths: del[n:end]})
		libraryGlobals.RUnlock()
		if err != nil {
			return fmt.Errorf("delete paths from BGP library: %w", err)
		}
		for _, k := range delKeys[n:end] {
			delete(l.have, k)
		}
	}
	return nil
}

func libraryPath(prefix netip.Prefix, nextHop netip.Addr, attrs []bgp.PathAttributeInterface) (*apiutil.Path, error) {
	n, err := bgp.NewIPAddrPrefix(prefix)
	if err != nil {
		return nil, fmt.Errorf("prefix %s: %w", prefix, err)
	}
	f := familyOf(prefix.Addr())
	reach, err := bgp.NewPathAttributeMpReachNLRI(f, []bgp.PathNLRI{{NLRI: n}}, nextHop)
	if err != nil {
		return nil, fmt.Errorf("prefix %s: %w", prefix, err)
	}
	return &apiutil.Path{Family: f, Nlri: n, Attrs: append([]bgp.PathAttributeInterface{reach}, attrs...), Age: time.Now().Unix()}, nil
}

func familyOf(a netip.Addr) bgp.Family {
	if a.Is4() {
		return bgp.RF_IPv4_UC
	}
	return bgp.RF_IPv6_UC
}

// key is equal for paths with equal attributes, the next hop left out.
func (p path) key() string {
	deref := func(v *uint32) int64 {
		if v == nil {
			return -1
		}
		return int64(*v)
	}
	return fmt.Sprint(p.Communities, deref(p.LocalPref), deref(p.MED), p.Prepend, p.Bandwidth)
}

// attributes are the path attributes, but for the next hop. The library puts the local AS number before the AS path of
// external sessions and adds the default LOCAL_PREF to internal ones.
func (p path) attributes(localASN uint32, internal bool) []bgp.PathAttributeInterface {
	attrs := []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP)}
	if p.Prepend > 0 && !internal { // the own AS number in the path of an internal session is a loop
		as := slices.Repeat([]uint32{localASN}, p.Prepend)
		attrs = append(attrs, bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, as)}))
	}
	if p.MED != nil {
		attrs = append(attrs, bgp.NewPathAttributeMultiExitDisc(*p.MED))
	}
	if p.LocalPref != nil && internal { // RFC 4271 section 5.1.5
		attrs = append(attrs, bgp.NewPathAttributeLocalPref(*p.LocalPref))
	}
	var standard []uint32
	var large []*bgp.LargeCommunity
	for _, c := range p.Communities {
		if c.Large {
			large = append(large, bgp.NewLargeCommunity(c.A, c.B, c.C))
		} else {
			standard = append(standard, c.A<<16|c.B)
		}
	}
	if standard != nil {
		attrs = append(attrs, bgp.NewPathAttributeCommunities(standard))
	}
	if large != nil {
		attrs = append(attrs, bgp.NewPathAttributeLargeCommunities(large))
	}
	if p.Bandwidth > 0 {
		as := uint16(bgp.AS_TRANS) // RFC 10005: the field has two bytes
		if localASN < 1<<16 {
			as = uint16(localASN)
		}
		attrs = append(attrs, bgp.NewPathAttributeExtendedCommunities([]bgp.ExtendedCommunityInterface{bgp.NewLinkBandwidthExtended(as, p.Bandwidth)}))
	}
	return attrs
}

// negotiated are the timers that the two sides agreed on.
func (l *library) negotiated() (hold, keepalive time.Duration, err error) {
	p := l.state()
	if p == nil || p.Timers.GetState() == nil {
		return 0, 0, errors.New("the BGP library has no session")
	}
	t := p.Timers.GetState()
	return time.Duration(t.NegotiatedHoldTime) * time.Second, time.Duration(t.KeepaliveInterval) * time.Second, nil
}
