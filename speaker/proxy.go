package main

import (
	"context"
	"net/http"
	"time"
)

// How often the Service proxy's health is asked for, and how long an answer may take.
const (
	proxyInterval = time.Second
	proxyTimeout  = time.Second
)

// watchProxy asks until ctx ends whether the Service proxy is healthy, and reports the first answer and every change. A
// proxy that was healthy is unhealthy when no answer said otherwise for the grace: while it is restarted, its rules stay in
// the kernel, and to move a node's addresses away and back would break more.
func watchProxy(ctx context.Context, ask func(context.Context) bool, grace time.Duration, report func(healthy bool)) {
	tick := time.NewTicker(proxyInterval)
	defer tick.Stop()
	healthy, known, good := false, false, time.Time{}
	for {
		if asked := time.Now(); ask(ctx) {
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

// askProxy asks a Service proxy's health endpoint. kube-proxy answers 200 while it keeps its rules up to date and the
// node is not about to be deleted (KEP-3836).
func askProxy(url string) func(context.Context) bool {
	c := &http.Client{Timeout: proxyTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	return func(ctx context.Context) bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return false // main has checked the URL
		}
		resp, err := c.Do(req)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
}
