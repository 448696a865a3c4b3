package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

// applied applies manifests until the test ends. Pools can be deleted once their status counts no addresses.
func applied(t *testing.T, manifests string) {
	t.Helper()
	world.Must(t, cluster.Apply(t.Context(), manifests))
	t.Cleanup(func() {
		ctx := context.Background()
		if err := lab.Eventually(ctx, world.Settle, func() error { return cluster.Delete(ctx, manifests) }); err != nil {
			t.Error(err)
		}
	})
}

// victims are Services of others, which are served while something happens: 100 requests a second to each, from the LAN or
// from behind the routers, of which none is lost. Their addresses do not change.
func victims(t *testing.T, during func(addrs []netip.Addr)) {
	t.Helper()
	behind := cluster.Service(t, "victim", func(svc *corev1.Service) {
		routed(svc)
		svc.Annotations[v1beta1.AnnotationAllowSharedIP] = "victims"
	})
	onLAN := cluster.Service(t, "victim-lan", nil)
	addrs := []netip.Addr{cluster.Addresses(t, behind, 1)[0], cluster.Addresses(t, onLAN, 1)[0]}
	cluster.NextHops(t, world.Alone(addrs[0]), cluster.Nodes()...)
	first := owner(t, addrs[1], "")
	from := []string{"outside", "client"}
	var streams []*lab.Stream
	for i, a := range addrs {
		cluster.Reachable(t, from[i], fmt.Sprintf("http://%s/", a))
		streams = append(streams, cluster.StreamHTTP(t.Context(), from[i], fmt.Sprintf("http://%s/", a), 10*time.Millisecond))
	}
	defer func() {
		for i, s := range streams {
			replies := s.Stop()
			world.Answered(t, "from "+from[i], replies)
			t.Logf("from %s: %d requests", from[i], len(replies))
		}
	}()
	during(addrs)
	cluster.NextHops(t, world.Alone(addrs[0]), cluster.Nodes()...)
	if now := owner(t, addrs[1], ""); now != first {
		t.Errorf("%s is answered by %s, was by %s", addrs[1], now, first)
	}
	for i, svc := range []*corev1.Service{behind, onLAN} {
		if now := cluster.Addresses(t, svc, 1); now[0] != addrs[i] {
			t.Errorf("%s has %s, had %s", svc.Name, now[0], addrs[i])
		}
	}
}

// give writes addresses into a Service's status, as another controller does.
func give(ctx context.Context, name string, addrs ...netip.Addr) error {
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		svc := &corev1.Service{}
		if err := cluster.Client().Get(ctx, client.ObjectKey{Namespace: "default", Name: name}, svc); err != nil {
			return err
		}
		svc.Status.LoadBalancer.Ingress = nil
		for _, a := range addrs {
			svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String()})
		}
		return cluster.Client().Status().Update(ctx, svc)
	})
}

// unrouted fails if a router has a route to one of the addresses alone.
func unrouted(t *testing.T, addrs ...netip.Addr) {
	t.Helper()
	for _, r := range cluster.Routers() {
		for _, a := range addrs {
			if hops, err := r.NextHops(t.Context(), world.Alone(a)); err != nil || len(hops) > 0 {
				t.Errorf("%s: %s is routed to %v, %v", r.Name, a, hops, err)
			}
		}
	}
}

const beside = `
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: beside}
spec: {addresses: [198.18.4.0/29], autoAssign: false, reuseDelay: 0s}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: everything}
spec: {peers: [router1, router2]}
`

// Beside Clarion work a controller that has a class of its own and an address of a pool of ours, one that gives Services the
// nodes' addresses, as servicelb does, and one that does so with a Service of ours and does not give in. Nobody gets an
// address twice, no node's address is routed, and the one that fights is answered after longer and longer pauses, and gets nowhere when it
// ends.
func TestBesideOthers(t *testing.T) {
	applied(t, beside)
	theirs := netip.MustParseAddr("198.18.4.0")
	node := cluster.Host("node1").IPv4
	other := func(class string) func(*corev1.Service) {
		return func(svc *corev1.Service) { svc.Spec.LoadBalancerClass = &class }
	}
	victims(t, func([]netip.Addr) {
		foreign := cluster.Service(t, "theirs", other("example.com/other"))
		world.Must(t, give(t.Context(), foreign.Name, theirs))
		servicelb := cluster.Service(t, "servicelb", other("example.com/servicelb"))
		world.Must(t, give(t.Context(), servicelb.Name, node, cluster.Host("node2").IPv4))
		pool := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "beside"}}
		world.Eventually(t, func() error { // the controller knows of theirs
			if err := cluster.Get(t.Context(), pool); err != nil || pool.Status.AvailableIPv4 != 7 || pool.Status.AssignedIPv4 != 0 {
				return fmt.Errorf("the pool's status is %+v, %v", pool.Status, err)
			}
			return nil
		})
		ours := cluster.Service(t, "contested-status", func(svc *corev1.Service) {
			svc.Annotations = map[string]string{v1beta1.AnnotationAddressPool: "beside"}
		})
		addr := cluster.Addresses(t, ours, 1)[0]
		if addr == theirs {
			t.Errorf("%s is given to two Services", addr)
		}
		cluster.NextHops(t, world.Alone(addr), cluster.Nodes()...)

		ctx, stop := context.WithCancel(t.Context())
		writes := make(chan int)
		go func() {
			n := 0
			defer func() { writes <- n }()
			for ; ctx.Err() == nil; n++ {
				if err := give(ctx, ours.Name, node); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				_ = lab.Eventually(ctx, time.Minute, func() error { // until it is contradicted
					svc := &corev1.Service{}
					err := cluster.Client().Get(ctx, client.ObjectKeyFromObject(ours), svc)
					if err == nil && slices.Equal(world.Ingress(svc), []netip.Addr{node}) {
						err = errors.New("still ours")
					}
					return err
				})
			}
		}()
		world.Eventually(t, func() error {
			var events eventsv1.EventList
			if err := cluster.Client().List(t.Context(), &events, client.InNamespace("default")); err != nil {
				return err
			}
			if !slices.ContainsFunc(events.Items, func(e eventsv1.Event) bool {
				return e.Regarding.UID == ours.UID && e.Reason == "StatusContested"
			}) {
				return errors.New("nobody is told of the fight")
			}
			return nil
		})
		unrouted(t, node, cluster.Host("node2").IPv4, theirs)
		stop()
		if n := <-writes; n > 20 {
			t.Errorf("%d writes of the other controller were answered", n)
		}
		world.Eventually(t, func() error {
			if err := cluster.Get(t.Context(), ours); err != nil {
				return err
			}
			if has := world.Ingress(ours); !slices.Equal(has, []netip.Addr{addr}) {
				return fmt.Errorf("it has %v, had %s", has, addr)
			}
			return nil
		})
		cluster.Reachable(t, "outside", fmt.Sprintf("http://%s/", addr))
		for _, svc := range []*corev1.Service{foreign, servicelb} {
			world.Must(t, cluster.Get(t.Context(), svc))
			if len(svc.Status.Conditions) > 0 || len(svc.Status.LoadBalancer.Ingress) == 0 {
				t.Errorf("%s is not left alone: %+v", svc.Name, svc.Status)
			}
		}
	})
}

const tenant = `
apiVersion: v1
kind: ServiceAccount
metadata: {namespace: tenant, name: user}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {namespace: tenant, name: user}
rules:
- {apiGroups: [""], resources: [services], verbs: [get, list, watch, create, update, patch, delete]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {namespace: tenant, name: user}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: user}
subjects: [{kind: ServiceAccount, namespace: tenant, name: user}]
---
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: tenants}
spec: {addresses: [198.18.5.0/28], autoAssign: false, serviceAllocation: {maxPerNamespace: 1}}
---
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: of-others}
spec: {addresses: [198.18.5.16/28], autoAssign: false, serviceAllocation: {namespaces: [default]}}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: tenants}
spec: {peers: [router1, router2], addressTypes: [ExternalIP], externalIPRanges: [0.0.0.0/0]}
`

// A tenant may create Services in his namespace and nothing else. Whatever he asks for, he gets what an administrator lets
// him have, learns no names, and others are served as before.
func TestTenant(t *testing.T) {
	world.Must(t, cluster.EnsureNamespace(t.Context(), "tenant"))
	applied(t, tenant)
	pod, err := cluster.RunPod(t.Context(), lab.PodSpec{Namespace: "tenant", Name: "his", Node: "node1", Labels: map[string]string{"app": "his"}})
	world.Must(t, err)
	t.Cleanup(func() {
		if err := pod.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	})
	cfg := rest.CopyConfig(cluster.Config())
	cfg.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:tenant:user", Groups: []string{"system:serviceaccounts", "system:authenticated"}}
	him, err := client.New(cfg, client.Options{Scheme: cluster.Client().Scheme()})
	world.Must(t, err)
	create := func(name string, edit func(*corev1.Service)) *corev1.Service {
		t.Helper()
		svc := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "tenant", Name: name, Annotations: map[string]string{}},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": "his"},
				Ports: []corev1.ServicePort{{Port: 81, TargetPort: world.TargetPort}},
			},
		}
		edit(svc)
		world.Must(t, him.Create(t.Context(), svc))
		t.Cleanup(func() {
			if err := client.IgnoreNotFound(cluster.Client().Delete(context.Background(), svc)); err != nil {
				t.Error(err)
			}
		})
		return svc
	}

	victims(t, func(addrs []netip.Addr) {
		var victim corev1.Service
		world.Must(t, cluster.Client().Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "victim"}, &victim))
		free := netip.MustParseAddr("203.0.113.77") // what an administrator lets him have
		taken := []netip.Addr{
			netip.MustParseAddr("192.0.2.1"), // a router
			cluster.Host("node1").IPv4, pod.IPv4, addrs[1], netip.MustParseAddr("198.18.5.20"),
			netip.MustParseAddr(victim.Spec.ClusterIP), netip.MustParseAddr("10.96.200.1"),
		}
		external := create("external", func(svc *corev1.Service) {
			svc.Spec.Type = corev1.ServiceTypeClusterIP
			svc.Spec.ExternalIPs = []string{free.String(), addrs[0].String()}
			for _, a := range taken {
				svc.Spec.ExternalIPs = append(svc.Spec.ExternalIPs, a.String())
			}
		})
		rows := []struct {
			name, reason string
			edit         func(*corev1.Service)
		}{
			{"asks", "AddressInUse", func(svc *corev1.Service) { svc.Annotations[v1beta1.AnnotationAddresses] = addrs[0].String() }},
			{"asks-by-field", "AddressInUse", func(svc *corev1.Service) { svc.Spec.LoadBalancerIP = addrs[1].String() }},
			{"shares", "SharingConflict", func(svc *corev1.Service) {
				svc.Annotations[v1beta1.AnnotationAddresses], svc.Annotations[v1beta1.AnnotationAllowSharedIP] = addrs[0].String(), "victims"
			}},
			{"asks-a-node", "AddressNotInPool", func(svc *corev1.Service) {
				svc.Annotations[v1beta1.AnnotationAddresses] = cluster.Host("node1").IPv4.String()
			}},
			{"asks-the-internet", "AddressNotInPool", func(svc *corev1.Service) { svc.Annotations[v1beta1.AnnotationAddresses] = "198.51.100.100" }},
			{"asks-another-pool", "NoMatchingPool", func(svc *corev1.Service) { svc.Annotations[v1beta1.AnnotationAddressPool] = "of-others" }},
			{"has-one", "Allocated", func(svc *corev1.Service) { svc.Annotations[v1beta1.AnnotationAddressPool] = "tenants" }},
			{"has-two", "QuotaExceeded", func(svc *corev1.Service) { svc.Annotations[v1beta1.AnnotationAddressPool] = "tenants" }},
		}
		for _, row := range rows {
			svc := create(row.name, row.edit)
			world.Eventually(t, func() error {
				world.Must(t, him.Get(t.Context(), client.ObjectKeyFromObject(svc), svc))
				c := meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAllocated)
				if c == nil || c.Reason != row.reason || (len(svc.Status.LoadBalancer.Ingress) > 0) != (row.reason == "Allocated") {
					return fmt.Errorf("%s: want %s, has %v%s", row.name, row.reason, world.Ingress(svc), world.Conditions(svc.Status.Conditions))
				}
				return nil
			})
			if said := world.Conditions(svc.Status.Conditions); strings.Contains(said, "victim") || strings.Contains(said, "default") || strings.Contains(said, "node1") {
				t.Errorf("%s: he is told another's name:%s", row.name, said)
			}
		}
		var events eventsv1.EventList
		world.Must(t, him.List(t.Context(), &events, client.InNamespace("tenant")))
		for _, e := range events.Items {
			if strings.Contains(e.Note, "victim") || strings.Contains(e.Note, "default/") {
				t.Errorf("event %s: he is told another's name: %s", e.Reason, e.Note)
			}
		}
		external.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: addrs[0].String()}}
		for what, err := range map[string]error{
			"a status":         him.Status().Update(t.Context(), external),
			"another's":        him.Delete(t.Context(), &victim),
			"a pool":           him.Create(t.Context(), &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "his"}, Spec: v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.0/24"}}}),
			"an advertisement": him.Create(t.Context(), &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "his"}}),
		} {
			if !apierrors.IsForbidden(err) {
				t.Errorf("he wrote %s: %v", what, err)
			}
		}
		cluster.NextHops(t, world.Alone(free), cluster.Nodes()...) // so the others would have been routed by now
		unrouted(t, taken...)
	})
}

const withPassword = `
apiVersion: v1
kind: Secret
metadata: {namespace: clarion-system, name: router2}
type: kubernetes.io/basic-auth
stringData: {password: correct-horse}
`

// While a tool deletes and makes again the Secrets, tries to replace a pool, wipes the addresses of Nodes and replaces a
// Service, nothing that is announced changes; a Service that is made again has the address that it had.
func TestReplaced(t *testing.T) {
	applied(t, withPassword)
	peer := &v1beta1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "router2"}}
	password := func(ctx context.Context, secret, line string) {
		t.Helper()
		if err := cluster.Get(ctx, peer); err != nil {
			t.Fatal(err)
		}
		peer.Spec.PasswordSecret = nil
		if secret != "" {
			peer.Spec.PasswordSecret = &v1beta1.SecretReference{Name: secret}
		}
		if err := cluster.Client().Update(ctx, peer); err != nil {
			t.Fatal(err)
		}
		r := cluster.Router(2)
		if _, err := r.Vtysh(ctx, "configure terminal", fmt.Sprintf("router bgp %d", lab.RouterASN), line); err != nil {
			t.Fatal(err)
		}
		err := lab.Eventually(ctx, time.Minute, func() error {
			if err := cluster.Get(ctx, peer); err != nil {
				return err
			}
			peers, err := r.BGPPeers(ctx)
			for _, n := range cluster.Nodes() {
				if s := peers[cluster.Host(n).IPv4]; err == nil && s != "Established" {
					err = fmt.Errorf("%s: the session with %s is %q", r.Name, n, s)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { password(context.Background(), "", "no neighbor nodes4 password") })
	password(t.Context(), "router2", "neighbor nodes4 password correct-horse")
	mine := cluster.Service(t, "replaced", routed)
	had := cluster.Addresses(t, mine, 1)[0]

	victims(t, func(addrs []netip.Addr) {
		ctx := t.Context()
		c := cluster.Client()
		for _, name := range []string{"router2", "clarion-memberlist"} {
			secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: lab.Namespace, Name: name}}
			world.Must(t, cluster.Get(ctx, secret))
			world.Must(t, c.Delete(ctx, secret))
			watched(t, addrs[0], time.Second)
			world.Must(t, c.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: lab.Namespace, Name: name}, Type: secret.Type, Data: secret.Data}))
		}
		pool := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "routed"}}
		if err := c.Delete(ctx, pool); !apierrors.IsForbidden(err) {
			t.Errorf("a pool in use is deleted: %v", err)
		}
		for _, name := range cluster.Nodes() {
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
			world.Must(t, cluster.Get(ctx, node))
			has := node.Status.Addresses
			for _, next := range [][]corev1.NodeAddress{nil, has} {
				world.Must(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
					if err := cluster.Get(ctx, node); err != nil {
						return err
					}
					node.Status.Addresses = next
					return c.Status().Update(ctx, node)
				}))
				watched(t, addrs[0], 500*time.Millisecond)
			}
		}
		again := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: mine.Namespace, Name: mine.Name, Annotations: mine.Annotations}, Spec: mine.Spec}
		for i := range again.Spec.Ports {
			again.Spec.Ports[i].NodePort = 0
		}
		again.Spec.ClusterIP, again.Spec.ClusterIPs, again.Spec.HealthCheckNodePort = "", nil, 0
		world.Must(t, c.Delete(ctx, mine))
		world.Must(t, c.Create(ctx, again))
		mine.ObjectMeta = again.ObjectMeta
		if has := cluster.Addresses(t, mine, 1)[0]; has != had {
			t.Errorf("the Service that was made again has %s, had %s", has, had)
		}
		cluster.Reachable(t, "outside", fmt.Sprintf("http://%s/", had))
	})
}

// watched fails if the routers have other next hops than all nodes for an address within a time.
func watched(t *testing.T, addr netip.Addr, d time.Duration) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		for _, r := range cluster.Routers() {
			if hops, err := r.NextHops(t.Context(), world.Alone(addr)); err != nil || len(hops) != len(cluster.Nodes()) {
				t.Fatalf("%s: %s is routed to %v, %v", r.Name, addr, hops, err)
			}
		}
	}
}
