package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/explain"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/internal/text"
	"github.com/clarionlb/clarion/internal/wake"
)

// How long changes are collected before it is decided what they touch; and for how long the figures of a BGPPeer rest for
// each speaker, as all speakers hear of each write.
const (
	conditionsDelay = 100 * time.Millisecond
	peerDelay       = 300 * time.Millisecond
	peerRest        = 10 * time.Millisecond
)

// conditions writes what is to be said of configuration objects and of the announcing of Services: it reads the
// configuration as speakers do, and what the speakers say of themselves, and is the only writer of both. What a change
// touches is queued, and what is to be said of it is worked out when it is written.
type conditions struct {
	client   client.Client
	holds    func() bool // whether this controller may write
	counters *counters
	events   events.EventRecorder
	log      *slog.Logger
	snapshot *snapshot.Snapshot
	wake     wake.Signal
	found    func(addr netip.Addr, of key) // called with each address that is found to be announced, and its Service
	synced   []toolscache.InformerSynced

	// Guarded by the snapshot's lock.
	speakers map[string]*v1beta1.Speaker
	book     *explain.Book
	living   bool                        // who is alive has to be found out anew
	queued   map[objectKey]time.Duration // objects to look at, and after which delay
	problems map[string]*problem         // of configuration objects, by Kind/name
	meetings map[string][]string         // see snapshot.Snapshot.Meetings

	mu     sync.Mutex
	warned map[objectKey]bool // Services whose users were told last that they are not announced
}

// problem is what is wrong with a configuration object, or could be better.
type problem struct {
	reason        string
	texts, advice []string
}

// newConditions is a writer that knows nothing yet.
func newConditions(c client.Client, holds func() bool, n *counters, events events.EventRecorder, snap *snapshot.Snapshot, log *slog.Logger) *conditions {
	return &conditions{
		client: c, holds: holds, counters: n, events: events, log: log, snapshot: snap, wake: wake.New(), found: func(netip.Addr, key) {},
		speakers: map[string]*v1beta1.Speaker{}, book: explain.New(), queued: map[objectKey]time.Duration{}, warned: map[objectKey]bool{},
	}
}

// setupConditions makes the writer. What it knows is kept on standbys too; only the leader starts it.
func setupConditions(mgr manager.Manager, o snapshot.Options, holds func() bool, n *counters, log *slog.Logger) (*conditions, error) {
	c := newConditions(mgr.GetClient(), holds, n, mgr.GetEventRecorder("clarion-controller"), snapshot.New(o), log)
	return c, c.watch(context.Background(), mgr.GetCache()) // informers run until the manager's cache ends
}

func (c *conditions) watch(ctx context.Context, from cache.Cache) (err error) {
	if c.synced, err = c.snapshot.Watch(ctx, from, c.log, c.wake.Set); err != nil {
		return err
	}
	speakers, err := snapshot.On(ctx, from, c.speaker)
	c.synced = append(c.synced, speakers)
	return err
}

// speaker takes in what a speaker says of itself.
func (c *conditions) speaker(name string, sp *v1beta1.Speaker, gone bool) {
	c.snapshot.Lock()
	old, known := c.speakers[name]
	if !known {
		old = &v1beta1.Speaker{}
	}
	next := sp
	if c.speakers[name] = sp; gone {
		next = &v1beta1.Speaker{}
		delete(c.speakers, name)
		c.book.Speaker(name, nil)
	} else {
		c.book.Speaker(name, sp)
	}
	c.living = c.living || !known || gone || snapshot.Tells(old) != snapshot.Tells(next)
	for _, s := range sessionsThatDiffer(old, next) {
		c.look(objectKey{kind: "BGPPeer", name: s}, c.rest())
	}
	for _, p := range slices.Concat(without(old.Status.Problems, next.Status.Problems), without(next.Status.Problems, old.Status.Problems)) {
		kind, name, _ := strings.Cut(p.Object, "/")
		c.look(objectKey{kind: kind, name: name}, 0)
	}
	c.snapshot.Unlock()
	c.wake.Set()
}

// rest is after which delay the figures of a BGPPeer are written.
func (c *conditions) rest() time.Duration { return peerDelay + time.Duration(len(c.speakers))*peerRest }

// look has an object looked at after a delay.
func (c *conditions) look(key objectKey, after time.Duration) {
	if old, is := c.queued[key]; !is || after < old {
		c.queued[key] = after
	}
}

// without are the problems of one list that another has not.
func without(these, those []v1beta1.Problem) []v1beta1.Problem {
	return slices.DeleteFunc(slices.Clone(these), func(p v1beta1.Problem) bool { return slices.Contains(those, p) })
}

// sessionsThatDiffer are the peers of the sessions of which something else is said in conditions.
func sessionsThatDiffer(a, b *v1beta1.Speaker) (peers []string) {
	states := func(sp *v1beta1.Speaker) map[string]string {
		out := map[string]string{}
		for _, s := range sp.Status.Sessions {
			out[s.Peer] = s.State + " " + s.LastError
		}
		return out
	}
	was, is := states(a), states(b)
	for _, all := range []map[string]string{was, is} {
		for peer := range all {
			if old, had := was[peer]; !had || old != is[peer] {
				peers = append(peers, peer)
			}
		}
	}
	return peers
}

// Start writes until ctx ends. It may be called again then.
func (c *conditions) Start(ctx context.Context) error {
	if !toolscache.WaitForCacheSync(ctx.Done(), c.synced...) {
		return nil
	}
	queue := newLanes(c.write, c.failed)
	var writers sync.WaitGroup
	writers.Go(func() { queue.run(ctx) })
	defer writers.Wait()
	c.snapshot.Lock()
	c.snapshot.MarkAll()
	c.snapshot.Unlock()
	c.wake.Set()
	var due, again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
			if due == nil {
				due = time.After(conditionsDelay)
			}
		case <-again:
			again = nil
			c.wake.Set()
		case <-due:
			due = nil
			touched, next, err := c.decide(ctx, time.Now())
			if err != nil {
				c.log.Error("cannot read objects", "error", err)
				next = time.Now().Add(retryFirst)
			}
			for key, after := range touched {
				queue.add(key, after)
			}
			if !next.IsZero() {
				again = time.After(time.Until(next))
			}
		}
	}
}

// decide finds out what the changes since the last call touch, and after which delay it is to be written. It has to be
// called again at a time even if there is no change; zero: not.
func (c *conditions) decide(ctx context.Context, now time.Time) (touched map[objectKey]time.Duration, again time.Time, err error) {
	c.snapshot.Lock()
	defer c.snapshot.Unlock()
	changes := c.snapshot.Changes()
	if c.living || changes.All || len(changes.Nodes) > 0 { // perhaps a node is lost, or found again
		c.living = false
		c.snapshot.Speakers(c.speakers)
		more := c.snapshot.Changes()
		changes.All = changes.All || more.All
		changes.Addrs, changes.Services = append(changes.Addrs, more.Addrs...), append(changes.Services, more.Services...)
		changes.Nodes = append(changes.Nodes, more.Nodes...)
	}
	if changes.All {
		if err := c.configured(ctx); err != nil {
			c.snapshot.MarkAll()
			return nil, again, err
		}
		for addr := range c.book.Addrs() {
			if !c.snapshot.Claimed(addr) {
				c.book.Set(addr, nil, c.snapshot.Owner(addr))
			}
		}
	}
	if changes.All || len(changes.Nodes) > 0 {
		c.book.Use(c.snapshot.View())
		for name := range c.problemsOf("BGPPeer") {
			c.look(objectKey{kind: "BGPPeer", name: name}, c.rest())
		}
	}
	for _, addr := range changes.Addrs {
		c.book.Set(addr, c.snapshot.ClaimsOn(addr), c.snapshot.Owner(addr))
	}
	services := changes.Services
	addrs, again := c.book.Touched(now)
	for _, addr := range addrs {
		for _, claim := range c.snapshot.ClaimsOn(addr) {
			if claim.Type == v1beta1.AddressLoadBalancerIP {
				services = append(services, claim.Service.Key())
			}
		}
	}
	for _, key := range services {
		namespace, name, _ := strings.Cut(key, "/")
		c.look(objectKey{"Service", namespace, name}, 0)
	}
	touched, c.queued = c.queued, map[objectKey]time.Duration{}
	return touched, again, nil
}

// claims asks about the claims of Services on an address, with their endpoints.
func (c *conditions) claims(addr netip.Addr, ask func([]announce.Claim)) {
	c.snapshot.Lock()
	defer c.snapshot.Unlock()
	ask(c.snapshot.ClaimsOn(addr))
}

// configured takes in what there is to be said of the configuration objects, and queues them all.
func (c *conditions) configured(ctx context.Context) error {
	c.problems, c.meetings = map[string]*problem{}, c.snapshot.Meetings()
	for _, list := range []client.ObjectList{
		&v1beta1.L2AdvertisementList{}, &v1beta1.BGPAdvertisementList{}, &v1beta1.CommunityList{}, &v1beta1.BFDProfileList{}, &v1beta1.BGPPeerList{},
	} {
		if err := c.client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return err
		}
		items, err := meta.ExtractList(list)
		if err != nil {
			return err
		}
		for _, o := range items {
			key := objectKey{kind: kindOf(o.(client.Object)), name: o.(client.Object).GetName()}
			c.problems[key.kind+"/"+key.name] = &problem{}
			c.look(key, 0)
		}
	}
	for _, p := range c.snapshot.Problems() {
		of := c.problems[p.Kind+"/"+p.Name]
		switch {
		case of == nil:
		case p.Reason == config.ReasonAdvice:
			of.advice = append(of.advice, p.Message)
		default:
			if of.texts = append(of.texts, p.Message); of.reason == "" {
				of.reason = p.Reason
			}
		}
	}
	return nil
}

// problemsOf are the names of the configuration objects of a kind.
func (c *conditions) problemsOf(kind string) map[string]bool {
	out := map[string]bool{}
	for object := range c.problems {
		if of, name, _ := strings.Cut(object, "/"); of == kind {
			out[name] = true
		}
	}
	return out
}

// kindOf is the kind of an object of the cache, which has none written into it.
func kindOf(o client.Object) string { return reflect.TypeOf(o).Elem().Name() }

// write makes the status of an object what it should be. It has to be called again after a time; 0: not.
func (c *conditions) write(ctx context.Context, key objectKey) (again time.Duration, err error) {
	if key.kind == "Service" {
		return c.service(ctx, key)
	}
	return 0, c.object(ctx, key)
}

// failed says that a status cannot be written now.
func (c *conditions) failed(key objectKey, err error) {
	level := slog.LevelDebug
	if !errors.Is(err, errNotLeader) {
		level = slog.LevelWarn
		c.counters.writeErrors.WithLabelValues(key.kind).Inc()
	}
	c.log.Log(context.Background(), level, "cannot write conditions", "object", key.String(), "error", err)
}

// patch writes a status, if this controller may.
func (c *conditions) patch(ctx context.Context, o client.Object, patch client.Patch) error {
	if !c.holds() {
		return errNotLeader
	}
	return c.client.Status().Patch(ctx, o, patch)
}

// service makes a Service's condition Announced what it should be.
func (c *conditions) service(ctx context.Context, key objectKey) (again time.Duration, err error) {
	svc := &corev1.Service{}
	if err := c.client.Get(ctx, client.ObjectKey{Namespace: key.namespace, Name: key.name}, svc); err != nil {
		if client.IgnoreNotFound(err) == nil {
			c.warn(key, false)
			return 0, nil
		}
		return 0, err
	}
	old := meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAnnounced)
	cond, on, ok := c.announced(key, svc)
	for _, addr := range on {
		c.found(addr, client.ObjectKeyFromObject(svc))
	}
	next := svc.DeepCopy()
	switch {
	case !ok:
		return 0, nil
	case cond == nil:
		meta.RemoveStatusCondition(&next.Status.Conditions, v1beta1.ConditionAnnounced)
	default:
		cond.ObservedGeneration = svc.Generation
		meta.SetStatusCondition(&next.Status.Conditions, *cond)
		if cond.Reason == v1beta1.ReasonPending {
			again = explain.Youth
		}
	}
	if equality.Semantic.DeepEqual(svc.Status.Conditions, next.Status.Conditions) {
		return again, nil
	}
	if err := c.patch(ctx, next, client.StrategicMergeFrom(svc)); err != nil {
		return again, client.IgnoreNotFound(err)
	}
	if cond != nil {
		c.announcedEvent(key, svc, old, cond)
	}
	return again, nil
}

// announced is the condition Announced that a Service should have, nil for none, and its addresses that are announced; false
// when that is not known.
func (c *conditions) announced(key objectKey, svc *corev1.Service) (cond *metav1.Condition, on []netip.Addr, known bool) {
	c.snapshot.Lock()
	defer c.snapshot.Unlock()
	if len(c.speakers) == 0 {
		return nil, nil, false
	}
	has := c.snapshot.Addresses(key.namespace+"/"+key.name, v1beta1.AddressLoadBalancerIP)
	if len(has) == 0 {
		return nil, nil, true
	}
	cond = &metav1.Condition{Type: v1beta1.ConditionAnnounced, Status: metav1.ConditionTrue, Reason: v1beta1.ReasonAnnounced}
	now := time.Now()
	var texts []string
	for _, i := range svc.Status.LoadBalancer.Ingress { // in the order of the status
		addr, err := netip.ParseAddr(i.IP)
		if err != nil || !slices.Contains(has, addr.Unmap()) {
			continue
		}
		e := c.book.Of(addr.Unmap(), now)
		said := i.IP + " " + e.Text
		if e.Announced {
			on = append(on, addr.Unmap())
		}
		switch {
		case !e.Announced:
			said = i.IP + " is not announced: " + e.Text
			if cond.Status == metav1.ConditionTrue {
				cond.Status, cond.Reason = metav1.ConditionFalse, e.Reason
			}
		case cond.Reason == v1beta1.ReasonAnnounced:
			cond.Reason = e.Reason
		}
		texts = append(texts, said)
	}
	cond.Message = strings.Join(texts, "; ")
	return cond, on, true
}

// announcedEvent records the event to go with a change of the condition Announced: one when nobody announces a Service, or
// a foreign host uses its address, or that is for another reason than before; and after that one when all is well, be it
// pending in between.
func (c *conditions) announcedEvent(key objectKey, svc *corev1.Service, old, now *metav1.Condition) {
	troubled := func(x *metav1.Condition) bool {
		return x != nil && x.Reason != v1beta1.ReasonAnnounced && x.Reason != v1beta1.ReasonPending
	}
	typ := corev1.EventTypeNormal
	switch {
	case troubled(now) && (!troubled(old) || old.Reason != now.Reason):
		typ = corev1.EventTypeWarning
	case now.Reason == v1beta1.ReasonAnnounced && (c.warn(key, false) || troubled(old)):
	default:
		return
	}
	c.warn(key, typ == corev1.EventTypeWarning)
	c.events.Eventf(svc, nil, typ, now.Reason, "Announce", "%s", text.Note(now.Message))
}

// warn remembers whether the users of a Service were told last that it is not announced, and says whether they were before.
func (c *conditions) warn(key objectKey, is bool) (was bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was = c.warned[key]
	if delete(c.warned, key); is {
		c.warned[key] = true
	}
	return was
}

// object makes the status of a configuration object what it should be.
func (c *conditions) object(ctx context.Context, key objectKey) error {
	var o client.Object
	var conds *[]metav1.Condition
	var peer *v1beta1.BGPPeer
	switch key.kind {
	case "L2Advertisement":
		x := &v1beta1.L2Advertisement{}
		o, conds = x, &x.Status.Conditions
	case "BGPAdvertisement":
		x := &v1beta1.BGPAdvertisement{}
		o, conds = x, &x.Status.Conditions
	case "Community":
		x := &v1beta1.Community{}
		o, conds = x, &x.Status.Conditions
	case "BFDProfile":
		x := &v1beta1.BFDProfile{}
		o, conds = x, &x.Status.Conditions
	case "BGPPeer":
		peer = &v1beta1.BGPPeer{}
		o, conds = peer, &peer.Status.Conditions
	default:
		return nil
	}
	if err := c.client.Get(ctx, client.ObjectKey{Name: key.name}, o); err != nil {
		return client.IgnoreNotFound(err)
	}
	old := o.DeepCopyObject().(client.Object)
	c.snapshot.Lock()
	set := []metav1.Condition{c.ready(key)}
	if peer != nil {
		var established metav1.Condition
		peer.Status.SessionsWanted, peer.Status.SessionsUp, established = c.sessions(key.name)
		set = append(set, established)
	}
	c.snapshot.Unlock()
	for _, cond := range set {
		cond.ObservedGeneration = o.GetGeneration()
		meta.SetStatusCondition(conds, cond)
	}
	if equality.Semantic.DeepEqual(old, o) {
		return nil
	}
	return client.IgnoreNotFound(c.patch(ctx, o, client.MergeFrom(old)))
}

// ready is the condition Ready of a configuration object.
func (c *conditions) ready(key objectKey) metav1.Condition {
	object := key.kind + "/" + key.name
	var said problem
	if p := c.problems[object]; p != nil {
		said = *p
	}
	onNodes := map[string][]string{} // by what living speakers say
	for _, node := range slices.Sorted(maps.Keys(c.speakers)) {
		if n := c.snapshot.View().Nodes[node]; n != nil && n.Alive {
			for _, p := range c.speakers[node].Status.Problems {
				if p.Object == object {
					onNodes[p.Message] = append(onNodes[p.Message], node)
				}
			}
		}
	}
	texts := slices.Clone(said.texts)
	for _, message := range slices.Sorted(maps.Keys(onNodes)) {
		if texts = append(texts, message+" (on "+text.Few(onNodes[message])+")"); said.reason == "" {
			said.reason = config.ReasonInvalid
		}
	}
	cond := metav1.Condition{Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1beta1.ReasonReady}
	switch {
	case len(texts) > 0:
		cond.Status, cond.Reason = metav1.ConditionFalse, said.reason
	case len(said.advice) > 0:
		cond.Reason = config.ReasonAdvice
	}
	if len(texts) == 0 {
		texts = []string{"in use as written"}
	}
	texts = append(texts, said.advice...)
	if key.kind == "BGPAdvertisement" {
		texts = append(texts, c.meetings[key.name]...)
	}
	cond.Message = strings.Join(texts, "; ")
	return cond
}

// sessions counts the nodes that should have a session with a peer, and those that have.
func (c *conditions) sessions(peer string) (wanted, up int32, established metav1.Condition) {
	var nodes config.Selectors
	for _, parsed := range c.snapshot.View().Config.Peers {
		if parsed.Name == peer {
			nodes = parsed.Nodes
		}
	}
	var down []string
	for _, name := range slices.Sorted(maps.Keys(c.speakers)) {
		n := c.snapshot.View().Nodes[name]
		if n == nil || !nodes.Match(n.Labels) {
			continue
		}
		wanted++
		state, lastError := "not open", ""
		for _, s := range c.speakers[name].Status.Sessions {
			if s.Peer == peer && (state == "not open" || state == v1beta1.Established) { // of several, one that is down
				state, lastError = s.State, s.LastError
			}
		}
		switch {
		case !n.Alive:
			down = append(down, name+": "+explain.NotAlive)
		case state == v1beta1.Established:
			up++
		case lastError == "":
			down = append(down, name+": "+state)
		default:
			down = append(down, name+": "+state+": "+lastError)
		}
	}
	established = metav1.Condition{Type: v1beta1.ConditionEstablished, Status: metav1.ConditionTrue, Reason: v1beta1.Established,
		Message: fmt.Sprintf("%d of %d sessions are up", up, wanted)}
	if up < wanted || wanted == 0 {
		established.Status, established.Reason = metav1.ConditionFalse, v1beta1.ReasonSessionDown
		if len(down) > 0 {
			established.Message += "; " + text.Few(down)
		}
	}
	return wanted, up, established
}
