package route

import (
	"math/rand/v2"
	"strings"
	"testing"
)

func TestParseCommunity(t *testing.T) {
	aliases := map[string]Community{"blue": {A: 65000, B: 7}}
	for _, tt := range []struct {
		in, want, err string
	}{
		{in: "65000:100", want: "65000:100"},
		{in: "0:0", want: "0:0"},
		{in: "large:4200000000:1:2", want: "large:4200000000:1:2"},
		{in: "no-export", want: "65535:65281"},
		{in: "graceful-shutdown", want: "65535:0"},
		{in: "blue", want: "65000:7"},
		{in: "red", err: `community "red" is neither a well-known name nor defined by a Community object`},
		{in: "65536:1", err: `"65536" is not a number between 0 and 65535`},
		{in: "large:1:2:4294967296", err: `"4294967296" is not a number between 0 and 4294967295`},
		{in: "large:1:2", err: "must be N:N or large:N:N:N"},
		{in: "1:2:3", err: "must be N:N or large:N:N:N"},
		{in: "1:-2", err: "is not a number"},
		{in: "", err: "neither a well-known name"},
	} {
		c, err := ParseCommunity(tt.in, aliases)
		switch {
		case tt.err == "" && err != nil, tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%q: error %v, want %q", tt.in, err, tt.err)
		case tt.err == "" && c.String() != tt.want:
			t.Errorf("%q: got %s, want %s", tt.in, c, tt.want)
		}
	}
}

func FuzzParseCommunity(f *testing.F) {
	for _, s := range []string{"65000:100", "large:1:2:3", "no-export", "::", "large:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCommunity(s, nil)
		if err != nil {
			return
		}
		if d, err := ParseCommunity(c.String(), nil); err != nil || d != c {
			t.Errorf("%q is %s, which reads as %v, %v", s, c, d, err)
		}
	})
}

// The order in which advertisements meet on a prefix must not matter, and meeting twice must change nothing.
func TestMergeIsAnOrderIndependentRule(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	num := func() *uint32 {
		if r.IntN(3) == 0 {
			return nil
		}
		v := r.Uint32N(4)
		return &v
	}
	attrs := func() Attrs {
		var a Attrs
		for range r.IntN(4) {
			a = a.Merge(Attrs{Communities: []Community{{Large: r.IntN(2) == 0, A: r.Uint32N(3), B: r.Uint32N(2)}}})
		}
		a.LocalPref, a.MED, a.Prepend, a.Bandwidth = num(), num(), r.IntN(3), float32(r.IntN(3))
		return a
	}
	for range 2000 {
		a, b, c := attrs(), attrs(), attrs()
		if !a.Merge(b).Equal(b.Merge(a)) || !a.Merge(b).Merge(c).Equal(a.Merge(b.Merge(c))) || !a.Merge(a).Equal(a) {
			t.Fatalf("merge depends on order:\n%+v\n%+v\n%+v", a, b, c)
		}
		if d := a.Merge(b); (string(a.AppendKey(nil)) == string(d.AppendKey(nil))) != a.Equal(d) {
			t.Fatalf("keys differ unlike\n%+v\n%+v", a, d)
		}
	}
	low, high := uint32(1), uint32(9)
	got := Attrs{LocalPref: &low, MED: &low, Prepend: 1}.Merge(Attrs{LocalPref: &high, MED: &high, Prepend: 3})
	if *got.LocalPref != 9 || *got.MED != 1 || got.Prepend != 3 {
		t.Errorf("got %+v, want the highest local preference, the lowest MED, the longest prepend", got)
	}
}
