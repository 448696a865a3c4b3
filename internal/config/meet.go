package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/route"
)

// Meetings says of every BGPAdvertisement which others may announce the same prefixes to the same peers with other
// attributes, and what the routes then carry. Such routes are merged: see route.Attrs.Merge. pools and peers are the names
// of those that exist.
func (c *Config) Meetings(pools, peers []string) map[string][]string {
	out := map[string][]string{}
	for i := range c.BGP {
		for j := range c.BGP {
			a, b := &c.BGP[i], &c.BGP[j]
			if i == j || !a.overlaps(b, pools) {
				continue
			}
			same := shared(a.Peers, b.Peers, peers)
			if a.Weighted != b.Weighted && (same || c.oneRouter(a, b)) {
				to := "to the same peers"
				if !same {
					to = "to the same router by another BGPPeer"
				}
				out[a.Name] = append(out[a.Name], fmt.Sprintf("BGPAdvertisement %q announces the same prefixes %s, and only one of the two is weighted: routers ignore weights when a path has none", b.Name, to))
			}
			if same && !a.Attrs.Equal(b.Attrs) {
				out[a.Name] = append(out[a.Name], fmt.Sprintf("BGPAdvertisement %q announces the same prefixes to the same peers with other attributes: the routes carry %s", b.Name, describe(a.Attrs.Merge(b.Attrs))))
			}
		}
	}
	return out
}

// shared says whether one of all is in both sets.
func shared(x, y Names, all []string) bool {
	return slices.ContainsFunc(all, func(n string) bool { return x.Has(n) && y.Has(n) })
}

// oneRouter says whether two advertisements have peers, whatever their names and nodes, at one address.
func (c *Config) oneRouter(a, b *BGPAdvertisement) bool {
	return slices.ContainsFunc(c.Peers, func(p Peer) bool {
		return a.Peers.Has(p.Name) && p.Address.IsValid() && slices.ContainsFunc(c.Peers, func(q Peer) bool {
			return b.Peers.Has(q.Name) && p.Address == q.Address && p.Port == q.Port && p.VRF == q.VRF
		})
	})
}

// overlaps says whether two advertisements may announce one prefix.
func (a *BGPAdvertisement) overlaps(b *BGPAdvertisement, pools []string) bool {
	for t := range a.Types {
		switch {
		case !b.Types[t]:
		case t == v1beta1.AddressServiceCIDR, t == v1beta1.AddressPodCIDR:
			return true
		case a.Length4 != b.Length4 && a.Length6 != b.Length6:
		case t != v1beta1.AddressLoadBalancerIP, shared(a.Pools, b.Pools, pools):
			return true
		}
	}
	return false
}

// describe is what routes with these attributes carry, for a person.
func describe(a route.Attrs) string {
	var parts []string
	if len(a.Communities) > 0 {
		parts = append(parts, fmt.Sprintf("the communities of both %v", a.Communities))
	}
	if a.LocalPref != nil {
		parts = append(parts, fmt.Sprintf("the highest local preference %d", *a.LocalPref))
	}
	if a.MED != nil {
		parts = append(parts, fmt.Sprintf("the lowest MED %d", *a.MED))
	}
	if a.Prepend > 0 {
		parts = append(parts, fmt.Sprintf("the longest prepend %d", a.Prepend))
	}
	return strings.Join(parts, ", ")
}
