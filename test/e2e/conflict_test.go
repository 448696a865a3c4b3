package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

// contested is a small pool on the LAN. It has two addresses of each family, of which a foreign host is to use the first.
const contested = `
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: contested}
spec:
  addresses: [192.0.2.252-192.0.2.253, "2001:db8::400/127"]
  autoAssign: false
---
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: contested}
spec: {ipAddressPools: [contested], interfaces: [eth0]}
`

// foreignHas has the client on the LAN use addresses until the test ends or gone is called.
func foreignHas(t *testing.T, addrs ...netip.Addr) (gone func()) {
	t.Helper()
	command := func(verb string, a netip.Addr) []string {
		c := []string{"ip", "address", verb, world.Alone(a).String(), "dev", "eth0"}
		if verb == "add" && a.Is6() {
			c = append(c, "nodad")
		}
		return c
	}
	has := map[netip.Addr]bool{}
	gone = func() {
		for a := range has {
			if _, err := cluster.Exec(context.Background(), "client", command("del", a)...); err != nil {
				t.Error(err)
			}
			delete(has, a)
		}
	}
	t.Cleanup(gone)
	for _, a := range addrs {
		if _, err := cluster.Exec(t.Context(), "client", command("add", a)...); err != nil {
			t.Fatal(err)
		}
		has[a] = true
	}
	return gone
}

// A Service whose addresses a foreign host on the LAN uses gets others and is served there; the contested ones are in
// quarantine. A Service that asks for just such an address has it, is told who uses it, and is served once that host
// is gone.
func TestStrangersAddress(t *testing.T) {
	taken4, taken6 := netip.MustParseAddr("192.0.2.252"), netip.MustParseAddr("2001:db8::400")
	asked := netip.MustParseAddr("192.0.2.250")
	gone := foreignHas(t, taken4, taken6, asked)
	if err := cluster.Apply(t.Context(), contested); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The API server refuses while the pool's status counts the addresses of Services that have just been deleted.
		ctx := context.Background()
		if err := lab.Eventually(ctx, 10*time.Second, func() error { return cluster.Delete(ctx, contested) }); err != nil {
			t.Error(err)
		}
	})

	start := time.Now()
	web := cluster.Service(t, "contested", func(svc *corev1.Service) {
		svc.Annotations = map[string]string{v1beta1.AnnotationAddressPool: "contested"}
		svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
	})
	pool := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "contested"}}
	want, quarantined := []netip.Addr{taken4.Next(), taken6.Next()}, []string{taken4.String(), taken6.String()}
	world.Eventually(t, func() error {
		if err := cluster.Get(t.Context(), web); err != nil {
			return err
		}
		if err := cluster.Get(t.Context(), pool); err != nil {
			return err
		}
		if !slices.Equal(world.Ingress(web), want) || !slices.Equal(pool.Status.Quarantined, quarantined) {
			return fmt.Errorf("the Service has %v, want %v; in quarantine are %v, want %v; conditions:%s",
				world.Ingress(web), want, pool.Status.Quarantined, quarantined, world.Conditions(web.Status.Conditions))
		}
		return nil
	})
	t.Logf("the Service had other addresses %s after it was made", time.Since(start).Round(time.Millisecond))
	for _, addr := range want {
		owner(t, addr, "client")
		cluster.Reachable(t, "client", fmt.Sprintf("http://%s/", netip.AddrPortFrom(addr, 80)))
	}

	asks := cluster.Service(t, "asks-contested", func(svc *corev1.Service) {
		svc.Annotations = map[string]string{v1beta1.AnnotationAddresses: asked.String()}
	})
	cluster.Condition(t, asks, func() []metav1.Condition { return asks.Status.Conditions }, v1beta1.ConditionAnnounced, metav1.ConditionFalse,
		"AddressConflict", cluster.Host("client").MAC.String())
	if has := world.Ingress(asks); !slices.Equal(has, []netip.Addr{asked}) {
		t.Errorf("the Service that asks for %s has %v", asked, has)
	}

	gone()
	// A speaker asks a foreign host twice a minute whether it is still there.
	err := lab.Eventually(t.Context(), time.Minute, func() error {
		who, err := cluster.WhoHas("client", asked, 300*time.Millisecond)
		if err == nil && len(who) != 1 {
			err = fmt.Errorf("%s is answered by %v, want one node, now that the foreign host is gone", asked, who)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	cluster.Reachable(t, "client", fmt.Sprintf("http://%s/", asked))
}
