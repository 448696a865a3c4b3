package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/clarionlb/clarion/test/lab"
)

// figure is something measured a number of times.
type figure struct {
	name, want, unit string
	p50, p99, max    float64 // what is wanted at most, 0: no matter
	lossless         bool    // nothing may be lost

	samples    []float64
	lost, sent int // requests
	load       float64
	note       string
	before     *summary // as another checkout measured it
}

// summary is a figure as JSON.
type summary struct {
	Name    string    `json:"name"`
	Want    string    `json:"want"`
	Unit    string    `json:"unit"`
	Trials  int       `json:"trials"`
	P50     float64   `json:"p50"`
	P99     float64   `json:"p99"`
	Max     float64   `json:"max"`
	Lost    int       `json:"lost"`
	Sent    int       `json:"sent"`
	Met     bool      `json:"met"`
	Load    float64   `json:"load"`
	Note    string    `json:"note,omitempty"`
	Samples []float64 `json:"samples,omitempty"` // 100 at most: more say nothing that the percentiles do not
}

func (f *figure) add(sample float64) { f.samples = append(f.samples, math.Round(sample*100)/100) }

// fine adds a sample of which a thousandth counts.
func (f *figure) fine(sample float64) { f.samples = append(f.samples, math.Round(sample*1e5)/1e5) }

// took adds a time.
func (f *figure) took(d time.Duration) { f.add(float64(d) / float64(time.Millisecond)) }

// counted adds requests to those sent and lost.
func (f *figure) counted(replies []lab.Reply) {
	f.sent += len(replies)
	f.lost += len(lab.Lost(replies))
}

// percentile is the smallest sample that p percent of all do not exceed, 0 if there is none.
func percentile(samples []float64, p float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[max(0, int(math.Ceil(p/100*float64(len(sorted))))-1)]
}

// met says whether the figure is what is wanted.
func (f *figure) met() bool {
	under := func(p, limit float64) bool { return limit == 0 || percentile(f.samples, p) <= limit }
	return len(f.samples) > 0 && under(50, f.p50) && under(99, f.p99) && under(100, f.max) && !(f.lossless && f.lost > 0)
}

func (f *figure) summary() summary {
	if f.before != nil {
		return *f.before
	}
	samples := f.samples
	if len(samples) > 100 {
		samples = nil
	}
	return summary{
		Name: f.name, Want: f.want, Unit: f.unit, Trials: len(f.samples),
		P50: percentile(f.samples, 50), P99: percentile(f.samples, 99), Max: percentile(f.samples, 100),
		Lost: f.lost, Sent: f.sent, Met: f.met(), Load: f.load, Note: f.note, Samples: samples,
	}
}

func printTable(w io.Writer, figures []*figure) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "what\twanted\ttrials\tp50\tp99\tmax\tunit\tlost\tof\tmet\tload\tnote")
	for _, f := range figures {
		s := f.summary()
		met := "yes"
		if !s.Met {
			met = "NO"
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%.4g\t%.4g\t%.4g\t%s\t%d\t%d\t%s\t%.2f\t%s\n",
			s.Name, s.Want, s.Trials, s.P50, s.P99, s.Max, s.Unit, s.Lost, s.Sent, met, s.Load, s.Note)
	}
	tw.Flush()
}

// gap is the longest time between two neighbours among the requests that were answered, by when they were sent. Requests
// have to be in the order of sending.
func gap(replies []lab.Reply) (longest time.Duration) {
	var last time.Time
	for _, r := range replies {
		if r.Err != nil {
			continue
		}
		if !last.IsZero() {
			longest = max(longest, r.Sent.Sub(last))
		}
		last = r.Sent
	}
	return longest
}
