package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
)

// One missed answer is not a dead proxy, two are; one good answer is a live one.
func TestProxyHealthIsReportedOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := []bool{false, true, false, true, false, false, false, true}
		ctx, cancel := context.WithCancel(t.Context())
		asked := 0
		var got []bool
		watchProxy(ctx, func(context.Context) bool {
			if asked++; asked == len(answers) {
				cancel()
			}
			return answers[asked-1]
		}, func(healthy bool) { got = append(got, healthy) })
		if want := []bool{false, true, false, true}; !slices.Equal(got, want) {
			t.Errorf("reports %v, want %v", got, want)
		}
	})
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
