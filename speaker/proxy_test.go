package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A proxy that is restarted, and does not answer for 14 seconds, is as healthy as before; one that does not answer for 15 is
// not, and one good answer makes it healthy. Only the first answer counts at once.
func TestProxyHealthIsReportedOnChange(t *testing.T) {
	for _, tt := range []struct {
		answers string // one a second; + healthy
		want    string // with the second in which it is reported
	}{
		{"-+", "0- 1+"},
		{"+--------------+--------------+", "0+"},
		{"+---------------+", "0+ 15- 16+"},
		{"+--------------+---------------", "0+ 30-"},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			asked := 0
			got := ""
			watchProxy(ctx, func(context.Context) proxyHealth {
				if asked++; asked > len(tt.answers) {
					cancel()
					return proxyHealth{ok: true}
				}
				return proxyHealth{ok: tt.answers[asked-1] == '+'}
			}, 15*time.Second, func(healthy bool) {
				got += fmt.Sprint(" ", asked-1, map[bool]string{true: "+", false: "-"}[healthy])
			})
			got = strings.ReplaceAll(strings.TrimSpace(got), fmt.Sprint(" ", len(tt.answers), "+"), "")
			if got != tt.want {
				t.Errorf("answers %s: reports %q, want %q", tt.answers, got, tt.want)
			}
		})
	}
}

func TestAskProxy(t *testing.T) {
	status, body := 0, ""
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	ask := askProxy(srv.URL)
	now := time.Now()
	at := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339Nano) }
	for _, tt := range []struct {
		status       int
		body         string
		healthy, has bool // has: what was learned now is in the rules for IPv4
	}{
		{200, "", true, true},
		{503, "", false, true},
		{404, "", false, true},
		{200, `{"lastUpdated": "` + at(0) + `", "currentTime": "` + at(0) + `", "nodeEligible": true}`, true, true},             // Kubernetes 1.33
		{200, `{"lastUpdated": "` + at(0) + `", "healthy": true}`, false, false},                                                // before the first rules
		{200, `{"healthy": true, "status": {"IPv4": {"lastUpdated": "` + at(-time.Second) + `"}}}`, true, false},                // older
		{200, `{"healthy": true, "status": {"IPv6": {"lastUpdated": "` + at(time.Second) + `"}}}`, true, false},                 // of the other family
		{200, `{"healthy": true, "status": {"IPv4": {"lastUpdated": "` + at(time.Second) + `", "healthy": true}}}`, true, true}, // newer
		{503, `{"healthy": false, "status": {"IPv4": {"lastUpdated": "` + at(-time.Hour) + `"}}}`, false, true},                 // late: it is gated
		{200, `{"status": "fine"}`, true, true}, // another proxy's words
	} {
		status, body = tt.status, tt.body
		if h := ask(t.Context()); h.healthy() != tt.healthy || h.has(netip.MustParseAddr("192.0.2.1"), now) != tt.has {
			t.Errorf("status %d, %s: healthy %t, has it %t", status, body, h.healthy(), h.has(netip.MustParseAddr("192.0.2.1"), now))
		}
	}
	srv.Close()
	if ask(t.Context()).healthy() {
		t.Error("a proxy that does not listen is taken for healthy")
	}
}
