package layer2

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"
)

var bothFamilies = []netip.Addr{vip4, vip6}

// order makes the station with the lower number the better one.
func order(self int) func(Claim) Verdict {
	return func(c Claim) Verdict {
		switch n := int(c.MAC[5]); {
		case c.MAC[4] != 0:
			return Foreign
		case n == self:
			return Ignore
		case n < self:
			return Yield
		default:
			return Defend
		}
	}
}

func TestAnnouncements(t *testing.T) {
	for _, addr := range bothFamilies {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			s := a.station(t, 1, Config{})
			s.set(Address{Addr: addr})
			time.Sleep(30 * time.Second)
			ms := time.Millisecond
			if got, want := announced(a.take(), addr), []time.Duration{0, 100 * ms, 500 * ms, 1000 * ms, 2000 * ms}; !slices.Equal(got, want) {
				t.Errorf("%s announced at %v, want %v", addr, got, want)
			}
			time.Sleep(10 * time.Minute)
			last := 2 * time.Second
			for _, at := range announced(a.take(), addr) {
				if gap := at - last; gap < 54*time.Second || gap > 66*time.Second {
					t.Errorf("%s announced %v after the time before", addr, gap)
				}
				last = at
			}
			if last < 9*time.Minute {
				t.Errorf("%s last announced at %v", addr, last)
			}
			s.set(Address{Addr: addr})
			if got := a.take(); len(got) > 0 {
				t.Errorf("setting the same again sent %d frames", len(got))
			}
			s.set()
			time.Sleep(10 * time.Minute)
			if got := a.take(); len(got) != 1 || !got[0].probe() || got[0].claim.IsValid() {
				t.Errorf("%d frames after %s left the set, want one that asks who has it", len(got), addr)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	for _, addr := range bothFamilies {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			s := a.station(t, 1, Config{})
			if got := a.ask(addr); got != nil {
				t.Errorf("%s answered by %v before Set", addr, got)
			}
			s.set(Address{Addr: addr})
			if got := a.ask(addr); !slices.Equal(got, []MAC{mac(1)}) {
				t.Errorf("%s answered by %v", addr, got)
			}
			if got := a.ask(addr.Next()); got != nil {
				t.Errorf("%s answered by %v, it is not in the set", addr.Next(), got)
			}
			p, err := probe(addr, client)
			if err != nil {
				t.Fatal(err)
			}
			a.take()
			a.transmit(p)
			if got := a.take(); len(got) != 2 || got[1].claim != addr || got[1].claimMAC != mac(1) {
				t.Errorf("a probe for %s got %+v", addr, got[1:])
			}
			status := s.address(addr.String())
			if status.Requests != 2 || status.Replies != 2 || status.Announcements != 1 || status.Claims != 0 {
				t.Errorf("counters %+v", status)
			}
			s.Set(nil)
			if got := a.ask(addr); got != nil {
				t.Errorf("%s answered by %v after it left the set", addr, got)
			}
			s.Set([]Address{{Addr: addr}})
			a.take()
			s.Set(nil)
			s.Set([]Address{{Addr: addr}})
			if got := announced(a.take(), addr); len(got) != 1 {
				t.Errorf("%s announced at %v after it left and came back", addr, got)
			}
			if got := a.ask(addr); len(got) != 1 {
				t.Errorf("%s answered by %v after it came back", addr, got)
			}
			s.stop()
			if got := a.ask(addr); got != nil || len(s.Status().Addresses)+len(s.Links()) > 0 {
				t.Errorf("%s answered by %v after the end", addr, got)
			}
		})
	}
}

func TestLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		var changes atomic.Int64
		s := a.station(t, 1, Config{Exclude: []string{"veth*"}, OnLinks: func() { changes.Add(1) }})
		check := func(what, want string, fresh bool) {
			t.Helper()
			if got := s.state(vip4); got != want {
				t.Errorf("%s: %s, want %s", what, got, want)
			}
			if got := announced(a.take(), vip4); (len(got) == 1) != fresh {
				t.Errorf("%s: announced at %v, want once: %t", what, got, fresh)
			}
			time.Sleep(10 * time.Second)
			a.take()
		}
		s.set(Address{Addr: vip4})
		check("start", "Answering eth0", true)
		s.change(device("eth0", 2, mac(1), false))
		check("carrier lost", "Answering", false)
		s.change(device("eth0", 2, mac(1), true))
		check("carrier back", "Answering eth0", true)
		s.change(device("eth0", 2, mac(9), true))
		check("hardware address changed", "Answering eth0", true)
		if got := a.ask(vip4); !slices.Equal(got, []MAC{mac(9)}) {
			t.Errorf("answered by %v, want the new hardware address", got)
		}
		s.change(device("veth7", 3, mac(3), true))
		check("excluded link", "Answering eth0", false)
		s.change(device("bond0", 4, mac(4), true))
		check("another link", "Answering bond0 eth0", true)
		s.gone(device("eth0", 2, mac(9), true))
		check("link deleted", "Answering bond0", false)
		s.change(device("eth0", 5, mac(9), true))
		check("link created again", "Answering bond0 eth0", true)

		// Deleted and created in one go, with the number of before: the sockets of before are dead.
		s.events.links <- linkUpdate(17, device("eth0", 5, mac(9), true)) // RTM_DELLINK
		s.events.links <- linkUpdate(16, device("eth0", 5, mac(9), true)) // RTM_NEWLINK
		check("link replaced", "Answering bond0 eth0", true)

		port := linkUpdate(17, device("bond0", 4, mac(4), true))
		port.IfInfomsg.Family = 7 // AF_BRIDGE: bond0 left a bridge
		s.events.links <- port
		check("port left a bridge", "Answering bond0 eth0", false)

		s.set(Address{Addr: vip4, Interfaces: []string{"veth*", "none"}})
		check("excluded link selected by name", "Answering veth7", true)
		s.set(Address{Addr: vip4, Interfaces: []string{"eth?"}}, Address{Addr: vip4, Interfaces: []string{"bond0"}})
		check("two selections", "Answering bond0 eth0", true)
		s.change(device("lan", 4, mac(4), true))
		check("link renamed", "Answering eth0", false)
		if n := changes.Load(); n != 10 {
			t.Errorf("OnLinks called %d times", n)
		}
		if links := s.Links(); len(links) != 3 || links[1].Name != "lan" || links[1].MAC != mac(4) || !links[1].Carrier || !links[2].Excluded {
			t.Errorf("links %+v", links)
		}
	})
}

// A subscription that breaks is replaced, and nothing is withdrawn meanwhile.
func TestSubscriptionBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		s := a.station(t, 1, Config{})
		s.set(Address{Addr: vip4})
		working, fails := s.watch, 2
		s.watch = func() (*linkEvents, error) {
			if fails--; fails >= 0 {
				return nil, errors.New("no buffer space")
			}
			return working()
		}
		s.events.once.Do(func() { close(s.events.done) })
		if got := a.ask(vip4); len(got) != 1 {
			t.Error("not answered while links are not watched")
		}
		time.Sleep(3 * time.Second)
		s.gone(device("eth0", 2, mac(1), true))
		if got := s.state(vip4); got != "Answering" {
			t.Errorf("%s, want the link gone", got)
		}
	})
}

// A socket that cannot be opened is tried again.
func TestDialFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		s := a.station(t, 1, Config{})
		var failing atomic.Bool
		failing.Store(true)
		s.dial = func(link Link, v6 bool, addrs []netip.Addr) (wire, error) {
			if failing.Load() {
				return nil, errors.New("no such device")
			}
			return a.dial(link, v6, addrs)
		}
		s.set(Address{Addr: vip4})
		if got := s.state(vip4); got != "Answering" {
			t.Errorf("%s, want no interface", got)
		}
		failing.Store(false)
		time.Sleep(time.Second)
		if got := s.state(vip4); got != "Answering eth0" {
			t.Errorf("%s", got)
		}
	})
}

func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, addr := range bothFamilies {
			a := newAir()
			s := a.station(t, 1, Config{})
			s.set(Address{Addr: addr, Probe: DefaultProbe()})
			time.Sleep(599 * time.Millisecond)
			if got := s.state(addr); got != "Probing" {
				t.Errorf("%s after 599 ms: %s", addr, got)
			}
			var at []time.Duration
			for _, f := range a.take() {
				if !f.probe() || f.target != addr {
					t.Errorf("%s: sent %x while probing", addr, f.frame)
				}
				at = append(at, f.at/time.Millisecond)
			}
			if !slices.Equal(at, []time.Duration{0, 200, 400}) {
				t.Errorf("%s: probes at %v ms", addr, at)
			}
			if got := a.ask(addr); got != nil {
				t.Errorf("%s: answered by %v while probing", addr, got)
			}
			time.Sleep(time.Millisecond)
			if got := s.state(addr); got != "Answering eth0" {
				t.Errorf("%s after 600 ms: %s", addr, got)
			}
			s.set(Address{Addr: addr, Probe: DefaultProbe()})
			if got := s.state(addr); got != "Answering eth0" {
				t.Errorf("%s probed again: %s", addr, got)
			}
			s.stop()
		}
	})
}

// A foreign host that has an address before us keeps it, and loses it to us when it goes.
func TestProbeFindsForeignHost(t *testing.T) {
	for name, claims := range map[string]func() []byte{
		"it answers": func() []byte {
			f, _ := answer(message{ask: true, target: vip4, asker: any4, askerMAC: mac(1)}, client, client)
			return f
		},
		"it probes, too": func() []byte { f, _ := probe(vip4, client); return f },
	} {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			reports, s := a.reporting(t)
			s.set(Address{Addr: vip4, Probe: DefaultProbe()})
			time.Sleep(300 * time.Millisecond)
			a.transmit(claims())
			if got := s.state(vip4); got != "Contested" {
				t.Fatalf("%s: %s", name, got)
			}
			if got := reports(); len(got) != 1 || got[0].MAC != client || !got[0].Before || got[0].Over || got[0].Interface != "eth0" {
				t.Errorf("%s: reported %+v", name, got)
			}
			time.Sleep(10 * time.Second)
			for _, f := range a.take() {
				if f.claim == vip4 && f.claimMAC == mac(1) {
					t.Errorf("%s: announced at %v", name, f.at)
				}
			}
			if c := s.address(vip4.String()).Conflicts; len(c) != 1 || c[0].MAC != client {
				t.Errorf("%s: conflicts %+v", name, c)
			}
			time.Sleep(25 * time.Second) // the foreign host leaves the next questions unanswered
			if got := s.state(vip4); got != "Answering eth0" {
				t.Errorf("%s: after the foreign host went: %s", name, got)
			}
			if got := reports(); len(got) != 2 || !got[1].Over {
				t.Errorf("%s: reported %+v", name, got)
			}
			s.stop()
		})
	}
}

// Who takes over an address that others announced does not leave it to a foreign host: that is a conflict like any later one.
func TestTakeoverFindsForeignHost(t *testing.T) {
	for _, addr := range bothFamilies {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			reports, s := a.reporting(t)
			confirm := Probe{Count: 3, Interval: 30 * time.Millisecond}
			s.set(Address{Addr: addr, Probe: confirm, Used: true})
			question, err := probe(addr, client)
			if err != nil {
				t.Fatal(err)
			}
			a.transmit(question)
			if got := reports(); s.state(addr) != "Probing" || len(got) > 0 {
				t.Errorf("%s: asked for by a foreign host: %s, reported %+v", addr, s.state(addr), got)
			}
			claim, err := announcement(addr, client)
			if err != nil {
				t.Fatal(err)
			}
			a.transmit(claim[0])
			time.Sleep(90 * time.Millisecond)
			if got := s.state(addr); got != "Answering eth0" {
				t.Errorf("%s: %s", addr, got)
			}
			if got := announced(a.take(), addr); !slices.Contains(got, 90*time.Millisecond) {
				t.Errorf("%s: announced at %v", addr, got)
			}
			if got := reports(); len(got) != 1 || got[0].MAC != client || got[0].Before || got[0].Over {
				t.Errorf("%s: reported %+v", addr, got)
			}
			if c := s.address(addr.String()).Conflicts; len(c) != 1 || c[0].Before {
				t.Errorf("%s: conflicts %+v", addr, c)
			}
			s.stop()
		})
	}
}

func TestConflict(t *testing.T) {
	for _, addr := range bothFamilies {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			reports, s := a.reporting(t)
			s.set(Address{Addr: addr})
			time.Sleep(10 * time.Second)
			claim, err := announcement(addr, client)
			if err != nil {
				t.Fatal(err)
			}
			a.take()
			defences := 0
			for range 200 { // for 20 s
				for _, f := range claim {
					a.transmit(f)
				}
				time.Sleep(100 * time.Millisecond)
			}
			for _, f := range a.take() {
				if f.claim == addr && f.claimMAC == mac(1) && f.frame[0]&1 == 1 {
					defences++
				}
			}
			if want := 2 * len(claim); defences != want {
				t.Errorf("%s: %d frames of defence in 20 s, want %d", addr, defences, want)
			}
			if got := s.state(addr); got != "Answering eth0" {
				t.Errorf("%s: %s, a foreign host does not chase us away", addr, got)
			}
			if got := reports(); len(got) != 1 || got[0].MAC != client || got[0].Before || got[0].Over || got[0].Since.IsZero() {
				t.Errorf("%s: reported %+v", addr, got)
			}
			time.Sleep(time.Minute)
			if got := reports(); len(got) != 2 || !got[1].Over || len(s.address(addr.String()).Conflicts) != 0 {
				t.Errorf("%s: reported %+v after the foreign host went", addr, got)
			}
		})
	}
}

// reporting starts a station and returns what it reported of conflicts up to now.
func (a *air) reporting(t *testing.T) (func() []Conflict, *station) {
	var mu sync.Mutex
	var reports []Conflict
	s := a.station(t, 1, Config{Refresh: -1, OnConflict: func(c Conflict) {
		mu.Lock()
		defer mu.Unlock()
		reports = append(reports, c)
	}})
	return func() []Conflict {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(reports)
	}, s
}

// Invented claimants cost a bounded amount.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		reports, s := a.reporting(t)
		s.set(Address{Addr: vip4})
		for i := range 10_000 {
			f, err := announcement(vip4, MAC{0x02, 1, 2, 3, byte(i >> 8), byte(i)})
			if err != nil {
				t.Fatal(err)
			}
			a.transmit(f[0])
		}
		if got := s.state(vip4); got != "Answering eth0" || len(reports()) > maxForeign || len(s.address(vip4.String()).Conflicts) > maxForeign {
			t.Errorf("%s, %d conflicts reported", got, len(reports()))
		}
	})
}

// However many claimants are invented, a member is still heard, and watched.
func TestFloodHidesNoMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		two := a.station(t, 2, Config{Judge: order(2)})
		two.set(Address{Addr: vip4})
		for i := range 100 {
			f, err := announcement(vip4, MAC{0x02, 1, 2, 3, 1, byte(i)})
			if err != nil {
				t.Fatal(err)
			}
			a.transmit(f[0])
		}
		one := a.station(t, 1, Config{Judge: order(1)})
		one.set(Address{Addr: vip4})
		if got := two.address(vip4.String()); got.State != Standby || got.Holder != mac(1) {
			t.Errorf("after a better member's claim: %s, holder %s", got.State, got.Holder)
		}
	})
}

// A host that turns out to be a member is no conflict any more, once Judge is asked again.
func TestRejudge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		var known atomic.Bool
		s := a.station(t, 2, Config{Refresh: -1, Judge: func(Claim) Verdict {
			if known.Load() {
				return Defend
			}
			return Foreign
		}})
		s.set(Address{Addr: vip4})
		f, err := announcement(vip4, mac(1))
		if err != nil {
			t.Fatal(err)
		}
		a.transmit(f[0])
		synctest.Wait()
		if got := s.address(vip4.String()).Conflicts; len(got) != 1 || got[0].MAC != mac(1) {
			t.Fatalf("conflicts with a host that nobody knows: %v", got)
		}
		known.Store(true)
		s.Rejudge()
		synctest.Wait()
		if got := s.address(vip4.String()).Conflicts; len(got) != 0 {
			t.Errorf("it is known for a member, and conflicts are %v", got)
		}
	})
}

// A member that is there and does not answer for one of its addresses keeps the others.
func TestOneAddressUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		one, two := a.station(t, 1, Config{Judge: order(1)}), a.station(t, 2, Config{Judge: order(2)})
		var own, standby []Address
		for i := range 20 {
			addr := netip.AddrFrom4([4]byte{198, 18, 0, byte(i)})
			own, standby = append(own, Address{Addr: addr}), append(standby, Address{Addr: addr, Rank: 1})
		}
		one.set(own...)
		two.set(standby...)
		time.Sleep(10 * time.Second)
		one.set(own[1:]...)
		time.Sleep(4 * time.Second)
		for i, w := range own {
			want := "Standby"
			if i == 0 {
				want = "Answering eth0"
			}
			if got := two.state(w.Addr); got != want {
				t.Errorf("%s: %s, want %s", w.Addr, got, want)
			}
		}
	})
}

// A backup leaves an address to a foreign host that answers for it, and to one that said so once for moments only.
func TestBackupAndForeignHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		s := a.station(t, 2, Config{Judge: order(2)})
		s.set(Address{Addr: vip4, Rank: 1})
		claim, err := announcement(vip4, client)
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			a.transmit(claim[0])
			time.Sleep(100 * time.Millisecond)
		}
		if got := s.state(vip4); got != "Standby" {
			t.Errorf("while it answers: %s", got)
		}
		time.Sleep(8 * time.Second)
		if got := s.state(vip4); got != "Answering eth0" {
			t.Errorf("after it went: %s", got)
		}
	})
}

// Of several backups the first takes over, and the next one when the first is gone as well, or never knew.
func TestBackupsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		var s [5]*station
		for n := 1; n < 5; n++ {
			s[n] = a.station(t, n, Config{Judge: order(n)})
			s[n].set(Address{Addr: vip4, Rank: n - 1})
		}
		time.Sleep(time.Minute)
		s[1].stop()
		time.Sleep(210 * time.Millisecond)
		if got := a.ask(vip4); !slices.Equal(got, []MAC{mac(2)}) {
			t.Errorf("answered by %v when the owner is dead", got)
		}
		time.Sleep(time.Minute)
		s[3].set() // it does not know of the address
		s[2].stop()
		time.Sleep(3 * time.Second)
		if got := a.ask(vip4); !slices.Equal(got, []MAC{mac(4)}) {
			t.Errorf("answered by %v when the first backup is dead and the second one knows of nothing", got)
		}
	})
}

// Who may keep an address keeps it while it answers. When both do, rank decides.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		leave := func(c Claim) Verdict {
			if v := order(1)(c); v != Defend {
				return v
			}
			return Leave
		}
		two := a.station(t, 2, Config{Judge: order(2)})
		two.set(Address{Addr: vip4})
		time.Sleep(time.Minute)
		one := a.station(t, 1, Config{Judge: leave})
		one.set(Address{Addr: vip4, Probe: Probe{Count: 3, Interval: 30 * time.Millisecond}, Used: true})
		time.Sleep(time.Minute)
		one.set(Address{Addr: vip4})
		if got := a.ask(vip4); !slices.Equal(got, []MAC{mac(2)}) {
			t.Errorf("answered by %v after a better one came", got)
		}
		a.part(func(x, y MAC) bool { return x[5]%2 != y[5]%2 && x != client && y != client })
		time.Sleep(10 * time.Second)
		a.part(nil)
		time.Sleep(5 * time.Second)
		if got := a.ask(vip4); !slices.Equal(got, []MAC{mac(1)}) {
			t.Errorf("answered by %v after both did", got)
		}
	})
}

// An owner that is no more chosen and the one that is do not part with the address at the same moment, whoever hears of it
// first.
func TestMoveWithoutGap(t *testing.T) {
	for _, addr := range bothFamilies {
		for _, first := range []int{1, 2} {
			synctest.Test(t, func(t *testing.T) {
				a := newAir()
				var moved [3]atomic.Bool // as each of the two believes
				s := map[int]*station{}
				for n := 1; n <= 2; n++ {
					s[n] = a.station(t, n, Config{Judge: func(c Claim) Verdict {
						switch v := order(n)(c); {
						case v == Yield && moved[n].Load():
							return Defend
						case v == Defend && moved[n].Load():
							return Yield
						default:
							return v
						}
					}})
					s[n].set(Address{Addr: addr, Rank: n - 1})
				}
				time.Sleep(time.Minute)
				moved[first].Store(true)
				s[first].set(Address{Addr: addr, Rank: 2 - first})
				answered := func(what string) {
					t.Helper()
					if got := a.ask(addr); len(got) == 0 {
						t.Errorf("%s, %d first: nobody answers %s", addr, first, what)
					}
				}
				answered("when the first one knows")
				time.Sleep(20 * time.Millisecond)
				moved[3-first].Store(true)
				s[3-first].set(Address{Addr: addr, Rank: first - 1})
				for range 100 {
					answered("while it moves")
					time.Sleep(10 * time.Millisecond)
				}
				if got := a.ask(addr); !slices.Equal(got, []MAC{mac(2)}) {
					t.Errorf("%s, %d first: answered by %v in the end", addr, first, got)
				}
			})
		}
	}
}

// A change costs what it names, and says what Set would.
func TestChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		s := a.station(t, 1, Config{})
		s.set(Address{Addr: vip4}, Address{Addr: vip6})
		s.Change([]Address{{Addr: vip4.Next()}, {Addr: vip6, Interfaces: []string{"none"}}}, vip4)
		if got := a.ask(vip4); got != nil {
			t.Errorf("answered by %v after it went", got)
		}
		for addr, want := range map[netip.Addr]string{vip4.Next(): "Answering eth0", vip6: "Answering"} {
			if got := s.state(addr); got != want {
				t.Errorf("%s: %s, want %s", addr, got, want)
			}
		}
		if n := len(s.Status().Addresses); n != 2 {
			t.Errorf("%d addresses", n)
		}
	})
}

// Two speakers that both believe an address to be theirs: the better one keeps it.
func TestFencing(t *testing.T) {
	for _, addr := range bothFamilies {
		for _, first := range []int{1, 2} {
			synctest.Test(t, func(t *testing.T) {
				a := newAir()
				stations := map[int]*station{1: a.station(t, 1, Config{Judge: order(1)}), 2: a.station(t, 2, Config{Judge: order(2)})}
				stations[first].set(Address{Addr: addr})
				time.Sleep(time.Minute)
				stations[3-first].set(Address{Addr: addr})
				if got := a.ask(addr); !slices.Equal(got, []MAC{mac(1)}) {
					t.Errorf("%s, %d first: answered by %v", addr, first, got)
				}
				holder := stations[2].address(addr.String())
				if holder.State != Standby || holder.Holder != mac(1) {
					t.Errorf("%s, %d first: the worse one is %+v", addr, first, holder)
				}
				time.Sleep(5 * time.Minute)
				if got := a.ask(addr); !slices.Equal(got, []MAC{mac(1)}) {
					t.Errorf("%s, %d first: answered by %v 5 minutes later", addr, first, got)
				}
				if n := stations[1].address(addr.String()).Claims; n > 4 {
					t.Errorf("%s, %d first: the better one heard %d claims", addr, first, n)
				}

				stations[1].stop()
				died := time.Now()
				for stations[2].address(addr.String()).State != Answering && time.Since(died) < time.Second {
					time.Sleep(time.Millisecond)
				}
				if gap := time.Since(died); gap > 212*time.Millisecond {
					t.Errorf("%s, %d first: taken over after %v", addr, first, gap)
				}
				if got := a.ask(addr); !slices.Equal(got, []MAC{mac(2)}) {
					t.Errorf("%s, %d first: answered by %v", addr, first, got)
				}
			})
		}
	}
}

// Both sides of a partition answer; when it heals the worse one stops within moments, and the neighbours hear of it.
func TestFencingAfterPartition(t *testing.T) {
	for _, lasting := range []time.Duration{time.Second, 20 * time.Second, 10 * time.Minute} {
		for _, addr := range bothFamilies {
			synctest.Test(t, func(t *testing.T) {
				a := newAir()
				one, two := a.station(t, 1, Config{Judge: order(1)}), a.station(t, 2, Config{Judge: order(2)})
				one.set(Address{Addr: addr})
				two.set(Address{Addr: addr, Rank: 1})
				time.Sleep(time.Second)
				a.part(func(x, y MAC) bool { return x[5]%2 != y[5]%2 && x != client && y != client })
				time.Sleep(lasting)
				if got := a.ask(addr); len(got) != 2 {
					t.Fatalf("%s apart for %s: answered by %v", addr, lasting, got)
				}
				two.set(Address{Addr: addr}) // what the gossip says on this side
				a.part(nil)
				a.take()
				limit := max(210*time.Millisecond, lasting/90)
				for since := time.Now(); two.address(addr.String()).State == Answering && time.Since(since) <= limit; {
					time.Sleep(time.Millisecond)
				}
				announcements := 0
				for _, f := range a.take() {
					if to := MAC(f.frame[:6]); f.claim == addr && f.claimMAC == mac(1) && !to.station() {
						announcements++
					}
				}
				if got := a.ask(addr); !slices.Equal(got, []MAC{mac(1)}) || announcements == 0 {
					t.Errorf("%s apart for %s: answered by %v, %d announcements", addr, lasting, got, announcements)
				}
			})
		}
	}
}

// Both sides of a network that fell apart have owners that never heard each other. When it is whole again, and nobody says
// so, the worse ones find out, and the better ones tell everybody.
func TestSeek(t *testing.T) {
	for _, tt := range []struct {
		addrs  int
		apart  time.Duration
		within time.Duration
	}{
		{1, time.Second, 200 * time.Millisecond},
		{1, 10 * time.Second, 200 * time.Millisecond},
		{1, time.Hour, 10 * time.Second},
		{100, time.Hour, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			one, two := a.station(t, 1, Config{Judge: order(1), Refresh: -1}), a.station(t, 2, Config{Judge: order(2), Refresh: -1})
			a.part(func(x, y MAC) bool { return x[5]%2 != y[5]%2 })
			var own, sought []Address
			for i := range tt.addrs {
				for _, addr := range []netip.Addr{netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}), netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(i)})} {
					own, sought = append(own, Address{Addr: addr}), append(sought, Address{Addr: addr, Seek: true})
				}
			}
			one.set(own...)
			two.set(sought...)
			time.Sleep(max(tt.apart-10*time.Second, 0))
			a.take()
			time.Sleep(min(tt.apart, 10*time.Second))
			if n := len(a.take()); tt.apart > time.Minute && n > 51 {
				t.Errorf("%+v: %d frames in 10 s", tt, n)
			}
			a.part(nil)
			time.Sleep(tt.within)
			told := map[netip.Addr]bool{}
			for _, f := range a.take() {
				told[f.claim] = told[f.claim] || f.claimMAC == mac(1) && !MAC(f.frame[:6]).station()
			}
			for _, w := range own {
				if got := two.state(w.Addr); got != "Standby" || one.state(w.Addr) != "Answering eth0" || !told[w.Addr] {
					t.Fatalf("%+v: %s: the worse one is %s, and that the better one has it was told: %v", tt, w.Addr, got, told[w.Addr])
				}
			}
			time.Sleep(10 * time.Second)
			a.take()
			time.Sleep(100 * time.Millisecond)
			for _, f := range a.take() {
				if f.ask && !MAC(f.frame[:6]).station() {
					t.Fatalf("%+v: afterwards, too, everybody is asked: %x", tt, f.frame)
				}
			}
			one.stop()
			two.stop()
		})
	}
}

// However much is announced again, it is spread over time.
func TestAnnounceAgainIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		s := a.station(t, 1, Config{Refresh: -1})
		var own []Address
		for i := range 600 {
			own = append(own, Address{Addr: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})})
		}
		s.set(own...)
		time.Sleep(time.Minute)
		a.take()
		s.Announce()
		time.Sleep(100 * time.Millisecond)
		if n := len(a.take()); n > 2*60 {
			t.Errorf("%d frames in 100 ms", n)
		}
		time.Sleep(time.Second)
		again := 0
		for _, f := range a.take() {
			if f.claim.IsValid() {
				again++
			}
		}
		if again < 2*500 {
			t.Errorf("%d frames in the second after that", again)
		}
	})
}

// A caller that knows the network to have changed has everything announced again, once.
func TestAnnounceAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		s := a.station(t, 2, Config{Judge: order(2), Refresh: -1})
		standby := vip4.Next()
		a.station(t, 1, Config{Judge: order(1), Refresh: -1}).set(Address{Addr: standby})
		s.set(Address{Addr: vip4}, Address{Addr: vip6}, Address{Addr: standby, Rank: 1})
		time.Sleep(time.Minute)
		a.take()
		s.Announce()
		time.Sleep(time.Minute)
		sent := a.take()
		for addr, want := range map[netip.Addr]int{vip4: 1, vip6: 1, standby: 0} {
			if got := announced(sent, addr); len(got) != want {
				t.Errorf("%s is announced at %v, want %d times", addr, got, want)
			}
		}
	})
}

func TestStandby(t *testing.T) {
	for _, addr := range bothFamilies {
		synctest.Test(t, func(t *testing.T) {
			a := newAir()
			two := a.station(t, 2, Config{Judge: order(2)})
			two.set(Address{Addr: addr, Rank: 1})
			time.Sleep(2900 * time.Millisecond)
			if got := a.ask(addr); got != nil {
				t.Errorf("%s: standby answers at once for an address that nobody held", addr)
			}
			time.Sleep(time.Second)
			if got := a.ask(addr); !slices.Equal(got, []MAC{mac(2)}) {
				t.Errorf("%s: nobody is to own it that can, and it is answered by %v", addr, got)
			}
			one := a.station(t, 1, Config{Judge: order(1)})
			one.set(Address{Addr: addr})
			time.Sleep(time.Minute)
			if got, holder := a.ask(addr), two.address(addr.String()).Holder; !slices.Equal(got, []MAC{mac(1)}) || holder != mac(1) {
				t.Errorf("%s: answered by %v, holder %s", addr, got, holder)
			}
			// A standby that starts later finds out by itself whom to watch.
			three := a.station(t, 3, Config{Judge: order(3)})
			three.set(Address{Addr: addr, Rank: 1})
			if holder := three.address(addr.String()).Holder; holder != mac(1) {
				t.Errorf("%s: the late standby watches %s", addr, holder)
			}
			three.stop()

			one.stop()
			time.Sleep(210 * time.Millisecond)
			if got := a.ask(addr); !slices.Equal(got, []MAC{mac(2)}) {
				t.Errorf("%s: answered by %v after the holder died", addr, got)
			}
			two.set(Address{Addr: addr, Rank: 1})
			if got := a.ask(addr); len(got) != 1 {
				t.Errorf("%s: what was taken over is given up on the same order", addr)
			}
			two.set(Address{Addr: addr})
			two.set(Address{Addr: addr, Rank: 1})
			if got := a.ask(addr); len(got) != 1 {
				t.Errorf("%s: answered by %v while the one that was chosen instead has not been heard", addr, got)
			}
			two.set(Address{Addr: addr})
			if got := a.ask(addr); !slices.Equal(got, []MAC{mac(2)}) {
				t.Errorf("%s: answered by %v after it was chosen", addr, got)
			}
		})
	}
}

// A holder's death is noticed for all its addresses together, though only one question at a time is asked.
func TestStandbyForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		one, two := a.station(t, 1, Config{Judge: order(1)}), a.station(t, 2, Config{Judge: order(2)})
		var own, standby []Address
		for i := range 1000 {
			addr := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
			own, standby = append(own, Address{Addr: addr}), append(standby, Address{Addr: addr, Rank: 1})
		}
		one.set(own...)
		two.set(standby...)
		time.Sleep(10 * time.Second)
		a.take()
		time.Sleep(10 * time.Second)
		polls := 0
		for _, f := range a.take() {
			if f.probe() {
				polls++
			}
		}
		if polls < 120 || polls > 160 {
			t.Errorf("%d questions in 10 s, want one to the node every 75 ms, whatever it has", polls)
		}
		one.stop()
		time.Sleep(210 * time.Millisecond)
		for _, s := range two.Status().Addresses {
			if s.State != Answering {
				t.Fatalf("%s is %s", s.Addr, s.State)
			}
		}
	})
}

// A speaker that gave addresses to another one is not waited for when that one dies soon after, though it is asked rarely.
func TestStandbyAfterHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		one, two, three := a.station(t, 1, Config{Judge: order(1)}), a.station(t, 2, Config{Judge: order(2)}), a.station(t, 3, Config{Judge: order(3)})
		var own, standby []Address
		for i := range 1000 {
			addr := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
			own, standby = append(own, Address{Addr: addr}), append(standby, Address{Addr: addr, Rank: 1})
		}
		two.set(own...)
		three.set(standby...)
		time.Sleep(10 * time.Second)
		const moved = 20
		one.set(own[:moved]...)
		time.Sleep(100 * time.Millisecond)
		two.set(own[moved:]...)
		time.Sleep(2 * time.Second)
		one.stop()
		time.Sleep(210 * time.Millisecond)
		for _, x := range own[:moved] {
			if got := three.state(x.Addr); got != "Answering eth0" {
				t.Errorf("%s: %s", x.Addr, got)
			}
		}
	})
}

// The caller's mind may change: what was yielded is taken back when the other does not rank better any more.
func TestReconsider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		var verdict atomic.Int64
		say := func(v Verdict) { verdict.Store(int64(v)) }
		say(Yield)
		s := a.station(t, 2, Config{Judge: func(Claim) Verdict { return Verdict(verdict.Load()) }})
		s.set(Address{Addr: vip4})
		claim, err := announcement(vip4, mac(1))
		if err != nil {
			t.Fatal(err)
		}
		a.transmit(claim[0])
		if got := s.state(vip4); got != "Standby" {
			t.Fatalf("%s", got)
		}
		s.set(Address{Addr: vip4})
		if got := s.state(vip4); got != "Standby" {
			t.Errorf("same verdict, same set: %s", got)
		}
		for _, next := range []Verdict{Defend, Foreign, Ignore} {
			say(next)
			s.set(Address{Addr: vip4})
			if got := s.state(vip4); got != "Answering eth0" {
				t.Errorf("verdict %d: %s", next, got)
			}
			if c := s.address(vip4.String()).Conflicts; len(c) > 0 {
				t.Errorf("verdict %d: a member that went is taken for a foreign host: %+v", next, c)
			}
			say(Yield)
			time.Sleep(10 * time.Millisecond)
			a.transmit(claim[0])
			if got := s.state(vip4); got != "Standby" {
				t.Fatalf("%s", got)
			}
		}
	})
}

// Speakers that start together hear each other's probes before they know each other. Once the other one is known for a
// member, that was no conflict, and the address is probed for anew.
func TestMemberWasTakenForForeign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		var verdict atomic.Int64
		verdict.Store(int64(Foreign))
		s := a.station(t, 2, Config{Judge: func(Claim) Verdict { return Verdict(verdict.Load()) }})
		s.set(Address{Addr: vip4, Probe: DefaultProbe()})
		f, err := probe(vip4, mac(1))
		if err != nil {
			t.Fatal(err)
		}
		a.transmit(f)
		if got := s.state(vip4); got != "Contested" {
			t.Fatalf("while the other one is not known: %s", got)
		}
		verdict.Store(int64(Defend))
		s.set(Address{Addr: vip4, Probe: DefaultProbe()})
		if got := s.state(vip4); got != "Probing" {
			t.Errorf("when it is known: %s", got)
		}
		time.Sleep(time.Second)
		if got := s.state(vip4); got != "Answering eth0" {
			t.Errorf("after the probes: %s", got)
		}
		s.stop()
	})
}

// Make before break: the old holder goes on until it hears the new one, and not longer.
func TestHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAir()
		var draining atomic.Bool
		one := a.station(t, 1, Config{Judge: func(c Claim) Verdict {
			if draining.Load() {
				return Yield
			}
			return Defend
		}})
		two := a.station(t, 2, Config{Judge: func(c Claim) Verdict {
			if draining.Load() {
				return Defend
			}
			return Yield
		}})
		one.set(Address{Addr: vip4})
		two.set(Address{Addr: vip4, Rank: 1})
		time.Sleep(time.Minute)
		draining.Store(true)
		one.set(Address{Addr: vip4})
		if got := a.ask(vip4); !slices.Equal(got, []MAC{mac(1)}) {
			t.Errorf("before the new one announces: answered by %v", got)
		}
		two.set(Address{Addr: vip4})
		if got := a.ask(vip4); !slices.Equal(got, []MAC{mac(2)}) {
			t.Errorf("after: answered by %v", got)
		}
		if got := one.address(vip4.String()); got.State != Standby || got.Holder != mac(2) {
			t.Errorf("the old one: %+v", got)
		}
	})
}

// Whatever happened, in the end exactly what is wanted is answered on exactly the links that can.
func TestRandomWalk(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			a := newAir()
			s := a.station(t, 1, Config{})
			links := map[int]netlink.Link{2: device("eth0", 2, mac(1), true)}
			var want []Address
			for step := range 200 {
				switch index := 2 + random.IntN(3); random.IntN(4) {
				case 0:
					want = nil
					for i := range random.IntN(6) {
						addr := vip4
						if random.IntN(2) == 0 {
							addr = vip6
						}
						for range i {
							addr = addr.Next()
						}
						w := Address{Addr: addr}
						if random.IntN(3) == 0 {
							w.Interfaces = []string{fmt.Sprintf("eth%d", random.IntN(3))}
						}
						if !slices.ContainsFunc(want, func(o Address) bool { return o.Addr == addr }) {
							want = append(want, w)
						}
					}
					s.Set(want)
				case 1:
					if l, ok := links[index]; ok {
						s.events.links <- linkUpdate(17, l)
						delete(links, index)
					}
				default:
					links[index] = device(fmt.Sprintf("eth%d", index-2), index, mac(1+random.IntN(9)), random.IntN(4) > 0)
					s.events.links <- linkUpdate(16, links[index])
				}
				if random.IntN(3) > 0 {
					continue
				}
				synctest.Wait()
				if random.IntN(2) == 0 {
					time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
				}
				a.take()
				for _, w := range want {
					var macs []MAC
					for _, l := range links {
						if (len(w.Interfaces) == 0 || w.Interfaces[0] == l.Attrs().Name) && l.Attrs().RawFlags&64 != 0 {
							macs = append(macs, MAC(l.Attrs().HardwareAddr))
						}
					}
					interfaces := s.address(w.Addr.String()).Interfaces
					if len(interfaces) != len(macs) {
						t.Fatalf("seed %d, step %d: %s answered on %v, want %d links", seed, step, w.Addr, interfaces, len(macs))
					}
				}
				if got := len(s.Status().Addresses); got != len(want) {
					t.Fatalf("seed %d, step %d: %d addresses, want %d", seed, step, got, len(want))
				}
			}
			s.stop()
			if len(a.wires) > 0 {
				t.Errorf("seed %d: %d wires left open", seed, len(a.wires))
			}
		})
	}
}
