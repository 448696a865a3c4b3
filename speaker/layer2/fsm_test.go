package layer2

import (
	"os"
	"strings"
	"testing"
)

// docs/layer2.md shows the table that the code follows. To write it there, run the test with UPDATE=1.
func TestTransitions(t *testing.T) {
	const file, begin, end = "../../docs/layer2.md", "<!-- transitions -->\n", "<!-- end of transitions -->\n"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(b), begin)
	table, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table of transitions", file)
	}
	if table == Transitions() {
		return
	}
	if os.Getenv("UPDATE") == "" {
		t.Fatalf("%s does not show this table:\n%s", file, Transitions())
	}
	if err := os.WriteFile(file, []byte(before+begin+Transitions()+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What must hold whatever the event: who hears a better member is silent, and nobody is silent for ever where nobody answers.
func TestTransitionsHold(t *testing.T) {
	for _, s := range States() {
		if to, _ := s.next(better); to != Standby {
			t.Errorf("%s does not yield to a better member: %s", s, to)
		}
		for e := range events {
			if to, why := s.next(e); (to != s) != (why != "") {
				t.Errorf("%s at %q: %s for the reason %q", s, e, to, why)
			}
		}
	}
	for _, s := range []State{Probing, Standby} {
		if to, _ := s.next(unanswered); to != Answering {
			t.Errorf("%s stays silent where nobody answers: %s", s, to)
		}
	}
	for _, e := range []event{backup, worse, foreign, restarts, silent} {
		for _, s := range []State{Answering, StandingIn} {
			if to, _ := s.next(e); !to.Answers() {
				t.Errorf("who answers stops at %q: %s", e, to)
			}
		}
	}
}
