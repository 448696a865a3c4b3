package layer2

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// views are what each of some stations believes, for ever, of who ranks before whom for each address. No two need agree.
type views struct {
	mu     sync.Mutex
	ranked map[int]map[netip.Addr][]int // by station; a station that is not in its own list cannot serve
}

func (v *views) draw(random *rand.Rand, stations int, addrs []netip.Addr) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ranked = map[int]map[netip.Addr][]int{}
	for n := range stations {
		v.ranked[n+1] = map[netip.Addr][]int{}
		for _, a := range addrs {
			order := random.Perm(stations)
			for i := range order {
				order[i]++
			}
			if random.IntN(6) == 0 {
				order = slices.DeleteFunc(order, func(m int) bool { return m == n+1 })
			}
			v.ranked[n+1][a] = order
		}
	}
}

func (v *views) judge(self int) func(Claim) Verdict {
	return func(c Claim) Verdict {
		v.mu.Lock()
		defer v.mu.Unlock()
		other := int(c.MAC[5])
		order := v.ranked[self][c.Addr]
		switch i, j := slices.Index(order, self), slices.Index(order, other); {
		case c.MAC[4] != 0:
			return Foreign
		case other == self:
			return Ignore
		case j >= 0 && j < i:
			return Yield
		}
		return Defend
	}
}

func (v *views) want(self int) (want []Address) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for a, order := range v.ranked[self] {
		if i := slices.Index(order, self); i >= 0 {
			want = append(want, Address{Addr: a, Rank: i})
		}
	}
	return want
}

// Whatever the members believe of each other, for ever: in the end every address that one of them can serve is answered by
// one and no more in each part of the network, with what the network carries meanwhile.
func TestDisagreement(t *testing.T) {
	const stations = 5
	addrs := []netip.Addr{vip4, vip4.Next(), vip4.Next().Next(), vip6, vip6.Next()}
	for seed := range uint64(6) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			a, v := newAir(), &views{}
			v.draw(random, stations, addrs)
			running := map[int]*station{}
			start := func(n int) {
				a.power(mac(n), true) // a speaker that ends may leave its node behind
				running[n] = a.station(t, n, Config{Judge: v.judge(n), Kernel: kernelOf, StandIn: 20 * time.Second})
				running[n].set(v.want(n)...)
			}
			for n := range stations {
				start(n + 1)
			}
			side := make([]int, stations+1)
			for step := range 12 {
				switch n := 1 + random.IntN(stations); random.IntN(5) {
				case 0, 1:
					if s := running[n]; s != nil {
						a.power(mac(n), random.IntN(2) == 0)
						s.stop()
						delete(running, n)
					} else {
						start(n)
					}
				case 2:
					for i := range side {
						side[i] = random.IntN(2)
					}
					sides := slices.Clone(side)
					a.part(func(x, y MAC) bool { return x[4] == 0 && y[4] == 0 && sides[x[5]] != sides[y[5]] })
				case 3:
					clear(side)
					a.part(nil)
				case 4:
					v.draw(random, stations, addrs)
					for n, s := range running {
						s.set(v.want(n)...)
					}
				}
				time.Sleep(80 * time.Second) // owners that never heard each other announce once a minute
				for _, addr := range addrs {
					var able, answers [2]int
					for n, s := range running {
						if slices.ContainsFunc(v.want(n), func(w Address) bool { return w.Addr == addr }) {
							able[side[n]] = 1
						}
						if s.address(addr.String()).State == Answering {
							answers[side[n]]++
						}
					}
					if able != answers {
						t.Fatalf("seed %d, step %d: %s: answered by %v on each side, want %v", seed, step, addr, answers, able)
					}
				}
				a.take()
				time.Sleep(10 * time.Second)
				frames := len(a.take())
				if limit := 10 * 14 * 2 * len(running) * (len(running) - 1); frames > limit+300 {
					t.Errorf("seed %d, step %d: %d frames in 10 s among %d that disagree, want at most %d", seed, step, frames, len(running), limit+300)
				}
			}
			for _, s := range running {
				s.stop()
			}
		})
	}
}

// A node that is to have an address has contested it with a member. That says nothing of another one that takes the address
// because it has not heard who is to have it: it yields when it hears so, and has to hear it.
func TestContestIsWithOneMember(t *testing.T) {
	for _, addr := range bothFamilies {
		for _, tt := range []struct {
			what      string
			contested time.Duration // by member 2; after 1.5 s it has the address
			yields    bool
		}{
			{"for a while", 1400 * time.Millisecond, false},
			{"until it yielded", 1700 * time.Millisecond, true},
		} {
			synctest.Test(t, func(t *testing.T) {
				a := newAir()
				s := a.station(t, 3, Config{Judge: func(Claim) Verdict { return Defend }})
				s.set(Address{Addr: addr})
				time.Sleep(time.Minute)
				claim := func(n int) {
					t.Helper()
					frames, err := announcement(addr, mac(n))
					if err != nil {
						t.Fatal(err)
					}
					a.transmit(frames[0])
					synctest.Wait()
				}
				for began := time.Now(); time.Since(began) < tt.contested; time.Sleep(100 * time.Millisecond) {
					claim(2)
				}
				if got := s.address(addr.String()).State; (got == Standby) != tt.yields {
					t.Fatalf("%s, contested %s: it is %s", addr, tt.what, got)
				}
				if !tt.yields {
					time.Sleep(500 * time.Millisecond)
				}
				claim(1)
				if got := s.address(addr.String()).State; got != Answering {
					t.Errorf("%s, contested %s by one, and another takes it: it is %s", addr, tt.what, got)
				}
			})
		}
	}
}
