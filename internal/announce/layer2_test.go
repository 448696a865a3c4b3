package announce

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"testing"

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

// add makes a Service, and returns its address.
func (c *lan) add() netip.Addr {
	c.made++
	a := netip.AddrFrom4([4]byte{198, 18, byte(c.made >> 8), byte(c.made)})
	c.claims[a] = []Claim{{&Service{
		Namespace: "default", Name: fmt.Sprint("web", c.made), Endpoints4: Endpoints{Ready: map[string]int{"node0": 1}},
	}, v1beta1.AddressLoadBalancerIP}}
	return a
}

// owners are who owns what in the eyes of a speaker that has just started and knows the same.
func (c *lan) owners() map[netip.Addr]string {
	v := c.fresh()
	out := map[netip.Addr]string{}
	for a, on := range c.claims {
		out[a] = v.Layer2(a, on).Owner
	}
	return out
}

func (c *lan) fresh() *View {
	return &View{Config: c.Config, PoolOf: c.PoolOf, Nodes: maps.Clone(c.Nodes)}
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

// Over 100 random clusters: a Service that comes, goes, or loses its endpoints and has them again moves no other
// address; a node that dies, or whose object is deleted, moves what it owned and nothing else; one that comes takes what
// it is the first for and moves nothing else.
func TestNothingMovesThatNeedNot(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 100 {
		nodes, addrs := 3+r.IntN(48), 10+r.IntN(1991)
		c := newLAN(nodes, addrs)
		if i%2 == 1 {
			for _, on := range c.claims {
				on[0].Service.LocalExternal = r.IntN(2) == 0
				for range r.IntN(4) {
					on[0].Service.Endpoints4.Ready[fmt.Sprint("node", r.IntN(nodes))]++
				}
			}
		}
		start := c.owners()
		none := func(what string) {
			t.Helper()
			if m := moved(start, c.owners()); len(m) > 0 {
				t.Fatalf("%d nodes, %d addresses, %s: %d moved, such as %s", nodes, addrs, what, len(m), m[0])
			}
		}
		added := c.add()
		none("a Service came")
		delete(c.claims, added)
		all := slices.SortedFunc(maps.Keys(c.claims), netip.Addr.Compare)
		gone := all[r.IntN(len(all))]
		on := c.claims[gone]
		delete(c.claims, gone)
		none("a Service went")
		idle := *on[0].Service
		idle.Endpoints4 = Endpoints{}
		c.claims[gone] = []Claim{{&idle, v1beta1.AddressLoadBalancerIP}}
		if now := c.owners(); now[gone] != "" || len(moved(start, now)) != 1 {
			t.Fatalf("%d nodes, %d addresses, no endpoints: owned by %q, moved %v", nodes, addrs, now[gone], moved(start, now))
		}
		c.claims[gone] = on
		none("endpoints came back")

		x := c.Nodes[fmt.Sprint("node", r.IntN(nodes))]
		dead := *x
		dead.Alive = false
		for what, change := range map[string]func(){
			"dead":    func() { c.Nodes[x.Name] = &dead },
			"deleted": func() { delete(c.Nodes, x.Name) },
		} {
			change()
			now := c.owners()
			for _, a := range moved(start, now) {
				if start[a] != x.Name {
					t.Fatalf("%d nodes, %d addresses, %s %s: %s moved from %s to %s", nodes, addrs, x.Name, what, a, start[a], now[a])
				}
			}
			c.Nodes[x.Name] = x
			none(what + " and back")
		}

		late := fmt.Sprint("node", nodes)
		c.Nodes[late] = &Node{Name: late, Alive: true}
		now := c.owners()
		first := 0
		for a, on := range c.claims {
			if c.fresh().First(a, on) == late && start[a] != "" {
				first++
			}
			if now[a] != start[a] && now[a] != late {
				t.Fatalf("%d nodes, %d addresses, a node came: %s moved from %s to %s", nodes, addrs, a, start[a], now[a])
			}
		}
		if m := len(moved(start, now)); m != first {
			t.Fatalf("%d nodes, %d addresses, a node came: %d moved, it is the first for %d", nodes, addrs, m, first)
		}
		if i%2 == 0 {
			if mean := float64(addrs) / float64(nodes+1); float64(first) > 2*mean+10 {
				t.Errorf("%d nodes, %d addresses: the new node is the first for %d, the mean is %.1f", nodes, addrs, first, mean)
			}
		}
	}
}

// messy is a cluster with everything that a decision depends on.
func messy(r *rand.Rand) *lan {
	c := newLAN(1+r.IntN(12), r.IntN(60))
	label := func(k, v string) labels.Selector { return labels.SelectorFromSet(labels.Set{k: v}) }
	c.Config.L2 = []config.L2Advertisement{
		{Name: "all", Pools: config.Names{Set: map[string]bool{"p": true}}, Interfaces: []string{"eth*"}, Prefer: []config.Preference{{Weight: 5, Nodes: label("fast", "y")}}},
		{Name: "rack", Pools: config.Names{Set: map[string]bool{"q": true}}, Nodes: config.Selectors{label("rack", "1")}, Prefer: []config.Preference{{Weight: 1, Nodes: label("fast", "y")}, {Weight: 1, Nodes: label("big", "y")}}},
		{Name: "web", Pools: config.Names{All: true}, Services: config.Selectors{label("web", "y")}, Interfaces: []string{"wlan0"}, Keep: true},
	}
	c.PoolOf = func(a netip.Addr) string { return []string{"p", "p", "q", "none", ""}[int(a.As4()[3])%5] }
	yes := func(n int) bool { return r.IntN(n) == 0 }
	for _, name := range sortedKeys(c.Nodes) {
		c.Nodes[name] = relabel(c.Nodes[name], r)
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

// relabel is a node with other labels.
func relabel(n *Node, r *rand.Rand) *Node {
	m := *n
	m.Labels = labels.Set{"rack": fmt.Sprint(r.IntN(2)), "fast": []string{"y", "n"}[r.IntN(2)], "big": []string{"y", "n"}[r.IntN(2)]}
	if m.Excluded = ""; r.IntN(10) == 0 {
		m.Excluded = "it is"
	}
	return &m
}

// shaken is a node of which other speakers say something else.
func shaken(n *Node, r *rand.Rand) *Node {
	yes := func(n int) bool { return r.IntN(n) == 0 }
	m := *n
	m.Alive, m.SessionUp, m.Gate, m.Links = !yes(4), yes(2), "", nil
	if yes(4) {
		m.Gate = "it should not"
	}
	if !yes(5) {
		m.Links = []Link{{Name: "eth0", Up: !yes(5)}, {Name: "wlan0", Up: true, Excluded: yes(2)}}[r.IntN(2):]
	}
	return &m
}

// shake changes what the speakers say, and leaves what the API server says.
func shake(c *lan, r *rand.Rand) {
	for _, name := range sortedKeys(c.Nodes) {
		c.Nodes[name] = shaken(c.Nodes[name], r)
	}
}

// In whatever cluster the owner and the backup are the two best candidates, there is an owner when there can be, and every
// speaker that knows the same finds the same, in whatever order it has learnt it.
func TestOwnerAnyCluster(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for i := range 400 {
		c := messy(r)
		twin := &View{Config: c.Config, PoolOf: c.PoolOf, Nodes: map[string]*Node{}}
		twin.Layer2(netip.MustParseAddr("198.18.0.1"), nil) // it knew nothing at first
		for _, j := range r.Perm(20) {
			if n := c.Nodes[fmt.Sprint("node", j)]; n != nil {
				twin.SetNode(n.Name, shaken(relabel(n, r), r))
				twin.SetNode(n.Name, n)
			}
		}
		for a, on := range c.claims {
			d := c.ExplainLayer2(a, on)
			if other := twin.ExplainLayer2(a, on); !reflect.DeepEqual(plain(d), plain(other)) {
				t.Fatalf("cluster %d, %s: one speaker decides\n%+v\nanother one\n%+v", i, a, d, other)
			}
			if (d.Owner == "") != (d.Why != "") {
				t.Fatalf("cluster %d, %s: %+v", i, a, d)
			}
			if c.PoolOf(a) == "" && (d.Advertised || d.Why != NotInPool) {
				t.Fatalf("cluster %d, %s is in no pool: %+v", i, a, d)
			}
			owner, backup := "", ""
			for _, x := range d.Candidates {
				switch {
				case x.Why != "":
				case owner == "":
					owner = x.Node
				case backup == "":
					backup = x.Node
				}
			}
			if d.Owner != owner || d.Backup != backup {
				t.Fatalf("cluster %d, %s: %q and %q, want the best two of %+v", i, a, d.Owner, d.Backup, d.Candidates)
			}
			for j := 1; j < len(d.Candidates); j++ {
				x, y := d.Candidates[j-1], d.Candidates[j]
				if x.rank() > y.rank() || x.rank() == y.rank() && x.Weight < y.Weight {
					t.Fatalf("cluster %d, %s: %+v is before %+v", i, a, x, y)
				}
			}
			if d.Owner != "" && !slices.Equal(d.Interfaces, d.Candidates[0].Interfaces) {
				t.Fatalf("cluster %d, %s: on %v, want %v", i, a, d.Interfaces, d.Candidates[0].Interfaces)
			}
		}
	}
}

// plain leaves out what is remembered beside a decision.
func plain(d Layer2) Layer2 {
	d.places, d.claims = nil, nil
	return d
}

// A node that changes, comes or goes is denied to have changed a decision only where it has not, and where it need not be
// looked at it mostly is denied.
func TestMoves(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	asked, concerned := 0, 0
	for i := range 200 {
		c := messy(r)
		decided := map[netip.Addr]Layer2{}
		for a, on := range c.claims {
			decided[a] = c.Layer2(a, on)
		}
		for range 10 {
			x := fmt.Sprint("node", r.IntN(14))
			n := c.Nodes[x]
			switch {
			case n == nil:
				n = shaken(relabel(&Node{Name: x}, r), r)
			case r.IntN(4) == 0:
				n = nil
			default:
				n = shaken(relabel(n, r), r)
			}
			c.SetNode(x, n)
			for a, on := range c.claims {
				d := decided[a]
				now := c.Layer2(a, on)
				if !now.Equal(d) && !c.Moves(x, a, &d) {
					t.Fatalf("cluster %d: %s is denied to move %s, %+v became %+v", i, x, a, d, now)
				}
				decided[a] = now
			}
		}
		big := newLAN(50, 200)
		for a, on := range big.claims {
			d := big.Layer2(a, on)
			asked++
			big.SetNode("node7", shaken(big.Nodes["node7"], r))
			if big.Moves("node7", a, &d) {
				concerned++
			}
			big.SetNode("node7", &Node{Name: "node7", Alive: true})
		}
	}
	if share := float64(concerned) / float64(asked); share > 0.05 {
		t.Errorf("one node of 50 concerns %.0f %% of the addresses, want about 4", 100*share)
	}
}

// Two speakers that do not know the same of each other agree on which of them has the better right: never do both yield
// or both defend.
func TestBetter(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for i := range 200 {
		c := messy(r)
		one := c.fresh()
		shake(c, r)
		other := c.fresh()
		for a, claims := range c.claims {
			for n := range c.Nodes {
				for m := range c.Nodes {
					mayN, mayM := c.right(n, a, claims), c.right(m, a, claims)
					first, second := slices.Contains(one.Better(a, claims, n), m), slices.Contains(other.Better(a, claims, m), n)
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
	for a, on := range c.claims {
		owner := c.Layer2(a, on).Owner
		if b := c.Better(a, on, owner); len(b) > 0 || owner != c.First(a, on) {
			t.Fatalf("all are alive, and the owner of %s, %s, would yield to %v", a, owner, b)
		}
	}
}

// right says whether a node can serve an address, as far as the API server knows.
func (c *lan) right(node string, addr netip.Addr, claims []Claim) bool {
	n := c.Nodes[node]
	return n.cannot(addr, claims) == "" && slices.ContainsFunc(c.Config.L2, func(ad config.L2Advertisement) bool {
		return c.PoolOf(addr) != "" && ad.Pools.Has(c.PoolOf(addr)) && ad.Nodes.Match(n.Labels) &&
			slices.ContainsFunc(claims, func(x Claim) bool { return ad.Services.Match(x.Service.Labels) })
	})
}

// The first for an address is its owner when all is well, and stays the first whoever is alive; a Service that has no
// endpoints yet is one that every node could serve.
func TestFirst(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	for range 100 {
		c := messy(r)
		before := map[netip.Addr]string{}
		for a, on := range c.claims {
			before[a] = c.First(a, on)
		}
		shake(c, r)
		v := c.fresh()
		for a, on := range c.claims {
			if now := v.First(a, on); now != before[a] {
				t.Fatalf("%s: %q, and %q when others are alive", a, before[a], now)
			}
		}
	}
	c := newLAN(4, 40)
	for a, owner := range c.owners() {
		if first := c.First(a, []Claim{{&Service{LocalExternal: true}, v1beta1.AddressLoadBalancerIP}}); first != owner {
			t.Errorf("%s: the first for a Service to come is %s, the owner %s", a, first, owner)
		}
	}
}

// What a decision costs where there are 1,000 nodes and 10,000 Services.
func BenchmarkLayer2(b *testing.B) {
	for _, bb := range []struct {
		what  string
		local bool
	}{{"Cluster", false}, {"Local", true}} {
		c := newLAN(1000, 10000)
		var addrs []netip.Addr
		for a, on := range c.claims {
			i := len(addrs)
			on[0].Service.LocalExternal = bb.local
			on[0].Service.Endpoints4.Ready = map[string]int{fmt.Sprint("node", i%1000): 1, fmt.Sprint("node", i/10): 1, fmt.Sprint("node", i%999): 1}
			addrs = append(addrs, a)
		}
		decided := map[netip.Addr]*Layer2{}
		b.Run(bb.what+"/one", func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				a := addrs[i%len(addrs)]
				d := c.Layer2(a, c.claims[a])
				decided[a] = &d
			}
		})
		b.Run(bb.what+"/all", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for a, on := range c.claims {
					d := c.Layer2(a, on)
					decided[a] = &d
				}
			}
		})
		b.Run(bb.what+"/moves", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.SetNode("node7", c.Nodes["node7"])
				for a, d := range decided {
					if c.Moves("node7", a, d) {
						c.Layer2(a, c.claims[a])
					}
				}
			}
		})
		runtime.KeepAlive(c)
	}
}
