package guard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/clarionlb/clarion/internal/interfaces"
)

// Which interfaces lead outside.
func TestOutside(t *testing.T) {
	var links []netlink.Link
	add := func(kind, name, master string, flags uint32) {
		a := netlink.LinkAttrs{Name: name, Index: len(links) + 1, RawFlags: flags}
		for _, l := range links {
			if l.Attrs().Name == master {
				a.MasterIndex = l.Attrs().Index
			}
		}
		links = append(links, &netlink.GenericLink{LinkAttrs: a, LinkType: kind})
	}
	const up, p2p = unix.IFF_UP, unix.IFF_UP | unix.IFF_POINTOPOINT | unix.IFF_NOARP
	add("device", "lo", "", up|unix.IFF_LOOPBACK)
	add("device", "ens3", "", up)
	add("device", "ens4", "", 0)
	add("bond", "bond0", "", up)
	add("device", "ens5", "bond0", up)
	add("vlan", "bond0.7", "", up)
	add("vrf", "blue", "", up)
	add("device", "ens6", "blue", up)
	add("bridge", "br-ex", "", up)
	add("device", "ens7", "br-ex", up)
	add("wireguard", "wg0", "", p2p)
	add("ipip", "tunl0", "", 0)
	add("ipip", "ipip1", "", p2p)
	add("gre", "gre1", "", p2p)
	add("ppp", "ppp0", "", p2p)
	add("veth", "eth0", "", up) // a node that is a container
	add("bridge", "cni0", "", up)
	add("veth", "veth1234", "cni0", up)
	add("veth", "cali1234", "", up)
	add("vxlan", "vxlan.calico", "", up)
	add("vxlan", "flannel.1", "", up)
	add("wireguard", "flannel-wg", "", p2p)
	add("wireguard", "cilium_wg0", "", p2p)
	add("bridge", "br-0123456789ab", "", up)
	add("dummy", "vips", "", up)
	add("dummy", "kube-ipvs0", "", up)
	got := strings.Join(outside(links, interfaces.DefaultExclude()), " ")
	if want := "blue bond0 bond0.7 br-ex ens3 ens6 eth0 gre1 ipip1 ppp0 wg0"; got != want {
		t.Errorf("outside are\n%s\nwant\n%s", got, want)
	}
}

// tunnel is the far end of an interface of a node that has no hardware address.
type tunnel struct{ *os.File }

func newTunnel(t *testing.T, ns namespace, name string, addrs ...string) tunnel {
	t.Helper()
	var f *os.File
	err := ns.Enter(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		r, err := unix.NewIfreq(name)
		if err == nil {
			r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
		}
		f = os.NewFile(uintptr(fd), name)
		return err
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		t.Skip("the kernel has no tun devices")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	for _, a := range addrs {
		ns.IP(t, "addr add "+a+" dev "+name)
	}
	ns.IP(t, "link set "+name+" up")
	return tunnel{f}
}

// ask sends a UDP packet through the tunnel and returns the ICMP error that comes back about it.
func (f tunnel) ask(t *testing.T, s side, from, to netip.Addr) string {
	t.Helper()
	const size, hops = 8, 9
	udp := []byte{0, 9, 0, 9, 0, size, 0, 0}
	var sent []byte
	proto, header := ipv4.ICMPTypeEcho.Protocol(), 20
	if to.Is4() {
		h, err := (&ipv4.Header{Version: 4, Len: header, TotalLen: header + size, TTL: hops, Protocol: unix.IPPROTO_UDP, Src: from.AsSlice(), Dst: to.AsSlice()}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		sum := uint32(0)
		for i := 0; i < len(h); i += 2 {
			sum += uint32(h[i])<<8 | uint32(h[i+1])
		}
		sum = sum>>16 + sum&0xffff
		h[10], h[11] = byte(^sum>>8), byte(^sum)
		sent = append(h, udp...)
	} else {
		proto, header = ipv6.ICMPTypeEchoRequest.Protocol(), 40
		udp[7] = 1 // a checksum of 0 is refused; nobody verifies this one
		sent = slices.Concat([]byte{6 << 4, 0, 0, 0, 0, size, unix.IPPROTO_UDP, hops}, from.AsSlice(), to.AsSlice(), udp)
	}
	if _, err := f.Write(sent); err != nil {
		t.Fatal(err)
	}
	if err := f.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil { // only a failing test waits for it
		t.Fatal(err)
	}
	for buf := make([]byte, 2048); ; {
		n, err := f.Read(buf)
		if err != nil {
			t.Fatalf("no ICMP error about %s: %v", to, err)
		}
		if n < header || int(buf[0]>>4) != map[bool]int{true: 4, false: 6}[to.Is4()] {
			continue
		}
		if m, err := icmp.ParseMessage(proto, buf[header:n]); err == nil {
			if d, ok := m.Body.(*icmp.DstUnreach); ok && strings.Contains(string(d.Data), string(to.AsSlice())) {
				return fmt.Sprintf("%v, code %d, from ", m.Type, m.Code)
			}
		}
	}
}

// What comes by an interface without hardware addresses is guarded as well, as soon as there is such an interface, and
// what pods send by theirs is not.
func TestATunnelLeadsOutside(t *testing.T) {
	ns := newNamespace(t)
	ns.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	g, _ := ns.start(t)
	ctx, cancel := context.WithCancel(context.Background())
	var outside sync.WaitGroup
	outside.Go(func() {
		err := ns.Enter(func() error {
			return Outside(ctx, interfaces.DefaultExclude(), func(names []string) {
				w := Want{Interfaces: names}
				for _, s := range sides {
					w.Prefixes = append(w.Prefixes, s.services)
				}
				g.Set(w)
			})
		})
		if err != nil {
			t.Errorf("Outside: %v", err)
		}
	})
	defer outside.Wait()
	defer cancel()

	guarded := func(names ...string) {
		t.Helper()
		eventually(t, fmt.Sprintf("guarded against what comes in by %v", names), func() bool { return slices.Equal(g.Status().Interfaces, names) })
	}
	ns.IP(t, "link add veth0 type veth peer name veth1") // a pod's
	ns.IP(t, "link set veth0 up")
	f := newTunnel(t, ns, "wg0", "192.0.2.11/24", "2001:db8:2::11/64")
	guarded("wg0")
	ns.IP(t, "route add default dev wg0") // where the packets would go round
	ns.IP(t, "-6 route add default dev wg0")
	for _, s := range sides {
		if got := f.ask(t, s, s.clientAddr, s.unused); got != s.answer {
			t.Errorf("%s: %q, want %q", s.name, got, s.answer)
		}
	}
	newTunnel(t, ns, "wg1")
	guarded("wg0", "wg1")
	ns.IP(t, "link set wg1 down")
	guarded("wg0")
}
