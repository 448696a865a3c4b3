package config

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/clarionlb/clarion/api/v1beta1"
)

func named[T metav1.Object](o T, name string) T { o.SetName(name); return o }

func ptr[T any](v T) *T { return &v }

func badSelector() []metav1.LabelSelector {
	return []metav1.LabelSelector{{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Sometimes"}}}}
}

// objects is a set in which every kind has a good object and a bad one, and every bad one is bad in its own way.
func objects() Objects {
	return Objects{
		Pools: []*v1beta1.IPAddressPool{named(&v1beta1.IPAddressPool{}, "lan")},
		L2Advertisements: []*v1beta1.L2Advertisement{
			named(&v1beta1.L2Advertisement{Spec: v1beta1.L2AdvertisementSpec{IPAddressPools: []string{"lan"}}}, "good"),
			named(&v1beta1.L2Advertisement{Spec: v1beta1.L2AdvertisementSpec{IPAddressPools: []string{"lan", "wan"}}}, "half"),
			named(&v1beta1.L2Advertisement{Spec: v1beta1.L2AdvertisementSpec{NodeSelectors: badSelector()}}, "bad"),
			named(&v1beta1.L2Advertisement{Spec: v1beta1.L2AdvertisementSpec{NodeSelectors: []metav1.LabelSelector{
				{MatchLabels: map[string]string{"a": "b"}}, {MatchLabels: map[string]string{"a": "b"}}}}}, "twice"),
		},
		BGPAdvertisements: []*v1beta1.BGPAdvertisement{
			named(&v1beta1.BGPAdvertisement{Spec: v1beta1.BGPAdvertisementSpec{Communities: []v1beta1.CommunityReference{"blue", "no-export", "64500:1"}}}, "good"),
			named(&v1beta1.BGPAdvertisement{Spec: v1beta1.BGPAdvertisementSpec{Communities: []v1beta1.CommunityReference{"red"}}}, "bad"),
			named(&v1beta1.BGPAdvertisement{Spec: v1beta1.BGPAdvertisementSpec{Peers: []string{"tor1", "tor9"}}}, "half"),
		},
		BGPPeers: []*v1beta1.BGPPeer{
			named(&v1beta1.BGPPeer{Spec: v1beta1.BGPPeerSpec{MyASN: 1, PeerASN: ptr(int64(2)), PeerAddress: "192.0.2.1", BFDProfile: "fast"}}, "tor1"),
			named(&v1beta1.BGPPeer{Spec: v1beta1.BGPPeerSpec{MyASN: 1, PeerASN: ptr(int64(2)), PeerAddress: "192.0.2.1", BFDProfile: "slow"}}, "nobfd"),
			named(&v1beta1.BGPPeer{Spec: v1beta1.BGPPeerSpec{MyASN: 1, PeerASN: ptr(int64(2)), PeerAddress: "2001:db8::1", BFDProfile: "echo"}}, "echo6"),
			named(&v1beta1.BGPPeer{Spec: v1beta1.BGPPeerSpec{MyASN: 1, PeerASN: ptr(int64(2)), PeerAddress: "router"}}, "bad"),
			named(&v1beta1.BGPPeer{Spec: v1beta1.BGPPeerSpec{MyASN: 1, PeerASN: ptr(int64(2)), PeerAddress: "192.0.2.3",
				HoldTime: &metav1.Duration{Duration: 9 * time.Second}, KeepaliveTime: &metav1.Duration{Duration: 4 * time.Second}}}, "tight"),
		},
		BFDProfiles: []*v1beta1.BFDProfile{
			named(&v1beta1.BFDProfile{Spec: v1beta1.BFDProfileSpec{TransmitInterval: ptr(int32(50))}}, "fast"),
			named(&v1beta1.BFDProfile{Spec: v1beta1.BFDProfileSpec{EchoMode: ptr(true)}}, "echo"),
		},
		Communities: []*v1beta1.Community{
			named(&v1beta1.Community{Spec: v1beta1.CommunitySpec{Communities: []v1beta1.CommunityAlias{{Name: "blue", Value: "large:1:2:3"}}}}, "a"),
			named(&v1beta1.Community{Spec: v1beta1.CommunitySpec{Communities: []v1beta1.CommunityAlias{{Name: "blue", Value: "1:2"}, {Name: "odd", Value: "1:x"}}}}, "b"),
		},
	}
}

// That speakers keep the last usable form is said of what disables an object, not of advice about it.
func TestAdviceOnADisabledObject(t *testing.T) {
	_, problems := Parse(Objects{BGPPeers: []*v1beta1.BGPPeer{
		named(&v1beta1.BGPPeer{Spec: v1beta1.BGPPeerSpec{MyASN: 1, PeerASN: ptr(int64(2)), PeerAddress: "router",
			HoldTime: &metav1.Duration{Duration: 9 * time.Second}, KeepaliveTime: &metav1.Duration{Duration: 4 * time.Second}}}, "both"),
	}})
	if len(problems) != 2 {
		t.Fatalf("problems: %+v", problems)
	}
	for _, p := range problems {
		if p.Disabled != strings.Contains(p.Message, "last usable form") {
			t.Errorf("disabled=%v: %s", p.Disabled, p.Message)
		}
	}
}

func TestOneBadObjectDisablesItselfOnly(t *testing.T) {
	cfg, problems := Parse(objects())
	var got strings.Builder
	for _, p := range problems {
		fmt.Fprintf(&got, "%s/%s %s disabled=%v: %s\n", p.Kind, p.Name, p.Reason, p.Disabled, p.Message)
	}
	want := `Community/b DuplicateCommunity disabled=false: spec.communities[0].name: "blue" is defined as large:1:2:3 by another Community object, which is used; remove one of them
Community/b Invalid disabled=false: spec.communities[1].value: community "1:x": "x" is not a number between 0 and 65535
BGPPeer/bad Invalid disabled=true: spec.peerAddress: "router" is not an IP address; speakers that knew its last usable form keep it until they restart
BGPPeer/echo6 Advice disabled=false: spec.bfdProfile: BFDProfile "echo" has echoMode, which only sessions over one hop of IPv4 have; this one runs without
BGPPeer/nobfd BFDProfileNotFound disabled=false: spec.bfdProfile: there is no BFDProfile "slow"; sessions run without BFD, or with the last one of the name, until there is
BGPPeer/tight Advice disabled=false: spec.keepaliveTime: 4s is more than a third of holdTime 9s, so that one lost keepalive could end the session; 3s is used
L2Advertisement/bad Invalid disabled=true: spec.nodeSelectors[0]: "Sometimes" is not a valid label selector operator
L2Advertisement/half PoolNotFound disabled=false: spec.ipAddressPools: there is no IPAddressPool "wan"; create it or correct the name
L2Advertisement/twice Advice disabled=false: spec.nodeSelectors[1]: it is the same as spec.nodeSelectors[0]; remove one of them
BGPAdvertisement/bad UnknownCommunity disabled=true: spec.communities[0]: community "red" is neither a well-known name nor defined by a Community object; speakers that knew its last usable form keep it until they restart
BGPAdvertisement/half PeerNotFound disabled=false: spec.peers: there is no BGPPeer "tor9"; create it or correct the name
`
	if got.String() != want {
		t.Errorf("problems:\n%s\nwant:\n%s", got.String(), want)
	}

	var used strings.Builder
	for _, a := range cfg.L2 {
		fmt.Fprintf(&used, "l2 %s\n", a.Name)
	}
	for _, a := range cfg.BGP {
		fmt.Fprintf(&used, "bgp %s %v\n", a.Name, a.Attrs.Communities)
	}
	for _, p := range cfg.Peers {
		fmt.Fprintf(&used, "peer %s bfd=%v\n", p.Name, p.BFD != nil)
	}
	if want := "l2 good\nl2 half\nl2 twice\nbgp good [64500:1 65535:65281 large:1:2:3]\nbgp half []\npeer echo6 bfd=true\npeer nobfd bfd=false\npeer tight bfd=false\npeer tor1 bfd=true\n"; used.String() != want {
		t.Errorf("used:\n%s\nwant:\n%s", used.String(), want)
	}
	if tor1 := cfg.Peers[3]; tor1.BFD.Transmit != 50*time.Millisecond || tor1.BFD.Receive != 300*time.Millisecond || tor1.Port != 179 || tor1.MaxPrefixes != 0 {
		t.Errorf("defaults: %+v, BFD %+v", tor1, tor1.BFD)
	}
}

func TestOrderOfObjectsDoesNotMatter(t *testing.T) {
	cfg, problems := Parse(objects())
	want := fmt.Sprintf("%+v %+v", cfg.BGP, problems)
	r := rand.New(rand.NewPCG(7, 8))
	for range 50 {
		o := objects()
		r.Shuffle(len(o.Communities), func(i, j int) { o.Communities[i], o.Communities[j] = o.Communities[j], o.Communities[i] })
		r.Shuffle(len(o.BGPAdvertisements), func(i, j int) {
			o.BGPAdvertisements[i], o.BGPAdvertisements[j] = o.BGPAdvertisements[j], o.BGPAdvertisements[i]
		})
		r.Shuffle(len(o.BGPPeers), func(i, j int) { o.BGPPeers[i], o.BGPPeers[j] = o.BGPPeers[j], o.BGPPeers[i] })
		cfg, problems := Parse(o)
		if got := fmt.Sprintf("%+v %+v", cfg.BGP, problems); got != want {
			t.Fatalf("got:\n%s\nwant:\n%s", got, want)
		}
	}
}

func TestSelectors(t *testing.T) {
	red, _ := labels.Parse("colour=red")
	blue, _ := labels.Parse("colour=blue")
	for _, tt := range []struct {
		s    Selectors
		l    labels.Set
		want bool
	}{
		{nil, nil, true},
		{nil, labels.Set{"colour": "red"}, true},
		{Selectors{red}, labels.Set{"colour": "red"}, true},
		{Selectors{red}, labels.Set{"colour": "blue"}, false},
		{Selectors{red}, nil, false},
		{Selectors{red, blue}, labels.Set{"colour": "blue"}, true},
	} {
		if got := tt.s.Match(tt.l); got != tt.want {
			t.Errorf("%v on %v: %v, want %v", tt.s, tt.l, got, tt.want)
		}
	}
}

// Advertisements that may meet on a prefix say so, and what the routes then carry; others do not.
func TestMeetings(t *testing.T) {
	ad := func(name string, edit func(*v1beta1.BGPAdvertisementSpec)) *v1beta1.BGPAdvertisement {
		a := named(&v1beta1.BGPAdvertisement{}, name)
		edit(&a.Spec)
		return a
	}
	cfg, _ := Parse(Objects{
		Pools:    []*v1beta1.IPAddressPool{named(&v1beta1.IPAddressPool{}, "lan"), named(&v1beta1.IPAddressPool{}, "wan")},
		BGPPeers: []*v1beta1.BGPPeer{named(&v1beta1.BGPPeer{}, "tor1"), named(&v1beta1.BGPPeer{}, "tor2")},
		BGPAdvertisements: []*v1beta1.BGPAdvertisement{
			ad("all", func(s *v1beta1.BGPAdvertisementSpec) {
				s.MED = ptr(int64(9))
				s.Communities = []v1beta1.CommunityReference{"1:1"}
			}),
			ad("lan", func(s *v1beta1.BGPAdvertisementSpec) { s.IPAddressPools = []string{"lan"}; s.MED = ptr(int64(5)) }),
			ad("wan-tor2", func(s *v1beta1.BGPAdvertisementSpec) {
				s.IPAddressPools, s.Peers, s.MED = []string{"wan"}, []string{"tor2"}, ptr(int64(9))
				s.Communities, s.Weighted = []v1beta1.CommunityReference{"1:1"}, true
			}),
			ad("summary", func(s *v1beta1.BGPAdvertisementSpec) {
				s.AggregationLength, s.AggregationLengthV6 = ptr(int32(24)), ptr(int32(64))
			}),
			ad("range", func(s *v1beta1.BGPAdvertisementSpec) {
				s.AddressTypes = []v1beta1.AddressType{v1beta1.AddressServiceCIDR}
			}),
		},
	})
	got := cfg.Meetings([]string{"lan", "wan"}, []string{"tor1", "tor2"})
	want := map[string][]string{
		"all": {
			`BGPAdvertisement "lan" announces the same prefixes to the same peers with other attributes: the routes carry the communities of both [1:1], the lowest MED 5`,
			`BGPAdvertisement "wan-tor2" announces the same prefixes to the same peers, and only one of the two is weighted: routers ignore weights when a path has none`,
		},
		"lan":      {`BGPAdvertisement "all" announces the same prefixes to the same peers with other attributes: the routes carry the communities of both [1:1], the lowest MED 5`},
		"wan-tor2": {`BGPAdvertisement "all" announces the same prefixes to the same peers, and only one of the two is weighted: routers ignore weights when a path has none`},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got:\n%v\nwant:\n%v", got, want)
	}
}

// Two BGPPeers for different nodes may be one router, which gets the prefix with and without a weight then.
func TestWeightsMeetAtARouter(t *testing.T) {
	at := func(name, address string) *v1beta1.BGPPeer {
		p := named(&v1beta1.BGPPeer{}, name)
		p.Spec = v1beta1.BGPPeerSpec{MyASN: 64500, PeerASN: ptr(int64(64512)), PeerAddress: address}
		return p
	}
	ad := func(name, peer string, weighted bool) *v1beta1.BGPAdvertisement {
		a := named(&v1beta1.BGPAdvertisement{}, name)
		a.Spec.Peers, a.Spec.Weighted = []string{peer}, weighted
		return a
	}
	cfg, problems := Parse(Objects{
		Pools:             []*v1beta1.IPAddressPool{named(&v1beta1.IPAddressPool{}, "lan")},
		BGPPeers:          []*v1beta1.BGPPeer{at("rack1", "192.0.2.1"), at("rack2", "192.0.2.1"), at("spine", "192.0.2.2")},
		BGPAdvertisements: []*v1beta1.BGPAdvertisement{ad("a", "rack1", true), ad("b", "rack2", false), ad("c", "spine", true)},
	})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	got := cfg.Meetings([]string{"lan"}, []string{"rack1", "rack2", "spine"})
	const text = "announces the same prefixes to the same router by another BGPPeer, and only one of the two is weighted: routers ignore weights when a path has none"
	want := map[string][]string{"a": {`BGPAdvertisement "b" ` + text}, "b": {`BGPAdvertisement "a" ` + text}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got:\n%v\nwant:\n%v", got, want)
	}
}

// What MetalLB takes for unset is unset.
func TestPeerLikeMetalLBs(t *testing.T) {
	d := func(s float64) *metav1.Duration {
		return &metav1.Duration{Duration: time.Duration(s * float64(time.Second))}
	}
	zero := int64(0)
	base := v1beta1.BGPPeerSpec{MyASN: 64500, PeerASN: &zero, DynamicASN: "external", PeerAddress: "192.0.2.1",
		HoldTime: d(0), KeepaliveTime: d(0), ConnectTime: d(0), PasswordSecret: &v1beta1.SecretReference{}}
	parse := func(edit func(*v1beta1.BGPPeerSpec)) Peer {
		p := &v1beta1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: base}
		edit(&p.Spec)
		cfg, problems := Parse(Objects{BGPPeers: []*v1beta1.BGPPeer{p}})
		if len(problems) > 0 || len(cfg.Peers) != 1 {
			t.Fatalf("problems %+v", problems)
		}
		return cfg.Peers[0]
	}
	if p := parse(func(*v1beta1.BGPPeerSpec) {}); p.HoldTime != nil || p.Keepalive != nil || p.ConnectTime != nil || p.SecretName != "" || p.PeerASN != 0 {
		t.Errorf("zeros: %+v", p)
	}
	if p := parse(func(s *v1beta1.BGPPeerSpec) { s.KeepaliveTime = d(20) }); *p.HoldTime != time.Minute || *p.Keepalive != 20*time.Second {
		t.Errorf("keepaliveTime alone: hold time %s, keepalive time %s", *p.HoldTime, *p.Keepalive)
	}
}

// A profile that is gone for a moment stays in use; one that is no longer named does not.
func TestProfileIsKept(t *testing.T) {
	peer := &v1beta1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: v1beta1.BGPPeerSpec{MyASN: 64500, PeerAddress: "192.0.2.1", BFDProfile: "fast"}}
	o := Objects{BGPPeers: []*v1beta1.BGPPeer{peer}, BFDProfiles: []*v1beta1.BFDProfile{{ObjectMeta: metav1.ObjectMeta{Name: "fast"}}}}
	first, _ := Parse(o)
	o.BFDProfiles = nil
	second, problems := Parse(o)
	second.Keep(first, problems)
	if second.Peers[0].BFD == nil || second.Peers[0].BFD != first.Peers[0].BFD {
		t.Errorf("without the profile: %+v", second.Peers[0].BFD)
	}
	peer.Spec.BFDProfile = ""
	third, problems := Parse(o)
	if third.Keep(second, problems); third.Peers[0].BFD != nil {
		t.Errorf("not named any more: %+v", third.Peers[0].BFD)
	}
}
