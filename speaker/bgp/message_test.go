package bgp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// message makes a message with the right length.
func message(typ uint8, body ...byte) []byte {
	b := slices.Clone(keepalive)
	b[18] = typ
	b = append(b, body...)
	b[16], b[17] = byte(len(b)>>8), byte(len(b))
	return b
}

func TestReadMessage(t *testing.T) {
	mangled := func(f func(b []byte)) []byte { b := slices.Clone(keepalive); f(b); return b }
	for _, tt := range []struct {
		name string
		in   []byte
		want string // the answer, "" if the message is read
	}{
		{"keepalive", keepalive, ""},
		{"open", message(1, make([]byte, 10)...), ""},
		{"largest update", message(2, make([]byte, maxMessage-headerLen)...), ""},
		{"marker", mangled(func(b []byte) { b[3] = 0 }), "1/1"},
		{"too long", mangled(func(b []byte) { b[16], b[17], b[18] = 0x10, 0x01, 2 }), "1/2"},
		{"shorter than a header", mangled(func(b []byte) { b[17] = 18 }), "1/2"},
		{"short open", message(1, make([]byte, 9)...), "1/2"},
		{"short update", message(2, make([]byte, 3)...), "1/2"},
		{"long keepalive", message(4, 0), "1/2"},
		{"unknown type", message(6, 0), "1/3"},
		{"type 0", message(0), "1/3"},
	} {
		msg, typ, err := readMessage(bufio.NewReader(bytes.NewReader(tt.in)), new([maxMessage]byte))
		if tt.want == "" {
			if err != nil || !bytes.Equal(msg, tt.in) || typ != tt.in[18] {
				t.Errorf("%s: % x, type %d, %v", tt.name, msg, typ, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), "sent NOTIFICATION "+tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
}

func TestNotifications(t *testing.T) {
	for _, tt := range []struct {
		msg  []byte
		want string
	}{
		{message(3, 6, 2), "received NOTIFICATION 6/2 (cease, administrative shutdown)"},
		{message(3, 6, 2, 2, 'h', 'i'), `received NOTIFICATION 6/2 (cease, administrative shutdown): "hi"`},
		{message(3, append([]byte{6, 2, 255}, bytes.Repeat([]byte{0xff, 0x00, 0x1b}, 85)...)...), `received NOTIFICATION 6/2 (cease, administrative shutdown): "` + strings.Repeat("?", 255) + `"`},
		{message(3, 6, 4, 9, 'h', 'i'), "received NOTIFICATION 6/4 (cease, administrative reset)"},
		{message(3, 2, 2), "received NOTIFICATION 2/2 (OPEN message error, bad peer AS)"},
		{message(3, 2, 8), "received NOTIFICATION 2/8 (OPEN message error)"},
		{message(3, 4, 0), "received NOTIFICATION 4/0 (hold timer expired)"},
		{message(3, 6, 10), "received NOTIFICATION 6/10 (cease, BFD down)"},
		{message(3, 6, 200), "received NOTIFICATION 6/200 (cease)"},
		{message(3, 99, 1), "received NOTIFICATION 99/1 (unknown error)"},
	} {
		if got := parseNotification(tt.msg).Error(); got != tt.want {
			t.Errorf("got %s, want %s", got, tt.want)
		}
	}
	if got := notify(6, 1, 1, 2).Bytes(); !bytes.Equal(got, message(3, 6, 1, 1, 2)) {
		t.Errorf("got % x", got)
	}
}

func TestOpenOnTheWire(t *testing.T) {
	o := open{
		asn: 4200000001, id: netip.MustParseAddr("192.0.2.1"), hold: 9 * time.Second, as4: true, role: 3, refresh: true, v4over6: true, name: "node1",
		families: []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC},
		restart:  bgp.NewCapGracefulRestart(true, false, 120, []*bgp.CapGracefulRestartTuple{bgp.NewCapGracefulRestartTuple(bgp.RF_IPv4_UC, true)}),
	}
	b, err := o.bytes()
	if err != nil {
		t.Fatal(err)
	}
	// Version 4, AS_TRANS, the hold time, the router ID (RFC 4271 section 4.2).
	if want := []byte{4, 23456 >> 8, 23456 & 0xff, 0, 9, 192, 0, 2, 1}; !bytes.Equal(b[19:28], want) {
		t.Errorf("got % x, want % x", b[19:28], want)
	}
	// Graceful restart: the Restart State bit, 120 s, IPv4 unicast with the Forwarding State bit (RFC 4724 section 3).
	if want := []byte{64, 6, 0x80, 120, 0, 1, 1, 0x80}; !bytes.Contains(b, want) {
		t.Errorf("no % x in % x", want, b)
	}
	got, err := parseOpen(b)
	if err != nil || got.asn != o.asn || got.id != o.id || got.hold != o.hold || !got.refresh || !got.v4over6 || got.role != 3 || !got.as4 || got.name != o.name || !slices.Equal(got.families, o.families) || got.restart == nil {
		t.Errorf("read back as %+v, %v", got, err)
	}
	// A speaker that knows no capabilities means IPv4, and its AS number is in the header.
	got, err = parseOpen(message(1, 4, 0xfd, 0xe9, 0, 90, 192, 0, 2, 2, 0))
	if err != nil || got.asn != 65001 || got.hold != 90*time.Second || !got.carries(bgp.RF_IPv4_UC) || got.carries(bgp.RF_IPv6_UC) {
		t.Errorf("plain OPEN read as %+v, %v", got, err)
	}
	// The same with parameters whose lengths have two bytes (RFC 9072 section 2), whatever the length of one byte is.
	for _, short := range []byte{255, 10} {
		long := append(append([]byte{}, b[headerLen:headerLen+9]...), short, 255, 0, b[headerLen+9]+1, 2, 0)
		got, err = parseOpen(message(1, append(long, b[headerLen+11:]...)...))
		if err != nil || got.asn != o.asn || got.name != o.name || !slices.Equal(got.families, o.families) {
			t.Errorf("read with extended parameters as %+v, %v", got, err)
		}
	}
	var n *Notification
	if _, err := parseOpen(message(1, 3, 0xfd, 0xe9, 0, 90, 192, 0, 2, 2, 0)); !errors.As(err, &n) || n.Code != 2 || n.Subcode != 1 {
		t.Errorf("version 3: %v", err)
	}
}

// What is read as an OPEN can be written and read again.
func FuzzOpen(f *testing.F) {
	b, err := open{asn: 65001, id: netip.MustParseAddr("192.0.2.1"), as4: true, role: 0, families: []bgp.Family{bgp.RF_IPv4_UC}, v4over6: true, name: "a",
		restart: bgp.NewCapGracefulRestart(true, true, 1, []*bgp.CapGracefulRestartTuple{bgp.NewCapGracefulRestartTuple(bgp.RF_IPv6_UC, true)})}.bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[headerLen:])
	f.Add([]byte{4, 0xfd, 0xe9, 0, 90, 192, 0, 2, 2, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		msg := message(1, body...)
		if len(body) < 10 || len(msg) > maxMessage {
			return
		}
		o, err := parseOpen(msg)
		if err != nil {
			return
		}
		o.name = ""
		b, err := o.bytes()
		if err != nil {
			return // more than fits
		}
		again, err := parseOpen(b)
		if err != nil {
			t.Fatalf("%+v cannot be read back: %v", o, err)
		}
		if again.asn != o.asn || again.hold != o.hold || again.id != o.id || again.v4over6 != o.v4over6 || !slices.Equal(again.families, o.families) {
			t.Errorf("%+v became %+v", o, again)
		}
	})
}

// counted is what prefixes finds in an UPDATE.
func counted(msg []byte) (announced, withdrawn map[netip.Prefix]bool) {
	announced, withdrawn = map[netip.Prefix]bool{}, map[netip.Prefix]bool{}
	in := func(m map[netip.Prefix]bool) func(bool, []byte) {
		return func(v6 bool, p []byte) {
			var a [16]byte
			copy(a[:], p[1:])
			addr := netip.AddrFrom16(a)
			if !v6 {
				addr = netip.AddrFrom4([4]byte(a[:]))
			}
			m[netip.PrefixFrom(addr, int(p[0])).Masked()] = true
		}
	}
	prefixes(msg, in(announced), in(withdrawn))
	return announced, withdrawn
}

func update(t testing.TB, withdrawn, announced []string) []byte {
	t.Helper()
	list := func(ps []string) (v4, v6 []bgp.PathNLRI) {
		for _, s := range ps {
			n, err := bgp.NewIPAddrPrefix(netip.MustParsePrefix(s))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(s, ":") {
				v6 = append(v6, bgp.PathNLRI{NLRI: n})
			} else {
				v4 = append(v4, bgp.PathNLRI{NLRI: n})
			}
		}
		return v4, v6
	}
	w4, w6 := list(withdrawn)
	a4, a6 := list(announced)
	attrs := []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(0)}
	if w6 != nil {
		a, _ := bgp.NewPathAttributeMpUnreachNLRI(bgp.RF_IPv6_UC, w6)
		attrs = append(attrs, a)
	}
	if a6 != nil {
		a, _ := bgp.NewPathAttributeMpReachNLRI(bgp.RF_IPv6_UC, a6, netip.MustParseAddr("2001:db8::1"))
		attrs = append(attrs, a)
	}
	b, err := bgp.NewBGPUpdateMessage(w4, attrs, a4).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPrefixesOfAnUpdate(t *testing.T) {
	set := func(ps ...string) map[netip.Prefix]bool {
		m := map[netip.Prefix]bool{}
		for _, p := range ps {
			m[netip.MustParsePrefix(p)] = true
		}
		return m
	}
	out, in := []string{"192.0.2.0/24", "2001:db8:1::/48"}, []string{"0.0.0.0/0", "203.0.113.128/25", "2001:db8:2::1/128", "::/0"}
	announced, withdrawn := counted(update(t, out, in))
	if !maps.Equal(announced, set(in...)) || !maps.Equal(withdrawn, set(out...)) {
		t.Errorf("announced %v, withdrawn %v", announced, withdrawn)
	}
	announced, withdrawn = counted(message(2, 0, 0, 0, 0)) // End-of-RIB
	if len(announced)+len(withdrawn) != 0 {
		t.Errorf("End-of-RIB: %v, %v", announced, withdrawn)
	}
}

// Whatever comes, counting ends, and what the codec can read is counted alike.
func FuzzPrefixes(f *testing.F) {
	f.Add(update(f, []string{"192.0.2.0/24", "2001:db8:1::/48"}, []string{"0.0.0.0/0", "203.0.113.128/25", "2001:db8:2::1/128"})[headerLen:])
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 7, 0x90, 14, 0, 3, 0, 1, 1})
	f.Fuzz(func(t *testing.T, body []byte) {
		msg := message(2, body...)
		if len(body) < 4 || len(msg) > maxMessage {
			return
		}
		announced, _ := counted(msg)
		m, err := bgp.ParseBGPMessage(msg)
		if err != nil {
			return
		}
		u := m.Body.(*bgp.BGPUpdate)
		for _, n := range u.NLRI {
			if p, ok := n.NLRI.(*bgp.IPAddrPrefix); ok && !announced[p.Prefix.Masked()] {
				t.Errorf("%s was not counted", p.Prefix)
			}
		}
	})
}

// A prefix counts once, whatever its bits beyond its length are, and not any more when it is withdrawn.
func TestReceived(t *testing.T) {
	r := newReceived()
	for _, tt := range []struct {
		msg  []byte
		want int64
	}{
		{message(2, 0, 0, 0, 0, 9, 10, 0x80, 9, 10, 0xff, 9, 10, 0x00, 8, 10), 3},
		{message(2, 0, 3, 9, 10, 0x81, 0, 0), 2}, // one is withdrawn
		{message(2, 0, 0, 0, 0, 8, 11, 8, 12, 8, 13), 4},
		{message(2, 0, 2, 8, 11, 0, 0), 4}, // more than three are not counted any more
	} {
		if r.take(tt.msg, 3); r.n != tt.want || (r.known == nil) != (tt.want > 3) {
			t.Errorf("after % x %d prefixes, %d remembered, want %d", tt.msg, r.n, len(r.known), tt.want)
		}
	}
}

// What two OPENs make of a session, or why there is none (RFC 4271 section 6.2).
func TestAgree(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	for _, tt := range []struct {
		name   string
		remote netip.Addr
		edit   func(p *Peer, theirs *open)
		want   string
	}{
		{"plain", v4, func(*Peer, *open) {}, "external, families [true false], hold 1m30s, keepalive 30s"},
		{"shorter keepalive", v4, func(p *Peer, _ *open) { p.Keepalive = 7 * time.Second }, "external, families [true false], hold 1m30s, keepalive 7s"},
		{"keepalive longer than a third", v4, func(p *Peer, _ *open) { p.Keepalive = time.Minute }, "external, families [true false], hold 1m30s, keepalive 30s"},
		{"none of theirs", v4, func(_ *Peer, o *open) { o.hold = 0 }, "external, families [true false], hold 0s, keepalive 0s"},
		{"internal as wanted", v4, func(p *Peer, o *open) { p.Dynamic, o.asn = DynamicInternal, 65001 }, "internal, families [true false], hold 1m30s, keepalive 30s"},
		{"external, not internal", v4, func(p *Peer, _ *open) { p.Dynamic = DynamicInternal }, "sent NOTIFICATION 2/2"},
		{"internal, not external", v4, func(p *Peer, o *open) { p.Dynamic, o.asn = DynamicExternal, 65001 }, "sent NOTIFICATION 2/2"},
		{"our router ID, external", v4, func(p *Peer, o *open) { o.id = p.RouterID }, "external, families [true false], hold 1m30s, keepalive 30s"},
		{"our router ID, internal", v4, func(p *Peer, o *open) { p.PeerASN, o.asn, o.id = 65001, 65001, p.RouterID }, "sent NOTIFICATION 2/3"},
		{"IPv6 next hops", v6, func(p *Peer, o *open) { p.DualStack, o.v4over6 = true, true }, "external, families [true false], IPv6 next hops, hold 1m30s, keepalive 30s"},
		{"IPv6 next hops on one side", v6, func(p *Peer, _ *open) { p.DualStack = true }, "external, families [true false], hold 1m30s, keepalive 30s"},
		{"IPv6 next hops over IPv4", v4, func(_ *Peer, o *open) { o.v4over6 = true }, "external, families [true false], hold 1m30s, keepalive 30s"},
		{"another family", v6, func(*Peer, *open) {}, "sent NOTIFICATION 2/7"},
	} {
		p, theirs := (&router{addr: tt.remote}).peer(), routerOpen()
		tt.edit(&p, &theirs)
		a, err := p.agree(theirs, tt.remote)
		got := fmt.Sprint(err)
		if err == nil {
			got = fmt.Sprintf("%s, families %v, %shold %s, keepalive %s", map[bool]string{true: "internal", false: "external"}[a.internal],
				a.carries, map[bool]string{true: "IPv6 next hops, "}[a.v4over6], a.hold, a.keepalive)
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
