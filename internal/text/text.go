// Package text cuts what is said to people to a length that can be read, and that the API takes.
package text

import (
	"fmt"
	"strings"
)

// Most is how many names are listed before the others are counted.
const Most = 5

// Few lists some of many names, and counts the others.
func Few(all []string) string {
	if n := len(all); n > Most {
		return strings.Join(all[:Most], ", ") + fmt.Sprintf(" and %d more", n-Most)
	}
	return strings.Join(all, ", ")
}

// Count counts things by their name in the singular: 1 address, 2 addresses.
func Count(n int, thing string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(thing, "s"), strings.HasSuffix(thing, "x"):
		thing += "es"
	default:
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// maxNote is what the API server takes as the text of an event, in bytes (the field note of events.k8s.io/v1).
const maxNote = 1024

// Note cuts a text to what can be that of an event, between two letters.
func Note(s string) string {
	if len(s) <= maxNote {
		return s
	}
	return strings.ToValidUTF8(s[:maxNote-len("…")], "") + "…"
}
