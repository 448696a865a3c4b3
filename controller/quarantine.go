package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/controller/ipam"
	"github.com/clarionlb/clarion/internal/snapshot"
)

// contested is the addresses that foreign hosts on the local network use, and who they are, as the live speakers say that
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
		for text := range answered(sp) {
			if addr, err := netip.ParseAddr(text); err == nil {
				delete(out, addr)
			}
		}
	}
	return out
}

// answered are the addresses that a speaker names as answered for.
func answered(sp *v1beta1.Speaker) map[string]bool {
	out := map[string]bool{}
	if l := sp.Status.Layer2; l != nil {
		for _, a := range l.Latest {
			out[a] = true
		}
		for _, a := range l.Besides {
			out[a.Address] = true
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

// only is the addresses alone.
func only(heard map[netip.Addr]string) map[netip.Addr]bool {
	out := make(map[netip.Addr]bool, len(heard))
	for a := range heard {
		out[a] = true
	}
	return out
}

// listed is the addresses that were in quarantine, and those that rested, when the controller before this one wrote last.
func listed(ctx context.Context, live client.Reader) (quarantined map[netip.Addr]bool, rests []ipam.Rest, err error) {
	var list v1beta1.IPAddressPoolList
	if err := live.List(ctx, &list); err != nil {
		return nil, nil, fmt.Errorf("list IPAddressPools: %w", err)
	}
	quarantined = map[netip.Addr]bool{}
	for i := range list.Items {
		status := &list.Items[i].Status
		for _, text := range status.Quarantined {
			if addr, err := netip.ParseAddr(text); err == nil {
				quarantined[addr] = true
			}
		}
		for _, r := range status.Resting {
			ns, name, _ := strings.Cut(r.Service, "/")
			if addr, err := netip.ParseAddr(r.Address); err == nil {
				rests = append(rests, ipam.Rest{Addr: addr, Last: key{Namespace: ns, Name: name}, Until: r.Until.Time})
			}
		}
	}
	return quarantined, rests, nil
}

// sameReports says whether two statuses of a speaker are alike in what contested reads, but for the addresses that it
// answers for: those change often, and alone never make an address contested.
func sameReports(a, b *v1beta1.Speaker) bool {
	return slices.Equal(a.Status.Missing, b.Status.Missing) && a.Status.MissingMore == b.Status.MissingMore && slices.Equal(a.Status.HardwareAddresses, b.Status.HardwareAddresses) && slices.EqualFunc(a.Status.Conflicts, b.Status.Conflicts, sameConflict)
}

func sameConflict(a, b v1beta1.AddressConflict) bool {
	return a.Address == b.Address && a.HardwareAddress == b.HardwareAddress && a.Interface == b.Interface && a.BeforeUse == b.BeforeUse
}

// quarantine takes in which addresses foreign hosts are heard to use, and by whom, and ends the rests that are over. The
// Services that this concerns are looked at. It returns when it has to be called again though nothing new is heard; 0:
// never.
func (s *services) quarantine(heard map[netip.Addr]string) (again time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.table.Expire(now)
	began, ended := s.table.Quarantine(only(heard), now)
	for _, a := range began {
		s.log.Warn("address is in quarantine", "address", a, "used by", heard[a])
	}
	for _, a := range ended {
		s.log.Info("quarantine is over", "address", a)
	}
	s.enqueue()
	for _, at := range []time.Time{s.table.QuarantineEnds(), s.table.NextExpiry()} {
		if wait := max(at.Sub(now), time.Millisecond); !at.IsZero() && (again == 0 || wait < again) {
			again = wait
		}
	}
	return again
}
