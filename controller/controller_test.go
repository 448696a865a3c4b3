package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
	"github.com/clarionlb/clarion/test/lab"
)

// These tests run the controller as its Deployment does, as processes with the rights of its ServiceAccount, against a
// real kube-apiserver.

var stopFor = flag.Duration("stop", 0, "how long a leader stays stopped after another has taken over")

// asController makes the test binary run the controller instead of tests.
const asController = "CLARION_TEST_CONTROLLER"

var cluster *lab.Lab // nil when not root, and while fuzzing

func TestMain(m *testing.M) {
	if os.Getenv(asController) != "" {
		main()
		return
	}
	flag.Parse()
	fuzzing := flag.Lookup("test.fuzz").Value.String() != "" || flag.Lookup("test.fuzzworker").Value.String() == "true"
	if os.Geteuid() != 0 || fuzzing {
		os.Exit(m.Run())
	}
	code, err := withCluster(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "controller:", err)
		code = 1
	}
	os.Exit(code)
}

func withCluster(m *testing.M) (code int, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1beta1.AddToScheme(scheme)); err != nil {
		return 0, err
	}
	cluster = lab.New(lab.Options{Name: "controller", ControlPlaneOnly: true, Scheme: scheme, Progress: os.Stderr})
	if err := cluster.Up(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, cluster.Down()) }()
	if out, err := cluster.Kubectl(ctx, "apply", "-k", filepath.Join(cluster.Root(), "config", "default")); err != nil {
		return 0, fmt.Errorf("%w\n%s", err, out)
	}
	if out, err := cluster.Kubectl(ctx, "wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"); err != nil {
		return 0, fmt.Errorf("%w\n%s", err, out)
	}
	return m.Run(), nil
}

// api is the cluster with nothing of earlier tests in it.
type api struct {
	client.Client
	t testing.TB
}

func newAPI(t testing.TB) *api {
	t.Helper()
	if cluster == nil {
		t.Skip("needs root: the lab that runs the API server makes network namespaces")
	}
	a := &api{cluster.Client(), t}
	a.clear()
	t.Cleanup(a.clear)
	return a
}

// clear deletes what tests make. No controller may be running.
func (a *api) clear() {
	ctx := context.Background()
	var svcs corev1.ServiceList
	a.ok(a.List(ctx, &svcs))
	for i := range svcs.Items {
		if svc := &svcs.Items[i]; svc.Name != "kubernetes" {
			a.ok(client.IgnoreNotFound(a.Delete(ctx, svc)))
		}
	}
	var pools v1beta1.IPAddressPoolList
	a.ok(a.List(ctx, &pools))
	for i := range pools.Items { // nothing says any more that its addresses are in use
		pools.Items[i].Status = v1beta1.IPAddressPoolStatus{}
		a.ok(a.Status().Update(ctx, &pools.Items[i]))
	}
	a.ok(a.DeleteAllOf(ctx, &v1beta1.IPAddressPool{}))
	a.ok(a.DeleteAllOf(ctx, &corev1.Node{}))
	a.ok(a.DeleteAllOf(ctx, &v1beta1.Speaker{}))
	a.ok(a.DeleteAllOf(ctx, &v1beta1.L2Advertisement{}))
	a.ok(client.IgnoreNotFound(a.Delete(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: lab.Namespace, Name: v1beta1.LeaseName}})))
}

func (a *api) ok(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

// run starts a controller that ends with the test.
func (a *api) run(name string, args ...string) *lab.Process {
	a.t.Helper()
	kubeconfig, err := cluster.Kubeconfig(context.Background(), "system:serviceaccount:"+lab.Namespace+":controller")
	a.ok(err)
	self, err := os.Executable()
	a.ok(err)
	command := append([]string{self, "--kubeconfig=" + kubeconfig, "--metrics-bind-address=0", "--health-probe-bind-address=0"}, args...)
	if old := cluster.Process("control", name); old != nil { // of another test, with its own log
		a.ok(os.Remove(old.Log()))
	}
	p, err := cluster.Start("control", name, command, asController+"=1", "POD_NAMESPACE="+lab.Namespace)
	a.ok(err)
	a.t.Cleanup(func() {
		p.Signal(syscall.SIGCONT)
		p.Kill()
		if a.t.Failed() {
			if log, err := os.ReadFile(p.Log()); err == nil {
				a.t.Logf("log of %s:\n%s", name, tail(string(log), 60))
			}
		}
	})
	return p
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// fetch gets a page from a server beside the API server.
func (a *api) fetch(url string) string {
	a.t.Helper()
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return cluster.Dial(ctx, "control", network, address)
	}}}
	defer c.CloseIdleConnections()
	resp, err := c.Get(url)
	a.ok(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	a.ok(err)
	return string(b)
}

func (a *api) eventually(f func() error) {
	a.t.Helper()
	if err := lab.Eventually(context.Background(), 20*time.Second, f); err != nil {
		a.t.Fatal(err)
	}
}

// pool makes a pool without a reuse delay, or changes it.
func (a *api) pool(name string, edit func(*v1beta1.IPAddressPoolSpec), addresses ...v1beta1.AddressRange) {
	a.t.Helper()
	p := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: name}}
	p.Spec.Addresses = addresses
	p.Spec.ReuseDelay = &metav1.Duration{}
	if edit != nil {
		edit(&p.Spec)
	}
	err := a.Create(context.Background(), p)
	if !apierrors.IsAlreadyExists(err) {
		a.ok(err)
		return
	}
	var old v1beta1.IPAddressPool
	a.ok(a.Get(context.Background(), client.ObjectKey{Name: name}, &old))
	old.Spec = p.Spec
	a.ok(a.Update(context.Background(), &old))
}

// service makes a Service of type LoadBalancer in the namespace default.
func (a *api) service(name string, edit func(*corev1.Service)) *corev1.Service {
	a.t.Helper()
	svc := newService(name)
	if edit != nil {
		edit(svc)
	}
	a.ok(a.Create(context.Background(), svc))
	return svc
}

func newService(name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{
			Type:  corev1.ServiceTypeLoadBalancer,
			Ports: []corev1.ServicePort{{Port: 80}},
			// Kubernetes does not give node ports to thousands of Services.
			AllocateLoadBalancerNodePorts: new(false),
		},
	}
}

func (a *api) get(name string) *corev1.Service {
	a.t.Helper()
	svc := &corev1.Service{}
	a.ok(a.Get(context.Background(), client.ObjectKey{Namespace: "default", Name: name}, svc))
	return svc
}

// update changes a Service's spec and metadata.
func (a *api) update(name string, edit func(*corev1.Service)) {
	a.t.Helper()
	a.eventually(func() error {
		svc := a.get(name)
		edit(svc)
		return a.Update(context.Background(), svc)
	})
}

// wants waits until a Service has just these addresses and its condition has that reason, and all the words in its
// message. It returns the Service.
func (a *api) wants(name, reason string, addresses []string, words ...string) *corev1.Service {
	a.t.Helper()
	var svc *corev1.Service
	a.eventually(func() error {
		svc = a.get(name)
		c := meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAllocated)
		var got []string
		for _, i := range svc.Status.LoadBalancer.Ingress {
			if i.IPMode == nil || *i.IPMode != corev1.LoadBalancerIPModeVIP {
				return fmt.Errorf("%s: ipMode of %s is %v", name, i.IP, i.IPMode)
			}
			got = append(got, i.IP)
		}
		if c == nil || c.Reason != reason || !slices.Equal(got, addresses) {
			return fmt.Errorf("%s has %v and %v, want %v and reason %s", name, got, c, addresses, reason)
		}
		for _, w := range words {
			if !strings.Contains(c.Message, w) {
				return fmt.Errorf("%s: message %q lacks %q", name, c.Message, w)
			}
		}
		return nil
	})
	return svc
}

// condition waits for a condition of a pool.
func (a *api) condition(name, typ string, status metav1.ConditionStatus, words ...string) {
	a.t.Helper()
	a.eventually(func() error {
		var p v1beta1.IPAddressPool
		if err := a.Get(context.Background(), client.ObjectKey{Name: name}, &p); err != nil {
			return err
		}
		c := meta.FindStatusCondition(p.Status.Conditions, typ)
		if c == nil || c.Status != status || c.ObservedGeneration != p.Generation {
			return fmt.Errorf("pool %s generation %d: condition %s is %v, want %s", name, p.Generation, typ, c, status)
		}
		for _, w := range words {
			if !strings.Contains(c.Reason+" "+c.Message, w) {
				return fmt.Errorf("pool %s: condition %s %q lacks %q", name, c.Reason, c.Message, w)
			}
		}
		return nil
	})
}

func TestAllocation(t *testing.T) {
	a := newAPI(t)
	a.pool("lan", nil, "203.0.113.0/29", "2001:db8::/64")
	a.run("controller", "--metrics-bind-address=127.0.0.1:9120")
	a.service("v4", nil)
	a.wants("v4", "Allocated", []string{"203.0.113.0"}, "from pool lan")
	a.service("dual", func(s *corev1.Service) {
		s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
	})
	a.wants("dual", "Allocated", []string{"2001:db8::", "203.0.113.1"})
	a.service("asks", func(s *corev1.Service) { s.Annotations[v1beta1.AnnotationAddresses] = "203.0.113.5" })
	a.wants("asks", "Allocated", []string{"203.0.113.5"})
	a.service("alias", func(s *corev1.Service) { s.Annotations["metallb.io/loadBalancerIPs"] = "203.0.113.6" })
	a.wants("alias", "Allocated", []string{"203.0.113.6"})
	a.service("field", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "203.0.113.6" })
	a.wants("field", "AddressInUse", nil, "default/alias")
	a.service("nonsense", func(s *corev1.Service) { s.Annotations[v1beta1.AnnotationAddresses] = "203.0.113" })
	a.wants("nonsense", "InvalidRequest", nil, v1beta1.AnnotationAddresses, `"203.0.113" is not an IP address`)
	a.service("classy", func(s *corev1.Service) { s.Spec.LoadBalancerClass = new(v1beta1.LoadBalancerClass) })
	a.wants("classy", "Allocated", []string{"203.0.113.2"})

	// The pool says how full it is, and events say what happened, once.
	a.eventually(func() error {
		var p v1beta1.IPAddressPool
		a.ok(a.Get(t.Context(), client.ObjectKey{Name: "lan"}, &p))
		s := p.Status
		if s.AssignedIPv4 != 5 || s.AvailableIPv4 != 3 || s.AssignedIPv6 != 1 || s.AvailableIPv6 != 1<<63-1 {
			return fmt.Errorf("pool status is %+v", s)
		}
		return nil
	})
	a.condition("lan", v1beta1.ConditionReady, metav1.ConditionTrue)
	a.eventually(func() error {
		var events eventsv1.EventList
		a.ok(a.List(t.Context(), &events, client.InNamespace("default")))
		got := map[string]int{}
		for _, e := range events.Items {
			if uid := e.Regarding.UID; uid == a.get("v4").UID || uid == a.get("field").UID {
				got[e.Regarding.Name+" "+e.Reason]++
			}
		}
		if len(got) != 2 || got["v4 Allocated"] != 1 || got["field AddressInUse"] != 1 {
			return fmt.Errorf("events: %v", got)
		}
		return nil
	})

	a.eventually(func() error { // what others read from the cache may come a moment later
		metrics := a.fetch("http://127.0.0.1:9120/metrics")
		for _, want := range []string{
			`clarion_pool_addresses{family="IPv4",pool="lan"} 8`,
			`clarion_pool_addresses_assigned{family="IPv4",pool="lan"} 5`,
			`clarion_pool_addresses_available{family="IPv4",pool="lan"} 3`,
			`clarion_pool_addresses_assigned{family="IPv6",pool="lan"} 1`,
			`clarion_allocations_total 5`,
			`clarion_allocation_failures_total{reason="AddressInUse"} 1`,
			`clarion_allocation_failures_total{reason="InvalidRequest"} 1`,
			`clarion_allocation_duration_seconds_count 5`,
			`clarion_services{condition="Allocated",reason="AddressInUse",status="False"} 1`,
			`clarion_config_ready{kind="IPAddressPool",name="lan"} 1`,
		} {
			if !strings.Contains(metrics, want+"\n") {
				return fmt.Errorf("metrics lack %s", want)
			}
		}
		return nil
	})

	// What goes frees its addresses for those that wait.
	a.ok(a.Delete(t.Context(), a.get("alias")))
	a.wants("field", "Allocated", []string{"203.0.113.6"})
	a.update("field", func(s *corev1.Service) { s.Spec.Type, s.Spec.LoadBalancerIP = corev1.ServiceTypeClusterIP, "" })
	a.eventually(func() error {
		svc := a.get("field")
		if len(svc.Status.LoadBalancer.Ingress) > 0 || len(svc.Status.Conditions) > 0 {
			return fmt.Errorf("status of a ClusterIP Service is %+v", svc.Status)
		}
		return nil
	})
	a.service("next", func(s *corev1.Service) { s.Annotations[v1beta1.AnnotationAddresses] = "203.0.113.6" })
	a.wants("next", "Allocated", []string{"203.0.113.6"})
	// The API server drops the class with the type; the address is free all the same.
	a.update("classy", func(s *corev1.Service) { s.Spec.Type, s.Spec.LoadBalancerClass = corev1.ServiceTypeClusterIP, nil })
	a.service("next2", func(s *corev1.Service) { s.Annotations[v1beta1.AnnotationAddresses] = "203.0.113.2" })
	a.wants("next2", "Allocated", []string{"203.0.113.2"})
}

// TestNoClass: a Service that nobody serves tells its user so, and is left alone beside. One that another controller has
// served says nothing.
func TestNoClass(t *testing.T) {
	a := newAPI(t)
	a.pool("lan", nil, "203.0.113.0/29")
	a.run("controller", "--default-class=false")
	a.service("served", nil)
	served := a.get("served")
	served.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.77"}}
	a.ok(a.Status().Update(t.Context(), served))
	a.service("plain", func(s *corev1.Service) { s.Spec.LoadBalancerClass = new("clarionlb.io/clarino") })
	plain := a.get("plain")
	a.eventually(func() error {
		var events eventsv1.EventList
		a.ok(a.List(t.Context(), &events, client.InNamespace("default")))
		found := false
		for _, e := range events.Items {
			switch {
			case e.Regarding.UID == served.UID:
				t.Fatalf("%s: %s", e.Reason, e.Note)
			case e.Regarding.UID == plain.UID && e.Reason == "OtherClass" && strings.Contains(e.Note, `has the loadBalancerClass "clarionlb.io/clarino"`) && strings.Contains(e.Note, `"clarionlb.io/clarion"`):
				found = true
			}
		}
		if !found {
			return errors.New("nobody told the user of the class")
		}
		return nil
	})
	if now := a.get("plain"); now.ResourceVersion != plain.ResourceVersion {
		t.Errorf("the Service was written: %+v", now.Status)
	}
}

// TestTypeChangedMeanwhile: what a Service's status says is taken back though its type changed while nobody led.
func TestTypeChangedMeanwhile(t *testing.T) {
	a := newAPI(t)
	a.pool("lan", nil, "203.0.113.0/29")
	first := a.run("controller")
	a.service("web", nil)
	a.wants("web", "Allocated", []string{"203.0.113.0"})
	a.ok(first.Stop())
	a.update("web", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	a.run("controller")
	a.eventually(func() error {
		if svc := a.get("web"); len(svc.Status.LoadBalancer.Ingress) > 0 || len(svc.Status.Conditions) > 0 {
			return fmt.Errorf("status of a ClusterIP Service is %+v", svc.Status)
		}
		return nil
	})
}

// TestNodeAddresses: what a node has is given to no Service; a Service that has it first keeps it.
func TestNodeAddresses(t *testing.T) {
	a := newAPI(t)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}}
	a.ok(a.Create(t.Context(), node))
	has := func(address string) {
		t.Helper()
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
		a.ok(a.Status().Update(t.Context(), node))
	}
	has("203.0.113.0")
	a.pool("lan", nil, "203.0.113.0/29")
	a.service("web", nil)
	a.service("asks", func(s *corev1.Service) { s.Annotations[v1beta1.AnnotationAddresses] = "203.0.113.0" })
	first := a.run("controller")
	a.wants("web", "Allocated", []string{"203.0.113.1"})
	a.wants("asks", "AddressInUse", nil, "203.0.113.0 is requested, but the cluster itself has it")
	has("203.0.113.1")
	a.wants("web", "OutOfPool", []string{"203.0.113.1"}, "the cluster itself has it")
	a.wants("asks", "Allocated", []string{"203.0.113.0"})
	a.condition("lan", v1beta1.ConditionConflict, metav1.ConditionTrue, "NodeAddress", "203.0.113.1: belongs to node node1")
	a.ok(first.Stop())
	before := a.statuses()
	a.run("controller")
	a.service("next", nil)
	a.wants("next", "Allocated", []string{"203.0.113.2"})
	after := a.statuses()
	delete(after, "next")
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("the restart changed\n%v to\n%v", before, after)
	}
}

func TestNotOurs(t *testing.T) {
	a := newAPI(t)
	a.pool("lan", nil, "203.0.113.0/29")
	a.service("other-class", func(s *corev1.Service) { s.Spec.LoadBalancerClass = new("example.com/lb") })
	status := func(name string, ingress corev1.LoadBalancerIngress) {
		svc := a.get(name)
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{ingress}
		svc.Status.Conditions = []metav1.Condition{{Type: "example.com/Theirs", Status: "True", Reason: "Theirs", LastTransitionTime: metav1.Now()}}
		a.ok(a.Status().Update(t.Context(), svc))
	}
	a.service("theirs", nil)
	status("theirs", corev1.LoadBalancerIngress{IP: "192.0.2.77"})
	a.service("hostname", nil)
	status("hostname", corev1.LoadBalancerIngress{Hostname: "lb.example.com"})
	a.service("adopted", nil)
	status("adopted", corev1.LoadBalancerIngress{IP: "203.0.113.3"})
	before := map[string]string{}
	for _, n := range []string{"other-class", "theirs", "hostname"} {
		before[n] = a.get(n).ResourceVersion
	}
	a.run("controller")
	a.service("a", nil)
	a.wants("a", "Allocated", []string{"203.0.113.0"})
	a.eventually(func() error {
		svc := a.get("adopted")
		if !allocate.Managed(svc) || meta.FindStatusCondition(svc.Status.Conditions, "example.com/Theirs") == nil || svc.Status.LoadBalancer.Ingress[0].IP != "203.0.113.3" {
			return fmt.Errorf("status is %+v", svc.Status)
		}
		return nil
	})
	for n, v := range before {
		if got := a.get(n).ResourceVersion; got != v {
			t.Errorf("%s was written: %+v", n, a.get(n).Status)
		}
	}
	theirs := a.get("theirs")
	a.eventually(func() error {
		var events eventsv1.EventList
		a.ok(a.List(t.Context(), &events, client.InNamespace("default")))
		for _, e := range events.Items {
			if e.Regarding.UID == theirs.UID && e.Reason == "OtherController" && strings.Contains(e.Note, "192.0.2.77") {
				return nil
			}
		}
		return errors.New("nobody told the user why the Service is left alone")
	})
}

func TestPoolConditions(t *testing.T) {
	a := newAPI(t)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}}
	a.ok(a.Create(t.Context(), node))
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "198.51.100.7"}}
	a.ok(a.Status().Update(t.Context(), node))
	a.pool("a", nil, "203.0.113.0/29")
	a.pool("b", nil, "203.0.113.4-203.0.113.9", "2001:db8::/64")
	a.pool("c", nil, "198.51.100.0/28")
	a.pool("d", nil, "10.96.0.0/24")
	a.run("controller")
	a.condition("a", v1beta1.ConditionReady, metav1.ConditionTrue)
	a.condition("b", v1beta1.ConditionReady, metav1.ConditionFalse, "PoolOverlap", "203.0.113.4-203.0.113.7: belongs to pool a", "the rest of this pool is in use")
	a.condition("b", v1beta1.ConditionConflict, metav1.ConditionTrue, "PoolOverlap")
	a.condition("c", v1beta1.ConditionReady, metav1.ConditionTrue)
	a.condition("c", v1beta1.ConditionConflict, metav1.ConditionTrue, "NodeAddress", "198.51.100.7: belongs to node node1")
	a.condition("d", v1beta1.ConditionConflict, metav1.ConditionTrue, "ServiceCIDR kubernetes")
	a.pool("e", func(s *v1beta1.IPAddressPoolSpec) {
		s.Reservations = []v1beta1.Reservation{{Address: "192.0.2.1", Namespace: "default", Name: "x"}}
	}, "203.0.113.64/30")
	a.condition("e", v1beta1.ConditionReady, metav1.ConditionFalse, "Invalid", "spec.reservations[0].address", "192.0.2.1 is not in spec.addresses")
	a.pool("e", func(s *v1beta1.IPAddressPoolSpec) {
		s.Reservations = []v1beta1.Reservation{{Address: "203.0.113.65", Namespace: "default", Name: "x"}}
		s.ExcludeAddresses = []v1beta1.AddressRange{"203.0.113.65"}
	}, "203.0.113.64/30")
	a.condition("e", v1beta1.ConditionReady, metav1.ConditionTrue, "in use as written; the reservation of 203.0.113.65 has no effect: pool e excludes it")
	a.pool("a", nil, "203.0.113.0/30")
	a.condition("b", v1beta1.ConditionReady, metav1.ConditionTrue)
	a.eventually(func() error {
		var p v1beta1.IPAddressPool
		a.ok(a.Get(t.Context(), client.ObjectKey{Name: "b"}, &p))
		if c := meta.FindStatusCondition(p.Status.Conditions, v1beta1.ConditionConflict); c != nil {
			return fmt.Errorf("the conflict is over, but still said: %v", c)
		}
		return nil
	})
}

func TestMembersKey(t *testing.T) {
	a := newAPI(t)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: lab.Namespace, Name: membersSecret}}
	a.ok(client.IgnoreNotFound(a.Delete(t.Context(), secret)))
	first := a.run("controller")
	a.eventually(func() error { return a.Get(t.Context(), client.ObjectKeyFromObject(secret), secret) })
	made := string(secret.Data[membersKeys])
	if len(made) != 45 || strings.Count(made, "\n") != 1 {
		t.Errorf("the key is %d characters long, want a line of 44", len(made))
	}
	a.ok(first.Stop())
	second := a.run("controller")
	a.service("a", nil)
	a.wants("a", "NoMatchingPool", nil, "there is no IPAddressPool: create one")
	a.ok(a.Get(t.Context(), client.ObjectKeyFromObject(secret), secret))
	if string(secret.Data[membersKeys]) != made {
		t.Error("a restart replaced the key")
	}
	a.ok(second.Stop())
}

// TestPoisonedService has an admission policy refuse every status of one Service, as a broken webhook does. Others do
// not notice.
func TestPoisonedService(t *testing.T) {
	a := newAPI(t)
	a.pool("lan", nil, "203.0.113.0/28")
	a.ok(cluster.Apply(t.Context(), poisonPolicy))
	t.Cleanup(func() { a.ok(cluster.Delete(context.Background(), poisonPolicy)) })
	poison := func(s *corev1.Service) { s.Labels = map[string]string{"poison": "yes"} }
	a.service("a-poisoned", poison)
	a.eventually(func() error { // the policy takes a moment to be enforced
		svc := a.get("a-poisoned")
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
		if err := a.Status().Update(t.Context(), svc, client.DryRunAll); !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) {
			return fmt.Errorf("the policy is not in force: %v", err)
		}
		return nil
	})
	a.run("controller")
	for n := range 8 {
		a.service(fmt.Sprint("good", n), nil)
	}
	seen := map[string]bool{"203.0.113.0": true} // what the poisoned one would have
	for n := range 8 {
		a.eventually(func() error {
			if len(a.get(fmt.Sprint("good", n)).Status.LoadBalancer.Ingress) == 0 {
				return errors.New("waits")
			}
			return nil
		})
		ip := a.get(fmt.Sprint("good", n)).Status.LoadBalancer.Ingress[0].IP
		if seen[ip] {
			t.Errorf("%s is given twice", ip)
		}
		seen[ip] = true
	}
	if allocate.Managed(a.get("a-poisoned")) {
		t.Error("the policy did not work")
	}
	a.eventually(func() error {
		var events eventsv1.EventList
		a.ok(a.List(t.Context(), &events, client.InNamespace("default")))
		for _, e := range events.Items {
			if e.Regarding.Name == "a-poisoned" && e.Reason == "StatusRejected" && strings.Contains(e.Note, "poisoned for the test") {
				return nil
			}
		}
		return errors.New("no event about the poisoned Service")
	})
	// When it can be written at last, it is.
	a.update("a-poisoned", func(s *corev1.Service) { s.Labels = nil })
	a.wants("a-poisoned", "Allocated", []string{"203.0.113.0"})
}

const poisonPolicy = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: poison}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
    - {apiGroups: [""], apiVersions: [v1], operations: [UPDATE], resources: [services/status]}
  validations:
  - expression: "!has(object.metadata.labels) || !('poison' in object.metadata.labels)"
    message: poisoned for the test
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: poison}
spec:
  policyName: poison
  validationActions: [Deny]
`

// statuses is everything about Services that a controller could have changed.
func (a *api) statuses() map[string]string {
	out := map[string]string{}
	var list corev1.ServiceList
	a.ok(a.List(context.Background(), &list))
	for i := range list.Items {
		svc := &list.Items[i]
		if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			out[svc.Name] = fmt.Sprint(svc.ResourceVersion, allocate.Ingress(svc))
		}
	}
	return out
}

// unique fails the test when two Services have one address, and waits until all have one.
func (a *api) unique() {
	a.t.Helper()
	a.eventually(func() error {
		var list corev1.ServiceList
		a.ok(a.List(context.Background(), &list))
		has := map[netip.Addr]string{}
		for i := range list.Items {
			svc := &list.Items[i]
			if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
				continue
			}
			addrs := allocate.Ingress(svc)
			if len(addrs) == 0 {
				return fmt.Errorf("%s has no address", svc.Name)
			}
			for _, addr := range addrs {
				if other := has[addr]; other != "" {
					a.t.Fatalf("%s and %s both have %s", other, svc.Name, addr)
				}
				has[addr] = svc.Name
			}
		}
		return nil
	})
}

// TestRestart: a controller that starts writes nothing that is there already, and pending Services do not take what
// others have.
func TestRestart(t *testing.T) {
	a := newAPI(t)
	a.pool("lan", nil, "203.0.113.0/27")
	first := a.run("controller")
	for n := range 20 {
		a.service(fmt.Sprintf("s%02d", n), nil)
	}
	a.unique()
	for n := range 5 {
		a.ok(a.Delete(t.Context(), a.get(fmt.Sprintf("s%02d", n))))
	}
	a.service("wants", func(s *corev1.Service) {
		s.Annotations[v1beta1.AnnotationAddresses] = a.get("s19").Status.LoadBalancer.Ingress[0].IP
	})
	a.wants("wants", "AddressInUse", nil)
	a.ok(first.Stop())
	before := a.statuses()
	a.service("new", nil)
	second := a.run("controller")
	a.wants("new", "Allocated", []string{"203.0.113.0"})
	after := a.statuses()
	delete(after, "new")
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("the restart changed\n%v to\n%v", before, after)
	}
	a.ok(second.Stop())
}

// TestKept: what Services keep of a pool that was made smaller the pool's status lists, as long as they have it, and the
// next controller knows it too.
func TestKept(t *testing.T) {
	a := newAPI(t)
	a.pool("lan", nil, "203.0.113.0/29")
	first := a.run("controller")
	a.service("web", nil)
	a.wants("web", "Allocated", []string{"203.0.113.0"})
	edit := func(f func(*v1beta1.IPAddressPoolSpec)) {
		var o v1beta1.IPAddressPool
		a.ok(a.Get(t.Context(), client.ObjectKey{Name: "lan"}, &o))
		f(&o.Spec)
		a.ok(a.Update(t.Context(), &o))
	}
	kept := func(want ...string) {
		t.Helper()
		a.eventually(func() error {
			var o v1beta1.IPAddressPool
			a.ok(a.Get(t.Context(), client.ObjectKey{Name: "lan"}, &o))
			if !slices.Equal(o.Status.Kept, want) {
				return fmt.Errorf("kept is %v, want %v", o.Status.Kept, want)
			}
			return nil
		})
	}
	edit(func(s *v1beta1.IPAddressPoolSpec) { s.Addresses = []v1beta1.AddressRange{"203.0.113.4/30"} })
	a.wants("web", "OutOfPool", []string{"203.0.113.0"})
	kept("203.0.113.0")
	a.ok(first.Stop())
	a.run("controller")
	a.service("next", nil)
	a.wants("next", "Allocated", []string{"203.0.113.4"})
	kept("203.0.113.0")
	// The pool is still the one whose word counts.
	edit(func(s *v1beta1.IPAddressPoolSpec) { s.OnShrink = v1beta1.ShrinkReallocate })
	a.wants("web", "Allocated", []string{"203.0.113.5"})
	kept()
}

// fast is the documented setting for a failover within three seconds.
var fast = []string{"--lease-duration=2s", "--lease-renew-deadline=1500ms", "--lease-retry-period=500ms"}

// TestBeside: what other controllers' Services and external IPs have is given to nobody, with a default class and without,
// before and after a restart; and what was just released rests, whoever leads.
func TestBeside(t *testing.T) {
	a := newAPI(t)
	a.pool("lan", func(s *v1beta1.IPAddressPoolSpec) { s.ReuseDelay = &metav1.Duration{Duration: time.Hour} }, "203.0.113.0/29")
	give := func(name, addr string) {
		a.service(name, func(s *corev1.Service) { s.Spec.LoadBalancerClass = new("example.com/other") })
		svc := a.get(name)
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: addr}}
		a.ok(a.Status().Update(t.Context(), svc))
	}
	ours := func(name string) {
		a.service(name, func(s *corev1.Service) { s.Spec.LoadBalancerClass = new("example.com/ours") })
	}
	give("before", "203.0.113.0")
	a.service("outside", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalIPs, s.Spec.AllocateLoadBalancerNodePorts = corev1.ServiceTypeClusterIP, []string{"203.0.113.1"}, nil
	})
	flags := []string{"--default-class=false", "--load-balancer-class=example.com/ours"}
	first := a.run("controller", flags...)
	ours("one")
	a.wants("one", "Allocated", []string{"203.0.113.2"})
	give("after", "203.0.113.3")
	ours("two")
	a.wants("two", "Allocated", []string{"203.0.113.4"})
	a.ok(a.Delete(t.Context(), a.get("one")))
	a.eventually(func() error {
		var p v1beta1.IPAddressPool
		a.ok(a.Get(t.Context(), client.ObjectKey{Name: "lan"}, &p))
		if r := p.Status.Resting; len(r) != 1 || r[0].Address != "203.0.113.2" || r[0].Service != "default/one" {
			return fmt.Errorf("resting: %v", r)
		}
		return nil
	})
	var lease coordinationv1.Lease
	a.ok(a.Get(t.Context(), client.ObjectKey{Namespace: lab.Namespace, Name: v1beta1.LeaseName}, &lease))
	if got := lease.Annotations; got[v1beta1.AnnotationClass] != "example.com/ours" || got[v1beta1.AnnotationDefaultClass] != "false" || got[v1beta1.AnnotationVersion] == "" {
		t.Errorf("the controller says of itself %v", got)
	}
	a.ok(first.Stop())
	a.run("controller", flags...)
	ours("three")
	a.wants("three", "Allocated", []string{"203.0.113.5"})
	a.service("thief", func(s *corev1.Service) {
		s.Spec.LoadBalancerClass, s.Annotations[v1beta1.AnnotationAddresses] = new("example.com/ours"), "203.0.113.2"
	})
	a.wants("thief", "AddressResting", nil)
}

// TestTwoControllers: one leads and the other waits; when the first is stopped in the middle of its work, killed or
// asked to end, the other goes on, and nothing is given twice or moves.
func TestTwoControllers(t *testing.T) {
	a := newAPI(t)
	a.pool("lan", nil, "198.18.0.0/16")
	procs := map[string]*lab.Process{"one": a.run("one", fast...), "two": a.run("two", fast...)}
	n := 0
	more := func(count int) {
		for range count {
			a.service(fmt.Sprintf("s%03d", n), nil)
			n++
		}
	}
	more(20)
	a.unique()
	for round, how := range []func(*lab.Process){
		func(p *lab.Process) { p.Signal(syscall.SIGSTOP) },
		func(p *lab.Process) { p.Kill() },
		func(p *lab.Process) { p.Signal(syscall.SIGTERM) },
	} {
		leader := a.leader(procs)
		before := a.statuses()
		more(10) // it may be deciding on these just now
		start := time.Now()
		how(procs[leader])
		more(20)
		a.unique()
		t.Logf("round %d: all had addresses %s after the leader was stopped", round, time.Since(start).Round(time.Millisecond))
		if got := a.leader(procs); got == leader {
			t.Errorf("round %d: %s still leads", round, leader)
		}
		if round == 0 {
			time.Sleep(*stopFor)
		}
		procs[leader].Signal(syscall.SIGCONT)
		more(20)
		a.unique()
		after := a.statuses()
		for name, was := range before {
			if after[name] != was {
				t.Errorf("round %d: %s changed from %s to %s", round, name, was, after[name])
			}
		}
		if !procs[leader].Alive() || round == 2 {
			<-procs[leader].Done()
			procs[leader] = a.run(fmt.Sprint(leader, round), fast...)
		}
	}
}

// leader is the name of the controller that holds the lease.
func (a *api) leader(procs map[string]*lab.Process) string {
	a.t.Helper()
	name := ""
	a.eventually(func() error {
		var lease coordinationv1.Lease
		if err := a.Get(context.Background(), client.ObjectKey{Namespace: lab.Namespace, Name: v1beta1.LeaseName}, &lease); err != nil {
			return err
		}
		for n, p := range procs {
			log, err := os.ReadFile(p.Log())
			a.ok(err)
			if id := lease.Spec.HolderIdentity; id != nil && *id != "" && strings.Contains(string(log), "identity="+*id) {
				name = n
				return nil
			}
		}
		return fmt.Errorf("nobody known leads: %v", lease.Spec.HolderIdentity)
	})
	return name
}

// TestOutage: a controller outlives an API server that is away for longer than its lease, and goes on when it is back.
func TestOutage(t *testing.T) {
	a := newAPI(t)
	a.pool("lan", nil, "203.0.113.0/29")
	p := a.run("controller", append(fast, "--metrics-bind-address=127.0.0.1:9120", "--health-probe-bind-address=127.0.0.1:8081")...)
	a.service("before", nil)
	a.wants("before", "Allocated", []string{"203.0.113.0"})
	server := cluster.Process("control", "kube-apiserver")
	server.Signal(syscall.SIGSTOP)
	t.Cleanup(func() { server.Signal(syscall.SIGCONT) })
	a.eventually(func() error {
		log, err := os.ReadFile(p.Log())
		a.ok(err)
		if !strings.Contains(string(log), "the lease is lost") {
			return errors.New("the controller does not notice")
		}
		return nil
	})
	server.Signal(syscall.SIGCONT)
	a.service("after", nil)
	a.wants("after", "Allocated", []string{"203.0.113.1"})
	a.wants("before", "Allocated", []string{"203.0.113.0"})
	if got := a.fetch("http://127.0.0.1:8081/readyz"); got != "ok" {
		t.Errorf("readyz says %s", got)
	}
	if got := a.fetch("http://127.0.0.1:9120/metrics"); !strings.Contains(got, `clarion_pool_addresses_assigned{family="IPv4",pool="lan"} 2`) {
		t.Error("metrics are not the new controller's")
	}
	if !p.Alive() {
		t.Error("the process ended")
	}
}

// TestDuplicate has somebody write one Service's address into another's status. The older keeps it.
func TestDuplicate(t *testing.T) {
	a := newAPI(t)
	a.pool("lan", nil, "203.0.113.0/29")
	a.run("controller")
	a.service("a-old", nil)
	a.wants("a-old", "Allocated", []string{"203.0.113.0"})
	a.service("b-young", nil)
	a.wants("b-young", "Allocated", []string{"203.0.113.1"})
	svc := a.get("b-young")
	svc.Status.LoadBalancer.Ingress[0].IP = "203.0.113.0"
	a.ok(a.Status().Update(t.Context(), svc))
	a.wants("b-young", "Allocated", []string{"203.0.113.1"})
	a.wants("a-old", "Allocated", []string{"203.0.113.0"})
	a.eventually(func() error {
		var events eventsv1.EventList
		a.ok(a.List(t.Context(), &events, client.InNamespace("default")))
		for _, e := range events.Items {
			if e.Regarding.UID == svc.UID && e.Reason == "AddressLost" && strings.Contains(e.Note, "203.0.113.0 belongs to default/a-old, which is older") {
				return nil
			}
		}
		return errors.New("nobody told the younger why")
	})
}

// TestNamespaceLabels: a namespace that gets the label that a pool asks for is served without any other change.
func TestNamespaceLabels(t *testing.T) {
	a := newAPI(t)
	a.ok(cluster.EnsureNamespace(t.Context(), "tenant"))
	a.pool("tenants", func(s *v1beta1.IPAddressPoolSpec) {
		s.ServiceAllocation = &v1beta1.ServiceAllocation{NamespaceSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"tenant": "yes"}}}}
	}, "203.0.113.0/29")
	a.run("controller")
	svc := newService("web")
	svc.Namespace = "tenant"
	a.ok(a.Create(t.Context(), svc))
	has := func(words string) {
		t.Helper()
		a.eventually(func() error {
			a.ok(a.Get(t.Context(), client.ObjectKeyFromObject(svc), svc))
			if got := fmt.Sprint(allocate.Ingress(svc), svc.Status.Conditions); !strings.Contains(got, words) {
				return fmt.Errorf("status is %s, want %s", got, words)
			}
			return nil
		})
	}
	has("pool tenants does not admit namespace tenant")
	label := func(v string) {
		var ns corev1.Namespace
		a.ok(a.Get(t.Context(), client.ObjectKey{Name: "tenant"}, &ns))
		ns.Labels["tenant"] = v
		a.ok(a.Update(t.Context(), &ns))
	}
	label("yes")
	has("203.0.113.0 from pool tenants")
	label("no")
	has("OutOfPool")
	has("[203.0.113.0]")
}

// TestQuarantine: an address that a speaker finds in use before it announces it is taken from its Service, which gets
// another, and is given to nobody, also by the next controller. A Service that asks for it by name has it all the same.
func TestQuarantine(t *testing.T) {
	a := newAPI(t)
	a.pool("lan", nil, "203.0.113.0/30")
	a.ok(a.Create(t.Context(), &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "lan"}}))
	a.ok(a.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}}))
	first := a.run("one")
	a.service("web", nil)
	a.wants("web", "Allocated", []string{"203.0.113.0"})
	a.service("asks", func(s *corev1.Service) { s.Annotations[v1beta1.AnnotationAddresses] = "203.0.113.1" })
	a.wants("asks", "Allocated", []string{"203.0.113.1"})

	speaker := &v1beta1.Speaker{ObjectMeta: metav1.ObjectMeta{Name: "node1"}}
	a.ok(a.Create(t.Context(), speaker))
	report := func(addrs ...string) {
		t.Helper()
		speaker.Status = v1beta1.SpeakerStatus{}
		for _, addr := range addrs {
			speaker.Status.Conflicts = append(speaker.Status.Conflicts, v1beta1.AddressConflict{
				Address: addr, HardwareAddress: "02:00:00:00:00:99", Interface: "eth0", BeforeUse: true, Since: metav1.Now(),
			})
		}
		a.ok(a.Status().Update(t.Context(), speaker))
	}
	quarantined := func(available int64, want ...string) {
		t.Helper()
		a.eventually(func() error {
			var p v1beta1.IPAddressPool
			a.ok(a.Get(t.Context(), client.ObjectKey{Name: "lan"}, &p))
			if s := p.Status; !slices.Equal(s.Quarantined, want) || s.AvailableIPv4 != available {
				return fmt.Errorf("quarantined %v, %d available; want %v, %d", s.Quarantined, s.AvailableIPv4, want, available)
			}
			return nil
		})
	}
	report("203.0.113.0", "203.0.113.1")
	a.wants("web", "Allocated", []string{"203.0.113.2"})
	quarantined(1, "203.0.113.0", "203.0.113.1")
	a.eventually(func() error {
		svc := a.get("asks")
		c := meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAnnounced)
		if c == nil || c.Reason != "AddressConflict" || !strings.Contains(c.Message, "02:00:00:00:00:99") {
			return fmt.Errorf("conditions are %v", svc.Status.Conditions)
		}
		return nil
	})
	a.wants("asks", "Allocated", []string{"203.0.113.1"})
	a.eventually(func() error {
		var events eventsv1.EventList
		a.ok(a.List(t.Context(), &events, client.InNamespace("default")))
		for _, e := range events.Items {
			if e.Regarding.UID == a.get("web").UID && e.Reason == "AddressLost" && strings.Contains(e.Note, "a foreign host on the local network uses 203.0.113.0") {
				return nil
			}
		}
		return errors.New("nobody told why the address was taken")
	})

	// The Services are gone, and so are the speaker's reports; the quarantine stays, whoever leads.
	a.ok(a.Delete(t.Context(), a.get("asks")))
	a.ok(a.Delete(t.Context(), a.get("web")))
	report()
	a.service("late", func(s *corev1.Service) { s.Annotations[v1beta1.AnnotationAddresses] = "203.0.113.0" })
	a.wants("late", "AddressQuarantined", nil, "203.0.113.0")
	a.ok(first.Stop())
	a.run("two")
	a.service("b", nil)
	a.wants("b", "Allocated", []string{"203.0.113.2"})
	a.service("c", nil)
	a.wants("c", "Allocated", []string{"203.0.113.3"})
	a.service("d", nil)
	a.wants("d", "PoolExhausted", nil)
	a.wants("late", "AddressQuarantined", nil)
	quarantined(0, "203.0.113.0", "203.0.113.1")
}

// TestPoolStatusForgets: a list that is empty now does not stay in the pool's status.
func TestPoolStatusForgets(t *testing.T) {
	a := newAPI(t)
	a.pool("lan", nil, "203.0.113.0/30")
	p := &pools{client: a.Client, services: &services{holds: func() bool { return true }}}
	var o v1beta1.IPAddressPool
	for _, want := range [][]string{{"203.0.113.0", "203.0.113.1"}, {"203.0.113.1"}, nil} {
		a.ok(a.Get(t.Context(), client.ObjectKey{Name: "lan"}, &o))
		_, err := p.write(t.Context(), &o, o.ResourceVersion, v1beta1.IPAddressPoolStatus{Quarantined: want})
		a.ok(err)
		o = v1beta1.IPAddressPool{}
		a.ok(a.Get(t.Context(), client.ObjectKey{Name: "lan"}, &o))
		if !slices.Equal(o.Status.Quarantined, want) {
			t.Errorf("quarantined is %v, want %v", o.Status.Quarantined, want)
		}
	}
}

// TestFlags: what is wrong on the command line ends the program at once.
func TestFlags(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "--log-level=loud")
	cmd.Env = append(os.Environ(), asController+"=1")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "loud") {
		t.Errorf("got %v, %s", err, out)
	}
}
