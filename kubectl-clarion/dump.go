package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/yaml"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/text"
)

const (
	dumpedHour  = time.Hour // of logs
	dumpedLines = 50_000    // of the log of a container at most, the last ones
	dumpedAtOne = 8         // pods that are asked at a time
	dumpedWait  = 30 * time.Second
	removed     = "(removed)" // stands for what is secret
	aboutFile   = "about.yaml"
)

// about is what a dump says of itself.
type about struct {
	Taken   time.Time `json:"taken"`
	Version string    `json:"version"` // of the plug-in
	// System is Clarion's namespace, Namespace the user's.
	System    string `json:"clarionNamespace"`
	Namespace string `json:"namespace"`
	// ControllerAlive says whether the controller was alive, which takes more than one look at its Lease.
	ControllerAlive bool `json:"controllerAlive"`
	// NotShown is what is not in the dump though it belongs there, and why: kinds of objects, and files.
	NotShown map[string]string `json:"notShown,omitempty"`
	// Forbidden are the kinds that could not be read in all namespaces, and the API server's words; objects of the user's
	// namespace may be there.
	Forbidden map[string]string `json:"forbidden,omitempty"`
}

// podReader reads what pods say.
type podReader interface {
	log(ctx context.Context, pod *corev1.Pod, container string, previous bool) ([]byte, error)
	metrics(ctx context.Context, pod *corev1.Pod, port uint16) ([]byte, error)
}

// dumpReport is what was written.
type dumpReport struct {
	File     string            `json:"file"`
	Bytes    int64             `json:"bytes"`
	Files    int               `json:"files"`
	NotShown map[string]string `json:"notShown,omitempty"`
}

func (a *app) dumpCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "dump",
		Short: "One archive for a bug report: objects, statuses, events, metrics, and logs of the last hour; no passwords, no keys",
		Long: `One archive (tar.gz) for a bug report: Clarion's objects, the Services, EndpointSlices, Nodes and Leases that it decides by,
its pods, events, metrics, and logs of the last hour. Secrets are not read. Passwords, the values of environment variables
and annotations of others are left out. What may not be read is named in the archive and on the standard error, and then the
exit code is 2. status, explain, plan and lint answer from a dump with --offline --cluster DUMP.`,
		Example: `  kubectl clarion dump
  kubectl clarion dump --to - > dump.tar.gz
  kubectl clarion status --offline --cluster dump.tar.gz`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.offline {
				return fmt.Errorf("a dump of a dump is the dump: %s", *a.flags.ClusterName)
			}
			conn, c, err := a.load(cmd.Context())
			if err != nil {
				return err
			}
			r := dumpReport{File: cmp.Or(to, "clarion-dump-"+c.now.UTC().Format("20060102T150405Z")+".tar.gz")}
			var b bytes.Buffer
			d := newDump(&b, strings.TrimSuffix(path.Base(r.File), ".tar.gz"), c.now)
			if err := a.dump(cmd.Context(), conn, c, d); err != nil {
				return err
			}
			r.Bytes, r.Files, r.NotShown = int64(b.Len()), d.files, d.about.NotShown
			if to == "-" {
				_, err = a.Out.Write(b.Bytes())
			} else {
				if err := os.WriteFile(r.File, b.Bytes(), 0o600); err != nil {
					return err
				}
				err = a.print(r, func(w io.Writer, _ bool) error {
					_, err := fmt.Fprintf(w, "%s: %s, %d KiB\n", r.File, text.Count(r.Files, "file"), (r.Bytes+1023)/1024)
					return err
				})
			}
			if err != nil || len(r.NotShown) == 0 {
				return err
			}
			_ = writeHidden(a.ErrOut, r.NotShown)
			return couldNotTell
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "the file to write, - for the standard output (default clarion-dump-TIME.tar.gz)")
	a.printFlag(cmd)
	return cmd
}

// dump writes what can be read of a cluster.
func (a *app) dump(ctx context.Context, conn *connection, c *cluster, d *dump) error {
	p := &progress{a.ErrOut, time.Now()}
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	d.about = about{
		Taken: c.now.UTC(), Version: a.version, System: a.system, Namespace: conn.namespace, ControllerAlive: c.controller.alive,
		NotShown: map[string]string{}, Forbidden: map[string]string{},
	}
	if conn.config != nil {
		d.secret(conn.config.BearerToken)
		d.secret(conn.config.Password)
	}
	objects := maps.Clone(c.raw)
	for kind, err := range c.hidden {
		delete(objects, kind)
		d.about.Forbidden[kind], d.about.NotShown[kind] = err.Error(), err.Error()
	}
	// read adds objects of a kind, those of a namespace if that is not "".
	read := func(list client.ObjectList, namespace string) error {
		kind := strings.TrimSuffix(reflect.TypeOf(list).Elem().Name(), "List")
		defer p.step("reading " + kind + "s")()
		err := conn.List(ctx, list, client.InNamespace(namespace))
		if err != nil {
			return err
		}
		items, err := meta.ExtractList(list)
		objects[kind] = append(objects[kind], items...)
		return err
	}
	// What may not be read of all namespaces may be readable in one's own.
	for _, list := range []client.ObjectList{&corev1.ServiceList{}, &discoveryv1.EndpointSliceList{}} {
		if kind := strings.TrimSuffix(reflect.TypeOf(list).Elem().Name(), "List"); c.hidden[kind] != nil && read(list, conn.namespace) == nil {
			d.about.NotShown[kind] = "but for those of the namespace " + conn.namespace + ": " + d.about.NotShown[kind]
		}
	}
	if err := read(&corev1.NamespaceList{}, ""); err != nil {
		d.about.Forbidden["Namespace"], d.about.NotShown["Namespace"] = err.Error(), err.Error()
	}
	for _, list := range []client.ObjectList{&corev1.PodList{}, &appsv1.DeploymentList{}, &appsv1.DaemonSetList{}, &coordinationv1.LeaseList{}} {
		kind := strings.TrimSuffix(reflect.TypeOf(list).Elem().Name(), "List")
		if kind == "Lease" && c.hidden[kind] != nil {
			continue
		}
		err := read(list, a.system)
		if err == nil {
			continue
		}
		if kind == "Lease" && c.controller.lease { // this one may be read
			var l coordinationv1.Lease
			if err = conn.Get(ctx, client.ObjectKey{Namespace: a.system, Name: v1beta1.LeaseName}, &l); err == nil {
				objects[kind] = append(objects[kind], &l)
				continue
			}
		}
		if d.about.NotShown[kind] = err.Error(); apierrors.IsForbidden(err) && kind != "Lease" {
			d.about.Forbidden[kind] = err.Error()
		}
	}
	for _, o := range objects["BGPPeer"] {
		d.secret(o.(*v1beta1.BGPPeer).Spec.Password)
	}
	for _, o := range objects["Pod"] {
		for _, x := range o.(*corev1.Pod).Spec.Containers {
			for _, e := range x.Env {
				if secretName.MatchString(e.Name) {
					d.secret(e.Value)
				}
			}
		}
	}
	for _, kind := range sortedKeys(objects) {
		if err := d.objects("objects/"+kind+".yaml", scheme, objects[kind], false); err != nil {
			return err
		}
	}
	a.events(ctx, conn, d, read, objects)
	if err := d.objects("events.yaml", scheme, objects["Event"], true); err != nil {
		return err
	}
	var page bytes.Buffer
	plain := *a
	plain.color = false
	if err := plain.writeStatus(&page, c.status(), true); err != nil {
		return err
	}
	if err := d.text("status.txt", page.Bytes()); err != nil {
		return err
	}
	defer p.step("reading logs and metrics")()
	if err := d.pods(ctx, conn.pods, objects["Pod"]); err != nil {
		return err
	}
	return d.close()
}

// events adds the events about what is in a dump.
func (a *app) events(ctx context.Context, conn *connection, d *dump, read func(client.ObjectList, string) error, objects map[string][]runtime.Object) {
	if err := read(&eventsv1.EventList{}, ""); err != nil {
		d.about.NotShown["Event"] = err.Error()
		for _, namespace := range slices.Compact([]string{a.system, conn.namespace}) {
			_ = read(&eventsv1.EventList{}, namespace)
		}
	}
	objects["Event"] = slices.DeleteFunc(objects["Event"], func(o runtime.Object) bool {
		e := o.(*eventsv1.Event)
		return e.Namespace != a.system && e.Regarding.Kind != "Service" && e.Regarding.Kind != "Node" &&
			!strings.HasPrefix(e.Regarding.APIVersion, v1beta1.GroupVersion.Group+"/")
	})
}

// dump is an archive that is being written.
type dump struct {
	mu    sync.Mutex
	gz    *gzip.Writer
	tar   *tar.Writer
	dir   string
	files int
	known []string // secrets, long ones first, each before what stands for it
	about about
}

func newDump(w io.Writer, dir string, at time.Time) *dump {
	d := &dump{gz: gzip.NewWriter(w), dir: strings.Trim(dir, "-")}
	d.dir = cmp.Or(d.dir, "clarion-dump")
	d.gz.ModTime = at
	d.tar = tar.NewWriter(d.gz)
	return d
}

// secret takes note of a text that must not be in the dump. Very short ones are no secrets, and would take half of it away.
func (d *dump) secret(s string) {
	if len(s) < 4 {
		return
	}
	at := 0
	for at < len(d.known) && len(d.known[at]) >= len(s) {
		at += 2
	}
	d.known = slices.Insert(d.known, at, s, removed)
}

func (d *dump) file(name string, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files++
	if err := d.tar.WriteHeader(&tar.Header{Name: d.dir + "/" + name, Mode: 0o600, Size: int64(len(data)), ModTime: d.about.Taken}); err != nil {
		return err
	}
	_, err := d.tar.Write(data)
	return err
}

// text adds a file without the secrets that are known.
func (d *dump) text(name string, data []byte) error {
	return d.file(name, []byte(strings.NewReplacer(d.known...).Replace(string(data))))
}

// objects adds a file of objects, as a list that kubectl reads.
func (d *dump) objects(name string, scheme *runtime.Scheme, objects []runtime.Object, asText bool) error {
	items := []any{}
	for _, o := range objects {
		gvk, err := apiutil.GVKForObject(o, scheme)
		if err != nil {
			return err
		}
		u, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			return err
		}
		u["apiVersion"], u["kind"] = gvk.GroupVersion().String(), gvk.Kind
		withoutSecrets(u)
		items = append(items, u)
	}
	b, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
	if err != nil {
		return err
	}
	if asText {
		return d.text(name, b)
	}
	return d.file(name, b)
}

// pods adds the logs and the metrics of pods.
func (d *dump) pods(ctx context.Context, from podReader, pods []runtime.Object) error {
	if from == nil || len(pods) == 0 {
		return nil
	}
	var g errgroup.Group
	g.SetLimit(dumpedAtOne)
	try := func(name string, read func(context.Context) ([]byte, error)) error {
		ctx, cancel := context.WithTimeout(ctx, dumpedWait)
		defer cancel()
		b, err := read(ctx)
		if err != nil {
			d.mu.Lock()
			d.about.NotShown[name] = strings.NewReplacer(d.known...).Replace(err.Error())
			d.mu.Unlock()
			return nil
		}
		return d.text(name, b)
	}
	for _, o := range pods {
		pod := o.(*corev1.Pod)
		g.Go(func() error {
			for _, x := range pod.Spec.Containers {
				if err := try("logs/"+pod.Name+"."+x.Name+".log", func(ctx context.Context) ([]byte, error) { return from.log(ctx, pod, x.Name, false) }); err != nil {
					return err
				}
				if slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.Name == x.Name && s.RestartCount > 0 }) {
					if err := try("logs/"+pod.Name+"."+x.Name+".previous.log", func(ctx context.Context) ([]byte, error) { return from.log(ctx, pod, x.Name, true) }); err != nil {
						return err
					}
				}
				for _, p := range x.Ports {
					if p.Name != "metrics" {
						continue
					}
					if err := try("metrics/"+pod.Name+".txt", func(ctx context.Context) ([]byte, error) {
						if slices.Contains(x.Args, "--metrics-secure") {
							return nil, fmt.Errorf("they ask for a token (--metrics-secure), and yours is shown to the API server alone")
						}
						return from.metrics(ctx, pod, uint16(p.ContainerPort))
					}); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// close adds what the dump says of itself, and ends it.
func (d *dump) close() error {
	b, err := yaml.Marshal(d.about)
	if err != nil {
		return err
	}
	if err := d.file(aboutFile, b); err != nil {
		return err
	}
	if err := d.tar.Close(); err != nil {
		return err
	}
	return d.gz.Close()
}

var (
	// secretName is the name of an environment variable whose value is a secret.
	secretName = regexp.MustCompile(`(?i)passw|token|secret|key|cred`)
	// secretFlag is a flag whose value may be one.
	secretFlag = regexp.MustCompile(`^(--?[A-Za-z0-9-]*(?i:passw|token|secret|key|cred)[A-Za-z0-9-]*=).*`)
	// keptAnnotations are those of Clarion, MetalLB and Kubernetes.
	keptAnnotations = regexp.MustCompile(`^(clarionlb\.io|metallb\.io|metallb\.universe\.tf|([a-z0-9.-]+\.)?k8s\.io|([a-z0-9.-]+\.)?kubernetes\.io)/`)
)

// withoutSecrets takes out of an object whatever may be a secret, and what nobody needs: passwords, the values of
// environment variables and HTTP headers, and annotations that are neither Clarion's nor Kubernetes' own. In others, and in
// what was applied last, may be a whole object.
func withoutSecrets(o map[string]any) {
	if o["kind"] == "BGPPeer" {
		if spec, ok := o["spec"].(map[string]any); ok && spec["password"] != nil && spec["password"] != "" {
			spec["password"] = removed
		}
	}
	var walk func(any)
	walk = func(x any) {
		switch x := x.(type) {
		case []any:
			for _, e := range x {
				walk(e)
			}
		case map[string]any:
			delete(x, "managedFields")
			for k, v := range x {
				switch v := v.(type) {
				case map[string]any:
					if k == "annotations" {
						maps.DeleteFunc(v, func(name string, _ any) bool {
							return !keptAnnotations.MatchString(name) || strings.Contains(name, "last-applied")
						})
					}
					walk(v)
				case []any:
					for i, e := range v {
						switch e := e.(type) {
						case map[string]any:
							if (k == "env" || k == "httpHeaders") && e["value"] != nil {
								e["value"] = removed
							}
						case string:
							if k == "args" || k == "command" {
								v[i] = secretFlag.ReplaceAllString(e, "${1}"+removed)
							}
						}
					}
					walk(v)
				}
			}
		}
	}
	walk(o)
}
