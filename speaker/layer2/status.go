package layer2

import (
	"net/netip"
	"slices"
	"time"
)

// Status is what a Responder does.
type Status struct {
	Addresses []AddressStatus // all of the set, sorted by address
	Malformed uint64          // frames that passed the filter and made no sense
	Lost      uint64          // claims that came faster than they could be judged
}

// AddressStatus is what a Responder does about one address.
type AddressStatus struct {
	Addr   netip.Addr
	State  State
	Reason string    // of the State, for a person
	Since  time.Time // of the State

	// Interfaces are those that the address is really answered on: the State is Answering or StandingIn, the socket is
	// open and the link has carrier. Sorted.
	Interfaces []string

	// Covered is when another station last said that it stands in for this node, the Unix epoch if none did.
	Covered time.Time

	// Holder is the member that this node keeps silent for, as far as it was heard; the zero MAC otherwise.
	Holder MAC

	// Conflicts are claims of foreign hosts that still stand.
	Conflicts []Conflict

	// Counters since the address entered the set.
	Requests      uint64 // questions heard for the address
	Replies       uint64 // of those, answered
	Announcements uint64 // made without a question; IPv4 takes two frames for one
	Claims        uint64 // frames by which another station said that it has the address
	Failures      uint64 // frames that could not be sent
}

// Status returns what is done about every address of the set. It is empty while Run does not run.
func (r *Responder) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	status := Status{Malformed: r.malformed.Load(), Lost: r.lost.Load()}
	for _, h := range r.held {
		if _, ok := r.want[h.addr]; !ok {
			continue // not answered since the last Set
		}
		s := AddressStatus{
			Addr: h.addr, State: h.state, Reason: h.reason, Since: h.since, Covered: time.Unix(0, h.covered.Load()),
			Requests: h.requests.Load(), Replies: h.replies.Load(), Announcements: h.announcements.Load(),
			Claims: h.claims.Load(), Failures: h.failures.Load(),
		}
		for _, slot := range h.slots {
			if h.state.Answers() && slot.port.link.Carrier {
				s.Interfaces = append(s.Interfaces, slot.port.link.Name)
			}
		}
		slices.Sort(s.Interfaces)
		for _, v := range h.holders {
			s.Holder = v.claim.MAC
		}
		for _, v := range h.foreign {
			s.Conflicts = append(s.Conflicts, h.conflict(v))
		}
		slices.SortFunc(s.Conflicts, func(a, b Conflict) int { return slices.Compare(a.MAC[:], b.MAC[:]) })
		status.Addresses = append(status.Addresses, s)
	}
	slices.SortFunc(status.Addresses, func(a, b AddressStatus) int { return a.Addr.Compare(b.Addr) })
	return status
}
