package main

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// The lease. When its holder dies without giving it up, another has it after leaseDuration and at most two polls of
// 2.2 times retryPeriod, so within three seconds.
const (
	leaseName     = "clarion-controller"
	leaseDuration = 2 * time.Second
	renewDeadline = 1500 * time.Millisecond
	retryPeriod   = 200 * time.Millisecond
)

// fencedLock is the lease, and knows for how long it is certainly held. A process that was stopped for a while finds
// that out from its clock before its leader election does; what it decided before must not be written any more.
type fencedLock struct {
	resourcelock.Interface
	start   time.Time
	renewed atomic.Int64 // when the last renewal that succeeded was sent, in nanoseconds since start; 0: never
}

// newIdentity is a name for this process in elections. A controller that starts anew in it may take its own lease up
// again at once: the one before does not write any more.
func newIdentity() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("name for leader election: %w", err)
	}
	return host + "_" + string(uuid.NewUUID()), nil
}

func newFencedLock(config *rest.Config, namespace, identity string) (*fencedLock, error) {
	lock, err := resourcelock.NewFromKubeconfig(resourcelock.LeasesResourceLock, namespace, leaseName,
		resourcelock.ResourceLockConfig{Identity: identity}, config, renewDeadline)
	if err != nil {
		return nil, fmt.Errorf("lease %s/%s: %w", namespace, leaseName, err)
	}
	return &fencedLock{Interface: lock, start: time.Now()}, nil
}

// Create is resourcelock.Interface's.
func (l *fencedLock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.write(r, func() error { return l.Interface.Create(ctx, r) })
}

// Update is resourcelock.Interface's.
func (l *fencedLock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.write(r, func() error { return l.Interface.Update(ctx, r) })
}

func (l *fencedLock) write(r resourcelock.LeaderElectionRecord, do func() error) error {
	sent := max(time.Since(l.start), 1)
	if err := do(); err != nil {
		return err
	}
	if r.HolderIdentity != l.Identity() {
		sent = 0 // given up
	}
	l.renewed.Store(int64(sent))
	return nil
}

// holds says whether nobody else can have the lease yet.
func (l *fencedLock) holds() bool {
	renewed := time.Duration(l.renewed.Load())
	return renewed > 0 && time.Since(l.start)-renewed < leaseDuration
}
