package layer2

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// node is a station whose node answers for its own address, be its speaker there or not.
type standing struct {
	*station
	air     *air
	n       int
	restart *sync.Map // the hardware addresses of those that are about to restart
}

// nodes are n stations on nodes that are there, the lower number before the higher one, which own or stand by for addrs.
func (a *air) nodesOf(t *testing.T, n int, config Config, addrs ...netip.Addr) (all []*standing) {
	restart := &sync.Map{}
	for i := range n {
		s := &standing{air: a, n: i + 1, restart: restart}
		a.power(mac(s.n), true)
		all = append(all, s)
		s.run(t, config, addrs...)
	}
	time.Sleep(5 * time.Second)
	return all
}

// run starts the speaker, as the owner, the backup, or one that does nothing.
func (s *standing) run(t *testing.T, config Config, addrs ...netip.Addr) {
	config.Judge, config.Kernel = order(s.n), kernelOf
	config.Restarting = func(m MAC) bool { _, is := s.restart.Load(m); return is }
	s.station = s.air.station(t, s.n, config)
	s.owns(s.n-1, addrs...)
}

// owns gives the speaker a rank, or nothing to do.
func (s *standing) owns(rank int, addrs ...netip.Addr) {
	var want []Address
	for _, addr := range addrs {
		if rank < 2 {
			want = append(want, Address{Addr: addr, Rank: rank})
		}
	}
	s.set(want...)
}

// answeredBy checks who is said to have an address, by which stations, and that nothing was announced before.
func (a *air) answeredBy(t *testing.T, what string, addr netip.Addr, has MAC, by ...MAC) {
	t.Helper()
	a.take()
	var stations []MAC
	told := a.ask(addr)
	for _, f := range a.last {
		if f.claim == addr && MAC(f.frame[:6]) == client {
			stations = append(stations, MAC(f.frame[6:12]))
		}
	}
	slices.SortFunc(stations, func(x, y MAC) int { return slices.Compare(x[:], y[:]) })
	if !slices.Equal(stations, by) || slices.ContainsFunc(told, func(m MAC) bool { return m != has }) {
		t.Errorf("%s: %s is said to be at %v, by %v; want %v, by %v", what, addr, told, stations, has, by)
	}
}

const detection = 210 * time.Millisecond // of silence

// A speaker that crashes is stood in for while its node is there, without a word to those who do not ask; it goes on when
// it is back.
func TestStandIn(t *testing.T) {
	for _, addr := range bothFamilies {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			all := a.nodesOf(t, 3, Config{}, addr)
			a.answeredBy(t, "at first", addr, mac(1), mac(1))
			all[0].stop()
			time.Sleep(detection)
			a.take()
			a.answeredBy(t, "after the crash", addr, mac(1), mac(2))
			time.Sleep(50 * time.Second)
			if got := announced(a.take(), addr); len(got) > 0 {
				t.Errorf("%s is announced by who stands in, at %v", addr, got)
			}
			a.answeredBy(t, "later", addr, mac(1), mac(2))
			if p, err := probe(addr, client); err != nil {
				t.Fatal(err)
			} else if a.transmit(p); !slices.ContainsFunc(a.take(), func(f airFrame) bool { return f.claim == addr && f.claimMAC == mac(1) }) {
				t.Errorf("a host that is about to take %s is not told that it is in use", addr)
			}
			if got := all[1].state(addr); got != "StandingIn eth0" {
				t.Error(got)
			}
			all[0].run(t, Config{}, addr)
			synctest.Wait()
			a.answeredBy(t, "back", addr, mac(1), mac(1))
			time.Sleep(time.Minute)
			a.answeredBy(t, "back for long", addr, mac(1), mac(1))
		})
	}
}

// A node that dies, at once or after its speaker, is no reason to wait; neither is a speaker that does not come back.
func TestStandInEnds(t *testing.T) {
	for _, addr := range bothFamilies {
		for _, tt := range []struct {
			name string
			end  func(*testing.T, []*standing)
		}{
			{"the node dies with its speaker", func(_ *testing.T, all []*standing) {
				all[0].air.power(mac(1), false)
				all[0].stop()
				time.Sleep(detection)
			}},
			{"the node dies later", func(_ *testing.T, all []*standing) {
				all[0].stop()
				time.Sleep(10*time.Second + time.Duration(rand.N(100))*time.Millisecond)
				all[0].air.power(mac(1), false)
				time.Sleep(detection)
			}},
			{"the time is up", func(t *testing.T, all []*standing) {
				all[0].stop()
				time.Sleep(59 * time.Second)
				all[0].air.answeredBy(t, "before the time is up", addr, mac(1), mac(2))
				time.Sleep(2 * time.Second)
			}},
			{"the member is no longer one to be left alone", func(_ *testing.T, all []*standing) {
				all[0].stop()
				time.Sleep(10 * time.Second)
				all[1].configure(func(c *Config) { c.Judge = func(Claim) Verdict { return Defend } })
				all[1].owns(0, addr)
			}},
			{"the member is no member any more", func(_ *testing.T, all []*standing) {
				all[0].stop()
				time.Sleep(10 * time.Second)
				all[1].configure(func(c *Config) { c.Judge = func(Claim) Verdict { return Foreign } })
				all[1].owns(1, addr)
			}},
			{"the speaker is there, and has given up its only address", func(_ *testing.T, all []*standing) {
				all[0].owns(2, addr)
				time.Sleep(detection)
			}},
			{"the speaker is there, and another is chosen, as when its node is drained", func(_ *testing.T, all []*standing) {
				all[1].owns(0, addr)
				all[0].owns(1, addr)
				time.Sleep(2 * detection)
			}},
			{"the same on an interface", func(_ *testing.T, all []*standing) {
				all[0].set(Address{Addr: addr, Interfaces: []string{"eth1"}})
				time.Sleep(detection)
			}},
			{"it is switched off", func(_ *testing.T, all []*standing) {
				all[1].configure(func(c *Config) { c.StandIn = -1 })
				all[0].stop()
				time.Sleep(detection)
			}},
		} {
			synctest.Test(t, func(t *testing.T) {
				a := newAir()
				all := a.nodesOf(t, 2, Config{}, addr)
				tt.end(t, all)
				a.answeredBy(t, tt.name, addr, mac(2), mac(2))
				if got := all[1].state(addr); got != "Answering eth0" {
					t.Errorf("%s: %s", tt.name, got)
				}
			})
		}
	}
}

// configure changes what a station was made with while it runs.
func (s *standing) configure(edit func(*Config)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	edit(&s.config)
}

// A speaker that says that it is about to restart is stood in for while it still answers, and learns of it.
func TestStandInBeforeRestart(t *testing.T) {
	for _, addr := range bothFamilies {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			all := a.nodesOf(t, 2, Config{}, addr)
			begin := time.Now()
			all[0].restart.Store(mac(1), true)
			time.Sleep(100 * time.Millisecond)
			if all[0].address(addr.String()).Covered.Before(begin) {
				t.Error("the owner does not know that it is covered")
			}
			a.answeredBy(t, "both", addr, mac(1), mac(1), mac(2))
			time.Sleep(time.Second)
			a.answeredBy(t, "both, later", addr, mac(1), mac(1), mac(2))
			all[0].stop()
			a.answeredBy(t, "ended", addr, mac(1), mac(2))
			time.Sleep(20 * time.Second)
			all[0].run(t, Config{}, addr)
			time.Sleep(time.Second) // the others learn late that it has restarted
			a.answeredBy(t, "both again", addr, mac(1), mac(1), mac(2))
			all[0].restart.Clear()
			time.Sleep(100 * time.Millisecond)
			a.answeredBy(t, "back", addr, mac(1), mac(1))
		})
	}
}

// Of several only one stands in, and others watch that one; they take the address if it dies.
func TestStandInForStandIn(t *testing.T) {
	for _, addr := range bothFamilies {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			all := a.nodesOf(t, 3, Config{}, addr)
			all[2].owns(1, addr) // sees the death at once, and takes itself for the backup
			time.Sleep(time.Second)
			all[0].stop()
			time.Sleep(3 * time.Second)
			a.answeredBy(t, "two backups", addr, mac(1), mac(2))
			all[1].owns(0, addr)
			if got, holder := all[2].state(addr), all[2].address(addr.String()).Holder; got != "Standby" || holder != mac(2) {
				t.Errorf("the second backup: %s, watches %s", got, holder)
			}
			a.power(mac(2), false)
			all[1].stop()
			time.Sleep(detection)
			a.answeredBy(t, "who stands in dies", addr, mac(3), mac(3))
			all[0].run(t, Config{}, addr)
			time.Sleep(time.Second)
			a.answeredBy(t, "the owner is back", addr, mac(1), mac(1))
		})
	}
}

// What standing in for a node costs follows the node and not its addresses.
func TestStandInForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var addrs []netip.Addr
		for i := range 1000 {
			addrs = append(addrs, netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}))
		}
		a := newAir()
		all := a.nodesOf(t, 2, Config{}, addrs...)
		all[0].stop()
		time.Sleep(detection)
		for _, s := range all[1].Status().Addresses {
			if s.State != StandingIn {
				t.Fatalf("%s is %s", s.Addr, s.State)
			}
		}
		time.Sleep(5 * time.Second)
		a.take()
		time.Sleep(10 * time.Second)
		if n := len(a.take()); n > 3*150 { // to the speaker, to the kernel, and what that says, 14 times a second
			t.Errorf("%d frames in 10 s", n)
		}
		all[0].run(t, Config{}, addrs...)
		synctest.Wait()
		for _, s := range all[1].Status().Addresses {
			if s.State != Standby {
				t.Fatalf("%s is %s after the owner came back", s.Addr, s.State)
			}
		}
	})
}

// Speakers crash and restart, nodes die and come back: clients are never told two different hardware addresses for longer
// than the members need to hear each other, and never nobody answers for longer than it takes to notice.
func TestStandInWalk(t *testing.T) {
	const stations, step = 3, 10 * time.Millisecond
	for seed := range uint64(6) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 7))
			a := newAir()
			all := a.nodesOf(t, stations, Config{StandIn: 8 * time.Second}, vip4)
			running := []bool{true, true, true}
			plan := func() { // who is alive, as all know a moment later
				rank := 0
				for i, s := range all {
					if running[i] {
						s.owns(rank, vip4)
						rank++
					}
				}
			}
			var nobody, two time.Duration
			for range 40 {
				i := random.IntN(stations)
				switch {
				case !running[i]:
					a.power(mac(i+1), true)
					all[i].restart.Delete(mac(i + 1))
					all[i].run(t, Config{StandIn: 8 * time.Second})
					running[i] = true
				case running[(i+1)%stations] || running[(i+2)%stations]:
					switch random.IntN(3) {
					case 0:
						a.power(mac(i+1), false)
					case 1:
						all[i].restart.Store(mac(i+1), true)
						time.Sleep(time.Duration(random.IntN(200)) * time.Millisecond)
					}
					all[i].stop()
					running[i] = false
				}
				told := time.Duration(random.IntN(1000)) * time.Millisecond
				for at := time.Duration(0); at < 12*time.Second; at += step {
					if at >= told && at < told+step {
						plan()
					}
					time.Sleep(step)
					macs := a.ask(vip4)
					slices.SortFunc(macs, func(x, y MAC) int { return slices.Compare(x[:], y[:]) })
					switch macs = slices.Compact(macs); len(macs) {
					case 0:
						nobody, two = nobody+step, 0
					case 1:
						nobody, two = 0, 0
					default:
						nobody, two = 0, two+step
					}
					if nobody > detection+step || two > 100*time.Millisecond {
						t.Fatalf("seed %d: nobody answers for %v, two for %v: %v", seed, nobody, two, macs)
					}
				}
			}
			for _, s := range all {
				s.stop()
			}
		})
	}
}

// rank gives the speaker a rank as it gets one when others have announced the address before; seek: one before it is dead.
func (s *standing) rank(rank int, seek bool, addr netip.Addr) {
	s.set(Address{Addr: addr, Rank: rank, Seek: seek, Probe: Probe{Count: 3, Interval: 30 * time.Millisecond}, Used: true})
}

// A speaker that restarts while it stands in for another one hands that on, without a gap; so does one that dies, with one
// as long as it takes to notice. Neither is a reason to take the address from a node that is there.
func TestStandInRestarts(t *testing.T) {
	for _, addr := range bothFamilies {
		for _, announced := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				a := newAir()
				all := a.nodesOf(t, 3, Config{}, addr)
				all[0].stop()
				time.Sleep(detection)
				all[1].rank(0, true, addr)
				all[2].rank(1, false, addr)
				time.Sleep(5 * time.Second)
				begin := time.Now()
				if announced {
					all[1].restart.Store(mac(2), true)
					time.Sleep(200 * time.Millisecond)
					a.answeredBy(t, "both", addr, mac(1), mac(2), mac(3))
					if all[1].address(addr.String()).Covered.Before(begin) {
						t.Error("who stands in and restarts does not know that another one stands in")
					}
				} else {
					a.power(mac(2), false)
				}
				all[1].stop()
				if !announced {
					time.Sleep(detection)
				}
				a.answeredBy(t, "who stood in has ended", addr, mac(1), mac(3))
				time.Sleep(10 * time.Second)
				a.answeredBy(t, "and later", addr, mac(1), mac(3))
				all[2].rank(0, true, addr)
				a.answeredBy(t, "chosen since the others are dead", addr, mac(1), mac(3))
				all[0].run(t, Config{}, addr)
				synctest.Wait()
				a.answeredBy(t, "the owner is back", addr, mac(1), mac(1))
			})
		}
	}
}

// Both the owner's node and the one that stands in for its speaker die at one time.
func TestStandInDiesWithOwner(t *testing.T) {
	for _, addr := range bothFamilies {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			all := a.nodesOf(t, 3, Config{}, addr)
			all[0].stop()
			time.Sleep(detection)
			all[1].rank(0, true, addr)
			all[2].rank(1, false, addr)
			time.Sleep(5 * time.Second)
			a.power(mac(1), false)
			a.power(mac(2), false)
			all[1].stop()
			time.Sleep(detection + 110*time.Millisecond)
			a.answeredBy(t, "both are dead", addr, mac(3), mac(3))
		})
	}
}

// A speaker that stands in for several addresses and may serve one of them no more leaves it to the next one to stand in.
func TestStandInGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, other := newAir(), vip4.Next()
		all := a.nodesOf(t, 3, Config{}, vip4, other)
		all[0].stop()
		time.Sleep(detection)
		all[2].owns(1, vip4, other)
		time.Sleep(5 * time.Second)
		all[1].owns(1, other)
		for range 100 {
			time.Sleep(10 * time.Millisecond)
			if macs := a.ask(vip4); len(macs) > 0 && macs[0] != mac(1) {
				t.Fatalf("%s is said to be at %v", vip4, macs)
			}
		}
		a.answeredBy(t, "it was given up", vip4, mac(1), mac(3))
	})
}

// A member that comes back and ranks before the one that stands in leaves the address where it is, and stands in itself.
func TestStandInBetterReturns(t *testing.T) {
	for _, addr := range bothFamilies {
		for _, rank := range []int{0, 1} {
			synctest.Test(t, func(t *testing.T) {
				a := newAir()
				all := a.nodesOf(t, 3, Config{}, addr)
				all[1].stop()
				all[2].owns(1, addr)
				time.Sleep(5 * time.Second)
				all[0].stop()
				time.Sleep(detection)
				a.answeredBy(t, "the lower one", addr, mac(1), mac(3))
				time.Sleep(10 * time.Second)
				all[1].run(t, Config{})
				all[1].rank(rank, rank == 0, addr)
				all[2].rank(rank+1, false, addr)
				for range 50 {
					time.Sleep(100 * time.Millisecond)
					if macs := a.ask(addr); len(macs) == 0 || slices.ContainsFunc(macs, func(m MAC) bool { return m != mac(1) }) {
						t.Fatalf("%s, which returned as number %d: it is said to be at %v", addr, rank, macs)
					}
				}
				if got := all[1].state(addr); got != "StandingIn eth0" {
					t.Errorf("the one that returned: %s", got)
				}
				time.Sleep(time.Minute + time.Second)
				a.answeredBy(t, "the time is up", addr, mac(2), mac(2))
				all[0].run(t, Config{}, addr)
				time.Sleep(time.Second)
				a.answeredBy(t, "the owner is back", addr, mac(1), mac(1))
			})
		}
	}
}

// A member that comes back and is chosen while the owner's node is drained takes the address at once, whoever stands in.
func TestStandInOwnerDrained(t *testing.T) {
	for _, addr := range bothFamilies {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			all := a.nodesOf(t, 3, Config{}, addr)
			all[1].stop()
			all[2].owns(1, addr)
			time.Sleep(5 * time.Second)
			all[0].stop()
			time.Sleep(detection)
			a.answeredBy(t, "the lower one", addr, mac(1), mac(3))
			all[1].run(t, Config{})
			all[1].rank(0, false, addr)
			time.Sleep(100 * time.Millisecond)
			a.answeredBy(t, "another is chosen", addr, mac(2), mac(2))
		})
	}
}

// The time of a node that is stood in for does not begin anew when another address of its speaker is stood in for as well.
func TestStandInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, other := newAir(), vip4.Next()
		all := a.nodesOf(t, 3, Config{}, vip4, other)
		all[1].set(Address{Addr: vip4, Rank: 1})
		all[2].set(Address{Addr: other, Rank: 1})
		time.Sleep(5 * time.Second)
		all[0].stop()
		time.Sleep(30 * time.Second)
		all[1].set(Address{Addr: vip4, Rank: 1}, Address{Addr: other, Rank: 1})
		time.Sleep(10 * time.Second)
		a.answeredBy(t, "the first", vip4, mac(1), mac(2))
		a.answeredBy(t, "the second", other, mac(1), mac(2), mac(3))
		time.Sleep(21 * time.Second)
		a.answeredBy(t, "the time is up", vip4, mac(2), mac(2))
	})
}

// Who stands in goes on when others come to rank before it.
func TestStandInRankFalls(t *testing.T) {
	for _, addr := range bothFamilies {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			all := a.nodesOf(t, 2, Config{}, addr)
			all[0].stop()
			time.Sleep(detection)
			all[1].rank(2, false, addr)
			for range 100 {
				time.Sleep(100 * time.Millisecond)
				a.answeredBy(t, "its rank fell", addr, mac(1), mac(2))
			}
			a.power(mac(1), false)
			time.Sleep(detection)
			a.answeredBy(t, "the node died", addr, mac(2), mac(2))
		})
	}
}

// A member that waits to be told that it is stood in for is told again.
func TestStandInToldAgain(t *testing.T) {
	for _, addr := range bothFamilies {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			all := a.nodesOf(t, 2, Config{}, addr)
			var lost atomic.Bool
			a.lose(func(f airFrame) bool {
				return f.by == mac(2) && MAC(f.frame[:6]) == mac(1) && lost.CompareAndSwap(false, true)
			})
			begin := time.Now()
			all[0].restart.Store(mac(1), true)
			time.Sleep(time.Second)
			if !lost.Load() {
				t.Fatal("no frame was lost: the test tests nothing")
			}
			if all[0].address(addr.String()).Covered.Before(begin) {
				t.Error("the owner does not know that it is covered, since one frame was lost")
			}
		})
	}
}

// Speakers that do not hear of each other in the group may both stand in: they say the same, and only one takes the address
// in the end.
func TestStandInTwice(t *testing.T) {
	for _, addr := range bothFamilies {
		for _, node := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				a := newAir()
				all := a.nodesOf(t, 3, Config{}, addr)
				all[2].owns(1, addr)
				time.Sleep(5 * time.Second)
				all[0].stop()
				all[1].rank(0, true, addr)
				all[2].rank(0, true, addr)
				end := time.Now().Add(time.Minute + time.Second)
				if !node {
					time.Sleep(10 * time.Second)
					a.power(mac(1), false)
					end = time.Now().Add(detection)
				}
				for time.Now().Before(end) {
					time.Sleep(10 * time.Millisecond)
					if macs := slices.Compact(a.ask(addr)); len(macs) > 1 {
						t.Fatalf("%s is said to be at %v", addr, macs)
					}
				}
				time.Sleep(time.Second)
				a.answeredBy(t, "at the end", addr, mac(2), mac(2))
			})
		}
	}
}

// However many nodes are watched, and whatever else happens, each is asked again within the time that Config says.
func TestWatchPace(t *testing.T) {
	for _, n := range []int{1, 2, 14, 15, 16, 17, 33, 60} {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			var all []Address
			for i := range n {
				addr := netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 1)})
				a.station(t, i+1, Config{Judge: order(i + 1)}).set(Address{Addr: addr})
				all = append(all, Address{Addr: addr, Rank: 1})
				time.Sleep(7 * time.Millisecond)
			}
			backup := a.station(t, 200, Config{Judge: order(200)})
			backup.set(all...)
			time.Sleep(10 * time.Second)
			a.take()
			time.Sleep(20 * time.Second)
			last, most := map[MAC]time.Duration{}, time.Duration(0)
			for _, f := range a.take() {
				if to := MAC(f.frame[:6]); f.ask && MAC(f.frame[6:12]) == mac(200) && to.station() {
					if at, ok := last[to]; ok {
						most = max(most, f.at-at)
					}
					last[to] = f.at
				}
			}
			if limit := max(75*time.Millisecond, time.Duration(n)*5*time.Millisecond); len(last) != n || most > limit {
				t.Errorf("of %d nodes %d were asked, one not for %v", n, len(last), most)
			}
		})
	}
}

// One of many nodes that falls silent is asked for as soon again as one of few, and those that are silent do not make the
// others be asked more rarely.
func TestSilentAmongMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 60
		a := newAir()
		var nodes []*station
		var all []Address
		for i := range n {
			addr := netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 1)})
			s := a.station(t, i+1, Config{Judge: order(i + 1)})
			s.set(Address{Addr: addr})
			nodes, all = append(nodes, s), append(all, Address{Addr: addr, Rank: 1})
			time.Sleep(7 * time.Millisecond)
		}
		a.station(t, 200, Config{Judge: order(200)}).set(all...)
		time.Sleep(10 * time.Second)
		longest := func(to MAC) (most time.Duration) { // between two questions within five seconds
			a.take()
			begin := time.Now()
			time.Sleep(5 * time.Second)
			var last time.Duration
			asked := 0
			for _, f := range a.take() {
				if f.ask && MAC(f.frame[:6]) == to && MAC(f.frame[6:12]) == mac(200) {
					if asked++; asked > 1 {
						most = max(most, f.at-last)
					}
					last = f.at
				}
			}
			if asked < 2 {
				return time.Since(begin)
			}
			return most
		}
		nodes[0].stop()
		time.Sleep(3 * time.Second)
		if most := longest(mac(1)); most > 300*time.Millisecond {
			t.Errorf("one silent node of %d was not asked for %v", n, most)
		}
		for _, s := range nodes[1 : n-1] {
			s.stop()
		}
		time.Sleep(10 * time.Second)
		if most := longest(mac(n)); most > 75*time.Millisecond {
			t.Errorf("the only node that lives was not asked for %v", most)
		}
	})
}

// A speaker on two links whose node's kernel answers on one of them, or whose other link is lost meanwhile, is stood in for on
// both: its node has the address as long as it is there.
func TestStandInOnTwoLinks(t *testing.T) {
	second := func(m MAC) MAC { m[5] += 100; return m }
	first := func(m MAC) MAC { m[5] %= 100; return m }
	for _, addr := range bothFamilies {
		for _, kernel := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				a := newAir()
				a.part(func(x, y MAC) bool { return x != client && y != client && x[5] >= 100 != (y[5] >= 100) })
				run := func(n int) *station {
					s := a.station(t, n, Config{
						Judge:  func(c Claim) Verdict { c.MAC = first(c.MAC); return order(n)(c) },
						Kernel: func(m MAC) []netip.Addr { return append(kernelOf(first(m)), kernelOf(second(first(m)))...) },
					})
					s.change(device("eth1", 3, second(mac(n)), true))
					s.set(Address{Addr: addr, Rank: n - 1})
					a.power(mac(n), true)
					return s
				}
				both := func(what string, n int) {
					t.Helper()
					macs := a.ask(addr)
					slices.SortFunc(macs, func(x, y MAC) int { return slices.Compare(x[:], y[:]) })
					if want := []MAC{mac(n), second(mac(n))}; !slices.Equal(macs, want) {
						t.Errorf("%s: %s is said to be at %v, want %v", what, addr, macs, want)
					}
				}
				owner, backup := run(1), run(2)
				time.Sleep(5 * time.Second)
				a.power(second(mac(1)), kernel)
				both("at first", 1)
				owner.stop()
				time.Sleep(detection)
				both("the speaker is away", 1)
				a.power(second(mac(1)), false)
				time.Sleep(10 * time.Second)
				both("the kernel does not answer on one link", 1)
				if got := backup.state(addr); got != "StandingIn eth0 eth1" {
					t.Error(got)
				}
				a.power(mac(1), false)
				time.Sleep(detection)
				both("the node is off", 2)
				run(1)
				time.Sleep(time.Second)
				both("the owner is back", 1)
			})
		}
	}
}
