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
	"github.com/clarionlb/clarion/internal/explain"
)

// writeExplanation says why a Service is or is not reachable: the answer first, then what it rests on.
func writeExplanation(w io.Writer, c *cluster, svc *corev1.Service) error {
	key := svc.Namespace + "/" + svc.Name
	c.snap.Lock()
	defer c.snap.Unlock()
	var addresses []*address
	types := []v1beta1.AddressType{v1beta1.AddressLoadBalancerIP, v1beta1.AddressExternalIP, v1beta1.AddressClusterIP}
	if len(c.hidden) > 0 {
		types = nil // what is decided without knowing all is wrong
	}
	for _, t := range types {
		for _, addr := range c.snap.Addresses(key, t) {
			a := c.address(addr, t)
			// That a ClusterIP is not announced is what everyone expects.
			if t != v1beta1.AddressClusterIP || len(a.Routes) > 0 {
				addresses = append(addresses, a)
			}
		}
	}
	fmt.Fprintf(w, "%s %s\n\n", key, c.answer(svc, addresses))
	fmt.Fprintf(w, "Service    %s\n", describe(svc))
	for _, name := range []string{v1beta1.ConditionAllocated, v1beta1.ConditionAnnounced} {
		_, short, _ := strings.Cut(name, "/")
		if cond := meta.FindStatusCondition(svc.Status.Conditions, name); cond != nil {
			fmt.Fprintf(w, "%-9s  %s, %s: %s\n", short, cond.Status, cond.Reason, cond.Message)
		} else if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			fmt.Fprintf(w, "%-9s  the controller has not said\n", short)
		}
	}
	unselected := false
	for _, a := range addresses {
		if err := a.write(w); err != nil {
			return err
		}
		unselected = unselected || a.Reason == v1beta1.ReasonNoAdvertisement || a.Reason == v1beta1.ReasonNoEligibleNode
	}
	if unselected { // perhaps one of these was to
		for _, p := range c.snap.Problems() {
			if p.Disabled {
				fmt.Fprintf(w, "\n%s/%s is not usable: %s\n", p.Kind, p.Name, p.Message)
			}
		}
	}
	return c.writeHidden(w)
}

// address is one address of a Service with who announces it.
type address struct {
	addr netip.Addr
	kind v1beta1.AddressType
	pool string
	explain.Detail
}

func (c *cluster) address(addr netip.Addr, kind v1beta1.AddressType) *address {
	c.book.Set(addr, c.snap.ClaimsOn(addr), c.snap.Owner(addr))
	c.book.Touched(c.now)
	a := &address{addr: addr, kind: kind, Detail: c.book.Detail(addr, c.now)}
	if kind == v1beta1.AddressLoadBalancerIP {
		a.pool = c.snap.View().PoolOf(addr)
	}
	return a
}

// answer is the answer in one sentence.
func (c *cluster) answer(svc *corev1.Service, addresses []*address) string {
	var reachable, missing []string
	for _, a := range addresses {
		if a.Announced {
			reachable = append(reachable, a.addr.String())
		} else {
			missing = append(missing, fmt.Sprintf("nobody announces %s: %s", a.addr, a.Text))
		}
	}
	if len(reachable) == 0 {
		if why := noAddress(svc); why != "" {
			return why
		}
		if len(c.hidden) > 0 {
			return "cannot be judged without what is not shown; Announced is what the controller says."
		}
		return "is not reachable: " + strings.Join(missing, "; ") + "."
	}
	out := "is reachable at " + strings.Join(reachable, " and ")
	for _, a := range addresses {
		if a.Reason == v1beta1.ReasonAddressConflict && a.Announced {
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
		case len(a.Answers) > 0:
			for _, by := range a.Answers {
				switch {
				case by.Node == "":
					add("layer 2    another node than %s answers", a.Layer2.Owner)
				case len(by.Interfaces) == 0:
					add("layer 2    %s answers", by.Node)
				default:
					add("layer 2    %s answers on %s", by.Node, strings.Join(by.Interfaces, ", "))
				}
			}
		case a.Unanswered != "":
			add("layer 2    nobody answers: %s", a.Unanswered)
		default:
			add("layer 2    nobody answers: %s", a.Layer2.Why)
		}
		for _, n := range a.Layer2.Candidates {
			switch {
			case a.Layer2.Why != "": // which is the sum of what is wrong with them
			case slices.ContainsFunc(a.Answers, func(by explain.Answer) bool { return by.Node == n.Node }):
			case n.Why != "":
				add("           %s cannot: %s", n.Node, n.Why)
			case n.Gate != "":
				add("           %s can if nobody else can: %s", n.Node, n.Gate)
			default:
				add("           %s can take over", n.Node)
			}
		}
	}
	first := "BGP        "
	for _, r := range a.Routes {
		text := fmt.Sprintf("%s announces %s to %s", r.Node, r.Prefix, r.Peer)
		if r.Problem != "" {
			text = fmt.Sprintf("%s has %s for %s, which it does not reach: %s", r.Node, r.Prefix, r.Peer, r.Problem)
		}
		add("%s%s", first, text)
		first = "           "
	}
	for _, why := range sortedKeys(a.NoRoute) {
		if len(a.Routes) == 0 && len(a.NoRoute) == 1 {
			add("%snobody announces it: %s", first, why)
		} else {
			add("%s%s: nothing: %s", first, strings.Join(a.NoRoute[why], ", "), why)
		}
		first = "           "
	}
	for _, conflict := range a.Conflicts {
		add("conflict   %s", conflictText(conflict))
	}
	_, err := fmt.Fprintln(w, "  "+strings.Join(lines, "\n  "))
	return err
}
