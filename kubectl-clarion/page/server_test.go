package page

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func serve(t *testing.T) *Server {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	s := New(l, nil)
	s.take(&Picture{Overview: Overview{Cluster: "test"}, Services: []Service{{Name: "shop/web", State: Good, Answer: "is reachable at 192.0.2.1."}}}, nil, nil, time.Second)
	return s
}

// Who does not know the secret, calls the page by another name, or wants to write, gets nothing.
func TestWhoIsServed(t *testing.T) {
	s := serve(t)
	host := s.listen.Addr().String()
	_, port, _ := net.SplitHostPort(host)
	cookie := "clarion-" + port
	for _, tt := range []struct {
		name, method, host, path, cookie string
		want                             int
	}{
		{"the first address", "GET", host, "/?token=" + s.token, "", 303},
		{"a wrong token", "GET", host, "/?token=" + s.token[1:], "", 403},
		{"an empty token", "GET", host, "/?token=", "", 403},
		{"no cookie", "GET", host, "/", "", 403},
		{"no cookie for a script", "GET", host, "/page.js", "", 403},
		{"no cookie for Services", "GET", host, "/api/services", "", 403},
		{"no cookie for what is live", "GET", host, "/api/live", "", 403},
		{"a wrong cookie", "GET", host, "/api/services", s.token + "x", 403},
		{"the cookie", "GET", host, "/", s.token, 200},
		{"the cookie, and Services", "GET", host, "/api/services", s.token, 200},
		{"by the name localhost", "GET", "localhost:" + port, "/", s.token, 200},
		{"by a name that points here", "GET", "evil.example:" + port, "/api/services", s.token, 403},
		{"by a name that points here, with the token", "GET", "evil.example:" + port, "/?token=" + s.token, "", 403},
		{"by another port", "GET", "127.0.0.1:1", "/", s.token, 403},
		{"without a port", "GET", "127.0.0.1", "/", s.token, 403},
		{"a write", "POST", host, "/api/services", s.token, 405},
		{"a file that is not the page's", "GET", host, "/web/page.html", s.token, 404},
		{"a way out", "GET", host, "/../server.go", s.token, 404},
	} {
		r := httptest.NewRequest(tt.method, "http://"+tt.host+tt.path, nil)
		if tt.cookie != "" {
			r.AddCookie(&http.Cookie{Name: cookie, Value: tt.cookie})
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, w.Code, tt.want)
		}
		if strings.Contains(w.Body.String(), s.token) || strings.Contains(w.Header().Get("Location"), s.token) {
			t.Errorf("%s: the answer holds the secret", tt.name)
		}
		csp := w.Header().Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || w.Header().Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: headers %v", tt.name, w.Header())
		}
		if c := w.Result().Cookies(); tt.want == 303 && (len(c) != 1 || !c[0].HttpOnly || c[0].SameSite != http.SameSiteStrictMode || c[0].Name != cookie) {
			t.Errorf("%s: cookies %v", tt.name, c)
		}
	}
}

// The page's files hold no script or style within the HTML, and name nothing outside.
func TestFiles(t *testing.T) {
	for _, name := range []string{"page.html", "page.js", "page.css", "icon.svg"} {
		b, err := web.ReadFile("web/" + name)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "http://www.w3.org/2000/svg", "")
		for _, not := range []string{"http://", "https://", "innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "@import", " style=", "<style"} {
			if strings.Contains(text, not) {
				t.Errorf("%s holds %q", name, not)
			}
		}
	}
}

// A picture is live only while the cluster is read as often as it should be.
func TestHealth(t *testing.T) {
	s := serve(t)
	now := time.Now()
	if h := s.health(now); !h.Live {
		t.Errorf("just read: %+v", h)
	}
	if h := s.health(now.Add(time.Hour)); h.Live || h.Read == nil {
		t.Errorf("after the computer has slept for an hour: %+v", h)
	}
	if h := s.health(now.Add(-time.Hour)); h.Live {
		t.Errorf("after the clock was set back: %+v", h)
	}
	if s.at != s.at.Round(0) {
		t.Error("the time of the picture is one of a clock that stands still while the computer sleeps")
	}
	s.take(nil, nil, errors.New("no route to host"), time.Second)
	if h := s.health(now); h.Live || h.Failed != "no route to host" || h.Read == nil {
		t.Errorf("when the cluster cannot be read: %+v", h)
	}
	s.take(&Picture{}, nil, nil, time.Second)
	if h := s.health(time.Now()); !h.Live || h.Failed != "" {
		t.Errorf("when it can be read again: %+v", h)
	}
	s.take(&Picture{Taken: now}, nil, nil, time.Second)
	if h := s.health(time.Now()); h.Live || !h.Dump {
		t.Errorf("of a dump: %+v", h)
	}
}

// What has changed is sent as soon as it was read, and what has not is not sent again.
func TestLive(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	clusters := make(chan string)
	s := New(l, func(ctx context.Context) (*Picture, []Event, error) {
		select {
		case name := <-clusters:
			return &Picture{Overview: Overview{Cluster: name}}, []Event{{State: Unknown, Text: "it is " + name}}, nil
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	r, err := http.NewRequestWithContext(ctx, "GET", "http://"+l.Addr().String()+"/api/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	r.AddCookie(&http.Cookie{Name: "clarion-" + port, Value: s.token})
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	in := bufio.NewScanner(resp.Body)
	pictures := 0
	until := func(text string) {
		t.Helper()
		for in.Scan() {
			if in.Text() == "event: picture" {
				pictures++
			}
			if strings.Contains(in.Text(), text) {
				return
			}
		}
		t.Fatalf("%q never came: %v", text, in.Err())
	}
	until(`"live":false`)
	clusters <- "first"
	until(`"cluster":"first"`)
	until(`it is first`)
	until(`"live":true`)
	clusters <- "first"
	until(`it is first`)
	clusters <- "second"
	until(`"cluster":"second"`)
	until(`it is second`)
	if pictures != 2 {
		t.Errorf("%d pictures, want 2: the one that came twice is one", pictures)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestList(t *testing.T) {
	all := []Service{{Name: "b/two", State: Good, Answer: "is reachable at 192.0.2.2.", Addresses: []string{"192.0.2.2"}}, {Name: "c/three", State: Bad, Answer: "is not reachable: the pool lan is full."}, {Name: "a/one", State: Good, Answer: "is reachable at 192.0.2.1.", Addresses: []string{"192.0.2.1"}}}
	Sort(all)
	names := func(l Listed) string {
		var out []string
		for _, s := range l.Items {
			out = append(out, s.Name)
		}
		return strings.Join(out, " ")
	}
	for _, tt := range []struct {
		search, state string
		offset, limit int
		want          string
		total         int
	}{
		{"", "", 0, 10, "c/three a/one b/two", 3},
		{"", "", 1, 1, "a/one", 3},
		{"POOL full", "", 0, 10, "c/three", 1},
		{"192.0.2.2", "", 0, 10, "b/two", 1},
		{"", "good", 0, 10, "a/one b/two", 2},
		{"nothing", "", 0, 10, "", 0},
	} {
		if got := list(all, tt.search, tt.state, tt.offset, tt.limit); names(got) != tt.want || got.Total != tt.total {
			t.Errorf("%q %q %d %d: %q of %d, want %q of %d", tt.search, tt.state, tt.offset, tt.limit, names(got), got.Total, tt.want, tt.total)
		}
	}
}
