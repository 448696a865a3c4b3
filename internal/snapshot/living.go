package snapshot

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
)

// Ended says whether a speaker has ended, as it wrote last.
func Ended(sp *v1beta1.Speaker) bool {
	c := meta.FindStatusCondition(sp.Status.Conditions, v1beta1.ConditionReady)
	return c != nil && c.Status == metav1.ConditionFalse && c.Reason == v1beta1.ReasonEnded
}

// Living are the nodes whose speakers are alive, by what all speakers have written last: all but those that have ended,
// and those that one names as missing whose word counts.
//
// What the dead have written stays. The word of a speaker does not count once it is itself named by one whose word does,
// so that the dead say nothing of the living. Where two sides name each other, because the network between them is cut,
// the word of the larger side counts: of the speaker that misses the fewest. The words of speakers on nodes that
// Kubernetes has lost do not count if there are others.
func Living(speakers map[string]*v1beta1.Speaker, notReady func(node string) bool) map[string]bool {
	alive, lost := map[string]bool{}, map[string]bool{}
	for node, sp := range speakers {
		if !Ended(sp) {
			alive[node], lost[node] = true, notReady(node)
		}
	}
	all := len(alive) > 0 && !slices.Contains(slices.Collect(maps.Values(lost)), false)
	var open []string           // speakers that name others, and whose word may count; those that miss the fewest first
	against := map[string]int{} // how many of these name a speaker
	for node := range alive {
		if len(speakers[node].Status.Missing) > 0 && (all || !lost[node]) {
			open = append(open, node)
			for _, m := range speakers[node].Status.Missing {
				against[m]++
			}
		}
	}
	misses := func(node string) int {
		s := &speakers[node].Status
		return len(s.Missing) + int(s.MissingMore)
	}
	slices.SortFunc(open, func(a, b string) int { return cmp.Or(cmp.Compare(misses(a), misses(b)), cmp.Compare(a, b)) })
	counts := map[string]bool{} // whose word does
	dies := func(node string) {
		if !alive[node] || counts[node] {
			return
		}
		delete(alive, node)
		if i := slices.Index(open, node); i >= 0 {
			open = slices.Delete(open, i, i+1)
			for _, m := range speakers[node].Status.Missing {
				against[m]--
			}
		}
	}
	for len(open) > 0 {
		i := max(0, slices.IndexFunc(open, func(node string) bool { return against[node] == 0 }))
		node := open[i]
		open = slices.Delete(open, i, i+1)
		counts[node] = true
		for _, m := range speakers[node].Status.Missing {
			against[m]--
			dies(m)
		}
	}
	return alive
}

// Tells is what Speakers takes from a speaker, to be compared.
func Tells(sp *v1beta1.Speaker) string {
	s := &sp.Status
	return fmt.Sprint(Ended(sp), s.Missing, s.MissingMore, s.Gate, s.Drained, s.Interfaces, s.InterfacesDown, s.InterfacesNamedOnly, len(s.Conditions) > 0, sessionUp(s))
}

func sessionUp(s *v1beta1.SpeakerStatus) bool {
	return slices.ContainsFunc(s.Sessions, func(x v1beta1.SessionStatus) bool { return x.State == v1beta1.Established })
}

// Speakers takes in what all speakers have written of themselves: who is alive, and what those say of their nodes. It is
// for whoever is no speaker; speakers know that from each other, and sooner.
func (s *Snapshot) Speakers(speakers map[string]*v1beta1.Speaker) {
	alive := map[string]Member{}
	for name := range Living(speakers, s.NotReady) {
		status := &speakers[name].Status
		m := Member{Gate: status.Gate, SessionUp: sessionUp(status)}
		if len(status.Conditions) > 0 { // it has written, so that no interface means none
			m.Links = []announce.Link{}
		}
		for _, i := range status.Interfaces {
			m.Links = append(m.Links, announce.Link{Name: i, Up: !slices.Contains(status.InterfacesDown, i), Excluded: slices.Contains(status.InterfacesNamedOnly, i)})
		}
		alive[name] = m
		s.SetDrained(name, status.Drained)
	}
	s.Members(alive)
}
