// Package containerlab checks that the files for containerlab in this folder describe the lab's own topology.
package containerlab

import (
	"flag"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/clarionlb/clarion/test/lab"
)

var update = flag.Bool("update", false, "write the files anew")

func files(t *testing.T) map[string]string {
	t.Helper()
	files, err := lab.New(lab.Options{}).Containerlab()
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// The files are those that the lab's topology gives.
func TestUpToDate(t *testing.T) {
	for name, want := range files(t) {
		if *update {
			if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		have, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(have)); diff != "" {
			t.Errorf("%s differs from the lab's topology (-want +have): go test ./test/containerlab -update\n%s", name, diff)
		}
	}
}

// Every link has two ends that exist, each interface is used once, and every host of the lab is there with its addresses.
func TestComplete(t *testing.T) {
	var topology struct {
		Topology struct {
			Nodes map[string]struct {
				Kind string
				Exec []string
			}
			Links []struct{ Endpoints []string }
		}
	}
	all := files(t)
	if err := yaml.Unmarshal([]byte(all["clarion.clab.yml"]), &topology); err != nil {
		t.Fatal(err)
	}
	nodes := topology.Topology.Nodes
	used := map[string]bool{}
	for _, l := range topology.Topology.Links {
		for _, end := range l.Endpoints {
			host, iface, _ := strings.Cut(end, ":")
			if _, ok := nodes[host]; !ok || iface == "" || len(iface) > 15 || used[end] {
				t.Errorf("link end %q: no such node, no proper interface name, or used twice", end)
			}
			used[end] = true
		}
	}
	var commands []string
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		commands = append(commands, nodes[name].Exec...)
	}
	ports := 0
	for _, network := range lab.New(lab.Options{}).Topology() {
		for _, p := range network.Ports {
			ports++
			for _, a := range []string{p.IPv4.String(), p.IPv6.String()} {
				if !slices.ContainsFunc(commands, func(c string) bool { return strings.HasPrefix(c, "ip addr add "+a+"/") }) {
					t.Errorf("%s: nobody has %s", p.Host, a)
				}
			}
		}
	}
	if got := len(topology.Topology.Links); got != ports {
		t.Errorf("%d links, want one for each of %d ports", got, ports)
	}
}
