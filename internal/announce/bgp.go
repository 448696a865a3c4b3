package announce

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/route"
)

// Export is a prefix that a node announces to a peer.
type Export struct {
	Peer string
	route.Route
}

// BGP is the decision about one address, or one range of the cluster, on one node.
type BGP struct {
	// Exports are the prefixes to announce, a peer each, sorted. Prefixes of several addresses that aggregate to one
	// are merged by Merge.
	Exports []Export
	// Advertised says that a BGPAdvertisement announces the address.
	Advertised bool
	// Why says why nothing is announced, or "" when something is.
	Why string
}

// ForBGP decides what a node announces to its peers for one address.
func (v *View) ForBGP(node string, addr netip.Addr, claims []Claim) BGP {
	v.prepare()
	var d BGP
	me := v.Nodes[node]
	if me == nil {
		d.Why = fmt.Sprintf("there is no node %q", node)
		return d
	}
	d.Why = "no BGPAdvertisement announces it"
	if slices.ContainsFunc(claims, func(c Claim) bool { return c.Type == v1beta1.AddressLoadBalancerIP }) && v.PoolOf(addr) == "" {
		d.Why = NotInPool
	}
	var byPeer []Export
	for i := range v.Config.BGP {
		ad := &v.Config.BGP[i]
		mine, refused := v.Admitted(ad, addr, claims)
		if len(mine) == 0 {
			if refused != "" {
				d.Advertised, d.Why = true, refused
			}
			continue
		}
		d.Advertised = true
		cannot := me.cannot(addr, mine)
		ends := cannot != "" && me.ends(addr, mine)
		if ends {
			cannot = ""
		}
		if why := v.mayExport(me, i, func() string { return cannot }, func() bool { return v.othersServe(me, i, addr, mine) }); why != "" {
			d.Why = why
			continue
		}
		attrs := ad.Attrs
		if ad.Weighted {
			attrs.Bandwidth = bandwidth(node, addr, mine)
		}
		byPeer = v.export(byPeer, me, ad, v.prefix(ad, addr, mine), lastChoice(attrs, me.Draining || ends), &d.Why)
	}
	d.Exports = merge(byPeer)
	if len(d.Exports) > 0 {
		d.Why = ""
	}
	return d
}

// Own are the nodes, sorted, whose own endpoints matter to what ForBGP says of an address: to all others, those of Alike, it
// says the same.
func (v *View) Own(addr netip.Addr, claims []Claim) []string {
	weighted := slices.ContainsFunc(v.Config.BGP, func(ad config.BGPAdvertisement) bool { return ad.Weighted })
	own := map[string]bool{}
	for _, c := range claims {
		if !weighted && !c.local() {
			continue
		}
		e := c.Service.of(addr)
		for _, of := range []map[string]int{e.Ready, e.Terminating} {
			for node := range of {
				own[node] = true
			}
		}
	}
	delete(own, "")
	return sortedKeys(own)
}

// Alike groups nodes of which ForBGP says the same of every address that they are not Own of.
func (v *View) Alike(nodes []string) [][]string {
	groups := map[string][]string{}
	for _, name := range nodes {
		n := v.Nodes[name]
		if n == nil {
			continue
		}
		key := fmt.Appendf(nil, "%q %q %t %t ", n.Excluded, n.Gate, n.Draining, n.Drained)
		for i := range v.Config.BGP {
			key = strconv.AppendBool(key, v.Config.BGP[i].Nodes.Match(n.Labels))
		}
		for i := range v.Config.Peers {
			key = strconv.AppendBool(key, v.Config.Peers[i].Nodes.Match(n.Labels))
		}
		groups[string(key)] = append(groups[string(key)], name)
	}
	return slices.Collect(maps.Values(groups))
}

// Leads says whether a node is the first, by a hash, of those that can announce an address to their peers. All nodes with
// the same view name the same one.
func (v *View) Leads(node string, addr netip.Addr, claims []Claim) bool {
	v.prepare()
	a := hashAddr(addr)
	mine := score(hashNode(node), a)
	for i, n := range v.nodes {
		if n != nil && n.Name != node && n.Alive && n.SessionUp && score(v.hashes[i], a) > mine && len(v.ForBGP(n.Name, addr, claims).Exports) > 0 {
			return false
		}
	}
	return true
}

// ForRange decides what a node announces to its peers for a range of the cluster: a ServiceCIDR, which every node can
// serve, or, with t PodCIDR, a range of the node's own.
func (v *View) ForRange(node string, prefix netip.Prefix, t v1beta1.AddressType) BGP {
	v.prepare()
	var d BGP
	me := v.Nodes[node]
	if me == nil {
		d.Why = fmt.Sprintf("there is no node %q", node)
		return d
	}
	d.Why = "no BGPAdvertisement announces it"
	var byPeer []Export
	for i := range v.Config.BGP {
		ad := &v.Config.BGP[i]
		if !ad.Types[t] {
			continue
		}
		d.Advertised = true
		why := ""
		if t == v1beta1.AddressPodCIDR {
			if !ad.Nodes.Match(me.Labels) {
				why = "no BGPAdvertisement selects the node"
			}
		} else {
			why = v.mayExport(me, i, func() string { return me.Excluded }, func() bool { return v.others(me, i) > 0 })
		}
		if why != "" {
			d.Why = why
			continue
		}
		byPeer = v.export(byPeer, me, ad, prefix, lastChoice(ad.Attrs, me.Draining), &d.Why)
	}
	d.Exports = merge(byPeer)
	if len(d.Exports) > 0 {
		d.Why = ""
	}
	return d
}

// Admitted are the claims on an address that an advertisement announces. refused is why one is not that it selects.
func (v *View) Admitted(ad *config.BGPAdvertisement, addr netip.Addr, claims []Claim) (out []Claim, refused string) {
	for _, c := range claims {
		if !ad.Types[c.Type] || !ad.Services.Match(c.Service.Labels) {
			continue
		}
		why := ""
		switch c.Type {
		case v1beta1.AddressLoadBalancerIP:
			if !v.inPool(ad, addr) {
				continue
			}
		case v1beta1.AddressExternalIP:
			why = v.notExternal(ad, addr, claims, c.Service)
		}
		if why != "" {
			refused = why
			continue
		}
		out = append(out, c)
	}
	return out, refused
}

// notExternal says why an address is not announced as an external IP of a Service; "" when it is. Who may create a Service
// may write any address there; others' names are not told.
func (v *View) notExternal(ad *config.BGPAdvertisement, addr netip.Addr, claims []Claim, of *Service) string {
	const never = "it is not announced as an external IP: "
	if !slices.ContainsFunc(ad.ExternalIPs, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return never + fmt.Sprintf("it is in none of the externalIPRanges of BGPAdvertisement %q", ad.Name)
	}
	if pool := v.PoolOf(addr); pool != "" {
		return never + fmt.Sprintf("it belongs to the IPAddressPool %q", pool)
	}
	if slices.ContainsFunc(claims, func(c Claim) bool { return c.Service != of && c.Type != v1beta1.AddressExternalIP }) {
		return never + "another Service has it"
	}
	if v.Has != nil {
		if who := v.Has(addr); who != "" {
			return never + "it belongs to " + who
		}
	}
	return ""
}

// prefix is what an address is announced with: the aggregate that the advertisement asks for, or of an external IP the
// range that it must be in, if that is smaller.
func (v *View) prefix(ad *config.BGPAdvertisement, addr netip.Addr, claims []Claim) netip.Prefix {
	out := ad.Aggregate(addr)
	if slices.ContainsFunc(claims, func(c Claim) bool { return c.Type != v1beta1.AddressExternalIP }) {
		return out
	}
	var widest netip.Prefix
	for _, p := range ad.ExternalIPs {
		if p.Contains(addr) && (!widest.IsValid() || p.Bits() < widest.Bits()) {
			widest = p
		}
	}
	if widest.Bits() > out.Bits() {
		return widest
	}
	return out
}

// inPool says whether an address is in a pool that an advertisement announces.
func (v *View) inPool(ad *config.BGPAdvertisement, addr netip.Addr) bool {
	pool := v.PoolOf(addr)
	return pool != "" && ad.Pools.Has(pool)
}

// mayExport says why a node may not announce what an advertisement announces, "" when it may. cannot says why the node
// cannot serve it at all, others whether another node without a gate can, and has a session up to announce it in. A gated
// node may not while there is one; gates never withdraw the last route.
func (v *View) mayExport(me *Node, ad int, cannot func() string, others func() bool) string {
	if !v.Config.BGP[ad].Nodes.Match(me.Labels) {
		return "no BGPAdvertisement selects the node"
	}
	if why := cannot(); why != "" {
		return why
	}
	if me.Gate == "" || me.Draining && !me.Drained || !others() {
		return ""
	}
	return me.Gate
}

// others counts the other nodes that can announce what an advertisement announces, apart from endpoints.
func (v *View) others(me *Node, ad int) int {
	g := v.groups[ad]
	if g.free[v.index[me.Name]] {
		return g.count - 1
	}
	return g.count
}

// othersServe says whether one of those can serve one of the claims on an address.
func (v *View) othersServe(me *Node, ad int, addr netip.Addr, claims []Claim) bool {
	if v.others(me, ad) == 0 {
		return false
	}
	for _, c := range claims {
		eps := c.endpoints(addr)
		if len(eps) > 0 && !c.local() {
			return true
		}
		for name, count := range eps {
			if i, ok := v.index[name]; ok && count > 0 && name != me.Name && v.groups[ad].free[i] {
				return true
			}
		}
	}
	return false
}

// sends says whether a node announces to a peer what an advertisement announces.
func (n *Node) sends(ad *config.BGPAdvertisement, to *config.Peer) bool {
	return ad.Peers.Has(to.Name) && to.Nodes.Match(n.Labels)
}

// lastChoice are the attributes of the routes of a node that is about to go, if it is: routers use them only where there
// are no others.
func lastChoice(a route.Attrs, going bool) route.Attrs {
	if !going {
		return a
	}
	most := uint32(math.MaxUint32)
	a = a.Merge(route.Attrs{Communities: []route.Community{route.GracefulShutdown}})
	a.MED = &most
	return a
}

// export adds a prefix for every peer of the advertisement that the node has a session with.
func (v *View) export(to []Export, me *Node, ad *config.BGPAdvertisement, p netip.Prefix, attrs route.Attrs, why *string) []Export {
	found := len(to)
	for i := range v.Config.Peers {
		if peer := &v.Config.Peers[i]; me.sends(ad, peer) {
			to = append(to, Export{peer.Name, route.Route{Prefix: p, Attrs: attrs}})
		}
	}
	if len(to) == found {
		*why = "no BGPPeer of the BGPAdvertisement selects the node"
	}
	return to
}

// merge sorts exports and joins those that meet on a peer and a prefix.
func merge(in []Export) []Export {
	slices.SortStableFunc(in, compareExports)
	out := in[:0]
	for _, e := range in {
		if n := len(out); n > 0 && compareExports(out[n-1], e) == 0 {
			out[n-1].Attrs = out[n-1].Attrs.Merge(e.Attrs)
			continue
		}
		out = append(out, e)
	}
	return out
}

func compareExports(a, b Export) int {
	return cmp.Or(cmp.Compare(a.Peer, b.Peer), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
}

// Merge joins the exports of many addresses and ranges to the routes of each peer, sorted, each prefix once.
func Merge(all [][]Export) map[string][]route.Route {
	out := map[string][]route.Route{}
	for _, e := range merge(slices.Concat(all...)) {
		out[e.Peer] = append(out[e.Peer], e.Route)
	}
	return out
}

// bandwidthUnit is the link bandwidth that one endpoint stands for, in bytes per second: 1 Gbit/s.
const bandwidthUnit = 125e6

// bandwidth is the node's weight: in proportion to its own usable endpoints. With policy Cluster a node without one still
// takes part, with the weight of one.
func bandwidth(node string, addr netip.Addr, claims []Claim) float32 {
	n := 0
	for _, c := range claims {
		n += c.endpoints(addr)[node]
	}
	return bandwidthUnit * float32(max(n, 1))
}

// settled is how far, in powers of two, an exact weight may be from the one that was sent without a new one being sent. It
// is more than the largest distance to the nearest step, so that an endpoint that comes and goes does not move flows
// each time.
const settled = 0.42

// Weight is the link bandwidth to send for an exact one, when sent was sent before (0 for none): steps of 1, 2, 3, 4, 6,
// 8, 12, 16 … endpoints with hysteresis, so that not every new endpoint moves flows. 0 stays 0.
func Weight(exact, sent float32) float32 {
	if exact <= 0 {
		return 0
	}
	n := float64(exact / bandwidthUnit)
	if sent > 0 && math.Abs(math.Log2(n)-math.Log2(float64(sent/bandwidthUnit))) < settled {
		return sent
	}
	best := 1.0
	for step := 1.0; step < 2*n; step *= 2 {
		for _, candidate := range []float64{step, 1.5 * step} {
			if candidate >= 2 || candidate == 1 {
				if math.Abs(math.Log2(candidate/n)) < math.Abs(math.Log2(best/n)) {
					best = candidate
				}
			}
		}
	}
	return float32(bandwidthUnit * best)
}
