package layer2

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkIdle has three nodes own a third of the addresses each, the next node being the backup, and reports what one of
// them takes of a core while nothing happens.
func BenchmarkIdle(b *testing.B) {
	for _, n := range []int{40, 800} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := newLAN(b, 4)
			nodes := map[MAC]int{}
			for i := range 3 {
				nodes[l.hosts[i+1].mac(b, "eth0")] = i
			}
			for i := range 3 {
				r := l.hosts[i+1].start(b, Config{Judge: func(c Claim) Verdict {
					if int(c.Addr.As4()[3])%3 == nodes[c.MAC] {
						return Yield
					}
					return Defend
				}})
				var want []Address
				for j := range n {
					owner := j % 256 % 3
					a := Address{Addr: netip.AddrFrom4([4]byte{198, 18, byte(j >> 8), byte(j)}), Rank: (i - owner + 3) % 3}
					if a.Rank < 2 {
						want = append(want, a)
					}
				}
				r.Set(want)
			}
			time.Sleep(6 * time.Second)
			used := func() (t time.Duration) {
				var u unix.Rusage
				if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
					b.Fatal(err)
				}
				return time.Duration(u.Utime.Nano() + u.Stime.Nano())
			}
			before, start := used(), time.Now()
			time.Sleep(10 * time.Second)
			b.ReportMetric(100*float64(used()-before)/float64(time.Since(start))/3, "%core")
			b.ReportMetric(0, "ns/op")
		})
	}
}
