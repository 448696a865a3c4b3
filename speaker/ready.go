package main

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
)

// A node must not draw traffic for what its Service proxy has no rules for yet, which it may write a second after the
// EndpointSlice. For a Service with policy Local, kube-proxy says so at the Service's healthCheckNodePort; of others it says
// only when it last wrote rules. It is asked for what has become servable of late, and not any more once it is known.
const (
	readyInterval = 20 * time.Millisecond
	readyGap      = time.Millisecond // between the questions of all Services
	readyLate     = 5 * time.Second  // between two that were not answered in time
	readyTimeout  = time.Second
	readyLimit    = 3 * time.Second         // then it is announced anyway: another Service proxy may not have the port
	syncLimit     = 1500 * time.Millisecond // kube-proxy rests a second between two times, and may have been faster than this node
)

// fitness is what is known of an address that this node can serve, as far as endpoints say.
type fitness struct {
	since time.Time
	ready bool // the Service proxy serves it, or has had its time
}

// asked is a question to the Service proxy that is being asked.
type asked map[netip.Addr]*fitness

// seeFit takes in whether this node can serve an address. s.snapshot is locked, as for ready.
func (r *reconciler) seeFit(addr netip.Addr) {
	can := slices.ContainsFunc(r.snapshot.ClaimsOn(addr), func(c announce.Claim) bool { return c.ServedBy(addr, r.node) })
	switch f := r.fit[addr]; {
	case !can:
		delete(r.fit, addr)
		delete(r.unproven, addr)
	case f == nil: // what was announced before a restart goes on
		r.fit[addr] = &fitness{since: time.Now(), ready: r.first}
	}
}

// ready says whether the node's Service proxy serves one of the claims on an address. If that is not known, it is asked,
// and the address decided again when it has answered.
func (r *reconciler) ready(addr netip.Addr, claims []announce.Claim) bool {
	f, node := r.fit[addr], r.snapshot.Node(r.node)
	if f == nil || f.ready || r.asks == nil || r.synced == nil || len(node.Addresses) == 0 {
		return true
	}
	var ports []uint16
	for _, c := range claims {
		if c.Type != v1beta1.AddressLoadBalancerIP || !c.Service.LocalExternal || c.Service.HealthPort == 0 {
			ports = []uint16{0} // no port: when it last wrote rules
			break
		}
		ports = append(ports, c.Service.HealthPort)
	}
	for _, port := range ports {
		limit := readyLimit
		if port == 0 {
			limit = syncLimit
		}
		if f.ready = f.ready || time.Since(f.since) >= limit; f.ready {
			return true
		}
		a := r.asked[port]
		if a == nil {
			a = asked{}
			r.asked[port] = a
			go r.ask(a, netip.AddrPortFrom(node.Addresses[0], port))
		}
		a[addr] = f
	}
	return false
}

// ask asks until the Service proxy serves the Service at its port, or, where that is 0, everything that was asked for
// has been there when it last wrote its rules. When the time is up the address is announced, and asked for now and then.
func (r *reconciler) ask(a asked, at netip.AddrPort) {
	for {
		var health proxyHealth
		serves := false
		if at.Port() == 0 {
			health = r.synced(context.Background())
		} else {
			serves = r.asks(context.Background(), at)
		}
		r.snapshot.Lock()
		wait, news := readyLate, false
		for addr, f := range a {
			_, late := r.unproven[addr]
			switch {
			case r.fit[addr] != f, f.ready && !late: // it moved, or is served at the port of another Service
				delete(a, addr)
				continue
			case at.Port() == 0 && health.has(addr, f.since), serves:
				delete(a, addr)
				delete(r.unproven, addr)
			case late:
				continue
			case at.Port() == 0, time.Since(f.since) < readyLimit:
				wait = readyInterval
				continue
			default:
				r.unproven[addr] = at.Port()
				r.log.Warn("the Service proxy does not say that it serves a Service from endpoints of its own; it is announced all the same", "address", addr, "asked", at, "for", readyLimit)
			}
			f.ready, news = true, true
			r.snapshot.Mark(addr)
		}
		wait = max(wait, time.Duration(len(r.asked))*readyGap)
		left := len(a)
		if left == 0 {
			delete(r.asked, at.Port())
		}
		r.snapshot.Unlock()
		if news {
			r.poke()
		}
		if left == 0 {
			return
		}
		time.Sleep(wait)
	}
}
