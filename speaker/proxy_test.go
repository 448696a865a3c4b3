package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
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
			watchProxy(ctx, func(context.Context) bool {
				if asked++; asked > len(tt.answers) {
					cancel()
					return true
				}
				return tt.answers[asked-1] == '+'
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
	status := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	ask := askProxy(srv.URL)
	for _, tt := range []struct {
		status int
		want   bool
	}{{200, true}, {503, false}, {404, false}} {
		if status = tt.status; ask(t.Context()) != tt.want {
			t.Errorf("status %d: want healthy=%v", tt.status, tt.want)
		}
	}
	srv.Close()
	if ask(t.Context()) {
		t.Error("a proxy that does not listen is taken for healthy")
	}
}
