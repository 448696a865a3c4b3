package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/test/lab"
)

// bgpConfig is without BGPPeers: those are a row's own.
const bgpConfig = `
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: routed}
spec: {addresses: [198.18.0.0/24]}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: routed}
spec: {ipAddressPools: [routed]}
---
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: weighted}
spec: {addresses: [198.18.1.0/24], autoAssign: false}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: weighted}
spec: {ipAddressPools: [weighted], weighted: true}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: external}
spec: {addressTypes: [ExternalIP], externalIPRanges: [198.19.0.0/16]}
---
apiVersion: clarionlb.io/v1beta1
kind: BFDProfile
metadata: {name: bfd100}
spec: {receiveInterval: 100, transmitInterval: 100, detectMultiplier: 3}
---
apiVersion: clarionlb.io/v1beta1
kind: BFDProfile
metadata: {name: bfd50}
spec: {receiveInterval: 50, transmitInterval: 50, detectMultiplier: 3}
`

// drainTime is short, so that a drain's end is seen too.
const drainTime = 3 * time.Second

var bgpStages = []stage{
	{setup{name: "bench", nodes: 3, routers: 2, config: bgpConfig, ready: makeRouted, speakerArgs: []string{"--announce-holddown=0", "--drain-time=" + drainTime.String()}}, []row{
		{"slice", followed(0)},
		{"slice10k", followed(10_000)},
		{"bfd100", cutRouted("bfd100", "max 450 ms", 450)},
		{"bfd50", cutRouted("bfd50", "max 300 ms", 300)},
		{"frozen", frozen},
		{"graceful", rolledRouted(true)},
		{"ungraceful", rolledRouted(false)},
		{"drain", drainedRouted},
		{"weighted", weighted},
	}},
	{setup{}, []row{
		{"prefixes", interop("BenchmarkRoutes$", map[string]figure{
			"ms":      {name: "10,000 prefixes in the tables of two routers", want: "p50 150 ms", unit: "ms", p50: 150, note: "from when both sessions are up"},
			"ours-ms": {name: "the same: session up → last UPDATE written", want: "p50 40 ms", unit: "ms", p50: 40, note: "Clarion's part"},
			"MiB":     {name: "the same: memory above idle", want: "max 10 MiB", unit: "MiB", max: 10, note: "without the prefixes themselves"},
		})},
		{"many", interop("BenchmarkManyRoutes$", map[string]figure{
			"ms":      {name: "100,000 prefixes in BIRD's table", want: "p50 1500 ms", unit: "ms", p50: 1500, note: "from when the session is up"},
			"ours-ms": {name: "the same: session up → last UPDATE written", want: "-", unit: "ms", note: "Clarion's part, and waiting for BIRD"},
			"MiB":     {name: "the same: memory above idle", want: "max 80 MiB", unit: "MiB", max: 80, note: "without the prefixes themselves"},
		})},
		{"refused", func(ctx context.Context, b *bench) error {
			seconds := 60
			switch {
			case b.quick:
				seconds = 15
			case b.long:
				seconds = 600
			}
			once := &bench{trials: 1, load: b.load}
			err := interop("BenchmarkRefusing$", map[string]figure{
				"sessions":   {name: fmt.Sprintf("sessions in %d s with a router that refuses every UPDATE", seconds), want: "max 20", unit: "sessions", max: 20},
				"slowest-ms": {name: "the same: a change until another router has it", want: "max 500 ms", unit: "ms", max: 500, note: "the slowest of several a second"},
			}, "CLARION_REFUSING_SECONDS="+strconv.Itoa(seconds))(ctx, once)
			b.figures = append(b.figures, once.figures...)
			return err
		}},
		{"binary", size},
		{"detection", interop("BenchmarkBFDDetection$", map[string]figure{ // a trial is 20 of its own
			"min-ms": {name: "BFD detection 3 × 50 ms: least of 20 a trial", want: "-", unit: "ms", note: "from the peer's last packet, where the detection time begins"},
			"p50-ms": {name: "BFD detection 3 × 50 ms: median of 20 a trial", want: "-", unit: "ms", note: "the same"},
			"max-ms": {name: "BFD detection 3 × 50 ms: most of 20 a trial", want: "max 202.5 ms", unit: "ms", max: 202.5, note: "the same"},
		})},
		{"sessions", interop("BenchmarkBFDLoad$", map[string]figure{
			"%core": {name: "100 BFD sessions at 50 ms", want: "max 6 % of a core", unit: "%", max: 6},
		})},
		{"busy", func(ctx context.Context, b *bench) error {
			seconds := 120
			switch {
			case b.quick:
				seconds = 10
			case b.long:
				seconds = 600
			}
			name := fmt.Sprintf("10 BFD sessions 3 × 300 ms, both cores busy for %d s: false downs", seconds)
			once := &bench{trials: 1, load: b.load}
			err := interop("BenchmarkBFDOnABusyNode$", map[string]figure{"downs": {name: name, want: "0", unit: "downs", max: 0.5}},
				"CLARION_BUSY_SECONDS="+strconv.Itoa(seconds))(ctx, once)
			b.figures = append(b.figures, once.figures...)
			return err
		}},
	}},
}

// Services with their only pod on node1, and with a pod on every node: names and policies.
const (
	atNode1      = "at-node1"
	atNode1Local = "at-node1-local"
	everywhere   = "everywhere"
	everyLocal   = "everywhere-local"
)

// size is how large the speaker is, as it is released.
func size(ctx context.Context, b *bench) error {
	for _, at := range []struct{ name, dir string }{{"the speaker's binary, stripped", "."}, {"before: the speaker's binary, stripped", b.base}} {
		if at.dir == "" {
			continue
		}
		path := filepath.Join(os.TempDir(), "clarion-bench-speaker")
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./speaker")
		cmd.Dir, cmd.Env = at.dir, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		b.figure(figure{name: at.name, want: "-", unit: "MiB"}).add(float64(info.Size()) / (1 << 20))
		_ = os.Remove(path)
	}
	return nil
}

func local(svc *corev1.Service) {
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func makeRouted(ctx context.Context, b *bench) error {
	one, all := b.pods["node1"].Spec.Labels, map[string]string{"app": "echo"}
	_, err := b.service(ctx, atNode1, one, nil)
	_, err1 := b.service(ctx, atNode1Local, one, local)
	_, err2 := b.service(ctx, everywhere, all, nil)
	_, err3 := b.service(ctx, everyLocal, all, local)
	return errors.Join(err, err1, err2, err3)
}

// peers opens the sessions with both routers, which watch them by BFD with a profile of the same name unless bfd is "".
func (b *bench) peers(ctx context.Context, graceful bool, bfd string) error {
	for i, r := range b.Routers() {
		commands := []string{"configure terminal"}
		if interval, ok := strings.CutPrefix(bfd, "bfd"); ok {
			commands = append(commands, "bfd", "profile "+bfd, "detect-multiplier 3", "receive-interval "+interval, "transmit-interval "+interval, "exit", "exit")
		}
		commands = append(commands, fmt.Sprintf("router bgp %d", lab.RouterASN))
		if bfd == "" {
			commands = append(commands, "no neighbor nodes4 bfd")
		} else {
			commands = append(commands, "neighbor nodes4 bfd", "neighbor nodes4 bfd profile "+bfd)
		}
		if _, err := r.Vtysh(ctx, commands...); err != nil {
			return err
		}
		peer := fmt.Sprintf("apiVersion: clarionlb.io/v1beta1\nkind: BGPPeer\nmetadata: {name: router%d}\nspec: {myASN: 64500, peerASN: %d, peerAddress: %s, enableGracefulRestart: %v", i+1, lab.RouterASN, b.Host(r.Name).IPv4, graceful)
		if bfd != "" {
			peer += ", bfdProfile: " + bfd
		}
		if err := b.Apply(ctx, peer+"}\n"); err != nil {
			return err
		}
	}
	pause(ctx, time.Second) // sessions that are to be opened anew are seen to be down
	return b.routed(ctx, bfd != "")
}

// routed waits until every session is up, and every router has every route.
func (b *bench) routed(ctx context.Context, bfd bool) error {
	err := b.eventually(ctx, func() error {
		for _, r := range b.Routers() {
			peers, err := r.BGPPeers(ctx)
			if err != nil {
				return err
			}
			for _, n := range b.Nodes() {
				if s := peers[b.Host(n).IPv4]; s != "Established" {
					return fmt.Errorf("%s: the session with %s is %q", r.Name, n, s)
				}
			}
			if out, err := r.Vtysh(ctx, "show bfd peers brief"); err != nil || bfd && strings.Count(out, " up ") < len(b.Nodes()) {
				return fmt.Errorf("%s: %w%s", r.Name, err, out)
			}
		}
		return nil
	})
	for _, name := range []string{atNode1, everywhere, everyLocal} {
		if err == nil {
			err = b.hops(ctx, name, b.Nodes()...)
		}
	}
	if err == nil {
		err = b.hops(ctx, atNode1Local, "node1")
	}
	return err
}

// hops waits until the routers send packets for a Service to exactly these nodes.
func (b *bench) hops(ctx context.Context, name string, nodes ...string) error {
	addr, err := b.address(ctx, name)
	if err != nil {
		return err
	}
	var want []netip.Addr
	for _, n := range nodes {
		want = append(want, b.Host(n).IPv4)
	}
	return b.eventually(ctx, func() error {
		for _, r := range b.Routers() {
			got, err := r.NextHops(ctx, netip.PrefixFrom(addr, 32))
			if err != nil {
				return err
			}
			if !slices.Equal(got, want) {
				return fmt.Errorf("%s: next hops of %s are %v, want %v", r.Name, addr, got, want)
			}
		}
		return nil
	})
}

// change is what a router's kernel says about the route of an address: its next hops with their weights, none if the
// route is gone.
type change struct {
	at   time.Time
	addr netip.Addr
	hops map[netip.Addr]int
}

// table follows the routes in a router's kernel.
type table struct {
	mu      sync.Mutex
	changes []change
	stop    func()
}

var (
	hopVia    = regexp.MustCompile(`via (?:inet )?([0-9.]+)`)
	hopWeight = regexp.MustCompile(`weight ([0-9]+)`)
)

// parseChange reads a line of ip -o monitor route; false if it is about something else than an address's route.
func parseChange(line string) (c change, ok bool) {
	fields := strings.Fields(line)
	gone := len(fields) > 0 && fields[0] == "Deleted"
	if gone {
		fields = fields[1:]
	}
	if len(fields) == 0 {
		return c, false
	}
	var err error
	if c.addr, err = netip.ParseAddr(fields[0]); err != nil {
		return c, false
	}
	c.hops = map[netip.Addr]int{}
	if gone {
		return c, true
	}
	// Each next hop begins with "via", and may have a weight.
	at := hopVia.FindAllStringSubmatchIndex(line, -1)
	for i, m := range at {
		hop, err := netip.ParseAddr(line[m[2]:m[3]])
		if err != nil {
			return c, false
		}
		end := len(line)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		weight := 1
		if w := hopWeight.FindStringSubmatch(line[m[1]:end]); w != nil {
			weight, _ = strconv.Atoi(w[1])
		}
		c.hops[hop] = weight
	}
	return c, true
}

// watch follows the routes of a router until stop is called.
func (b *bench) watch(r *lab.Router) (*table, error) {
	t := &table{}
	cmd := exec.Command("ip", "-4", "-o", "monitor", "route")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := b.In(r.Name, cmd.Start); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			now := time.Now()
			if c, ok := parseChange(lines.Text()); ok {
				c.at = now
				t.mu.Lock()
				t.changes = append(t.changes, c)
				t.mu.Unlock()
			}
		}
	}()
	t.stop = func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
	}
	return t, nil
}

// watchAll follows both routers.
func (b *bench) watchAll(ctx context.Context) (tables []*table, stop func(), err error) {
	stop = func() {
		for _, t := range tables {
			t.stop()
		}
	}
	for _, r := range b.Routers() {
		t, err := b.watch(r)
		if err != nil {
			stop()
			return nil, nil, err
		}
		tables = append(tables, t)
	}
	pause(ctx, 500*time.Millisecond) // there is no sign of a monitor's being ready
	return tables, stop, nil
}

// last waits until in every table the route of an address became as is says, after start; it returns when the last one did.
func (b *bench) last(ctx context.Context, tables []*table, addr netip.Addr, start time.Time, is func(map[netip.Addr]int) bool) (at time.Time, err error) {
	limit, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for _, t := range tables {
		for found := false; !found; {
			var state []change
			t.mu.Lock()
			for _, c := range t.changes {
				if c.addr == addr && c.at.After(start) {
					state = append(state, c)
				}
			}
			t.mu.Unlock()
			for _, c := range state {
				if is(c.hops) {
					found = true
					if c.at.After(at) {
						at = c.at
					}
					break
				}
			}
			if limit.Err() != nil {
				return at, fmt.Errorf("the route of %s did not become what it should; changes: %v", addr, state)
			}
			pause(limit, time.Millisecond)
		}
	}
	return at, nil
}

// slice writes the EndpointSlice of a Service without a selector: these pods, ready or not.
func (b *bench) slice(ctx context.Context, service string, ready bool, pods ...*lab.Pod) error {
	s := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: service + "-bench", Labels: map[string]string{
			discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "bench",
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("echo"), Port: ptr.To[int32](8080), Protocol: ptr.To(corev1.ProtocolUDP)}},
	}
	for _, p := range pods {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{p.IPv4.String()}, NodeName: ptr.To(p.Spec.Node),
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(ready), Serving: ptr.To(ready), Terminating: ptr.To(false)},
		})
	}
	err := b.Client().Create(ctx, s)
	if err != nil {
		s.ResourceVersion = ""
		err = b.Client().Update(ctx, s)
	}
	return err
}

// held says why a router's kernel is so much later than the UPDATE.
const held = "FRR 8.4 lets a change rest for 50 ms in bgpd and 10 ms in zebra; see the control"

// followed changes an EndpointSlice and waits for the routers, and says which part of the way takes how long, while so
// many routes more are announced, of external IPs.
func followed(more int) func(context.Context, *bench) error {
	return func(ctx context.Context, b *bench) error { return follow(ctx, b, more) }
}

func follow(ctx context.Context, b *bench, more int) error {
	type parts struct{ sent, table, kernel, api, rules, earliest, speaker, best, route, control *figure }
	var figures [2]parts
	speaker50, speaker99, among := 0.0, 0.0, ""
	if more > 0 {
		speaker50, speaker99, among = 1, 3, fmt.Sprintf(", among %d routes", more)
	}
	for i, what := range []string{"gone" + among, "present" + among} {
		p50, p99, kernel99, first := 30.0, 150.0, 150.0, "event"
		if i == 1 { // nodes wait for their Service proxies, which rest a second between two times that they write rules
			p50, p99, kernel99, first = 0, 0, 0, "the last Service proxy has written its rules"
		}
		add := func(name, want string, p50, p99 float64, note string) *figure {
			return b.figure(figure{name: name + ": " + what, want: want, unit: "ms", p50: p50, p99: p99, note: note})
		}
		figures[i] = parts{
			sent:    add("EndpointSlice change → UPDATE of every node at both routers", wantOf(p50, p99), p50, p99, "from before the request to the API server"),
			table:   add("EndpointSlice change → path in both routers' show bgp", wantOf(p50, p99), p50, p99, "the same"),
			kernel:  add("EndpointSlice change → route in both routers' kernels", wantOf(0, kernel99), 0, kernel99, held),
			api:     add("- of it: request → event at a watcher", "-", 0, 0, "the API server's part"),
			speaker: add("- of it: "+first+" → UPDATE of every node at both routers", wantOf(speaker50, speaker99), speaker50, speaker99, "Clarion's part"),
			best:    add("- of it: UPDATE → best path in both routers", "-", 0, 0, "bgpd's part"),
			route:   add("- of it: best path → both routers' kernels", "-", 0, 0, "zebra's part"),
			control: add("control: UPDATE of a program of 50 lines → both routers' kernels", "-", 0, 0, "what no BGP speaker is faster than"),
		}
		switch i {
		case 0:
			figures[i].earliest = add("- of it: event → UPDATE of the first node at each router", "-", 0, 0, "the others share the machine's cores with it")
		case 1:
			figures[i].rules = add("- of it: event → every Service proxy has written its rules", "-", 0, 0, "kube-proxy's part")
		}
	}
	if err := b.peers(ctx, true, ""); err != nil {
		return err
	}
	if err := b.external(ctx, more); err != nil {
		return err
	}
	defer func() { _ = b.remove(context.WithoutCancel(ctx), numbered("external", more/1000)...) }()
	const name = "followed"
	addr, err := b.service(ctx, name, nil, nil)
	if err != nil {
		return err
	}
	defer func() { _ = b.remove(context.WithoutCancel(ctx), name) }()
	pod := b.pods["node1"]
	if err := b.slice(ctx, name, true, pod); err != nil {
		return err
	}
	if err := b.hops(ctx, name, b.Nodes()...); err != nil {
		return err
	}
	tables, stop, err := b.watchAll(ctx)
	if err != nil {
		return err
	}
	defer stop()
	events, unwatch, err := b.sliceEvents(ctx, name)
	if err != nil {
		return err
	}
	defer unwatch()
	var taps []*tap
	var shells []*shell
	var bare []net.Conn
	for _, r := range b.Routers() {
		t, err := b.tap(r.Name, addr)
		if err != nil {
			return err
		}
		defer t.close()
		taps = append(taps, t)
		sh, err := b.shell(r)
		if err != nil {
			return err
		}
		defer sh.conn.Close()
		shells = append(shells, sh)
		c, err := b.bareSession(ctx, "client", r)
		if err != nil {
			return err
		}
		defer c.Close()
		bare = append(bare, c)
		if _, err := c.Write(bareUpdate(b.Host("client").IPv4, true)); err != nil {
			return err
		}
	}
	there := func(hops int) func(map[netip.Addr]int) bool { // one node is enough for the route to be there
		return func(h map[netip.Addr]int) bool { return min(1, len(h)) == hops }
	}
	return b.each(ctx, 5*b.trials, func(int) error {
		for hops, ready := range []bool{false, true} {
			f := figures[hops]
			pause(ctx, anyTime()/2)
			asked := b.ask(ctx, shells, addr, ready, len(b.Nodes()))
			start := time.Now()
			if err := b.slice(ctx, name, ready, pod); err != nil {
				return err
			}
			kernel, err := b.last(ctx, tables, addr, start, there(hops))
			if err != nil {
				return err
			}
			seen := <-asked
			if seen.err != nil {
				return seen.err
			}
			first, sent, err := updatesOf(ctx, taps, len(b.Nodes()), start)
			if err != nil {
				return err
			}
			heard := start
			for !heard.After(start) { // the event of the trial before may be left
				heard = <-events
			}
			f.sent.took(sent.Sub(start))
			f.table.took(seen.path.Sub(start))
			f.kernel.took(kernel.Sub(start))
			f.api.took(heard.Sub(start))
			switch {
			case ready: // the first node's path is the best one, before the others have theirs
				written, err := b.proxiesWrote(ctx)
				if err != nil {
					return err
				}
				f.rules.took(written.Sub(heard))
				f.speaker.took(sent.Sub(written))
				f.best.took(seen.best.Sub(first))
			default:
				f.earliest.took(first.Sub(heard))
				f.speaker.took(sent.Sub(heard))
				f.best.took(seen.best.Sub(sent))
			}
			f.route.took(kernel.Sub(seen.best))

			pause(ctx, anyTime()/2)
			start = time.Now()
			for _, c := range bare {
				if _, err := c.Write(bareUpdate(b.Host("client").IPv4, ready)); err != nil {
					return err
				}
			}
			if kernel, err = b.last(ctx, tables, bareAddr, start, there(hops)); err != nil {
				return err
			}
			f.control.took(kernel.Sub(start))
		}
		return b.hops(ctx, name, b.Nodes()...)
	})
}

// wantOf says what is wanted of two percentiles in milliseconds, 0 for nothing.
func wantOf(p50, p99 float64) string {
	switch {
	case p50 == 0 && p99 == 0:
		return "-"
	case p50 == 0:
		return fmt.Sprintf("p99 %g ms", p99)
	}
	return fmt.Sprintf("p50 %g ms, p99 %g ms", p50, p99)
}

// external makes Services with n external IPs, a thousand each, and waits until both routers have them all.
func (b *bench) external(ctx context.Context, n int) error {
	for i, name := range numbered("external", n/1000) {
		_, err := b.service(ctx, name, b.pods["node1"].Spec.Labels, func(svc *corev1.Service) {
			svc.Spec.AllocateLoadBalancerNodePorts = new(bool)
			for j := range 1000 {
				svc.Spec.ExternalIPs = append(svc.Spec.ExternalIPs, fmt.Sprintf("198.19.%d.%d", (1000*i+j)>>8, (1000*i+j)&255))
			}
		})
		if err != nil {
			return err
		}
	}
	if n == 0 {
		return nil
	}
	return lab.Eventually(ctx, 3*settle, func() error {
		for _, r := range b.Routers() {
			out, err := r.Vtysh(ctx, "show bgp ipv4 unicast statistics json")
			if err != nil {
				return err
			}
			var s struct {
				IPv4Unicast []struct{ TotalPrefixes int }
			}
			if err := json.Unmarshal([]byte(out), &s); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			if len(s.IPv4Unicast) == 0 || s.IPv4Unicast[0].TotalPrefixes < n {
				return fmt.Errorf("%s has %v prefixes, want %d", r.Name, s.IPv4Unicast, n)
			}
		}
		return nil
	})
}

// sliceEvents watches the EndpointSlices of a Service as a speaker does, and says when each event came.
func (b *bench) sliceEvents(ctx context.Context, service string) (at <-chan time.Time, stop func(), err error) {
	c, err := client.NewWithWatch(b.Config(), client.Options{Scheme: b.Client().Scheme()})
	if err != nil {
		return nil, nil, err
	}
	w, err := c.Watch(ctx, &discoveryv1.EndpointSliceList{}, client.InNamespace("default"), client.MatchingLabels{discoveryv1.LabelServiceName: service})
	if err != nil {
		return nil, nil, fmt.Errorf("watch EndpointSlices: %w", err)
	}
	all := make(chan time.Time, 1000)
	go func() {
		for range w.ResultChan() {
			all <- time.Now()
		}
	}()
	return all, w.Stop, nil
}

// shell is a connection with a router's bgpd that vtysh would make anew for each command, which takes it 10 ms and more.
type shell struct {
	conn net.Conn
	in   *bufio.Reader
}

func (b *bench) shell(r *lab.Router) (*shell, error) {
	c, err := net.Dial("unix", filepath.Join(b.Dir(), r.Name, "bgpd.vty"))
	if err != nil {
		return nil, err
	}
	return &shell{c, bufio.NewReader(c)}, nil
}

// run carries out a command that shows something.
func (s *shell) run(command string) (string, error) {
	if _, err := s.conn.Write(append([]byte(command), 0)); err != nil {
		return "", err
	}
	// What it prints ends with three zero bytes and the command's result.
	var out []byte
	for !bytes.HasSuffix(out, []byte{0, 0, 0}) {
		more, err := s.in.ReadBytes(0)
		if err != nil {
			return "", fmt.Errorf("bgpd: %s: %w", command, err)
		}
		out = append(out, more...)
	}
	if code, err := s.in.ReadByte(); err != nil || code != 0 {
		return "", fmt.Errorf("bgpd: %s: result %d: %w", command, code, err)
	}
	return string(out[:len(out)-3]), nil
}

// seen is when bgpd's table had every path, or none, and when there was a best path, or none.
type seen struct {
	path, best time.Time
	err        error
}

// ask asks both routers again and again, from now on, for the paths of an address: until there are as many as nodes, or
// none, and the best one of them is known.
func (b *bench) ask(ctx context.Context, shells []*shell, addr netip.Addr, present bool, nodes int) <-chan seen {
	out := make(chan seen, 1)
	one := func(sh *shell) (s seen) {
		limit, cancel := context.WithTimeout(ctx, settle)
		defer cancel()
		for limit.Err() == nil {
			text, err := sh.run("show bgp ipv4 unicast " + addr.String() + "/32 json")
			now := time.Now()
			if err != nil {
				return seen{err: err}
			}
			var table struct {
				Paths []struct {
					Removed  bool
					Valid    bool
					Bestpath struct{ Overall bool }
				}
			}
			if err := json.Unmarshal([]byte(text), &table); err != nil {
				return seen{err: fmt.Errorf("bgpd: %w: %s", err, text)}
			}
			valid, best := 0, false
			for _, p := range table.Paths {
				if p.Valid && !p.Removed {
					valid++
				}
				best = best || p.Bestpath.Overall
			}
			if s.path.IsZero() && (present && valid == nodes || !present && valid == 0) {
				s.path = now
			}
			if s.best.IsZero() && best == present {
				s.best = now
			}
			if !s.path.IsZero() && !s.best.IsZero() {
				return s
			}
			pause(limit, time.Millisecond)
		}
		return seen{err: fmt.Errorf("bgpd does not show what it should about %s", addr)}
	}
	go func() {
		var last seen
		all := make(chan seen)
		for _, sh := range shells {
			go func() { all <- one(sh) }()
		}
		for range shells {
			s := <-all
			last.err = errors.Join(last.err, s.err)
			if s.path.After(last.path) {
				last.path = s.path
			}
			if s.best.After(last.best) {
				last.best = s.best
			}
		}
		out <- last
	}()
	return out
}

// bareAddr is announced by no node.
var bareAddr = netip.MustParseAddr("198.18.2.1")

const bareASN = 64499

// bareMessage is a BGP message (RFC 4271 section 4.1).
func bareMessage(typ byte, body ...byte) []byte {
	m := append(bytes.Repeat([]byte{0xff}, 16), 0, byte(19+len(body)), typ)
	return append(m, body...)
}

// bareSession opens a BGP session with a router from a host that runs no speaker, without hold time.
func (b *bench) bareSession(ctx context.Context, host string, r *lab.Router) (net.Conn, error) {
	c, err := b.Dial(ctx, host, "tcp", netip.AddrPortFrom(b.Host(r.Name).IPv4, 179).String())
	if err != nil {
		return nil, err
	}
	open := append([]byte{4, bareASN >> 8, bareASN & 255, 0, 0}, b.Host(host).IPv4.AsSlice()...)
	_, err = c.Write(append(bareMessage(1, append(open, 0)...), bareMessage(4)...))
	in := bufio.NewReader(c)
	for established := false; err == nil && !established; {
		head := make([]byte, 19)
		if _, err = io.ReadFull(in, head); err != nil {
			break
		}
		if head[18] == 3 {
			err = errors.New("NOTIFICATION")
		}
		established = head[18] == 4
		_, _ = in.Discard(int(binary.BigEndian.Uint16(head[16:])) - 19)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("bare BGP session with %s: %w", r.Name, err)
	}
	go func() { _, _ = io.Copy(io.Discard, in) }()
	return c, nil
}

// bareUpdate announces or withdraws bareAddr by way of a host.
func bareUpdate(hop netip.Addr, present bool) []byte {
	prefix := append([]byte{32}, bareAddr.AsSlice()...)
	if !present {
		return bareMessage(2, slices.Concat([]byte{0, 5}, prefix, []byte{0, 0})...)
	}
	const transitive, origin, asPath, nextHop, sequence = 0x40, 1, 2, 3, 2
	attrs := slices.Concat([]byte{
		transitive, origin, 1, 0,
		transitive, asPath, 4, sequence, 1, bareASN >> 8, bareASN & 255,
		transitive, nextHop, 4,
	}, hop.AsSlice())
	return bareMessage(2, slices.Concat([]byte{0, 0, 0, byte(len(attrs))}, attrs, prefix)...)
}

// tap listens to the UPDATEs about an address that a router receives.
type tap struct {
	conn   *packet.Conn
	closed atomic.Bool
	done   chan struct{}

	mu   sync.Mutex
	seen []update
}

type update struct {
	at   time.Time
	from netip.Addr
}

func (b *bench) tap(router string, addr netip.Addr) (*tap, error) {
	t := &tap{done: make(chan struct{})}
	err := b.In(router, func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err == nil {
			t.conn, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_IP, nil)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("BGP on %s: %w", router, err)
	}
	go func() {
		defer close(t.done)
		for frame := make([]byte, 9000); ; {
			n, _, err := t.conn.ReadFrom(frame)
			now := time.Now()
			if t.closed.Load() {
				return
			}
			if err != nil {
				continue
			}
			if from, ok := updates(frame[:n], addr); ok {
				t.mu.Lock()
				t.seen = append(t.seen, update{now, from})
				t.mu.Unlock()
			}
		}
	}()
	return t, nil
}

func (t *tap) close() {
	t.closed.Store(true)
	_ = t.conn.Close()
	<-t.done
}

// updates says whether a frame carries an UPDATE of a BGP session that names an address as a prefix, and from whom. It
// takes TCP segments to begin with a message.
func updates(frame []byte, addr netip.Addr) (from netip.Addr, ok bool) {
	const ethernet, header, port, typeUpdate = 14, 20, 179, 2
	if len(frame) < ethernet+header || frame[ethernet]>>4 != 4 || frame[ethernet+9] != unix.IPPROTO_TCP {
		return from, false
	}
	segment := frame[ethernet+int(frame[ethernet]&15)*4:]
	if len(segment) < header || binary.BigEndian.Uint16(segment) != port && binary.BigEndian.Uint16(segment[2:]) != port {
		return from, false
	}
	message := segment[min(len(segment), int(segment[12]>>4)*4):]
	prefix := append([]byte{32}, addr.AsSlice()...)
	for len(message) > 19 {
		length := int(binary.BigEndian.Uint16(message[16:]))
		if length < 19 || length > len(message) {
			break
		}
		if message[18] == typeUpdate && bytes.Contains(message[:length], prefix) {
			return netip.AddrFrom4([4]byte(frame[ethernet+12 : ethernet+16])), true
		}
		message = message[length:]
	}
	return from, false
}

// updatesOf waits until UPDATEs of so many nodes were seen at every router since a time, and says when the first of them
// was at each, and the last at all.
func updatesOf(ctx context.Context, taps []*tap, nodes int, start time.Time) (first, last time.Time, err error) {
	limit, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for _, t := range taps {
		at := map[netip.Addr]time.Time{}
		for len(at) < nodes {
			if limit.Err() != nil {
				return first, last, fmt.Errorf("UPDATEs of %d nodes were seen, want %d", len(at), nodes)
			}
			pause(limit, time.Millisecond)
			t.mu.Lock()
			for _, u := range t.seen {
				if _, ok := at[u.from]; !ok && u.at.After(start) {
					at[u.from] = u.at
				}
			}
			t.mu.Unlock()
		}
		of := slices.SortedFunc(maps.Values(at), time.Time.Compare)
		if of[0].After(first) {
			first = of[0]
		}
		if of[len(of)-1].After(last) {
			last = of[len(of)-1]
		}
	}
	return first, last, nil
}

// proxiesWrote says when the last of all nodes' Service proxies wrote its rules for IPv4.
func (b *bench) proxiesWrote(ctx context.Context) (last time.Time, err error) {
	for _, node := range b.Nodes() {
		text, err := b.Get(ctx, node, "http://127.0.0.1:10256/healthz")
		if err != nil {
			return last, err
		}
		var health struct {
			Status map[corev1.IPFamily]struct{ LastUpdated time.Time }
		}
		if err := json.Unmarshal(text, &health); err != nil {
			return last, fmt.Errorf("kube-proxy's health: %w: %s", err, text)
		}
		if at := health.Status[corev1.IPv4Protocol].LastUpdated; at.After(last) {
			last = at
		}
	}
	return last, nil
}

// cutRouted pulls the cable of a node that has no pod, with BFD on both sides.
func cutRouted(bfd, want string, most float64) func(context.Context, *bench) error {
	return func(ctx context.Context, b *bench) error {
		f := b.figure(figure{name: "node's link cut, BFD 3 × " + strings.TrimPrefix(bfd, "bfd") + " ms: first to last lost", want: want, unit: "ms", max: most})
		if err := b.peers(ctx, true, bfd); err != nil {
			return err
		}
		addr, err := b.address(ctx, atNode1)
		if err != nil {
			return err
		}
		return b.each(ctx, b.trials, func(i int) error {
			if err := b.answered(ctx, "outside", addr); err != nil {
				return err
			}
			node := b.Nodes()[1+i%2]
			stop := b.stream(ctx, "outside", addr)
			pause(ctx, anyTime())
			err := b.CutLink(node)
			pause(ctx, 1500*time.Millisecond)
			replies := stop()[0]
			f.took(lab.Outage(replies))
			f.counted(replies)
			if restored := b.RestoreLink(node); err == nil {
				err = restored
			}
			if err == nil {
				err = b.routed(ctx, true)
			}
			pause(ctx, time.Second)
			return err
		})
	}
}

// frozen stops a speaker without ending it.
func frozen(ctx context.Context, b *bench) error {
	f := b.figure(figure{name: "frozen speaker (SIGSTOP), BFD 3 × 100 ms: out of both routers", want: "max 450 ms", unit: "ms", max: 450})
	lost := b.lossless("the same, requests lost")
	if err := b.peers(ctx, true, "bfd100"); err != nil {
		return err
	}
	addr, err := b.address(ctx, atNode1)
	if err != nil {
		return err
	}
	tables, stop, err := b.watchAll(ctx)
	if err != nil {
		return err
	}
	defer stop()
	return b.each(ctx, b.trials, func(i int) error {
		node := b.Nodes()[1+i%2]
		err := b.during(ctx, lost, "outside", []netip.Addr{addr}, func() error {
			start := time.Now()
			b.clarion.Speakers[node].Signal(unix.SIGSTOP)
			defer b.clarion.Speakers[node].Signal(unix.SIGCONT)
			at, err := b.last(ctx, tables, addr, start, func(h map[netip.Addr]int) bool { return len(h) > 0 && h[b.Host(node).IPv4] == 0 })
			if err != nil {
				return err
			}
			f.took(at.Sub(start))
			pause(ctx, 500*time.Millisecond)
			return nil
		})
		if err != nil {
			return err
		}
		pause(ctx, time.Second)
		return b.routed(ctx, true)
	})
}

// fresh waits until no router has a route of a node only because it is restarting.
func (b *bench) fresh(ctx context.Context) error {
	addr, err := b.address(ctx, everywhere)
	if err != nil {
		return err
	}
	return b.eventually(ctx, func() error {
		for _, r := range b.Routers() {
			paths, err := r.BGPPaths(ctx, netip.PrefixFrom(addr, 32))
			if err != nil {
				return err
			}
			if len(paths) != len(b.Nodes()) || slices.ContainsFunc(paths, func(p lab.BGPPath) bool { return p.Stale }) {
				return fmt.Errorf("%s: paths of %s: %v", r.Name, addr, paths)
			}
		}
		return nil
	})
}

func rolledRouted(graceful bool) func(context.Context, *bench) error {
	return func(ctx context.Context, b *bench) error {
		// Without graceful restart the only node of a Local Service is away for a moment: nobody can serve then.
		how, services, others := "graceful restart", []string{everywhere, atNode1, atNode1Local}, "a Local Service of one endpoint"
		if !graceful {
			how, services, others = "GRACEFUL_SHUTDOWN", []string{everywhere, atNode1, everyLocal}, "a Local Service with endpoints on all nodes"
		}
		f := b.lossless("rolling restart of all speakers, " + how)
		f.note = "Cluster Services and " + others
		if err := b.peers(ctx, graceful, ""); err != nil {
			return err
		}
		var addrs []netip.Addr
		for _, s := range services {
			addr, err := b.address(ctx, s)
			if err == nil {
				err = b.answered(ctx, "outside", addr)
			}
			if err != nil {
				return err
			}
			addrs = append(addrs, addr)
		}
		return b.each(ctx, b.trials, func(int) error {
			return b.during(ctx, f, "outside", addrs, func() error {
				for _, n := range b.Nodes() {
					if err := b.clarion.Speakers[n].Stop(); err != nil {
						return err
					}
					if err := b.clarion.Speakers[n].Restart(); err != nil {
						return err
					}
					if err := b.routed(ctx, false); err != nil {
						return err
					}
					if err := b.fresh(ctx); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
}

// drainedRouted drains a node until its routes are gone, and no longer.
func drainedRouted(ctx context.Context, b *bench) error {
	if err := b.peers(ctx, true, ""); err != nil {
		return err
	}
	figures := map[string]*figure{everywhere: b.lossless("node drained, Cluster"), everyLocal: b.lossless("node drained, Local")}
	var addrs []netip.Addr
	names := slices.Sorted(maps.Keys(figures))
	for _, s := range names {
		addr, err := b.address(ctx, s)
		if err == nil {
			err = b.answered(ctx, "outside", addr)
		}
		if err != nil {
			return err
		}
		addrs = append(addrs, addr)
	}
	return b.each(ctx, b.trials, func(i int) error {
		node := b.Nodes()[i%len(b.Nodes())]
		stop := b.stream(ctx, "outside", addrs...)
		pause(ctx, anyTime())
		err := b.drain(ctx, node, true)
		for _, name := range names {
			if err == nil {
				err = b.hops(ctx, name, b.others(node)...)
			}
		}
		pause(ctx, drainTime+500*time.Millisecond)
		if ended := b.drain(ctx, node, false); err == nil {
			err = ended
		}
		for _, name := range names {
			if err == nil {
				err = b.hops(ctx, name, b.Nodes()...)
			}
		}
		pause(ctx, 500*time.Millisecond)
		for j, replies := range stop() {
			figures[names[j]].counted(replies)
			figures[names[j]].add(float64(len(lab.Lost(replies))))
		}
		return err
	})
}

// now is the route of an address as the kernel said last.
func (t *table) now(addr netip.Addr) (hops map[netip.Addr]int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.changes {
		if c.addr == addr {
			hops = c.hops
		}
	}
	return hops
}

// unlike is the largest distance, in points, between the nodes' shares of a route's weights and what they should be in
// percent; 100 without a route.
func (b *bench) unlike(hops map[netip.Addr]int, percent [3]int) (worst float64) {
	sum := 0
	for _, w := range hops {
		sum += w
	}
	if sum == 0 {
		return 100
	}
	for i, n := range b.Nodes() {
		share := 100 * float64(hops[b.Host(n).IPv4]) / float64(sum)
		worst = max(worst, math.Abs(share-float64(percent[i])))
	}
	return worst
}

// weighted has 1, 3 and 6 endpoints on three nodes.
func weighted(ctx context.Context, b *bench) error {
	share := b.figure(figure{name: "1/3/6 endpoints, weighted: distance from 10/30/60 % of 2,000 flows", want: "max 4 points", unit: "points", max: 4})
	kernel := b.figure(figure{name: "1/3/6 endpoints, weighted: distance from 10/30/60 % in the weights of both routers' kernels", want: "max 4 points", unit: "points", max: 4})
	again := b.figure(figure{name: "endpoints change → weights changed in both routers", want: "max 1000 ms", unit: "ms", max: 1000})
	const flows = 2000
	if err := b.peers(ctx, true, ""); err != nil {
		return err
	}
	nodes := b.Nodes()
	var pods []*lab.Pod
	for i, n := range []int{1, 3, 6} {
		for j := range n {
			p := b.pods[nodes[i]]
			if j > 0 {
				var err error
				if p, err = b.RunPod(ctx, lab.PodSpec{Name: fmt.Sprintf("weight-%s-%d", nodes[i], j), Node: nodes[i]}); err != nil {
					return err
				}
				defer func() { _ = p.Delete(context.WithoutCancel(ctx)) }()
			}
			pods = append(pods, p)
		}
	}
	const name = "weighted"
	addr, err := b.service(ctx, name, nil, func(svc *corev1.Service) { pool("weighted")(svc); local(svc) })
	if err != nil {
		return err
	}
	defer func() { _ = b.remove(context.WithoutCancel(ctx), name) }()
	tables, stop, err := b.watchAll(ctx)
	if err != nil {
		return err
	}
	defer stop()
	// reach sets the endpoints and waits until the routers' weights are as those of the nodes, in percent.
	reach := func(f *figure, want [3]int, pods ...*lab.Pod) error {
		start := time.Now()
		if err := b.slice(ctx, name, true, pods...); err != nil {
			return err
		}
		at, err := b.last(ctx, tables, addr, start, func(h map[netip.Addr]int) bool {
			return b.unlike(h, want) <= 4
		})
		if err == nil && f != nil {
			f.took(at.Sub(start))
		}
		return err
	}
	even := []*lab.Pod{pods[0], pods[1], pods[4]}
	if err := reach(nil, [3]int{10, 30, 60}, pods...); err != nil {
		return err
	}
	for _, t := range tables {
		hops := t.now(addr)
		kernel.add(b.unlike(hops, [3]int{10, 30, 60}))
		kernel.note = fmt.Sprintf("last: %d/%d/%d", hops[b.Host(nodes[0]).IPv4], hops[b.Host(nodes[1]).IPv4], hops[b.Host(nodes[2]).IPv4])
	}
	if err := b.answered(ctx, "outside", addr); err != nil {
		return err
	}
	err = b.each(ctx, min(5, b.trials), func(int) error {
		replies := b.UDP(ctx, "outside", target(addr), flows)
		share.counted(replies)
		counts := lab.CountNodes(replies)
		worst := 0.0
		for i, want := range []float64{10, 30, 60} {
			got := 100 * float64(counts[nodes[i]]) / flows
			worst = max(worst, got-want, want-got)
		}
		share.add(worst)
		share.note = fmt.Sprintf("last: %d/%d/%d flows", counts[nodes[0]], counts[nodes[1]], counts[nodes[2]])
		return nil
	})
	if err != nil {
		return err
	}
	return b.each(ctx, b.trials, func(i int) error {
		pause(ctx, time.Second+anyTime())
		if i%2 == 0 {
			return reach(again, [3]int{33, 33, 33}, even...)
		}
		return reach(again, [3]int{10, 30, 60}, pods...)
	})
}

// interop runs a benchmark of test/interop, which needs no cluster, with more in its environment, and takes its figures
// over.
func interop(name string, figures map[string]figure, env ...string) func(context.Context, *bench) error {
	return func(ctx context.Context, b *bench) error {
		made := map[string]*figure{}
		for _, unit := range slices.Sorted(maps.Keys(figures)) {
			made[unit] = b.figure(figures[unit])
		}
		cmd := exec.CommandContext(ctx, "go", "test", "-run=^$", "-bench=^"+name, "-benchtime=1x", "-timeout=0", "-count="+strconv.Itoa(max(1, b.trials/4)), "github.com/clarionlb/clarion/test/interop")
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
		}
		for line := range strings.Lines(string(out)) {
			fields := strings.Fields(line)
			for i := 3; i < len(fields) && strings.HasPrefix(line, "Benchmark"); i += 2 {
				if f := made[fields[i]]; f != nil {
					v, err := strconv.ParseFloat(fields[i-1], 64)
					if err != nil {
						return err
					}
					f.add(v)
				}
			}
		}
		return nil
	}
}
