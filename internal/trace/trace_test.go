package trace

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/explain"
)

var (
	addr    = netip.MustParseAddr("192.0.2.200")
	backend = netip.MustParseAddrPort("10.244.1.2:8080")
	other   = netip.MustParseAddrPort("10.244.2.2:8080")
)

// healthy is a way on which all is well: node1 answers on the local network, and is the way of a route too.
func healthy() Question {
	service := &announce.Service{Namespace: "default", Name: "web", Endpoints4: announce.Endpoints{Ready: map[string]int{"node1": 1, "node2": 1}}}
	yes := true
	return Question{
		Address: addr, Pool: "lan",
		Services: []*corev1.Service{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}, {Port: 7, Protocol: corev1.ProtocolUDP}}},
		}},
		Claims: []announce.Claim{{Service: service, Type: v1beta1.AddressLoadBalancerIP}},
		Detail: explain.Detail{
			Explanation: explain.Explanation{Reason: v1beta1.ReasonAnnounced, Announced: true},
			Layer2:      announce.Layer2{Advertised: true, Owner: "node1", Backup: "node2"},
			Answers:     []explain.Answer{{Node: "node1", Interfaces: []string{"eth0"}}},
		},
		Speakers: map[string]*v1beta1.Speaker{"node1": {}},
		Unasked:  map[string]string{},
		Reports: map[string]Report{"node1": {Node: "node1", Proxy: &yes, Guarded: true, Checks: []Check{
			{Service: "default/web", Protocol: "TCP", Port: 80, To: netip.AddrPortFrom(addr, 80), Outcome: Answered, From: netip.MustParseAddr("192.0.2.11"), RewrittenTo: backend},
			{Service: "default/web", Protocol: "UDP", Port: 7, To: netip.AddrPortFrom(addr, 7), Outcome: Silent},
			{Service: "default/web", Protocol: "TCP", Port: 80, To: backend, Backend: true, Outcome: Answered},
			{Service: "default/web", Protocol: "TCP", Port: 80, To: other, Backend: true, Outcome: Answered},
		}}},
	}
}

// checks are those of the node that is asked.
func (q *Question) checks() []Check { return q.Reports["node1"].Checks }

// bgp has the address announced by routes instead.
func (q *Question) bgp(problems ...string) {
	q.Detail.Layer2, q.Detail.Answers = announce.Layer2{}, nil
	for i, problem := range problems {
		q.Detail.Routes = append(q.Detail.Routes, explain.Route{Node: "node1", Peer: []string{"tor1", "tor2"}[i], Prefix: netip.PrefixFrom(addr, 32), Problem: problem})
	}
}

func nobody(reason string) func(*Question) {
	return func(q *Question) {
		q.Detail = explain.Detail{Explanation: explain.Explanation{Reason: reason, Text: "why"}}
	}
}

func TestFirstFault(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*Question)
		verdict Verdict
		reason  string
		words   string
	}{
		{"nothing", func(*Question) {}, Fine, "", "nothing is wrong"},
		{"nobody's", func(q *Question) { q.Services, q.Claims = nil, nil }, Fault, ReasonNoService, "in the pool lan"},
		{"port", func(q *Question) { q.Port = 443 }, Fault, ReasonNoSuchPort, "no port 443, only 80/TCP 7/UDP"},
		{"not announced", nobody(v1beta1.ReasonNoAdvertisement), Fault, v1beta1.ReasonNoAdvertisement, "Announcement: nobody announces it: why"},
		{"no endpoint", func(q *Question) {
			nobody(v1beta1.ReasonNoReadyEndpoint)(q)
			q.Claims[0].Service.Endpoints4 = announce.Endpoints{}
		}, Fault, v1beta1.ReasonNoReadyEndpoint, "Announcement"},
		{"silent owner", func(q *Question) {
			q.Detail.Answers, q.Detail.Announced, q.Detail.Unanswered, q.Detail.Reason = nil, false, "no carrier", v1beta1.ReasonNotAnswered
		}, Fault, v1beta1.ReasonNotAnswered, "no carrier"},
		{"foreign host", func(q *Question) {
			q.Detail.Conflicts = []explain.Conflict{{Node: "node1", AddressConflict: v1beta1.AddressConflict{HardwareAddress: "02:00:00:00:00:01", Interface: "eth0"}}}
			q.checks()[0].AsItIs = true // later on the way
		}, Fault, v1beta1.ReasonAddressConflict, "02:00:00:00:00:01 claims"},
		{"silent because of a foreign host", func(q *Question) {
			q.Detail.Answers, q.Detail.Announced, q.Detail.Unanswered, q.Detail.Reason = nil, false, "a foreign host had it before: 02:00:00:00:00:01", v1beta1.ReasonAddressConflict
			q.Detail.Conflicts = []explain.Conflict{{Node: "node1", AddressConflict: v1beta1.AddressConflict{HardwareAddress: "02:00:00:00:00:01", Interface: "eth0"}}}
		}, Fault, v1beta1.ReasonAddressConflict, "nobody answers: a foreign host had it before"},
		{"no session", func(q *Question) {
			q.bgp("Active (refused)")
			q.Detail.Announced, q.Detail.Reason = false, v1beta1.ReasonSessionDown
		}, Fault, v1beta1.ReasonSessionDown, "tor1 is not told"},
		{"one session of two", func(q *Question) { q.bgp("", "Active") }, Warning, ReasonRouterUntold, "tor2 is not told"},
		{"no session, but the local network", func(q *Question) {
			l2, answers := q.Detail.Layer2, q.Detail.Answers
			q.bgp("Active")
			q.Detail.Layer2, q.Detail.Answers = l2, answers
		}, Warning, v1beta1.ReasonSessionDown, "tor1 is not told"},
		{"guard", func(q *Question) {
			q.Speakers["node1"].Status.Conditions = []metav1.Condition{{Type: v1beta1.ConditionGuarded, Status: metav1.ConditionFalse, Message: "may go round"}}
		}, Warning, ReasonNotGuarded, "Node node1: may go round"},
		{"gate", func(q *Question) { q.Speakers["node1"].Status.Gate = "it is being drained" }, Warning, ReasonNodeGated, "being drained"},
		{"proxy unhealthy", func(q *Question) { *q.Reports["node1"].Proxy = false }, Warning, ReasonProxyUnhealthy, "unhealthy"},
		{"no rules", func(q *Question) { q.checks()[0].Outcome, q.checks()[0].AsItIs = "Unreachable", true }, Fault, ReasonProxyHasNoRules, "no rule for it"},
		{"no rules, answered elsewhere", func(q *Question) { q.checks()[0].AsItIs = true }, Fault, ReasonProxyHasNoRules, "no rule for it"},
		{"no rules for UDP", func(q *Question) { q.checks()[1].AsItIs = true }, Fault, ReasonProxyHasNoRules, "192.0.2.200:7/UDP"},
		{"no rules for another port", func(q *Question) { q.checks()[1].AsItIs = true; q.Port = 80 }, Fine, "", ""},
		{"no rules yet", func(q *Question) {
			r := q.Reports["node1"]
			r.New, r.Checks[0].AsItIs = true, true
			q.Reports["node1"] = r
		}, Warning, v1beta1.ReasonPending, "about to write its rules"},
		{"dropped", func(q *Question) { q.checks()[0].Outcome = Silent }, Fault, ReasonProxyDrops, "though the endpoints answer"},
		{"dropped by its own source ranges", func(q *Question) {
			q.checks()[0].Outcome = Silent
			q.Services[0].Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24"}
		}, Fine, "", ""},
		{"dead endpoint", func(q *Question) { q.checks()[3].Outcome = "Refused" }, Fault, ReasonBackendDead, "10.244.2.2:8080/TCP does not answer node1: refused"},
		{"dead endpoints", func(q *Question) {
			q.checks()[0].Outcome, q.checks()[2].Outcome, q.checks()[3].Outcome = "Refused", "Refused", "Refused"
		}, Fault, ReasonBackendDead, "10.244.1.2:8080"},
		{"client", func(q *Question) {
			q.Services[0].Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24", "192.0.2.0/24"}
			q.From = netip.MustParseAddr("203.0.113.9")
		}, Fault, ReasonSourceRange, "does not let 203.0.113.9 through"},
		{"client let through", func(q *Question) {
			q.Services[0].Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24", "192.0.2.0/24"}
			q.From = netip.MustParseAddr("198.51.100.9")
		}, Fine, "", ""},
		{"not asked", func(q *Question) { delete(q.Reports, "node1"); q.Unasked["node1"] = "forbidden" }, Unknown, "", "was not asked: forbidden"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := healthy()
			tt.change(&q)
			a := Of(q)
			if a.Verdict != tt.verdict || a.Reason != tt.reason || !strings.Contains(a.Text, tt.words) {
				t.Errorf("%s, %s: %s; want %s, %s: …%s…\n%+v", a.Verdict, a.Reason, a.Text, tt.verdict, tt.reason, tt.words, a.Hops)
			}
			if (a.Verdict == Fault || a.Verdict == Warning) && a.Do == "" {
				t.Errorf("nothing is said of what to do about %s", a.Reason)
			}
		})
	}
}

// Every fault that can be named is explained in the document that operators read at night.
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	for reason := range remedies {
		if !strings.Contains(string(b), reason) {
			t.Errorf("docs/troubleshooting.md does not name %s", reason)
		}
	}
}
