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
