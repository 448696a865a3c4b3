package ipam

import (
	"net/netip"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/internal/pool"
)

// TestRememberTooLong: what a controller wrote whose clock was a year ahead rests for as long as its pool says.
func TestRememberTooLong(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a := netip.MustParseAddr("203.0.113.0")
	ranges := pool.Ranges{{First: a, Last: a}}
	table := NewTable()
	table.SetPools(pool.NewSet(&pool.Pool{Name: "lan", Written: ranges, Addresses: ranges, AutoAssign: true, ReuseDelay: time.Minute}), now)
	table.Remember([]Rest{{Addr: a, Last: types.NamespacedName{Namespace: "default", Name: "gone"}, Until: now.AddDate(1, 0, 0)}}, now)
	if got, want := table.NextExpiry(), now.Add(time.Minute); got != want {
		t.Errorf("it rests until %s, want %s", got, want)
	}
}
