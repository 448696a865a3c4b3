package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// theirCluster is a cluster in which MetalLB works, and Clarion beside it.
const theirCluster = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: metallb-controller, namespace: metallb-system}
spec: {replicas: 0, selector: {}, template: {spec: {containers: [{name: controller, args: [--port=9120, --lb-class=metallb.io/ours]}]}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: metallb-speaker, namespace: metallb-system}
spec: {selector: {}, template: {spec: {hostNetwork: true, containers: [{name: speaker, ports: [{containerPort: 9120}, {containerPort: 7946}]}]}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: speaker, namespace: clarion-system}
spec: {selector: {}, template: {spec: {hostNetwork: true, containers: [{name: speaker, ports: [{containerPort: 9122}, {containerPort: 7947}]}]}}}
`

// troubledMove is what does not fit: addresses in no pool, of a class of MetalLB's, of one that it never had, of a pool
// that does not admit the Service, and ports that both have.
const troubledMove = `---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {type: LoadBalancer, clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.200}]}}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: default}
spec: {type: LoadBalancer, clusterIP: 10.96.0.2, clusterIPs: [10.96.0.2], ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 198.51.100.7}]}}
---
apiVersion: v1
kind: Service
metadata: {name: classed, namespace: default}
spec: {type: LoadBalancer, loadBalancerClass: metallb.io/ours, clusterIP: 10.96.0.3, clusterIPs: [10.96.0.3], ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.201}]}}
---
apiVersion: v1
kind: Service
metadata: {name: others, namespace: default}
spec: {type: LoadBalancer, loadBalancerClass: example.com/cloud, clusterIP: 10.96.0.4, clusterIPs: [10.96.0.4], ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.202}]}}
---
apiVersion: v1
kind: Service
metadata: {name: waits, namespace: default}
spec: {type: LoadBalancer, clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{port: 80}]}
`

// What --check says of a cluster that can be handed over, of one that cannot, and of one in which MetalLB goes on.
func TestMigrateCheck(t *testing.T) {
	common := parse(t, "testdata/common.txtar")
	healthy := parse(t, "testdata/healthy.txtar")
	for _, tt := range []struct{ name, objects, want string }{
		{"well", string(healthy.Files[0].Data) + "---\n" + theirCluster, "2 of 2 Services with an address keep it.\n"},
		{"troubled", theirCluster + troubledMove, `1 of 3 Services with an address keep it.
  Service/default/classed: its loadBalancerClass metallb.io/ours cannot be changed, and Clarion's is clarionlb.io/clarion: start Clarion's controller with --load-balancer-class=metallb.io/ours
  Service/default/outside: 198.51.100.7 is in no IPAddressPool of Clarion's, so that nobody would announce it
exit 1
`},
		{"both", strings.NewReplacer("replicas: 0", "replicas: 1", "7947", "7946").Replace(theirCluster), `0 of 0 Services with an address keep it.
  Deployment/metallb-system/metallb-controller: MetalLB's controller runs: two controllers give addresses to the same Services; scale it to 0
  DaemonSet/clarion-system/speaker: port 7946 of the nodes is MetalLB's speakers' too, so that Clarion's do not start beside them
exit 1
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := says(t, readerOf(t, string(common.Files[0].Data)+"---\n"+tt.objects, nil), nil, "migrate", "metallb", "--check")
			if diff := gocmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// What MetalLB has in a cluster is found there: of today's version, or of the one before; with its ConfigMaps.
func TestMigrateFromCluster(t *testing.T) {
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	object := func(version, kind, name string, spec map[string]any) *unstructured.Unstructured {
		o := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
		o.SetGroupVersionKind(schema.GroupVersionKind{Group: "metallb.io", Version: version, Kind: kind})
		o.SetNamespace("lb")
		o.SetName(name)
		return o
	}
	for _, peers := range []string{"v1beta1", "v1beta2"} {
		from := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
			object("v1beta1", "IPAddressPool", "lan", map[string]any{"addresses": []any{"192.0.2.200-192.0.2.250"}}),
			object(peers, "BGPPeer", "tor", map[string]any{"myASN": int64(64500), "peerASN": int64(64512), "peerAddress": "192.0.2.1"}),
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "lb", Name: "metallb-excludel2"}, Data: map[string]string{"excludel2.yaml": "announcedInterfacesToExclude: ['^docker.*']"}},
		).WithInterceptorFuncs(interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if gvk := list.GetObjectKind().GroupVersionKind(); gvk.Kind == "BGPPeerList" && gvk.Version != peers || gvk.Kind == "CommunityList" {
				return &meta.NoKindMatchError{GroupKind: gvk.GroupKind()}
			}
			return c.List(ctx, list, opts...)
		}}).Build()
		got := says(t, from, nil, "migrate", "metallb", "--metallb-namespace", "lb")
		for _, want := range []string{"name: lan\n", "peerAddress: 192.0.2.1\n", "2 objects for Clarion.", "--exclude-interfaces=docker*\n"} {
			if !strings.Contains(got, want) || strings.Contains(got, "exit") {
				t.Errorf("BGPPeers of %s: not %q:\n%s", peers, want, got)
			}
		}
	}
	empty := fake.NewClientBuilder().WithScheme(scheme).Build()
	if got := says(t, empty, nil, "migrate", "metallb"); got != "error: no object of MetalLB's kinds is there\nexit 2\n" {
		t.Error(got)
	}
}

// MetalLB's speakers leave the nodes that are handed over, and run elsewhere only where they did.
func TestLeaves(t *testing.T) {
	d := &appsv1.DaemonSet{}
	d.Spec.Template.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "rack", Operator: corev1.NodeSelectorOpExists}}}},
	}}}
	const want = `[{"matchExpressions":[{"key":"rack","operator":"Exists"},{"key":"clarionlb.io/migrated","operator":"DoesNotExist"}]}]`
	if got := leaves(d); !strings.Contains(got, want) || len(d.Spec.Template.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchExpressions) != 1 {
		t.Errorf("%s, want %s in it", got, want)
	}
}

// The steps of the handover, and that its files are right: every object of them is what an API server would take.
func TestMigrateSteps(t *testing.T) {
	common, in := parse(t, "testdata/common.txtar"), parse(t, "testdata/files/metallb.txtar")
	theirs, _, _ := strings.Cut(string(in.Files[0].Data), "---\napiVersion: metallb.io/v1beta1\nkind: BGPPeer\nmetadata: {name: older")
	dir := filepath.Join(t.TempDir(), "handover")
	from := readerOf(t, string(common.Files[0].Data)+"---\n"+theirCluster, nil)
	got := strings.ReplaceAll(says(t, from, []byte(theirs), "migrate", "metallb", "-f", "-", "--to", dir), dir, "DIR")
	golden := "testdata/migrate.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(string(want), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, peers := range []string{"peers.yaml", "peers-by-node.yaml"} {
		var all [][]byte
		for _, name := range []string{"pools.yaml", "layer2.yaml", peers} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if peers == "peers-by-node.yaml" && name == peers && strings.Count(string(b), migratedLabel) != 3 {
				t.Errorf("not every peer is of the nodes with the label:\n%s", b)
			}
			all = append(all, b)
		}
		if said := says(t, nil, bytes.Join(all, []byte("---\n")), "lint", "-f", "-"); !strings.Contains(said, "12 objects, 0 problems.") {
			t.Errorf("with %s: %s", peers, said)
		}
	}
	// What was MetalLB's is there for the way back, and says the same.
	if said := says(t, nil, nil, "migrate", "metallb", "-f", filepath.Join(dir, "metallb.yaml")); !strings.Contains(said, "12 objects for Clarion.") {
		t.Error(said)
	}
}
