package allocate

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/ipam"
	"github.com/clarionlb/clarion/internal/pool"
)

// Pools is what pools mean beside the addresses that the cluster has itself.
func Pools(objects []v1beta1.IPAddressPool, taken ...pool.Use) *pool.Set {
	var all []*pool.Pool
	for i := range objects {
		p, _ := pool.Parse(&objects[i]) // a pool that is wrong carries its error
		all = append(all, p)
	}
	return pool.NewSetBeside(taken, all...)
}

// Taken is the addresses of nodes and the ranges of Services' cluster addresses, in a fixed order.
func Taken(nodes []corev1.Node, cidrs []networkingv1.ServiceCIDR) []pool.Use {
	var out []pool.Use
	for i := range nodes {
		for _, a := range nodes[i].Status.Addresses {
			if addr, err := netip.ParseAddr(a.Address); err == nil {
				out = append(out, pool.Use{Kind: v1beta1.ReasonNodeAddress, By: "node " + nodes[i].Name, Addresses: pool.Ranges{pool.FromAddr(addr.Unmap().WithZone(""))}})
			}
		}
	}
	for i := range cidrs {
		for _, c := range cidrs[i].Spec.CIDRs {
			if prefix, err := netip.ParsePrefix(c); err == nil {
				out = append(out, pool.Use{Kind: v1beta1.ReasonServiceCIDR, By: "ServiceCIDR " + cidrs[i].Name, Addresses: pool.Ranges{pool.FromPrefix(prefix)}})
			}
		}
	}
	slices.SortFunc(out, func(a, b pool.Use) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.By, b.By), a.Addresses[0].First.Compare(b.Addresses[0].First))
	})
	return out
}

// Past is the addresses that were in quarantine, and those that rested, when a controller wrote the pools' statuses last.
func Past(pools []v1beta1.IPAddressPool) (quarantined map[netip.Addr]bool, rests []ipam.Rest) {
	quarantined = map[netip.Addr]bool{}
	for i := range pools {
		for _, text := range pools[i].Status.Quarantined {
			if addr, err := netip.ParseAddr(text); err == nil {
				quarantined[addr] = true
			}
		}
		for _, r := range pools[i].Status.Resting {
			ns, name, _ := strings.Cut(r.Service, "/")
			if addr, err := netip.ParseAddr(r.Address); err == nil {
				rests = append(rests, ipam.Rest{Addr: addr, Last: types.NamespacedName{Namespace: ns, Name: name}, Until: r.Until.Time})
			}
		}
	}
	return quarantined, rests
}

// maxResting is how many resting addresses a pool's status lists: those that rest longest.
const maxResting = 256

// Status is the numbers and addresses of a pool's status, without its conditions. u is nil for a pool of which the Table
// does not know yet.
func Status(u *ipam.Usage) (s v1beta1.IPAddressPoolStatus) {
	if u == nil {
		return s
	}
	s.AssignedIPv4, s.AssignedIPv6 = u.Assigned[pool.IPv4], u.Assigned[pool.IPv6]
	s.AvailableIPv4, s.AvailableIPv6 = u.Available[pool.IPv4], u.Available[pool.IPv6]
	for _, a := range u.Quarantined {
		s.Quarantined = append(s.Quarantined, a.String())
	}
	for _, a := range u.Kept {
		s.Kept = append(s.Kept, a.String())
	}
	for _, r := range u.Resting[max(0, len(u.Resting)-maxResting):] {
		until := r.Until.Add(time.Second - 1).Truncate(time.Second) // the API keeps whole seconds
		s.Resting = append(s.Resting, v1beta1.RestingAddress{Address: r.Addr.String(), Service: r.Last.String(), Until: metav1.NewTime(until)})
	}
	return s
}

// Allocated is the condition Allocated that says a result, without its time.
func Allocated(res *ipam.Result) metav1.Condition {
	c := metav1.Condition{Type: v1beta1.ConditionAllocated, Status: metav1.ConditionFalse, Reason: res.Reason, Message: res.Message()}
	if res.Satisfied() {
		c.Status = metav1.ConditionTrue
	}
	return c
}

// Load fills an empty Table with what objects mean, as a controller does that begins to lead.
func Load(t *ipam.Table, set *pool.Set, homes ipam.Homes, quarantined map[netip.Addr]bool, rests []ipam.Rest, requests []ipam.Request, now time.Time) {
	t.SetPools(set, now)
	t.SetHomes(homes)
	t.Remember(rests, now)
	t.Quarantine(quarantined, now)
	t.Load(requests, now)
}
