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

// explanation says of one object what it does, and why not more: the answer first, then what it rests on.
type explanation struct {
	Object string `json:"object"` // Kind/name
	Answer string `json:"answer"`
	// Fine says whether all is as someone wanted it; absent when that cannot be told.
	Fine      *bool             `json:"fine,omitempty"`
	Facts     []line            `json:"facts,omitempty"`
	Sections  []section         `json:"sections,omitempty"`
	Addresses []addressReport   `json:"addresses,omitempty"`
	Notes     []string          `json:"notes,omitempty"`
	NotShown  map[string]string `json:"notShown,omitempty"`
}

// section is a part of an explanation, with a title.
type section struct {
	Title string `json:"title"`
	Lines []line `json:"lines"`
}

// line is a fact; without a label it belongs to the line before.
type line struct {
	Label string `json:"label,omitempty"`
	Text  string `json:"text"`
}

// addressReport is who announces an address, for programs.
type addressReport struct {
	Address    string              `json:"address"`
	Type       v1beta1.AddressType `json:"type"`
	Pool       string              `json:"pool,omitempty"`
	Announced  bool                `json:"announced"`
	Reason     string              `json:"reason"`
	Text       string              `json:"text"`
	Owner      string              `json:"owner,omitempty"`
	Backup     string              `json:"backup,omitempty"`
	AnsweredBy []string            `json:"answeredBy,omitempty"`
	Routes     []routeReport       `json:"routes,omitempty"`
}

type routeReport struct {
	Node    string `json:"node"`
	Peer    string `json:"peer"`
	Prefix  string `json:"prefix"`
	Problem string `json:"problem,omitempty"`
}

// explainService says why a Service is or is not reachable.
func (c *cluster) explainService(svc *corev1.Service) explanation {
	key := svc.Namespace + "/" + svc.Name
	addresses := c.addressesOf(key, c.address)
	e := explanation{Object: "Service/" + key, NotShown: c.notShown(), Facts: []line{{"Service", describe(svc)}}}
	e.Answer, e.Fine = c.answer(svc, addresses)
	e.Answer = key + " " + e.Answer
	for _, name := range []string{v1beta1.ConditionAllocated, v1beta1.ConditionAnnounced} {
		_, short, _ := strings.Cut(name, "/")
		if cond := meta.FindStatusCondition(svc.Status.Conditions, name); cond != nil {
			e.Facts = append(e.Facts, line{short, fmt.Sprintf("%s, %s: %s", cond.Status, cond.Reason, cond.Message)})
		} else if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			e.Facts = append(e.Facts, line{short, "the controller has not said"})
		}
	}
	unselected := false
	for _, a := range addresses {
		e.Sections = append(e.Sections, a.section(""))
		e.Addresses = append(e.Addresses, a.report())
		unselected = unselected || a.Reason == v1beta1.ReasonNoAdvertisement || a.Reason == v1beta1.ReasonNoEligibleNode
	}
	if unselected { // perhaps one of these was to
		for _, p := range c.snap.Problems() {
			if p.Disabled {
				e.Notes = append(e.Notes, fmt.Sprintf("%s/%s is not usable: %s", p.Kind, p.Name, p.Message))
			}
		}
	}
	return e
}

// addressesOf are the addresses of a Service that are or could be announced, as of says.
func (c *cluster) addressesOf(key string, of func(netip.Addr, v1beta1.AddressType) *address) (out []*address) {
	if c.blind() { // what is decided without knowing all is wrong
		return nil
	}
	for _, t := range []v1beta1.AddressType{v1beta1.AddressLoadBalancerIP, v1beta1.AddressExternalIP, v1beta1.AddressClusterIP} {
		for _, addr := range c.snap.Addresses(key, t) {
			a := of(addr, t)
			// That a ClusterIP is not announced is what everyone expects.
			if t != v1beta1.AddressClusterIP || len(a.Routes) > 0 {
				out = append(out, a)
			}
		}
	}
	return out
}

// blind says whether something may not be read that decisions are made from.
func (c *cluster) blind() bool {
	for kind := range c.hidden {
		if kind != "Lease" {
			return true
		}
	}
	return false
}

// paint is the answer for people.
func (e *explanation) paint(a *app) string {
	color := yellow
	if e.Fine != nil {
		color = red
		if *e.Fine {
			color = green
		}
	}
	return a.paint(color, e.Answer)
}

// write writes an explanation for people.
func (e *explanation) write(a *app, w io.Writer) error {
	fmt.Fprintln(w, e.paint(a))
	if len(e.Facts) > 0 {
		fmt.Fprintln(w)
	}
	for _, f := range e.Facts {
		fmt.Fprintf(w, "%-9s  %s\n", f.Label, f.Text)
	}
	return e.rest(w)
}

// rest is what comes below the answer and the facts.
func (e *explanation) rest(w io.Writer) error {
	for _, s := range e.Sections {
		fmt.Fprintf(w, "\n%s\n", s.Title)
		format := "  %-9s  %s\n"
		if !slices.ContainsFunc(s.Lines, func(l line) bool { return l.Label != "" }) {
			format = "  %s%s\n"
		}
		for _, l := range s.Lines {
			fmt.Fprintf(w, format, l.Label, l.Text)
		}
	}
	for _, n := range e.Notes {
		fmt.Fprintf(w, "\n%s\n", n)
	}
	return writeHidden(w, e.NotShown)
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

// answer is the answer in one sentence, and whether it is a good one; nil when nobody can tell.
func (c *cluster) answer(svc *corev1.Service, addresses []*address) (string, *bool) {
	var reachable, missing []string
	for _, a := range addresses {
		if a.Announced {
			reachable = append(reachable, a.addr.String())
		} else {
			missing = append(missing, fmt.Sprintf("nobody announces %s: %s", a.addr, a.Text))
		}
	}
	if len(reachable) == 0 {
		if why, fine := c.noAddress(svc); why != "" {
			return why, fine
		}
		if c.blind() {
			return "cannot be judged without what is not shown; Announced is what the controller says.", nil
		}
		return "is not reachable: " + strings.Join(missing, "; ") + ".", new(false)
	}
	fine := len(missing) == 0
	out := "is reachable at " + strings.Join(reachable, " and ")
	for _, a := range addresses {
		if a.Reason == v1beta1.ReasonAddressConflict && a.Announced {
			out += fmt.Sprintf(", but another machine claims %s too", a.addr)
			fine = false
		}
	}
	if len(missing) > 0 {
		out += ", but " + strings.Join(missing, "; ")
	}
	return out + ".", &fine
}

// noAddress says why a Service has no address that Clarion could announce, "" if it has one.
func (c *cluster) noAddress(svc *corev1.Service) (why string, fine *bool) {
	class := svc.Spec.LoadBalancerClass
	cond := meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAllocated)
	k := c.controller
	controller := "the controller has not looked at it. Is it running?"
	if c.hidden["Lease"] == nil && (k.lease || k.alive) {
		if controller = "the controller has not looked at it."; !k.alive {
			controller = k.problem(c.namespace) + "."
		}
	}
	no := new(false)
	switch {
	case svc.Spec.Type != corev1.ServiceTypeLoadBalancer && len(svc.Spec.ExternalIPs) > 0:
		return "", nil
	case svc.Spec.Type != corev1.ServiceTypeLoadBalancer:
		return fmt.Sprintf("is not reachable: it is of type %s, and only Services of type LoadBalancer get an external address.", svc.Spec.Type), no
	case k.unknown == nil && class != nil && *class != k.class.Name:
		return fmt.Sprintf("is not Clarion's: its loadBalancerClass is %s, Clarion's is %s.", *class, k.class.Name), no
	case k.unknown == nil && cond == nil && class == nil && !k.class.Default:
		return fmt.Sprintf("is not Clarion's: it has no loadBalancerClass, and the controller, which runs with --default-class=false, serves the class %s alone.", k.class.Name), no
	case cond == nil && len(svc.Status.LoadBalancer.Ingress) > 0:
		return "is left alone: somebody else has given it its address, which is in no IPAddressPool, or the controller has not looked at it yet.", nil
	case cond == nil && k.unknown != nil:
		return "is not reachable: " + controller + " It may not be Clarion's.", no
	case cond == nil:
		return "is not reachable: " + controller, no
	case len(svc.Status.LoadBalancer.Ingress) == 0 && cond.Status == metav1.ConditionTrue:
		return "is not reachable: it has no address.", no
	case len(svc.Status.LoadBalancer.Ingress) == 0:
		return "is not reachable: it has no address: " + cond.Message + ".", no
	}
	return "", nil
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

// section is who announces an address, and who could; of is whose it is, where that is not said already.
func (a *address) section(of string) section {
	s := section{Title: fmt.Sprintf("%s  %s", a.addr, a.kind)}
	if of != "" {
		s.Title += " of " + of
	}
	if a.pool != "" {
		s.Title += " from the pool " + a.pool
	}
	add := func(label, format string, args ...any) {
		s.Lines = append(s.Lines, line{label, fmt.Sprintf(format, args...)})
	}
	if a.kind == v1beta1.AddressLoadBalancerIP {
		switch {
		case len(a.Answers) > 0:
			for _, by := range a.Answers {
				switch {
				case by.Node == "":
					add("layer 2", "another node than %s answers", a.Layer2.Owner)
				case len(by.Interfaces) == 0:
					add("layer 2", "%s answers", by.Node)
				default:
					add("layer 2", "%s answers on %s", by.Node, strings.Join(by.Interfaces, ", "))
				}
			}
		case a.Unanswered != "":
			add("layer 2", "nobody answers: %s", a.Unanswered)
		default:
			add("layer 2", "nobody answers: %s", a.Layer2.Why)
		}
		for _, n := range a.Layer2.Candidates {
			switch {
			case a.Layer2.Why != "": // which is the sum of what is wrong with them
			case slices.ContainsFunc(a.Answers, func(by explain.Answer) bool { return by.Node == n.Node }):
			case n.Why != "":
				add("", "%s cannot: %s", n.Node, n.Why)
			case n.Gate != "":
				add("", "%s can if nobody else can: %s", n.Node, n.Gate)
			default:
				add("", "%s can take over", n.Node)
			}
		}
	}
	first := "BGP"
	for _, r := range a.Routes {
		text := fmt.Sprintf("%s announces %s to %s", r.Node, r.Prefix, r.Peer)
		if r.Problem != "" {
			text = fmt.Sprintf("%s has %s for %s, which it does not reach: %s", r.Node, r.Prefix, r.Peer, r.Problem)
		}
		add(first, "%s", text)
		first = ""
	}
	for _, why := range sortedKeys(a.NoRoute) {
		if len(a.Routes) == 0 && len(a.NoRoute) == 1 {
			add(first, "nobody announces it: %s", why)
		} else {
			add(first, "%s: nothing: %s", strings.Join(a.NoRoute[why], ", "), why)
		}
		first = ""
	}
	for _, conflict := range a.Conflicts {
		add("conflict", "%s", conflictText(conflict))
	}
	return s
}

// report is the same for programs.
func (a *address) report() addressReport {
	r := addressReport{
		Address: a.addr.String(), Type: a.kind, Pool: a.pool, Announced: a.Announced, Reason: a.Reason, Text: a.Text,
		Owner: a.Layer2.Owner, Backup: a.Layer2.Backup,
	}
	for _, by := range a.Answers {
		if by.Node != "" {
			r.AnsweredBy = append(r.AnsweredBy, by.Node)
		}
	}
	for _, x := range a.Routes {
		r.Routes = append(r.Routes, routeReport{x.Node, x.Peer, x.Prefix.String(), x.Problem})
	}
	return r
}
