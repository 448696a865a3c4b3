package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
)

// scaleStages are figures that follow from size: of the cluster, and of what changes in it. Those of events and of
// the group come from Go benchmarks, for which no lab has to have a thousand nodes.
var scaleStages = []stage{
	{setup{}, []row{{"events", events}, {"group", group}}},
	{setup{name: "benchscale", nodes: 3, config: scaleConfig, ready: func(context.Context, *bench) error { return nil }}, []row{
		{"resident", resident},
		{"flap", flap},
		{"services", makeServices},
	}},
}

const scaleConfig = `
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: spread}
spec: {addresses: [198.18.0.0/18]}
---
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: spread}
spec: {ipAddressPools: [spread], interfaces: [eth0]}
`

// events measures what one event costs a speaker where there are 1,000 nodes and 10,000 Services.
func events(ctx context.Context, b *bench) error {
	wanted := map[string]float64{"endpoints/Cluster": 0.2, "endpoints/Local": 0.2, "endpoints/nowhere": 0.02, "labels": 20}
	for range min(3, b.trials) {
		err := goBench(ctx, "./speaker", "Scale", "300x", func(name string, value map[string]float64) {
			how, what, _ := strings.Cut(name, "/")
			if what == "first" {
				b.rowOf("first decision, 1,000 nodes, 10,000 Services, "+how, "max 1000 ms", "ms", 1000).add(value["ms"])
				b.rowOf("heap after it, "+how, "max 80 MiB", "MiB", 80).add(value["MiB"])
				return
			}
			b.rowOf("one event, "+what+", "+how, fmt.Sprintf("max %g ms", wanted[what]), "ms", wanted[what]).fine(value["ns-of-a-core/op"] / 1e6)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// group measures what the group of speakers costs: when it starts, and when somebody floods its port.
func group(ctx context.Context, b *bench) error {
	for range min(3, b.trials) {
		err := goBench(ctx, "./speaker/members", "(StartTogether|Garbage)", "1x", func(name string, value map[string]float64) {
			if who, garbage := strings.CutPrefix(name, "Garbage/"); garbage {
				b.rowOf("heap above idle, 500 connections of garbage from a "+map[string]string{"node": "node", "other": "host that is none"}[who], "max 16 MiB", "MiB", 16).add(value["MiB-heap"])
				return
			}
			b.rowOf("full exchanges when 40 speakers start together", "max 120", "", 120).add(value["exchanges"])
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// goBench runs Go benchmarks, and hands over what each printed, by unit. Their names are without Benchmark and Scale.
func goBench(ctx context.Context, pkg, name, times string, each func(name string, value map[string]float64)) error {
	out, err := exec.CommandContext(ctx, "go", "test", "-run=^$", "-bench=^Benchmark"+name+"$", "-benchtime="+times, pkg).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for _, line := range strings.Split(string(out), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := regexp.MustCompile(`-\d+$`).ReplaceAllString(strings.TrimPrefix(fields[0], "Benchmark"), "")
		value := map[string]float64{}
		for i := 2; i+1 < len(fields); i += 2 {
			value[fields[i+1]], _ = strconv.ParseFloat(fields[i], 64)
		}
		each(strings.TrimPrefix(name, "Scale/"), value)
	}
	return nil
}

// rowOf is a figure that may have samples already.
func (b *bench) rowOf(name, want, unit string, most float64) *figure {
	for _, f := range b.figures {
		if f.name == name {
			return f
		}
	}
	return b.figure(figure{name: name, want: want, unit: unit, max: most})
}

// residentNow adds what each speaker has in memory, in MiB.
func (b *bench) residentNow(f *figure) error {
	for _, p := range b.clarion.Speakers {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
		if err != nil {
			return err
		}
		_, rest, _ := strings.Cut(string(text), "VmRSS:")
		kib, err := strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			return err
		}
		f.add(float64(kib) / 1024)
	}
	return nil
}

// resident measures the memory of speakers with nothing to announce, and with 1,000 Services on three nodes.
func resident(ctx context.Context, b *bench) error {
	pause(ctx, 10*time.Second)
	if err := b.residentNow(b.figure(figure{name: "speaker resident, nothing announced", want: "max 45 MiB", unit: "MiB", max: 45})); err != nil {
		return err
	}
	names := numbered("many", 1000)
	defer func() { _ = b.remove(context.WithoutCancel(ctx), names...) }()
	if err := b.serviceEach(ctx, names); err != nil {
		return err
	}
	pause(ctx, 15*time.Second)
	return b.residentNow(b.figure(figure{name: "speaker resident, 1,000 Services, 3 nodes", want: "max 55 MiB", unit: "MiB", max: 55}))
}

// flap measures what it takes of a speaker's time when one pod behind 1,000 Services becomes ready and not ready 20 times.
func flap(ctx context.Context, b *bench) error {
	names := numbered("flap", 1000)
	defer func() { _ = b.remove(context.WithoutCancel(ctx), names...) }()
	if err := b.serviceEach(ctx, names); err != nil {
		return err
	}
	pause(ctx, 10*time.Second)
	f := b.figure(figure{name: "a speaker's CPU while one pod behind 1,000 Services flaps 20 times", want: "max 2 s", unit: "s", max: 2})
	return b.spent(f, func() error {
		for i := range 20 {
			if err := b.pods["node1"].SetReady(ctx, i%2 == 1); err != nil {
				return err
			}
			pause(ctx, 2*time.Second) // the EndpointSlices of 1,000 Services
		}
		return nil
	})
}

// makeServices measures what it takes of a speaker's time when 5,000 Services are made.
func makeServices(ctx context.Context, b *bench) error {
	names := numbered("made", 5000)
	if b.quick {
		names = names[:1000]
	}
	defer func() { _ = b.remove(context.WithoutCancel(ctx), names...) }()
	f := b.figure(figure{name: fmt.Sprintf("a speaker's CPU while %d Services are made", len(names)), want: "max 20 s", unit: "s", max: 20})
	start := time.Now()
	err := b.spent(f, func() error {
		err := b.serviceEach(ctx, names)
		pause(ctx, 10*time.Second)
		return err
	})
	f.note = fmt.Sprintf("in %v", time.Since(start).Round(time.Second))
	return err
}

// spent adds the processor time in seconds that each speaker takes while something is done.
func (b *bench) spent(f *figure, do func() error) error {
	before := map[string]time.Duration{}
	for node, p := range b.clarion.Speakers {
		t, err := cpu(p.PID())
		if err != nil {
			return err
		}
		before[node] = t
	}
	if err := do(); err != nil {
		return err
	}
	for node, p := range b.clarion.Speakers {
		t, err := cpu(p.PID())
		if err != nil {
			return err
		}
		f.add((t - before[node]).Seconds())
	}
	return nil
}

func numbered(name string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s-%d", name, i)
	}
	return out
}

// serviceEach makes Services of those names for the pod of node1, without node ports, and waits for their addresses.
func (b *bench) serviceEach(ctx context.Context, names []string) error {
	var g errgroup.Group
	g.SetLimit(8)
	for _, name := range names {
		g.Go(func() error {
			_, err := b.service(ctx, name, b.pods["node1"].Spec.Labels, func(svc *corev1.Service) { svc.Spec.AllocateLoadBalancerNodePorts = new(bool) })
			return err
		})
	}
	return g.Wait()
}
