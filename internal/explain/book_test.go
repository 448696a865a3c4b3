package explain

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/digest"
)

// randomWorld has advertisements by both protocols, of which some select Services, pools and types by chance.
func randomWorld(r *rand.Rand, nodes, addrs int) (w *world, claims map[netip.Addr][]announce.Claim) {
	w = newWorld(nodes)
	all := config.Names{All: true}
	types := func() map[v1beta1.AddressType]bool {
		return map[v1beta1.AddressType]bool{v1beta1.AddressLoadBalancerIP: r.IntN(4) > 0, v1beta1.AddressExternalIP: r.IntN(2) > 0}
	}
	w.view.Config.BGP = nil
	for i := range r.IntN(3) {
		w.view.Config.BGP = append(w.view.Config.BGP, config.BGPAdvertisement{
			Name: fmt.Sprint("ad", i), Pools: all, Peers: all, Types: types(), Length4: 32 - r.IntN(2)*8, Length6: 128, Weighted: r.IntN(4) == 0,
		})
	}
	if r.IntN(2) == 0 {
		w.view.Config.L2 = []config.L2Advertisement{{Name: "lan", Pools: all}}
	}
	w.view.PoolOf = func(a netip.Addr) string {
		if a.As4()[3]%7 == 0 {
			return ""
		}
		return "lan"
	}
	claims = map[netip.Addr][]announce.Claim{}
	a := netip.MustParseAddr("203.0.113.0")
	for i := range addrs {
		claims[a] = nil
		for k := range 1 + r.IntN(2) {
			claims[a] = append(claims[a], randomClaim(r, fmt.Sprintf("s%d-%d", i, k), nodes))
		}
		a = a.Next()
	}
	return w, claims
}

func randomClaim(r *rand.Rand, name string, nodes int) announce.Claim {
	ready := map[string]int{}
	for range r.IntN(4) {
		ready[string(rune('a'+r.IntN(nodes)))]++
	}
	leaving := map[string]int{}
	for range r.IntN(2) {
		leaving[string(rune('a'+r.IntN(nodes)))]++
	}
	t := v1beta1.AddressLoadBalancerIP
	if r.IntN(4) == 0 {
		t = v1beta1.AddressExternalIP
	}
	return announce.Claim{Type: t, Service: &announce.Service{Namespace: "default", Name: name, LocalExternal: r.IntN(2) == 0, Endpoints4: announce.Endpoints{Ready: ready, Terminating: leaving}}}
}

// say is a speaker that does what it should, and says so.
func (w *world) say(claims map[netip.Addr][]announce.Claim) {
	of := map[string][]netip.Addr{}
	for a, on := range claims {
		if owner := w.view.Layer2(a, on).Owner; owner != "" {
			of[owner] = append(of[owner], a)
		}
	}
	for node, sp := range w.speakers {
		w.answers(node, of[node]...)
		sums := map[string]digest.Sum{}
		for a, on := range claims {
			peers := map[string]bool{}
			for _, e := range w.view.ForBGP(node, a, on).Exports {
				peers[e.Peer] = true
			}
			for peer := range peers {
				sums[peer] += digest.Address(a)
			}
		}
		for i := range sp.Status.Sessions {
			x := &sp.Status.Sessions[i]
			x.Digest = sums[x.Peer].String()
		}
	}
}

// What is said of an address that many changes have touched is what is said when all is read at once, and what is touched
// is all of which something else is said. Groups of addresses are only a way to work less.
func TestBookIsWhatItWouldBeAtOnce(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		w, claims := randomWorld(r, 2+r.IntN(5), 20)
		read := func() *Book {
			b := New()
			for name, sp := range w.speakers {
				b.Speaker(name, sp)
			}
			b.Use(w.view)
			for a, on := range claims {
				b.Set(a, on, w.view.Layer2(a, on))
			}
			b.Touched(now)
			return b
		}
		w.say(claims)
		b, said := read(), map[netip.Addr]Explanation{}
		for a := range claims {
			said[a] = b.Of(a, now)
		}
		addrs := slices.SortedFunc(func(yield func(netip.Addr) bool) {
			for a := range claims {
				if !yield(a) {
					return
				}
			}
		}, netip.Addr.Compare)
		for step := range 40 {
			node := string(rune('a' + r.IntN(len(w.view.Nodes))))
			switch r.IntN(4) {
			case 0:
				sp := w.speakers[node].DeepCopy()
				x := &sp.Status.Sessions[r.IntN(2)]
				if x.State = "Active"; r.IntN(2) == 0 {
					x.State = "Established"
				}
				w.speakers[node] = sp
				b.Speaker(node, sp)
			case 1:
				n := *w.view.Nodes[node]
				if n.Excluded = ""; r.IntN(2) == 0 {
					n.Excluded = "the node is not to"
				}
				w.view.SetNode(node, &n)
				b.Use(w.view)
				for a, on := range claims {
					b.Set(a, on, w.view.Layer2(a, on))
				}
			default:
				a := addrs[r.IntN(len(addrs))]
				claims[a] = []announce.Claim{randomClaim(r, fmt.Sprint("t", step), len(w.view.Nodes))}
				b.Set(a, claims[a], w.view.Layer2(a, claims[a]))
			}
			w.say(claims)
			for name, sp := range w.speakers {
				b.Speaker(name, sp.DeepCopy())
			}
			touched, _ := b.Touched(now)
			for in, x := range b.routed {
				if is := b.speakers[in.node].digests[in.peer]; x.sum != is {
					t.Fatalf("seed %d, step %d: %v should announce %s, and does %s", seed, step, in, x.sum, is)
				}
			}
			fresh := read()
			for _, a := range addrs {
				got, want := b.Of(a, now), fresh.Of(a, now)
				if got != want {
					t.Fatalf("seed %d, step %d: %s\ngot  %+v\nwant %+v", seed, step, a, got, want)
				}
				if got != said[a] && !slices.Contains(touched, a) {
					t.Fatalf("seed %d, step %d: %s is not touched, and is %+v after %+v", seed, step, a, got, said[a])
				}
				said[a] = got
				d := b.Detail(a, now)
				routed := slices.ContainsFunc(d.Routes, func(r Route) bool { return r.Problem == "" })
				if d.Announced != (routed || len(d.Answers) > 0) {
					t.Fatalf("seed %d, step %d: %s: %+v", seed, step, a, d)
				}
			}
		}
	}
}

// An address that comes makes the digest of its owner another one until the speaker has written: the others stay
// announced, for as long as a speaker may lag, and are not when the views differ for good.
func TestSpeakerThatLags(t *testing.T) {
	w := newWorld(3)
	w.local()
	claims := map[netip.Addr][]announce.Claim{addr: w.claims}
	w.say(claims)
	b := w.book()
	next := other // the next that b owns
	for w.view.Layer2(next, w.claims).Owner != "b" || next == addr {
		next = next.Next()
	}
	claims[next] = w.claims
	expect := func(what string, after time.Duration, a netip.Addr, reason string) {
		t.Helper()
		b.Touched(now.Add(after))
		if got := b.Of(a, now.Add(after)); got.Reason != reason {
			t.Errorf("%s: %s is %+v, want %s", what, a, got, reason)
		}
	}
	expect("at first", 0, addr, v1beta1.ReasonAnnounced)
	b.Set(next, w.claims, w.view.Layer2(next, w.claims))
	expect("another comes", 0, addr, v1beta1.ReasonAnnounced)
	expect("another comes", 0, next, v1beta1.ReasonPending)
	if _, again := b.Touched(now); !again.Equal(now.Add(Youth)) {
		t.Errorf("to be looked at again at %s", again)
	}
	expect("not for long", Youth-1, addr, v1beta1.ReasonAnnounced)
	expect("the views differ", Youth, addr, v1beta1.ReasonViewsDiffer)
	expect("the views differ", Youth, next, v1beta1.ReasonViewsDiffer)
	w.say(claims)
	b.Speaker("b", w.speakers["b"])
	expect("it is said", Youth, addr, v1beta1.ReasonAnnounced)
	expect("it is said", Youth, next, v1beta1.ReasonAnnounced)
}

// Nodes that come and go do not make up for a speaker that says something else than it should: its lag is over when it is
// over, and what is said then does not change with them.
func TestNodesComeWhileViewsDiffer(t *testing.T) {
	w := newWorld(3)
	w.local()
	claims := map[netip.Addr][]announce.Claim{addr: w.claims}
	b := w.book()
	for _, tt := range []struct {
		after  time.Duration
		reason string
	}{{0, v1beta1.ReasonPending}, {Youth / 2, v1beta1.ReasonPending}, {Youth, v1beta1.ReasonViewsDiffer}, {Youth + 1, v1beta1.ReasonViewsDiffer}, {2 * Youth, v1beta1.ReasonViewsDiffer}} {
		at := now.Add(tt.after)
		b.Use(w.view)
		b.Touched(at)
		if got := b.Of(addr, at); got.Reason != tt.reason {
			t.Errorf("after %v: %+v, want %s", tt.after, got, tt.reason)
		}
	}
	w.say(claims)
	b.Speaker("b", w.speakers["b"])
	b.Touched(now.Add(2 * Youth))
	if got := b.Of(addr, now.Add(2*Youth)); got.Reason != v1beta1.ReasonAnnounced {
		t.Errorf("it is said: %+v", got)
	}
}
