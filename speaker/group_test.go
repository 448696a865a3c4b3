package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Parts end one by one in the order asked for, each before the next is told to; a part that was never started is no
// obstacle.
func TestGroupStopsInOrder(t *testing.T) {
	var g group
	var ended []string
	for _, n := range []string{"a", "b", "c"} {
		g.start(n, func(ctx context.Context) error {
			<-ctx.Done()
			ended = append(ended, n) // safe because stop waits for each
			return ctx.Err()
		})
	}
	g.stop("c", "missing", "a", "b")
	if !slices.Equal(ended, []string{"c", "a", "b"}) {
		t.Errorf("ended %v", ended)
	}
	select {
	case err := <-g.failed():
		t.Errorf("a part that was stopped is reported as failed: %v", err)
	default:
	}
}

func TestGroupReportsFailure(t *testing.T) {
	var g group
	boom := errors.New("boom")
	g.start("a", func(context.Context) error { return boom })
	if err := <-g.failed(); !errors.Is(err, boom) || err.Error() != "a: boom" {
		t.Errorf("got %v", err)
	}
}

// A part that only helps is run again when it fails, and the speaker goes on; it is stopped while it rests, too.
func TestGroupHelp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		runs := 0
		g.help(slog.New(slog.DiscardHandler), "guard", func(context.Context) error {
			runs++
			return errors.New("boom")
		})
		time.Sleep(2*retry + time.Second)
		synctest.Wait()
		if runs != 3 {
			t.Errorf("it ran %d times in %v, want 3", runs, 2*retry+time.Second)
		}
		select {
		case err := <-g.failed():
			t.Errorf("the speaker ends: %v", err)
		default:
		}
		g.stop("guard")
	})
}
