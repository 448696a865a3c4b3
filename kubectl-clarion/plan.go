package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/plan"
	"github.com/clarionlb/clarion/internal/text"
)

// planReport is what an edit would do.
type planReport struct {
	Answer   string    `json:"answer"`
	Refused  []problem `json:"refused,omitempty"` // by the API server; nothing that is refused is part of the rest
	Services []line    `json:"services,omitempty"`
	Effect   []line    `json:"announcements,omitempty"`
	Sessions []line    `json:"sessions,omitempty"`
	Problems []problem `json:"problems,omitempty"`
	Notes    []string  `json:"notes,omitempty"`
	// Loses says that a Service would lose an address, or an address its last announcer.
	Loses bool `json:"loses"`
}

// edits are what the flags ask for.
type edits struct {
	files               resource.FilenameOptions
	delete, drain, lose []string
}

func (a *app) planCommand() *cobra.Command {
	var e edits
	cmd := &cobra.Command{
		Use:   "plan -f FILE|DIR|- | --delete KIND/NAME | --drain NODE | --lose NODE",
		Short: "What an edit would do, before it is made",
		Long: `What an edit would do, before it is made: which Services get, lose or change addresses, or wait; which addresses another
node answers for; which routes are added and withdrawn; which sessions are reset; what would be wrong with objects.

The exit code is 1 when a Service would lose an address, an address its last announcer, or when the API server would refuse
an object.`,
		Example: `  kubectl clarion plan -f pools.yaml
  kubectl clarion plan --delete l2advertisement/lan
  kubectl clarion plan --drain node1
  kubectl clarion plan --lose node1,node2`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, c, err := a.load(cmd.Context())
			if err != nil {
				return err
			}
			if c.blind() {
				_ = writeHidden(a.ErrOut, c.notShown())
				return errors.New("nothing can be planned without what is not shown")
			}
			r, err := a.plan(cmd.Context(), conn, c, &e)
			if err != nil {
				return err
			}
			if err := a.print(r, func(w io.Writer, _ bool) error { return r.write(a, w) }); err != nil {
				return err
			}
			if r.Loses || len(r.Refused) > 0 {
				return problemsFound
			}
			return nil
		},
	}
	fileFlags(cmd, &e.files)
	nodes := func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.names(cmd.Context(), &corev1.NodeList{}, nil), cobra.ShellCompDirectiveNoFileComp
	}
	cmd.Flags().StringSliceVar(&e.delete, "delete", nil, "KIND/NAME of objects to be deleted")
	cmd.Flags().StringSliceVar(&e.drain, "drain", nil, "nodes to be drained (annotation "+v1beta1.AnnotationDrain+"), until their time is up")
	cmd.Flags().StringSliceVar(&e.lose, "lose", nil, "nodes whose speakers die, all at once")
	for _, f := range []string{"drain", "lose"} {
		_ = cmd.RegisterFlagCompletionFunc(f, nodes)
	}
	a.printFlag(cmd)
	return cmd
}

// world is the cluster in which edits can be tried.
func (c *cluster) world(ctx context.Context, conn *connection) (*plan.World, error) {
	var objects []client.Object
	for _, kind := range sortedKeys(c.raw) {
		for _, o := range c.raw[kind] {
			if sp, ok := o.(*v1beta1.Speaker); ok {
				if !c.alive[sp.Name] {
					continue
				}
				copied := *sp // who is alive is known
				copied.Status.Missing, copied.Status.MissingMore = nil, 0
				o = &copied
			}
			objects = append(objects, o.(client.Object))
		}
	}
	var namespaces corev1.NamespaceList
	if err := conn.List(ctx, &namespaces); err != nil {
		return nil, fmt.Errorf("reading Namespaces: %w", err)
	}
	for i := range namespaces.Items {
		objects = append(objects, &namespaces.Items[i])
	}
	return plan.New(ctx, plan.Options{Class: c.controller.class, Snapshot: c.options, Now: c.now}, objects)
}

func (a *app) plan(ctx context.Context, conn *connection, c *cluster, e *edits) (*planReport, error) {
	w, err := c.world(ctx, conn)
	if err != nil {
		return nil, err
	}
	r := &planReport{}
	var edit plan.Edit
	if len(e.files.Filenames) > 0 || e.files.Kustomize != "" {
		if err := a.written(ctx, conn, w, e, r, &edit); err != nil {
			return nil, err
		}
	}
	for _, d := range e.delete {
		o, err := deleted(w, conn, d)
		if err != nil {
			return nil, err
		}
		if p, ok := o.(*v1beta1.IPAddressPool); ok && (p.Status.AssignedIPv4 > 0 || p.Status.AssignedIPv6 > 0 || len(p.Status.Kept) > 0) {
			r.Refused = append(r.Refused, problem{"IPAddressPool/" + p.Name, "it cannot be deleted while Services have addresses of it"})
			continue
		}
		edit.Delete = append(edit.Delete, o)
	}
	for _, name := range slices.Concat(e.drain, e.lose) {
		if w.Object(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}) == nil {
			return nil, fmt.Errorf("there is no Node %s", name)
		}
	}
	for _, name := range e.drain {
		n := w.Object(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}).DeepCopyObject().(*corev1.Node)
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		n.Annotations[v1beta1.AnnotationDrain] = "true"
		edit.Write = append(edit.Write, n)
		if sp, ok := w.Object(&v1beta1.Speaker{ObjectMeta: metav1.ObjectMeta{Name: name}}).(*v1beta1.Speaker); ok {
			sp = sp.DeepCopy()
			sp.Status.Drained = true
			edit.Write = append(edit.Write, sp)
		}
	}
	for _, name := range e.lose {
		if sp := w.Object(&v1beta1.Speaker{ObjectMeta: metav1.ObjectMeta{Name: name}}); sp != nil {
			edit.Delete = append(edit.Delete, sp)
		}
	}
	if len(edit.Write)+len(edit.Delete)+len(r.Refused)+len(r.Notes) == 0 && len(e.lose) == 0 {
		return nil, errors.New("which edit? want -f, --delete, --drain or --lose")
	}
	r.of(w.Try(edit))
	return r, nil
}

// deleted is the object that KIND/NAME names.
func deleted(w *plan.World, conn *connection, word string) (client.Object, error) {
	kindWord, name, err := kindAndName([]string{word})
	if err != nil {
		return nil, err
	}
	k := kindOfWord(kindWord)
	if k == nil || k.object == nil {
		return nil, fmt.Errorf("%q is no kind of which a deletion can be planned", kindWord)
	}
	o := k.object()
	o.SetName(name)
	if _, ok := o.(*corev1.Service); ok {
		o.SetNamespace(conn.namespace)
		if ns, n, ok := strings.Cut(name, "/"); ok {
			o.SetNamespace(ns)
			o.SetName(n)
		}
	}
	if found := w.Object(o); found != nil {
		return found, nil
	}
	return nil, fmt.Errorf("there is no %s", word)
}

// written adds the objects of files to an edit.
func (a *app) written(ctx context.Context, conn *connection, w *plan.World, e *edits, r *planReport, edit *plan.Edit) error {
	in, err := a.readFiles(&e.files)
	if err != nil {
		return err
	}
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	objects, refused, err := checked(ctx, in, func(o *unstructured.Unstructured) *unstructured.Unstructured {
		typed, err := scheme.New(o.GroupVersionKind())
		if err != nil {
			return nil
		}
		like := typed.(client.Object)
		like.SetName(o.GetName())
		old := w.Object(like)
		if old == nil {
			return nil
		}
		was, err := runtime.DefaultUnstructuredConverter.ToUnstructured(old)
		if err != nil {
			return nil
		}
		delete(was, "status")
		out := &unstructured.Unstructured{Object: was}
		out.SetGroupVersionKind(o.GroupVersionKind())
		if conn.dump != nil && dumpedPassword(o, out) {
			r.Notes = append(r.Notes, nameOf(o)+": its password is taken to be what it was, which the dump does not hold")
		}
		return out
	})
	if err != nil {
		return err
	}
	r.Refused = append(r.Refused, refused...)
	for _, o := range objects {
		if p, ok := o.(*v1beta1.IPAddressPool); ok { // whoever writes a pool does not write its status
			if old, was := w.Object(p).(*v1beta1.IPAddressPool); was {
				p.Status = old.Status
			}
		}
		edit.Write = append(edit.Write, o)
	}
	for _, o := range in {
		switch gvk := o.GroupVersionKind(); {
		case gvk.Group == v1beta1.GroupVersion.Group:
		case gvk.Group == "" && gvk.Kind == "Service":
			svc := &corev1.Service{}
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, svc); err != nil {
				r.Refused = append(r.Refused, problem{nameOf(o), err.Error()})
				continue
			}
			svc.Namespace = cmp.Or(svc.Namespace, conn.namespace)
			svc.Status = corev1.ServiceStatus{}
			if old, was := w.Object(svc).(*corev1.Service); was {
				svc.Status, svc.Spec.ClusterIP, svc.Spec.ClusterIPs = old.Status, old.Spec.ClusterIP, old.Spec.ClusterIPs
			} else {
				svc.Spec.ClusterIPs = clusterIPs(svc, w)
				r.Notes = append(r.Notes, "Service/"+svc.Namespace+"/"+svc.Name+" is new: it has no endpoints yet, so that nobody announces it")
			}
			edit.Write = append(edit.Write, svc)
		default:
			r.Notes = append(r.Notes, nameOf(o)+" is left out: Clarion does not decide by it")
		}
	}
	return nil
}

// clusterIPs stand for the cluster addresses that a new Service would get: only their families matter.
func clusterIPs(svc *corev1.Service, w *plan.World) []string {
	stand := map[corev1.IPFamily]string{corev1.IPv4Protocol: "0.0.0.0", corev1.IPv6Protocol: "::"}
	var have []corev1.IPFamily // of the cluster, its first
	for _, o := range w.Objects() {
		if s, ok := o.(*corev1.Service); ok && s.Namespace == "default" && s.Name == "kubernetes" {
			have = s.Spec.IPFamilies
		}
	}
	if len(have) == 0 {
		have = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	families := svc.Spec.IPFamilies
	if len(families) == 0 {
		families = have[:1]
	}
	if p := svc.Spec.IPFamilyPolicy; p != nil && *p != corev1.IPFamilyPolicySingleStack && len(families) == 1 {
		other := corev1.IPv6Protocol
		if families[0] == other {
			other = corev1.IPv4Protocol
		}
		families = append(slices.Clone(families), other)
	}
	var out []string
	for _, f := range families {
		out = append(out, stand[f])
	}
	return out
}

// of takes in what an edit did.
func (r *planReport) of(p plan.Report) {
	addrs := func(a []netip.Addr) string {
		var out []string
		for _, x := range a {
			out = append(out, x.String())
		}
		return orNone(strings.Join(out, ", "))
	}
	for _, c := range p.Services {
		name, was, is := cmp.Or(c.Before.Name, c.After.Name), addrs(c.Before.Addresses), addrs(c.After.Addresses)
		switch {
		case c.After.Name == "":
			r.Services = append(r.Services, line{"gives up", name + ": " + was})
		case was != is && len(c.Before.Addresses) == 0:
			r.Services = append(r.Services, line{"gets", name + ": " + is})
		case was != is && len(c.After.Addresses) == 0:
			r.Services = append(r.Services, line{"loses", fmt.Sprintf("%s: %s; it waits: %s", name, was, c.After.Message)})
		case was != is:
			r.Services = append(r.Services, line{"changes", fmt.Sprintf("%s: from %s to %s", name, was, is)})
		case !c.After.Satisfied:
			r.Services = append(r.Services, line{"waits", name + ": " + c.After.Message})
		default:
			r.Services = append(r.Services, line{"well", name + ": waits no more"})
		}
	}
	r.Effect, r.Loses = effectLines(p.Effect), p.Loses()
	for _, s := range p.Resets {
		r.Sessions = append(r.Sessions, line{"reset", fmt.Sprintf("%s with %s: it is opened anew", s[0], s[1])})
	}
	for _, s := range p.Ended {
		r.Sessions = append(r.Sessions, line{"ended", fmt.Sprintf("%s with %s", s[0], s[1])})
	}
	for _, k := range p.Kept {
		r.Notes = append(r.Notes, k+" cannot be used as it is. Speakers that knew its last usable form go on with it; what that announces is left out here.")
	}
	for _, x := range p.Problems {
		r.Problems = append(r.Problems, problem{x.Object, x.Text})
	}
	var said []string
	count := func(n int, thing, what string) {
		if n > 0 {
			said = append(said, text.Count(n, thing)+" "+what)
		}
	}
	count(len(r.Refused), "object", "refused")
	count(len(p.Services), "Service", "changed")
	count(len(p.Lost), "address", "announced by nobody any more")
	count(len(p.Moves), "address", "moved on layer 2")
	count(plan.Count(p.Added), "route", "added")
	count(plan.Count(p.Withdrawn), "route", "withdrawn")
	count(plan.Count(p.Changed), "route", "changed")
	count(len(p.Resets), "session", "reset")
	count(len(p.Ended), "session", "ended")
	count(len(p.Problems), "problem", "new")
	if r.Answer = strings.Join(said, ", ") + "."; len(said) == 0 {
		r.Answer = "Nothing would change."
	}
}

func (r *planReport) write(a *app, w io.Writer) error {
	color := green
	if r.Loses || len(r.Refused) > 0 {
		color = red
	}
	e := explanation{Notes: r.Notes}
	e.lines("Services", r.Services...)
	e.lines("Announcements", r.Effect...)
	e.lines("Sessions", r.Sessions...)
	for _, x := range []struct {
		title string
		of    []problem
	}{{"Refused by the API server", r.Refused}, {"Would not be ready", r.Problems}} {
		var lines []line
		for _, p := range x.of {
			lines = append(lines, line{Text: p.String()})
		}
		e.lines(x.title, lines...)
	}
	fmt.Fprintln(w, a.paint(color, r.Answer))
	return e.rest(w)
}
