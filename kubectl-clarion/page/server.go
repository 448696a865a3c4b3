// Package page shows a cluster to the browser of whoever runs kubectl clarion dashboard: it serves a page on the loopback
// interface, reads the cluster again and again, and sends what has changed. It knows nothing of Kubernetes: what there is
// to show is a Picture, and what is said of an object is explain's.
package page

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"embed"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"
)

//go:embed web
var web embed.FS

// How often the cluster is read: no more often than every so often, and never for more than a tenth of the time.
const (
	every = time.Second
	share = 10
)

// beat is how often a page hears how old its picture is. The page takes a few of them missing for a connection that is gone.
const beat = time.Second

// What is kept of the session.
const (
	keptEvents  = 500
	keptSamples = 500
)

// Server serves the page.
type Server struct {
	token  string
	listen net.Listener
	read   func(context.Context) (*Picture, []Event, error)

	mu      sync.Mutex
	picture *Picture
	body    []byte // the overview, as it is sent
	version int    // counts the pictures that differ
	events  []Event
	number  int // of the last event
	history map[string][]Sample
	at      time.Time     // when the picture was read, by the wall clock
	period  time.Duration // between two readings, about
	failed  string        // why the cluster cannot be read; "" when it can
	changed chan struct{} // closed when a picture or its failure is new
}

// New is a server of pages at a listener on the loopback interface. read reads the cluster, and says what has changed
// since it was called last; it is never called twice at once.
func New(listen net.Listener, read func(context.Context) (*Picture, []Event, error)) *Server {
	return &Server{token: rand.Text(), listen: listen, read: read, history: map[string][]Sample{}, period: every, changed: make(chan struct{})}
}

// URL is the address to open first. It holds the secret that lets a browser in.
func (s *Server) URL() string { return "http://" + s.listen.Addr().String() + "/?token=" + s.token }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	var reader sync.WaitGroup
	reader.Go(func() { s.follow(ctx) })
	stop := context.AfterFunc(ctx, func() { _ = h.Close() })
	defer stop()
	err := h.Serve(s.listen)
	ended := ctx.Err() != nil
	cancel()
	reader.Wait()
	if ended {
		return nil
	}
	return err
}

// follow reads the cluster again and again.
func (s *Server) follow(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		p, events, err := s.read(ctx)
		if ctx.Err() != nil {
			return
		}
		took := time.Since(began)
		pause := max(every-took, (share-1)*took)
		if p != nil && !p.Taken.IsZero() {
			pause = time.Hour // nothing changes in a dump
		}
		s.take(p, events, err, took+pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// take takes in what was read, or why nothing was.
func (s *Server) take(p *Picture, events []Event, err error, period time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now().Round(0)
	s.period = period
	news := len(events) > 0
	for _, e := range events {
		s.number++
		e.Number, e.Time = s.number, now
		s.events = append(s.events, e)
	}
	s.events = s.events[max(0, len(s.events)-keptEvents):]
	if err != nil {
		news = news || s.failed != err.Error()
		s.failed = err.Error()
	} else {
		news = news || s.failed != "" || s.at.IsZero()
		s.failed, s.at = "", now
		body, err := json.Marshal(p.Overview)
		if err != nil { // it holds nothing that cannot be written
			panic(err)
		}
		if !bytes.Equal(body, s.body) || s.picture == nil || !reflect.DeepEqual(s.picture.Services, p.Services) {
			s.version++
			news = true
		}
		s.picture, s.body = p, body
		for _, pool := range p.Overview.Pools {
			next := Sample{now, pool.Used4 + pool.Used6, pool.Free4 + pool.Free6}
			h := s.history[pool.Name]
			if n := len(h); n == 0 || h[n-1].Used != next.Used || h[n-1].Free != next.Free {
				h = append(h, next)
			}
			s.history[pool.Name] = h[max(0, len(h)-keptSamples):]
		}
	}
	if news {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// health is how far what the page shows can be believed.
type health struct {
	// Live says that the picture is the present. It is not after the computer has slept, until the cluster was read again.
	Live   bool       `json:"live"`
	Read   *time.Time `json:"read,omitempty"` // when the cluster was
	Failed string     `json:"failed,omitempty"`
	Dump   bool       `json:"dump,omitempty"`
}

// health is that at a time. Clocks that stand still while a computer sleeps are not looked at.
func (s *Server) health(now time.Time) health {
	h := health{Failed: s.failed}
	if s.at.IsZero() {
		return h
	}
	at := s.at
	h.Read, h.Dump = &at, s.picture != nil && !s.picture.Taken.IsZero()
	h.Live = s.failed == "" && !h.Dump && now.Round(0).Sub(at).Abs() < 2*s.period+5*time.Second
	return h
}

// ServeHTTP implements http.Handler. Nothing is served to whoever does not know the secret, nor under another name than
// the loopback interface's: a name of the attacker's may be made to point there.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	_, port, _ := net.SplitHostPort(s.listen.Addr().String())
	cookie := "clarion-" + port // cookies do not know ports
	switch {
	case r.Host != s.listen.Addr().String() && r.Host != net.JoinHostPort("localhost", port):
		http.Error(w, "this page is served at "+s.listen.Addr().String()+" only", http.StatusForbidden)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		http.Error(w, "this page only reads", http.StatusMethodNotAllowed)
	case r.URL.Path == "/" && r.URL.Query().Has("token"):
		if !s.knows(r.URL.Query().Get("token")) {
			http.Error(w, "wrong token: open the address that kubectl clarion dashboard has printed", http.StatusForbidden)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: cookie, Value: s.token, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
		http.Redirect(w, r, "/", http.StatusSeeOther) // the secret does not stay in the address bar
	default:
		if c, err := r.Cookie(cookie); err != nil || !s.knows(c.Value) {
			http.Error(w, "open the address that kubectl clarion dashboard has printed", http.StatusForbidden)
			return
		}
		s.serve(w, r)
	}
}

// knows says whether somebody knows the secret, in a time that does not depend on how nearly.
func (s *Server) knows(token string) bool {
	a, b := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(s.token))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/":
		http.ServeFileFS(w, r, web, "web/page.html")
	case "/page.js", "/page.css", "/icon.svg":
		http.ServeFileFS(w, r, web, "web"+r.URL.Path)
	case "/api/live":
		s.live(w, r)
	case "/api/services":
		q := r.URL.Query()
		number := func(name string, otherwise int) int {
			if n, err := strconv.Atoi(q.Get(name)); err == nil && n >= 0 {
				return n
			}
			return otherwise
		}
		s.answer(w, func(p *Picture) (any, error) {
			return list(p.Services, q.Get("search"), q.Get("state"), number("offset", 0), number("limit", most)), nil
		})
	case "/api/explain":
		s.answer(w, func(p *Picture) (any, error) { return p.Explain(r.URL.Query().Get("object")) })
	case "/api/pool":
		s.answer(w, func(p *Picture) (any, error) {
			g, err := p.Pool(r.URL.Query().Get("name"))
			if err != nil {
				return nil, err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			g.History = slices.Clone(s.history[g.Name])
			return g, nil
		})
	default:
		http.NotFound(w, r)
	}
}

// answer answers from the last picture.
func (s *Server) answer(w http.ResponseWriter, of func(*Picture) (any, error)) {
	s.mu.Lock()
	p := s.picture
	s.mu.Unlock()
	if p == nil {
		http.Error(w, "the cluster has not been read yet", http.StatusServiceUnavailable)
		return
	}
	out, err := of(p)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

// live sends pictures, events, and how old the picture is, for as long as somebody listens.
func (s *Server) live(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	send := func(name string, data any) error {
		b, ok := data.([]byte)
		if !ok {
			var err error
			if b, err = json.Marshal(data); err != nil {
				return err
			}
		}
		_ = out.SetWriteDeadline(time.Now().Add(30 * time.Second))
		_, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, b)
		return err
	}
	ticks := time.NewTicker(beat)
	defer ticks.Stop()
	version, number := 0, 0
	for {
		s.mu.Lock()
		var picture []byte
		if s.version != version {
			version, picture = s.version, s.body
		}
		var events []Event
		for _, e := range s.events {
			if e.Number > number {
				events = append(events, e)
			}
		}
		number = s.number
		h, changed := s.health(time.Now()), s.changed
		s.mu.Unlock()
		var err error
		if picture != nil {
			err = send("picture", picture)
		}
		if err == nil && len(events) > 0 {
			err = send("events", events)
		}
		if err == nil {
			err = send("health", h)
		}
		if err != nil || out.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-ticks.C:
		case <-changed:
		}
	}
}
