// Command speaker announces the external addresses of Services from one node: by ARP and NDP on the local network, and
// by BGP to the routers. It watches the cluster, decides with announce what is this node's to do, and hands that to
// layer2 and bgp; it writes one object, the Speaker of its node.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/interfaces"
	"github.com/clarionlb/clarion/internal/metricsauth"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/internal/trace"
	"github.com/clarionlb/clarion/internal/version"
	"github.com/clarionlb/clarion/speaker/bfd"
	"github.com/clarionlb/clarion/speaker/bgp"
	"github.com/clarionlb/clarion/speaker/bmp"
	"github.com/clarionlb/clarion/speaker/guard"
	"github.com/clarionlb/clarion/speaker/holddown"
	"github.com/clarionlb/clarion/speaker/layer2"
	"github.com/clarionlb/clarion/speaker/members"
)

// membersSecret is the Secret with the keys of the group of speakers; the controller makes it.
const (
	membersSecret = "clarion-memberlist"
	membersKeys   = "keys"
)

// options are the flags.
type options struct {
	node, namespace string
	ignoreExclude   bool
	proxyHealthURL  string
	drainTime       time.Duration
	standIn         time.Duration
	holddown        time.Duration
	acdProbes       int
	bmpStations     []string
	exclude         interfaces.Patterns
	guard           bool
	proxyGrace      time.Duration
	membersPort     int
	membersProfile  string
	metricsAddr     string
	metricsSecure   bool
	healthAddr      string
	traceAddr       string
	logLevel        slog.Level
}

func main() {
	var o options
	flag.StringVar(&o.node, "node-name", os.Getenv("NODE_NAME"), "name of this node (default $NODE_NAME)")
	flag.StringVar(&o.namespace, "namespace", envOr("POD_NAMESPACE", "clarion-system"), "Clarion's namespace, with its Secrets (default $POD_NAMESPACE)")
	flag.BoolVar(&o.ignoreExclude, "ignore-exclude-label", false, "announce from nodes with the label node.kubernetes.io/exclude-from-external-load-balancers too; as for the controller")
	flag.StringVar(&o.proxyHealthURL, "proxy-health-url", "http://127.0.0.1:10256/healthz", "health endpoint of this node's Service proxy, which must be healthy for the node to attract traffic while others can; empty: not asked")
	flag.DurationVar(&o.proxyGrace, "proxy-health-grace", 15*time.Second, "how long a Service proxy that was healthy may fail its health check, or not answer, before the node should not attract traffic any more; its rules stay in the kernel meanwhile")
	flag.DurationVar(&o.drainTime, "drain-time", 30*time.Second, "how long the routes of a node that is being drained are announced as the last choice before they are withdrawn")
	flag.DurationVar(&o.standIn, "stand-in-time", time.Minute, "how long other speakers' addresses on the local network are answered for in their words, with the hardware address of their node, while they restart and their node is there, before they are taken over; 0: they are taken over at once")
	flag.DurationVar(&o.holddown, "announce-holddown", 200*time.Millisecond, "how long an address that was withdrawn from BGP must be announceable before it is announced again; doubles each time up to a minute, and decays; one node of those that can goes on, and rollouts do not count; 0: not at all")
	flag.Func("bmp-station", "host:port of a monitoring station that is told what BGP sessions do and announce (BMP, RFC 7854 and 8671); may be given more than once", func(s string) error {
		o.bmpStations = append(o.bmpStations, s)
		_, _, err := net.SplitHostPort(s)
		return err
	})
	flag.IntVar(&o.acdProbes, "acd-probes", layer2.DefaultProbe().Count, "how often the local network is asked, 200 ms apart, whether a foreign host has an address before it is announced for the first time ever (RFC 5227); 0: not at all")
	o.exclude = interfaces.DefaultExclude()
	flag.Var(&o.exclude, "exclude-interfaces", "patterns, separated by commas, of the interfaces behind which the node's own pods are: no address is announced on them unless an L2Advertisement names them, and packets that come in by them are not guarded against")
	flag.BoolVar(&o.guard, "guard", true, "answer packets from outside for announced addresses and ranges that no Service has as unreachable, by policy rules; without, they may go round between router and node")
	flag.IntVar(&o.membersPort, "members-port", 7946, "TCP and UDP port at which speakers find out which of them are alive")
	flag.StringVar(&o.membersProfile, "members-profile", "fast", "how soon a dead speaker is noticed: fast, lan or wan, and single parameters behind it, such as lan,probe-interval=500ms,suspicion-mult=3")
	flag.StringVar(&o.metricsAddr, "metrics-bind-address", ":9120", "where /metrics is served; 0: nowhere")
	flag.BoolVar(&o.metricsSecure, "metrics-secure", false, "serve /metrics by HTTPS, to those only whom the API server lets get the path /metrics")
	flag.StringVar(&o.healthAddr, "health-probe-bind-address", ":9121", "where /healthz and /readyz are served; 0: nowhere")
	flag.StringVar(&o.traceAddr, "trace-bind-address", fmt.Sprintf("127.0.0.1:%d", trace.Port), "port of the node's loopback at which kubectl clarion trace has this node check announced addresses; 0: nowhere")
	flag.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "DEBUG, INFO, WARN or ERROR")
	version.Flag(flag.CommandLine, "speaker")
	flag.Parse()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: o.logLevel})).With("node", o.node)
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	slog.SetDefault(log)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50) // it runs on every node, and most of the heap is caches and routes that live long
	}
	if err := run(ctrl.SetupSignalHandler(), o, log); err != nil {
		log.Error("speaker ends", "error", err)
		os.Exit(1)
	}
}

func envOr(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

// run makes the parts and runs them until ctx ends.
func run(ctx context.Context, o options, log *slog.Logger) error {
	if o.node == "" {
		return errors.New("--node-name is needed: the name of the Node that this speaker runs on")
	}
	if o.proxyHealthURL != "" {
		if u, err := url.Parse(o.proxyHealthURL); err != nil || u.Scheme != "http" || u.Host == "" {
			return fmt.Errorf("--proxy-health-url %q must be like http://127.0.0.1:10256/healthz", o.proxyHealthURL)
		}
	}
	traceAt, err := loopback(o.traceAddr)
	if err != nil {
		return err
	}
	profile, err := members.ParseProfile(o.membersProfile)
	if err != nil {
		return fmt.Errorf("--members-profile: %w", err)
	}
	if o.membersPort < 1 || o.membersPort > 65535 {
		return fmt.Errorf("--members-port %d must be between 1 and 65535", o.membersPort)
	}
	scheme := runtime.NewScheme() // not of all kinds that there are: they would cost a megabyte or two on every node
	if err := errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme), networkingv1.AddToScheme(scheme), v1beta1.AddToScheme(scheme)); err != nil {
		return err
	}
	restConfig, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	restConfig.QPS = -1 // the API server's own fairness is the limit
	kinds := snapshot.Kinds()
	kinds[&v1beta1.Speaker{}] = cache.ByObject{Field: fields.OneTermEqualSelector("metadata.name", o.node)} // who watches all Speakers hears of every write of each: see absent
	kinds[&corev1.Secret{}] = cache.ByObject{Namespaces: map[string]cache.Config{o.namespace: {Transform: trimSecret}}}
	mgr, err := ctrl.NewManager(restConfig, manager.Options{
		Scheme:                  scheme,
		Metrics:                 metricsauth.Options(o.metricsAddr, o.metricsSecure),
		HealthProbeBindAddress:  o.healthAddr,
		GracefulShutdownTimeout: ptr(20 * time.Second),
		Client:                  client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&v1beta1.Speaker{}}}},
		Cache: cache.Options{
			DefaultTransform: snapshot.Trim,
			ByObject:         kinds,
		},
	})
	if err != nil {
		return err
	}
	s := newSpeaker(o, profile, mgr.GetClient(), mgr.GetCache(), mgr.GetEventRecorder("clarion-speaker"), log)
	s.traceAt, s.tracer = traceAt, &tracer{node: o.node, reconciler: s.reconciler, guarded: s.guard.Status, proxy: s.reconciler.synced, api: mgr.GetAPIReader(), log: log}
	if err := metrics.Registry.Register(&collector{s.layer2, s.bgp, s.membership.view, s.status.current, s.eventToUpdate, &tally{}}); err != nil {
		return err
	}
	if err := errors.Join(mgr.AddHealthzCheck("alive", healthz.Ping), mgr.AddReadyzCheck("announcing", s.ready), mgr.Add(s)); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

func ptr[T any](v T) *T { return &v }

// trimSecret keeps what a speaker may need of a Secret: passwords of BGP peers and the keys of the group.
func trimSecret(o any) (any, error) {
	if s, ok := o.(*corev1.Secret); ok {
		s.ManagedFields, s.Annotations = nil, nil
		if s.Name != membersSecret {
			s.Data = map[string][]byte{corev1.BasicAuthPasswordKey: s.Data[corev1.BasicAuthPasswordKey]}
		}
	}
	return o, nil
}

// speaker is the parts of the process and what connects them.
type speaker struct {
	o          options
	cache      cache.Cache
	log        *slog.Logger
	snapshot   *snapshot.Snapshot
	reconciler *reconciler
	status     *status
	membership *membership
	absent     *absent
	layer2     *layer2.Responder
	bfd        *bfd.Runner
	bgp        *bgp.Speaker
	guard      *guard.Guard
	tracer     *tracer
	traceAt    netip.AddrPort

	eventToUpdate prometheus.Histogram

	synced atomic.Bool // every object there is has been read
	ending atomic.Bool // others are to take over
}

// holddownMax is the longest time that a flapping address is held down.
const holddownMax = time.Minute

// newSpeaker makes the parts, inert.
func newSpeaker(o options, profile members.Profile, c client.Client, ca cache.Cache, events events.EventRecorder, log *slog.Logger) *speaker {
	s := &speaker{o: o, cache: ca, log: log, snapshot: snapshot.New(snapshot.Options{IgnoreExcludeLabel: o.ignoreExclude}), eventToUpdate: newEventToUpdate()}
	s.bfd = bfd.New(bfd.Config{Log: log})
	s.bgp = bgp.New(bgp.Config{Log: log, BFD: s.bfd, OnChange: s.sessionsChanged, OnUpdate: s.updateSent})
	s.layer2 = layer2.New(layer2.Config{
		Log: log, Exclude: o.exclude, OnLinks: s.linksChanged, OnChange: s.answersChanged, OnConflict: func(layer2.Conflict) { s.changed() }, Judge: s.judge,
		StandIn: cmp.Or(o.standIn, -1), Restarting: func(m layer2.MAC) bool { return s.membership.restarting(m) }, Kernel: func(m layer2.MAC) []netip.Addr { return s.membership.addressesOf(m) },
	})
	s.guard = guard.New(guard.Config{Log: log, OnChange: s.changed})
	s.membership = newMembership(membershipConfig{
		members: members.Config{Name: o.node, Port: uint16(o.membersPort), Profile: profile, Log: log}, log: log,
		onMembers: s.membersChanged, onJoined: func() { s.reconciler.setJoined() }, onNodeKnown: s.layer2.Rejudge, onReady: s.layer2.Announce,
	})
	config := reconcilerConfig{
		node: o.node, namespace: o.namespace, log: log, snapshot: s.snapshot, layer2: s.layer2, bgp: s.bgp, events: events,
		changed: s.changed, named: s.membership.setNamed, drainTime: o.drainTime,
		acd:      layer2.Probe{Count: o.acdProbes, Interval: layer2.DefaultProbe().Interval},
		holddown: holddown.New[netip.Addr](o.holddown, holddownMax),
	}
	if o.proxyHealthURL != "" {
		config.asks = func(ctx context.Context, at netip.AddrPort) bool {
			ctx, cancel := context.WithTimeout(ctx, readyTimeout)
			defer cancel()
			return askProxy("http://" + at.String() + "/healthz")(ctx).ok
		}
		config.synced = askProxy(o.proxyHealthURL)
	}
	if o.guard {
		config.guard = s.guard
	} else {
		s.guard.Set(guard.Want{}) // removes what an earlier process left
	}
	s.membership.edit(func(m *members.Meta) { m.ProxyHealthy = o.proxyHealthURL == "" })
	s.absent = newAbsent(o.node, c, s.membership.setStations, log)
	s.reconciler = newReconciler(config)
	s.status = newStatus(statusConfig{
		client: c, events: events, log: log, reconciler: s.reconciler, layer2: s.layer2, bgp: s.bgp, guard: s.guard, members: s.membership.view,
		missing: s.absent.missing, nodeOf: s.membership.nodeOf, told: s.membership.told,
	})
	return s
}

// changed says that the Speaker object may have to be written.
func (s *speaker) changed() { s.status.poke() }

// membersChanged takes in what the live speakers say of their nodes.
func (s *speaker) membersChanged(alive map[string]snapshot.Member) {
	s.snapshot.Lock()
	s.snapshot.Members(alive)
	s.snapshot.Unlock()
	s.absent.setAlive(s.membership.names())
	s.reconciler.poke()
	s.changed()
}

// updateSent measures how long after its cause an UPDATE was sent.
func (s *speaker) updateSent(string) {
	if took, ok := s.reconciler.sent(); ok {
		s.eventToUpdate.Observe(took.Seconds())
	}
}

// answersChanged is called when layer 2 answers for something else than before.
func (s *speaker) answersChanged() {
	s.reconciler.answersChanged()
	s.changed()
}

// sessionsChanged tells the others whether this node has a way to the routers.
func (s *speaker) sessionsChanged() {
	up := slices.ContainsFunc(s.bgp.Status(), func(ses bgp.SessionStatus) bool { return ses.State == bgp.Established })
	s.membership.edit(func(m *members.Meta) { m.SessionUp = up })
	s.changed()
}

// linksChanged passes on which interfaces the node has.
func (s *speaker) linksChanged() {
	s.membership.setLinks(s.layer2.Links())
	s.changed()
}

// judge says what to do about a station that claims an address of this node: a member that ranks before it is yielded to,
// another one is told who the owner is, and anybody else is a conflict.
func (s *speaker) judge(c layer2.Claim) layer2.Verdict {
	switch node := s.membership.nodeOf(c.MAC); {
	case node == "":
		s.absent.unknown()
		return layer2.Foreign
	case node == s.o.node:
		return layer2.Ignore
	case s.ending.Load():
		return layer2.Yield
	default:
		return s.reconciler.verdict(node, c.Addr)
	}
}

// NeedLeaderElection says that every node runs a speaker.
func (s *speaker) NeedLeaderElection() bool { return false }

// How long a readiness check waits for a speaker that starts: kubelet makes an event of each that fails.
const (
	readyWait  = 4 * time.Second
	readyCheck = 50 * time.Millisecond
)

// ready says whether the speaker knows the cluster and the other speakers, and waits a little for that.
func (s *speaker) ready(r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), readyWait)
	defer cancel()
	for {
		err := s.unready()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(readyCheck):
		}
	}
}

// unready is why the speaker is not ready, nil if it is.
func (s *speaker) unready() error {
	if !s.synced.Load() {
		return errors.New("not all objects have been read yet")
	}
	if !s.membership.view().Joined {
		return fmt.Errorf("not yet joined with the other speakers (by the keys in the Secret %s/%s)", s.o.namespace, membersSecret)
	}
	return nil
}

// watch feeds what the cluster says into the parts.
func (s *speaker) watch(ctx context.Context) ([]toolscache.InformerSynced, error) {
	synced, err := s.snapshot.Watch(ctx, s.cache, s.log, s.reconciler.poke)
	secrets, err1 := snapshot.On(ctx, s.cache, func(_ string, o *corev1.Secret, gone bool) {
		s.reconciler.secret(o.Name, o.Data, gone)
		if o.Name == membersSecret && !gone {
			s.membership.setKeys(o.Data[membersKeys])
		}
	})
	speakers, err2 := snapshot.On(ctx, s.cache, func(name string, _ *v1beta1.Speaker, gone bool) {
		if name == s.o.node && gone {
			s.status.lost()
		}
	})
	node, err3 := snapshot.On(ctx, s.cache, func(name string, o *corev1.Node, gone bool) {
		own, _ := snapshot.AddressesOf(o)
		s.membership.setNode(name, own, gone)
		s.absent.setNode(name, gone)
	})
	return append(synced, secrets, speakers, node), errors.Join(err, err1, err2, err3)
}

// Start runs the speaker until ctx ends, and then ends its parts in an order that lets other nodes take over first.
func (s *speaker) Start(ctx context.Context) error {
	synced, err := s.watch(ctx)
	if err != nil {
		return err
	}
	var parts group
	parts.start("layer2", s.layer2.Run)
	parts.start("bfd", s.bfd.Run)
	if s.o.proxyHealthURL != "" {
		parts.help(s.log, "proxy", func(ctx context.Context) error {
			watchProxy(ctx, askProxy(s.o.proxyHealthURL), s.o.proxyGrace, func(healthy bool) {
				s.log.Info("Service proxy", "healthy", healthy, "url", s.o.proxyHealthURL)
				s.membership.edit(func(m *members.Meta) { m.ProxyHealthy = healthy })
			})
			return nil
		})
	}
	if toolscache.WaitForCacheSync(ctx.Done(), synced...) {
		s.synced.Store(true)
		s.log.Info("the cluster is known")
		debug.FreeOSMemory() // of the first lists, which take the most that there will ever be
		parts.help(s.log, "guard", s.guard.Run)
		parts.help(s.log, "outside", func(ctx context.Context) error { return guard.Outside(ctx, s.o.exclude, s.reconciler.setOutside) })
		if s.traceAt.IsValid() {
			parts.help(s.log, "trace", func(ctx context.Context) error { return s.tracer.serve(ctx, s.traceAt) })
		}
		parts.start("bgp", s.bgp.Run)
		if len(s.o.bmpStations) > 0 {
			parts.start("bmp", bmp.New(bmp.Config{
				Log: s.log, Stations: s.o.bmpStations, Name: s.o.node, Description: "Clarion " + version.String(), Sessions: s.bgp,
			}).Run)
		}
		parts.start("reconcile", func(ctx context.Context) error { s.reconciler.run(ctx); return nil })
		parts.start("status", func(ctx context.Context) error { s.status.run(ctx); return nil })
		parts.start("members", s.membership.run)
		parts.start("absent", func(ctx context.Context) error { s.absent.run(ctx); return nil })
		s.changed()
		select {
		case <-ctx.Done():
		case err = <-parts.failed():
		}
	}
	s.log.Info("ending")
	parts.stop("trace", "proxy", "reconcile", "status", "absent")
	parts.start("end", func(context.Context) error { s.status.end(); return nil })
	s.handOver()
	parts.stop("end", "members", "layer2", "bgp", "bmp", "bfd", "outside", "guard")
	return err
}

// How long an ending speaker waits for others to stand in for it, or to take over what it owns, and how often it looks.
const (
	coverTime     = time.Second
	handOverTime  = 3 * time.Second
	handOverCheck = 20 * time.Millisecond
)

// handOver sees to it that the addresses that this speaker answers for on the local network are answered for when it has
// ended. If it is to come back, it waits until others stand in for it. Where nobody does, or its node is to be left, it
// tells them that it ends, goes on answering, and yields each address when the next owner is heard to announce it.
func (s *speaker) handOver() {
	if len(s.membership.view().Members) < 2 {
		return
	}
	if s.restarts() {
		begin := time.Now()
		s.membership.edit(func(m *members.Meta) { m.Restarting = true })
		uncovered := func(a layer2.AddressStatus) bool { return a.Covered.Before(begin) }
		if left, all := s.until(coverTime, uncovered); left == 0 || left < all {
			s.log.Info("others stand in for this speaker", "addresses", all-left, "of", all)
			return
		}
		s.membership.edit(func(m *members.Meta) { m.Restarting = false })
	}
	s.ending.Store(true)
	s.membership.edit(func(m *members.Meta) { m.Draining = true })
	own := func(a layer2.AddressStatus) bool { return a.State == layer2.Answering }
	if left, _ := s.until(handOverTime, own); left > 0 {
		s.log.Warn("not every address was taken over by another speaker", "addresses", left)
	}
}

// restarts says whether a speaker that is told to end is likely to come back to a node that forwards on meanwhile: the node
// is fit, and not being shut down, which kubelet says by a node that is not ready.
func (s *speaker) restarts() bool {
	s.snapshot.Lock()
	defer s.snapshot.Unlock()
	if s.snapshot.View().Config == nil {
		return false // nothing was decided yet
	}
	node := s.snapshot.View().Nodes[s.o.node]
	return node != nil && node.Gate == "" && node.Excluded == "" && !s.snapshot.NotReady(s.o.node)
}

// until waits until no address is pending of all that are answered for, at most for a time, and says how many are.
func (s *speaker) until(most time.Duration, pending func(layer2.AddressStatus) bool) (left, all int) {
	deadline := time.After(most)
	tick := time.NewTicker(handOverCheck)
	defer tick.Stop()
	for {
		left, all = 0, 0
		for _, a := range s.layer2.Status().Addresses {
			if a.State.Answers() {
				all++
				if pending(a) {
					left++
				}
			}
		}
		if left == 0 {
			return left, all
		}
		select {
		case <-tick.C:
		case <-deadline:
			return left, all
		}
	}
}
