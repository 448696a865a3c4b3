package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/lab"
)

// layer2Config has a pool that any node may own, one for a single node, and one that node3 prefers to own.
const layer2Config = `
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: lan}
spec: {addresses: [192.0.2.200-192.0.2.239]}
---
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: lan}
spec: {ipAddressPools: [lan], interfaces: [eth0]}
---
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: alone}
spec: {addresses: [192.0.2.240-192.0.2.250], autoAssign: false}
---
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: many}
spec: {addresses: [198.18.0.0/20], autoAssign: false}
---
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: many}
spec:
  ipAddressPools: [many]
  interfaces: [eth0]
  preferredNodeSelectors: [{weight: 100, preference: {matchLabels: {bench: node3}}}]
---
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: spread}
spec: {addresses: [198.19.0.0/20], autoAssign: false}
---
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: spread}
spec: {ipAddressPools: [spread], interfaces: [eth0]}
`

var layer2Stages = []stage{
	{setup{name: "bench3", nodes: 3, routers: 1, config: layer2Config, ready: makeAway}, []row{
		{"idle", idle},
		{"cut3", cut("max 500 ms, p50 300", 300, 500)},
		{"kill", killed},
		{"sigterm", terminated},
		{"drain", drained},
		{"rolling", rolled},
		{"api", withoutAPI},
		{"partition", partitioned},
		{"gossip", withoutGossip},
		{"busy", busy},
		{"links", links},
		{"storm", storm},
		{"thousand", thousand},
	}},
	{setup{name: "bench10", nodes: 10, routers: 1, config: layer2Config, ready: makeAway}, []row{
		{"idle10", idle},
		{"cut10", cut("max 600 ms", 0, 600)},
	}},
	{setup{name: "bench30", nodes: 30, routers: 1, config: layer2Config, ready: makeAway}, []row{
		{"cut30", cut("max 800 ms", 0, 800)},
	}},
}

// awayServices is how many Services have their only pod on node1.
const awayServices = 8

// makeAway makes the Services whose only pod is on node1.
func makeAway(ctx context.Context, b *bench) error {
	for i := range awayServices {
		if _, err := b.service(ctx, fmt.Sprintf("away-%d", i), b.pods["node1"].Spec.Labels, nil); err != nil {
			return err
		}
	}
	return nil
}

// place is an address and the node that has it.
type place struct {
	addr  netip.Addr
	owner string
}

// away are addresses that a node has which has no pod of their Service, each node once if it can be.
func (b *bench) away(ctx context.Context) ([]place, error) {
	var all []place
	for i := range awayServices {
		addr, err := b.address(ctx, fmt.Sprintf("away-%d", i))
		if err != nil {
			return nil, err
		}
		node, err := b.owner(ctx, addr)
		if err != nil {
			return nil, err
		}
		if node != "node1" && !slices.ContainsFunc(all, func(p place) bool { return p.owner == node }) {
			if err := b.answered(ctx, "client", addr); err != nil {
				return nil, err
			}
			all = append(all, place{addr, node})
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("every address is node1's")
	}
	return all, nil
}

// again waits until a place is as it was, and everybody has heard it.
func (b *bench) again(ctx context.Context, p place) error {
	if err := b.joined(ctx); err != nil {
		return err
	}
	if err := b.owned(ctx, p.addr, p.owner); err != nil {
		return err
	}
	if err := b.answered(ctx, "client", p.addr); err != nil {
		return err
	}
	pause(ctx, 500*time.Millisecond)
	return nil
}

// owners tries something with each place in turn, and waits until it is as it was.
func (b *bench) owners(ctx context.Context, f func(place) error) error {
	places, err := b.away(ctx)
	if err != nil {
		return err
	}
	return b.each(ctx, b.trials, func(i int) error {
		p := places[i%len(places)]
		if err := f(p); err != nil {
			return err
		}
		return b.again(ctx, p)
	})
}

// cut pulls the cable of an address's owner.
func cut(want string, p50, most float64) func(context.Context, *bench) error {
	return func(ctx context.Context, b *bench) error {
		f := b.figure(figure{name: fmt.Sprintf("owner's link cut, %d nodes: longest gap", len(b.Nodes())), want: want, unit: "ms", p50: p50, max: most})
		return b.owners(ctx, func(p place) error { return b.cutOwner(ctx, f, p) })
	}
}

// cutOwner pulls a cable while requests are made, and plugs it in again afterwards.
func (b *bench) cutOwner(ctx context.Context, f *figure, p place) error {
	stop := b.stream(ctx, "client", p.addr)
	pause(ctx, anyTime())
	err := b.CutLink(p.owner)
	pause(ctx, 1500*time.Millisecond)
	replies := stop()[0]
	f.took(gap(replies))
	f.counted(replies)
	if restored := b.RestoreLink(p.owner); err == nil {
		err = restored
	}
	return err
}

// lossless is a figure of requests that must not be lost.
func (b *bench) lossless(name string) *figure {
	return b.figure(figure{name: name, want: "0 lost", unit: "lost", lossless: true})
}

// during counts what is lost of requests to an address while f runs and for a moment after it.
func (b *bench) during(ctx context.Context, fig *figure, from string, addrs []netip.Addr, f func() error) error {
	stop := b.stream(ctx, from, addrs...)
	pause(ctx, anyTime())
	err := f()
	pause(ctx, 500*time.Millisecond)
	lost := 0
	for _, replies := range stop() {
		fig.counted(replies)
		lost += len(lab.Lost(replies))
	}
	fig.add(float64(lost))
	return err
}

func killed(ctx context.Context, b *bench) error {
	f := b.lossless("owner's speaker killed (SIGKILL), and started again")
	return b.owners(ctx, func(p place) error {
		return b.during(ctx, f, "client", []netip.Addr{p.addr}, func() error {
			b.clarion.Speakers[p.owner].Kill()
			pause(ctx, 2*time.Second)
			if err := b.clarion.Speakers[p.owner].Restart(); err != nil {
				return err
			}
			return b.owned(ctx, p.addr, p.owner)
		})
	})
}

func terminated(ctx context.Context, b *bench) error {
	stopped, took := b.lossless("owner's speaker ends (SIGTERM)"), b.figure(figure{name: "time that it takes to end", want: "-", unit: "ms"})
	joins := b.lossless("node joins and takes over")
	return b.owners(ctx, func(p place) error {
		sp := b.clarion.Speakers[p.owner]
		err := b.during(ctx, stopped, "client", []netip.Addr{p.addr}, func() error {
			start := time.Now()
			err := sp.Stop()
			took.took(time.Since(start))
			return err
		})
		if err != nil {
			return err
		}
		return b.during(ctx, joins, "client", []netip.Addr{p.addr}, func() error {
			if err := sp.Restart(); err != nil {
				return err
			}
			return b.owned(ctx, p.addr, p.owner)
		})
	})
}

func drained(ctx context.Context, b *bench) error {
	f := b.lossless("node drained, and no longer")
	return b.owners(ctx, func(p place) error {
		return b.during(ctx, f, "client", []netip.Addr{p.addr}, func() error {
			if err := b.drain(ctx, p.owner, true); err != nil {
				return err
			}
			err := b.eventually(ctx, func() error {
				who, err := b.owner(ctx, p.addr)
				if err == nil && who == p.owner {
					err = fmt.Errorf("%s still has %s", who, p.addr)
				}
				return err
			})
			if err != nil {
				return err
			}
			if err := b.drain(ctx, p.owner, false); err != nil {
				return err
			}
			return b.owned(ctx, p.addr, p.owner)
		})
	})
}

func rolled(ctx context.Context, b *bench) error {
	f := b.lossless("rolling restart of all speakers")
	return b.owners(ctx, func(p place) error {
		return b.during(ctx, f, "client", []netip.Addr{p.addr}, func() error {
			for _, n := range b.Nodes() {
				if err := b.clarion.Speakers[n].Stop(); err != nil {
					return err
				}
				if err := b.clarion.Speakers[n].Restart(); err != nil {
					return err
				}
				if err := b.ready(ctx, n); err != nil {
					return err
				}
			}
			return b.owned(ctx, p.addr, p.owner)
		})
	})
}

// withoutAPI cuts links while the API server is frozen or dead.
func withoutAPI(ctx context.Context, b *bench) error {
	f := b.figure(figure{name: "API server down 60 s, owner's link cut in between: longest gap", want: "max 500 ms, p50 300", unit: "ms", p50: 300, max: 500})
	places, err := b.away(ctx)
	if err != nil {
		return err
	}
	api := b.Process("control", "kube-apiserver")
	down := 60 * time.Second
	if b.quick {
		down = 15 * time.Second
	}
	// One outage serves for several cuts: 20 trials are 2 outages of either kind.
	rounds := max(2, (b.trials+4)/5)
	return b.each(ctx, rounds, func(round int) error {
		start := time.Now()
		if round%2 == 0 {
			api.Signal(unix.SIGSTOP)
		} else {
			api.Kill()
		}
		pause(ctx, down/6)
		for i := 0; i < 5 && time.Since(start) < down; i++ {
			p := places[i%len(places)]
			if err := b.cutOwner(ctx, f, p); err != nil {
				return err
			}
			if err := b.owned(ctx, p.addr, p.owner); err != nil {
				return err
			}
			pause(ctx, 2*time.Second)
		}
		pause(ctx, down-time.Since(start))
		if round%2 == 0 {
			api.Signal(unix.SIGCONT)
		} else if err := api.Restart(); err != nil {
			return err
		}
		for _, p := range places {
			if err := b.again(ctx, p); err != nil {
				return err
			}
		}
		return nil
	})
}

// partitioned parts an address's owner from the other nodes, while the client sees both.
func partitioned(ctx context.Context, b *bench) error {
	f := b.figure(figure{name: "partition healed: two owners answer for", want: "max 200 ms", unit: "ms", max: 200})
	after := b.figure(figure{name: "partition healed: changes of owner within 3 s", want: "max 1", unit: "", max: 1})
	e, err := b.listen()
	if err != nil {
		return err
	}
	defer e.close()
	return b.owners(ctx, func(p place) error {
		if err := b.Partition([]string{p.owner}, b.others(p.owner)); err != nil {
			return err
		}
		err := b.eventually(ctx, func() error {
			who, err := b.WhoHas("client", p.addr, 60*time.Millisecond)
			if err == nil && len(who) < 2 {
				err = fmt.Errorf("%s is answered by %v only", p.addr, who)
			}
			return err
		})
		if err != nil {
			return err
		}
		pause(ctx, rand.N(7*time.Second)+anyTime()) // short and long ones
		stop := e.asking(p.addr, 5*time.Millisecond)
		pause(ctx, 100*time.Millisecond)
		if err := b.Heal(); err != nil {
			return err
		}
		healed := time.Now()
		pause(ctx, 3*time.Second)
		stop()
		frames := slices.DeleteFunc(e.heard(p.addr), func(h heard) bool { return h.at.Before(healed) })
		last := healed
		changes := 0
		for j, h := range frames {
			if h.host != frames[len(frames)-1].host {
				last = h.at
			}
			if j > 0 && h.host != frames[j-1].host && h.at.Sub(healed) > 200*time.Millisecond {
				changes++
			}
		}
		f.took(last.Sub(healed))
		after.add(float64(changes))
		return nil
	})
}

// withoutGossip has the nodes drop the speakers' gossip, and then changes things.
func withoutGossip(ctx context.Context, b *bench) error {
	f := b.figure(figure{name: "gossip blocked, LAN works: time until one owner, after a change", want: "max 200 ms", unit: "ms", max: 200})
	stable := b.figure(figure{name: "gossip blocked: changes of owner without a reason", want: "0", unit: "", max: 0.5})
	places, err := b.away(ctx)
	if err != nil {
		return err
	}
	e, err := b.listen()
	if err != nil {
		return err
	}
	defer e.close()
	block := func(on bool) error {
		for _, n := range b.Nodes() {
			command := []string{"nft", "add table inet bench; add chain inet bench in { type filter hook input priority 0; }; add rule inet bench in meta l4proto { tcp, udp } th dport 7946 drop; add rule inet bench in meta l4proto { tcp, udp } th sport 7946 drop"}
			if !on {
				command = []string{"nft", "delete table inet bench"}
			}
			if _, err := b.Exec(ctx, n, command...); err != nil {
				return err
			}
		}
		return nil
	}
	// phase changes something and says how long after the first sign of it more than one host claimed the address, and how
	// often the owner changed after the first 200 ms of that.
	phase := func(addr netip.Addr, span time.Duration, change func() error) error {
		stop := e.asking(addr, 5*time.Millisecond)
		pause(ctx, 50*time.Millisecond)
		start := time.Now()
		err := change()
		pause(ctx, span)
		stop()
		frames := slices.DeleteFunc(e.heard(addr), func(h heard) bool { return h.at.Before(start) })
		took := disputed(frames)
		f.took(took)
		late, first := 0, time.Time{}
		for j := 1; j < len(frames); j++ {
			if frames[j].host == frames[j-1].host {
				continue
			}
			if first.IsZero() {
				first = frames[j].at
			} else if frames[j].at.Sub(first) > 200*time.Millisecond {
				late++
			}
		}
		stable.add(float64(late))
		return err
	}
	return b.each(ctx, max(3, b.trials/4), func(i int) error {
		p := places[i%len(places)]
		name := fmt.Sprintf("gossip-%d", i)
		for _, step := range []struct {
			span   time.Duration
			change func() error
		}{
			{4 * time.Second, func() error { return block(true) }},
			{2 * time.Second, func() error { return b.CutLink(p.owner) }},
			{4 * time.Second, func() error { return b.RestoreLink(p.owner) }},
			{2 * time.Second, func() error { return b.drain(ctx, p.owner, true) }},
			{2 * time.Second, func() error { return b.drain(ctx, p.owner, false) }},
			{4 * time.Second, func() error { return block(false) }},
		} {
			if err := phase(p.addr, step.span, step.change); err != nil {
				return err
			}
		}
		if err := b.again(ctx, p); err != nil {
			return err
		}
		// A Service that is made when the speakers do not hear of each other.
		if err := block(true); err != nil {
			return err
		}
		pause(ctx, 2*time.Second)
		addr, err := b.service(ctx, name, b.pods["node1"].Spec.Labels, nil)
		if err == nil {
			err = phase(addr, 3*time.Second, func() error { return nil })
		}
		if unblocked := block(false); err == nil {
			err = unblocked
		}
		if err == nil {
			err = b.remove(ctx, name)
		}
		if err != nil {
			return err
		}
		return b.again(ctx, p)
	})
}

// busy has more programs than cores compute, and counts the changes of owners.
func busy(ctx context.Context, b *bench) error {
	span := 2 * time.Minute
	switch {
	case b.long:
		span = 10 * time.Minute
	case b.quick:
		span = 30 * time.Second
	}
	f := b.figure(figure{name: fmt.Sprintf("false failovers in %v with all cores busy", span), want: "0", unit: "", max: 0.5})
	owners := map[netip.Addr]string{}
	for i := range awayServices {
		addr, err := b.address(ctx, fmt.Sprintf("away-%d", i))
		if err != nil {
			return err
		}
		if owners[addr], err = b.owner(ctx, addr); err != nil {
			return err
		}
	}
	e, err := b.listen()
	if err != nil {
		return err
	}
	defer e.close()
	mark := b.mark()
	var hogs []*exec.Cmd
	defer func() {
		for _, h := range hogs {
			_ = h.Process.Kill()
			_ = h.Wait()
		}
	}()
	for range 2 * runtime.NumCPU() {
		h := exec.Command("sh", "-c", "while :; do :; done")
		if err := h.Start(); err != nil {
			return err
		}
		hogs = append(hogs, h)
	}
	for addr := range owners {
		defer e.asking(addr, 50*time.Millisecond)()
	}
	pause(ctx, span)
	wrong := 0
	last := map[netip.Addr]string{}
	for _, h := range e.heard(netip.Addr{}) {
		if owner := owners[h.addr]; owner != "" && h.host != owner && last[h.addr] != h.host {
			wrong++
		}
		last[h.addr] = h.host
	}
	f.add(float64(wrong))
	f.note = fmt.Sprintf("%d speakers taken for dead by gossip meanwhile", b.since(mark, "members: gone"))
	return nil
}

// links changes the link of a node that alone may have an address.
func links(ctx context.Context, b *bench) error {
	figures := map[string]*figure{}
	for _, what := range []string{"link restored", "interface deleted and created again", "hardware address changed"} {
		figures[what] = b.figure(figure{name: what + ": announced after", want: "max 150 ms", unit: "ms", max: 150})
	}
	const node = "node2"
	ad := &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "alone"}, Spec: v1beta1.L2AdvertisementSpec{
		IPAddressPools: []string{"alone"}, Interfaces: []string{"eth0", "bench0"},
		NodeSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"bench": node}}},
	}}
	if err := b.Client().Create(ctx, ad); err != nil {
		return err
	}
	addr, err := b.service(ctx, "alone", b.pods["node1"].Spec.Labels, pool("alone"))
	if err != nil {
		return err
	}
	defer func() { _ = b.remove(context.WithoutCancel(ctx), "alone") }()
	if err := b.owned(ctx, addr, node); err != nil {
		return err
	}
	e, err := b.listen()
	if err != nil {
		return err
	}
	defer e.close()
	inNode := func(command ...string) error { _, err := b.Exec(ctx, node, command...); return err }
	// announced waits for the first frame about the address that comes from a host later than start.
	announced := func(what, host string, start time.Time) error {
		return b.eventually(ctx, func() error {
			for _, h := range e.heard(addr) {
				if h.host == host && h.at.After(start) {
					figures[what].took(h.at.Sub(start))
					return nil
				}
			}
			return fmt.Errorf("%s: %s has not announced %s", what, host, addr)
		})
	}
	const first, second = "02:00:5e:00:53:01", "02:00:5e:00:53:02"
	plug := func() error {
		if err := inNode("ip", "link", "add", "bench0", "address", first, "type", "veth", "peer", "name", "bench0", "netns", b.NS("switch")); err != nil {
			return err
		}
		if _, err := b.Exec(ctx, "switch", "ip", "link", "set", "bench0", "master", "lan", "up"); err != nil {
			return err
		}
		return inNode("ip", "link", "set", "bench0", "up")
	}
	unplug := func() error { return inNode("ip", "link", "del", "bench0") }
	return b.each(ctx, b.trials, func(i int) error {
		if err := b.CutLink(node); err != nil {
			return err
		}
		pause(ctx, anyTime())
		start := time.Now()
		if err := b.RestoreLink(node); err != nil {
			return err
		}
		if err := announced("link restored", node, start); err != nil {
			return err
		}
		if err := plug(); err != nil {
			return err
		}
		pause(ctx, anyTime())
		if err := unplug(); err != nil {
			return err
		}
		pause(ctx, anyTime())
		start = time.Now()
		if err := plug(); err != nil {
			return err
		}
		if err := announced("interface deleted and created again", first, start); err != nil {
			return err
		}
		pause(ctx, anyTime())
		start = time.Now()
		if err := inNode("ip", "link", "set", "bench0", "address", second); err != nil {
			return err
		}
		if err := announced("hardware address changed", second, start); err != nil {
			return err
		}
		return unplug()
	})
}

// flood sends ARP requests for addresses that nobody has, so many a second.
func (b *bench) flood(ctx context.Context, perSecond int, span time.Duration) (sent int, err error) {
	err = b.In("client", func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		index, err := interfaceIndex("eth0")
		if err != nil {
			return err
		}
		to := &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}
		frame := questionFrame(b.Host("client"))
		for start := time.Now(); time.Since(start) < span && ctx.Err() == nil; {
			for due := int(time.Since(start).Seconds() * float64(perSecond)); sent < due; sent++ {
				// 10.0.0.0/8: nobody's here.
				frame[38], frame[39], frame[40], frame[41] = 10, byte(sent>>16), byte(sent>>8), byte(sent)
				if err := unix.Sendto(fd, frame, 0, to); err != nil && err != unix.ENOBUFS {
					return err
				}
			}
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	return sent, err
}

// stormed measures what a flood costs the speaker of a node, beyond what it takes without.
func (b *bench) stormed(ctx context.Context, f *figure, node string) error {
	const perSecond = 50000
	span := 10 * time.Second
	if b.quick {
		span = 4 * time.Second
	}
	pid := b.clarion.Speakers[node].PID()
	measure := func(during func() error) (float64, error) {
		before, err := cpu(pid)
		if err != nil {
			return 0, err
		}
		start := time.Now()
		if err := during(); err != nil {
			return 0, err
		}
		took := time.Since(start)
		after, err := cpu(pid)
		return 100 * float64(after-before) / float64(took), err
	}
	idle, err := measure(func() error { pause(ctx, span); return nil })
	if err != nil {
		return err
	}
	sent := 0
	in, err := measure(func() (err error) { sent, err = b.flood(ctx, perSecond, span); return err })
	if err != nil {
		return err
	}
	f.add(math.Max(0, in-idle))
	f.note = fmt.Sprintf("last: %.2f%% in it, %.2f%% without; %d requests/s", in, idle, int(float64(sent)/span.Seconds()))
	return nil
}

func storm(ctx context.Context, b *bench) error {
	f := b.figure(figure{name: "foreign ARP storm, 50,000/s, a few addresses: speaker", want: "max 1 % of a core", unit: "%", max: 1})
	places, err := b.away(ctx)
	if err != nil {
		return err
	}
	return b.each(ctx, min(5, b.trials), func(i int) error { return b.stormed(ctx, f, places[i%len(places)].owner) })
}

// many makes Services that no pod needs a node port for, whose addresses are of one pool.
func (b *bench) many(ctx context.Context, names []string, from string) (addrs []netip.Addr, err error) {
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(8)
	for _, name := range names {
		g.Go(func() error {
			addr, err := b.service(ctx, name, b.pods["node1"].Spec.Labels, func(svc *corev1.Service) {
				pool(from)(svc)
				// Node ports for so many would only slow down the cluster.
				svc.Spec.AllocateLoadBalancerNodePorts = new(bool)
			})
			mu.Lock()
			defer mu.Unlock()
			addrs = append(addrs, addr)
			return err
		})
	}
	return addrs, g.Wait()
}

// idle measures what the speakers take while nothing happens, with addresses that all of them have a share of.
func idle(ctx context.Context, b *bench) error {
	var names []string
	defer func() { _ = b.remove(context.WithoutCancel(ctx), names...) }()
	for _, n := range []int{40, 800} {
		var more []string
		for i := len(names); i < n; i++ {
			more = append(more, fmt.Sprintf("spread-%d", i))
		}
		names = append(names, more...)
		if _, err := b.many(ctx, more, "spread"); err != nil {
			return err
		}
		pause(ctx, 15*time.Second) // the announcements of the first moments, and the status of the Services
		f := b.figure(figure{name: fmt.Sprintf("idle, %d nodes, %d addresses: a speaker", len(b.Nodes()), n), want: "max 1.5 % of a core", unit: "%", max: 1.5})
		err := b.each(ctx, min(3, b.trials), func(int) error {
			const span = 10 * time.Second
			before := map[string]time.Duration{}
			for node, p := range b.clarion.Speakers {
				t, err := cpu(p.PID())
				if err != nil {
					return err
				}
				before[node] = t
			}
			start := time.Now()
			pause(ctx, span)
			for node, p := range b.clarion.Speakers {
				t, err := cpu(p.PID())
				if err != nil {
					return err
				}
				f.add(100 * float64(t-before[node]) / float64(time.Since(start)))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// thousand makes a thousand Services whose addresses node3 has, and measures what only many show.
func thousand(ctx context.Context, b *bench) error {
	const many, node = 1000, "node3"
	names := make([]string, many)
	for i := range names {
		names[i] = fmt.Sprintf("many-%d", i)
	}
	defer func() { _ = b.remove(context.WithoutCancel(ctx), names...) }()
	addrs, err := b.many(ctx, names, "many")
	if err != nil {
		return err
	}
	if err := b.allOwned(ctx, addrs, node); err != nil {
		return err
	}
	b.quiet(ctx, time.Minute)
	b.load = load()

	answers := b.figure(figure{name: "ARP answer time, 1,000 addresses", want: "p99 0.3 ms", unit: "ms", p99: 0.3})
	if err := b.answerTimes(ctx, answers, addrs); err != nil {
		return err
	}
	// arping takes half a millisecond for itself, as its times for what a kernel answers show.
	tool := b.figure(figure{name: "the same as arping shows it", want: "-", unit: "ms"})
	if err := b.arping(ctx, tool, addrs); err != nil {
		return err
	}
	own := []netip.Addr{b.Host(node).IPv4}
	kernel := b.figure(figure{name: "ARP answer time of the node's kernel for its own address", want: "-", unit: "ms"})
	if err := b.answerTimes(ctx, kernel, own); err != nil {
		return err
	}
	kernelTool := b.figure(figure{name: "the kernel's as arping shows it", want: "-", unit: "ms"})
	if err := b.arping(ctx, kernelTool, own); err != nil {
		return err
	}
	stormy := b.figure(figure{name: "foreign ARP storm, 50,000/s, 1,000 addresses: speaker", want: "max 1 % of a core", unit: "%", max: 1})
	if err := b.each(ctx, min(3, b.trials), func(int) error { return b.stormed(ctx, stormy, node) }); err != nil {
		return err
	}
	return b.failTogether(ctx, addrs, node)
}

// allOwned waits until a node answers for all addresses.
func (b *bench) allOwned(ctx context.Context, addrs []netip.Addr, node string) error {
	return b.eventually(ctx, func() error {
		e, err := b.listen()
		if err != nil {
			return err
		}
		for i, a := range addrs {
			if err := e.ask(a); err != nil {
				e.close()
				return err
			}
			if i%20 == 0 {
				pause(ctx, time.Millisecond)
			}
		}
		pause(ctx, 300*time.Millisecond)
		by := map[netip.Addr]string{}
		for _, h := range e.heard(netip.Addr{}) {
			by[h.addr] = h.host
		}
		e.close()
		for _, a := range addrs {
			if by[a] != node {
				return fmt.Errorf("%s is answered by %q, want %s", a, by[a], node)
			}
		}
		return nil
	})
}

// failTogether cuts the link of the node that has all addresses.
func (b *bench) failTogether(ctx context.Context, addrs []netip.Addr, node string) error {
	spread := b.figure(figure{name: "1,000 addresses fail over: from the first to the last", want: "max 300 ms", unit: "ms", max: 300})
	all := b.figure(figure{name: "1,000 addresses fail over: from the cut to the last", want: "-", unit: "ms"})
	return b.each(ctx, b.trials, func(int) error {
		e, err := b.listen()
		if err != nil {
			return err
		}
		defer e.close()
		pause(ctx, anyTime())
		start := time.Now()
		if err := b.CutLink(node); err != nil {
			return err
		}
		pause(ctx, 3*time.Second)
		first := map[netip.Addr]time.Time{}
		for _, h := range e.heard(netip.Addr{}) {
			if _, ok := first[h.addr]; !ok && h.host != node && slices.Contains(addrs, h.addr) && h.at.After(start) {
				first[h.addr] = h.at
			}
		}
		err = b.RestoreLink(node)
		if len(first) != len(addrs) {
			return fmt.Errorf("%d of %d addresses were taken over in 3s", len(first), len(addrs))
		}
		var times []time.Time
		for _, t := range first {
			times = append(times, t)
		}
		slices.SortFunc(times, time.Time.Compare)
		spread.took(times[len(times)-1].Sub(times[0]))
		all.took(times[len(times)-1].Sub(start))
		if err == nil {
			err = b.joined(ctx)
		}
		if err == nil {
			err = b.allOwned(ctx, addrs, node)
		}
		pause(ctx, 2*time.Second)
		return err
	})
}

// answerTimes asks for one address after the other and waits for each answer. The client's kernel says when that came:
// how soon this program gets round to reading it does not count.
func (b *bench) answerTimes(ctx context.Context, f *figure, addrs []netip.Addr) error {
	n := 2000
	if b.quick {
		n = 500
	}
	client := b.Host("client")
	return b.In("client", func() error {
		index, err := interfaceIndex("eth0")
		if err != nil {
			return err
		}
		fd, err := stampingSocket(index)
		if err != nil {
			return fmt.Errorf("ARP on the client: %w", err)
		}
		defer unix.Close(fd)
		question := questionFrame(client)
		for i := 0; i < n && ctx.Err() == nil; i++ {
			addr := addrs[(i*37)%len(addrs)]
			copy(question[38:], addr.AsSlice())
			took, err := askOnce(fd, question)
			if err != nil {
				return fmt.Errorf("%s was not answered: %w", addr, err)
			}
			f.took(took)
			pause(ctx, time.Millisecond)
		}
		return ctx.Err()
	})
}

// stampingSocket is a packet socket for ARP whose frames bear the time at which they came.
func stampingSocket(index int) (int, error) {
	const proto = unix.ETH_P_ARP>>8 | unix.ETH_P_ARP&0xff<<8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return 0, err
	}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: index}),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}))
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

// askOnce sends an ARP request and returns how long after it the reply came.
func askOnce(fd int, question []byte) (time.Duration, error) {
	var sent, came unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &sent); err != nil {
		return 0, err
	}
	if _, err := unix.Write(fd, question); err != nil {
		return 0, err
	}
	frame, control := make([]byte, 128), make([]byte, 128)
	for {
		n, size, _, _, err := unix.Recvmsg(fd, frame, control, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		// To this station, a reply, from the address that was asked for.
		if n < 42 || !bytes.Equal(frame[:6], question[6:12]) || frame[21] != 2 || !bytes.Equal(frame[28:32], question[38:42]) {
			continue
		}
		stamps, err := unix.ParseSocketControlMessage(control[:size])
		if err != nil || len(stamps) != 1 {
			return 0, errors.Join(errors.New("no time with the frame"), err)
		}
		_, err = binary.Decode(stamps[0].Data, binary.NativeEndian, &came)
		return time.Duration(came.Nano() - sent.Nano()), err
	}
}

var arpingTime = regexp.MustCompile(`([0-9.]+)ms`)

// arping has the program of that name ask for some of the addresses, for each once at a time: it takes any answer from
// the address for its own.
func (b *bench) arping(ctx context.Context, f *figure, addrs []netip.Addr) error {
	var mu sync.Mutex
	var g errgroup.Group
	programs := min(10, len(addrs))
	for i := range programs {
		g.Go(func() error {
			pause(ctx, time.Duration(i)*100*time.Millisecond)
			out, err := b.Exec(ctx, "client", "arping", "-c", "10", "-w", "15", "-I", "eth0", addrs[i*len(addrs)/programs].String())
			mu.Lock()
			defer mu.Unlock()
			for _, m := range arpingTime.FindAllStringSubmatch(out, -1) {
				if ms, err := strconv.ParseFloat(m[1], 64); err == nil {
					f.samples = append(f.samples, ms)
				}
			}
			return err
		})
	}
	return cmp.Or(g.Wait(), ctx.Err())
}
