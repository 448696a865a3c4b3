package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/explain"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/internal/text"
)

// statusReport is the cluster on a page.
type statusReport struct {
	Controller controllerReport  `json:"controller"`
	Pools      []poolReport      `json:"pools"`
	Speakers   []speakerReport   `json:"speakers"`
	Problems   []problem         `json:"problems"`
	NotShown   map[string]string `json:"notShown,omitempty"`
}

type controllerReport struct {
	Name    string     `json:"name,omitempty"`
	Alive   bool       `json:"alive"`
	Renewed *time.Time `json:"renewed,omitempty"`
	Version string     `json:"version,omitempty"`
	Class   string     `json:"loadBalancerClass,omitempty"`
	Default bool       `json:"defaultClass"`
	Read    bool       `json:"-"` // its Lease could be read, or is not there
}

type poolReport struct {
	Name  string                      `json:"name"`
	Ready string                      `json:"ready"`
	Use   v1beta1.IPAddressPoolStatus `json:"status"`
}

type speakerReport struct {
	Node       string                  `json:"node"`
	Alive      bool                    `json:"alive"`
	Ready      string                  `json:"ready,omitempty"`
	Version    string                  `json:"version,omitempty"`
	Missing    string                  `json:"missing,omitempty"` // nodes, for people
	Answers    string                  `json:"answers,omitempty"` // addresses, for people
	Answered   int32                   `json:"answered"`
	Sessions   []v1beta1.SessionStatus `json:"sessions,omitempty"`
	Interfaces []string                `json:"interfaces,omitempty"`
}

// problem is something that is not as someone wanted it.
type problem struct {
	About string `json:"about"` // Kind/name
	Text  string `json:"text"`
}

func (p problem) String() string { return p.About + ": " + p.Text }

func (a *app) statusCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "The controller, pools, speakers and BGP sessions, and everything that is wrong",
		Args:  cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return a.watchStatus(cmd.Context())
			}
			_, c, err := a.load(cmd.Context())
			if err != nil {
				return err
			}
			r := a.status(c)
			if err := a.print(r, func(w io.Writer, wide bool) error { return a.writeStatus(w, r, wide) }); err != nil {
				return err
			}
			switch {
			case len(r.Problems) > 0:
				return problemsFound
			case len(r.NotShown) > 0:
				return couldNotTell
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on, and say what changes")
	a.allFlag(cmd, "problems of the Services of all namespaces, as without -n")
	a.printFlag(cmd)
	return cmd
}

// status is the cluster on a page, with what is wrong with Services of the namespace that is asked about.
func (a *app) status(c *cluster) statusReport {
	r := c.status()
	r.Problems = slices.DeleteFunc(r.Problems, func(p problem) bool {
		name, ok := strings.CutPrefix(p.About, "Service/")
		namespace, _, _ := strings.Cut(name, "/")
		return ok && !a.within(namespace)
	})
	return r
}

func (c *cluster) status() statusReport {
	k := c.controller
	r := statusReport{
		Controller: controllerReport{Name: k.holder, Alive: k.alive, Version: k.version, Read: c.hidden["Lease"] == nil},
		Pools:      []poolReport{}, Speakers: []speakerReport{}, Problems: c.problems(), NotShown: c.notShown(),
	}
	if k.unknown == nil {
		r.Controller.Class, r.Controller.Default = k.class.Name, k.class.Default
	}
	if k.holder != "" {
		r.Controller.Renewed = &k.renewed
	}
	for _, p := range c.pools {
		r.Pools = append(r.Pools, poolReport{p.Name, conditionStatus(p.Status.Conditions, v1beta1.ConditionReady), p.Status})
	}
	for _, name := range sortedKeys(c.speakers) {
		s := c.speakers[name]
		of := speakerReport{Node: name, Alive: c.alive[name]}
		if of.Alive {
			of.Ready, of.Version = conditionStatus(s.Status.Conditions, v1beta1.ConditionReady), s.Status.Version
			of.Missing, of.Answers = missingOf(s), c.layer2Of(s)
			if l := s.Status.LocalNetwork; l != nil {
				of.Answered = l.Answered
			}
			of.Sessions, of.Interfaces = s.Status.Sessions, s.Status.Interfaces
		}
		r.Speakers = append(r.Speakers, of)
	}
	return r
}

func (a *app) writeStatus(w io.Writer, r statusReport, wide bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }
	if k := r.Controller; k.Read {
		alive, class := "no", orNone(k.Class)
		if k.Alive {
			alive = "yes"
		}
		if k.Default {
			class += ", or none"
		}
		row("CONTROLLER", "ALIVE", "VERSION", "CLASS")
		row(orNone(k.Name), alive, orNone(k.Version), class)
		if err := t.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	more := func(cells []string, name ...string) []string {
		if wide {
			cells = append(cells, name...)
		}
		return cells
	}
	row(more([]string{"POOL", "IPv4 USED", "FREE", "IPv6 USED", "FREE", "READY"}, "KEPT", "RESTING", "QUARANTINED")...)
	for _, p := range r.Pools {
		n := func(n any) string { return fmt.Sprint(n) }
		row(more([]string{p.Name, n(p.Use.AssignedIPv4), n(p.Use.AvailableIPv4), n(p.Use.AssignedIPv6), n(p.Use.AvailableIPv6), p.Ready},
			n(len(p.Use.Kept)), n(len(p.Use.Resting)), n(len(p.Use.Quarantined)))...)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	row(more([]string{"SPEAKER", "ALIVE", "READY", "MISSING", "LAYER 2", "BGP"}, "VERSION", "INTERFACES")...)
	for _, s := range r.Speakers {
		if !s.Alive {
			row(more([]string{s.Node, "no", "", "", "", ""}, "", "")...)
			continue
		}
		row(more([]string{s.Node, "yes", s.Ready, orNone(s.Missing), orNone(s.Answers), sessionsOf(s.Sessions)}, orNone(s.Version), orNone(strings.Join(s.Interfaces, ", ")))...)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	switch {
	case len(r.Problems) > 0:
		fmt.Fprintln(w, "\n"+a.paint(red, "PROBLEMS"))
		for _, p := range r.Problems {
			fmt.Fprintln(w, "  "+p.String())
		}
	case len(r.NotShown) > 0:
		fmt.Fprintln(w, "\n"+a.paint(yellow, "No problems in what is shown."))
	default:
		fmt.Fprintln(w, "\n"+a.paint(green, "No problems."))
	}
	return writeHidden(w, r.NotShown)
}

// missingOf are the speakers that one misses.
func missingOf(s *v1beta1.Speaker) string {
	out := text.Few(s.Status.Missing)
	if s.Status.MissingMore > 0 {
		out += fmt.Sprintf(", and %d that others name", s.Status.MissingMore)
	}
	return out
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
	return text.Few(out)
}

func sessionsOf(sessions []v1beta1.SessionStatus) string {
	var out []string
	for _, ses := range sessions {
		text := ses.Peer + " " + ses.State
		if ses.State == v1beta1.Established {
			text = fmt.Sprintf("%s (%d IPv4, %d IPv6)", text, ses.PrefixesIPv4, ses.PrefixesIPv6)
		}
		out = append(out, text)
	}
	return orNone(strings.Join(out, ", "))
}

// problems is everything that is not as someone wanted it, grouped by what it is about.
func (c *cluster) problems() []problem {
	out := []problem{}
	add := func(about, format string, args ...any) {
		out = append(out, problem{about, fmt.Sprintf(format, args...)})
	}
	works := c.hidden["Lease"] == nil
	if why := c.controller.problem(c.namespace); works && why != "" {
		works = false
		add("Controller", "%s", why)
	}
	for _, o := range c.objects {
		if ready := meta.FindStatusCondition(o.conditions, v1beta1.ConditionReady); strings.HasPrefix(o.name, "Speaker/") {
		} else if ready == nil {
			add(o.name, "the controller has not looked at it")
		} else if ready.ObservedGeneration < o.generation && ready.ObservedGeneration > 0 {
			add(o.name, "the controller has not looked at its last edit; what is said of it is from before")
		}
		if why, ok := conditionMessage(o.conditions, v1beta1.ConditionReady, metav1.ConditionFalse); ok {
			add(o.name, "%s", why)
		}
		if why, ok := conditionMessage(o.conditions, v1beta1.ConditionConflict, metav1.ConditionTrue); ok {
			add(o.name, "%s", why)
		}
		for _, what := range []string{v1beta1.ConditionGuarded, v1beta1.ConditionProxyAnswers} {
			if why, ok := conditionMessage(o.conditions, what, metav1.ConditionFalse); ok {
				add(o.name, "%s", why)
			}
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
	for _, text := range c.mixed() {
		add("Versions", "%s", text)
	}
	// What a dead speaker wrote last is not news; what several say of one object is said once.
	said := map[problem][]string{}
	for _, name := range sortedKeys(c.alive) {
		for _, p := range c.speakers[name].Status.Problems {
			of := problem{p.Object, p.Message}
			said[of] = append(said[of], name)
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(said), func(a, b problem) int { return strings.Compare(a.String(), b.String()) }) {
		add(p.About, "%s (says %s)", p.Text, text.Few(said[p]))
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
			add("Address/"+a.Address, "%s", conflictText(explain.Conflict{Node: name, AddressConflict: a}))
		}
	}
	for _, key := range c.serviceKeys() {
		svc := c.services[key]
		if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
			continue
		}
		allocated := meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAllocated)
		if allocated == nil {
			if c.controller.class.Serves(svc) && len(svc.Status.LoadBalancer.Ingress) == 0 {
				waits := "it waits for an address"
				if works && c.now.Sub(svc.CreationTimestamp.Time) > explain.Youth {
					waits += " since " + stamp(svc.CreationTimestamp.Time) + ", and the controller has not looked at it"
				}
				add("Service/"+key.String(), "%s", waits)
			}
			continue
		}
		for _, condition := range []string{v1beta1.ConditionAllocated, v1beta1.ConditionAnnounced} {
			if why, ok := conditionMessage(svc.Status.Conditions, condition, metav1.ConditionFalse); ok {
				add("Service/"+key.String(), "%s", why)
				break
			}
			if cond := meta.FindStatusCondition(svc.Status.Conditions, condition); cond != nil && cond.ObservedGeneration > 0 && cond.ObservedGeneration < svc.Generation {
				add("Service/"+key.String(), "the controller has not looked at its last edit; what is said of it is from before")
				break
			}
		}
	}
	return out
}

// serviceKeys are those of all Services, sorted.
func (c *cluster) serviceKeys() []client.ObjectKey {
	return slices.SortedFunc(maps.Keys(c.services), func(a, b client.ObjectKey) int { return strings.Compare(a.String(), b.String()) })
}

func conflictText(c explain.Conflict) string {
	return fmt.Sprintf("%s hears %s claim it on %s since %s", c.Node, c.HardwareAddress, c.Interface, stamp(c.Since.Time))
}

func conditionStatus(conditions []metav1.Condition, name string) string {
	if c := meta.FindStatusCondition(conditions, name); c != nil {
		return string(c.Status)
	}
	return "unknown"
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
