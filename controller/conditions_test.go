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
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/digest"
	"github.com/clarionlb/clarion/internal/explain"
	"github.com/clarionlb/clarion/internal/ipam"
	"github.com/clarionlb/clarion/internal/pool"
	"github.com/clarionlb/clarion/internal/snapshot"
)

// store is an API server with a cache in front of it: reads give the objects themselves, patches to a status are taken
// as they are meant.
type store struct {
	client.Client // only what is defined here is there
	scheme        *runtime.Scheme
	informers     *informertest.FakeInformers
	mu            sync.Mutex
	objects       map[string]client.Object
	patches       int
	webhook       func(ctx context.Context, namespace string) error // before a patch is taken; nil: none
	t             testing.TB
}

func newStore(t testing.TB) *store {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1beta1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	return &store{scheme: scheme, informers: &informertest.FakeInformers{Scheme: scheme}, objects: map[string]client.Object{}, t: t}
}

func keyOf(o client.Object) string { return fmt.Sprintf("%T %s", o, client.ObjectKeyFromObject(o)) }

// set makes an object be there as given, for readers and watchers.
func (s *store) set(o client.Object) {
	s.t.Helper()
	inf, err := s.informers.FakeInformerFor(context.Background(), o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	old := s.objects[keyOf(o)]
	s.objects[keyOf(o)] = o
	s.mu.Unlock()
	if old != nil {
		inf.Update(old, o)
	} else {
		inf.Add(o)
	}
}

func (s *store) Get(_ context.Context, key client.ObjectKey, to client.Object, _ ...client.GetOption) error {
	s.mu.Lock()
	o := s.objects[fmt.Sprintf("%T %s", to, key)]
	s.mu.Unlock()
	if o == nil {
		return apierrors.NewNotFound(schema.GroupResource{}, key.String())
	}
	reflect.ValueOf(to).Elem().Set(reflect.ValueOf(o.DeepCopyObject()).Elem())
	return nil
}

func (s *store) List(_ context.Context, to client.ObjectList, _ ...client.ListOption) error {
	gvks, _, err := s.scheme.ObjectKinds(to)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var items []runtime.Object
	for _, o := range s.objects {
		have, _, err := s.scheme.ObjectKinds(o)
		if err != nil {
			return err
		}
		if have[0].Kind+"List" == gvks[0].Kind {
			items = append(items, o.DeepCopyObject())
		}
	}
	return meta.SetList(to, items)
}

func (s *store) Status() client.SubResourceWriter { return statusStore{store: s} }

type statusStore struct {
	client.SubResourceWriter
	*store
}

func (s statusStore) Patch(ctx context.Context, o client.Object, _ client.Patch, _ ...client.SubResourcePatchOption) error {
	if s.webhook != nil {
		if err := s.webhook(ctx, o.GetNamespace()); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.patches++
	s.mu.Unlock()
	s.set(o.DeepCopyObject().(client.Object))
	return nil
}

// writer is a writer of conditions beside a store, without its loop and queue.
type writer struct {
	*conditions
	failed map[objectKey]bool
}

// newWriter is a writer which leads as long as holds says so.
func newWriter(s *store, holds func() bool) *writer {
	c := newConditions(s, holds, nil, events.NewFakeRecorder(100000), snapshot.New(snapshot.Options{}), slog.New(slog.DiscardHandler))
	if err := c.watch(context.Background(), s.informers); err != nil {
		s.t.Fatal(err)
	}
	return &writer{c, map[objectKey]bool{}}
}

// due are the objects that are to be looked at, sorted.
func (w *writer) due(ctx context.Context) (keys []objectKey) {
	touched, _, err := w.decide(ctx, time.Now())
	if err != nil {
		panic(err)
	}
	for key := range w.failed {
		touched[key] = 0
	}
	clear(w.failed)
	return slices.SortedFunc(maps.Keys(touched), func(a, b objectKey) int { return strings.Compare(a.String(), b.String()) })
}

// write writes what is to be written, and says whether that has failed.
func (w *writer) write(ctx context.Context) (failed bool) {
	for _, key := range w.due(ctx) {
		if _, err := w.conditions.write(ctx, key); err != nil {
			failed, w.failed[key] = true, true
		}
	}
	return failed
}

// bigCluster fills a store with nodes, speakers, two peers and Services.
func bigCluster(s *store, nodes, services int, routed, ready, answered bool) {
	var names []string
	format := "node%02d"
	if nodes > 100 {
		format = "node%03d"
	}
	for n := range nodes {
		names = append(names, fmt.Sprintf(format, n))
	}
	pool := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "lan"}}
	pool.Spec.Addresses = []v1beta1.AddressRange{"198.18.0.0/16"}
	s.set(pool)
	if routed {
		for _, p := range []string{"tor1", "tor2"} {
			peer := &v1beta1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: p}}
			peer.Spec.MyASN, peer.Spec.PeerASN, peer.Spec.PeerAddress = 64500, new(int64(64512)), "192.0.2.1"
			s.set(peer)
		}
		s.set(&v1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}})
	} else {
		s.set(&v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "all"}})
	}
	speakers := make([]*v1beta1.Speaker, nodes)
	for n, name := range names {
		s.set(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
		sp := &v1beta1.Speaker{ObjectMeta: metav1.ObjectMeta{Name: name}}
		sp.Status.Interfaces = []string{"eth0"}
		if routed {
			sp.Status.Sessions = []v1beta1.SessionStatus{{Peer: "tor1", State: "Established"}, {Peer: "tor2", State: "Established"}}
		}
		speakers[n] = sp
	}
	addr := netip.MustParseAddr("198.18.0.0")
	var has []netip.Addr
	for n := range services {
		svc := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("s%04d", n)},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}},
			Status:     corev1.ServiceStatus{Conditions: []metav1.Condition{{Type: v1beta1.ConditionAllocated, Status: metav1.ConditionTrue}}},
		}
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: addr.String()}}
		s.set(svc)
		es := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: svc.Name, Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name},
		}, AddressType: discoveryv1.AddressTypeIPv4}
		for k := range 3 {
			es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{"10.244.0.1"}, NodeName: new(names[(n+k)%nodes]), Conditions: discoveryv1.EndpointConditions{Ready: new(ready)},
			})
		}
		s.set(es)
		has = append(has, addr)
		addr = addr.Next()
	}
	for _, sp := range speakers {
		s.set(sp)
	}
	if answered {
		for node, addrs := range ownersOf(names, has) {
			sp := s.speaker(node)
			sp.Status.LocalNetwork = answering(addrs...)
			s.set(sp)
		}
	}
}

// ownersOf are the addresses that each of some nodes should answer for, when all are alike.
func ownersOf(nodes []string, addrs []netip.Addr) map[string][]netip.Addr {
	v := announce.View{
		Config: &config.Config{L2: []config.L2Advertisement{{Name: "all", Pools: config.Names{All: true}}}},
		PoolOf: func(netip.Addr) string { return "lan" }, Nodes: map[string]*announce.Node{},
	}
	for _, n := range nodes {
		v.Nodes[n] = &announce.Node{Name: n, Alive: true}
	}
	claims := []announce.Claim{{Type: v1beta1.AddressLoadBalancerIP, Service: &announce.Service{Endpoints4: announce.Endpoints{Ready: map[string]int{"": 1}}}}}
	out := map[string][]netip.Addr{}
	for _, a := range addrs {
		owner := v.Layer2(a, claims).Owner
		out[owner] = append(out[owner], a)
	}
	return out
}

// answering is what a speaker says that answers for some addresses.
func answering(addrs ...netip.Addr) *v1beta1.Layer2Status {
	var sum digest.Sum
	for _, a := range addrs {
		sum += digest.Address(a)
	}
	return &v1beta1.Layer2Status{Answered: int32(len(addrs)), Digest: sum.String()}
}

// TestConditionsNeedTheLease: nothing is written while another controller may have the lease, and all of it after.
func TestConditionsNeedTheLease(t *testing.T) {
	s, leads := newStore(t), false
	c := newWriter(s, func() bool { return leads })
	bigCluster(s, 3, 5, false, true, true)
	if !c.write(t.Context()) || s.patches > 0 {
		t.Fatalf("%d patches without the lease", s.patches)
	}
	leads = true
	if c.write(t.Context()) || s.patches != 6 { // and the L2Advertisement's
		t.Fatalf("%d patches with the lease, want 6", s.patches)
	}
}

// TestSpeakerChanges: of what a speaker says, only what conditions depend on has them computed anew.
func TestSpeakerChanges(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*v1beta1.SpeakerStatus)
		want string
	}{
		{"numbers and versions", func(s *v1beta1.SpeakerStatus) {
			s.Version, s.Addresses = "v2", []string{"192.0.2.11"}
			s.Sessions[0].PrefixesIPv4, s.Sessions[0].HoldTimeSeconds, s.Sessions[0].Since = 7, 9, &metav1.Time{}
			s.Conditions = []metav1.Condition{{Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue}}
		}, "[]"},
		{"addresses that are answered for no more", func(s *v1beta1.SpeakerStatus) { s.LocalNetwork = answering() }, "[]"}, // not yet
		{"one that is not, and why", func(s *v1beta1.SpeakerStatus) {
			s.LocalNetwork = answering()
			s.LocalNetwork.Unanswered = []v1beta1.AddressException{{Address: "198.18.0.1", Reason: "no carrier"}}
		}, "[Service default/s0001]"},
		{"one besides", func(s *v1beta1.SpeakerStatus) {
			s.LocalNetwork.Besides = []v1beta1.AddressException{{Address: "198.18.0.2"}}
		}, "[Service default/s0002]"},
		{"a conflict", func(s *v1beta1.SpeakerStatus) {
			s.Conflicts = []v1beta1.AddressConflict{{Address: "198.18.0.1", HardwareAddress: "02:00:00:00:00:99", Interface: "eth0"}}
		}, "[Service default/s0001]"},
		{"nobody's address", func(s *v1beta1.SpeakerStatus) {
			s.LocalNetwork.Besides = []v1beta1.AddressException{{Address: "198.18.9.9"}}
		}, "[]"},
		{"a gate", func(s *v1beta1.SpeakerStatus) { s.Gate = "its Service proxy is not healthy" }, "its"},
		{"a link", func(s *v1beta1.SpeakerStatus) { s.InterfacesDown = s.Interfaces }, "its"},
		{"its own end", func(s *v1beta1.SpeakerStatus) {
			s.Conditions = []metav1.Condition{{Type: v1beta1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1beta1.ReasonEnded}}
		}, "its"},
		{"a session", func(s *v1beta1.SpeakerStatus) { s.Sessions[0].State = "Idle" }, "[BGPPeer tor1]"},
		{"why a session is down", func(s *v1beta1.SpeakerStatus) { s.Sessions[0].LastError = "no route to host" }, "[BGPPeer tor1]"},
		{"a problem", func(s *v1beta1.SpeakerStatus) { s.Problems = []v1beta1.Problem{{Object: "BGPPeer/a", Message: "no"}} }, "[BGPPeer a]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			c := newWriter(s, func() bool { return true })
			bigCluster(s, 3, 9, false, true, true)
			first := s.objects[keyOf(&v1beta1.Speaker{ObjectMeta: metav1.ObjectMeta{Name: "node00"}})].(*v1beta1.Speaker).DeepCopy()
			first.Status.Sessions = []v1beta1.SessionStatus{{Peer: "tor1", State: "Established"}}
			s.set(first)
			if c.write(t.Context()) {
				t.Fatal("cannot write")
			}
			c.due(t.Context()) // the watch's echo of what was written
			next := first.DeepCopy()
			tt.edit(&next.Status)
			s.set(next)
			got := c.due(t.Context())
			if tt.want != "its" {
				if fmt.Sprint(got) != tt.want {
					t.Errorf("looked at: %s, want %s", got, tt.want)
				}
				return
			}
			var addrs []netip.Addr
			for n := range 9 {
				addrs = append(addrs, netip.AddrFrom4([4]byte{198, 18, 0, byte(n)}))
			}
			for _, addr := range ownersOf([]string{"node00", "node01", "node02"}, addrs)["node00"] {
				if key := (objectKey{"Service", "default", fmt.Sprintf("s%04d", addr.As4()[3])}); !slices.Contains(got, key) {
					t.Errorf("looked at: %s, not %s", got, key)
				}
			}
		})
	}
}

// quarantines is a leader of a cluster of the nodes a, b, c and d, of which d announces nothing on the local network, with a
// pool of 256 addresses of which the first so many are of Services.
func quarantines(t *testing.T, count int) *services {
	t.Helper()
	s := &services{
		memory: newMemory(), log: slog.New(slog.DiscardHandler), claims: func(_ netip.Addr, ask func([]announce.Claim)) { ask(nil) },
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]()),
	}
	t.Cleanup(s.queue.ShutDown)
	p := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "lan"}}
	p.Spec.Addresses, p.Spec.ReuseDelay = []v1beta1.AddressRange{"192.0.2.0/24"}, &metav1.Duration{}
	ad := &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "lan"}}
	ad.Spec.NodeSelectors = []metav1.LabelSelector{{MatchLabels: map[string]string{"lan": "yes"}}}
	objects := []client.Object{p, ad}
	for _, name := range []string{"a", "b", "c", "d"} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"lan": map[bool]string{true: "yes"}[name != "d"]}}}
		objects = append(objects, node)
	}
	store := newStore(t)
	for _, o := range objects {
		store.set(o)
	}
	set := allocate.Pools([]v1beta1.IPAddressPool{*p})
	plan, err := planOf(t.Context(), store, []v1beta1.IPAddressPool{*p}, set)
	if err != nil || plan == nil {
		t.Fatal(plan, err)
	}
	s.plan = plan
	s.table.SetPools(set, time.Now())
	for n := range count {
		s.table.Assign(ipam.Request{Service: key{Namespace: "default", Name: fmt.Sprint("s", n)}, Families: []pool.Family{pool.IPv4}}, time.Now())
	}
	return s
}

// TestBeforeUse: which of the claims that speakers report take an address from a Service.
func TestBeforeUse(t *testing.T) {
	conflict := func(addr string, before bool) v1beta1.AddressConflict {
		return v1beta1.AddressConflict{Address: addr, HardwareAddress: "02:00:00:00:00:99", Interface: "eth0", BeforeUse: before}
	}
	all, bc := v1beta1.SpeakerStatus{}, v1beta1.SpeakerStatus{Missing: []string{"a"}}
	heard := v1beta1.SpeakerStatus{Conflicts: []v1beta1.AddressConflict{conflict("192.0.2.1", true)}}
	for _, tt := range []struct {
		name      string
		announced string // of the Services default/s0 and default/s1, which have 192.0.2.0 and 192.0.2.1
		speakers  map[string]v1beta1.SpeakerStatus
		want      string
	}{
		{"before the first announcement", "", map[string]v1beta1.SpeakerStatus{"a": heard, "b": heard, "c": all}, "[192.0.2.1]"},
		{"of an address that another Service had", "s0", map[string]v1beta1.SpeakerStatus{"a": heard, "b": all, "c": all}, "[192.0.2.1]"},
		{"after it", "", map[string]v1beta1.SpeakerStatus{
			"a": {Conflicts: []v1beta1.AddressConflict{conflict("192.0.2.1", false)}}, "b": all, "c": all,
		}, "[]"},
		{"of an address that was announced, though the speaker says it was not", "s1", map[string]v1beta1.SpeakerStatus{"a": heard, "b": all, "c": all}, "[]"},
		{"of an address that nobody has", "", map[string]v1beta1.SpeakerStatus{
			"a": {Conflicts: []v1beta1.AddressConflict{conflict("192.0.2.9", true)}}, "b": all, "c": all,
		}, "[]"},
		{"by a node that announces nothing on the local network", "", map[string]v1beta1.SpeakerStatus{"a": all, "b": all, "c": all, "d": heard}, "[]"},
		{"by a node that is none", "", map[string]v1beta1.SpeakerStatus{"a": all, "b": all, "x": heard}, "[]"},
		{"by a speaker that is dead, as what it wrote last says", "", map[string]v1beta1.SpeakerStatus{"a": heard, "b": bc, "c": bc}, "[]"},
		{"by one that takes the others for foreign hosts, having lost them", "", map[string]v1beta1.SpeakerStatus{
			"a": {Missing: []string{"b", "c"}, Conflicts: heard.Conflicts}, "b": bc, "c": bc,
		}, "[]"},
		{"by a speaker that the one that heard it did not know yet", "", map[string]v1beta1.SpeakerStatus{
			"a": heard, "b": all, "c": {HardwareAddresses: []string{"02:00:00:00:00:99"}},
		}, "[]"},
		{"of nonsense", "", map[string]v1beta1.SpeakerStatus{"a": {Conflicts: []v1beta1.AddressConflict{conflict("nonsense", true)}}}, "[]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			speakers := map[string]*v1beta1.Speaker{}
			for name, status := range tt.speakers {
				speakers[name] = &v1beta1.Speaker{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: status}
			}
			s := quarantines(t, 2)
			s.isAnnounced(netip.MustParseAddr("192.0.2.1"), key{Namespace: "default", Name: tt.announced})
			s.quarantine(claimsIn(speakers, func(string) bool { return false }))
			if got := fmt.Sprint(s.usage()["lan"].Quarantined); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// TestBeforeUseLocal: of the address of a Service with externalTrafficPolicy Local only nodes with endpoints of it have a word.
func TestBeforeUseLocal(t *testing.T) {
	s := quarantines(t, 1)
	addr := netip.MustParseAddr("192.0.2.0")
	svc := &announce.Service{Namespace: "default", Name: "s0", LocalExternal: true, Endpoints4: announce.Endpoints{Ready: map[string]int{"a": 1}}}
	s.claims = func(a netip.Addr, ask func([]announce.Claim)) {
		ask([]announce.Claim{{Service: svc, Type: v1beta1.AddressLoadBalancerIP}})
	}
	for _, tt := range []struct{ node, want string }{{"b", "[]"}, {"a", "[192.0.2.0]"}} {
		s.quarantine([]claim{{node: tt.node, addr: addr}})
		if got := fmt.Sprint(s.usage()["lan"].Quarantined); got != tt.want {
			t.Errorf("on the word of %s: %s, want %s", tt.node, got, tt.want)
		}
	}
}

// TestWasAnnounced: what a controller supposes of the addresses that another one gave.
func TestWasAnnounced(t *testing.T) {
	now := time.Now()
	given := func(ago time.Duration) metav1.Condition {
		return metav1.Condition{Type: v1beta1.ConditionAllocated, Status: metav1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-ago))}
	}
	for _, tt := range []struct {
		name  string
		conds []metav1.Condition
		want  bool
	}{
		{"just given", []metav1.Condition{given(time.Second)}, false},
		{"just given, and announced", []metav1.Condition{given(time.Second), {Type: v1beta1.ConditionAnnounced, Status: metav1.ConditionTrue}}, true},
		{"not announced now, and given long ago", []metav1.Condition{given(time.Hour), {Type: v1beta1.ConditionAnnounced, Status: metav1.ConditionFalse}}, true},
		{"with a wiped status", nil, false},
	} {
		if got := wasAnnounced(&corev1.Service{Status: corev1.ServiceStatus{Conditions: tt.conds}}, now); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}

// TestQuarantineOnWord: a node that was broken into moves few addresses, however fast it takes back what it said.
func TestQuarantineOnWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := quarantines(t, 100)
		lie := func(node string) (again time.Duration) {
			var lies []claim
			for n := range 250 {
				lies = append(lies, claim{node: node, addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})})
			}
			return s.quarantine(lies)
		}
		want := func(what string, n int) {
			t.Helper()
			if got := len(s.usage()["lan"].Quarantined); got != n {
				t.Errorf("%s: %d addresses in quarantine, want %d", what, got, n)
			}
		}
		lie("a")
		want("of all addresses", maxOnWord)
		for range 20 {
			time.Sleep(time.Second)
			s.quarantine(nil)
			lie("a")
			want("again and again", maxOnWord)
		}
		lie("b")
		want("of another node", 2*maxOnWord)
		s.quarantine(nil)
		time.Sleep(ipam.QuarantineTime)
		s.quarantine(nil)
		want("in the end", 0)
		if len(s.reports) > 0 {
			t.Errorf("still remembered: %v", s.reports)
		}
	})
}

// TestQuarantineEnds: the controller wakes for the end of a quarantine though nothing happens, and for nothing else.
func TestQuarantineEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := quarantines(t, 0)
		for n, addr := range []string{"192.0.2.1", "192.0.2.2"} { // they keep what they ask for
			s.table.Assign(ipam.Request{
				Service: key{Namespace: "default", Name: fmt.Sprint("s", n)}, Families: []pool.Family{pool.IPv4}, Addresses: []netip.Addr{netip.MustParseAddr(addr)},
			}, time.Now())
		}
		step := func(what string, again time.Duration, listed string, claims ...claim) {
			t.Helper()
			if got := s.quarantine(claims); got != again {
				t.Errorf("%s: to be called again in %s, want %s", what, got, again)
			}
			if quarantined := s.usage()["lan"].Quarantined; fmt.Sprint(quarantined) != listed {
				t.Errorf("%s: quarantined %s, want %s", what, quarantined, listed)
			}
		}
		x, y := claim{node: "a", addr: netip.MustParseAddr("192.0.2.1")}, claim{node: "a", addr: netip.MustParseAddr("192.0.2.2")}
		step("nothing", 0, "[]")
		step("a foreign host", 0, "[192.0.2.1]", x)
		step("another", 0, "[192.0.2.1 192.0.2.2]", x, y)
		step("one is gone", ipam.QuarantineTime, "[192.0.2.1 192.0.2.2]", y)
		time.Sleep(4 * time.Minute)
		step("the other is gone", ipam.QuarantineTime-4*time.Minute, "[192.0.2.1 192.0.2.2]")
		time.Sleep(ipam.QuarantineTime - 4*time.Minute)
		step("the first end", 4*time.Minute, "[192.0.2.2]")
		step("the other is back", 0, "[192.0.2.2]", y)
		step("and gone", ipam.QuarantineTime, "[192.0.2.2]")
		time.Sleep(ipam.QuarantineTime)
		step("the last end", 0, "[]")
	})
}

// BenchmarkChanges finds out that nothing is to be written when everything might have changed.
func BenchmarkChanges(b *testing.B) {
	for _, bb := range []struct {
		name                    string
		routed, ready, answered bool
	}{
		{"layer2", false, true, true},
		{"layer2 not yet", false, true, false},
		{"bgp", true, true, false},
		{"no endpoints", true, false, false},
	} {
		b.Run(bb.name, func(b *testing.B) {
			s := newStore(b)
			c := newWriter(s, func() bool { return true })
			bigCluster(s, 30, 5000, bb.routed, bb.ready, bb.answered)
			if c.write(b.Context()) {
				b.Fatal("cannot write")
			}
			if s.patches < 5000 {
				b.Fatalf("%d patches", s.patches)
			}
			before := s.patches
			b.ReportAllocs()
			for b.Loop() {
				c.snapshot.MarkAll()
				if c.write(b.Context()) || s.patches > before {
					b.Fatal(s.patches-before, " changes")
				}
			}
		})
	}
}

// BenchmarkSessionChange finds out what one session that goes down or comes up touches.
func BenchmarkSessionChange(b *testing.B) {
	for _, local := range []bool{false, true} {
		b.Run(fmt.Sprintf("local=%v", local), func(b *testing.B) {
			s := newStore(b)
			c := newWriter(s, func() bool { return true })
			bigCluster(s, 200, 10000, true, true, false)
			if local {
				for _, o := range s.objects {
					if svc, is := o.(*corev1.Service); is {
						svc = svc.DeepCopy()
						svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
						s.set(svc)
					}
				}
			}
			c.write(b.Context())
			c.due(b.Context())
			sp := s.speaker("node007")
			touched := 0
			b.ReportAllocs()
			for b.Loop() {
				sp = sp.DeepCopy()
				x := &sp.Status.Sessions[0]
				if x.State = "Active"; touched%2 == 1 {
					x.State = "Established"
				}
				touched++
				c.speaker(sp.Name, sp, false)
				c.due(b.Context())
			}
		})
	}
}

// TestAnnouncedEvents: whoever was warned that a Service is not announced is told when it is, also when a speaker was
// about to announce it in between; who was not is told nothing.
func TestAnnouncedEvents(t *testing.T) {
	s := newStore(t)
	c := newWriter(s, func() bool { return true })
	recorder := c.events.(*events.FakeRecorder)
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}
	cond := func(status metav1.ConditionStatus, reason string) *metav1.Condition {
		return &metav1.Condition{Type: v1beta1.ConditionAnnounced, Status: status, Reason: reason, Message: "m"}
	}
	pending, good, bad := cond("False", v1beta1.ReasonPending), cond("True", v1beta1.ReasonAnnounced), cond("False", v1beta1.ReasonNoEligibleNode)
	contested := cond("True", v1beta1.ReasonAddressConflict)
	var old *metav1.Condition
	for n, step := range []struct {
		now  *metav1.Condition
		want string
	}{
		{pending, ""}, {good, ""}, {bad, "Warning"}, {cond("False", v1beta1.ReasonSessionDown), "Warning"}, {pending, ""}, {good, "Normal"},
		{pending, ""}, {good, ""}, {bad, "Warning"}, {good, "Normal"}, {contested, "Warning"}, {good, "Normal"},
	} {
		c.announcedEvent(objectKey{"Service", "default", "web"}, svc, old, step.now)
		got := ""
		select {
		case text := <-recorder.Events:
			got, _, _ = strings.Cut(text, " ")
		default:
		}
		if got != step.want {
			t.Errorf("step %d, %s: event %q, want %q", n, step.now.Reason, got, step.want)
		}
		old = step.now
	}
}

func (s *store) speaker(name string) *v1beta1.Speaker {
	return s.objects[keyOf(&v1beta1.Speaker{ObjectMeta: metav1.ObjectMeta{Name: name}})].(*v1beta1.Speaker).DeepCopy()
}

// TestOneNodeIsNoNews: where many nodes announce the same Services, no Service is written because one of them loses its
// sessions, or dies.
func TestOneNodeIsNoNews(t *testing.T) {
	s := newStore(t)
	c := newWriter(s, func() bool { return true })
	bigCluster(s, 9, 20, true, true, false)
	if c.write(t.Context()) || s.patches < 20 {
		t.Fatalf("%d patches at first", s.patches)
	}
	step := func(what string, change func()) {
		t.Helper()
		change()
		for _, key := range c.due(t.Context()) {
			before := s.patches
			if _, err := c.conditions.write(t.Context(), key); err != nil || key.kind == "Service" && s.patches > before {
				t.Fatalf("%s: %s is written", what, key)
			}
		}
	}
	step("a node without sessions", func() {
		sp := s.speaker("node03")
		for i := range sp.Status.Sessions {
			sp.Status.Sessions[i].State, sp.Status.Sessions[i].LastError = "Active", "hold timer expired"
		}
		s.set(sp)
	})
	step("a node that is dead", func() {
		sp := s.speaker("node02")
		sp.Status.Missing = []string{"node04"}
		s.set(sp)
	})
	step("one session of each node", func() {
		for i := range 9 {
			sp := s.speaker(fmt.Sprintf("node%02d", i))
			sp.Status.Sessions[i%2].LastError = "hold timer expired"
			if i < 6 {
				sp.Status.Sessions[i%2].State = "Active"
			}
			s.set(sp)
		}
	})
}

// TestPendingEnds: a session that does not come up, and of which nobody says why, is down after a while though nothing
// happens.
func TestPendingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t)
		c := newWriter(s, func() bool { return true })
		bigCluster(s, 2, 1, true, true, false)
		for _, name := range []string{"node00", "node01"} {
			sp := s.speaker(name)
			for i := range sp.Status.Sessions {
				sp.Status.Sessions[i].State, sp.Status.Sessions[i].Since = "Active", &metav1.Time{Time: time.Now()}
			}
			s.set(sp)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = c.Start(ctx)
		}()
		start := time.Now()
		event := <-c.events.(*events.FakeRecorder).Events // that it is pending is none
		if took := time.Since(start); !strings.HasPrefix(event, "Warning SessionDown ") || took < explain.Youth {
			t.Errorf("after %s the event %q", took, event)
		}
		cancel()
		<-ended
	})
}

// TestReady: advice leaves an object ready, and what speakers said before they died does not count.
func TestReady(t *testing.T) {
	s := newStore(t)
	c := newWriter(s, func() bool { return true })
	bigCluster(s, 3, 0, true, true, false)
	tor1 := s.objects[keyOf(&v1beta1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "tor1"}})].DeepCopyObject().(*v1beta1.BGPPeer)
	tor1.Generation++
	tor1.Spec.HoldTime, tor1.Spec.KeepaliveTime = &metav1.Duration{Duration: 9 * time.Second}, &metav1.Duration{Duration: 4 * time.Second}
	s.set(tor1)
	expect := func(want string) {
		t.Helper()
		if c.write(t.Context()) {
			t.Fatal("cannot write")
		}
		got := meta.FindStatusCondition(s.objects[keyOf(tor1)].(*v1beta1.BGPPeer).Status.Conditions, v1beta1.ConditionReady)
		if text := fmt.Sprintf("%s %s: %s", got.Status, got.Reason, got.Message); !strings.HasPrefix(text, want) {
			t.Errorf("Ready is %q, want %q", text, want)
		}
	}
	expect("True Advice: in use as written; spec.keepaliveTime: 4s is more than a third of holdTime 9s")
	sp := s.speaker("node02")
	sp.Status.Problems = []v1beta1.Problem{{Object: "BGPPeer/tor1", Message: "there is no Secret"}}
	s.set(sp)
	expect("False Invalid: there is no Secret (on node02); spec.keepaliveTime: 4s is more")
	sp = s.speaker("node00")
	sp.Status.Missing = []string{"node02"}
	s.set(sp)
	expect("True Advice: ")
}

// A namespace whose webhook hangs delays only itself: the conditions of a thousand Services of another are written within
// the time limit of the fast lane, and those of the first are tried again and again.
func TestHangingWebhook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t)
		var hangs atomic.Bool
		hangs.Store(true)
		s.webhook = func(ctx context.Context, namespace string) error {
			if namespace != "hanging" || !hangs.Load() {
				time.Sleep(time.Millisecond)
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(5 * time.Second):
				return errors.New("the webhook does not answer")
			}
		}
		c := newWriter(s, func() bool { return true })
		n, err := newCounters(prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		c.counters = n
		bigCluster(s, 2, 1000, true, true, false)
		for i := range 100 {
			svc := s.objects[keyOf(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("s%04d", i)}})].DeepCopyObject().(*corev1.Service)
			svc.Namespace = "hanging"
			svc.Status.LoadBalancer.Ingress[0].IP = fmt.Sprintf("198.18.200.%d", i)
			s.set(svc)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = c.Start(ctx)
		}()
		said := func(namespace string) (n int) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, o := range s.objects {
				if svc, is := o.(*corev1.Service); is && svc.Namespace == namespace && meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAnnounced) != nil {
					n++
				}
			}
			return n
		}
		time.Sleep(conditionsDelay + fastLimit + 100*time.Millisecond)
		if n := said("default"); n != 1000 {
			t.Errorf("%d of 1000 Services know that they are announced", n)
		}
		if n := said("hanging"); n != 0 {
			t.Errorf("%d Services of the namespace that hangs know it", n)
		}
		hangs.Store(false)
		time.Sleep(2 * retryMost)
		if n := said("hanging"); n != 100 {
			t.Errorf("%d of 100 Services of the namespace that hung know it", n)
		}
		cancel()
		<-ended
	})
}
