package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// group runs the parts of the speaker and ends them one by one, in the order that stop is given. The zero value is ready.
// It is used by one goroutine.
type group struct {
	parts map[string]*part
	errs  chan error
}

type part struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// start runs a part until it is stopped. One that ends with an error before that is reported by failed.
func (g *group) start(name string, run func(context.Context) error) {
	if g.parts == nil {
		g.parts, g.errs = map[string]*part{}, make(chan error, 16)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &part{cancel, make(chan struct{})}
	g.parts[name] = p
	go func() {
		defer close(p.done)
		if err := run(ctx); err != nil && ctx.Err() == nil {
			g.errs <- fmt.Errorf("%s: %w", name, err)
		}
	}()
}

// retry is how long a part that helps rests after it has failed.
const retry = 5 * time.Second

// help runs a part that the speaker can do without: when it fails it is run again.
func (g *group) help(log *slog.Logger, name string, run func(context.Context) error) {
	g.start(name, func(ctx context.Context) error {
		for {
			err := run(ctx)
			if err == nil || ctx.Err() != nil {
				return nil
			}
			log.Error("a part of the speaker has failed; it is started again, and the rest goes on meanwhile", "part", name, "error", err, "after", retry)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(retry):
			}
		}
	})
}

// failed gives the error of the first part that ended by itself.
func (g *group) failed() <-chan error { return g.errs }

// stop ends parts one after the other, waiting for each. Those that were not started are passed over.
func (g *group) stop(names ...string) {
	for _, n := range names {
		if p := g.parts[n]; p != nil {
			p.cancel()
			<-p.done
		}
	}
}
