// Package metricsauth serves a program's metrics to those who may read them: by HTTPS, to whoever shows a token that
// the API server knows and that may get the path. It asks the API server only (TokenReview, SubjectAccessReview);
// controller-runtime's own filter does the same at the cost of k8s.io/apiserver with gRPC and CEL in every speaker.
package metricsauth

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/client-go/rest"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

const (
	remember   = time.Minute     // how long an answer of the API server holds
	remembered = 64              // answers that are kept at most
	patience   = 5 * time.Second // with the API server, for one request
)

// Options are those of a metrics server at an address ("0": none): by plain HTTP to everybody, or if secure by HTTPS,
// with a certificate that the server makes for itself, to those whom the API server lets get the path.
func Options(address string, secure bool) metricsserver.Options {
	o := metricsserver.Options{BindAddress: address, SecureServing: secure}
	if secure {
		o.FilterProvider = provide
		o.TLSOpts = []func(*tls.Config){func(c *tls.Config) {
			c.MinVersion = tls.VersionTLS12
			c.NextProtos = []string{"http/1.1"} // HTTP/2 has been good for floods, and scrapers do not need it
		}}
	}
	return o
}

func provide(config *rest.Config, client *http.Client) (metricsserver.Filter, error) {
	tokens, err := authenticationclient.NewForConfigAndClient(config, client)
	if err != nil {
		return nil, err
	}
	access, err := authorizationclient.NewForConfigAndClient(config, client)
	if err != nil {
		return nil, err
	}
	return func(log logr.Logger, next http.Handler) (http.Handler, error) {
		return newFilter(log, next, func(ctx context.Context, token, path string) (int, error) {
			review, err := tokens.TokenReviews().Create(ctx, &authenticationv1.TokenReview{
				Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
			if err != nil {
				return 0, err
			}
			if !review.Status.Authenticated {
				return http.StatusUnauthorized, nil
			}
			user := review.Status.User
			extra := map[string]authorizationv1.ExtraValue{}
			for k, v := range user.Extra {
				extra[k] = authorizationv1.ExtraValue(v)
			}
			may, err := access.SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
				Spec: authorizationv1.SubjectAccessReviewSpec{
					User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
					NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: path, Verb: "get"},
				}}, metav1.CreateOptions{})
			if err != nil {
				return 0, err
			}
			if !may.Status.Allowed {
				return http.StatusForbidden, nil
			}
			return http.StatusOK, nil
		}), nil
	}, nil
}

// filter lets requests through that may pass. It asks about one request at a time, so that whoever floods it with tokens
// costs the API server no more than one request after the other; what is known passes without waiting.
type filter struct {
	log  logr.Logger
	next http.Handler
	// ask returns 200, 401 or 403 for a token and a path.
	ask  func(ctx context.Context, token, path string) (int, error)
	turn chan struct{}

	mu    sync.Mutex
	known map[[sha256.Size]byte]answer
}

type answer struct {
	status int
	until  time.Time
}

func newFilter(log logr.Logger, next http.Handler, ask func(context.Context, string, string) (int, error)) *filter {
	return &filter{log: log, next: next, ask: ask, turn: make(chan struct{}, 1), known: map[[sha256.Size]byte]answer{}}
}

func (f *filter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
		return
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" {
		http.Error(w, http.StatusText(http.StatusUnauthorized), http.StatusUnauthorized)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	status, err := f.status(ctx, token, r.URL.Path)
	switch {
	case err != nil:
		f.log.Error(err, "cannot ask who reads metrics", "remote", r.RemoteAddr)
		http.Error(w, http.StatusText(http.StatusServiceUnavailable), http.StatusServiceUnavailable)
	case status != http.StatusOK:
		http.Error(w, http.StatusText(status), status)
	default:
		f.next.ServeHTTP(w, r)
	}
}

func (f *filter) status(ctx context.Context, token, path string) (int, error) {
	key := sha256.Sum256([]byte(token + "\x00" + path))
	if status, ok := f.lookup(key); ok {
		return status, nil
	}
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if status, ok := f.lookup(key); ok { // somebody asked the same
		return status, nil
	}
	status, err := f.ask(ctx, token, path)
	if err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for k, a := range f.known {
		// A flood of bad tokens must not push out the good one.
		if now.After(a.until) || len(f.known) >= remembered && a.status != http.StatusOK {
			delete(f.known, k)
		}
	}
	if len(f.known) < remembered {
		f.known[key] = answer{status, now.Add(remember)}
	}
	return status, nil
}

func (f *filter) lookup(key [sha256.Size]byte) (int, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.known[key]
	return a.status, ok && time.Now().Before(a.until)
}
