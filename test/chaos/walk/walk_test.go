package walk

import (
	"slices"
	"strings"
	"testing"
	"time"
)

var cluster = Cluster{Nodes: []string{"node1", "node2", "node3", "node4"}, Routers: []string{"router1", "router2"}}

func text(steps []Step) string {
	var b strings.Builder
	for _, s := range steps {
		b.WriteString(s.String() + "\n")
	}
	return b.String()
}

// A seed is one walk, and its history is read as it was written.
func TestReplay(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(20) {
		steps := New(seed, 5*time.Minute, cluster)
		if !slices.Equal(steps, New(seed, 5*time.Minute, cluster)) {
			t.Fatalf("seed %d: two walks", seed)
		}
		again, err := Parse("# a comment\n\n" + text(steps))
		if err != nil || !slices.Equal(again, steps) {
			t.Fatalf("seed %d: %v\n%s\nwas read as\n%s", seed, err, text(steps), text(again))
		}
		if seen[text(steps)] {
			t.Errorf("seed %d is the walk of another seed", seed)
		}
		seen[text(steps)] = true
	}
}

func TestParseErrors(t *testing.T) {
	for _, line := range []string{"1s cut node1 -", "1s fell node1 - 2s", "1 cut node1 - 2s", "1s cut node1 - 2", "1s make web1 l2 0s"} {
		if steps, err := Parse(line); err == nil {
			t.Errorf("%q was read as %v", line, steps)
		}
	}
}

// Every walk keeps the preconditions, and does everything sooner or later.
func TestPreconditions(t *testing.T) {
	did := map[string]bool{}
	for seed := range uint64(50) {
		steps := New(seed, 10*time.Minute, cluster)
		there := map[string]bool{}
		for i, s := range steps {
			did[s.Do] = true
			switch s.Do {
			case Make:
				there[s.On] = true
			case Unmake:
				delete(there, s.On)
			case Remake, Move, Claim:
				if !there[s.On] {
					t.Errorf("seed %d: %s, which is not there", seed, s)
				}
			}
			if len(there) > services || len(there) < 3 && i > 3 {
				t.Errorf("seed %d: %d Services after %s", seed, len(there), s)
			}
			links, out := map[string]bool{}, map[string]bool{}
			for _, f := range steps[:i+1] {
				if f.At+f.For <= s.At {
					continue
				}
				switch verbs[f.Do].holds {
				case link:
					if links[f.On] {
						t.Errorf("seed %d: two faults of the link of %s at %s", seed, f.On, s)
					}
					links[f.On] = true
				case outOfService:
					out[f.On] = true
				case api:
					if verbs[s.Do].edit {
						t.Errorf("seed %d: %s while the API server is away", seed, s)
					}
				}
				if s.Do == Look {
					t.Errorf("seed %d: a look while %s lasts", seed, f)
				}
			}
			if len(links) > 2 || len(out) > 1 {
				t.Errorf("seed %d: at %s the links of %v are bad, and %v are out of service", seed, s, links, out)
			}
		}
		if last := steps[len(steps)-1]; last.Do != Look || last.At < 9*time.Minute || last.At > 13*time.Minute {
			t.Errorf("seed %d ends with %s", seed, last)
		}
	}
	for v := range verbs {
		if !did[v] {
			t.Errorf("no walk did %s", v)
		}
	}
}

func TestExcuse(t *testing.T) {
	lan, routed := Service{Name: "a"}, Service{Name: "b", BGP: true, Local: true}
	local := Service{Name: "c", Local: true}
	at := func(do, on, arg string, began, ended int) Done {
		s := func(n int) time.Duration { return time.Duration(n) * time.Second }
		return Done{Step{s(began), do, on, arg, s(ended - began)}, s(began), s(ended)}
	}
	for _, tt := range []struct {
		what   string
		done   []Done
		svc    Service
		losses string // of which seconds are excused, from 0 on: "x"
	}{
		{"nothing", nil, lan, "----------"},
		{"a speaker that restarts costs nothing", []Done{at(Speaker, "node1", "kill", 2, 4)}, lan, "----------"},
		{"a link: to the end, for pods of all nodes", []Done{at(Cut, "node1", "-", 2, 4)}, lan, "--xxxxxx--"},
		{"a link: others take over", []Done{at(Cut, "node1", "-", 2, 10)}, local, "--xxxx----xxxx--"},
		{"a link: others take over late, where a speaker is away too", []Done{at(Cut, "node1", "-", 2, 30), at(Speaker, "node2", "stop", 3, 10)}, local,
			"--xxxxxxxxxxxxx---------------xxxxxxxxxxxxx--"},
		{"a link: routers notice by the hold time", []Done{at(Cut, "node1", "-", 2, 20)}, routed, "--xxxxxxxxxxxxx-----xxxxxxxxxxxxx--"},
		{"an edit of another Service", []Done{at(Move, "b", "-", 2, 2)}, lan, "----------"},
		{"an edit", []Done{at(Move, "a", "-", 2, 2)}, lan, "--xxxxxxxxxxx--"},
		{"an edit waits for the controllers", []Done{at(Controllers, "-", "kill", 1, 5), at(Move, "a", "-", 2, 2)}, lan, "--xxxxxxxxxxxxxxxxxxxxxxxxxx--"},
		{"a router", []Done{at(Router, "router1", "kill", 2, 3)}, lan, "----------"},
		{"the advertisement of the other way", []Done{at(Unadvertise, "-", "bgp", 2, 3)}, lan, "----------"},
		{"the advertisement", []Done{at(Unadvertise, "-", "l2", 2, 3)}, lan, "--xxxxxxxxxxxx--"},
	} {
		var got strings.Builder
		for i := range tt.losses {
			c := "-"
			if _, ok := Excuse(tt.done, tt.svc, time.Duration(i)*time.Second); ok {
				c = "x"
			}
			got.WriteString(c)
		}
		if got.String() != tt.losses {
			t.Errorf("%s: excused are\n%s, want\n%s", tt.what, got.String(), tt.losses)
		}
	}
}

func TestMoved(t *testing.T) {
	done := []Done{{Step{time.Second, Move, "a", "-", 0}, time.Second, 2 * time.Second}, {Step{0, Drain, "node1", "-", 0}, 0, time.Minute}}
	for _, tt := range []struct {
		name string
		at   time.Duration
		want bool
	}{{"a", 0, false}, {"a", 3 * time.Second, true}, {"a", 30 * time.Second, false}, {"b", 3 * time.Second, false}, {"node1", 0, false}} {
		if got := Moved(done, tt.name, tt.at); got != tt.want {
			t.Errorf("%s at %s: %v", tt.name, tt.at, got)
		}
	}
}
