// Package crd tests the API and the manifests as their users meet them, against a real kube-apiserver: each rule of each
// CRD, files written for MetalLB, what config/ installs, and what it allows the two programs to do.
package crd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/lab"
)

// What TestMain started: a control plane without nodes, in which config/default is installed.
var (
	cluster *lab.Lab
	config  *rest.Config
	// api refuses unknown fields, as kubectl does.
	api client.Client
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("skipped: the lab that runs the API server makes network namespaces and needs root")
		return
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "crd:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cluster = lab.New(lab.Options{Name: "crd", ControlPlaneOnly: true, Progress: os.Stderr})
	if err := cluster.Up(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, cluster.Down()) }()
	if out, err := cluster.Kubectl(ctx, "apply", "-k", folder("default")); err != nil {
		return 0, fmt.Errorf("%w\n%s", err, out)
	}
	if out, err := cluster.Kubectl(ctx, "wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"); err != nil {
		return 0, fmt.Errorf("%w\n%s", err, out)
	}
	config = cluster.Config()
	if api, err = newClient(config); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// folder is the absolute path of a folder of config/.
func folder(name string) string { return filepath.Join(cluster.Root(), "config", name) }

func newClient(c *rest.Config) (client.Client, error) {
	scheme := clientgoscheme.Scheme
	if err := v1beta1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	cl, err := client.New(c, client.Options{Scheme: scheme})
	if err != nil {
		return nil, err
	}
	return client.WithFieldValidation(cl, metav1.FieldValidationStrict), nil
}

// object is base with the merge patch applied; both are YAML.
func object(t *testing.T, base, patch string) *unstructured.Unstructured {
	t.Helper()
	var b, p map[string]any
	if err := yaml.Unmarshal([]byte(base), &b); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(patch), &p); err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: merge(b, p)}
}

// merge is RFC 7386: maps are merged, null removes, everything else replaces.
func merge(base, patch map[string]any) map[string]any {
	out := maps.Clone(base)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(out, k)
		case map[string]any:
			b, _ := out[k].(map[string]any)
			out[k] = merge(b, v)
		default:
			out[k] = v
		}
	}
	return out
}

// causes lists what the API server found wrong, without its remark that an invalid object's rules were left out.
func causes(err error) []metav1.StatusCause {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(status.Status().Details.Causes), func(c metav1.StatusCause) bool {
		return strings.Contains(c.Message, "some validation rules were not checked")
	})
}

// TestRejected breaks every rule of every CRD, one at a time, and expects that rule's answer and no other. A rule that
// no row breaks fails the test.
func TestRejected(t *testing.T) {
	var rules []rule
	for _, crd := range readCRDs(t) {
		rules = append(rules, specRules(crd)...)
	}
	broken := map[rule]bool{}
	for _, row := range rejected() {
		t.Run(row.kind+"/"+row.name, func(t *testing.T) {
			err := api.Create(t.Context(), object(t, bases[row.kind], row.patch), client.DryRunAll)
			if err == nil {
				t.Fatal("accepted")
			}
			found := causes(err)
			if len(found) != 1 {
				t.Fatalf("%d things found wrong, want 1: %v", len(found), err)
			}
			if got := found[0].Field + ": " + found[0].Message; !strings.Contains(got, row.want) {
				t.Fatalf("answer %q, want %q in it", got, row.want)
			}
			for _, r := range rules {
				if r.brokenBy(row.kind, found[0]) {
					broken[r] = true
				}
			}
		})
	}
	var missing []string
	for _, r := range rules {
		if !broken[r] {
			missing = append(missing, r.String())
		}
	}
	slices.Sort(missing)
	if len(missing) > 0 && !t.Failed() {
		t.Errorf("%d rules that no row breaks:\n%s", len(missing), strings.Join(missing, "\n"))
	}
}

func TestAccepted(t *testing.T) {
	for _, row := range accepted() {
		t.Run(row.kind+"/"+row.name, func(t *testing.T) {
			if err := api.Create(t.Context(), object(t, bases[row.kind], row.patch), client.DryRunAll); err != nil {
				t.Fatal(err)
			}
		})
	}
}
