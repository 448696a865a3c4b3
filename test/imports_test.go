// Package test holds checks of the project as a whole.
package test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/clarionlb/clarion/"

// What the architecture says packages must not know. A package ending in "/" stands for everything below it.
var kubernetes = []string{"k8s.io/", "sigs.k8s.io/"}

// Pure packages do no I/O: the network, processes, logs and clients of the API server are out of their reach.
var impure = []string{
	"net/http", "os/exec", "log/slog", "k8s.io/client-go/", "sigs.k8s.io/controller-runtime/pkg/client",
	"github.com/osrg/", "github.com/mdlayher/", "github.com/hashicorp/", "github.com/vishvananda/",
}

func TestImports(t *testing.T) {
	for _, tt := range []struct {
		pkg       string
		forbidden []string
	}{
		{"speaker/layer2", kubernetes},
		{"speaker/members", kubernetes},
		{"speaker/bgp", kubernetes},
		{"speaker/bfd", append(kubernetes, "github.com/osrg/")},
		{"speaker/guard", kubernetes},
		{"speaker/probe", kubernetes},
		{"speaker/holddown", append(impure, kubernetes...)},
		{"internal/route", append(impure, kubernetes...)},
		{"internal/announce", impure},
		{"internal/ipam", impure},
		{"internal/plan", []string{"net/http", "os/exec"}},
		{"internal/allocate", []string{"net/http", "os/exec"}},
		{"internal/pool", impure},
		{"internal/config", impure},
		{"internal/explain", impure},
		{"internal/trace", impure},
		{"internal/digest", append(impure, kubernetes...)},
		{"internal/text", append(impure, kubernetes...)},
		{"internal/wake", append(impure, kubernetes...)},
		{"test/chaos/walk", append(impure, kubernetes...)},
		{"controller", []string{"github.com/osrg/", "github.com/mdlayher/", "github.com/hashicorp/memberlist"}},
	} {
		for _, dep := range deps(t, module+tt.pkg) {
			for _, f := range tt.forbidden {
				if dep == f || strings.HasSuffix(f, "/") && strings.HasPrefix(dep, f) {
					t.Errorf("%s must not know %s", tt.pkg, dep)
				}
			}
		}
	}
}

// The API is on the ground, internal packages are above it, and the programs on top: no package knows one of a floor above,
// and no program another.
func TestFloors(t *testing.T) {
	text, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	programs := []string{"controller", "speaker", "kubectl-clarion", "release"}
	floor := func(pkg string) (int, string) {
		top, _, _ := strings.Cut(strings.TrimPrefix(pkg, module), "/")
		switch {
		case !strings.HasPrefix(pkg, module) || top == "test" || top == "docs": // they may know all
			return -1, ""
		case top == "api" || top == "config":
			return 0, top
		case slices.Contains(programs, top):
			return 2, top
		}
		return 1, top
	}
	seen := map[int]bool{}
	for line := range strings.Lines(string(text)) {
		pkgs := strings.Fields(line)
		from, program := floor(pkgs[0])
		for _, to := range pkgs[1:] {
			if at, other := floor(to); from >= 0 && (at > from || at == 2 && other != program) {
				t.Errorf("%s must not know %s", pkgs[0], to)
			}
		}
		seen[from] = true
	}
	if !seen[0] || !seen[1] || !seen[2] {
		t.Errorf("only the floors %v are found", seen)
	}
}

// deps are the packages that a package is built from. Some packages that hold Kubernetes' types reach for the network
// or a logger themselves; what they import is their own affair.
func deps(t *testing.T, pkg string) []string {
	t.Helper()
	var out []string
	seen := map[string]bool{}
	var walk func(string)
	walk = func(p string) {
		text, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, p).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", p, err)
		}
		for _, dep := range strings.Fields(string(text)) {
			if seen[dep] {
				continue
			}
			seen[dep] = true
			out = append(out, dep)
			if strings.HasPrefix(dep, module) {
				walk(dep)
			}
		}
	}
	walk(pkg)
	return out
}
