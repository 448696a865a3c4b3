package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// made is a release for this machine alone, with kustomize in place of the programs: building those takes minutes.
func made(t *testing.T) *release {
	t.Helper()
	here := platform{"linux", runtime.GOARCH}
	program, err := command(t.Context(), nil, "go", "tool", "-n", "-modfile=internal/tools/helm/go.mod", "kustomize")
	if err != nil {
		t.Fatal(err)
	}
	r := &release{version: "v9.8.7", commit: strings.Repeat("a", 40), time: time.Unix(1800000000, 0).UTC(), goVer: runtime.Version(),
		out: filepath.Join(t.TempDir(), "dist"), images: []platform{here}, plugins: []platform{{runtime.GOOS, runtime.GOARCH}}}
	r.build = func(_ context.Context, _ platform, dir string, packages ...string) error {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for _, p := range packages {
			if err := os.Symlink(strings.TrimSpace(program), filepath.Join(dir, filepath.Base(p))); err != nil {
				return err
			}
		}
		return nil
	}
	if err := r.make(t.Context(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRelease(t *testing.T) {
	t.Chdir("..")
	r, again := made(t), made(t)

	t.Run("the same bytes again", func(t *testing.T) {
		first, err := r.sums()
		if err != nil {
			t.Fatal(err)
		}
		second, err := again.sums()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(first, second) {
			t.Errorf("two releases of the same commit differ:\n%x\n%x", first, second)
		}
		var names []string
		for _, s := range first {
			names = append(names, s.name)
		}
		want := []string{"SHA256SUMS", "clarion-9.8.7.tgz", "clarion-image.spdx.json", "clarion-image.tar", "clarion.yaml", "krew-clarion.yaml",
			"kubectl-clarion.spdx.json", "kubectl-clarion_" + runtime.GOOS + "_" + runtime.GOARCH + ".tar.gz", "provenance.intoto.json"}
		if !slices.Equal(names, want) {
			t.Errorf("files %v, want %v", names, want)
		}
	})

	t.Run("checksums", func(t *testing.T) {
		cmd := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
		cmd.Dir = r.out
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})

	t.Run("image", func(t *testing.T) {
		blobs := entries(t, read(t, r.path("clarion-image.tar")))
		var digests []string
		// follow reads a blob, checks what is said of it, and returns it decoded.
		follow := func(d descriptor) []byte {
			b := blobs["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
			if got := fmt.Sprintf("sha256:%x", sha256.Sum256(b)); got != d.Digest || len(b) != d.Size {
				t.Fatalf("%s has %d bytes and digest %s, want %d, %s", d.MediaType, len(b), got, d.Size, d.Digest)
			}
			digests = append(digests, d.Digest)
			return b
		}
		var top, index struct{ Manifests []descriptor }
		decode(t, blobs["index.json"], &top)
		decode(t, follow(top.Manifests[0]), &index)
		var manifest struct {
			Config descriptor
			Layers []descriptor
		}
		decode(t, follow(index.Manifests[0]), &manifest)
		var config struct {
			OS, Architecture string
			Config           struct{ User string }
			Rootfs           struct {
				Diffs []string `json:"diff_ids"`
			}
		}
		decode(t, follow(manifest.Config), &config)
		layer := unzip(t, follow(manifest.Layers[0]))
		if config.Rootfs.Diffs[0] != fmt.Sprintf("sha256:%x", sha256.Sum256(layer)) {
			t.Errorf("diff id %v is not that of the layer", config.Rootfs.Diffs)
		}
		if config.OS != "linux" || config.Architecture != runtime.GOARCH || config.Config.User != "65532:65532" {
			t.Errorf("config %+v", config)
		}
		if len(blobs) != len(digests)+2 {
			t.Errorf("%d entries, but %d blobs are used", len(blobs), len(digests))
		}
		files := entries(t, layer)
		if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, []string{"controller", "speaker"}) {
			t.Errorf("the layer has %v", got)
		}
		if text := string(read(t, r.path("clarion.yaml"))); strings.Count(text, "image: "+imageName+":v9.8.7@"+top.Manifests[0].Digest+"\n") != 2 {
			t.Errorf("clarion.yaml does not name the image %s twice", top.Manifests[0].Digest)
		}
	})

	t.Run("plug-in", func(t *testing.T) {
		name := "kubectl-clarion_" + runtime.GOOS + "_" + runtime.GOARCH + ".tar.gz"
		b := read(t, r.path(name))
		files := entries(t, unzip(t, b))
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "kubectl-clarion"), []byte("#!/bin/sh\nprintf '<%s>' \"$@\"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		if got := start(t, files["kubectl_complete-clarion"], "explain", "svc", ""); got != "<__complete><explain><svc><>" {
			t.Errorf("kubectl_complete-clarion asks the plug-in %q", got)
		}
		if krew := string(read(t, r.path("krew-clarion.yaml"))); !strings.Contains(krew, fmt.Sprintf("/v9.8.7/%s\n    sha256: %x\n", name, sha256.Sum256(b))) {
			t.Errorf("krew's manifest does not have %s:\n%s", name, krew)
		}
	})

	t.Run("chart", func(t *testing.T) {
		files := entries(t, unzip(t, read(t, r.path("clarion-9.8.7.tgz"))))
		var about struct{ Version, AppVersion string }
		if err := yaml.Unmarshal(files["clarion/Chart.yaml"], &about); err != nil || about.Version != "9.8.7" || about.AppVersion != "v9.8.7" {
			t.Errorf("Chart.yaml says %+v (%v)", about, err)
		}
		for _, want := range []string{"files/speaker/daemonset.yaml", "files/crd/clarionlb.io_bgppeers.yaml", "values.schema.json", "templates/_helpers.tpl"} {
			if len(files["clarion/"+want]) == 0 {
				t.Errorf("%s is not in the chart", want)
			}
		}
		out, err := command(t.Context(), nil, "go", "tool", "-modfile=internal/tools/helm/go.mod", "helm", "template", r.path("clarion-9.8.7.tgz"))
		if err != nil || strings.Count(out, "image: "+imageName+":v9.8.7\n") != 2 {
			t.Errorf("the chart's archive does not make two programs of %s:v9.8.7: %v", imageName, err)
		}
	})

	t.Run("SBOMs", func(t *testing.T) {
		const dependency = "sigs.k8s.io/kustomize/api"
		for name, want := range map[string]string{"clarion-image": dependency, "kubectl-clarion": dependency} {
			var doc struct {
				Packages []struct{ Name, VersionInfo, SPDXID string }
			}
			decode(t, read(t, r.path(name+".spdx.json")), &doc)
			found := map[string]string{}
			for _, p := range doc.Packages {
				found[p.Name] = p.VersionInfo
			}
			if found[want] == "" || found[name] != "v9.8.7" || found["stdlib"] == "" {
				t.Errorf("%s.spdx.json lacks %s, itself or Go's library among %d packages", name, want, len(doc.Packages))
			}
		}
	})
}

// A program is the same wherever it is built.
func TestBuild(t *testing.T) {
	t.Chdir("..")
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	var programs [][]byte
	for range 2 {
		r, dir := release{version: "v9.8.7"}, t.TempDir()
		if err := r.goBuild(t.Context(), platform{runtime.GOOS, runtime.GOARCH}, dir, "./test/kubelets/stream"); err != nil {
			t.Fatal(err)
		}
		programs = append(programs, read(t, filepath.Join(dir, "stream")))
	}
	if !bytes.Equal(programs[0], programs[1]) {
		t.Error("built twice, the program differs")
	}
	if bytes.Contains(programs[0], []byte(here)) {
		t.Errorf("the program names %s", here)
	}
}

func TestVersion(t *testing.T) {
	for _, v := range []string{"", "1.2.3", "v1.2", "v1.2.3; rm", "v1.2.3+x", "latest"} {
		if err := run(t.Context(), v, t.TempDir(), "linux/amd64", "linux/amd64", ""); err == nil {
			t.Errorf("a release %q is made", v)
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decode(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func unzip(t *testing.T, b []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// entries are the files of a tar archive, by name.
func entries(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// start runs a program that is in memory and returns what it prints.
func start(t *testing.T, program []byte, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}
