package crd

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// A file written for MetalLB needs a new apiVersion line and nothing else. Its namespace may stay: kubectl ignores it, as
// Clarion's kinds are cluster-scoped.
func TestMetalLBFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/metallb/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files (error %v)", err)
	}
	theirs := regexp.MustCompile(`(?m)^apiVersion: metallb\.io/v1beta[12]$`)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			ours := theirs.ReplaceAll(b, []byte("apiVersion: clarionlb.io/v1beta1"))
			path := filepath.Join(t.TempDir(), filepath.Base(file))
			if err := os.WriteFile(path, ours, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := cluster.Kubectl(t.Context(), "apply", "--dry-run=server", "-f", path); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}
