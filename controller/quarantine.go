package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
)

// contested is the addresses that strangers on the local network use, and who they are, as the live speakers say that
// could not announce them for the first time.
//
// An address that any speaker answers for, or did when it wrote last, has been announced: whoever claims it came later,
// or is a fellow that the reporting speaker does not know, having lost touch with it. Services keep such addresses. Nor
// is a node a stranger, though another one may not know it yet.
func contested(speakers map[string]*v1beta1.Speaker) map[netip.Addr]string {
	alive, out := fellows(speakers), map[netip.Addr]string{}
	nodes := map[string]bool{} // by hardware address
	for _, sp := range speakers {
		for _, mac := range sp.Status.HardwareAddresses {
			nodes[mac] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(speakers)) {
		if _, ok := alive[name]; !ok {
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
	return contested(speakers), nil
}

// listed is the addresses that were in quarantine when the controller before this one wrote last.
func listed(ctx context.Context, live client.Reader) (map[netip.Addr]string, error) {
	var list v1beta1.IPAddressPoolList
	if err := live.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list IPAddressPools: %w", err)
	}
	out := map[netip.Addr]string{}
	for i := range list.Items {
		for _, text := range list.Items[i].Status.Quarantined {
			if addr, err := netip.ParseAddr(text); err == nil {
				out[addr] = ""
			}
		}
	}
	return out, nil
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

// quarantined is the addresses of a pool that are in quarantine, as its status lists them.
func (s *services) quarantined(pool string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, a := range s.table.Quarantined(pool) {
		out = append(out, a.String())
	}
	return out
}
