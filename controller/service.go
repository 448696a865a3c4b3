package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/ipam"
	"github.com/clarionlb/clarion/internal/pool"
	"github.com/clarionlb/clarion/internal/text"
)

const (
	// serviceWorkers is how many statuses are written at once.
	serviceWorkers = 32
	// writeTimeout is how long one may take: as long as an admission webhook, at most.
	writeTimeout = 30 * time.Second
	// A status that cannot be written is tried again after firstRetry, then after twice that, and so on to lastRetry.
	firstRetry, lastRetry = 10 * time.Millisecond, 30 * time.Second
	// listPage is how many Services are read at once when the controller takes over.
	listPage = 500
)

type (
	key   = types.NamespacedName
	queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
)

// services reconciles Services: it holds the Table, and writes into each Service's status what the Table says.
type services struct {
	client   client.Client // reads from the cache
	live     client.Reader // reads from the API server
	class    allocate.Class
	holds    func() bool // whether this controller may write
	counters *counters
	events   events.EventRecorder
	log      *slog.Logger
	changed  func()                                                               // called when the pools' numbers may have changed
	waits    func()                                                               // called when a Service waits for a pool's numbers to be written
	claims   func(netip.Addr, func([]announce.Claim))                             // asks about those on an address, as the cache has them
	pools    func(context.Context) (*v1beta1.IPAddressPoolList, *pool.Set, error) // as the cache has them

	queued chan struct{} // closed when there is a queue
	mu     sync.Mutex
	queue  queue
	turns  turns
	born   map[key]time.Time // when a Service without addresses was first seen
	told   map[key]types.UID // Services that are somebody else's, whose users were told so
	leads  bool              // a standby decides nothing
	loaded bool
	late   map[key]*corev1.Service // seen while load reads, otherwise nil
	memory

	loading sync.Mutex // held while load reads
}

// memory is what a controller knows while it leads, and forgets when it no longer does: another one writes then.
type memory struct {
	table      *ipam.Table
	plan       *announce.View                      // of the local network, by which the table chooses; nil: none
	versions   map[key]string                      // resourceVersion of each Service as this controller last read or wrote it itself
	failures   map[key]failure                     // of the last write
	contests   map[key]*contest                    // Services whose addresses somebody else rewrites
	poolCounts map[string]*count                   // by pool
	announced  map[netip.Addr]key                  // addresses that were announced, and for which Service last
	announces  map[key][]netip.Addr                // the same by Service
	reports    map[string]map[netip.Addr]time.Time // by node: the addresses that are in quarantine on its word, and since when it is silent
}

func newMemory() memory {
	return memory{
		table: ipam.NewTable(), versions: map[key]string{}, failures: map[key]failure{}, contests: map[key]*contest{}, poolCounts: map[string]*count{},
		announced: map[netip.Addr]key{}, announces: map[key][]netip.Addr{}, reports: map[string]map[netip.Addr]time.Time{},
	}
}

// failure is a status that could not be written.
type failure struct {
	text  string
	times int
}

// setupServices adds the reconciler to the manager. It runs on standbys too, so that its cache is filled, and decides
// nothing there: see lead.
func setupServices(mgr manager.Manager, cl allocate.Class, holds func() bool, n *counters, log *slog.Logger) (*services, error) {
	s := &services{
		client: mgr.GetClient(), live: mgr.GetAPIReader(), class: cl, holds: holds, counters: n,
		events: mgr.GetEventRecorder("clarion-controller"), log: log, changed: func() {},
		queued: make(chan struct{}), turns: newTurns(), born: map[key]time.Time{}, told: map[key]types.UID{}, memory: newMemory(),
	}
	c, err := controller.New("services", mgr, controller.Options{
		Reconciler:              s,
		MaxConcurrentReconciles: serviceWorkers,
		NeedLeaderElection:      new(false),
	})
	if err != nil {
		return nil, err
	}
	return s, errors.Join(
		c.Watch(source.Func(func(_ context.Context, q queue) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.queue = q
			close(s.queued)
			return nil
		})),
		c.Watch(source.Kind(mgr.GetCache(), &corev1.Service{}, &handler.TypedEnqueueRequestForObject[*corev1.Service]{},
			predicate.TypedFuncs[*corev1.Service]{
				CreateFunc: func(e event.TypedCreateEvent[*corev1.Service]) bool { return s.seen(e.Object) },
				UpdateFunc: func(e event.TypedUpdateEvent[*corev1.Service]) bool { return s.seen(e.ObjectNew) },
				DeleteFunc: func(e event.TypedDeleteEvent[*corev1.Service]) bool { return s.unseen(e.Object) },
			})),
		c.Watch(source.Kind(mgr.GetCache(), &corev1.Namespace{},
			handler.TypedEnqueueRequestsFromMapFunc(s.inNamespace),
			predicate.TypedFuncs[*corev1.Namespace]{
				CreateFunc: func(event.TypedCreateEvent[*corev1.Namespace]) bool { return true },
				UpdateFunc: func(e event.TypedUpdateEvent[*corev1.Namespace]) bool {
					return !maps.Equal(e.ObjectOld.Labels, e.ObjectNew.Labels)
				},
				DeleteFunc: func(event.TypedDeleteEvent[*corev1.Namespace]) bool { return false },
			})),
	)
}

// seen notes when a Service began to wait for its address, and at once what somebody else's Service has: events come in
// order, workers do not take them in order, and what a Service has that came before must not be given to one that came after.
func (s *services) seen(svc *corev1.Service) bool {
	k := client.ObjectKeyFromObject(svc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.late != nil {
		s.late[k] = svc
	}
	if s.loaded && !s.class.Serves(svc) && !leftover(svc) {
		if r := s.class.Request(svc, nil); r.Other && len(r.Held) > 0 && !s.newer(k, svc) {
			s.hold(r)
		}
	}
	switch _, waits := s.born[k]; {
	case len(svc.Status.LoadBalancer.Ingress) > 0 || !s.class.Serves(svc):
		delete(s.born, k)
	case !waits:
		// Kubernetes keeps whole seconds, which is too coarse for a Service that has just been made.
		now, created := time.Now(), svc.CreationTimestamp.Time
		if now.Sub(created) < 2*time.Second {
			created = now
		}
		s.born[k] = created
	}
	return true
}

// unseen forgets what seen noted: a standby looks at no Service again.
func (s *services) unseen(svc *corev1.Service) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.born, client.ObjectKeyFromObject(svc))
	return true
}

// inNamespace is the Services whose namespace changed its labels.
func (s *services) inNamespace(ctx context.Context, ns *corev1.Namespace) []reconcile.Request {
	var list corev1.ServiceList
	if err := s.client.List(ctx, &list, client.InNamespace(ns.Name)); err != nil {
		s.log.Error("cannot list Services", "namespace", ns.Name, "error", err)
		return nil
	}
	var out []reconcile.Request
	for i := range list.Items {
		out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
	}
	return out
}

// lead begins or ends a term as leader. With it every Service is looked at.
func (s *services) lead(ctx context.Context, leads bool) error {
	var list corev1.ServiceList
	if leads {
		if err := s.client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
			return fmt.Errorf("list Services: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leads, s.loaded, s.memory = leads, false, newMemory()
	for i := range list.Items {
		s.queue.Add(reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
	}
	return nil
}

// load fills the Table, once in a term, before anything is decided: with the pools, then with the Services as the API server has
// them now. The cache may lag behind what the leader before wrote.
func (s *services) load(ctx context.Context) error {
	s.loading.Lock()
	defer s.loading.Unlock()
	s.mu.Lock()
	loaded, table := s.loaded, s.table
	if !loaded {
		s.late = map[key]*corev1.Service{}
	}
	s.mu.Unlock()
	if loaded {
		return nil
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.late = nil
	}()
	start := time.Now()
	list, set, err := s.pools(ctx)
	if err != nil {
		return err
	}
	plan, err := planOf(ctx, s.client, list.Items, set)
	if err != nil {
		return err
	}
	past, rests, counts, err := listed(ctx, s.live)
	if err != nil {
		return err
	}
	var reqs []ipam.Request
	versions, announced := map[key]string{}, map[key][]netip.Addr{}
	for token := ""; ; {
		var page corev1.ServiceList
		if err := s.live.List(ctx, &page, &client.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("spec.type", string(corev1.ServiceTypeLoadBalancer)),
			Limit:         listPage, Continue: token,
		}); err != nil {
			return fmt.Errorf("list Services: %w", err)
		}
		for i := range page.Items {
			svc := &page.Items[i]
			var nsLabels labels.Set
			var err error
			if s.class.Serves(svc) {
				if nsLabels, err = s.namespaceLabels(ctx, svc.Namespace); client.IgnoreNotFound(err) != nil {
					return err
				}
			}
			r := s.class.Request(svc, nsLabels)
			if err != nil {
				r.Problem = err.Error() // it keeps what it has
			}
			versions[r.Service] = svc.ResourceVersion
			if wasAnnounced(svc, start) {
				announced[r.Service] = r.Current
			}
			reqs = append(reqs, r)
		}
		if token = page.Continue; token == "" {
			break
		}
	}
	// Nobody but their users writes external IPs, so that the cache may lag.
	var cached corev1.ServiceList
	if err := s.client.List(ctx, &cached, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list Services: %w", err)
	}
	for i := range cached.Items {
		if svc := &cached.Items[i]; svc.Spec.Type != corev1.ServiceTypeLoadBalancer && len(svc.Spec.ExternalIPs) > 0 {
			if _, known := versions[client.ObjectKeyFromObject(svc)]; !known {
				reqs = append(reqs, s.class.Request(svc, nil))
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.table != table {
		return errNotLeader // in this term
	}
	for of, addrs := range announced {
		for _, a := range addrs {
			s.note(a, of)
		}
	}
	for k, svc := range s.late { // what others' Services came to have while this one read
		c, err := resourceversion.CompareResourceVersion(svc.ResourceVersion, cmp.Or(versions[k], "0"))
		_, listed := versions[k]
		if r := s.class.Request(svc, nil); err == nil && c > 0 && r.Other && (listed || len(r.Held) > 0) {
			reqs = slices.DeleteFunc(reqs, func(q ipam.Request) bool { return q.Service == k })
			reqs, versions[k] = append(reqs, r), svc.ResourceVersion
		}
	}
	now := time.Now()
	s.plan = plan
	allocate.Load(s.table, set, allocate.Homes(plan), past, rests, reqs, now) // pools.Reconcile says what is heard now
	s.table.Dirty()                                                           // every Service is looked at now anyway
	s.versions, s.poolCounts = versions, counts
	s.loaded = true
	s.log.Info("assignments adopted", "services", len(reqs), "pools", len(set.Preferred()), "quarantined", len(past), "resting", len(rests), "took", time.Since(start))
	return nil
}

// namespaceLabels is the labels of a namespace. The cache may hear of a new one later than of the Services in it.
func (s *services) namespaceLabels(ctx context.Context, name string) (labels.Set, error) {
	var ns corev1.Namespace
	err := s.client.Get(ctx, key{Name: name}, &ns)
	if apierrors.IsNotFound(err) {
		err = s.live.Get(ctx, key{Name: name}, &ns)
	}
	return ns.Labels, err
}

// setPools gives the Table the pools.
func (s *services) setPools(set *pool.Set) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table.SetPools(set, time.Now())
	s.follow()
}

// setPlan gives the Table what it chooses addresses by.
func (s *services) setPlan(plan *announce.View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan = plan
	s.table.SetHomes(allocate.Homes(plan))
}

// usage is how full each pool is. A standby does not know.
func (s *services) usage() map[string]*ipam.Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.Usage()
}

// follow has those Services looked at whose result changed with another's, and the pools' numbers. s.mu must be held.
func (s *services) follow() {
	s.enqueue()
	s.changed()
}

func (s *services) enqueue() {
	for _, k := range s.table.Dirty() {
		s.queue.Add(reconcile.Request{NamespacedName: k})
	}
}

// Reconcile brings one Service's status up to date. An error concerns this Service only.
func (s *services) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	s.mu.Lock()
	leads := s.leads
	s.mu.Unlock()
	if !leads {
		return reconcile.Result{}, nil
	}
	if err := s.load(ctx); err != nil {
		return reconcile.Result{}, err
	}
	k := req.NamespacedName
	svc := &corev1.Service{}
	if err := s.client.Get(ctx, k, svc); apierrors.IsNotFound(err) {
		return reconcile.Result{}, s.gone(ctx, k)
	} else if err != nil {
		return reconcile.Result{}, err
	}
	var nsLabels labels.Set
	if s.class.Serves(svc) {
		var err error
		if nsLabels, err = s.namespaceLabels(ctx, k.Namespace); err != nil {
			return reconcile.Result{}, err
		}
	}
	r := s.class.Request(svc, nsLabels)
	if r.Other && leftover(svc) {
		return s.clear(ctx, svc)
	}

	s.mu.Lock()
	if !s.loaded || s.newer(k, svc) {
		s.mu.Unlock()
		return reconcile.Result{}, nil // the term is over, or the cache will say so when it knows
	}
	if r.Other {
		s.hold(r)
		s.mu.Unlock()
		return reconcile.Result{RequeueAfter: s.tellClass(svc)}, nil
	}
	s.versions[k] = svc.ResourceVersion
	res := s.table.Assign(r, time.Now())
	s.follow()
	s.mu.Unlock()
	if res.Reason == v1beta1.ReasonForeign {
		s.tell(svc, "OtherController", fmt.Sprintf("somebody else has given the Service %v, which no IPAddressPool gives out, so Clarion leaves it alone; "+
			"make a pool with the address, or have the other controller leave the Service", allocate.Ingress(svc)))
		return reconcile.Result{}, nil
	}
	return s.inTurn(k, func() (reconcile.Result, error) {
		res := s.publishable(svc, &res)
		if res == nil {
			return reconcile.Result{}, nil
		}
		if wait := s.contested(svc, res); wait > 0 {
			return reconcile.Result{RequeueAfter: wait}, nil
		}
		return s.retry(ctx, k, s.write(ctx, svc, res))
	})
}

// hold takes in a Service that gets no address, for what it has. s.mu must be held.
func (s *services) hold(r ipam.Request) {
	was, known := s.table.Result(r.Service)
	switch {
	case len(r.Held) > 0:
		s.table.Assign(r, time.Now())
	case known:
		s.table.Release(r.Service, time.Now())
	default:
		return
	}
	if was.Reason != "" {
		s.log.Info("released", "service", r.Service.String(), "terminating", r.Terminating)
	}
	s.follow()
}

// newer says whether this controller has seen a later state of the Service than the cache has. s.mu must be held.
func (s *services) newer(k key, svc *corev1.Service) bool {
	v, ok := s.versions[k]
	if !ok {
		return false
	}
	c, err := resourceversion.CompareResourceVersion(svc.ResourceVersion, v)
	if err == nil && c > 0 {
		delete(s.versions, k) // the cache has caught up
	}
	return err == nil && c < 0
}

// write writes what has been decided, if the status does not say it already.
func (s *services) write(ctx context.Context, svc *corev1.Service, res *ipam.Result) error {
	k := client.ObjectKeyFromObject(svc)
	next := allocate.Allocated(res)
	next.LastTransitionTime = metav1.Now()
	if _, has := svc.Annotations[metallbFromPool]; has {
		next.Message += "; the annotation " + metallbFromPool + " is MetalLB's and stale: remove it"
	}
	addrs := res.Addresses()
	old := meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAllocated)
	moved := !allocate.Says(svc, addrs)
	if old != nil {
		if !moved && old.Status == next.Status && old.Reason == next.Reason && old.Message == next.Message {
			return nil
		}
		if old.Status == next.Status {
			next.LastTransitionTime = old.LastTransitionTime
		}
	}
	s.mu.Lock()
	table := s.table
	born, waited := s.born[k] // the cache may forget it before the patch returns
	s.mu.Unlock()
	written := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name}}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	if err := s.patch(ctx, written, statusPatch(svc.ResourceVersion, addrs, next)); err != nil {
		return err
	}
	now := time.Now()
	s.mu.Lock()
	if s.table != table { // this is another term
		s.mu.Unlock()
		return nil
	}
	s.versions[k] = written.ResourceVersion
	s.table.Published(k, addrs, now)
	if c := s.contests[k]; c == nil || !slices.Equal(c.wrote, addrs) {
		s.contests[k] = &contest{wrote: addrs}
	}
	s.follow()
	if len(addrs) > 0 {
		delete(s.born, k)
	}
	s.mu.Unlock()

	if waited && len(addrs) > 0 {
		s.counters.latency.Observe(now.Sub(born).Seconds())
	}
	log := s.log.With("service", k.String(), "addresses", addrs, "was", allocate.Ingress(svc), "reason", next.Reason, "message", next.Message)
	switch news := moved || old == nil || old.Reason != next.Reason; {
	case res.Notice != "":
		log.Warn("address lost", "why", res.Notice)
		text := next.Message
		if !strings.Contains(text, res.Notice) {
			text = res.Notice + "; now " + text
		}
		s.event(svc, corev1.EventTypeWarning, "AddressLost", text)
	case !news:
		log.Debug("status says it in other words")
	case res.Satisfied():
		log.Info("allocated")
		s.counters.allocated.Inc()
		s.event(svc, corev1.EventTypeNormal, next.Reason, next.Message)
	default:
		log.Warn("not allocated")
		s.counters.failed.WithLabelValues(next.Reason).Inc()
		s.event(svc, corev1.EventTypeWarning, next.Reason, next.Message)
		if res.Admins.Text != "" {
			pool := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: res.Admins.Pool}}
			if s.client.Get(ctx, client.ObjectKeyFromObject(pool), pool) == nil {
				s.events.Eventf(pool, svc, corev1.EventTypeWarning, next.Reason, "Allocate", "%s", text.Note(res.Admins.Text))
			}
		}
	}
	return nil
}

// statusPatch is a strategic merge patch: it replaces the ingress list, and of the conditions only those that it names.
// It is refused when the Service is not what the decision was made on. An element of conditions is a metav1.Condition,
// or a conditionRemoval.
func statusPatch(version string, addrs []netip.Addr, conditions ...any) map[string]any {
	return map[string]any{
		"metadata": map[string]any{"resourceVersion": version},
		"status": map[string]any{
			"loadBalancer": map[string]any{"ingress": allocate.IngressOf(addrs)},
			"conditions":   conditions,
		},
	}
}

// conditionRemoval takes the condition of its type away.
type conditionRemoval struct {
	Patch string `json:"$patch"` // "delete"
	Type  string `json:"type"`
}

// errNotLeader is why a write is not sent: another controller may have the lease.
var errNotLeader = errors.New("the lease may be lost")

func (s *services) patch(ctx context.Context, svc *corev1.Service, body map[string]any) error {
	if !s.holds() {
		return errNotLeader
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return s.client.Status().Patch(ctx, svc, client.RawPatch(types.StrategicMergePatchType, b))
}

// How long others have to give a Service an address before Clarion says that the Service is not Clarion's: cloud
// controllers take minutes. Nobody else can be meant by a class of Clarion's group. After otherTold it has been said, by
// this controller or by one before it.
const (
	otherClassAfter = 5 * time.Minute
	typoClassAfter  = 5 * time.Second
	otherTold       = time.Hour
)

// tellClass tells, once, the user of a Service that another controller should have given an address, and none has, that
// Clarion will not. It returns how long to wait before it is time.
func (s *services) tellClass(svc *corev1.Service) time.Duration {
	age := time.Since(svc.CreationTimestamp.Time)
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || s.class.Serves(svc) || len(svc.Status.LoadBalancer.Ingress) > 0 || svc.DeletionTimestamp != nil || age > otherTold {
		return 0
	}
	after := otherClassAfter
	has, serves := "has no loadBalancerClass", fmt.Sprintf("%q", s.class.Name)
	if class := svc.Spec.LoadBalancerClass; class != nil {
		if strings.HasPrefix(*class, v1beta1.GroupVersion.Group+"/") {
			after = typoClassAfter
		}
		has = fmt.Sprintf("has the loadBalancerClass %q", *class)
	}
	if age < after {
		return after - age
	}
	if s.class.Default {
		serves += ", or Services without a class"
	}
	s.tell(svc, "OtherClass", "the Service "+has+" and no controller has given it an address; Clarion only serves the class "+serves)
	return 0
}

// tell records, once, why Clarion leaves a Service alone.
func (s *services) tell(svc *corev1.Service, reason, message string) {
	k := client.ObjectKeyFromObject(svc)
	s.mu.Lock()
	news := s.told[k] != svc.UID
	s.told[k] = svc.UID
	s.mu.Unlock()
	if news {
		s.event(svc, corev1.EventTypeNormal, reason, message)
	}
}

// gone releases what a Service had that is deleted.
func (s *services) gone(ctx context.Context, k key) error {
	s.mu.Lock()
	delete(s.told, k)
	_, known := s.table.Result(k)
	s.mu.Unlock()
	if !known {
		return nil
	}
	err := s.live.Get(ctx, k, &corev1.Service{})
	if err == nil {
		return nil // made again, or not in the cache yet, which is about to have it
	}
	if !apierrors.IsNotFound(err) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table.Release(k, time.Now())
	s.forget(k)
	delete(s.versions, k)
	delete(s.failures, k)
	delete(s.contests, k)
	for _, c := range s.poolCounts {
		delete(c.waits, k)
	}
	s.follow()
	s.log.Info("released", "service", k.String(), "deleted", true)
	return nil
}

// leftover says whether a Service of another type has something in its status that was written while it was a LoadBalancer.
func leftover(svc *corev1.Service) bool {
	return svc.Spec.Type != corev1.ServiceTypeLoadBalancer && (allocate.Managed(svc) || meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAnnounced) != nil)
}

// clear takes back what was written into the status of a Service that no longer asks for addresses. It has them until the
// cache says that this is done.
func (s *services) clear(ctx context.Context, svc *corev1.Service) (reconcile.Result, error) {
	k := client.ObjectKeyFromObject(svc)
	return s.inTurn(k, func() (reconcile.Result, error) {
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		err := s.patch(ctx, svc.DeepCopy(), statusPatch(svc.ResourceVersion, nil,
			conditionRemoval{"delete", v1beta1.ConditionAllocated}, conditionRemoval{"delete", v1beta1.ConditionAnnounced}))
		return s.retry(ctx, k, err)
	})
}

// retry says when to try again after a write, and tells of a failure once.
func (s *services) retry(ctx context.Context, k key, err error) (reconcile.Result, error) {
	s.mu.Lock()
	f := s.failures[k]
	if err == nil || apierrors.IsNotFound(err) {
		delete(s.failures, k)
		s.mu.Unlock()
		return reconcile.Result{}, nil
	}
	news := f.text != err.Error()
	f.text = err.Error()
	f.times++
	s.failures[k] = f
	s.mu.Unlock()
	after := lastRetry
	if f.times < 12 {
		after = min(firstRetry<<(f.times-1), lastRetry)
	}
	if apierrors.IsConflict(err) || errors.Is(err, errNotLeader) {
		s.log.Debug("status not written", "service", k.String(), "error", err)
		return reconcile.Result{RequeueAfter: after}, nil
	}
	s.counters.writeErrors.WithLabelValues("Service").Inc()
	if news {
		s.log.Warn("cannot write the status of a Service", "service", k.String(), "error", err)
		var svc corev1.Service
		if s.client.Get(ctx, k, &svc) == nil {
			s.event(&svc, corev1.EventTypeWarning, "StatusRejected", err.Error())
		}
	}
	return reconcile.Result{RequeueAfter: after}, nil
}

// event records an event about a Service.
func (s *services) event(svc *corev1.Service, kind, reason, message string) {
	s.events.Eventf(svc, nil, kind, reason, "Allocate", "%s", text.Note(message))
}
