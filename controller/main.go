// Command controller gives Services of type LoadBalancer their addresses and says in status conditions what became of
// everything that users wrote. It is the only writer of Service status and of the status of configuration objects, but
// for what speakers say of themselves; of several replicas the one that holds a lease writes.
//
// What is decided is in the pure packages internal/ipam and internal/announce; this one reads objects, asks them, and
// writes the answers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
	"github.com/clarionlb/clarion/internal/metricsauth"
	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/internal/version"
)

// options are the flags.
type options struct {
	namespace     string
	class         allocate.Class
	ignoreExclude bool
	leaderElect   bool
	lease         timing
	metricsAddr   string
	metricsSecure bool
	healthAddr    string
	pprofAddr     string
	logLevel      slog.Level
}

func main() {
	var o options
	flag.StringVar(&o.namespace, "namespace", envOr("POD_NAMESPACE", "clarion-system"), "Clarion's namespace, with its Lease and its Secret (default $POD_NAMESPACE)")
	flag.StringVar(&o.class.Name, "load-balancer-class", v1beta1.LoadBalancerClass, "the loadBalancerClass of the Services to serve")
	flag.BoolVar(&o.class.Default, "default-class", true, "serve Services of type LoadBalancer without a loadBalancerClass too")
	flag.BoolVar(&o.ignoreExclude, "ignore-exclude-label", false, "nodes with the label node.kubernetes.io/exclude-from-external-load-balancers announce too; as for the speaker")
	flag.BoolVar(&o.leaderElect, "leader-elect", true, "work only while holding the Lease "+v1beta1.LeaseName+"; needed with more than one replica")
	flag.DurationVar(&o.lease.duration, "lease-duration", 15*time.Second, "after how long without a renewal another replica takes the Lease")
	flag.DurationVar(&o.lease.deadline, "lease-renew-deadline", 10*time.Second, "after how long without a renewal the holder gives up")
	flag.DurationVar(&o.lease.retry, "lease-retry-period", 2*time.Second, "how often the Lease is renewed, and looked at by others")
	flag.StringVar(&o.metricsAddr, "metrics-bind-address", ":9120", "where /metrics is served; 0: nowhere")
	flag.BoolVar(&o.metricsSecure, "metrics-secure", false, "serve /metrics by HTTPS, to those only whom the API server lets get the path /metrics")
	flag.StringVar(&o.healthAddr, "health-probe-bind-address", ":8081", "where /healthz and /readyz are served; 0: nowhere")
	flag.StringVar(&o.pprofAddr, "pprof-bind-address", "0", "where /debug/pprof is served; 0: nowhere")
	flag.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "DEBUG, INFO, WARN or ERROR")
	version.Flag(flag.CommandLine, "controller")
	flag.Parse()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: o.logLevel}))
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	klog.SetLogger(logr.FromSlogHandler(quiet{log.Handler()}))
	slog.SetDefault(log)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(25) // most of the heap is caches that live long
	}
	if err := run(ctrl.SetupSignalHandler(), o, log); err != nil {
		log.Error("controller ends", "error", err)
		os.Exit(1)
	}
}

func envOr(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

// shutdownTimeout is how long writes may take that are under way when the controller is asked to end.
const shutdownTimeout = 5 * time.Second

// run runs a controller until ctx ends. All of its parts run on standbys too, so that caches are filled and outlive a lost
// lease; what decides and writes does so only while the lease is held.
func run(ctx context.Context, o options, log *slog.Logger) error {
	restConfig, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	restConfig.QPS = -1 // the API server's own fairness is the limit
	n, err := newCounters(metrics.Registry)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discoveryv1.AddToScheme, eventsv1.AddToScheme, networkingv1.AddToScheme, v1beta1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return err
		}
	}
	mo := manager.Options{
		Scheme:                 scheme,
		Metrics:                metricsauth.Options(o.metricsAddr, o.metricsSecure),
		HealthProbeBindAddress: o.healthAddr,
		PprofBindAddress:       o.pprofAddr,

		GracefulShutdownTimeout: new(shutdownTimeout),
		Cache: cache.Options{
			DefaultTransform: snapshot.Trim,
			ByObject: map[client.Object]cache.ByObject{
				&corev1.Service{}:   {Transform: trimService, UnsafeDisableDeepCopy: new(true)},
				&corev1.Namespace{}: {Transform: trimNamespace, UnsafeDisableDeepCopy: new(true)},
				&corev1.Node{}:      {Transform: snapshot.Trim, UnsafeDisableDeepCopy: new(true)},
			},
		},
	}
	mgr, err := ctrl.NewManager(restConfig, mo)
	if err != nil {
		return err
	}
	holds, elect := func() bool { return true }, func(ctx context.Context, lead func(context.Context)) error {
		lead(ctx)
		return nil
	}
	if o.leaderElect {
		if err := o.lease.check(); err != nil {
			return err
		}
		identity, err := newIdentity()
		if err != nil {
			return err
		}
		leases, err := coordinationv1client.NewForConfigAndClient(restConfig, mgr.GetHTTPClient())
		if err != nil {
			return fmt.Errorf("leases: %w", err)
		}
		l := newLease(leases.Leases(o.namespace), identity, map[string]string{
			v1beta1.AnnotationClass: o.class.Name, v1beta1.AnnotationDefaultClass: strconv.FormatBool(o.class.Default),
			v1beta1.AnnotationIgnoreExcludeLabel: strconv.FormatBool(o.ignoreExclude), v1beta1.AnnotationVersion: version.String(),
		}, o.lease)
		holds, elect = l.holds, func(ctx context.Context, lead func(context.Context)) error { return l.elect(ctx, log, lead) }
	}
	svcs, err := setupServices(mgr, o.class, holds, n, log)
	if err != nil {
		return fmt.Errorf("services: %w", err)
	}
	pools, err := setupPools(mgr, svcs, log)
	if err != nil {
		return fmt.Errorf("pools: %w", err)
	}
	if err := setupMetrics(pools, mgr.GetClient(), holds); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	conds, err := setupConditions(mgr, snapshot.Options{IgnoreExcludeLabel: o.ignoreExclude}, holds, n, log)
	if err != nil {
		return fmt.Errorf("conditions: %w", err)
	}
	conds.found, svcs.claims = svcs.isAnnounced, conds.claims
	synced := make(chan struct{})
	err = errors.Join(
		mgr.AddHealthzCheck("alive", healthz.Ping),
		mgr.AddReadyzCheck("caches", func(*http.Request) error {
			select {
			case <-synced:
				return nil
			default:
				return errors.New("caches are not filled yet")
			}
		}),
		mgr.Add(manager.RunnableFunc(func(context.Context) error { // runs once the caches are filled
			close(synced)
			return nil
		})),
	)
	if err != nil {
		return err
	}

	// The lease is given up when everything has ended that could write.
	electing, endElection := context.WithCancel(context.WithoutCancel(ctx))
	defer endElection()
	elected := make(chan error, 1)
	go func() {
		for _, ready := range []<-chan struct{}{synced, svcs.queued, pools.queued} {
			select {
			case <-electing.Done():
				elected <- nil
				return
			case <-ready:
			}
		}
		elected <- elect(electing, func(term context.Context) {
			lead(term, svcs, pools, func(ctx context.Context) { keepMembersKey(ctx, mgr.GetClient(), o.namespace, log) }, func(ctx context.Context) { _ = conds.Start(ctx) })
		})
	}()
	err = mgr.Start(ctx)
	endElection()
	return errors.Join(err, <-elected)
}

// lead is a term: it decides and writes until ctx ends.
func lead(ctx context.Context, svcs *services, pools *pools, beside ...func(context.Context)) {
	var parts sync.WaitGroup
	for _, part := range beside {
		parts.Go(func() { part(ctx) })
	}
	if err := svcs.lead(ctx, true); err != nil { // the cache is filled, so that this does not happen
		svcs.log.Error("cannot lead", "error", err)
	}
	pools.lead(true)
	<-ctx.Done()
	_ = svcs.lead(ctx, false)
	pools.lead(false)
	parts.Wait()
}
