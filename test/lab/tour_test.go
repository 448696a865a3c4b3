package lab

import (
	"strings"
	"testing"
)

func TestIPTablesChains(t *testing.T) {
	const save = `*nat
:KUBE-SERVICES - [0:0]
[9:540] -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
[0:0] -A KUBE-SERVICES -d 192.0.2.20/32 -p tcp -m comment --comment "default/web:http loadbalancer IP" -m tcp --dport 80 -j KUBE-EXT-A
[7:420] -A KUBE-SERVICES -d 192.0.2.200/32 -p tcp -m comment --comment "default/web:http loadbalancer IP" -m tcp --dport 80 -j KUBE-EXT-A
[0:0] -A KUBE-SERVICES -d 192.0.2.200/32 -p tcp -m comment --comment "default/web:https loadbalancer IP" -m tcp --dport 443 -j KUBE-EXT-B
[7:420] -A KUBE-EXT-A -m comment --comment "masquerade" -j KUBE-MARK-MASQ
[7:420] -A KUBE-EXT-A -j KUBE-SVC-A
[4:240] -A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-A1
[3:180] -A KUBE-SVC-A -j KUBE-SEP-A2
[4:240] -A KUBE-SEP-A1 -p tcp -j DNAT --to-destination 10.244.1.2:8080
[0:0] -A KUBE-SEP-A2 -s 10.244.2.2/32 -j KUBE-MARK-MASQ
[3:180] -A KUBE-SEP-A2 -p tcp -j DNAT --to-destination 10.244.2.2:8080
[7:420] -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
[7:420] -A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
`
	const want = `[7:420] -A KUBE-SERVICES -d 192.0.2.200/32 -p tcp -m comment --comment "default/web:http loadbalancer IP" -m tcp --dport 80 -j KUBE-EXT-A
  [7:420] -A KUBE-EXT-A -m comment --comment "masquerade" -j KUBE-MARK-MASQ
  [7:420] -A KUBE-EXT-A -j KUBE-SVC-A
    [4:240] -A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-A1
      [4:240] -A KUBE-SEP-A1 -p tcp -j DNAT --to-destination 10.244.1.2:8080
    [3:180] -A KUBE-SVC-A -j KUBE-SEP-A2
      [0:0] -A KUBE-SEP-A2 -s 10.244.2.2/32 -j KUBE-MARK-MASQ
      [3:180] -A KUBE-SEP-A2 -p tcp -j DNAT --to-destination 10.244.2.2:8080
[7:420] -A KUBE-POSTROUTING -j MASQUERADE --random-fully
`
	if got := iptablesChains(save, "default/web:http", "192.0.2.200"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestNFTChains(t *testing.T) {
	const table = `table ip kube-proxy {
	map service-ips {
		elements = { 192.0.2.200 . tcp . 80 : goto external-X-default/web/tcp/http,
			     192.0.2.201 . tcp . 80 : goto external-Y-default/other/tcp/http }
	}

	chain external-X-default/web/tcp/http {
		goto service-X-default/web/tcp/http
	}

	chain external-Y-default/other/tcp/http {
		goto service-Y-default/other/tcp/http
	}
}
`
	got := nftChains(table, "192.0.2.200", "default/web/tcp/http")
	for _, want := range []string{"192.0.2.200 . tcp . 80", "chain external-X", "goto service-X"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if strings.Contains(got, "other") {
		t.Errorf("another Service's rules in\n%s", got)
	}
}
