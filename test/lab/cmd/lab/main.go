// Command lab brings a lab up, shows it and takes it down: `make lab`, `make lab-status`, `make lab-down`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/clarionlb/clarion/test/lab"
)

const usage = `usage: lab COMMAND [flags]

  up      bring a cluster up, run Clarion in it and show it round; it stays up
  tour    show a running lab round again
  status  show what runs
  down    take it down
  deps    install the Debian packages that the lab needs

flags:
`

func main() {
	flags := flag.NewFlagSet("lab", flag.ExitOnError)
	var o lab.Options
	flags.StringVar(&o.Name, "name", "lab", "the lab's `name`; several can be up side by side")
	flags.IntVar(&o.Nodes, "nodes", 3, "number of nodes")
	flags.IntVar(&o.Routers, "routers", 2, "number of routers")
	flags.StringVar(&o.ProxyMode, "proxy-mode", "iptables", "kube-proxy's `mode`, iptables or nftables")
	bare := flags.Bool("bare", false, "up: the cluster only, without Clarion and the tour")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	if len(os.Args) < 2 {
		flags.Usage()
		os.Exit(2)
	}
	_ = flags.Parse(os.Args[2:]) // exits on error
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, os.Args[1], o, *bare); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, command string, o lab.Options, bare bool) error {
	switch command {
	case "up":
		o.Detach, o.Progress = true, os.Stderr
		l := lab.New(o)
		if err := l.Up(ctx); err != nil {
			return err
		}
		if !bare {
			if _, err := l.StartClarion(ctx, lab.ClarionOptions{}); err != nil {
				return fmt.Errorf("%w\n(the lab stays up without Clarion)", err)
			}
			if err := l.StartDNS(ctx); err != nil {
				return fmt.Errorf("DNS: %w\n(the lab stays up)", err)
			}
			if err := l.Tour(ctx, os.Stdout); err != nil {
				return fmt.Errorf("tour: %w\n(the lab stays up)", err)
			}
		}
		l.Help(os.Stdout)
		return nil
	case "tour":
		l, err := lab.Attach(ctx, o.Name, os.Stderr)
		if err != nil {
			return err
		}
		return l.Tour(ctx, os.Stdout)
	case "status":
		l, err := lab.Attach(ctx, o.Name, os.Stderr)
		if err != nil {
			return err
		}
		return l.Status(ctx, os.Stdout)
	case "down":
		return lab.New(o).Down()
	case "deps":
		return lab.Deps(ctx, os.Stdout)
	}
	return fmt.Errorf("unknown command %q: want up, tour, status, down or deps", command)
}
