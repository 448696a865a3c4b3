package layer2

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/clarionlb/clarion/internal/netnstest"
)

// namespace is a network namespace that lives as long as the test.
type namespace struct{ netnstest.Namespace }

func newNamespace(t testing.TB) namespace { return namespace{netnstest.New(t)} }

// lan is a switch with hosts on it, each with eth0 and the nth address of 192.0.2.0/24 and 2001:db8::/64.
type lan struct {
	hub   namespace
	hosts []namespace
}

func newLAN(t testing.TB, hosts int) lan {
	t.Helper()
	l := lan{hub: newNamespace(t)}
	l.hub.Run(t, "ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
	l.hub.Run(t, "ip", "link", "set", "br0", "up")
	for i := range hosts {
		host := newNamespace(t)
		l.hosts = append(l.hosts, host)
		l.plug(t, i, "eth0")
		host.Run(t, "ip", "addr", "add", fmt.Sprintf("192.0.2.%d/24", i+1), "dev", "eth0")
		host.Run(t, "ip", "addr", "add", fmt.Sprintf("2001:db8::%x/64", i+1), "dev", "eth0", "nodad")
	}
	return l
}

// plug connects a host to the switch by a new interface.
func (l lan) plug(t testing.TB, host int, name string) {
	t.Helper()
	port := fmt.Sprintf("%s-%d", name, host)
	l.hub.Run(t, "ip", "link", "add", port, "type", "veth", "peer", "name", name, "netns", l.hosts[host].Name)
	l.hub.Run(t, "ip", "link", "set", port, "master", "br0", "up")
	l.hosts[host].Run(t, "ip", "link", "set", name, "up")
}

// mac is the hardware address of an interface.
func (ns namespace) mac(t testing.TB, name string) MAC {
	t.Helper()
	text := strings.TrimSpace(ns.Run(t, "cat", "/sys/class/net/"+name+"/address"))
	var m MAC
	if _, err := fmt.Sscanf(text, "%02x:%02x:%02x:%02x:%02x:%02x", &m[0], &m[1], &m[2], &m[3], &m[4], &m[5]); err != nil {
		t.Fatal(err)
	}
	return m
}

// neighbour is what the kernel inside believes about an address: its hardware address and the state of the entry.
func (ns namespace) neighbour(t *testing.T, addr string) (mac, state string) {
	t.Helper()
	fields := strings.Fields(ns.Run(t, "ip", "neigh", "show", addr))
	for i, f := range fields {
		if f == "lladdr" {
			mac = fields[i+1]
		}
	}
	if len(fields) > 0 {
		state = fields[len(fields)-1]
	}
	return mac, state
}

// forget empties the neighbour cache.
func (ns namespace) forget(t *testing.T, addr string) {
	t.Helper()
	ns.OK("ip", "neigh", "del", addr, "dev", "eth0")
}

// start runs a Responder inside until the test ends.
func (ns namespace) start(t testing.TB, config Config) *Responder {
	t.Helper()
	r, _ := ns.startUntil(t, config)
	return r
}

// startUntil runs a Responder until stop is called, at the latest at the end of the test.
func (ns namespace) startUntil(t testing.TB, config Config) (r *Responder, stop func()) {
	t.Helper()
	if config.Log == nil {
		config.Log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	r = New(config)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ns.Enter(func() error { return r.Run(ctx) }) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return r, stop
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(bytes.TrimSpace(b)))
	return len(b), nil
}

// eventually polls a state until it holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// address returns the Status of one address.
func (r *Responder) address(addr string) AddressStatus {
	for _, s := range r.Status().Addresses {
		if s.Addr == netip.MustParseAddr(addr) {
			return s
		}
	}
	return AddressStatus{}
}

// answering waits until the addresses are answered on the interfaces.
func answering(t testing.TB, r *Responder, interfaces string, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		eventually(t, a+" answered on "+interfaces, func() bool {
			return strings.Join(r.address(a).Interfaces, " ") == interfaces
		})
	}
}

func addresses(addrs ...string) []Address {
	var list []Address
	for _, a := range addrs {
		list = append(list, Address{Addr: netip.MustParseAddr(a)})
	}
	return list
}
