package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/clarionlb/clarion/internal/pool"
)

// counters is what has happened in the life of the process, whichever controllers ran in it.
type counters struct {
	allocated   prometheus.Counter
	failed      *prometheus.CounterVec // by reason
	latency     prometheus.Histogram   // seconds
	writeErrors *prometheus.CounterVec // by kind
}

// newCounters returns counters that are served. It may be called once in a process.
func newCounters() (*counters, error) {
	c := &counters{
		allocated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "clarion_allocations_total", Help: "Services that were given the addresses that they should have.",
		}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "clarion_allocation_failures_total",
			Help: "Services that were told that they cannot have what they should, by reason of the condition.",
		}, []string{"reason"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "clarion_allocation_seconds",
			Help: "Time from when a Service is first seen to when its status has an address. " +
				"A Service that is older than two seconds when it is first seen counts from its creation.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 600, 3600},
		}),
		writeErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "clarion_reconcile_errors_total", Help: "Statuses that could not be written, conflicts apart, by kind of object.",
		}, []string{"kind"}),
	}
	for _, m := range []prometheus.Collector{c.allocated, c.failed, c.latency, c.writeErrors} {
		if err := metrics.Registry.Register(m); err != nil {
			return nil, err
		}
	}
	return c, nil
}

var (
	poolCapacity = prometheus.NewDesc("clarion_pool_addresses", "Addresses that the pool may give out. Stops at 2^63-1.",
		[]string{"pool", "family"}, nil)
	poolAssigned = prometheus.NewDesc("clarion_pool_addresses_assigned", "Addresses of the pool that Services have.",
		[]string{"pool", "family"}, nil)
	poolAvailable = prometheus.NewDesc("clarion_pool_addresses_available", "Addresses that the pool could still give to any Service that it admits. Stops at 2^63-1.",
		[]string{"pool", "family"}, nil)
	poolQuarantined = prometheus.NewDesc("clarion_pool_addresses_quarantined", "Addresses of the pool that are given to nobody because a stranger on the local network uses them, or did so a short while ago.",
		[]string{"pool", "family"}, nil)
)

// poolCollector reads the pools' numbers from where they are kept.
type poolCollector struct{ pools *pools }

// setupMetrics serves the numbers of one controller until unregister is called.
func setupMetrics(p *pools) (unregister func(), err error) {
	c := &poolCollector{p}
	return func() { metrics.Registry.Unregister(c) }, metrics.Registry.Register(c)
}

// Describe is prometheus.Collector's.
func (c *poolCollector) Describe(to chan<- *prometheus.Desc) {
	to <- poolCapacity
	to <- poolAssigned
	to <- poolAvailable
	to <- poolQuarantined
}

// Collect is prometheus.Collector's. A standby has no numbers.
func (c *poolCollector) Collect(to chan<- prometheus.Metric) {
	for _, name := range c.pools.poolNames() {
		u := c.pools.services.usage(name)
		for _, f := range []pool.Family{pool.IPv4, pool.IPv6} {
			gauge := func(d *prometheus.Desc, v int64) {
				to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), name, f.String())
			}
			gauge(poolCapacity, u.Capacity[f])
			gauge(poolAssigned, u.Assigned[f])
			gauge(poolAvailable, u.Available[f])
			gauge(poolQuarantined, u.Quarantined[f])
		}
	}
}
