package ways

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

func testLoadBalancer(t *testing.T, w *way) {
	for _, row := range []struct {
		name string
		run  func(*testing.T, *way)
	}{
		{"Protocols", testProtocols},
		{"PolicyCluster", testPolicyCluster},
		{"PolicyLocal", testPolicyLocal},
		{"SessionAffinity", testSessionAffinity},
		{"SourceRanges", testSourceRanges},
		{"NoNodePorts", testNoNodePorts},
		{"NotReadyAddresses", testNotReadyAddresses},
		{"InternalTrafficPolicyLocal", testInternalTrafficPolicyLocal},
		{"ExternalIPs", testExternalIPs},
	} {
		t.Run(row.name, func(t *testing.T) { row.run(t, w) })
	}
}

// One Service with TCP and UDP on one port, a second TCP port and SCTP, by layer 2 for a client on the LAN and by BGP
// for one behind the routers.
func testProtocols(t *testing.T, w *way) {
	ports := func(svc *corev1.Service) {
		svc.Spec.Ports = []corev1.ServicePort{
			{Name: "tcp", Port: 80, TargetPort: world.TargetPort, Protocol: corev1.ProtocolTCP},
			{Name: "udp", Port: 80, TargetPort: world.TargetPort, Protocol: corev1.ProtocolUDP},
			{Name: "alt", Port: 8443, TargetPort: world.TargetPort, Protocol: corev1.ProtocolTCP},
			{Name: "sctp", Port: 9899, TargetPort: world.TargetPort, Protocol: corev1.ProtocolSCTP},
		}
	}
	layer2 := w.service(t, "protocols-lan", func(svc *corev1.Service) { ports(svc); onLAN(svc) })
	bgp := w.service(t, "protocols-routed", ports)
	for _, c := range []struct {
		from string
		svc  *corev1.Service
	}{{"client", layer2}, {"outside", bgp}} {
		for _, a := range w.addresses(t, c.svc) {
			if c.svc == bgp {
				w.NextHops(t, world.Alone(a), w.Nodes()...)
			}
			w.Reachable(t, c.from, url(a))
			w.Reachable(t, c.from, "http://"+at(a, 8443)+"/")
			world.Eventually(t, func() error { return w.UDP(t.Context(), c.from, at(a, 80), 1)[0].Err })
			world.Eventually(t, func() error { return w.SCTP(t.Context(), c.from, at(a, 9899)) })
			world.Answered(t, "UDP "+at(a, 80), w.UDP(t.Context(), c.from, at(a, 80), 40))
			replies := w.HTTP(t.Context(), c.from, url(a), 60)
			world.Answered(t, "TCP "+at(a, 80), replies)
			if got := lab.CountServers(replies); len(got) != 6 {
				t.Errorf("%s: the pods that answered are %v, want all six", a, got)
			}
		}
	}
}

// With policy Cluster every node takes traffic, and the pod sees a node in the client's place.
func testPolicyCluster(t *testing.T, w *way) {
	svc := w.service(t, "policy-cluster", nil)
	for _, a := range w.addresses(t, svc) {
		w.NextHops(t, world.Alone(a), w.Nodes()...)
		w.Reachable(t, "outside", url(a))
		seen := map[string]bool{}
		for _, r := range w.HTTP(t.Context(), "outside", url(a), 60) {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			seen[w.HostOf(r.Client.Addr())] = true
		}
		for who := range seen {
			if !slices.Contains(w.Nodes(), who) {
				t.Errorf("%s: a pod saw the client as %s, want a node or its pod network's gateway", a, who)
			}
		}
	}
}

// With policy Local the pod sees the client, and a node attracts traffic exactly when kube-proxy's health-check node port
// says that it can serve some.
func testPolicyLocal(t *testing.T, w *way) {
	nodes := w.Nodes()
	label := map[string]string{"app": "local"}
	first := w.pod(t, lab.PodSpec{Name: "local-1", Node: nodes[0], Labels: label})
	w.pod(t, lab.PodSpec{Name: "local-2", Node: nodes[1], Labels: label})
	svc := w.service(t, "policy-local", func(svc *corev1.Service) { local(svc); svc.Spec.Selector = label })
	addrs := w.addresses(t, svc)
	consistent := func(serving ...string) {
		t.Helper()
		for _, a := range addrs {
			w.NextHops(t, world.Alone(a), serving...)
			for _, node := range nodes {
				want := http.StatusServiceUnavailable
				if slices.Contains(serving, node) {
					want = http.StatusOK
				}
				health := "http://" + at(world.AddrOf(w.Host(node), a), uint16(svc.Spec.HealthCheckNodePort)) + "/"
				world.Eventually(t, func() error {
					res, err := w.client("client").Get(health)
					if err != nil {
						return err
					}
					res.Body.Close()
					if res.StatusCode != want {
						return fmt.Errorf("%s answers %s, want %d", health, res.Status, want)
					}
					return nil
				})
			}
		}
	}
	consistent(nodes[0], nodes[1])
	for _, a := range addrs {
		w.Reachable(t, "outside", url(a))
		for _, r := range w.HTTP(t.Context(), "outside", url(a), 40) {
			if r.Err != nil || r.Client.Addr() != world.AddrOf(w.Host("outside"), a) {
				t.Fatalf("%s saw the client as %s (error %v), want %s", r.Server, r.Client, r.Err, world.AddrOf(w.Host("outside"), a))
			}
		}
	}
	world.Must(t, first.SetReady(t.Context(), false))
	consistent(nodes[1])
	world.Must(t, first.SetReady(t.Context(), true))
	consistent(nodes[0], nodes[1])
}

// sessionAffinity ClientIP keeps a client at one pod for each node that its packets enter by: at one with layer 2. With
// ECMP kube-proxies do not know of each other's choices, so that there it is one per node.
func testSessionAffinity(t *testing.T, w *way) {
	sticky := func(svc *corev1.Service) { svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }
	layer2 := w.service(t, "sticky-lan", func(svc *corev1.Service) { sticky(svc); onLAN(svc) })
	for _, a := range w.addresses(t, layer2) {
		w.Reachable(t, "client", url(a))
		replies := w.HTTP(t.Context(), "client", url(a), 40)
		world.Answered(t, url(a), replies)
		if pods := lab.CountServers(replies); len(pods) != 1 {
			t.Errorf("%s: one client was sent to the pods %v", a, pods)
		}
	}
	bgp := w.service(t, "sticky-routed", sticky)
	for _, a := range w.addresses(t, bgp) {
		w.NextHops(t, world.Alone(a), w.Nodes()...)
		w.Reachable(t, "outside", url(a))
		replies := w.HTTP(t.Context(), "outside", url(a), 60)
		world.Answered(t, url(a), replies)
		if pods := lab.CountServers(replies); len(pods) > len(w.Nodes()) {
			t.Errorf("%s: one client was sent to the pods %v, want at most one for each node", a, pods)
		}
	}
}

// loadBalancerSourceRanges lets the listed clients in and no others: their packets arrive at a node, and no pod answers.
func testSourceRanges(t *testing.T, w *way) {
	inside, other := w.Host("outside"), w.Host("client")
	svc := w.service(t, "ranges", func(svc *corev1.Service) {
		svc.Spec.LoadBalancerSourceRanges = []string{world.Alone(inside.IPv4).String(), world.Alone(inside.IPv6).String()}
	})
	for _, a := range w.addresses(t, svc) {
		w.NextHops(t, world.Alone(a), w.Nodes()...)
		w.Reachable(t, "outside", url(a))
		var seen []func() string
		for _, node := range w.Nodes() {
			seen = append(seen, w.capture(t, node, fmt.Sprintf("host %s and host %s", a, world.AddrOf(other, a))))
		}
		w.refusal(t, a)
		var packets string
		world.Eventually(t, func() error {
			packets = ""
			for _, f := range seen {
				packets += f()
			}
			if !strings.Contains(packets, "Flags [S],") {
				return fmt.Errorf("%s: no SYN of the refused client arrives at a node:\n%s", a, packets)
			}
			return nil
		})
		if strings.Contains(packets, "Flags [S.]") {
			t.Errorf("%s: the refused client is answered:\n%s", a, packets)
		}
		if w.mode == "nftables" {
			w.firewallNames(t, svc, a)
		}
	}
}

// refusal wants the client on the LAN to be refused by an address: in iptables mode kube-proxy does not rewrite its
// packets, and the client is told that the address is unreachable, in nftables mode they are dropped.
func (w *way) refusal(t *testing.T, a netip.Addr) {
	t.Helper()
	world.Eventually(t, func() error { // more than once, as for unreachable
		c, err := w.Dial(timeout(t, 2*time.Second), "client", "tcp", at(a, 80))
		if err == nil {
			c.Close()
			t.Fatalf("%s let in a client outside of its source ranges", a)
		}
		if w.mode == "iptables" && !slices.ContainsFunc(nowhere, func(e error) bool { return errors.Is(err, e) }) {
			return fmt.Errorf("%s: the refused client is told %w, want that it is unreachable", a, err)
		}
		return nil
	})
}

// firewallNames wants kube-proxy's rules to tell a person on a node that an address of the Service refuses somebody.
func (w *way) firewallNames(t *testing.T, svc *corev1.Service, a netip.Addr) {
	t.Helper()
	table := "ip"
	if a.Is6() {
		table = "ip6"
	}
	for _, node := range w.Nodes() {
		out, err := w.Exec(t.Context(), node, "nft", "list", "map", table, "kube-proxy", "firewall-ips")
		world.Must(t, err)
		if !strings.Contains(out, a.String()) || !strings.Contains(out, svc.Name) {
			t.Errorf("%s: the firewall of %s does not name the Service:\n%s", a, node, out)
		}
	}
}

// A Service without node ports is announced and served like any other.
func testNoNodePorts(t *testing.T, w *way) {
	svc := w.service(t, "no-node-ports", func(svc *corev1.Service) { svc.Spec.AllocateLoadBalancerNodePorts = ptr.To(false) })
	for _, a := range w.addresses(t, svc) {
		w.NextHops(t, world.Alone(a), w.Nodes()...)
		w.Reachable(t, "outside", url(a))
	}
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			t.Errorf("port %s has the node port %d", p.Name, p.NodePort)
		}
	}
}

// publishNotReadyAddresses has traffic sent to pods that are not ready, and so has the address announced.
func testNotReadyAddresses(t *testing.T, w *way) {
	label := map[string]string{"app": "unready"}
	w.pod(t, lab.PodSpec{Name: "unready", Node: w.Nodes()[0], Labels: label, NotReady: true})
	svc := w.service(t, "not-ready", func(svc *corev1.Service) {
		local(svc)
		svc.Spec.Selector, svc.Spec.PublishNotReadyAddresses = label, true
	})
	for _, a := range w.addresses(t, svc) {
		w.NextHops(t, world.Alone(a), w.Nodes()[0])
		w.Reachable(t, "outside", url(a))
	}
}

// internalTrafficPolicy Local concerns ClusterIPs: a pod is served by its own node or not at all, outside clients by any
// node through the external address, and through the ClusterIP if it is announced by itself, since then only nodes with
// an endpoint attract its traffic.
func testInternalTrafficPolicyLocal(t *testing.T, w *way) {
	nodes := w.Nodes()
	label := map[string]string{"app": "inner"}
	w.pod(t, lab.PodSpec{Name: "inner", Node: nodes[0], Labels: label})
	svc := w.service(t, "internal-local", func(svc *corev1.Service) {
		svc.Labels["announce"] = "cluster-ip"
		svc.Spec.Selector = label
		svc.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	})
	for _, a := range w.addresses(t, svc) {
		w.NextHops(t, world.Alone(a), nodes...)
		w.Reachable(t, "outside", url(a))
	}
	for _, a := range clusterIPs(svc) {
		w.NextHops(t, world.Alone(a), nodes[0])
		w.Reachable(t, "outside", url(a))
		w.Reachable(t, "pod-default-web-node1-0", url(a))
		if r := w.HTTP(t.Context(), "pod-default-web-node2-0", url(a), 1)[0]; r.Err == nil {
			t.Errorf("%s: a pod of node2 was served by %s on %s", a, r.Server, r.Node)
		}
	}
}

// spec.externalIPs are announced for Services that a BGPAdvertisement asks them for, and only for those.
func testExternalIPs(t *testing.T, w *way) {
	announcedIPs := []string{"198.19.0.1", "2001:db8:e::1"}
	silentIPs := []string{"198.19.0.2", "2001:db8:e::2"}
	w.service(t, "external-ips", func(svc *corev1.Service) {
		svc.Spec.Type = corev1.ServiceTypeClusterIP
		svc.Labels["announce"] = "external-ips"
		svc.Spec.ExternalIPs = announcedIPs
	})
	w.service(t, "external-ips-silent", func(svc *corev1.Service) {
		svc.Spec.Type = corev1.ServiceTypeClusterIP
		svc.Spec.ExternalIPs = silentIPs
	})
	for _, ip := range announcedIPs {
		a := netip.MustParseAddr(ip)
		w.NextHops(t, world.Alone(a), w.Nodes()...)
		w.Reachable(t, "outside", url(a))
	}
	for _, ip := range silentIPs {
		w.NextHops(t, world.Alone(netip.MustParseAddr(ip)))
	}
}
