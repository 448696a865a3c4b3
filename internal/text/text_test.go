package text

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestFew(t *testing.T) {
	for _, tt := range []struct{ all, want string }{
		{"", ""}, {"a", "a"}, {"a b c d e", "a, b, c, d, e"}, {"a b c d e f", "a, b, c, d, e and 1 more"},
	} {
		if got := Few(strings.Fields(tt.all)); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.all, got, tt.want)
		}
	}
}

// A text is left alone if it fits, and cut between letters, not within one, if it does not.
func TestNote(t *testing.T) {
	for n := range 8 {
		s := strings.Repeat("x", n) + strings.Repeat("ü", 600)
		got := Note(s)
		if len(got) > 1024 || !utf8.ValidString(got) || !strings.HasPrefix(s, strings.TrimSuffix(got, "…")) || len(got) < 1018 {
			t.Errorf("%d: %d bytes, %q", n, len(got), got[max(0, len(got)-9):])
		}
	}
	if s := strings.Repeat("x", 1024); Note(s) != s {
		t.Error("a text that fits is cut")
	}
}
