package main

import (
	"context"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/controller/ipam"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/pool"
	"github.com/clarionlb/clarion/internal/snapshot"
)

// planOf is the cluster as the plan of the local network sees it, with every speaker alive; nil when no L2Advertisement
// announces anything.
func planOf(ctx context.Context, c client.Reader, pools []v1beta1.IPAddressPool, set *pool.Set) (*announce.View, error) {
	var ads v1beta1.L2AdvertisementList
	var nodes corev1.NodeList
	if err := c.List(ctx, &ads); err != nil {
		return nil, fmt.Errorf("list L2Advertisements: %w", err)
	}
	if err := c.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list Nodes: %w", err)
	}
	var o config.Objects
	for i := range pools {
		o.Pools = append(o.Pools, &pools[i])
	}
	for i := range ads.Items {
		o.L2Advertisements = append(o.L2Advertisements, &ads.Items[i])
	}
	cfg, _ := config.Parse(o) // what is wrong is said elsewhere
	if len(cfg.L2) == 0 {
		return nil, nil
	}
	view := &announce.View{Config: cfg, Nodes: make(map[string]*announce.Node, len(nodes.Items)), PoolOf: func(a netip.Addr) string {
		if p := set.Of(a); p != nil {
			return p.Name
		}
		return ""
	}}
	for i := range nodes.Items {
		view.Nodes[nodes.Items[i].Name] = snapshot.NodeOf(&nodes.Items[i])
	}
	return view, nil
}

// homesIn are the homes in a plan: what balances the load of the nodes is the choice of the address.
func homesIn(plan *announce.View) ipam.Homes {
	if plan == nil {
		return nil
	}
	return func(r *ipam.Request, a netip.Addr) string { return plan.First(a, claimsOf(r)) }
}

// claimsOf is what a Service claims. Without endpoints it counts as being everywhere: they may come to be there.
func claimsOf(r *ipam.Request) []announce.Claim {
	svc := announce.Service{Namespace: r.Service.Namespace, Name: r.Service.Name, Labels: r.Labels}
	return []announce.Claim{{Service: &svc, Type: v1beta1.AddressLoadBalancerIP}}
}
