package announce

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
)

// lan is a cluster whose addresses are all announced on the local network.
type lan struct {
	*View
	claims map[netip.Addr][]Claim
	made   int
}

func newLAN(nodes, addrs int) *lan {
	c := &lan{bigView(nodes), map[netip.Addr][]Claim{}, 0}
	for range addrs {
		c.add()
	}
	return c
}

// add makes a Service, a second younger than the one before, and returns its address.
func (c *lan) add() netip.Addr {
	c.made++
	// The youngest Services do not have the highest addresses.
	a := netip.AddrFrom4([4]byte{198, 18, byte(c.made * 167), byte(c.made >> 8)})
	c.claims[a] = []Claim{{&Service{
		Namespace: "default", Name: fmt.Sprint("web", c.made), Created: time.Unix(int64(c.made), 0),
		Endpoints4: Endpoints{Ready: map[string]int{"node0": 1}},
	}, v1beta1.AddressLoadBalancerIP}}
	return a
}

func (c *lan) owners() map[netip.Addr]string {
	p := c.PlanLayer2(c.claims)
	out := map[netip.Addr]string{}
	for a := range c.claims {
		out[a], _ = p.Owner(a)
	}
	return out
}

// moved are the addresses that are in both and have another owner in one of them.
func moved(before, after map[netip.Addr]string) (out []netip.Addr) {
	for a, owner := range before {
		if now, ok := after[a]; ok && now != owner {
			out = append(out, a)
		}
	}
	return out
}

func held(owners map[netip.Addr]string) map[string]int {
	out := map[string]int{}
	for _, n := range owners {
		out[n]++
	}
	return out
}

// What the plan promises, over 100 random clusters: nobody holds more than 1.25 times the mean, rounded up; a speaker that
// dies moves only its own addresses and takes only these back; and a new Service moves nothing.
func TestPlan(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var most float64 // times the mean, where that is 4 or more
	var worst float64
	var deleted, removed, left, guests, total int
	for range 100 {
		nodes, addrs := 3+r.IntN(48), 10+r.IntN(1991)
		c := newLAN(nodes, addrs)
		total += addrs
		check := func(what string) map[netip.Addr]string {
			t.Helper()
			alive := 0
			for _, n := range c.Nodes {
				if n.Alive {
					alive++
				}
			}
			owners := c.owners()
			mean := float64(len(owners)) / float64(alive)
			for n, h := range held(owners) {
				if n == "" || !c.Nodes[n].Alive {
					t.Fatalf("%d nodes, %d addresses, %s: %q owns %d", nodes, addrs, what, n, h)
				}
				if float64(h) > math.Ceil(1.25*mean) {
					t.Fatalf("%d nodes, %d addresses, %s: %s owns %d, the mean is %.2f", nodes, addrs, what, n, h, mean)
				}
				if mean >= 4 {
					most = max(most, float64(h)/mean)
				}
			}
			return owners
		}
		start := check("at first")

		added := c.add()
		if m := moved(start, check("with a new Service")); len(m) > 0 {
			t.Fatalf("%d nodes, %d addresses: a new Service moved %v", nodes, addrs, m)
		}
		delete(c.claims, added)

		x := c.Nodes[fmt.Sprint("node", 1+r.IntN(nodes-1))]
		x.Alive = false
		without := check("with a node dead")
		for _, a := range moved(start, without) {
			if start[a] != x.Name {
				t.Fatalf("%d nodes, %d addresses: %s moved from %s to %s when %s died", nodes, addrs, a, start[a], without[a], x.Name)
			}
		}
		added = c.add()
		m := moved(without, check("with a node dead and a new Service"))
		if guests += len(m); len(m) > 1 || len(m) == 1 && start[m[0]] != x.Name {
			t.Fatalf("%d nodes, %d addresses: a new Service moved %v while %s was dead", nodes, addrs, m, x.Name)
		}
		delete(c.claims, added)

		y := c.Nodes["node0"] // a second one; guests may move beside what it owned, nobody else
		y.Alive = false
		both := check("with two nodes dead")
		for _, a := range moved(without, both) {
			if start[a] != x.Name && start[a] != y.Name {
				t.Fatalf("%d nodes, %d addresses: %s moved from %s to %s when %s died", nodes, addrs, a, without[a], both[a], y.Name)
			}
		}
		y.Alive, x.Alive = true, true
		if m := moved(start, check("with all back")); len(m) > 0 {
			t.Fatalf("%d nodes, %d addresses: all are back, but %v are elsewhere", nodes, addrs, m)
		}

		all := slices.SortedFunc(maps.Keys(c.claims), netip.Addr.Compare)
		gone := all[r.IntN(len(all))]
		claims := c.claims[gone]
		delete(c.claims, gone)
		deleted += len(moved(start, check("with a Service deleted")))
		c.claims[gone] = claims

		delete(c.Nodes, x.Name)
		others := len(moved(without, check("with a node removed")))
		removed += others
		left += held(start)[x.Name]
		worst = max(worst, float64(others)/float64(addrs))
	}
	t.Logf("the most that a node held: %.2f times the mean", most)
	t.Logf("guests moved by 100 new Services while a node was dead: %d", guests)
	t.Logf("others moved by 100 deleted Services: %d, of %d addresses", deleted, total)
	t.Logf("moved by the removal of 100 dead nodes that had owned %d addresses: %d, at most %.0f %% of all", left, removed, 100*worst)
	if deleted > 600 || removed > left {
		t.Error("a deleted Service should move few other addresses, and the removal of a dead node fewer than its death")
	}
}

// A Service that loses its endpoints loses its owner, has the same again when they are back, and meanwhile no other
// address has moved, whatever else was down.
func TestPlanKeepsThePlaceOfIdleServices(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 50 {
		c := newLAN(3+r.IntN(20), 10+r.IntN(500))
		start := c.owners()
		var idle []netip.Addr
		for a, claims := range c.claims {
			if r.IntN(4) == 0 {
				idle = append(idle, a)
				claims[0].Service.Endpoints4 = Endpoints{}
			}
		}
		p := c.PlanLayer2(c.claims)
		for a := range c.claims {
			owner, _ := p.Owner(a)
			switch {
			case slices.Contains(idle, a):
				if d := p.Explain(a); owner != "" || d.Owner != "" || d.Why == "" {
					t.Fatalf("%s has no endpoint, and is owned by %q: %+v", a, owner, d)
				}
				for n := range c.Nodes {
					if len(p.Before(a, n)) > 0 || slices.Contains(p.StandbyFor(n), a) {
						t.Fatalf("%s has no endpoint, and %s has fellows before it or stands by for it", a, n)
					}
				}
			case owner != start[a]:
				t.Fatalf("%d of %d Services have no endpoint, and %s moved from %s to %s", len(idle), len(c.claims), a, start[a], owner)
			}
		}
		for _, a := range idle {
			c.claims[a][0].Service.Endpoints4 = Endpoints{Ready: map[string]int{"node0": 1}}
		}
		if m := moved(start, c.owners()); len(m) > 0 {
			t.Fatalf("the endpoints are back, and %v moved", m)
		}
	}
}

// messy is a cluster with everything that a plan depends on.
func messy(r *rand.Rand) *lan {
	c := newLAN(1+r.IntN(12), r.IntN(60))
	label := func(k, v string) labels.Selector { return labels.SelectorFromSet(labels.Set{k: v}) }
	c.Config.L2 = []config.L2Advertisement{
		{Name: "all", Pools: config.Names{Set: map[string]bool{"p": true}}, Interfaces: []string{"eth*"}, Prefer: []config.Preference{{Weight: 5, Nodes: label("fast", "y")}}},
		{Name: "rack", Pools: config.Names{Set: map[string]bool{"q": true}}, Nodes: config.Selectors{label("rack", "1")}, Prefer: []config.Preference{{Weight: 1, Nodes: label("fast", "y")}, {Weight: 1, Nodes: label("big", "y")}}},
		{Name: "web", Pools: config.Names{All: true}, Services: config.Selectors{label("web", "y")}, Interfaces: []string{"wlan0"}},
	}
	c.PoolOf = func(a netip.Addr) string { return []string{"p", "p", "q", "none"}[a.As4()[2]%4] }
	yes := func(n int) bool { return r.IntN(n) == 0 }
	for _, name := range sortedKeys(c.Nodes) {
		n := c.Nodes[name]
		n.Labels = labels.Set{"rack": fmt.Sprint(r.IntN(2)), "fast": []string{"y", "n"}[r.IntN(2)], "big": []string{"y", "n"}[r.IntN(2)]}
		if yes(10) {
			n.Excluded = "it is"
		}
	}
	shake(c, r)
	var others []Claim
	for _, a := range slices.SortedFunc(maps.Keys(c.claims), netip.Addr.Compare) {
		s := c.claims[a][0].Service
		s.LocalExternal = yes(3)
		s.Endpoints4.Ready = map[string]int{}
		for range r.IntN(5) {
			s.Endpoints4.Ready[fmt.Sprint("node", r.IntN(14))]++
		}
		if yes(5) {
			s.Labels = labels.Set{"web": "y"}
		}
		if yes(5) && len(others) > 0 { // shares the address of another
			c.claims[a] = append(c.claims[a], others[r.IntN(len(others))])
		}
		others = append(others, c.claims[a]...)
	}
	return c
}

// shake changes what the speakers say, and leaves what the API server says.
func shake(c *lan, r *rand.Rand) {
	yes := func(n int) bool { return r.IntN(n) == 0 }
	for _, name := range sortedKeys(c.Nodes) {
		n := *c.Nodes[name]
		n.Alive, n.Gate, n.Links = !yes(4), "", nil
		if yes(4) {
			n.Gate = "it should not"
		}
		if !yes(5) {
			n.Links = []Link{{Name: "eth0", Up: !yes(5)}, {Name: "wlan0", Up: true, Excluded: yes(2)}}[r.IntN(2):]
		}
		c.Nodes[name] = &n
	}
}

// In whatever cluster, the owner is one of the best candidates, there is one when there can be, and every speaker that
// knows the same finds the same.
func TestPlanAnyCluster(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for i := range 400 {
		c := messy(r)
		p := c.PlanLayer2(c.claims)

		// Another speaker has learnt the same in another order, and knows of addresses that have nothing to do with it.
		twin := *c.View
		twin.Nodes = map[string]*Node{}
		for _, j := range r.Perm(20) {
			if n := c.Nodes[fmt.Sprint("node", j)]; n != nil {
				twin.Nodes[n.Name] = n
			}
		}
		claims := map[netip.Addr][]Claim{netip.MustParseAddr("10.96.0.1"): {{someService, v1beta1.AddressClusterIP}}}
		keys := slices.Collect(maps.Keys(c.claims))
		for _, j := range r.Perm(len(keys)) {
			claims[keys[j]] = c.claims[keys[j]]
		}
		q := twin.PlanLayer2(claims)

		standby := map[netip.Addr]string{}
		for n := range c.Nodes {
			for _, a := range p.StandbyFor(n) {
				if other, twice := standby[a]; twice {
					t.Fatalf("cluster %d: %s and %s stand by for %s", i, other, n, a)
				}
				standby[a] = n
			}
		}
		total := 0
		for a := range c.claims {
			d := p.Explain(a)
			second := ""
			if len(d.Candidates) > 1 && d.Candidates[1].Why == "" {
				second = d.Candidates[1].Node
			}
			if standby[a] != second {
				t.Fatalf("cluster %d: %q stands by for %s, want the second best, %q", i, standby[a], a, second)
			}
			if other := q.Explain(a); !reflect.DeepEqual(d, other) {
				t.Fatalf("cluster %d, %s: one speaker decides\n%+v\nanother one\n%+v", i, a, d, other)
			}
			owner, interfaces := p.Owner(a)
			if owner != d.Owner || !slices.Equal(interfaces, d.Interfaces) || (owner == "") != (d.Why != "") {
				t.Fatalf("cluster %d, %s: the plan is %q on %v, and the reason %+v", i, a, owner, interfaces, d)
			}
			if owner == "" {
				if len(d.Candidates) > 0 && d.Candidates[0].Why == "" {
					t.Fatalf("cluster %d, %s: no owner, though %s could be", i, a, d.Candidates[0].Node)
				}
				continue
			}
			total++
			best := d.Candidates[0]
			for _, x := range d.Candidates {
				if best.Why != "" || rank(x) < rank(best) || rank(x) == rank(best) && x.Weight > best.Weight {
					t.Fatalf("cluster %d, %s: %+v owns it, and %+v is better", i, a, best, x)
				}
			}
		}
		for n := range c.Nodes {
			for _, a := range p.OwnedBy(n) {
				if owner, _ := p.Owner(a); owner != n {
					t.Fatalf("cluster %d: %s is said to be owned by %s and by %s", i, a, n, owner)
				}
				total--
			}
		}
		if total != 0 {
			t.Fatalf("cluster %d: %d owned addresses are owned by no node", i, total)
		}
	}
}

// Two speakers that do not know the same of their fellows agree on which of them has the better right: never do both
// yield or both defend.
func TestBefore(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for i := range 200 {
		c := messy(r)
		one := c.PlanLayer2(c.claims)
		shake(c, r)
		other := c.PlanLayer2(c.claims)
		for a, claims := range c.claims {
			for n := range c.Nodes {
				for m := range c.Nodes {
					mayN, mayM := c.right(n, a, claims), c.right(m, a, claims)
					first, second := one.Before(a, n)[m], other.Before(a, m)[n]
					switch {
					case n == m || !mayM:
						if first {
							t.Fatalf("cluster %d, %s: %s yields to %s", i, a, n, m)
						}
					case mayN && first == second:
						t.Fatalf("cluster %d, %s: %s yields to %s: %v; %s yields to %s: %v", i, a, n, m, first, m, n, second)
					}
				}
			}
		}
	}

	c := newLAN(5, 100)
	p := c.PlanLayer2(c.claims)
	for a := range c.claims {
		owner, _ := p.Owner(a)
		if b := p.Before(a, owner); len(b) > 0 {
			t.Fatalf("all are alive, and the owner of %s, %s, would yield to %v", a, owner, b)
		}
	}
}

// right says whether a node can serve an address, as far as the API server knows.
func (c *lan) right(node string, addr netip.Addr, claims []Claim) bool {
	n := c.Nodes[node]
	return n.cannot(addr, claims) == "" && slices.ContainsFunc(c.Config.L2, func(ad config.L2Advertisement) bool {
		return ad.Pools.Has(c.PoolOf(addr)) && ad.Nodes.Match(n.Labels) &&
			slices.ContainsFunc(claims, func(x Claim) bool { return ad.Services.Match(x.Service.Labels) })
	})
}

// Services that share an address have one owner, and the oldest of them says when its turn is.
func TestPlanSharedAddress(t *testing.T) {
	c := newLAN(4, 40)
	start := c.owners()
	for a, claims := range c.claims {
		younger := *claims[0].Service
		younger.Name, younger.Created = "younger", time.Unix(1e6, 0)
		c.claims[a] = []Claim{{&younger, v1beta1.AddressLoadBalancerIP}, claims[0]}
	}
	if m := moved(start, c.owners()); len(m) > 0 {
		t.Errorf("a second Service on the same address moved %v", m)
	}
}

func BenchmarkPlanLayer2(b *testing.B) {
	for _, bb := range []struct {
		what  string
		local bool
	}{{"Cluster", false}, {"Local", true}} {
		b.Run(bb.what, func(b *testing.B) {
			c := newLAN(50, 2000)
			i := 0
			for _, claims := range c.claims {
				s := claims[0].Service
				s.LocalExternal = bb.local
				s.Endpoints4.Ready = map[string]int{fmt.Sprint("node", i%50): 1, fmt.Sprint("node", i/50): 1, fmt.Sprint("node", i%49): 1}
				i++
			}
			b.ReportAllocs()
			for b.Loop() {
				c.PlanLayer2(c.claims)
			}
		})
	}
	b.Run("Explain", func(b *testing.B) {
		c := newLAN(50, 2000)
		p := c.PlanLayer2(c.claims)
		a := c.add()
		b.ReportAllocs()
		for b.Loop() {
			p.Explain(a)
		}
	})
	b.Run("Before", func(b *testing.B) {
		c := newLAN(50, 2000)
		c.Nodes["node0"].Alive = false
		p := c.PlanLayer2(c.claims)
		mine := p.OwnedBy("node1")
		b.ReportAllocs()
		for b.Loop() {
			for _, a := range mine {
				p.Before(a, "node1")
			}
		}
	})
}
