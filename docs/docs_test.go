// Package docs checks what the documents say that a program can check: objects, metrics, router configuration. Links are
// checked where the site is built (docs/site).
package docs

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
	"github.com/clarionlb/clarion/internal/ipam"
)

// documents are all pages, by name, and ../README.md.
func documents(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	files = append(files, "../README.md")
	out := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out[f] = string(b)
	}
	return out
}

// blocks are a page's blocks of code in a language ("" for none given).
func blocks(page, language string) []string {
	var out []string
	for _, b := range regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$").FindAllStringSubmatch(page, -1) {
		if b[1] == language {
			out = append(out, b[2])
		}
	}
	return out
}

// Objects of Clarion's kinds have no field that the kind does not have.
func TestObjects(t *testing.T) {
	kinds := map[string]func() any{
		"IPAddressPool":    func() any { return &v1beta1.IPAddressPool{} },
		"L2Advertisement":  func() any { return &v1beta1.L2Advertisement{} },
		"BGPAdvertisement": func() any { return &v1beta1.BGPAdvertisement{} },
		"BGPPeer":          func() any { return &v1beta1.BGPPeer{} },
		"BFDProfile":       func() any { return &v1beta1.BFDProfile{} },
	}
	found := 0
	for name, page := range documents(t) {
		text := strings.Join(blocks(page, "yaml"), "---\n")
		for _, sh := range blocks(page, "sh") {
			if _, here, ok := strings.Cut(sh, "<<'YAML'\n"); ok {
				here, _, _ = strings.Cut(here, "\nYAML\n")
				text += "---\n" + here + "\n"
			}
		}
		for doc := range strings.SplitSeq(text, "---\n") {
			var meta struct{ APIVersion, Kind string }
			if err := yaml.Unmarshal([]byte(doc), &meta); err != nil {
				t.Errorf("%s: %v:\n%s", name, err, doc)
				continue
			}
			if meta.APIVersion != v1beta1.GroupVersion.String() {
				continue
			}
			object := kinds[meta.Kind]
			if object == nil {
				t.Errorf("%s: what is a %q?", name, meta.Kind)
				continue
			}
			found++
			if err := yaml.UnmarshalStrict([]byte(doc), object()); err != nil {
				t.Errorf("%s: %v:\n%s", name, err, doc)
			}
		}
	}
	if found < 9 {
		t.Errorf("only %d objects found", found)
	}
}

// TestAllocation: the Services of each example get what stands under it, when they are made one after the other.
func TestAllocation(t *testing.T) {
	examples := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```\n\n```text\n(.*?)^```$").FindAllStringSubmatch(documents(t)["allocation.md"], -1)
	if len(examples) < 7 {
		t.Errorf("only %d examples are found", len(examples))
	}
	for _, e := range examples {
		var pools []v1beta1.IPAddressPool
		var services []*corev1.Service
		namespaces := map[string]labels.Set{}
		for doc := range strings.SplitSeq(e[1], "---\n") {
			var meta metav1.TypeMeta
			if err := yaml.Unmarshal([]byte(doc), &meta); err != nil {
				t.Fatal(err)
			}
			read := func(object any) {
				if err := yaml.UnmarshalStrict([]byte(doc), object); err != nil {
					t.Errorf("%v:\n%s", err, doc)
				}
			}
			switch meta.Kind {
			case "IPAddressPool":
				pools = append(pools, v1beta1.IPAddressPool{})
				read(&pools[len(pools)-1])
			case "Service":
				services = append(services, &corev1.Service{})
				read(services[len(services)-1])
			case "Namespace":
				var ns corev1.Namespace
				read(&ns)
				namespaces[ns.Name] = ns.Labels
			}
		}
		table, now := ipam.NewTable(), time.Unix(1_000_000, 0)
		table.SetPools(allocate.Pools(pools), now)
		class := allocate.Class{Name: v1beta1.LoadBalancerClass, Default: true}
		var got strings.Builder
		for i, svc := range services {
			// What the API server fills in.
			svc.Namespace = cmp.Or(svc.Namespace, metav1.NamespaceDefault)
			svc.CreationTimestamp = metav1.NewTime(now.Add(time.Duration(i) * time.Second))
			svc.Spec.ClusterIPs = []string{"10.96.0.1", "fd00:96::1"}[:max(1, len(svc.Spec.IPFamilies))]
			for p := range svc.Spec.Ports {
				svc.Spec.Ports[p].Protocol = cmp.Or(svc.Spec.Ports[p].Protocol, corev1.ProtocolTCP)
			}
			r := table.Assign(class.Request(svc, namespaces[svc.Namespace]), now)
			fmt.Fprintf(&got, "%s/%s: %s: %s\n", svc.Namespace, svc.Name, r.Reason, r.Message())
		}
		if got.String() != e[2] {
			t.Errorf("of\n%s\ngot\n%s\nthe page says\n%s", e[1], got.String(), e[2])
		}
	}
}

// The configurations for FRR and BIRD are such as these programs accept.
func TestRouters(t *testing.T) {
	page := documents(t)["bgp.md"]
	section := func(heading string) string {
		_, rest, ok := strings.Cut(page, "\n### "+heading+"\n")
		if !ok || len(blocks(rest, "")) == 0 {
			t.Fatalf("bgp.md has no configuration for %s", heading)
		}
		return blocks(rest, "")[0]
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		heading string
		command []string
	}{
		{"FRR", []string{"vtysh", "-C", "--config_dir", dir, "--inputfile", write("frr.conf", section("FRR"))}},
		{"BIRD 2", []string{"/usr/sbin/bird", "-p", "-c", write("bird.conf", "router id 192.0.2.1;\nprotocol device {}\nprotocol bfd {}\n"+section("BIRD 2"))}},
	} {
		t.Run(c.heading, func(t *testing.T) {
			if _, err := exec.LookPath(c.command[0]); err != nil {
				t.Skip(err)
			}
			write("vtysh.conf", "")
			if out, err := exec.Command(c.command[0], c.command[1:]...).CombinedOutput(); err != nil || strings.Contains(string(out), "Unknown command") {
				t.Errorf("%s: %v\n%s", strings.Join(c.command, " "), err, out)
			}
		})
	}
}

// Every metric that a page or an alert names is one that a program serves.
func TestMetrics(t *testing.T) {
	served := map[string]bool{}
	for _, f := range []string{"../controller/metrics.go", "../speaker/metrics.go"} {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`"(clarion_[a-z0-9_]+)"`).FindAllStringSubmatch(string(b), -1) {
			served[m[1]] = true
		}
	}
	pages := documents(t)
	alerts, err := os.ReadFile("../config/components/monitoring/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pages["alerts.yaml"] = string(alerts)
	named := 0
	for name, page := range pages {
		for _, m := range regexp.MustCompile(`\bclarion_[a-z0-9_]+`).FindAllString(page, -1) {
			if named++; !served[m] {
				t.Errorf("%s: nobody serves %s", name, m)
			}
		}
	}
	if len(served) < 20 || named < 20 {
		t.Errorf("%d metrics found, named %d times", len(served), named)
	}
}

// TestArchitecture: the page has a row for each package of internal/ and speaker/, and the files and directories that it
// names are there.
func TestArchitecture(t *testing.T) {
	page := documents(t)["architecture.md"]
	for _, parent := range []string{"internal", "speaker"} {
		entries, err := os.ReadDir(filepath.Join("..", parent))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := parent + "/" + e.Name()
			helps := map[string]bool{"internal/tools": true, "internal/netnstest": true, "internal/metricsauth": true, "internal/version": true, "internal/text": true, "internal/digest": true, "internal/interfaces": true}
			if e.IsDir() && !helps[name] && !strings.Contains(page, "| `"+name+"` |") {
				t.Errorf("package %s has no row", name)
			}
		}
	}
	paths := regexp.MustCompile("`((?:internal|speaker|controller|kubectl-clarion|api|config|test)/[A-Za-z0-9_/.-]*)`").FindAllStringSubmatch(page, -1)
	if len(paths) < 40 {
		t.Errorf("only %d paths are found", len(paths))
	}
	for _, p := range paths {
		if _, err := os.Stat(filepath.Join("..", p[1])); err != nil {
			t.Error(err)
		}
	}
}

var leafRE = regexp.MustCompile(`<!-- (\S+) (Test\w+)(?:/(\w+))? -->`)

// untested are the leaves of the tree that no test makes.
var untested = []string{"AddressReserved", "FamilyMismatch", "Joining (Speaker)", `Ready, "the reservation`, "nothing at all"}

// Each line of the tree that says what a command says is made by a test of that name: one that knows the line's word.
func TestLeaves(t *testing.T) {
	page := documents(t)["troubleshooting.md"]
	leaves := 0
	for _, section := range []string{"No external address (EXTERNAL-IP is pending)", "An address, but it is not announced", "An object is not Ready", "Announced, but nothing answers"} {
		_, rest, ok := strings.Cut(page, "\n## "+section+"\n")
		if !ok {
			t.Fatalf("there is no section %q", section)
		}
		rest, _, _ = strings.Cut(rest, "\n## ")
		rest, _, _ = strings.Cut(rest, "\nBy hand,")
		for line := range strings.Lines(rest) {
			words := regexp.MustCompile(`\b[A-Z][A-Za-z0-9]+[A-Z][A-Za-z0-9]+|^\| ([A-Z][a-z]+)`).FindString(line)
			switch m := leafRE.FindStringSubmatch(line); {
			case !strings.HasPrefix(line, "| "), strings.Contains(line, "| do |"), strings.HasPrefix(line, "| reason "):
			case m == nil:
				if !slices.ContainsFunc(untested, func(u string) bool { return strings.HasPrefix(line, "| "+u) }) {
					t.Errorf("no test makes: %s", line)
				}
			default:
				leaves++
				word := strings.TrimPrefix(words, "| ")
				files, err := filepath.Glob("../" + m[1] + "/*_test.go")
				if err != nil {
					t.Fatal(err)
				}
				made, known := false, false
				for _, f := range files {
					b, err := os.ReadFile(f)
					if err != nil {
						t.Fatal(err)
					}
					if strings.Contains(string(b), "func "+m[2]+"(") {
						made = m[3] == "" || strings.Contains(string(b), `t.Run("`+m[3]+`"`)
						known = strings.Contains(string(b), word)
					}
				}
				if !made || !known {
					t.Errorf("%s: there is no %s in %s that makes it (%v) and names %q (%v)", strings.TrimSpace(line), m[2], m[1], made, word, known)
				}
			}
		}
	}
	if leaves < 30 {
		t.Errorf("only %d leaves", leaves)
	}
}
