package plan

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/ipam"
	"github.com/clarionlb/clarion/internal/pool"
	"github.com/clarionlb/clarion/internal/snapshot"
)

// World is a cluster in which a controller and speakers go on deciding, with every edit, and every decision is carried out
// at once. It is not for several goroutines at once.
type World struct {
	class   allocate.Class
	now     time.Time
	objects map[key]client.Object // that edits replace
	feeds   map[string]toolscache.ResourceEventHandler
	snap    *snapshot.Snapshot
	table   *ipam.Table
	lan     *announce.View // see allocate.Plan
	set     *pool.Set
	nodes   Nodes // of its outcomes
}

// key is what an object is known by.
type key struct{ kind, namespace, name string }

func keyOf(o client.Object) key {
	return key{reflect.TypeOf(o).Elem().Name(), o.GetNamespace(), o.GetName()}
}

// Options are what a World is made with.
type Options struct {
	// Class is which Services are Clarion's.
	Class allocate.Class
	// Snapshot is what the speakers are started with.
	Snapshot snapshot.Options
	// Now is the time, which stands still.
	Now time.Time
}

// New is a cluster with some objects, which are not changed: those of the core API, of Clarion's, and the Speakers, all of
// which count as alive that are there.
func New(ctx context.Context, o Options, objects []client.Object) (*World, error) {
	w := &World{
		class: o.Class, now: o.Now, objects: map[key]client.Object{}, feeds: map[string]toolscache.ResourceEventHandler{},
		snap: snapshot.New(o.Snapshot), table: ipam.NewTable(),
	}
	if _, err := w.snap.Watch(ctx, feed{w: w}, slog.New(slog.DiscardHandler), func() {}); err != nil {
		return nil, err
	}
	for _, x := range objects {
		w.put(x)
	}
	w.pools()
	quarantined, rests := allocate.Past(all[v1beta1.IPAddressPool](w))
	allocate.Load(w.table, w.set, allocate.Homes(w.lan), quarantined, rests, w.requests(), w.now)
	for k := range w.objects {
		if k.kind == "Service" {
			w.publish(types.NamespacedName{Namespace: k.namespace, Name: k.name})
		}
	}
	w.settle()
	return w, nil
}

// put takes in an object as it is now.
func (w *World) put(o client.Object) {
	k := keyOf(o)
	old := w.objects[k]
	w.objects[k] = o
	switch h := w.feeds[k.kind]; {
	case h == nil:
	case old == nil:
		h.OnAdd(o, false)
	default:
		h.OnUpdate(old, o)
	}
}

// remove takes an object away.
func (w *World) remove(k key) {
	old := w.objects[k]
	if old == nil {
		return
	}
	delete(w.objects, k)
	if h := w.feeds[k.kind]; h != nil {
		h.OnDelete(old)
	}
}

// all are the objects of a kind, by name.
func all[T any, P interface {
	*T
	client.Object
}](w *World) (out []T) {
	kind := reflect.TypeFor[T]().Name()
	var keys []key
	for k := range w.objects {
		if k.kind == kind {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b key) int { return strings.Compare(a.namespace+"/"+a.name, b.namespace+"/"+b.name) })
	for _, k := range keys {
		out = append(out, *w.objects[k].(P))
	}
	return out
}

// pools works out what pools mean, and where addresses would be announced.
func (w *World) pools() {
	nodes, list := all[corev1.Node](w), all[v1beta1.IPAddressPool](w)
	w.set = allocate.Pools(list, allocate.Taken(nodes, all[networkingv1.ServiceCIDR](w))...)
	w.lan = allocate.Plan(list, all[v1beta1.L2Advertisement](w), nodes, w.set)
}

func (w *World) request(svc *corev1.Service) ipam.Request {
	ns, _ := w.objects[key{"Namespace", "", svc.Namespace}].(*corev1.Namespace)
	if ns == nil {
		ns = &corev1.Namespace{}
	}
	return w.class.Request(svc, ns.Labels)
}

func (w *World) requests() (out []ipam.Request) {
	for _, svc := range all[corev1.Service](w) {
		if svc.Spec.Type == corev1.ServiceTypeLoadBalancer || len(svc.Spec.ExternalIPs) > 0 {
			out = append(out, w.request(&svc))
		}
	}
	return out
}

// assign decides on a Service, as the controller does when it looks at one.
func (w *World) assign(name types.NamespacedName) {
	svc, _ := w.objects[key{"Service", name.Namespace, name.Name}].(*corev1.Service)
	if svc == nil {
		w.table.Release(name, w.now)
		return
	}
	if r := w.request(svc); svc.Spec.Type == corev1.ServiceTypeLoadBalancer || len(r.Held) > 0 {
		w.table.Assign(r, w.now)
		w.publish(name)
	} else {
		w.table.Release(name, w.now)
	}
}

// publish writes into a Service's status what was decided.
func (w *World) publish(name types.NamespacedName) {
	svc, _ := w.objects[key{"Service", name.Namespace, name.Name}].(*corev1.Service)
	res, ok := w.table.Result(name)
	if svc == nil || !ok || !w.class.Serves(svc) || res.Reason == "" || res.Reason == v1beta1.ReasonForeign {
		return
	}
	addrs := res.Addresses()
	next := svc.DeepCopy()
	if !allocate.Says(svc, addrs) {
		next.Status.LoadBalancer.Ingress = allocate.IngressOf(addrs)
	}
	allocated := allocate.Allocated(&res)
	allocated.LastTransitionTime = metav1.NewTime(w.now)
	meta.SetStatusCondition(&next.Status.Conditions, allocated)
	w.put(next)
	w.table.Published(name, addrs, w.now)
}

// settle carries out what follows until nothing more does: the controller looks at every Service whose result changed, and
// writes the pools' statuses; the speakers see it all.
func (w *World) settle() {
	for {
		dirty := w.table.Dirty()
		if len(dirty) == 0 {
			break
		}
		for _, name := range dirty {
			w.assign(name)
		}
	}
	usage, kept := w.table.Usage(), false
	for _, p := range all[v1beta1.IPAddressPool](w) {
		next := p.DeepCopy()
		conditions := next.Status.Conditions
		next.Status = allocate.Status(usage[p.Name])
		next.Status.Conditions = conditions
		meta.SetStatusCondition(&next.Status.Conditions, metav1.Condition{
			Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1beta1.ReasonReady, ObservedGeneration: p.Generation, LastTransitionTime: metav1.NewTime(w.now),
		})
		kept = kept || !slices.Equal(p.Status.Kept, next.Status.Kept)
		w.put(next)
	}
	if kept { // which are announced where they were
		w.pools()
		w.table.SetHomes(allocate.Homes(w.lan))
	}
	w.snap.Lock()
	defer w.snap.Unlock()
	speakers := map[string]*v1beta1.Speaker{}
	for _, sp := range all[v1beta1.Speaker](w) {
		speakers[sp.Name] = &sp
	}
	w.snap.Speakers(speakers)
	w.snap.Changes()
}

// Edit is objects to be written, in place of those of the same kind and name, and others to be deleted.
type Edit struct {
	Write, Delete []client.Object
}

// Do carries out an edit and all that follows from it. What is written must not be changed afterwards.
func (w *World) Do(e Edit) {
	var services []types.NamespacedName
	pools := false
	note := func(o client.Object) {
		switch o := o.(type) {
		case *corev1.Service:
			services = append(services, client.ObjectKeyFromObject(o))
		case *corev1.Namespace:
			for _, svc := range all[corev1.Service](w) {
				if svc.Namespace == o.Name {
					services = append(services, client.ObjectKeyFromObject(&svc))
				}
			}
		case *v1beta1.IPAddressPool, *v1beta1.L2Advertisement, *corev1.Node, *networkingv1.ServiceCIDR:
			pools = true
		}
	}
	for _, o := range e.Write {
		o = o.DeepCopyObject().(client.Object)
		if old := w.objects[keyOf(o)]; old != nil { // it is the same object, edited
			o.SetUID(old.GetUID())
			o.SetCreationTimestamp(old.GetCreationTimestamp())
			o.SetGeneration(old.GetGeneration() + 1)
		} else {
			o.SetGeneration(1)
			o.SetUID(types.UID("new " + o.GetNamespace() + "/" + o.GetName()))
			if o.GetCreationTimestamp().Time.IsZero() {
				o.SetCreationTimestamp(metav1.NewTime(w.now))
			}
		}
		w.put(o)
		note(o)
	}
	for _, o := range e.Delete {
		w.remove(keyOf(o))
		note(o)
	}
	if pools {
		w.pools()
		w.table.SetHomes(allocate.Homes(w.lan))
		w.table.SetPools(w.set, w.now)
	}
	for _, name := range services {
		w.assign(name)
	}
	w.settle()
}

// Service is how a Service stands.
type Service struct {
	// Name is namespace/name.
	Name      string
	Addresses []netip.Addr
	// Satisfied says whether it has the addresses that it should have; Message says which, or why not.
	Satisfied bool
	Message   string
}

// Services are those that are Clarion's, by name.
func (w *World) Services() map[string]Service {
	out := map[string]Service{}
	for _, svc := range all[corev1.Service](w) {
		name := client.ObjectKeyFromObject(&svc)
		if res, ok := w.table.Result(name); ok && w.class.Serves(&svc) && res.Reason != "" && res.Reason != v1beta1.ReasonForeign {
			out[name.String()] = Service{name.String(), res.Addresses(), res.Satisfied(), res.Message()}
		}
	}
	return out
}

// Object is the object of the same kind and name as another, nil when there is none. It must not be changed.
func (w *World) Object(like client.Object) client.Object { return w.objects[keyOf(like)] }

// Speakers are those that are alive, by node.
func (w *World) Speakers() map[string]*v1beta1.Speaker {
	out := map[string]*v1beta1.Speaker{}
	for _, sp := range all[v1beta1.Speaker](w) {
		out[sp.Name] = &sp
	}
	return out
}

// Objects are all objects, in no order. They must not be changed.
func (w *World) Objects() []client.Object { return slices.Collect(maps.Values(w.objects)) }

// feed is a cache whose objects a World changes.
type feed struct {
	cache.Cache // only GetInformer is there
	w           *World
}

func (f feed) GetInformer(_ context.Context, o client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	return informer{w: f.w, kind: reflect.TypeOf(o).Elem().Name()}, nil
}

type informer struct {
	cache.Informer
	w    *World
	kind string
}

func (i informer) AddEventHandler(h toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	i.w.feeds[i.kind] = h
	return synced{}, nil
}

type synced struct {
	toolscache.ResourceEventHandlerRegistration
}

func (synced) HasSynced() bool { return true }
