package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// writePlugins writes an archive of kubectl-clarion for each platform, and the manifest by which krew installs them.
func (r *release) writePlugins(ctx context.Context, work string) error {
	var krew strings.Builder
	fmt.Fprintf(&krew, `apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: clarion
spec:
  version: %s
  homepage: %s
  shortDescription: Says what the Clarion load balancer does, and why not more
  description: |
    Shows pools, speakers and BGP sessions of Clarion, a load balancer for
    clusters on bare metal, and explains why a Service is or is not reachable
    from outside. It writes nothing to the cluster.
  platforms:
`, r.version, repository)
	for _, p := range r.plugins {
		program, ending := "kubectl-clarion", ".tar.gz"
		if p.os == "windows" {
			program, ending = program+".exe", ".zip"
		}
		dir := filepath.Join(work, "plugin", p.os+"_"+p.arch)
		if err := r.build(ctx, p, dir, "./kubectl-clarion"); err != nil {
			return err
		}
		files := []file{{name: program, from: filepath.Join(dir, program), mode: 0o755}, {name: "LICENSE", from: "LICENSE", mode: 0o644}}
		if p.os != "windows" {
			files = append(files, file{name: "kubectl_complete-clarion", from: "kubectl-clarion/kubectl_complete-clarion", mode: 0o755})
		}
		name := fmt.Sprintf("kubectl-clarion_%s_%s%s", p.os, p.arch, ending)
		if err := writeArchive(r.path(name), r.time, files); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		b, err := os.ReadFile(r.path(name))
		if err != nil {
			return err
		}
		fmt.Fprintf(&krew, `  - selector:
      matchLabels:
        os: %s
        arch: %s
    uri: %s/releases/download/%s/%s
    sha256: %x
    bin: %s
`, p.os, p.arch, repository, r.version, name, sha256.Sum256(b), program)
	}
	return os.WriteFile(r.path("krew-clarion.yaml"), []byte(krew.String()), 0o644)
}
