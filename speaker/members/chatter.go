package members

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"time"
)

// chatter takes memberlist's log. What changes the view is logged where it does, so the lines are for debugging,
// except those about messages that no key opens or that belong to somebody else: the usual causes of a speaker that
// stays alone, which nothing else shows. They are shown once a minute.
type chatter struct {
	log *slog.Logger

	mu    sync.Mutex
	shown time.Time
}

func (c *chatter) Write(line []byte) (int, error) {
	text := bytes.TrimSpace(line)
	level := slog.LevelDebug
	for _, sign := range []string{"ecrypt", "unacceptable label", "label header"} {
		if bytes.Contains(text, []byte(sign)) && c.due() {
			level = slog.LevelWarn
		}
	}
	c.log.Log(context.Background(), level, "members: memberlist: "+string(text))
	return len(line), nil
}

func (c *chatter) due() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.shown) >= time.Minute {
		c.shown = now
		return true
	}
	return false
}
