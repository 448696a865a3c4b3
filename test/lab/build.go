package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const clarionModule = "module github.com/clarionlb/clarion"

// repoRoot finds Clarion's repository from the working folder upwards.
func repoRoot() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil {
			if first, _, _ := strings.Cut(string(b), "\n"); first == clarionModule {
				return dir, nil
			}
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside Clarion's repository", wd)
		}
	}
}

// kubeVersion is what the programs say they are; the module's version cannot tell them, since they are built from it as
// a dependency. It follows k8s.io/kubernetes in kube/go.mod.
const kubeVersion = "v1.36.3"

var kubePrograms = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kubectl"}

// buildKube returns the folder with the Kubernetes programs, built first if it is missing.
func buildKube(ctx context.Context, root string, pr *progress) (string, error) {
	packages := []string{"./etcd"}
	for _, p := range kubePrograms[1:] {
		packages = append(packages, "k8s.io/kubernetes/cmd/"+p)
	}
	return buildModule(ctx, filepath.Join(root, "test", "lab", "kube"), pr, module{
		files:   []string{"go.mod", "go.sum", "tools.go", "etcd/main.go"},
		ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=" + kubeVersion, packages: packages,
		what: strings.Join(kubePrograms, ", "), usually: "five minutes on two cores, less with a warm build cache",
	})
}

// buildCoreDNS returns the folder with CoreDNS, built first if it is missing.
func buildCoreDNS(ctx context.Context, root string, pr *progress) (string, error) {
	return buildModule(ctx, filepath.Join(root, "test", "lab", "coredns"), pr, module{
		files: []string{"go.mod", "go.sum", "main.go"}, ldflags: "-s -w", packages: []string{"."},
		what: "coredns", usually: "a minute on two cores",
	})
}

// module is what to build in a Go module other than Clarion's own.
type module struct {
	files         []string // what the result depends on, beside the Go version
	ldflags       string
	packages      []string
	what, usually string // for people: its name, and how long it takes
}

// buildModule returns the folder with a module's programs, built first if it is missing. Labs that start at the same
// time wait for the one that builds.
func buildModule(ctx context.Context, from string, pr *progress, m module) (string, error) {
	sum := sha256.New()
	for _, f := range m.files {
		b, err := os.ReadFile(filepath.Join(from, f))
		if err != nil {
			return "", err
		}
		sum.Write(b)
	}
	io.WriteString(sum, m.ldflags+runtime.Version())
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, fmt.Sprintf("%x", sum.Sum(nil)[:6]), "bin")
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	args := append([]string{"build", "-C", from, "-v", "-trimpath", "-ldflags=" + m.ldflags, "-o", tmp + "/"}, m.packages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	var n countLines
	cmd.Stderr = &n
	done := pr.long("building "+m.what+" from its Go module, once", m.usually,
		func() string { return fmt.Sprintf("%d packages compiled", n.lines.Load()) })
	err = cmd.Run()
	done()
	if err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", m.what, err, n.tail())
	}
	return dir, os.Rename(tmp, dir)
}

func cacheDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "/var/cache" // no $HOME, as in some CI systems
	}
	cache = filepath.Join(cache, "clarion-lab")
	return cache, os.MkdirAll(cache, 0o755)
}

// buildGo builds packages of the repository into a folder.
func (l *Lab) buildGo(ctx context.Context, dir string, packages ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-o", dir + "/"}, packages...)...)
	cmd.Dir = l.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(packages, " "), err, out)
	}
	return nil
}

// countLines counts the lines written to it and keeps them.
type countLines struct {
	lines atomic.Int64
	text  bytes.Buffer
}

func (c *countLines) Write(b []byte) (int, error) {
	c.lines.Add(int64(bytes.Count(b, []byte("\n"))))
	return c.text.Write(b)
}

func (c *countLines) tail() string {
	var lines []string
	for s := bufio.NewScanner(&c.text); s.Scan(); {
		lines = append(lines, s.Text())
	}
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// progress prints what the lab does and how long it has taken so far.
type progress struct {
	mu    sync.Mutex
	w     io.Writer
	start time.Time
}

func newProgress(w io.Writer) *progress {
	if w == nil {
		w = io.Discard
	}
	return &progress{w: w, start: time.Now()}
}

func (p *progress) restart() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.start = time.Now()
}

func (p *progress) step(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "lab: %5.1fs  %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

// long announces a step that takes minutes and repeats every ten seconds how it stands, until the result is called.
func (p *progress) long(what, usually string, detail func() string) (done func()) {
	p.restart()
	p.step("%s (usually %s)", what, usually)
	tick := time.NewTicker(10 * time.Second)
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-tick.C:
				p.step("… %s", detail())
			case <-end:
				return
			}
		}
	}()
	return func() {
		tick.Stop()
		close(end)
		<-ended
		p.step("%s: done, %s", what, detail())
	}
}

// depends says which Debian package has each program that the lab and the tests run.
var depends = []struct {
	program, pkg string
	network      bool // needed only where there are nodes and routers
}{
	{"/usr/sbin/ip", "iproute2", false},
	{"/usr/sbin/nft", "nftables", false},
	{"/usr/sbin/sysctl", "procps", false},
	{"/usr/bin/setpriv", "util-linux", true},
	{"/usr/sbin/iptables", "iptables", true},
	{"/usr/sbin/conntrack", "conntrack", true},
	{"/usr/sbin/ethtool", "ethtool", true},
	{"/usr/lib/frr/bgpd", "frr", true},
	{"/usr/bin/vtysh", "frr", true},
	{"/usr/sbin/bird", "bird2", true},
	{"/usr/bin/arping", "iputils-arping", true},
	{"/usr/bin/ping", "iputils-ping", true},
	{"/usr/bin/tcpdump", "tcpdump", true},
	{"/usr/bin/tshark", "tshark", true},
	{"/usr/bin/ndisc6", "ndisc6", true},
	{"/usr/bin/dig", "bind9-dnsutils", true},
	{"/usr/sbin/nginx", "nginx", true},
	{"/usr/sbin/haproxy", "haproxy", true},
	{"/usr/bin/promtool", "prometheus", true},
}

// browser is what tests of the page in kubectl-clarion run; the lab does without.
var browser = []string{"/usr/bin/chromium", "chromium"}

// services are those that a package of depends brings along and Debian starts. The lab runs the programs itself, in
// its namespaces.
var services = map[string]string{"frr": "frr", "bird2": "bird", "nginx": "nginx", "haproxy": "haproxy", "prometheus": "prometheus"}

// missing lists the Debian packages whose programs are not there.
func missing(network bool) []string {
	var out []string
	seen := map[string]bool{}
	for _, d := range depends {
		if d.network && !network || seen[d.pkg] {
			continue
		}
		if _, err := os.Stat(d.program); err == nil {
			continue
		}
		// Debian versions differ in /sbin and /bin.
		if _, err := exec.LookPath(filepath.Base(d.program)); err == nil {
			continue
		}
		seen[d.pkg] = true
		out = append(out, d.pkg)
	}
	return out
}

func checkDeps(network bool) error {
	if m := missing(network); len(m) > 0 {
		return fmt.Errorf("missing Debian packages: %s (go run ./test/lab/cmd/lab deps installs them)", strings.Join(m, " "))
	}
	return nil
}

// Deps installs the Debian packages that the lab and the tests need and this machine lacks. Services that come with them are neither
// started nor enabled. Without root it only names the packages, in its error.
func Deps(ctx context.Context, w io.Writer) error {
	m := missing(true)
	if _, err := os.Stat(browser[0]); err != nil {
		m = append(m, browser[1])
	}
	if len(m) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("missing Debian packages, install them as root: apt-get install " + strings.Join(m, " "))
	}
	fmt.Fprintln(w, "installing", strings.Join(m, " "))
	undo, err := forbidServices("/usr/sbin/policy-rc.d")
	if err != nil {
		return err
	}
	defer undo()
	commands := [][]string{{"apt-get", "update", "-q"},
		append([]string{"apt-get", "install", "-y", "-q", "--no-install-recommends"}, m...)}
	for _, pkg := range m {
		if s := services[pkg]; s != "" {
			commands = append(commands, []string{"update-rc.d", s, "disable"})
		}
	}
	for _, args := range commands {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		cmd.Stdout, cmd.Stderr = w, w
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
		}
	}
	return nil
}

// forbidServices has Debian's packages start no service while they are installed: they ask the program at path, whose
// exit code 101 means no. One that is there already stays.
func forbidServices(path string) (undo func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if errors.Is(err, os.ErrExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString("#!/bin/sh\nexit 101\n")
	return func() { os.Remove(path) }, errors.Join(err, f.Close())
}
