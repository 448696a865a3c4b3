package metallb

import (
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// configMap is the configuration in a ConfigMap, if that is one of MetalLB's.
func configMap(o *unstructured.Unstructured) (string, bool) {
	if o.GetKind() != "ConfigMap" {
		return "", false
	}
	for _, key := range []string{"config", "excludel2.yaml"} {
		if text, ok, _ := unstructured.NestedString(o.Object, "data", key); ok {
			return text, true
		}
	}
	return "", false
}

// words are the names of fields that do not follow from the older ones by writing the letter after a hyphen large.
var words = map[string]string{
	"my-asn": "myASN", "peer-asn": "peerASN", "router-id": "routerID", "ebgp-multihop": "ebgpMultiHop", "localpref": "localPref",
	"avoid-buggy-ips": "avoidBuggyIPs", "aggregation-length-v6": "aggregationLengthV6", "minimum-ttl": "minimumTtl",
}

// word is the name of a field of today's.
func word(older string) string {
	if w := words[older]; w != "" {
		return w
	}
	parts := strings.Split(older, "-")
	for i := range parts[1:] {
		if p := parts[i+1]; p != "" {
			parts[i+1] = strings.ToUpper(p[:1]) + p[1:]
		}
	}
	return strings.Join(parts, "")
}

// renamed is a value with today's names of fields. Labels are no fields.
func renamed(x any) any {
	switch x := x.(type) {
	case []any:
		for i := range x {
			x[i] = renamed(x[i])
		}
	case map[string]any:
		out := map[string]any{}
		for k, v := range x {
			if k = word(k); k != "matchLabels" {
				v = renamed(v)
			}
			out[k] = v
		}
		return out
	case float64: // as an API server hands it out
		if x == float64(int64(x)) {
			return int64(x)
		}
	}
	return x
}

// older reads the configuration of a ConfigMap: the objects of today that mean the same.
func (r *Result) older(of *unstructured.Unstructured, text string) (out []*unstructured.Unstructured) {
	var config map[string]any
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		r.say(Lost, of, "data", "it cannot be read: %v", err)
		return nil
	}
	if regexps, ok := config["announcedInterfacesToExclude"].([]any); ok {
		r.excluded(of, regexps)
		return nil
	}
	add := func(kind, name string, spec map[string]any) {
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": Group + "/v1beta1", "kind": kind, "spec": spec}}
		o.SetName(name)
		out = append(out, o)
	}
	items := func(key string) (all []map[string]any) {
		list, _ := renamed(config[key]).([]any)
		for _, x := range list {
			if m, ok := x.(map[string]any); ok {
				all = append(all, m)
			}
		}
		return all
	}
	for i, p := range items("peers") {
		given, _ := p["name"].(string)
		delete(p, "name")
		add("BGPPeer", name(given, "peer", i), p)
	}
	for i, p := range items("bfd-profiles") {
		given, _ := p["name"].(string)
		delete(p, "name")
		add("BFDProfile", name(given, "bfd", i), p)
	}
	if aliases, ok := config["bgp-communities"].(map[string]any); ok && len(aliases) > 0 {
		var list []any
		for _, alias := range sorted(aliases) {
			list = append(list, map[string]any{"name": alias, "value": aliases[alias]})
		}
		add("Community", "communities", map[string]any{"communities": list})
	}
	for i, p := range items("address-pools") {
		given, _ := p["name"].(string)
		called := name(given, "pool", i)
		protocol, _ := p["protocol"].(string)
		ads, _ := p["bgpAdvertisements"].([]any)
		for _, k := range []string{"name", "protocol", "bgpAdvertisements"} {
			delete(p, k)
		}
		add("IPAddressPool", called, p)
		switch protocol {
		case "layer2":
			add("L2Advertisement", called, map[string]any{"ipAddressPools": []any{called}})
		case "bgp":
			if len(ads) == 0 {
				ads = []any{map[string]any{}}
			}
			for j, ad := range ads {
				spec, ok := ad.(map[string]any)
				if !ok {
					continue
				}
				spec["ipAddressPools"] = []any{called}
				adName := called
				if len(ads) > 1 {
					adName = name("", called+"-", j)
				}
				add("BGPAdvertisement", adName, spec)
			}
		default:
			r.say(Lost, of, "address-pools["+called+"].protocol", "it is %q: want layer2 or bgp; nobody announces the pool", protocol)
		}
	}
	for _, k := range sorted(config) {
		if !strings.Contains(" peers bfd-profiles bgp-communities address-pools ", " "+k+" ") {
			r.say(Lost, of, k, "Clarion has no such field")
		}
	}
	return out
}

// excluded says what becomes of the interfaces that MetalLB does not announce on.
func (r *Result) excluded(of *unstructured.Unstructured, regexps []any) {
	var flag []string
	for _, x := range regexps {
		regexp, _ := x.(string)
		pattern, ok := Pattern(regexp)
		if !ok {
			r.say(Lost, of, "announcedInterfacesToExclude", "%q cannot be written as a shell pattern for the speakers' --exclude-interfaces", regexp)
			continue
		}
		flag = append(flag, pattern)
	}
	if len(flag) > 0 {
		r.say(Differs, of, "announcedInterfacesToExclude", "Clarion's list has the pods' interfaces already; yours is the speakers' flag --exclude-interfaces=%s", strings.Join(flag, ","))
	}
}
