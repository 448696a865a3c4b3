package main

import (
	"context"
	"net/netip"
	"time"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
)

// A node that gets its first endpoint of a Service with policy Local must not draw traffic before its Service proxy has
// the rules for it, which it may write a second after the EndpointSlice. kube-proxy says so at the Service's
// healthCheckNodePort. It is asked while that is not known, and not any more once the node announces the Service.
const (
	readyInterval = 20 * time.Millisecond
	readyTimeout  = time.Second
	readyLimit    = 3 * time.Second // then it is announced anyway: another Service proxy may not have the port
)

// asked is a port where the Service proxy is asked, or was.
type asked struct {
	serves bool                // it does, or has had its time to say so
	wait   map[netip.Addr]bool // the addresses to decide again then
}

// ready says whether the node's Service proxy serves one of the claims on an address. If that is not known, it is asked,
// and the address decided again when it has answered. s.snapshot is locked.
func (r *reconciler) ready(addr netip.Addr, claims []announce.Claim) bool {
	if r.asks == nil || r.first {
		return true // what was announced before a restart goes on
	}
	node := r.snapshot.Node(r.node)
	if len(node.Addresses) == 0 {
		return true
	}
	var ports []uint16
	for _, c := range claims {
		if c.Type != v1beta1.AddressLoadBalancerIP || !c.Service.LocalExternal || c.Service.HealthPort == 0 {
			return true
		}
		ports = append(ports, c.Service.HealthPort)
	}
	serves := len(ports) == 0
	for _, port := range ports {
		a := r.asked[port]
		if a == nil {
			a = &asked{wait: map[netip.Addr]bool{}}
			r.asked[port] = a
			go r.askReady(a, netip.AddrPortFrom(node.Addresses[0], port))
		}
		a.wait[addr] = true
		serves = serves || a.serves
	}
	return serves
}

// askReady asks until the Service proxy serves the Service at its port, or readyLimit is over.
func (r *reconciler) askReady(a *asked, at netip.AddrPort) {
	ctx, cancel := context.WithTimeout(context.Background(), readyLimit)
	defer cancel()
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	for ctx.Err() == nil && !r.asks(ctx, at) {
		select {
		case <-ctx.Done():
			r.log.Warn("the Service proxy does not say that it serves a Service from endpoints of its own; it is announced all the same", "asked", at, "for", readyLimit)
		case <-tick.C:
		}
	}
	r.snapshot.Lock()
	a.serves = true
	for addr := range a.wait {
		r.snapshot.Mark(addr)
	}
	r.snapshot.Unlock()
	r.poke()
}

// forgetReady makes the Service proxy be asked again before the address is announced again.
func (r *reconciler) forgetReady(claims []announce.Claim) {
	for _, c := range claims {
		if a := r.asked[c.Service.HealthPort]; a != nil && a.serves {
			delete(r.asked, c.Service.HealthPort)
		}
	}
}
