package main

import (
	"net/netip"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/speaker/bfd"
	"github.com/clarionlb/clarion/speaker/bgp"
	"github.com/clarionlb/clarion/speaker/layer2"
	"github.com/clarionlb/clarion/speaker/members"
)

// collector shows as metrics what the parts of the speaker hold; nothing is counted twice.
type collector struct {
	layer2        *layer2.Responder
	bgp           *bgp.Speaker
	members       func() members.View
	status        func() v1beta1.SpeakerStatus
	eventToUpdate prometheus.Histogram
	tally         *tally
}

// maxSeries is how many addresses have series of their own. Of more, one series without an address counts what is asked
// and said for all of them, and of conflicts those of the first addresses are named.
const maxSeries = 64

// traffic is what was heard and sent for an address: requests, replies, announcements.
type traffic [3]uint64

// tally sums the traffic of all addresses, those included that the node no longer has: it never falls.
type tally struct {
	mu   sync.Mutex
	last map[netip.Addr]traffic
	sum  traffic
}

// add takes in what each address has come to, and returns the sum.
func (t *tally) add(addresses []layer2.AddressStatus) traffic {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := make(map[netip.Addr]traffic, len(addresses))
	for _, a := range addresses {
		now, last := traffic{a.Requests, a.Replies, a.Announcements}, t.last[a.Addr]
		for i := range now {
			if now[i] < last[i] { // it went and came again
				last[i] = 0
			}
			t.sum[i] += now[i] - last[i]
		}
		next[a.Addr] = now
	}
	t.last = next
	return t.sum
}

// addressMetrics shows what layer 2 does for each address, or where there are many, for all of them.
func (t *tally) addressMetrics(to chan<- prometheus.Metric, addresses []layer2.AddressStatus) {
	show := func(addr string, n traffic) {
		for i, d := range []*prometheus.Desc{descAsked, descReplied, descGARP} {
			to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n[i]), addr)
		}
	}
	rivals := func(addr string, n int) {
		to <- prometheus.MustNewConstMetric(descRivals, prometheus.GaugeValue, float64(n), addr)
	}
	all := t.add(addresses)
	if len(addresses) <= maxSeries {
		for _, a := range addresses {
			show(a.Addr.String(), traffic{a.Requests, a.Replies, a.Announcements})
			rivals(a.Addr.String(), len(a.Conflicts))
		}
		return
	}
	show("", all)
	named, rest := 0, 0
	for _, a := range addresses {
		switch {
		case len(a.Conflicts) == 0:
		case named < maxSeries:
			named++
			rivals(a.Addr.String(), len(a.Conflicts))
		default:
			rest += len(a.Conflicts)
		}
	}
	rivals("", rest)
}

var (
	descMembers = prometheus.NewDesc("clarion_speaker_members", "Speakers that this one knows to be alive, itself included.", nil, nil)
	descReady   = prometheus.NewDesc("clarion_speaker_ready", "Whether the speaker has joined the others, so that it may announce addresses on the local network.", nil, nil)
	descGated   = prometheus.NewDesc("clarion_speaker_gated", "Whether the node attracts no traffic while others can, since its Service proxy is unhealthy or it is being drained.", nil, nil)
	descGuarded = prometheus.NewDesc("clarion_speaker_guarded", "Whether packets for announced addresses that no Service has are kept from going round between routers and the node.", nil, nil)
	descOwned   = prometheus.NewDesc("clarion_layer2_addresses", "Addresses of this node on the local network, by what it does about them.", []string{"state"}, nil)
	descAsked   = prometheus.NewDesc("clarion_layer2_requests_total", "ARP requests and neighbour solicitations heard for an address; for all together, without an address, where the node has more than 64.", []string{"address"}, nil)
	descReplied = prometheus.NewDesc("clarion_layer2_replies_total", "ARP replies and solicited neighbour advertisements sent for an address.", []string{"address"}, nil)
	descGARP    = prometheus.NewDesc("clarion_layer2_announcements_total", "Unasked announcements made of an address.", []string{"address"}, nil)
	descRivals  = prometheus.NewDesc("clarion_layer2_conflicts", "Foreign hosts on the local network that claim an address; of more than 64 addresses those without a claim are left out.", []string{"address"}, nil)
	descUp      = prometheus.NewDesc("clarion_bgp_session_up", "Whether the BGP session with a peer is established.", []string{"peer"}, nil)
	descUps     = prometheus.NewDesc("clarion_bgp_session_established_total", "How often the BGP session with a peer was established.", []string{"peer"}, nil)
	descSince   = prometheus.NewDesc("clarion_bgp_session_changed_timestamp_seconds", "When the BGP session with a peer was established or lost, in seconds since 1970.", []string{"peer"}, nil)
	descSent    = prometheus.NewDesc("clarion_bgp_prefixes_sent", "Prefixes that are announced to a peer.", []string{"peer", "family"}, nil)
	descMsgs    = prometheus.NewDesc("clarion_bgp_messages_total", "BGP messages exchanged with a peer.", []string{"peer", "direction", "type"}, nil)
	descFlaps   = prometheus.NewDesc("clarion_bfd_session_down_total", "How often the BFD session with a peer went down.", []string{"peer"}, nil)
	descBFD     = prometheus.NewDesc("clarion_bfd_session_up", "Whether the BFD session with a peer is up.", []string{"peer"}, nil)
)

// newEventToUpdate is the one metric that no part holds already.
func newEventToUpdate() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "clarion_bgp_event_to_update_seconds",
		Help:    "Time from an event of the cluster to the first UPDATE message that it unsent.",
		Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 5},
	})
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descMembers, descReady, descGated, descGuarded, descOwned, descAsked, descReplied, descGARP, descRivals, descUp, descUps, descSince, descSent, descMsgs, descFlaps, descBFD} {
		to <- d
	}
	c.eventToUpdate.Describe(to)
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	c.eventToUpdate.Collect(to)
	gauge(descMembers, float64(len(c.members().Members)))
	status := c.status()
	gauge(descReady, bit(meta.IsStatusConditionTrue(status.Conditions, v1beta1.ConditionReady)))
	gauge(descGated, bit(status.Gate != ""))
	gauge(descGuarded, bit(meta.IsStatusConditionTrue(status.Conditions, v1beta1.ConditionGuarded)))
	states := map[layer2.State]int{}
	for _, s := range layer2.States() {
		states[s] = 0
	}
	addresses := c.layer2.Status().Addresses
	for _, a := range addresses {
		states[a.State]++
	}
	c.tally.addressMetrics(to, addresses)
	for state, n := range states {
		gauge(descOwned, float64(n), string(state))
	}
	peers := map[string]bool{}
	for _, s := range c.bgp.Status() {
		if peers[s.Peer] { // another gateway of the same default route
			s.Peer += "@" + s.Address.String()
		}
		peers[s.Peer] = true
		gauge(descUp, bit(s.State == bgp.Established), s.Peer)
		count(descUps, s.Ups, s.Peer)
		gauge(descSince, float64(s.Since.Unix()), s.Peer)
		gauge(descSent, float64(s.Sent4), s.Peer, "IPv4")
		gauge(descSent, float64(s.Sent6), s.Peer, "IPv6")
		for direction, n := range map[string]bgp.Counters{"in": s.MessagesIn, "out": s.MessagesOut} {
			count(descMsgs, n.Open, s.Peer, direction, "open")
			count(descMsgs, n.Update, s.Peer, direction, "update")
			count(descMsgs, n.Notification, s.Peer, direction, "notification")
			count(descMsgs, n.Keepalive, s.Peer, direction, "keepalive")
			count(descMsgs, n.Refresh, s.Peer, direction, "refresh")
		}
		if s.BFD != nil {
			gauge(descBFD, bit(s.BFD.State == bfd.Up), s.Peer)
			count(descFlaps, s.BFD.Downs, s.Peer)
		}
	}
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
