package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
)

// kind is something that can be explained.
type kind struct {
	words []string // that it goes by
	list  func() client.ObjectList
	// object is an object of the kind without a name; nil for what is none.
	object func() client.Object
	// explain explains one of a name.
	explain func(ctx context.Context, c *cluster, conn *connection, name string) (explanation, error)
}

var kinds = []kind{
	{[]string{"svc", "service", "services"}, func() client.ObjectList { return &corev1.ServiceList{} }, func() client.Object { return &corev1.Service{} }, explainServiceNamed},
	{[]string{"pool", "ipaddresspool", "ipaddresspools", "pools"}, func() client.ObjectList { return &v1beta1.IPAddressPoolList{} }, func() client.Object { return &v1beta1.IPAddressPool{} }, explainPool},
	{[]string{"peer", "bgppeer", "bgppeers", "peers"}, func() client.ObjectList { return &v1beta1.BGPPeerList{} }, func() client.Object { return &v1beta1.BGPPeer{} }, explainPeer},
	{[]string{"node", "nodes", "no", "speaker", "speakers"}, func() client.ObjectList { return &corev1.NodeList{} }, func() client.Object { return &corev1.Node{} }, explainNode},
	{[]string{"address", "addresses", "addr"}, nil, nil, explainAddress},
	{[]string{"l2advertisement", "l2advertisements", "l2"}, func() client.ObjectList { return &v1beta1.L2AdvertisementList{} }, func() client.Object { return &v1beta1.L2Advertisement{} }, explainL2},
	{[]string{"bgpadvertisement", "bgpadvertisements", "bgp"}, func() client.ObjectList { return &v1beta1.BGPAdvertisementList{} }, func() client.Object { return &v1beta1.BGPAdvertisement{} }, explainBGP},
	{[]string{"bfdprofile", "bfdprofiles", "bfd"}, func() client.ObjectList { return &v1beta1.BFDProfileList{} }, func() client.Object { return &v1beta1.BFDProfile{} }, explainUsed("BFDProfile", usersOfProfile)},
	{[]string{"community", "communities"}, func() client.ObjectList { return &v1beta1.CommunityList{} }, func() client.Object { return &v1beta1.Community{} }, explainUsed("Community", usersOfCommunity)},
}

func (a *app) explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain KIND [NAME] | KIND/NAME",
		Short: "Why a Service is or is not reachable; what a pool, peer, node, address or advertisement does, and why not more",
		Example: `  kubectl clarion explain svc/web -n shop
  kubectl clarion explain svc shop/web
  kubectl clarion explain svc -A
  kubectl clarion explain node node1
  kubectl clarion explain address 192.0.2.200`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			word, name, err := kindAndName(args)
			if len(args) == 1 && !strings.Contains(args[0], "/") { // all of the kind
				word, err = args[0], nil
			}
			if err != nil {
				return err
			}
			k := kindOfWord(word)
			if k == nil {
				return fmt.Errorf("%q is no kind that can be explained: want %s", word, kindWords())
			}
			conn, c, err := a.load(cmd.Context())
			if err != nil {
				return err
			}
			names := []string{name}
			if name == "" || k.words[0] == "svc" && a.every {
				if names, err = a.listed(cmd.Context(), conn, c, k, name); err != nil {
					return err
				}
			}
			c.snap.Lock()
			defer c.snap.Unlock()
			var all []explanation
			for _, n := range names {
				e, err := k.explain(cmd.Context(), c, conn, n)
				if err != nil {
					return err
				}
				all = append(all, e)
			}
			if name != "" && !a.every {
				err = a.print(all[0], func(w io.Writer, _ bool) error { return all[0].write(a, w) })
			} else {
				err = a.print(explanations{Items: all}, func(w io.Writer, wide bool) error { return writeAll(a, w, all, wide) })
			}
			return cmp.Or(err, verdict(all))
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
			return a.completeKind(cmd.Context(), args, begun), cobra.ShellCompDirectiveNoFileComp
		},
	}
	a.allFlag(cmd, "Services of all namespaces: those of the name, or all")
	a.printFlag(cmd)
	return cmd
}

// explanations are those of several objects, for programs.
type explanations struct {
	Items []explanation `json:"items"`
}

// verdict is the code to exit with after some explanations.
func verdict(all []explanation) error {
	switch {
	case slices.ContainsFunc(all, func(e explanation) bool { return e.Fine != nil && !*e.Fine }):
		return problemsFound
	case slices.ContainsFunc(all, func(e explanation) bool { return e.Fine == nil }):
		return couldNotTell
	}
	return nil
}

// writeAll writes the answers of explanations, a line each, or all that they say.
func writeAll(a *app, w io.Writer, all []explanation, wide bool) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "None.")
		return err
	}
	for i, e := range all {
		if !wide {
			fmt.Fprintln(w, e.paint(a))
			continue
		}
		if i > 0 {
			fmt.Fprintln(w)
		}
		if err := e.write(a, w); err != nil {
			return err
		}
	}
	if wide {
		return nil
	}
	return writeHidden(w, all[0].NotShown)
}

// listed are the names of all objects of a kind, or of the Services of all namespaces that have a name.
func (a *app) listed(ctx context.Context, conn *connection, c *cluster, k *kind, name string) (out []string, err error) {
	if k.list == nil {
		for _, addr := range slices.SortedFunc(slices.Values(c.snap.All()), netip.Addr.Compare) {
			out = append(out, addr.String())
		}
		return out, nil
	}
	kind := reflect.TypeOf(k.object()).Elem().Name()
	items := c.raw[kind]
	if c.hidden[kind] != nil { // perhaps just not all of them
		var in []client.ListOption
		if kind == "Service" && !a.every {
			in = append(in, client.InNamespace(conn.namespace))
		}
		list := k.list()
		if err := conn.List(ctx, list, in...); err != nil {
			return nil, err
		}
		if items, err = meta.ExtractList(list); err != nil {
			return nil, err
		}
	}
	for _, i := range items {
		o := i.(client.Object)
		switch svc, ok := o.(*corev1.Service); {
		case ok && !a.every && svc.Namespace != conn.namespace:
		case !ok:
			out = append(out, o.GetName())
		case name == "" && external(svc), name == svc.Name:
			out = append(out, svc.Namespace+"/"+svc.Name)
		}
	}
	if slices.Sort(out); len(out) == 0 && name != "" {
		return nil, fmt.Errorf("there is no Service %s in any namespace", name)
	}
	return out, nil
}

// external says whether a Service is to be reached from outside.
func external(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer || len(svc.Spec.ExternalIPs) > 0
}

// kindAndName reads KIND NAME, KIND/NAME, or for a Service KIND NAMESPACE/NAME and KIND/NAMESPACE/NAME.
func kindAndName(args []string) (kind, name string, err error) {
	if len(args) == 2 {
		return args[0], args[1], nil
	}
	kind, name, ok := strings.Cut(args[0], "/")
	if !ok || name == "" {
		return "", "", errors.New("which one? want KIND NAME or KIND/NAME")
	}
	return kind, name, nil
}

func kindOfWord(word string) *kind {
	for i := range kinds {
		for _, w := range kinds[i].words {
			if strings.EqualFold(w, word) {
				return &kinds[i]
			}
		}
	}
	return nil
}

// kindWords are the shortest words of all kinds.
func kindWords() string {
	var out []string
	for _, k := range kinds {
		out = append(out, k.words[0])
	}
	return strings.Join(out, ", ")
}

func (a *app) completeKind(ctx context.Context, args []string, begun string) (out []string) {
	switch len(args) {
	case 0:
		for _, k := range kinds {
			out = append(out, k.words[0])
		}
	case 1:
		k := kindOfWord(args[0])
		if k == nil || k.list == nil {
			return nil
		}
		var in []client.ListOption
		of, inNamespace := "", false
		if ns, _, ok := strings.Cut(begun, "/"); ok {
			of, inNamespace = ns, true
		} else if *a.flags.Namespace != "" {
			of = *a.flags.Namespace
		}
		if of != "" {
			in = append(in, client.InNamespace(of))
		}
		return a.names(ctx, k.list(), func(o client.Object) (string, bool) {
			if svc, ok := o.(*corev1.Service); ok {
				name := svc.Namespace + "/" + svc.Name
				if of != "" && !inNamespace {
					name = svc.Name
				}
				return name, external(svc)
			}
			return o.GetName(), true
		}, in...)
	}
	return out
}

// serviceNamed is the Service of a name, or of namespace/name.
func (c *cluster) serviceNamed(ctx context.Context, conn *connection, name string) (*corev1.Service, error) {
	key := client.ObjectKey{Namespace: conn.namespace, Name: name}
	if before, after, ok := strings.Cut(name, "/"); ok {
		key = client.ObjectKey{Namespace: before, Name: after}
	}
	svc := c.services[key]
	if c.hidden["Service"] != nil { // perhaps just not all of them
		svc = &corev1.Service{}
		if err := conn.Get(ctx, key, svc); err != nil {
			return nil, err
		}
	}
	if svc == nil {
		return nil, fmt.Errorf("there is no Service %s", key)
	}
	return svc, nil
}

func explainServiceNamed(ctx context.Context, c *cluster, conn *connection, name string) (explanation, error) {
	svc, err := c.serviceNamed(ctx, conn, name)
	if err != nil {
		return explanation{}, err
	}
	return c.explainService(svc), nil
}
