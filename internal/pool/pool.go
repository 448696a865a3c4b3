// Package pool owns what address ranges mean: it reads an IPAddressPool into a typed Pool and resolves what several
// pools say about one address. Both binaries use it: the controller to allocate, the speaker to find the pool of an
// address.
//
// It is pure. It must not know which addresses are in use, nor anything about the Kubernetes API but the words users
// write (api/v1beta1).
package pool

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/api/v1beta1"
)

// DefaultReuseDelay is how long a released address rests when spec.reuseDelay is not set.
const DefaultReuseDelay = time.Minute

// Pool is an IPAddressPool, read. It is not changed after Parse and may be shared between goroutines.
type Pool struct {
	Name    string
	Labels  labels.Set
	Created time.Time

	// Err is what is wrong with the object, nil when nothing is. A pool with an Err still holds the addresses that
	// could be read, so that assigned ones do not lose their pool over a bad edit, but gives out none.
	Err error
	// Advice is what is understood, and could be written better.
	Advice []string

	// Written is spec.addresses.
	Written Ranges
	// Addresses is what the pool has: Written without the excluded addresses, and, for a pool in a Set, without those
	// of older pools and of the cluster itself.
	Addresses Ranges
	// Kept are addresses that the pool no longer has and Services do, by its status, sorted.
	Kept []netip.Addr
	// Reserved says whom single addresses are held for. All of them are in Written.
	Reserved map[netip.Addr]types.NamespacedName

	// AutoAssign is false for a pool that is only for Services that ask for it.
	AutoAssign bool
	// AvoidBuggy keeps IPv4 addresses that end in .0 or .255 from being given out.
	AvoidBuggy bool
	// Selective is true for a pool with a serviceAllocation, whatever is in it: it comes before those without, as in
	// MetalLB.
	Selective bool
	// Priority orders pools of the same Selective, the lower first. Pools without a priority have math.MaxInt.
	Priority int
	// MaxPerNamespace is how many addresses of each family the Services of one namespace may have; 0: any number.
	MaxPerNamespace int
	// OnShrink is what happens to an assigned address that the pool no longer has or no longer admits.
	OnShrink v1beta1.ShrinkPolicy
	// ReuseDelay is how long a released address rests, 0 to 24 hours.
	ReuseDelay time.Duration
	// CrossNamespace lets Services of different namespaces share an address.
	CrossNamespace bool

	namespaces         []string
	namespaceSelectors []labels.Selector
	serviceSelectors   []labels.Selector
}

// Parse reads an IPAddressPool. The error joins everything that is wrong with it, each naming its field and what would
// be right; the Pool is returned beside it and carries it in Err.
func Parse(obj *v1beta1.IPAddressPool) (*Pool, error) {
	spec := &obj.Spec
	p := &Pool{
		Name:       obj.Name,
		Labels:     obj.Labels,
		Created:    obj.CreationTimestamp.Time,
		AutoAssign: spec.AutoAssign == nil || *spec.AutoAssign,
		AvoidBuggy: spec.AvoidBuggyIPs,
		Priority:   math.MaxInt,
		OnShrink:   v1beta1.ShrinkKeep,
		ReuseDelay: DefaultReuseDelay,
	}
	var errs []error
	wrong := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("spec."+field+": "+format, args...))
	}
	parseRanges := func(field string, in []v1beta1.AddressRange) Ranges {
		var rs []Range
		for i, s := range in {
			r, err := ParseRange(string(s))
			if err != nil {
				wrong(fmt.Sprintf("%s[%d]", field, i), "%w", err)
				continue
			}
			if network := hostBits(string(s)); network != "" {
				p.Advice = append(p.Advice, fmt.Sprintf("spec.%s[%d]: %q is taken as its network: write %s", field, i, s, network))
			}
			rs = append(rs, r)
		}
		return Union(rs...)
	}

	p.Written = parseRanges("addresses", spec.Addresses)
	if len(spec.Addresses) == 0 {
		wrong("addresses", "must have at least one CIDR, range or address")
	}
	p.Addresses = p.Written.Minus(parseRanges("excludeAddresses", spec.ExcludeAddresses))

	for i, r := range spec.Reservations {
		field := fmt.Sprintf("reservations[%d]", i)
		a, err := ParseAddr(r.Address)
		switch {
		case err != nil:
			wrong(field+".address", "%w", err)
			continue
		case !p.Written.Contains(a):
			wrong(field+".address", "%s is not in spec.addresses: add it there or take the reservation out", a)
			continue
		case r.Namespace == "" || r.Name == "":
			wrong(field, "must have the namespace and the name of a Service")
			continue
		}
		owner := types.NamespacedName{Namespace: r.Namespace, Name: r.Name}
		if other, twice := p.Reserved[a]; twice && other != owner {
			wrong(field+".address", "%s is already reserved for %s", a, other)
			continue
		}
		if p.Reserved == nil {
			p.Reserved = map[netip.Addr]types.NamespacedName{}
		}
		p.Reserved[a] = owner
	}

	switch spec.OnShrink {
	case "", v1beta1.ShrinkKeep:
	case v1beta1.ShrinkReallocate:
		p.OnShrink = spec.OnShrink
	default:
		wrong("onShrink", "%q is neither Keep nor Reallocate", spec.OnShrink)
	}
	if d := spec.ReuseDelay; d != nil {
		if d.Duration < 0 || d.Duration > 24*time.Hour {
			wrong("reuseDelay", "%s is not between 0s and 24h", d.Duration)
		} else {
			p.ReuseDelay = d.Duration
		}
	}
	if s := spec.Sharing; s != nil {
		p.CrossNamespace = s.CrossNamespace
	}
	if a := spec.ServiceAllocation; a != nil {
		p.Selective, p.MaxPerNamespace = true, int(a.MaxPerNamespace)
		if a.Priority < 0 {
			wrong("serviceAllocation.priority", "%d is less than 0", a.Priority)
		} else if a.Priority > 0 {
			p.Priority = a.Priority
		}
		selectors := func(field string, in []metav1.LabelSelector) []labels.Selector {
			var out []labels.Selector
			for i := range in {
				s, err := metav1.LabelSelectorAsSelector(&in[i])
				if err != nil {
					wrong(fmt.Sprintf("serviceAllocation.%s[%d]", field, i), "%w", err)
					continue
				}
				out = append(out, s)
			}
			return out
		}
		p.namespaces = slices.Sorted(slices.Values(a.Namespaces))
		p.namespaceSelectors = selectors("namespaceSelectors", a.NamespaceSelectors)
		p.serviceSelectors = selectors("serviceSelectors", a.ServiceSelectors)
	}
	for _, text := range obj.Status.Kept {
		if a, err := netip.ParseAddr(text); err == nil {
			p.Kept = append(p.Kept, a)
		}
	}
	slices.SortFunc(p.Kept, netip.Addr.Compare)
	p.Err = errors.Join(errs...)
	return p, p.Err
}

// Admits says whether a Service of that namespace may have addresses of the pool, and if not, why. Of the two rules
// about namespaces one has to match when there is any; the one about Services comes on top.
func (p *Pool) Admits(namespace string, namespaceLabels, serviceLabels labels.Set) (bool, string) {
	if len(p.namespaces)+len(p.namespaceSelectors) > 0 {
		_, named := slices.BinarySearch(p.namespaces, namespace)
		if !named && !anyMatches(p.namespaceSelectors, namespaceLabels) {
			return false, "does not admit namespace " + namespace
		}
	}
	if len(p.serviceSelectors) > 0 && !anyMatches(p.serviceSelectors, serviceLabels) {
		return false, "does not admit the Service's labels"
	}
	return true, ""
}

func anyMatches(selectors []labels.Selector, set labels.Set) bool {
	for _, s := range selectors {
		if s.Matches(set) {
			return true
		}
	}
	return false
}

// Avoids says whether the pool has a but does not give it out, because of avoidBuggyIPs.
func (p *Pool) Avoids(a netip.Addr) bool {
	if !p.AvoidBuggy || !a.Is4() {
		return false
	}
	last := a.As4()[3]
	return last == 0 || last == 255
}

// Gives says whether a is one of the addresses that the pool may give out.
func (p *Pool) Gives(a netip.Addr) bool {
	return p.Err == nil && p.Addresses.Contains(a) && !p.Avoids(a)
}

// Capacity is the number of addresses of a family that the pool may give out, reserved ones included; it stops at
// math.MaxInt64.
func (p *Pool) Capacity(f Family) int64 {
	if p.Err != nil {
		return 0
	}
	n := p.Addresses.Size(f)
	if f == IPv4 && p.AvoidBuggy {
		for _, r := range p.Addresses {
			if FamilyOf(r.First) == IPv4 {
				n -= buggyUpTo(r.Last) - buggyUpTo(r.First)
				if p.Avoids(r.First) {
					n--
				}
			}
		}
	}
	return n
}

// buggyUpTo is how many IPv4 addresses not after a end in .0 or .255.
func buggyUpTo(a netip.Addr) int64 {
	b := a.As4()
	n := int64(binary.BigEndian.Uint32(b[:]))
	return n/256 + 1 + (n+1)/256
}

// Use is addresses that something in the cluster has.
type Use struct {
	// Kind says in one word what has them, By names it.
	Kind, By  string
	Addresses Ranges
}

// Set is pools that know of each other. It is not changed after NewSet and may be shared between goroutines.
type Set struct {
	byName    map[string]*Pool
	preferred []*Pool
	byAge     []*Pool
	index     []entry
	conflicts map[string][]Conflict
	uses      map[string][]Use
	reserved  map[types.NamespacedName][]netip.Addr
}

type entry struct {
	Range
	pool *Pool
}

// Conflict is addresses that a pool says it has and an older pool has.
type Conflict struct {
	With      string
	Addresses Ranges
}

// NewSet resolves overlaps: an address that several pools have belongs to the oldest of them, by creation time and then
// by name. The order of the arguments does not matter; no two may have the same name.
func NewSet(pools ...*Pool) *Set { return NewSetBeside(nil, pools...) }

// NewSetBeside is NewSet in a cluster that has some addresses itself: no pool has those.
func NewSetBeside(uses []Use, pools ...*Pool) *Set {
	s := &Set{
		byName:    make(map[string]*Pool, len(pools)),
		conflicts: map[string][]Conflict{},
		uses:      map[string][]Use{},
		reserved:  map[types.NamespacedName][]netip.Addr{},
	}
	byAge := slices.Clone(pools)
	slices.SortFunc(byAge, func(a, b *Pool) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	for _, written := range byAge {
		p := *written
		for _, u := range uses {
			if both := p.Addresses.Overlap(u.Addresses); len(both) > 0 {
				s.uses[p.Name] = append(s.uses[p.Name], Use{u.Kind, u.By, both})
				p.Addresses = p.Addresses.Minus(both)
			}
		}
		for _, older := range s.byAge {
			if both := p.Addresses.Overlap(older.Addresses); len(both) > 0 {
				s.conflicts[p.Name] = append(s.conflicts[p.Name], Conflict{older.Name, both})
				p.Addresses = p.Addresses.Minus(both)
			}
		}
		s.byName[p.Name] = &p
		s.byAge = append(s.byAge, &p)
		for _, r := range p.Addresses {
			s.index = append(s.index, entry{r, &p})
		}
		for a, owner := range p.Reserved {
			if p.Gives(a) {
				s.reserved[owner] = append(s.reserved[owner], a)
			}
		}
	}
	for _, addrs := range s.reserved {
		slices.SortFunc(addrs, netip.Addr.Compare)
	}
	slices.SortFunc(s.index, func(a, b entry) int { return a.First.Compare(b.First) })
	s.preferred = slices.Clone(s.byAge)
	slices.SortFunc(s.preferred, func(a, b *Pool) int {
		if a.Selective != b.Selective {
			if a.Selective {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), strings.Compare(a.Name, b.Name))
	})
	return s
}

// Pool is the pool of that name, nil when there is none.
func (s *Set) Pool(name string) *Pool { return s.byName[name] }

// Preferred is all pools in the order in which they are tried: those with a serviceAllocation first, then by priority,
// then by name. It must not be changed.
func (s *Set) Preferred() []*Pool { return s.preferred }

// Find is the pool that has a, nil when none has, in O(log n).
func (s *Set) Find(a netip.Addr) *Pool {
	i, found := slices.BinarySearchFunc(s.index, a, func(e entry, a netip.Addr) int { return e.First.Compare(a) })
	if found {
		return s.index[i].pool
	}
	if i > 0 && s.index[i-1].Contains(a) {
		return s.index[i-1].pool
	}
	return nil
}

// Writes is the oldest pool whose spec.addresses include a, though it may exclude it; nil when there is none.
func (s *Set) Writes(a netip.Addr) *Pool {
	for _, p := range s.byAge {
		if p.Written.Contains(a) {
			return p
		}
	}
	return nil
}

// Of is the pool that a belongs to, be it free or a Service's: the one that has it, or else excludes it, or else has it in
// its status as kept; nil when there is none.
func (s *Set) Of(a netip.Addr) *Pool {
	if p := cmp.Or(s.Find(a), s.Writes(a)); p != nil {
		return p
	}
	for _, p := range s.byAge {
		if _, kept := slices.BinarySearchFunc(p.Kept, a, netip.Addr.Compare); kept {
			return p
		}
	}
	return nil
}

// Reserved is the addresses that pools hold for a Service, in ascending order. It must not be changed.
func (s *Set) Reserved(service types.NamespacedName) []netip.Addr { return s.reserved[service] }

// Conflicts is where the pool of that name meets older ones, the oldest first; nil when nowhere.
func (s *Set) Conflicts(name string) []Conflict { return s.conflicts[name] }

// Uses is the addresses of the pool of that name that the cluster has itself, in the order given to NewSetBeside; nil
// when there are none.
func (s *Set) Uses(name string) []Use { return s.uses[name] }

// WhyNot is why a, which no pool has, is not for Services: the cluster has it, or a pool, the oldest, excludes it, or it
// is in no pool. The text is for everybody; what has it in the cluster is for administrators.
func (s *Set) WhyNot(a netip.Addr) (why string, has *Use) {
	for _, p := range s.byAge {
		for i, u := range s.uses[p.Name] {
			if u.Addresses.Contains(a) {
				return "the cluster itself has it", &s.uses[p.Name][i]
			}
		}
	}
	if p := s.Writes(a); p != nil {
		return "pool " + p.Name + " excludes it", nil
	}
	return "it is in no pool", nil
}
