package main

import (
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

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
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
	"github.com/clarionlb/clarion/internal/ipam"
	"github.com/clarionlb/clarion/internal/pool"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/internal/text"
)

const (
	// poolStatusDelay is how long changes of the numbers are collected before they are written.
	poolStatusDelay = 500 * time.Millisecond
	poolStatusRetry = 5 * time.Second
	// poolWriteTimeout is how long a write of one pool's numbers may take.
	poolWriteTimeout = 5 * time.Second
)

// allPools is the one key of the reconciler: pools are only understood together.
var allPools = reconcile.Request{NamespacedName: types.NamespacedName{Name: "all"}}

// pools reconciles IPAddressPools: it gives them to services, and writes how full they are and what is wrong with them.
type pools struct {
	client   client.Client
	services *services
	log      *slog.Logger
	cidrs    bool // whether the cluster has the ServiceCIDR API

	queued  chan struct{} // closed when there is a queue
	mu      sync.Mutex
	queue   queue
	current []string            // the specs that services has, by UID and generation, and what of them the cluster has itself
	kept    []string            // the addresses that each of these keeps, which are announced where they were
	written map[string]*written // by pool
	moved   bool                // the homes of addresses may have
}

// setupPools adds the reconciler to the manager.
func setupPools(mgr manager.Manager, svcs *services, log *slog.Logger) (*pools, error) {
	p := &pools{client: mgr.GetClient(), services: svcs, log: log, queued: make(chan struct{}), written: map[string]*written{}}
	svcs.changed, svcs.waits, svcs.pools = p.later, p.soon, p.read
	_, err := mgr.GetRESTMapper().RESTMapping(networkingv1.SchemeGroupVersion.WithKind("ServiceCIDR").GroupKind(), "v1")
	if err != nil && !meta.IsNoMatchError(err) {
		return nil, err
	}
	p.cidrs = err == nil
	c, err := controller.New("pools", mgr, controller.Options{
		Reconciler: p, NeedLeaderElection: new(false),
	})
	if err != nil {
		return nil, err
	}
	errs := []error{
		c.Watch(source.Func(func(_ context.Context, q queue) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.queue = q
			close(p.queued)
			return nil
		})),
		c.Watch(source.Kind(mgr.GetCache(), &v1beta1.IPAddressPool{}, toAllPools[*v1beta1.IPAddressPool](),
			predicate.TypedFuncs[*v1beta1.IPAddressPool]{
				UpdateFunc: func(e event.TypedUpdateEvent[*v1beta1.IPAddressPool]) bool {
					return e.ObjectOld.Generation != e.ObjectNew.Generation || p.edited(e.ObjectNew)
				},
			})),
		c.Watch(source.Kind(mgr.GetCache(), &corev1.Node{}, toAllPools[*corev1.Node](), predicate.TypedFuncs[*corev1.Node]{
			CreateFunc: func(event.TypedCreateEvent[*corev1.Node]) bool { return p.move() },
			DeleteFunc: func(event.TypedDeleteEvent[*corev1.Node]) bool { return p.move() },
			UpdateFunc: func(e event.TypedUpdateEvent[*corev1.Node]) bool {
				was, is := snapshot.NodeOf(e.ObjectOld), snapshot.NodeOf(e.ObjectNew)
				if !maps.Equal(was.Labels, is.Labels) || was.Excluded != is.Excluded {
					return p.move()
				}
				return !slices.Equal(e.ObjectOld.Status.Addresses, e.ObjectNew.Status.Addresses)
			},
		})),
		c.Watch(source.Kind(mgr.GetCache(), &v1beta1.L2Advertisement{}, toAllPools[*v1beta1.L2Advertisement](), predicate.TypedFuncs[*v1beta1.L2Advertisement]{
			CreateFunc: func(event.TypedCreateEvent[*v1beta1.L2Advertisement]) bool { return p.move() },
			DeleteFunc: func(event.TypedDeleteEvent[*v1beta1.L2Advertisement]) bool { return p.move() },
			UpdateFunc: func(e event.TypedUpdateEvent[*v1beta1.L2Advertisement]) bool {
				return e.ObjectOld.Generation != e.ObjectNew.Generation && p.move()
			},
		})),
		c.Watch(source.Kind(mgr.GetCache(), &v1beta1.Speaker{}, toAllPools[*v1beta1.Speaker](), predicate.TypedFuncs[*v1beta1.Speaker]{
			UpdateFunc: func(e event.TypedUpdateEvent[*v1beta1.Speaker]) bool { return !sameReports(e.ObjectOld, e.ObjectNew) },
		})),
	}
	if p.cidrs {
		errs = append(errs, c.Watch(source.Kind(mgr.GetCache(), &networkingv1.ServiceCIDR{}, toAllPools[*networkingv1.ServiceCIDR]())))
	}
	return p, errors.Join(errs...)
}

func toAllPools[T client.Object]() handler.TypedEventHandler[T, reconcile.Request] {
	return handler.TypedEnqueueRequestsFromMapFunc(func(context.Context, T) []reconcile.Request {
		return []reconcile.Request{allPools}
	})
}

// edited says whether somebody else wrote a pool's status.
func (p *pools) edited(o *v1beta1.IPAddressPool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.written[o.Name]
	return was == nil || !equality.Semantic.DeepEqual(was.status, o.Status)
}

// move notes that addresses may have other homes.
func (p *pools) move() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved = true
	return true
}

// lead begins or ends a term as leader: see services.lead.
func (p *pools) lead(leads bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current, p.moved, p.written = nil, true, map[string]*written{}
	if leads {
		p.queue.Add(allPools)
	}
}

// later has the numbers written soon.
func (p *pools) later() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue.AddAfter(allPools, poolStatusDelay)
}

// soon has the numbers written at once.
func (p *pools) soon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue.Add(allPools)
}

// written is the status of a pool as this controller wrote it last.
type written struct {
	status  v1beta1.IPAddressPoolStatus
	version string // of the pool with it; "" while it is being written, or if that failed
}

// ahead is what this controller wrote of a pool that the cache does not know yet, or nil.
func (p *pools) ahead(o *v1beta1.IPAddressPool) *written {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.written[o.Name]; w != nil && w.version != "" {
		if c, err := resourceversion.CompareResourceVersion(o.ResourceVersion, w.version); err == nil && c < 0 {
			return w
		}
	}
	return nil
}

// found is a pool's status, which the cache may know later than this controller, and version the pool's version with it.
func (p *pools) found(o *v1beta1.IPAddressPool) *v1beta1.IPAddressPoolStatus {
	if w := p.ahead(o); w != nil {
		return &w.status
	}
	return &o.Status
}

func (p *pools) version(o *v1beta1.IPAddressPool) string {
	if w := p.ahead(o); w != nil {
		return w.version
	}
	return o.ResourceVersion
}

// read is the pools in the cache, and what they mean beside the addresses that the cluster has.
func (p *pools) read(ctx context.Context) (*v1beta1.IPAddressPoolList, *pool.Set, error) {
	list := &v1beta1.IPAddressPoolList{}
	if err := p.client.List(ctx, list); err != nil {
		return nil, nil, fmt.Errorf("list IPAddressPools: %w", err)
	}
	taken, err := p.taken(ctx)
	if err != nil {
		return nil, nil, err
	}
	return list, allocate.Pools(list.Items, taken...), nil
}

// Reconcile gives changed pools to services and writes those statuses that are not what they should be.
func (p *pools) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	p.services.mu.Lock()
	leads := p.services.leads
	p.services.mu.Unlock()
	if !leads {
		return reconcile.Result{}, nil
	}
	if err := p.services.load(ctx); err != nil {
		return reconcile.Result{}, err
	}
	list, set, err := p.read(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	var specs, kept, names []string
	for i := range list.Items {
		o := &list.Items[i]
		specs = append(specs, fmt.Sprint(o.UID, "/", o.Generation, set.Uses(o.Name)))
		kept = append(kept, fmt.Sprint(o.Name, o.Status.Kept))
		names = append(names, o.Name)
	}
	slices.Sort(specs)
	slices.Sort(kept)
	p.mu.Lock()
	changed := !slices.Equal(specs, p.current)
	moved := p.moved || changed || !slices.Equal(kept, p.kept)
	p.current, p.kept, p.moved = specs, kept, false
	p.mu.Unlock()
	if moved {
		plan, err := planOf(ctx, p.client, list.Items, set)
		if err != nil {
			p.move()
			return reconcile.Result{}, err
		}
		p.services.setPlan(plan)
	}
	if changed {
		p.services.setPools(set)
		p.log.Info("pools changed", "pools", names)
	}

	claims, err := heard(ctx, p.client)
	if err != nil {
		return reconcile.Result{}, err
	}
	again := reconcile.Result{RequeueAfter: p.services.quarantine(claims)}
	before := map[string]*v1beta1.IPAddressPoolStatus{}
	for i := range list.Items {
		before[list.Items[i].Name] = p.found(&list.Items[i])
	}
	usage, err := p.services.usageOn(before)
	if err != nil {
		return reconcile.Result{}, err
	}
	var writes errgroup.Group // all at once: one that hangs holds up none
	for i := range list.Items {
		o := &list.Items[i]
		status := p.status(o, set, usage[o.Name])
		if !equality.Semantic.DeepEqual(*before[o.Name], status) || p.services.unsure(o.Name, &status) {
			writes.Go(func() error { return p.publish(ctx, o, status) })
		}
	}
	switch err := writes.Wait(); {
	case apierrors.IsConflict(err):
		again.RequeueAfter = poolStatusDelay
	case err != nil:
		again.RequeueAfter = poolStatusRetry
	}
	return again, nil
}

// publish writes a status, and tells those who wait for it.
func (p *pools) publish(ctx context.Context, o *v1beta1.IPAddressPool, status v1beta1.IPAddressPoolStatus) error {
	on := p.version(o)
	p.note(o.Name, &written{status: status})
	version, err := p.write(ctx, o, on, status)
	if errors.Is(err, errNotLeader) || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return err
	}
	if err == nil {
		p.note(o.Name, &written{status, version})
	} else {
		p.services.counters.writeErrors.WithLabelValues("IPAddressPool").Inc()
		p.log.Warn("cannot write the status of a pool", "pool", o.Name, "error", err)
	}
	p.services.wrote(o.Name, &status, err)
	return err
}

func (p *pools) note(name string, w *written) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.written[name] = w
}

// taken is what the cluster has itself.
func (p *pools) taken(ctx context.Context) ([]pool.Use, error) {
	var nodes corev1.NodeList
	if err := p.client.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("list Nodes: %w", err)
	}
	var cidrs networkingv1.ServiceCIDRList
	if p.cidrs {
		if err := p.client.List(ctx, &cidrs); err != nil {
			return nil, fmt.Errorf("list ServiceCIDRs: %w", err)
		}
	}
	return allocate.Taken(nodes.Items, cidrs.Items), nil
}

// status is what a pool's status should be.
func (p *pools) status(o *v1beta1.IPAddressPool, set *pool.Set, u *ipam.Usage) v1beta1.IPAddressPoolStatus {
	status := allocate.Status(u)
	status.Conditions = slices.Clone(o.Status.Conditions)
	ready := metav1.Condition{
		Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1beta1.ReasonReady, Message: "in use as written",
		ObservedGeneration: o.Generation,
	}
	conflict := metav1.Condition{
		Type: v1beta1.ConditionConflict, Status: metav1.ConditionTrue, ObservedGeneration: o.Generation,
	}
	this := set.Pool(o.Name)
	var texts []string
	add := func(reason, text string) {
		if conflict.Reason == "" {
			conflict.Reason = reason
		}
		texts = append(texts, text)
	}
	for _, c := range set.Conflicts(o.Name) {
		add(v1beta1.ReasonPoolOverlap, fmt.Sprintf("%s: belongs to pool %s, which is older", c.Addresses, c.With))
	}
	if len(texts) > 0 {
		ready.Status, ready.Reason = metav1.ConditionFalse, v1beta1.ReasonPoolOverlap
		ready.Message = text.Few(texts) + "; the rest of this pool is in use"
		if len(this.Addresses) == 0 {
			ready.Message = text.Few(texts) + "; nothing is left of this pool"
		}
	}
	for _, u := range set.Uses(o.Name) {
		add(u.Kind, fmt.Sprintf("%s: belongs to %s, so no Service gets it; take it out of the pool, or exclude it", u.Addresses, u.By))
	}
	conflict.Message = text.Few(texts)
	if advice := append(slices.Clone(this.Advice), idleReservations(this, set)...); len(advice) > 0 {
		ready.Message += "; " + text.Few(advice)
	}
	if this.Err != nil {
		ready.Status, ready.Reason = metav1.ConditionFalse, v1beta1.ReasonInvalid
		ready.Message = strings.ReplaceAll(this.Err.Error(), "\n", "; ") + "; nothing is assigned from this pool until it is right"
	}
	meta.SetStatusCondition(&status.Conditions, ready)
	if len(texts) > 0 {
		meta.SetStatusCondition(&status.Conditions, conflict)
	} else {
		meta.RemoveStatusCondition(&status.Conditions, v1beta1.ConditionConflict)
	}
	return status
}

// idleReservations says which reservations of a pool have no effect, and why.
func idleReservations(this *pool.Pool, set *pool.Set) (out []string) {
	for _, a := range slices.SortedFunc(maps.Keys(this.Reserved), netip.Addr.Compare) {
		if this.Gives(a) {
			continue
		}
		why, has := set.WhyNot(a)
		if p := set.Find(a); has != nil {
			why = "it belongs to " + has.By
		} else if p == this {
			why = "avoidBuggyIPs keeps it from being given out"
		} else if p != nil {
			why = "it belongs to pool " + p.Name
		}
		out = append(out, fmt.Sprintf("the reservation of %s has no effect: %s", a, why))
	}
	return out
}

// write writes a whole status over that of a version, and returns the pool's version with it. Of another version, or of a
// pool that was made again under its name, it is not the status.
func (p *pools) write(ctx context.Context, o *v1beta1.IPAddressPool, on string, status v1beta1.IPAddressPoolStatus) (version string, err error) {
	if !p.services.holds() {
		return "", errNotLeader
	}
	ctx, cancel := context.WithTimeout(ctx, poolWriteTimeout)
	defer cancel()
	b, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": on}, "status": struct {
		v1beta1.IPAddressPoolStatus
		Quarantined []string                 `json:"quarantined"` // null where there is none: the patch removes the list
		Kept        []string                 `json:"kept"`
		Resting     []v1beta1.RestingAddress `json:"resting"`
	}{status, status.Quarantined, status.Kept, status.Resting}})
	if err != nil {
		return "", err
	}
	target := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: o.Name}}
	err = p.client.Status().Patch(ctx, target, client.RawPatch(types.MergePatchType, b))
	return target.ResourceVersion, err
}

// A pool cannot be deleted while its status counts addresses. So a Service's status names no first address of a pool before
// the pool's status counts one, which stays so until no Service's status names any.

// count is whether a pool's status counts addresses.
type count struct {
	some  bool         // it does, and will until usageOn says that there are none
	err   error        // why it could not be written
	waits map[key]bool // Services whose addresses it is to count first, and whether they were told of err
}

func countsSome(s *v1beta1.IPAddressPoolStatus) bool {
	return s.AssignedIPv4 > 0 || s.AssignedIPv6 > 0 || len(s.Kept) > 0
}

// publishable is a result without those addresses that a Service's status may not name yet, since the status of their pool
// cannot be written. In place of one it has what it moves away from, if that may be. The result is nil while that status is
// only being written. The Service is looked at again when it is.
func (s *services) publishable(svc *corev1.Service, res *ipam.Result) *ipam.Result {
	k, out, has, why := client.ObjectKeyFromObject(svc), *res, allocate.Ingress(svc), []string(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	for f, a := range res.Assigned {
		c := s.poolCounts[a.Pool]
		if a.Pool == "" || c != nil && c.some || slices.Contains(has, a.Address) {
			continue
		}
		if c == nil {
			c = &count{}
			s.poolCounts[a.Pool] = c
		}
		if c.waits == nil {
			c.waits = map[key]bool{}
		}
		c.waits[k] = c.err != nil
		if c.err == nil {
			s.waits()
			return nil
		}
		out.Assigned[f] = ipam.Assignment{Address: s.table.Leaves(k, pool.FamilyOf(a.Address))}
		why = append(why, fmt.Sprintf("%s is given when the status of pool %s can be written", a.Address, a.Pool))
		out.Admins = ipam.Note{Pool: a.Pool, Text: fmt.Sprintf("no Service gets a first address of the pool, since its status cannot be written: %v", c.err)}
	}
	if why != nil {
		out.Reason, out.Detail = v1beta1.ReasonPoolStatusNotWritten, strings.Join(why, "; ")
	}
	return &out
}

// usageOn is usage, to be written over statuses. From now on nothing is published from a pool whose status counts none, or
// is to. When the term is over, or has not begun, the error is errNotLeader.
func (s *services) usageOn(statuses map[string]*v1beta1.IPAddressPoolStatus) (map[string]*ipam.Usage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.loaded {
		return nil, errNotLeader
	}
	usage := s.table.Usage()
	for name, c := range s.poolCounts {
		u, status := usage[name], statuses[name]
		switch {
		case u == nil || status == nil: // deleted
			s.look(c, nil)
			delete(s.poolCounts, name)
		case u.Assigned == [2]int64{} && len(u.Kept) == 0: // nothing is to be written, so nothing fails
			c.some, c.err = false, nil
		case !countsSome(status):
			c.some = false
		}
	}
	return usage, nil
}

// unsure says whether a status that counts addresses may not be what the API server has, though the cache says so.
func (s *services) unsure(name string, status *v1beta1.IPAddressPoolStatus) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.poolCounts[name]
	return countsSome(status) && (c == nil || !c.some)
}

// wrote takes in that the status of a pool is written, or why not. The Services that waited for it are looked at.
func (s *services) wrote(name string, status *v1beta1.IPAddressPoolStatus, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.poolCounts[name]
	if c == nil {
		c = &count{}
		s.poolCounts[name] = c
	}
	if c.err = err; err == nil {
		c.some = countsSome(status)
	}
	if c.some || err != nil {
		s.look(c, err)
	}
}

// look has those looked at that wait for c, or of an error those that were not told yet. s.mu must be held.
func (s *services) look(c *count, err error) {
	for k, told := range c.waits {
		if err == nil || !told {
			s.queue.Add(reconcile.Request{NamespacedName: k})
		}
	}
	if err == nil {
		c.waits = nil
	}
}
