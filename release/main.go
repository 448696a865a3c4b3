// Command release makes in one folder all that a release page offers: clarion.yaml and the Helm chart, the image, the
// kubectl plug-in for every system with its krew manifest, SBOMs, provenance, checksums. It needs Go and git, no Docker
// and no network but for Go modules, and makes the same bytes from the same commit with the same Go.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	repository = "https://github.com/clarionlb/clarion"
	imageName  = "ghcr.io/clarionlb/clarion"
)

// release is what is made, and of what.
type release struct {
	version string // with its v
	commit  string
	time    time.Time // of the commit: the time of every file in an archive
	goVer   string
	out     string // the folder for the result
	images  []platform
	plugins []platform
	// build builds programs for a platform into a folder.
	build func(ctx context.Context, p platform, dir string, packages ...string) error
}

// platform is what a program is built for.
type platform struct{ os, arch string }

func (p platform) String() string { return p.os + "/" + p.arch }

func main() {
	version := flag.String("version", "", "of the release, such as v1.2.3")
	out := flag.String("out", "dist", "`folder` for the result; what is in it is removed")
	images := flag.String("images", "linux/amd64,linux/arm64", "platforms of the image")
	plugins := flag.String("plugins", "linux/amd64,linux/arm64,darwin/amd64,darwin/arm64,windows/amd64,windows/arm64", "platforms of the kubectl plug-in")
	image := flag.String("image", "", "write nothing but the image, into this `file`, of the tree as it is")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *version, *out, *images, *plugins, *image); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

var semver = regexp.MustCompile(`^v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$`)

func run(ctx context.Context, version, out, images, plugins, image string) error {
	if !semver.MatchString(version) {
		return fmt.Errorf("version %q is not like v1.2.3", version)
	}
	r := release{version: version, out: out, goVer: runtime.Version()}
	r.build = r.goBuild
	for _, list := range []struct {
		text string
		to   *[]platform
	}{{images, &r.images}, {plugins, &r.plugins}} {
		for p := range strings.SplitSeq(list.text, ",") {
			system, arch, ok := strings.Cut(p, "/")
			if !ok {
				return fmt.Errorf("platform %q is not like linux/amd64", p)
			}
			*list.to = append(*list.to, platform{system, arch})
		}
	}
	if changed, err := command(ctx, nil, "git", "status", "--porcelain"); err != nil {
		return err
	} else if changed != "" && image == "" {
		return fmt.Errorf("a release is made of a commit, and these files differ from it:\n%s", changed)
	}
	head, err := command(ctx, nil, "git", "log", "-1", "--format=%H %ct")
	if err != nil {
		return err
	}
	commit, seconds, _ := strings.Cut(strings.TrimSpace(head), " ")
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return err
	}
	r.commit, r.time = commit, time.Unix(unix, 0).UTC()
	if image != "" {
		return r.temporary(func(work string) error {
			_, err := r.makeImage(ctx, image, work)
			return err
		})
	}
	return r.temporary(func(work string) error { return r.make(ctx, work) })
}

// temporary hands a folder for programs to do, and removes it.
func (r *release) temporary(do func(work string) error) error {
	work, err := os.MkdirTemp("", "clarion-release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	return do(work)
}

// makeImage builds the programs of the image into work and writes the image to path.
func (r *release) makeImage(ctx context.Context, path, work string) (digest string, err error) {
	layers := map[platform][]file{}
	for _, p := range r.images {
		dir := filepath.Join(work, "image", p.os+"_"+p.arch)
		if err := r.build(ctx, p, dir, "./controller", "./speaker"); err != nil {
			return "", err
		}
		for _, name := range []string{"controller", "speaker"} {
			layers[p] = append(layers[p], file{name: name, from: filepath.Join(dir, name), mode: 0o755})
		}
	}
	return r.writeImage(path, layers)
}

// make makes the files one after the other.
func (r *release) make(ctx context.Context, work string) error {
	if err := errors.Join(os.RemoveAll(r.out), os.MkdirAll(r.out, 0o755)); err != nil {
		return err
	}
	digest, err := r.makeImage(ctx, r.path("clarion-image.tar"), work)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	if err := r.writeManifest(ctx, digest); err != nil {
		return err
	}
	if err := r.writeChart(); err != nil {
		return fmt.Errorf("chart: %w", err)
	}
	if err := r.writePlugins(ctx, work); err != nil {
		return err
	}
	if err := r.writeSBOMs(work); err != nil {
		return fmt.Errorf("SBOM: %w", err)
	}
	sums, err := r.sums()
	if err != nil {
		return err
	}
	if err := r.writeProvenance(sums); err != nil {
		return err
	}
	if sums, err = r.sums(); err != nil {
		return err
	}
	var text strings.Builder
	for _, s := range sums {
		fmt.Fprintf(&text, "%x  %s\n", s.sum, s.name)
	}
	return os.WriteFile(r.path("SHA256SUMS"), []byte(text.String()), 0o644)
}

func (r *release) path(name string) string { return filepath.Join(r.out, name) }

// goBuild builds programs as the Dockerfile does.
func (r *release) goBuild(ctx context.Context, p platform, dir string, packages ...string) error {
	fmt.Fprintln(os.Stderr, "building", strings.Join(packages, " "), "for", p)
	_, err := command(ctx, []string{"CGO_ENABLED=0", "GOOS=" + p.os, "GOARCH=" + p.arch, "GOFLAGS=", "GOAMD64=v1", "GOARM64=v8.0"},
		"go", append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags=" + r.ldflags(), "-o", dir + "/"}, packages...)...)
	return err
}

func (r *release) ldflags() string {
	return "-s -w -buildid= -X github.com/clarionlb/clarion/internal/version.release=" + r.version
}

// writeManifest writes clarion.yaml: config/default with this image, by its digest.
func (r *release) writeManifest(ctx context.Context, digest string) error {
	text, err := command(ctx, nil, "go", "tool", "-modfile=internal/tools/helm/go.mod", "kustomize", "build", "config/default")
	if err != nil {
		return err
	}
	image := regexp.MustCompile(`(?m)^(\s+(?:- )?image: )` + regexp.QuoteMeta(imageName) + `:\S+$`)
	if n := len(image.FindAllString(text, -1)); n != 2 {
		return fmt.Errorf("config/default names the image %s %d times, want twice", imageName, n)
	}
	text = image.ReplaceAllString(text, "${1}"+imageName+":"+r.version+"@"+digest)
	return os.WriteFile(r.path("clarion.yaml"), []byte("# Clarion "+r.version+"\n"+text), 0o644)
}

// writeChart writes the Helm chart's archive, with the files of config/ that its links point to.
func (r *release) writeChart() error {
	const root = "config/helm/clarion"
	var files []file
	var walk func(dir, name string) error
	walk = func(dir, name string) error {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			from, to := filepath.Join(dir, e.Name()), name+"/"+e.Name()
			info, err := os.Stat(from) // follows links
			switch {
			case err != nil:
				return err
			case info.IsDir():
				if err := walk(from, to); err != nil {
					return err
				}
			case e.Name() != ".helmignore" && e.Name() != "kustomization.yaml":
				files = append(files, file{name: to, from: from, mode: 0o644})
			}
		}
		return nil
	}
	if err := walk(root, "clarion"); err != nil {
		return err
	}
	text, err := os.ReadFile(root + "/Chart.yaml")
	if err != nil {
		return err
	}
	chart := regexp.MustCompile(`(?m)^version: .*$`).ReplaceAllString(string(text), "version: "+r.version[1:])
	chart = regexp.MustCompile(`(?m)^appVersion: .*$`).ReplaceAllString(chart, "appVersion: "+r.version)
	i := slices.IndexFunc(files, func(f file) bool { return f.name == "clarion/Chart.yaml" })
	files[i].data = []byte(chart)
	return writeArchive(r.path("clarion-"+r.version[1:]+".tgz"), r.time, files)
}

// sum is a file of the result and what is in it.
type sum struct {
	name string
	sum  [sha256.Size]byte
}

// sums are those of all files of the result so far, by name.
func (r *release) sums() ([]sum, error) {
	entries, err := os.ReadDir(r.out)
	if err != nil {
		return nil, err
	}
	var all []sum
	for _, e := range entries {
		b, err := os.ReadFile(r.path(e.Name()))
		if err != nil {
			return nil, err
		}
		all = append(all, sum{e.Name(), sha256.Sum256(b)})
	}
	return all, nil
}

// command runs a program in the repository and returns what it prints.
func command(ctx context.Context, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}
