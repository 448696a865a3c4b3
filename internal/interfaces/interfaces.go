// Package interfaces knows the names of network interfaces: which of them a pattern means, and which belong to the pods
// of a node rather than to a network that it is on.
package interfaces

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// DefaultExclude are patterns of the interfaces that container runtimes, network plug-ins and virtual machines make on a
// node, and of those that the kernel makes by itself: nobody outside the node, or only another node's pods, are behind
// them. Tunnels of an operator's own, such as wg0, gre1 or vxlan100, are not among them.
func DefaultExclude() []string {
	return []string{
		// Container runtimes and virtual machines.
		"docker*", "br-????????????", "cbr*", "podman*", "nerdctl*", "lxc*", "lxd*", "incusbr*", "virbr*", "vnet*", "tap*", "veth*",
		// Network plug-ins.
		"antrea-*", "azv*", "cali*", "cilium_*", "cni*", "eni*", "flannel*", "genev_sys_*", "gke*", "kube-*", "nodelocaldns*", "ovn-*",
		"tunl*", "vxlan*.calico", "vxlan-????", "vxlan_sys_*", "weave*", "wireguard.cali", "wg-v6.cali",
		// The kernel.
		"dummy*", "erspan0", "gre0", "gretap0", "ip6tnl0", "sit0",
	}
}

// Match says whether a name is, or matches as a shell pattern (path.Match), one of patterns. A malformed pattern matches
// its own text only.
func Match(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, name)
		return err == nil && ok || p == name
	})
}

// Patterns is a list of patterns as the value of a flag: separated by commas. It is a flag.Value.
type Patterns []string

func (p Patterns) String() string { return strings.Join(p, ",") }

// Set replaces the list; the empty text is the empty list. The error names the pattern that is malformed.
func (p *Patterns) Set(text string) error {
	*p = Patterns{} // not nil, which would stand for the default
	for _, one := range strings.Split(text, ",") {
		if one = strings.TrimSpace(one); one == "" {
			continue
		}
		if _, err := path.Match(one, ""); err != nil {
			return fmt.Errorf("pattern %q: %w", one, err)
		}
		*p = append(*p, one)
	}
	return nil
}
