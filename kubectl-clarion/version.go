package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/clarionlb/clarion/internal/text"
)

// versions are those of all programs.
type versions struct {
	Client     string            `json:"client"`
	Built      string            `json:"built"` // with and for what
	Controller string            `json:"controller,omitempty"`
	Speakers   map[string]string `json:"speakers,omitempty"` // by node; those that are alive
	// Differences are told in sentences; empty when all programs are of one version.
	Differences []string          `json:"differences,omitempty"`
	NotShown    map[string]string `json:"notShown,omitempty"`
}

func (a *app) versionCommand() *cobra.Command {
	var alone bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "The versions of this program, the controller and every speaker, and whether they differ",
		Args:  cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: a.version, Built: a.built}
			if alone {
				return a.print(v, func(w io.Writer, wide bool) error { return v.table(w, wide, alone) })
			}
			_, c, err := a.load(cmd.Context())
			if err != nil {
				return err
			}
			v.of(c)
			if err := a.print(v, func(w io.Writer, wide bool) error { return v.table(w, wide, alone) }); err != nil {
				return err
			}
			switch {
			case len(v.Differences) > 0:
				return problemsFound
			case v.Controller == "" || len(v.NotShown) > 0:
				return couldNotTell
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&alone, "client", false, "this program alone, without asking the cluster")
	a.printFlag(cmd)
	return cmd
}

// of takes in the versions that a cluster's programs say.
func (v *versions) of(c *cluster) {
	v.Controller, v.Speakers, v.NotShown = c.controller.version, map[string]string{}, map[string]string{}
	for node := range c.alive {
		v.Speakers[node] = c.speakers[node].Status.Version
	}
	for _, kind := range []string{"Lease", "Speaker"} {
		if err := c.hidden[kind]; err != nil {
			v.NotShown[kind] = err.Error()
		}
	}
	v.Differences = c.mixed()
	if v.Controller != "" && v.Controller != v.Client {
		v.Differences = append(v.Differences, fmt.Sprintf("this program is %s, the controller %s: what they decide may differ", v.Client, v.Controller))
	}
}

// byVersion are the nodes with living speakers, by the version of these.
func (c *cluster) byVersion() map[string][]string {
	out := map[string][]string{}
	for _, node := range sortedKeys(c.alive) {
		v := orNone(c.speakers[node].Status.Version)
		out[v] = append(out[v], node)
	}
	return out
}

// mixed says that the programs of a cluster are of several versions.
func (c *cluster) mixed() []string {
	nodes := c.byVersion()
	all := sortedKeys(nodes)
	if len(all) == 0 || len(all) == 1 && (c.controller.version == "" || all[0] == c.controller.version) {
		return nil
	}
	var out []string
	for _, v := range all {
		out = append(out, fmt.Sprintf("%s on %s", v, text.Few(nodes[v])))
	}
	said := "the speakers are " + strings.Join(out, "; ")
	if c.controller.version != "" {
		said = "the controller is " + c.controller.version + ", " + said
	}
	return []string{said}
}

func (v *versions) table(w io.Writer, wide, alone bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "client\t%s\t%s\n", v.Client, v.Built)
	if !alone {
		fmt.Fprintf(t, "controller\t%s\n", orNone(v.Controller))
		nodes := map[string][]string{}
		for _, node := range sortedKeys(v.Speakers) {
			of := orNone(v.Speakers[node])
			nodes[of] = append(nodes[of], node)
		}
		for _, of := range sortedKeys(nodes) {
			names := text.Few(nodes[of])
			if wide {
				names = strings.Join(nodes[of], ", ")
			}
			fmt.Fprintf(t, "speakers\t%s\t%s\n", of, names)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, d := range v.Differences {
		fmt.Fprintln(w, "\n"+d)
	}
	return writeHidden(w, v.NotShown)
}
