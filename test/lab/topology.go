package lab

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
)

// Network is one of the lab's two Ethernets and who is on it.
type Network struct {
	Name       string // its bridge in the namespace "switch"
	IPv4, IPv6 netip.Prefix
	Ports      []Port
}

// Port is where a host is connected to a network.
type Port struct {
	Name       string // of the bridge's port, which faults are given
	Host       string
	Interface  string // of the host
	IPv4, IPv6 netip.Addr
}

// Topology describes the lab's networks, those of the hosts' side first.
func (l *Lab) Topology() []Network {
	lan := Network{Name: "lan", IPv4: netip.MustParsePrefix(lanPrefix4), IPv6: netip.MustParsePrefix(lanPrefix6)}
	wan := Network{Name: "wan", IPv4: netip.MustParsePrefix(wanPrefix4), IPv6: netip.MustParsePrefix(wanPrefix6)}
	for _, h := range l.hosts() {
		port := Port{Name: h.Name, Host: h.Name, Interface: "eth0", IPv4: h.IPv4, IPv6: h.IPv6}
		if h.Name == "outside" {
			wan.Ports = append(wan.Ports, port)
			continue
		}
		lan.Ports = append(lan.Ports, port)
	}
	for i, r := range l.Routers() {
		h := l.host(r.Name, 1, i+1)
		wan.Ports = append(wan.Ports, Port{Name: r.Name + "-wan", Host: r.Name, Interface: "eth1", IPv4: h.IPv4, IPv6: h.IPv6})
	}
	return []Network{lan, wan}
}

// PrintTopology prints the networks, who is on them, and the ranges of the cluster.
func (l *Lab) PrintTopology(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	for _, n := range l.Topology() {
		fmt.Fprintf(t, "  %s\t%s\t%s\t\n", n.Name, n.IPv4, n.IPv6)
		for _, p := range n.Ports {
			what := ""
			switch {
			case strings.HasPrefix(p.Host, "router"):
				what = fmt.Sprintf("FRR, AS %d; %s", RouterASN, p.Interface)
			case strings.HasPrefix(p.Host, "node"):
				var n int
				fmt.Sscanf(p.Host, "node%d", &n)
				v4, v6 := podPrefixes(n)
				what = fmt.Sprintf("kube-proxy, pods %s and %s", v4, v6)
			case p.Host == control:
				what = "the control plane"
			default:
				what = "a client, default route over every router (ECMP)"
			}
			fmt.Fprintf(t, "    %s\t%s\t%s\t%s\n", p.Host, p.IPv4, p.IPv6, what)
		}
	}
	fmt.Fprintf(t, "  ClusterIPs\t%s\t%s\t\n", clusterIP4, clusterIP6)
}
