package main

import (
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/clarionlb/clarion/speaker/layer2"
)

// series are the metrics of addresses, by the metric and the address.
func series(t *testing.T, of *tally, addresses []layer2.AddressStatus) map[string]float64 {
	t.Helper()
	to := make(chan prometheus.Metric, 10000)
	of.addressMetrics(to, addresses)
	close(to)
	out := map[string]float64{}
	for m := range to {
		var d dto.Metric
		if err := m.Write(&d); err != nil {
			t.Fatal(err)
		}
		name := map[*prometheus.Desc]string{descAsked: "asked", descReplied: "replied", descGARP: "announced", descRivals: "rivals"}[m.Desc()]
		out[name+" "+d.Label[0].GetValue()] = d.GetCounter().GetValue() + d.GetGauge().GetValue()
	}
	return out
}

// A node with many addresses has no more series than one with few, and what it counts for all of them never falls.
func TestSeriesAreBounded(t *testing.T) {
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, byte(i / 256), byte(i)}) }
	var all []layer2.AddressStatus
	for i := range 1000 {
		a := layer2.AddressStatus{Addr: at(i), Requests: 10, Replies: 5, Announcements: 1}
		if i < 100 {
			a.Conflicts = make([]layer2.Conflict, 1)
		}
		all = append(all, a)
	}
	var of tally
	few := series(t, &of, all[:2])
	if len(few) != 8 || few["asked 192.0.0.1"] != 10 || few["rivals 192.0.0.1"] != 1 {
		t.Errorf("two addresses: %v", few)
	}
	many := series(t, &of, all)
	if len(many) != 4+maxSeries || many["asked "] != 10000 || many["replied "] != 5000 || many["announced "] != 1000 || many["rivals "] != 100-maxSeries {
		t.Errorf("1000 addresses: %v", many)
	}
	// Half of them leave, and one of these returns and counts from the start.
	less := series(t, &of, all[500:])
	back := series(t, &of, append(all[500:], layer2.AddressStatus{Addr: at(0), Requests: 3}))
	if less["asked "] != 10000 || back["asked "] != 10003 {
		t.Errorf("%v, then %v requests, want 10000 and 10003", less["asked "], back["asked "])
	}
	if len(less) != 4 {
		t.Errorf("without conflicts: %v", less)
	}
}
