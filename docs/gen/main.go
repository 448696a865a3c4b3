// Command gen writes docs/api.md: the reference of Clarion's API, from the CRDs and the constants in api/v1beta1.
//
//	go run ./docs/gen > docs/api.md
package main

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	out, err := reference(".")
	if err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
	os.Stdout.Write(out)
}

// order is that of the kinds in the document: as a user meets them.
var order = []string{"IPAddressPool", "L2Advertisement", "BGPAdvertisement", "BGPPeer", "BFDProfile", "Community", "Speaker"}

// reference is the document, from the repository's root folder.
func reference(root string) ([]byte, error) {
	files, err := filepath.Glob(filepath.Join(root, "config", "crd", "*_*.yaml"))
	if err != nil {
		return nil, err
	}
	kinds := map[string]*apiextensionsv1.CustomResourceDefinition{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(b, crd); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		kinds[crd.Spec.Names.Kind] = crd
	}
	if have := slices.Sorted(maps.Keys(kinds)); !slices.Equal(have, slices.Sorted(slices.Values(order))) {
		return nil, fmt.Errorf("the CRDs are of the kinds %v, documented are %v", have, order)
	}
	var out bytes.Buffer
	out.WriteString("# API reference\n\nGroup `clarionlb.io`, version `v1beta1`. Written by `go run ./docs/gen` from `config/crd` and `api/v1beta1`.\n\n" +
		"`kubectl explain KIND.spec` says the same, field by field. All kinds are cluster-scoped. A field marked * is required.\n\n")
	for _, k := range order {
		fmt.Fprintf(&out, "- [%s](#%s)\n", k, strings.ToLower(k))
	}
	out.WriteString("- [On Services and Nodes](#on-services-and-nodes)\n")
	for _, k := range order {
		writeKind(&out, kinds[k])
	}
	consts, err := constants(filepath.Join(root, "api", "v1beta1", "service.go"))
	if err != nil {
		return nil, err
	}
	out.WriteString("\n## On Services and Nodes\n\n| name | meaning |\n|---|---|\n")
	for _, c := range consts {
		fmt.Fprintf(&out, "| `%s` | %s |\n", c.value, cell(c.doc))
	}
	return out.Bytes(), nil
}

func writeKind(out *bytes.Buffer, crd *apiextensionsv1.CustomResourceDefinition) {
	names, version := crd.Spec.Names, crd.Spec.Versions[0]
	schema := version.Schema.OpenAPIV3Schema
	fmt.Fprintf(out, "\n## %s\n\n%s\n\n`kubectl get %s`", names.Kind, text(schema.Description), names.Plural)
	if len(names.ShortNames) > 0 {
		fmt.Fprintf(out, " (short: `%s`)", strings.Join(names.ShortNames, "`, `"))
	}
	out.WriteString(".\n")
	for _, part := range []string{"spec", "status"} {
		p, ok := schema.Properties[part]
		if !ok || len(p.Properties) == 0 {
			continue
		}
		fmt.Fprintf(out, "\n### %s.%s\n\n%s\n\n| field | type | meaning |\n|---|---|---|\n", names.Kind, part, text(p.Description))
		writeFields(out, "", &p)
		if rules := rulesOf(part, &p); len(rules) > 0 {
			out.WriteString("\nThe API server refuses an object that breaks one of these rules:\n\n")
			for _, r := range rules {
				fmt.Fprintf(out, "- %s\n", r)
			}
		}
	}
}

// writeFields writes a row for each field of an object and of the objects in it, those of well-known types apart.
func writeFields(out *bytes.Buffer, prefix string, of *apiextensionsv1.JSONSchemaProps) {
	for _, name := range slices.Sorted(maps.Keys(of.Properties)) {
		p := of.Properties[name]
		star := ""
		if slices.Contains(of.Required, name) {
			star = " *"
		}
		typ, inner, suffix := typeOf(&p)
		fmt.Fprintf(out, "| `%s%s`%s | %s | %s |\n", prefix, name, star, cell(typ), cell(p.Description+limits(&p)))
		if inner != nil {
			writeFields(out, prefix+name+suffix+".", inner)
		}
	}
}

// typeOf names a type, and returns the schema of the object in it when its fields are to be listed, with what to put
// behind the field's name for that.
func typeOf(p *apiextensionsv1.JSONSchemaProps) (name string, inner *apiextensionsv1.JSONSchemaProps, suffix string) {
	has := func(field string) bool { _, ok := p.Properties[field]; return ok }
	switch {
	case p.Type == "array":
		name, inner, suffix = typeOf(p.Items.Schema)
		return "list of " + name, inner, "[]" + suffix
	case has("matchLabels") && has("matchExpressions"):
		return "LabelSelector", nil, ""
	case has("lastTransitionTime") && has("reason"):
		return "Condition", nil, ""
	case p.Type == "object" && len(p.Properties) > 0:
		return "object", p, ""
	case p.Format == "date-time":
		return "time", nil, ""
	case p.XIntOrString:
		return "integer or string", nil, ""
	case len(p.Enum) > 0:
		var values []string
		for _, v := range p.Enum {
			values = append(values, strings.Trim(string(v.Raw), `"`))
		}
		return strings.Join(values, " or "), nil, ""
	}
	return p.Type, nil, ""
}

// limits are a field's default and bounds.
func limits(p *apiextensionsv1.JSONSchemaProps) string {
	var out []string
	if p.Default != nil {
		out = append(out, "default `"+string(p.Default.Raw)+"`")
	}
	number := func(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
	switch {
	case p.Minimum != nil && p.Maximum != nil:
		out = append(out, number(*p.Minimum)+" to "+number(*p.Maximum))
	case p.Minimum != nil:
		out = append(out, "at least "+number(*p.Minimum))
	case p.Maximum != nil:
		out = append(out, "at most "+number(*p.Maximum))
	}
	if p.MaxItems != nil {
		out = append(out, fmt.Sprintf("at most %d", *p.MaxItems))
	}
	if out == nil {
		return ""
	}
	return " (" + strings.Join(out, "; ") + ")"
}

// rulesOf are the messages of the rules on an object and its fields, with the field they are about.
func rulesOf(path string, p *apiextensionsv1.JSONSchemaProps) []string {
	var out []string
	for _, r := range p.XValidations {
		out = append(out, fmt.Sprintf("`%s`: %s", path, cmp.Or(r.Message, r.Rule)))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Properties)) {
		f := p.Properties[name]
		out = append(out, rulesOf(path+"."+name, &f)...)
	}
	if p.Items != nil && p.Items.Schema != nil {
		out = append(out, rulesOf(path+"[]", p.Items.Schema)...)
	}
	return out
}

// text joins a comment's lines to paragraphs.
func text(s string) string {
	paragraphs := strings.Split(s, "\n\n")
	for i, p := range paragraphs {
		paragraphs[i] = strings.Join(strings.Fields(p), " ")
	}
	return strings.Join(paragraphs, "\n\n")
}

// cell is a text in a table.
func cell(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	return strings.ReplaceAll(s, "|", `\|`)
}

type constant struct{ value, doc string }

// constants are the string constants of a Go file with their comments, in its order.
func constants(file string) ([]constant, error) {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	var out []constant
	for _, d := range parsed.Decls {
		decl, ok := d.(*ast.GenDecl)
		if !ok || decl.Tok != token.CONST {
			continue
		}
		for _, s := range decl.Specs {
			spec := s.(*ast.ValueSpec)
			lit, ok := spec.Values[0].(*ast.BasicLit)
			if !ok {
				continue
			}
			value, err := strconv.Unquote(lit.Value)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", spec.Names[0], err)
			}
			// The comment begins with the constant's name, which says nothing to a user.
			doc := strings.TrimPrefix(strings.TrimSpace(spec.Doc.Text()), spec.Names[0].Name)
			doc = strings.TrimLeft(doc, ",: ")
			out = append(out, constant{value, doc})
		}
	}
	return out, nil
}
