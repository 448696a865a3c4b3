package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
)

const netnsDir = "/run/netns"

// NS is the name of a host's network namespace, as `ip netns` shows it.
func (l *Lab) NS(host string) string { return "clarion-" + l.opts.Name + "-" + host }

// In runs f in a host's network namespace: what f opens and starts belongs there, and stays there afterwards.
// f runs on a goroutine of its own; it must not call t.FailNow, and goroutines that it starts are not in the namespace.
func (l *Lab) In(host string, f func() error) error {
	ns, err := netns.GetFromPath(filepath.Join(netnsDir, l.NS(host)))
	if err != nil {
		return fmt.Errorf("host %s: %w", host, err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() { done <- onThread(ns, f) }()
	return <-done
}

// onThread moves the calling goroutine's thread to a namespace and back. A thread that cannot go back
// stays locked, so that the runtime ends it with the goroutine.
func onThread(ns netns.NsHandle, f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	if err := netns.Set(ns); err != nil {
		return err
	}
	defer func() {
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

// Dial connects from a host's namespace. address is an IP address and a port: there is no name service.
func (l *Lab) Dial(ctx context.Context, host, network, address string) (net.Conn, error) {
	var c net.Conn
	err := l.In(host, func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Exec runs a command in a host's namespace ("client", "outside", "router1", "node1", "switch", "control") and returns
// what it wrote to standard output. The error carries what it complained of.
func (l *Lab) Exec(ctx context.Context, host string, command ...string) (string, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	return l.run(host, cmd)
}

func (l *Lab) run(host string, cmd *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := l.In(host, cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		said := errs.String()
		if said == "" { // vtysh complains on standard output
			said = out.String()
		}
		err = fmt.Errorf("%s: %s: %w: %s", host, strings.Join(cmd.Args, " "), err, strings.TrimSpace(said))
	}
	return out.String(), err
}

// ipBatch has one ip(8) process carry out many commands.
func ipBatch(lines []string) error {
	cmd := exec.Command("ip", "-force", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -batch: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func (l *Lab) addNamespaces(hosts ...string) error {
	var lines []string
	for _, h := range hosts {
		lines = append(lines, "netns add "+l.NS(h))
	}
	return ipBatch(lines)
}

// deleteNamespaces removes every namespace of this lab. A lab's name has no dash, so that the prefix is its alone.
func (l *Lab) deleteNamespaces() error {
	all, err := os.ReadDir(netnsDir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var lines []string
	for _, e := range all {
		if strings.HasPrefix(e.Name(), l.NS("")) {
			lines = append(lines, "netns del "+e.Name())
		}
	}
	if lines == nil {
		return nil
	}
	return ipBatch(lines)
}
