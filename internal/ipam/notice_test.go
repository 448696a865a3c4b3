package ipam

import (
	"net/netip"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/internal/pool"
)

// TestNotice: a Service that loses both of its addresses in the same way is told so once.
func TestNotice(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a4, a6 := netip.MustParseAddr("203.0.113.0"), netip.MustParseAddr("2001:db8::")
	ranges := pool.Ranges{{First: a4, Last: a4}, {First: a6, Last: a6}}
	table := NewTable()
	table.SetPools(pool.NewSet(&pool.Pool{Name: "lan", Written: ranges, Addresses: ranges, AutoAssign: true}), now)
	req := Request{Service: types.NamespacedName{Namespace: "default", Name: "web"}, Families: []pool.Family{pool.IPv4, pool.IPv6}}
	res := table.Assign(req, now)
	table.Published(req.Service, res.Addresses(), now)
	req.Current, req.Managed = res.Addresses(), true
	table.Quarantine(map[netip.Addr]bool{a4: true, a6: true}, now)
	const want = "a foreign host on the local network uses 203.0.113.0 and 2001:db8::"
	if got := table.Assign(req, now).Notice; got != want {
		t.Errorf("the notice is %q, want %q", got, want)
	}
}
