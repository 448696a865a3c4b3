package layer2

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"
)

// BenchmarkChange adds and removes one address beside 5,000 others on one interface: what Change costs, and Set.
func BenchmarkChange(b *testing.B) {
	for _, how := range []string{"Change", "Set"} {
		b.Run(how, func(b *testing.B) {
			a := newAir()
			r := New(Config{Log: slog.New(slog.DiscardHandler)})
			r.dial = a.dial
			r.links = map[int]Link{2: {Name: "eth0", Index: 2, MAC: mac(1)}}
			r.relinked = true
			var all []Address
			for i := range 5000 {
				all = append(all, Address{Addr: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})})
			}
			r.Set(all)
			r.step(time.Now())
			defer r.stop()
			one := Address{Addr: netip.AddrFrom4([4]byte{198, 19, 0, 1})}
			for b.Loop() {
				if how == "Change" {
					r.Change([]Address{one})
					r.step(time.Now())
					r.Change(nil, one.Addr)
				} else {
					r.Set(append(all, one))
					r.step(time.Now())
					r.Set(all)
				}
				r.step(time.Now())
			}
		})
	}
}
