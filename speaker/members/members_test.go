package members

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Speakers of these tests listen on loopback addresses of their own: 127.1.x.y, x by test.
var tests atomic.Int64

type fleet struct {
	t     testing.TB
	net   int64
	key   []byte
	peers []netip.AddrPort
}

func newFleet(t testing.TB, size int) *fleet {
	f := &fleet{t: t, net: tests.Add(1), key: slices.Repeat([]byte{7}, 32)}
	for i := range size {
		f.peers = append(f.peers, netip.AddrPortFrom(f.addr(i), DefaultPort))
	}
	return f
}

func (f *fleet) addr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 1, byte(f.net), byte(i + 1)})
}

// speaker is a running Cluster.
type speaker struct {
	*Cluster
	t    testing.TB
	stop func() // gracefully; idempotent
}

func (f *fleet) config(i int) Config {
	return Config{
		Log: slog.New(slog.DiscardHandler), Name: fmt.Sprintf("node-%d", i), Addr: f.addr(i), Keys: [][]byte{f.key},
	}
}

func (f *fleet) start(config Config) speaker { return f.run(New(config)) }

// run runs a Cluster until the end of the test.
func (f *fleet) run(c *Cluster) speaker {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("Run of %s: %v", c.config.Name, err)
		}
	}
	f.t.Cleanup(stop)
	return speaker{c, f.t, stop}
}

// startAll starts a speaker on every address and waits until all know all.
func (f *fleet) startAll() []speaker {
	f.t.Helper()
	var all []speaker
	for i := range f.peers {
		s := f.start(f.config(i))
		s.SetPeers(f.peers)
		all = append(all, s)
	}
	for _, s := range all {
		s.sees(names(len(all))...)
	}
	return all
}

func names(n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("node-%d", i))
	}
	return list
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (s speaker) names() string {
	var list []string
	for _, m := range s.View().Members {
		list = append(list, m.Name)
	}
	return strings.Join(list, " ")
}

// sees waits until the speakers that are alive are these.
func (s speaker) sees(names ...string) {
	s.t.Helper()
	want := strings.Join(names, " ")
	eventually(s.t, s.config.Name+" sees "+want, func() bool { return s.names() == want })
}

func TestJoinAndLeave(t *testing.T) {
	all := newFleet(t, 3).startAll()
	for _, s := range all {
		if !s.View().Joined {
			t.Errorf("%s sees its members and is not joined", s.config.Name)
		}
	}
	all[2].stop()
	all[0].sees("node-0", "node-1")
	all[1].sees("node-0", "node-1")
	if v := all[2].View(); v.Joined || len(v.Members) > 0 {
		t.Errorf("after its end a speaker still has a view: %+v", v)
	}
}

// A speaker that does not know yet whether there are others must not act as if there were none.
func TestJoined(t *testing.T) {
	t.Run("alone, after the time to join", func(t *testing.T) {
		f := newFleet(t, 2)
		config := f.config(0)
		config.Profile = Fast()
		config.Profile.JoinTime = time.Hour
		s := f.start(config)
		s.sees("node-0")
		s.SetPeers(f.peers)
		eventually(t, "the absent member was tried", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.absent[f.peers[1]].tries > 0 })
		if s.View().Joined {
			t.Error("joined before the time was over")
		}
		s.stop()

		config.Profile.JoinTime = time.Millisecond
		s = f.start(config)
		s.sees("node-0")
		if s.View().Joined {
			t.Error("joined before it was known where members can be")
		}
		s.SetPeers(f.peers)
		eventually(t, "joined alone", func() bool { return s.View().Joined })
	})
	t.Run("found by a member", func(t *testing.T) {
		f := newFleet(t, 2)
		config := f.config(0)
		config.Profile = Fast()
		config.Profile.JoinTime = time.Hour
		a := f.start(config)
		b := f.start(f.config(1))
		b.SetPeers(f.peers)
		a.sees("node-0", "node-1")
		if !a.View().Joined {
			t.Error("has a member and is not joined")
		}
	})
}

func TestMeta(t *testing.T) {
	f := newFleet(t, 2)
	changes := make(chan struct{}, 1000)
	config := f.config(0)
	config.OnChange = func() { changes <- struct{}{} }
	a, b := f.start(config), f.start(f.config(1))
	before := Meta{Ready: true, Links: []Link{{"eth0", [6]byte{2, 0, 0, 0, 0, 1}, true, false}}}
	b.SetMeta(before)
	a.SetPeers(f.peers)
	metaOf := func(s speaker, name string) Meta {
		for _, m := range s.View().Members {
			if m.Name == name {
				return m.Meta
			}
		}
		return Meta{}
	}
	eventually(t, "what was set before joining arrives", func() bool { return metaOf(a, "node-1").Equal(before) })
	for len(changes) > 0 {
		<-changes
	}
	after := Meta{Ready: true, Draining: true, ProxyHealthy: true}
	b.SetMeta(after)
	if !metaOf(b, "node-1").Equal(after) {
		t.Error("a speaker does not see at once what it says itself")
	}
	eventually(t, "a change arrives", func() bool { return metaOf(a, "node-1").Equal(after) })
	<-changes
}

// A speaker that starts again under its name is known again at once, though its members remember an older life with a
// higher incarnation, whether it took leave or not.
func TestRestart(t *testing.T) {
	all := newFleet(t, 3).startAll()
	f := &fleet{t: t, net: tests.Load(), key: all[0].config.Keys[0]}
	for range 3 {
		all[2].SetMeta(Meta{Draining: true}) // raises the incarnation
		all[2].stop()
		all[2] = f.start(all[2].config)
		all[2].SetPeers(all[0].allPeers())
		for _, s := range all {
			s.sees(names(3)...)
		}
		eventually(t, "the old life's meta is forgotten", func() bool {
			return !all[0].View().Members[2].Meta.Draining && !all[1].View().Members[2].Meta.Draining
		})
	}
}

func (s speaker) allPeers() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(slices.Collect(maps.Keys(s.peers)), s.self)
}

// The name of a node is free for its next address as soon as the node is dead.
func TestNewAddress(t *testing.T) {
	f := newFleet(t, 3)
	all := f.startAll()
	all[2].stop()
	all[0].sees("node-0", "node-1")
	config := f.config(7)
	config.Name = "node-2"
	moved := f.start(config)
	moved.SetPeers(f.peers)
	moved.sees(names(3)...)
	eventually(t, "the new address is known", func() bool {
		m := all[0].View().Members
		return len(m) == 3 && m[2].Addr.Addr() == f.addr(7)
	})
}

func TestKeyRotation(t *testing.T) {
	all := newFleet(t, 3).startAll()
	old, next := all[0].config.Keys[0], slices.Repeat([]byte{9}, 32)
	var gone atomic.Int64
	for _, s := range all {
		if err := s.SetKeys([][]byte{old, next}); err != nil {
			t.Fatal(err)
		}
	}
	watch := func() {
		for _, s := range all {
			if s.names() != "node-0 node-1 node-2" {
				gone.Add(1)
			}
		}
	}
	for _, step := range [][][]byte{{next, old}, {next}} {
		for i, s := range all {
			if err := s.SetKeys(step); err != nil {
				t.Fatal(err)
			}
			// Every member hears of it while the others may still use the other key.
			s.SetMeta(Meta{Links: []Link{{Name: fmt.Sprintf("step%d%d", len(step), i)}}})
			for _, other := range all {
				eventually(t, "news under mixed keys", func() bool {
					watch()
					v := other.View()
					return len(v.Members) == 3 && v.Members[i].Meta.Equal(s.View().Members[i].Meta)
				})
			}
		}
	}
	if gone.Load() > 0 {
		t.Error("a member was lost while keys were changed")
	}

	outsider := &fleet{t: t, net: tests.Load(), key: old}
	config := outsider.config(9)
	config.Name = "late"
	late := outsider.start(config)
	late.SetPeers(all[0].allPeers())
	eventually(t, "the old key is refused", func() bool { late.mu.Lock(); defer late.mu.Unlock(); return len(late.absent) == 3 })
	if got := all[0].names(); got != "node-0 node-1 node-2" {
		t.Errorf("a speaker with the old key got in: %s", got)
	}
}

func TestSetKeys(t *testing.T) {
	key := func(b byte) []byte { return slices.Repeat([]byte{b}, 32) }
	for _, steps := range [][][]byte{
		{{1}}, {{1}, {1, 2}, {2, 1}, {2}}, {{1}, {2}}, {{1, 2, 3}, {3, 1}, {4, 2, 1}, {1, 2, 4}, {4}},
	} {
		c := New(Config{})
		for _, step := range steps {
			var keys [][]byte
			for _, b := range step {
				keys = append(keys, key(b))
			}
			if err := c.SetKeys(keys); err != nil {
				t.Fatal(err)
			}
			if got := c.keyring.GetKeys(); !slices.EqualFunc(got, keys, slices.Equal) {
				t.Errorf("steps %v: after %v the keyring holds %d keys, the first %v", steps, step, len(got), got[0][0])
			}
		}
		if c.SetKeys(nil) == nil || c.SetKeys([][]byte{key(1), {1, 2, 3}}) == nil {
			t.Error("bad keys accepted")
		}
	}
}

// An address that is in use, or not on the node yet, is waited for.
func TestAddressInUse(t *testing.T) {
	f := newFleet(t, 1)
	first := f.start(f.config(0))
	first.sees("node-0")
	second := f.start(f.config(0))
	eventually(t, "the problem shows", func() bool { return second.View().Problem != "" })
	first.stop()
	second.sees("node-0")
	eventually(t, "the problem is over", func() bool { return second.View().Problem == "" })
}

func TestIPv6(t *testing.T) {
	f := newFleet(t, 0)
	loopback := netip.IPv6Loopback()
	var all []speaker
	for i := range 2 {
		config := f.config(i)
		config.Addr, config.Port = loopback, uint16(DefaultPort+100+i)
		f.peers = append(f.peers, netip.AddrPortFrom(loopback, config.Port))
		all = append(all, f.start(config))
	}
	all[0].SetPeers(f.peers)
	all[0].sees(names(2)...)
	all[1].sees(names(2)...)
}

func TestConfigErrors(t *testing.T) {
	for _, config := range []Config{{}, {Name: "a"}, {Addr: netip.MustParseAddr("127.0.0.1")},
		{Name: "a", Addr: netip.MustParseAddr("127.0.0.1"), Keys: [][]byte{{1}}}} {
		if err := New(config).Run(t.Context()); err == nil {
			t.Errorf("%+v runs", config)
		}
	}
}
