package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/text"
)

// Change is a Service whose addresses an edit changes, or that waits with it.
type Change struct {
	Before, After Service // the zero Service when there is none
}

// Problem is something that would be wrong with an object.
type Problem struct{ Object, Text string }

// Report is what an edit would do.
type Report struct {
	// Services whose addresses, or whose reason to have none, would be others, by name.
	Services []Change
	Effect
	// Resets are the sessions that the edit ends and opens anew, as "node peer", sorted; Ended those that it ends.
	Resets, Ended [][2]string
	// Kept are the objects (Kind/name) that cannot be used as they are before the edit, while speakers that knew their last
	// usable form go on with it: what these announce, and cease to, is not known.
	Kept []string
	// Problems are those that objects would have and do not have now.
	Problems []Problem
}

// Loses says whether a Service that stays would lose an address, or an address its last announcer.
func (r *Report) Loses() bool {
	return len(r.Lost) > 0 || slices.ContainsFunc(r.Services, func(c Change) bool {
		return c.After.Name != "" && slices.ContainsFunc(c.Before.Addresses, func(a netip.Addr) bool { return !slices.Contains(c.After.Addresses, a) })
	})
}

// Try carries out an edit, and says what it did.
func (w *World) Try(e Edit) Report {
	before, was, problems, peers := w.outcome(nil), w.Services(), w.problems(), w.peers()
	kept := w.kept()
	w.Do(e)
	is, now := w.Services(), w.peers()
	r := Report{Kept: kept}
	reset := func(p string) bool {
		a, b := peers[p], now[p]
		return a != nil && b != nil && a.Resets(b)
	}
	r.Effect = Compare(before, w.outcome(func(p string) bool { return peers[p] == nil || reset(p) }))
	for _, name := range slices.Sorted(maps.Keys(union(was, is))) {
		a, b := was[name], is[name]
		if !slices.Equal(a.Addresses, b.Addresses) || a.Satisfied != b.Satisfied || !b.Satisfied && a.Message != b.Message {
			r.Services = append(r.Services, Change{a, b})
		}
	}
	up := Sessions(w.Speakers())
	for _, p := range slices.Sorted(maps.Keys(peers)) {
		for _, node := range slices.Sorted(maps.Keys(w.Speakers())) {
			switch n := w.snap.View().Nodes[node]; {
			case n == nil || !up(node, p):
			case now[p] == nil || !now[p].Nodes.Match(n.Labels):
				r.Ended = append(r.Ended, [2]string{node, p})
			case reset(p):
				r.Resets = append(r.Resets, [2]string{node, p})
			}
		}
	}
	for _, p := range w.problems() {
		if !slices.Contains(problems, p) {
			r.Problems = append(r.Problems, p)
		}
	}
	return r
}

func union[V any](a, b map[string]V) map[string]bool {
	out := map[string]bool{}
	for _, m := range []map[string]V{a, b} {
		for k := range m {
			out[k] = true
		}
	}
	return out
}

// outcome is who announces what. Sessions with the peers that may come up are taken to be up.
func (w *World) outcome(mayCome func(peer string) bool) Outcome {
	up := Sessions(w.Speakers())
	w.snap.Lock()
	defer w.snap.Unlock()
	return Of(w.snap, &w.nodes, func(node, peer string) bool { return up(node, peer) || mayCome != nil && mayCome(peer) })
}

// peers are the usable BGPPeers, by name.
func (w *World) peers() map[string]*config.Peer {
	w.snap.Lock()
	defer w.snap.Unlock()
	out := map[string]*config.Peer{}
	for i := range w.snap.View().Config.Peers {
		p := w.snap.View().Config.Peers[i]
		out[p.Name] = &p
	}
	return out
}

// problems are those of the configuration objects, sorted.
func (w *World) problems() (out []Problem) {
	w.snap.Lock()
	defer w.snap.Unlock()
	for _, p := range w.snap.Problems() {
		if p.Reason != config.ReasonAdvice {
			out = append(out, Problem{p.Kind + "/" + p.Name, p.Message})
		}
	}
	for _, o := range all[v1beta1.IPAddressPool](w) {
		about := "IPAddressPool/" + o.Name
		if p := w.set.Pool(o.Name); p.Err != nil {
			out = append(out, Problem{about, strings.ReplaceAll(p.Err.Error(), "\n", "; ")})
		}
		var texts []string
		for _, c := range w.set.Conflicts(o.Name) {
			texts = append(texts, c.Addresses.String()+": belongs to pool "+c.With+", which is older")
		}
		for _, u := range w.set.Uses(o.Name) {
			texts = append(texts, u.Addresses.String()+": belongs to "+u.By+", so that no Service gets it")
		}
		if len(texts) > 0 {
			out = append(out, Problem{about, text.Few(texts)})
		}
	}
	slices.SortFunc(out, func(a, b Problem) int { return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Text, b.Text)) })
	return out
}

// kept are the objects of which speakers may use another form than the present: see config.Config.Keep.
func (w *World) kept() (out []string) {
	w.snap.Lock()
	defer w.snap.Unlock()
	for _, p := range w.snap.Problems() {
		if p.Disabled && (p.Kind == "BGPAdvertisement" || p.Kind == "BGPPeer") {
			out = append(out, p.Kind+"/"+p.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
