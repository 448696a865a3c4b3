package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/speaker/layer2"
	"github.com/clarionlb/clarion/speaker/members"
)

// fellows is this speaker's part in the group of speakers: whom it joins, what it tells the others of its node, and what
// they told it.
type fellows struct {
	config  members.Config // without Addr and Keys
	log     *slog.Logger
	changed func(map[string]snapshot.Member) // called with what the live speakers say of their nodes
	joined  func()                           // called when the group is joined, or nobody else was found to be in it
	met     func()                           // called when a station is known for a node that was not before
	came    func()                           // called when a fellow is alive, and ready, that was not before

	started  chan struct{}                         // closed when there are keys and an address
	stations atomic.Pointer[map[layer2.MAC]string] // the nodes by hardware address, those of dead speakers included

	mu      sync.Mutex
	cluster *members.Cluster // nil before that
	addr    netip.Addr
	keys    [][]byte
	others  map[string]netip.Addr // where the other speakers can be joined
	meta    members.Meta
	alive   map[string]snapshot.Member // as changed was told last
}

// proxyGate is why a node whose Service proxy is unhealthy should not attract traffic.
const proxyGate = "the node's Service proxy is unhealthy"

func newFellows(config members.Config, log *slog.Logger) *fellows {
	f := &fellows{config: config, log: log, started: make(chan struct{}), others: map[string]netip.Addr{}, came: func() {}}
	f.config.OnChange = f.viewChanged
	f.stations.Store(&map[layer2.MAC]string{})
	return f
}

// setAddress says at which address of the node the group reaches this speaker. The first one stays.
func (f *fellows) setAddress(a netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.addr.IsValid() {
		f.addr = a
		f.start()
	}
}

// setKeys takes in the Secret of the group: one key in base64 on each line, the one to be used first.
func (f *fellows) setKeys(text []byte) {
	var keys [][]byte
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		key, err := base64.StdEncoding.AppendDecode(nil, line)
		if err != nil || len(key) != 32 {
			f.log.Error("a key of the speakers' Secret is not 32 bytes in base64; the keys there were are kept")
			return
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return // unknown is not empty
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.EqualFunc(keys, f.keys, bytes.Equal) {
		return
	}
	if f.cluster != nil {
		if err := f.cluster.SetKeys(keys); err != nil {
			f.log.Error("the keys of the speakers' Secret cannot be used; the keys there were are kept", "error", err)
			return
		}
	}
	f.keys = keys
	var prints []string // who changes keys has to know that every speaker has them
	for _, key := range keys {
		prints = append(prints, fmt.Sprintf("%x", sha256.Sum256(key))[:8])
	}
	f.log.Info("keys of the speakers' group, the one in use first", "sha256", strings.Join(prints, " "))
	f.start()
}

// start makes the cluster once there is what it needs.
func (f *fellows) start() {
	if f.cluster != nil || !f.addr.IsValid() || f.keys == nil {
		return
	}
	c := f.config
	c.Addr, c.Keys = f.addr, f.keys
	f.cluster = members.New(c)
	f.cluster.SetMeta(f.meta)
	f.cluster.SetPeers(f.peers())
	close(f.started)
}

// setSpeaker takes in the Speaker object of another node. All speakers' objects change all the time; most changes say
// nothing new of where a fellow is.
func (f *fellows) setSpeaker(name string, o *v1beta1.Speaker, gone bool) {
	var at netip.Addr
	var macs []layer2.MAC
	if !gone {
		for _, text := range o.Status.Addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				at = a
				break
			}
		}
		for _, text := range o.Status.HardwareAddresses {
			if mac, err := net.ParseMAC(text); err == nil && len(mac) == 6 && f.station(layer2.MAC(mac)) != name {
				macs = append(macs, layer2.MAC(mac))
			}
		}
	}
	f.mu.Lock()
	if f.others[name] != at {
		if at.IsValid() {
			f.others[name] = at
		} else {
			delete(f.others, name)
		}
		if f.cluster != nil {
			f.cluster.SetPeers(f.peers())
		}
	}
	before := len(*f.stations.Load())
	if len(macs) > 0 {
		f.meet(func(known map[layer2.MAC]string) {
			for _, mac := range macs {
				known[mac] = name
			}
		})
	}
	more := len(*f.stations.Load()) > before
	f.mu.Unlock()
	if more {
		f.met()
	}
}

// meet adds to the stations that are known to be nodes. f.mu must be held.
func (f *fellows) meet(add func(map[layer2.MAC]string)) {
	known := maps.Clone(*f.stations.Load())
	add(known)
	f.stations.Store(&known)
}

func (f *fellows) peers() []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range f.others {
		out = append(out, netip.AddrPortFrom(a, f.config.Port))
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

// edit changes what this speaker tells the others of its node.
func (f *fellows) edit(change func(*members.Meta)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.meta)
	if f.cluster != nil {
		f.cluster.SetMeta(f.meta)
	}
}

// setLinks tells the others what this node can announce on.
func (f *fellows) setLinks(links []layer2.Link) {
	f.edit(func(m *members.Meta) {
		m.Links = nil
		for _, l := range links {
			m.Links = append(m.Links, members.Link{Name: l.Name, MAC: l.MAC, Carrier: l.Carrier})
		}
	})
}

// view is the group as this speaker sees it.
func (f *fellows) view() members.View {
	f.mu.Lock()
	c := f.cluster
	f.mu.Unlock()
	if c == nil {
		return members.View{}
	}
	return c.View()
}

// viewChanged passes on what the live speakers say of their nodes.
func (f *fellows) viewChanged() { f.take(f.view()) }

func (f *fellows) take(view members.View) {
	alive, came := map[string]snapshot.Member{}, false
	f.mu.Lock()
	f.meet(func(known map[layer2.MAC]string) {
		for _, m := range view.Members {
			for _, l := range m.Meta.Links {
				known[layer2.MAC(l.MAC)] = m.Name
			}
			if fe, ok := fellow(m); ok {
				_, before := f.alive[m.Name]
				came = came || !before && m.Name != f.config.Name
				alive[m.Name] = fe
			}
		}
	})
	f.alive = alive
	f.mu.Unlock()
	f.changed(alive)
	if came {
		f.came()
	}
	if view.Joined {
		f.joined()
		f.edit(func(m *members.Meta) { m.Ready = true })
	}
}

// fellow is what a live speaker says of its node; false when it is not ready to announce yet.
func fellow(m members.Member) (snapshot.Member, bool) {
	if m.Unknown != "" {
		return snapshot.Member{SessionUp: true}, true // of another release: it announces, and its links are not known
	}
	fe := snapshot.Member{Links: []announce.Link{}, SessionUp: true} // whether one is up is not told yet
	if m.Meta.MoreLinks {
		fe.Links = nil // not all are known, so none is
	}
	for _, l := range m.Meta.Links {
		if fe.Links != nil {
			fe.Links = append(fe.Links, announce.Link{Name: l.Name, Up: l.Carrier, Excluded: announce.MatchAny(layer2.DefaultExclude(), l.Name)})
		}
	}
	switch {
	case m.Meta.Draining:
		fe.Gate = "the node's speaker is ending"
	case !m.Meta.ProxyHealthy:
		fe.Gate = proxyGate
	}
	return fe, m.Meta.Ready
}

// station is the node that a hardware address belongs to, "" when none is known. It takes no lock.
func (f *fellows) station(mac layer2.MAC) string { return (*f.stations.Load())[mac] }

// run keeps this speaker in the group until ctx ends, and then leaves it.
func (f *fellows) run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-f.started:
	}
	return f.cluster.Run(ctx)
}
