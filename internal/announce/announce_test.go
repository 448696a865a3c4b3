package announce

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/config"
	"github.com/clarionlb/clarion/internal/route"
)

var update = flag.Bool("update", false, "rewrite the wanted output in testdata")

// Each file in testdata holds the facts (objects.yaml, cluster) and, under want, every decision on every address, as text.
func TestDecisions(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(f)
			if err != nil {
				t.Fatal(err)
			}
			c := parseCase(t, ar)
			got := c.decisions()
			i := slices.IndexFunc(ar.Files, func(f txtar.File) bool { return f.Name == "want" })
			if *update {
				ar.Files[i].Data = []byte(got)
				if err := os.WriteFile(f, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want := string(ar.Files[i].Data); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// testCase is a cluster as the test files describe it.
type testCase struct {
	view   View
	claims map[netip.Addr][]Claim
	ranges []struct {
		prefix netip.Prefix
		t      v1beta1.AddressType
	}
}

func parseCase(t *testing.T, ar *txtar.Archive) *testCase {
	t.Helper()
	c := &testCase{claims: map[netip.Addr][]Claim{}}
	c.view.Nodes = map[string]*Node{}
	pools := map[string]netip.Prefix{}
	services := map[string]*Service{}
	for _, f := range ar.Files {
		switch f.Name {
		case "objects.yaml":
			c.view.Config = parseObjects(t, string(f.Data))
		case "cluster":
			for _, line := range strings.Split(strings.TrimSpace(string(f.Data)), "\n") {
				c.fact(t, line, pools, services)
			}
		}
	}
	c.view.PoolOf = func(a netip.Addr) string {
		for name, p := range pools {
			if p.Contains(a) {
				return name
			}
		}
		return ""
	}
	return c
}

// fact takes in one line: "pool NAME PREFIX", "node NAME key=value…", "service NS/NAME key=value…",
// "claim ADDRESS NS/NAME [TYPE]", "has ADDRESS WHO" or "range PREFIX TYPE".
func (c *testCase) fact(t *testing.T, line string, pools map[string]netip.Prefix, services map[string]*Service) {
	t.Helper()
	words := strings.Fields(line)
	if len(words) == 0 {
		return
	}
	opts := map[string]string{}
	for _, w := range words[2:] {
		k, v, _ := strings.Cut(w, "=")
		opts[k] = strings.ReplaceAll(v, "_", " ")
	}
	labelSet := func() labels.Set {
		out := labels.Set{}
		for _, kv := range strings.FieldsFunc(opts["labels"], func(r rune) bool { return r == ',' }) {
			k, v, _ := strings.Cut(kv, ":")
			out[k] = v
		}
		return out
	}
	counts := func(s string) map[string]int {
		out := map[string]int{}
		for _, kv := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' }) {
			k, v, _ := strings.Cut(kv, ":")
			n, err := strconv.Atoi(v)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			out[k] = n
		}
		return out
	}
	switch words[0] {
	case "pool":
		pools[words[1]] = netip.MustParsePrefix(words[2])
	case "node":
		_, dead := opts["dead"]
		_, down := opts["down"]
		n := &Node{Name: words[1], Labels: labelSet(), Alive: !dead, SessionUp: !dead && !down, Gate: opts["gate"], Excluded: opts["excluded"]}
		_, n.Draining = opts["draining"]
		_, n.Drained = opts["drained"]
		if l, ok := opts["links"]; ok {
			n.Links = []Link{}
			for _, name := range strings.FieldsFunc(l, func(r rune) bool { return r == ',' }) {
				n.Links = append(n.Links, Link{Name: strings.TrimSuffix(name, "!"), Up: !strings.HasSuffix(name, "!")})
			}
		}
		c.view.Nodes[n.Name] = n
	case "service":
		ns, name, _ := strings.Cut(words[1], "/")
		services[words[1]] = &Service{
			Namespace: ns, Name: name, Labels: labelSet(), LocalExternal: opts["external"] == "Local", LocalInternal: opts["internal"] == "Local",
			Endpoints4: Endpoints{Ready: counts(opts["ready"]), Terminating: counts(opts["terminating"])},
			Endpoints6: Endpoints{Ready: counts(opts["ready6"])},
		}
	case "claim":
		typ := v1beta1.AddressLoadBalancerIP
		if len(words) > 3 {
			typ = v1beta1.AddressType(words[3])
		}
		a := netip.MustParseAddr(words[1])
		c.claims[a] = append(c.claims[a], Claim{services[words[2]], typ})
	case "has":
		who := c.view.Has
		c.view.Has = func(a netip.Addr) string {
			if a.String() == words[1] {
				return strings.ReplaceAll(words[2], "_", " ")
			}
			if who == nil {
				return ""
			}
			return who(a)
		}
	case "range":
		c.ranges = append(c.ranges, struct {
			prefix netip.Prefix
			t      v1beta1.AddressType
		}{netip.MustParsePrefix(words[1]), v1beta1.AddressType(words[2])})
	default:
		t.Fatalf("what is %q?", line)
	}
}

func parseObjects(t *testing.T, text string) *config.Config {
	t.Helper()
	var o config.Objects
	for _, doc := range strings.Split(text, "---\n") {
		var m metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &m); err != nil {
			t.Fatal(err)
		}
		into := func(obj any) {
			if err := yaml.UnmarshalStrict([]byte(doc), obj); err != nil {
				t.Fatal(err)
			}
		}
		switch m.Kind {
		case "IPAddressPool":
			into(add(&o.Pools))
		case "L2Advertisement":
			into(add(&o.L2Advertisements))
		case "BGPAdvertisement":
			into(add(&o.BGPAdvertisements))
		case "BGPPeer":
			into(add(&o.BGPPeers))
		default:
			t.Fatalf("what is a %q?", m.Kind)
		}
	}
	cfg, problems := config.Parse(o)
	for _, p := range problems {
		t.Errorf("%s %s: %s", p.Kind, p.Name, p.Message)
	}
	return cfg
}

func add[T any](to *[]*T) *T {
	v := new(T)
	*to = append(*to, v)
	return v
}

// decisions is every decision on every address and range, as text.
func (c *testCase) decisions() string {
	var b strings.Builder
	for _, addr := range slices.SortedFunc(mapKeys(c.claims), netip.Addr.Compare) {
		claims := c.claims[addr]
		d := c.view.ExplainLayer2(addr, claims)
		fmt.Fprintf(&b, "%s\n  layer2 owner=%q", addr, d.Owner)
		if d.Why != "" {
			fmt.Fprintf(&b, " why=%q", d.Why)
		}
		if len(d.Interfaces) > 0 {
			fmt.Fprintf(&b, " interfaces=%v", d.Interfaces)
		}
		b.WriteByte('\n')
		if d.Owner != "" {
			for _, x := range d.Candidates {
				fmt.Fprintf(&b, "    %s weight=%d", x.Node, x.Weight)
				if x.Gate != "" {
					fmt.Fprintf(&b, " gate=%q", x.Gate)
				}
				if x.Why != "" {
					fmt.Fprintf(&b, " why=%q", x.Why)
				}
				b.WriteByte('\n')
			}
		}
		if len(c.view.Config.BGP) > 0 {
			for _, n := range sortedKeys(c.view.Nodes) {
				c.exports(&b, n, c.view.ForBGP(n, addr, claims))
			}
		}
	}
	for _, r := range c.ranges {
		fmt.Fprintf(&b, "%s\n", r.prefix)
		for _, n := range sortedKeys(c.view.Nodes) {
			c.exports(&b, n, c.view.ForRange(n, r.prefix, r.t))
		}
	}
	return b.String()
}

func (c *testCase) exports(b *strings.Builder, node string, d BGP) {
	if d.Why != "" {
		fmt.Fprintf(b, "  bgp %s why=%q\n", node, d.Why)
	}
	for _, e := range d.Exports {
		fmt.Fprintf(b, "  bgp %s to %s: %s%s\n", node, e.Peer, e.Prefix, attrsText(e.Attrs))
	}
}

func attrsText(a route.Attrs) string {
	var b strings.Builder
	if len(a.Communities) > 0 {
		fmt.Fprintf(&b, " communities=%v", a.Communities)
	}
	if a.LocalPref != nil {
		fmt.Fprintf(&b, " localPref=%d", *a.LocalPref)
	}
	if a.MED != nil {
		fmt.Fprintf(&b, " med=%d", *a.MED)
	}
	if a.Prepend > 0 {
		fmt.Fprintf(&b, " prepend=%d", a.Prepend)
	}
	if a.Bandwidth > 0 {
		fmt.Fprintf(&b, " bandwidth=%.0f", a.Bandwidth)
	}
	return b.String()
}

func mapKeys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func bigView(nodes int) *View {
	v := &View{Config: &config.Config{L2: []config.L2Advertisement{{Name: "all", Pools: config.Names{All: true}}}},
		PoolOf: func(netip.Addr) string { return "p" }, Nodes: map[string]*Node{}}
	for i := range nodes {
		name := fmt.Sprintf("node%d", i)
		v.Nodes[name] = &Node{Name: name, Alive: true, SessionUp: true}
	}
	return v
}

var someService = &Service{Namespace: "default", Name: "web", Endpoints4: Endpoints{Ready: map[string]int{"node0": 1}}}

// Gates lower a node's rank; together they never leave an address without an owner or a route.
func TestGatesNeverEmptyTheSet(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	addr := netip.MustParseAddr("198.18.0.1")
	claims := []Claim{{someService, v1beta1.AddressLoadBalancerIP}}
	for range 500 {
		v := bigView(1 + r.IntN(5))
		v.Config.Peers = []config.Peer{
			{Name: "tor", Nodes: config.Selectors{labels.SelectorFromSet(labels.Set{"edge": "y"})}},
			{Name: "other"}, // has every node, but not the advertisement
		}
		v.Config.BGP = []config.BGPAdvertisement{{Name: "all", Pools: config.Names{All: true}, Peers: config.Names{Set: map[string]bool{"tor": true}},
			Types: map[v1beta1.AddressType]bool{v1beta1.AddressLoadBalancerIP: true}, Length4: 32, Length6: 128}}
		free, edges := 0, 0
		for _, n := range v.Nodes {
			edge := edges == 0 || r.IntN(2) == 0
			if edge {
				edges++
				n.Labels = labels.Set{"edge": "y"}
			}
			if r.IntN(2) == 0 {
				n.Gate = "the Service proxy is unhealthy"
				continue
			}
			if edge {
				free++
			}
			if r.IntN(3) == 0 {
				n.Links = []Link{{Name: "eth0"}}
			}
		}
		d := v.ExplainLayer2(addr, claims)
		if d.Owner == "" {
			t.Fatalf("no owner: %s", d.Why)
		}
		announcers := 0
		for name, n := range v.Nodes {
			if len(v.ForBGP(name, addr, claims).Exports) > 0 {
				announcers++
				if n.Gate != "" && free > 0 {
					t.Fatalf("%s announces though it is gated and %d nodes are not", name, free)
				}
			}
		}
		if announcers == 0 {
			t.Fatal("nobody announces")
		}
	}
}
