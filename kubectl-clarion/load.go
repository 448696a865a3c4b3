package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/snapshot"
)

// cluster is what the API holds, read once.
type cluster struct {
	// snap is what the speakers decide from, but for what they tell each other without the API: which links they have.
	snap     *snapshot.Snapshot
	services map[client.ObjectKey]*corev1.Service
	nodes    []string // those that should have a speaker
	pools    []v1beta1.IPAddressPool
	speakers []v1beta1.Speaker
	alive    map[string]bool // the speakers, by node
	objects  []object        // everything that has conditions of Clarion's
}

// object is a configuration object with what the controller says of it.
type object struct {
	name       string // Kind/name
	conditions []metav1.Condition
}

// load reads the cluster. The Services without a class are taken for Clarion's, as they are by default; of those that
// are not, the controller's condition is missing.
func load(ctx context.Context, r client.Reader) (*cluster, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	c := &cluster{snap: snapshot.New(true), services: map[client.ObjectKey]*corev1.Service{}}
	if _, err := c.snap.Watch(ctx, once{reader: r, scheme: scheme}, slog.New(slog.DiscardHandler), func() {}); err != nil {
		return nil, err
	}
	var services corev1.ServiceList
	var nodes corev1.NodeList
	var pools v1beta1.IPAddressPoolList
	var l2 v1beta1.L2AdvertisementList
	var bgp v1beta1.BGPAdvertisementList
	var peers v1beta1.BGPPeerList
	var bfd v1beta1.BFDProfileList
	var communities v1beta1.CommunityList
	var speakers v1beta1.SpeakerList
	for _, list := range []client.ObjectList{&services, &nodes, &pools, &l2, &bgp, &peers, &bfd, &communities, &speakers} {
		if err := r.List(ctx, list); err != nil {
			return nil, fmt.Errorf("reading %T: %w", list, err)
		}
	}
	for i := range services.Items {
		c.services[client.ObjectKeyFromObject(&services.Items[i])] = &services.Items[i]
	}
	for _, n := range nodes.Items {
		if n.Labels[corev1.LabelOSStable] != string(corev1.Windows) { // speakers run on Linux only
			c.nodes = append(c.nodes, n.Name)
		}
	}
	c.pools, c.speakers = pools.Items, speakers.Items
	members := map[string][]string{}
	for _, s := range c.speakers {
		members[s.Name] = s.Status.Members
	}
	for _, o := range pools.Items {
		c.objects = append(c.objects, object{"IPAddressPool/" + o.Name, o.Status.Conditions})
	}
	for _, o := range l2.Items {
		c.objects = append(c.objects, object{"L2Advertisement/" + o.Name, o.Status.Conditions})
	}
	for _, o := range bgp.Items {
		c.objects = append(c.objects, object{"BGPAdvertisement/" + o.Name, o.Status.Conditions})
	}
	for _, o := range peers.Items {
		c.objects = append(c.objects, object{"BGPPeer/" + o.Name, o.Status.Conditions})
	}
	for _, o := range bfd.Items {
		c.objects = append(c.objects, object{"BFDProfile/" + o.Name, o.Status.Conditions})
	}
	for _, o := range communities.Items {
		c.objects = append(c.objects, object{"Community/" + o.Name, o.Status.Conditions})
	}
	c.alive = snapshot.Living(members, c.snap.NotReady)
	for _, o := range speakers.Items {
		if c.alive[o.Name] {
			c.objects = append(c.objects, object{"Speaker/" + o.Name, o.Status.Conditions})
		}
	}

	fellows := map[string]snapshot.Fellow{}
	for _, s := range c.speakers {
		if c.alive[s.Name] {
			fellows[s.Name] = snapshot.Fellow{Gate: s.Status.Gate}
		}
	}
	c.snap.Lock()
	defer c.snap.Unlock()
	c.snap.Fellows(fellows)
	c.snap.Changes()
	return c, nil
}

// once is a cache that never changes: it hands every object of a kind to whoever asks for the kind, read at that moment.
type once struct {
	cache.Cache // only GetInformer is there
	reader      client.Reader
	scheme      *runtime.Scheme
}

func (o once) GetInformer(ctx context.Context, obj client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	gvk, err := apiutil.GVKForObject(obj, o.scheme)
	if err != nil {
		return nil, err
	}
	gvk.Kind += "List"
	list, err := o.scheme.New(gvk)
	if err != nil {
		return nil, err
	}
	if err := o.reader.List(ctx, list.(client.ObjectList)); err != nil {
		return nil, err
	}
	items, err := meta.ExtractList(list)
	return listed{items: items}, err
}

type listed struct {
	cache.Informer
	items []runtime.Object
}

func (l listed) AddEventHandler(h toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	for _, o := range l.items {
		h.OnAdd(o, true)
	}
	return synced{}, nil
}

type synced struct {
	toolscache.ResourceEventHandlerRegistration
}

func (synced) HasSynced() bool { return true }

// speaker is what the speaker of a node has written, nil if it has written nothing.
func (c *cluster) speaker(node string) *v1beta1.Speaker {
	i := slices.IndexFunc(c.speakers, func(s v1beta1.Speaker) bool { return s.Name == node })
	if i < 0 {
		return nil
	}
	return &c.speakers[i]
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
