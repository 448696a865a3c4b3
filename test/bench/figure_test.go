package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/clarionlb/clarion/test/lab"
)

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, tt := range []struct {
		samples []float64
		p, want float64
	}{
		{nil, 50, 0},
		{[]float64{7}, 50, 7},
		{[]float64{7}, 99, 7},
		{[]float64{3, 1, 2}, 50, 2},
		{[]float64{4, 3, 1, 2}, 50, 2},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 100, 100},
	} {
		if got := percentile(tt.samples, tt.p); got != tt.want {
			t.Errorf("percentile(%d samples, %g) = %g, want %g", len(tt.samples), tt.p, got, tt.want)
		}
	}
}

func TestGap(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	// Each letter is a request, 2 ms after the one before: answered or lost.
	for text, want := range map[string]time.Duration{
		"":               0,
		"a":              0,
		"aaa":            2 * time.Millisecond,
		"allla":          8 * time.Millisecond,
		"alaallal":       6 * time.Millisecond,
		"lllaa":          2 * time.Millisecond,
		"alllllaallaaaa": 12 * time.Millisecond,
	} {
		var replies []lab.Reply
		for i, c := range text {
			r := lab.Reply{Sent: start.Add(time.Duration(i) * 2 * time.Millisecond)}
			if c == 'l' {
				r.Err = errors.New("lost")
			}
			replies = append(replies, r)
		}
		if got := gap(replies); got != want {
			t.Errorf("gap(%s) = %v, want %v", text, got, want)
		}
	}
}

func TestMet(t *testing.T) {
	for _, tt := range []struct {
		name   string
		figure figure
		want   bool
	}{
		{"never measured", figure{max: 1}, false},
		{"within", figure{p50: 2, max: 3, samples: []float64{1, 2, 3}}, true},
		{"median too high", figure{p50: 1, max: 3, samples: []float64{1, 2, 3}}, false},
		{"one too high", figure{p50: 2, max: 2.5, samples: []float64{1, 2, 3}}, false},
		{"lost", figure{lossless: true, samples: []float64{0}, lost: 1, sent: 100}, false},
		{"lost, which does not matter", figure{samples: []float64{0}, lost: 1, sent: 100}, true},
	} {
		if got := tt.figure.met(); got != tt.want {
			t.Errorf("%s: met %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestTable(t *testing.T) {
	var out strings.Builder
	printTable(&out, []*figure{{name: "cut", want: "max 500 ms", unit: "ms", max: 500, samples: []float64{250, 612}, lost: 3, sent: 1000}})
	fields := strings.Fields(strings.Split(out.String(), "\n")[1])
	if got, want := strings.Join(fields, " "), "cut max 500 ms 2 250 612 612 ms 3 1000 NO 0.00"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
