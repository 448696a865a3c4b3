package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

var update = flag.Bool("update", false, "write what the plug-in says into testdata")

// Each file of testdata is a cluster and what the plug-in says of it: the objects that the API holds, besides those of
// common.txtar, and for each call a section named after its arguments.
func TestOutput(t *testing.T) {
	common := parse(t, filepath.Join("testdata", "common.txtar"))
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if filepath.Base(file) == "common.txtar" {
			continue
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a := parse(t, file)
			reader := readerOf(t, string(common.Files[0].Data)+"---\n"+string(a.Files[0].Data))
			for i := range a.Files[1:] {
				f := &a.Files[i+1]
				var out bytes.Buffer
				err := run(t.Context(), strings.Fields(f.Name), &out, func(string, string) (client.Reader, string, error) {
					return reader, "default", nil
				})
				if err != nil {
					out.WriteString("error: " + err.Error() + "\n")
				}
				got := strings.TrimRight(out.String(), "\n") + "\n"
				if *update {
					f.Data = []byte(got)
				} else if diff := cmp.Diff(string(f.Data), got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", f.Name, diff)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func parse(t *testing.T, file string) *txtar.Archive {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// readerOf reads a cluster that holds the objects of a YAML text.
func readerOf(t *testing.T, objects string) client.Reader {
	t.Helper()
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	builder := fake.NewClientBuilder().WithScheme(scheme)
	for text := range strings.SplitSeq(objects, "---\n") {
		if strings.TrimSpace(text) == "" {
			continue
		}
		o, _, err := decoder.Decode([]byte(text), nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		builder.WithRuntimeObjects(o)
	}
	return builder.Build()
}
