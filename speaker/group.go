package main

import (
	"context"
	"fmt"
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
