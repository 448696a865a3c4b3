package ipam

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write what is seen into testdata")

// TestScripts runs the specification in testdata. The name of each section is a step; its content is what users see
// change by it: a Service and its condition, or the pools' numbers after the step "usage". Lines that start with # are
// remarks.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld(t)
			var seen txtar.Archive
			seen.Comment = archive.Comment
			for _, step := range archive.Files {
				before := w.lines()
				w.do(step.Name)
				w.check()
				var out bytes.Buffer
				after := w.lines()
				for _, n := range slices.Sorted(maps.Keys(after)) {
					if after[n] != before[n] {
						fmt.Fprintf(&out, "%s: %s\n", n, after[n])
					}
				}
				if step.Name == "usage" {
					out.WriteString(w.usage())
				}
				var want, remarks bytes.Buffer
				for line := range bytes.Lines(step.Data) {
					if bytes.HasPrefix(line, []byte("#")) {
						remarks.Write(line)
					} else if len(bytes.TrimSpace(line)) > 0 {
						want.Write(line)
					}
				}
				if !*update && !bytes.Equal(out.Bytes(), want.Bytes()) {
					t.Errorf("after %q\ngot:\n%s\nwant:\n%s", step.Name, out.Bytes(), want.Bytes())
				}
				if remarks.Len() > 0 {
					out.WriteString("\n")
					out.Write(remarks.Bytes())
				}
				seen.Files = append(seen.Files, txtar.File{Name: step.Name, Data: out.Bytes()})
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(&seen), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
