package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/snapshot"
)

// contested is the addresses that strangers on the local network use, and who they are, as the live speakers say that
// could not announce them for the first time.
//
// An address that any speaker answers for, or did when it wrote last, has been announced: whoever claims it came later,
// or is a fellow that the reporting speaker does not know, having lost touch with it. Services keep such addresses. Nor
// is a node a stranger, though another one may not know it yet.
func contested(speakers map[string]*v1beta1.Speaker, notReady func(node string) bool) map[netip.Addr]string {
	alive, out := snapshot.Living(speakers, notReady), map[netip.Addr]string{}
	nodes := map[string]bool{} // by hardware address
	for _, sp := range speakers {
		for _, mac := range sp.Status.HardwareAddresses {
			nodes[mac] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(speakers)) {
		if !alive[name] {
			continue
		}
		for _, c := range speakers[name].Status.Conflicts {
			addr, err := netip.ParseAddr(c.Address)
			if _, known := out[addr]; err == nil && c.BeforeUse && !known && !nodes[c.HardwareAddress] {
				out[addr] = fmt.Sprintf("%s (heard on %s of node %s)", c.HardwareAddress, c.Interface, name)
			}
		}
	}
	if len(out) == 0 {
		return out
	}
	for _, sp := range speakers {
		for _, l := range sp.Status.Layer2 {
			if addr, err := netip.ParseAddr(l.Address); err == nil {
				delete(out, addr)
			}
		}
	}
	return out
}

// heard is what contested says of the speakers in the cache.
func heard(ctx context.Context, c client.Reader) (map[netip.Addr]string, error) {
	var list v1beta1.SpeakerList
	if err := c.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list Speakers: %w", err)
	}
	speakers := make(map[string]*v1beta1.Speaker, len(list.Items))
	for i := range list.Items {
		speakers[list.Items[i].Name] = &list.Items[i]
	}
	var nodes corev1.NodeList
	if err := c.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list Nodes: %w", err)
	}
	return contested(speakers, func(node string) bool {
		return slices.ContainsFunc(nodes.Items, func(n corev1.Node) bool { return n.Name == node && snapshot.NotReady(&n) })
	}), nil
}

// listed is the addresses that were in quarantine, and the pools of those that Services kept, when the controller before
// this one wrote last.
func listed(ctx context.Context, live client.Reader) (quarantined, kept map[netip.Addr]string, err error) {
	var list v1beta1.IPAddressPoolList
	if err := live.List(ctx, &list); err != nil {
		return nil, nil, fmt.Errorf("list IPAddressPools: %w", err)
	}
	quarantined, kept = map[netip.Addr]string{}, map[netip.Addr]string{}
	for i := range list.Items {
		o := &list.Items[i]
		for _, text := range o.Status.Quarantined {
			if addr, err := netip.ParseAddr(text); err == nil {
				quarantined[addr] = ""
			}
		}
		for _, text := range o.Status.Kept {
			if addr, err := netip.ParseAddr(text); err == nil {
				kept[addr] = o.Name
			}
		}
	}
	return quarantined, kept, nil
}

// sameReports says whether two statuses of a speaker are alike in what contested reads, but for the addresses that it
// answers for: those change often, and alone never make an address contested.
func sameReports(a, b *v1beta1.Speaker) bool {
	return slices.Equal(a.Status.Members, b.Status.Members) && slices.Equal(a.Status.HardwareAddresses, b.Status.HardwareAddresses) && slices.EqualFunc(a.Status.Conflicts, b.Status.Conflicts, sameConflict)
}

func sameConflict(a, b v1beta1.AddressConflict) bool {
	return a.Address == b.Address && a.HardwareAddress == b.HardwareAddress && a.Interface == b.Interface && a.BeforeUse == b.BeforeUse
}

// quarantine takes in which addresses strangers are heard to use, and by whom. The Services that lose one are looked at.
// It returns when it has to be called again for the sake of those that are not heard any more; 0: never.
func (s *services) quarantine(heard map[netip.Addr]string) (again time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	began, ended := s.table.Quarantine(heard, now)
	for _, a := range began {
		s.log.Warn("address is in quarantine", "address", a, "used by", heard[a])
	}
	for _, a := range ended {
		s.log.Info("quarantine is over", "address", a)
	}
	if len(began)+len(ended) > 0 {
		s.follow()
	}
	if ends := s.table.QuarantineEnds(); !ends.IsZero() {
		again = max(ends.Sub(now), time.Millisecond)
	}
	return again
}

// listing is what a pool's status lists: its addresses that are in quarantine, and those that it has no more and Services
// keep.
func (s *services) listing(pool string) (quarantined, kept []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.table.Quarantined(pool) {
		quarantined = append(quarantined, a.String())
	}
	for _, a := range s.table.Kept(pool) {
		kept = append(kept, a.String())
	}
	return quarantined, kept
}
