package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/speaker/announce"
)

// writeExplanation says why a Service is or is not reachable: the answer first, then what it rests on.
func writeExplanation(w io.Writer, c *cluster, svc *corev1.Service) error {
	key := svc.Namespace + "/" + svc.Name
	c.snap.Lock()
	defer c.snap.Unlock()
	var addresses []*address
	for _, t := range []v1beta1.AddressType{v1beta1.AddressLoadBalancerIP, v1beta1.AddressExternalIP, v1beta1.AddressClusterIP} {
		for _, addr := range c.snap.Addresses(key, t) {
			a := c.address(addr, t, key)
			// That a ClusterIP is not announced is what everyone expects.
			if t != v1beta1.AddressClusterIP || len(a.routes) > 0 {
				addresses = append(addresses, a)
			}
		}
	}
	fmt.Fprintf(w, "%s %s\n\n", key, verdict(svc, addresses))
	fmt.Fprintf(w, "Service    %s\n", describe(svc))
	for _, name := range []string{v1beta1.ConditionAllocated, v1beta1.ConditionAnnounced} {
		_, short, _ := strings.Cut(name, "/")
		if cond := meta.FindStatusCondition(svc.Status.Conditions, name); cond != nil {
			fmt.Fprintf(w, "%-9s  %s, %s: %s\n", short, cond.Status, cond.Reason, cond.Message)
		} else if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			fmt.Fprintf(w, "%-9s  the controller has not said\n", short)
		}
	}
	for _, a := range addresses {
		if err := a.write(w); err != nil {
			return err
		}
	}
	return nil
}

// address is one address of a Service with who announces it.
type address struct {
	addr netip.Addr
	kind v1beta1.AddressType
	pool string
	// answering are the interfaces, by node, on which nodes say that they answer ARP or NDP for it.
	answering map[string][]string
	layer2    announce.Layer2
	// byBGP says that a BGPAdvertisement is about it.
	byBGP bool
	// routes are the nodes that have a route for it to give, and what becomes of it.
	routes []route
	// noRoute says of each node that has none why it has none.
	noRoute map[string][]string
	// conflicts are claims of strangers on it.
	conflicts []string
}

// route is what a node announces to a peer.
type route struct {
	node, peer, prefix string
	// problem says why it does not reach the peer; "" when it does.
	problem string
}

func (c *cluster) address(addr netip.Addr, kind v1beta1.AddressType, key string) *address {
	view := c.snap.View()
	claims := c.snap.ClaimsOn(addr)
	a := &address{addr: addr, kind: kind, answering: map[string][]string{}, noRoute: map[string][]string{}}
	if kind == v1beta1.AddressLoadBalancerIP {
		a.pool = view.PoolOf(addr)
		a.layer2 = c.snap.Layer2().Explain(addr)
	}
	for _, s := range c.speakers {
		for _, l := range s.Status.Layer2 {
			if l.Address == addr.String() && slices.Contains(l.Services, key) && c.alive[s.Name] {
				a.answering[s.Name] = l.Interfaces
			}
		}
		for _, conflict := range s.Status.Conflicts {
			if conflict.Address == addr.String() {
				a.conflicts = append(a.conflicts, conflictText(s.Name, conflict))
			}
		}
	}
	for _, node := range sortedKeys(view.Nodes) {
		d := view.ForBGP(node, addr, claims)
		a.byBGP = a.byBGP || d.Advertised
		if len(d.Exports) == 0 {
			a.noRoute[d.Why] = append(a.noRoute[d.Why], node)
		}
		for _, e := range d.Exports {
			a.routes = append(a.routes, route{node, e.Peer, e.Prefix.String(), c.sessionProblem(node, e.Peer)})
		}
	}
	return a
}

const notAlive = "its speaker is not alive"

// sessionProblem says why nothing that a node announces reaches a peer, "" if it does.
func (c *cluster) sessionProblem(node, peer string) string {
	s := c.speaker(node)
	if s == nil || !c.alive[node] {
		return notAlive
	}
	i := slices.IndexFunc(s.Status.Sessions, func(s v1beta1.SessionStatus) bool { return s.Peer == peer })
	switch {
	case i < 0:
		return "it has no such session"
	case s.Status.Sessions[i].State != established:
		return sessionState(s.Status.Sessions[i])
	}
	return ""
}

func (a *address) announced() bool {
	return len(a.answering) > 0 || slices.ContainsFunc(a.routes, func(r route) bool { return r.problem == "" })
}

// whyNot says why nobody announces the address.
func (a *address) whyNot() string {
	switch {
	case len(a.routes) > 0:
		r := a.routes[0]
		if i := slices.IndexFunc(a.routes, func(r route) bool { return r.problem != notAlive }); i >= 0 {
			r = a.routes[i] // a living speaker knows more
		}
		return fmt.Sprintf("no BGP session for it is up: %s to %s: %s", r.node, r.peer, r.problem)
	case a.layer2.Owner != "":
		return fmt.Sprintf("%s should answer for it on the local network, and does not say that it does", a.layer2.Owner)
	}
	// Of the two ways, the one that nobody asked for has nothing to say.
	noRoute := sortedKeys(a.noRoute)
	switch {
	case a.kind != v1beta1.AddressLoadBalancerIP || a.byBGP && !a.layer2.Advertised:
	case a.layer2.Advertised && !a.byBGP:
		noRoute = []string{a.layer2.Why}
	case !slices.Contains(noRoute, a.layer2.Why):
		noRoute = append([]string{a.layer2.Why}, noRoute...)
	}
	return strings.Join(noRoute, "; ")
}

// verdict is the answer in one sentence.
func verdict(svc *corev1.Service, addresses []*address) string {
	var reachable, missing []string
	for _, a := range addresses {
		if a.announced() {
			reachable = append(reachable, a.addr.String())
		} else {
			missing = append(missing, fmt.Sprintf("nobody announces %s: %s", a.addr, a.whyNot()))
		}
	}
	if len(reachable) == 0 {
		if why := noAddress(svc); why != "" {
			return why
		}
		return "is not reachable: " + strings.Join(missing, "; ") + "."
	}
	out := "is reachable at " + strings.Join(reachable, " and ")
	for _, a := range addresses {
		if len(a.conflicts) > 0 {
			out += fmt.Sprintf(", but another machine claims %s too", a.addr)
		}
	}
	if len(missing) > 0 {
		out += ", but " + strings.Join(missing, "; ")
	}
	return out + "."
}

// noAddress says why a Service has no address that Clarion could announce, "" if it has one.
func noAddress(svc *corev1.Service) string {
	class := svc.Spec.LoadBalancerClass
	cond := meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAllocated)
	switch {
	case svc.Spec.Type != corev1.ServiceTypeLoadBalancer && len(svc.Spec.ExternalIPs) > 0:
		return ""
	case svc.Spec.Type != corev1.ServiceTypeLoadBalancer:
		return fmt.Sprintf("is not reachable: it is of type %s, and only Services of type LoadBalancer get an external address.", svc.Spec.Type)
	case class != nil && *class != v1beta1.LoadBalancerClass:
		return fmt.Sprintf("is not Clarion's: its loadBalancerClass is %s, Clarion's is %s.", *class, v1beta1.LoadBalancerClass)
	case cond == nil && len(svc.Status.LoadBalancer.Ingress) > 0:
		return "is left alone: somebody else has given it its address, which is in no IPAddressPool, or the controller has not looked at it yet."
	case cond == nil && class == nil:
		return "is not reachable: the controller has not looked at it. Is it running? Without a loadBalancerClass the Service is Clarion's only if the controller runs with --default-class."
	case cond == nil:
		return "is not reachable: the controller has not looked at it. Is it running?"
	case len(svc.Status.LoadBalancer.Ingress) == 0 && cond.Status == metav1.ConditionTrue:
		return "is not reachable: it has no address."
	case len(svc.Status.LoadBalancer.Ingress) == 0:
		return "is not reachable: it has no address: " + cond.Message + "."
	}
	return ""
}

func describe(svc *corev1.Service) string {
	out := string(svc.Spec.Type)
	if svc.Spec.ExternalTrafficPolicy != "" {
		out += ", externalTrafficPolicy " + string(svc.Spec.ExternalTrafficPolicy)
	}
	var ports []string
	for _, p := range svc.Spec.Ports {
		ports = append(ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
	}
	if len(ports) > 0 {
		out += ", ports " + strings.Join(ports, " ")
	}
	return out
}

func (a *address) write(w io.Writer) error {
	fmt.Fprintf(w, "\n%s  %s", a.addr, a.kind)
	if a.pool != "" {
		fmt.Fprintf(w, " from the pool %s", a.pool)
	}
	fmt.Fprintln(w)
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	if a.kind == v1beta1.AddressLoadBalancerIP {
		switch {
		case len(a.answering) > 0:
			for _, node := range sortedKeys(a.answering) {
				add("layer 2    %s answers on %s", node, strings.Join(a.answering[node], ", "))
			}
		case a.layer2.Owner != "":
			add("layer 2    %s should answer, and does not say that it does", a.layer2.Owner)
		default:
			add("layer 2    nobody answers: %s", a.layer2.Why)
		}
		for _, n := range a.layer2.Candidates {
			switch {
			case a.layer2.Why != "": // which is the sum of what is wrong with them
			case a.answering[n.Node] != nil:
			case n.Why != "":
				add("           %s cannot: %s", n.Node, n.Why)
			case n.Gate != "":
				add("           %s can if nobody else can: %s", n.Node, n.Gate)
			case n.Full != "":
				add("           %s can take over: %s", n.Node, n.Full)
			default:
				add("           %s can take over", n.Node)
			}
		}
	}
	first := "BGP        "
	for _, r := range a.routes {
		text := fmt.Sprintf("%s announces %s to %s", r.node, r.prefix, r.peer)
		if r.problem != "" {
			text = fmt.Sprintf("%s has %s for %s, which it does not reach: %s", r.node, r.prefix, r.peer, r.problem)
		}
		add("%s%s", first, text)
		first = "           "
	}
	for _, why := range sortedKeys(a.noRoute) {
		if len(a.routes) == 0 && len(a.noRoute) == 1 {
			add("%snobody announces it: %s", first, why)
		} else {
			add("%s%s: nothing: %s", first, strings.Join(a.noRoute[why], ", "), why)
		}
		first = "           "
	}
	for _, conflict := range a.conflicts {
		add("conflict   %s", conflict)
	}
	_, err := fmt.Fprintln(w, "  "+strings.Join(lines, "\n  "))
	return err
}
