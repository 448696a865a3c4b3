// Package interop holds the speaker's BGP and BFD against real routers, FRR, BIRD and GoBGP, in network namespaces. What counts
// is what the router says, not what the speaker says of itself.
package interop

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/clarionlb/clarion/internal/route"
	"github.com/clarionlb/clarion/speaker/bfd"
	"github.com/clarionlb/clarion/speaker/bgp"
)

// TestMain runs the tests in network and mount namespaces of their own: the process is the node, and everything that
// it makes goes when it ends.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("interop tests skipped: they need root, for network namespaces")
		return
	}
	if spec := os.Getenv("CLARION_INTEROP_BFD"); spec != "" {
		bfdPeerProcess(spec)
		return
	}
	if os.Getenv("CLARION_INTEROP_INSIDE") == "" {
		os.Exit(inside())
	}
	setup := [][]string{
		{"mount", "--make-rprivate", "/"},
		{"mount", "-t", "tmpfs", "tmpfs", "/run"},
		{"mount", "-t", "tmpfs", "tmpfs", "/var/tmp"}, // FRR keeps crash logs there
		{"ip", "link", "set", "lo", "up"},
		{"sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0", "net.ipv4.ip_nonlocal_bind=0"},
	}
	for _, c := range setup {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			fmt.Printf("%v: %v: %s\n", c, err, out)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func inside() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(append(os.Environ(), "CLARION_INTEROP_INSIDE=1"), gobgpTools()...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the death signal is tied to the thread
	if err := cmd.Run(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func sh(t testing.TB, format string, args ...any) string {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	out, err := exec.Command("sh", "-ec", line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// router is a namespace on a link to the node, with routing daemons in it. The node has .1 and the router .2 of the
// link, in IPv4 and IPv6.
type router struct {
	t    testing.TB
	ns   string
	dir  string
	n    int // of the link
	node link
	peer link
	bfdd *process
}

type link struct {
	v4, v6 netip.Addr
	ifname string
}

var routers struct {
	sync.Mutex
	n int
}

// newRouter makes a namespace and the link to it.
func newRouter(t testing.TB) *router {
	t.Helper()
	routers.Lock()
	routers.n++
	n := routers.n
	routers.Unlock()
	r := &router{
		t: t, ns: fmt.Sprintf("r%d", n), dir: t.TempDir(), n: n,
		node: link{netip.AddrFrom4([4]byte{198, 18, byte(n), 1}), netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::1", n)), fmt.Sprintf("n%d", n)},
		peer: link{netip.AddrFrom4([4]byte{198, 18, byte(n), 2}), netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::2", n)), "eth0"},
	}
	sh(t, `ip netns add %[1]s
ip link add %[2]s type veth peer name eth0 netns %[1]s
ip addr add %[3]s/24 dev %[2]s; ip addr add %[4]s/64 dev %[2]s nodad; ip link set %[2]s up
ip netns exec %[1]s sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.eth0.accept_dad=0 net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.fib_multipath_hash_policy=1
ip -n %[1]s link set lo up
ip -n %[1]s addr add %[5]s/24 dev eth0; ip -n %[1]s addr add %[6]s/64 dev eth0 nodad; ip -n %[1]s link set eth0 up`,
		r.ns, r.node.ifname, r.node.v4, r.node.v6, r.peer.v4, r.peer.v6)
	t.Cleanup(func() { sh(t, "ip link del %s 2>/dev/null || true; ip netns del %s", r.node.ifname, r.ns) })
	return r
}

// daemon runs a program in the router's namespace until the test ends or the returned process is killed.
func (r *router) daemon(argv ...string) *process {
	r.t.Helper()
	log, err := os.Create(filepath.Join(r.dir, filepath.Base(argv[0])+".out"))
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command("ip", append([]string{"netns", "exec", r.ns}, argv...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGCONT)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if r.t.Failed() {
			b, _ := os.ReadFile(log.Name())
			r.t.Logf("%s in %s:\n%s", argv[0], r.ns, b)
		}
	})
	return &process{cmd}
}

// process is a daemon. Its first process has become the daemon itself: "ip netns exec" does not fork.
type process struct{ *exec.Cmd }

func (p *process) signal(s syscall.Signal) error { return p.Process.Signal(s) }

// output is what a daemon has written so far.
func (r *router) output(name string) string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, name+".out"))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// frr starts zebra and bgpd, with bfdd if wanted, with bgpd's configuration conf, in which {node4} and the like stand
// for the addresses of the link. It returns bgpd.
func (r *router) frr(conf string) *process {
	r.t.Helper()
	if _, err := os.Stat("/usr/lib/frr/bgpd"); err != nil {
		r.t.Skip("FRR is not installed")
	}
	u, err := user.Lookup("frr")
	if err != nil {
		r.t.Skip("FRR is not installed: ", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	for d := r.dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) { // TempDir is closed to others
		_ = os.Chmod(d, 0o755)
	}
	if err := os.Chown(r.dir, uid, gid); err != nil {
		r.t.Fatal(err)
	}
	r.write("zebra.conf", "")
	r.write("bfdd.conf", "")
	r.write("bgpd.conf", r.expand(conf))
	for _, name := range []string{"zebra", "bfdd"} {
		d := r.daemon(r.frrArgs(name)...)
		if name == "bfdd" {
			r.bfdd = d
		}
		r.eventually(10*time.Second, name+" is up", func() bool { return r.tryVtysh(name, "show version") })
	}
	return r.bgpd()
}

func (r *router) bgpd() *process {
	cmd := r.daemon(r.frrArgs("bgpd")...)
	r.eventually(10*time.Second, "bgpd is up", func() bool { return r.tryVtysh("bgpd", "show version") })
	return cmd
}

func (r *router) frrArgs(name string) []string {
	a := []string{"/usr/lib/frr/" + name, "-u", "frr", "-g", "frr", "-f", r.dir + "/" + name + ".conf", "-i", r.dir + "/" + name + ".pid", "-z", r.dir + "/zserv.api", "--vty_socket", r.dir, "-P", "0"}
	if name == "bfdd" {
		a = append(a, "--bfdctl", r.dir+"/bfdd.sock")
	}
	return a
}

func (r *router) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *router) expand(s string) string {
	return strings.NewReplacer("{node4}", r.node.v4.String(), "{node6}", r.node.v6.String(), "{peer4}", r.peer.v4.String(), "{peer6}", r.peer.v6.String()).Replace(s)
}

func (r *router) tryVtysh(daemon, command string) bool {
	return exec.Command("ip", "netns", "exec", r.ns, "vtysh", "--vty_socket", r.dir, "-d", daemon, "-c", command).Run() == nil
}

// vtysh runs commands and returns their output.
func (r *router) vtysh(commands ...string) string {
	r.t.Helper()
	args := []string{"netns", "exec", r.ns, "vtysh", "--vty_socket", r.dir}
	for _, c := range commands {
		args = append(args, "-c", r.expand(c))
	}
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("vtysh %q: %v\n%s", commands, err, out)
	}
	return string(out)
}

// json runs a show command and reads its JSON output.
func (r *router) json(command string) any {
	r.t.Helper()
	out := r.vtysh(command)
	var v any
	if i := strings.IndexAny(out, "{["); i >= 0 {
		out = out[i:]
	}
	d := json.NewDecoder(strings.NewReader(out))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		r.t.Logf("%s: %v\n%s", command, err, out)
	}
	return v
}

// at walks into a value from JSON: names for objects, numbers for arrays; nil if there is nothing.
func at(v any, keys ...any) any {
	for _, k := range keys {
		switch k := k.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[k]
		case int:
			a, _ := v.([]any)
			if k >= len(a) {
				return nil
			}
			v = a[k]
		}
	}
	return v
}

func (r *router) eventually(d time.Duration, what string, ok func() bool) {
	r.t.Helper()
	eventually(r.t, d, what, ok)
}

// eventually waits until ok, for d at most.
func eventually(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); ; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", d, what)
		}
	}
}

// routeText is how the router sees a prefix: next hops and the attributes that it got, "" if it does not have it.
func (r *router) routeText(prefix string) string {
	r.t.Helper()
	family := "ipv4"
	if strings.Contains(prefix, ":") {
		family = "ipv6"
	}
	v := r.json(fmt.Sprintf("show bgp %s unicast %s json", family, prefix))
	paths, _ := at(v, "paths").([]any)
	var lines []string
	for _, p := range paths {
		s := ""
		hops, _ := at(p, "nexthops").([]any)
		for _, h := range hops {
			if at(h, "scope") != "link-local" || len(hops) == 1 {
				s += fmt.Sprintf("via %v", at(h, "ip"))
			}
		}
		if a, _ := at(p, "aspath", "string").(string); a != "" {
			s += fmt.Sprintf(" path %v", a)
		}
		for _, k := range []string{"metric", "locPrf"} {
			if x := at(p, k); x != nil {
				s += fmt.Sprintf(" %s %v", k, x)
			}
		}
		for _, k := range []string{"community", "largeCommunity", "extendedCommunity"} {
			if x := at(p, k, "string"); x != nil {
				s += fmt.Sprintf(" %s %v", k, x)
			}
		}
		lines = append(lines, s)
	}
	return strings.Join(lines, "\n")
}

// node runs a speaker, and its BFD, until the test ends or stop is called.
type node struct {
	t       testing.TB
	speaker *bgp.Speaker
	stop    func()
	log     *logBuffer
}

func newNode(t testing.TB, c bgp.Config) *node {
	t.Helper()
	n := &node{t: t, log: &logBuffer{}}
	c.Log = slog.New(slog.NewTextHandler(io.MultiWriter(n.log), nil))
	c.Leave = cmp.Or(c.Leave, -1) // tests that are not about it do not wait for it
	runner := bfd.New(bfd.Config{Log: c.Log})
	c.BFD = runner
	n.speaker = bgp.New(c)
	bfdCtx, stopBFD := context.WithCancel(context.Background())
	ctx, stopBGP := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := runner.Run(bfdCtx); err != nil {
			t.Error(err)
		}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.speaker.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	n.stop = sync.OnceFunc(func() {
		stopBGP()
		<-done
		stopBFD()
		wg.Wait()
	})
	t.Cleanup(func() {
		n.stop()
		if t.Failed() {
			t.Logf("speaker:\n%s", n.log)
		}
	})
	return n
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// status is the status of the session with a peer.
func (n *node) status(peer string) bgp.SessionStatus {
	n.t.Helper()
	for _, s := range n.speaker.Status() {
		if s.Peer == peer {
			return s
		}
	}
	return bgp.SessionStatus{}
}

func (n *node) established(peer string, within time.Duration) bgp.SessionStatus {
	n.t.Helper()
	eventually(n.t, within, peer+" is established", func() bool { return n.status(peer).State == bgp.Established })
	return n.status(peer)
}

// routes makes routes without attributes.
func routes(prefixes ...string) []route.Route {
	var rs []route.Route
	for _, p := range prefixes {
		rs = append(rs, route.Route{Prefix: netip.MustParsePrefix(p)})
	}
	return rs
}

// placeholder6 stands for the router's IPv6 address in tables that are written before there is a router.
var placeholder6 = netip.MustParseAddr("2001:db8::")

// session is a session with the router: external, over IPv4, with the settings that f changes.
func (r *router) session(f func(*bgp.Peer), routes ...route.Route) bgp.Session {
	p := bgp.Peer{
		Name:     r.ns,
		Identity: bgp.Identity{LocalASN: 65001, PeerASN: 64512, Address: r.peer.v4, RouterID: r.node.v4},
		Options:  bgp.Options{HoldTime: 9 * time.Second},
	}
	if f != nil {
		f(&p)
	}
	if p.Address == placeholder6 {
		p.Address = r.peer.v6
	}
	return bgp.Session{Peer: p, Routes: route.TableOf(routes...)}
}

// manyRoutes are many IPv4 prefixes, and a tenth as many IPv6 ones.
func manyRoutes(many int) (rs []route.Route) {
	for i := range many {
		rs = append(rs, route.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)}), 32)})
		if i < many/10 {
			rs = append(rs, route.Route{Prefix: netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0xff, 0xff, 14: byte(i >> 8), 15: byte(i)}), 128)})
		}
	}
	return rs
}
