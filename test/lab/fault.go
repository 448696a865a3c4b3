package lab

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// A link is named after the switch's port: the host's name, or "router1-wan" for a router's side towards "outside".

// faults are the frames that the switch drops.
type faults struct {
	mute, deaf map[string]bool      // links whose host's frames are dropped, and those to it
	cut        map[[2]string]bool   // from one link to another
	closed     map[[2]string]uint16 // from one link to another, to one port of TCP and UDP
	loss       map[string]int       // percent of frames dropped, each way
}

func newFaults() faults {
	return faults{mute: map[string]bool{}, deaf: map[string]bool{}, cut: map[[2]string]bool{},
		closed: map[[2]string]uint16{}, loss: map[string]int{}}
}

// port matches a link's port on the bridge, which is another while the link is delayed.
func port(link string) string { return fmt.Sprintf("{ %q, %q }", link, delayPort(link)) }

// rules is the whole nftables table for these faults.
func (f faults) rules() string {
	var in, through, out strings.Builder
	for _, link := range slices.Sorted(maps.Keys(f.mute)) {
		fmt.Fprintf(&in, "iifname %s drop\n", port(link))
	}
	for _, link := range slices.Sorted(maps.Keys(f.deaf)) {
		fmt.Fprintf(&out, "oifname %s drop\n", port(link))
	}
	for _, link := range slices.Sorted(maps.Keys(f.loss)) {
		fmt.Fprintf(&in, "iifname %s numgen random mod 100 < %d drop\n", port(link), f.loss[link])
		fmt.Fprintf(&out, "oifname %s numgen random mod 100 < %d drop\n", port(link), f.loss[link])
	}
	for pair := range f.cut {
		fmt.Fprintf(&through, "iifname %s oifname %s drop\n", port(pair[0]), port(pair[1]))
	}
	for pair, n := range f.closed {
		fmt.Fprintf(&through, "iifname %s oifname %s meta l4proto { tcp, udp } th dport %d drop\n", port(pair[0]), port(pair[1]), n)
	}
	return "table bridge faults {}\ndelete table bridge faults\ntable bridge faults {\n" +
		"chain in { type filter hook prerouting priority 0;\n" + in.String() + "}\n" +
		"chain through { type filter hook forward priority 0;\n" + through.String() + "}\n" +
		"chain out { type filter hook postrouting priority 0;\n" + out.String() + "}\n}\n"
}

// fault changes the faults and tells the switch.
func (l *Lab) fault(change func(*faults)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.faults)
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(l.faults.rules())
	_, err := l.run("switch", cmd)
	return err
}

// CutLink pulls a link's cable: both ends lose carrier.
func (l *Lab) CutLink(link string) error { return l.setPort(link, false) }

// RestoreLink undoes CutLink, SilenceLink, MuteLink, DeafenLink, Loss and Delay on a link.
func (l *Lab) RestoreLink(link string) error {
	if err := l.Delay(link, 0); err != nil {
		return err
	}
	err := l.fault(func(f *faults) {
		delete(f.mute, link)
		delete(f.deaf, link)
		delete(f.loss, link)
	})
	if err != nil {
		return err
	}
	return l.setPort(link, true)
}

func (l *Lab) setPort(link string, up bool) error {
	return l.at("switch", func(h *netlink.Handle) error {
		port, err := h.LinkByName(link)
		if err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
		if up {
			return h.LinkSetUp(port)
		}
		return h.LinkSetDown(port)
	})
}

// SilenceLink has the switch drop every frame from and to a link while its carrier stays, as a broken switch does.
func (l *Lab) SilenceLink(link string) error {
	return l.fault(func(f *faults) { f.mute[link], f.deaf[link] = true, true })
}

// MuteLink has the switch drop every frame from a link's host, which goes on to hear.
func (l *Lab) MuteLink(link string) error { return l.fault(func(f *faults) { f.mute[link] = true }) }

// DeafenLink has the switch drop every frame to a link's host, which goes on to be heard.
func (l *Lab) DeafenLink(link string) error { return l.fault(func(f *faults) { f.deaf[link] = true }) }

// Loss has the switch drop a share of a link's frames at random, percent of them in each direction; 0 ends it.
func (l *Lab) Loss(link string, percent int) error {
	return l.fault(func(f *faults) {
		delete(f.loss, link)
		if percent > 0 {
			f.loss[link] = percent
		}
	})
}

// Partition has the switch drop frames between links of different groups. Links in no group, and
// those of one group among each other, are not affected. Partitions add up until Rejoin or Heal.
func (l *Lab) Partition(groups ...[]string) error {
	return l.fault(func(f *faults) { between(groups, func(pair [2]string) { f.cut[pair] = true }) })
}

// ClosePort is Partition for what goes to one port of TCP and UDP. A pair of links has one such port at most, the last.
func (l *Lab) ClosePort(port uint16, groups ...[]string) error {
	return l.fault(func(f *faults) { between(groups, func(pair [2]string) { f.closed[pair] = port }) })
}

// Rejoin undoes Partition between links of different groups.
func (l *Lab) Rejoin(groups ...[]string) error {
	return l.fault(func(f *faults) { between(groups, func(pair [2]string) { delete(f.cut, pair) }) })
}

// OpenPort undoes ClosePort between links of different groups.
func (l *Lab) OpenPort(groups ...[]string) error {
	return l.fault(func(f *faults) { between(groups, func(pair [2]string) { delete(f.closed, pair) }) })
}

// between calls do for every two links of different groups, in both directions.
func between(groups [][]string, do func([2]string)) {
	for i, a := range groups {
		for j, b := range groups {
			if i == j {
				continue
			}
			for _, x := range a {
				for _, y := range b {
					do([2]string{x, y})
				}
			}
		}
	}
}

// CutFromAPI cuts a node off from the control plane and from nothing else, until Heal.
func (l *Lab) CutFromAPI(node string) error { return l.Partition([]string{node}, []string{control}) }

// Heal undoes every fault of every link, CutLink included.
func (l *Lab) Heal() error {
	var ports []string
	err := l.at("switch", func(h *netlink.Handle) error {
		links, err := h.LinkList()
		for _, link := range links {
			if link.Type() == "veth" {
				ports = append(ports, link.Attrs().Name)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, p := range ports {
		if err := l.Delay(p, 0); err != nil {
			return err
		}
		if err := l.setPort(p, true); err != nil {
			return err
		}
	}
	return l.fault(func(f *faults) { *f = newFaults() })
}

// KillNode is a node's sudden death: its carrier goes, its programs and those of its pods end. The API learns of it
// only by SetNodeReady. StartNode brings it back.
func (l *Lab) KillNode(node string) error {
	if err := l.CutLink(node); err != nil {
		return err
	}
	hosts := []string{node}
	for _, p := range l.Pods() {
		if p.Spec.Node == node {
			hosts = append(hosts, p.Host)
		}
	}
	var killed []*Process
	for _, p := range l.Processes() {
		if slices.Contains(hosts, p.host) && p.Alive() {
			p.Kill()
			killed = append(killed, p)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.killed[node] = killed
	return nil
}

// StartNode restores a node's link, starts what KillNode ended and waits for the node's kube-proxy.
func (l *Lab) StartNode(ctx context.Context, node string) error {
	if err := l.RestoreLink(node); err != nil {
		return err
	}
	l.mu.Lock()
	killed := l.killed[node]
	delete(l.killed, node)
	l.mu.Unlock()
	for _, p := range killed {
		if err := p.Restart(); err != nil {
			return err
		}
	}
	return l.proxyReady(ctx, node)
}
