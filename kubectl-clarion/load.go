package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/explain"
	"github.com/clarionlb/clarion/internal/snapshot"
)

// cluster is what the API holds, read once.
type cluster struct {
	// snap is what the speakers decide from, but for what they tell each other without the API: which links are up.
	snap     *snapshot.Snapshot
	book     *explain.Book
	now      time.Time
	services map[client.ObjectKey]*corev1.Service
	nodes    []string // those that should have a speaker
	pools    []*v1beta1.IPAddressPool
	speakers map[string]*v1beta1.Speaker // by node
	alive    map[string]bool             // the speakers, by node
	objects  []object                    // everything that has conditions of Clarion's
	hidden   map[string]error            // the kinds that the user may not read

	raw        map[string][]runtime.Object // all that was read, by kind
	options    snapshot.Options
	namespace  string // Clarion's
	controller controller
}

// object is a configuration object with what the controller says of it.
type object struct {
	name       string // Kind/name
	generation int64
	conditions []metav1.Condition
	is         client.Object
}

// reading is how a cluster is read.
type reading struct {
	namespace string // Clarion's
	now       func() time.Time
	wait      func(context.Context, time.Duration)
	progress  *progress
	alive     *bool // whether the controller is, where that is known
}

// load reads the cluster.
func load(ctx context.Context, r client.Reader, how reading) (*cluster, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	o := once{reader: r, scheme: scheme, progress: how.progress, items: map[string][]runtime.Object{}, hidden: map[string]error{}, failed: new(error)}
	c := &cluster{raw: o.items, services: map[client.ObjectKey]*corev1.Service{}, speakers: map[string]*v1beta1.Speaker{}, hidden: o.hidden, namespace: how.namespace}
	if c.controller, err = readController(ctx, r, how); apierrors.IsForbidden(err) {
		c.hidden["Lease"] = err
	} else if err != nil {
		return nil, err
	}
	c.options.IgnoreExcludeLabel = c.controller.ignoreExclude
	c.snap = snapshot.New(c.options)
	if _, err := c.snap.Watch(ctx, o, slog.New(slog.DiscardHandler), func() {}); err != nil {
		return nil, cmp.Or(*o.failed, err)
	}
	delete(o.hidden, "ServiceCIDR") // nothing that is shown depends on it
	speakers, err := all[v1beta1.Speaker](ctx, o)
	if err != nil {
		return nil, err
	}
	for _, s := range speakers {
		c.speakers[s.Name] = s
	}
	// The rest has been read.
	services, _ := all[corev1.Service](ctx, o)
	for _, svc := range services {
		c.services[client.ObjectKeyFromObject(svc)] = svc
	}
	nodes, _ := all[corev1.Node](ctx, o)
	for _, n := range nodes {
		if n.Labels[corev1.LabelOSStable] != string(corev1.Windows) { // speakers run on Linux only
			c.nodes = append(c.nodes, n.Name)
		}
	}
	c.pools, _ = all[v1beta1.IPAddressPool](ctx, o)
	c.objects = slices.Concat(
		objects(ctx, o, "IPAddressPool", func(x *v1beta1.IPAddressPool) []metav1.Condition { return x.Status.Conditions }),
		objects(ctx, o, "L2Advertisement", func(x *v1beta1.L2Advertisement) []metav1.Condition { return x.Status.Conditions }),
		objects(ctx, o, "BGPAdvertisement", func(x *v1beta1.BGPAdvertisement) []metav1.Condition { return x.Status.Conditions }),
		objects(ctx, o, "BGPPeer", func(x *v1beta1.BGPPeer) []metav1.Condition { return x.Status.Conditions }),
		objects(ctx, o, "BFDProfile", func(x *v1beta1.BFDProfile) []metav1.Condition { return x.Status.Conditions }),
		objects(ctx, o, "Community", func(x *v1beta1.Community) []metav1.Condition { return x.Status.Conditions }),
	)
	c.alive = snapshot.Living(c.speakers, c.snap.NotReady)
	for _, name := range sortedKeys(c.alive) {
		c.objects = append(c.objects, object{name: "Speaker/" + name, conditions: c.speakers[name].Status.Conditions})
	}

	c.snap.Lock()
	defer c.snap.Unlock()
	c.snap.Speakers(c.speakers)
	c.snap.Changes()
	c.book, c.now = explain.New(), how.now()
	for name, s := range c.speakers {
		c.book.Speaker(name, s)
	}
	c.book.Use(c.snap.View())
	for _, addr := range c.snap.All() {
		c.book.Set(addr, c.snap.ClaimsOn(addr), c.snap.Owner(addr))
	}
	c.book.Touched(c.now)
	return c, nil
}

// once is a cache that never changes: it hands every object of a kind to whoever asks for the kind, as it was read when
// that was asked for first. A kind that the user may not read has none, and is noted.
type once struct {
	cache.Cache // only GetInformer is there
	reader      client.Reader
	scheme      *runtime.Scheme
	progress    *progress
	items       map[string][]runtime.Object // by kind
	hidden      map[string]error
	failed      *error // why the cluster cannot be read; nothing more is asked then
}

func (o once) list(ctx context.Context, obj client.Object) ([]runtime.Object, error) {
	gvk, err := apiutil.GVKForObject(obj, o.scheme)
	if err != nil {
		return nil, err
	}
	kind := gvk.Kind
	if items, ok := o.items[kind]; ok {
		return items, nil
	}
	if *o.failed != nil {
		return nil, *o.failed
	}
	gvk.Kind += "List"
	list, err := o.scheme.New(gvk)
	if err != nil {
		return nil, err
	}
	done := o.progress.step("reading " + gvk.Kind)
	err = o.reader.List(ctx, list.(client.ObjectList))
	done()
	switch {
	case apierrors.IsForbidden(err):
		o.hidden[kind] = err
	case meta.IsNoMatchError(err) && gvk.Group == v1beta1.GroupVersion.Group:
		*o.failed = fmt.Errorf("the cluster has no Clarion: %w", err)
		return nil, *o.failed
	case meta.IsNoMatchError(err): // an API server that is older
		return nil, err
	case err != nil:
		*o.failed = fmt.Errorf("reading %s: %w", gvk.Kind, err)
		return nil, *o.failed
	}
	o.items[kind], err = meta.ExtractList(list)
	return o.items[kind], err
}

// pointer is to an object of a kind.
type pointer[T any] interface {
	*T
	client.Object
}

// objects are those of a kind that has been read, with what the controller says of them.
func objects[T any, P pointer[T]](ctx context.Context, o once, name string, conditions func(P) []metav1.Condition) (out []object) {
	items, _ := all[T, P](ctx, o)
	for _, x := range items {
		out = append(out, object{name + "/" + x.GetName(), x.GetGeneration(), conditions(x), x})
	}
	return out
}

// all are the objects of a kind.
func all[T any, P pointer[T]](ctx context.Context, o once) ([]P, error) {
	items, err := o.list(ctx, P(new(T)))
	out := make([]P, 0, len(items))
	for _, i := range items {
		out = append(out, i.(P))
	}
	return out, err
}

func (o once) GetInformer(ctx context.Context, obj client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	items, err := o.list(ctx, obj)
	return listed{items: items}, err
}

type listed struct {
	cache.Informer
	items []runtime.Object
}

func (l listed) AddEventHandler(h toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	for _, o := range l.items {
		h.OnAdd(o, true)
	}
	return synced{}, nil
}

type synced struct {
	toolscache.ResourceEventHandlerRegistration
}

func (synced) HasSynced() bool { return true }

// notShown is what is not shown because the user may not read it, and why, by kind; and what is taken to be so.
func (c *cluster) notShown() map[string]string {
	out := map[string]string{}
	for kind, err := range c.hidden {
		out[kind] = err.Error()
	}
	if err := c.controller.unknown; err != nil {
		out["Lease"] = fmt.Sprintf("which Services and nodes are Clarion's is not known: %v; nodes with the label %s are taken not to announce", err, corev1.LabelNodeExcludeBalancers)
	}
	return out
}

func writeHidden(w io.Writer, hidden map[string]string) error {
	if len(hidden) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	for _, kind := range sortedKeys(hidden) {
		if _, err := fmt.Fprintf(w, "%s not shown: %s\n", kind, hidden[kind]); err != nil {
			return err
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
