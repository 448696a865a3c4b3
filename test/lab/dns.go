package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// The cluster's name service.
const (
	DNSAddress4 = "10.96.0.10"
	DNSAddress6 = "fd00:96::a"
	DNSDomain   = "cluster.local"
)

// dnsObjects are CoreDNS's rights and the Service in front of it.
const dnsObjects = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "system:coredns"}
rules:
- {apiGroups: [""], resources: [services, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "system:coredns"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:coredns"}
subjects:
- {kind: ServiceAccount, name: coredns, namespace: kube-system}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns, kubernetes.io/name: CoreDNS}}
spec:
  selector: {k8s-app: kube-dns}
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIP: "` + DNSAddress4 + `"
  clusterIPs: ["` + DNSAddress4 + `", "` + DNSAddress6 + `"]
  ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
`

// corefile answers for the cluster's domain and for every reverse zone.
const corefile = `%s in-addr.arpa ip6.arpa {
	errors
	loadbalance
	kubernetes {
		kubeconfig %s
	}
}
`

// StartDNS runs CoreDNS, the cluster's name service: a pod on each of the first two nodes, behind the Service kube-dns at
// DNSAddress4 and DNSAddress6, for DNSDomain and the reverse zones of the cluster's addresses. CoreDNS is built on
// first use, which takes a minute.
func (l *Lab) StartDNS(ctx context.Context) error {
	bin, err := buildCoreDNS(ctx, l.root, l.pr)
	if err != nil {
		return err
	}
	if err := l.Apply(ctx, dnsObjects); err != nil {
		return err
	}
	kubeconfig, err := l.Kubeconfig(ctx, "system:serviceaccount:kube-system:coredns")
	if err != nil {
		return err
	}
	conf := l.kubePath("Corefile")
	if err := os.WriteFile(conf, fmt.Appendf(nil, corefile, DNSDomain, kubeconfig), 0o644); err != nil {
		return err
	}
	nodes := l.Nodes()
	for _, node := range nodes[:min(2, len(nodes))] {
		_, err := l.RunPod(ctx, PodSpec{Namespace: "kube-system", Name: "coredns-" + node, Node: node, Port: 53,
			Labels: map[string]string{"k8s-app": "kube-dns"}, Command: []string{filepath.Join(bin, "coredns"), "-conf", conf}})
		if err != nil {
			return err
		}
	}
	l.pr.step("CoreDNS behind %s and %s", DNSAddress4, DNSAddress6)
	return nil
}
