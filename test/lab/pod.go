package lab

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// PodSpec describes a pod for RunPod.
type PodSpec struct {
	Namespace string // "default" if empty; created when it does not exist
	Name      string
	Node      string
	Labels    map[string]string
	// Port serves HTTP over TCP, echo over UDP, and SCTP's INIT; named http, udp and sctp. 8080 if zero.
	Port uint16
	// Drain is how long the server goes on taking new connections after SIGTERM. It then finishes those it has.
	Drain time.Duration
	// NotReady starts the pod without making it ready.
	NotReady bool
	// Command replaces the lab's server by another program; it is ready as soon as Port accepts TCP connections.
	Command []string
	Env     []string
}

// Pod is a server in a namespace of its own on a node, with its object in the API.
type Pod struct {
	Spec       PodSpec
	Host       string // for Exec, HTTP …: pod-NAMESPACE-NAME
	IPv4, IPv6 netip.Addr
	Process    *Process

	l *Lab
}

// Pods are the lab's pods, in the order of their hosts' names.
func (l *Lab) Pods() []*Pod {
	l.mu.Lock()
	defer l.mu.Unlock()
	return sorted(l.pods)
}

// sorted are a map's values in the order of their keys.
func sorted[V any](m map[string]V) []V {
	var out []V
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}

// adoptPods takes over the pods that another process started.
func (l *Lab) adoptPods(ctx context.Context) error {
	var list corev1.PodList
	if err := l.Client().List(ctx, &list); err != nil {
		return err
	}
	for _, pod := range list.Items {
		p := newPod(l, PodSpec{Namespace: pod.Namespace, Name: pod.Name, Node: pod.Spec.NodeName, Labels: pod.Labels,
			Port: uint16(pod.Spec.Containers[0].Ports[0].ContainerPort)})
		p.Process = l.Process(p.Host, "server")
		for _, ip := range pod.Status.PodIPs {
			a, err := netip.ParseAddr(ip.IP)
			if err != nil {
				return fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err)
			}
			if a.Is4() {
				p.IPv4 = a
			} else {
				p.IPv6 = a
			}
		}
		l.pods[p.Host] = p
	}
	return nil
}

func newPod(l *Lab, spec PodSpec) *Pod {
	return &Pod{Spec: spec, Host: "pod-" + spec.Namespace + "-" + spec.Name, l: l}
}

// RunPod starts a pod and writes its object and status as a kubelet would. It returns when the server listens and the
// API knows the pod's addresses; EndpointSlices and kube-proxies follow by themselves a moment later.
func (l *Lab) RunPod(ctx context.Context, spec PodSpec) (*Pod, error) {
	if spec.Namespace == "" {
		spec.Namespace = metav1.NamespaceDefault
	}
	if spec.Port == 0 {
		spec.Port = 8080
	}
	p := newPod(l, spec)
	err := p.takeAddresses()
	if err == nil {
		if err = p.run(ctx); err != nil {
			err = errors.Join(err, p.Delete(context.WithoutCancel(ctx)))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("pod %s/%s: %w", spec.Namespace, spec.Name, err)
	}
	return p, nil
}

// Serve runs the pods' server on a host that is no pod, such as "outside" or "client". It answers to name on a port, over
// TCP, UDP and SCTP, and goes on until it is stopped.
func (l *Lab) Serve(ctx context.Context, host, name string, port uint16) (*Process, error) {
	p, err := l.Start(host, name, []string{filepath.Join(l.state, "bin", "pod"), "-name", name, "-port", strconv.Itoa(int(port))})
	if err != nil {
		return nil, err
	}
	addr := netip.AddrPortFrom(l.Host(host).IPv4, port).String()
	return p, p.waitReady(ctx, 10*time.Second, func() error { return l.connectable(ctx, host, addr) })
}

func (p *Pod) run(ctx context.Context) error {
	if err := p.l.EnsureNamespace(ctx, p.Spec.Namespace); err != nil {
		return err
	}
	if err := p.makeNetwork(); err != nil {
		return err
	}
	port := strconv.Itoa(int(p.Spec.Port))
	command := p.Spec.Command
	if command == nil {
		command = []string{filepath.Join(p.l.state, "bin", "pod"), "-name", p.Spec.Name, "-node", p.Spec.Node, "-port", port,
			"-drain", p.Spec.Drain.String()}
	}
	server, err := p.l.Start(p.Host, "server", command, p.Spec.Env...)
	if err != nil {
		return err
	}
	p.Process = server
	if err := p.listening(ctx); err != nil {
		return err
	}
	pod := p.object()
	if err := p.l.Client().Create(ctx, pod); err != nil {
		return err
	}
	return p.patchStatus(ctx, func(pod *corev1.Pod) {
		h := p.l.Host(p.Spec.Node)
		pod.Status.Phase = corev1.PodRunning
		pod.Status.HostIP = h.IPv4.String()
		pod.Status.HostIPs = []corev1.HostIP{{IP: h.IPv4.String()}, {IP: h.IPv6.String()}}
		pod.Status.PodIP = p.IPv4.String()
		pod.Status.PodIPs = []corev1.PodIP{{IP: p.IPv4.String()}, {IP: p.IPv6.String()}}
		pod.Status.StartTime = ptr.To(metav1.Now())
		pod.Status.Conditions = []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
			{Type: corev1.PodInitialized, Status: corev1.ConditionTrue},
		}
		setReady(pod, !p.Spec.NotReady)
	})
}

func (p *Pod) listening(ctx context.Context) error {
	addr := netip.AddrPortFrom(p.IPv4, p.Spec.Port).String()
	return p.Process.waitReady(ctx, 10*time.Second, func() error { return p.l.connectable(ctx, p.Host, addr) })
}

func (p *Pod) object() *corev1.Pod {
	port := int32(p.Spec.Port)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Spec.Namespace, Name: p.Spec.Name, Labels: p.Spec.Labels},
		Spec: corev1.PodSpec{
			NodeName: p.Spec.Node,
			Containers: []corev1.Container{{Name: "server", Image: "lab", Ports: []corev1.ContainerPort{
				{Name: "http", ContainerPort: port, Protocol: corev1.ProtocolTCP},
				{Name: "udp", ContainerPort: port, Protocol: corev1.ProtocolUDP},
				{Name: "sctp", ContainerPort: port, Protocol: corev1.ProtocolSCTP},
			}}},
		},
	}
}

func (p *Pod) patchStatus(ctx context.Context, change func(*corev1.Pod)) error {
	var pod corev1.Pod
	if err := p.l.Client().Get(ctx, client.ObjectKey{Namespace: p.Spec.Namespace, Name: p.Spec.Name}, &pod); err != nil {
		return err
	}
	before := pod.DeepCopy()
	change(&pod)
	return p.l.Client().Status().Patch(ctx, &pod, client.MergeFrom(before))
}

// setReady sets the conditions and the container's state that say whether a pod is ready.
func setReady(pod *corev1.Pod, ready bool) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	var kept []corev1.PodCondition
	for _, c := range pod.Status.Conditions {
		if c.Type != corev1.PodReady && c.Type != corev1.ContainersReady {
			kept = append(kept, c)
		}
	}
	pod.Status.Conditions = append(kept,
		corev1.PodCondition{Type: corev1.ContainersReady, Status: status, LastTransitionTime: metav1.Now()},
		corev1.PodCondition{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.Now()})
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "server", Image: "lab", Ready: ready, Started: ptr.To(true),
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}}}
}

// SetReady writes the pod's readiness, as a kubelet does after a readiness probe. The server goes on either way.
func (p *Pod) SetReady(ctx context.Context, ready bool) error {
	return p.patchStatus(ctx, func(pod *corev1.Pod) { setReady(pod, ready) })
}

// Kill ends the server at once and then makes the pod unready, as a kubelet does that sees its container die.
func (p *Pod) Kill(ctx context.Context) error {
	p.Process.Kill()
	return p.SetReady(ctx, false)
}

// Restart starts the server again after Kill, in the same pod with the same addresses, and makes it ready.
func (p *Pod) Restart(ctx context.Context) error {
	if err := p.Process.Restart(); err != nil {
		return err
	}
	if err := p.listening(ctx); err != nil {
		return err
	}
	return p.SetReady(ctx, true)
}

// Terminate deletes the pod gracefully: the API marks it as terminating, the server gets SIGTERM and goes on for
// Drain, and when it has ended the object and the namespace are removed.
func (p *Pod) Terminate(ctx context.Context) error {
	if err := client.IgnoreNotFound(p.l.Client().Delete(ctx, p.object())); err != nil {
		return err
	}
	p.Process.Signal(unix.SIGTERM)
	select {
	case <-p.Process.Done():
	case <-ctx.Done():
		return ctx.Err()
	}
	return p.Delete(ctx)
}

// Delete removes the pod at once: server, object and namespace.
func (p *Pod) Delete(ctx context.Context) error {
	if p.Process != nil { // nil when RunPod failed before it started the server
		p.Process.Kill()
		p.Process.forget()
	}
	err := p.l.Client().Delete(ctx, p.object(), client.GracePeriodSeconds(0))
	if err := client.IgnoreNotFound(err); err != nil {
		return err
	}
	if err := p.unplug(); err != nil {
		return err
	}
	p.l.mu.Lock()
	delete(p.l.pods, p.Host)
	p.l.mu.Unlock()
	return ipBatch([]string{"netns del " + p.l.NS(p.Host)})
}

// unplug removes the pod's cable and the routes over it, at once: a namespace's end comes some time after its deletion,
// when another pod may have the addresses.
func (p *Pod) unplug() error {
	return p.l.at(p.Spec.Node, func(n *netlink.Handle) error {
		link, err := n.LinkByName(p.port())
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		return n.LinkDel(link)
	})
}

// port is the name of the node's end of the pod's cable.
func (p *Pod) port() string {
	sum := fnv.New32a()
	sum.Write([]byte(p.Host))
	return fmt.Sprintf("veth%08x", sum.Sum32())
}

// takeAddresses reserves the lowest free addresses of the node's pod ranges, from .2 on.
func (p *Pod) takeAddresses() error {
	n := slices.Index(p.l.Nodes(), p.Spec.Node)
	if n < 0 {
		return fmt.Errorf("no node %q", p.Spec.Node)
	}
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	if p.l.pods[p.Host] != nil {
		return errors.New("exists already")
	}
	used := map[netip.Addr]bool{}
	for _, other := range p.l.pods {
		used[other.IPv4] = true
	}
	v4, v6 := podPrefixes(n + 1)
	p.IPv4, p.IPv6 = v4.Addr().Next().Next(), v6.Addr().Next().Next()
	for used[p.IPv4] {
		p.IPv4, p.IPv6 = p.IPv4.Next(), p.IPv6.Next()
	}
	if !v4.Contains(p.IPv4.Next()) {
		return fmt.Errorf("%s has no free pod address", p.Spec.Node)
	}
	p.l.pods[p.Host] = p
	return nil
}

// makeNetwork connects the pod to its node by a cable of its own. On the node the cable carries the pod network's
// gateway address, which is also what a pod sees of connections that its own node has rewritten.
func (p *Pod) makeNetwork() error {
	if err := p.l.addNamespaces(p.Host); err != nil {
		return err
	}
	if err := p.l.In(p.Host, func() error { return writeSysctls(sysctls) }); err != nil {
		return err
	}
	ns, err := netns.GetFromPath(filepath.Join(netnsDir, p.l.NS(p.Host)))
	if err != nil {
		return err
	}
	defer ns.Close()
	port := p.port()
	gateway4 := netip.PrefixFrom(p.IPv4, 24).Masked().Addr().Next()
	gateway6 := netip.PrefixFrom(p.IPv6, 64).Masked().Addr().Next()
	err = p.l.at(p.Spec.Node, func(n *netlink.Handle) error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
		if err := n.LinkAdd(veth); err != nil {
			return err
		}
		if err := addAddrs(n, port, netip.PrefixFrom(gateway4, 32), netip.PrefixFrom(gateway6, 128)); err != nil {
			return err
		}
		if err := addRoute(n, port, netip.PrefixFrom(p.IPv4, 32)); err != nil {
			return err
		}
		return addRoute(n, port, netip.PrefixFrom(p.IPv6, 128))
	})
	if err != nil {
		return err
	}
	return p.l.at(p.Host, func(n *netlink.Handle) error {
		if err := linkUp(n, "lo"); err != nil {
			return err
		}
		if err := addAddrs(n, "eth0", netip.PrefixFrom(p.IPv4, 32), netip.PrefixFrom(p.IPv6, 128)); err != nil {
			return err
		}
		if err := addRoute(n, "eth0", netip.PrefixFrom(gateway4, 32)); err != nil {
			return err
		}
		if err := addRoute(n, "eth0", netip.PrefixFrom(gateway6, 128)); err != nil {
			return err
		}
		if err := addRoute(n, "eth0", netip.MustParsePrefix("0.0.0.0/0"), gateway4); err != nil {
			return err
		}
		return addRoute(n, "eth0", netip.MustParsePrefix("::/0"), gateway6)
	})
}
