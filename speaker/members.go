package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/interfaces"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/internal/wake"
	"github.com/clarionlb/clarion/speaker/layer2"
	"github.com/clarionlb/clarion/speaker/members"
)

// membershipConfig is what a membership is made with. None of the functions may be nil, and none is called with its lock
// held.
type membershipConfig struct {
	members members.Config // without Addr, Keys and OnChange
	log     *slog.Logger

	onMembers   func(map[string]snapshot.Member) // with what the live speakers say of their nodes, whenever it may have changed
	onJoined    func()                           // the group is joined, or nobody else was found to be in it; may be called again
	onNodeKnown func()                           // a hardware address is known to be a node's that was not before
	onReady     func()                           // another member is ready to announce that was not before
}

// membership is this speaker's part in the group of speakers: whom it joins, what it tells the others of its node, and
// what they told it.
type membership struct {
	membershipConfig
	restart  wake.Signal                            // there is a cluster to run, in place of the one before
	hardware atomic.Pointer[map[layer2.MAC]station] // what is known to be a node's
	restarts atomic.Pointer[map[string]time.Time]   // nodes whose speakers say that they restart, and when they left the group, zero if they have not

	mu       sync.Mutex
	cluster  *members.Cluster        // nil until it is known at which address, with which keys, and what to tell
	addr     netip.Addr              // of this speaker
	keys     [][]byte                // nil: not known
	nodes    map[string][]netip.Addr // the addresses of all nodes; at the first of each its speaker can be joined, or at
	met      map[string]netip.Addr   // that at which it was met last, as it stays there while the node has it
	links    []layer2.Link           // that this node has
	named    []string                // patterns of the interfaces that L2Advertisements name; nil: not known
	leftOut  []string                // links that others cannot be told of
	meta     members.Meta
	alive    map[string]snapshot.Member // as onMembers was told last
	joined   bool                       // onJoined was called
	gossiped map[string][]layer2.MAC    // hardware addresses by node: what live members tell
	written  map[string][]layer2.MAC    // and what those told last that are not, or wrote of themselves
}

// station is the node that has a hardware address.
type station struct {
	node  string
	until time.Time // forgotten then; zero: never, since the node goes on to say that it has it
}

// A hardware address that no node says it has any more is that of a foreign host after forgetTime: a node may answer on
// the wire for some time after its objects are gone.
const forgetTime = 10 * time.Minute

// forgetMost is how many hardware addresses are remembered that a node does not say any more that it has: one that tells
// others with each message costs no more memory than a node whose interfaces were all replaced twice.
const forgetMost = 128

// proxyGate is why a node whose Service proxy is unhealthy should not attract traffic.
const proxyGate = "the node's Service proxy is unhealthy"

func newMembership(config membershipConfig) *membership {
	m := &membership{
		membershipConfig: config, restart: wake.New(), nodes: map[string][]netip.Addr{}, met: map[string]netip.Addr{},
		gossiped: map[string][]layer2.MAC{}, written: map[string][]layer2.MAC{},
	}
	m.members.OnChange = func() { m.take(m.view()) }
	m.hardware.Store(&map[layer2.MAC]station{})
	m.restarts.Store(&map[string]time.Time{})
	return m
}

// setNode takes in the addresses of a node, of this one too; nil when it is gone. Others' packets are not listened to.
// The group reaches this speaker at the first of its node's addresses, as long as the node has that one.
func (m *membership) setNode(name string, addrs []netip.Addr, gone bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case gone && m.nodes[name] != nil:
		delete(m.nodes, name)
		delete(m.met, name)
		m.learn(m.written, name, nil)
	case gone || len(addrs) == 0 || slices.Equal(m.nodes[name], addrs): // unknown is not empty
		return
	default:
		m.nodes[name] = addrs
	}
	if name == m.members.Name && !gone && !slices.Contains(addrs, m.addr) {
		m.addr = addrs[0]
		if m.cluster != nil {
			m.log.Info("the node has another address: joining the other speakers with that", "address", m.addr)
			m.cluster = nil
		}
		m.start()
	}
	if m.cluster != nil {
		m.cluster.SetSources(m.sources())
		m.cluster.SetPeers(m.peers())
	}
}

// sources are the addresses that speakers may send from.
func (m *membership) sources() []netip.Addr {
	var out []netip.Addr
	for _, addrs := range m.nodes {
		out = append(out, addrs...)
	}
	return out
}

// setKeys takes in the Secret of the group: one key in base64 on each line, the one to be used first.
func (m *membership) setKeys(text []byte) {
	var keys [][]byte
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		key, err := base64.StdEncoding.AppendDecode(nil, line)
		if err != nil || len(key) != 32 {
			m.log.Error("a key of the speakers' Secret is not 32 bytes in base64; the keys there were are kept")
			return
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return // unknown is not empty
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.EqualFunc(keys, m.keys, bytes.Equal) {
		return
	}
	if m.cluster != nil {
		if err := m.cluster.SetKeys(keys); err != nil {
			m.log.Error("the keys of the speakers' Secret cannot be used; the keys there were are kept", "error", err)
			return
		}
	}
	m.keys = keys
	var prints []string // who changes keys has to know that every speaker has them
	for _, key := range keys {
		prints = append(prints, fmt.Sprintf("%x", sha256.Sum256(key))[:8])
	}
	m.log.Info("keys of the speakers' group, the one in use first", "sha256", strings.Join(prints, " "))
	m.start()
}

// start makes the cluster once there is what it needs. m.mu must be held, as for all below that say nothing else.
func (m *membership) start() {
	if m.cluster != nil || !m.addr.IsValid() || m.keys == nil || m.named == nil {
		return
	}
	c := m.members
	c.Addr, c.Keys = m.addr, m.keys
	m.cluster = members.New(c)
	m.cluster.SetMeta(m.meta)
	m.cluster.SetSources(m.sources())
	m.cluster.SetPeers(m.peers())
	m.restart.Set()
}

// setStations takes in which hardware addresses the speaker of a node has written that it has.
func (m *membership) setStations(node string, macs []layer2.MAC) {
	m.mu.Lock()
	more := m.learn(m.written, node, macs)
	m.mu.Unlock()
	if more {
		m.onNodeKnown()
	}
}

// learn takes in which hardware addresses a node has, as one source says: gossiped or written. One that another node has,
// and goes on to say so, stays that node's. It says whether one is known now that was not before.
func (m *membership) learn(source map[string][]layer2.MAC, node string, macs []layer2.MAC) (more bool) {
	before := source[node]
	if slices.Equal(before, macs) {
		return false
	}
	if source[node] = macs; len(macs) == 0 {
		delete(source, node)
	}
	known, now := maps.Clone(*m.hardware.Load()), time.Now()
	maps.DeleteFunc(known, func(_ layer2.MAC, s station) bool { return s.forgotten(now) })
	for _, mac := range macs {
		if s, ok := known[mac]; !ok || !s.until.IsZero() {
			more = more || s.node != node
			known[mac] = station{node: node}
		}
	}
	former := 0
	for _, s := range known {
		if s.node == node && !s.until.IsZero() {
			former++
		}
	}
	for _, mac := range before {
		if known[mac].node == node && !m.has(node, mac) {
			if known[mac] = (station{node, now.Add(forgetTime)}); former >= forgetMost {
				delete(known, mac)
			}
			former++
			for _, in := range []map[string][]layer2.MAC{m.gossiped, m.written} {
				for other := range in {
					if m.has(other, mac) {
						known[mac] = station{node: other}
					}
				}
			}
		}
	}
	m.hardware.Store(&known)
	return more
}

// has says whether a node says that it has a hardware address.
func (m *membership) has(node string, mac layer2.MAC) bool {
	return slices.Contains(m.gossiped[node], mac) || slices.Contains(m.written[node], mac)
}

func (s station) forgotten(now time.Time) bool { return !s.until.IsZero() && now.After(s.until) }

// nodeOf is the node that a hardware address belongs to, "" when none is known. It takes no lock.
func (m *membership) nodeOf(mac layer2.MAC) string {
	s := (*m.hardware.Load())[mac]
	if s.forgotten(time.Now()) {
		return ""
	}
	return s.node
}

// endTime is how long a speaker that restarts may still answer after it has left the group.
const endTime = 5 * time.Second

// restarting says whether the speaker of the node that has a hardware address says that it restarts, or has just said so
// and left. It takes no lock.
func (m *membership) restarting(mac layer2.MAC) bool {
	restarts := *m.restarts.Load()
	if len(restarts) == 0 {
		return false
	}
	left, ok := restarts[m.nodeOf(mac)]
	return ok && (left.IsZero() || time.Since(left) < endTime)
}

// addressesOf are those of the node that has a hardware address.
func (m *membership) addressesOf(mac layer2.MAC) []netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nodes[m.nodeOf(mac)]
}

func (m *membership) peers() []netip.AddrPort {
	var out []netip.AddrPort
	for name, addrs := range m.nodes {
		if name == m.members.Name {
			continue
		}
		out = append(out, netip.AddrPortFrom(addrs[0], m.members.Port))
		if met := m.met[name]; met != addrs[0] && slices.Contains(addrs, met) {
			out = append(out, netip.AddrPortFrom(met, m.members.Port))
		}
	}
	return out
}

// edit changes what this speaker tells the others of its node, apart from its links.
func (m *membership) edit(change func(*members.Meta)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.meta)
	if m.cluster != nil {
		m.cluster.SetMeta(m.meta)
	}
}

// setLinks takes in which links this node has.
func (m *membership) setLinks(links []layer2.Link) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.links = links
	m.tellLinks()
}

// setNamed takes in which interfaces L2Advertisements name, as names and patterns.
func (m *membership) setNamed(patterns []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.named = append([]string{}, patterns...)
	m.tellLinks()
	m.start()
}

// tellLinks tells the others on which links this node could announce an address: those of pods come and go without that
// anybody hears of it. What matters most comes first, as there may be more than can be told.
func (m *membership) tellLinks() {
	var told []layer2.Link
	for _, l := range m.links {
		if !l.Excluded || interfaces.Match(m.named, l.Name) {
			told = append(told, l)
		}
	}
	first := func(b bool) int {
		if b {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(told, func(a, b layer2.Link) int {
		return cmp.Or(first(!a.Excluded)-first(!b.Excluded), first(a.Physical)-first(b.Physical), cmp.Compare(a.Name, b.Name))
	})
	links := make([]members.Link, len(told))
	for i, l := range told {
		links[i] = members.Link{Name: l.Name, MAC: l.MAC, Carrier: l.Carrier, Excluded: l.Excluded}
	}
	if slices.Equal(links, m.meta.Links) {
		return
	}
	m.meta.Links = links
	var leftOut []string
	for _, l := range links[len(m.meta.Told().Links):] {
		leftOut = append(leftOut, l.Name)
	}
	switch {
	case len(leftOut) > 0 && !slices.Equal(leftOut, m.leftOut):
		m.log.Warn("the node has more interfaces to announce on than the other speakers can be told of: no address is announced for the sake of those left out",
			"told", len(links)-len(leftOut), "left out", len(leftOut), "first of them", leftOut[0])
	case len(leftOut) == 0 && len(m.leftOut) > 0:
		m.log.Info("the other speakers are told of all interfaces of the node to announce on again", "told", len(links))
	}
	m.leftOut = leftOut
	if m.cluster != nil {
		m.cluster.SetMeta(m.meta)
	}
}

// told are the links that the other speakers are told of: all decide by these, this one too. leftOut are the names of those
// that there is no room for.
func (m *membership) told() (links []members.Link, leftOut []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.meta.Told().Links, m.leftOut
}

// view is the group as this speaker sees it.
func (m *membership) view() members.View {
	m.mu.Lock()
	c := m.cluster
	m.mu.Unlock()
	if c == nil {
		return members.View{}
	}
	return c.View()
}

// names are the nodes whose speakers are alive.
func (m *membership) names() map[string]bool {
	out := map[string]bool{}
	for _, one := range m.view().Members {
		out[one.Name] = true
	}
	return out
}

// take passes on what the live speakers say of their nodes.
func (m *membership) take(view members.View) {
	m.mu.Lock()
	if m.joined && !view.Joined {
		m.mu.Unlock()
		return // it joins again, with another address: what was known stays until it knows more
	}
	alive, ready, known, here, moved, restarts := map[string]snapshot.Member{}, false, false, map[string]bool{}, false, map[string]time.Time{}
	for _, one := range view.Members {
		here[one.Name] = true
		if one.Meta.Restarting {
			restarts[one.Name] = time.Time{}
		}
		if at := one.Addr.Addr(); m.met[one.Name] != at && m.nodes[one.Name] != nil {
			m.met[one.Name], moved = at, true
		}
		macs := make([]layer2.MAC, 0, len(one.Meta.Links))
		for _, l := range one.Meta.Links {
			macs = append(macs, l.MAC)
		}
		known = m.learn(m.gossiped, one.Name, macs) || known
		if says, ok := says(one); ok {
			_, before := m.alive[one.Name]
			ready = ready || !before && one.Name != m.members.Name
			alive[one.Name] = says
		}
	}
	for name := range m.gossiped {
		if !here[name] {
			if m.nodes[name] != nil {
				m.learn(m.written, name, m.gossiped[name])
			}
			m.learn(m.gossiped, name, nil)
		}
	}
	m.alive, m.joined = alive, view.Joined
	for name, left := range *m.restarts.Load() {
		if left.IsZero() {
			left = time.Now()
		}
		if !here[name] && time.Since(left) < endTime {
			restarts[name] = left
		}
	}
	m.restarts.Store(&restarts)
	if moved && m.cluster != nil {
		m.cluster.SetPeers(m.peers())
	}
	m.mu.Unlock()
	m.onMembers(alive)
	if known {
		m.onNodeKnown()
	}
	if ready {
		m.onReady()
	}
	if view.Joined {
		m.onJoined()
		m.edit(func(meta *members.Meta) { meta.Ready = true })
	}
}

// says is what a live speaker says of its node; false when it is not ready to announce yet.
func says(m members.Member) (snapshot.Member, bool) {
	if m.Unknown != "" {
		return snapshot.Member{}, true // of another release: it announces, and its links are not known
	}
	out := snapshot.Member{SessionUp: m.Meta.SessionUp}
	if !m.Meta.LinksUnknown {
		out.Links = make([]announce.Link, len(m.Meta.Links))
		for i, l := range m.Meta.Links {
			out.Links[i] = announce.Link{Name: l.Name, Up: l.Carrier, Excluded: l.Excluded}
		}
	}
	switch {
	case m.Meta.Draining:
		out.Gate = "the node's speaker is ending"
	case !m.Meta.ProxyHealthy:
		out.Gate = proxyGate
	}
	return out, m.Meta.Ready
}

// run keeps this speaker in the group until ctx ends, and then leaves it.
func (m *membership) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.restart:
		}
		if err := m.runOne(ctx); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// runOne runs the cluster there is until there is another one.
func (m *membership) runOne(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.mu.Lock()
	c := m.cluster
	m.mu.Unlock()
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	select {
	case err := <-done:
		return err
	case <-m.restart:
		m.restart.Set() // run takes it from here
		cancel()
		return <-done
	}
}
