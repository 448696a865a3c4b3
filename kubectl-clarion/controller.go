package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/allocate"
)

// controller is what its Lease says of the controller that leads. Without one, its class is that of a controller without
// flags.
type controller struct {
	lease   bool // there is one
	holder  string
	alive   bool
	renewed time.Time
	version string
	class   allocate.Class

	ignoreExclude bool  // nodes with the label that excludes them from load balancers announce all the same
	unknown       error // why it is not known which Services and nodes are Clarion's
}

// renewal is how long it takes a controller that is alive to renew its Lease, with some to spare.
const renewal = 5 * time.Second

// readController reads the Lease. Whether its holder is alive does not depend on this machine's clock: a Lease that looks
// as if it had run out is read once more, and its holder is alive if it was renewed in between.
func readController(ctx context.Context, r client.Reader, how reading) (controller, error) {
	out := controller{class: allocate.Class{Name: v1beta1.LoadBalancerClass, Default: true}}
	key := client.ObjectKey{Namespace: how.namespace, Name: v1beta1.LeaseName}
	defer how.progress.step("reading the Lease " + key.String())()
	var l coordinationv1.Lease
	if err := r.Get(ctx, key, &l); apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		out.unknown = err
		return out, client.IgnoreNotFound(err)
	} else if err != nil {
		return out, fmt.Errorf("reading the Lease %s: %w", key, err)
	}
	out.lease, out.version = true, l.Annotations[v1beta1.AnnotationVersion]
	class := l.Annotations[v1beta1.AnnotationClass]
	byDefault, err1 := strconv.ParseBool(l.Annotations[v1beta1.AnnotationDefaultClass])
	ignore, err2 := strconv.ParseBool(l.Annotations[v1beta1.AnnotationIgnoreExcludeLabel])
	if class == "" || err1 != nil || err2 != nil { // of an earlier release, or somebody else's
		out.unknown = fmt.Errorf("the Lease %s does not say it", key)
	} else {
		out.class, out.ignoreExclude = allocate.Class{Name: class, Default: byDefault}, ignore
	}
	if l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == "" || l.Spec.RenewTime == nil {
		return out, nil
	}
	out.holder, _, _ = strings.Cut(*l.Spec.HolderIdentity, "_")
	out.renewed = l.Spec.RenewTime.Time
	lasts := 15 * time.Second
	if s := l.Spec.LeaseDurationSeconds; s != nil {
		lasts = time.Duration(*s) * time.Second
	}
	if how.alive != nil {
		out.alive = *how.alive
		return out, nil
	}
	if out.alive = how.now().Sub(out.renewed).Abs() <= lasts; out.alive {
		return out, nil
	}
	version := l.ResourceVersion
	how.wait(ctx, renewal)
	if err := r.Get(ctx, key, &l); err != nil {
		return out, fmt.Errorf("reading the Lease %s: %w", key, err)
	}
	out.alive = l.ResourceVersion != version
	return out, nil
}

// problem says why nothing is decided; "" when a controller works.
func (c *controller) problem(namespace string) string {
	switch {
	case !c.lease:
		return fmt.Sprintf("no controller has run: there is no Lease %s/%s (--clarion-namespace, or a controller with --leader-elect=false)", namespace, v1beta1.LeaseName)
	case c.holder == "":
		return "no controller leads: the last one has ended"
	case !c.alive:
		return fmt.Sprintf("the controller is dead: %s renewed its Lease last at %s; Services get no addresses, and conditions are old", c.holder, stamp(c.renewed))
	}
	return ""
}

// stamp is a time for people.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
