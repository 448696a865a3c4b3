package guard

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// podSide are patterns of the interfaces by which packets of the node's own pods, containers and virtual machines come
// in, and those of other nodes' pods: what container runtimes and network plug-ins call them. Tunnels of an operator's
// own, such as wg0 or gre1, lead outside.
func podSide() []string {
	return []string{
		"docker*", "br-????????????", "cbr*", "cni*", "podman*", "lxc*", "lxd*", "virbr*", "vnet*", "tap*",
		"veth*", "cali*", "vxlan*.calico", "wireguard.cali", "wg-v6.cali", "cilium_*", "flannel*", "kube-*", "antrea-*",
		"genev_sys_*", "ovn-*", "weave*", "azv*", "gke*", "eni*", "nodelocaldns*",
	}
}

// Outside follows by which interfaces of the network namespace of the calling thread packets can come in from outside:
// all that are up, whether they have hardware addresses or not, but for lo, dummies, ports of a bridge or bond (the
// bridge or bond counts) and the pods' side, which it knows by customary names. It calls changed with their names,
// sorted and never nil, at once and whenever they have changed, at most once a second, until ctx ends. It ends early,
// with an error, only when the kernel's interfaces cannot be followed.
func Outside(ctx context.Context, changed func(names []string)) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	events, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	touched, broken := make(chan struct{}, 1), make(chan error, 1)
	var watcher sync.WaitGroup
	watcher.Go(func() { broken <- watchLinks(events, touched) })
	defer watcher.Wait()
	defer events.Close()

	var last []string
	for {
		looked := time.Now()
		switch links, err := h.LinkList(); {
		case errors.Is(err, netlink.ErrDumpInterrupted):
			poke(touched) // it changed meanwhile
		case err != nil:
			return fmt.Errorf("list links: %w", err)
		default:
			if names := outside(links); last == nil || !slices.Equal(names, last) {
				last = names
				changed(slices.Clone(names))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-broken:
			return fmt.Errorf("watch links: %w", err)
		case <-touched:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(looked.Add(pause))):
		}
	}
}

// watchLinks pokes touched whenever an interface has changed, or events were lost.
func watchLinks(events *nl.NetlinkSocket, touched chan<- struct{}) error {
	for {
		if _, _, err := events.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		poke(touched)
	}
}

// outside are the names, sorted, of those interfaces by which packets can come in from outside.
func outside(links []netlink.Link) []string {
	kinds := map[int]string{}
	for _, l := range links {
		kinds[l.Attrs().Index] = l.Type()
	}
	names := []string{}
	for _, l := range links {
		a := l.Attrs()
		switch {
		case a.RawFlags&unix.IFF_LOOPBACK != 0, a.RawFlags&unix.IFF_UP == 0, l.Type() == "dummy":
		case a.MasterIndex != 0 && kinds[a.MasterIndex] != "vrf":
		case slices.ContainsFunc(podSide(), func(p string) bool { ok, _ := path.Match(p, a.Name); return ok }):
		default:
			names = append(names, a.Name)
		}
	}
	slices.Sort(names)
	return names
}
