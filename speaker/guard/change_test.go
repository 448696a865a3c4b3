package guard

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
)

// Of ten thousand prefixes and one more, the log names the one.
func TestTheLogNamesTheDifference(t *testing.T) {
	var old, now Status
	for i := range 10000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32)
		old.Prefixes = append(old.Prefixes, p)
	}
	now.Prefixes = append(old.Prefixes[1:len(old.Prefixes):len(old.Prefixes)], netip.MustParsePrefix("203.0.113.1/32"))
	for _, tt := range []struct {
		what     string
		from, to Status
		want     string
	}{
		{"one came and one went", old, now, "prefixes=10000 added=[203.0.113.1/32] removed=[198.18.0.0/32]"},
		{"all came", Status{}, old, `prefixes=10000 added="[198.18.0.0/32 198.18.0.1/32 198.18.0.2/32 198.18.0.3/32 198.18.0.4/32]" "added beside"=9995`},
		{"an interface went", Status{old.Prefixes, []string{"eth0", "eth1"}, nil}, Status{old.Prefixes, []string{"eth0"}, nil}, `prefixes=10000 interfaces=[eth0] "interfaces before"="[eth0 eth1]"`},
	} {
		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", difference(tt.from, tt.to)...)
		if got := strings.TrimSpace(out.String()); !strings.HasSuffix(got, "msg=x "+tt.want) {
			t.Errorf("%s: logged %s, want %s", tt.what, got, tt.want)
		}
	}
}

// A guard that is run again guards what it was told before.
func TestRunAgain(t *testing.T) {
	ns := newNode(t)
	g, stop := ns.start(t)
	g.set(t, "eth0", both)
	stop()
	if got := ns.guarded(t); got != "" {
		t.Fatalf("after the first run the kernel has\n%s", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ns.Enter(func() error { return g.Run(ctx) }) }()
	g.set(t, "eth0", both)
	if got := ns.guarded(t); got != everything {
		t.Errorf("the kernel has\n%s\nwant\n%s", got, everything)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}
