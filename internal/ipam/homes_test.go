package ipam_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/ipam"
	"github.com/clarionlb/clarion/internal/pool"
)

// TestBalance: with addresses chosen by their homes, as internal/announce has them, no node is loaded much beyond the
// mean, over random clusters whose Services come and go; and of two families the homes are one node where that can be. It
// prints what the load is after a node has died and after one was added, which moves nothing else.
func TestBalance(t *testing.T) {
	clusters := 100
	if testing.Short() {
		clusters = 10
	}
	worst, died, added := 0.0, 0.0, 0.0
	together, both := 0, 0
	for seed := range clusters {
		rng := rand.New(rand.NewPCG(uint64(seed), 11))
		nodes, services := 3+rng.IntN(48), 10+rng.IntN(1991)
		view := announce.View{Config: &config.Config{L2: []config.L2Advertisement{{Name: "l2", Pools: config.Names{All: true}}}},
			PoolOf: func(netip.Addr) string { return "lan" }, Nodes: map[string]*announce.Node{}}
		node := func(n int) string {
			name := fmt.Sprintf("node-%d-%d", seed, n)
			view.Nodes[name] = &announce.Node{Name: name}
			return name
		}
		for n := range nodes {
			node(n)
		}
		home := func(_ *ipam.Request, a netip.Addr) string {
			return view.First(a, []announce.Claim{{Service: &announce.Service{}, Type: v1beta1.AddressLoadBalancerIP}})
		}
		obj := &v1beta1.IPAddressPool{}
		obj.Name = "lan"
		first := netip.MustParseAddr("198.18.0.0")
		last := first
		for range 2*services - 1 {
			last = last.Next()
		}
		obj.Spec.Addresses = []v1beta1.AddressRange{v1beta1.AddressRange(first.String() + "-" + last.String()), "2001:db8::/64"}
		p, err := pool.Parse(obj)
		if err != nil {
			t.Fatal(err)
		}
		table, now := ipam.NewTable(), time.Unix(0, 0)
		table.SetPools(pool.NewSet(p), now)
		table.SetHomes(home)
		dual := seed%3 == 0
		request := func(n int) ipam.Request {
			r := ipam.Request{Service: types.NamespacedName{Namespace: "default", Name: fmt.Sprint(n)}, Created: now, Families: []pool.Family{pool.IPv4}}
			if dual && n%2 == 0 {
				r.Families = append(r.Families, pool.IPv6)
			}
			return r
		}
		has := map[int][]netip.Addr{}
		give := func(n int) {
			r := request(n)
			res := table.Assign(r, now)
			has[n] = res.Addresses()
			table.Published(r.Service, has[n], now)
		}
		for n := range services {
			give(n)
		}
		for n := range services / 10 {
			table.Release(request(n).Service, now)
			delete(has, n)
		}
		now = now.Add(time.Hour)
		for n := range services / 10 {
			give(services + n)
		}
		load := func(without string) (largest, mean float64) {
			v := view
			if without != "" { // a View remembers its nodes
				v = announce.View{Config: view.Config, PoolOf: view.PoolOf, Nodes: map[string]*announce.Node{}}
				for name, n := range view.Nodes {
					if name != without {
						v.Nodes[name] = n
					}
				}
			}
			count, total := map[string]int{}, 0
			for _, addrs := range has {
				for _, a := range addrs {
					count[v.First(a, []announce.Claim{{Service: &announce.Service{}, Type: v1beta1.AddressLoadBalancerIP}})]++
					total++
				}
			}
			for _, n := range count {
				largest = max(largest, float64(n))
			}
			return largest, float64(total) / float64(len(v.Nodes))
		}
		largest, mean := load("")
		if largest > 1.25*mean+1 {
			t.Errorf("cluster %d of %d nodes and %d Services: the largest load is %.0f, the mean %.1f", seed, nodes, services, largest, mean)
		}
		worst = max(worst, largest/mean)
		for n, addrs := range has {
			if len(addrs) == 2 {
				r := request(n)
				if both++; home(&r, addrs[0]) == home(&r, addrs[1]) {
					together++
				}
			}
		}
		largest, mean = load(fmt.Sprintf("node-%d-0", seed))
		died = max(died, largest/mean)
		view.SetNode(node(nodes), view.Nodes[fmt.Sprintf("node-%d-%d", seed, nodes)])
		largest, mean = load("")
		added = max(added, largest/mean)
	}
	t.Logf("%d clusters: largest load over mean %.2f at worst; %.2f after one node died, %.2f after one was added; %d of %d Services of two families have one home",
		clusters, worst, died, added, together, both)
	if together*10 < both*9 {
		t.Errorf("%d of %d Services of two families have one home", together, both)
	}
}
