package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"path/filepath"
	"strings"
	"testing"
)

// The command prints the address of a page, serves it, of a cluster and of a dump, and ends well when it is interrupted.
func TestDashboard(t *testing.T) {
	m := makeUp(t, 3, 6)
	dump := filepath.Join(t.TempDir(), "dump.tar.gz")
	if said := says(t, m, nil, "dump", "--to", dump); strings.Contains(said, "error") {
		t.Fatal(said)
	}
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"cluster": {[]string{"--context", "rack-room"}, `"cluster":"rack-room"`},
		"dump":    {[]string{"--offline", "--cluster", dump}, `"cluster":"dump.tar.gz","dump":"2026-`},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			out, in := io.Pipe()
			a := testApp(m, in)
			ended := make(chan int)
			go func() { ended <- a.run(ctx, append([]string{"dashboard", "--no-open"}, tt.args...)) }()
			lines := bufio.NewScanner(out)
			if !lines.Scan() {
				t.Fatal(lines.Err())
			}
			_, url, _ := strings.Cut(lines.Text(), ": ")
			jar, err := cookiejar.New(nil)
			if err != nil {
				t.Fatal(err)
			}
			browser := http.Client{Jar: jar}
			r, err := browser.Get(url)
			if err != nil {
				t.Fatal(err)
			}
			if _ = r.Body.Close(); r.StatusCode != 200 || r.Request.URL.RawQuery != "" {
				t.Fatalf("%s at %s", r.Status, r.Request.URL)
			}
			base, _, _ := strings.Cut(url, "?")
			if r, err = browser.Get(base + "api/live"); err != nil {
				t.Fatal(err)
			}
			events := bufio.NewScanner(r.Body)
			events.Buffer(nil, 1<<20)
			for events.Scan() && !strings.Contains(events.Text(), tt.want) {
			}
			if events.Err() != nil || !strings.Contains(events.Text(), tt.want) {
				t.Errorf("no picture with %s came: %v", tt.want, events.Err())
			}
			cancel()
			_ = r.Body.Close()
			if code := <-ended; code != 0 {
				t.Errorf("exit %d", code)
			}
		})
	}
}
