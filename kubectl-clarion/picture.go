package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/explain"
	"github.com/clarionlb/clarion/internal/pool"
	"github.com/clarionlb/clarion/internal/text"
	"github.com/clarionlb/clarion/kubectl-clarion/page"
)

// How many things the map shows one by one.
const (
	shownAddresses = 24 // of a pool; where it has more in use, at most half of them, which are not well
	shownNodes     = 24 // with the routes of each address
	shownCells     = 1024
)

func stateOf(fine *bool) page.State {
	switch {
	case fine == nil:
		return page.Unknown
	case *fine:
		return page.Good
	}
	return page.Bad
}

// picture is the cluster as the page shows it: what status and explain say, for all objects.
func (c *cluster) picture(name string, conn *connection) *page.Picture {
	c.snap.Lock()
	defer c.snap.Unlock()
	p := &page.Picture{
		Explain: func(object string) (any, error) {
			c.snap.Lock()
			defer c.snap.Unlock()
			return c.explainObject(conn, object)
		},
		Pool: func(name string) (page.Grid, error) {
			c.snap.Lock()
			defer c.snap.Unlock()
			return c.grid(name)
		},
	}
	o := &p.Overview
	o.Cluster, o.NotShown = name, c.notShown()
	if conn.dump != nil {
		p.Taken, o.Dump = conn.dump.Taken, &conn.dump.Taken
	}
	o.Controller = page.Controller{Name: c.controller.holder, Version: c.controller.version, State: page.Bad}
	if c.hidden["Lease"] != nil {
		o.Controller.State = page.Unknown
	} else if c.controller.problem(c.namespace) == "" {
		o.Controller.State = page.Good
	}
	o.Problems = []page.Problem{}
	wrong := map[string]string{} // by object
	for _, x := range c.problems() {
		o.Problems = append(o.Problems, page.Problem(x))
		wrong[x.About] = cmp.Or(wrong[x.About], x.Text)
	}
	c.routers(o, conn)
	c.nodesOf(o, wrong)
	c.poolsOf(o, conn)
	p.Services = c.servicesOf()
	o.Services.All = len(p.Services)
	for _, s := range p.Services {
		switch s.State {
		case page.Bad:
			o.Services.Bad++
		case page.Unknown:
			o.Services.Unknown++
		}
	}
	return p
}

// routers are the BGPPeers and their sessions.
func (c *cluster) routers(o *page.Overview, conn *connection) {
	o.Routers, o.Sessions = []page.Router{}, []page.Session{}
	for _, x := range c.objects {
		name, ok := strings.CutPrefix(x.name, "BGPPeer/")
		if !ok {
			continue
		}
		e, err := explainPeer(context.Background(), c, conn, name)
		if err != nil {
			continue
		}
		spec := c.snap.BGPPeer(name).Spec
		r := page.Router{Name: name, Address: cmp.Or(spec.PeerAddress, spec.Interface, "default gateway"), State: stateOf(e.Fine), Text: e.Answer}
		if i := slices.IndexFunc(c.snap.View().Config.Peers, func(p config.Peer) bool { return p.Name == name }); i >= 0 {
			p := &c.snap.View().Config.Peers[i]
			if r.AS = cmp.Or(p.Dynamic, "any"); p.PeerASN != 0 {
				r.AS = fmt.Sprint(p.PeerASN)
			}
			for _, s := range c.sessionsWith(p) {
				out := page.Session{Node: s.node, Peer: name, State: page.Bad, Text: s.text}
				if s.up {
					r.Up++
					out.State = page.Good
				}
				if r.Wanted++; s.is != nil {
					out.Address, out.BGP, out.BFD = s.is.Address, s.is.State, s.is.BFD
					out.Detection, out.HoldSeconds = s.is.BFDDetectionMilliseconds, s.is.HoldTimeSeconds
					out.IPv4, out.IPv6, out.LastError = s.is.PrefixesIPv4, s.is.PrefixesIPv6, s.is.LastError
					if s.is.Since != nil {
						out.Since = stamp(s.is.Since.Time)
					}
				}
				o.Sessions = append(o.Sessions, out)
			}
		}
		o.Routers = append(o.Routers, r)
	}
	slices.SortFunc(o.Routers, func(a, b page.Router) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(o.Sessions, func(a, b page.Session) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.Peer, b.Peer), strings.Compare(a.Address, b.Address))
	})
}

// nodesOf are the nodes that should have a speaker. Those of the Speakers stand for them where Nodes may not be read.
func (c *cluster) nodesOf(o *page.Overview, wrong map[string]string) {
	o.Nodes = []page.Node{}
	up, down := map[string]int{}, map[string]string{}
	for _, s := range o.Sessions {
		if s.State == page.Good {
			up[s.Node]++
		} else {
			down[s.Node] = cmp.Or(down[s.Node], "no session with "+s.Peer+": "+s.Text)
		}
	}
	names := c.nodes
	if c.hidden["Node"] != nil {
		names = sortedKeys(c.speakers)
	}
	for _, name := range slices.Sorted(slices.Values(names)) {
		n := page.Node{Name: name, State: page.Good, Text: cmp.Or(wrong["Node/"+name], wrong["Speaker/"+name]), Sessions: up[name]}
		if sp := c.speakers[name]; sp != nil && c.alive[name] {
			n.Version = sp.Status.Version
			if l := sp.Status.LocalNetwork; l != nil {
				n.Answers = int(l.Answered)
			}
			n.Text = cmp.Or(n.Text, down[name])
		}
		is := c.snap.View().Nodes[name]
		if is != nil {
			n.Zone = is.Labels[corev1.LabelTopologyZone]
		}
		switch {
		case n.Text != "":
			n.State = page.Bad
		case is != nil && is.Excluded != "":
			n.State, n.Text = page.Off, is.Excluded
		case !c.alive[name]:
			n.State, n.Text = page.Unknown, explain.NotAlive
		}
		o.Nodes = append(o.Nodes, n)
	}
}

// poolsOf are the pools, with those of their addresses that the map shows.
func (c *cluster) poolsOf(o *page.Overview, conn *connection) {
	o.Pools = []page.Pool{}
	used := map[string][]page.Address{}
	for addr, services := range c.holders(func(netip.Addr) bool { return !c.blind() }) {
		if in := c.snap.View().PoolOf(addr); in != "" {
			is := c.book.Of(addr, c.now)
			a := page.Address{Address: addr.String(), Services: services, State: page.Bad, Text: is.Text, Owner: c.snap.Owner(addr).Owner, By: []string{}, Announce: []string{}}
			if is.Announced && is.Reason == v1beta1.ReasonAnnounced {
				a.State = page.Good
			}
			o.Local = o.Local || a.Owner != ""
			used[in] = append(used[in], a)
		}
	}
	for _, is := range c.pools {
		e, err := explainPool(context.Background(), c, conn, is.Name)
		if err != nil {
			continue
		}
		s := is.Status
		p := page.Pool{
			Name: is.Name, State: stateOf(e.Fine), Text: e.Answer, Used4: s.AssignedIPv4, Free4: s.AvailableIPv4, Used6: s.AssignedIPv6, Free6: s.AvailableIPv6,
			Resting: len(s.Resting), Quarantined: len(s.Quarantined), Kept: len(s.Kept), Shown: []page.Address{},
		}
		var ranges []string
		for _, r := range is.Spec.Addresses {
			ranges = append(ranges, string(r))
		}
		p.Ranges = text.Few(ranges)
		all, owners := used[is.Name], map[string]bool{}
		for _, a := range all {
			if a.Owner != "" {
				owners[a.Owner] = true
			}
		}
		p.Owners = append([]string{}, sortedKeys(owners)...)
		slices.SortFunc(all, func(a, b page.Address) int {
			x, y := netip.MustParseAddr(a.Address), netip.MustParseAddr(b.Address)
			return cmp.Or(strings.Compare(string(a.State), string(b.State)), x.Compare(y)) // bad is before good
		})
		for _, a := range all {
			if a.State == page.Bad {
				p.Bad++
			}
			if len(all) > shownAddresses && (a.State != page.Bad || len(p.Shown) >= shownAddresses/2) {
				p.Hidden++
				continue
			}
			c.ways(&a)
			p.Shown = append(p.Shown, a)
		}
		o.Pools = append(o.Pools, p)
	}
	slices.SortFunc(o.Pools, func(a, b page.Pool) int { return strings.Compare(a.Name, b.Name) })
}

// ways are the nodes that answer for an address, and those that announce it.
func (c *cluster) ways(a *page.Address) {
	d := c.address(netip.MustParseAddr(a.Address), v1beta1.AddressLoadBalancerIP)
	for _, by := range d.Answers {
		if by.Node != "" {
			a.By = append(a.By, by.Node)
		}
	}
	if len(c.nodes) > shownNodes {
		return
	}
	for _, r := range d.Routes {
		if r.Problem == "" && !slices.Contains(a.Announce, r.Node) {
			a.Announce = append(a.Announce, r.Node)
		}
	}
}

// servicesOf are the Services that are to be reached from outside, with the answers of explain.
func (c *cluster) servicesOf() []page.Service {
	known := map[netip.Addr]bool{}
	for addr := range c.book.Addrs() {
		known[addr] = true
	}
	clusterIPs := slices.ContainsFunc(c.snap.View().Config.BGP, func(ad config.BGPAdvertisement) bool { return ad.Types[v1beta1.AddressClusterIP] })
	brief := func(addr netip.Addr, t v1beta1.AddressType) *address {
		switch {
		case t == v1beta1.AddressClusterIP && !clusterIPs: // it has no routes
			return &address{}
		case t == v1beta1.AddressClusterIP || !known[addr]:
			return c.address(addr, t)
		}
		return &address{addr: addr, kind: t, Detail: explain.Detail{Explanation: c.book.Of(addr, c.now)}}
	}
	out := []page.Service{}
	for key, svc := range c.services {
		if !external(svc) {
			continue
		}
		addresses := c.addressesOf(key.String(), brief)
		answer, fine := c.answer(svc, addresses)
		s := page.Service{Name: key.String(), State: stateOf(fine), Answer: answer, Addresses: []string{}}
		for _, a := range addresses {
			s.Addresses = append(s.Addresses, a.addr.String())
		}
		if len(s.Addresses) == 0 {
			for _, i := range svc.Status.LoadBalancer.Ingress {
				s.Addresses = append(s.Addresses, cmp.Or(i.IP, i.Hostname))
			}
		}
		out = append(out, s)
	}
	page.Sort(out)
	return out
}

// shown is an explanation with where the endpoints are that serve it.
type shown struct {
	explanation
	Endpoints map[string][]string `json:"endpoints,omitempty"` // nodes, by address
}

// explainObject is what explain says of an object, as Kind/name.
func (c *cluster) explainObject(conn *connection, object string) (*shown, error) {
	word, name, err := kindAndName([]string{object})
	if err != nil {
		return nil, err
	}
	k := kindOfWord(word)
	if k == nil {
		return nil, fmt.Errorf("%s is nothing that can be explained", object)
	}
	e, err := k.explain(context.Background(), c, conn, name)
	if err != nil {
		return nil, err
	}
	out := &shown{e, map[string][]string{}}
	for _, a := range e.Addresses {
		addr := netip.MustParseAddr(a.Address)
		for _, claim := range c.snap.ClaimsOn(addr) {
			out.Endpoints[a.Address] = append(out.Endpoints[a.Address], claim.EndpointNodes(addr)...)
		}
		slices.Sort(out.Endpoints[a.Address])
		out.Endpoints[a.Address] = slices.Compact(out.Endpoints[a.Address])
	}
	return out, nil
}

// grid is a pool, address by address.
func (c *cluster) grid(name string) (page.Grid, error) {
	i := slices.IndexFunc(c.pools, func(p *v1beta1.IPAddressPool) bool { return p.Name == name })
	if i < 0 {
		return page.Grid{}, fmt.Errorf("there is no IPAddressPool %s", name)
	}
	is := c.pools[i]
	parsed, _ := pool.Parse(is)
	cells := map[netip.Addr]page.Cell{}
	put := func(addr netip.Addr, state, text string) {
		cells[addr] = page.Cell{Address: addr.String(), State: state, Text: text}
	}
	for addr, of := range parsed.Reserved {
		put(addr, "reserved", "reserved for "+of.String())
	}
	for _, r := range is.Status.Resting {
		if addr, err := netip.ParseAddr(r.Address); err == nil {
			put(addr, "resting", fmt.Sprintf("it was %s's, and is free at %s", r.Service, stamp(r.Until.Time)))
		}
	}
	for _, a := range is.Status.Quarantined {
		if addr, err := netip.ParseAddr(a); err == nil {
			put(addr, "quarantined", "another host uses it")
		}
	}
	for addr, services := range c.holders(func(a netip.Addr) bool { return c.snap.View().PoolOf(a) == name }) {
		e := c.book.Of(addr, c.now)
		cell := page.Cell{Address: addr.String(), State: "used", Text: strings.Join(services, ", ")}
		if !parsed.Addresses.Contains(addr) {
			cell.State = "kept"
		}
		if cell.Bad = !c.blind() && (!e.Announced || e.Reason != v1beta1.ReasonAnnounced); cell.Bad {
			cell.Text += ": " + e.Text
		}
		cells[addr] = cell
	}
	of := func(addr netip.Addr) page.Cell {
		if cell, ok := cells[addr]; ok {
			return cell
		}
		switch {
		case c.snap.View().Has(addr) != "":
			return page.Cell{Address: addr.String(), State: "excluded", Text: c.snap.View().Has(addr) + " has it"}
		case !parsed.Addresses.Contains(addr):
			return page.Cell{Address: addr.String(), State: "excluded", Text: "the pool excludes it"}
		case parsed.Avoids(addr):
			return page.Cell{Address: addr.String(), State: "excluded", Text: "not given out: avoidBuggyIPs"}
		}
		return page.Cell{Address: addr.String(), State: "free"}
	}
	g := page.Grid{Name: name, Ranges: []page.Range{}}
	for _, r := range parsed.Written {
		out := page.Range{Title: r.String(), Cells: []page.Cell{}}
		if r.Size() <= shownCells {
			for addr := r.First; addr.IsValid() && addr.Compare(r.Last) <= 0; addr = addr.Next() {
				out.Cells = append(out.Cells, of(addr))
			}
		} else {
			for _, addr := range sortedAddrs(cells) {
				if r.Contains(addr) {
					out.Cells = append(out.Cells, cells[addr])
				}
			}
			out.Rest = "the others of its addresses are free, unless the pool excludes them"
		}
		g.Ranges = append(g.Ranges, out)
	}
	for _, addr := range sortedAddrs(cells) {
		if !parsed.Written.Contains(addr) {
			g.Outside = append(g.Outside, cells[addr])
		}
	}
	return g, nil
}
