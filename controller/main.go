// Command controller gives Services of type LoadBalancer their addresses and says in status conditions what became of
// everything that users wrote. It is the only writer of Service status and of the status of configuration objects, but
// for what speakers say of themselves; of several replicas the one that holds a lease writes.
//
// What is decided is in the pure packages controller/ipam and internal/announce; this one reads objects, asks them, and
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
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/snapshot"
)

// options are the flags.
type options struct {
	namespace    string
	defaultClass bool
	leaderElect  bool
	metricsAddr  string
	healthAddr   string
	pprofAddr    string
	logLevel     slog.Level
}

func main() {
	var o options
	flag.StringVar(&o.namespace, "namespace", envOr("POD_NAMESPACE", "clarion-system"), "Clarion's namespace, with its Lease and its Secret (default $POD_NAMESPACE)")
	flag.BoolVar(&o.defaultClass, "default-class", true, "serve Services of type LoadBalancer without a loadBalancerClass too; as for the speaker")
	flag.BoolVar(&o.leaderElect, "leader-elect", true, "work only while holding the Lease clarion-controller; needed with more than one replica")
	flag.StringVar(&o.metricsAddr, "metrics-bind-address", ":9120", "where /metrics is served; 0: nowhere")
	flag.StringVar(&o.healthAddr, "health-probe-bind-address", ":8081", "where /healthz and /readyz are served; 0: nowhere")
	flag.StringVar(&o.pprofAddr, "pprof-bind-address", "0", "where /debug/pprof is served; 0: nowhere")
	flag.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "DEBUG, INFO, WARN or ERROR")
	flag.Parse()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: o.logLevel}))
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	klog.SetLogger(logr.FromSlogHandler(log.Handler()))
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

// restartDelay is how long a controller that lost its lease waits before it stands for election again.
const restartDelay = time.Second

// run runs controllers until ctx ends: one that has lost its lease, or the API server, is replaced by a new one that
// knows nothing, in the same process. Leaving that to the kubelet would cost a crash's back-off for every hiccup of the
// API server that is longer than the short lease. Only a controller that never worked is an error.
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
	identity, err := newIdentity()
	if err != nil {
		return err
	}
	worked := false
	for {
		led, err := runOnce(ctx, o, restConfig, identity, n, log)
		worked = worked || led
		if ctx.Err() != nil || !worked {
			return err
		}
		log.Warn("controller starts anew", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(restartDelay):
		}
	}
}

// runOnce runs one controller, and says whether it ever held the lease.
func runOnce(ctx context.Context, o options, restConfig *rest.Config, identity string, n *counters, log *slog.Logger) (led bool, err error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discoveryv1.AddToScheme, eventsv1.AddToScheme, networkingv1.AddToScheme, v1beta1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return false, err
		}
	}
	mo := manager.Options{
		Scheme:                 scheme,
		Metrics:                metricsserver.Options{BindAddress: o.metricsAddr},
		HealthProbeBindAddress: o.healthAddr,
		PprofBindAddress:       o.pprofAddr,

		GracefulShutdownTimeout: new(shutdownTimeout),
		Cache: cache.Options{
			DefaultTransform: snapshot.Trim,
			ByObject: map[client.Object]cache.ByObject{
				&corev1.Service{}: {
					Field:                 fields.OneTermEqualSelector("spec.type", string(corev1.ServiceTypeLoadBalancer)),
					Transform:             trimService,
					UnsafeDisableDeepCopy: new(true),
				},
				&corev1.Namespace{}: {Transform: trimNamespace, UnsafeDisableDeepCopy: new(true)},
				&corev1.Node{}:      {Transform: snapshot.Trim, UnsafeDisableDeepCopy: new(true)},
			},
		},
	}
	holds := func() bool { return true }
	if o.leaderElect {
		lock, err := newFencedLock(restConfig, o.namespace, identity)
		if err != nil {
			return false, err
		}
		holds = lock.holds
		log.Info("standing for election", "identity", identity)
		mo.LeaderElection = true
		mo.LeaderElectionID = leaseName
		mo.LeaderElectionResourceLockInterface = lock
		mo.LeaderElectionReleaseOnCancel = true
		mo.LeaseDuration, mo.RenewDeadline, mo.RetryPeriod = new(leaseDuration), new(renewDeadline), new(retryPeriod)
	}
	mgr, err := ctrl.NewManager(restConfig, mo)
	if err != nil {
		return false, err
	}
	svcs, err := setupServices(mgr, o.defaultClass, holds, n, log)
	if err != nil {
		return false, fmt.Errorf("services: %w", err)
	}
	pools, err := setupPools(mgr, svcs, log)
	if err != nil {
		return false, fmt.Errorf("pools: %w", err)
	}
	unregister, err := setupMetrics(pools, mgr.GetClient(), holds)
	if err != nil {
		return false, fmt.Errorf("metrics: %w", err)
	}
	defer unregister()
	var synced atomic.Bool
	err = errors.Join(
		setupConditions(mgr, o.defaultClass, holds, n, log),
		setupMembersKey(mgr, o.namespace, log),
		mgr.AddHealthzCheck("alive", healthz.Ping),
		mgr.AddReadyzCheck("caches", func(*http.Request) error {
			if !synced.Load() {
				return errors.New("caches are not filled yet")
			}
			return nil
		}),
		mgr.Add(everywhere(func(context.Context) error { // runs once the caches are filled
			synced.Store(true)
			return nil
		})),
	)
	if err != nil {
		return false, err
	}
	err = mgr.Start(ctx)
	select {
	case <-mgr.Elected():
		led = true
	default:
	}
	return led, err
}

// everywhere is a part of the manager that runs whether or not this controller leads.
type everywhere func(context.Context) error

func (f everywhere) Start(ctx context.Context) error { return f(ctx) }

func (everywhere) NeedLeaderElection() bool { return false }
