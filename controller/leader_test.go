package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// fakeLease is an API server's lease that can fail.
type fakeLease struct {
	resourcelock.Interface
	err  error
	took time.Duration
}

func (f *fakeLease) Identity() string { return "me" }

func (f *fakeLease) Create(context.Context, resourcelock.LeaderElectionRecord) error {
	time.Sleep(f.took)
	return f.err
}

func (f *fakeLease) Update(context.Context, resourcelock.LeaderElectionRecord) error {
	time.Sleep(f.took)
	return f.err
}

// TestFencedLock: the lease counts from when its renewal was sent, and only for as long as nobody else can have it.
func TestFencedLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lease := &fakeLease{}
		l := &fencedLock{Interface: lease, start: time.Now()}
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
		want(true, "after the election")
		time.Sleep(leaseDuration - time.Nanosecond)
		want(true, "just before the end")
		time.Sleep(time.Nanosecond)
		want(false, "at the end")

		lease.took = time.Second
		if err := l.Update(t.Context(), mine); err != nil {
			t.Fatal(err)
		}
		time.Sleep(leaseDuration - time.Second)
		want(false, "after a slow renewal, from when it was sent")

		lease.took = 0
		if err := l.Update(t.Context(), mine); err != nil {
			t.Fatal(err)
		}
		lease.err = errors.New("no")
		time.Sleep(leaseDuration / 2)
		if err := l.Update(t.Context(), mine); err == nil {
			t.Fatal("the failure is hidden")
		}
		want(true, "after a failed renewal")
		time.Sleep(leaseDuration / 2)
		want(false, "when no renewal succeeded")

		lease.err = nil
		if err := errors.Join(l.Update(t.Context(), mine), l.Update(t.Context(), resourcelock.LeaderElectionRecord{})); err != nil {
			t.Fatal(err)
		}
		want(false, "after it was given up")
	})
}
