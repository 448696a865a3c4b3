package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/speaker/guard"
)

// The condition Guarded says whether packets may go round, which call the kernel refused, and what to do.
func TestGuardedCondition(t *testing.T) {
	eth := []string{"eth0", "wg0"}
	refused := func(err error) guard.Status {
		return guard.Status{Err: fmt.Errorf("guard: %w", errors.Join(fmt.Errorf("add an IPv4 rule for eth0: %w", err), errors.New("second"), errors.New("third")))}
	}
	guarded := guard.Status{Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}, Interfaces: eth}
	for _, c := range []struct {
		what    string
		on      bool
		outside []string
		status  guard.Status
		want    metav1.ConditionStatus
		reason  string
		says    []string
	}{
		{"guarded", true, eth, guarded, metav1.ConditionTrue, "Guarded", []string{"eth0, wg0"}},
		{"nothing is announced", true, eth, guard.Status{}, metav1.ConditionTrue, "Guarded", nil},
		{"at the start", true, nil, guard.Status{}, metav1.ConditionUnknown, "Pending", nil},
		{"no interface", true, []string{}, guard.Status{}, metav1.ConditionFalse, "NoInterface", nil},
		{"switched off", false, nil, guard.Status{}, metav1.ConditionFalse, "SwitchedOff", []string{"--guard=false"}},
		{"no capability", true, eth, refused(unix.EPERM), metav1.ConditionFalse, "KernelRefuses",
			[]string{"add an IPv4 rule for eth0: operation not permitted and 2 more", "NET_ADMIN", "--guard=false"}},
		{"no policy routing", true, eth, refused(unix.EOPNOTSUPP), metav1.ConditionFalse, "KernelRefuses", []string{"CONFIG_IPV6_MULTIPLE_TABLES"}},
		{"something else", true, eth, refused(unix.ENOMEM), metav1.ConditionFalse, "KernelRefuses", []string{"cannot allocate memory", "again every second"}},
	} {
		got := guardCondition(c.on, c.outside, c.status)
		if got.Status != c.want || got.Reason != c.reason {
			t.Errorf("%s: %s %s, want %s %s", c.what, got.Status, got.Reason, c.want, c.reason)
		}
		for _, text := range c.says {
			if !strings.Contains(got.Message, text) {
				t.Errorf("%s: %q does not say %q", c.what, got.Message, text)
			}
		}
		if strings.Contains(got.Message, "\n") {
			t.Errorf("%s: the message has several lines: %q", c.what, got.Message)
		}
	}
}
