package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// stateRoot holds a folder per lab: configuration, logs, sockets and the records of its processes.
const stateRoot = "/run/clarion-lab"

// Options says what a lab is made of. The zero value is a lab called "lab" with three nodes and two routers.
type Options struct {
	// Name tells labs on one machine apart: 1 to 16 letters and digits, lower case. "lab" if empty.
	Name string
	// Nodes is the number of nodes, 1 to 80. 3 if zero.
	Nodes int
	// Routers is the number of routers, 1 to 8. 2 if zero.
	Routers int
	// ProxyMode is kube-proxy's mode, "iptables" (if empty) or "nftables".
	ProxyMode string
	// ProxyArgs are further flags for every kube-proxy.
	ProxyArgs []string
	// ControlPlaneOnly leaves out nodes and routers: an API server with its storage and controllers.
	ControlPlaneOnly bool
	// Detach leaves the lab up when this process ends or Up's context does.
	Detach bool
	// Scheme is what Client knows. Kubernetes' own and the CustomResourceDefinition types if nil.
	Scheme *runtime.Scheme `json:"-"`
	// Progress receives one line per step. Silent if nil.
	Progress io.Writer `json:"-"`
}

// Lab is one cluster with its network. Its methods may be called from several goroutines.
type Lab struct {
	opts  Options
	root  string // the repository
	state string // its folder under stateRoot
	tools string // where etcd, kube-apiserver … are
	lock  *os.File
	pr    *progress
	stop  func() bool // ends the watch on Up's context

	mu        sync.Mutex
	processes map[string]*Process // by HOST.NAME
	faults    faults
	delays    map[string]*delayer   // by link
	pods      map[string]*Pod       // by host
	killed    map[string][]*Process // by node, what KillNode ended
	config    *rest.Config
	client    client.Client
}

var nameRE = regexp.MustCompile(`^[a-z0-9]{1,16}$`)

// New returns a lab that is not running.
func New(o Options) *Lab {
	if o.Name == "" {
		o.Name = "lab"
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Routers == 0 {
		o.Routers = 2
	}
	if o.ControlPlaneOnly {
		o.Nodes, o.Routers = 0, 0
	}
	if o.ProxyMode == "" {
		o.ProxyMode = "iptables"
	}
	return &Lab{
		opts:      o,
		state:     filepath.Join(stateRoot, o.Name),
		pr:        newProgress(o.Progress),
		processes: map[string]*Process{},
		faults:    newFaults(),
		delays:    map[string]*delayer{},
		pods:      map[string]*Pod{},
		killed:    map[string][]*Process{},
	}
}

// Attach returns the running lab of that name, started by another process with Options.Detach.
func Attach(ctx context.Context, name string, progress io.Writer) (*Lab, error) {
	l := New(Options{Name: name})
	if err := l.check(); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(l.state, "lab.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("lab %s is not up", l.opts.Name)
	}
	if err != nil {
		return nil, err
	}
	var s saved
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("lab %s: %w", l.opts.Name, err)
	}
	s.Options.Progress = progress
	l = New(s.Options)
	l.root, l.tools = s.Root, s.Tools
	records, err := l.records()
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		l.processes[r.key()] = l.adopt(r)
	}
	if err := l.connect(); err != nil {
		return nil, err
	}
	return l, l.adoptPods(ctx)
}

// saved is what Attach needs to know of a lab.
type saved struct {
	Options     Options
	Root, Tools string
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.opts.Name }

// Dir is the lab's folder: logs in DIR/log, wrappers for kubectl in DIR/bin, one folder per router. Down removes it.
func (l *Lab) Dir() string { return l.state }

// Root is the folder of Clarion's repository.
func (l *Lab) Root() string { return l.root }

func (l *Lab) check() error {
	o := l.opts
	switch {
	case !nameRE.MatchString(o.Name):
		return fmt.Errorf("lab name %q: want 1 to 16 lower-case letters and digits", o.Name)
	case o.Nodes < 0 || o.Nodes > 80:
		return fmt.Errorf("%d nodes: want 1 to 80", o.Nodes)
	case o.Routers < 0 || o.Routers > 8:
		return fmt.Errorf("%d routers: want 1 to 8", o.Routers)
	case o.ProxyMode != "iptables" && o.ProxyMode != "nftables":
		return fmt.Errorf("proxy mode %q: want iptables or nftables", o.ProxyMode)
	}
	return needRoot()
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("the lab makes network namespaces and needs root: run it with sudo")
	}
	return nil
}

// Up builds what is missing and starts everything. It first removes what an earlier lab of the same name left.
// When it fails, or when ctx ends later and Options.Detach is not set, the lab is taken down; a caller whose
// process ends then should still call Down, which waits for that.
func (l *Lab) Up(ctx context.Context) (err error) {
	if err := l.check(); err != nil {
		return err
	}
	if err := checkDeps(!l.opts.ControlPlaneOnly); err != nil {
		return err
	}
	if l.root, err = repoRoot(); err != nil {
		return err
	}
	if l.tools, err = buildKube(ctx, l.root, l.pr); err != nil {
		return err
	}
	l.pr.restart()
	if err := l.Down(); err != nil {
		return fmt.Errorf("removing the lab before: %w", err)
	}
	if err := l.acquire(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Down())
		}
	}()
	if err := l.save(); err != nil {
		return err
	}
	if err := l.makeNetwork(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	l.pr.step("%d namespaces, switch and links", len(l.hosts())+1)

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.startCluster(gctx) })
	g.Go(func() error { return l.buildGo(gctx, filepath.Join(l.state, "bin"), "./test/lab/pod") })
	for i := range l.opts.Routers {
		g.Go(func() error { return l.Router(i + 1).start(gctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	l.pr.step("ready")
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opts.Detach {
		l.release()
	} else {
		l.stop = context.AfterFunc(ctx, func() { _ = l.Down() })
	}
	return nil
}

func (l *Lab) save() error {
	for _, d := range []string{"bin", "log", "run", "kube"} {
		if err := os.MkdirAll(filepath.Join(l.state, d), 0o755); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(saved{Options: l.opts, Root: l.root, Tools: l.tools}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.state, "lab.json"), b, 0o644)
}

// acquire makes this process the lab's owner: a second one of the same name is refused while this one lives.
func (l *Lab) acquire() error {
	if err := os.MkdirAll(stateRoot, 0o755); err != nil {
		return err
	}
	path := l.state + ".lock"
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return fmt.Errorf("lab %s belongs to another process that is still running", l.opts.Name)
		}
		// The owner before removes the file when it lets go: the lock counts only on the file that is there now.
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return err
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(mine, now) {
			l.lock = f
			return nil
		}
		f.Close()
	}
}

func (l *Lab) release() {
	_ = os.Remove(l.state + ".lock")
	// Closing alone would not do: a child between fork and exec may hold the file for a moment more.
	_ = unix.Flock(int(l.lock.Fd()), unix.LOCK_UN)
	l.lock.Close()
	l.lock = nil
}

// Down stops every process of the lab and removes its namespaces and its folder, also when an earlier process of the
// same name left them. It is idempotent. A lab that another living process owns is left alone, with an error.
func (l *Lab) Down() error {
	if err := l.check(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stop != nil {
		l.stop()
		l.stop = nil
	}
	if l.lock == nil {
		if err := l.acquire(); err != nil {
			return err
		}
	}
	defer l.release()
	for link, d := range l.delays {
		d.close()
		delete(l.delays, link)
	}
	l.faults, l.pods, l.killed = newFaults(), map[string]*Pod{}, map[string][]*Process{}
	l.config, l.client = nil, nil
	records, err := l.records()
	if err != nil {
		return err
	}
	for _, r := range records {
		r.signal(unix.SIGKILL)
	}
	for _, r := range records {
		if err := r.waitGone(10 * time.Second); err != nil {
			return err
		}
	}
	l.processes = map[string]*Process{}
	if err := l.deleteNamespaces(); err != nil {
		return err
	}
	return os.RemoveAll(l.state)
}

// Eventually calls f until it returns nil, and returns f's last error if it has not after timeout or at ctx's end.
func Eventually(ctx context.Context, timeout time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", timeout, err)
		case <-tick.C:
		}
	}
}
