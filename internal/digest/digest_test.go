package digest

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// The digest of a set is what it is whatever the way to it, and that of another set is another.
func TestSets(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	space := netip.MustParsePrefix("192.0.2.0/26")
	var addrs []netip.Addr
	for a := space.Addr(); space.Contains(a); a = a.Next() {
		addrs = append(addrs, a)
	}
	bySum := map[Sum]uint64{} // the set as bits
	var walked Sum
	var set uint64
	for range 20000 {
		i := r.IntN(len(addrs))
		if set ^= 1 << i; set&(1<<i) != 0 {
			walked += Address(addrs[i])
		} else {
			walked -= Address(addrs[i])
		}
		var whole Sum
		for _, i := range r.Perm(len(addrs)) {
			if set&(1<<i) != 0 {
				whole += Address(addrs[i])
			}
		}
		if whole != walked {
			t.Fatalf("the set %b is %s at once and %s by steps", set, whole, walked)
		}
		if other, ok := bySum[whole]; ok && other != set {
			t.Fatalf("the sets %b and %b are both %s", set, other, whole)
		}
		bySum[whole] = set
	}
}

// Releases that differ compare digests: these never change.
func TestFixed(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		what string
		got  Sum
		want string
	}{
		{"empty", 0, "0000000000000000"},
		{"IPv4", Address(v4), "4b8feb9364512928"},
		{"IPv4 in IPv6", Address(netip.MustParseAddr("::ffff:192.0.2.1")), "4b8feb9364512928"},
		{"IPv6", Address(v6), "1e03d7e1ca9db508"},
	} {
		if tt.got.String() != tt.want {
			t.Errorf("%s: %s, want %s", tt.what, tt.got, tt.want)
		}
	}
}

func TestParse(t *testing.T) {
	for _, s := range []Sum{0, 1, 1 << 63, ^Sum(0)} {
		if got, err := Parse(s.String()); err != nil || got != s {
			t.Errorf("%s is read as %s, %v", s, got, err)
		}
	}
	for _, text := range []string{"", "1", "00000000000000000", "000000000000000g", "+00000000000000f"} {
		if s, err := Parse(text); err == nil {
			t.Errorf("%q is read as %s", text, s)
		}
	}
}
