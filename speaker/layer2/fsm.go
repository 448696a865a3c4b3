package layer2

import (
	"fmt"
	"strings"
)

// State is what a Responder does about an address.
type State string

const (
	// Probing: finding out whether the address is free; silent.
	Probing State = "Probing"
	// Answering: answered and announced on the address's interfaces.
	Answering State = "Answering"
	// Standby: another member answers, or is to; silent, until nobody does.
	Standby State = "Standby"
	// StandingIn: that member's speaker does not answer, but its node is there and forwards on; clients are answered with
	// its hardware address, and nothing is announced.
	StandingIn State = "StandingIn"
	// Contested: a foreign host had the address before it was announced for the first time; nothing is answered until that host falls silent.
	Contested State = "Contested"

	unset State = "" // not wanted yet
)

// States are all of them.
func States() []State { return []State{Probing, Answering, Standby, StandingIn, Contested} }

// Answers says whether clients are answered in a state.
func (s State) Answers() bool { return s == Answering || s == StandingIn }

// event is what happens to an address.
type event int

const (
	chosen     event = iota // Set: this node is to own it
	unused                  // Set: the same, and nobody has announced it before, or it is to be made sure that nobody has it
	backup                  // Set: another member is to own it
	better                  // a member answers for it that is to be left alone: it ranks before this node, or may keep what it has
	worse                   // a member answers for it that ranks behind this node
	lower                   // a member that ranks behind this node has gone on claiming it, and its hardware address is the lower one
	foreign                 // a host that is no member has it
	unanswered              // nobody has answered the questions for it
	restarts                // the member that had it is about to restart, or its speaker does not answer while its node does
	silent                  // the member that had it does not answer any more, and neither does its node
	departed                // the last foreign host that had it does not answer any more
	events
)

func (e event) String() string {
	return [...]string{
		"chosen", "chosen, not announced before", "another member is chosen", "a member that ranks before this node answers",
		"a member that ranks behind this node answers", "that member goes on, with the lower hardware address",
		"a foreign host answers", "nobody answers the questions", "the speaker that answered restarts, or is silent though its node is there",
		"the member that answered is silent", "the foreign host is gone",
	}[e]
}

// next is the state after an event, and why it changes. It is all that decides about an address: who claims, who is silent
// and whose turn it is are events to it. RFC 5227 section 2.1 is for Probing, 2.4 for what a foreign host cannot do to an
// address that is announced.
func (s State) next(e event) (State, string) {
	switch e {
	case chosen:
		if s == unset || s == Standby || s == StandingIn {
			return Answering, "chosen"
		}
	case unused:
		if s == unset || s == Standby || s == StandingIn {
			return Probing, "chosen, and it may be in use"
		}
	case backup: // who answers goes on until the one that is chosen is heard
		if !s.Answers() && s != Standby {
			return Standby, "another member is chosen"
		}
	case better:
		if s != Standby {
			return Standby, "a member answers that ranks before this node"
		}
	case worse:
		if s == Probing || s == Contested || s == StandingIn {
			return Answering, "a member answers that ranks behind this node"
		}
	case lower: // they will not agree, and the network has to
		if s == Answering {
			return Standby, "a member does not yield, and has the lower hardware address"
		}
	case foreign:
		if s == Probing {
			return Contested, "a foreign host had it before"
		}
	case unanswered:
		if s == Probing || s == Standby {
			return Answering, "nobody else answers"
		}
	case restarts:
		if s == Standby {
			return StandingIn, "the speaker that answered restarts, and its node is there"
		}
	case silent:
		if s == Standby || s == StandingIn {
			return Answering, "the member that answered is silent"
		}
	case departed:
		if s == Contested {
			return Probing, "the foreign host is gone"
		}
	}
	return s, ""
}

// Transitions is the table of what becomes of an address, in Markdown.
func Transitions() string {
	var b strings.Builder
	columns := append([]State{unset}, States()...)
	b.WriteString("| |")
	for _, s := range columns {
		b.WriteString(" " + strings.TrimSpace(string(s)+" |"))
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for e := range events {
		fmt.Fprintf(&b, "| %s |", e)
		for _, s := range columns {
			to, _ := s.next(e)
			if to == s || s == unset && e > backup {
				to = ""
			}
			b.WriteString(" " + strings.TrimSpace(string(to)+" |"))
		}
		b.WriteString("\n")
	}
	return b.String()
}
