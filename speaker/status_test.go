package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/speaker/bgp"
	"github.com/clarionlb/clarion/speaker/guard"
	"github.com/clarionlb/clarion/speaker/layer2"
	"github.com/clarionlb/clarion/speaker/members"
)

// statusWorld is a status that writes to an API server of its own.
func statusWorld(t *testing.T) (*world, *status, client.Client) {
	w := newWorld(t)
	w.set(node("a", "192.0.2.11"))
	c := fake.NewClientBuilder().WithScheme(w.informers.Scheme).WithStatusSubresource(&v1beta1.Speaker{}).Build()
	s := newStatus(statusConfig{client: c, log: slog.New(slog.DiscardHandler), reconciler: w.r,
		told: func() ([]members.Link, []string) { return nil, nil }})
	return w, s, c
}

func (s *status) put(t *testing.T, want v1beta1.SpeakerStatus) {
	t.Helper()
	if err := s.write(t.Context(), want, s.reconciler.snapshot.Node("a")); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, c client.Client) *v1beta1.Speaker {
	t.Helper()
	o := &v1beta1.Speaker{}
	if err := c.Get(t.Context(), client.ObjectKey{Name: "a"}, o); err != nil {
		t.Fatal(err)
	}
	return o
}

var (
	ready   = metav1.Condition{Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready", Message: "announcing"}
	guarded = metav1.Condition{Type: v1beta1.ConditionGuarded, Status: metav1.ConditionTrue, Reason: "Guarded", Message: "by eth0"}
	active  = v1beta1.SpeakerStatus{
		Version: "v1", Addresses: []string{"192.0.2.11"}, HardwareAddresses: []string{"02:00:00:00:00:01"}, Interfaces: []string{"eth0"},
		Missing: []string{"b"}, LocalNetwork: &v1beta1.Layer2Status{Answered: 1, Digest: "4b8feb9364512928"},
		Sessions:   []v1beta1.SessionStatus{{Peer: "tor", State: "Established", PrefixesIPv4: 3}},
		Conditions: []metav1.Condition{ready, guarded},
	}
)

// Who ends says so: what it wrote last would be believed for ever. Where it can be joined, members go on to know.
func TestEndedSpeaker(t *testing.T) {
	_, s, c := statusWorld(t)
	s.end() // it has never written anything: nor does it now
	if err := c.Get(t.Context(), client.ObjectKey{Name: "a"}, &v1beta1.Speaker{}); !apierrors.IsNotFound(err) {
		t.Fatalf("an object without a Node: %v", err)
	}
	s.put(t, active)
	if got := read(t, c).Status; len(got.Sessions) != 1 || len(got.Conditions) != 2 {
		t.Fatalf("written: %+v", got)
	}
	s.end()
	got := read(t, c).Status
	if len(got.Missing)+len(got.Sessions) > 0 || got.LocalNetwork != nil || len(got.Conditions) != 1 || got.Conditions[0].Reason != v1beta1.ReasonEnded {
		t.Errorf("ended: %+v", got)
	}
	if len(got.Addresses) != 1 || len(got.HardwareAddresses) != 1 {
		t.Errorf("ended, and members cannot find it any more: %+v", got)
	}
	s.put(t, active)
	if got := read(t, c).Status; len(got.Missing) != 1 || got.Conditions[0].Reason != "Ready" {
		t.Errorf("back: %+v", got)
	}
}

// A Speaker object that somebody deletes is made again, with the Node as its owner.
func TestDeletedSpeakerIsMadeAgain(t *testing.T) {
	w, s, c := statusWorld(t)
	s.put(t, active)
	if err := c.Delete(t.Context(), read(t, c)); err != nil {
		t.Fatal(err)
	}
	n := node("a", "192.0.2.11") // made again
	n.UID = "another"
	w.set(n)
	s.lost()
	s.put(t, active)
	if o := read(t, c); len(o.Status.Missing) != 1 || len(o.OwnerReferences) != 1 || o.OwnerReferences[0].UID != "another" {
		t.Errorf("made again: %+v", o)
	}
}

// What only counts is not written by every one of many speakers at once, and anything else is.
func TestFiguresRest(t *testing.T) {
	_, s, _ := statusWorld(t)
	many := active
	s.members = func() members.View { return members.View{Members: make([]members.Member, 500)} }
	now := time.Now()
	if rest := s.rest(many, now); rest > 0 {
		t.Errorf("the first status rests for %v", rest)
	}
	s.put(t, many)
	s.at = now
	edit := func(change func(*v1beta1.SpeakerStatus)) v1beta1.SpeakerStatus {
		out := *many.DeepCopy()
		change(&out)
		return out
	}
	for _, c := range []struct {
		what string
		want v1beta1.SpeakerStatus
		rest time.Duration
	}{
		{"more missing, which others name", edit(func(o *v1beta1.SpeakerStatus) { o.MissingMore = 3 }), 10 * time.Second},
		{"another missing", edit(func(o *v1beta1.SpeakerStatus) { o.Missing = []string{"b", "c"} }), 0},
		{"another address", edit(func(o *v1beta1.SpeakerStatus) { o.LocalNetwork.Digest = "424506ed5b52990d" }), 0},
		{"other prefixes", edit(func(o *v1beta1.SpeakerStatus) { o.Sessions[0].Digest = "424506ed5b52990d" }), 10 * time.Second},
		{"more prefixes", edit(func(o *v1beta1.SpeakerStatus) { o.Sessions[0].PrefixesIPv4 = 4 }), 10 * time.Second},
		{"no prefix any more", edit(func(o *v1beta1.SpeakerStatus) { o.Sessions[0].PrefixesIPv4 = 0 }), 0},
		{"the first prefix", edit(func(o *v1beta1.SpeakerStatus) { o.Sessions[0].PrefixesIPv6 = 1 }), 0},
		{"more prefixes, and a gate", edit(func(o *v1beta1.SpeakerStatus) { o.Sessions[0].PrefixesIPv4, o.Gate = 4, "x" }), 0},
		{"more missing, and a session down", edit(func(o *v1beta1.SpeakerStatus) { o.MissingMore, o.Sessions[0].State = 3, "Idle" }), 0},
		{"nothing", many, 0},
	} {
		if rest := max(0, s.rest(c.want, now)); rest != c.rest {
			t.Errorf("%s rests for %v, want %v", c.what, rest, c.rest)
		}
	}
	if rest := s.rest(edit(func(o *v1beta1.SpeakerStatus) { o.MissingMore = 3 }), now.Add(10*time.Second)); rest > 0 {
		t.Errorf("a figure rests for %v more after 10 s", rest)
	}
}

// The condition Guarded says whether packets may go round, which call the kernel refused, and what to do.
func TestGuardedCondition(t *testing.T) {
	eth := []string{"eth0", "wg0"}
	refused := func(err error) guard.Status {
		return guard.Status{Err: fmt.Errorf("guard: %w", errors.Join(fmt.Errorf("add an IPv4 rule for eth0: %w", err), errors.New("second"), errors.New("third")))}
	}
	guarded := guard.Status{Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}, Interfaces: eth}
	for _, c := range []struct {
		what    string
		on      bool
		outside []string
		status  guard.Status
		want    metav1.ConditionStatus
		reason  string
		says    []string
	}{
		{"guarded", true, eth, guarded, metav1.ConditionTrue, "Guarded", []string{"eth0, wg0"}},
		{"nothing is announced", true, eth, guard.Status{}, metav1.ConditionTrue, "Guarded", nil},
		{"at the start", true, nil, guard.Status{}, metav1.ConditionUnknown, "Pending", nil},
		{"no interface", true, []string{}, guard.Status{}, metav1.ConditionFalse, "NoInterface", nil},
		{"switched off", false, nil, guard.Status{}, metav1.ConditionFalse, "SwitchedOff", []string{"--guard=false"}},
		{"no capability", true, eth, refused(unix.EPERM), metav1.ConditionFalse, "KernelRefuses",
			[]string{"add an IPv4 rule for eth0: operation not permitted and 2 more", "NET_ADMIN", "--guard=false"}},
		{"no policy routing", true, eth, refused(unix.EOPNOTSUPP), metav1.ConditionFalse, "KernelRefuses", []string{"CONFIG_IPV6_MULTIPLE_TABLES"}},
		{"something else", true, eth, refused(unix.ENOMEM), metav1.ConditionFalse, "KernelRefuses", []string{"cannot allocate memory", "again every second"}},
	} {
		got := guardCondition(c.on, c.outside, c.status)
		if got.Status != c.want || got.Reason != c.reason {
			t.Errorf("%s: %s %s, want %s %s", c.what, got.Status, got.Reason, c.want, c.reason)
		}
		for _, text := range c.says {
			if !strings.Contains(got.Message, text) {
				t.Errorf("%s: %q does not say %q", c.what, got.Message, text)
			}
		}
		if strings.Contains(got.Message, "\n") {
			t.Errorf("%s: the message has several lines: %q", c.what, got.Message)
		}
	}
}

// The interfaces that a speaker writes are those that it tells the others, by which all decide: those that it could
// not tell are a problem.
func TestInterfacesAreThoseThatAreTold(t *testing.T) {
	_, s, _ := statusWorld(t)
	log := slog.New(slog.DiscardHandler)
	s.layer2, s.bgp, s.guard = layer2.New(layer2.Config{Log: log}), bgp.New(bgp.Config{Log: log}), guard.New(guard.Config{Log: log})
	s.missing = func(time.Time) ([]string, int32, time.Duration) { return nil, 0, 0 }
	s.members = func() members.View { return members.View{} }
	s.told = func() ([]members.Link, []string) {
		return []members.Link{{Name: "eth0", Carrier: true}, {Name: "br-x", Excluded: true}}, []string{"eth7"}
	}
	got := s.current()
	if len(got.Problems) != 1 || got.Problems[0].Object != "Node/a" || !strings.Contains(got.Problems[0].Message, "eth7") {
		t.Errorf("an interface is left out, and problems are %v", got.Problems)
	}
	if fmt.Sprint(got.Interfaces, got.InterfacesDown, got.InterfacesNamedOnly) != "[eth0 br-x] [br-x] [br-x]" {
		t.Errorf("%q, down %q, named only %q", got.Interfaces, got.InterfacesDown, got.InterfacesNamedOnly)
	}
}
