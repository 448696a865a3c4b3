package crd

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// rule is one thing that a CRD's schema asks of an object's spec.
type rule struct {
	kind string
	// path of the field, without indexes: spec.addresses[].
	path string
	// says is part of what the API server answers when the rule is broken.
	says string
}

func (r rule) String() string { return r.kind + " " + r.path + ": " + r.says }

// brokenBy reports whether the API server's answer means this rule.
func (r rule) brokenBy(kind string, c metav1.StatusCause) bool {
	return r.kind == kind && r.path == index.ReplaceAllString(c.Field, "[]") && strings.Contains(c.Message, r.says)
}

// index is what the API server writes for a list's item: its number, or its key in a list that is a map.
var index = regexp.MustCompile(`\[[^\]]*\]`)

// readCRDs reads the CRDs as they are installed.
func readCRDs(t *testing.T) []apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder("crd"), "clarionlb.io_*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no CRDs in %s (error %v)", folder("crd"), err)
	}
	var crds []apiextensionsv1.CustomResourceDefinition
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(b, &crd); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		crds = append(crds, crd)
	}
	return crds
}

// specRules lists every rule on the spec of the CRD's kind. Status is left out: users do not write it.
func specRules(crd apiextensionsv1.CustomResourceDefinition) []rule {
	var rules []rule
	kind := crd.Spec.Names.Kind
	root := crd.Spec.Versions[0].Schema.OpenAPIV3Schema
	for _, name := range root.Required {
		rules = append(rules, rule{kind, name, "Required value"})
	}
	var walk func(path string, s apiextensionsv1.JSONSchemaProps)
	walk = func(path string, s apiextensionsv1.JSONSchemaProps) {
		add := func(when bool, path, says string) {
			if when {
				rules = append(rules, rule{kind, path, says})
			}
		}
		for _, v := range s.XValidations {
			add(true, path, v.Message)
		}
		for _, name := range s.Required {
			add(true, path+"."+name, "Required value")
		}
		add(len(s.Enum) > 0, path, "Unsupported value")
		add(s.Minimum != nil, path, "should be greater than or equal to")
		add(s.Maximum != nil, path, "should be less than or equal to")
		add(s.MinLength != nil, path, "should be at least")
		add(s.MaxLength != nil, path, "Too long")
		add(s.MinItems != nil, path, "should have at least")
		add(s.MaxItems != nil, path, "Too many")
		add(s.Pattern != "", path, "should match")
		if l := s.XListType; l != nil && (*l == "set" || *l == "map") {
			add(true, path+"[]", "Duplicate value")
		}
		for name, p := range s.Properties {
			walk(path+"."+name, p)
		}
		if s.Items != nil {
			walk(path+"[]", *s.Items.Schema)
		}
	}
	if spec, ok := root.Properties["spec"]; ok {
		walk("spec", spec)
	}
	return rules
}
