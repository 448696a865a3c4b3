// Package e2e proves Clarion's main job from outside, on the lab's real cluster: a client on the LAN and a client behind
// the routers reach Services by their external addresses, while things are added, broken and restarted.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

// cluster is the one that all tests share, with Clarion in it.
var cluster *world.World

// config is what a user would write for both ways of announcing; every test adds its own Services.
const config = `
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: lan}
spec:
  addresses: [192.0.2.200-192.0.2.250, "2001:db8::200-2001:db8::2ff"]
  serviceAllocation: {priority: 10}
---
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: lan}
spec: {ipAddressPools: [lan], interfaces: [eth0]}
---
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: routed}
spec:
  addresses: [198.18.0.0/24, "2001:db8:f::/112"]
  autoAssign: false
---
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: router1}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.1, dualStackAddressFamily: true, enableGracefulRestart: true}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: router2}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.2, dualStackAddressFamily: true, enableGracefulRestart: true}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: routed}
spec: {ipAddressPools: [routed], peers: [router1, router2]}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: clusterips}
spec: {addressTypes: [ServiceCIDR], peers: [router1, router2]}
`

func TestMain(m *testing.M) {
	world.NeedRoot()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := func() int {
		defer stop()
		cluster = world.New(lab.Options{Name: "e2e"})
		defer func() {
			if err := cluster.Down(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
		if err := start(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code := m.Run()
		if code != 0 {
			fmt.Fprintln(os.Stderr, cluster.KeepLogs())
		}
		return code
	}()
	os.Exit(code)
}

// start brings up the lab and Clarion, two web pods on every node, and the configuration.
func start(ctx context.Context) error {
	if err := cluster.Up(ctx); err != nil {
		return err
	}
	var err error
	if cluster.Clarion, err = cluster.StartClarion(ctx, lab.ClarionOptions{Race: true, SpeakerArgs: []string{"--drain-time=2s"}}); err != nil {
		return err
	}
	if err := cluster.WebPods(ctx); err != nil {
		return err
	}
	if err := cluster.Apply(ctx, config); err != nil {
		return err
	}
	return lab.Eventually(ctx, world.Settle, func() error {
		for _, r := range cluster.Routers() {
			peers, err := r.BGPPeers(ctx)
			if err != nil {
				return err
			}
			for _, n := range cluster.Nodes() {
				if s := peers[cluster.Host(n).IPv4]; s != "Established" {
					return fmt.Errorf("%s: the session with %s is %q", r.Name, n, s)
				}
			}
		}
		return nil
	})
}

// routed asks for an address that is announced by BGP.
func routed(svc *corev1.Service) { svc.Annotations[v1beta1.AnnotationAddressPool] = "routed" }
