package ways

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

// A node port answers on every node, for a Service that has an external address too, and only on the nodes' addresses
// that --nodeport-addresses names.
func testNodePort(t *testing.T, w *way) {
	plain := w.service(t, "node-port", func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeNodePort })
	both := w.service(t, "node-port-too", nil)
	for _, a := range w.addresses(t, both) {
		w.Reachable(t, "outside", url(a))
	}
	for _, svc := range []*corev1.Service{plain, both} {
		port := uint16(svc.Spec.Ports[0].NodePort)
		for _, node := range w.Nodes() {
			for _, a := range []netip.Addr{w.Host(node).IPv4, w.Host(node).IPv6} {
				for _, from := range []string{"client", "outside"} {
					w.Reachable(t, from, "http://"+at(a, port)+"/")
				}
				world.Eventually(t, func() error {
					return w.UDP(t.Context(), "outside", at(a, uint16(svc.Spec.Ports[1].NodePort)), 1)[0].Err
				})
			}
		}
	}
	// Another address of node1, outside of the ranges that the lab's kube-proxies are told.
	for _, c := range []struct{ family, address, gateway string }{
		{"-4", "203.0.113.77", w.Host("node1").IPv4.String()}, {"-6", "2001:db8:f::77", w.Host("node1").IPv6.String()},
	} {
		_, err := w.Exec(t.Context(), "node1", "ip", c.family, "addr", "add", c.address, "dev", "lo")
		world.Must(t, err)
		_, err = w.Exec(t.Context(), "client", "ip", c.family, "route", "add", c.address, "via", c.gateway)
		world.Must(t, err)
		w.refused(t, "client", at(netip.MustParseAddr(c.address), uint16(plain.Spec.Ports[0].NodePort)))
		_, err = w.Exec(t.Context(), "client", "ip", c.family, "route", "del", c.address)
		world.Must(t, err)
		_, err = w.Exec(t.Context(), "node1", "ip", c.family, "addr", "del", c.address, "dev", "lo")
		world.Must(t, err)
	}
}

func testClusterIP(t *testing.T, w *way) {
	t.Run("EveryNodeAndPod", testEveryNodeAndPod(w))
	t.Run("UnusedAddress", testUnusedAddress(w))
	t.Run("UnusedPort", testUnusedPort(w))
	t.Run("DeadProxy", testDeadProxy(w))
}

// clusterIPService is a Service for the web pods without any other way in.
func clusterIPService(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeClusterIP }

// The range of ClusterIPs is routed to all nodes: requests to one enter by every node and reach every pod.
func testEveryNodeAndPod(w *way) func(*testing.T) {
	return func(t *testing.T) {
		svc := w.service(t, "inner", clusterIPService)
		for _, a := range clusterIPs(svc) {
			w.Reachable(t, "outside", url(a))
			replies := w.HTTP(t.Context(), "outside", url(a), 200)
			world.Answered(t, url(a), replies)
			if pods := lab.CountServers(replies); len(pods) != 6 {
				t.Errorf("%s: the pods that answered are %v, want all six", a, pods)
			}
			// The node that a packet entered by is the one that the pod sees: itself, or its pod network's gateway.
			entered := map[string]int{}
			for _, r := range replies {
				entered[w.HostOf(r.Client.Addr())]++
			}
			for _, node := range w.Nodes() {
				if entered[node] == 0 {
					t.Errorf("%s: no request entered by %s: %v", a, node, entered)
				}
			}
			world.Eventually(t, func() error { return w.UDP(t.Context(), "outside", at(a, 7), 1)[0].Err })
		}
	}
}

// nowhere is what a client gets that is told by ICMP that there is nothing at an address.
var nowhere = []error{syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ECONNREFUSED, syscall.EACCES}

// unreachable wants a client behind the routers to be told that nothing answers at an address, by the first node that the
// packet comes to, which sends it nowhere else.
func (w *way) unreachable(t *testing.T, to netip.AddrPort) {
	t.Helper()
	var seen []func() string
	for _, node := range w.Nodes() {
		seen = append(seen, w.capture(t, node, fmt.Sprintf("tcp and dst host %s", to.Addr())))
	}
	// More than once: the kernel limits the rate of such errors to one host, and where it is all one machine, one may come
	// while the sender's kernel still holds the socket, and is not taken.
	world.Eventually(t, func() error {
		c, err := w.Dial(timeout(t, 2*time.Second), "outside", "tcp", to.String())
		if err == nil {
			c.Close()
		}
		if !slices.ContainsFunc(nowhere, func(e error) bool { return errors.Is(err, e) }) {
			return fmt.Errorf("outside to %s: error %v, want to be told that it is unreachable", to, err)
		}
		return nil
	})
	var hops []string
	arrived := regexp.MustCompile(`(ttl|hlim) (\d+)`)
	world.Eventually(t, func() error {
		hops = nil
		for _, f := range seen {
			hops = append(hops, arrived.FindAllString(f(), -1)...)
		}
		if len(hops) == 0 {
			return fmt.Errorf("no SYN to %s arrives at a node", to)
		}
		return nil
	})
	if slices.ContainsFunc(hops, func(h string) bool { return !strings.HasSuffix(h, " 63") }) {
		t.Errorf("%s: SYNs passed the nodes' interfaces with these hop limits, want 63 only: %s", to, strings.Join(hops, ", "))
	}
}

// A packet to a ClusterIP that no Service has ends at the first node with an ICMP error: it does not go round between the
// nodes, which have no route for it but the one back to the routers, and the routers.
func testUnusedAddress(w *way) func(*testing.T) {
	return func(t *testing.T) {
		for _, ip := range []string{"10.96.200.200", "fd00:96::dead"} {
			w.unreachable(t, netip.AddrPortFrom(netip.MustParseAddr(ip), 80))
		}
	}
}

// The same for a port that the Service does not have, of its ClusterIP and of its external address.
func testUnusedPort(w *way) func(*testing.T) {
	return func(t *testing.T) {
		svc := w.service(t, "one-port", nil)
		addrs := w.addresses(t, svc)
		for _, a := range append(addrs, clusterIPs(svc)...) {
			w.Reachable(t, "outside", url(a))
			w.unreachable(t, netip.AddrPortFrom(a, 4711))
		}
	}
}

// A node whose kube-proxy is dead stops attracting traffic, without a request lost, and attracts it again when it is back.
func testDeadProxy(w *way) func(*testing.T) {
	return func(t *testing.T) {
		svc := w.service(t, "proxied", nil)
		addrs := w.addresses(t, svc)
		prefixes := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112"), world.Alone(addrs[0]), world.Alone(addrs[1])}
		all := w.Nodes()
		proxy := w.Process(all[0], "kube-proxy")
		var urls []string
		for _, a := range append(addrs, clusterIPs(svc)...) {
			urls = append(urls, url(a))
		}
		resets := 2 * len(w.Routers()) // the node's going and coming changes the routes of each router
		w.steadyBut(t, "outside", urls, resets, func() {
			proxy.Kill()
			for _, p := range prefixes {
				w.NextHops(t, p, all[1:]...)
			}
			world.Must(t, proxy.Restart())
			for _, p := range prefixes {
				w.NextHops(t, p, all...)
			}
		})
	}
}

func testDNS(t *testing.T, w *way) {
	web := w.service(t, "web", clusterIPService)
	label := map[string]string{"app": "db"}
	var pods []string
	for i, node := range w.Nodes()[:2] {
		p := w.pod(t, lab.PodSpec{Name: fmt.Sprintf("db-%d", i), Node: node, Labels: label})
		pods = append(pods, p.IPv4.String(), p.IPv6.String())
	}
	w.service(t, "db", func(svc *corev1.Service) {
		clusterIPService(svc)
		svc.Spec.ClusterIP, svc.Spec.Selector = corev1.ClusterIPNone, label
		svc.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 8080, TargetPort: world.TargetPort}}
	})
	world.Must(t, w.Apply(t.Context(), externalName))
	t.Cleanup(func() { _ = w.Delete(context.Background(), externalName) })
	w.apply(t, podRoutes)

	ips := clusterIPs(web)
	slices.Sort(pods)
	for _, server := range []string{lab.DNSAddress4, lab.DNSAddress6} {
		for _, c := range []struct {
			name string
			args []string
			want []string
		}{
			{"ClusterIP", []string{"web.default.svc.cluster.local", "A"}, []string{ips[0].String()}},
			{"ClusterIP6", []string{"web.default.svc.cluster.local", "AAAA"}, []string{ips[1].String()}},
			{"TCP", []string{"+tcp", "web.default.svc.cluster.local", "A"}, []string{ips[0].String()}},
			{"Headless", []string{"db.default.svc.cluster.local", "A", "db.default.svc.cluster.local", "AAAA"}, pods},
			{"SRV", []string{"_http._tcp.web.default.svc.cluster.local", "SRV"}, []string{"0 50 80 web.default.svc.cluster.local."}}, // half the weight for each family
			{"ExternalName", []string{"legacy.default.svc.cluster.local", "CNAME"}, []string{"www.example.com."}},
			{"Reverse", []string{"-x", ips[0].String(), "-x", ips[1].String()}, []string{"web.default.svc.cluster.local.", "web.default.svc.cluster.local."}},
		} {
			t.Run(c.name+"/"+server, func(t *testing.T) {
				world.Eventually(t, func() error {
					out, err := w.Exec(t.Context(), "outside", append([]string{"dig", "+short", "+tries=1", "+time=1", "@" + server}, c.args...)...)
					got := strings.Split(strings.TrimSpace(out), "\n")
					slices.Sort(got)
					if err != nil || !slices.Equal(got, c.want) {
						return fmt.Errorf("dig @%s %s: %q, want %q (error %v)", server, strings.Join(c.args, " "), got, c.want, err)
					}
					return nil
				})
			})
		}
	}
	// What the names lead to answers, which for pods takes routes to them.
	for _, a := range ips {
		w.Reachable(t, "outside", url(a))
	}
	for _, p := range pods {
		w.Reachable(t, "outside", "http://"+at(netip.MustParseAddr(p), 8080)+"/")
	}
	// The targets of a headless Service's SRV records are the pods.
	out, err := w.Exec(t.Context(), "outside", "dig", "+short", "@"+lab.DNSAddress4, "_http._tcp.db.default.svc.cluster.local", "SRV")
	world.Must(t, err)
	if got := strings.Count(out, " 8080 "); got != 4 || !strings.Contains(out, ".db.default.svc.cluster.local.") {
		t.Errorf("the headless Service's SRV records are\n%s\nwant two pods with two addresses each, port 8080", out)
	}
	// A program that is told to resolve by the cluster's DNS gets from a name to an answer.
	resolver := &net.Resolver{PreferGo: true, Dial: w.dialer("outside", net.JoinHostPort(lab.DNSAddress4, "53"))}
	found, err := resolver.LookupHost(t.Context(), "web.default.svc.cluster.local.")
	world.Must(t, err)
	for _, ip := range found {
		w.Reachable(t, "outside", url(netip.MustParseAddr(ip)))
	}
}

const externalName = `
apiVersion: v1
kind: Service
metadata: {name: legacy}
spec: {type: ExternalName, externalName: www.example.com}
`

const podRoutes = `
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: pods}
spec: {addressTypes: [PodCIDR]}
`

// Services that are not Clarion's business get no address, no condition and no route.
func testLeftAlone(t *testing.T, w *way) {
	world.Must(t, w.Apply(t.Context(), externalName))
	t.Cleanup(func() { _ = w.Delete(context.Background(), externalName) })
	headless := w.service(t, "headless", func(svc *corev1.Service) {
		clusterIPService(svc)
		svc.Spec.ClusterIP = corev1.ClusterIPNone
	})
	foreign := w.service(t, "foreign", func(svc *corev1.Service) { svc.Spec.LoadBalancerClass = ptr.To("example.com/other") })
	named := &corev1.Service{}
	named.Namespace, named.Name = "default", "legacy"
	// When a Service that was made after them has what it wants, Clarion has seen them all.
	for _, a := range w.addresses(t, w.service(t, "seen-last", nil)) {
		w.Reachable(t, "outside", url(a))
	}
	for _, svc := range []*corev1.Service{headless, foreign, named} {
		world.Must(t, w.Get(t.Context(), svc))
		if len(svc.Status.LoadBalancer.Ingress) > 0 || len(svc.Status.Conditions) > 0 {
			t.Errorf("%s has the status %+v", svc.Name, svc.Status)
		}
		var events eventsv1.EventList
		world.Must(t, w.Client().List(t.Context(), &events, client.InNamespace("default")))
		for _, e := range events.Items {
			// The user of a foreign class is told, once, that it is another controller's.
			if e.Regarding.Name == svc.Name && !(svc == foreign && e.Reason == "OtherClass") {
				t.Errorf("event on %s: %s %s", svc.Name, e.Reason, e.Note)
			}
		}
	}
}

// A Service without a selector leads to wherever its EndpointSlices say: here a server outside the cluster.
func testWithoutSelector(t *testing.T, w *way) {
	p, err := w.Serve(t.Context(), "client", "mainframe", 9000)
	world.Must(t, err)
	t.Cleanup(p.Kill)
	svc := w.service(t, "mainframe", func(svc *corev1.Service) { svc.Spec.Selector = nil })
	addrs := w.addresses(t, svc)
	for _, a := range addrs {
		w.NextHops(t, world.Alone(a)) // nobody could answer yet
	}
	for _, a := range []netip.Addr{w.Host("client").IPv4, w.Host("client").IPv6} {
		w.apply(t, fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: mainframe-%s, labels: {kubernetes.io/service-name: mainframe}}
addressType: %s
ports:
- {name: http, port: 9000, protocol: TCP}
- {name: echo, port: 9000, protocol: UDP}
endpoints:
- {addresses: ["%s"]}
`, strings.ToLower(family(a)), family(a), a))
	}
	for _, a := range append(addrs, clusterIPs(svc)...) {
		w.Reachable(t, "outside", url(a))
		if r := w.HTTP(t.Context(), "outside", url(a), 1)[0]; r.Server != "mainframe" {
			t.Errorf("%s: %q answers (error %v), want mainframe", a, r.Server, r.Err)
		}
		world.Eventually(t, func() error { return w.UDP(t.Context(), "outside", at(a, 7), 1)[0].Err })
	}
	for _, a := range addrs {
		w.NextHops(t, world.Alone(a), w.Nodes()...)
	}
}
