package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/clarionlb/clarion/internal/allocate"
	"github.com/clarionlb/clarion/internal/metallb"
	"github.com/clarionlb/clarion/internal/text"
)

// migratedLabel is on the nodes that have been handed over.
const migratedLabel = "clarionlb.io/migrated"

// migration is what is said of a configuration of MetalLB's.
type migration struct {
	Same     []string          `json:"same"`
	Findings []metallb.Finding `json:"findings"`
	// Refused is what an API server would refuse of the objects, and what is wrong with them together.
	Refused []problem                    `json:"refused,omitempty"`
	Objects []*unstructured.Unstructured `json:"objects,omitempty"`
	Files   []string                     `json:"files,omitempty"`
	Steps   []step                       `json:"steps,omitempty"`

	from    []*unstructured.Unstructured
	secrets []string
}

// step is one of the way from MetalLB.
type step struct {
	What  string   `json:"what"`
	Do    []string `json:"do"`    // commands
	Check []string `json:"check"` // that it worked
	Back  []string `json:"back"`
}

func (a *app) migrateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "migrate", Short: "From another load balancer to Clarion",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.migrateMetalLBCommand())
	return cmd
}

func (a *app) migrateMetalLBCommand() *cobra.Command {
	var files resource.FilenameOptions
	var to, theirs string
	var check bool
	cmd := &cobra.Command{
		Use:   "metallb [-f FILE|DIR|-] [--to DIR] | --check",
		Short: "MetalLB's objects in Clarion's words, what does not mean the same, and the steps of the handover",
		Long: `MetalLB's objects in Clarion's words, read from files or from the cluster (the ConfigMap of old releases too), with a report
of what means something else and what cannot be carried over. With --to the objects are written into files of a directory,
and the steps of the handover are printed, node by node: commands, how to see that they worked, and the way back.

--check says whether Clarion, as it is in the cluster, would take over every address that is in use.`,
		Example: `  kubectl clarion migrate metallb > clarion.yaml
  kubectl clarion migrate metallb --to handover
  kubectl clarion migrate metallb --check`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if check {
				return a.checkMigration(cmd.Context(), theirs)
			}
			m, err := a.migrate(cmd.Context(), &files, theirs)
			if err != nil {
				return err
			}
			if to != "" {
				if err := a.handover(cmd.Context(), m, to, theirs); err != nil {
					return err
				}
			}
			err = a.print(m, func(w io.Writer, _ bool) error {
				if to == "" { // the objects alone, to be piped
					if err := writeObjects(w, m.Objects); err != nil {
						return err
					}
					w = a.ErrOut
				}
				return m.write(a, w)
			})
			if err == nil && (len(m.Refused) > 0 || slices.ContainsFunc(m.Findings, func(f metallb.Finding) bool { return f.Verdict == metallb.Lost })) {
				err = problemsFound
			}
			return err
		},
	}
	fileFlags(cmd, &files)
	cmd.Flags().StringVar(&to, "to", "", "write the objects into files of this directory, and print the steps of the handover")
	cmd.Flags().StringVar(&theirs, "metallb-namespace", "metallb-system", "the namespace that MetalLB runs in")
	cmd.Flags().BoolVar(&check, "check", false, "say whether every address in use would be taken over")
	a.printFlag(cmd)
	return cmd
}

// migrate reads MetalLB's configuration and says what it means.
func (a *app) migrate(ctx context.Context, files *resource.FilenameOptions, theirs string) (*migration, error) {
	m := &migration{Same: []string{}, Findings: []metallb.Finding{}}
	var err error
	if len(files.Filenames) > 0 || files.Kustomize != "" {
		m.from, err = a.readFiles(files)
	} else {
		m.from, err = a.readMetalLB(ctx, theirs)
	}
	if err != nil {
		return nil, err
	}
	r := metallb.Convert(m.from)
	if len(r.Objects) == 0 {
		return nil, errors.New("no object of MetalLB's kinds is there")
	}
	m.Objects, m.secrets = r.Objects, r.Secrets
	m.Findings = append(m.Findings, r.Findings...)
	judged, err := lint(ctx, m.Objects)
	if err != nil {
		return nil, err
	}
	m.Refused = judged.Problems
	for _, o := range m.Objects {
		name := nameOf(o)
		if !slices.ContainsFunc(m.Findings, func(f metallb.Finding) bool { return f.Object == name }) && !slices.ContainsFunc(m.Refused, func(p problem) bool { return p.About == name }) {
			m.Same = append(m.Same, name)
		}
	}
	return m, nil
}

// readMetalLB reads MetalLB's objects from the cluster.
func (a *app) readMetalLB(ctx context.Context, theirs string) ([]*unstructured.Unstructured, error) {
	conn, err := a.open()
	if err != nil {
		return nil, err
	}
	p := &progress{a.ErrOut, time.Now()}
	var out []*unstructured.Unstructured
	for _, k := range metallb.Kinds {
		for _, version := range []string{k.Version, "v1beta1"} { // that of a release before the newer one
			list := &unstructured.UnstructuredList{}
			list.SetGroupVersionKind(schema.GroupVersionKind{Group: metallb.Group, Version: version, Kind: k.Kind + "List"})
			done := p.step("reading MetalLB's objects of the kind " + k.Kind)
			err := conn.List(ctx, list, client.InNamespace(theirs))
			if done(); meta.IsNoMatchError(err) {
				continue
			} else if err != nil {
				return nil, fmt.Errorf("reading MetalLB's objects of the kind %s: %w", k.Kind, err)
			}
			for i := range list.Items {
				out = append(out, &list.Items[i])
			}
			break
		}
	}
	for _, name := range []string{"config", "metallb-excludel2"} {
		var m unstructured.Unstructured
		m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
		if err := conn.Get(ctx, client.ObjectKey{Namespace: theirs, Name: name}, &m); err == nil {
			out = append(out, &m)
		} else if client.IgnoreNotFound(err) != nil {
			fmt.Fprintf(a.ErrOut, "ConfigMap %s/%s not shown: %v\n", theirs, name, err)
		}
	}
	return out, nil
}

func writeObjects(w io.Writer, objects []*unstructured.Unstructured) error {
	for i, o := range objects {
		b, err := yaml.Marshal(o.Object)
		if err != nil {
			return err
		}
		if i > 0 {
			b = append([]byte("---\n"), b...)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

func (m *migration) write(a *app, w io.Writer) error {
	e := explanation{}
	if len(m.Same) > 0 {
		e.lines("Means the same", line{Text: strings.Join(m.Same, ", ")})
	}
	for _, x := range []struct {
		title string
		of    metallb.Verdict
	}{{"Means something else", metallb.Differs}, {"Cannot be carried over", metallb.Lost}} {
		var lines []line
		for _, f := range m.Findings {
			if f.Verdict == x.of {
				lines = append(lines, line{Text: strings.TrimSuffix(f.Object+", "+f.Field, ", ") + ": " + f.Text})
			}
		}
		e.lines(x.title, lines...)
	}
	var refused []line
	for _, p := range m.Refused {
		refused = append(refused, line{Text: p.String()})
	}
	e.lines("Wrong with the objects as they are", refused...)
	color, said := green, text.Count(len(m.Objects), "object")+" for Clarion."
	if len(m.Refused) > 0 {
		color = red
	}
	fmt.Fprintln(w, a.paint(color, said))
	if err := e.rest(w); err != nil {
		return err
	}
	if len(m.Files) > 0 {
		fmt.Fprintf(w, "\nFiles: %s\n", strings.Join(m.Files, ", "))
	}
	for i, s := range m.Steps {
		fmt.Fprintf(w, "\n%d. %s\n", i+1, s.What)
		for _, part := range []struct {
			label string
			lines []string
		}{{"do", s.Do}, {"check", s.Check}, {"back", s.Back}} {
			for j, l := range part.lines {
				label := part.label
				if j > 0 {
					label = ""
				}
				fmt.Fprintf(w, "   %-6s %s\n", label, l)
			}
		}
	}
	return nil
}

// handover writes the files of a handover, and works out its steps.
func (a *app) handover(ctx context.Context, m *migration, dir, theirs string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	parts := map[string][]*unstructured.Unstructured{}
	for _, o := range m.Objects {
		switch o.GetKind() {
		case "L2Advertisement":
			parts["layer2.yaml"] = append(parts["layer2.yaml"], o)
		case "BGPPeer":
			parts["peers-by-node.yaml"] = append(parts["peers-by-node.yaml"], metallb.Staged(o, migratedLabel))
			parts["peers.yaml"] = append(parts["peers.yaml"], o)
		default:
			parts["pools.yaml"] = append(parts["pools.yaml"], o)
		}
	}
	for _, o := range m.from { // for the way back
		o = o.DeepCopy()
		delete(o.Object, "status")
		for _, f := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "ownerReferences"} {
			unstructured.RemoveNestedField(o.Object, "metadata", f)
		}
		parts["metallb.yaml"] = append(parts["metallb.yaml"], o)
	}
	for _, name := range sortedKeys(parts) {
		var b strings.Builder
		if err := writeObjects(&b, parts[name]); err != nil {
			return err
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil { // passwords may be in it
			return err
		}
		m.Files = append(m.Files, file)
	}
	w := a.theirWorkloads(ctx, theirs)
	m.Steps = a.steps(m, w, func(name string) string { return filepath.Join(dir, name) }, parts["layer2.yaml"] != nil, parts["peers.yaml"] != nil)
	return nil
}

// workloads are MetalLB's.
type workloads struct {
	namespace, controller, speaker string
	frr                            string // the DaemonSet that has the sessions, where the speaker does not
	class                          string // that its controller serves, where it is known
	deployment                     *appsv1.Deployment
	daemonSet, frrSet              *appsv1.DaemonSet
	nodes                          []string
}

// theirWorkloads finds MetalLB's, and takes them to have their usual names where they cannot be read.
func (a *app) theirWorkloads(ctx context.Context, namespace string) workloads {
	w := workloads{namespace: namespace, controller: "controller", speaker: "speaker", nodes: []string{"NODE"}}
	conn, err := a.open()
	if err != nil {
		return w
	}
	var deployments appsv1.DeploymentList
	if conn.List(ctx, &deployments, client.InNamespace(namespace)) == nil {
		for i, d := range deployments.Items {
			if strings.HasSuffix(d.Name, "controller") {
				w.controller, w.deployment = d.Name, &deployments.Items[i]
				w.class, _ = flagOf(d.Spec.Template.Spec, "lb-class")
			}
		}
	}
	var sets appsv1.DaemonSetList
	if conn.List(ctx, &sets, client.InNamespace(namespace)) == nil {
		for i, d := range sets.Items {
			switch {
			case strings.HasSuffix(d.Name, "speaker"):
				w.speaker, w.daemonSet = d.Name, &sets.Items[i]
			case strings.HasSuffix(d.Name, "frr-k8s"):
				w.frr, w.frrSet = d.Name, &sets.Items[i]
			}
		}
	}
	var nodes corev1.NodeList
	if conn.List(ctx, &nodes) == nil && len(nodes.Items) > 0 {
		w.nodes = nil
		for _, n := range nodes.Items {
			w.nodes = append(w.nodes, n.Name)
		}
		slices.Sort(w.nodes)
	}
	return w
}

// flagOf is the value of a flag of a pod's containers.
func flagOf(pod corev1.PodSpec, name string) (string, bool) {
	for _, c := range pod.Containers {
		for _, arg := range slices.Concat(c.Command, c.Args) {
			if v, ok := strings.CutPrefix(strings.TrimLeft(arg, "-"), name+"="); ok {
				return v, true
			}
		}
	}
	return "", false
}

// steps are those of the way, from a cluster in which MetalLB works and Clarion's speakers run beside it with nothing to
// announce.
func (a *app) steps(m *migration, w workloads, file func(string) string, layer2, bgp bool) (out []step) {
	ours := a.system
	add := func(s step) { out = append(out, s) }
	add(step{
		What:  "Clarion beside MetalLB, its speakers with ports of their own and its controller at rest: docs/operations.md, Beside MetalLB, without --default-class=false",
		Do:    []string{"kubectl apply -k beside/"},
		Check: []string{fmt.Sprintf("kubectl -n %s rollout status daemonset/speaker", ours)},
		Back:  []string{"kubectl delete -k beside/"},
	})
	for _, s := range m.secrets {
		add(step{
			What: "The password in the Secret " + s,
			Do: []string{fmt.Sprintf(`kubectl -n %s get secret %s -o jsonpath='{.data.password}' | base64 -d | kubectl -n %s create secret generic %s --type=kubernetes.io/basic-auth --from-file=password=/dev/stdin`,
				w.namespace, s, ours, s)},
			Check: []string{fmt.Sprintf("kubectl -n %s get secret %s", ours, s)},
			Back:  []string{fmt.Sprintf("kubectl -n %s delete secret %s", ours, s)},
		})
	}
	add(step{
		What: "Allocation: Clarion's controller takes over every address in use; nothing is announced otherwise than before",
		Do: []string{
			fmt.Sprintf("kubectl -n %s scale deployment/%s --replicas=0", w.namespace, w.controller),
			"kubectl apply -f " + file("pools.yaml"),
			fmt.Sprintf("kubectl -n %s scale deployment/controller --replicas=2", ours),
		},
		Check: []string{"kubectl clarion migrate metallb --check --metallb-namespace=" + w.namespace},
		Back: []string{
			fmt.Sprintf("kubectl -n %s scale deployment/controller --replicas=0", ours),
			fmt.Sprintf("kubectl -n %s scale deployment/%s --replicas=1", w.namespace, w.controller),
		},
	})
	if layer2 {
		add(step{
			What: "Layer 2, all nodes at once: MetalLB's speakers stop answering, Clarion's begin. Clients that know an address go on in between: its node still takes packets",
			Do: []string{
				fmt.Sprintf("kubectl -n %s delete l2advertisements.metallb.io --all", w.namespace),
				"kubectl apply -f " + file("layer2.yaml"),
			},
			Check: []string{"kubectl clarion explain svc -A", "kubectl clarion status"},
			Back: []string{
				"kubectl delete -f " + file("layer2.yaml"),
				fmt.Sprintf("kubectl -n %s scale deployment/controller --replicas=0", ours),
				fmt.Sprintf("kubectl -n %s scale deployment/%s --replicas=1      # its webhook admits the objects", w.namespace, w.controller),
				"kubectl apply -f " + file("metallb.yaml"),
			},
		})
	}
	if bgp {
		prepare := step{
			What:  "BGP, prepared: Clarion peers from nodes with the label " + migratedLabel + ", and MetalLB's speakers leave these. No node has it yet, so nothing moves and no pod restarts",
			Do:    []string{"kubectl apply -f " + file("peers-by-node.yaml")},
			Check: []string{"kubectl clarion explain peer", fmt.Sprintf("kubectl -n %s get pods -o wide      # as old as before", w.namespace)},
		}
		for _, set := range []struct {
			name string
			is   *appsv1.DaemonSet
		}{{w.speaker, w.daemonSet}, {w.frr, w.frrSet}} {
			if set.name == "" {
				continue
			}
			prepare.Do = append(prepare.Do, fmt.Sprintf("kubectl -n %s patch daemonset/%s -p '%s'", w.namespace, set.name, leaves(set.is)))
			prepare.Back = append(prepare.Back, fmt.Sprintf("kubectl -n %s rollout undo daemonset/%s", w.namespace, set.name))
		}
		prepare.Back = append(prepare.Back, "kubectl delete -f "+file("peers-by-node.yaml"))
		add(prepare)
		for _, node := range w.nodes {
			s := step{
				What: "BGP, node " + node + ": MetalLB's session ends and Clarion's begins, while the routers use the other nodes",
				Do:   []string{fmt.Sprintf("kubectl label node %s %s=true", node, migratedLabel)},
				Check: []string{
					fmt.Sprintf("kubectl -n %s get pods --field-selector spec.nodeName=%s      # none of MetalLB's speakers", w.namespace, node),
					fmt.Sprintf("kubectl clarion explain node %s      # Established with every peer, before you go on", node),
				},
				Back: []string{fmt.Sprintf("kubectl label node %s %s-", node, migratedLabel)},
			}
			if w.frr != "" {
				s.Do = append(s.Do, fmt.Sprintf("kubectl delete frrconfigurations.frrk8s.metallb.io -A --field-selector metadata.name=metallb-%s", node))
			}
			add(s)
		}
		add(step{
			What: "BGP, done: Clarion peers from all nodes that it is to",
			Do:   []string{"kubectl apply -f " + file("peers.yaml")}, Check: []string{"kubectl clarion status"},
			Back: []string{"kubectl apply -f " + file("peers-by-node.yaml")},
		})
	}
	end := step{
		What:  "The end, when all has been well for long enough: MetalLB goes. There is no way back from here but its own installation",
		Do:    []string{"remove MetalLB the way that it was installed"},
		Check: []string{"kubectl clarion status", "kubectl clarion explain svc -A"},
		Back:  []string{"install MetalLB again", "kubectl apply -f " + file("metallb.yaml")},
	}
	if bgp {
		end.Do = append(end.Do, "kubectl label nodes --all "+migratedLabel+"-")
	}
	add(end)
	return out
}

// leaves is the patch with which the pods of a DaemonSet leave nodes with the label, and no other pod restarts. Where the
// pods may run otherwise stays as it is.
func leaves(d *appsv1.DaemonSet) string {
	terms := []corev1.NodeSelectorTerm{{}}
	if d != nil {
		if a := d.Spec.Template.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
			terms = slices.Clone(a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms)
		}
	}
	for i := range terms {
		terms[i].MatchExpressions = append(slices.Clone(terms[i].MatchExpressions), corev1.NodeSelectorRequirement{Key: migratedLabel, Operator: corev1.NodeSelectorOpDoesNotExist})
	}
	b, err := json.Marshal(terms)
	if err != nil {
		panic(err) // strings always can be written
	}
	return `{"spec":{"updateStrategy":{"type":"OnDelete","rollingUpdate":null},"template":{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":` + string(b) + `}}}}}}}`
}

// checkReport says whether Clarion would take over every address.
type checkReport struct {
	Services int               `json:"services"`  // with an address
	Fine     int               `json:"takenOver"` // those that keep all that they have
	Problems []problem         `json:"problems"`
	NotShown map[string]string `json:"notShown,omitempty"`
}

// checkMigration says whether Clarion, as it is, takes over every address in use.
func (a *app) checkMigration(ctx context.Context, theirs string) error {
	conn, c, err := a.load(ctx)
	if err != nil {
		return err
	}
	if c.blind() {
		_ = writeHidden(a.ErrOut, c.notShown())
		return errors.New("nothing can be checked without what is not shown")
	}
	r := checkReport{Problems: []problem{}, NotShown: c.notShown()}
	if err := r.addresses(ctx, conn, c, a.theirWorkloads(ctx, theirs)); err != nil {
		return err
	}
	r.programs(ctx, conn, a.system, a.theirWorkloads(ctx, theirs))
	for _, p := range c.problems() { // passwords that are missing among them
		if kind, _, _ := strings.Cut(p.About, "/"); kind == "Controller" || kind == "IPAddressPool" || kind == "BGPPeer" && !strings.HasPrefix(p.Text, "no session with ") {
			r.Problems = append(r.Problems, p)
		}
	}
	err = a.print(r, func(w io.Writer, _ bool) error {
		color, said := green, fmt.Sprintf("%d of %s with an address keep it.", r.Fine, text.Count(r.Services, "Service"))
		if len(r.Problems) > 0 {
			color = red
		}
		fmt.Fprintln(w, a.paint(color, said))
		for _, p := range r.Problems {
			fmt.Fprintln(w, "  "+p.String())
		}
		return writeHidden(w, r.NotShown)
	})
	switch {
	case err != nil:
		return err
	case len(r.Problems) > 0:
		return problemsFound
	case len(r.NotShown) > 0:
		return couldNotTell
	}
	return nil
}

// addresses looks at every Service that has an address of MetalLB's: Clarion's own code decides whether it keeps it.
func (r *checkReport) addresses(ctx context.Context, conn *connection, c *cluster, w workloads) error {
	world, err := c.world(ctx, conn)
	if err != nil {
		return err
	}
	taken := world.Services()
	for _, key := range c.serviceKeys() {
		svc := c.services[key]
		has := allocate.Ingress(svc)
		if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || len(has) == 0 {
			continue
		}
		say := func(text string, args ...any) {
			r.Problems = append(r.Problems, problem{"Service/" + key.String(), fmt.Sprintf(text, args...)})
		}
		class := svc.Spec.LoadBalancerClass
		if !c.controller.class.Serves(svc) {
			ours := c.controller.class.Name
			switch {
			case class != nil && (*class == w.class || metalLBs(svc)):
				r.Services++
				say("its loadBalancerClass %s cannot be changed, and Clarion's is %s: start Clarion's controller with --load-balancer-class=%[1]s", *class, ours)
			case metalLBs(svc):
				r.Services++
				say("it has no loadBalancerClass, and Clarion's controller, with --default-class=false, serves %s alone", ours)
			}
			continue
		}
		r.Services++
		now, ok := taken[key.String()]
		if !ok || !slices.Equal(sortedCopy(now.Addresses), sortedCopy(has)) {
			var out []string
			for _, addr := range has {
				if c.snap.View().PoolOf(addr) == "" {
					out = append(out, addr.String())
				}
			}
			switch {
			case len(out) > 0:
				say("%s is in no IPAddressPool of Clarion's, so that nobody would announce it", strings.Join(out, ", "))
			default:
				say("it would not keep its address: %s", now.Message)
			}
			continue
		}
		r.Fine++
	}
	return nil
}

func sortedCopy(a []netip.Addr) []netip.Addr {
	return slices.SortedFunc(slices.Values(a), netip.Addr.Compare)
}

// metalLBs says whether MetalLB has given a Service its address.
func metalLBs(svc *corev1.Service) bool {
	for _, prefix := range []string{"metallb.io/", "metallb.universe.tf/"} {
		if svc.Annotations[prefix+"ip-allocated-from-pool"] != "" {
			return true
		}
	}
	return false
}

// programs says what two of them cannot have at the same time.
func (r *checkReport) programs(ctx context.Context, conn *connection, system string, w workloads) {
	var ours appsv1.DaemonSet
	err := conn.Get(ctx, client.ObjectKey{Namespace: system, Name: "speaker"}, &ours)
	if err != nil {
		r.NotShown["DaemonSet"] = err.Error() + "; whether its ports are MetalLB's is not known"
		return
	}
	if w.daemonSet == nil {
		return // MetalLB's is gone, or not to be seen
	}
	if w.deployment != nil && w.deployment.Spec.Replicas != nil && *w.deployment.Spec.Replicas > 0 {
		r.Problems = append(r.Problems, problem{"Deployment/" + w.namespace + "/" + w.controller, "MetalLB's controller runs: two controllers give addresses to the same Services; scale it to 0"})
	}
	theirs := hostPorts(w.daemonSet.Spec.Template.Spec)
	for _, p := range hostPorts(ours.Spec.Template.Spec) {
		if slices.Contains(theirs, p) {
			r.Problems = append(r.Problems, problem{"DaemonSet/" + system + "/speaker", fmt.Sprintf("port %d of the nodes is MetalLB's speakers' too, so that Clarion's do not start beside them", p)})
		}
	}
}

// hostPorts are the ports of the node that a pod has.
func hostPorts(pod corev1.PodSpec) (out []int32) {
	for _, c := range pod.Containers {
		for _, p := range c.Ports {
			switch {
			case p.HostPort != 0:
				out = append(out, p.HostPort)
			case pod.HostNetwork:
				out = append(out, p.ContainerPort)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
