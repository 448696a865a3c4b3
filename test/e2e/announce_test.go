package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

// owner waits until exactly one host of the LAN answers for an address, and returns it.
func owner(t *testing.T, addr netip.Addr, not string) string {
	t.Helper()
	var who []string
	world.Eventually(t, func() (err error) {
		who, err = cluster.WhoHas("client", addr, 300*time.Millisecond)
		if err == nil && (len(who) != 1 || who[0] == not) {
			err = fmt.Errorf("%s is answered by %v, want one node other than %q", addr, who, not)
		}
		return err
	})
	return who[0]
}

// A client on the LAN asks by ARP, gets one answer, and is served; when that node's link is cut, another node answers.
func TestLayer2(t *testing.T) {
	svc := cluster.Service(t, "lan-web", nil)
	addr := cluster.Addresses(t, svc, 1)[0]
	url := fmt.Sprintf("http://%s/", addr)
	first := owner(t, addr, "")
	if out, err := cluster.Exec(t.Context(), "client", "arping", "-c", "3", "-w", "3", "-I", "eth0", addr.String()); err != nil || !strings.Contains(out, "Received 3 response") {
		t.Errorf("arping: %v\n%s", err, out)
	}
	cluster.Reachable(t, "client", url)
	world.Answered(t, "HTTP", cluster.HTTP(t.Context(), "client", url, 50))
	world.Answered(t, "UDP", cluster.UDP(t.Context(), "client", netip.AddrPortFrom(addr, 7).String(), 50))

	if err := cluster.CutLink(first); err != nil {
		t.Fatal(err)
	}
	restored := false
	restore := func() {
		if !restored {
			restored = true
			if err := cluster.RestoreLink(first); err != nil {
				t.Error(err)
			}
		}
	}
	defer restore()
	second := owner(t, addr, first)
	// The dead node's pods are still among the endpoints, until its Node is known to be dead: some requests meet them.
	world.Eventually(t, func() error { return cluster.HTTP(t.Context(), "client", url, 1)[0].Err })
	t.Logf("%s answered first, %s after its link was cut", first, second)
	restore()
	// One owner again when the node is back, and everything is served.
	owner(t, addr, "")
	world.Eventually(t, func() error {
		if lost := lab.Lost(cluster.HTTP(t.Context(), "client", url, 30)); len(lost) > 0 {
			return lost[0].Err
		}
		return nil
	})
}

// A client behind the routers is spread by ECMP over every node.
func TestBGPSpreadsFlowsOverAllNodes(t *testing.T) {
	svc := cluster.Service(t, "routed-web", func(svc *corev1.Service) {
		routed(svc)
		svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	})
	addr := cluster.Addresses(t, svc, 1)[0]
	cluster.NextHops(t, world.Alone(addr), cluster.Nodes()...)
	url := fmt.Sprintf("http://%s/", addr)
	cluster.Reachable(t, "outside", url)
	const n = 900
	replies := cluster.HTTP(t.Context(), "outside", url, n)
	world.Answered(t, "HTTP", replies)
	counts := lab.CountNodes(replies)
	for _, node := range cluster.Nodes() {
		share := 100 * float64(counts[node]) / n
		if even := 100 / float64(len(cluster.Nodes())); share < even-10 || share > even+10 {
			t.Errorf("%s got %.1f%% of the flows, want within 10 points of %.1f%%: %v", node, share, even, counts)
		}
	}
	t.Logf("flows per node: %v", counts)
}

// Local: only nodes with ready local endpoints announce, and the pod sees the client. Cluster: every node announces, and
// the pod sees a node.
func TestExternalTrafficPolicy(t *testing.T) {
	nodes := cluster.Nodes()
	svc := cluster.Service(t, "policy", func(svc *corev1.Service) {
		routed(svc)
		svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		svc.Spec.Selector["node"] = nodes[1]
	})
	addr := cluster.Addresses(t, svc, 1)[0]
	url := fmt.Sprintf("http://%s/", addr)
	cluster.NextHops(t, world.Alone(addr), nodes[1])
	cluster.Reachable(t, "outside", url)
	outside := cluster.Host("outside").IPv4
	for _, r := range cluster.HTTP(t.Context(), "outside", url, 20) {
		if r.Err != nil || r.Client.Addr() != outside || r.Node != nodes[1] {
			t.Fatalf("Local: %s on %s saw the client as %s (error %v), want %s on %s", r.Server, r.Node, r.Client, r.Err, outside, nodes[1])
		}
	}

	patch := client.MergeFrom(svc.DeepCopy())
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	if err := cluster.Client().Patch(t.Context(), svc, patch); err != nil {
		t.Fatal(err)
	}
	cluster.NextHops(t, world.Alone(addr), nodes...)
	world.Eventually(t, func() error {
		for _, r := range cluster.HTTP(t.Context(), "outside", url, 20) {
			if r.Err != nil {
				return r.Err
			}
			if r.Client.Addr() == outside {
				return fmt.Errorf("Cluster: the pod saw the client's own address")
			}
		}
		return nil
	})
}

// A Service without a ready endpoint is announced by nobody, and again as soon as it has one.
func TestNoReadyEndpointNoRoute(t *testing.T) {
	pod, err := cluster.RunPod(t.Context(), lab.PodSpec{Name: "lonely", Node: cluster.Nodes()[0], Labels: map[string]string{"app": "lonely"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pod.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	})
	svc := cluster.Service(t, "lonely", func(svc *corev1.Service) {
		routed(svc)
		svc.Spec.Selector = map[string]string{"app": "lonely"}
	})
	prefix := world.Alone(cluster.Addresses(t, svc, 1)[0])
	cluster.NextHops(t, prefix, cluster.Nodes()...)
	if err := pod.SetReady(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	cluster.NextHops(t, prefix)
	cluster.Condition(t, svc, func() []metav1.Condition { return svc.Status.Conditions }, v1beta1.ConditionAnnounced, metav1.ConditionFalse, "no ready endpoint")
	if err := pod.SetReady(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	cluster.NextHops(t, prefix, cluster.Nodes()...)
}

// The ClusterIP range is routed to all nodes, and a ClusterIP is reached from outside.
func TestClusterIPRange(t *testing.T) {
	for _, p := range []string{"10.96.0.0/16", "fd00:96::/112"} {
		cluster.NextHops(t, netip.MustParsePrefix(p), cluster.Nodes()...)
	}
	svc := cluster.Service(t, "inner", func(svc *corev1.Service) {
		svc.Spec.Type = corev1.ServiceTypeClusterIP
		svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
	})
	if len(svc.Spec.ClusterIPs) != 2 {
		t.Fatalf("ClusterIPs %v", svc.Spec.ClusterIPs)
	}
	for _, ip := range svc.Spec.ClusterIPs {
		url := fmt.Sprintf("http://%s/", netip.AddrPortFrom(netip.MustParseAddr(ip), 80))
		cluster.Reachable(t, "outside", url)
		replies := cluster.HTTP(t.Context(), "outside", url, 60)
		world.Answered(t, url, replies)
		if c := lab.CountNodes(replies); len(c) != len(cluster.Nodes()) {
			t.Errorf("%s: answers per node %v, want some from each", url, c)
		}
	}
}

// Two Services of two pools, one of them dual-stack, one IPv6 only, are reached over every address; a deleted one is gone
// from the routers while the others stay.
func TestPoolsAndFamilies(t *testing.T) {
	dual := cluster.Service(t, "dual", func(svc *corev1.Service) {
		routed(svc)
		svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
	})
	six := cluster.Service(t, "six", func(svc *corev1.Service) {
		svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
	})
	both := cluster.Addresses(t, dual, 2)
	if !both[0].Is4() || !both[1].Is6() {
		t.Errorf("addresses %v, want IPv4 first as in ipFamilies", both)
	}
	onLAN := cluster.Addresses(t, six, 1)[0]
	if !netip.MustParsePrefix("2001:db8::200/120").Contains(onLAN) {
		t.Errorf("the IPv6 Service got %s, want one of the LAN pool", onLAN)
	}
	for _, a := range both {
		cluster.NextHops(t, world.Alone(a), cluster.Nodes()...)
		url := fmt.Sprintf("http://%s/", netip.AddrPortFrom(a, 80))
		cluster.Reachable(t, "outside", url)
		world.Answered(t, url, cluster.HTTP(t.Context(), "outside", url, 60))
	}
	owner(t, onLAN, "")
	url := fmt.Sprintf("http://%s/", netip.AddrPortFrom(onLAN, 80))
	cluster.Reachable(t, "client", url)
	world.Answered(t, url, cluster.HTTP(t.Context(), "client", url, 30))

	if err := cluster.Client().Delete(t.Context(), dual); err != nil {
		t.Fatal(err)
	}
	deleted := time.Now()
	for _, a := range both {
		cluster.NextHops(t, world.Alone(a))
	}
	t.Logf("withdrawn %v after the deletion", time.Since(deleted).Round(time.Millisecond))
	owner(t, onLAN, "")
	for _, r := range cluster.HTTP(t.Context(), "client", url, 10) {
		if r.Err != nil {
			t.Errorf("the other Service: %v", r.Err)
		}
	}
}
