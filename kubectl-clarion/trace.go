package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/trace"
)

// How many nodes are asked to check an address, how many of them at once, and how long one may take.
const (
	mostAsked   = 16
	askedAtOnce = 8
	askTimeout  = 20 * time.Second
)

// asker has the speaker of a node check an address.
type asker func(ctx context.Context, conn *connection, node string, addr netip.Addr) (trace.Report, error)

// traced is the way of a packet, for programs.
type traced struct {
	Target   string            `json:"target"`
	Ways     []trace.Answer    `json:"ways"` // one for each address
	NotShown map[string]string `json:"notShown,omitempty"`
}

func (a *app) traceCommand() *cobra.Command {
	var from string
	var noChecks bool
	cmd := &cobra.Command{
		Use:   "trace ADDRESS[:PORT] | svc/NAME[:PORT] [--from CLIENT]",
		Short: "The way of a packet to a Service, hop by hop, with checks by the nodes that it enters by, and what to do about the first fault",
		Long: `The way of a packet to a Service, hop by hop: whose the address is, who should answer for it and who does, which
routers were told, what each node that packets enter by does with them, whether the client may, and which endpoints answer.

The speakers of these nodes open a connection to the address and to each endpoint, and close it again. They are reached
by port-forward to their pods, which takes the rights of the Role clarion-trace.`,
		Example: `  kubectl clarion trace 192.0.2.200:80
  kubectl clarion trace svc/web -n shop --from 198.51.100.7
  kubectl clarion trace [2001:db8::200]:443`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var client netip.Addr
			if from != "" {
				addr, err := netip.ParseAddr(from)
				if err != nil {
					return fmt.Errorf("--from %q is no address", from)
				}
				client = addr.Unmap()
			}
			t, err := targetOf(args[0])
			if err != nil {
				return err
			}
			conn, c, err := a.load(cmd.Context())
			if err != nil {
				return err
			}
			ask := a.ask
			if noChecks {
				ask = nil
			}
			out, err := a.trace(cmd.Context(), conn, c, t, client, ask)
			if err != nil {
				return err
			}
			if err := a.print(out, func(w io.Writer, _ bool) error { return out.write(a, w) }); err != nil {
				return err
			}
			worst := exit(0)
			for _, w := range out.Ways {
				switch {
				case w.Verdict == trace.Fault || w.Verdict == trace.Warning:
					return problemsFound
				case w.Verdict == trace.Unknown:
					worst = couldNotTell
				}
			}
			if worst != 0 || len(out.NotShown) > 0 {
				return couldNotTell
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 || !strings.HasPrefix(begun, "svc/") {
				return []string{"svc/"}, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
			}
			var out []string
			for _, name := range a.completeKind(cmd.Context(), []string{"svc"}, strings.TrimPrefix(begun, "svc/")) {
				out = append(out, "svc/"+name)
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "address of a client, which is compared with loadBalancerSourceRanges")
	cmd.Flags().BoolVar(&noChecks, "no-checks", false, "ask the API only, and have no node open connections")
	a.printFlag(cmd)
	return cmd
}

// target is what a way is to lead to: an address, or the addresses of a Service.
type target struct {
	addr    netip.Addr
	service string // its name, or namespace/name
	port    uint16
}

func targetOf(arg string) (t target, err error) {
	if at, err := netip.ParseAddrPort(arg); err == nil {
		return target{addr: at.Addr().Unmap(), port: at.Port()}, nil
	}
	if addr, err := netip.ParseAddr(strings.Trim(arg, "[]")); err == nil {
		return target{addr: addr.Unmap()}, nil
	}
	word, name, _ := strings.Cut(arg, "/")
	if k := kindOfWord(word); k == nil || k.words[0] != "svc" || name == "" {
		return t, fmt.Errorf("%q: want ADDRESS, ADDRESS:PORT, [IPv6]:PORT, svc/NAME or svc/NAME:PORT", arg)
	}
	t.service = name
	if before, port, ok := strings.Cut(name, ":"); ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return t, fmt.Errorf("%q is no port", port)
		}
		t.service, t.port = before, uint16(n)
	}
	return t, nil
}

// trace finds the ways to a target. ask is nil when no node is to be asked.
func (a *app) trace(ctx context.Context, conn *connection, c *cluster, t target, from netip.Addr, ask asker) (*traced, error) {
	if c.blind() {
		return nil, fmt.Errorf("a way cannot be followed without reading %s: see the ClusterRole clarion-cli", strings.Join(sortedKeys(c.hidden), ", "))
	}
	c.snap.Lock()
	defer c.snap.Unlock()
	out := &traced{Target: t.addr.String(), NotShown: c.notShown()}
	addrs := []netip.Addr{t.addr}
	if t.service != "" {
		svc, err := c.serviceNamed(ctx, conn, t.service)
		if err != nil {
			return nil, err
		}
		key := svc.Namespace + "/" + svc.Name
		out.Target = "Service/" + key
		addrs = nil
		for _, kind := range []v1beta1.AddressType{v1beta1.AddressLoadBalancerIP, v1beta1.AddressExternalIP} {
			addrs = append(addrs, c.snap.Addresses(key, kind)...)
		}
		if len(addrs) == 0 {
			why, _ := c.noAddress(svc)
			h := trace.Hop{Name: "Service", Verdict: trace.Fault, Reason: "NoAddress", Evidence: []trace.Evidence{{Verdict: trace.Fault, Text: key + " " + why}}}
			out.Ways = append(out.Ways, trace.Answer{Verdict: trace.Fault, Reason: h.Reason, Text: h.Name + ": " + h.Evidence[0].Text, Do: "kubectl clarion explain svc " + key, Hops: []trace.Hop{h}})
			return out, nil
		}
	}
	for _, addr := range addrs {
		q := trace.Question{
			Address: addr, Port: t.port, From: from, Claims: c.snap.ClaimsOn(addr), Pool: c.snap.View().PoolOf(addr), Speakers: c.speakers,
			Reports: map[string]trace.Report{}, Unasked: map[string]string{},
		}
		for _, claim := range q.Claims {
			svc := c.services[client.ObjectKey{Namespace: claim.Service.Namespace, Name: claim.Service.Name}]
			if svc != nil && !slices.Contains(q.Services, svc) {
				q.Services = append(q.Services, svc)
			}
		}
		if len(q.Claims) > 0 {
			q.Detail = c.address(addr, q.Claims[0].Type).Detail
		}
		a.askAll(ctx, conn, &q, ask)
		out.Ways = append(out.Ways, trace.Of(q))
	}
	return out, nil
}

// askAll has the nodes that packets enter by check the address.
func (a *app) askAll(ctx context.Context, conn *connection, q *trace.Question, ask asker) {
	nodes := trace.Entries(q.Detail)
	if ask == nil || a.offline {
		for _, n := range nodes {
			q.Unasked[n] = "no connections are opened with --no-checks or --offline"
		}
		return
	}
	if len(nodes) > mostAsked {
		for _, n := range nodes[mostAsked:] {
			q.Unasked[n] = fmt.Sprintf("only the first %d nodes are", mostAsked)
		}
		nodes = nodes[:mostAsked]
	}
	defer (&progress{a.ErrOut, time.Now()}).step(fmt.Sprintf("having %d nodes check %s", len(nodes), q.Address))()
	var mu sync.Mutex
	var wg sync.WaitGroup
	places := make(chan struct{}, askedAtOnce)
	for _, node := range nodes {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			r, err := ask(ctx, conn, node, q.Address)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				q.Unasked[node] = err.Error()
			} else {
				q.Reports[node] = r
			}
		})
	}
	wg.Wait()
}

// write writes ways for people.
func (t *traced) write(a *app, w io.Writer) error {
	colors := map[trace.Verdict]string{trace.Fault: red, trace.Warning: yellow, trace.Unknown: yellow, trace.Fine: green}
	for i, way := range t.Ways {
		if i > 0 {
			fmt.Fprintln(w)
		}
		name := t.Target
		if way.Address.IsValid() {
			name = way.Address.String()
		}
		fmt.Fprintln(w, a.paint(colors[way.Verdict], fmt.Sprintf("%s: %s: %s.", name, way.Verdict, way.Text)))
		if way.Do != "" {
			fmt.Fprintf(w, "Do: %s.\n", way.Do)
		}
		for n, h := range way.Hops {
			fmt.Fprintf(w, "\n%d  %s\n", n+1, h.Name)
			for _, e := range h.Evidence {
				fmt.Fprintf(w, "   %s  %s\n", a.paint(colors[e.Verdict], fmt.Sprintf("%-7s", e.Verdict)), e.Text)
			}
		}
	}
	return writeHidden(w, t.NotShown)
}

// forwarded asks the speaker of a node through port-forward to its pod.
func (a *app) forwarded(ctx context.Context, conn *connection, node string, addr netip.Addr) (out trace.Report, err error) {
	var pods corev1.PodList
	if err := conn.List(ctx, &pods, client.InNamespace(a.system), client.MatchingLabels{"app.kubernetes.io/component": "speaker"}, client.MatchingFields{"spec.nodeName": node}); err != nil {
		return out, err
	}
	i := slices.IndexFunc(pods.Items, func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil })
	if i < 0 {
		return out, fmt.Errorf("no pod of the speaker runs there in the namespace %s", a.system)
	}
	port, err := tracePort(&pods.Items[i])
	if err != nil {
		return out, err
	}
	hc := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return dialPod(conn.config, &pods.Items[i], port)
	}}}
	u := url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", port), Path: trace.Path, RawQuery: url.Values{"address": {addr.String()}}.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return out, err
	}
	res, err := hc.Do(req)
	if err != nil {
		return out, fmt.Errorf("port-forward to the pod %s: %w", pods.Items[i].Name, errors.Unwrap(err))
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return out, err
	}
	if res.StatusCode != http.StatusOK {
		return out, fmt.Errorf("%s: %s", res.Status, strings.TrimSpace(string(b)))
	}
	return out, json.Unmarshal(b, &out)
}

// tracePort is the port of the loopback that a speaker's flags say.
func tracePort(pod *corev1.Pod) (string, error) {
	port := strconv.Itoa(trace.Port)
	for _, c := range pod.Spec.Containers {
		for _, arg := range slices.Concat(c.Command, c.Args) {
			at, ok := strings.CutPrefix(strings.TrimLeft(arg, "-"), "trace-bind-address=")
			if _, p, err := net.SplitHostPort(at); ok && err == nil {
				port = p
			} else if ok {
				return "", errors.New("it runs with " + arg)
			}
		}
	}
	return port, nil
}

// dialPod connects to a port of a pod's loopback, as kubectl port-forward does.
func dialPod(config *rest.Config, pod *corev1.Pod, port string) (net.Conn, error) {
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, err
	}
	u := base.JoinPath("api", "v1", "namespaces", pod.Namespace, "pods", pod.Name, "portforward")
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	var dialer httpstream.Dialer = spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	tunnel, err := portforward.NewSPDYOverWebsocketDialerForStreaming(u, config)
	if err != nil {
		return nil, err
	}
	dialer = portforward.NewFallbackDialerForStreaming(tunnel, dialer, func(error) bool { return true }) // and what the second says counts
	c, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, err
	}
	headers := http.Header{} // whose names have one spelling only when they are set
	headers.Set(corev1.PortHeader, port)
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	complaints, err := c.CreateStream(headers)
	if err != nil {
		c.Close()
		return nil, err
	}
	_ = complaints.Close() // this side complains of nothing
	headers = headers.Clone()
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := c.CreateStream(headers)
	if err != nil {
		c.Close()
		return nil, err
	}
	go func() { // when the other side has complained, nothing more comes
		if b, err := io.ReadAll(complaints); err != nil || len(b) > 0 {
			c.Close()
		}
	}()
	return &podConn{Stream: data, whole: c}, nil
}

// podConn is a connection to a port of a pod.
type podConn struct {
	httpstream.Stream
	whole httpstream.Connection
}

func (c *podConn) Close() error                   { return c.whole.Close() }
func (*podConn) LocalAddr() net.Addr              { return podAddr{} }
func (*podConn) RemoteAddr() net.Addr             { return podAddr{} }
func (*podConn) SetDeadline(time.Time) error      { return nil } // the request's context ends it
func (*podConn) SetReadDeadline(time.Time) error  { return nil }
func (*podConn) SetWriteDeadline(time.Time) error { return nil }

type podAddr struct{}

func (podAddr) Network() string { return "port-forward" }
func (podAddr) String() string  { return "pod" }
