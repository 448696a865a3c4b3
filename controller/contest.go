package main

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/internal/allocate"
	"github.com/clarionlb/clarion/internal/ipam"
)

// How somebody who rewrites the addresses in a Service's status is answered: at once for the first contestPatience times,
// then not before contestFirst, twice that, and so on to contestLast. After contestOver without it all is as before.
const (
	contestPatience = 3
	contestFirst    = 2 * time.Second
	contestLast     = 5 * time.Minute
	contestOver     = 15 * time.Minute
)

// contest is what this controller wrote last into a Service's status, and how somebody else took it.
type contest struct {
	wrote []netip.Addr
	times int       // it was written over
	next  time.Time // not to be written again before
}

// contested says how long to wait before a Service's addresses are written again, because somebody else keeps rewriting
// them. The user is told when it comes to that.
func (s *services) contested(svc *corev1.Service, res *ipam.Result) time.Duration {
	k, addrs, now := client.ObjectKeyFromObject(svc), res.Addresses(), time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.contests[k]
	switch {
	case c == nil || !slices.Equal(c.wrote, addrs) || allocate.Says(svc, addrs) && allocate.Managed(svc):
		return 0
	case now.Before(c.next):
		return c.next.Sub(now)
	case now.Sub(c.next) > contestOver:
		c.times = 0
	}
	if c.times++; c.times == contestPatience {
		s.log.Warn("status is contested", "service", k.String(), "wrote", addrs, "found", allocate.Ingress(svc))
		s.event(svc, corev1.EventTypeWarning, "StatusContested", fmt.Sprintf("somebody else rewrites the addresses in the status, %v to %v; they are written again, "+
			"after longer and longer pauses; kubectl get service %s -o yaml --show-managed-fields tells who it is", addrs, allocate.Ingress(svc), svc.Name))
	}
	c.next = now
	if over := c.times - contestPatience; over >= 0 {
		c.next = now.Add(min(contestFirst<<min(over, 16), contestLast))
	}
	return 0
}
