package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/rest"
)

// secretObjects hold a canary wherever a secret may be.
const secretObjects = `
apiVersion: v1
kind: Secret
metadata: {name: tor1, namespace: clarion-system, annotations: {kubectl.kubernetes.io/last-applied-configuration: canary}}
data: {password: Y2FuYXJ5}
stringData: {password: canary}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata:
  name: secret
  annotations: {kubectl.kubernetes.io/last-applied-configuration: '{"spec":{"password":"canary"}}', clarionlb.io/note: kept}
  managedFields: [{manager: canary, operation: Apply, apiVersion: v1, fieldsType: FieldsV1, fieldsV1: {}}]
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.3, password: canary}
---
apiVersion: v1
kind: Node
metadata: {name: node9, annotations: {k3s.io/node-args: '["--token","canary"]', node.alpha.kubernetes.io/ttl: "0"}}
---
apiVersion: v1
kind: Service
metadata: {name: secret, namespace: shop, annotations: {example.com/api-key: canary, metallb.io/address-pool: lan}, labels: {env: prod}}
spec: {type: LoadBalancer, selector: {env: prod}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: speaker-1, namespace: clarion-system}
spec:
  nodeName: node1
  initContainers:
  - {name: init, env: [{name: A, value: canary}]}
  containers:
  - name: speaker
    args: ["--api-token=canary", "--metrics-bind-address=127.0.0.1:9120"]
    env: [{name: WEBHOOK_TOKEN, value: canary2}, {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
    livenessProbe: {httpGet: {port: 1, httpHeaders: [{name: Authorization, value: canary}]}}
    ports: [{name: metrics, containerPort: 9120}]
status: {containerStatuses: [{name: speaker, restartCount: 1, image: x, imageID: x, ready: true, started: true, state: {}, lastState: {}}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: speaker, namespace: clarion-system}
spec:
  selector: {}
  template:
    metadata: {annotations: {vault.hashicorp.com/secret: canary}}
    spec: {containers: [{name: speaker, env: [{name: A, value: canary}]}]}
---
apiVersion: events.k8s.io/v1
kind: Event
metadata: {name: e1, namespace: clarion-system}
note: the password was canary
---
apiVersion: events.k8s.io/v1
kind: Event
metadata: {name: e2, namespace: shop}
regarding: {kind: Pod, name: of-somebody-else}
note: of no concern
`

// fakePods say what they should not.
type fakePods struct{}

func (f fakePods) log(_ context.Context, _ *corev1.Pod, _ string, previous bool) ([]byte, error) {
	if previous {
		return nil, errors.New("canary2 is not there")
	}
	return []byte("a log with canary, canary2 and kubeconfig-token\n"), nil
}

func (f fakePods) metrics(context.Context, *corev1.Pod, uint16) ([]byte, error) {
	return []byte("clarion_up 1 # kubeconfig-token\n"), nil
}

// readArchive is what is in a tar.gz, by name without the directory.
func readArchive(t *testing.T, file string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	gz, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for r := tar.NewReader(gz); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		out[name] = string(data)
	}
}

// takeDump takes a dump of what is in common.txtar and more objects.
func takeDump(t *testing.T, objects string, forbidden ...string) (said string, code int, files map[string]string) {
	t.Helper()
	common := parse(t, "testdata/common.txtar")
	from := readerOf(t, string(common.Files[0].Data)+"---\n"+objects, forbidden)
	var out bytes.Buffer
	a := testApp(from, &out)
	connect := a.connect
	a.connect = func(flags *genericclioptions.ConfigFlags) (*connection, error) {
		c, err := connect(flags)
		c.config, c.pods = &rest.Config{BearerToken: "kubeconfig-token"}, fakePods{}
		return c, err
	}
	file := filepath.Join(t.TempDir(), "dump.tar.gz")
	code = a.run(t.Context(), []string{"dump", "--to", file})
	return strings.ReplaceAll(out.String(), file, "FILE"), code, readArchive(t, file)
}

// No secret is in a dump, wherever it is in the cluster, while what the dump is for is there.
func TestDumpHoldsNoSecret(t *testing.T) {
	_, code, files := takeDump(t, secretObjects)
	if code != int(couldNotTell) { // the log of the container before is not there
		t.Errorf("exit code %d", code)
	}
	for name, text := range files {
		for _, secret := range []string{"canary", "Y2FuYXJ5", "kubeconfig-token"} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s holds %s: %s", name, secret, text[max(0, i-80):min(len(text), i+40)])
			}
		}
	}
	want := map[string]string{
		"objects/BGPPeer.yaml": "clarionlb.io/note: kept", "objects/Service.yaml": "metallb.io/address-pool: lan",
		"objects/Pod.yaml": "fieldPath: spec.nodeName", "objects/DaemonSet.yaml": "name: speaker", "objects/Node.yaml": "node.alpha.kubernetes.io/ttl",
		"objects/Lease.yaml": "clarion-controller", "events.yaml": "the password was (removed)", "status.txt": "SPEAKER",
		"logs/speaker-1.speaker.log": "a log with (removed), (removed) and (removed)", "metrics/speaker-1.txt": "clarion_up 1",
		"about.yaml": "logs/speaker-1.speaker.previous.log",
	}
	for name, text := range want {
		if !strings.Contains(files[name], text) {
			t.Errorf("%s does not say %q:\n%s", name, text, files[name])
		}
	}
	if strings.Contains(files["events.yaml"], "of no concern") || strings.Contains(files["objects/Service.yaml"], removed) {
		t.Error("somebody else's event is there, or a selector has been taken for a secret")
	}
}

// Whoever may read little gets what he may read, and is told what is not there, by the archive and on the standard error.
func TestDumpWithFewRights(t *testing.T) {
	said, code, files := takeDump(t, secretObjects, "Node", "Service", "Event", "Namespace")
	const want = `FILE: 19 files, 5 KiB

Event not shown: Event is forbidden: no right to list it
Namespace not shown: Namespace is forbidden: no right to list it
Node not shown: Node is forbidden: no right to list it
Service not shown: but for those of the namespace default: Service is forbidden: no right to list it
logs/speaker-1.speaker.previous.log not shown: (removed) is not there
`
	_, size, _ := strings.Cut(said, "files, ")
	size, _, _ = strings.Cut(size, " KiB")
	if diff := gocmp.Diff(want, strings.Replace(said, "files, "+size, "files, 5", 1)); diff != "" || code != int(couldNotTell) {
		t.Errorf("exit code %d (-want +got):\n%s", code, diff)
	}
	if _, there := files["objects/Node.yaml"]; there || !strings.Contains(files["about.yaml"], "Node is forbidden") || !strings.Contains(files["events.yaml"], "e1") {
		t.Errorf("%v", slices.Sorted(func(yield func(string) bool) {
			for n := range files {
				if !yield(n) {
					return
				}
			}
		}))
	}
}

// What is no dump is said to be none.
func TestNoDump(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ args, want string }{
		{"status --offline", "error: which dump? want --offline --cluster DUMP\nexit 2\n"},
		{"status --offline --cluster " + empty, "error: the dump " + empty + ": EOF\nexit 2\n"},
		{"status --watch --offline --cluster " + empty, "error: nothing changes in a dump: --watch is for a cluster\nexit 2\n"},
		{"dump --offline --cluster " + empty, "error: a dump of a dump is the dump: " + empty + "\nexit 2\n"},
	} {
		if got := says(t, nil, nil, strings.Fields(tt.args)...); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.args, got, tt.want)
		}
	}
}

// A password that is not in the dump is no reason to say that a session would be reset; what else is edited is.
func TestPlanOfDumpedPassword(t *testing.T) {
	common := parse(t, "testdata/common.txtar")
	from := readerOf(t, string(common.Files[0].Data)+"---\n"+secretObjects, nil)
	const peer = "apiVersion: clarionlb.io/v1beta1\nkind: BGPPeer\nmetadata: {name: secret}\nspec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.3, password: canary}\n"
	got := saysOfDump(t, from, []byte(peer), strings.Fields("plan -f -"))
	const want = "Nothing would change.\n\nBGPPeer/secret: its password is taken to be what it was, which the dump does not hold\n"
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// What the file holds is judged beside what the dump holds.
	const ad = "apiVersion: clarionlb.io/v1beta1\nkind: BGPAdvertisement\nmetadata: {name: new}\nspec: {ipAddressPools: [lan, nosuch], peers: [secret]}\n"
	got = saysOfDump(t, from, []byte(ad), strings.Fields("lint -f -"))
	if !strings.Contains(got, "nosuch") || strings.Contains(got, "pool lan") || strings.Contains(got, "BGPPeer secret") {
		t.Error(got)
	}
}
