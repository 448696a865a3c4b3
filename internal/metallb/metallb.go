// Package metallb says what MetalLB's configuration means in Clarion's words: objects of its six kinds, and the ConfigMap
// that came before them.
package metallb

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/clarionlb/clarion/api/v1beta1"
)

// Group is the API group of MetalLB.
const Group = "metallb.io"

// Kinds are those of MetalLB's configuration, each with its version; older versions have the same fields.
var Kinds = []struct{ Kind, Version string }{
	{"IPAddressPool", "v1beta1"}, {"Community", "v1beta1"}, {"BFDProfile", "v1beta1"}, {"BGPPeer", "v1beta2"},
	{"BGPAdvertisement", "v1beta1"}, {"L2Advertisement", "v1beta1"},
}

// Verdict says how well something can be carried over.
type Verdict string

const (
	Differs Verdict = "differs" // it means something else
	Lost    Verdict = "lost"    // it cannot be carried over
)

// Finding is something that does not mean the same with Clarion.
type Finding struct {
	Verdict Verdict `json:"verdict"`
	Object  string  `json:"object"` // Kind/name, as MetalLB has it
	Field   string  `json:"field,omitempty"`
	Text    string  `json:"text"`
}

// Result is a configuration in Clarion's words.
type Result struct {
	// Objects are Clarion's, in the order of Kinds and the order in which they came.
	Objects  []*unstructured.Unstructured
	Findings []Finding
	// Secrets are the names of those in MetalLB's namespace that hold passwords of peers.
	Secrets []string
}

// fields are those that mean the same in a spec of Clarion's, by kind; of those with a text something is to be said.
var fields = map[string]map[string]string{
	"IPAddressPool": {"addresses": "", "autoAssign": "", "avoidBuggyIPs": "", "serviceAllocation": ""},
	"Community":     {"communities": ""},
	"BFDProfile": {
		"receiveInterval": "", "transmitInterval": "", "detectMultiplier": "", "echoInterval": "", "passiveMode": "", "minimumTtl": "",
		"echoMode": "sessions over more than one hop and those of IPv6 work without the echo function",
	},
	"BGPPeer": {
		"myASN": "", "peerASN": "", "dynamicASN": "", "peerAddress": "", "interface": "", "peerPort": "", "holdTime": "", "keepaliveTime": "",
		"connectTime": "", "routerID": "", "nodeSelectors": "", "password": "", "bfdProfile": "", "enableGracefulRestart": "", "ebgpMultiHop": "",
		"vrf": "", "dualStackAddressFamily": "",
		"sourceAddress": "it is used; MetalLB's frr-k8s mode overlooks it",
		"localASN":      "it is used; MetalLB's frr-k8s mode overlooks it",
	},
	"BGPAdvertisement": {
		"aggregationLength": "", "aggregationLengthV6": "", "communities": "", "ipAddressPools": "", "ipAddressPoolSelectors": "",
		"nodeSelectors": "", "peers": "", "serviceSelectors": "", "localPref": "",
	},
	"L2Advertisement": {
		"ipAddressPools": "", "ipAddressPoolSelectors": "", "nodeSelectors": "", "preferredNodeSelectors": "", "serviceSelectors": "",
		"interfaces": "a node without one of them is not chosen; MetalLB may choose it, and then nobody answers",
	},
}

// general is what is true of every object of a kind.
var general = map[string][]Finding{
	"IPAddressPool": {
		{Differs, "every IPAddressPool", "spec.addresses", "an address that is taken out stays with the Service that has it (onShrink: Keep); MetalLB gives that Service another at once"},
		{Differs, "every IPAddressPool", "spec.reuseDelay", "a released address rests for 60s; MetalLB gives it to the next Service at once"},
	},
	"L2Advertisement": {
		{Differs, "every L2Advertisement", "spec.interfaces", "without it, addresses are on no interface of pods (the speakers' --exclude-interfaces)"},
	},
}

// Convert says in Clarion's words what MetalLB's objects in a list mean. What is not MetalLB's is left alone.
func Convert(in []*unstructured.Unstructured) Result {
	var r Result
	var all []*unstructured.Unstructured
	for _, o := range in {
		if data, ok := configMap(o); ok {
			all = append(all, r.older(o, data)...)
		} else if o.GroupVersionKind().Group == Group {
			all = append(all, o)
		}
	}
	for _, k := range Kinds {
		some := false
		for _, o := range all {
			if o.GetKind() == k.Kind {
				some = true
				r.object(o)
			}
		}
		if some {
			r.Findings = append(r.Findings, general[k.Kind]...)
		}
	}
	for _, o := range all {
		if k := o.GetKind(); fields[k] == nil && !strings.HasSuffix(k, "Status") && k != "ConfigurationState" {
			r.say(Lost, o, "", "Clarion has no such kind")
		}
	}
	slices.Sort(r.Secrets)
	r.Secrets = slices.Compact(r.Secrets)
	return r
}

func (r *Result) say(v Verdict, o *unstructured.Unstructured, field, text string, args ...any) {
	r.Findings = append(r.Findings, Finding{v, o.GetKind() + "/" + o.GetName(), field, fmt.Sprintf(text, args...)})
}

// object takes over one.
func (r *Result) object(o *unstructured.Unstructured) {
	out := &unstructured.Unstructured{Object: map[string]any{}}
	out.SetGroupVersionKind(v1beta1.GroupVersion.WithKind(o.GetKind()))
	out.SetName(o.GetName())
	out.SetLabels(o.GetLabels())
	was, _, _ := unstructured.NestedMap(o.Object, "spec")
	spec := map[string]any{}
	for _, f := range sorted(was) {
		v := was[f]
		if empty(v) { // it says nothing
			continue
		}
		said, known := fields[o.GetKind()][f]
		switch {
		case o.GetKind() == "BGPPeer" && f == "passwordSecret":
			name, _, _ := unstructured.NestedString(was, f, "name")
			if name == "" {
				continue
			}
			namespace, _, _ := unstructured.NestedString(was, f, "namespace")
			v = map[string]any{"name": name}
			r.Secrets = append(r.Secrets, name)
			r.say(Differs, o, "spec."+f, "the Secret %s is looked for in Clarion's namespace: copy it there", strings.TrimPrefix(namespace+"/"+name, "/"))
		case o.GetKind() == "BGPPeer" && f == "disableMP": // without effect there too
			continue
		case !known:
			r.say(Lost, o, "spec."+f, "Clarion has no such field")
			continue
		case said != "" && v != false:
			r.say(Differs, o, "spec."+f, "%s", said)
		}
		spec[f] = v
	}
	if o.GetKind() == "L2Advertisement" && spec["serviceSelectors"] != nil {
		r.say(Differs, o, "spec.serviceSelectors", "Services that share an address are announced too; MetalLB does not announce them")
	}
	if len(spec) > 0 {
		out.Object["spec"] = spec
	}
	r.Objects = append(r.Objects, out)
}

// empty says whether a value is what MetalLB takes for unset.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == "" || v == "0s"
	case int64:
		return v == 0
	case float64:
		return v == 0
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

func sorted(m map[string]any) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// Staged is an object as it is while nodes are handed over one by one: a peer of the nodes that have a label.
func Staged(o *unstructured.Unstructured, label string) *unstructured.Unstructured {
	if o.GetKind() != "BGPPeer" {
		return o
	}
	o = o.DeepCopy()
	selectors, _, _ := unstructured.NestedSlice(o.Object, "spec", "nodeSelectors")
	if len(selectors) == 0 {
		selectors = []any{map[string]any{}}
	}
	for _, s := range selectors {
		if s, ok := s.(map[string]any); ok {
			labels, _, _ := unstructured.NestedStringMap(s, "matchLabels")
			if labels == nil {
				labels = map[string]string{}
			}
			labels[label] = "true"
			_ = unstructured.SetNestedStringMap(s, labels, "matchLabels")
		}
	}
	_ = unstructured.SetNestedSlice(o.Object, selectors, "spec", "nodeSelectors")
	return o
}

// simple is a regular expression of names that begin with a word, are it, or hold it.
var simple = regexp.MustCompile(`^(\^?)([A-Za-z0-9_-]+(?:\\\.[A-Za-z0-9_-]+)*)(\.\*)?(\$?)$`)

// Pattern is the shell pattern that matches what a regular expression does, for simple ones; false for others.
func Pattern(expression string) (string, bool) {
	m := simple.FindStringSubmatch(expression)
	if m == nil {
		return "", false
	}
	out := strings.ReplaceAll(m[2], `\.`, ".")
	if m[1] == "" {
		out = "*" + out
	}
	if m[3] != "" || m[4] == "" {
		out += "*"
	}
	return out, true
}

// name is a name for what has none.
func name(given string, kind string, i int) string {
	return cmp.Or(given, fmt.Sprintf("%s%d", kind, i+1))
}
