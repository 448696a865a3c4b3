package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

// bad is objects that cannot work, each in its own way.
const bad = `
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: overlapping}
spec: {addresses: [192.0.2.240-192.0.2.254], autoAssign: false}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: unknown-community}
spec: {ipAddressPools: [routed], communities: [nobody-defined-this]}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: unreachable}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.99}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: no-secret}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.98, passwordSecret: {name: missing}}
---
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: unknown-pool}
spec: {ipAddressPools: [no-such-pool]}
`

// A bad object gets a condition that names what is wrong, and everything else goes on working.
func TestBadObjectsDisableOnlyThemselves(t *testing.T) {
	before := cluster.Service(t, "before-bad", routed)
	addr := cluster.Addresses(t, before, 1)[0]
	cluster.NextHops(t, world.Alone(addr), cluster.Nodes()...)
	url := fmt.Sprintf("http://%s/", addr)
	cluster.Reachable(t, "outside", url)

	if err := cluster.Apply(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cluster.Delete(context.Background(), bad); err != nil {
			t.Error(err)
		}
	}()

	pool := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "overlapping"}}
	cluster.Condition(t, pool, func() []metav1.Condition { return pool.Status.Conditions }, v1beta1.ConditionConflict, metav1.ConditionTrue, "lan", "192.0.2.240-192.0.2.250")
	ad := &v1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: "unknown-community"}}
	cluster.Condition(t, ad, func() []metav1.Condition { return ad.Status.Conditions }, v1beta1.ConditionReady, metav1.ConditionFalse, "spec.communities[0]", "nobody-defined-this")
	peer := &v1beta1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "unreachable"}}
	cluster.Condition(t, peer, func() []metav1.Condition { return peer.Status.Conditions }, v1beta1.ConditionEstablished, metav1.ConditionFalse, "0 of 3")
	secret := &v1beta1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "no-secret"}}
	cluster.Condition(t, secret, func() []metav1.Condition { return secret.Status.Conditions }, v1beta1.ConditionReady, metav1.ConditionFalse, "spec.passwordSecret", "clarion-system/missing")
	l2 := &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "unknown-pool"}}
	cluster.Condition(t, l2, func() []metav1.Condition { return l2.Status.Conditions }, v1beta1.ConditionReady, metav1.ConditionFalse, "spec.ipAddressPools", "no-such-pool")

	// What there was goes on, and what is new works beside the bad objects.
	world.Answered(t, "the Service of before", cluster.HTTP(t.Context(), "outside", url, 50))
	after := cluster.Service(t, "after-bad", routed)
	cluster.NextHops(t, world.Alone(cluster.Addresses(t, after, 1)[0]), cluster.Nodes()...)
	lan := cluster.Service(t, "lan-after-bad", nil)
	owner(t, cluster.Addresses(t, lan, 1)[0], "")
	good := &v1beta1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "router1"}}
	cluster.Condition(t, good, func() []metav1.Condition { return good.Status.Conditions }, v1beta1.ConditionEstablished, metav1.ConditionTrue, "3 of 3")
}

// assigned is every Service and its addresses.
func assigned(t *testing.T) map[string]string {
	t.Helper()
	var list corev1.ServiceList
	if err := cluster.Client().List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for i := range list.Items {
		if svc := &list.Items[i]; svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			out[svc.Name] = fmt.Sprint(world.Ingress(svc))
		}
	}
	return out
}

// A controller that was killed and starts again moves no address, and goes on where it was.
func TestControllerRestart(t *testing.T) {
	for i := range 5 {
		svc := cluster.Service(t, fmt.Sprintf("keep-%d", i), nil)
		if i == 2 { // leaves a hole below the addresses of the others
			cluster.Addresses(t, svc, 1)
			if err := cluster.Client().Delete(t.Context(), svc); err != nil {
				t.Fatal(err)
			}
			continue
		}
		cluster.Addresses(t, svc, 1)
	}
	before := assigned(t)
	cluster.Clarion.Controller.Kill()
	// Made while there is no controller: it must not get what another has.
	late := cluster.Service(t, "a-late-one", nil)
	if err := cluster.Clarion.Controller.Restart(); err != nil {
		t.Fatal(err)
	}
	addr := cluster.Addresses(t, late, 1)[0]
	after := assigned(t)
	delete(after, "a-late-one")
	if !maps.Equal(before, after) {
		t.Errorf("addresses moved:\n%v\n%v", before, after)
	}
	if slices.Contains(slices.Collect(maps.Values(before)), fmt.Sprint([]netip.Addr{addr})) {
		t.Errorf("%s was given twice", addr)
	}
}

// While speakers restart, one after the other, the client behind the routers loses nothing, and no address changes.
func TestSpeakerRestart(t *testing.T) {
	lan := cluster.Service(t, "lan-restart", nil)
	lanAddr := cluster.Addresses(t, lan, 1)[0]
	svc := cluster.Service(t, "restart", routed)
	addr := cluster.Addresses(t, svc, 1)[0]
	cluster.NextHops(t, world.Alone(addr), cluster.Nodes()...)
	url := fmt.Sprintf("http://%s/", addr)
	cluster.Reachable(t, "outside", url)
	owner(t, lanAddr, "")
	before := assigned(t)

	stream := cluster.StreamHTTP(t.Context(), "outside", url, 5*time.Millisecond)
	for _, node := range cluster.Nodes() {
		sp := cluster.Clarion.Speakers[node]
		if err := sp.Stop(); err != nil {
			t.Errorf("%s: %v", node, err)
		}
		if err := sp.Restart(); err != nil {
			t.Fatal(err)
		}
		established(t, node)
	}
	replies := stream.Stop()
	if len(replies) < 50 {
		t.Fatalf("only %d requests were made", len(replies))
	}
	world.Answered(t, fmt.Sprintf("while %d speakers restarted", len(cluster.Nodes())), replies)
	t.Logf("%d requests, %d lost", len(replies), len(lab.Lost(replies)))
	if after := assigned(t); !maps.Equal(before, after) {
		t.Errorf("addresses moved:\n%v\n%v", before, after)
	}
	owner(t, lanAddr, "")
	cluster.NextHops(t, world.Alone(addr), cluster.Nodes()...)
}

// established waits until both routers have a live session with a node, and none of its routes is a stale one.
func established(t *testing.T, node string) {
	t.Helper()
	at := cluster.Host(node).IPv4
	world.Eventually(t, func() error {
		for _, r := range cluster.Routers() {
			peers, err := r.BGPPeers(t.Context())
			if err != nil {
				return err
			}
			if peers[at] != "Established" {
				return fmt.Errorf("%s: the session with %s is %q", r.Name, node, peers[at])
			}
			paths, err := r.BGPPaths(t.Context(), netip.MustParsePrefix("10.96.0.0/16"))
			if err != nil {
				return err
			}
			for _, p := range paths {
				if p.Peer == at && p.Stale {
					return fmt.Errorf("%s: the routes of %s are stale", r.Name, node)
				}
			}
		}
		return nil
	})
}

// A node that is being drained is no longer used by the routers, then no longer announced, and nothing is lost on the way;
// what only it can serve stays announced. Without the annotation everything is as before.
func TestDrain(t *testing.T) {
	nodes := cluster.Nodes()
	svc := cluster.Service(t, "drained", routed)
	only := cluster.Service(t, "only-there", func(svc *corev1.Service) {
		routed(svc)
		svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		svc.Spec.Selector["node"] = nodes[0]
	})
	prefix, onlyPrefix := world.Alone(cluster.Addresses(t, svc, 1)[0]), world.Alone(cluster.Addresses(t, only, 1)[0])
	cluster.NextHops(t, prefix, nodes...)
	cluster.NextHops(t, onlyPrefix, nodes[0])
	lan := cluster.Service(t, "lan-drained", nil)
	lanAddr := cluster.Addresses(t, lan, 1)[0]
	spread, onLAN := fmt.Sprintf("http://%s/", prefix.Addr()), fmt.Sprintf("http://%s/", lanAddr)
	urls := map[string]string{spread: "outside", fmt.Sprintf("http://%s/", onlyPrefix.Addr()): "outside", onLAN: "client"}
	streams := map[string]*lab.Stream{}
	for url, from := range urls {
		cluster.Reachable(t, from, url)
		streams[url] = cluster.StreamHTTP(t.Context(), from, url, 10*time.Millisecond)
	}

	annotate := func(value string) {
		t.Helper()
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodes[0]}}
		patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, v1beta1.AnnotationDrain, value)
		if err := cluster.Client().Patch(context.Background(), n, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
			t.Fatal(err)
		}
	}
	annotate("true")
	defer annotate("false")
	cluster.NextHops(t, prefix, nodes[1:]...)
	world.Eventually(t, func() error {
		for _, r := range cluster.Routers() {
			paths, err := r.BGPPaths(t.Context(), prefix)
			if err != nil {
				return err
			}
			if len(paths) != len(nodes)-1 {
				return fmt.Errorf("%s has %d paths to %s, want those of %v", r.Name, len(paths), prefix, nodes[1:])
			}
		}
		return nil
	})
	cluster.NextHops(t, onlyPrefix, nodes[0])
	owner(t, lanAddr, nodes[0])

	annotate("false")
	cluster.NextHops(t, prefix, nodes...)
	for url, s := range streams {
		resets := 0
		switch url {
		case spread:
			resets = 2 * len(cluster.Routers()) // the node's going and coming changes the routes of each router
		case onLAN:
			resets = 2 // the address leaves the node and returns, and the next owner's connection tracking does not know what is under way
		}
		world.AnsweredBut(t, "while a node was drained: "+url, resets, s.Stop())
	}
}
