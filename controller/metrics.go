package main

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/pool"
)

// counters is what has happened in the life of the process, whichever controllers ran in it.
type counters struct {
	allocated   prometheus.Counter
	failed      *prometheus.CounterVec // by reason
	latency     prometheus.Histogram   // seconds
	writeErrors *prometheus.CounterVec // by kind
}

// newCounters returns counters that are served from r.
func newCounters(r prometheus.Registerer) (*counters, error) {
	c := &counters{
		allocated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "clarion_allocations_total", Help: "Services that were given the addresses that they should have.",
		}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "clarion_allocation_failures_total",
			Help: "Services that were told that they cannot have what they should, by reason of the condition.",
		}, []string{"reason"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "clarion_allocation_duration_seconds",
			Help: "Time from when a Service is first seen to when its status has an address. " +
				"A Service that is older than two seconds when it is first seen counts from its creation.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 600, 3600},
		}),
		writeErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "clarion_status_write_errors_total", Help: "Statuses that could not be written, conflicts apart, by kind of object.",
		}, []string{"kind"}),
	}
	for _, m := range []prometheus.Collector{c.allocated, c.failed, c.latency, c.writeErrors} {
		if err := r.Register(m); err != nil {
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
	poolQuarantined = prometheus.NewDesc("clarion_pool_addresses_quarantined", "Addresses of the pool that are given to nobody because a foreign host on the local network uses them, or did so a short while ago.",
		[]string{"pool", "family"}, nil)
)

var (
	serviceStates = prometheus.NewDesc("clarion_services", "Services that have a condition of Clarion's, by what it says.",
		[]string{"condition", "status", "reason"}, nil)
	configReady = prometheus.NewDesc("clarion_config_ready", "Whether a configuration object is in use as written.",
		[]string{"kind", "name"}, nil)
)

// collector reads the pools' numbers from where they are kept, and the conditions that were written from the cache.
type collector struct {
	pools  *pools
	client client.Reader
	holds  func() bool // whether this controller leads
}

// setupMetrics serves the controller's numbers.
func setupMetrics(p *pools, c client.Reader, holds func() bool) error {
	return metrics.Registry.Register(&collector{p, c, holds})
}

// Describe is prometheus.Collector's.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	to <- serviceStates
	to <- configReady
	to <- poolCapacity
	to <- poolAssigned
	to <- poolAvailable
	to <- poolQuarantined
}

// Collect is prometheus.Collector's. A standby has no numbers.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	for name, u := range c.pools.services.usage() {
		for _, f := range []pool.Family{pool.IPv4, pool.IPv6} {
			gauge := func(d *prometheus.Desc, v int64) {
				to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), name, f.String())
			}
			gauge(poolCapacity, u.Capacity[f])
			gauge(poolAssigned, u.Assigned[f])
			gauge(poolAvailable, u.Available[f])
			quarantined := int64(0)
			for _, a := range u.Quarantined {
				if pool.FamilyOf(a) == f {
					quarantined++
				}
			}
			gauge(poolQuarantined, quarantined)
		}
	}
	if c.holds() {
		c.collectConditions(to)
	}
}

func (c *collector) collectConditions(to chan<- prometheus.Metric) {
	// Before the caches are filled there is nothing to tell.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	type state struct{ condition, status, reason string }
	states := map[state]int{}
	var services corev1.ServiceList
	if c.client.List(ctx, &services, client.UnsafeDisableDeepCopy) == nil {
		for i := range services.Items {
			for _, cond := range services.Items[i].Status.Conditions {
				if name, ours := strings.CutPrefix(cond.Type, v1beta1.GroupVersion.Group+"/"); ours {
					states[state{name, string(cond.Status), cond.Reason}]++
				}
			}
		}
	}
	for s, n := range states {
		to <- prometheus.MustNewConstMetric(serviceStates, prometheus.GaugeValue, float64(n), s.condition, s.status, s.reason)
	}
	for kind, list := range map[string]client.ObjectList{
		"IPAddressPool": &v1beta1.IPAddressPoolList{}, "L2Advertisement": &v1beta1.L2AdvertisementList{},
		"BGPAdvertisement": &v1beta1.BGPAdvertisementList{}, "BGPPeer": &v1beta1.BGPPeerList{},
		"BFDProfile": &v1beta1.BFDProfileList{}, "Community": &v1beta1.CommunityList{},
	} {
		if c.client.List(ctx, list, client.UnsafeDisableDeepCopy) != nil {
			continue
		}
		_ = meta.EachListItem(list, func(o runtime.Object) error {
			ready := 0.0
			if meta.IsStatusConditionTrue(conditionsOf(o), v1beta1.ConditionReady) {
				ready = 1
			}
			to <- prometheus.MustNewConstMetric(configReady, prometheus.GaugeValue, ready, kind, o.(client.Object).GetName())
			return nil
		})
	}
}

func conditionsOf(o runtime.Object) []metav1.Condition {
	switch o := o.(type) {
	case *v1beta1.IPAddressPool:
		return o.Status.Conditions
	case *v1beta1.L2Advertisement:
		return o.Status.Conditions
	case *v1beta1.BGPAdvertisement:
		return o.Status.Conditions
	case *v1beta1.BGPPeer:
		return o.Status.Conditions
	case *v1beta1.BFDProfile:
		return o.Status.Conditions
	case *v1beta1.Community:
		return o.Status.Conditions
	}
	return nil
}
