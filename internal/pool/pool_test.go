package pool

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/api/v1beta1"
)

func TestParseRange(t *testing.T) {
	for _, tt := range []struct {
		in, want, err string
		size          int64
	}{
		{in: "203.0.113.0/24", want: "203.0.113.0-203.0.113.255", size: 256},
		{in: "203.0.113.7", want: "203.0.113.7", size: 1},
		{in: "203.0.113.7/32", want: "203.0.113.7", size: 1},
		{in: "203.0.113.10-203.0.113.20", want: "203.0.113.10-203.0.113.20", size: 11},
		{in: " 203.0.113.10 - 203.0.113.20 ", want: "203.0.113.10-203.0.113.20", size: 11},
		{in: "128.0.0.0/2", err: "has 169.254.0.0-169.254.255.255, which is link-local"},
		{in: "64.0.0.0/3", want: "64.0.0.0-95.255.255.255", size: 1 << 29},
		{in: "2001:db8::/127", want: "2001:db8::-2001:db8::1", size: 2},
		{in: "2001:db8::/66", want: "2001:db8::-2001:db8::3fff:ffff:ffff:ffff", size: 1 << 62},
		{in: "2001:db8::/65", want: "2001:db8::-2001:db8::7fff:ffff:ffff:ffff", size: math.MaxInt64},
		{in: "2000::/3", want: "2000::-3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", size: math.MaxInt64},
		{in: "2001:db8::ffff-2001:db8::1:0", want: "2001:db8::ffff-2001:db8::1:0", size: 2},
		{in: "203.0.113.20-203.0.113.10", err: "starts after its end: write 203.0.113.10-203.0.113.20"},
		{in: "192.168.1.1-fc00::1", err: "mixes IPv4 and IPv6"},
		{in: "203.0.113.1/24", want: "203.0.113.0-203.0.113.255", size: 256},
		{in: "203.0.113.1/33", err: "is not a CIDR"},
		{in: "::ffff:203.0.113.0/120", err: "is an IPv4-mapped IPv6 prefix"},
		{in: "::ffff:203.0.113.1", err: "write 203.0.113.1"},
		{in: "fe80::1%eth0", err: "write fe80::1"},
		{in: "203.0.113.1-", err: `"" is not an IP address`},
		{in: "203.0.113.1-203.0.113.2-203.0.113.3", err: "is not an IP address"},
		{in: "", err: "is not an IP address"},
		{in: "0.0.0.0/0", err: "has 0.0.0.0, which is unspecified"},
		{in: "0.0.0.0", err: `"0.0.0.0" is unspecified`},
		{in: "126.0.0.0/7", err: "has 127.0.0.0-127.255.255.255, which is loopback"},
		{in: "127.0.0.1", err: "is loopback"},
		{in: "169.254.7.0/24", err: `"169.254.7.0/24" is link-local`},
		{in: "224.0.0.0/24", err: "is multicast"},
		{in: "200.0.0.0-250.0.0.0", err: "has 224.0.0.0-239.255.255.255, which is multicast"},
		{in: "255.255.255.254/31", err: "has 255.255.255.255, which is broadcast"},
		{in: "::/0", err: "has ::, which is unspecified"},
		{in: "::-::1", err: "is unspecified"},
		{in: "::1", err: "is loopback"},
		{in: "fe80::/64", err: "is link-local"},
		{in: "fe00::-fec0::", err: "has fe80::-febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff, which is link-local"},
		{in: "ff02::/16", err: "is multicast"},
		{in: "203.0.113", err: "is not an IP address"},
	} {
		r, err := ParseRange(tt.in)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%q: error %v, want %q", tt.in, err, tt.err)
			}
			continue
		}
		if err != nil || r.String() != tt.want || r.Size() != tt.size {
			t.Errorf("%q: got %v with %d addresses, %v; want %s with %d", tt.in, r, r.Size(), err, tt.want, tt.size)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"203.0.113.0/24", "203.0.113.1-203.0.113.9", "2001:db8::/64", "::ffff:1.2.3.4-::ffff:1.2.3.5", "-", "1.2.3.4/", "::-::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRange(s)
		if err != nil {
			return
		}
		if r.Last.Less(r.First) || r.First.BitLen() != r.Last.BitLen() || r.First.Is4In6() || r.First.Zone() != "" || r.Size() < 1 {
			t.Fatalf("%q is read as %v with %d addresses", s, r, r.Size())
		}
		if !r.Contains(r.First) || !r.Contains(r.Last) || r.Contains(r.First.Prev()) || r.Contains(r.Last.Next()) {
			t.Fatalf("%q: %v does not have just its addresses", s, r)
		}
		if again, err := ParseRange(r.String()); err != nil || again != r {
			t.Fatalf("%q: %v is read back as %v, %v", s, r, again, err)
		}
	})
}

// TestRanges compares the operations on ranges with the same on sets of single addresses, both families and their ends
// included.
func TestRanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	base := []netip.Addr{netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.240"), netip.MustParseAddr("2001:db8::fff8"),
		netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0")}
	var universe []netip.Addr
	for _, a := range base {
		for range 16 {
			universe = append(universe, a)
			a = a.Next()
		}
	}
	random := func() (Ranges, map[netip.Addr]bool) {
		var rs []Range
		set := map[netip.Addr]bool{}
		for range rng.IntN(6) {
			block := rng.IntN(len(base)) * 16
			i, j := rng.IntN(16), rng.IntN(16)
			for k := min(i, j); k <= max(i, j); k++ {
				set[universe[block+k]] = true
			}
			rs = append(rs, Range{universe[block+min(i, j)], universe[block+max(i, j)]})
		}
		return Union(rs...), set
	}
	check := func(what string, got Ranges, want func(netip.Addr) bool) {
		t.Helper()
		size := int64(0)
		for _, a := range universe {
			if got.Contains(a) != want(a) {
				t.Fatalf("%s = %v: contains %s: %v", what, got, a, got.Contains(a))
			}
			if want(a) {
				size++
			}
		}
		if got.Size(IPv4)+got.Size(IPv6) != size {
			t.Fatalf("%s = %v: has %d + %d addresses, want %d", what, got, got.Size(IPv4), got.Size(IPv6), size)
		}
		for i := range got {
			if got[i].Last.Less(got[i].First) || i > 0 && touches(got[i-1], got[i]) {
				t.Fatalf("%s = %v is not in canonical form", what, got)
			}
		}
	}
	for range 20000 {
		a, inA := random()
		b, inB := random()
		check("union", Union(slices.Concat(a, b)...), func(x netip.Addr) bool { return inA[x] || inB[x] })
		check("overlap", a.Overlap(b), func(x netip.Addr) bool { return inA[x] && inB[x] })
		check("minus", a.Minus(b), func(x netip.Addr) bool { return inA[x] && !inB[x] })
	}
}

func object(name string, age int, spec v1beta1.IPAddressPoolSpec) *v1beta1.IPAddressPool {
	p := &v1beta1.IPAddressPool{Spec: spec}
	p.Name = name
	p.CreationTimestamp = metav1.NewTime(time.Unix(int64(1000-age), 0))
	return p
}

func TestParse(t *testing.T) {
	p, err := Parse(object("full", 0, v1beta1.IPAddressPoolSpec{
		Addresses:        []v1beta1.AddressRange{"203.0.113.128/25", "203.0.113.0/25", "2001:db8::1"},
		ExcludeAddresses: []v1beta1.AddressRange{"203.0.113.1-203.0.113.9", "198.51.100.0/24"},
		Reservations:     []v1beta1.Reservation{{Address: "203.0.113.77", Namespace: "ns", Name: "svc"}},
		AutoAssign:       new(false),
		AvoidBuggyIPs:    true,
		OnShrink:         v1beta1.ShrinkReallocate,
		ReuseDelay:       &metav1.Duration{Duration: time.Hour},
		Sharing:          &v1beta1.Sharing{CrossNamespace: true},
		ServiceAllocation: &v1beta1.ServiceAllocation{
			Priority:           5,
			Namespaces:         []string{"b", "a"},
			NamespaceSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"team": "red"}}},
			ServiceSelectors:   []metav1.LabelSelector{{MatchLabels: map[string]string{"tier": "gold"}}},
		},
	}))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Written.String(); got != "203.0.113.0-203.0.113.255, 2001:db8::1" {
		t.Errorf("written %s", got)
	}
	if got := p.Addresses.String(); got != "203.0.113.0, 203.0.113.10-203.0.113.255, 2001:db8::1" {
		t.Errorf("addresses %s", got)
	}
	if p.AutoAssign || p.Priority != 5 || p.OnShrink != v1beta1.ShrinkReallocate || p.ReuseDelay != time.Hour || !p.CrossNamespace ||
		p.Reserved[netip.MustParseAddr("203.0.113.77")] != (types.NamespacedName{Namespace: "ns", Name: "svc"}) {
		t.Errorf("read as %+v", p)
	}
	for addr, want := range map[string]bool{"203.0.113.0": false, "203.0.113.5": false, "203.0.113.10": true, "203.0.113.255": false, "2001:db8::1": true, "192.0.2.1": false} {
		if got := p.Gives(netip.MustParseAddr(addr)); got != want {
			t.Errorf("gives %s: %v", addr, got)
		}
	}
	if p.Capacity(IPv4) != 245 || p.Capacity(IPv6) != 1 {
		t.Errorf("capacity %d and %d, want 245 and 1", p.Capacity(IPv4), p.Capacity(IPv6))
	}
	for _, tt := range []struct {
		ns       string
		nsLabels labels.Set
		svc      labels.Set
		want     string
	}{
		{"a", nil, labels.Set{"tier": "gold"}, ""},
		{"c", labels.Set{"team": "red"}, labels.Set{"tier": "gold"}, ""},
		{"c", labels.Set{"team": "blue"}, labels.Set{"tier": "gold"}, "does not admit namespace c"},
		{"a", nil, nil, "does not admit the Service's labels"},
	} {
		if ok, why := p.Admits(tt.ns, tt.nsLabels, tt.svc); ok != (tt.want == "") || why != tt.want {
			t.Errorf("%v: %v %q", tt, ok, why)
		}
	}

	p, err = Parse(object("plain", 0, v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.0/24"}}))
	if err != nil || !p.AutoAssign || p.Priority != math.MaxInt || p.OnShrink != v1beta1.ShrinkKeep || p.ReuseDelay != DefaultReuseDelay {
		t.Errorf("defaults: %+v, %v", p, err)
	}
}

// TestParseWrong: everything that is wrong is named, and what can be read is kept but not given out.
func TestParseWrong(t *testing.T) {
	p, err := Parse(object("wrong", 0, v1beta1.IPAddressPoolSpec{
		Addresses:        []v1beta1.AddressRange{"203.0.113.0/24", "203.0.113.9-203.0.113.1"},
		ExcludeAddresses: []v1beta1.AddressRange{"nonsense"},
		Reservations: []v1beta1.Reservation{
			{Address: "x", Namespace: "ns", Name: "svc"},
			{Address: "192.0.2.1", Namespace: "ns", Name: "svc"},
			{Address: "203.0.113.1", Namespace: "ns", Name: "svc"},
			{Address: "203.0.113.1", Namespace: "ns", Name: "other"},
			{Address: "203.0.113.2"},
		},
		OnShrink:   "Panic",
		ReuseDelay: &metav1.Duration{Duration: -1},
		ServiceAllocation: &v1beta1.ServiceAllocation{
			Priority:         -1,
			ServiceSelectors: []metav1.LabelSelector{{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}}},
		},
	}))
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"spec.addresses[1]: ", "spec.excludeAddresses[0]: ", "spec.reservations[0].address: ", "spec.reservations[1].address: 192.0.2.1 is not in spec.addresses",
		"spec.reservations[3].address: 203.0.113.1 is already reserved for ns/svc", "spec.reservations[4]: ", "spec.onShrink: ", "spec.reuseDelay: ",
		"spec.serviceAllocation.priority: ", "spec.serviceAllocation.serviceSelectors[0]: ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	a := netip.MustParseAddr("203.0.113.5")
	if p.Err == nil || p.Gives(a) || p.Capacity(IPv4) != 0 {
		t.Error("a pool that is wrong gives addresses")
	}
	if NewSet(p).Find(a).Name != "wrong" {
		t.Error("a pool that is wrong lost an address that it has")
	}
	if _, err := Parse(object("empty", 0, v1beta1.IPAddressPoolSpec{})); err == nil {
		t.Error("a pool without addresses is right")
	}
}

// TestSet: overlaps belong to the oldest, in whatever order the pools come.
func TestSet(t *testing.T) {
	var pools []*Pool
	for _, o := range []*v1beta1.IPAddressPool{
		object("old", 9, v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.0/28"}, ExcludeAddresses: []v1beta1.AddressRange{"203.0.113.3"}}),
		object("mid", 5, v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.8-203.0.113.31"}, ServiceAllocation: &v1beta1.ServiceAllocation{Priority: 7}}),
		object("a-young", 1, v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.0/26"}, ServiceAllocation: &v1beta1.ServiceAllocation{Priority: 2}}),
		object("b-young", 1, v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.63-203.0.113.64", "2001:db8::/64"},
			Reservations: []v1beta1.Reservation{{Address: "2001:db8::9", Namespace: "ns", Name: "svc"}, {Address: "203.0.113.63", Namespace: "ns", Name: "svc"}, {Address: "2001:db8::1", Namespace: "ns", Name: "svc"}}}),
	} {
		p, err := Parse(o)
		if err != nil {
			t.Fatal(err)
		}
		pools = append(pools, p)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		rng.Shuffle(len(pools), func(i, j int) { pools[i], pools[j] = pools[j], pools[i] })
		s := NewSet(pools...)
		for addr, want := range map[string]string{
			"203.0.113.0": "old", "203.0.113.3": "a-young", "203.0.113.15": "old", "203.0.113.16": "mid", "203.0.113.31": "mid",
			"203.0.113.32": "a-young", "203.0.113.63": "a-young", "203.0.113.64": "b-young", "2001:db8::7": "b-young",
			"203.0.113.65": "", "2001:db8:0:1::": "", "203.0.112.255": "",
		} {
			got := ""
			if p := s.Find(netip.MustParseAddr(addr)); p != nil {
				got = p.Name
			}
			if got != want {
				t.Fatalf("%s is in pool %q, want %q", addr, got, want)
			}
		}
		conflicts := fmt.Sprint(s.Conflicts("old"), s.Conflicts("mid"), s.Conflicts("a-young"), s.Conflicts("b-young"))
		want := "[] [{old 203.0.113.8-203.0.113.15}] [{old 203.0.113.0-203.0.113.2, 203.0.113.4-203.0.113.15} {mid 203.0.113.16-203.0.113.31}] [{a-young 203.0.113.63}]"
		if conflicts != want {
			t.Fatalf("conflicts\n%s, want\n%s", conflicts, want)
		}
		var order []string
		for _, p := range s.Preferred() {
			order = append(order, p.Name)
		}
		if got := strings.Join(order, " "); got != "a-young mid b-young old" {
			t.Fatalf("order is %s", got)
		}
		reserved := s.Reserved(types.NamespacedName{Namespace: "ns", Name: "svc"})
		if got := fmt.Sprint(reserved); got != "[2001:db8::1 2001:db8::9]" {
			t.Fatalf("reserved: %s", got)
		}
		if w := s.Writes(netip.MustParseAddr("203.0.113.3")); w.Name != "old" {
			t.Fatalf("203.0.113.3 is first written by %s", w.Name)
		}
	}
}

// TestPreferred: pools are tried in MetalLB's order.
func TestPreferred(t *testing.T) {
	var pools []*Pool
	for name, a := range map[string]*v1beta1.ServiceAllocation{
		"a-plain": nil, "b-plain": nil, "x-any": {}, "y-second": {Priority: 2}, "z-first": {Priority: 1}, "w-any": {},
	} {
		p, err := Parse(object(name, 1, v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.0/24"}, ServiceAllocation: a}))
		if err != nil {
			t.Fatal(err)
		}
		pools = append(pools, p)
	}
	var order []string
	for _, p := range NewSet(pools...).Preferred() {
		order = append(order, p.Name)
	}
	if got := strings.Join(order, " "); got != "z-first y-second w-any x-any a-plain b-plain" {
		t.Errorf("order is %s", got)
	}
}

// TestHostBits: a CIDR with host bits is its network, with advice.
func TestHostBits(t *testing.T) {
	p, err := Parse(object("lan", 1, v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"192.168.10.100/24", "2001:db8::/64"}}))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(p.Addresses, " ", p.Advice); got != `192.168.10.0-192.168.10.255, 2001:db8::-2001:db8::ffff:ffff:ffff:ffff [spec.addresses[0]: "192.168.10.100/24" is taken as its network: write 192.168.10.0/24]` {
		t.Error(got)
	}
}

// TestOf: an address that a pool excludes, or keeps by its status, is the pool's.
func TestOf(t *testing.T) {
	o := object("lan", 1, v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.0/30"}, ExcludeAddresses: []v1beta1.AddressRange{"203.0.113.1"}})
	o.Status.Kept = []string{"198.51.100.9", "198.51.100.7"}
	p, err := Parse(o)
	if err != nil {
		t.Fatal(err)
	}
	s := NewSet(p)
	for a, want := range map[string]bool{"203.0.113.0": true, "203.0.113.1": true, "198.51.100.7": true, "198.51.100.9": true, "198.51.100.8": false} {
		if got := s.Of(netip.MustParseAddr(a)) != nil; got != want {
			t.Errorf("%s is in the pool: %t, want %t", a, got, want)
		}
	}
}

// TestSetBeside: what the cluster has itself is in no pool, whichever pools name it.
func TestSetBeside(t *testing.T) {
	var pools []*Pool
	for _, o := range []*v1beta1.IPAddressPool{
		object("old", 9, v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.0/29"}, ExcludeAddresses: []v1beta1.AddressRange{"203.0.113.3"},
			Reservations: []v1beta1.Reservation{{Address: "203.0.113.2", Namespace: "ns", Name: "svc"}}}),
		object("young", 1, v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.2", "2001:db8::/64"}}),
	} {
		p, err := Parse(o)
		if err != nil {
			t.Fatal(err)
		}
		pools = append(pools, p)
	}
	addr := netip.MustParseAddr
	s := NewSetBeside([]Use{
		{"Node", "node a", Ranges{FromAddr(addr("203.0.113.2"))}}, {"Node", "node b", Ranges{FromAddr(addr("192.0.2.1"))}},
		{"CIDR", "range c", Ranges{FromPrefix(netip.MustParsePrefix("203.0.113.4/30"))}},
	}, pools...)
	if got := fmt.Sprint(s.Pool("old").Addresses, "; ", s.Pool("young").Addresses); got != "203.0.113.0-203.0.113.1; 2001:db8::-2001:db8::ffff:ffff:ffff:ffff" {
		t.Errorf("addresses are %s", got)
	}
	if got := fmt.Sprint(s.Uses("old"), s.Uses("young"), s.Conflicts("young")); got != "[{Node node a 203.0.113.2} {CIDR range c 203.0.113.4-203.0.113.7}] [{Node node a 203.0.113.2}] []" {
		t.Errorf("uses are %s", got)
	}
	if got := s.Reserved(types.NamespacedName{Namespace: "ns", Name: "svc"}); len(got) > 0 {
		t.Errorf("%v is held", got)
	}
	for a, want := range map[string]string{
		"203.0.113.2": "the cluster itself has it: node a", "203.0.113.7": "the cluster itself has it: range c",
		"203.0.113.3": "pool old excludes it", "192.0.2.1": "it is in no pool",
	} {
		why, has := s.WhyNot(addr(a))
		if has != nil {
			why += ": " + has.By
		}
		if why != want {
			t.Errorf("%s: %s, want %s", a, why, want)
		}
	}
}

func BenchmarkFind(b *testing.B) {
	var pools []*Pool
	for i := range 1000 {
		p, err := Parse(object(fmt.Sprint("p", i), i, v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{v1beta1.AddressRange(fmt.Sprintf("198.18.%d.%d/30", i/64, i%64*4))}}))
		if err != nil {
			b.Fatal(err)
		}
		pools = append(pools, p)
	}
	s := NewSet(pools...)
	a := netip.MustParseAddr("198.18.9.77")
	b.ReportAllocs()
	for b.Loop() {
		if s.Find(a) == nil {
			b.Fatal("not found")
		}
	}
}
