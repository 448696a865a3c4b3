package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/lab"
)

// statusStages are what the Speaker objects of many speakers cost the API server.
var statusStages = []stage{{setup{}, []row{{"death", speakerDies}}}}

// counted is a connection that counts what it reads.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// speakerDies measures what a real API server sends because of Speaker objects when one of 100 speakers dies: a hundred
// clients, each with a connection of its own, watch what speakers watch, two watch what controllers do, and three write as
// those do that name a missing one. Beside it, a death that moves addresses to ten others, and what it was while every
// speaker watched all objects and wrote whom it saw.
func speakerDies(ctx context.Context, b *bench) error {
	const n = 100
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1beta1.AddToScheme(scheme)); err != nil {
		return err
	}
	l := lab.New(lab.Options{Name: "benchstatus", ControlPlaneOnly: true, Scheme: scheme})
	defer func() { _ = l.Down() }()
	if err := l.Up(ctx); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"apply", "-f", filepath.Join(l.Root(), "config", "crd", "clarionlb.io_speakers.yaml")}, {"wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"},
	} {
		if out, err := l.Kubectl(ctx, args...); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
	var received atomic.Int64
	newClient := func() (client.WithWatch, error) {
		c := l.Config()
		c.QPS = -1
		dial := c.Dial
		if dial == nil {
			dial = new(net.Dialer).DialContext
		}
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			return counted{conn, &received}, err
		}
		return client.NewWithWatch(c, client.Options{Scheme: scheme})
	}
	name := func(i int) string { return fmt.Sprintf("node%03d", i) }
	clients, objects := make([]client.WithWatch, n+2), make([]*v1beta1.Speaker, n)
	for i := range clients {
		var err error
		if clients[i], err = newClient(); err != nil {
			return err
		}
		if i == n || i == n+1 {
			continue
		}
		objects[i] = &v1beta1.Speaker{ObjectMeta: metav1.ObjectMeta{Name: name(i)}}
		if err := clients[i].Create(ctx, objects[i]); err != nil {
			return err
		}
		if err := write(ctx, clients[i], objects[i], func(s *v1beta1.SpeakerStatus) { *s = usual(i) }); err != nil {
			return err
		}
	}

	// settled waits until nothing more is received.
	settled := func() int64 {
		for last := int64(-1); ; {
			pause(ctx, 500*time.Millisecond)
			if now := received.Load(); now == last || ctx.Err() != nil {
				return now
			} else {
				last = now
			}
		}
	}
	measure := func(what, want string, most float64, all bool, change func() error) error {
		watching, end := context.WithCancel(ctx)
		defer end()
		var readers sync.WaitGroup
		defer readers.Wait()
		defer end()
		for i, c := range clients {
			var opts []client.ListOption
			if i < n && !all {
				opts = append(opts, client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("metadata.name", name(i))})
			}
			w, err := c.Watch(watching, &v1beta1.SpeakerList{}, opts...)
			if err != nil {
				return err
			}
			readers.Go(func() { drain(w) })
		}
		before := settled()
		if err := change(); err != nil {
			return err
		}
		bytes := float64(settled() - before)
		f := b.figure(figure{name: what, want: want, unit: "KiB", max: most})
		f.add(bytes / 1024)
		f.note = fmt.Sprintf("%.2f KiB for each of %d", bytes/1024/n, n)
		return nil
	}
	missing := func(dead string, reporters ...int) error {
		for _, i := range reporters {
			if err := write(ctx, clients[i], objects[i], func(s *v1beta1.SpeakerStatus) { s.Missing = append(s.Missing, dead) }); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.Join(
		measure("one of 100 speakers dies", "max 200 KiB", 200, false, func() error { return missing(name(0), 3, 50, 97) }),
		measure("one of 100 speakers dies, and 10 others take its addresses", "max 200 KiB", 200, false, func() error {
			for i := 10; i < 20; i++ {
				if err := write(ctx, clients[i], objects[i], func(s *v1beta1.SpeakerStatus) {
					s.LocalNetwork.Answered, s.LocalNetwork.Digest, s.LocalNetwork.Latest[0] = 11, "424506ed5b52990d", "198.18.9.9"
				}); err != nil {
					return err
				}
			}
			return missing(name(1), 4, 51, 96)
		}),
		measure("one of 100 speakers dies, as it was: all watch all, and each writes", "", 0, true, func() error {
			for i := 2; i < n; i++ {
				if err := missing(name(2), i); err != nil {
					return err
				}
			}
			return nil
		}),
	)
}

// usual is what a speaker writes that answers for ten addresses and has two sessions.
func usual(i int) v1beta1.SpeakerStatus {
	s := v1beta1.SpeakerStatus{
		Version: "v1.0.0", Addresses: []string{fmt.Sprintf("192.0.2.%d", i)}, HardwareAddresses: []string{fmt.Sprintf("02:00:00:00:00:%02x", i)}, Interfaces: []string{"eth0"},
		LocalNetwork: &v1beta1.Layer2Status{Answered: 10, Digest: "4b8feb9364512928"},
		Conditions:   []metav1.Condition{{Type: v1beta1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1beta1.ReasonReady, Message: "announcing", LastTransitionTime: metav1.Now()}},
	}
	for k := range 10 {
		s.LocalNetwork.Latest = append(s.LocalNetwork.Latest, fmt.Sprintf("198.18.%d.%d", i, k))
	}
	for _, peer := range []string{"tor1", "tor2"} {
		s.Sessions = append(s.Sessions, v1beta1.SessionStatus{Peer: peer, Address: "192.0.2.250", LocalAddress: "192.0.2.1", State: v1beta1.Established,
			PeerASN: 64512, Families: []string{"IPv4", "IPv6"}, HoldTimeSeconds: 90, KeepaliveSeconds: 30, PrefixesIPv4: 10, Digest: "4b8feb9364512928"})
	}
	return s
}

// write changes a Speaker as a speaker does: by a patch, of whose answer it reads the metadata only.
func write(ctx context.Context, c client.Client, o *v1beta1.Speaker, edit func(*v1beta1.SpeakerStatus)) error {
	next := o.DeepCopy()
	edit(&next.Status)
	body, err := client.MergeFromWithOptions(o, client.MergeFromWithOptimisticLock{}).Data(next)
	if err != nil {
		return err
	}
	answer := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: o.Name}}
	answer.SetGroupVersionKind(v1beta1.GroupVersion.WithKind("Speaker"))
	if err := c.Status().Patch(ctx, answer, client.RawPatch(types.MergePatchType, body)); err != nil {
		return err
	}
	next.ResourceVersion = answer.ResourceVersion
	*o = *next
	return nil
}

func drain(w watch.Interface) {
	for range w.ResultChan() {
	}
}
