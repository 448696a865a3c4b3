package ways

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

// somePool is a pool that is announced by nothing until an advertisement selects it.
const somePool = `
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: %s}
spec: {addresses: [%q], autoAssign: false}
---
`

// A user has kubectl and a Service that does not work. What `kubectl describe service` says, alone, must name the cause
// and the object to change.
func TestDescribeTellsTheCause(t *testing.T) {
	l := up(t, lab.Options{Name: "words"})
	w := &way{World: l}
	var err error
	w.Clarion, err = w.StartClarion(t.Context(), lab.ClarionOptions{})
	world.Must(t, err)
	w.pod(t, lab.PodSpec{Name: "web-1", Node: "node1", Labels: map[string]string{"app": "web"}})
	one := func(svc *corev1.Service) {
		svc.Spec.IPFamilyPolicy, svc.Spec.IPFamilies = nil, nil
	}
	from := func(pool string) func(*corev1.Service) {
		return func(svc *corev1.Service) { one(svc); svc.Annotations[v1beta1.AnnotationAddressPool] = pool }
	}
	for _, c := range []struct {
		name    string
		objects string
		fault   func(*testing.T)
		edit    func(*corev1.Service)
		words   []string // what the user must be told, each word or phrase
	}{
		// The first: no pool has been made yet.
		{"no pool", "", nil, one, []string{"NoMatchingPool", "IPAddressPool"}},
		{"pool exhausted", fmt.Sprintf(somePool, "tiny", "198.18.1.1/32"), func(t *testing.T) {
			ingressOf(t, w, w.service(t, "first", from("tiny")))
		}, from("tiny"), []string{"PoolExhausted", "pool tiny", "none left"}},
		{"wrong class", fmt.Sprintf(somePool, "any", "198.18.2.0/24"), nil, func(svc *corev1.Service) {
			from("any")(svc)
			svc.Spec.LoadBalancerClass = ptr.To("clarionlb.io/clarino")
		}, []string{"loadBalancerClass", "clarionlb.io/clarino", v1beta1.LoadBalancerClass}},
		{"no advertisement", fmt.Sprintf(somePool, "silent", "198.18.3.0/24"), nil, from("silent"),
			[]string{"NoAdvertisement", "L2Advertisement", "BGPAdvertisement", `pool "silent"`}},
		{"node selector matches nothing", fmt.Sprintf(somePool, "nowhere", "198.18.4.0/24") + `
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: nowhere}
spec: {ipAddressPools: [nowhere], nodeSelectors: [{matchLabels: {rack: none}}]}
`, nil, from("nowhere"), []string{"NoEligibleNode", `L2Advertisement "nowhere"`, "nodeSelectors"}},
		{"no ready endpoint", fmt.Sprintf(somePool, "empty", "198.18.5.0/24") + `
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: empty}
spec: {ipAddressPools: [empty]}
`, nil, func(svc *corev1.Service) {
			from("empty")(svc)
			svc.Spec.Selector = map[string]string{"app": "wbe"}
		}, []string{"NoReadyEndpoint", "no ready endpoint", "app=wbe"}},
		{"peer down", fmt.Sprintf(somePool, "unpeered", "198.18.6.0/24") + `
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: gone}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.99}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: unpeered}
spec: {ipAddressPools: [unpeered], peers: [gone]}
`, nil, from("unpeered"), []string{"SessionDown", "BGPPeer gone", "no answer"}},
		{"wrong MD5", fmt.Sprintf(somePool, "secret", "198.18.7.0/24") + `
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: locked}
spec: {myASN: 64500, peerASN: 64512, peerAddress: "2001:db8::1", password: wrong}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: secret}
spec: {ipAddressPools: [secret], peers: [locked]}
`, func(t *testing.T) {
			_, err := w.Router(1).Vtysh(t.Context(), "configure terminal", "router bgp 64512", "neighbor nodes6 password right")
			world.Must(t, err)
		}, from("secret"), []string{"SessionDown", "BGPPeer locked", "password"}},
		{"interface missing", fmt.Sprintf(somePool, "elsewhere", "198.18.8.0/24") + `
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: elsewhere}
spec: {ipAddressPools: [elsewhere], interfaces: [eth7]}
`, nil, from("elsewhere"), []string{"NoEligibleNode", `L2Advertisement "elsewhere"`, "no interface eth7"}},
		{"address used by a foreign host", fmt.Sprintf(somePool, "taken", "192.0.2.201/32") + `
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: taken}
spec: {ipAddressPools: [taken]}
`, func(t *testing.T) {
			_, err := w.Exec(t.Context(), "client", "ip", "addr", "add", "192.0.2.201/32", "dev", "eth0")
			world.Must(t, err)
			t.Cleanup(func() {
				_, _ = w.Exec(context.Background(), "client", "ip", "addr", "del", "192.0.2.201/32", "dev", "eth0")
			})
			// The foreign host talks, as one that boots does.
			p, err := w.Start("client", "arping", []string{"arping", "-U", "-I", "eth0", "192.0.2.201"})
			world.Must(t, err)
			t.Cleanup(p.Kill)
		}, from("taken"), []string{"192.0.2.201", w.Host("client").MAC.String() + " uses it", "foreign host", "pool taken"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.apply(t, c.objects)
			if c.fault != nil {
				c.fault(t)
			}
			w.service(t, "broken", c.edit)
			var out string
			missing := func() []string {
				return slices.DeleteFunc(slices.Clone(c.words), func(word string) bool { return strings.Contains(out, word) })
			}
			err := lab.Eventually(t.Context(), world.Settle, func() (err error) {
				if out, err = w.Kubectl(t.Context(), "describe", "service", "broken"); err == nil && len(missing()) > 0 {
					err = fmt.Errorf("describe does not say %q", missing())
				}
				return err
			})
			if err != nil {
				svc := &corev1.Service{}
				svc.Namespace, svc.Name = "default", "broken"
				_ = w.Get(t.Context(), svc)
				t.Errorf("%v\n%s\nthe conditions, which describe does not print:%s", err, out, world.Conditions(svc.Status.Conditions))
			}
		})
	}
}

// ingressOf waits until a Service has an address.
func ingressOf(t *testing.T, w *way, svc *corev1.Service) {
	t.Helper()
	world.Eventually(t, func() error {
		if err := w.Get(t.Context(), svc); err != nil {
			return err
		}
		if len(world.Ingress(svc)) == 0 {
			return fmt.Errorf("%s has no address:%s", svc.Name, world.Conditions(svc.Status.Conditions))
		}
		return nil
	})
}
