package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/yaml"
)

// largestDump is what a dump may hold, in bytes: it may come from anybody.
const largestDump = 2 << 30

// open is the cluster that the flags point to, or the dump of one.
func (a *app) open() (*connection, error) {
	if !a.offline {
		return a.connect(a.flags)
	}
	file := *a.flags.ClusterName
	if file == "" {
		return nil, errors.New("which dump? want --offline --cluster DUMP")
	}
	d, err := readDump(file)
	if err != nil {
		return nil, fmt.Errorf("the dump %s: %w", file, err)
	}
	return d.connection(a.flags), nil
}

// dumped is a cluster as a dump holds it.
type dumped struct {
	about  about
	scheme *runtime.Scheme
	items  map[string][]client.Object // by kind
}

func (d *dumped) connection(flags *genericclioptions.ConfigFlags) *connection {
	c := &connection{Reader: d, namespace: d.about.Namespace, dump: &d.about}
	if *flags.Namespace != "" {
		c.namespace = *flags.Namespace
	}
	return c
}

// readDump reads a dump.
func readDump(file string) (*dumped, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	gz, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	d := &dumped{items: map[string][]client.Object{}}
	if d.scheme, err = newScheme(); err != nil {
		return nil, err
	}
	in := tar.NewReader(io.LimitReader(gz, largestDump))
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		_, name, _ := strings.Cut(path.Clean(h.Name), "/")
		dir, base := path.Split(name)
		if dir != "objects/" && name != aboutFile {
			continue
		}
		b, err := io.ReadAll(in)
		if err != nil {
			return nil, err
		}
		if name == aboutFile {
			err = yaml.Unmarshal(b, &d.about)
		} else {
			err = d.read(strings.TrimSuffix(base, ".yaml"), b)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if d.about.Taken.IsZero() {
		return nil, errors.New("it is none: it holds no " + aboutFile)
	}
	return d, nil
}

// read takes in the objects of a kind.
func (d *dumped) read(kind string, b []byte) error {
	var list struct{ Items []map[string]any }
	if err := yaml.Unmarshal(b, &list); err != nil {
		return err
	}
	d.items[kind] = []client.Object{}
	for _, item := range list.Items {
		u := unstructured.Unstructured{Object: item}
		o, err := d.scheme.New(u.GroupVersionKind())
		if err != nil {
			return err
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item, o); err != nil {
			return err
		}
		x := o.(client.Object)
		x.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{}) // as a client reads them
		d.items[kind] = append(d.items[kind], x)
	}
	return nil
}

// forbidden is what the API server said to whoever took the dump.
func (d *dumped) forbidden(kind string) error {
	if why := d.about.Forbidden[kind]; why != "" {
		return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: 403, Reason: metav1.StatusReasonForbidden, Message: why}}
	}
	return nil
}

// List implements client.Reader.
func (d *dumped) List(_ context.Context, list client.ObjectList, options ...client.ListOption) error {
	gvk, err := apiutil.GVKForObject(list, d.scheme)
	if err != nil {
		return err
	}
	gvk.Kind = strings.TrimSuffix(gvk.Kind, "List")
	var o client.ListOptions
	o.ApplyOptions(options)
	items, ok := d.items[gvk.Kind]
	if err := d.forbidden(gvk.Kind); err != nil && (!ok || o.Namespace != d.about.Namespace) {
		return err
	}
	if !ok {
		return &meta.NoKindMatchError{GroupKind: gvk.GroupKind(), SearchedVersions: []string{gvk.Version}}
	}
	var out []runtime.Object
	for _, i := range items {
		if o.Namespace == "" || o.Namespace == i.GetNamespace() {
			out = append(out, i)
		}
	}
	return meta.SetList(list, out)
}

// Get implements client.Reader.
func (d *dumped) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	gvk, err := apiutil.GVKForObject(into, d.scheme)
	if err != nil {
		return err
	}
	for _, i := range d.items[gvk.Kind] {
		if client.ObjectKeyFromObject(i) == key {
			b, err := runtime.DefaultUnstructuredConverter.ToUnstructured(i)
			if err != nil {
				return err
			}
			return runtime.DefaultUnstructuredConverter.FromUnstructured(b, into)
		}
	}
	if err := d.forbidden(gvk.Kind); err != nil && (gvk.Kind == "Lease" || key.Namespace != d.about.Namespace) {
		return err
	}
	resource, _ := meta.UnsafeGuessKindToResource(gvk)
	return apierrors.NewNotFound(resource.GroupResource(), key.Name)
}

// dumpedPassword says of an object that is to be written that its password is the one that the dump does not hold, if both
// have one: whether it is another cannot be known.
func dumpedPassword(o, old *unstructured.Unstructured) (same bool) {
	if old == nil {
		return false
	}
	was, _, _ := unstructured.NestedString(old.Object, "spec", "password")
	is, _, _ := unstructured.NestedString(o.Object, "spec", "password")
	if was != removed || is == "" || equality.Semantic.DeepEqual(was, is) {
		return false
	}
	_ = unstructured.SetNestedField(o.Object, removed, "spec", "password")
	return true
}
