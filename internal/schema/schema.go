// Package schema checks objects of Clarion's kinds as an API server does that has the CustomResourceDefinitions of this
// release, by the API server's own code.
package schema

import (
	"context"
	"fmt"
	"math"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"

	"github.com/clarionlb/clarion/config"
)

// Kind is what is checked of the objects of a kind. It is safe for several goroutines at once.
type Kind struct {
	structural *structuralschema.Structural
	values     schemavalidation.SchemaValidator
	rules      *cel.Validator
}

// Read reads the CustomResourceDefinitions that the program was built with, by kind.
func Read() (map[schema.GroupVersionKind]*Kind, error) {
	files, err := config.CRDs.ReadDir("crd")
	if err != nil {
		return nil, err
	}
	out := map[schema.GroupVersionKind]*Kind{}
	for _, f := range files {
		b, err := config.CRDs.ReadFile("crd/" + f.Name())
		if err != nil {
			return nil, err
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(b, &crd); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		for _, v := range crd.Spec.Versions {
			var props apiextensions.JSONSchemaProps
			if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(v.Schema.OpenAPIV3Schema, &props, nil); err != nil {
				return nil, fmt.Errorf("%s: %w", f.Name(), err)
			}
			k := &Kind{}
			if k.structural, err = structuralschema.NewStructural(&props); err != nil {
				return nil, fmt.Errorf("%s: %w", f.Name(), err)
			}
			if k.values, _, err = schemavalidation.NewSchemaValidator(&props); err != nil {
				return nil, fmt.Errorf("%s: %w", f.Name(), err)
			}
			k.rules = cel.NewValidator(k.structural, true, celconfig.PerCallLimit)
			out[schema.GroupVersionKind{Group: crd.Spec.Group, Version: v.Name, Kind: crd.Spec.Names.Kind}] = k
		}
	}
	return out, nil
}

// Check sets an object's defaults and says what an API server would refuse of it when it takes the place of old, which is
// nil for one that is new. Fields that it would drop count too: they are mistyped.
func (k *Kind) Check(ctx context.Context, o, old *unstructured.Unstructured) (errs []string) {
	var all field.ErrorList
	all = append(all, validation.ValidateObjectMetaAccessor(o, false, validation.NameIsDNSSubdomain, field.NewPath("metadata"))...)
	status, hasStatus := o.Object["status"]
	delete(o.Object, "status") // an API server takes none from users
	for _, path := range pruning.PruneWithOptions(o.Object, k.structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}) {
		errs = append(errs, path+": there is no such field")
	}
	defaulting.Default(o.Object, k.structural)
	var was any
	if old != nil {
		was = old.Object
		all = append(all, schemavalidation.ValidateCustomResourceUpdate(nil, o.Object, was, k.values)...)
	} else {
		all = append(all, schemavalidation.ValidateCustomResource(nil, o.Object, k.values)...)
	}
	all = append(all, listtype.ValidateListSetsAndMaps(nil, k.structural, o.Object)...)
	if len(all) == 0 && k.rules != nil { // they are not asked about objects that are malformed
		broken, _ := k.rules.Validate(ctx, nil, k.structural, o.Object, was, math.MaxInt64)
		all = append(all, broken...)
	}
	if hasStatus {
		o.Object["status"] = status
	}
	for _, e := range all {
		errs = append(errs, strings.TrimPrefix(e.Error(), "<nil>: "))
	}
	return errs
}
