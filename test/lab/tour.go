package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Status prints the lab's processes and nodes.
func (l *Lab) Status(ctx context.Context, w io.Writer) error {
	fmt.Fprintf(w, "lab %s: %d nodes, %d routers, kube-proxy in %s mode, state in %s\n\n",
		l.opts.Name, l.opts.Nodes, l.opts.Routers, l.opts.ProxyMode, l.state)
	for _, p := range l.Processes() {
		state := fmt.Sprintf("runs, pid %d", p.PID())
		if !p.Alive() {
			state = "ENDED, see " + p.Log()
		}
		fmt.Fprintf(w, "  %-24s %-24s %s\n", p.host, p.name, state)
	}
	out, err := l.Kubectl(ctx, "get", "nodes,pods,services", "--all-namespaces", "-o", "wide")
	fmt.Fprintf(w, "\n%s", out)
	return err
}

// Help prints how to use a lab that stays up.
func (l *Lab) Help(w io.Writer) {
	fmt.Fprintf(w, `
The lab stays up. As root:
  kubectl       export PATH=%[1]s/bin:$PATH, then for example: kubectl get services -A
  any host      ip netns exec %[2]s curl http://ADDRESS/
                (client, outside, router1, node1, control … in place of outside: ip netns)
  a router      vtysh --vty_socket %[1]s/router1 -c 'show bgp summary'
  logs          %[1]s/log
  this again    go run ./test/lab/cmd/lab tour -name %[3]s
  take it down  go run ./test/lab/cmd/lab down -name %[3]s (make lab-down)
`, l.state, l.NS("outside"), l.opts.Name)
}

// tour prints commands and what came of them. The first error ends it.
type tour struct {
	l   *Lab
	ctx context.Context
	w   io.Writer
	err error
}

// Tour applies config/samples, runs pods for its Services, and shows how their addresses are announced and
// how requests reach the pods.
func (l *Lab) Tour(ctx context.Context, w io.Writer) error {
	t := &tour{l: l, ctx: ctx, w: w}
	t.title("The topology")
	l.PrintTopology(w)
	t.deploy()
	services := t.services()
	for _, s := range services {
		t.announced(s)
	}
	t.routers()
	for _, s := range services {
		t.requests(s)
	}
	t.names(services)
	// The layer-2 Service's packets all enter by one node, whose counters therefore tell.
	slices.SortStableFunc(services, func(a, b corev1.Service) int {
		return -cmp.Compare(strconv.FormatBool(onLAN(external(a)[0])), strconv.FormatBool(onLAN(external(b)[0])))
	})
	if len(services) > 0 {
		t.chains(services[0])
	}
	return t.err
}

func (t *tour) title(format string, args ...any) {
	fmt.Fprintf(t.w, "\n── %s\n", fmt.Sprintf(format, args...))
}

// show runs a command in a host's namespace as a person would, and prints both.
func (t *tour) show(host string, command ...string) {
	if t.err != nil {
		return
	}
	fmt.Fprintf(t.w, "%s# %s\n", host, strings.Join(command, " "))
	out, err := t.l.Exec(t.ctx, host, command...)
	t.err = err
	t.print(out)
}

func (t *tour) print(text string) {
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) != "" {
			fmt.Fprintf(t.w, "    %s\n", strings.TrimRight(line, " \n"))
		}
	}
}

func (t *tour) kubectl(args ...string) {
	if t.err != nil {
		return
	}
	fmt.Fprintf(t.w, "# kubectl %s\n", strings.Join(args, " "))
	out, err := t.l.Kubectl(t.ctx, args...)
	t.err = err
	t.print(out)
}

// deploy applies the samples and runs the pods that their Services select: web on every node, echo on the first only.
func (t *tour) deploy() {
	t.title("config/samples: pools, how they are announced, and Services")
	files, err := filepath.Glob(filepath.Join(t.l.root, "config", "samples", "*.yaml"))
	if err == nil && len(files) == 0 {
		err = errors.New("config/samples has no manifests")
	}
	t.err = err
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil {
			err = t.l.Apply(t.ctx, string(b))
		}
		if err != nil {
			t.err = fmt.Errorf("%s: %w", f, err)
			return
		}
	}
	for i, node := range t.l.Nodes() {
		for _, app := range []string{"web", "echo"} {
			if app == "echo" && i > 0 {
				continue
			}
			spec := PodSpec{Name: fmt.Sprintf("%s-%d", app, i+1), Node: node, Labels: map[string]string{"app": app}}
			if slices.ContainsFunc(t.l.Pods(), func(p *Pod) bool { return p.Spec.Name == spec.Name }) {
				continue // from the tour before
			}
			if _, err := t.l.RunPod(t.ctx, spec); err != nil {
				t.err = err
				return
			}
		}
	}
}

// services waits until every Service of type LoadBalancer has an address, and returns them.
func (t *tour) services() []corev1.Service {
	if t.err != nil {
		return nil
	}
	var out []corev1.Service
	t.err = Eventually(t.ctx, 30*time.Second, func() error {
		var list corev1.ServiceList
		if err := t.l.Client().List(t.ctx, &list); err != nil {
			return err
		}
		out = nil
		for _, s := range list.Items {
			if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
				continue
			}
			if len(external(s)) == 0 {
				return fmt.Errorf("service %s/%s has no external address", s.Namespace, s.Name)
			}
			out = append(out, s)
		}
		return nil
	})
	t.title("The controller has given the Services their external addresses")
	t.kubectl("get", "services,pods", "-o", "wide")
	return out
}

// external are a Service's addresses.
func external(s corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, i := range s.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(i.IP); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// onLAN reports whether an address belongs to the LAN's own subnet, where it takes ARP or NDP to find it.
func onLAN(a netip.Addr) bool {
	return netip.MustParsePrefix(lanPrefix4).Contains(a) || netip.MustParsePrefix(lanPrefix6).Contains(a)
}

// announced waits until a Service's addresses can be reached, and shows who answers ARP and NDP for those of the LAN.
func (t *tour) announced(s corev1.Service) {
	for _, a := range external(s) {
		if t.err != nil {
			return
		}
		if !onLAN(a) {
			t.err = Eventually(t.ctx, 30*time.Second, func() error {
				for _, r := range t.l.Routers() {
					if hops, err := r.NextHops(t.ctx, netip.PrefixFrom(a, a.BitLen())); err != nil {
						return err
					} else if len(hops) == 0 {
						return fmt.Errorf("%s has no route to %s of service %s", r.Name, a, s.Name)
					}
				}
				return nil
			})
			continue
		}
		var who []string
		t.err = Eventually(t.ctx, 30*time.Second, func() (err error) {
			who, err = t.l.WhoHas("client", a, 200*time.Millisecond)
			if err == nil && len(who) != 1 {
				err = fmt.Errorf("want one node to answer for %s of service %s, have %v", a, s.Name, who)
			}
			return err
		})
		if t.err != nil {
			return
		}
		t.title("%s of service %s is on the LAN: %s answers for it", a, s.Name, who[0])
		if a.Is4() {
			t.show("client", "arping", "-c", "2", "-I", "eth0", a.String())
		} else {
			t.show("client", "ndisc6", "-1", a.String(), "eth0")
		}
	}
}

func (t *tour) routers() {
	t.title("The routers have learned the other addresses by BGP: one next hop per node that announces (ECMP)")
	for _, r := range t.l.Routers() {
		for _, family := range []string{"ipv4", "ipv6"} {
			if t.err != nil {
				return
			}
			command := "show bgp " + family + " unicast"
			fmt.Fprintf(t.w, "%s# vtysh -c '%s'\n", r.Name, command)
			out, err := r.Vtysh(t.ctx, command)
			t.err = err
			if _, table, ok := strings.Cut(out, "\n\n"); ok { // after the legend
				out = table
			}
			t.print(out)
		}
	}
	if len(t.l.Routers()) > 0 {
		t.show("router1", "ip", "route", "show", "proto", "bgp")
		t.show("router1", "ip", "-6", "route", "show", "proto", "bgp")
	}
}

// requests shows a series of requests from both clients to each of a Service's addresses.
func (t *tour) requests(s corev1.Service) {
	const n = 12
	if t.err != nil {
		return
	}
	port := s.Spec.Ports[0]
	t.title("%d requests to service %s (externalTrafficPolicy %s), each a new flow", n, s.Name, s.Spec.ExternalTrafficPolicy)
	targets := external(s)
	for _, ip := range s.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			targets = append(targets, a)
		}
	}
	for _, a := range targets {
		at := netip.AddrPortFrom(a, uint16(port.Port)).String()
		for _, from := range []string{"client", "outside"} {
			send := func(n int) []Reply { return t.l.HTTP(t.ctx, from, "http://"+at+"/", n) }
			if port.Protocol == corev1.ProtocolUDP {
				send = func(n int) []Reply { return t.l.UDP(t.ctx, from, at, n) }
			}
			// The kube-proxies may be a moment behind the API.
			if err := Eventually(t.ctx, 10*time.Second, func() error { return send(1)[0].Err }); err != nil {
				t.err = fmt.Errorf("%s to %s: %w", from, at, err)
				return
			}
			fmt.Fprintf(t.w, "    %-8s → %-28s %s\n", from, at, summary(t.l, send(n)))
		}
	}
}

// names has the client behind the routers resolve a Service's name by the cluster's DNS, if the lab runs one.
func (t *tour) names(services []corev1.Service) {
	if t.err != nil || len(services) == 0 || !slices.ContainsFunc(t.l.Pods(), func(p *Pod) bool { return p.Spec.Labels["k8s-app"] == "kube-dns" }) {
		return
	}
	s := services[len(services)-1]
	t.title("The client behind the routers asks the cluster's DNS, at its ClusterIP")
	t.show("outside", "dig", "+noall", "+answer", "@"+DNSAddress4, fmt.Sprintf("%s.%s.svc.%s", s.Name, s.Namespace, DNSDomain), "A")
	t.show("outside", "dig", "+noall", "+answer", "@"+DNSAddress6, fmt.Sprintf("%s.%s.svc.%s", s.Name, s.Namespace, DNSDomain), "AAAA")
}

// summary says which pods answered how often and whose address they saw.
func summary(l *Lab, replies []Reply) string {
	pods, seen := map[string]int{}, map[string]bool{}
	for _, r := range replies {
		if r.Err != nil {
			pods["no answer"]++
			continue
		}
		pods[r.Server]++
		seen[l.HostOf(r.Client.Addr())] = true
	}
	var parts []string
	for _, p := range slices.Sorted(maps.Keys(pods)) {
		parts = append(parts, p+" "+strconv.Itoa(pods[p])+"×")
	}
	return strings.Join(parts, ", ") + "; client seen: " + strings.Join(slices.Sorted(maps.Keys(seen)), ", ")
}

// chains shows the rules of kube-proxy that one Service's packets take on a node that gets some.
func (t *tour) chains(s corev1.Service) {
	addr, node := external(s)[0], t.l.Nodes()[0]
	if onLAN(addr) && t.err == nil {
		who, err := t.l.WhoHas("client", addr, 200*time.Millisecond)
		t.err = err
		if len(who) > 0 && slices.Contains(t.l.Nodes(), who[0]) {
			node = who[0]
		}
	}
	if t.err != nil {
		return
	}
	port := s.Spec.Ports[0]
	service := fmt.Sprintf("%s/%s", s.Namespace, s.Name)
	if t.l.opts.ProxyMode == "nftables" {
		t.title("The way of packets to %s through kube-proxy's rules on %s", addr, node)
		family := "ip"
		if addr.Is6() {
			family = "ip6"
		}
		out, err := t.l.Exec(t.ctx, node, "nft", "list", "table", family, "kube-proxy")
		t.err = err
		t.print(nftChains(out, addr.String(), fmt.Sprintf("%s/%s/%s", service, strings.ToLower(string(port.Protocol)), port.Name)))
		return
	}
	t.title("The way of packets to %s through kube-proxy's rules on %s ([packets:bytes], new connections only)", addr, node)
	save := "iptables-save"
	if addr.Is6() {
		save = "ip6tables-save"
	}
	out, err := t.l.Exec(t.ctx, node, save, "-c", "-t", "nat")
	t.err = err
	t.print(iptablesChains(out, service+":"+port.Name, addr.String()))
}

// iptablesChains picks from iptables-save's output the rule of KUBE-SERVICES for a Service's port and address, the chains that
// it leads to, each once and indented, and the SNAT at the end.
func iptablesChains(save, service, addr string) string {
	rules := map[string][]string{}
	for line := range strings.Lines(save) {
		if _, rule, ok := strings.Cut(line, "-A "); ok {
			chain, _, _ := strings.Cut(rule, " ")
			rules[chain] = append(rules[chain], strings.TrimSpace(line))
		}
	}
	var out strings.Builder
	all := func(string) bool { return true }
	shown := map[string]bool{"KUBE-MARK-MASQ": true}
	var follow func(chain, indent string, match func(string) bool)
	follow = func(chain, indent string, match func(string) bool) {
		for _, rule := range rules[chain] {
			if !match(rule) {
				continue
			}
			fmt.Fprintln(&out, indent+rule)
			if _, target, ok := strings.Cut(rule, " -j KUBE-"); ok {
				next := "KUBE-" + strings.Fields(target)[0]
				if !shown[next] {
					shown[next] = true
					follow(next, indent+"  ", all)
				}
			}
		}
	}
	follow("KUBE-SERVICES", "", func(rule string) bool {
		return strings.Contains(rule, `"`+service+" ") && strings.Contains(rule, " -d "+addr+"/")
	})
	follow("KUBE-POSTROUTING", "", all)
	return out.String()
}

// nftChains picks from a table's listing the map elements for an address and the chains that are named after a Service's port.
func nftChains(table, addr, service string) string {
	var out strings.Builder
	inside := false
	for line := range strings.Lines(table) {
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "chain ") {
			inside = strings.Contains(trimmed, service) || strings.Contains(trimmed, "chain masquerading ")
		}
		if inside || strings.Contains(trimmed, addr+" ") {
			out.WriteString(line)
		}
		if trimmed == "}" {
			inside = false
		}
	}
	return out.String()
}
