package explain

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/digest"
)

// speaker is what one says of itself, as far as explanations depend on it.
type speaker struct {
	sum        digest.Sum
	latest     map[netip.Addr]bool
	unanswered map[netip.Addr]string // by why
	besides    map[netip.Addr]bool
	more       int  // exceptions that are not named
	silent     bool // of an earlier release: it does not say what it answers
	sessions   map[string]state
	digests    map[string]digest.Sum // of what is announced in them
	heldDown   map[netip.Addr]bool
	heldMore   bool // there are more than it names
	conflicts  []v1beta1.AddressConflict
}

// state is what becomes of the routes in a session.
type state struct {
	problem  string
	families string    // that the session carries; "" when not known
	since    time.Time // since when the problem is; zero when that does not excuse it
	young    time.Time // until when it is too early to say why
}

// at is a state with its young.
func (s state) at(now time.Time) state {
	// By the clock of whatever machine: what is to be in an hour is not young.
	if s.problem != "" && !s.since.IsZero() && now.Sub(s.since).Abs() < Youth {
		s.young = s.since.Add(Youth)
	}
	return s
}

// Speaker takes in what a speaker says of itself, nil when its object is gone.
func (b *Book) Speaker(node string, o *v1beta1.Speaker) {
	old, next := b.speakers[node], parse(o)
	if b.speakers[node] = next; next == nil {
		delete(b.speakers, node)
	}
	if old == nil {
		old = &speaker{}
	}
	if next == nil {
		next = &speaker{}
	}
	if old.sum != next.sum || old.more != next.more || !maps.Equal(old.unanswered, next.unanswered) ||
		!maps.Equal(old.besides, next.besides) || !maps.Equal(old.latest, next.latest) || o == nil {
		b.compare[node] = true
	}
	for _, all := range []map[netip.Addr]string{old.unanswered, next.unanswered} {
		for addr := range all {
			if old.unanswered[addr] != next.unanswered[addr] {
				b.touched[addr] = true
			}
		}
	}
	move(b.besides, node, old.besides, next.besides, b.touched)
	if !slices.EqualFunc(old.conflicts, next.conflicts, same) {
		b.conflict(node, old.conflicts, next.conflicts)
	}
	if !maps.Equal(old.sessions, next.sessions) {
		b.staleAt(node)
	}
	for peer := range next.sessions {
		b.doubted[session{node, peer}] = true
	}
}

// move takes a node from some addresses and puts it to others.
func move(of map[netip.Addr][]string, node string, from, to, touched map[netip.Addr]bool) {
	for addr := range from {
		if to[addr] {
			continue
		}
		of[addr] = slices.DeleteFunc(slices.Clone(of[addr]), func(n string) bool { return n == node })
		if touched[addr] = true; len(of[addr]) == 0 {
			delete(of, addr)
		}
	}
	for addr := range to {
		if !from[addr] {
			of[addr] = append(slices.Clone(of[addr]), node)
			touched[addr] = true
		}
	}
}

// same compares what explanations say of conflicts.
func same(a, b v1beta1.AddressConflict) bool {
	return a.Address == b.Address && a.HardwareAddress == b.HardwareAddress && a.Interface == b.Interface
}

// conflict replaces the claims that a node has heard.
func (b *Book) conflict(node string, from, to []v1beta1.AddressConflict) {
	for _, c := range from {
		if addr, err := netip.ParseAddr(c.Address); err == nil {
			b.conflicts[addr] = slices.DeleteFunc(slices.Clone(b.conflicts[addr]), func(x Conflict) bool { return x.Node == node })
			if b.touched[addr] = true; len(b.conflicts[addr]) == 0 {
				delete(b.conflicts, addr)
			}
		}
	}
	for _, c := range to {
		if addr, err := netip.ParseAddr(c.Address); err == nil {
			b.conflicts[addr] = append(slices.Clone(b.conflicts[addr]), Conflict{node, c})
			b.touched[addr] = true
		}
	}
}

// parse reads a Speaker. What cannot be read is taken as not said.
func parse(o *v1beta1.Speaker) *speaker {
	if o == nil {
		return nil
	}
	s := &speaker{
		latest: map[netip.Addr]bool{}, unanswered: map[netip.Addr]string{}, besides: map[netip.Addr]bool{},
		sessions: map[string]state{}, digests: map[string]digest.Sum{}, heldDown: map[netip.Addr]bool{}, heldMore: o.Status.HeldDownMore > 0,
		conflicts: o.Status.Conflicts,
	}
	for _, text := range o.Status.HeldDown {
		if addr, err := netip.ParseAddr(text); err == nil {
			s.heldDown[addr] = true
		}
	}
	if l := o.Status.LocalNetwork; l == nil {
		s.silent = len(o.Status.Conditions) > 0
	} else {
		s.sum, _ = digest.Parse(l.Digest)
		s.more = int(l.UnansweredMore) + int(l.BesidesMore)
		for _, text := range l.Latest {
			if addr, err := netip.ParseAddr(text); err == nil {
				s.latest[addr] = true
			}
		}
		for _, x := range l.Unanswered {
			if addr, err := netip.ParseAddr(x.Address); err == nil {
				s.unanswered[addr] = cmp.Or(x.Reason, "it does not say why")
			}
		}
		for _, x := range l.Besides {
			if addr, err := netip.ParseAddr(x.Address); err == nil {
				s.besides[addr] = true
			}
		}
	}
	for _, p := range o.Status.Problems {
		if peer, ok := strings.CutPrefix(p.Object, "BGPPeer/"); ok {
			s.sessions[peer] = state{problem: "not open: " + p.Message}
		}
	}
	for _, x := range o.Status.Sessions {
		st := state{families: strings.Join(x.Families, " ")}
		if x.State != v1beta1.Established {
			st = state{problem: SessionState(x)}
			if x.LastError == "" && x.Since != nil {
				st.since = x.Since.Time
			}
		}
		s.sessions[x.Peer] = st
		if sum, err := digest.Parse(x.Digest); err == nil {
			s.digests[x.Peer] = sum
		}
	}
	return s
}
