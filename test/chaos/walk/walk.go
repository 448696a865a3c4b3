// Package walk chooses what happens in a chaos run, at random from a seed, and says which losses each step excuses: those of
// its time and of the recovery time that the documents give. It does nothing itself.
package walk

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Step is one thing that happens: a fault, which is undone after a time, or an edit.
type Step struct {
	At  time.Duration // since the walk began
	Do  string        // a verb: see verbs
	On  string        // what it is done to: a node, a router, a Service …; "-" where there is but one
	Arg string        // how; "-" where there is but one way
	For time.Duration // after how long it is undone; 0: never
}

// String is the step's line in a history, which Parse reads.
func (s Step) String() string {
	return fmt.Sprintf("%v %s %s %s %v", s.At, s.Do, s.On, s.Arg, s.For)
}

// Parse reads a history: a step on each line, empty lines and those that begin with "#" passed over.
func Parse(history string) ([]Step, error) {
	var out []Step
	for i, line := range strings.Split(history, "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		s, err := parse(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		out = append(out, s)
	}
	return out, nil
}

func parse(line string) (s Step, err error) {
	f := strings.Fields(line)
	if len(f) != 5 {
		return s, fmt.Errorf("%q: want a time, a verb, on what, an argument and a duration", line)
	}
	s.Do, s.On, s.Arg = f[1], f[2], f[3]
	if _, ok := verbs[s.Do]; !ok {
		return s, fmt.Errorf("unknown verb %q", s.Do)
	}
	if s.At, err = time.ParseDuration(f[0]); err != nil {
		return s, err
	}
	if s.For, err = time.ParseDuration(f[4]); err != nil {
		return s, err
	}
	if s.Do == Make || s.Do == Remake {
		_, err = ParseService(s.On, s.Arg)
	}
	return s, err
}

// Service is what the walk knows of a Service. Its pods are one on each node.
type Service struct {
	Name  string
	BGP   bool // announced by BGP and probed from behind the routers; else by layer 2, and probed on the local network
	Local bool // externalTrafficPolicy
	IPv6  bool
}

// Arg is the Service as the argument of Make and Remake.
func (s Service) Arg() string {
	words := []string{"l2", "cluster", "ipv4"}
	for i, is := range []bool{s.BGP, s.Local, s.IPv6} {
		if is {
			words[i] = []string{"bgp", "local", "ipv6"}[i]
		}
	}
	return strings.Join(words, ",")
}

// ParseService is the Service of that name with the argument arg.
func ParseService(name, arg string) (Service, error) {
	for i := range 8 {
		if s := (Service{name, i&1 > 0, i&2 > 0, i&4 > 0}); s.Arg() == arg {
			return s, nil
		}
	}
	return Service{}, fmt.Errorf("Service %s: %q is not l2|bgp,cluster|local,ipv4|ipv6", name, arg)
}

// Cluster is where a walk takes place.
type Cluster struct{ Nodes, Routers []string }

const (
	lead     = 12 * time.Second // from the first Services to the first fault
	calm     = 35 * time.Second // from a burst's last end to the look at the whole
	services = 6                // at most
)

// New is the walk of a seed: bursts of faults and edits, each followed by a calm and a look at the whole. It lasts about
// as long as length says, and as long as one burst at least.
func New(seed uint64, length time.Duration, c Cluster) []Step {
	w := &walk{rand: rand.New(rand.NewPCG(seed, 0)), Cluster: c, services: map[string]Service{}}
	for range 4 {
		w.add(w.draw(Make))
	}
	for w.now = lead; ; {
		for range 4 + w.rand.IntN(6) {
			w.step()
			w.now += time.Duration(w.rand.IntN(60)) * 100 * time.Millisecond
		}
		w.now = max(w.now, w.ends()) + calm
		w.add(Step{At: w.now, Do: Look, On: "-", Arg: "-"})
		if w.now > length-time.Minute {
			return w.steps
		}
		w.now += time.Second
	}
}

// walk is a walk being made.
type walk struct {
	Cluster
	rand     *rand.Rand
	now      time.Duration
	steps    []Step
	services map[string]Service // those that are there
	made     int
}

// step adds a step whose preconditions hold.
func (w *walk) step() {
	for {
		if s := w.draw(w.verb()); s.On != "" && w.can(s) {
			w.add(s)
			return
		}
	}
}

// verb is one at random.
func (w *walk) verb() string {
	names := make([]string, 0, len(verbs))
	total := 0
	for name, v := range verbs {
		names = append(names, name)
		total += v.weight
	}
	slices.Sort(names)
	n := w.rand.IntN(total)
	for _, name := range names {
		if n -= verbs[name].weight; n < 0 {
			return name
		}
	}
	panic("the weights do not add up")
}

// draw is a step with a verb, now. On is empty when there is nothing to do it to.
func (w *walk) draw(name string) Step {
	v := verbs[name]
	s := Step{At: w.now, Do: name, On: "-", Arg: "-"}
	if span := v.lasts[1] - v.lasts[0]; span > 0 {
		s.For = v.lasts[0] + time.Duration(w.rand.Int64N(int64(span/1e8)))*1e8
	}
	if v.on != nil {
		s.On = ""
		if all := v.on(w); len(all) > 0 {
			s.On = all[w.rand.IntN(len(all))]
		}
	}
	switch {
	case name == Make:
		w.made++
		s.On = fmt.Sprintf("web%d", w.made)
		s.Arg = Service{BGP: w.rand.IntN(2) > 0, Local: w.rand.IntN(2) > 0, IPv6: w.rand.IntN(3) == 0}.Arg()
	case name == Remake && s.On != "":
		s.Arg = w.services[s.On].Arg()
	case v.args != nil:
		s.Arg = v.args[w.rand.IntN(len(v.args))]
	}
	return s
}

// under are the faults that are not undone yet, as planned, with a moment for the undoing.
func (w *walk) under() (out []Step) {
	for _, s := range w.steps {
		if s.For > 0 && s.At+s.For+3*time.Second > w.now {
			out = append(out, s)
		}
	}
	return out
}

func (w *walk) ends() (last time.Duration) {
	for _, s := range w.steps {
		last = max(last, s.At+s.For)
	}
	return last
}

// can says whether a step's preconditions hold: what it is done to is there, nothing of the same kind is done to the same
// thing, at least two nodes have whole links, one node at most is out of service, and the API server answers edits.
func (w *walk) can(s Step) bool {
	v := verbs[s.Do]
	links, out := map[string]bool{}, false
	for _, f := range w.under() {
		u := verbs[f.Do]
		if u.holds == v.holds && v.holds != "" && (f.On == s.On || f.On == "-" || s.On == "-") {
			return false
		}
		if v.edit && u.holds == api || u.edit && v.holds == api {
			return false
		}
		if u.holds == link {
			links[f.On] = true
		}
		out = out || u.holds == outOfService
	}
	switch {
	case s.Do == Make:
		return len(w.services) < services
	case s.Do == Unmake:
		return len(w.services) > 3
	case v.holds == link:
		return len(links) < 2
	case v.holds == outOfService:
		return !out
	}
	return true
}

func (w *walk) add(s Step) {
	w.steps = append(w.steps, s)
	switch s.Do {
	case Make:
		w.services[s.On], _ = ParseService(s.On, s.Arg)
	case Unmake:
		delete(w.services, s.On)
	}
}
