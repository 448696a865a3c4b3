package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/clarionlb/clarion/api/v1beta1"
)

var standard = timing{15 * time.Second, 10 * time.Second, 2 * time.Second}

// TestLease: the lease counts from when its renewal was sent, and only for as long as nobody else can have it. It is
// written no more often than every retry period, and says what its holder is.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fails error
		var took time.Duration
		writes := 0
		api := fake.NewClientset()
		api.PrependReactor("*", "leases", func(a clienttesting.Action) (bool, runtime.Object, error) {
			if a.GetVerb() == "create" || a.GetVerb() == "update" {
				writes++
				time.Sleep(took)
				return fails != nil, nil, fails
			}
			return false, nil, nil
		})
		l := newLease(api.CoordinationV1().Leases("here"), "me", map[string]string{v1beta1.AnnotationClass: "mine"}, standard)
		time.Sleep(time.Second)
		mine := resourcelock.LeaderElectionRecord{HolderIdentity: "me"}
		want := func(holds bool, when string) {
			t.Helper()
			if l.holds() != holds {
				t.Errorf("%s: holds is %v", when, l.holds())
			}
		}
		want(false, "before the election")
		if err := l.Create(t.Context(), mine); err != nil {
			t.Fatal(err)
		}
		got, err := api.CoordinationV1().Leases("here").Get(t.Context(), v1beta1.LeaseName, metav1.GetOptions{})
		if err != nil || got.Annotations[v1beta1.AnnotationClass] != "mine" {
			t.Errorf("the Lease says %v, %v", got.Annotations, err)
		}
		for range 8 {
			time.Sleep(electionPoll)
			if err := l.Update(t.Context(), mine); err != nil {
				t.Fatal(err)
			}
		}
		if writes != 1 {
			t.Errorf("%d writes in less than a retry period, want that of the election", writes)
		}
		time.Sleep(standard.duration - 8*electionPoll - time.Nanosecond)
		want(true, "just before the end")
		time.Sleep(time.Nanosecond)
		want(false, "at the end")

		took = time.Second
		if err := l.Update(t.Context(), mine); err != nil {
			t.Fatal(err)
		}
		time.Sleep(standard.duration - time.Second)
		want(false, "after a slow renewal, from when it was sent")

		took = 0
		if err := l.Update(t.Context(), mine); err != nil {
			t.Fatal(err)
		}
		fails = errors.New("no")
		time.Sleep(standard.duration / 2)
		if err := l.Update(t.Context(), mine); err == nil {
			t.Fatal("the failure is hidden")
		}
		want(true, "after a failed renewal")
		time.Sleep(standard.duration / 2)
		want(false, "when no renewal succeeded")

		fails = nil
		time.Sleep(standard.retry)
		if err := errors.Join(l.Update(t.Context(), mine), l.Update(t.Context(), resourcelock.LeaderElectionRecord{})); err != nil {
			t.Fatal(err)
		}
		want(false, "after it was given up")
	})
}

// TestHandover: a lease that is given up is taken within a second, one whose holder was killed when it has run out, and a
// holder that cannot reach the API server for a moment keeps it.
func TestHandover(t *testing.T) {
	for _, tt := range []struct {
		name   string
		timing timing
		killed bool
		within time.Duration
	}{
		{"stopped", standard, false, time.Second},
		{"killed", standard, true, 18 * time.Second},
		{"killed, the fast setting", timing{2 * time.Second, 1500 * time.Millisecond, 500 * time.Millisecond}, true, 3 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := fake.NewClientset()
				var away, never atomic.Bool        // is the API server, from the first
				var last atomic.Pointer[time.Time] // the first wrote
				leads := make(chan string, 10)
				start := func(name string, fails *atomic.Bool) (stop func()) {
					ctx, cancel := context.WithCancel(t.Context())
					l := newLease(api.CoordinationV1().Leases("here"), name, nil, tt.timing)
					l.client = leaseClient{l.client, fails, &last}
					done := make(chan struct{})
					go func() {
						defer close(done)
						_ = l.elect(ctx, slog.New(slog.DiscardHandler), func(ctx context.Context) {
							leads <- name
							<-ctx.Done()
							leads <- name + " ends"
						})
					}()
					return func() { cancel(); <-done }
				}
				stopFirst := start("first", &away)
				if got := <-leads; got != "first" {
					t.Fatal(got)
				}
				stopSecond := start("second", &never)
				time.Sleep(time.Minute)
				away.Store(true)
				time.Sleep(tt.timing.deadline / 2)
				away.Store(false)
				time.Sleep(time.Minute)
				if len(leads) > 0 {
					t.Fatalf("%s though nothing lasted", <-leads)
				}
				from := time.Now()
				if away.Store(tt.killed); tt.killed {
					from = *last.Load()
				} else {
					stopFirst()
				}
				for got := range leads {
					if got == "second" {
						break
					}
				}
				if took := time.Since(from); took > tt.within {
					t.Errorf("the second leads after %s, want %s at most", took, tt.within)
				}
				stopSecond()
				away.Store(true)
				stopFirst()
			})
		})
	}
}

type leaseInterface = coordinationv1client.LeaseInterface

// leaseClient is a client for which the API server may be away.
type leaseClient struct {
	leaseInterface
	away *atomic.Bool
	last *atomic.Pointer[time.Time]
}

func (c leaseClient) Update(ctx context.Context, l *coordinationv1.Lease, o metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	if c.away.Load() {
		return nil, errors.New("away")
	}
	if *l.Spec.HolderIdentity == "first" {
		now := time.Now()
		c.last.Store(&now)
	}
	return c.leaseInterface.Update(ctx, l, o)
}
