package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// childLab in the environment makes this test binary bring that lab up and wait to be killed.
const childLab = "LAB_TEST_CHILD"

func TestMain(m *testing.M) {
	if name := os.Getenv(childLab); name != "" {
		if err := New(Options{Name: name, ControlPlaneOnly: true}).Up(context.Background()); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("up")
		select {}
	}
	os.Exit(m.Run())
}

func up(t *testing.T, o Options) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	if m := missing(true); len(m) > 0 {
		t.Skipf("needs Debian packages: %v", m)
	}
	l := New(o)
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	if err := l.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	return l
}

const webService = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ipFamilyPolicy: RequireDualStack
  externalIPs: [198.18.0.1, "2001:db8:f::1"]
  ports:
  - {name: http, port: 80, targetPort: http, nodePort: 30080}
  - {name: udp, port: 80, targetPort: udp, nodePort: 30080, protocol: UDP}
  - {name: sctp, port: 80, targetPort: sctp, nodePort: 30080, protocol: SCTP}
`

// birdConfig announces the Service's external addresses to both routers, in each family over its own session.
const birdConfig = `
router id %[1]s;
protocol device {}
protocol static { ipv4; route 198.18.0.1/32 blackhole; }
protocol static { ipv6; route 2001:db8:f::1/128 blackhole; }
filter marked { bgp_med = 50; bgp_community.add((64500,7)); bgp_large_community.add((64500,1,2)); accept; }
template bgp up4 { local as 64500; ipv4 { import none; export filter marked; next hop self; }; connect delay time 0; }
template bgp up6 { local as 64500; ipv6 { import none; export filter marked; next hop self; }; connect delay time 0; }
protocol bgp r14 from up4 { neighbor 192.0.2.1 as 64512; }
protocol bgp r24 from up4 { neighbor 192.0.2.2 as 64512; }
protocol bgp r16 from up6 { neighbor 2001:db8::1 as 64512; }
protocol bgp r26 from up6 { neighbor 2001:db8::2 as 64512; }
`

func TestLab(t *testing.T) {
	for _, mode := range []string{"iptables", "nftables"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := up(t, Options{Name: "smoke" + mode[:3], ProxyMode: mode})
			pods := map[string]*Pod{}
			for _, node := range l.Nodes() {
				p, err := l.RunPod(t.Context(), PodSpec{Name: "web-" + node, Node: node, Labels: map[string]string{"app": "web"}})
				if err != nil {
					t.Fatal(err)
				}
				pods[node] = p
			}
			if err := l.Apply(t.Context(), webService); err != nil {
				t.Fatal(err)
			}
			clusterIP, err := l.Kubectl(t.Context(), "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
			if err != nil {
				t.Fatal(err)
			}
			for _, from := range []string{"node1", pods["node2"].Host} {
				eventually(t, func() error { return allAnswer(l.HTTP(t.Context(), from, "http://"+clusterIP+"/", 20), 3) })
			}
			testService(t, l)
			testECMP(t, l)
			testPods(t, l, pods)
			testFaults(t, l)
			testNode(t, l)
		})
	}
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	if err := Eventually(t.Context(), 10*time.Second, f); err != nil {
		t.Fatal(err)
	}
}

// allAnswer wants every request answered, by that many pods.
func allAnswer(replies []Reply, pods int) error {
	if lost := Lost(replies); len(lost) > 0 {
		return fmt.Errorf("%d of %d lost: %w", len(lost), len(replies), lost[0].Err)
	}
	if n := CountServers(replies); len(n) != pods {
		return fmt.Errorf("answers from %v, want %d pods", n, pods)
	}
	return nil
}

func testService(t *testing.T, l *Lab) {
	for _, at := range []string{"192.0.2.12:30080", "[2001:db8::12]:30080"} {
		eventually(t, func() error { return allAnswer(l.HTTP(t.Context(), "client", "http://"+at+"/", 30), 3) })
		eventually(t, func() error { return allAnswer(l.UDP(t.Context(), "client", at, 30), 3) })
		eventually(t, func() error { return l.SCTP(t.Context(), "client", at) })
	}
}

// testECMP announces the Service from every node to both routers and wants each router to use every node.
func testECMP(t *testing.T, l *Lab) {
	for _, node := range l.Nodes() {
		h := l.Host(node)
		conf := filepath.Join(l.Dir(), node+".bird.conf")
		if err := os.WriteFile(conf, fmt.Appendf(nil, birdConfig, h.IPv4), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Start(node, "bird", []string{"bird", "-f", "-c", conf, "-s", filepath.Join(l.Dir(), node+".bird.ctl")}); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range l.Routers() {
		for _, prefix := range []netip.Prefix{netip.MustParsePrefix("198.18.0.1/32"), netip.MustParsePrefix("2001:db8:f::1/128")} {
			eventually(t, func() error {
				hops, err := r.NextHops(t.Context(), prefix)
				var nodes []string
				for _, h := range hops {
					nodes = append(nodes, l.HostOf(h))
				}
				if err == nil && !slices.Equal(nodes, l.Nodes()) {
					err = fmt.Errorf("%s: %s via %v, want %v", r.Name, prefix, hops, l.Nodes())
				}
				return err
			})
			paths, err := r.BGPPaths(t.Context(), prefix)
			if err != nil || len(paths) != 3 {
				t.Fatalf("%s: paths of %s: %+v, %v", r.Name, prefix, paths, err)
			}
			for i, p := range paths {
				if node := l.Nodes()[i]; l.HostOf(p.Peer) != node || l.HostOf(p.NextHops[0]) != node {
					t.Errorf("%s: path %d of %s is from %s via %s, want %s", r.Name, i, prefix, p.Peer, p.NextHops, node)
				}
				p.Peer, p.NextHops, p.Best = netip.Addr{}, nil, false
				want := BGPPath{ASPath: "64500", MED: 50, Communities: []string{"64500:7"}, LargeCommunities: []string{"64500:1:2"},
					Valid: true, Multipath: true}
				if diff := cmp.Diff(want, p, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
					t.Errorf("%s: path of %s (-want +got):\n%s", r.Name, prefix, diff)
				}
			}
		}
		peers, err := r.BGPPeers(t.Context())
		if err != nil || peers[l.Host("node1").IPv4] != "Established" || peers[l.Host("node3").IPv6] != "Established" {
			t.Errorf("%s: peers %v, %v", r.Name, peers, err)
		}
	}
	for _, url := range []string{"http://198.18.0.1/", "http://[2001:db8:f::1]/"} {
		replies := l.HTTP(t.Context(), "outside", url, 300)
		if err := allAnswer(replies, 3); err != nil {
			t.Fatal(err)
		}
		// A node hides the client behind an address of its own: the LAN's for a pod elsewhere, the pod network's for one of its own.
		through := map[string]int{}
		for _, r := range replies {
			through[l.HostOf(r.Client.Addr())]++
		}
		for _, node := range l.Nodes() {
			if n := through[node]; n < 70 || n > 130 {
				t.Errorf("%s: %d of 300 flows through %s: %v", url, n, node, through)
			}
		}
	}
}

func testPods(t *testing.T, l *Lab, pods map[string]*Pod) {
	ctx := t.Context()
	servers := func(n int) func() error {
		return func() error { return allAnswer(l.HTTP(ctx, "client", "http://192.0.2.11:30080/", 30), n) }
	}
	if err := pods["node1"].SetReady(ctx, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, servers(2))
	if err := pods["node2"].Kill(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, servers(1))
	if err := pods["node2"].Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if err := pods["node1"].SetReady(ctx, true); err != nil {
		t.Fatal(err)
	}
	eventually(t, servers(3))

	// A pod that is terminated serves what it has taken on and loses nothing.
	extra, err := l.RunPod(ctx, PodSpec{Name: "extra", Node: "node3", Labels: map[string]string{"app": "web"}, Drain: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, servers(4))
	stream := l.StreamHTTP(ctx, "client", "http://192.0.2.11:30080/", 10*time.Millisecond)
	if err := extra.Terminate(ctx); err != nil {
		t.Error(err)
	}
	if replies := stream.Stop(); len(Lost(replies)) > 0 {
		t.Errorf("%d of %d lost while a pod terminated: %v", len(Lost(replies)), len(replies), Lost(replies)[0].Err)
	}
	eventually(t, func() error {
		var list discoveryv1.EndpointSliceList
		err := l.Client().List(ctx, &list, client.InNamespace("default"))
		for _, s := range list.Items {
			for _, e := range s.Endpoints {
				if e.TargetRef != nil && e.TargetRef.Name == "extra" {
					err = errors.New("a deleted pod is an endpoint still")
				}
			}
		}
		return err
	})
}

func testFaults(t *testing.T, l *Lab) {
	ctx := t.Context()
	ping := func(from, to string) error {
		_, err := l.Exec(ctx, from, "ping", "-c", "1", "-W", "1", l.Host(to).IPv4.String())
		return err
	}
	check := func(what string, from, to string, want bool) {
		t.Helper()
		err := ping(from, to)
		if want && err != nil {
			// The neighbour may have been asked for in vain a moment ago.
			err = Eventually(ctx, 5*time.Second, func() error { return ping(from, to) })
		}
		if (err == nil) != want {
			t.Errorf("%s: ping from %s to %s: %v, want success %t", what, from, to, err, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	carrier := func(host string) string {
		var b []byte
		must(l.In(host, func() error {
			out, err := exec.Command("ip", "-br", "link", "show", "eth0").Output()
			b = out
			return err
		}))
		return strings.Fields(string(b))[1]
	}
	must(l.CutLink("node1"))
	check("cut", "client", "node1", false)
	if s := carrier("node1"); s == "UP" {
		t.Errorf("node1 has carrier with its cable pulled")
	}
	must(l.RestoreLink("node1"))
	check("restored", "client", "node1", true)

	must(l.SilenceLink("node1"))
	check("silent", "client", "node1", false)
	if s := carrier("node1"); s != "UP" {
		t.Errorf("silenced node1 lost carrier: %s", s)
	}
	must(l.RestoreLink("node1"))
	check("restored", "client", "node1", true)

	must(l.Partition([]string{"node1", "client"}, []string{"node2"}))
	must(l.CutFromAPI("node3"))
	check("partition", "node1", "node2", false)
	check("partition", "node2", "client", false)
	check("partition", "node1", "client", true)
	check("partition", "node2", "node3", true)
	check("cut from API", "node3", control, false)
	check("cut from API", "node2", control, true)
	must(l.Heal())
	check("healed", "node1", "node2", true)
	check("healed", "node3", control, true)

	must(l.Loss("node1", 50))
	out, _ := l.Exec(ctx, "client", "ping", "-c", "100", "-i", "0.002", "-W", "1", l.Host("node1").IPv4.String())
	if strings.Contains(out, " 0% packet loss") || strings.Contains(out, " 100% packet loss") {
		t.Errorf("half of the frames each way should be lost:\n%s", out)
	}
	must(l.Heal())

	const delay = 20 * time.Millisecond
	must(l.Delay("node1", delay))
	for _, host := range []string{"client", "node2"} {
		for _, r := range l.HTTP(ctx, host, "http://192.0.2.11:30080/", 5) {
			if r.Err != nil || r.Took < 4*delay {
				t.Errorf("a request over a link with %s of delay took %s, %v", delay, r.Took, r.Err)
			}
		}
	}
	must(l.SilenceLink("node1"))
	check("silent with delay", "client", "node1", false)
	must(l.RestoreLink("node1"))
	check("restored from delay", "client", "node1", true)

	for _, h := range []Host{l.Host("node2"), l.Host("router1")} {
		for _, a := range []netip.Addr{h.IPv4, h.IPv6} {
			who, err := l.WhoHas("client", a, 200*time.Millisecond)
			if err != nil || !slices.Equal(who, []string{h.Name}) {
				t.Errorf("%s belongs to %v, %v; want %s", a, who, err, h.Name)
			}
		}
	}
	if who, err := l.WhoHas("client", netip.MustParseAddr("192.0.2.200"), 200*time.Millisecond); err != nil || len(who) > 0 {
		t.Errorf("an address of nobody's belongs to %v, %v", who, err)
	}
}

func testNode(t *testing.T, l *Lab) {
	ctx := t.Context()
	if err := l.KillNode("node3"); err != nil {
		t.Fatal(err)
	}
	if err := l.SetNodeReady(ctx, "node3", false); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return allAnswer(l.HTTP(ctx, "client", "http://192.0.2.11:30080/", 30), 2) })
	if err := l.StartNode(ctx, "node3"); err != nil {
		t.Fatal(err)
	}
	if err := l.SetNodeReady(ctx, "node3", true); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return allAnswer(l.HTTP(ctx, "client", "http://192.0.2.13:30080/", 30), 3) })
}

// TestServiceAccount wants a ServiceAccount's kubeconfig to have that account's rights and no others, and its server
// to be reachable from a node.
func TestServiceAccount(t *testing.T) {
	t.Parallel()
	l := up(t, Options{Name: "smokesa", Nodes: 1})
	err := l.Apply(t.Context(), `
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: reader, namespace: default}]
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
spec:
  group: example.com
  names: {kind: Thing, plural: things}
  scope: Cluster
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object}}
---
apiVersion: example.com/v1
kind: Thing
metadata: {name: one}
`)
	if err != nil {
		t.Fatal(err)
	}
	// On a node, and with a token that says so.
	kubeconfig, err := l.KubeconfigOn(t.Context(), "system:serviceaccount:default:reader", "node1")
	if err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) (string, error) {
		return l.Exec(t.Context(), "node1", append([]string{filepath.Join(l.tools, "kubectl"), "--kubeconfig=" + kubeconfig}, args...)...)
	}
	eventually(t, func() error {
		_, err := kubectl("get", "services")
		return err
	})
	if out, err := kubectl("auth", "whoami"); err != nil || !strings.Contains(out, "node-name       [node1]") {
		t.Errorf("the token does not name its node: %s, %v", out, err)
	}
	if out, err := kubectl("get", "secrets"); err == nil {
		t.Errorf("a viewer may read secrets: %s", out)
	}
	// A pod reaches the API server, by its ClusterIP too, and a server outside the cluster.
	pod, err := l.RunPod(t.Context(), PodSpec{Name: "one", Node: "node1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Serve(t.Context(), "outside", "elsewhere", 8000); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"192.0.2.10:6443", "[2001:db8::10]:6443", apiService4 + ":443"} {
		eventually(t, func() error { return l.connectable(t.Context(), pod.Host, addr) })
	}
	for _, addr := range []string{"198.51.100.100:8000", "[2001:db8:1::100]:8000"} {
		if r := l.HTTP(t.Context(), pod.Host, "http://"+addr+"/", 1)[0]; r.Server != "elsewhere" || l.HostOf(r.Client.Addr()) != "node1" {
			t.Errorf("%s from a pod: %+v", addr, r)
		}
	}
	if err := l.Delete(t.Context(), "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: one}\n"); err != nil {
		t.Error(err)
	}
	if err := l.Client().Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "nobody"}, new(discoveryv1.EndpointSlice)); !apierrors.IsNotFound(err) {
		t.Errorf("got %v, want not found", err)
	}
}

// TestKilledLab kills the process that owns a lab; the next lab of that name removes what it left, and nothing else.
func TestKilledLab(t *testing.T) {
	t.Parallel()
	l := up(t, Options{Name: "smokekill", ControlPlaneOnly: true})
	if err := l.Down(); err != nil { // the name is the child's now
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childLab+"="+l.Name())
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("child: %q, %v", line, err)
	}
	if err := New(Options{Name: l.Name()}).Down(); err == nil {
		t.Error("a lab that a living process owns was taken down")
	}
	left, err := l.records()
	if err != nil || len(left) != 3 {
		t.Fatalf("records of the child's lab: %v, %v", left, err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // killed
	bystander := exec.Command("sleep", "60")
	bystander.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = bystander.Wait() }()
	defer func() { _ = bystander.Process.Kill() }()
	// A record whose PID now belongs to another process: its start time tells.
	reused := left[0]
	reused.PID = bystander.Process.Pid
	p := &Process{l: l, rec: reused}
	p.rec.Name = "reused"
	if err := p.write(); err != nil {
		t.Fatal(err)
	}
	again := up(t, Options{Name: l.Name(), ControlPlaneOnly: true})
	for _, r := range left {
		if r.alive() {
			t.Errorf("%s of the killed lab still runs", r.Name)
		}
	}
	if _, _, err := stat(bystander.Process.Pid); err != nil {
		t.Errorf("a process of someone else's was ended: %v", err)
	}
	if err := again.Down(); err != nil {
		t.Fatal(err)
	}
	if left := namespaces(t, l.NS("")); len(left) > 0 {
		t.Errorf("namespaces left: %v", left)
	}
}

// TestDetach leaves a lab to another process, which finds everything, can go on with it and takes it down.
func TestDetach(t *testing.T) {
	t.Parallel()
	first := up(t, Options{Name: "smokedet", Nodes: 1, Routers: 1, Detach: true})
	if _, err := first.RunPod(t.Context(), PodSpec{Name: "one", Node: "node1"}); err != nil {
		t.Fatal(err)
	}
	second, err := Attach(t.Context(), "smokedet", nil)
	if err != nil {
		t.Fatal(err)
	}
	var status strings.Builder
	if err := second.Status(t.Context(), &status); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kube-apiserver", "bgpd", "pod-default-one", "node/node1"} {
		if !strings.Contains(status.String(), want) {
			t.Errorf("status does not mention %s:\n%s", want, &status)
		}
	}
	two, err := second.RunPod(t.Context(), PodSpec{Name: "two", Node: "node1"})
	if err != nil {
		t.Fatal(err)
	}
	if pods := second.Pods(); len(pods) != 2 || pods[0].IPv4 == pods[1].IPv4 {
		t.Errorf("two pods have the address %s", two.IPv4)
	}
	proxy := second.Process("node1", "kube-proxy")
	if err := proxy.Stop(); err != nil {
		t.Error(err)
	}
	if err := proxy.Restart(); err != nil {
		t.Error(err)
	}
	if err := second.Down(); err != nil {
		t.Fatal(err)
	}
	if _, err := Attach(t.Context(), "smokedet", nil); err == nil {
		t.Error("attached to a lab that is down")
	}
}

// TestContext takes a lab down by the end of the context it was brought up with.
func TestContext(t *testing.T) {
	t.Parallel()
	l := up(t, Options{Name: "smokectx", ControlPlaneOnly: true})
	if err := l.Down(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := l.Up(ctx); err != nil {
		t.Fatal(err)
	}
	api := l.Process(control, "kube-apiserver")
	cancel()
	<-api.Done()
	eventually(t, func() error {
		if left := namespaces(t, l.NS("")); len(left) > 0 {
			return fmt.Errorf("namespaces left: %v", left)
		}
		return nil
	})
}

// TestKubeVersion keeps the version that the programs are told in step with the one that they are.
func TestKubeVersion(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("kube", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "k8s.io/kubernetes "+kubeVersion+"\n") {
		t.Errorf("kube/go.mod does not require k8s.io/kubernetes %s", kubeVersion)
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"dash in name":   {Name: "a-b"},
		"name too long":  {Name: "abcdefghijklmnopq"},
		"path":           {Name: "../x"},
		"too many nodes": {Nodes: 81},
		"no such mode":   {ProxyMode: "ipvs"},
	} {
		l := New(o)
		if err := l.check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func namespaces(t *testing.T, prefix string) []string {
	entries, err := os.ReadDir(netnsDir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			out = append(out, e.Name())
		}
	}
	return out
}
