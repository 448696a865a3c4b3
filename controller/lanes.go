package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
)

// How many writes are under way at once in each lane, and how long one may take; how long a namespace stays in the slow
// lane; and how long an object rests after a failure, doubling up to a most.
const (
	fastWriters, fastLimit = 16, 500 * time.Millisecond
	slowWriters, slowLimit = 16, 15 * time.Second
	slowTime               = time.Minute
	retryFirst, retryMost  = time.Second, time.Minute
)

// objectKey names an object that is to be written; its namespace is "" for one of the cluster.
type objectKey struct{ kind, namespace, name string }

func (k objectKey) String() string {
	if k.namespace == "" {
		return k.kind + " " + k.name
	}
	return k.kind + " " + k.namespace + "/" + k.name
}

// lanes are a work queue of objects in two lanes: one with a short time limit, and one for namespaces in which a write
// took longer. Admission webhooks make writes slow, or fail, in some namespaces only; the others do not wait for them.
type lanes struct {
	do         func(context.Context, objectKey) (again time.Duration, err error)
	failed     func(objectKey, error)
	fast, slow workqueue.TypedRateLimitingInterface[objectKey]

	mu        sync.Mutex
	slowUntil map[string]time.Time // by namespace
}

// newLanes is a queue that works off its objects by do, which says when an object has to be looked at again (0: not), and
// tells failed of errors. It must be run.
func newLanes(do func(context.Context, objectKey) (time.Duration, error), failed func(objectKey, error)) *lanes {
	lane := func() workqueue.TypedRateLimitingInterface[objectKey] {
		return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[objectKey](retryFirst, retryMost))
	}
	return &lanes{do: do, failed: failed, fast: lane(), slow: lane(), slowUntil: map[string]time.Time{}}
}

// add has an object written after a delay, once if it is added again meanwhile.
func (l *lanes) add(key objectKey, after time.Duration) { l.lane(key).AddAfter(key, after) }

func (l *lanes) lane(key objectKey) workqueue.TypedRateLimitingInterface[objectKey] {
	l.mu.Lock()
	defer l.mu.Unlock()
	until, is := l.slowUntil[key.namespace]
	if is && time.Now().Before(until) {
		return l.slow
	}
	delete(l.slowUntil, key.namespace)
	return l.fast
}

// run works until ctx ends.
func (l *lanes) run(ctx context.Context) {
	var all sync.WaitGroup
	for range fastWriters {
		all.Go(func() { l.work(ctx, l.fast, fastLimit) })
	}
	for range slowWriters {
		all.Go(func() { l.work(ctx, l.slow, slowLimit) })
	}
	<-ctx.Done()
	l.fast.ShutDown()
	l.slow.ShutDown()
	all.Wait()
}

func (l *lanes) work(ctx context.Context, lane workqueue.TypedRateLimitingInterface[objectKey], limit time.Duration) {
	for {
		key, end := lane.Get()
		if end {
			return
		}
		if belongs := l.lane(key); belongs != lane {
			belongs.Add(key)
		} else {
			l.one(ctx, key, lane, limit)
		}
		lane.Done(key)
	}
}

func (l *lanes) one(ctx context.Context, key objectKey, lane workqueue.TypedRateLimitingInterface[objectKey], limit time.Duration) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	again, err := l.do(limited, key)
	switch {
	case ctx.Err() != nil:
	case err == nil:
		if lane.Forget(key); again > 0 {
			lane.AddAfter(key, again)
		}
	case lane == l.fast && key.namespace != "" && errors.Is(limited.Err(), context.DeadlineExceeded):
		l.mu.Lock()
		l.slowUntil[key.namespace] = time.Now().Add(slowTime)
		l.mu.Unlock()
		lane.Forget(key)
		l.slow.Add(key)
	default:
		l.failed(key, err)
		lane.AddRateLimited(key)
	}
}
