package main

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// completionTime is how long somebody who has pressed the tabulator key is kept waiting.
const completionTime = 3 * time.Second

// completeFlags completes the values of kubectl's flags that name something.
func (a *app) completeFlags(root *cobra.Command) {
	none := cobra.ShellCompDirectiveNoFileComp
	namespaces := func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.names(cmd.Context(), &corev1.NamespaceList{}, nil), none
	}
	for flag, complete := range map[string]cobra.CompletionFunc{
		"namespace": namespaces, "clarion-namespace": namespaces,
		"context": func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			config, err := a.flags.ToRawKubeConfigLoader().RawConfig()
			if err != nil {
				return nil, none
			}
			return slices.Sorted(maps.Keys(config.Contexts)), none
		},
	} {
		_ = root.RegisterFlagCompletionFunc(flag, complete)
	}
}

// names are those of the objects of a list that are wanted, nil for all; as many as can be read in a short time.
func (a *app) names(ctx context.Context, list client.ObjectList, want func(client.Object) (name string, ok bool), options ...client.ListOption) (out []string) {
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	conn, err := a.open()
	if err != nil || conn.List(ctx, list, options...) != nil {
		return nil
	}
	items, _ := meta.ExtractList(list)
	for _, i := range items {
		o := i.(client.Object)
		if want == nil {
			out = append(out, o.GetName())
		} else if name, ok := want(o); ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
