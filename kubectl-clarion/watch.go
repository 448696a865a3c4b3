package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// How often the cluster is read by status --watch: no more often than every so often, and never for more than a tenth of
// the time, so that whoever watches a large cluster does not burden it.
const (
	watchEvery = 2 * time.Second
	watchShare = 10
)

// kept is how many changes are shown below the page.
const kept = 20

// watchStatus shows the cluster on a page that is drawn anew, and below it what has changed. Where the output is no
// terminal, or another format than a table was asked for, it prints a line for each change and nothing else.
func (a *app) watchStatus(ctx context.Context) error {
	if a.offline {
		return errors.New("nothing changes in a dump: --watch is for a cluster")
	}
	conn, err := a.open()
	if err != nil {
		return err
	}
	var last *statusReport
	var changes []string
	failed := ""
	for ctx.Err() == nil {
		began := time.Now()
		c, err := a.read(ctx, conn)
		now := a.now().UTC().Format(time.TimeOnly)
		var news []string
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && last == nil:
			return err
		case err != nil:
			if why := "cannot read the cluster: " + err.Error(); why != failed { // what is shown is not the present
				failed = why
				news = append(news, why)
			}
		default:
			if failed != "" {
				failed, news = "", append(news, "the cluster can be read again")
			}
			r := a.status(c)
			if last == nil {
				news = append(news, startOf(r)...)
			} else {
				news = append(news, differences(*last, r)...)
			}
			last = &r
		}
		for _, n := range news {
			changes = append(changes, now+"  "+n)
		}
		if err := a.redraw(*last, failed, changes, len(news)); err != nil {
			return err
		}
		changes = changes[max(0, len(changes)-kept):]
		a.wait(ctx, max(watchEvery, watchShare*time.Since(began)))
	}
	return nil
}

// redraw draws the page, or prints the newest changes.
func (a *app) redraw(r statusReport, failed string, changes []string, news int) error {
	if !a.color {
		for _, line := range changes[len(changes)-news:] {
			if _, err := fmt.Fprintln(a.Out, line); err != nil {
				return err
			}
		}
		return nil
	}
	var b strings.Builder
	b.WriteString("\x1b[H\x1b[J") // to the upper left, and erase what is below
	if failed != "" {
		b.WriteString(a.paint(red, failed+"; what follows is old") + "\n\n")
	}
	if err := a.writeStatus(&b, r, a.output == "wide"); err != nil {
		return err
	}
	b.WriteString("\nCHANGES\n")
	for _, line := range changes[max(0, len(changes)-kept):] {
		b.WriteString("  " + line + "\n")
	}
	_, err := io.WriteString(a.Out, b.String())
	return err
}

// startOf is what is said before anything has changed.
func startOf(r statusReport) []string {
	out := []string{fmt.Sprintf("%d speakers, %d pools, %d problems", len(r.Speakers), len(r.Pools), len(r.Problems))}
	for _, p := range r.Problems {
		out = append(out, "+ "+p.String())
	}
	return out
}

// differences are what has changed from one page to the next, a line each.
func differences(was, is statusReport) (out []string) {
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if a, b := was.Controller.Name, is.Controller.Name; a != b {
		say("the controller that leads is %s, no longer %s", orNone(b), orNone(a))
	}
	old := map[string]speakerReport{}
	for _, s := range was.Speakers {
		old[s.Node] = s
	}
	for _, s := range is.Speakers {
		before, had := old[s.Node]
		delete(old, s.Node)
		switch {
		case !had:
			say("Node/%s has a speaker", s.Node)
			continue
		case before.Alive != s.Alive:
			say("Node/%s: its speaker is %s", s.Node, map[bool]string{true: "alive", false: "no longer alive"}[s.Alive])
			continue
		}
		if before.Version != s.Version {
			say("Node/%s: its speaker is %s, no longer %s", s.Node, orNone(s.Version), orNone(before.Version))
		}
		if before.Answers != s.Answers {
			say("Node/%s answers on layer 2 for %s, no longer %s", s.Node, orNone(s.Answers), orNone(before.Answers))
		}
		if a, b := sessionsOf(before.Sessions), sessionsOf(s.Sessions); a != b {
			say("Node/%s: BGP: %s, no longer %s", s.Node, b, a)
		}
	}
	for _, node := range sortedKeys(old) {
		say("Node/%s has no speaker any more", node)
	}
	pools := map[string]poolReport{}
	for _, p := range was.Pools {
		pools[p.Name] = p
	}
	for _, p := range is.Pools {
		before, had := pools[p.Name]
		delete(pools, p.Name)
		if b, n := before.Use, p.Use; !had {
			say("IPAddressPool/%s is new", p.Name)
		} else if b.AssignedIPv4 != n.AssignedIPv4 || b.AssignedIPv6 != n.AssignedIPv6 {
			say("IPAddressPool/%s: %d IPv4 and %d IPv6 used, no longer %d and %d", p.Name, n.AssignedIPv4, n.AssignedIPv6, b.AssignedIPv4, b.AssignedIPv6)
		}
	}
	for _, name := range sortedKeys(pools) {
		say("IPAddressPool/%s is gone", name)
	}
	over, begun := problemChanges(was.Problems, is.Problems)
	for _, p := range over {
		say("- %s", p)
	}
	for _, p := range begun {
		say("+ %s", p)
	}
	return out
}

// problemChanges are the problems that are over, and those that are new.
func problemChanges(was, is []problem) (over, begun []problem) {
	without := func(all, these []problem) (out []problem) {
		known := make(map[problem]bool, len(these))
		for _, p := range these {
			known[p] = true
		}
		for _, p := range all {
			if !known[p] {
				out = append(out, p)
			}
		}
		return out
	}
	return without(was, is), without(is, was)
}
