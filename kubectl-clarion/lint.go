package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/pool"
	"github.com/clarionlb/clarion/internal/schema"
	"github.com/clarionlb/clarion/internal/text"
)

// lintReport is what is wrong with objects.
type lintReport struct {
	Objects  int       `json:"objects"`
	Problems []problem `json:"problems"`
	// Advice is what would work as written and could be written better.
	Advice []problem `json:"advice,omitempty"`
}

func (a *app) lintCommand() *cobra.Command {
	var files resource.FilenameOptions
	cmd := &cobra.Command{
		Use:   "lint -f FILE|DIR|-",
		Short: "What is wrong with objects of Clarion's kinds, without a cluster",
		Long: `What is wrong with objects of Clarion's kinds, without a cluster: what an API server would refuse of each (the schema and
the rules of the CustomResourceDefinitions, checked by the API server's own code; unknown fields too), and what is wrong
with them together: names of objects that are not among them, pools that overlap. With --offline --cluster DUMP the objects
of the dump count as there.`,
		Example: `  kubectl clarion lint -f clarion/ -R
  kustomize build | kubectl clarion lint -f -`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, err := a.readFiles(&files)
			if err != nil {
				return err
			}
			if a.offline {
				if objects, err = a.beside(cmd.Context(), objects); err != nil {
					return err
				}
			}
			r, err := lint(cmd.Context(), objects)
			if err != nil {
				return err
			}
			if err := a.print(r, func(w io.Writer, _ bool) error { return a.writeLint(w, r) }); err != nil {
				return err
			}
			if len(r.Problems) > 0 {
				return problemsFound
			}
			return nil
		},
	}
	fileFlags(cmd, &files)
	a.printFlag(cmd)
	return cmd
}

// beside adds to objects those of a dump that they do not replace.
func (a *app) beside(ctx context.Context, in []*unstructured.Unstructured) ([]*unstructured.Unstructured, error) {
	_, c, err := a.load(ctx)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, o := range in {
		seen[nameOf(o)] = true
	}
	for _, o := range c.objects {
		kind, name, _ := strings.Cut(o.name, "/")
		if kind == "Speaker" || seen[kind+"/"+name] {
			continue
		}
		u, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o.is)
		if err != nil {
			return nil, err
		}
		out := &unstructured.Unstructured{Object: u}
		out.SetGroupVersionKind(v1beta1.GroupVersion.WithKind(kind))
		in = append(in, out)
	}
	return in, nil
}

// fileFlags are kubectl's flags for files.
func fileFlags(cmd *cobra.Command, files *resource.FilenameOptions) {
	flags := genericclioptions.FileNameFlags{
		Usage: "that hold the objects", Filenames: &files.Filenames, Kustomize: &files.Kustomize, Recursive: &files.Recursive,
	}
	flags.AddFlags(cmd.Flags())
}

// readFiles reads objects as kubectl apply does.
func (a *app) readFiles(files *resource.FilenameOptions) ([]*unstructured.Unstructured, error) {
	if err := files.RequireFilenameOrKustomize(); err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, f := range files.Filenames {
		if f == "-" { // the builder reads the process' standard input itself
			if len(files.Filenames) > 1 {
				return nil, errors.New("--filename -: the standard input cannot be read beside files")
			}
			err := resource.NewLocalBuilder().Unstructured().ContinueOnError().Stream(a.In, "the standard input").Flatten().Do().Visit(collect(&out))
			return out, err
		}
	}
	err := resource.NewLocalBuilder().Unstructured().ContinueOnError().FilenameParam(false, files).Flatten().Do().Visit(collect(&out))
	return out, err
}

func collect(to *[]*unstructured.Unstructured) resource.VisitorFunc {
	return func(i *resource.Info, err error) error {
		if err != nil {
			return err
		}
		o, ok := i.Object.(*unstructured.Unstructured)
		if !ok {
			return fmt.Errorf("%s: cannot be read", i.ObjectName())
		}
		*to = append(*to, o)
		return nil
	}
}

func (a *app) writeLint(w io.Writer, r lintReport) error {
	for _, p := range r.Problems {
		fmt.Fprintln(w, a.paint(red, p.About)+": "+p.Text)
	}
	for _, p := range r.Advice {
		fmt.Fprintln(w, a.paint(yellow, p.About)+": "+p.Text)
	}
	_, err := fmt.Fprintf(w, "%s, %s.\n", text.Count(r.Objects, "object"), text.Count(len(r.Problems), "problem"))
	return err
}

// nameOf is an object as Kind/name, or Kind/namespace/name.
func nameOf(o *unstructured.Unstructured) string {
	if ns := o.GetNamespace(); ns != "" {
		return o.GetKind() + "/" + ns + "/" + o.GetName()
	}
	return o.GetKind() + "/" + o.GetName()
}

// checked are objects of Clarion's kinds, with their defaults, and what is wrong with each of them in itself. What is
// another's is in neither list. Those that an API server would refuse are not among the objects.
func checked(ctx context.Context, in []*unstructured.Unstructured, old func(*unstructured.Unstructured) *unstructured.Unstructured) (out []client.Object, problems []problem, err error) {
	schemas, err := schema.Read()
	if err != nil {
		return nil, nil, err
	}
	scheme, err := newScheme()
	if err != nil {
		return nil, nil, err
	}
	seen := map[string]bool{}
	for _, o := range in {
		gvk := o.GroupVersionKind()
		if gvk.Group != v1beta1.GroupVersion.Group {
			continue
		}
		name := nameOf(o)
		if seen[name] {
			problems = append(problems, problem{name, "it is there twice; the last one would count"})
		}
		seen[name] = true
		k := schemas[gvk]
		if k == nil {
			problems = append(problems, problem{name, fmt.Sprintf("there is no kind %s of version %s", gvk.Kind, o.GetAPIVersion())})
			continue
		}
		o = o.DeepCopy()
		wrong := k.Check(ctx, o, old(o))
		for _, w := range wrong {
			problems = append(problems, problem{name, w})
		}
		if len(wrong) > 0 {
			continue
		}
		typed, err := scheme.New(gvk)
		if err != nil {
			return nil, nil, err
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, typed); err != nil {
			problems = append(problems, problem{name, err.Error()})
			continue
		}
		out = append(out, typed.(client.Object))
	}
	return out, problems, nil
}

// lint says what is wrong with objects.
func lint(ctx context.Context, in []*unstructured.Unstructured) (lintReport, error) {
	objects, problems, err := checked(ctx, in, func(*unstructured.Unstructured) *unstructured.Unstructured { return nil })
	if err != nil {
		return lintReport{}, err
	}
	more, advice := together(objects)
	r := lintReport{Problems: slices.Concat([]problem{}, problems, more), Advice: advice}
	for _, o := range in {
		if o.GroupVersionKind().Group == v1beta1.GroupVersion.Group {
			r.Objects++
		}
	}
	if r.Objects == 0 {
		return r, errors.New("no object of Clarion's kinds (apiVersion " + v1beta1.GroupVersion.String() + ") is there")
	}
	return r, nil
}

// together says what is wrong with objects beside each other, each of which is right in itself.
func together(objects []client.Object, taken ...pool.Use) (problems, advice []problem) {
	var all config.Objects
	var pools []*pool.Pool
	for _, o := range objects {
		switch o := o.(type) {
		case *v1beta1.IPAddressPool:
			p, err := pool.Parse(o)
			if err != nil {
				problems = append(problems, problem{"IPAddressPool/" + o.Name, strings.ReplaceAll(err.Error(), "\n", "; ")})
			}
			for _, text := range p.Advice {
				advice = append(advice, problem{"IPAddressPool/" + o.Name, text})
			}
			pools, all.Pools = append(pools, p), append(all.Pools, o)
		case *v1beta1.L2Advertisement:
			all.L2Advertisements = append(all.L2Advertisements, o)
		case *v1beta1.BGPAdvertisement:
			all.BGPAdvertisements = append(all.BGPAdvertisements, o)
		case *v1beta1.BGPPeer:
			all.BGPPeers = append(all.BGPPeers, o)
		case *v1beta1.BFDProfile:
			all.BFDProfiles = append(all.BFDProfiles, o)
		case *v1beta1.Community:
			all.Communities = append(all.Communities, o)
		}
	}
	set := pool.NewSetBeside(taken, pools...)
	for _, p := range all.Pools {
		for _, c := range set.Conflicts(p.Name) {
			problems = append(problems, problem{"IPAddressPool/" + p.Name, fmt.Sprintf("%s: belongs to pool %s, which is older", c.Addresses, c.With)})
		}
		for _, u := range set.Uses(p.Name) {
			problems = append(problems, problem{"IPAddressPool/" + p.Name, fmt.Sprintf("%s: belongs to %s, so no Service gets it", u.Addresses, u.By)})
		}
	}
	_, found := config.Parse(all)
	for _, p := range found {
		of := problem{p.Kind + "/" + p.Name, p.Message}
		if p.Reason == config.ReasonAdvice {
			advice = append(advice, of)
		} else {
			problems = append(problems, of)
		}
	}
	for _, of := range [][]problem{problems, advice} {
		slices.SortStableFunc(of, func(a, b problem) int { return cmp.Compare(a.About, b.About) })
	}
	return problems, advice
}
