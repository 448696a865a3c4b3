// Command bench measures in the lab how fast Clarion reacts and what is lost meanwhile: the figures that the documents
// speak of. It brings up labs of its own, called bench…, one after the other, and takes them down.
//
//	go run ./test/bench l2|bgp|scale [-trials N] [-rows REGEXP] [-quick] [-long] [-busy] [-base DIR]
//
// It prints one line of JSON for each figure as it comes, and a table at the end. It ends with 1 if a row could not be
// measured or a figure was missed. The machine should do nothing else: it waits for that, but not for ever, and says how
// busy the machine was.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"syscall"
	"time"
)

// row is a measurement, which may print several figures.
type row struct {
	name string
	run  func(context.Context, *bench) error
}

// stage is a lab and what is measured in it.
type stage struct {
	setup setup
	rows  []row
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) int {
	flags := flag.NewFlagSet("bench l2|bgp|scale", flag.ExitOnError)
	trials := flags.Int("trials", 20, "how often each thing is tried")
	quick := flags.Bool("quick", false, "five trials, and short spans")
	long := flags.Bool("long", false, "ten minutes with busy cores instead of two")
	only := flags.String("rows", ".*", "measure only the rows whose whole name matches this regular expression")
	busy := flags.Bool("busy", false, "do not wait until the machine has nothing else to do: to see that a row works")
	base := flags.String("base", "", "checkout of other code, whose bench then measures the rows that it has too; what it finds is called \"before\"")
	logs := flags.String("logs", "", "folder to keep the logs of all programs in")
	stages := map[string][]stage{"l2": layer2Stages, "bgp": bgpStages, "scale": append(scaleStages, statusStages...)}
	if len(args) == 0 || stages[args[0]] == nil {
		fmt.Fprintln(os.Stderr, "usage: bench l2|bgp|scale [flags]")
		flags.PrintDefaults()
		return 2
	}
	_ = flags.Parse(args[1:])
	match, err := regexp.Compile("^(?:" + *only + ")$")
	if err != nil || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "bench:", err, flags.Args())
		return 2
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: it needs root, to make network namespaces")
		return 2
	}
	if *quick {
		*trials = min(*trials, 5)
	}
	b := &bench{trials: *trials, quick: *quick, long: *long, logs: *logs, base: *base, busy: *busy}
	for _, s := range stages[args[0]] {
		var rows []row
		for _, r := range s.rows {
			if match.MatchString(r.name) {
				rows = append(rows, r)
			}
		}
		if len(rows) == 0 || ctx.Err() != nil {
			continue
		}
		if err := b.stage(ctx, s.setup, rows); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			b.failed = true
		}
	}
	if *base != "" && ctx.Err() == nil {
		if err := b.before(ctx, args[0], *only); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			b.failed = true
		}
	}
	fmt.Println()
	printTable(os.Stdout, b.figures)
	if b.failed || ctx.Err() != nil {
		return 1
	}
	return 0
}

// before adds what the bench of the other checkout measures. That it misses a figure, or has no such row, is no failure.
func (b *bench) before(ctx context.Context, what, rows string) error {
	args := []string{"run", "./test/bench", what, "-rows=" + rows, "-trials=" + strconv.Itoa(b.trials)}
	if b.quick {
		args = append(args, "-quick")
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Stderr = b.base, os.Stderr
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return err
	}
	for line := range bytes.Lines(out) {
		s := &summary{}
		if json.Unmarshal(line, s) == nil && s.Name != "" {
			s.Name = "before: " + s.Name
			b.figures = append(b.figures, &figure{before: s})
			text, _ := json.Marshal(s)
			fmt.Println(string(text))
		}
	}
	return nil
}

// stage brings a lab up, measures its rows and takes it down.
func (b *bench) stage(ctx context.Context, s setup, rows []row) error {
	b.quiet(ctx, 3*time.Minute)
	if s.nodes > 0 {
		defer b.down()
		if err := b.up(ctx, s); err != nil {
			return err
		}
	}
	for _, r := range rows {
		b.quiet(ctx, time.Minute)
		b.load = load()
		fmt.Fprintf(os.Stderr, "bench: %s (load %.2f)\n", r.name, b.load)
		start, before := time.Now(), len(b.figures)
		if err := r.run(ctx, b); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", r.name, err)
			b.failed = true
		}
		for _, f := range b.figures[before:] {
			text, err := json.Marshal(f.summary())
			if err != nil {
				return err
			}
			fmt.Println(string(text))
			b.failed = b.failed || !f.met()
		}
		fmt.Fprintf(os.Stderr, "bench: %s took %v\n", r.name, time.Since(start).Round(time.Second))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if s.nodes > 0 {
			if err := b.recover(ctx); err != nil {
				return fmt.Errorf("after %s: %w", r.name, err)
			}
		}
	}
	return nil
}

// load is how many threads have wanted a core during the last minute.
func load() (avg float64) {
	text, _ := os.ReadFile("/proc/loadavg")
	_, _ = fmt.Sscan(string(text), &avg)
	return avg
}

// quiet waits until the machine is not busy, at most so long.
func (b *bench) quiet(ctx context.Context, limit time.Duration) {
	for end := time.Now().Add(limit); !b.busy && load() >= 1.5 && time.Now().Before(end); {
		pause(ctx, time.Second)
	}
}

// pause waits for a time or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
