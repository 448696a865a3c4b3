package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
)

// Watch feeds a cache's objects of every kind that decisions are made of into the snapshot, and calls changed when
// something has to be decided anew.
// The returned functions say when the objects that there are have all been taken in: before that, the snapshot is not
// complete, and unknown is not empty. A cluster whose API has no ServiceCIDR, older than Kubernetes 1.33, has none; that
// is logged.
func (s *Snapshot) Watch(ctx context.Context, c cache.Cache, log *slog.Logger, changed func()) ([]toolscache.InformerSynced, error) {
	var synced []toolscache.InformerSynced
	var errs []error
	add := func(has toolscache.InformerSynced, err error) {
		if err != nil {
			errs = append(errs, err)
			return
		}
		synced = append(synced, has)
	}
	add(feed(ctx, c, s, changed, func(key string, o *corev1.Service, gone bool) { s.service(key, unless(gone, o)) }))
	add(feed(ctx, c, s, changed, func(_ string, o *discoveryv1.EndpointSlice, gone bool) {
		s.endpointSlice(o.Namespace+"/"+o.Labels[discoveryv1.LabelServiceName], o.Name, unless(gone, o))
	}))
	add(feed(ctx, c, s, changed, func(key string, o *corev1.Node, gone bool) { s.node(key, unless(gone, o)) }))
	has, err := feed(ctx, c, s, changed, func(key string, o *networkingv1.ServiceCIDR, gone bool) { s.serviceCIDR(key, unless(gone, o)) })
	if meta.IsNoMatchError(err) {
		log.Warn("the cluster has no ServiceCIDR API: the ranges of its ClusterIPs are not known, and not announced", "error", err)
	} else {
		add(has, err)
	}
	add(feed(ctx, c, s, changed, s.pool))
	add(feed(ctx, c, s, changed, configObject(s, s.objects.l2)))
	add(feed(ctx, c, s, changed, configObject(s, s.objects.bgp)))
	add(feed(ctx, c, s, changed, configObject(s, s.objects.peers)))
	add(feed(ctx, c, s, changed, configObject(s, s.objects.bfd)))
	add(feed(ctx, c, s, changed, configObject(s, s.objects.comms)))
	return synced, errors.Join(errs...)
}

// object is a pointer to a Kubernetes object.
type object[T any] interface {
	*T
	client.Object
}

func feed[T any, P object[T]](ctx context.Context, c cache.Cache, s *Snapshot, changed func(), f func(string, P, bool)) (toolscache.InformerSynced, error) {
	return On(ctx, c, func(key string, o P, gone bool) {
		s.Lock()
		f(key, o, gone)
		news := s.pending()
		s.Unlock()
		if news {
			changed()
		}
	})
}

func unless[T any](gone bool, o *T) *T {
	if gone {
		return nil
	}
	return o
}

// On calls f with every object of a kind that a cache has, now and whenever one changes, and once more when it is gone; an
// EndpointSlice is gone from a Service also when it becomes another's.
// The key is namespace/name, or the name of a cluster-scoped object.
func On[T any, P object[T]](ctx context.Context, c cache.Cache, f func(key string, obj P, gone bool)) (toolscache.InformerSynced, error) {
	call := func(o any, gone bool) {
		obj := o.(P)
		key := obj.GetName()
		if ns := obj.GetNamespace(); ns != "" {
			key = ns + "/" + key
		}
		f(key, obj, gone)
	}
	inf, err := c.GetInformer(ctx, P(new(T)), cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watching %T: %w", *new(T), err)
	}
	reg, err := inf.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { call(o, false) },
		UpdateFunc: func(old, o any) {
			if otherService(old, o) {
				call(old, true)
			}
			call(o, false)
		},
		DeleteFunc: func(o any) {
			if d, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
				o = d.Obj
			}
			call(o, true)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("watching %T: %w", *new(T), err)
	}
	return reg.HasSynced, nil
}

// otherService says whether an EndpointSlice has become that of another Service.
func otherService(old, o any) bool {
	was, is := old.(*discoveryv1.EndpointSlice)
	return is && was.Labels[discoveryv1.LabelServiceName] != o.(*discoveryv1.EndpointSlice).Labels[discoveryv1.LabelServiceName]
}

// pool takes in a pool. One that was edited counts as it was before, too, until the controller has seen the edit: what
// keeps its address then is in the status.
func (s *Snapshot) pool(name string, obj *v1beta1.IPAddressPool, gone bool) {
	old := s.objects.pools[name]
	configObject(s, s.objects.pools)(name, obj, gone)
	edited := old != nil && !gone && old.GetUID() == obj.GetUID() && old.GetGeneration() != obj.GetGeneration()
	switch had := s.earlier[name] != nil; {
	case gone || seen(obj) >= obj.GetGeneration():
		if delete(s.earlier, name); had {
			s.dirtyConfig = true
		}
	case edited && (!had || seen(obj) >= old.GetGeneration()): // addresses are given by what it has seen
		s.earlier[name] = old
	}
	if old == nil || gone || !slices.Equal(old.Status.Kept, obj.Status.Kept) {
		s.keep()
	}
}

// seen is the generation of a pool that the controller has seen last, -1 when none.
func seen(p *v1beta1.IPAddressPool) int64 {
	if c := meta.FindStatusCondition(p.Status.Conditions, v1beta1.ConditionReady); c != nil {
		return c.ObservedGeneration
	}
	return -1
}

// keep reads from the pools' statuses which addresses were theirs.
func (s *Snapshot) keep() {
	kept := map[netip.Addr]string{}
	for name, p := range s.objects.pools {
		for _, text := range p.Status.Kept {
			if addr, err := netip.ParseAddr(text); err == nil {
				kept[addr] = name
			}
		}
	}
	for _, both := range []map[netip.Addr]string{s.kept, kept} {
		for addr := range both {
			if kept[addr] != s.kept[addr] && s.byAddr[addr] != nil {
				s.dirty[addr] = true
			}
		}
	}
	s.kept = kept
}

// configObject takes in a configuration object. Only what its user writes counts as a change, not its status.
func configObject[T any, P object[T]](s *Snapshot, to map[string]P) func(string, P, bool) {
	return func(name string, obj P, gone bool) {
		old := to[name]
		if gone {
			delete(to, name)
		} else {
			to[name] = obj
		}
		if gone || old == nil || old.GetUID() != obj.GetUID() || old.GetGeneration() != obj.GetGeneration() ||
			!maps.Equal(old.GetLabels(), obj.GetLabels()) {
			s.dirtyConfig = true
		}
	}
}

// Trim drops from objects what a snapshot does not use; it is a cache's transform. It must keep every field that this
// package reads.
func Trim(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	switch o := o.(type) {
	case *corev1.Service:
		o.ObjectMeta = identity(o.ObjectMeta)
		o.Spec = corev1.ServiceSpec{
			Type: o.Spec.Type, ClusterIP: o.Spec.ClusterIP, ClusterIPs: o.Spec.ClusterIPs, ExternalIPs: o.Spec.ExternalIPs,
			ExternalTrafficPolicy: o.Spec.ExternalTrafficPolicy, InternalTrafficPolicy: o.Spec.InternalTrafficPolicy, HealthCheckNodePort: o.Spec.HealthCheckNodePort,
		}
		isOurs := ours(o)
		if o.Status.Conditions = nil; isOurs {
			o.Status.Conditions = []metav1.Condition{{Type: v1beta1.ConditionAllocated}}
		}
		for i := range o.Status.LoadBalancer.Ingress {
			o.Status.LoadBalancer.Ingress[i] = corev1.LoadBalancerIngress{IP: o.Status.LoadBalancer.Ingress[i].IP}
		}
	case *corev1.Node:
		drain := o.Annotations[v1beta1.AnnotationDrain]
		if o.Annotations = nil; drain != "" {
			o.Annotations = map[string]string{v1beta1.AnnotationDrain: drain}
		}
		o.Status = corev1.NodeStatus{Addresses: o.Status.Addresses, Conditions: o.Status.Conditions}
	case *discoveryv1.EndpointSlice:
		o.ObjectMeta, o.Ports = identity(o.ObjectMeta), nil
		o.Labels = map[string]string{discoveryv1.LabelServiceName: o.Labels[discoveryv1.LabelServiceName]}
		names := map[string]*string{}
		for i, e := range o.Endpoints {
			is := discoveryv1.EndpointConditions{Ready: e.Conditions.Ready, Serving: e.Conditions.Serving, Terminating: e.Conditions.Terminating}
			o.Endpoints[i] = discoveryv1.Endpoint{Conditions: is}
			if len(e.Addresses) > 0 {
				o.Endpoints[i].Addresses = someAddress
			}
			if e.NodeName != nil {
				if names[*e.NodeName] == nil {
					name := unique.Make(*e.NodeName).Value() // there are many slices, and few nodes
					names[name] = &name
				}
				o.Endpoints[i].NodeName = names[*e.NodeName]
			}
		}
	}
	return o, nil
}

// someAddress stands for those of an endpoint: that it has any is all that matters.
var someAddress = []string{"0.0.0.0"}

// identity is what an object is known by.
func identity(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion, Labels: m.Labels}
}

// Kinds are what a cache need not hold of what Watch asks for: Services without a cluster address have none to announce,
// nor do their EndpointSlices matter, which carry a label for that.
func Kinds() map[client.Object]cache.ByObject {
	headless, _ := labels.NewRequirement(corev1.IsHeadlessService, selection.DoesNotExist, nil)
	return map[client.Object]cache.ByObject{
		&corev1.Service{}:            {Field: fields.OneTermNotEqualSelector("spec.clusterIP", corev1.ClusterIPNone)},
		&discoveryv1.EndpointSlice{}: {Label: labels.NewSelector().Add(*headless)},
	}
}
