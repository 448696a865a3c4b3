package ipam_test

import (
	"net/netip"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/ipam"
	"github.com/clarionlb/clarion/internal/pool"
)

func poolOf(t *testing.T, name string, exclude ...v1beta1.AddressRange) *pool.Pool {
	o := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"198.51.100.0/24"}, ExcludeAddresses: exclude}}
	p, err := pool.Parse(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestExcludedIsCounted: an address that a Service has of a pool is counted though the pool comes to exclude it, or
// a node comes to have it, so that the pool cannot be deleted.
func TestExcludedIsCounted(t *testing.T) {
	a := netip.MustParseAddr("198.51.100.0")
	for what, set := range map[string]*pool.Set{
		"excluded": pool.NewSet(poolOf(t, "lan", "198.51.100.0/32")),
		"a node's": pool.NewSetBeside([]pool.Use{{Kind: v1beta1.ReasonNodeAddress, By: "node a", Addresses: pool.Ranges{pool.FromAddr(a)}}}, poolOf(t, "lan")),
	} {
		now := time.Now()
		tab := ipam.NewTable()
		tab.SetPools(pool.NewSet(poolOf(t, "lan")), now)
		web := types.NamespacedName{Namespace: "default", Name: "web"}
		res := tab.Assign(ipam.Request{Service: web, Families: []pool.Family{pool.IPv4}}, now)
		tab.Published(web, res.Addresses(), now)
		tab.SetPools(set, now)
		res, _ = tab.Result(web)
		u := tab.Usage()["lan"]
		if len(res.Addresses()) == 1 && u.Assigned == [2]int64{} && len(u.Kept) == 0 {
			t.Errorf("%s: the Service keeps %v (%s), but pool lan counts nothing", what, res.Addresses(), res.Message())
		}
	}
}
