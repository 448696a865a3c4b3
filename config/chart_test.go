// Tests that the Helm chart installs what kustomize installs.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

const chart = "helm/clarion"

// tools are where the go command has put helm and kustomize as internal/tools/helm pins them.
var tools = map[string]func() (string, error){}

func init() {
	for _, name := range []string{"helm", "kustomize"} {
		tools[name] = sync.OnceValues(func() (string, error) {
			out, err := exec.Command("go", "tool", "-n", "-modfile=../internal/tools/helm/go.mod", name).Output()
			return strings.TrimSpace(string(out)), err
		})
	}
}

// tool runs helm or kustomize, and returns what it prints.
func tool(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	path, err := tools[name]()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out), err
}

// kustomized are the objects of config/default with components.
func kustomized(t *testing.T, components ...string) map[string]map[string]any {
	t.Helper()
	dir, err := os.MkdirTemp(".", ".test-") // kustomize takes no absolute paths
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var k strings.Builder
	k.WriteString("resources: [../default]\ncomponents:\n")
	for _, c := range components {
		k.WriteString("- ../components/" + c + "\n")
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(k.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := tool(t, "kustomize", "build", dir)
	if err != nil {
		t.Fatal(err)
	}
	all := objects(t, out)
	delete(all, "Namespace /clarion-system") // Helm makes the namespace, or takes one that is there
	return all
}

// charted are the objects of the chart with values, as YAML.
func charted(t *testing.T, values string, args ...string) map[string]map[string]any {
	t.Helper()
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte(values), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := tool(t, "helm", append([]string{"template", "clarion", chart, "--namespace=clarion-system", "--values=" + file}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, out)
}

// objects are those of a YAML stream by kind, namespace and name.
func objects(t *testing.T, stream string) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{}
	for dec := yaml.NewYAMLOrJSONDecoder(strings.NewReader(stream), 4096); ; {
		var o unstructured.Unstructured
		err := dec.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if o.Object == nil {
			continue
		}
		key := o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
		if all[key] != nil {
			t.Errorf("%s is there twice", key)
		}
		if a := o.GetAnnotations(); a["helm.sh/resource-policy"] == "keep" {
			delete(a, "helm.sh/resource-policy")
			o.SetAnnotations(a)
		}
		all[key] = o.Object
	}
}

func TestChartIsWhatKustomizeMakes(t *testing.T) {
	for _, tt := range []struct {
		components []string
		values     string
	}{
		{nil, ""},
		{[]string{"monitoring"}, "monitoring: {enabled: true}"},
		{[]string{"k3s"}, "defaultClass: false"},
		{[]string{"openshift"}, "openshift: true"},
		{[]string{"cilium"}, `speaker: {proxyHealthURL: ""}`},
		{[]string{"calico-ebpf"}, `speaker: {proxyHealthURL: "http://127.0.0.1:9099/readiness"}`},
		{[]string{"talos", "monitoring"}, `
monitoring: {enabled: true}
speaker: {env: [{name: KUBERNETES_SERVICE_HOST, value: localhost}, {name: KUBERNETES_SERVICE_PORT, value: "7445"}]}`},
	} {
		t.Run(strings.Join(append([]string{"default"}, tt.components...), "+"), func(t *testing.T) {
			if diff := cmp.Diff(kustomized(t, tt.components...), charted(t, tt.values)); diff != "" {
				t.Errorf("kustomize (-) and the chart (+) differ:\n%s", diff)
			}
		})
	}
}

// Every value does what it says.
func TestChartValues(t *testing.T) {
	const speaker, controller = "DaemonSet clarion-system/speaker", "Deployment clarion-system/controller"
	all := charted(t, `
image: {repository: registry.example/clarion, digest: "sha256:`+strings.Repeat("a", 64)+`", pullPolicy: Always}
imagePullSecrets: [{name: pull}]
logLevel: DEBUG
loadBalancerClass: example.com/lb
crds: {install: false}
networkPolicy: false
controller:
  replicas: 3
  podDisruptionBudget: false
  topologySpreadConstraints: [{maxSkew: 2, topologyKey: rack, whenUnsatisfiable: ScheduleAnyway}]
  extraArgs: [--pprof-bind-address=127.0.0.1:6060]
speaker:
  membersPort: 7947
  metricsPort: 9122
  extraArgs: [--announce-holddown=1s]
  resources: {limits: {memory: 1Gi}}
  nodeSelector: {lb: "yes"}
  tolerations: [{key: lb, operator: Exists}]
  affinity: {nodeAffinity: {}}
  podAnnotations: {a: b}
  podLabels: {c: d, app.kubernetes.io/component: mine}
  priorityClassName: high
  updateStrategy: {type: OnDelete}
`)
	at := func(object string, path ...any) string {
		var v any = all[object]
		for _, p := range path {
			switch p := p.(type) {
			case string:
				v = v.(map[string]any)[p]
			case int:
				v = v.([]any)[p]
			}
		}
		return fmt.Sprint(v)
	}
	pod := slices.Clip([]any{"spec", "template", "spec"})
	container := slices.Clip(append(pod, "containers", 0))
	for _, tt := range []struct {
		object string
		path   []any
		want   string
	}{
		{speaker, append(container, "image"), "registry.example/clarion@sha256:" + strings.Repeat("a", 64)},
		{speaker, append(container, "imagePullPolicy"), "Always"},
		{controller, append(pod, "imagePullSecrets"), "[map[name:pull]]"},
		{controller, []any{"spec", "replicas"}, "3"},
		{controller, append(container, "args"), "[--metrics-bind-address=127.0.0.1:9120 --load-balancer-class=example.com/lb --log-level=DEBUG --pprof-bind-address=127.0.0.1:6060]"},
		{controller, append(pod, "topologySpreadConstraints", 0, "topologyKey"), "rack"},
		{speaker, append(container, "args"), "[--health-probe-bind-address=127.0.0.1:9121 --metrics-bind-address=127.0.0.1:9120 --log-level=DEBUG --metrics-bind-address=127.0.0.1:9122 --members-port=7947 --announce-holddown=1s]"},
		{speaker, append(container, "ports", 0, "containerPort"), "9122"},
		{speaker, append(container, "ports", 1, "containerPort"), "7947"},
		{speaker, append(container, "ports", 2, "containerPort"), "7947"},
		{speaker, append(container, "resources"), "map[limits:map[memory:1Gi]]"},
		{speaker, append(pod, "nodeSelector"), "map[kubernetes.io/os:linux lb:yes]"},
		{speaker, append(pod, "tolerations"), "[map[key:lb operator:Exists]]"},
		{speaker, append(pod, "affinity"), "map[nodeAffinity:map[]]"},
		{speaker, append(pod, "priorityClassName"), "high"},
		{speaker, []any{"spec", "template", "metadata", "annotations"}, "map[a:b]"},
		// What the selector asks for cannot be taken away.
		{speaker, []any{"spec", "template", "metadata", "labels"}, "map[app.kubernetes.io/component:speaker app.kubernetes.io/part-of:clarion c:d]"},
		{speaker, []any{"spec", "updateStrategy", "type"}, "OnDelete"},
	} {
		if got := at(tt.object, tt.path...); got != tt.want {
			t.Errorf("%s %v is %s, want %s", tt.object, tt.path, got, tt.want)
		}
	}
	for key := range all {
		if kind, _, _ := strings.Cut(key, " "); kind == "CustomResourceDefinition" || kind == "NetworkPolicy" || kind == "PodDisruptionBudget" {
			t.Errorf("%s is there, and was not to be", key)
		}
	}
}

// In another namespace nothing is left of clarion-system.
func TestChartInAnotherNamespace(t *testing.T) {
	out, err := tool(t, "helm", "template", "lb", chart, "--namespace=infra", "--set=monitoring.enabled=true,openshift=true")
	if err != nil {
		t.Fatal(err)
	}
	if i := strings.Index(out, "clarion-system"); i >= 0 {
		t.Errorf("clarion-system in the namespace infra: …%s…", out[max(0, i-200):i+50])
	}
	if n := strings.Count(out, "helm.sh/resource-policy: keep"); n != strings.Count(out, "kind: CustomResourceDefinition\n") || n == 0 {
		t.Errorf("%d CRDs are kept", n)
	}
}

func TestChartRefusesWrongValues(t *testing.T) {
	for _, set := range []string{
		"loglevel=DEBUG", "logLevel=debug", "controller.replicas=0", "speaker.metricsPort=70000", "image.digest=sha256:1",
		"speaker.proxyHealthURL=https://localhost", "speaker.extraArgs={announce}", "monitoring=true",
	} {
		if _, err := tool(t, "helm", "template", "clarion", chart, "--set="+set); err == nil {
			t.Errorf("--set=%s is taken", set)
		}
	}
}
