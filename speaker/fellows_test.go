package main

import (
	"bytes"
	"encoding/base64"
	"log/slog"
	"strings"
	"testing"

	"github.com/clarionlb/clarion/internal/snapshot"
	"github.com/clarionlb/clarion/speaker/members"
)

// What is announced is announced again when a fellow comes, or comes back, who may not have heard it: once it is ready,
// not when it only says something new, and not for this speaker itself.
func TestFellowsThatCome(t *testing.T) {
	came := 0
	f := newFellows(members.Config{Name: "node1"}, slog.New(slog.DiscardHandler))
	f.changed, f.joined, f.met, f.came = func(map[string]snapshot.Member) {}, func() {}, func() {}, func() { came++ }
	self := members.Member{Name: "node1", Meta: members.Meta{Ready: true}}
	two := members.Member{Name: "node2", Meta: members.Meta{Ready: true, ProxyHealthy: true}}
	for _, step := range []struct {
		what string
		view []members.Member
		came int
	}{
		{"alone", []members.Member{self}, 0},
		{"a fellow that is starting", []members.Member{self, {Name: "node2"}}, 0},
		{"it is ready", []members.Member{self, two}, 1},
		{"it says something new", []members.Member{self, {Name: "node2", Meta: members.Meta{Ready: true, Draining: true}}}, 1},
		{"it is gone", []members.Member{self}, 1},
		{"it is back", []members.Member{self, two}, 2},
		{"one of another release", []members.Member{self, two, {Name: "node3", Unknown: "version 9"}}, 3},
	} {
		f.take(members.View{Members: step.view, Joined: true})
		if came != step.came {
			t.Errorf("%s: told %d times so far, want %d", step.what, came, step.came)
		}
	}
}

// Who replaces the key of the group sees in the log of every speaker which keys it has, in the order of their use. What
// cannot be a key changes nothing.
func TestFellowsKeys(t *testing.T) {
	var out bytes.Buffer
	f := newFellows(members.Config{Name: "node1"}, slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.MessageKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	line := func(b byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) + "\n" }
	for _, step := range []struct{ what, text, log string }{
		{"the first", line(1), "level=INFO sha256=72cd6e84"},
		{"the same again", "\n" + line(1), ""},
		{"a second one", line(1) + line(2), `level=INFO sha256="72cd6e84 75877bb4"`},
		{"the second one first", line(2) + line(1), `level=INFO sha256="75877bb4 72cd6e84"`},
		{"too short", "AAAA\n", "level=ERROR"},
		{"nothing", "", ""},
		{"the new one alone", line(2), "level=INFO sha256=75877bb4"},
	} {
		out.Reset()
		f.setKeys([]byte(step.text))
		if got := strings.TrimSpace(out.String()); got != step.log {
			t.Errorf("%s: logged %q, want %q", step.what, got, step.log)
		}
	}
}
