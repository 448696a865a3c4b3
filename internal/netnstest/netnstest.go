// Package netnstest gives tests network namespaces of their own. Only tests import it.
package netnstest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

var made atomic.Int64

// Namespace is a network namespace that lives as long as its test.
type Namespace struct{ Name string }

// New makes a namespace with the interface lo up, IPv6 addresses that are usable at once, and further sysctls as given
// ("net.ipv4.ip_forward=1"). Without root the test is skipped.
func New(t testing.TB, sysctls ...string) Namespace {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	ns := Namespace{fmt.Sprintf("clarion-test-%d-%d", os.Getpid(), made.Add(1))}
	Command(t, "ip", "netns", "add", ns.Name)
	t.Cleanup(func() { Command(t, "ip", "netns", "del", ns.Name) })
	ns.Run(t, append([]string{"sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"}, sysctls...)...)
	ns.IP(t, "link set lo up")
	return ns
}

// String is the namespace's name.
func (ns Namespace) String() string { return ns.Name }

// Command runs a command, which must succeed, and returns its output.
func Command(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Run runs a command inside, which must succeed, and returns its output.
func (ns Namespace) Run(t testing.TB, args ...string) string {
	t.Helper()
	return Command(t, append([]string{"ip", "netns", "exec", ns.Name}, args...)...)
}

// OK runs a command inside and reports whether it succeeded.
func (ns Namespace) OK(args ...string) bool {
	return exec.Command("ip", append([]string{"netns", "exec", ns.Name}, args...)...).Run() == nil
}

// IP runs ip(8) inside, with the words of a line as arguments. An IPv6 address that it adds is usable when it returns: even
// without duplicate address detection the kernel would take a moment.
func (ns Namespace) IP(t testing.TB, line string) string {
	t.Helper()
	if strings.HasPrefix(line, "addr add ") && strings.Contains(line, ":") && !strings.Contains(line, "nodad") {
		line += " nodad"
	}
	return Command(t, append([]string{"ip", "-n", ns.Name}, strings.Fields(line)...)...)
}

// Enter runs f on a thread inside; the thread ends with it.
func (ns Namespace) Enter(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime then drops the thread
		done <- func() error {
			fd, err := unix.Open("/run/netns/"+ns.Name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}
