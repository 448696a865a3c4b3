// Package members knows which speakers are alive and what they say about themselves.
//
// It owns the gossip (hashicorp/memberlist) and keeps it joined. Who may be a fellow, and what follows from its death,
// is its caller's business; it knows nothing of Kubernetes.
package members

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Profile is how fast death is noticed, and at what price. The zero Profile is Fast.
type Profile struct {
	// ProbeInterval is the time between two checks of a fellow, chosen by turns.
	ProbeInterval time.Duration
	// ProbeTimeout is how long the answer to a direct check may take; then others are asked to check as well. At most
	// 0.4 of ProbeInterval.
	ProbeTimeout time.Duration
	// SuspicionMult: a fellow that did not answer is dead after SuspicionMult × log10(number of speakers, at least 10) ×
	// ProbeInterval unless it objects.
	SuspicionMult int
	// GossipInterval is the time between two rounds of news to fellows.
	GossipInterval time.Duration
	// PushPullInterval is the time between two complete exchanges with a fellow.
	PushPullInterval time.Duration
	// Timeout of a connection to a fellow.
	Timeout time.Duration
	// JoinTime is how long fellows are looked for before a speaker believes that it is alone.
	JoinTime time.Duration
}

// Fast notices death in 0.65 to 1.2 s (3 to 10 speakers; 1.5 s with 100), for 10 packets a second and node.
func Fast() Profile {
	return Profile{
		ProbeInterval: 200 * time.Millisecond, ProbeTimeout: 80 * time.Millisecond, SuspicionMult: 2,
		GossipInterval: 50 * time.Millisecond, PushPullInterval: 15 * time.Second, Timeout: time.Second, JoinTime: 2 * time.Second,
	}
}

// LAN notices death in 5 to 8 s (3 to 10 speakers; 11 s with 100), and tolerates nodes that stall for seconds.
func LAN() Profile {
	return Profile{
		ProbeInterval: time.Second, ProbeTimeout: 400 * time.Millisecond, SuspicionMult: 4,
		GossipInterval: 200 * time.Millisecond, PushPullInterval: 30 * time.Second, Timeout: 3 * time.Second, JoinTime: 5 * time.Second,
	}
}

// WAN notices death in half a minute or more, and tolerates round-trip times of a second.
func WAN() Profile {
	return Profile{
		ProbeInterval: 5 * time.Second, ProbeTimeout: 2 * time.Second, SuspicionMult: 6,
		GossipInterval: 500 * time.Millisecond, PushPullInterval: 60 * time.Second, Timeout: 10 * time.Second, JoinTime: 15 * time.Second,
	}
}

// DefaultPort is the TCP and UDP port of the gossip.
const DefaultPort = 7946

// Config is what a Cluster is made with.
type Config struct {
	Log  *slog.Logger // nil: slog.Default()
	Name string       // unique among the speakers: the node's name

	// Addr is where to listen and where fellows find this speaker.
	Addr netip.Addr
	Port uint16 // 0: DefaultPort

	// Keys are 16, 24 or 32 bytes each. The first one encrypts, all decrypt. Without keys anybody can join.
	Keys [][]byte

	Profile Profile

	// OnChange is called, by a goroutine of Run, when the result of View changed. It must not block; it may call the
	// Cluster's methods. nil: nobody is told.
	OnChange func()
}

// Member is a speaker that is alive.
type Member struct {
	Name string
	Addr netip.AddrPort
	Meta Meta
	// Unknown is why Meta is not known: the member runs another release. Empty if it is known.
	Unknown string
}

// View is what a Cluster knows.
type View struct {
	// Members are the speakers that are alive, by name, with this one while it runs.
	Members []Member
	// Joined is false until there was contact with a fellow, or the profile's JoinTime passed since SetPeers was called
	// first without reaching one: so long a speaker cannot know whether others are there. It stays true afterwards, since
	// a speaker that loses its fellows is alone or cut off, and goes on either way.
	Joined bool
	// Problem is why this speaker cannot take part, empty if it can.
	Problem string
}

// Cluster is a speaker's part in the gossip.
type Cluster struct {
	log     *slog.Logger
	config  Config
	self    netip.AddrPort
	keyring *memberlist.Keyring
	rejoin  chan struct{} // peers changed
	update  chan struct{} // meta changed
	notify  chan struct{} // OnChange is due
	create  func(*memberlist.Config) (*memberlist.Memberlist, error)

	mu      sync.Mutex
	peers   []netip.AddrPort
	known   time.Time // when peers was set first and fellows could be looked for
	asked   bool      // SetPeers was called
	meta    Meta
	members map[string]Member
	joined  bool
	problem string
	failing map[netip.AddrPort]string // peers that cannot be joined, and why
}

// New returns a Cluster that does nothing until Run is called.
func New(config Config) *Cluster {
	if config.Log == nil {
		config.Log = slog.Default()
	}
	config.Port = cmp.Or(config.Port, DefaultPort)
	config.Addr = config.Addr.Unmap()
	if config.Profile == (Profile{}) {
		config.Profile = Fast()
	}
	return &Cluster{
		log:     config.Log,
		config:  config,
		self:    netip.AddrPortFrom(config.Addr, config.Port),
		keyring: &memberlist.Keyring{},
		rejoin:  make(chan struct{}, 1),
		update:  make(chan struct{}, 1),
		notify:  make(chan struct{}, 1),
		create:  memberlist.Create,
		members: map[string]Member{},
		failing: map[netip.AddrPort]string{},
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// SetPeers says where fellows can be found: all of them, alive or not, replacing what was said before. This speaker's
// own address may be among them. It never waits for the network.
func (c *Cluster) SetPeers(peers []netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := make([]netip.AddrPort, 0, len(peers))
	for _, p := range peers {
		p = netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
		if p.IsValid() && p != c.self && !slices.Contains(next, p) {
			next = append(next, p)
		}
	}
	maps.DeleteFunc(c.failing, func(p netip.AddrPort, _ string) bool { return !slices.Contains(next, p) })
	c.peers, c.asked = next, true
	signal(c.rejoin)
}

// SetKeys replaces the keys: the first one encrypts, all decrypt. To rotate without losing a message give every speaker
// the new key as its second one, then as its first, then drop the old one. An error changes nothing: a key of another
// length than 16, 24 or 32 bytes, or none at all.
func (c *Cluster) SetKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("gossip keys: none given")
	}
	for i, k := range keys {
		if err := memberlist.ValidateKey(k); err != nil {
			return fmt.Errorf("gossip key %d: %w", i+1, err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range keys {
		if err := c.keyring.AddKey(bytes.Clone(k)); err != nil {
			return fmt.Errorf("gossip keys: %w", err)
		}
	}
	// The stale keys have to be at the end when they are removed: the keyring moves later keys up in an array that its
	// readers may hold. UseKey makes a key the first in a new array, so the wanted ones come in front, last one first.
	if got := c.keyring.GetKeys(); !slices.EqualFunc(got[:min(len(keys), len(got))], keys, bytes.Equal) {
		for _, k := range slices.Backward(keys) {
			if err := c.keyring.UseKey(k); err != nil {
				return fmt.Errorf("gossip keys: %w", err)
			}
		}
	}
	for _, old := range slices.Backward(c.keyring.GetKeys()) {
		if slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, old) }) {
			continue
		}
		if err := c.keyring.RemoveKey(old); err != nil {
			return fmt.Errorf("gossip keys: %w", err)
		}
	}
	return nil
}

// SetMeta says what to tell the fellows. It never waits for the network.
func (c *Cluster) SetMeta(meta Meta) {
	meta.Links = slices.Clone(meta.Links)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.meta.Equal(meta) {
		return
	}
	c.meta = meta
	signal(c.update)
	signal(c.notify)
}

// View returns what is known now.
func (c *Cluster) View() View {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := View{Joined: c.joined, Problem: c.problem}
	for _, m := range c.members {
		if m.Name == c.config.Name {
			m.Meta, m.Unknown = c.meta, ""
		}
		m.Meta.Links = slices.Clone(m.Meta.Links)
		v.Members = append(v.Members, m)
	}
	slices.SortFunc(v.Members, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return v
}

// Run takes part in the gossip until ctx ends, then tells the fellows that it leaves, and returns nil. It returns an
// error only for a Config that cannot work. An address that cannot be listened on is tried again every second.
func (c *Cluster) Run(ctx context.Context) error {
	if c.config.Name == "" || !c.config.Addr.IsValid() {
		return errors.New("members: a name and an address are needed")
	}
	if len(c.config.Keys) > 0 {
		if err := c.SetKeys(c.config.Keys); err != nil {
			return fmt.Errorf("members: %w", err)
		}
	} else {
		c.log.Warn("members: gossip is not encrypted, anybody on the network can take part")
	}
	list, err := c.listen(ctx)
	if err != nil {
		return nil // ctx ended
	}
	var loops sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	loops.Go(func() { c.joinLoop(ctx, list) })
	loops.Go(func() { c.metaLoop(ctx, list) })
	loops.Go(func() { c.notifyLoop(ctx) })
	<-ctx.Done()

	// The farewell is on its way when the first round of news is out.
	if err := list.Leave(c.config.Profile.Timeout); err != nil {
		c.log.Warn("members: left without a farewell", "error", err)
	}
	err = list.Shutdown()
	loops.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joined, c.known = false, time.Time{}
	clear(c.members)
	clear(c.failing)
	if err != nil {
		return fmt.Errorf("members: %w", err)
	}
	return nil
}

// listen starts memberlist as soon as its address can be had. The only error is that of ctx.
func (c *Cluster) listen(ctx context.Context) (*memberlist.Memberlist, error) {
	for {
		list, err := c.create(c.listConfig())
		c.mu.Lock()
		before := c.problem
		c.problem = ""
		if err != nil {
			c.problem = err.Error()
		}
		if c.problem != before {
			signal(c.notify)
		}
		c.mu.Unlock()
		if err == nil {
			c.log.Info("members: listening", "name", c.config.Name, "address", c.self.String())
			return list, nil
		}
		if before == "" {
			c.log.Warn("members: cannot take part, trying again every second", "address", c.self.String(), "error", err)
			if c.config.OnChange != nil {
				c.config.OnChange()
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (c *Cluster) listConfig() *memberlist.Config {
	p := c.config.Profile
	l := memberlist.DefaultLANConfig()
	l.Name = c.config.Name
	l.Label = "clarion" // keeps apart from other users of memberlist's port
	l.BindAddr, l.BindPort = c.config.Addr.String(), int(c.config.Port)
	l.AdvertiseAddr, l.AdvertisePort = l.BindAddr, l.BindPort
	l.Keyring = c.keyring
	l.ProbeInterval, l.ProbeTimeout, l.SuspicionMult = p.ProbeInterval, p.ProbeTimeout, p.SuspicionMult
	l.GossipInterval, l.PushPullInterval, l.TCPTimeout = p.GossipInterval, p.PushPullInterval, p.Timeout
	l.EnableCompression = false
	// A node that comes back with another address has its old name, which is refused for that long after its death.
	l.DeadNodeReclaimTime = time.Second
	d := &delegate{c}
	l.Delegate, l.Events, l.Conflict = d, d, d
	l.Logger = log.New(&chatter{log: c.log}, "", 0)
	return l
}

// joinLoop joins every peer that is not a member, at once and then about every second for ever: this is what heals a
// partition, however long it took.
func (c *Cluster) joinLoop(ctx context.Context, list *memberlist.Memberlist) {
	for {
		c.join(ctx, list)
		c.mu.Lock()
		wait := 800*time.Millisecond + rand.N(400*time.Millisecond)
		switch {
		case c.joined || !c.asked:
		case c.known.IsZero():
			c.known = time.Now()
			fallthrough
		default:
			left := c.config.Profile.JoinTime - time.Since(c.known)
			if left <= 0 {
				c.log.Info("members: no fellow reached, going on alone", "tried", len(c.peers), "for", c.config.Profile.JoinTime.String())
				c.joined = true
				signal(c.notify)
			} else {
				wait = min(wait, left, 200*time.Millisecond) // a start is in more of a hurry
			}
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-c.rejoin:
		case <-time.After(wait):
		}
	}
}

// join tries all peers that are not members, many at once, since each may take the whole timeout.
func (c *Cluster) join(ctx context.Context, list *memberlist.Memberlist) {
	c.mu.Lock()
	alive := map[netip.AddrPort]bool{}
	for _, m := range c.members {
		alive[m.Addr] = true
	}
	var absent []netip.AddrPort
	for _, p := range c.peers {
		if !alive[p] {
			absent = append(absent, p)
		}
	}
	c.mu.Unlock()
	rand.Shuffle(len(absent), func(i, j int) { absent[i], absent[j] = absent[j], absent[i] })
	var tries sync.WaitGroup
	const atOnce = 32
	slots := make(chan struct{}, atOnce)
	for _, p := range absent {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		tries.Go(func() {
			defer func() { <-slots }()
			_, err := list.Join([]string{p.String()})
			c.tried(p, err)
		})
	}
	tries.Wait()
}

// tried records how a peer could be joined, and logs when that changed.
func (c *Cluster) tried(peer netip.AddrPort, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, failed := c.failing[peer]
	switch {
	case err == nil:
		delete(c.failing, peer)
	case !failed:
		c.failing[peer] = err.Error()
		c.log.Info("members: fellow not reached", "address", peer.String(), "error", err)
	}
}

// metaLoop tells the fellows what changed.
func (c *Cluster) metaLoop(ctx context.Context, list *memberlist.Memberlist) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.update:
			// Its error is that nobody was told within the time; the news stays queued.
			_ = list.UpdateNode(c.config.Profile.GossipInterval)
		}
	}
}

func (c *Cluster) notifyLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.notify:
			if c.config.OnChange != nil {
				c.config.OnChange()
			}
		}
	}
}

// delegate is what memberlist calls, often with its lock held: nothing here calls back.
type delegate struct{ c *Cluster }

func (d *delegate) NodeMeta(int) []byte {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	return d.c.meta.encode()
}

func (d *delegate) NotifyJoin(n *memberlist.Node)   { d.c.alive(n) }
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.c.alive(n) }
func (d *delegate) NotifyLeave(n *memberlist.Node)  { d.c.gone(n) }

func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.c.log.Warn("members: two speakers have the same name", "name", existing.Name, "known", existing.Address(), "refused", other.Address())
}

// There is nothing to exchange beyond the members themselves.
func (d *delegate) NotifyMsg([]byte)                {}
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d *delegate) LocalState(bool) []byte          { return nil }
func (d *delegate) MergeRemoteState([]byte, bool)   {}

func (c *Cluster) alive(n *memberlist.Node) {
	addr, _ := netip.AddrFromSlice(n.Addr)
	m := Member{Name: n.Name, Addr: netip.AddrPortFrom(addr.Unmap(), n.Port)}
	var err error
	if m.Meta, err = parseMeta(n.Meta); err != nil {
		m.Unknown = err.Error()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old, known := c.members[n.Name]
	c.members[n.Name] = m
	if n.Name != c.config.Name {
		if !known {
			c.log.Info("members: fellow is alive", "name", n.Name, "address", m.Addr.String())
		}
		if m.Unknown != "" && old.Unknown != m.Unknown {
			c.log.Warn("members: fellow says what is not understood", "name", n.Name, "error", m.Unknown)
		}
		c.joined = true
	}
	signal(c.notify)
}

func (c *Cluster) gone(n *memberlist.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.members, n.Name)
	if n.Name != c.config.Name {
		c.log.Info("members: fellow is gone, it left or does not answer", "name", n.Name)
	}
	signal(c.notify)
}
