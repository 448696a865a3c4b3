package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/explain"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/internal/text"
)

func writeStatus(w io.Writer, c *cluster) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POOL\tIPv4 USED\tFREE\tIPv6 USED\tFREE\tREADY")
	for _, p := range c.pools {
		s := p.Status
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%s\n", p.Name, s.AssignedIPv4, s.AvailableIPv4, s.AssignedIPv6, s.AvailableIPv6,
			conditionStatus(s.Conditions, v1beta1.ConditionReady))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(t, "\nSPEAKER\tALIVE\tREADY\tMISSING\tLAYER 2\tBGP")
	for _, name := range sortedKeys(c.speakers) {
		s := c.speakers[name]
		if !c.alive[name] {
			fmt.Fprintf(t, "%s\tno\t\t\t\t\n", name)
			continue
		}
		fmt.Fprintf(t, "%s\tyes\t%s\t%s\t%s\t%s\n", s.Name, conditionStatus(s.Status.Conditions, v1beta1.ConditionReady),
			missingOf(s), c.layer2Of(s), sessionsOf(s))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	problems := c.problems()
	switch {
	case len(problems) > 0:
		fmt.Fprintln(w, "\nPROBLEMS\n"+strings.Join(problems, "\n"))
	case len(c.hidden) > 0:
		fmt.Fprintln(w, "\nNo problems in what is shown.")
	default:
		fmt.Fprintln(w, "\nNo problems.")
	}
	return c.writeHidden(w)
}

// missingOf are the speakers that one misses.
func missingOf(s *v1beta1.Speaker) string {
	out := text.Few(s.Status.Missing)
	if s.Status.MissingMore > 0 {
		out += fmt.Sprintf(", and %d that others name", s.Status.MissingMore)
	}
	return orNone(out)
}

// layer2Of are the addresses that a node answers for.
func (c *cluster) layer2Of(s *v1beta1.Speaker) string {
	var out []string
	for _, addr := range c.book.AnsweredBy(s.Name) {
		out = append(out, addr.String())
	}
	if l := s.Status.LocalNetwork; l != nil && int(l.Answered) != len(out) {
		return fmt.Sprintf("%d, of which not all are known", l.Answered)
	}
	return orNone(text.Few(out))
}

func sessionsOf(s *v1beta1.Speaker) string {
	var out []string
	for _, ses := range s.Status.Sessions {
		text := ses.Peer + " " + ses.State
		if ses.State == v1beta1.Established {
			text = fmt.Sprintf("%s (%d IPv4, %d IPv6)", text, ses.PrefixesIPv4, ses.PrefixesIPv6)
		}
		out = append(out, text)
	}
	return orNone(strings.Join(out, ", "))
}

// problems is everything that is not as someone wanted it, a line each, grouped by what it is about.
func (c *cluster) problems() []string {
	var out []string
	add := func(about, format string, args ...any) {
		out = append(out, "  "+about+": "+fmt.Sprintf(format, args...))
	}
	for _, o := range c.objects {
		if why, ok := conditionMessage(o.conditions, v1beta1.ConditionReady, metav1.ConditionFalse); ok {
			add(o.name, "%s", why)
		}
		if why, ok := conditionMessage(o.conditions, v1beta1.ConditionConflict, metav1.ConditionTrue); ok {
			add(o.name, "%s", why)
		}
		if why, ok := conditionMessage(o.conditions, v1beta1.ConditionGuarded, metav1.ConditionFalse); ok {
			add(o.name, "%s", why)
		}
	}
	for _, p := range c.pools {
		if meta.FindStatusCondition(p.Status.Conditions, v1beta1.ConditionReady) == nil {
			add("IPAddressPool/"+p.Name, "the controller has not looked at it; is it running?")
		}
	}
	for _, node := range c.nodes {
		switch sp := c.speakers[node]; {
		case c.hidden["Speaker"] != nil:
		case sp == nil:
			add("Node/"+node, "no speaker has run there")
		case snapshot.Ended(sp):
			add("Node/"+node, "its speaker has ended")
		case !c.alive[node]:
			add("Node/"+node, "no other speaker sees its speaker alive")
		}
	}
	// What a dead speaker wrote last is not news; what several say of one object is said once.
	said := map[string][]string{}
	for _, name := range sortedKeys(c.alive) {
		for _, p := range c.speakers[name].Status.Problems {
			text := p.Object + ": " + p.Message
			said[text] = append(said[text], name)
		}
	}
	for _, text := range sortedKeys(said) {
		out = append(out, fmt.Sprintf("  %s (says %s)", text, strings.Join(said[text], ", ")))
	}
	for _, name := range sortedKeys(c.alive) {
		s := c.speakers[name]
		if s.Status.Gate != "" {
			add("Node/"+s.Name, "attracts no traffic while others can: %s", s.Status.Gate)
		}
		for _, ses := range s.Status.Sessions {
			if ses.State != v1beta1.Established {
				add("BGPPeer/"+ses.Peer, "no session with %s: %s", s.Name, explain.SessionState(ses))
			}
		}
		for _, a := range s.Status.Conflicts {
			add("address "+a.Address, "%s", conflictText(explain.Conflict{Node: name, AddressConflict: a}))
		}
	}
	keys := slices.SortedFunc(maps.Keys(c.services), func(a, b client.ObjectKey) int { return strings.Compare(a.String(), b.String()) })
	for _, key := range keys {
		svc := c.services[key]
		if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
			continue
		}
		for _, condition := range []string{v1beta1.ConditionAllocated, v1beta1.ConditionAnnounced} {
			if why, ok := conditionMessage(svc.Status.Conditions, condition, metav1.ConditionFalse); ok {
				add("Service/"+key.String(), "%s", why)
				break
			}
		}
	}
	return out
}

func conflictText(c explain.Conflict) string {
	return fmt.Sprintf("%s hears %s claim it on %s since %s", c.Node, c.HardwareAddress, c.Interface, c.Since.UTC().Format("2006-01-02 15:04:05 UTC"))
}

func conditionStatus(conditions []metav1.Condition, name string) string {
	if c := meta.FindStatusCondition(conditions, name); c != nil {
		return string(c.Status)
	}
	return "not said"
}

// conditionMessage is the message of a condition that has a status, or its reason if it has no message.
func conditionMessage(conditions []metav1.Condition, name string, status metav1.ConditionStatus) (string, bool) {
	c := meta.FindStatusCondition(conditions, name)
	if c == nil || c.Status != status {
		return "", false
	}
	if c.Message == "" {
		return c.Reason, true
	}
	return c.Message, true
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
