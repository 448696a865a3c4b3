package bgp

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/clarionlb/clarion/internal/route"
)

// What the attributes of a route are on the wire, for each kind of session.
func TestAttributes(t *testing.T) {
	pref, med := uint32(250), uint32(30)
	all := route.Attrs{LocalPref: &pref, MED: &med, Prepend: 2, Bandwidth: 125e6,
		Communities: []route.Community{{A: 65001, B: 7}, {Large: true, A: 65001, B: 1, C: 2}}}
	for _, tt := range []struct {
		name string
		rib  rib
		want string
	}{
		{"external", rib{localASN: 65001, as4: true},
			"ORIGIN AS_PATH 65001 65001 65001 MED 30 COMMUNITIES EXTENDED 40:04 LARGE"},
		{"internal", rib{localASN: 65001, as4: true, internal: true},
			"ORIGIN AS_PATH MED 30 LOCAL_PREF 250 COMMUNITIES EXTENDED 40:04 LARGE"},
		{"two bytes", rib{localASN: 65001}, "ORIGIN AS_PATH 65001 65001 65001 MED 30 COMMUNITIES EXTENDED 40:04 LARGE"},
		{"a large number for two bytes", rib{localASN: 4200000001},
			"ORIGIN AS_PATH 23456 23456 23456 MED 30 COMMUNITIES EXTENDED 40:04 AS4_PATH 4200000001 4200000001 4200000001 LARGE"},
		{"transitive", rib{localASN: 65001, as4: true, links: LinkBandwidthTransitive},
			"ORIGIN AS_PATH 65001 65001 65001 MED 30 COMMUNITIES EXTENDED 00:04 LARGE"},
		{"both", rib{localASN: 65001, as4: true, links: LinkBandwidthBoth},
			"ORIGIN AS_PATH 65001 65001 65001 MED 30 COMMUNITIES EXTENDED 00:04 40:04 LARGE"},
	} {
		got := ""
		for _, a := range tt.rib.attributes(all) {
			b, err := a.Serialize()
			if err != nil || len(b) != a.Len() {
				t.Fatalf("%s: %d bytes, %d said, %v", tt.name, len(b), a.Len(), err)
			}
			asns := func(b []byte, size int) (s string) {
				for n := 5; n < len(b); n += size {
					var v uint32
					for _, x := range b[n : n+size] {
						v = v<<8 | uint32(x)
					}
					s += fmt.Sprint(" ", v)
				}
				return s
			}
			switch v := b[3:]; bgp.BGPAttrType(b[1]) {
			case bgp.BGP_ATTR_TYPE_ORIGIN:
				got += " ORIGIN"
			case bgp.BGP_ATTR_TYPE_AS_PATH:
				size := 2
				if tt.rib.as4 {
					size = 4
				}
				got += " AS_PATH" + asns(b, size)
			case bgp.BGP_ATTR_TYPE_AS4_PATH:
				got += " AS4_PATH" + asns(b, 4)
			case bgp.BGP_ATTR_TYPE_MULTI_EXIT_DISC:
				got += fmt.Sprint(" MED ", v[3])
			case bgp.BGP_ATTR_TYPE_LOCAL_PREF:
				got += fmt.Sprint(" LOCAL_PREF ", v[3])
			case bgp.BGP_ATTR_TYPE_COMMUNITIES:
				got += " COMMUNITIES"
			case bgp.BGP_ATTR_TYPE_LARGE_COMMUNITY:
				got += " LARGE"
			case bgp.BGP_ATTR_TYPE_EXTENDED_COMMUNITIES:
				got += " EXTENDED"
				for ; len(v) > 0; v = v[8:] {
					got += fmt.Sprintf(" %02x:%02x", v[0], v[1])
				}
			}
		}
		if got = strings.TrimSpace(got); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Whatever the routes, next hops and marks were and are, the peer has what is wanted after the difference, no message is
// larger than it may be, and what did not change is not sent.
func TestTheDifferenceIsEnough(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 5))
	r := rib{localASN: 65001, as4: true}
	peer := &end{table: map[netip.Prefix]string{}}
	table := route.Table{}
	hops := []netip.Addr{{}, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::1")}
	hops6 := []netip.Addr{{}, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}
	var h nextHops
	for round := range 200 {
		var set []route.Route
		var remove []netip.Prefix
		for range random.IntN(60) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(random.IntN(4)), byte(random.IntN(256))}), 24+random.IntN(9)).Masked()
			if random.IntN(2) == 0 {
				p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 14: byte(random.IntN(3)), 15: byte(random.IntN(256))}), 128)
			}
			if random.IntN(3) == 0 {
				remove = append(remove, p)
				continue
			}
			var a route.Attrs
			for i := range random.IntN(2) * random.IntN(2) * random.IntN(2) * 900 {
				a.Communities = append(a.Communities, route.Community{A: uint32(random.IntN(2)), B: uint32(i)})
			}
			a.Prepend = random.IntN(3)
			set = append(set, route.Route{Prefix: p, Attrs: a})
		}
		table = table.With(set, remove)
		if random.IntN(4) == 0 {
			h = nextHops{hops[random.IntN(len(hops))], hops6[random.IntN(len(hops6))]}
		}
		send := func(msg []byte) error {
			if len(msg) > maxMessage {
				t.Fatalf("a message of %d bytes", len(msg))
			}
			peer.t = t
			peer.learn(msg)
			return nil
		}
		if random.IntN(10) == 0 {
			r.again[random.IntN(2)] = true
		}
		if err := r.sync(table, h, random.IntN(10) == 0, send); err != nil {
			t.Fatal(err)
		}
		want := 0
		for rt := range table.All() {
			hop := h[familyOf(rt.Prefix)]
			if !hop.IsValid() {
				continue
			}
			want++
			if got := peer.table[rt.Prefix]; !strings.HasPrefix(got, hop.String()+" ") || strings.Count(got, "65001") != rt.Prepend+1 {
				t.Fatalf("round %d: %s is %q, want %s with %d prepended", round, rt.Prefix, got, hop, rt.Prepend)
			}
		}
		if len(peer.table) != want {
			t.Fatalf("round %d: %d routes, want %d", round, len(peer.table), want)
		}
		if err := r.sync(table, h, r.leaving, func([]byte) error { t.Errorf("round %d: sent twice", round); return nil }); err != nil {
			t.Fatal(err)
		}
	}
}

// Attributes that fill more than one message are said to for as long as they are wanted, stop nothing else, and leave no
// route as it was before.
func TestTooManyCommunities(t *testing.T) {
	var a route.Attrs
	for i := range 1100 {
		a.Communities = append(a.Communities, route.Community{A: 1, B: uint32(i)})
	}
	big, small := netip.MustParsePrefix("203.0.113.1/32"), netip.MustParsePrefix("203.0.113.2/32")
	r := rib{localASN: 65001, as4: true, tooBig: map[netip.Prefix]bool{}}
	has := map[netip.Prefix]bool{}
	sync := func(leaving bool, rs ...route.Route) {
		t.Helper()
		if err := r.sync(route.TableOf(rs...), nextHops{nodeAddr}, leaving, func(msg []byte) error {
			announced, withdrawn := counted(msg)
			maps.Copy(has, announced)
			maps.DeleteFunc(has, func(p netip.Prefix, _ bool) bool { return withdrawn[p] })
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	sync(false, route.Route{Prefix: big})
	for _, leaving := range []bool{false, false, true} {
		sync(leaving, route.Route{Prefix: big, Attrs: a}, route.Route{Prefix: small})
		if len(has) != 1 || !has[small] || len(r.tooBig) != 1 {
			t.Errorf("leaving %t: the peer has %v, too big: %v", leaving, has, r.tooBig)
		}
	}
	if sync(false, route.Route{Prefix: big}); len(has) != 1 || !has[big] || len(r.tooBig) != 0 {
		t.Errorf("the peer has %v, too big: %v", has, r.tooBig)
	}
}

func BenchmarkFirstSync(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		rs, _ := manyRoutes(n, nil)
		table := route.TableOf(rs...)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := rib{localASN: 65001, as4: true}
				_ = r.sync(table, nextHops{nodeAddr}, false, func([]byte) error { return nil })
			}
		})
	}
}
