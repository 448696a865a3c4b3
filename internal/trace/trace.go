// Package trace follows a packet to an address of a Service, hop by hop, and names the first at which something is wrong.
//
// Who should announce the address, who does, and why not more is announce's and explain's to say; beside that it takes
// what the speakers of the nodes that a packet enters by report of connections that they opened. It is pure.
package trace

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/explain"
	"github.com/clarionlb/clarion/internal/text"
)

// Verdict is what is thought of a hop, or of a piece of evidence.
type Verdict string

// Verdicts, the worse first.
const (
	Fault   Verdict = "fault"   // packets do not get further, or not all of them
	Warning Verdict = "warning" // they do, and something is not as it should be
	Unknown Verdict = "unknown"
	Fine    Verdict = "ok"
)

var order = []Verdict{Fault, Warning, Unknown, Fine}

// Reasons of faults and warnings, beside those of the condition Announced.
const (
	ReasonNoService       = "NoService"       // no Service has the address
	ReasonNoSuchPort      = "NoSuchPort"      // the Service has not the port
	ReasonRouterUntold    = "RouterUntold"    // some router is not told by a node that should
	ReasonNodeGated       = "NodeGated"       // the node attracts no traffic while others can
	ReasonProxyUnhealthy  = "ProxyUnhealthy"  // the Service proxy says so, or does not answer
	ReasonProxyHasNoRules = "ProxyHasNoRules" // the node sends packets for the address on as they are
	ReasonProxyDrops      = "ProxyDrops"      // the address does not answer, and the endpoints do
	ReasonNotGuarded      = "NotGuarded"      // what the proxy does not rewrite may go round in circles
	ReasonSourceRange     = "SourceRange"     // the client is in none of loadBalancerSourceRanges
	ReasonBackendDead     = "BackendDead"     // a ready endpoint does not answer
)

// remedies are what to do, by reason; NODE stands for the node that it is about.
var remedies = map[string]string{
	ReasonNoService:       "kubectl get services -A | grep the address; a Service that waits for one says why in its condition Allocated",
	ReasonNoSuchPort:      "use one of the Service's ports, or add the port to spec.ports",
	ReasonRouterUntold:    "kubectl clarion explain peer NAME; the other routers and nodes carry the traffic meanwhile",
	ReasonNodeGated:       "other nodes are preferred; end the drain, or repair the Service proxy of NODE",
	ReasonProxyUnhealthy:  "on NODE: is kube-proxy running, and what does curl http://127.0.0.1:10256/healthz say? Another Service proxy: --proxy-health-url",
	ReasonProxyHasNoRules: "restart the Service proxy of NODE, and read its log: it has not written the rules, or something has removed them (iptables-save, nft list ruleset)",
	ReasonProxyDrops:      "on NODE, look for what drops the address though its endpoints answer: the Service proxy's rules, a firewall or a NetworkPolicy",
	ReasonNotGuarded:      "kubectl describe speaker NODE: the condition Guarded says what the kernel refused",
	ReasonSourceRange:     "add the client to spec.loadBalancerSourceRanges",
	ReasonBackendDead:     "kubectl get pods -o wide: is the program listening at targetPort, and does the pod network reach it from NODE? A readinessProbe would take it out of the endpoints",

	v1beta1.ReasonPending:         "wait ten seconds and trace again; for longer: the log of the speaker",
	v1beta1.ReasonNotInPool:       "create an IPAddressPool with the address, or give the Service another",
	v1beta1.ReasonNoAdvertisement: "create an L2Advertisement or BGPAdvertisement for the pool, or change the selectors of one",
	v1beta1.ReasonNoReadyEndpoint: "kubectl get endpointslices, kubectl get pods: does spec.selector match their labels, and are they ready?",
	v1beta1.ReasonNoEligibleNode:  "change the nodeSelectors, labels or interfaces that are named, or start the speakers that are not alive",
	v1beta1.ReasonSessionDown:     "kubectl clarion explain peer NAME, and the router's log",
	v1beta1.ReasonAddressConflict: "free the address on the host with that hardware address, or add it to excludeAddresses of the pool",
	v1beta1.ReasonNotAnswered:     "what the node says: mostly a link without carrier, or another node that answers",
	v1beta1.ReasonViewsDiffer:     "the log of that speaker, its watch of the API, and its release",
}

// Hop is a place that a packet passes.
type Hop struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	// Reason is for programs: that of the worst evidence; "" when all is well.
	Reason   string     `json:"reason,omitempty"`
	Evidence []Evidence `json:"evidence"`

	node string
}

// Evidence is what is known of a hop.
type Evidence struct {
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"`

	reason string
}

func (h *Hop) add(v Verdict, reason, format string, args ...any) {
	h.Evidence = append(h.Evidence, Evidence{v, fmt.Sprintf(format, args...), reason})
	if h.Verdict == "" || slices.Index(order, v) < slices.Index(order, h.Verdict) {
		h.Verdict, h.Reason = v, reason
	}
}

// Answer is the way of a packet.
type Answer struct {
	Address netip.Addr `json:"address"`
	Verdict Verdict    `json:"verdict"`
	// Reason, Text and Do are of the first fault; of the first warning where there is none.
	Reason string `json:"reason,omitempty"`
	Text   string `json:"text"`
	Do     string `json:"do,omitempty"`
	Hops   []Hop  `json:"hops"`
}

// Question is what a way is found from.
type Question struct {
	Address netip.Addr
	// Port of the Service; 0 for all.
	Port uint16
	// From is the client; the zero value when it is not known.
	From netip.Addr
	// Services are those that have the address, and Claims what the decisions know of them.
	Services []*corev1.Service
	Claims   []announce.Claim
	// Pool is that of the address; "" when it is in none.
	Pool string
	// Detail is who announces the address.
	Detail   explain.Detail
	Speakers map[string]*v1beta1.Speaker // by node
	// Reports are by node; Unasked says why a node of Entries has none.
	Reports map[string]Report
	Unasked map[string]string
}

// Entries are the nodes that packets for an address enter by, sorted.
func Entries(d explain.Detail) (out []string) {
	for _, a := range d.Answers {
		if a.Node != "" {
			out = append(out, a.Node)
		}
	}
	for _, r := range d.Routes {
		if r.Problem == "" {
			out = append(out, r.Node)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Of finds the way.
func Of(q Question) Answer {
	a := Answer{Address: q.Address}
	a.Hops = append(a.Hops, q.service())
	if len(q.Services) > 0 {
		a.Hops = append(a.Hops, q.announcement()...)
		for _, node := range Entries(q.Detail) {
			a.Hops = append(a.Hops, q.node(node))
		}
		if h := q.client(); len(h.Evidence) > 0 {
			a.Hops = append(a.Hops, h)
		}
		a.Hops = append(a.Hops, q.endpoints())
	}
	a.Verdict, a.Text = Fine, "nothing is wrong that can be seen from here"
	for _, v := range order[:3] {
		i := slices.IndexFunc(a.Hops, func(h Hop) bool { return h.Verdict == v })
		if i < 0 {
			continue
		}
		h := a.Hops[i]
		e := h.Evidence[slices.IndexFunc(h.Evidence, func(e Evidence) bool { return e.Verdict == v && e.reason == h.Reason })]
		a.Verdict, a.Reason, a.Text = v, h.Reason, h.Name+": "+e.Text
		a.Do = strings.ReplaceAll(remedies[h.Reason], "NODE", cmp.Or(h.node, "the node"))
		break
	}
	return a
}

func key(svc *corev1.Service) string { return svc.Namespace + "/" + svc.Name }

// service says whose the address is.
func (q *Question) service() Hop {
	h := Hop{Name: "Service"}
	if len(q.Services) == 0 {
		in := "is in no IPAddressPool"
		if q.Pool != "" {
			in = "is in the pool " + q.Pool
		}
		h.add(Fault, ReasonNoService, "no Service has %s, which %s", q.Address, in)
		return h
	}
	found := q.Port == 0
	var all []string
	for _, svc := range q.Services {
		var ports []string
		for _, p := range svc.Spec.Ports {
			ports = append(ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
			found = found || p.Port == int32(q.Port)
		}
		all = append(all, ports...)
		said := fmt.Sprintf("%s, %s, ports %s", key(svc), svc.Spec.Type, strings.Join(ports, " "))
		if svc.Spec.ExternalTrafficPolicy != "" {
			said += ", externalTrafficPolicy " + string(svc.Spec.ExternalTrafficPolicy)
		}
		h.add(Fine, "", "%s", said)
		if p := svc.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
			h.add(Fine, "", "internalTrafficPolicy Local is about its ClusterIP: for that, a node without an endpoint drops what its own pods send")
		}
		if no := svc.Spec.AllocateLoadBalancerNodePorts; no != nil && !*no {
			h.add(Fine, "", "it has no node ports (allocateLoadBalancerNodePorts: false): kube-proxy needs none, some other Service proxies do")
		}
	}
	if !found {
		h.add(Fault, ReasonNoSuchPort, "%s has no port %d, only %s", key(q.Services[0]), q.Port, strings.Join(all, " "))
	}
	return h
}

// announcement says who should announce the address and who does, on the local network and to the routers.
func (q *Question) announcement() (out []Hop) {
	d := q.Detail
	lan, routers := Hop{Name: "Local network"}, Hop{Name: "Routers"}
	if d.Layer2.Advertised {
		switch {
		case d.Layer2.Owner == "":
			lan.add(Fine, "", "nobody should answer: %s", d.Layer2.Why)
		case d.Layer2.Backup == "":
			lan.add(Fine, "", "%s should answer, and no other node could", d.Layer2.Owner)
		default:
			lan.add(Fine, "", "%s should answer, %s is its backup", d.Layer2.Owner, d.Layer2.Backup)
		}
		for _, by := range d.Answers {
			switch {
			case by.Node == "":
				lan.add(Warning, v1beta1.ReasonViewsDiffer, "another node than %s answers", d.Layer2.Owner)
			case len(by.Interfaces) > 0:
				lan.add(Fine, "", "%s answers on %s", by.Node, strings.Join(by.Interfaces, ", "))
			default:
				lan.add(Fine, "", "%s answers", by.Node)
			}
		}
		if d.Unanswered != "" {
			reason := v1beta1.ReasonNotAnswered
			if slices.Contains([]string{v1beta1.ReasonPending, v1beta1.ReasonViewsDiffer}, d.Reason) {
				reason = d.Reason
			}
			if len(d.Conflicts) > 0 { // which is why
				reason = v1beta1.ReasonAddressConflict
			}
			lan.add(Fault, reason, "nobody answers: %s", d.Unanswered)
		}
	}
	for _, c := range d.Conflicts {
		lan.add(Fault, v1beta1.ReasonAddressConflict, "%s claims the address too, heard by node %s on %s", c.HardwareAddress, c.Node, c.Interface)
	}
	reached := slices.ContainsFunc(d.Routes, func(r explain.Route) bool { return r.Problem == "" })
	for _, r := range d.Routes {
		switch {
		case r.Problem == "":
			routers.add(Fine, "", "%s is told %s by %s", r.Peer, r.Prefix, r.Node)
		case reached:
			routers.add(Warning, ReasonRouterUntold, "%s is not told %s by %s: %s", r.Peer, r.Prefix, r.Node, r.Problem)
		default:
			reason := v1beta1.ReasonSessionDown
			if !d.Announced {
				reason = d.Reason
			}
			routers.add(Fault, reason, "%s is not told %s by %s: %s", r.Peer, r.Prefix, r.Node, r.Problem)
		}
	}
	if reached && len(d.Answers) == 0 || len(d.Answers) > 0 && len(d.Routes) > 0 && !reached {
		soften(&lan)
		soften(&routers)
	}
	for _, h := range []Hop{lan, routers} {
		if len(h.Evidence) > 0 {
			out = append(out, h)
		}
	}
	if !d.Announced && !slices.ContainsFunc(out, func(h Hop) bool { return h.Verdict == Fault }) {
		h := Hop{Name: "Announcement"}
		h.add(Fault, d.Reason, "nobody announces it: %s", d.Text)
		out = append(out, h)
	}
	return out
}

// soften makes warnings of faults: of two ways to the address, the other is there. A conflict stays what it is.
func soften(h *Hop) {
	all := h.Evidence
	h.Evidence, h.Verdict, h.Reason = nil, "", ""
	for _, e := range all {
		if e.Verdict == Fault && e.reason != v1beta1.ReasonAddressConflict {
			e.Verdict = Warning
		}
		h.add(e.Verdict, e.reason, "%s", e.Text)
	}
}

// wanted says whether a check is of the port that is asked about.
func (q *Question) wanted(c Check) bool { return q.Port == 0 || c.Port == q.Port }

// node says what a node does with packets for the address.
func (q *Question) node(name string) Hop {
	h := Hop{Name: "Node " + name, node: name}
	if sp := q.Speakers[name]; sp != nil {
		if c := meta.FindStatusCondition(sp.Status.Conditions, v1beta1.ConditionGuarded); c != nil && c.Status == metav1.ConditionFalse {
			h.add(Warning, ReasonNotGuarded, "%s", c.Message)
		}
		if sp.Status.Gate != "" {
			h.add(Warning, ReasonNodeGated, "it attracts no traffic while others can: %s", sp.Status.Gate)
		}
	}
	r, ok := q.Reports[name]
	if !ok {
		h.add(Unknown, "", "its speaker was not asked: %s", cmp.Or(q.Unasked[name], "no reason is known"))
		return h
	}
	switch {
	case r.Proxy == nil:
	case *r.Proxy:
		h.add(Fine, "", "its Service proxy is healthy")
	default:
		h.add(Warning, ReasonProxyUnhealthy, "its Service proxy is unhealthy, or does not answer")
	}
	if r.Guarded {
		h.add(Fine, "", "what the Service proxy does not rewrite is answered as unreachable")
	}
	for _, c := range r.Checks {
		if c.Backend || !q.wanted(c) {
			continue
		}
		to := fmt.Sprintf("%s/%s", c.To, c.Protocol)
		said := outcomeText(c)
		switch {
		case !q.admits(c.Service, c.From):
			h.add(Fine, "", "%s: %s; it says nothing, as the node's own address %s is in none of loadBalancerSourceRanges", to, said, c.From)
		case r.New && (c.AsItIs || c.fails()):
			h.add(Warning, v1beta1.ReasonPending, "%s: %s; the node can serve it for some seconds only, and the Service proxy may be about to write its rules", to, said)
		case c.AsItIs:
			h.add(Fault, ReasonProxyHasNoRules, "%s: the Service proxy has no rule for it, and the packet left the node as it was (%s)", to, said)
		case !c.fails() && c.RewrittenTo.IsValid():
			h.add(Fine, "", "%s: %s, by the endpoint %s", to, said, c.RewrittenTo)
		case !c.fails():
			h.add(Fine, "", "%s: %s", to, said)
		case slices.ContainsFunc(r.Checks, func(b Check) bool { return b.Backend && b.Service == c.Service && b.Port == c.Port && b.fails() }):
			h.add(Unknown, "", "%s: %s; so do endpoints, see there", to, said)
		case !slices.ContainsFunc(r.Checks, func(b Check) bool { return b.Backend && b.Service == c.Service && b.Port == c.Port }):
			h.add(Unknown, "", "%s: %s; no endpoint was tried", to, said)
		default:
			h.add(Fault, ReasonProxyDrops, "%s: %s, though the endpoints answer this node", to, said)
		}
	}
	if r.Problem != "" {
		h.add(Unknown, "", "not all was tried: %s", r.Problem)
	}
	if r.Left > 0 {
		h.add(Fine, "", "%s not tried", text.Count(r.Left, "connection"))
	}
	return h
}

func outcomeText(c Check) string {
	switch {
	case c.Outcome == Answered:
		return fmt.Sprintf("answered after %.1f ms", float64(c.Microseconds)/1000)
	case c.Outcome == Silent && c.Protocol == "UDP":
		return "no answer to an empty datagram, which no program has to give"
	case c.Error != "":
		return strings.ToLower(c.Outcome) + " (" + c.Error + ")"
	}
	return strings.ToLower(c.Outcome)
}

// admits says whether a Service's loadBalancerSourceRanges let a client through.
func (q *Question) admits(service string, client netip.Addr) bool {
	for _, svc := range q.Services {
		if key(svc) != service || len(svc.Spec.LoadBalancerSourceRanges) == 0 {
			continue
		}
		return slices.ContainsFunc(svc.Spec.LoadBalancerSourceRanges, func(text string) bool {
			p, err := netip.ParsePrefix(strings.TrimSpace(text))
			return err == nil && p.Contains(client)
		})
	}
	return true
}

// client says whether the client may reach the Service.
func (q *Question) client() Hop {
	h := Hop{Name: "Source ranges"}
	for _, svc := range q.Services {
		ranges := strings.Join(svc.Spec.LoadBalancerSourceRanges, ", ")
		switch {
		case ranges == "":
		case !q.From.IsValid():
			h.add(Fine, "", "%s lets only clients in %s through: --from CLIENT compares one with them", key(svc), ranges)
		case q.admits(key(svc), q.From):
			h.add(Fine, "", "%s lets %s through: %s", key(svc), q.From, ranges)
		default:
			h.add(Fault, ReasonSourceRange, "%s does not let %s through: it is in none of %s", key(svc), q.From, ranges)
		}
	}
	return h
}

// endpoints says which endpoints can answer, and which of them do.
func (q *Question) endpoints() Hop {
	h := Hop{Name: "Endpoints"}
	for _, c := range q.Claims {
		nodes := c.EndpointNodes(q.Address)
		switch {
		case !c.HasEndpoint(q.Address):
			h.add(Fault, v1beta1.ReasonNoReadyEndpoint, "%s has no ready endpoint", c.Service.Key())
		case c.Anywhere(q.Address):
			h.add(Fine, "", "%s has endpoints on %s, which every node reaches", c.Service.Key(), text.Few(nodes))
		default:
			h.add(Fine, "", "%s has endpoints on %s, and with traffic policy Local each node serves from its own", c.Service.Key(), text.Few(nodes))
		}
	}
	type backend struct {
		to       netip.AddrPort
		protocol string
	}
	good := 0
	bad := map[backend][]string{}
	why := map[backend]string{}
	for _, node := range slices.Sorted(maps.Keys(q.Reports)) {
		for _, c := range q.Reports[node].Checks {
			b := backend{c.To, c.Protocol}
			switch {
			case !c.Backend || !q.wanted(c):
			case c.fails():
				bad[b], why[b] = append(bad[b], node), outcomeText(c)
				h.node = cmp.Or(h.node, node)
			default:
				good++
			}
		}
	}
	for _, b := range slices.SortedFunc(maps.Keys(bad), func(x, y backend) int {
		return cmp.Or(x.to.Compare(y.to), cmp.Compare(x.protocol, y.protocol))
	}) {
		h.add(Fault, ReasonBackendDead, "%s/%s does not answer %s: %s", b.to, b.protocol, text.Few(bad[b]), why[b])
	}
	if good > 0 {
		h.add(Fine, "", "%s to endpoints did not fail", text.Count(good, "connection"))
	}
	return h
}
