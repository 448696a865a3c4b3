package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/pool"
)

// Port is one of a Service's ports: TCP, UDP or SCTP and a number.
type Port struct {
	Protocol string
	Number   uint16
}

// Request is a Service as allocation sees it. Its slices and maps must not be changed once a Table has it.
type Request struct {
	Service types.NamespacedName
	// Created is when the Service was created. Of two claims on an address the older one wins; Services of the same
	// time are ordered by namespace and name.
	Created                 time.Time
	Labels, NamespaceLabels labels.Set

	// Families are those of the Service's cluster addresses, in the order of spec.ipFamilies: one address is given
	// for each.
	Families []pool.Family
	// RequireAll gives the first addresses together or not at all (ipFamilyPolicy RequireDualStack).
	RequireAll bool

	// Addresses are asked for by name, at most one of a family.
	Addresses []netip.Addr
	// Pools are asked for by name, the preferred first. Empty: every pool that assigns by itself.
	Pools []string
	// Problem is why the rest of the request cannot be read, empty when it can. The Service keeps what it has.
	Problem string

	// SharingKey lets the Service share its addresses with others of the same key. Empty: it shares none.
	SharingKey string
	Ports      []Port
	// Local is empty when any node may serve the Service's traffic, and names its endpoints, by their selector, when
	// only nodes that have some may (externalTrafficPolicy Local).
	Local string

	// Current is the addresses in the Service's status.
	Current []netip.Addr
	// Managed says that Clarion has written the Service's status before.
	Managed bool

	// Held are addresses that the Service has and that are not decided on: its external IPs, and those in the status of
	// one that is Other. Nobody else is given them.
	Held []netip.Addr
	// Other says that the Service is another controller's, or asks for no address, or is being deleted: it gets none.
	Other bool
	// Terminating says that it is Clarion's and being deleted: what it holds was given to it.
	Terminating bool
}

// older orders claims on an address.
func (r *Request) older(o *Request) bool {
	return cmp.Or(r.Created.Compare(o.Created),
		strings.Compare(r.Service.Namespace, o.Service.Namespace),
		strings.Compare(r.Service.Name, o.Service.Name)) < 0
}

// sameSharing says whether both requests are alike in everything that decides with whom they can share an address.
func (r *Request) sameSharing(o *Request) bool {
	return r.SharingKey == o.SharingKey && r.Local == o.Local && slices.Equal(r.Ports, o.Ports)
}

// requested is the address of that family that the Service asks for; the zero Addr when it asks for none.
func (r *Request) requested(f pool.Family) netip.Addr {
	for _, a := range r.Addresses {
		if pool.FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

// whyApart is why two Services cannot have the same address, empty when they can: the rules of MetalLB. Policies are
// compared as well as selectors: a Local Service draws traffic to the nodes of its endpoints only, which is wrong for any
// Service with other endpoints. What is given out anew has to meet more: see judgeTenants.
func whyApart(a, b *Request) string {
	switch {
	case a.SharingKey == "" || b.SharingKey == "":
		return "does not share it"
	case a.SharingKey != b.SharingKey:
		return "shares it with another key"
	case a.Local != b.Local:
		return "does not have the same externalTrafficPolicy and endpoints"
	}
	for _, p := range a.Ports {
		if slices.Contains(b.Ports, p) {
			return "has the same " + p.Protocol + " port"
		}
	}
	return ""
}

// Assignment is one address of a Service.
type Assignment struct {
	Address netip.Addr
	// Pool is the pool that has the address, empty when none has.
	Pool string
	// OutOfPool is why the pool no longer gives the address to this Service, empty when it does.
	OutOfPool string
}

// Passed is why a pool gave no address of a family.
type Passed struct {
	Family pool.Family
	Pool   string
	Why    string
}

// Result is how a request was answered.
type Result struct {
	// Assigned is the Service's addresses in the order of its families; unused places are zero.
	Assigned [2]Assignment
	// Reason is one of those of the condition Allocated in api/v1beta1.
	Reason string
	// Detail says more about a Reason that is not Allocated; empty when Passed says it all.
	Detail string
	// Passed says for each family without an address, or that should have another, why each pool gave none.
	Passed []Passed
	// Admins says for administrators what Detail leaves out, since it is about another namespace; the zero Note when it
	// leaves out nothing. Two Results that differ in it only are equal.
	Admins Note
	// Notice tells why the Service lost an address that it had, empty when it lost none. It is news, not state: two
	// Results that differ in it only are equal.
	Notice string
}

// Note is something to say about a pool.
type Note struct{ Pool, Text string }

// Satisfied says whether the Service has the addresses that it should have.
func (r *Result) Satisfied() bool {
	return r.Reason == v1beta1.ReasonAllocated || r.Reason == v1beta1.ReasonOutOfPool
}

// Addresses is the assigned addresses in the order of the Service's families.
func (r *Result) Addresses() []netip.Addr {
	var out []netip.Addr
	for _, a := range r.Assigned {
		if a.Address.IsValid() {
			out = append(out, a.Address)
		}
	}
	return out
}

// Equal compares everything but Admins and Notice.
func (r *Result) Equal(o *Result) bool {
	return r.Assigned == o.Assigned && r.Reason == o.Reason && r.Detail == o.Detail && slices.Equal(r.Passed, o.Passed)
}

// Message says the same for people to read. It depends on the state of the API only, so that a restarted controller
// finds nothing to correct.
func (r *Result) Message() string {
	const mostPools = 20
	var b strings.Builder
	sep := func(s string) {
		if b.Len() > 0 {
			b.WriteString(s)
		}
	}
	for _, a := range r.Assigned {
		if !a.Address.IsValid() {
			continue
		}
		sep(", ")
		b.WriteString(a.Address.String())
		switch {
		case a.OutOfPool != "":
			b.WriteString(" (kept: " + a.OutOfPool + ")")
		case a.Pool != "":
			b.WriteString(" from pool " + a.Pool)
		}
	}
	if r.Detail != "" {
		sep("; ")
		b.WriteString(r.Detail)
	}
	for i, p := range r.Passed {
		if i == mostPools {
			b.WriteString(" …")
			break
		}
		if i == 0 || r.Passed[i-1].Family != p.Family {
			sep("; ")
			b.WriteString("no " + p.Family.String() + " address: ")
		} else {
			b.WriteString(", ")
		}
		if p.Pool != "" {
			b.WriteString("pool " + p.Pool + " ")
		}
		b.WriteString(p.Why)
	}
	return b.String()
}
