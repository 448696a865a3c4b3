package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write what the plug-in says into testdata")

// Each file of testdata is a cluster and what the plug-in says of it: the objects that the API holds, besides those of
// common.txtar, and for each call a section named after its arguments. The kinds after "Forbidden:" may not be listed.
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
			_, forbidden, _ := strings.Cut(string(a.Comment), "Forbidden: ")
			reader := readerOf(t, string(common.Files[0].Data)+"---\n"+string(a.Files[0].Data), strings.Fields(forbidden))
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

// readerOf reads a cluster that holds the objects of a YAML text, but for the lists of some kinds.
func readerOf(t *testing.T, objects string, forbidden []string) client.Reader {
	t.Helper()
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	builder := fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if kind := kindOf(t, list); slices.Contains(forbidden, kind) {
				return apierrors.NewForbidden(schema.GroupResource{Resource: kind}, "", errors.New("no right to list it"))
			}
			return c.List(ctx, list, opts...)
		},
	})
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

// kindOf is the kind of the objects of a list.
func kindOf(t *testing.T, list client.ObjectList) string {
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	gvk, err := apiutil.GVKForObject(list, scheme)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(gvk.Kind, "List")
}

// The ClusterRole clarion-cli allows what the plug-in reads, and nothing else.
func TestRights(t *testing.T) {
	b, err := os.ReadFile("../config/rbac/view.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var allowed, read []string
	for doc := range strings.SplitSeq(string(b), "---\n") {
		var role rbacv1.ClusterRole
		if err := yaml.UnmarshalStrict([]byte(doc), &role); err != nil {
			t.Fatal(err)
		}
		for _, r := range role.Rules {
			if len(r.ResourceNames) > 0 {
				continue // single objects are no lists
			}
			if role.Name == "clarion-cli" {
				if !slices.Equal(r.Verbs, []string{"get", "list"}) {
					t.Errorf("verbs %s for %s", r.Verbs, r.Resources)
				}
				for _, resource := range r.Resources {
					allowed = append(allowed, r.APIGroups[0]+"/"+resource)
				}
			}
		}
	}
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	_, err = load(t.Context(), fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{
		List: func(_ context.Context, _ client.WithWatch, list client.ObjectList, _ ...client.ListOption) error {
			gvk, err := apiutil.GVKForObject(list, scheme)
			plural, _ := meta.UnsafeGuessKindToResource(gvk.GroupVersion().WithKind(strings.TrimSuffix(gvk.Kind, "List")))
			read = append(read, plural.Group+"/"+plural.Resource)
			return err
		},
	}).Build())
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(allowed)
	slices.Sort(read)
	if diff := cmp.Diff(read, allowed); diff != "" {
		t.Errorf("(-read, once each +allowed):\n%s", diff)
	}
}
