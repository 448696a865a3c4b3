package interfaces

import (
	"slices"
	"testing"
)

// What the node's pods are behind is excluded, what leads to a network is not.
func TestDefaultExclude(t *testing.T) {
	for _, tt := range []struct {
		names    []string
		excluded bool
	}{
		{[]string{"eth0", "ens3", "enp1s0f0", "eno1", "bond0", "bond0.7", "br-ex", "br0", "vlan7", "wg0", "gre1", "vxlan100", "team0", "ib0"}, false},
		{[]string{
			"cali12345678901", "vxlan.calico", "vxlan-v6.calico", "tunl0", "wireguard.cali", "lxc_health", "lxc12ab", "cilium_host", "flannel.1", "cni0",
			"flannel-wg", "kube-ipvs0", "kube-bridge", "nodelocaldns", "docker0", "br-0123456789ab", "veth1234", "eni12345", "antrea-gw0", "genev_sys_6081",
			"ovn-k8s-mp0", "weave", "vxlan-6784", "dummy0", "virbr0", "tap0", "erspan0", "sit0",
		}, true},
	} {
		for _, n := range tt.names {
			if Match(DefaultExclude(), n) != tt.excluded {
				t.Errorf("%s: excluded should be %v", n, tt.excluded)
			}
		}
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		pattern, name string
		want          bool
	}{{"eth0", "eth0", true}, {"eth*", "eth1", true}, {"eth?", "eth10", false}, {"[", "[", true}, {"[", "x", false}} {
		if Match([]string{tt.pattern}, tt.name) != tt.want {
			t.Errorf("%q on %q: want %v", tt.pattern, tt.name, tt.want)
		}
	}
}

func TestPatternsFlag(t *testing.T) {
	p := Patterns{"cali*"}
	if err := p.Set("a*, b?,"); err != nil || !slices.Equal(p, []string{"a*", "b?"}) || p.String() != "a*,b?" {
		t.Errorf("got %v, %v", p, err)
	}
	if err := p.Set(""); err != nil || len(p) > 0 {
		t.Errorf("the empty text gives %v, %v", p, err)
	}
	if p.Set("ok,[") == nil {
		t.Error("a malformed pattern is taken")
	}
}
