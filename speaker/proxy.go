package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// How often the Service proxy's health is asked for, and how long an answer may take.
const (
	proxyInterval = time.Second
	proxyTimeout  = time.Second
)

// watchProxy asks until ctx ends whether the Service proxy is healthy, and reports the first answer and every change. A
// proxy that was healthy is unhealthy when no answer said otherwise for the grace: while it is restarted, its rules stay in
// the kernel, and to move a node's addresses away and back would break more.
func watchProxy(ctx context.Context, ask func(context.Context) proxyHealth, grace time.Duration, report func(healthy bool)) {
	tick := time.NewTicker(proxyInterval)
	defer tick.Stop()
	healthy, known, good := false, false, time.Time{}
	for {
		if asked := time.Now(); ask(ctx).healthy() {
			good = asked
			if !healthy || !known {
				healthy, known = true, true
				report(true)
			}
		} else if ctx.Err() == nil && (!known || healthy && time.Since(good) >= grace) {
			healthy, known = false, true
			report(false)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// proxyHealth is what a Service proxy's health endpoint says.
type proxyHealth struct {
	ok    bool
	Newer *bool `json:"healthy"` // nil from a proxy that does not write Status
	// Status is when rules were last written, by family; empty before the first time.
	Status map[string]struct {
		LastUpdated time.Time `json:"lastUpdated"`
	} `json:"status"`
}

// has says whether what this node learned at a time is in the rules of an address's family, as far as one can know.
func (h proxyHealth) has(addr netip.Addr, at time.Time) bool {
	family := string(corev1.IPv4Protocol)
	if addr.Is6() {
		family = string(corev1.IPv6Protocol)
	}
	return !h.ok || h.Newer == nil || h.Status[family].LastUpdated.After(at) || time.Since(at) >= syncLimit
}

// healthy says whether the proxy serves: kube-proxy answers 200 while it keeps its rules up to date and the node is not
// about to be deleted (KEP-3836), but also before it has written any.
func (h proxyHealth) healthy() bool { return h.ok && (h.Newer == nil || len(h.Status) > 0) }

// askProxy asks a Service proxy's health endpoint.
func askProxy(url string) func(context.Context) proxyHealth {
	c := &http.Client{Timeout: proxyTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	return func(ctx context.Context) (h proxyHealth) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return h // main has checked the URL
		}
		resp, err := c.Do(req)
		if err != nil {
			return h
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&h); err != nil {
			h = proxyHealth{} // another proxy's words
		}
		h.ok = resp.StatusCode == http.StatusOK
		return h
	}
}
