package main

import (
	"bytes"
	"maps"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"

	"github.com/clarionlb/clarion/test/lab"
)

func TestDisputed(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	// Each letter is a frame, 5 ms after the one before, from the host of that name.
	for text, want := range map[string]time.Duration{
		"":         0,
		"aaaa":     0,
		"aabb":     0,
		"aaba":     5 * time.Millisecond,
		"ababab":   20 * time.Millisecond,
		"aabaabbb": 15 * time.Millisecond,
		"aabccc":   5 * time.Millisecond,
	} {
		var frames []heard
		for i, c := range text {
			frames = append(frames, heard{at: start.Add(time.Duration(i) * 5 * time.Millisecond), host: string(c)})
		}
		if got := disputed(frames); got != want {
			t.Errorf("disputed(%s) = %v, want %v", text, got, want)
		}
	}
}

func TestQuestionFrame(t *testing.T) {
	from := lab.Host{IPv4: netip.MustParseAddr("192.0.2.100"), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	b := questionFrame(from)
	copy(b[38:], []byte{10, 1, 2, 3})
	var frame ethernet.Frame
	if err := frame.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	var p arp.Packet
	if err := p.UnmarshalBinary(frame.Payload); err != nil {
		t.Fatal(err)
	}
	if p.Operation != arp.OperationRequest || p.SenderIP != from.IPv4 || !bytes.Equal(p.SenderHardwareAddr, from.MAC) || p.TargetIP != netip.MustParseAddr("10.1.2.3") {
		t.Errorf("the frame says %+v", p)
	}
}

func TestParseChange(t *testing.T) {
	hops := func(weights ...int) map[netip.Addr]int {
		m := map[netip.Addr]int{}
		a := netip.MustParseAddr("192.0.2.11")
		for _, w := range weights {
			m[a], a = w, a.Next()
		}
		return m
	}
	for _, tt := range []struct {
		line string
		want map[netip.Addr]int // nil: not about an address
	}{
		{`198.18.0.1 nhid 20 via 192.0.2.11 dev eth0 proto bgp metric 20 `, hops(1)},
		{`198.18.0.1 nhid 21 proto bgp metric 20 \	nexthop via 192.0.2.11 dev eth0 weight 1 \	nexthop via 192.0.2.12 dev eth0 weight 3 `, hops(1, 3)},
		{`198.18.0.1 nhid 21 proto bgp metric 20 \	nexthop via 192.0.2.11 dev eth0 weight 10 dead linkdown \	nexthop via 192.0.2.12 dev eth0 weight 60 \	nexthop via 192.0.2.13 dev eth0 weight 30 `, hops(10, 60, 30)},
		{`Deleted 198.18.0.1 nhid 20 via 192.0.2.11 dev eth0 proto bgp metric 20 `, hops()},
		{`198.18.0.0/24 via 192.0.2.11 dev eth0`, nil},
		{`local 192.0.2.1 dev eth0 table local proto kernel`, nil},
		{``, nil},
		{`Deleted`, nil},
	} {
		got, ok := parseChange(tt.line)
		if ok != (tt.want != nil) || ok && (got.addr != netip.MustParseAddr("198.18.0.1") || !maps.Equal(got.hops, tt.want)) {
			t.Errorf("%s\n%v, %v, want %v", tt.line, got, ok, tt.want)
		}
	}
}

func TestUpdates(t *testing.T) {
	message := func(kind byte, body ...byte) []byte {
		m := append(bytes.Repeat([]byte{0xff}, 16), 0, byte(19+len(body)), kind)
		return append(m, body...)
	}
	frame := func(port byte, messages ...[]byte) []byte {
		ip := append([]byte{0x45}, make([]byte, 19)...)
		ip[9] = 6
		copy(ip[12:], []byte{192, 0, 2, 11})
		tcp := make([]byte, 20)
		tcp[3], tcp[12] = port, 5<<4
		f := append(make([]byte, 14), ip...)
		f = append(f, tcp...)
		for _, m := range messages {
			f = append(f, m...)
		}
		return f
	}
	withdrawn, other, keepalive := message(2, 0, 5, 32, 198, 18, 0, 7, 0, 0), message(2, 0, 5, 32, 198, 18, 0, 8, 0, 0), message(4)
	for name, tt := range map[string]struct {
		frame []byte
		want  bool
	}{
		"an UPDATE":                     {frame(179, withdrawn), true},
		"behind others":                 {frame(179, keepalive, other, withdrawn), true},
		"of another prefix":             {frame(179, other), false},
		"a KEEPALIVE":                   {frame(179, keepalive), false},
		"another port":                  {frame(80, withdrawn), false},
		"cut short":                     {frame(179, withdrawn[:21]), false},
		"nothing":                       {nil, false},
		"a NOTIFICATION with its bytes": {frame(179, message(3, 32, 198, 18, 0, 7)), false},
	} {
		from, ok := updates(tt.frame, netip.MustParseAddr("198.18.0.7"))
		if ok != tt.want || ok && from != netip.MustParseAddr("192.0.2.11") {
			t.Errorf("%s: %v from %v, want %v", name, ok, from, tt.want)
		}
	}
}
