// Package config turns the objects that users write (advertisements, peers, profiles, communities) into typed
// configuration, and says of every object that cannot be used as written what is wrong and what would be right. One bad
// object disables itself at most, never another. Both binaries use it: the speaker for the configuration, the controller
// for the conditions it writes. It is pure.
//
// What the addresses of a pool mean is internal/pool's; a session's password is the speaker's to find.
package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/route"
)

// Objects are the configuration objects as the API server has them, in any order.
type Objects struct {
	Pools             []*v1beta1.IPAddressPool
	L2Advertisements  []*v1beta1.L2Advertisement
	BGPAdvertisements []*v1beta1.BGPAdvertisement
	BGPPeers          []*v1beta1.BGPPeer
	BFDProfiles       []*v1beta1.BFDProfile
	Communities       []*v1beta1.Community
}

// Config is the configuration that can be used, each list sorted by name.
type Config struct {
	L2    []L2Advertisement
	BGP   []BGPAdvertisement
	Peers []Peer
}

// Problem is an object that cannot be used as written, or, with ReasonAdvice, could be written better.
type Problem struct {
	// Kind and Name name the object.
	Kind, Name string
	// Reason is for programs: a CamelCase word.
	Reason string
	// Message names the field, what is wrong, and what would be right.
	Message string
	// Disabled says that the object is not in use at all. Otherwise only the part that the message names is not.
	Disabled bool
}

// Reasons of problems.
const (
	ReasonInvalid         = "Invalid"
	ReasonPoolNotFound    = "PoolNotFound"
	ReasonPeerNotFound    = "PeerNotFound"
	ReasonProfileNotFound = "BFDProfileNotFound"
	ReasonUnknownName     = "UnknownCommunity"
	ReasonDuplicateName   = "DuplicateCommunity"
	// ReasonAdvice is that of what is used as written, and could be written better.
	ReasonAdvice = "Advice"
)

// Selectors are label selectors of which one must match. Without any, everything matches.
type Selectors []labels.Selector

// Match says whether one of the selectors matches, or there are none.
func (s Selectors) Match(l labels.Labels) bool {
	return len(s) == 0 || slices.ContainsFunc(s, func(x labels.Selector) bool { return x.Matches(l) })
}

// Names is a set of the names of objects, or all of them.
type Names struct {
	All bool
	Set map[string]bool
}

// Has says whether name is in the set.
func (n Names) Has(name string) bool { return n.All || n.Set[name] }

// Preference adds Weight to the rank of the nodes that Nodes matches.
type Preference struct {
	Weight int
	Nodes  labels.Selector
}

// L2Advertisement is a usable v1beta1.L2Advertisement.
type L2Advertisement struct {
	Name       string
	Pools      Names
	Services   Selectors
	Nodes      Selectors
	Prefer     []Preference
	Interfaces []string
	// Keep is failback Never.
	Keep bool
}

// BGPAdvertisement is a usable v1beta1.BGPAdvertisement.
type BGPAdvertisement struct {
	Name     string
	Pools    Names
	Peers    Names
	Services Selectors
	Nodes    Selectors
	Types    map[v1beta1.AddressType]bool
	// ExternalIPs are the ranges that external IPs must be in.
	ExternalIPs []netip.Prefix
	// Length4 and Length6 are the prefix lengths that Service addresses are announced with.
	Length4, Length6 int
	Attrs            route.Attrs
	Weighted         bool
}

// Aggregate is the prefix that an address is announced with.
func (a *BGPAdvertisement) Aggregate(addr netip.Addr) netip.Prefix {
	bits := a.Length6
	if addr.Is4() {
		bits = a.Length4
	}
	p, _ := addr.Prefix(bits) // fails only for lengths that Parse refuses
	return p
}

// Peer is a usable v1beta1.BGPPeer.
type Peer struct {
	Name              string
	Created           time.Time
	Nodes             Selectors
	LocalASN, PeerASN uint32 // PeerASN 0: taken from the peer's OPEN
	Dynamic           string // "", "internal", "external"
	Address           netip.Addr
	Interface         string
	Gateway           string // "", "IPv4", "IPv6": the default route's
	Source            netip.Addr
	Port              uint16
	RouterID          netip.Addr
	// HoldTime and Keepalive are nil when not set: the defaults are the session's.
	HoldTime, Keepalive, ConnectTime *time.Duration
	Password                         string
	// SecretName is "" without a Secret. SecretNamespace is what the user wrote, which may be nothing or wrong.
	SecretName, SecretNamespace string
	// BFD is nil without BFD, and when there is no profile of the name.
	BFD     *BFDProfile
	bfdName string
	// GracefulRestart is how long the peer keeps the routes, 0 for no graceful restart.
	GracefulRestart time.Duration
	MultiHop        bool
	TTLSecurity     bool
	Passive         bool
	DualStack       bool
	VRF             string
	Customer        bool   // of the peer (RFC 9234)
	LinkBandwidth   string // "" (non-transitive), "transitive", "both"
	// MaxPrefixes is how many prefixes the peer may announce, 0 for any number.
	MaxPrefixes uint32
}

// Resets says whether the sessions of a peer end, and are opened anew, when it becomes another: what they are known by is
// not what it was (see speaker/bgp.Identity). A Secret of another name counts as another password.
func (p *Peer) Resets(next *Peer) bool {
	identity := func(p *Peer) Peer {
		return Peer{
			LocalASN: p.LocalASN, PeerASN: p.PeerASN, Dynamic: p.Dynamic, Address: p.Address, Interface: p.Interface, Gateway: p.Gateway,
			Port: p.Port, Source: p.Source, RouterID: p.RouterID, VRF: p.VRF, Password: p.Password, SecretName: p.SecretName,
			GracefulRestart: p.GracefulRestart, MultiHop: p.MultiHop, TTLSecurity: p.TTLSecurity, Passive: p.Passive,
			DualStack: p.DualStack, Customer: p.Customer,
		}
	}
	return !reflect.DeepEqual(identity(p), identity(next))
}

// BFDProfile is a usable v1beta1.BFDProfile.
type BFDProfile struct {
	Receive, Transmit time.Duration
	Multiplier        uint8
	Passive           bool
	MinimumTTL        uint8
	Echo              time.Duration // 0: no echo function
}

// defaultRestartTime is the one BGPPeer default that the API does not have.
const defaultRestartTime = 120 * time.Second

// Parse returns what can be used of the objects, and a problem for each thing that cannot. The order of the objects
// does not matter.
func Parse(o Objects) (*Config, []Problem) {
	p := parser{objects: o, aliases: map[string]route.Community{}, profiles: map[string]*BFDProfile{}}
	for _, c := range byName(o.Communities) {
		p.community(c)
	}
	for _, b := range byName(o.BFDProfiles) {
		p.profile(b)
	}
	for _, peer := range byName(o.BGPPeers) {
		p.peer(peer)
	}
	for _, ad := range byName(o.L2Advertisements) {
		p.l2(ad)
	}
	for _, ad := range byName(o.BGPAdvertisements) {
		p.bgp(ad)
	}
	return &p.out, p.problems
}

// Keep adds the BGPAdvertisements and BGPPeers that cannot be used as they are written now, as they were in last: a slip in
// an edit must not withdraw what has been announced for long. L2Advertisements are not kept: about them all speakers have
// to agree, those too that start later.
func (c *Config) Keep(last *Config, problems []Problem) {
	disabled := map[string]bool{}
	for _, p := range problems {
		if p.Disabled {
			disabled[p.Kind+"/"+p.Name] = true
		}
	}
	for _, ad := range last.BGP {
		if disabled["BGPAdvertisement/"+ad.Name] {
			c.BGP = append(c.BGP, ad)
		}
	}
	for _, p := range last.Peers {
		if disabled["BGPPeer/"+p.Name] {
			c.Peers = append(c.Peers, p)
		}
		for i := range c.Peers { // a profile that is gone for a moment stays in use
			if q := &c.Peers[i]; q.Name == p.Name && q.BFD == nil && q.bfdName != "" && q.bfdName == p.bfdName {
				q.BFD = p.BFD
			}
		}
	}
	slices.SortFunc(c.BGP, func(a, b BGPAdvertisement) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(c.Peers, func(a, b Peer) int { return cmp.Compare(a.Name, b.Name) })
}

type parser struct {
	objects  Objects
	aliases  map[string]route.Community
	profiles map[string]*BFDProfile
	out      Config
	problems []Problem
}

func byName[T metav1.Object](in []T) []T {
	return slices.SortedFunc(slices.Values(in), func(a, b T) int { return cmp.Compare(a.GetName(), b.GetName()) })
}

// object collects the problems of one object; the first that disables it ends its parsing.
type object struct {
	p          *parser
	kind, name string
	disabled   bool
}

func (o *object) problem(reason, format string, args ...any) {
	o.p.problems = append(o.p.problems, Problem{Kind: o.kind, Name: o.name, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

func (o *object) disable(reason, format string, args ...any) {
	o.problem(reason, format, args...)
	o.p.problems[len(o.p.problems)-1].Disabled = true
	o.disabled = true
}

// remembered ends the parsing of an object of a kind that Keep keeps.
func (o *object) remembered() {
	for i := len(o.p.problems) - 1; o.disabled; i-- { // advice may have come after what disables it
		if last := &o.p.problems[i]; last.Disabled {
			last.Message += "; speakers that knew its last usable form keep it until they restart"
			return
		}
	}
}

func (o *object) selectors(field string, in []metav1.LabelSelector) Selectors {
	var out Selectors
	for i := range in {
		sel := o.selector(fmt.Sprintf("%s[%d]", field, i), &in[i])
		if j := slices.IndexFunc(out, func(x labels.Selector) bool { return x.String() == sel.String() }); j >= 0 {
			o.problem(ReasonAdvice, "%s[%d]: it is the same as %s[%d]; remove one of them", field, i, field, j)
		}
		out = append(out, sel)
	}
	return out
}

func (o *object) selector(field string, in *metav1.LabelSelector) labels.Selector {
	s, err := metav1.LabelSelectorAsSelector(in)
	if err != nil {
		o.disable(ReasonInvalid, "%s: %v", field, err)
		return labels.Nothing()
	}
	return s
}

// names resolves names and selectors to a set; a name that no object has is a problem, but not for the others.
func (o *object) names(field, kind, reason string, names []string, sels Selectors, have map[string]labels.Set) Names {
	if len(names) == 0 && len(sels) == 0 {
		return Names{All: true}
	}
	out := Names{Set: map[string]bool{}}
	var missing []string
	for _, n := range names {
		if _, ok := have[n]; !ok {
			missing = append(missing, fmt.Sprintf("%q", n))
		}
		out.Set[n] = true
	}
	if len(missing) > 0 {
		o.problem(reason, "%s: there is no %s %s; create it or correct the name", field, kind, strings.Join(missing, ", "))
	}
	if len(sels) > 0 {
		for n, l := range have {
			if sels.Match(l) {
				out.Set[n] = true
			}
		}
	}
	return out
}

func labelsOf[T metav1.Object](in []T) map[string]labels.Set {
	out := make(map[string]labels.Set, len(in))
	for _, o := range in {
		out[o.GetName()] = o.GetLabels()
	}
	return out
}

func (o *object) addr(field, in string) netip.Addr {
	if in == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(in)
	if err != nil {
		o.disable(ReasonInvalid, "%s: %q is not an IP address", field, in)
	}
	return a.Unmap()
}

func (p *parser) community(c *v1beta1.Community) {
	o := object{p: p, kind: "Community", name: c.Name}
	for i, a := range c.Spec.Communities {
		v, err := route.ParseCommunity(a.Value, nil)
		if err != nil {
			o.problem(ReasonInvalid, "spec.communities[%d].value: %v", i, err)
			continue
		}
		if old, ok := p.aliases[a.Name]; ok && old != v {
			o.problem(ReasonDuplicateName, "spec.communities[%d].name: %q is defined as %s by another Community object, which is used; remove one of them", i, a.Name, old)
			continue
		}
		p.aliases[a.Name] = v
	}
}

func (p *parser) profile(b *v1beta1.BFDProfile) {
	ms := func(v *int32) time.Duration { return time.Duration(deref(v, 300)) * time.Millisecond }
	out := &BFDProfile{
		Receive: ms(b.Spec.ReceiveInterval), Transmit: ms(b.Spec.TransmitInterval),
		Multiplier: uint8(deref(b.Spec.DetectMultiplier, 3)), Passive: deref(b.Spec.PassiveMode, false),
		MinimumTTL: uint8(deref(b.Spec.MinimumTTL, 254)),
	}
	if deref(b.Spec.EchoMode, false) {
		out.Echo = time.Duration(deref(b.Spec.EchoInterval, 50)) * time.Millisecond
	}
	p.profiles[b.Name] = out
}

func deref[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}

func (p *parser) peer(b *v1beta1.BGPPeer) {
	o := object{p: p, kind: "BGPPeer", name: b.Name}
	s := &b.Spec
	peer := Peer{
		Name: b.Name, Created: b.CreationTimestamp.Time,
		LocalASN: uint32(deref(s.LocalASN, s.MyASN)), PeerASN: uint32(deref(s.PeerASN, 0)), Dynamic: s.DynamicASN,
		Interface: s.Interface, Port: uint16(cmp.Or(s.PeerPort, 179)), Password: s.Password,
		MultiHop: s.EBGPMultiHop, TTLSecurity: s.TTLSecurity, Passive: s.Passive, DualStack: s.DualStackAddressFamily,
		VRF: s.VRF, MaxPrefixes: uint32(deref(s.MaxPrefixesReceived, 0)),
		Nodes:   o.selectors("spec.nodeSelectors", s.NodeSelectors),
		Address: o.addr("spec.peerAddress", s.PeerAddress), Source: o.addr("spec.sourceAddress", s.SourceAddress),
		RouterID: o.addr("spec.routerID", s.RouterID), Customer: s.Role == "customer", LinkBandwidth: s.LinkBandwidth,
	}
	if s.PasswordSecret != nil {
		peer.SecretName, peer.SecretNamespace = s.PasswordSecret.Name, s.PasswordSecret.Namespace
	}
	if s.AutoDiscovery != nil {
		peer.Gateway = cmp.Or(s.AutoDiscovery.AddressFamily, "IPv4")
	}
	for _, t := range []struct {
		from *metav1.Duration
		to   **time.Duration
	}{{s.HoldTime, &peer.HoldTime}, {s.KeepaliveTime, &peer.Keepalive}, {s.ConnectTime, &peer.ConnectTime}} {
		if t.from != nil && t.from.Duration != 0 {
			*t.to = &t.from.Duration
		}
	}
	if peer.HoldTime == nil && peer.Keepalive != nil { // as MetalLB has it
		hold := max(3*time.Second, min(3**peer.Keepalive, 65535*time.Second))
		peer.HoldTime = &hold
	}
	if s.EnableGracefulRestart || s.GracefulRestart != nil {
		peer.GracefulRestart = defaultRestartTime
		if s.GracefulRestart != nil && s.GracefulRestart.RestartTime != nil {
			peer.GracefulRestart = s.GracefulRestart.RestartTime.Duration
		}
	}
	if s.BFDProfile != "" {
		if peer.bfdName, peer.BFD = s.BFDProfile, p.profiles[s.BFDProfile]; peer.BFD == nil {
			o.problem(ReasonProfileNotFound, "spec.bfdProfile: there is no BFDProfile %q; sessions run without BFD, or with the last one of the name, until there is", s.BFDProfile)
		} else if peer.BFD.Echo > 0 && (peer.MultiHop || peer.Address.Is6()) {
			o.problem(ReasonAdvice, "spec.bfdProfile: BFDProfile %q has echoMode, which only sessions over one hop of IPv4 have; this one runs without", s.BFDProfile)
		}
	}
	if h, k := peer.HoldTime, peer.Keepalive; h != nil && k != nil && *h > 0 && *k > *h/3 {
		o.problem(ReasonAdvice, "spec.keepaliveTime: %v is more than a third of holdTime %v, so that one lost keepalive could end the session; %v is used", *k, *h, *h/3)
	}
	if o.remembered(); !o.disabled {
		p.out.Peers = append(p.out.Peers, peer)
	}
}

func (p *parser) l2(a *v1beta1.L2Advertisement) {
	o := object{p: p, kind: "L2Advertisement", name: a.Name}
	ad := L2Advertisement{
		Name: a.Name, Interfaces: a.Spec.Interfaces, Keep: a.Spec.Failback == v1beta1.FailbackNever,
		Pools: o.names("spec.ipAddressPools", "IPAddressPool", ReasonPoolNotFound, a.Spec.IPAddressPools,
			o.selectors("spec.ipAddressPoolSelectors", a.Spec.IPAddressPoolSelectors), labelsOf(p.objects.Pools)),
		Services: o.selectors("spec.serviceSelectors", a.Spec.ServiceSelectors),
		Nodes:    o.selectors("spec.nodeSelectors", a.Spec.NodeSelectors),
	}
	for i := range a.Spec.PreferredNodeSelectors {
		s := &a.Spec.PreferredNodeSelectors[i]
		ad.Prefer = append(ad.Prefer, Preference{int(s.Weight), o.selector(fmt.Sprintf("spec.preferredNodeSelectors[%d].preference", i), &s.Preference)})
	}
	if !o.disabled {
		p.out.L2 = append(p.out.L2, ad)
	}
}

func (p *parser) bgp(a *v1beta1.BGPAdvertisement) {
	o := object{p: p, kind: "BGPAdvertisement", name: a.Name}
	s := &a.Spec
	ad := BGPAdvertisement{
		Name: a.Name, Weighted: s.Weighted,
		Length4: int(deref(s.AggregationLength, 32)), Length6: int(deref(s.AggregationLengthV6, 128)),
		Pools: o.names("spec.ipAddressPools", "IPAddressPool", ReasonPoolNotFound, s.IPAddressPools,
			o.selectors("spec.ipAddressPoolSelectors", s.IPAddressPoolSelectors), labelsOf(p.objects.Pools)),
		Peers: o.names("spec.peers", "BGPPeer", ReasonPeerNotFound, s.Peers,
			o.selectors("spec.peerSelectors", s.PeerSelectors), labelsOf(p.objects.BGPPeers)),
		Services: o.selectors("spec.serviceSelectors", s.ServiceSelectors),
		Nodes:    o.selectors("spec.nodeSelectors", s.NodeSelectors),
		Types:    map[v1beta1.AddressType]bool{},
		Attrs:    route.Attrs{Prepend: int(s.ASPathPrepend)},
	}
	for _, t := range s.AddressTypes {
		ad.Types[t] = true
	}
	for i, text := range s.ExternalIPRanges {
		p, err := netip.ParsePrefix(string(text))
		if err != nil {
			o.disable(ReasonInvalid, "spec.externalIPRanges[%d]: %q is not a CIDR", i, text)
			continue
		}
		ad.ExternalIPs = append(ad.ExternalIPs, p.Masked())
	}
	if len(ad.Types) == 0 {
		ad.Types[v1beta1.AddressLoadBalancerIP] = true
	}
	if l := s.LocalPref; l != nil {
		v := uint32(*l)
		ad.Attrs.LocalPref = &v
	}
	if m := s.MED; m != nil {
		v := uint32(*m)
		ad.Attrs.MED = &v
	}
	for i, c := range s.Communities {
		v, err := route.ParseCommunity(string(c), p.aliases)
		if err != nil {
			o.disable(ReasonUnknownName, "spec.communities[%d]: %v", i, err)
			continue
		}
		ad.Attrs = ad.Attrs.Merge(route.Attrs{Communities: []route.Community{v}})
	}
	if why := ad.wider(p.objects.Pools); why != "" {
		o.problem(ReasonAdvice, "spec.aggregationLength: %s", why)
	}
	if o.remembered(); !o.disabled {
		p.out.BGP = append(p.out.BGP, ad)
	}
}
