// Command chaos breaks a cluster in the lab at random, while users edit it and clients use it, and judges from outside what
// comes of it. A seed is a walk of its own: see package walk. It brings up a lab called chaos and takes it down.
//
//	go run ./test/chaos [-seed N] [-for 10m] [-history FILE] [-race]
//
// It ends with 1 when a judge found something. The history of what was done is then in the folder that it names, beside
// the logs of all programs, and can be played again with -history, as it is or with lines left out.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/clarionlb/clarion/test/chaos/walk"
	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx)
	stop()
	os.Exit(code)
}

func run(ctx context.Context) int {
	seed := flag.Uint64("seed", 1, "which walk")
	length := flag.Duration("for", 10*time.Minute, "about how long the walk lasts")
	file := flag.String("history", "", "file with the history to play, instead of a walk; -seed still chooses the mode of kube-proxy")
	race := flag.Bool("race", false, "build Clarion with the race detector")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "chaos: unexpected arguments:", flag.Args())
		return 2
	}
	log.SetLogger(logr.Discard())
	o := lab.Options{Name: "chaos", Nodes: 4, Routers: 2, ProxyMode: []string{"iptables", "nftables"}[*seed%2]}
	w := world.New(o)
	var routers []string
	for _, r := range w.Routers() {
		routers = append(routers, r.Name)
	}
	steps := walk.New(*seed, *length, walk.Cluster{Nodes: w.Nodes(), Routers: routers})
	if *file != "" {
		text, err := os.ReadFile(*file)
		if err == nil {
			steps, err = walk.Parse(string(text))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "chaos: history:", err)
			return 2
		}
	}
	defer func() {
		if err := w.Down(); err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
		}
	}()
	found, err := chaos(ctx, w, steps, *race)
	if err == nil && len(found) == 0 {
		fmt.Printf("chaos: seed %d: %d steps, nothing found\n", *seed, len(steps))
		return 0
	}
	dir := keep(w, steps)
	for _, f := range found {
		fmt.Println("chaos: found:", f)
	}
	fmt.Printf("chaos: seed %d, %s: %d findings, error: %v; history and logs are in %s\n", *seed, o.ProxyMode, len(found), err, dir)
	return 1
}

// keep saves a history and the logs, and says where.
func keep(w *world.World, steps []walk.Step) string {
	dir, err := os.MkdirTemp("", "clarion-chaos-")
	var text strings.Builder
	for _, s := range steps {
		fmt.Fprintln(&text, s)
	}
	err = errors.Join(err, os.WriteFile(filepath.Join(dir, "history"), []byte(text.String()), 0o644),
		os.CopyFS(filepath.Join(dir, "log"), os.DirFS(filepath.Join(w.Dir(), "log"))))
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
	return dir
}

// config is both ways of announcing, to all routers, and pools with enough addresses to ask for others.
const config = `
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: lan}
spec:
  addresses: [192.0.2.200-192.0.2.239, "2001:db8::200-2001:db8::23f"]
  serviceAllocation: {priority: 10}
---
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: routed}
spec:
  addresses: [198.18.0.0/25, "2001:db8:f::/120"]
  autoAssign: false
---
` + advertiseL2 + "---" + advertiseBGP + "---" + peer1 + "---" + peer2

const (
	advertiseL2 = `
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: lan}
spec: {ipAddressPools: [lan], interfaces: [eth0]}
`
	advertiseBGP = `
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: routed}
spec: {ipAddressPools: [routed]}
`
	peer1 = `
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: router1}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.1, holdTime: 9s, dualStackAddressFamily: true, enableGracefulRestart: true}
`
	peer2 = `
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: router2}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.2, holdTime: 9s, dualStackAddressFamily: true, enableGracefulRestart: true}
`
)

// chaos plays a history in a lab and returns what judges found.
func chaos(ctx context.Context, w *world.World, steps []walk.Step, race bool) ([]string, error) {
	if err := w.Up(ctx); err != nil {
		return nil, err
	}
	d := &driver{World: w, pods: map[string]*lab.Pod{}, stations: map[string]*station{}}
	d.kernel = map[string]string{}
	for _, node := range w.Nodes() {
		var err error
		if d.pods[node], err = w.RunPod(ctx, lab.PodSpec{Name: "web-" + node, Node: node, Labels: map[string]string{"app": "web"}}); err != nil {
			return nil, err
		}
		if d.kernel[node], err = d.kernelState(ctx, node); err != nil {
			return nil, err
		}
	}
	var err error
	w.Clarion, err = w.StartClarion(ctx, lab.ClarionOptions{Race: race, Standby: true, SpeakerArgs: []string{"--drain-time=5s"},
		ControllerArgs: []string{"--lease-duration=2s", "--lease-renew-deadline=1500ms", "--lease-retry-period=500ms"}})
	if err != nil {
		return nil, err
	}
	if err := w.Apply(ctx, config); err != nil {
		return nil, err
	}
	if err := d.play(ctx, steps); err != nil {
		return d.findings(), err
	}
	if err := d.afresh(ctx); err != nil {
		return d.findings(), err
	}
	return d.findings(), nil
}
