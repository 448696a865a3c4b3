package crd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/lab"
)

func TestSamples(t *testing.T) {
	if out, err := cluster.Kubectl(t.Context(), "apply", "--dry-run=server", "-f", folder("samples")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestComponents asks the API server about config/default with each component, and with all that go together.
func TestComponents(t *testing.T) {
	if out, err := cluster.Kubectl(t.Context(), "apply", "-f", filepath.Join(cluster.Root(), "test/crd/testdata/foreign")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	entries, err := os.ReadDir(folder("components"))
	if err != nil {
		t.Fatal(err)
	}
	rows := [][]string{{"talos", "cilium", "monitoring"}, {"openshift", "calico-ebpf", "monitoring"}, {"k3s", "monitoring"}}
	for _, e := range entries {
		if e.IsDir() {
			rows = append(rows, []string{e.Name()})
		}
	}
	for _, row := range rows {
		t.Run(strings.Join(row, "+"), func(t *testing.T) {
			dir, err := os.MkdirTemp(cluster.Root()+"/config", ".test-") // kustomize takes no absolute paths
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			k := "resources: [../default]\ncomponents: [../components/" + strings.Join(row, ", ../components/") + "]\n"
			if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(k), 0o644); err != nil {
				t.Fatal(err)
			}
			err = lab.Eventually(t.Context(), 30*time.Second, func() error { // the new kinds take a moment to be served
				if out, err := cluster.Kubectl(t.Context(), "apply", "--dry-run=server", "-k", dir); err != nil {
					return fmt.Errorf("%w\n%s", err, out)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRights asks the API server what the two programs may do. What they need is proven where they run, in the
// end-to-end tests; this is about what they must not be able to do, and the few rights beside those.
func TestRights(t *testing.T) {
	const home, other = "clarion-system", "default"
	for _, row := range []struct {
		who, verb, resource, namespace, name string
		want                                 bool
	}{
		{"controller", "patch", "services/status", other, "web", true},
		{"controller", "patch", "services", other, "web", false},
		{"controller", "update", "services/status", other, "web", false},
		{"controller", "patch", "ipaddresspools.clarionlb.io/status", "", "lan", true},
		{"controller", "update", "ipaddresspools.clarionlb.io", "", "lan", false},
		{"controller", "patch", "speakers.clarionlb.io/status", "", "node1", false},
		{"controller", "create", "secrets", home, "", true},
		{"controller", "get", "secrets", home, "clarion-memberlist", false},
		{"controller", "get", "secrets", home, "bgp-password", false},
		{"controller", "list", "secrets", home, "", false},
		{"controller", "create", "secrets", other, "", false},
		{"controller", "update", "leases.coordination.k8s.io", home, "clarion-controller", true},
		{"controller", "update", "leases.coordination.k8s.io", "kube-system", "kube-scheduler", false},
		{"controller", "patch", "nodes", "", "node1", false},
		{"controller", "list", "pods", other, "", false},
		{"speaker", "list", "endpointslices.discovery.k8s.io", other, "", true},
		{"speaker", "patch", "services/status", other, "web", false},
		{"speaker", "patch", "ipaddresspools.clarionlb.io/status", "", "lan", false},
		{"speaker", "patch", "speakers.clarionlb.io/status", "", "node1", true},
		{"speaker", "update", "speakers.clarionlb.io", "", "node1", false},
		{"speaker", "list", "namespaces", "", "", false},
		{"speaker", "delete", "speakers.clarionlb.io", "", "node1", false},
		{"speaker", "watch", "secrets", home, "", true},
		{"speaker", "get", "secrets", other, "password", false},
		{"speaker", "create", "secrets", home, "", false},
		{"speaker", "patch", "nodes", "", "node1", false},
	} {
		resource, sub, _ := strings.Cut(row.resource, "/")
		resource, group, _ := strings.Cut(resource, ".")
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User:   "system:serviceaccount:" + home + ":" + row.who,
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + home, "system:authenticated"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb: row.verb, Group: group, Resource: resource, Subresource: sub, Namespace: row.namespace, Name: row.name},
		}}
		if err := api.Create(t.Context(), review); err != nil {
			t.Fatal(err)
		}
		if review.Status.Allowed != row.want {
			t.Errorf("%s may %s %s %q in %q: %t, want %t (%s)", row.who, row.verb, row.resource, row.name, row.namespace,
				review.Status.Allowed, row.want, review.Status.Reason)
		}
	}
}

// A speaker in a pod writes the Speaker of its own node and of no other.
func TestSpeakerWritesItsOwnObjectOnly(t *testing.T) {
	inPod := rest.CopyConfig(config)
	inPod.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:clarion-system:speaker",
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:clarion-system", "system:authenticated"},
		Extra:    map[string][]string{"authentication.kubernetes.io/node-name": {"node1"}},
	}
	c, err := newClient(inPod)
	if err != nil {
		t.Fatal(err)
	}
	speaker := func(node string) *v1beta1.Speaker {
		return &v1beta1.Speaker{ObjectMeta: metav1.ObjectMeta{Name: node}}
	}
	own, foreign := speaker("node1"), speaker("node2")
	if err := api.Create(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := api.DeleteAllOf(context.Background(), &v1beta1.Speaker{}); err != nil {
			t.Error(err)
		}
	})

	// The API server takes a moment to put a new policy into force.
	const want = "a speaker writes the Speaker of its own node only, which is node1"
	err = lab.Eventually(t.Context(), 20*time.Second, func() error {
		err := c.Create(t.Context(), speaker("node3"), client.DryRunAll)
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
			return fmt.Errorf("create another: error %v, want %q", err, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	version := client.RawPatch(types.MergePatchType, []byte(`{"status":{"version":"v1"}}`))
	if err := c.Status().Patch(t.Context(), foreign, version); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("write another's status: error %v, want %q", err, want)
	}
	if err := c.Create(t.Context(), own); err != nil {
		t.Errorf("create its own: %v", err)
	}
	if err := c.Status().Patch(t.Context(), own, version); err != nil {
		t.Errorf("write its own status: %v", err)
	}

	// A token that is bound to no pod or node names none, be it for want of extra fields at all; and the namespace that
	// Clarion was installed in does not matter.
	for _, extra := range []map[string][]string{nil, {"example.com/x": {"y"}}} {
		unbound := rest.CopyConfig(inPod)
		unbound.Impersonate.Extra = extra
		if c, err = newClient(unbound); err != nil {
			t.Fatal(err)
		}
		if err := c.Create(t.Context(), speaker("node4"), client.DryRunAll); !apierrors.IsForbidden(err) {
			t.Errorf("with a token that is bound to no pod, with the extra fields %v: error %v, want that it is forbidden", extra, err)
		}
	}
	role := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "elsewhere"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "clarion-speaker"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "elsewhere", Name: "speaker"}}}
	if err := api.Create(t.Context(), role); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Delete(context.Background(), role) })
	elsewhere := rest.CopyConfig(inPod)
	elsewhere.Impersonate.UserName, elsewhere.Impersonate.Groups = "system:serviceaccount:elsewhere:speaker", []string{"system:serviceaccounts", "system:authenticated"}
	if c, err = newClient(elsewhere); err != nil {
		t.Fatal(err)
	}
	err = lab.Eventually(t.Context(), 20*time.Second, func() error { // the binding takes a moment too
		if err := c.Status().Patch(t.Context(), foreign, version); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
			return fmt.Errorf("write another's status, installed in another namespace: error %v, want %q", err, want)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A pool is not deleted while Services have addresses of it, nor while they keep some that it no longer includes.
func TestPoolInUse(t *testing.T) {
	pool := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "in-use"}}
	pool.Spec.Addresses = []v1beta1.AddressRange{"192.168.10.100/24"}
	if err := api.Create(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	for _, status := range []v1beta1.IPAddressPoolStatus{{AssignedIPv4: 2, AssignedIPv6: 1}, {Kept: []string{"203.0.113.1"}}} {
		pool.Status = status
		if err := api.Status().Update(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
		err := lab.Eventually(t.Context(), 20*time.Second, func() error {
			err := api.Delete(t.Context(), pool, client.DryRunAll)
			if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "addresses of pool in-use. To move them") {
				return fmt.Errorf("delete with the status %+v: error %v", status, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	pool.Status = v1beta1.IPAddressPoolStatus{}
	if err := api.Status().Update(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	if err := api.Delete(t.Context(), pool); err != nil {
		t.Error(err)
	}
}
