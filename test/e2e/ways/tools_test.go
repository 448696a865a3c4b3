package ways

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clarionlb/clarion/test/e2e/world"
)

// timeout is the test's context for so long.
func timeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// dialer opens connections from a host: to the address given, or to the one that is asked for.
func (w *way) dialer(from string, to ...string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if len(to) > 0 {
			addr = to[0]
		}
		return w.Dial(ctx, from, network, addr)
	}
}

// refused wants attempts to connect to be refused, not merely lost.
func (w *way) refused(t *testing.T, from, address string) {
	t.Helper()
	world.Eventually(t, func() error {
		c, err := w.Dial(timeout(t, time.Second), from, "tcp", address)
		if err == nil {
			c.Close()
			t.Fatalf("%s to %s: a connection, want it to be refused", from, address)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("%s to %s: error %w, want connection refused", from, address, err)
		}
		return nil
	})
}

// capture has tcpdump watch a host's eth0 until the test ends. The function returns the packets so far.
func (w *way) capture(t *testing.T, on, filter string) func() string {
	t.Helper()
	p, err := w.Start(on, fmt.Sprintf("tcpdump-%d", time.Now().UnixNano()), []string{"tcpdump", "-i", "eth0", "--immediate-mode", "-l", "-n", "-v", filter})
	world.Must(t, err)
	t.Cleanup(p.Kill)
	read := func() string {
		b, err := os.ReadFile(p.Log())
		world.Must(t, err)
		return string(b)
	}
	world.Eventually(t, func() error {
		if out := read(); !strings.Contains(out, "listening on") {
			return fmt.Errorf("tcpdump on %s: %s", on, out)
		}
		return nil
	})
	return func() string {
		_, packets, _ := strings.Cut(read(), "listening on")
		_, packets, _ = strings.Cut(packets, "\n")
		return packets
	}
}
