// Package handover walks the way from MetalLB to Clarion, beside a stand-in that announces as MetalLB does.
package handover

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	corev1 "k8s.io/api/core/v1"

	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

// theirs is the configuration that MetalLB has.
const theirs = `
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: lan, namespace: metallb-system}
spec: {addresses: [192.0.2.200-192.0.2.250]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: lan, namespace: metallb-system}
spec: {ipAddressPools: [lan], interfaces: [eth0]}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: routed, namespace: metallb-system}
spec: {addresses: [198.18.0.0/24], autoAssign: false}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: router1, namespace: metallb-system}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.1}
---
apiVersion: metallb.io/v1beta1
kind: BGPPeer
metadata: {name: router2, namespace: metallb-system}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.2}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: routed, namespace: metallb-system}
spec: {ipAddressPools: [routed]}
`

var (
	lanAddr    = netip.MustParseAddr("192.0.2.210")
	routedAddr = netip.MustParseAddr("198.18.0.10")
)

const often = 1800 * time.Microsecond // 500 probes a second, and some more for a machine that is busy

func TestHandover(t *testing.T) {
	world.NeedRoot()
	// The lab goes down when its context ends, which must be after the Services.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(stop)
	w := world.New(lab.Options{Name: "handover", Nodes: 2})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.KeepLogs())
		}
		if err := w.Down(); err != nil {
			t.Error(err)
		}
	})
	world.Must(t, w.Up(ctx))
	world.Must(t, w.WebPods(ctx))

	// MetalLB has given two Services their addresses, and announces them: one by node1, one by both nodes.
	has(t, w, "lan", lanAddr)
	has(t, w, "routed", routedAddr)
	program := filepath.Join(t.TempDir(), "metallb")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "./metallb").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	answers, err := w.Start("node1", "metallb-layer2", []string{program, "-answers", lanAddr.String()})
	world.Must(t, err)
	sessions := map[string]*lab.Process{}
	for _, node := range w.Nodes() {
		sessions[node], err = w.Start(node, "metallb-bgp", []string{program, "-self", w.Host(node).IPv4.String(), "-peers", "192.0.2.1,192.0.2.2", "-routes", routedAddr.String()})
		world.Must(t, err)
	}
	w.NextHops(t, world.Alone(routedAddr), w.Nodes()...)
	w.Reachable(t, "outside", "http://"+routedAddr.String()+"/")
	w.Reachable(t, "client", "http://"+lanAddr.String()+"/")

	// Clarion beside it, its controller at rest.
	w.Clarion, err = w.StartClarion(ctx, lab.ClarionOptions{})
	world.Must(t, err)
	world.Must(t, w.Clarion.Controller.Stop())

	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	world.Must(t, os.WriteFile(file("theirs.yaml"), []byte(theirs), 0o600))
	said, err := clarion(ctx, w, "migrate", "metallb", "-f", file("theirs.yaml"), "--to", dir)
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	apply := func(name string) {
		t.Helper()
		b, err := os.ReadFile(file(name))
		world.Must(t, err)
		world.Must(t, w.Apply(ctx, string(b)))
	}

	claims := listen(t, w, "client", lanAddr)
	streams := map[string]*lab.Stream{
		"BGP":     w.StreamUDP(ctx, "outside", netip.AddrPortFrom(routedAddr, 7).String(), often),
		"layer 2": w.StreamUDP(ctx, "client", netip.AddrPortFrom(lanAddr, 7).String(), often),
	}
	began := time.Now()

	// Allocation.
	apply("pools.yaml")
	world.Must(t, w.Clarion.Controller.Restart())
	world.Eventually(t, func() error {
		// There are no pods of Clarion's in a lab, so that the code to exit with says that not all is shown.
		if said, _ := clarion(ctx, w, "migrate", "metallb", "--check"); !strings.HasPrefix(said, "2 of 2 Services with an address keep it.\n\nDaemonSet not shown:") {
			return fmt.Errorf("--check: %s", said)
		}
		return nil
	})

	// Layer 2.
	world.Must(t, answers.Stop())
	apply("layer2.yaml")
	world.Eventually(t, func() error {
		_, err := clarion(ctx, w, "explain", "svc/lan")
		return err
	})

	// BGP, node by node.
	apply("peers-by-node.yaml")
	for _, node := range w.Nodes() {
		_, err := w.Kubectl(ctx, "label", "node", node, "clarionlb.io/migrated=true")
		world.Must(t, err)
		world.Must(t, sessions[node].Stop())
		world.Eventually(t, func() error {
			said, err := clarion(ctx, w, "explain", "node", node)
			if err != nil || strings.Count(said, "Established (1 IPv4") != 2 {
				return fmt.Errorf("%w\n%s", err, said)
			}
			return nil
		})
		w.NextHops(t, world.Alone(routedAddr), w.Nodes()...)
	}
	apply("peers.yaml")
	for _, node := range w.Nodes() {
		_, err := w.Kubectl(ctx, "label", "node", node, "clarionlb.io/migrated-")
		world.Must(t, err)
	}
	world.Eventually(t, func() error {
		said, err := clarion(ctx, w, "status")
		if err != nil {
			return fmt.Errorf("%w\n%s", err, said)
		}
		return nil
	})
	took := time.Since(began)
	for name, s := range streams {
		replies := s.Stop()
		t.Logf("%s: %d of %d probes lost, %.0f a second over %s", name, len(lab.Lost(replies)), len(replies), float64(len(replies))/took.Seconds(), took.Round(time.Second))
		world.Answered(t, name, replies)
	}
	if got := claims(); len(got) != 1 {
		t.Errorf("at layer 2 clients heard %d hosts claim the address, one after the other, want one: %v", len(got), got)
	} else {
		t.Logf("layer 2: %s claims the address, and nobody after it", got[0])
	}

	sameOffline(t, ctx, w)
}

// sameOffline compares what is said of the cluster with what is said of its dump.
func sameOffline(t *testing.T, ctx context.Context, w *world.World) {
	dump := filepath.Join(t.TempDir(), "dump.tar.gz")
	said, err := clarion(ctx, w, "dump", "--to", dump)
	if err != nil { // a lab has no pods of Clarion's that could be asked, and none that are missing
		t.Fatalf("%v\n%s", err, said)
	}
	for _, words := range []string{"status", "explain svc", "explain svc/lan", "explain node node1", "explain pool routed", "explain peer router1", "plan --lose node1", "plan --drain node2", "plan --delete bgpadvertisement/routed"} {
		live, _ := clarion(ctx, w, strings.Fields(words)...)
		dead, _ := clarion(ctx, w, append(strings.Fields(words), "--offline", "--cluster", dump)...)
		if live != dead || live == "" {
			t.Errorf("%s: of the cluster:\n%s\nof the dump:\n%s", words, live, dead)
		}
	}
}

// has gives a Service an address, as another controller does.
func has(t *testing.T, w *world.World, name string, addr netip.Addr) {
	t.Helper()
	svc := w.Service(t, name, nil)
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: addr.String()}}
	world.Must(t, w.Client().Status().Update(t.Context(), svc))
}

// clarion runs the plug-in.
func clarion(ctx context.Context, w *world.World, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(w.Dir(), "bin", "kubectl-clarion"), args...).CombinedOutput()
	return string(out), err
}

// listen notes who claims an address on a host's network without being asked, and says at the end who did, one after the
// other, each once in a row.
func listen(t *testing.T, w *world.World, host string, addr netip.Addr) (claims func() []string) {
	t.Helper()
	var c *arp.Client
	world.Must(t, w.In(host, func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c, err = arp.Dial(ifi)
		return err
	}))
	var mu sync.Mutex
	var heard []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			p, _, err := c.Read()
			if err != nil {
				return
			}
			if p.SenderIP == addr && p.TargetIP == addr {
				mu.Lock()
				if mac := p.SenderHardwareAddr.String(); len(heard) == 0 || heard[len(heard)-1] != mac {
					heard = append(heard, mac)
				}
				mu.Unlock()
			}
		}
	}()
	end := sync.OnceFunc(func() { c.Close(); <-done })
	t.Cleanup(end)
	return func() []string { end(); return heard }
}
