package guard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/clarionlb/clarion/internal/interfaces"
	"github.com/clarionlb/clarion/internal/wake"
)

// Outside follows by which interfaces of the network namespace of the calling thread packets can come in from outside:
// all that are up, whether they have hardware addresses or not, but for lo, dummies, ports of a bridge or bond (the
// bridge or bond counts) and those whose names match a pattern of exclude: the pods' side. It calls changed with their names,
// sorted and never nil, at once and whenever they have changed, at most once a second, until ctx ends. It ends early,
// with an error, only when the kernel's interfaces cannot be followed.
func Outside(ctx context.Context, exclude []string, changed func(names []string)) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	events, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	touched, broken := wake.New(), make(chan error, 1)
	var watcher sync.WaitGroup
	watcher.Go(func() { broken <- watchLinks(events, touched) })
	defer watcher.Wait()
	defer events.Close()

	var last []string
	for {
		looked := time.Now()
		switch links, err := h.LinkList(); {
		case errors.Is(err, netlink.ErrDumpInterrupted):
			touched.Set() // it changed meanwhile
		case err != nil:
			return fmt.Errorf("list links: %w", err)
		default:
			if names := outside(links, exclude); last == nil || !slices.Equal(names, last) {
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
func watchLinks(events *nl.NetlinkSocket, touched wake.Signal) error {
	for {
		if _, _, err := events.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		touched.Set()
	}
}

// outside are the names, sorted, of those interfaces by which packets can come in from outside; see Outside.
func outside(links []netlink.Link, exclude []string) []string {
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
		case interfaces.Match(exclude, a.Name):
		default:
			names = append(names, a.Name)
		}
	}
	slices.Sort(names)
	return names
}
