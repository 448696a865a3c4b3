package members

import (
	"strings"
	"testing"
	"time"
)

func TestParseProfile(t *testing.T) {
	slow := LAN()
	slow.ProbeInterval, slow.SuspicionMult = 3*time.Second, 5
	for _, tt := range []struct {
		in   string
		want Profile
		err  string
	}{
		{in: "fast", want: Fast()},
		{in: "wan", want: WAN()},
		{in: "lan,probe-interval=3s,suspicion-mult=5", want: slow},
		{in: "quick", err: `"quick" must be fast, lan or wan`},
		{in: "", err: "must be fast, lan or wan"},
		{in: "lan,speed=9", err: `no parameter "speed"`},
		{in: "lan,timeout=9", err: `timeout "9" must be a duration`},
		{in: "lan,timeout=2h", err: "between 1ms and 1h"},
		{in: "lan,suspicion-mult=0", err: "between 1 and 20"},
		{in: "fast,probe-timeout=150ms", err: "at most 0.4 of probe-interval"},
	} {
		got, err := ParseProfile(tt.in)
		if tt.err == "" && (err != nil || got != tt.want) || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%q: %+v, %v; want %+v, %q", tt.in, got, err, tt.want, tt.err)
		}
	}
}
