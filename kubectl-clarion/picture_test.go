package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/kubectl-clarion/page"
)

// The page says of every object what explain and status say, in all the clusters of testdata and in one that is made up.
func TestPictureSaysWhatExplainSays(t *testing.T) {
	clusters := map[string]client.Reader{}
	common := parse(t, filepath.Join("testdata", "common.txtar"))
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if filepath.Base(file) != "common.txtar" {
			a := parse(t, file)
			_, forbidden, _ := strings.Cut(string(a.Comment), "Forbidden: ")
			clusters[file] = readerOf(t, string(common.Files[0].Data)+"---\n"+string(a.Files[0].Data), strings.Fields(forbidden))
		}
	}
	m := makeUp(t, 5, 30)
	m.settle("node3")
	m.breakSession("node1", "tor1", "hold timer expired")
	clusters["made up"] = m
	for name, reader := range clusters {
		t.Run(filepath.Base(name), func(t *testing.T) {
			a := testApp(reader, &bytes.Buffer{})
			a.root()
			conn, c, err := a.load(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			p := c.picture("test", conn)
			if _, err := json.Marshal(p.Overview); err != nil {
				t.Fatal(err)
			}
			var problems []page.Problem
			for _, x := range c.status().Problems {
				problems = append(problems, page.Problem(x))
			}
			if diff := gocmp.Diff(problems, p.Overview.Problems[:len(p.Overview.Problems):len(p.Overview.Problems)]); diff != "" && len(problems) > 0 {
				t.Errorf("problems (-status +page):\n%s", diff)
			}
			says := func(object string) *shown {
				e, err := p.Explain(object)
				if err != nil {
					t.Fatalf("%s: %v", object, err)
				}
				return e.(*shown)
			}
			n := 0
			for _, svc := range c.services {
				if external(svc) {
					n++
				}
			}
			if n != len(p.Services) {
				t.Errorf("%d Services, want %d", len(p.Services), n)
			}
			for _, s := range p.Services {
				if c.hidden["Service"] != nil {
					continue
				}
				e := says("Service/" + s.Name)
				if s.Name+" "+s.Answer != e.Answer || s.State != stateOf(e.Fine) {
					t.Errorf("the list says %s: %s %s\nexplain says: %v %s", s.State, s.Name, s.Answer, stateOf(e.Fine), e.Answer)
				}
			}
			for _, r := range p.Overview.Routers {
				if e := says("BGPPeer/" + r.Name); r.Text != e.Answer || r.State != stateOf(e.Fine) {
					t.Errorf("router %+v, explain says: %s", r, e.Answer)
				}
			}
			for _, x := range p.Overview.Pools {
				if e := says("IPAddressPool/" + x.Name); x.Text != e.Answer || x.State != stateOf(e.Fine) {
					t.Errorf("pool %+v, explain says: %s", x, e.Answer)
				}
				for _, addr := range x.Shown {
					if e := says("Address/" + addr.Address); addr.State != stateOf(e.Fine) || !strings.Contains(e.Answer, addr.Text) {
						t.Errorf("address %+v, explain says: %s", addr, e.Answer)
					}
				}
			}
		})
	}
}

// A grid has each address of the pool once, in the state that the pool's status and the Services give it.
func TestGrid(t *testing.T) {
	m := makeUp(t, 5, 30)
	a := testApp(m, &bytes.Buffer{})
	a.root()
	conn, c, err := a.load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g, err := c.picture("test", conn).Pool("lan")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, r := range g.Ranges {
		for _, cell := range r.Cells {
			got[cell.State]++
		}
	}
	want := map[string]int{"used": 15, "reserved": 2, "resting": 1, "quarantined": 1, "excluded": 10, "free": 67}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// The time line says what broke, what moved and why, and what that means for Services.
func TestTimeLine(t *testing.T) {
	m := makeUp(t, 5, 30)
	a := testApp(m, &bytes.Buffer{})
	a.root()
	conn, err := a.open()
	if err != nil {
		t.Fatal(err)
	}
	read := a.follow(conn)
	texts := func() (out []string) {
		_, events, err := read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			out = append(out, string(e.State)+" "+e.Text)
		}
		return out
	}
	if diff := gocmp.Diff([]string{"unknown 5 speakers, 2 pools, 0 problems"}, texts()); diff != "" {
		t.Errorf("at first (-want +got):\n%s", diff)
	}
	if got := texts(); got != nil {
		t.Errorf("nothing has changed: %q", got)
	}
	m.settle("node3")
	got := strings.Join(texts(), "\n")
	for _, want := range []string{"bad Node/node3: no other speaker sees its speaker alive", "from node3 to ", ": node3: its speaker is not alive", "Node/node3: its speaker is no longer alive"} {
		if !strings.Contains(got, want) {
			t.Errorf("it does not say %q:\n%s", want, got)
		}
	}
	var svc corev1.Service
	svc.Namespace = "shop"
	m.edit("web", &svc, func() { svc.Status.LoadBalancer.Ingress = nil })
	if got, want := texts(), "bad shop/web is not reachable: it has no address."; !slices.Contains(got, want) {
		t.Errorf("it does not say %q: %q", want, got)
	}
	m.settle()
	if got := strings.Join(texts(), "\n"); !strings.Contains(got, "good over: Node/node3: no other speaker") || !strings.Contains(got, "to node3: node3 comes before ") {
		t.Errorf("node3 is back, and it says:\n%s", got)
	}
}

// How long everything that the page asks for takes: of 10,000 Services to be read, to be shown, and to be explained.
func BenchmarkPage(b *testing.B) {
	for _, nodes := range []int{100, 500} {
		b.Run(fmt.Sprintf("%dnodes/10000services", nodes), func(b *testing.B) {
			m := makeUp(b, nodes, 10000)
			a := testApp(m, &bytes.Buffer{})
			a.root()
			conn, c, err := a.load(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			write := func(b *testing.B, of any, err error) {
				var out []byte
				if err == nil {
					out, err = json.Marshal(of)
				}
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(len(out)), "bytes")
			}
			b.Run("read", func(b *testing.B) {
				for b.Loop() {
					if _, err := a.read(b.Context(), conn); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("picture", func(b *testing.B) {
				for b.Loop() {
					p := c.picture("bench", conn)
					write(b, []any{p.Overview, p.Services}, nil)
				}
			})
			p := c.picture("bench", conn)
			for _, object := range []string{
				"Node/" + m.nodes[0], "Service/team20/app00020", "Service/team21/app00021", "Address/10.64.0.9", "Address/10.96.0.9",
				"IPAddressPool/lan", "BGPPeer/tor1", "L2Advertisement/lan", "BGPAdvertisement/public",
			} {
				kind, _, _ := strings.Cut(object, "/")
				b.Run(kind, func(b *testing.B) {
					for b.Loop() {
						e, err := p.Explain(object)
						write(b, e, err)
					}
				})
			}
			b.Run("pool", func(b *testing.B) {
				for b.Loop() {
					g, err := p.Pool("lan")
					write(b, g, err)
				}
			})
		})
	}
}
