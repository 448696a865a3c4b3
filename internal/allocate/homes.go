package allocate

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/ipam"
	"github.com/clarionlb/clarion/internal/pool"
	"github.com/clarionlb/clarion/internal/snapshot"
)

// Plan is the cluster as the plan of the local network sees it, with every speaker alive; nil when no L2Advertisement
// announces anything.
func Plan(pools []v1beta1.IPAddressPool, ads []v1beta1.L2Advertisement, nodes []corev1.Node, set *pool.Set) *announce.View {
	var o config.Objects
	for i := range pools {
		o.Pools = append(o.Pools, &pools[i])
	}
	for i := range ads {
		o.L2Advertisements = append(o.L2Advertisements, &ads[i])
	}
	cfg, _ := config.Parse(o) // what is wrong is said elsewhere
	if len(cfg.L2) == 0 {
		return nil
	}
	view := &announce.View{Config: cfg, Nodes: make(map[string]*announce.Node, len(nodes)), PoolOf: func(a netip.Addr) string {
		if p := set.Of(a); p != nil {
			return p.Name
		}
		return ""
	}}
	for i := range nodes {
		view.Nodes[nodes[i].Name] = snapshot.NodeOf(&nodes[i])
	}
	return view
}

// Homes are the homes in a plan: what balances the load of the nodes is the choice of the address.
func Homes(plan *announce.View) ipam.Homes {
	if plan == nil {
		return nil
	}
	return func(r *ipam.Request, a netip.Addr) string { return plan.First(a, Claims(r)) }
}

// Claims is what a Service claims. Without endpoints it counts as being everywhere: they may come to be there.
func Claims(r *ipam.Request) []announce.Claim {
	svc := announce.Service{Namespace: r.Service.Namespace, Name: r.Service.Name, Labels: r.Labels}
	return []announce.Claim{{Service: &svc, Type: v1beta1.AddressLoadBalancerIP}}
}
