package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/clarionlb/clarion/api/v1beta1"
)

// electionPoll is how often a controller looks at what it knows of the lease. It costs nothing: the lease is read and
// written every retry period, and read when a watch says that its holder gave it up.
const electionPoll = 200 * time.Millisecond

// timing is when a lease changes hands.
type timing struct {
	duration time.Duration // after the last renewal that others saw, they may take it
	deadline time.Duration // a holder that could not renew it for so long gives up
	retry    time.Duration // between renewals
}

func (t timing) check() error {
	if t.retry < electionPoll || t.deadline <= 2*t.retry || t.duration <= t.deadline || t.duration < time.Second {
		return fmt.Errorf("lease of %s, to be renewed within %s, every %s: each has to be longer than the next, the second more than twice the third, which is at least %s",
			t.duration, t.deadline, t.retry, electionPoll)
	}
	return nil
}

// lease is the Lease that the controller that leads holds, and knows for how long it is certainly held. A process that was
// stopped for a while finds that out from its clock before its leader election does; what it decided before must not be
// written any more. It is a resourcelock.Interface.
type lease struct {
	client   coordinationv1client.LeaseInterface
	identity string
	says     map[string]string // annotations: what the holder says of itself
	timing

	start   time.Time
	renewed atomic.Int64 // when the last renewal that succeeded was sent, in nanoseconds since start; 0: never
	stale   atomic.Bool  // what is known of the Lease is to be read again
	known   *coordinationv1.Lease
	read    time.Time // when
	failed  time.Time // when a request did last
}

// newIdentity is a name for this process in elections.
func newIdentity() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("name for leader election: %w", err)
	}
	return host + "_" + string(uuid.NewUUID()), nil
}

func newLease(c coordinationv1client.LeaseInterface, identity string, says map[string]string, t timing) *lease {
	return &lease{client: c, identity: identity, says: says, timing: t, start: time.Now()}
}

// limit bounds one request, so that a second is possible before the deadline. After one that failed it waits for half a
// retry period, so that an API server that is away is not hammered.
func (l *lease) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if wait := l.retry/2 - time.Since(l.failed); wait > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return context.WithTimeout(ctx, max(l.deadline/2, time.Second))
}

// Get is resourcelock.Interface's.
func (l *lease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	if l.stale.Swap(false) || l.known == nil || time.Since(l.read) >= l.retry {
		ctx, cancel := l.limit(ctx)
		defer cancel()
		got, err := l.client.Get(ctx, v1beta1.LeaseName, metav1.GetOptions{})
		if err != nil {
			if l.known = nil; !apierrors.IsNotFound(err) {
				l.failed = time.Now()
			}
			return nil, nil, err
		}
		l.known, l.read = got, time.Now()
	}
	record := resourcelock.LeaseSpecToLeaderElectionRecord(&l.known.Spec)
	raw, err := json.Marshal(*record)
	return record, raw, err
}

// Create is resourcelock.Interface's.
func (l *lease) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.write(ctx, r, func(ctx context.Context, next *coordinationv1.Lease) (*coordinationv1.Lease, error) {
		next.ObjectMeta = metav1.ObjectMeta{Name: v1beta1.LeaseName, Annotations: next.Annotations}
		return l.client.Create(ctx, next, metav1.CreateOptions{})
	})
}

// Update is resourcelock.Interface's. Between two retry periods there is nothing to renew.
func (l *lease) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	if renewed := l.renewed.Load(); renewed > 0 && r.HolderIdentity == l.identity && time.Since(l.start)-time.Duration(renewed) < l.retry {
		return nil
	}
	if l.known == nil {
		return errors.New("the Lease has not been read")
	}
	return l.write(ctx, r, func(ctx context.Context, next *coordinationv1.Lease) (*coordinationv1.Lease, error) {
		return l.client.Update(ctx, next, metav1.UpdateOptions{})
	})
}

func (l *lease) write(ctx context.Context, r resourcelock.LeaderElectionRecord, do func(context.Context, *coordinationv1.Lease) (*coordinationv1.Lease, error)) error {
	ctx, cancel := l.limit(ctx)
	defer cancel()
	sent := max(time.Since(l.start), 1)
	next := &coordinationv1.Lease{Spec: resourcelock.LeaderElectionRecordToLeaseSpec(&r)}
	if l.known != nil {
		l.known.ObjectMeta.DeepCopyInto(&next.ObjectMeta)
	}
	if next.Annotations == nil {
		next.Annotations = map[string]string{}
	}
	maps.Copy(next.Annotations, l.says)
	got, err := do(ctx, next)
	if err != nil {
		l.stale.Store(true)
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			l.failed = time.Now()
		}
		return err
	}
	l.known, l.read = got, time.Now()
	if r.HolderIdentity != l.identity {
		sent = 0 // given up
	}
	l.renewed.Store(int64(sent))
	return nil
}

// RecordEvent is resourcelock.Interface's.
func (l *lease) RecordEvent(string) {}

// Identity is resourcelock.Interface's.
func (l *lease) Identity() string { return l.identity }

// Describe is resourcelock.Interface's.
func (l *lease) Describe() string { return v1beta1.LeaseName }

// holds says whether nobody else can have the lease yet.
func (l *lease) holds() bool {
	renewed := time.Duration(l.renewed.Load())
	return renewed > 0 && time.Since(l.start)-renewed < l.duration
}

// watch has the Lease read when somebody else renews it or gives it up, until ctx ends: the time after which it may be taken
// begins when that is seen.
func (l *lease) watch(ctx context.Context) {
	for ctx.Err() == nil {
		w, err := l.client.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", v1beta1.LeaseName).String()})
		for more := err == nil; more; {
			var e watch.Event
			select {
			case <-ctx.Done():
				more = false
			case e, more = <-w.ResultChan():
			}
			if got, ok := e.Object.(*coordinationv1.Lease); ok && (got.Spec.HolderIdentity == nil || *got.Spec.HolderIdentity != l.identity || e.Type == watch.Deleted) {
				l.stale.Store(true)
			}
		}
		if err == nil {
			w.Stop()
		}
		select {
		case <-ctx.Done():
		case <-time.After(l.retry):
		}
	}
}

// elect stands for election until ctx ends, and gives the lease up then. While it is held lead runs, never twice at once;
// its context ends when the lease is lost.
func (l *lease) elect(ctx context.Context, log *slog.Logger, lead func(context.Context)) error {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go l.watch(watching)
	var term sync.Mutex
	e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: l, Name: v1beta1.LeaseName, ReleaseOnCancel: true,
		LeaseDuration: l.duration, RenewDeadline: l.deadline, RetryPeriod: electionPoll,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				term.Lock()
				defer term.Unlock()
				if ctx.Err() == nil {
					log.Info("leading", "identity", l.identity)
					lead(ctx)
				}
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	log.Info("standing for election", "identity", l.identity)
	for ctx.Err() == nil {
		if e.Run(ctx); ctx.Err() == nil {
			log.Warn("the lease is lost", "identity", l.identity)
		}
	}
	term.Lock() // until lead has ended
	defer term.Unlock()
	return nil
}
