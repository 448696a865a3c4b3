package ipam

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/pool"
)

func benchRequests(n int) []Request {
	reqs := make([]Request, n)
	for i := range reqs {
		reqs[i] = Request{
			Service:  types.NamespacedName{Namespace: "default", Name: fmt.Sprintf("s%06d", i)},
			Created:  time.Unix(int64(i), 0),
			Families: []pool.Family{pool.IPv4},
			Ports:    []Port{{"TCP", 80}},
		}
	}
	return reqs
}

func benchTable(b testing.TB, addresses string) *Table {
	obj := &v1beta1.IPAddressPool{}
	obj.Name = "lan"
	obj.Spec.Addresses = []v1beta1.AddressRange{v1beta1.AddressRange(addresses)}
	p, err := pool.Parse(obj)
	if err != nil {
		b.Fatal(err)
	}
	t := NewTable()
	t.SetPools(pool.NewSet(p), time.Time{})
	return t
}

// BenchmarkAssign measures a Service that leaves and comes back, in a /16 of which 60,000 addresses are in use, with
// gaps and resting addresses between them.
func BenchmarkAssign(b *testing.B) {
	t := benchTable(b, "198.18.0.0/16")
	reqs := benchRequests(60000)
	now := time.Unix(0, 0)
	for _, r := range reqs {
		t.Assign(r, now)
	}
	n := 0
	churn := func() {
		now = now.Add(time.Millisecond)
		r := &reqs[n*7919%len(reqs)]
		n++
		t.Release(r.Service, now)
		r.Service = types.NamespacedName{Namespace: "again", Name: r.Service.Name}
		t.Assign(*r, now)
	}
	for range 2 * len(reqs) {
		churn()
	}
	b.ReportAllocs()
	for b.Loop() {
		churn()
	}
}

// BenchmarkFill fills a /16.
func BenchmarkFill(b *testing.B) {
	reqs := benchRequests(65536)
	for b.Loop() {
		t := benchTable(b, "198.18.0.0/16")
		for _, r := range reqs {
			if res := t.Assign(r, time.Time{}); res.Reason != v1beta1.ReasonAllocated {
				b.Fatal(res.Message())
			}
		}
	}
}

// BenchmarkLoad adopts 5,000 Services.
func BenchmarkLoad(b *testing.B) {
	reqs := benchRequests(5000)
	a := netip.MustParseAddr("198.18.0.0")
	for i := range reqs {
		reqs[i].Current, a = []netip.Addr{a}, a.Next()
	}
	for b.Loop() {
		t := benchTable(b, "198.18.0.0/16")
		t.Load(reqs, time.Time{})
	}
}
