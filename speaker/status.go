package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/digest"
	"github.com/clarionlb/clarion/internal/interfaces"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/internal/text"
	"github.com/clarionlb/clarion/internal/version"
	"github.com/clarionlb/clarion/internal/wake"
	"github.com/clarionlb/clarion/speaker/bgp"
	"github.com/clarionlb/clarion/speaker/guard"
	"github.com/clarionlb/clarion/speaker/layer2"
	"github.com/clarionlb/clarion/speaker/members"
)

// How long changes are collected before the Speaker object is written, how long a failed write rests, how long an ending
// speaker tries to say so, and how long figures that all speakers change at once rest for each of them.
const (
	statusDelay = 300 * time.Millisecond
	statusRetry = 2 * time.Second
	statusEnd   = time.Second
	figuresRest = 20 * time.Millisecond
)

// status writes this node's Speaker object: what the parts of the speaker hold, only when it has changed.
type status struct {
	statusConfig
	version string
	wake    wake.Signal

	deleted  atomic.Bool                  // somebody has deleted the object
	written  *v1beta1.Speaker             // as last written or read
	at       time.Time                    // when that was
	sessions map[string]bgp.SessionStatus // as last looked at

	mu    sync.Mutex
	lacks map[netip.Addr]time.Time // the addresses that this node does not answer and should, and since when
}

// statusConfig is what a status is made with.
type statusConfig struct {
	client     client.Client
	events     events.EventRecorder
	log        *slog.Logger
	reconciler *reconciler
	layer2     *layer2.Responder
	bgp        *bgp.Speaker
	guard      *guard.Guard
	members    func() members.View
	missing    func(now time.Time) (names []string, more int32, again time.Duration) // see absent
	nodeOf     func(layer2.MAC) string                                               // see membership.nodeOf
	told       func() (links []members.Link, leftOut []string)                       // see membership.told
}

func newStatus(c statusConfig) *status {
	return &status{statusConfig: c, version: version.String(), wake: wake.New()}
}

// poke says that something may have changed.
func (s *status) poke() { s.wake.Set() }

// lost says that the object has been deleted, with its Node or by somebody: it is made again.
func (s *status) lost() {
	s.deleted.Store(true)
	s.poke()
}

// run writes until ctx ends.
func (s *status) run(ctx context.Context) {
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			if due == nil {
				due = time.After(statusDelay)
			}
		case <-due:
			due = nil
			s.sessionEvents()
			want, node := s.wanted()
			if rest := s.rest(want, time.Now()); rest > 0 {
				due = time.After(rest)
				continue
			}
			if err := s.write(ctx, want, node); err != nil && ctx.Err() == nil {
				s.log.Warn("cannot write the Speaker object", "error", err)
				s.written = nil
				due = time.After(statusRetry)
			}
		}
	}
}

// end says that this speaker announces nothing any more; otherwise what it wrote last would stand. It is called after run.
func (s *status) end() {
	if s.written == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), statusEnd)
	defer cancel()
	was := &s.written.Status
	last := v1beta1.SpeakerStatus{
		Version: was.Version, Addresses: was.Addresses, HardwareAddresses: was.HardwareAddresses, Interfaces: was.Interfaces,
		Conditions: []metav1.Condition{{
			Type: v1beta1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1beta1.ReasonEnded, Message: "the speaker has ended; nothing is announced by it",
		}},
	}
	r := s.reconciler
	r.snapshot.Lock()
	node := r.snapshot.Node(r.node)
	r.snapshot.Unlock()
	if err := s.write(ctx, last, node); err != nil {
		s.log.Warn("cannot say in the Speaker object that the speaker has ended", "error", err)
	}
}

// rest is for how long a change is not worth writing yet: when nothing differs but figures of sessions, unless these are
// none, and how many speakers are missing besides those that are named.
func (s *status) rest(want v1beta1.SpeakerStatus, now time.Time) time.Duration {
	if s.written == nil || s.deleted.Load() {
		return 0
	}
	have := s.written.Status
	differ := want.MissingMore != have.MissingMore
	want.MissingMore, want.Sessions = have.MissingMore, slices.Clone(want.Sessions)
	for i := range min(len(want.Sessions), len(have.Sessions)) {
		a, b := &want.Sessions[i], &have.Sessions[i]
		if a.Peer != b.Peer || (a.PrefixesIPv4 == 0) != (b.PrefixesIPv4 == 0) || (a.PrefixesIPv6 == 0) != (b.PrefixesIPv6 == 0) {
			continue
		}
		differ = differ || a.PrefixesIPv4 != b.PrefixesIPv4 || a.PrefixesIPv6 != b.PrefixesIPv6 || a.Digest != b.Digest
		a.PrefixesIPv4, a.PrefixesIPv6, a.Digest = b.PrefixesIPv4, b.PrefixesIPv6, b.Digest
	}
	want.Conditions = merged(have.Conditions, want.Conditions)
	if !differ || !equality.Semantic.DeepEqual(want, have) {
		return 0
	}
	return s.at.Add(time.Duration(len(s.members().Members)) * figuresRest).Sub(now)
}

// merged are conditions that are to be set, with the times of their last change.
func merged(have, set []metav1.Condition) []metav1.Condition {
	out := slices.Clone(set)
	for i := range out {
		if old := meta.FindStatusCondition(have, out[i].Type); old != nil && old.Status == out[i].Status {
			out[i].LastTransitionTime = old.LastTransitionTime
		} else {
			out[i].LastTransitionTime = metav1.Now()
		}
	}
	return out
}

// write makes the object what it should be, with no request if it is that already. node is nil when it is not known.
func (s *status) write(ctx context.Context, want v1beta1.SpeakerStatus, node *snapshot.Node) error {
	if node == nil {
		return nil // neither is the owner of the object known
	}
	if s.deleted.Swap(false) {
		s.written = nil
	}
	name := s.reconciler.node
	if s.written == nil {
		have := &v1beta1.Speaker{}
		err := s.client.Get(ctx, client.ObjectKey{Name: name}, have)
		if apierrors.IsNotFound(err) {
			have = &v1beta1.Speaker{ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: []metav1.OwnerReference{
				{APIVersion: "v1", Kind: "Node", Name: name, UID: node.UID},
			}}}
			err = s.client.Create(ctx, have)
		}
		if err != nil {
			return err
		}
		s.written = have
	}
	want.Conditions = merged(s.written.Status.Conditions, want.Conditions)
	if equality.Semantic.DeepEqual(want, s.written.Status) {
		return nil
	}
	next := s.written.DeepCopy()
	next.Status = want
	// Of the answer, only the metadata is asked for.
	answer := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name}}
	answer.SetGroupVersionKind(v1beta1.GroupVersion.WithKind("Speaker"))
	body, err := client.MergeFromWithOptions(s.written, client.MergeFromWithOptimisticLock{}).Data(next)
	if err != nil {
		return err
	}
	if err := s.client.Status().Patch(ctx, answer, client.RawPatch(types.MergePatchType, body)); err != nil {
		return err
	}
	next.ResourceVersion = answer.ResourceVersion
	s.written, s.at = next, time.Now()
	return nil
}

// claimAge is how long a claim to an address that was never announced must have stood before it is reported: the
// controller then takes the address from its Service. Speakers that start together know each other by then. lackAge is
// how long an address must have gone unanswered: it takes less to find out whether anybody has it.
const (
	claimAge = time.Second
	lackAge  = 2 * time.Second
)

// How many of each kind are named in the object; the others are counted.
const (
	maxExceptions = 16
	maxConflicts  = 64
)

// current is the status as it should be.
func (s *status) current() v1beta1.SpeakerStatus {
	out, _ := s.wanted()
	return out
}

// wanted is the status as it should be, and what is known of the node, nil if nothing is.
func (s *status) wanted() (v1beta1.SpeakerStatus, *snapshot.Node) {
	view, answered := s.members(), s.layer2.Status().Addresses
	now := time.Now()
	var again time.Duration // when what is too young to be reported is not any more
	soon := func(d time.Duration) {
		if again == 0 || d < again {
			again = d
		}
	}
	defer func() {
		if again > 0 {
			time.AfterFunc(again, s.poke)
		}
	}()
	out := v1beta1.SpeakerStatus{Version: s.version}
	var wait time.Duration
	if out.Missing, out.MissingMore, wait = s.missing(now); wait > 0 {
		soon(wait)
	}
	for _, a := range answered {
		for _, c := range a.Conflicts {
			if age := now.Sub(c.Since); c.Before && age < claimAge {
				soon(claimAge - age)
				continue
			}
			if len(out.Conflicts) == maxConflicts {
				out.ConflictsMore++
				continue
			}
			out.Conflicts = append(out.Conflicts, v1beta1.AddressConflict{
				Address: a.Addr.String(), HardwareAddress: c.MAC.String(), Interface: c.Interface, BeforeUse: c.Before, Since: metav1.NewTime(c.Since.Truncate(time.Second)),
			})
		}
	}

	r := s.reconciler
	r.snapshot.Lock()
	node := r.snapshot.Node(r.node)
	if node == nil {
		r.snapshot.Unlock()
		return out, nil
	}
	for _, a := range node.Addresses {
		out.Addresses = append(out.Addresses, a.String())
	}
	out.LocalNetwork = s.layer2Status(answered, now, soon)
	out.HeldDown, out.HeldDownMore = some(slices.SortedFunc(maps.Keys(r.heldDown), netip.Addr.Compare), netip.Addr.String)
	digests := maps.Clone(r.digests)
	for _, p := range r.problems {
		out.Problems = append(out.Problems, v1beta1.Problem{Object: p.Kind + "/" + p.Name, Message: p.Message})
	}
	n, cfg := r.snapshot.View().Nodes[r.node], r.snapshot.View().Config
	outside := r.outside
	unproven := maps.Clone(r.unproven)
	r.snapshot.Unlock()
	if n != nil {
		out.Gate, out.Drained = n.Gate, n.Drained
	}

	for _, l := range s.layer2.Links() {
		if !l.Excluded || cfg != nil && slices.ContainsFunc(cfg.L2, func(ad config.L2Advertisement) bool { return interfaces.Match(ad.Interfaces, l.Name) }) {
			out.HardwareAddresses = append(out.HardwareAddresses, l.MAC.String())
		}
	}
	links, leftOut := s.told()
	if len(leftOut) > 0 {
		out.Problems = append(out.Problems, v1beta1.Problem{Object: "Node/" + r.node, Message: "the node has more interfaces to announce on than speakers can tell each other; no address is announced on " + text.Few(leftOut) + " (see the speaker's flag --exclude-interfaces)"})
	}
	for _, l := range links {
		out.Interfaces = append(out.Interfaces, l.Name)
		if !l.Carrier {
			out.InterfacesDown = append(out.InterfacesDown, l.Name)
		}
		if l.Excluded {
			out.InterfacesNamedOnly = append(out.InterfacesNamedOnly, l.Name)
		}
	}
	slices.Sort(out.HardwareAddresses)
	out.HardwareAddresses = slices.Compact(out.HardwareAddresses)
	for _, ses := range s.bgp.Status() {
		x := sessionStatus(ses)
		x.Digest = digests[ses.Peer].String()
		out.Sessions = append(out.Sessions, x)
	}
	slices.SortFunc(out.Sessions, func(a, b v1beta1.SessionStatus) int {
		return cmp.Or(cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Address, b.Address))
	})
	ready := metav1.Condition{Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1beta1.ReasonReady, Message: "announcing"}
	if !view.Joined {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, v1beta1.ReasonJoining, "not yet joined with the other speakers: nothing is announced on the local network"
	}
	out.Conditions = []metav1.Condition{ready, guardCondition(r.guard != nil, outside, s.guard.Status())}
	if len(unproven) > 0 {
		first := slices.MinFunc(slices.Collect(maps.Keys(unproven)), netip.Addr.Compare)
		out.Conditions = append(out.Conditions, metav1.Condition{Type: v1beta1.ConditionProxyAnswers, Status: metav1.ConditionFalse, Reason: v1beta1.ReasonNoAnswer,
			Message: fmt.Sprintf("announced though the Service proxy did not say within %v that it serves it: %s, asked at port %d; %d more", readyLimit, first, unproven[first], len(unproven)-1)})
	}
	return out, node
}

// layer2Status is what this node answers for, beside what it should answer for as it sees the cluster. The snapshot's lock
// must be held. soon is called with when it has to be looked at again.
func (s *status) layer2Status(answered []layer2.AddressStatus, now time.Time, soon func(time.Duration)) *v1beta1.Layer2Status {
	r := s.reconciler
	mine := func(addr netip.Addr) bool { return r.snapshot.Owner(addr).Owner == r.node }
	out := &v1beta1.Layer2Status{}
	var sum digest.Sum
	var latest []layer2.AddressStatus
	var besides []netip.Addr
	byAddr := make(map[netip.Addr]*layer2.AddressStatus, len(answered))
	for i := range answered {
		a := &answered[i]
		if byAddr[a.Addr] = a; len(a.Interfaces) == 0 {
			continue
		}
		sum += digest.Address(a.Addr)
		latest = append(latest, *a)
		if !mine(a.Addr) {
			besides = append(besides, a.Addr)
		}
	}
	out.Answered, out.Digest = int32(len(latest)), sum.String()
	slices.SortFunc(latest, func(a, b layer2.AddressStatus) int { return cmp.Or(b.Since.Compare(a.Since), a.Addr.Compare(b.Addr)) })
	for _, a := range latest[:min(len(latest), maxExceptions)] {
		out.Latest = append(out.Latest, a.Addr.String())
	}
	out.Besides, out.BesidesMore = some(besides, func(addr netip.Addr) v1beta1.AddressException {
		return v1beta1.AddressException{Address: addr.String(), Reason: "node " + cmp.Or(r.snapshot.Owner(addr).Owner, "(none)") + " should"}
	})

	s.mu.Lock()
	defer s.mu.Unlock()
	var unanswered []netip.Addr
	lacks := map[netip.Addr]time.Time{}
	for addr := range r.roles {
		if a := byAddr[addr]; a != nil && len(a.Interfaces) > 0 || !mine(addr) {
			continue
		}
		since, known := s.lacks[addr]
		if !known {
			since = now
		}
		lacks[addr] = since
		if age := now.Sub(since); age < lackAge {
			soon(lackAge - age)
			continue
		}
		unanswered = append(unanswered, addr)
	}
	s.lacks = lacks
	slices.SortFunc(unanswered, netip.Addr.Compare)
	out.Unanswered, out.UnansweredMore = some(unanswered, func(addr netip.Addr) v1beta1.AddressException {
		return v1beta1.AddressException{Address: addr.String(), Reason: s.unansweredBecause(byAddr[addr])}
	})
	return out
}

// unansweredBecause is why an address is not answered that this node should answer for.
func (s *status) unansweredBecause(a *layer2.AddressStatus) string {
	switch {
	case a == nil:
		return "the speaker has not begun to"
	case a.State == layer2.Answering:
		return "no interface of the node has a carrier and can be announced on"
	case a.State == layer2.Standby && a.Holder != layer2.MAC{}:
		if node := s.nodeOf(a.Holder); node != "" {
			return "node " + node + " answers for it"
		}
		return a.Holder.String() + " answers for it"
	}
	return cmp.Or(a.Reason, string(a.State))
}

// some are the first few of a list as they are shown, and how many there are beside them.
func some[T, S any](all []T, show func(T) S) (out []S, more int32) {
	for _, x := range all[:min(len(all), maxExceptions)] {
		out = append(out, show(x))
	}
	return out, int32(len(all) - len(out))
}

// guardCondition says what the guard has achieved, if it is on, against what comes in by the interfaces outside, nil
// when these are not known yet.
func guardCondition(on bool, outside []string, s guard.Status) metav1.Condition {
	c := metav1.Condition{Type: v1beta1.ConditionGuarded, Status: metav1.ConditionFalse}
	const otherwise = "packets for announced addresses that no Service has may go round between the routers and this node"
	switch {
	case !on:
		c.Reason, c.Message = v1beta1.ReasonSwitchedOff, "the speaker runs with --guard=false: "+otherwise
	case s.Err != nil:
		what, more, _ := strings.Cut(s.Err.Error(), "\n")
		if n := strings.Count(more, "\n"); more != "" {
			what += fmt.Sprintf(" and %d more like it", n+1)
		}
		do := "it is tried again every second"
		switch {
		case errors.Is(s.Err, unix.EPERM), errors.Is(s.Err, unix.EACCES):
			do = "the speaker's container needs the capability NET_ADMIN"
		case errors.Is(s.Err, unix.EAFNOSUPPORT), errors.Is(s.Err, unix.EOPNOTSUPP):
			do = "the node's kernel needs policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)"
		}
		c.Reason, c.Message = v1beta1.ReasonKernelRefuses, fmt.Sprintf("%s: %s; %s, or switch it off with --guard=false", otherwise, what, do)
	case outside == nil:
		c.Status, c.Reason, c.Message = metav1.ConditionUnknown, "Pending", "the node's interfaces are not known yet"
	case len(outside) == 0:
		c.Reason, c.Message = v1beta1.ReasonNoInterface, "no interface of the node leads outside, as far as their names say: "+otherwise
	default:
		c.Status, c.Reason = metav1.ConditionTrue, v1beta1.ReasonGuarded
		c.Message = "packets for announced addresses that no Service has are unreachable when they come in by " + strings.Join(outside, ", ")
	}
	return c
}

// sessionEvents records an event on the BGPPeer of every session that went up or down since the last look.
func (s *status) sessionEvents() {
	now := map[string]bgp.SessionStatus{}
	for _, ses := range s.bgp.Status() {
		at := ses.Peer + " " + ses.Address.String() // a peer may have several, one with each gateway
		now[at] = ses
		old, known := s.sessions[at]
		s.reconciler.snapshot.Lock()
		peer := s.reconciler.snapshot.BGPPeer(ses.Peer)
		s.reconciler.snapshot.Unlock()
		if peer == nil {
			continue
		}
		// A session that went down and up again between two looks was down all the same.
		if known && old.State == bgp.Established && (ses.State != bgp.Established || ses.Ups > old.Ups) {
			s.events.Eventf(peer, nil, corev1.EventTypeWarning, "SessionDown", "Peer", "node %s: the session with %s is down: %s", s.reconciler.node, old.Address, ses.LastError)
		}
		if ses.State == bgp.Established && (!known || ses.Ups > old.Ups) {
			s.events.Eventf(peer, nil, corev1.EventTypeNormal, "SessionUp", "Peer", "node %s: the session with %s is up", s.reconciler.node, ses.Address)
		}
	}
	s.sessions = now
}

// sessionStatus is a BGP session as the API shows it.
func sessionStatus(s bgp.SessionStatus) v1beta1.SessionStatus {
	out := v1beta1.SessionStatus{
		Peer: s.Peer, State: s.State.String(), PeerASN: int64(s.PeerASN), GracefulRestart: s.GracefulRestart,
		HoldTimeSeconds: int32(s.HoldTime.Seconds()), KeepaliveSeconds: int32(s.Keepalive.Seconds()),
		PrefixesIPv4: int32(s.Sent4), PrefixesIPv6: int32(s.Sent6), LastError: s.LastError,
	}
	if s.Problem != "" {
		out.LastError = s.Problem
	}
	if s.Local.IsValid() {
		out.LocalAddress = s.Local.String()
	}
	if s.Address.IsValid() {
		out.Address = s.Address.String()
	}
	if !s.Since.IsZero() {
		t := metav1.NewTime(s.Since.Truncate(time.Second))
		out.Since = &t
	}
	if s.IPv4 {
		out.Families = append(out.Families, "IPv4")
	}
	if s.IPv6 {
		out.Families = append(out.Families, "IPv6")
	}
	if s.BFD != nil {
		out.BFD = s.BFD.State.String()
		out.BFDTransmitMilliseconds = int32(s.BFD.Transmit.Milliseconds())
		out.BFDDetectionMilliseconds = int32(s.BFD.Detection.Milliseconds())
		if s.BFD.Problem != "" {
			out.LastError = "BFD: " + s.BFD.Problem
		}
	}
	return out
}
