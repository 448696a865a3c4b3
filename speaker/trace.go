package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/announce"
	"github.com/clarionlb/clarion/internal/trace"
	"github.com/clarionlb/clarion/speaker/guard"
	"github.com/clarionlb/clarion/speaker/probe"
)

// What one who asks for traces can cost a speaker: how many are made at once, connections of one and of all at once, and
// how long a connection and a trace may take.
const (
	maxTraces     = 2
	maxChecks     = 32
	maxAtOnce     = 8
	checkTimeout  = 2 * time.Second
	datagramWait  = 300 * time.Millisecond
	traceTimeout  = 10 * time.Second
	traceServices = 4 // that share the address

	newFor = 5 * time.Second // after which the Service proxy's rules have to be there, for what the node can serve of late
)

// tracer checks addresses of Services for whoever may connect to the node's loopback, as by kubectl port-forward: it
// opens connections to announced addresses and to the endpoints behind them, and to nothing else.
type tracer struct {
	node       string
	reconciler *reconciler
	guarded    func() guard.Status
	proxy      func(context.Context) proxyHealth // nil: it is not asked
	api        client.Reader                     // not the cache, which has no ports
	log        *slog.Logger

	traces, checks chan struct{} // a place for each at once
}

// loopback is the address that traces are asked for at; none when it is "0".
func loopback(s string) (netip.AddrPort, error) {
	if s == "0" {
		return netip.AddrPort{}, nil
	}
	at, err := netip.ParseAddrPort(s)
	if err != nil || !at.Addr().IsLoopback() || at.Port() == 0 {
		return at, fmt.Errorf("--trace-bind-address %q must be a port of the loopback, like 127.0.0.1:%d, or 0", s, trace.Port)
	}
	return at, nil
}

// serve answers until ctx ends.
func (t *tracer) serve(ctx context.Context, at netip.AddrPort) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", at.String())
	if err != nil {
		return err
	}
	t.traces, t.checks = make(chan struct{}, maxTraces), make(chan struct{}, maxAtOnce)
	mux := http.NewServeMux()
	mux.Handle("GET "+trace.Path, t)
	s := &http.Server{
		Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: traceTimeout + 5*time.Second, IdleTimeout: 5 * time.Second,
		MaxHeaderBytes: 1 << 13, BaseContext: func(net.Listener) context.Context { return ctx },
	}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ServeHTTP answers with a trace.Report as JSON.
func (t *tracer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	addr, err := netip.ParseAddr(r.URL.Query().Get("address"))
	if err != nil || addr.Zone() != "" {
		http.Error(w, "address: want an IP address", http.StatusBadRequest)
		return
	}
	select {
	case t.traces <- struct{}{}:
		defer func() { <-t.traces }()
	default:
		http.Error(w, "other traces are being made: try again in a moment", http.StatusTooManyRequests)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), traceTimeout)
	defer cancel()
	report, err := t.report(ctx, addr.Unmap())
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(report)
}

// report checks an address that is to be announced.
func (t *tracer) report(ctx context.Context, addr netip.Addr) (*trace.Report, error) {
	r := t.reconciler
	r.snapshot.Lock()
	claims := t.announced(addr)
	out := &trace.Report{Node: t.node}
	if n := r.snapshot.View().Nodes[t.node]; n != nil {
		out.Gate = n.Gate
	}
	if f := r.fit[addr]; f != nil {
		out.New = time.Since(f.since) < newFor
	}
	r.snapshot.Unlock()
	if len(claims) == 0 {
		return nil, fmt.Errorf("%s is no address of a Service that is to be announced", addr)
	}
	if t.proxy != nil {
		healthy := t.proxy(ctx).healthy()
		out.Proxy = &healthy
	}
	out.Guarded = slices.ContainsFunc(t.guarded().Prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
	var all []trace.Check
	for _, c := range claims {
		checks, err := t.plan(ctx, addr, c)
		if err != nil {
			out.Problem = err.Error()
		}
		all = append(all, checks...)
	}
	if out.Left = max(0, len(all)-maxChecks); out.Left > 0 {
		all = all[:maxChecks]
	}
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() { t.check(ctx, &all[i]) })
	}
	wg.Wait()
	out.Checks = all
	t.log.Info("an address was checked, as somebody asked", "address", addr, "connections", len(all))
	return out, nil
}

// announced are the claims of Services on an address that an advertisement announces, as far as the speaker sees, a
// claim for each Service. The snapshot's lock must be held.
func (t *tracer) announced(addr netip.Addr) (out []announce.Claim) {
	s := t.reconciler.snapshot
	if s.View().Config == nil {
		return nil
	}
	claims := s.ClaimsOn(addr)
	for _, c := range claims {
		one := []announce.Claim{c}
		is := s.View().ForBGP(t.node, addr, one).Advertised
		if c.Type == v1beta1.AddressLoadBalancerIP {
			is = s.View().PoolOf(addr) != "" && (is || s.View().Layer2(addr, one).Advertised)
		}
		if is && len(out) < traceServices && !slices.ContainsFunc(out, func(o announce.Claim) bool { return o.Service.Key() == c.Service.Key() }) {
			out = append(out, c)
		}
	}
	return out
}

// plan are the connections to try for a Service: to each of its ports at the address, then to each endpoint that this
// node may be sent to.
func (t *tracer) plan(ctx context.Context, addr netip.Addr, c announce.Claim) (out []trace.Check, err error) {
	var svc corev1.Service
	if err := t.api.Get(ctx, client.ObjectKey{Namespace: c.Service.Namespace, Name: c.Service.Name}, &svc); err != nil {
		return nil, err
	}
	var in discoveryv1.EndpointSliceList
	if err := t.api.List(ctx, &in, client.InNamespace(svc.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: svc.Name}); err != nil {
		return nil, err
	}
	var backends []trace.Check
	seen := map[trace.Check]bool{}
	for _, p := range svc.Spec.Ports {
		check := trace.Check{Service: c.Service.Key(), Protocol: string(p.Protocol), Port: uint16(p.Port), To: netip.AddrPortFrom(addr, uint16(p.Port))}
		out = append(out, check)
		for i := range in.Items {
			for _, to := range backendsOf(&in.Items[i], p, func(node string) bool { return c.Anywhere(addr) || node == t.node }) {
				check.To, check.Backend = to, true
				if to.Addr().Is4() == addr.Is4() && !seen[check] {
					seen[check] = true
					backends = append(backends, check)
				}
			}
		}
	}
	slices.SortFunc(backends, func(a, b trace.Check) int { return cmp.Or(cmp.Compare(a.Port, b.Port), a.To.Compare(b.To)) })
	return append(out, backends...), nil
}

// backendsOf are where the Service proxy sends a Service's port: endpoints of a slice that are ready.
func backendsOf(es *discoveryv1.EndpointSlice, port corev1.ServicePort, from func(node string) bool) (out []netip.AddrPort) {
	for _, p := range es.Ports {
		if p.Port == nil || p.Name != nil && *p.Name != port.Name || p.Name == nil && port.Name != "" || p.Protocol != nil && *p.Protocol != port.Protocol {
			continue
		}
		for _, e := range es.Endpoints {
			node := ""
			if e.NodeName != nil {
				node = *e.NodeName
			}
			if e.Conditions.Ready != nil && !*e.Conditions.Ready || !from(node) || len(e.Addresses) == 0 {
				continue
			}
			// Whoever may write EndpointSlices must not aim a node at itself.
			if a, err := netip.ParseAddr(e.Addresses[0]); err == nil && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && a.Zone() == "" {
				out = append(out, netip.AddrPortFrom(a.Unmap(), uint16(*p.Port)))
			}
		}
	}
	return out
}

// check opens a connection when there is a place for it.
func (t *tracer) check(ctx context.Context, c *trace.Check) {
	var try func(context.Context, netip.AddrPort) probe.Result
	limit := checkTimeout
	switch corev1.Protocol(c.Protocol) {
	case corev1.ProtocolTCP:
		try = probe.TCP
	case corev1.ProtocolUDP:
		try, limit = probe.UDP, datagramWait
	default:
		c.Outcome, c.Error = string(probe.Failed), "speakers try TCP and UDP only"
		return
	}
	select {
	case t.checks <- struct{}{}:
		defer func() { <-t.checks }()
	case <-ctx.Done():
		c.Outcome, c.Error = string(probe.Failed), "the time was up"
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r := try(ctx, c.To)
	c.Outcome, c.From, c.RewrittenTo = string(r.Outcome), r.From.Addr(), r.RewrittenTo
	c.AsItIs = r.AsItIs && !c.Backend // which is as it should be
	c.Microseconds = r.Took.Microseconds()
	if r.Error != nil {
		c.Error = cause(r.Error)
	}
}

// cause is the last part of what the network says, without addresses that are said already.
func cause(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	var call interface{ Unwrap() error }
	if errors.As(err, &call) && call.Unwrap() != nil {
		return call.Unwrap().Error()
	}
	return err.Error()
}
