package members

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ParseProfile reads the name of a profile (fast, lan, wan), which single parameters may follow:
// "fast,probe-interval=500ms,suspicion-mult=3". The parameters are probe-interval, probe-timeout, gossip-interval,
// push-pull-interval, timeout and join-time, all durations of 1 ms to 1 h, and suspicion-mult, 1 to 20. The error names
// what is wrong.
func ParseProfile(s string) (Profile, error) {
	name, rest, _ := strings.Cut(s, ",")
	p, ok := map[string]Profile{"fast": Fast(), "lan": LAN(), "wan": WAN()}[name]
	if !ok {
		return Profile{}, fmt.Errorf("profile %q must be fast, lan or wan", name)
	}
	durations := map[string]*time.Duration{
		"probe-interval": &p.ProbeInterval, "probe-timeout": &p.ProbeTimeout, "gossip-interval": &p.GossipInterval,
		"push-pull-interval": &p.PushPullInterval, "timeout": &p.Timeout, "join-time": &p.JoinTime,
	}
	for _, kv := range strings.FieldsFunc(rest, func(r rune) bool { return r == ',' }) {
		key, value, _ := strings.Cut(kv, "=")
		if key == "suspicion-mult" {
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 || n > 20 {
				return Profile{}, fmt.Errorf("suspicion-mult %q must be a number between 1 and 20", value)
			}
			p.SuspicionMult = n
			continue
		}
		to := durations[key]
		if to == nil {
			return Profile{}, fmt.Errorf("there is no parameter %q", key)
		}
		d, err := time.ParseDuration(value)
		if err != nil || d < time.Millisecond || d > time.Hour {
			return Profile{}, fmt.Errorf("%s %q must be a duration between 1ms and 1h", key, value)
		}
		*to = d
	}
	if p.ProbeTimeout > p.ProbeInterval*2/5 {
		return Profile{}, errors.New("probe-timeout must be at most 0.4 of probe-interval, so that others have the time to check too")
	}
	return p, nil
}
