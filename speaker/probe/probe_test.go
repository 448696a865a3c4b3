package probe

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/clarionlb/clarion/internal/netnstest"
)

// proxy rewrites two ports of each Service's address to a backend, one of them to where nobody listens, and rejects
// another, as a Service proxy does.
const proxy = `
table inet proxy {
	chain out { type nat hook output priority -100
		ip daddr 198.18.0.1 meta l4proto { tcp, udp } th dport 80 dnat ip to 10.0.0.2:8080
		ip daddr 198.18.0.1 tcp dport 81 dnat ip to 10.0.0.2:9
		ip6 daddr 2001:db8:f::1 meta l4proto { tcp, udp } th dport 80 dnat ip6 to [2001:db8:a::2]:8080
		ip6 daddr 2001:db8:f::1 tcp dport 81 dnat ip6 to [2001:db8:a::2]:9
	}
	chain filter { type filter hook output priority 0
		th dport 82 meta l4proto { tcp, udp } reject
	}
}`

func TestProbe(t *testing.T) {
	ns := netnstest.New(t)
	ns.IP(t, "link add eth0 type veth peer name eth1")
	ns.IP(t, "link set eth0 up")
	ns.IP(t, "link set eth1 up")
	for _, a := range []string{"10.0.0.1/24", "10.0.0.2/24", "2001:db8:a::1/64", "2001:db8:a::2/64"} {
		ns.IP(t, "addr add "+a+" dev eth0")
	}
	ns.IP(t, "route add 198.18.0.0/16 dev eth0")
	ns.IP(t, "route add 2001:db8:f::/64 dev eth0 src 2001:db8:a::1")
	ns.Run(t, "nft", proxy)
	for _, backend := range []string{"10.0.0.2:8080", "[2001:db8:a::2]:8080"} {
		serve(t, ns, backend)
	}
	for _, family := range []struct{ service, backend, self, nobody string }{
		{"198.18.0.1", "10.0.0.2", "10.0.0.1", "203.0.113.1"}, {"2001:db8:f::1", "2001:db8:a::2", "2001:db8:a::1", "2001:db8:e::1"},
	} {
		to := func(addr string, port uint16) netip.AddrPort {
			return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
		}
		for _, tt := range []struct {
			what    string
			network string
			to      netip.AddrPort
			want    Outcome
			now     netip.AddrPort
			asItIs  bool
		}{
			{"served", "tcp", to(family.service, 80), Answered, to(family.backend, 8080), false},
			{"served", "udp", to(family.service, 80), Answered, to(family.backend, 8080), false},
			{"dead backend", "tcp", to(family.service, 81), Refused, netip.AddrPort{}, false},
			{"rejected", "tcp", to(family.service, 82), Refused, netip.AddrPort{}, false},
			{"rejected", "udp", to(family.service, 82), Refused, netip.AddrPort{}, false},
			{"no rule", "tcp", to(family.service, 83), Silent, netip.AddrPort{}, true},
			{"no rule", "udp", to(family.service, 83), Silent, netip.AddrPort{}, true},
			{"backend", "tcp", to(family.backend, 8080), Answered, netip.AddrPort{}, true},
			{"no route", "tcp", to(family.nobody, 80), Unreachable, netip.AddrPort{}, false},
		} {
			t.Run(tt.what+" "+tt.network+" "+tt.to.String(), func(t *testing.T) {
				var r Result
				if err := ns.Enter(func() error {
					limit := 5 * time.Second
					if tt.want == Silent {
						limit = 300 * time.Millisecond
					}
					ctx, cancel := context.WithTimeout(context.Background(), limit)
					defer cancel()
					r = try(ctx, tt.network, tt.to)
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				if r.Outcome != tt.want || r.RewrittenTo != tt.now || r.AsItIs != tt.asItIs {
					t.Errorf("%+v; want %s, rewritten to %v, as it is: %v", r, tt.want, tt.now, tt.asItIs)
				}
			})
		}
	}
}

// serve accepts connections, and answers datagrams, at an address inside until the test ends.
func serve(t *testing.T, ns netnstest.Namespace, at string) {
	t.Helper()
	if err := ns.Enter(func() error {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		u, err := net.ListenPacket("udp", at)
		if err != nil {
			return err
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			for b := make([]byte, 1); ; {
				_, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo([]byte{0}, from)
			}
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
