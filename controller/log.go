package main

import (
	"context"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// quiet logs as its handler does, but for errors that are none: a namespace that is going takes no new events.
type quiet struct{ slog.Handler }

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	going := false
	r.Attrs(func(a slog.Attr) bool {
		err, ok := a.Value.Any().(error)
		going = ok && apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
		return !going
	})
	if going {
		return nil
	}
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
