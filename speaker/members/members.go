// Package members knows which speakers are alive and what they say about themselves.
//
// It owns the gossip (hashicorp/memberlist), what it is carried by, and keeps it joined. Who may be a member, and what
// follows from its death, is its caller's business; it knows nothing of Kubernetes.
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
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/clarionlb/clarion/internal/wake"
)

// Profile is how fast death is noticed, and at what price. The zero Profile is Fast.
type Profile struct {
	// ProbeInterval is the time between two checks of a member, chosen by turns.
	ProbeInterval time.Duration
	// ProbeTimeout is how long the answer to a direct check may take; then others are asked to check as well. At most
	// 0.4 of ProbeInterval.
	ProbeTimeout time.Duration
	// SuspicionMult: a member that did not answer is dead after SuspicionMult × log10(number of speakers, at least 10) ×
	// ProbeInterval unless it objects.
	SuspicionMult int
	// GossipInterval is the time between two rounds of news to members.
	GossipInterval time.Duration
	// PushPullInterval is the time between two complete exchanges with a member.
	PushPullInterval time.Duration
	// Timeout of a connection to a member.
	Timeout time.Duration
	// JoinTime is how long others are looked for before a speaker believes that it is alone.
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

	// Addr is where to listen and where others find this speaker.
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
	// Joined is false until there was contact with another member, or the profile's JoinTime passed since SetPeers was
	// called first without reaching one: so long a speaker cannot know whether others are there. It stays true afterwards,
	// since a speaker that loses the others is alone or cut off, and goes on either way.
	Joined bool
	// Problem is why this speaker cannot take part, empty if it can.
	Problem string
}

// Cluster is a speaker's part in the gossip.
type Cluster struct {
	log     *slog.Logger
	config  Config
	self    netip.AddrPort
	border  *border
	keyring *memberlist.Keyring
	rejoin  wake.Signal // who is missing changed
	update  wake.Signal // meta changed
	notify  wake.Signal // OnChange is due
	create  func(*memberlist.Config) (*memberlist.Memberlist, error)

	mu      sync.Mutex
	peers   map[netip.AddrPort]bool
	looking time.Time // since when others are looked for; zero: SetPeers was not called, or there is no port yet
	asked   bool      // SetPeers was called
	told    []byte    // what others are told
	meta    Meta      // the same, as they read it
	members map[string]Member
	joined  bool
	problem string
	absent  map[netip.AddrPort]absence // peers that were not reached, or were lost
}

// absence is what is remembered of a peer that is no member.
type absence struct {
	tries int       // that failed, in a row
	next  time.Time // not to be tried before
	err   error     // of the last try
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
		border:  &border{},
		keyring: &memberlist.Keyring{},
		rejoin:  wake.New(),
		update:  wake.New(),
		notify:  wake.New(),
		create:  memberlist.Create,
		told:    Meta{}.encode(),
		members: map[string]Member{},
		absent:  map[netip.AddrPort]absence{},
	}
}

// SetPeers says where others can be found: all of them, alive or not, replacing what was said before. This speaker's
// own address may be among them. It never waits for the network.
func (c *Cluster) SetPeers(peers []netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := make(map[netip.AddrPort]bool, len(peers))
	for _, p := range peers {
		if p = netip.AddrPortFrom(p.Addr().Unmap(), p.Port()); p.IsValid() && p != c.self {
			next[p] = true
		}
	}
	maps.DeleteFunc(c.absent, func(p netip.AddrPort, _ absence) bool { return !next[p] })
	c.peers, c.asked = next, true
	c.rejoin.Set()
}

// SetSources says which addresses may send to this speaker, all of them, replacing what was said before: those of the
// nodes. Before the first call, and after one with none, they are not known, and everybody may. What others send is
// dropped before it is read.
func (c *Cluster) SetSources(addrs []netip.Addr) { c.border.setSources(addrs) }

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

// SetMeta says what to tell the others. View shows it as they read it; see Meta.Told. It never waits for the network.
func (c *Cluster) SetMeta(meta Meta) {
	told := meta.encode()
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes.Equal(told, c.told) {
		return
	}
	c.told, c.meta = told, meta.Told()
	c.update.Set()
	c.notify.Set()
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

// Run takes part in the gossip until ctx ends, then tells the others that it leaves, and returns nil. It returns an
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
	c.joined, c.looking = false, time.Time{}
	clear(c.members)
	clear(c.absent)
	if err != nil {
		return fmt.Errorf("members: %w", err)
	}
	return nil
}

// listen starts memberlist as soon as its address can be had. The only error is that of ctx.
func (c *Cluster) listen(ctx context.Context) (*memberlist.Memberlist, error) {
	for {
		list, err := c.open()
		c.mu.Lock()
		before := c.problem
		c.problem = ""
		if err != nil {
			c.problem = err.Error()
		}
		if c.problem != before {
			c.notify.Set()
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

func (c *Cluster) open() (*memberlist.Memberlist, error) {
	t, err := listen(c.self, c.border)
	if err != nil {
		return nil, err
	}
	list, err := c.create(c.listConfig(t))
	if err != nil {
		_ = t.Shutdown()
	}
	return list, err
}

func (c *Cluster) listConfig(t memberlist.Transport) *memberlist.Config {
	p := c.config.Profile
	l := memberlist.DefaultLANConfig()
	l.Name = c.config.Name
	l.Label = "clarion" // keeps apart from other users of memberlist's port
	l.Transport = t
	l.BindAddr, l.BindPort = c.config.Addr.String(), int(c.config.Port)
	l.AdvertiseAddr, l.AdvertisePort = l.BindAddr, l.BindPort
	l.Keyring = c.keyring
	l.ProbeInterval, l.ProbeTimeout, l.SuspicionMult = p.ProbeInterval, p.ProbeTimeout, p.SuspicionMult
	l.GossipInterval, l.PushPullInterval, l.TCPTimeout = p.GossipInterval, p.PushPullInterval, p.Timeout
	l.EnableCompression = false
	// A node that comes back with another address has its old name, which is refused for that long after its death.
	l.DeadNodeReclaimTime = time.Second
	d := &delegate{c: c}
	l.Delegate, l.Events, l.Conflict = d, d, d
	l.Logger = log.New(&chatter{log: c.log}, "", 0)
	return l
}

// How others are looked for.
const (
	maxTries      = 32                     // connections at a time
	nextWhenAlone = 100 * time.Millisecond // when a try has not been answered so long, another begins beside it
	nextWhenMet   = 250 * time.Millisecond // the same when others are known
	afterFailure  = 20 * time.Millisecond  // between a try that failed and the next
	firstRetry    = 200 * time.Millisecond // of the same peer; doubles up to maxRetry
)

// maxRetry is the longest time between two tries of a peer that is not there, for one of so many speakers: all of them
// together ask it about ten times a second, or once a second each if they are fewer.
func maxRetry(speakers int) time.Duration {
	return min(max(time.Duration(speakers)*time.Second/10, time.Second), time.Minute)
}

// joinLoop joins peers that are no members, one after the other and for ever: this is what heals a partition, however
// long it took. A complete exchange with one brings all that it knows, and its news reach those who know it, so that after
// one that succeeded it waits for these before it looks again who is missing.
func (c *Cluster) joinLoop(ctx context.Context, list *memberlist.Memberlist) {
	type result struct {
		peer netip.AddrPort
		err  error
	}
	results, pending := make(chan result, maxTries), map[netip.AddrPort]bool{}
	var tries sync.WaitGroup
	defer tries.Wait()
	var rest time.Time // no try before
	for {
		now := time.Now()
		peer, due, pace := c.next(now, pending)
		if due.Before(rest) {
			due = rest
		}
		if peer.IsValid() && !due.After(now) && len(pending) < maxTries {
			pending[peer], rest = true, now.Add(pace)
			tries.Go(func() {
				_, err := list.Join([]string{peer.String()})
				results <- result{peer, err}
			})
			continue
		}
		wait := c.untilAlone(now)
		if peer.IsValid() && len(pending) < maxTries {
			wait = min(wait, due.Sub(now))
		}
		select {
		case <-ctx.Done():
			return
		case <-c.rejoin:
		case r := <-results:
			delete(pending, r.peer)
			c.tried(r.peer, r.err)
			if rest = time.Now().Add(afterFailure); r.err == nil {
				rest = rest.Add(c.spread())
			}
		case <-time.After(wait):
		}
	}
}

// next is a peer to try, any of those that are due or the one that is due first, when it is, and how long its answer may
// take before another is tried beside it. It is invalid if every peer is a member or in pending.
func (c *Cluster) next(now time.Time, pending map[netip.AddrPort]bool) (peer netip.AddrPort, due time.Time, pace time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	members := make(map[netip.AddrPort]bool, len(c.members))
	for _, m := range c.members {
		members[m.Addr] = true
	}
	ready := 0
	for p := range c.peers {
		if members[p] || pending[p] {
			continue
		}
		at := c.absent[p].next
		if !at.After(now) {
			if ready++; rand.N(ready) == 0 {
				peer, due = p, at
			}
		} else if ready == 0 && (!peer.IsValid() || at.Before(due)) {
			peer, due = p, at
		}
	}
	if pace = nextWhenAlone; len(c.members) > 1 {
		pace = nextWhenMet
	}
	return peer, due, pace
}

// spread is about how long news take to reach everybody, two to four times over, so that those who learned the same do
// not act on it together.
func (c *Cluster) spread() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	once := c.config.Profile.GossipInterval * time.Duration(1+bits.Len(uint(len(c.peers)))/2)
	return 2*once + rand.N(2*once)
}

// untilAlone is how long to go on looking before this speaker believes that it is alone; an hour if that is decided, or
// cannot be.
func (c *Cluster) untilAlone(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.joined || !c.asked {
		return time.Hour
	}
	if c.looking.IsZero() {
		c.looking = now
	}
	left := c.config.Profile.JoinTime - now.Sub(c.looking)
	if left > 0 {
		return left
	}
	var err error
	for _, a := range c.absent {
		err = a.err
	}
	c.log.Info("members: no other speaker reached, going on alone", "tried", len(c.peers), "for", c.config.Profile.JoinTime.String(), "last error", err)
	c.joined = true
	c.notify.Set()
	return time.Hour
}

// tried records how a peer could be joined.
func (c *Cluster) tried(peer netip.AddrPort, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.absent[peer]
	delete(c.absent, peer)
	if err == nil || !c.peers[peer] {
		return
	}
	a.tries, a.err = a.tries+1, err
	most := maxRetry(len(c.peers) + 1)
	a.next = time.Now().Add(min(firstRetry<<min(a.tries-1, 16), most)*4/5 + rand.N(most/5))
	c.absent[peer] = a
	if a.tries == 1 {
		c.log.Debug("members: not reached", "address", peer.String(), "error", err)
	}
}

// metaLoop tells the others what changed.
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

// notifyRest is the least time between two calls of OnChange: an exchange with one speaker changes the view by many.
const notifyRest = 10 * time.Millisecond

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
		select {
		case <-ctx.Done():
			return
		case <-time.After(notifyRest):
		}
	}
}

// delegate is what memberlist calls, often with its lock held: nothing here calls back.
type delegate struct {
	c      *Cluster
	warned time.Time // that two speakers have one name
}

func (d *delegate) NodeMeta(int) []byte {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	return d.c.told
}

func (d *delegate) NotifyJoin(n *memberlist.Node)   { d.c.alive(n) }
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.c.alive(n) }
func (d *delegate) NotifyLeave(n *memberlist.Node)  { d.c.gone(n) }

// NotifyConflict is called with each message that says so, with memberlist's lock held.
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	const rest = time.Minute
	if now := time.Now(); now.Sub(d.warned) >= rest {
		d.warned = now
	} else {
		return
	}
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
	delete(c.absent, m.Addr)
	if n.Name != c.config.Name {
		if !known {
			c.log.Info("members: alive", "name", n.Name, "address", m.Addr.String())
		}
		if m.Unknown != "" && old.Unknown != m.Unknown {
			c.log.Warn("members: one says what is not understood", "name", n.Name, "error", m.Unknown)
		}
		c.joined = true
	}
	c.notify.Set()
}

func (c *Cluster) gone(n *memberlist.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m, ok := c.members[n.Name]; ok && c.peers[m.Addr] {
		// Not all at once, those who lost it.
		c.absent[m.Addr] = absence{next: time.Now().Add(rand.N(maxRetry(len(c.peers) + 1)))}
	}
	delete(c.members, n.Name)
	c.rejoin.Set()
	if n.Name != c.config.Name {
		c.log.Info("members: gone, it left or does not answer", "name", n.Name)
	}
	c.notify.Set()
}
