package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	coordinationv1 "k8s.io/api/coordination/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/trace"
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
			var in []byte
			for i := range a.Files[1:] {
				f := &a.Files[i+1]
				if f.Name == "stdin" { // of the calls that follow
					in = f.Data
					continue
				}
				got := says(t, reader, in, strings.Fields(f.Name)...)
				if *update {
					f.Data = []byte(got)
				} else if diff := gocmp.Diff(string(f.Data), got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", f.Name, diff)
				}
				if strings.HasPrefix(f.Name, "trace ") && !strings.Contains(f.Name, "--no-checks") {
					continue // nodes that open connections are not in a dump
				}
				if diff := gocmp.Diff(got, saysOfDump(t, reader, in, strings.Fields(f.Name))); diff != "" {
					t.Errorf("%s, of a dump (-of the cluster +of the dump):\n%s", f.Name, diff)
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

// clock is what the time is in testdata.
var clock = time.Date(2026, 1, 1, 1, 0, 0, 0, time.UTC)

// says is what the plug-in prints, and the code that it exits with unless that is 0.
func says(t *testing.T, from client.Reader, in []byte, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	a := testApp(from, &out)
	a.In = bytes.NewReader(in)
	code := a.run(t.Context(), args)
	got := strings.TrimRight(out.String(), "\n") + "\n"
	if code != 0 {
		got += fmt.Sprintf("exit %d\n", code)
	}
	return got
}

// saysOfDump is what the plug-in prints when it is asked the same of a dump of the cluster.
func saysOfDump(t *testing.T, from client.Reader, in []byte, args []string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "dump.tar.gz")
	take := []string{"dump", "--to", file}
	for i, a := range args {
		if a == "-n" || a == "--clarion-namespace" {
			take = append(take, a, args[i+1])
		} else if strings.HasPrefix(a, "--clarion-namespace=") {
			take = append(take, a)
		}
	}
	if _, err := os.Stat(file); err == nil {
		t.Fatal("it is there already")
	}
	said := says(t, from, nil, take...)
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	return says(t, nil, in, append([]string{"--offline", "--cluster", file}, args...)...)
}

// testApp is the plug-in in a cluster that is read, with time standing still.
func testApp(from client.Reader, out io.Writer) *app {
	return &app{
		IOStreams: genericiooptions.IOStreams{In: strings.NewReader(""), Out: out, ErrOut: out},
		connect: func(flags *genericclioptions.ConfigFlags) (*connection, error) {
			return &connection{Reader: from, namespace: cmp.Or(*flags.Namespace, "default")}, nil
		},
		ask: checkedWell, now: func() time.Time { return clock }, wait: func(context.Context, time.Duration) {}, version: "v0.1.0", built: "for the test",
	}
}

// checkedWell is a speaker that finds all well, but for that of node1, which cannot be reached.
func checkedWell(_ context.Context, _ *connection, node string, addr netip.Addr) (trace.Report, error) {
	if node == "node1" {
		return trace.Report{}, errors.New("no pod of the speaker runs there")
	}
	yes := true
	return trace.Report{Node: node, Proxy: &yes, Guarded: true, Checks: []trace.Check{
		{Service: "default/web", Protocol: "TCP", Port: 80, To: netip.AddrPortFrom(addr, 80), Outcome: trace.Answered, RewrittenTo: netip.MustParseAddrPort("10.244.1.2:8080"), Microseconds: 1200},
		{Service: "default/web", Protocol: "TCP", Port: 80, To: netip.MustParseAddrPort("10.244.1.2:8080"), Backend: true, Outcome: trace.Answered},
	}}, nil
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
			var o client.ListOptions
			o.ApplyOptions(opts)
			if kind := kindOf(t, list); slices.Contains(forbidden, kind) && o.Namespace == "" {
				return apierrors.NewForbidden(schema.GroupResource{Resource: kind}, "", errors.New("no right to list it"))
			}
			return c.List(ctx, list, opts...)
		},
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if _, ok := o.(*coordinationv1.Lease); ok && slices.Contains(forbidden, "Lease") {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "Lease"}, key.Name, errors.New("no right to get it"))
			}
			return c.Get(ctx, key, o, opts...)
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
	}).Build(), reading{namespace: "clarion-system", now: time.Now, wait: wait, progress: &progress{}})
	if err != nil {
		t.Fatal(err)
	}
	read = append(read, "/namespaces", "events.k8s.io/events") // by plan and dump
	slices.Sort(allowed)
	slices.Sort(read)
	if diff := gocmp.Diff(read, allowed); diff != "" {
		t.Errorf("(-read, once each +allowed):\n%s", diff)
	}
}

// Whoever watches is told what changes, once, and that the cluster cannot be read while it cannot.
func TestWatch(t *testing.T) {
	common, healthy := parse(t, "testdata/common.txtar"), parse(t, "testdata/healthy.txtar")
	reader := readerOf(t, string(common.Files[0].Data)+"---\n"+string(healthy.Files[0].Data), nil).(client.Client)
	failing := false
	from := interceptor.NewClient(reader.(client.WithWatch), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if failing {
				return errors.New("the API server is away")
			}
			return c.List(ctx, list, opts...)
		},
	})
	var out bytes.Buffer
	a := testApp(from, &out)
	ctx, cancel := context.WithCancel(t.Context())
	get := func(o client.Object, name string) {
		if err := reader.Get(ctx, client.ObjectKey{Name: name}, o); err != nil {
			t.Fatal(err)
		}
	}
	write := func(o client.Object) {
		if err := reader.Update(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	steps := []func(){
		func() {},
		func() {
			var sp v1beta1.Speaker
			get(&sp, "node2")
			sp.Status.LocalNetwork = &v1beta1.Layer2Status{Digest: "0000000000000000"}
			sp.Status.Sessions[0].State, sp.Status.Sessions[0].LastError = "Active", "hold timer expired"
			write(&sp)
		},
		func() { failing = true },
		func() {},
		func() { failing = false },
		func() {
			var sp v1beta1.Speaker
			get(&sp, "node2")
			sp.Status.Sessions[0].State = v1beta1.Established
			write(&sp)
		},
		cancel,
	}
	a.wait = func(context.Context, time.Duration) {
		steps[0]()
		steps = steps[1:]
	}
	if code := a.run(ctx, []string{"status", "--watch"}); code != 0 {
		t.Errorf("exit code %d", code)
	}
	const want = `01:00:00  3 speakers, 2 pools, 0 problems
01:00:00  Node/node2 answers on layer 2 for -, no longer 192.0.2.200
01:00:00  Node/node2: BGP: tor1 Active, tor2 Established (1 IPv4, 0 IPv6), no longer tor1 Established (1 IPv4, 0 IPv6), tor2 Established (1 IPv4, 0 IPv6)
01:00:00  + BGPPeer/tor1: no session with node2: Active (hold timer expired)
01:00:00  cannot read the cluster: reading ServiceList: the API server is away
01:00:00  the cluster can be read again
01:00:00  Node/node2: BGP: tor1 Established (1 IPv4, 0 IPv6), tor2 Established (1 IPv4, 0 IPv6), no longer tor1 Active, tor2 Established (1 IPv4, 0 IPv6)
01:00:00  - BGPPeer/tor1: no session with node2: Active (hold timer expired)
`
	if diff := gocmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A Lease that looks as if it had run out by this machine's clock is that of a living controller if it is renewed.
func TestClockThatIsWrong(t *testing.T) {
	common := parse(t, "testdata/common.txtar")
	reader := readerOf(t, string(common.Files[0].Data), nil).(client.Client)
	for _, off := range []time.Duration{-time.Hour, time.Hour} {
		for _, alive := range []bool{true, false} {
			how := reading{namespace: "clarion-system", now: func() time.Time { return clock.Add(off) }, progress: &progress{}}
			how.wait = func(ctx context.Context, _ time.Duration) {
				var l coordinationv1.Lease
				if err := reader.Get(ctx, client.ObjectKey{Namespace: "clarion-system", Name: v1beta1.LeaseName}, &l); err != nil {
					t.Fatal(err)
				}
				if l.Spec.RenewTime.Time = l.Spec.RenewTime.Add(2 * time.Second); alive {
					if err := reader.Update(ctx, &l); err != nil {
						t.Fatal(err)
					}
				}
			}
			if c, err := readController(t.Context(), reader, how); err != nil || c.alive != alive {
				t.Errorf("clock off by %s: alive is %t, want %t (%v)", off, c.alive, alive, err)
			}
		}
	}
}

// Each file of testdata/files is what the plug-in reads from its standard input, and what it says of it.
func TestFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/files/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files (%v)", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a := parse(t, file)
			for i := range a.Files[1:] {
				f := &a.Files[i+1]
				got := says(t, nil, a.Files[0].Data, strings.Fields(f.Name)...)
				if *update {
					f.Data = []byte(got)
				} else if diff := gocmp.Diff(string(f.Data), got); diff != "" {
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
