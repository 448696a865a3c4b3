package announce

import (
	"net/netip"
	"slices"

	"github.com/clarionlb/clarion/internal/config"
)

// View is what a node knows of the cluster, apart from the Services.
//
// What the nodes are to the advertisements is remembered from the first decision on. From then on Nodes is changed by
// SetNode only, what a Node refers to is not changed, and another configuration is another View. A View is not for
// several goroutines at once.
type View struct {
	// Config is the usable configuration.
	Config *config.Config
	// PoolOf names the pool of an address; "" when it is in none.
	PoolOf func(netip.Addr) string
	// Has says what of the cluster has an address ("a pod"), "" when nothing of it has: such an address is never announced
	// as an external IP. Pools and Services are left aside. Nil: nothing has any.
	Has func(netip.Addr) string
	// Nodes are the cluster's nodes, by name.
	Nodes map[string]*Node

	nodes  []*Node // in no order
	index  map[string]int
	hashes []uint64           // the nodes' half of a score
	places map[string]*places // by the indices of L2Advertisements
	groups []*group           // of each BGPAdvertisement
	key    []byte             // scratch
}

// places are what the nodes are to the addresses that certain L2Advertisements announce.
type places struct {
	ads  []int // indices in Config.L2
	keep bool  // see Layer2.Keep
	of   []place
}

// place is what one node is to them.
type place struct {
	weight int32
	rank   int8 // see Candidate.rank
	serves bool // it is selected and not excluded
}

// group are the nodes that can announce what a BGPAdvertisement announces, apart from endpoints.
type group struct {
	free  []bool // by node: nothing speaks against it, and it has a session up
	count int    // of those that are free
}

// prepare makes what is remembered of the nodes, unless it is there.
func (v *View) prepare() {
	if v.index != nil {
		return
	}
	v.index, v.places = make(map[string]int, len(v.Nodes)), map[string]*places{}
	v.groups = make([]*group, len(v.Config.BGP))
	for i := range v.groups {
		v.groups[i] = &group{}
	}
	for name, n := range v.Nodes {
		v.put(name, n)
	}
}

// SetNode takes in what has become of a node: it is new, it has changed, or, with nil, it is gone.
func (v *View) SetNode(name string, n *Node) {
	v.prepare()
	if n != nil {
		v.Nodes[name] = n
		v.put(name, n)
		return
	}
	delete(v.Nodes, name)
	i, ok := v.index[name]
	if !ok {
		return
	}
	last := len(v.nodes) - 1
	v.index[v.nodes[last].Name] = i
	delete(v.index, name)
	v.nodes, v.hashes = without(v.nodes, i), without(v.hashes, i)
	for _, p := range v.places {
		p.of = without(p.of, i)
	}
	for _, g := range v.groups {
		if g.free[i] {
			g.count--
		}
		g.free = without(g.free, i)
	}
}

// without puts the last element in the place of another.
func without[T any](s []T, i int) []T {
	last := len(s) - 1
	s[i] = s[last]
	clear(s[last:])
	return s[:last]
}

// put remembers what a node is to every set of advertisements that was asked for.
func (v *View) put(name string, n *Node) {
	i, ok := v.index[name]
	if !ok {
		i = len(v.nodes)
		v.index[name] = i
		v.nodes, v.hashes = append(v.nodes, nil), append(v.hashes, hashNode(name))
		for _, p := range v.places {
			p.of = append(p.of, place{})
		}
		for _, g := range v.groups {
			g.free = append(g.free, false)
		}
	}
	v.nodes[i] = n
	for _, p := range v.places {
		p.of[i] = v.place(n, p.ads)
	}
	for j, g := range v.groups {
		ad := &v.Config.BGP[j]
		free := n.Alive && n.SessionUp && n.Gate == "" && n.Excluded == "" && ad.Nodes.Match(n.Labels) &&
			slices.ContainsFunc(v.Config.Peers, func(p config.Peer) bool { return n.sends(ad, &p) })
		switch {
		case free && !g.free[i]:
			g.count++
		case !free && g.free[i]:
			g.count--
		}
		g.free[i] = free
	}
}
