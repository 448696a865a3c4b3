package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/clarionlb/clarion/internal/text"
	"github.com/clarionlb/clarion/kubectl-clarion/page"
)

func (a *app) dashboardCommand() *cobra.Command {
	var port uint16
	var noOpen bool
	cmd := &cobra.Command{
		Use:   "dashboard",
		Short: "A page for the browser: the map, Services, pools, sessions, and what moves and why",
		Long: `A page for the browser: the map, Services, pools, sessions, and what moves and why.

It is served on this machine's loopback interface alone, to whoever opens the address that is printed: that holds a secret.
The cluster is read with your rights for as long as the command runs. Nothing is written.`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := a.open()
			if err != nil {
				return err
			}
			listen, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
			if err != nil {
				return err
			}
			s := page.New(listen, a.follow(conn))
			fmt.Fprintf(a.Out, "The page, until you press Ctrl-C: %s\n", s.URL())
			if !noOpen {
				if err := openBrowser(s.URL()); err != nil {
					fmt.Fprintf(a.ErrOut, "no browser could be started (%v): open the address yourself\n", err)
				}
			}
			return s.Run(cmd.Context())
		},
	}
	cmd.Flags().Uint16Var(&port, "port", 0, "the TCP port to serve the page on; 0: any that is free")
	cmd.Flags().BoolVar(&noOpen, "no-open", false, "print the page's address, and start no browser")
	return cmd
}

// openBrowser starts the user's browser.
func openBrowser(url string) error {
	name, args := "xdg-open", []string{url}
	switch goruntime.GOOS {
	case "darwin":
		name = "open"
	case "windows":
		name, args = "rundll32", []string{"url.dll,FileProtocolHandler", url}
	}
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }()
	return nil
}

// clusterName is what the page calls the cluster.
func (a *app) clusterName(conn *connection) string {
	if conn.dump != nil {
		return filepath.Base(*a.flags.ClusterName)
	}
	raw, err := a.flags.ToRawKubeConfigLoader().RawConfig()
	if err != nil {
		return ""
	}
	return cmp.Or(*a.flags.Context, raw.CurrentContext)
}

// follow returns a function that reads the cluster, and says what has changed since it was called last.
func (a *app) follow(conn *connection) func(context.Context) (*page.Picture, []page.Event, error) {
	name := a.clusterName(conn)
	var last *seen
	failed := false
	return func(ctx context.Context) (*page.Picture, []page.Event, error) {
		c, err := a.read(ctx, conn)
		if err != nil {
			if failed {
				return nil, nil, err
			}
			failed = true
			return nil, []page.Event{{State: page.Bad, Text: "the cluster cannot be read: " + err.Error()}}, err
		}
		var events []page.Event
		if failed {
			failed, events = false, append(events, page.Event{State: page.Good, Text: "the cluster can be read"})
		}
		p := c.picture(name, conn)
		now := c.seen(p)
		if last == nil {
			events = append(events, page.Event{State: page.Unknown, Text: startOf(now.status)[0]})
		} else {
			events = append(events, c.events(last, now)...)
		}
		last = now
		return p, events, nil
	}
}

// seen is what the time line compares.
type seen struct {
	status   statusReport
	owners   map[netip.Addr]string
	services map[string]page.Service
}

func (c *cluster) seen(p *page.Picture) *seen {
	c.snap.Lock()
	defer c.snap.Unlock()
	s := &seen{c.status(), map[netip.Addr]string{}, make(map[string]page.Service, len(p.Services))}
	for i := range s.status.Speakers {
		s.status.Speakers[i].Answers = "" // whose an address is, is said with why
	}
	for addr, d := range c.snap.Owners() {
		if d.Owner != "" {
			s.owners[addr] = d.Owner
		}
	}
	for _, svc := range p.Services {
		s.services[svc.Name] = svc
	}
	return s
}

// events are what has changed in c, which is as now, and why.
func (c *cluster) events(was, now *seen) (out []page.Event) {
	c.snap.Lock()
	defer c.snap.Unlock()
	say := func(state page.State, about, format string, args ...any) {
		out = append(out, page.Event{State: state, About: about, Text: fmt.Sprintf(format, args...)})
	}
	// What breaks comes first, then what moves for that reason, then what it means for Services.
	over, begun := problemChanges(was.status.Problems, now.status.Problems)
	ofService := func(p problem) bool { return len(p.About) > 8 && p.About[:8] == "Service/" } // which explain says more of
	for _, p := range slices.DeleteFunc(begun, ofService) {
		say(page.Bad, p.About, "%s", p)
	}
	for _, p := range slices.DeleteFunc(over, ofService) {
		say(page.Good, p.About, "over: %s", p)
	}
	a, b := was.status, now.status
	a.Problems, b.Problems = nil, nil
	for _, d := range differences(a, b) {
		say(page.Unknown, "", "%s", d)
	}
	c.moves(was, now, say)
	changed := map[page.State][]page.Service{}
	for _, name := range sortedKeys(now.services) {
		is := now.services[name]
		if before, had := was.services[name]; !had || before.State != is.State || before.Answer != is.Answer {
			changed[is.State] = append(changed[is.State], is)
		}
	}
	for _, state := range []page.State{page.Bad, page.Unknown, page.Good} {
		all := changed[state]
		if len(all) <= 2*text.Most {
			for _, s := range all {
				say(state, "Service/"+s.Name, "%s %s", s.Name, s.Answer)
			}
			continue
		}
		var names []string
		for _, s := range all {
			names = append(names, s.Name)
		}
		say(state, "", "%s, of %s: it %s", text.Count(len(all), "Service"), text.Few(names), all[0].Answer)
	}
	for _, name := range sortedKeys(was.services) {
		if _, is := now.services[name]; !is {
			say(page.Unknown, "", "%s is gone, or is no longer to be reached from outside", name)
		}
	}
	return out
}

// moves says which addresses another node is to answer for, and why.
func (c *cluster) moves(was, now *seen, say func(state page.State, about, format string, args ...any)) {
	type move struct{ from, to, why string }
	all := map[move][]string{}
	for addr, from := range was.owners {
		to := now.owners[addr]
		claims := c.snap.ClaimsOn(addr)
		if to == from || len(claims) == 0 {
			continue
		}
		m, d := move{from, to, ""}, c.snap.View().ExplainLayer2(addr, claims)
		if m.why = d.Why; to != "" {
			m.why = to + " comes before " + from
			for _, n := range d.Candidates {
				if why := cmp.Or(n.Why, n.Gate); n.Node == from && why != "" {
					m.why = from + ": " + why
				}
			}
			if c.snap.View().Nodes[from] == nil {
				m.why = "there is no node " + from + " any more"
			}
		}
		all[m] = append(all[m], addr.String())
	}
	for _, addr := range sortedAddrs(now.owners) {
		if _, had := was.owners[addr]; !had {
			m := move{to: now.owners[addr]}
			all[m] = append(all[m], addr.String())
		}
	}
	order := make([]move, 0, len(all))
	for m := range all {
		order = append(order, m)
	}
	slices.SortFunc(order, func(a, b move) int {
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to), cmp.Compare(a.why, b.why))
	})
	for _, m := range order {
		of := all[m]
		slices.Sort(of)
		about := ""
		if len(of) == 1 {
			about = "Address/" + of[0]
		}
		switch {
		case m.from == "":
			say(page.Unknown, about, "%s is to answer for %s", m.to, text.Few(of))
		case m.to == "":
			say(page.Bad, about, "nobody is to answer for %s any more, which %s did: %s", text.Few(of), m.from, m.why)
		default:
			say(page.Unknown, about, "%s: from %s to %s: %s", text.Few(of), m.from, m.to, m.why)
		}
	}
}
