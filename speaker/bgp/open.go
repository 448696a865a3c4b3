package bgp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// Capabilities that the codec has no type for.
const (
	capRole = bgp.BGPCapabilityCode(9) // RFC 9234 section 4.1

	roleProvider = 0
	roleCustomer = 3
)

// open is what an OPEN message says, as far as it matters here (RFC 4271 section 4.2).
type open struct {
	asn      uint32
	as4      bool // the sender knows AS numbers of four bytes (RFC 6793)
	id       netip.Addr
	hold     time.Duration
	families []bgp.Family
	refresh  bool
	restart  *bgp.CapGracefulRestart // RFC 4724, nil without
	v4over6  bool                    // IPv4 routes may have IPv6 next hops (RFC 8950)
	role     int                     // RFC 9234, -1 for none
	name     string                  // of the sender's host, "" for none
}

func (o open) carries(f bgp.Family) bool { return slices.Contains(o.families, f) }

// parseOpen reads an OPEN message. An error is a *Notification that answers it (RFC 4271 section 6.2).
func parseOpen(msg []byte) (open, error) {
	version, body, params := msg[headerLen], msg[headerLen+1:], msg[headerLen+10:]
	if version != 4 {
		return open{}, notify(2, 1, 0, 4)
	}
	o := open{
		asn: uint32(binary.BigEndian.Uint16(body)), hold: time.Duration(binary.BigEndian.Uint16(body[2:])) * time.Second,
		id: netip.AddrFrom4([4]byte(body[4:])), role: -1,
	}
	n, wide := int(body[8]), 0
	if len(params) >= 3 && n > 0 && params[0] == 255 { // lengths of two bytes (RFC 9072 section 2), which the codec does not know
		n, wide, params = int(binary.BigEndian.Uint16(params[1:])), 1, params[3:]
	}
	if n != len(params) {
		return open{}, notify(2, 0)
	}
	for len(params) > 0 {
		if len(params) < 2+wide {
			return open{}, notify(2, 0)
		}
		typ, n := params[0], int(params[1])
		if wide == 1 {
			n = n<<8 | int(params[2])
		}
		if params = params[2+wide:]; n > len(params) {
			return open{}, notify(2, 0)
		}
		if typ != bgp.BGP_OPT_CAPABILITY {
			return open{}, notify(2, 4)
		}
		var caps bgp.OptionParameterCapability
		if err := caps.DecodeFromBytes(params[:n]); err != nil {
			return open{}, notify(2, 0)
		}
		params = params[n:]
		for _, c := range caps.Capability {
			switch c := c.(type) {
			case *bgp.CapFourOctetASNumber:
				o.asn, o.as4 = c.CapValue, true
			case *bgp.CapMultiProtocol:
				o.families = append(o.families, c.CapValue)
			case *bgp.CapRouteRefresh:
				o.refresh = true
			case *bgp.CapGracefulRestart:
				o.restart = c
			case *bgp.CapExtendedNexthop:
				for _, t := range c.Tuples {
					o.v4over6 = o.v4over6 || t.NLRIAFI == bgp.AFI_IP && t.NLRISAFI == bgp.SAFI_UNICAST && t.NexthopAFI == bgp.AFI_IP6
				}
			case *bgp.CapFQDN:
				o.name = c.HostName
			case *bgp.CapUnknown:
				if c.CapCode == capRole && len(c.CapValue) == 1 {
					if old := o.role; old >= 0 && old != int(c.CapValue[0]) {
						return open{}, fmt.Errorf("the peer gives two BGP roles: %w", notify(2, 11)) // RFC 9234 section 4.2
					}
					o.role = int(c.CapValue[0])
				}
			}
		}
	}
	if o.families == nil { // a speaker without RFC 4760 means IPv4 unicast
		o.families = []bgp.Family{bgp.RF_IPv4_UC}
	}
	return o, nil
}

// Opened is the AS number and the identifier that an OPEN message gives, 0 if it is malformed.
func Opened(msg []byte) (asn uint32, id [4]byte) {
	if len(msg) < headerLen+10 {
		return 0, id
	}
	o, err := parseOpen(msg)
	if err != nil {
		return 0, id
	}
	return o.asn, o.id.As4()
}

// bytes is the OPEN message.
func (o open) bytes() ([]byte, error) {
	var caps []bgp.ParameterCapabilityInterface
	for _, f := range o.families {
		caps = append(caps, bgp.NewCapMultiProtocol(f))
	}
	if o.refresh {
		caps = append(caps, bgp.NewCapRouteRefresh())
	}
	if o.restart != nil {
		caps = append(caps, o.restart)
	}
	if o.v4over6 {
		caps = append(caps, bgp.NewCapExtendedNexthop([]*bgp.CapExtendedNexthopTuple{bgp.NewCapExtendedNexthopTuple(bgp.RF_IPv4_UC, bgp.AFI_IP6)}))
	}
	if o.role >= 0 {
		caps = append(caps, bgp.NewCapUnknown(capRole, []byte{byte(o.role)}))
	}
	if o.name != "" {
		caps = append(caps, bgp.NewCapFQDN(o.name, ""))
	}
	as := uint16(bgp.AS_TRANS)
	if o.asn < 1<<16 {
		as = uint16(o.asn)
	}
	if o.as4 {
		caps = append(caps, bgp.NewCapFourOctetASNumber(o.asn))
	}
	m, err := bgp.NewBGPOpenMessage(as, uint16(o.hold/time.Second), o.id, []bgp.OptionParameterInterface{bgp.NewOptionParameterCapability(caps)})
	if err != nil {
		return nil, err
	}
	return m.Serialize()
}

// open is what the peer at remote is told. restarted says that no session has been established since this Identity, or
// the process, was new.
func (p Peer) open(remote netip.Addr, restarted bool) open {
	fs := p.families(remote)
	o := open{asn: p.LocalASN, as4: true, id: p.RouterID, hold: p.HoldTime, families: fs, refresh: true, role: -1}
	o.v4over6 = remote.Is6() && slices.Contains(fs, bgp.RF_IPv4_UC)
	if p.Customer {
		o.role = roleCustomer
	}
	if name, err := os.Hostname(); err == nil && len(name) < 64 {
		o.name = name
	}
	if p.GracefulRestart > 0 {
		// Traffic goes on while this process restarts, so the Forwarding State bit is always true; without it some
		// routers drop the routes that they kept (RFC 4724 section 4.2).
		var tuples []*bgp.CapGracefulRestartTuple
		for _, f := range fs {
			tuples = append(tuples, bgp.NewCapGracefulRestartTuple(f, true))
		}
		o.restart = bgp.NewCapGracefulRestart(restarted, false, uint16(p.GracefulRestart/time.Second), tuples)
	}
	return o
}

// agreement is what the two OPENs make of a session.
type agreement struct {
	theirs          open
	internal        bool
	carries         [2]bool // families that both sides carry: IPv4, IPv6
	v4over6         bool
	hold, keepalive time.Duration // 0 for none
	restart         bool
}

// agree says what the session with a peer at remote that gave this OPEN is, or why it cannot be (RFC 4271 section 6.2).
func (p Peer) agree(theirs open, remote netip.Addr) (agreement, error) {
	a := agreement{theirs: theirs, internal: theirs.asn == p.LocalASN, restart: p.GracefulRestart > 0 && theirs.restart != nil}
	switch {
	case theirs.asn == 0: // RFC 7607 section 2
		return a, fmt.Errorf("the peer has the AS number 0: %w", notify(2, 2))
	case p.Dynamic == DynamicNone && theirs.asn != p.PeerASN:
		return a, fmt.Errorf("the peer has AS number %d, not %d: %w", theirs.asn, p.PeerASN, notify(2, 2))
	case p.Dynamic == DynamicInternal && !a.internal:
		return a, fmt.Errorf("the peer has AS number %d, which is not the local one: %w", theirs.asn, notify(2, 2))
	case p.Dynamic == DynamicExternal && a.internal:
		return a, fmt.Errorf("the peer has the local AS number %d: %w", theirs.asn, notify(2, 2))
	case theirs.hold != 0 && theirs.hold < 3*time.Second:
		return a, fmt.Errorf("the peer demands a hold time of %s: %w", theirs.hold, notify(2, 6))
	case theirs.id.IsUnspecified(), a.internal && theirs.id == p.RouterID: // RFC 6286 section 2.2
		return a, fmt.Errorf("the peer has the router ID %s: %w", theirs.id, notify(2, 3))
	case p.Customer && theirs.role >= 0 && theirs.role != roleProvider: // RFC 9234 section 4.2
		return a, fmt.Errorf("the peer has the BGP role %d, not that of a provider (0): %w", theirs.role, notify(2, 11))
	}
	for _, f := range p.families(remote) {
		a.carries[index(f == bgp.RF_IPv6_UC)] = theirs.carries(f)
	}
	if a.carries == [2]bool{} {
		var missing []byte // the capabilities that would do, as in an OPEN (RFC 5492 section 5)
		for _, f := range p.families(remote) {
			missing = append(missing, byte(bgp.BGP_CAP_MULTIPROTOCOL), 4, byte(f.Afi()>>8), byte(f.Afi()), 0, f.Safi())
		}
		return a, fmt.Errorf("the peer carries none of this session's address families: %w", notify(2, 7, missing...))
	}
	a.v4over6 = theirs.v4over6 && remote.Is6()
	if a.hold = min(p.HoldTime, theirs.hold); a.hold > 0 {
		if a.keepalive = a.hold / 3; p.Keepalive > 0 { // never more than a third (RFC 4271 section 4.4)
			a.keepalive = min(a.keepalive, p.Keepalive)
		}
	}
	return a, nil
}
