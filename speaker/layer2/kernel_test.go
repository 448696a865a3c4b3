package layer2

import (
	"testing"
)

// The Linux kernel of another host is the judge of what we say.

func TestKernelFindsAddress(t *testing.T) {
	l := newLAN(t, 2)
	client, node := l.hosts[0], l.hosts[1]
	r := node.start(t, Config{})
	r.Set(addresses("203.0.113.10", "2001:db8:1::10"))
	answering(t, r, "eth0", "203.0.113.10", "2001:db8:1::10")
	client.run(t, "ip", "route", "add", "203.0.113.0/24", "dev", "eth0")
	client.run(t, "ip", "route", "add", "2001:db8:1::/64", "dev", "eth0")
	mac := node.mac(t, "eth0").String()
	for _, addr := range []string{"203.0.113.10", "2001:db8:1::10"} {
		client.ok("ping", "-c1", "-W1", addr) // nobody answers the echo; the kernel asks for the neighbour first
		eventually(t, addr+" is a neighbour", func() bool { got, _ := client.neighbour(t, addr); return got == mac })
	}
	client.run(t, "arping", "-c1", "-w5", "-I", "eth0", "203.0.113.10")
	client.run(t, "ndisc6", "-1", "-w", "5000", "2001:db8:1::10", "eth0")
	r.Set(addresses("2001:db8:1::10"))
	if client.ok("arping", "-c1", "-w1", "-I", "eth0", "203.0.113.10") {
		t.Error("answered after it left the set")
	}
}
