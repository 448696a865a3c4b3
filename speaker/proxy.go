package main

import (
	"context"
	"net/http"
	"time"
)

// How often the Service proxy's health is asked for, how long an answer may take, and how many failures in a row make a
// healthy proxy an unhealthy one.
const (
	proxyInterval = time.Second
	proxyTimeout  = time.Second
	proxyFailures = 2
)

// watchProxy asks until ctx ends whether the Service proxy is healthy, and reports the first answer and every change.
func watchProxy(ctx context.Context, ask func(context.Context) bool, report func(healthy bool)) {
	tick := time.NewTicker(proxyInterval)
	defer tick.Stop()
	healthy, known, failures := false, false, 0
	for {
		if now := ask(ctx); now {
			failures = 0
			if !healthy || !known {
				healthy, known = true, true
				report(true)
			}
		} else if failures++; ctx.Err() == nil && (!known || healthy && failures >= proxyFailures) {
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
