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
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/internal/verdict"
)

// How long changes are collected before conditions are written, and how long a failed write rests.
const (
	conditionsDelay = 500 * time.Millisecond
	conditionsRetry = 5 * time.Second
)

// conditions writes what is to be said of configuration objects and of the announcing of Services: it reads the
// configuration as speakers do, and what the speakers say of themselves, and is the only writer of both.
type conditions struct {
	client   client.Client
	cache    cache.Cache
	holds    func() bool // whether this controller may write
	counters *counters
	events   events.EventRecorder
	log      *slog.Logger
	snapshot *snapshot.Snapshot
	wake     chan struct{}
	synced   []toolscache.InformerSynced

	speakers map[string]*v1beta1.Speaker // guarded by the snapshot's lock
	services map[string]bool             // Services to look at again
	pending  map[string]bool             // those that are to be looked at again though nothing may happen
	again    <-chan time.Time            // when that is; nil: never
	warned   map[string]bool             // Services whose users were told last that they are not announced
}

// setupConditions adds the writer to the manager. Its snapshot is kept on standbys too; only the leader writes.
func setupConditions(mgr manager.Manager, defaultClass bool, holds func() bool, n *counters, log *slog.Logger) (*conditions, error) {
	c := &conditions{
		client: mgr.GetClient(), cache: mgr.GetCache(), holds: holds, counters: n, events: mgr.GetEventRecorder("clarion-controller"), log: log,
		snapshot: snapshot.New(snapshot.Options{}), wake: make(chan struct{}, 1),
		speakers: map[string]*v1beta1.Speaker{}, services: map[string]bool{}, pending: map[string]bool{}, warned: map[string]bool{},
	}
	ctx := context.Background() // informers run until the manager's cache ends
	synced, err := c.snapshot.Watch(ctx, c.cache, log, c.poke)
	if err != nil {
		return nil, err
	}
	speakers, err := snapshot.On(ctx, c.cache, c.speaker)
	if err != nil {
		return nil, err
	}
	c.synced = append(synced, speakers)
	return c, nil
}

func (c *conditions) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// speaker takes in what a speaker says of itself. A speaker says more than anything here depends on, and much of it is
// about a few addresses only.
func (c *conditions) speaker(name string, sp *v1beta1.Speaker, gone bool) {
	c.snapshot.Lock()
	old := c.speakers[name]
	if c.speakers[name] = sp; gone {
		delete(c.speakers, name)
	}
	whole := old == nil || gone
	if whole || snapshot.Ended(old) != snapshot.Ended(sp) || old.Status.Gate != sp.Status.Gate || old.Status.Drained != sp.Status.Drained ||
		!slices.Equal(old.Status.Members, sp.Status.Members) || !slices.Equal(old.Status.Interfaces, sp.Status.Interfaces) {
		c.snapshot.Speakers(c.speakers)
	}
	if whole || !slices.EqualFunc(old.Status.Sessions, sp.Status.Sessions, sameSession) || !slices.Equal(old.Status.Problems, sp.Status.Problems) {
		c.snapshot.MarkAll()
	} else {
		was, is := reported(&old.Status), reported(&sp.Status)
		for _, one := range [...]map[string]string{was, is} {
			for text := range one {
				if addr, err := netip.ParseAddr(text); err == nil && was[text] != is[text] {
					c.snapshot.Mark(addr)
				}
			}
		}
	}
	c.snapshot.Unlock()
	c.poke()
}

// sameSession compares what is said of a session in conditions.
func sameSession(a, b v1beta1.SessionStatus) bool {
	return a.Peer == b.Peer && a.State == b.State && a.LastError == b.LastError
}

// reported is what a speaker says of addresses on the local network.
func reported(status *v1beta1.SpeakerStatus) map[string]string {
	out := make(map[string]string, len(status.Layer2)+len(status.Conflicts))
	for _, l := range status.Layer2 {
		out[l.Address] = "on " + strings.Join(l.Interfaces, " ")
	}
	for _, c := range status.Conflicts {
		out[c.Address] += "; used by " + c.HardwareAddress + " on " + c.Interface
	}
	return out
}

// Start writes until ctx ends.
func (c *conditions) Start(ctx context.Context) error {
	if !toolscache.WaitForCacheSync(ctx.Done(), c.synced...) {
		return nil
	}
	c.snapshot.Lock()
	c.snapshot.MarkAll()
	c.snapshot.Unlock()
	c.poke()
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
			if due == nil {
				due = time.After(conditionsDelay)
			}
		case <-c.again:
			c.again = nil
			maps.Copy(c.services, c.pending)
			clear(c.pending)
			c.poke()
		case <-due:
			due = nil
			if failed := c.write(ctx); failed && ctx.Err() == nil {
				due = time.After(conditionsRetry)
			}
		}
	}
}

// change is a status to be written.
type change struct {
	object client.Object
	patch  client.Patch
	event  func() // to be recorded when it is written; nil: none
}

// write makes conditions what they should be. What cannot be written now is looked at again later and delays nothing.
func (c *conditions) write(ctx context.Context) (failed bool) {
	changes, err := c.changes(ctx)
	if err != nil {
		c.log.Error("cannot read objects", "error", err)
		return true
	}
	for _, ch := range changes {
		err := errNotLeader
		if c.holds() {
			err = c.client.Status().Patch(ctx, ch.object, ch.patch)
		}
		if err == nil || apierrors.IsNotFound(err) {
			if err == nil && ch.event != nil {
				ch.event()
			}
			continue
		}
		failed = true
		level := slog.LevelDebug
		if !errors.Is(err, errNotLeader) {
			level = slog.LevelWarn
			c.counters.writeErrors.WithLabelValues(kindOf(ch.object)).Inc()
		}
		c.log.Log(ctx, level, "cannot write conditions", "object", kindOf(ch.object)+" "+client.ObjectKeyFromObject(ch.object).String(), "error", err)
		if svc, ok := ch.object.(*corev1.Service); ok {
			c.services[svc.Namespace+"/"+svc.Name] = true
		} else {
			c.snapshot.Lock()
			c.snapshot.MarkAll()
			c.snapshot.Unlock()
		}
	}
	return failed
}

// kindOf is the kind of an object of the cache, which has none written into it.
func kindOf(o client.Object) string { return reflect.TypeOf(o).Elem().Name() }

// changes are the statuses that are not what they should be.
func (c *conditions) changes(ctx context.Context) ([]change, error) {
	c.snapshot.Lock()
	defer c.snapshot.Unlock()
	dirty := c.snapshot.Changes()
	if dirty.All || len(dirty.Nodes) > 0 { // perhaps a node is lost, or found again
		c.snapshot.Speakers(c.speakers)
		c.snapshot.MarkAll()
		more := c.snapshot.Changes()
		dirty.All, dirty.Services = true, append(dirty.Services, more.Services...)
	}
	for _, key := range dirty.Services {
		c.services[key] = true
	}
	var out []change
	if dirty.All {
		var err error
		if out, err = c.objects(ctx); err != nil {
			c.snapshot.MarkAll()
			return nil, err
		}
	}
	keys := c.services
	if len(keys) == 0 {
		return out, nil
	}
	judge := verdict.New(c.snapshot.View(), c.speakers, time.Now())
	for key := range keys {
		ch, err := c.service(ctx, key, judge)
		if err != nil { // all of them are looked at again
			if dirty.All {
				c.snapshot.MarkAll()
			}
			return nil, err
		}
		if ch != nil {
			out = append(out, *ch)
		}
	}
	c.services = map[string]bool{}
	return out, nil
}

// service is the change of a Service's condition Announced, nil when it is what it should be.
func (c *conditions) service(ctx context.Context, key string, judge *verdict.Judge) (*change, error) {
	ns, name, _ := strings.Cut(key, "/")
	svc := &corev1.Service{}
	if err := c.client.Get(ctx, client.ObjectKey{Namespace: ns, Name: name}, svc); err != nil {
		delete(c.warned, key)
		return nil, client.IgnoreNotFound(err)
	}
	old := meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAnnounced)
	has := c.snapshot.Addresses(key, v1beta1.AddressLoadBalancerIP)
	if len(c.speakers) == 0 || len(has) == 0 && old == nil {
		return nil, nil
	}
	next := svc.DeepCopy()
	if len(has) == 0 {
		meta.RemoveStatusCondition(&next.Status.Conditions, v1beta1.ConditionAnnounced)
	} else {
		var addrs []netip.Addr // in the order of the status
		for _, i := range svc.Status.LoadBalancer.Ingress {
			if a, err := netip.ParseAddr(i.IP); err == nil && slices.Contains(has, a) {
				addrs = append(addrs, a)
			}
		}
		cond := c.announced(judge, addrs)
		if cond.Reason == verdict.Pending {
			if c.pending[key] = true; c.again == nil {
				c.again = time.After(verdict.Youth)
			}
		}
		cond.ObservedGeneration = svc.Generation
		meta.SetStatusCondition(&next.Status.Conditions, cond)
	}
	if equality.Semantic.DeepEqual(svc.Status.Conditions, next.Status.Conditions) {
		return nil, nil
	}
	ch := &change{object: next, patch: client.StrategicMergeFrom(svc)}
	if now := meta.FindStatusCondition(next.Status.Conditions, v1beta1.ConditionAnnounced); now != nil {
		ch.event = c.announcedEvent(key, svc, old, now)
	}
	return ch, nil
}

// announced is the condition Announced of a Service with these addresses.
func (c *conditions) announced(judge *verdict.Judge, addrs []netip.Addr) metav1.Condition {
	cond := metav1.Condition{Type: v1beta1.ConditionAnnounced, Status: metav1.ConditionTrue, Reason: verdict.Announced}
	var texts []string
	for _, addr := range addrs {
		v := judge.Of(addr, c.snapshot.ClaimsOn(addr))
		text := addr.String() + " " + v.Text
		switch {
		case !v.Announced():
			text = addr.String() + " is not announced: " + v.Text
			if cond.Status == metav1.ConditionTrue {
				cond.Status, cond.Reason = metav1.ConditionFalse, v.Reason
			}
		case cond.Reason == verdict.Announced:
			cond.Reason = v.Reason
		}
		texts = append(texts, text)
	}
	cond.Message = strings.Join(texts, "; ")
	return cond
}

// maxNote is what the API server takes as the text of an event.
const maxNote = 1024

// announcedEvent is the event to go with a change of the condition Announced: one when nobody announces a Service, or a
// stranger uses its address, or that is for another reason than before; and after that one when all is well, be it pending
// in between.
func (c *conditions) announcedEvent(key string, svc *corev1.Service, old, now *metav1.Condition) func() {
	troubled := func(x *metav1.Condition) bool {
		return x != nil && x.Reason != verdict.Announced && x.Reason != verdict.Pending
	}
	typ, action := corev1.EventTypeNormal, "Announce"
	switch {
	case troubled(now) && (!troubled(old) || old.Reason != now.Reason):
		typ = corev1.EventTypeWarning
	case now.Reason == verdict.Announced && (troubled(old) || c.warned[key]):
	default:
		return nil
	}
	message := now.Message
	if len(message) > maxNote {
		message = message[:maxNote]
	}
	return func() {
		if c.events.Eventf(svc, nil, typ, now.Reason, action, "%s", message); typ == corev1.EventTypeWarning {
			c.warned[key] = true
		} else {
			delete(c.warned, key)
		}
	}
}

// objects are the changes of the configuration objects' statuses.
func (c *conditions) objects(ctx context.Context) ([]change, error) {
	problems, advice := map[string][]string{}, map[string][]string{}
	reasons := map[string]string{}
	add := func(object, reason, message string) {
		if problems[object] = append(problems[object], message); reasons[object] == "" {
			reasons[object] = reason
		}
	}
	for _, p := range c.snapshot.Problems() {
		if object := p.Kind + "/" + p.Name; p.Reason == config.ReasonAdvice {
			advice[object] = append(advice[object], p.Message)
		} else {
			add(object, p.Reason, p.Message)
		}
	}
	onNodes := map[v1beta1.Problem][]string{}
	for node, n := range c.snapshot.View().Nodes {
		if sp := c.speakers[node]; sp != nil && n.Alive {
			for _, p := range sp.Status.Problems {
				onNodes[p] = append(onNodes[p], node)
			}
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(onNodes), func(a, b v1beta1.Problem) int { return strings.Compare(a.Object+a.Message, b.Object+b.Message) }) {
		nodes := onNodes[p]
		slices.Sort(nodes)
		add(p.Object, config.ReasonInvalid, p.Message+" (on "+few(nodes)+")")
	}
	ready := func(kind, name string) metav1.Condition {
		object := kind + "/" + name
		cond := metav1.Condition{Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready"}
		texts := []string{"in use as written"}
		if ps := problems[object]; len(ps) > 0 {
			cond.Status, cond.Reason, texts = metav1.ConditionFalse, reasons[object], ps
		} else if len(advice[object]) > 0 {
			cond.Reason = config.ReasonAdvice
		}
		cond.Message = strings.Join(slices.Concat(texts, advice[object]), "; ")
		return cond
	}
	meetings := c.snapshot.Meetings()

	var out []change
	var l2 v1beta1.L2AdvertisementList
	var bgp v1beta1.BGPAdvertisementList
	var comms v1beta1.CommunityList
	var bfd v1beta1.BFDProfileList
	var peers v1beta1.BGPPeerList
	for _, list := range []client.ObjectList{&l2, &bgp, &comms, &bfd, &peers} {
		if err := c.client.List(ctx, list); err != nil {
			return nil, err
		}
	}
	for i := range l2.Items {
		o := &l2.Items[i]
		out = appendStatus(out, o, &o.Status.Conditions, nil, ready("L2Advertisement", o.Name))
	}
	for i := range bgp.Items {
		o := &bgp.Items[i]
		cond := ready("BGPAdvertisement", o.Name)
		cond.Message = strings.Join(append([]string{cond.Message}, meetings[o.Name]...), "; ")
		out = appendStatus(out, o, &o.Status.Conditions, nil, cond)
	}
	for i := range comms.Items {
		o := &comms.Items[i]
		out = appendStatus(out, o, &o.Status.Conditions, nil, ready("Community", o.Name))
	}
	for i := range bfd.Items {
		o := &bfd.Items[i]
		out = appendStatus(out, o, &o.Status.Conditions, nil, ready("BFDProfile", o.Name))
	}
	for i := range peers.Items {
		o := &peers.Items[i]
		wanted, up, established := c.sessions(o)
		out = appendStatus(out, o, &o.Status.Conditions, func() {
			o.Status.SessionsWanted, o.Status.SessionsUp = wanted, up
		}, ready("BGPPeer", o.Name), established)
	}
	return out, nil
}

// appendStatus adds the change of an object's status, made by edit and by setting conditions, if there is one.
func appendStatus(to []change, o client.Object, conds *[]metav1.Condition, edit func(), set ...metav1.Condition) []change {
	old := o.DeepCopyObject().(client.Object)
	for _, cond := range set {
		cond.ObservedGeneration = o.GetGeneration()
		meta.SetStatusCondition(conds, cond)
	}
	if edit != nil {
		edit()
	}
	if equality.Semantic.DeepEqual(old, o) {
		return to
	}
	return append(to, change{object: o, patch: client.MergeFrom(old)})
}

// sessions counts the nodes that should have a session with a peer, and those that have.
func (c *conditions) sessions(p *v1beta1.BGPPeer) (wanted, up int32, established metav1.Condition) {
	var nodes config.Selectors
	for _, parsed := range c.snapshot.View().Config.Peers {
		if parsed.Name == p.Name {
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
			if s.Peer == p.Name {
				state, lastError = s.State, s.LastError
			}
		}
		switch {
		case !n.Alive:
			down = append(down, name+": "+verdict.NotAlive)
		case state == verdict.Established:
			up++
		case lastError == "":
			down = append(down, name+": "+state)
		default:
			down = append(down, name+": "+state+": "+lastError)
		}
	}
	established = metav1.Condition{Type: v1beta1.ConditionEstablished, Status: metav1.ConditionTrue, Reason: "Established",
		Message: fmt.Sprintf("%d of %d sessions are up", up, wanted)}
	if up < wanted || wanted == 0 {
		established.Status, established.Reason = metav1.ConditionFalse, verdict.SessionDown
		if len(down) > 0 {
			established.Message += "; " + few(down)
		}
	}
	return wanted, up, established
}

// few lists some of many.
func few(all []string) string {
	const most = 5
	if n := len(all); n > most {
		return strings.Join(all[:most], ", ") + fmt.Sprintf(" and %d more", n-most)
	}
	return strings.Join(all, ", ")
}
