package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/ipam"
	"github.com/clarionlb/clarion/internal/pool"
	"github.com/clarionlb/clarion/internal/snapshot"
)

// maxOnWord is how many addresses are in quarantine at once on the word of one node. It is more than a node comes upon by
// accident, and less than a node that was broken into needs to empty a pool.
const maxOnWord = 16

// claim is what a speaker says that it heard before it announced an address for the first time.
type claim struct {
	node string
	addr netip.Addr
	by   string // for administrators
}

// claimsIn are the claims of foreign hosts that the live speakers say that they heard before first use, in a fixed order.
// A node is no foreign host, though another one may not know it yet.
func claimsIn(speakers map[string]*v1beta1.Speaker, notReady func(node string) bool) (out []claim) {
	alive, nodes := snapshot.Living(speakers, notReady), map[string]bool{} // by hardware address
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
			if addr, err := netip.ParseAddr(c.Address); err == nil && c.BeforeUse && !nodes[c.HardwareAddress] {
				out = append(out, claim{name, addr, fmt.Sprintf("%s (heard on %s of node %s)", c.HardwareAddress, c.Interface, name)})
			}
		}
	}
	return out
}

// wasAnnounced says of a Service that a controller before this one gave its addresses whether they may have been announced:
// that is known while they are, and supposed when it had the time.
func wasAnnounced(svc *corev1.Service, now time.Time) bool {
	if meta.IsStatusConditionTrue(svc.Status.Conditions, v1beta1.ConditionAnnounced) {
		return true
	}
	c := meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAllocated)
	return c != nil && now.Sub(c.LastTransitionTime.Time) > ipam.QuarantineTime
}

// isAnnounced takes in that an address of a Service is announced. Whoever claims it from then on came later, or is a node
// of which the reporting speaker has lost touch: the Service keeps it.
func (s *services) isAnnounced(addr netip.Addr, of key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(addr, of)
}

func (s *services) note(addr netip.Addr, of key) {
	if s.announced[addr] != of {
		s.announced[addr] = of
		s.announces[of] = append(s.announces[of], addr)
	}
}

// forget forgets what isAnnounced took in of a Service. s.mu must be held.
func (s *services) forget(of key) {
	for _, addr := range s.announces[of] {
		if s.announced[addr] == of {
			delete(s.announced, addr)
		}
	}
	delete(s.announces, of)
}

// counts says whether an address goes into quarantine for a claim. The node has to be one that may announce it by plan, and
// the Services that have it must not have been announced with it. s.mu must be held.
func (s *services) counts(c claim) bool {
	holders := s.table.Holders(c.addr)
	if len(holders) == 0 || s.plan == nil {
		return false
	}
	var claims []announce.Claim // without endpoints, should the cache not know of the Service's address yet
	for _, r := range holders {
		if s.announced[c.addr] == r.Service {
			return false
		}
		claims = append(claims, allocate.Claims(r)...)
	}
	may := false
	s.claims(c.addr, func(known []announce.Claim) {
		if len(known) > 0 {
			claims = known
		}
		may = s.plan.May(c.addr, claims, c.node)
	})
	return may
}

// weigh is the addresses that go into quarantine for claims, or stay in it, and who uses them. A node has a word on
// maxOnWord addresses at once; it is to be asked again at a time when more claims count by then, zero: never. s.mu must be
// held.
func (s *services) weigh(claims []claim, now time.Time) (heard map[netip.Addr]string, again time.Time) {
	heard = map[netip.Addr]string{}
	silent := map[string]map[netip.Addr]bool{}
	for node, on := range s.reports {
		silent[node] = map[netip.Addr]bool{}
		for a, since := range on {
			if silent[node][a] = true; !since.IsZero() && now.Sub(since) >= ipam.QuarantineTime {
				delete(on, a)
			}
		}
	}
	refused := map[string]bool{}
	for _, c := range claims {
		on := s.reports[c.node]
		if !s.counts(c) {
			continue
		}
		if _, old := on[c.addr]; !old && len(on) >= maxOnWord {
			refused[c.node] = true
			continue
		}
		if on == nil {
			on = map[netip.Addr]time.Time{}
			s.reports[c.node] = on
		}
		on[c.addr] = time.Time{}
		delete(silent[c.node], c.addr)
		if heard[c.addr] == "" {
			heard[c.addr] = c.by
		}
	}
	for node, on := range s.reports {
		for a := range silent[node] {
			if since, is := on[a]; is && since.IsZero() {
				on[a] = now
			}
		}
		for _, since := range on {
			if ends := since.Add(ipam.QuarantineTime); refused[node] && !since.IsZero() && (again.IsZero() || ends.Before(again)) {
				again = ends
			}
		}
		if len(on) == 0 {
			delete(s.reports, node)
		}
	}
	return heard, again
}

// heard is what claimsIn says of the speakers in the cache.
func heard(ctx context.Context, c client.Reader) ([]claim, error) {
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
	return claimsIn(speakers, func(node string) bool {
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

// listed is allocate.Past of the pools as the API server has them, and which pools' statuses count addresses.
func listed(ctx context.Context, live client.Reader) (quarantined map[netip.Addr]bool, rests []ipam.Rest, counts map[string]*count, err error) {
	var list v1beta1.IPAddressPoolList
	if err := live.List(ctx, &list); err != nil {
		return nil, nil, nil, fmt.Errorf("list IPAddressPools: %w", err)
	}
	counts = map[string]*count{}
	for i := range list.Items {
		counts[list.Items[i].Name] = &count{some: countsSome(&list.Items[i].Status)}
	}
	quarantined, rests = allocate.Past(list.Items)
	return quarantined, rests, counts, nil
}

// planOf is allocate.Plan of the objects in the cache.
func planOf(ctx context.Context, c client.Reader, pools []v1beta1.IPAddressPool, set *pool.Set) (*announce.View, error) {
	var ads v1beta1.L2AdvertisementList
	var nodes corev1.NodeList
	if err := c.List(ctx, &ads); err != nil {
		return nil, fmt.Errorf("list L2Advertisements: %w", err)
	}
	if err := c.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list Nodes: %w", err)
	}
	return allocate.Plan(pools, ads.Items, nodes.Items, set), nil
}

// sameReports says whether two statuses of a speaker are alike in what claimsIn reads.
func sameReports(a, b *v1beta1.Speaker) bool {
	return slices.Equal(a.Status.Missing, b.Status.Missing) && a.Status.MissingMore == b.Status.MissingMore && slices.Equal(a.Status.HardwareAddresses, b.Status.HardwareAddresses) && slices.EqualFunc(a.Status.Conflicts, b.Status.Conflicts, sameConflict)
}

func sameConflict(a, b v1beta1.AddressConflict) bool {
	return a.Address == b.Address && a.HardwareAddress == b.HardwareAddress && a.Interface == b.Interface && a.BeforeUse == b.BeforeUse
}

// quarantine takes in what speakers heard before first use, all of it, and ends the rests that are over. The Services that
// this concerns are looked at. It returns when it has to be called again though nothing new is heard; 0: never.
func (s *services) quarantine(claims []claim) (again time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.table.Expire(now)
	heard, more := s.weigh(claims, now)
	began, ended := s.table.Quarantine(only(heard), now)
	for _, a := range began {
		s.log.Warn("address is in quarantine", "address", a, "used by", heard[a])
	}
	for _, a := range ended {
		s.log.Info("quarantine is over", "address", a)
	}
	s.enqueue()
	for _, at := range []time.Time{s.table.QuarantineEnds(), s.table.NextExpiry(), more} {
		if wait := max(at.Sub(now), time.Millisecond); !at.IsZero() && (again == 0 || wait < again) {
			again = wait
		}
	}
	return again
}
