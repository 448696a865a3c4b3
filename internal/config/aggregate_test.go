package config

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
)

// Prefixes that are wider than the pool are said to be, and announced all the same.
func TestAggregationBeyondThePool(t *testing.T) {
	for _, tt := range []struct {
		pool   string
		length int32
		want   string // the prefix that is named
	}{
		{"192.0.2.16/28", 26, "192.0.2.0/26"},
		{"192.0.2.16/28", 28, ""},
		{"192.0.2.16/28", 30, ""},
		{"192.0.2.1-192.0.2.254", 25, "192.0.2.0/25"},
		{"192.0.2.0-192.0.2.255", 25, ""},
		{"2001:db8::/120", 24, ""},
	} {
		var p v1beta1.IPAddressPool
		p.Name = "a"
		p.Spec.Addresses = []v1beta1.AddressRange{v1beta1.AddressRange(tt.pool)}
		ad := &v1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: "ad"}, Spec: v1beta1.BGPAdvertisementSpec{AggregationLength: &tt.length}}
		cfg, problems := Parse(Objects{Pools: []*v1beta1.IPAddressPool{&p}, BGPAdvertisements: []*v1beta1.BGPAdvertisement{ad}})
		got := ""
		for _, pr := range problems {
			got += pr.Message
		}
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) || len(cfg.BGP) != 1 {
			t.Errorf("/%d over %s: %q, want %q", tt.length, tt.pool, got, tt.want)
		}
	}
}
