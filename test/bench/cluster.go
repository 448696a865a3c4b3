package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/lab"
)

// settle is how long the cluster may take to do what it is told before a row is given up.
const settle = 30 * time.Second

// every is the time between two requests of a stream: 500 a second.
const every = 2 * time.Millisecond

// setup is the lab of a stage. Without nodes there is none.
type setup struct {
	name        string
	nodes       int
	speakerArgs []string
	config      string
	routers     int
	// ready makes what the rows share, when the speakers know each other.
	ready func(context.Context, *bench) error
}

// bench is the lab at hand and what was measured.
type bench struct {
	trials      int
	quick, long bool
	busy        bool
	logs, base  string
	figures     []*figure
	load        float64
	failed      bool

	*lab.Lab
	clarion *lab.Clarion
	setup   setup
	pods    map[string]*lab.Pod // one on each node
}

// figure begins a figure.
func (b *bench) figure(f figure) *figure {
	f.load = b.load
	b.figures = append(b.figures, &f)
	return &f
}

// up brings up a lab with Clarion and a pod on every node, labelled with the node's name.
func (b *bench) up(ctx context.Context, s setup) error {
	scheme := runtime.NewScheme()
	_ = clientgoscheme.AddToScheme(scheme)
	_ = v1beta1.AddToScheme(scheme)
	b.setup, b.pods = s, map[string]*lab.Pod{}
	b.Lab = lab.New(lab.Options{Name: s.name, Nodes: s.nodes, Routers: s.routers, Scheme: scheme, Progress: os.Stderr})
	err := b.Up(ctx)
	if err != nil {
		return err
	}
	if b.clarion, err = b.StartClarion(ctx, lab.ClarionOptions{SpeakerArgs: s.speakerArgs}); err != nil {
		return err
	}
	for _, node := range b.Nodes() {
		if err := b.patch(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, fmt.Sprintf(`{"metadata":{"labels":{"bench":%q}}}`, node)); err != nil {
			return err
		}
		if b.pods[node], err = b.RunPod(ctx, lab.PodSpec{Name: "echo-" + node, Node: node, Labels: map[string]string{"app": "echo", "node": node}}); err != nil {
			return err
		}
	}
	if err := b.Apply(ctx, s.config); err != nil {
		return err
	}
	if err := b.joined(ctx); err != nil {
		return err
	}
	return s.ready(ctx, b)
}

// down takes the lab down.
func (b *bench) down() {
	if b.logs != "" {
		if err := os.CopyFS(filepath.Join(b.logs, b.Name()), os.DirFS(filepath.Join(b.Dir(), "log"))); err != nil {
			fmt.Fprintln(os.Stderr, "bench: logs:", err)
		}
	}
	if err := b.Down(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

// recover undoes what a row that failed may have left.
func (b *bench) recover(ctx context.Context) error {
	for _, p := range b.Processes() {
		if p.Alive() {
			p.Signal(unix.SIGCONT)
		}
	}
	if api := b.Process("control", "kube-apiserver"); !api.Alive() {
		if err := api.Restart(); err != nil {
			return err
		}
	}
	if err := b.Heal(); err != nil {
		return err
	}
	for node, p := range b.clarion.Speakers {
		if !p.Alive() {
			if err := p.Restart(); err != nil {
				return err
			}
		}
		if err := b.drain(ctx, node, false); err != nil {
			return err
		}
	}
	return b.joined(ctx)
}

// joined waits until all speakers know each other.
func (b *bench) joined(ctx context.Context) error {
	return b.eventually(ctx, func() error {
		var list v1beta1.SpeakerList
		if err := b.Client().List(ctx, &list); err != nil {
			return err
		}
		if len(list.Items) != len(b.Nodes()) {
			return fmt.Errorf("there are Speaker objects of %d nodes, want %d", len(list.Items), len(b.Nodes()))
		}
		for _, s := range list.Items {
			if !meta.IsStatusConditionTrue(s.Status.Conditions, v1beta1.ConditionReady) || len(s.Status.Missing) > 0 {
				return fmt.Errorf("the speaker of %s misses %v, %v", s.Name, s.Status.Missing, s.Status.Conditions)
			}
		}
		return nil
	})
}

// ready waits until a node's speaker says that it is ready, for which a rolling update waits too.
func (b *bench) ready(ctx context.Context, node string) error {
	c := http.Client{Timeout: time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return b.Dial(ctx, node, network, addr)
		},
	}}
	return b.eventually(ctx, func() error {
		res, err := c.Get("http://127.0.0.1:9121/readyz")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("the speaker of %s: %s", node, res.Status)
		}
		return nil
	})
}

func (b *bench) eventually(ctx context.Context, f func() error) error {
	return lab.Eventually(ctx, settle, f)
}

func (b *bench) patch(ctx context.Context, o client.Object, merge string) error {
	return b.Client().Patch(ctx, o, client.RawPatch(types.MergePatchType, []byte(merge)))
}

// drain begins or ends a node's drain.
func (b *bench) drain(ctx context.Context, node string, on bool) error {
	value := "null"
	if on {
		value = `"true"`
	}
	return b.patch(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, v1beta1.AnnotationDrain, value))
}

// service makes a Service for the pods that have some labels, changed by edit, and waits for its address.
func (b *bench) service(ctx context.Context, name string, pods map[string]string, edit func(*corev1.Service)) (netip.Addr, error) {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: pods,
			Ports: []corev1.ServicePort{{Name: "echo", Port: 7, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolUDP}},
		},
	}
	if edit != nil {
		edit(svc)
	}
	if err := b.Client().Create(ctx, svc); err != nil {
		return netip.Addr{}, err
	}
	return b.address(ctx, name)
}

// address waits for a Service's address.
func (b *bench) address(ctx context.Context, name string) (addr netip.Addr, err error) {
	err = b.eventually(ctx, func() error {
		svc := &corev1.Service{}
		if err := b.Client().Get(ctx, client.ObjectKey{Namespace: "default", Name: name}, svc); err != nil {
			return err
		}
		if len(svc.Status.LoadBalancer.Ingress) == 0 {
			return fmt.Errorf("the Service %s has no address", name)
		}
		addr, err = netip.ParseAddr(svc.Status.LoadBalancer.Ingress[0].IP)
		return err
	})
	return addr, err
}

// remove deletes Services.
func (b *bench) remove(ctx context.Context, names ...string) error {
	var g errgroup.Group
	g.SetLimit(8)
	for _, name := range names {
		g.Go(func() error {
			return client.IgnoreNotFound(b.Client().Delete(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}))
		})
	}
	return g.Wait()
}

// pool asks for an address of a pool.
func pool(name string) func(*corev1.Service) {
	return func(svc *corev1.Service) { svc.Annotations[v1beta1.AnnotationAddressPool] = name }
}

// owner waits until one host, and always the same, answers for an address some times in a row.
func (b *bench) owner(ctx context.Context, addr netip.Addr) (string, error) {
	var last string
	same := 0
	err := b.eventually(ctx, func() error {
		who, err := b.WhoHas("client", addr, 60*time.Millisecond)
		if err != nil {
			return err
		}
		if len(who) != 1 || who[0] != last {
			same = 0
		}
		if last = ""; len(who) == 1 {
			last = who[0]
		}
		if same++; same < 4 {
			return fmt.Errorf("%s is answered by %v", addr, who)
		}
		return nil
	})
	return last, err
}

// owned waits until a node owns an address.
func (b *bench) owned(ctx context.Context, addr netip.Addr, node string) error {
	return b.eventually(ctx, func() error {
		who, err := b.owner(ctx, addr)
		if err == nil && who != node {
			err = fmt.Errorf("%s is answered by %s, want %s", addr, who, node)
		}
		return err
	})
}

// answered waits until requests are answered, many in a row.
func (b *bench) answered(ctx context.Context, from string, addr netip.Addr) error {
	return b.eventually(ctx, func() error {
		if lost := lab.Lost(b.UDP(ctx, from, target(addr), 60)); len(lost) > 0 {
			return fmt.Errorf("%s: %w", addr, lost[0].Err)
		}
		return nil
	})
}

func target(addr netip.Addr) string { return netip.AddrPortFrom(addr, 7).String() }

// stream is 500 requests a second, shared by some addresses.
func (b *bench) stream(ctx context.Context, from string, addrs ...netip.Addr) func() [][]lab.Reply {
	var all []*lab.Stream
	for _, a := range addrs {
		all = append(all, b.StreamUDP(ctx, from, target(a), every*time.Duration(len(addrs))))
	}
	return func() [][]lab.Reply {
		out := make([][]lab.Reply, len(all))
		var g errgroup.Group
		for i, s := range all {
			g.Go(func() error { out[i] = s.Stop(); return nil })
		}
		_ = g.Wait()
		return out
	}
}

// anyTime is a short time of chance, so that trials meet timers in every phase.
func anyTime() time.Duration { return 300*time.Millisecond + rand.N(500*time.Millisecond) }

// each tries something a number of times.
func (b *bench) each(ctx context.Context, trials int, f func(i int) error) error {
	for i := range trials {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := f(i); err != nil {
			return fmt.Errorf("trial %d: %w", i+1, err)
		}
	}
	return nil
}

// marks are the ends of the speakers' logs; since counts the lines with a text that came later.
type marks map[string]int64

func (b *bench) mark() marks {
	m := marks{}
	for node, p := range b.clarion.Speakers {
		if info, err := os.Stat(p.Log()); err == nil {
			m[node] = info.Size()
		}
	}
	return m
}

func (b *bench) since(m marks, text string) (n int) {
	for node, p := range b.clarion.Speakers {
		f, err := os.Open(p.Log())
		if err != nil {
			continue
		}
		_, _ = f.Seek(m[node], io.SeekStart)
		all, _ := io.ReadAll(f)
		_ = f.Close()
		n += strings.Count(string(all), text)
	}
	return n
}

// cpu is the processor time that a process has used.
func cpu(pid int) (time.Duration, error) {
	var ts unix.Timespec
	// The number of a process's clock is made as in clock_getcpuclockid(3).
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return 0, fmt.Errorf("processor time of %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// others are the nodes without some.
func (b *bench) others(not ...string) []string {
	return slices.DeleteFunc(b.Nodes(), func(n string) bool { return slices.Contains(not, n) })
}
