package metricsauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
)

var metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "clarion_up 1") })

// server asks about tokens of these names: good may, poor is known but may not, away stands for an API server that is.
func server(asked *atomic.Int32) *filter {
	return newFilter(logr.Discard(), metrics, func(ctx context.Context, token, path string) (int, error) {
		asked.Add(1)
		switch {
		case token == "good" && path == "/metrics":
			return http.StatusOK, nil
		case token == "good" || token == "poor":
			return http.StatusForbidden, nil
		case token == "away":
			return 0, errors.New("no API server")
		case token == "slow":
			<-ctx.Done()
			return 0, ctx.Err()
		}
		return http.StatusUnauthorized, nil
	})
}

func get(f *filter, method, path, authorization string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	r.Header.Set("Authorization", authorization)
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	return w
}

func TestWhoMayRead(t *testing.T) {
	for _, tt := range []struct {
		method, path, authorization string
		want                        int
	}{
		{"GET", "/metrics", "", 401},
		{"GET", "/metrics", "Bearer ", 401},
		{"GET", "/metrics", "Basic good", 401},
		{"GET", "/metrics", "Bearer bad", 401},
		{"GET", "/metrics", "Bearer poor", 403},
		{"GET", "/metrics", "Bearer good", 200},
		{"POST", "/metrics", "Bearer good", 405},
		{"GET", "/debug/pprof/", "Bearer good", 403},
		{"GET", "/metrics", "Bearer away", 503},
	} {
		w := get(server(new(atomic.Int32)), tt.method, tt.path, tt.authorization)
		if w.Code != tt.want || (w.Body.String() == "clarion_up 1") != (tt.want == 200) {
			t.Errorf("%s %s with %q: %d %q, want %d", tt.method, tt.path, tt.authorization, w.Code, w.Body, tt.want)
		}
	}
}

// An answer holds for a minute; one that could not be had is asked for again.
func TestAnswersAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		f := server(&asked)
		for range 3 {
			get(f, "GET", "/metrics", "Bearer good")
			get(f, "GET", "/metrics", "Bearer bad")
		}
		if n := asked.Load(); n != 2 {
			t.Errorf("asked %d times about two tokens", n)
		}
		time.Sleep(remember)
		get(f, "GET", "/metrics", "Bearer good")
		get(f, "GET", "/metrics", "Bearer away")
		get(f, "GET", "/metrics", "Bearer away")
		if n := asked.Load(); n != 5 {
			t.Errorf("asked %d times, want once more after a minute and for each that had no answer", n)
		}
	})
}

// A pod that sends any number of tokens neither fills the memory nor keeps out who is known.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		f := server(&asked)
		get(f, "GET", "/metrics", "Bearer good")
		for i := range 10 * remembered {
			get(f, "GET", "/metrics", fmt.Sprint("Bearer ", i))
		}
		if len(f.known) > remembered {
			t.Errorf("%d answers are kept, want at most %d", len(f.known), remembered)
		}
		done := make(chan struct{})
		go func() { defer close(done); get(f, "GET", "/metrics", "Bearer slow") }()
		synctest.Wait() // the API server is being asked now
		before := asked.Load()
		if w := get(f, "GET", "/metrics", "Bearer good"); w.Code != http.StatusOK || asked.Load() != before {
			t.Errorf("who is known gets %d after %d questions", w.Code, asked.Load()-before)
		}
		<-done
	})
}
