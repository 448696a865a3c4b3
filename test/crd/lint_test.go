package crd

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/internal/schema"
)

// What is checked without an API server is refused, accepted and given defaults as the API server does.
func TestLint(t *testing.T) {
	kinds, err := schema.Read()
	if err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, r row) (*unstructured.Unstructured, []string) {
		b, err := object(t, bases[r.kind], r.patch).MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		o := &unstructured.Unstructured{}
		if err := o.UnmarshalJSON(b); err != nil {
			t.Fatal(err)
		}
		return o, kinds[o.GroupVersionKind()].Check(t.Context(), o, nil)
	}
	for _, r := range rejected() {
		t.Run("rejected/"+r.kind+"/"+r.name, func(t *testing.T) {
			if _, errs := check(t, r); len(errs) != 1 || !strings.Contains(errs[0], r.want) {
				t.Errorf("says %q, want %q", errs, r.want)
			}
		})
	}
	for _, r := range accepted() {
		t.Run("accepted/"+r.kind+"/"+r.name, func(t *testing.T) {
			o, errs := check(t, r)
			if len(errs) > 0 {
				t.Fatalf("says %q", errs)
			}
			theirs := object(t, bases[r.kind], r.patch)
			if err := api.Create(t.Context(), theirs, client.DryRunAll); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(theirs.Object["spec"], o.Object["spec"]); diff != "" {
				t.Errorf("spec (-the API server's +here):\n%s", diff)
			}
		})
	}
}
