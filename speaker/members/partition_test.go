package members

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// cable is what the speakers of a test are connected by; it can be cut.
type cable struct {
	apart atomic.Pointer[func(a, b netip.Addr) bool]
}

func (c *cable) cut(apart func(a, b netip.Addr) bool) { c.apart.Store(&apart) }
func (c *cable) mend()                                { c.apart.Store(nil) }

// plug is one speaker's end of the cable: what it sends across a cut is lost.
type plug struct {
	*transport
	cable *cable
	self  netip.Addr
}

func (p *plug) lost(to memberlist.Address) bool {
	apart := p.cable.apart.Load()
	return apart != nil && (*apart)(p.self, netip.MustParseAddrPort(to.Addr).Addr())
}

func (p *plug) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	if p.lost(to) {
		return time.Now(), nil
	}
	return p.transport.WriteToAddress(b, to)
}

func (p *plug) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if p.lost(to) {
		return nil, errors.New("i/o timeout")
	}
	return p.transport.DialAddressTimeout(to, timeout)
}

// connect starts size speakers on a cable.
func connect(t *testing.T, size int, adapt func(*memberlist.Config)) ([]speaker, *cable) {
	t.Helper()
	f, wire := newFleet(t, size), &cable{}
	var all []speaker
	for i := range size {
		c := New(f.config(i))
		c.create = func(config *memberlist.Config) (*memberlist.Memberlist, error) {
			config.Transport = &plug{config.Transport.(*transport), wire, f.addr(i)}
			adapt(config)
			return memberlist.Create(config)
		}
		s := f.run(c)
		s.SetPeers(f.peers)
		all = append(all, s)
	}
	for _, s := range all {
		s.sees(names(size)...)
	}
	return all, wire
}

func TestCrash(t *testing.T) {
	all, wire := connect(t, 3, func(*memberlist.Config) {})
	dead := all[2].config.Addr
	wire.cut(func(a, b netip.Addr) bool { return a == dead || b == dead })
	all[0].sees("node-0", "node-1")
	all[1].sees("node-0", "node-1")
	all[2].sees("node-2")
	if !all[2].View().Joined {
		t.Error("a speaker that lost its members is to go on as joined")
	}
	wire.mend()
	for _, s := range all {
		s.sees(names(3)...)
	}
}

// Both halves live on and find each other again, also when the partition lasted so long that memberlist has forgotten
// the other half and never looks for it by itself.
func TestPartition(t *testing.T) {
	for _, test := range []struct {
		name  string
		adapt func(*memberlist.Config)
	}{
		{"short", func(*memberlist.Config) {}},
		{"long", func(c *memberlist.Config) { c.GossipToTheDeadTime = time.Millisecond }},
	} {
		t.Run(test.name, func(t *testing.T) {
			all, wire := connect(t, 4, test.adapt)
			left := func(a netip.Addr) bool { return a == all[0].config.Addr || a == all[1].config.Addr }
			wire.cut(func(a, b netip.Addr) bool { return left(a) != left(b) })
			all[0].sees("node-0", "node-1")
			all[1].sees("node-0", "node-1")
			all[2].sees("node-2", "node-3")
			all[3].sees("node-2", "node-3")
			wire.mend()
			mended := time.Now()
			for _, s := range all {
				s.sees(names(4)...)
			}
			t.Logf("whole again %v after the network", time.Since(mended))
		})
	}
}
