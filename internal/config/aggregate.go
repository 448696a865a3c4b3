package config

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/pool"
)

// wider says that an advertisement announces prefixes with addresses that its pools do not have, "" if it does not.
func (a *BGPAdvertisement) wider(pools []*v1beta1.IPAddressPool) string {
	if !a.Types[v1beta1.AddressLoadBalancerIP] || a.Length4 == 32 && a.Length6 == 128 {
		return ""
	}
	for _, p := range byName(pools) {
		if !a.Pools.Has(p.Name) {
			continue
		}
		var ranges []pool.Range
		for _, s := range p.Spec.Addresses {
			if r, err := pool.ParseRange(string(s)); err == nil { // the pool's own condition says what is wrong
				ranges = append(ranges, r)
			}
		}
		have := pool.Union(ranges...)
		for _, r := range have {
			for _, addr := range []netip.Addr{r.First, r.Last} {
				prefix := a.Aggregate(addr)
				all := pool.FromPrefix(prefix)
				if !slices.ContainsFunc(have, func(x pool.Range) bool { return x.Contains(all.First) && x.Contains(all.Last) }) {
					return fmt.Sprintf("the prefix %s has addresses that IPAddressPool %q does not: routers send the nodes what is for them, too", prefix, p.Name)
				}
			}
		}
	}
	return ""
}
