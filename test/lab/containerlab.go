package lab

import (
	"bytes"
	"fmt"
	"strings"
	"text/template"
)

// containerlabName is that of the kind cluster, with which the names of its nodes begin.
const containerlabName = "clarion"

// containerlabFile is the lab's network for containerlab. Its hosts' eth0 is Docker's, so that what is eth0 in
// the lab is eth1 there, and eth1 is eth2.
var containerlabFile = template.Must(template.New("clab").Parse(`# The lab's network for containerlab (https://containerlab.dev), where Docker and kind are: the routers, the LAN and the
# clients of "make lab", with the same addresses, around a kind cluster. What is eth0 in the lab is eth1 here, because
# eth0 is Docker's, and the nodes have the names that kind gives them.
#
#   make image IMAGE=clarion:lab                   # and name it in config/default/kustomization.yaml
#   cd test/containerlab && sudo containerlab deploy
#   kind load docker-image clarion:lab --name {{.Cluster}}
#   kind export kubeconfig --name {{.Cluster}}
#   kubectl apply -k ../../config/default && kubectl apply -f ../../config/samples
#   kubectl create deployment web --replicas=3 --image=hashicorp/http-echo -- /http-echo -listen=:8080 -text=hello
#   kubectl get services                           # ADDRESS: that of web-routed
#   docker exec clab-clarion-outside curl -s http://ADDRESS/
#   docker exec clab-clarion-router1 vtysh -c 'show bgp summary'
#   sudo containerlab destroy --cleanup
#
# Written by: go test ./test/containerlab -update
name: clarion
topology:
  nodes:
    {{.Cluster}}:
      kind: k8s-kind
      startup-config: kind.yaml
{{- range .Hosts}}
    {{.Name}}:{{if ne .Lab .Name}} # {{.Lab}}{{end}}
      kind: {{.Kind}}
{{- with .Image}}
      image: {{.}}
{{- end}}
{{- with .Binds}}
      binds:
{{- range .}}
      - {{.}}
{{- end}}
{{- end}}
      exec:
{{- range .Exec}}
      - {{.}}
{{- end}}
{{- end}}
  links:
{{- range .Links}}
  - endpoints: ["{{index . 0}}", "{{index . 1}}"]
{{- end}}
`))

const kindConfig = `# The cluster of clarion.clab.yml, with the lab's ranges. Nodes need pod ranges whose size differs from theirs by no more
# than 16 bits, so that the IPv6 range is smaller than the lab's.
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking:
  ipFamily: dual
  kubeProxyMode: %s
  serviceSubnet: %s,%s
  podSubnet: %s,fd00:244::/48
nodes:
- role: control-plane
`

type containerlabHost struct {
	Name, Lab, Kind, Image string
	Binds, Exec            []string
}

// Containerlab is the files of a folder from which containerlab builds the lab's network, by name.
func (l *Lab) Containerlab() (map[string]string, error) {
	files := map[string]string{
		"daemons": "bgpd=yes\nbfdd=yes\nvtysh_enable=yes\nzebra_options=\"-A 127.0.0.1\"\nbgpd_options=\"-A 127.0.0.1\"\nbfdd_options=\"-A 127.0.0.1\"\n",
		"kind.yaml": fmt.Sprintf(kindConfig, l.opts.ProxyMode, clusterIP4, clusterIP6, podRange4) +
			strings.Repeat("- role: worker\n", l.opts.Nodes),
	}
	// A container that is the switch: both bridges, a port for each host.
	sw := containerlabHost{Name: "switch", Lab: "switch", Kind: "linux", Image: "nicolaka/netshoot"}
	hosts := map[string]*containerlabHost{}
	var order []*containerlabHost
	var links [][2]string
	for _, n := range l.Topology() {
		sw.Exec = append(sw.Exec, "ip link add "+n.Name+" type bridge", "ip link set "+n.Name+" up")
		for _, p := range n.Ports {
			h := hosts[p.Host]
			if h == nil {
				h = l.containerlabHost(p)
				hosts[p.Host] = h
				order = append(order, h)
			}
			iface := map[string]string{"eth0": "eth1", "eth1": "eth2"}[p.Interface]
			h.Exec = append(h.Exec,
				fmt.Sprintf("ip addr add %s/%d dev %s", p.IPv4, n.IPv4.Bits(), iface),
				fmt.Sprintf("ip addr add %s/%d dev %s nodad", p.IPv6, n.IPv6.Bits(), iface))
			sw.Exec = append(sw.Exec, "ip link set "+p.Name+" master "+n.Name)
			links = append(links, [2]string{"switch:" + p.Name, h.Name + ":" + iface})
		}
	}
	for _, h := range order {
		h.Exec = append(h.Exec, l.containerlabRoutes(h.Lab)...)
	}
	for _, r := range l.Routers() {
		b, err := r.bgpd()
		if err != nil {
			return nil, err
		}
		files[r.Name+".conf"] = string(b)
	}
	var out bytes.Buffer
	all := append([]*containerlabHost{&sw}, order...)
	err := containerlabFile.Execute(&out, map[string]any{"Cluster": containerlabName, "Hosts": all, "Links": links})
	files["clarion.clab.yml"] = out.String()
	return files, err
}

// containerlabHost is a host with what it is, before its addresses.
func (l *Lab) containerlabHost(p Port) *containerlabHost {
	h := &containerlabHost{Name: p.Host, Lab: p.Host, Kind: "linux", Image: "nicolaka/netshoot"}
	var n int
	if p.Host == control {
		h.Name, h.Kind, h.Image = containerlabName+"-control-plane", "ext-container", ""
	} else if _, err := fmt.Sscanf(p.Host, "node%d", &n); err == nil {
		h.Name, h.Kind, h.Image = containerlabName+"-worker", "ext-container", ""
		if n > 1 {
			h.Name += fmt.Sprint(n)
		}
	} else if _, err := fmt.Sscanf(p.Host, "router%d", &n); err == nil {
		h.Image = "frrouting/frr:v8.4.1"
		h.Binds = []string{"daemons:/etc/frr/daemons", p.Host + ".conf:/etc/frr/frr.conf"}
		h.Exec = []string{"sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"}
	}
	h.Exec = append(h.Exec, "sysctl -w net.ipv4.fib_multipath_hash_policy=1 net.ipv6.fib_multipath_hash_policy=1",
		"sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0")
	return h
}

// containerlabRoutes are a host's routes beside those of its interfaces. The nodes keep the default route that kind
// gave them, and have one to the other network.
func (l *Lab) containerlabRoutes(host string) []string {
	networks := l.Topology()
	lan, wan := networks[0], networks[1]
	if strings.HasPrefix(host, "router") {
		return []string{"ip route add " + onLink4 + " dev eth1", "ip -6 route add " + onLink6 + " dev eth1"}
	}
	to4, to6, through := "default", "default", lan
	switch {
	case host == "outside":
		through = wan
	case host == control || strings.HasPrefix(host, "node"):
		to4, to6 = wan.IPv4.String(), wan.IPv6.String()
	}
	var via4, via6 string
	for _, p := range through.Ports {
		if strings.HasPrefix(p.Host, "router") {
			via4 += " nexthop via " + p.IPv4.String()
			via6 += " nexthop via " + p.IPv6.String()
		}
	}
	return []string{"ip route replace " + to4 + via4, "ip -6 route replace " + to6 + via6}
}
