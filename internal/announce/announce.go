// Package announce decides who announces what, to whom, and why not: the owner of every address on the local network,
// and the routes that a node gives to its BGP peers. It is pure: it does no I/O, reads no clock and holds no logger;
// equal views give equal decisions on every node, whatever the order of events. The reasons it returns beside a decision
// are what conditions, events and the CLI show.
//
// Each address is decided by itself, with all the Services that claim it, so that nothing that happens to one moves
// another, and Services that share an address have one owner.
package announce

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/clarionlb/clarion/api/v1beta1"
)

// Node is what the decisions need to know of a node.
type Node struct {
	Name   string
	Labels labels.Set
	// Excluded says why the node never announces ("" if it may): it carries the label
	// node.kubernetes.io/exclude-from-external-load-balancers, or its network is unavailable.
	Excluded string
	// PodCIDRs of the node.
	PodCIDRs []netip.Prefix

	// Alive says that the node's speaker is a member of the group of speakers. The rest is what it told the others.
	Alive bool
	// SessionUp says that it has a BGP session that is up.
	SessionUp bool
	// Links are the interfaces it can announce on, nil when not known.
	Links []Link
	// Gate says why the node should not attract traffic while others can ("" if it may): its Service proxy is
	// unhealthy, or it is being drained. Gates never empty the set of candidates.
	Gate string
	// Draining says that Gate is a planned move: the node's routes are first made the last choice of routers, by
	// GRACEFUL_SHUTDOWN (RFC 8326) and the highest MED, and withdrawn only when Drained says that time is up.
	Draining, Drained bool
}

// Link is an interface that addresses can be announced on.
type Link struct {
	Name string
	// Up says that the link has carrier.
	Up bool
	// Excluded says that the link carries only addresses whose advertisement names it.
	Excluded bool
}

// NotInPool is why an address that a Service's status has is announced by nobody: it is in no pool, so that Clarion has
// not given it.
const NotInPool = "it is in no IPAddressPool"

// Service is what the decisions need to know of a Service.
type Service struct {
	// Namespace and Name identify it.
	Namespace, Name string
	Labels          labels.Set
	// LocalExternal and LocalInternal are its traffic policies (externalTrafficPolicy, internalTrafficPolicy: Local).
	LocalExternal, LocalInternal bool
	// HealthPort is where every node's Service proxy says whether it serves the Service from endpoints of its own
	// (healthCheckNodePort), 0 for none.
	HealthPort uint16
	// Endpoints4 and Endpoints6 are its endpoints of each family.
	Endpoints4, Endpoints6 Endpoints
}

// Key is the Service as namespace/name.
func (s *Service) Key() string { return s.Namespace + "/" + s.Name }

// Endpoints counts the endpoints of a Service that can take traffic, by node; those without a node are under "".
type Endpoints struct {
	// Ready endpoints.
	Ready map[string]int
	// Terminating endpoints that still serve (KEP-1669). They count only when no endpoint is ready.
	Terminating map[string]int
}

// usable are the endpoints that traffic should be drawn to.
func (e Endpoints) usable() map[string]int {
	if len(e.Ready) > 0 {
		return e.Ready
	}
	return e.Terminating
}

// Claim is an address that a Service has, and in which way.
type Claim struct {
	Service *Service
	Type    v1beta1.AddressType // LoadBalancerIP, ExternalIP or ClusterIP
}

// HasEndpoint says whether the Service has an endpoint, on any node, that can serve an address.
func (c Claim) HasEndpoint(addr netip.Addr) bool { return len(c.endpoints(addr)) > 0 }

func (c Claim) endpoints(addr netip.Addr) map[string]int {
	return c.Service.of(addr).usable()
}

// Anywhere says whether every node can serve the claim on an address, endpoints of its own or not.
func (c Claim) Anywhere(addr netip.Addr) bool { return !c.local() && c.HasEndpoint(addr) }

// ServedBy says whether a node can serve the claim on an address, as far as endpoints say.
func (c Claim) ServedBy(addr netip.Addr, node string) bool {
	return c.Anywhere(addr) || c.endpoints(addr)[node] > 0
}

// EndpointNodes are the nodes with endpoints that can serve an address, sorted; those without a node are left out.
func (c Claim) EndpointNodes(addr netip.Addr) (out []string) {
	for node, n := range c.endpoints(addr) {
		if n > 0 && node != "" {
			out = append(out, node)
		}
	}
	slices.Sort(out)
	return out
}

// local says whether only nodes with an endpoint of their own can serve the claim.
func (c Claim) local() bool {
	if c.Type == v1beta1.AddressClusterIP {
		return c.Service.LocalInternal
	}
	return c.Service.LocalExternal
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// of are the endpoints of one family.
func (s *Service) of(addr netip.Addr) Endpoints {
	if addr.Is4() {
		return s.Endpoints4
	}
	return s.Endpoints6
}

// Leaves says whether all endpoints that a node could serve a claim on an address from terminate: the Service proxy serves
// from them still (KEP-1669), and that they are gone soon is no failure.
func (v *View) Leaves(node string, addr netip.Addr, claims []Claim) bool {
	return slices.ContainsFunc(claims, func(c Claim) bool {
		e := c.Service.of(addr)
		if c.local() {
			return e.Ready[node] == 0 && e.Terminating[node] > 0
		}
		return len(e.Ready) == 0 && len(e.Terminating) > 0
	})
}

// ends says whether all endpoints that a node has for a claim with policy Local terminate while others are ready. The
// Service proxy serves from them still (KEP-1669), until traffic goes where the others are.
func (n *Node) ends(addr netip.Addr, claims []Claim) bool {
	if n.Excluded != "" {
		return false
	}
	for _, c := range claims {
		e := c.Service.of(addr)
		if c.local() && len(e.Ready) > 0 && e.Ready[n.Name] == 0 && e.Terminating[n.Name] > 0 {
			return true
		}
	}
	return false
}

// cannot says why a node cannot serve any of the claims on an address; "" when it can serve one.
func (n *Node) cannot(addr netip.Addr, claims []Claim) string {
	if n.Excluded != "" {
		return n.Excluded
	}
	why := ""
	for _, c := range claims {
		eps := c.endpoints(addr)
		switch {
		case len(eps) == 0:
			why = cmp.Or(why, fmt.Sprintf("the Service %s has no ready endpoint", c.Service.Key()))
		case c.local() && eps[n.Name] == 0:
			why = fmt.Sprintf("the Service %s has traffic policy Local and no ready endpoint there", c.Service.Key())
		default:
			return ""
		}
	}
	return why
}
