package main

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUpToDate(t *testing.T) {
	want, err := reference("../..")
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile("../api.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(have)); diff != "" {
		t.Errorf("docs/api.md is out of date (-want +have), run: go run ./docs/gen > docs/api.md\n%s", diff)
	}
}
