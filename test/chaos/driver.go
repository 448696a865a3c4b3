package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/chaos/walk"
	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

// patience is how long the cluster's programs may take to start again before a run is given up.
const patience = time.Minute

// driver does what a walk says.
type driver struct {
	*world.World
	pods   map[string]*lab.Pod // by node
	kernel map[string]string   // by node, before Clarion came
	began  time.Time

	mu       sync.Mutex
	done     []walk.Done
	under    []walk.Done         // not undone yet
	stations map[string]*station // by Service
	sent     int                 // requests
	losses   []loss
	found    []string
}

// undo is what ends a fault, and when.
type undo struct {
	walk.Done
	due time.Duration
	do  func(context.Context) error
}

func (d *driver) now() time.Duration { return time.Since(d.began) }

// play carries out the steps of a history one after the other, and undoes each when its time is over.
func (d *driver) play(ctx context.Context, steps []walk.Step) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	d.began = time.Now()
	var judges sync.WaitGroup
	judges.Go(func() { d.watch(ctx) })
	judges.Go(func() { d.ask(ctx) })
	defer judges.Wait()
	defer stop()
	defer d.endProbes()
	var undos []undo
	for len(steps) > 0 || len(undos) > 0 {
		slices.SortStableFunc(undos, func(a, b undo) int { return cmp.Compare(a.due, b.due) })
		if len(undos) > 0 && (len(steps) == 0 || undos[0].due <= steps[0].At) {
			u := undos[0]
			undos = undos[1:]
			if err := d.pause(ctx, u.due); err != nil {
				return err
			}
			if err := u.do(ctx); err != nil {
				return fmt.Errorf("undo %s: %w", u.Step, err)
			}
			d.ended(u.Done)
			continue
		}
		s := steps[0]
		steps = steps[1:]
		if err := d.pause(ctx, s.At); err != nil {
			return err
		}
		done := walk.Done{Step: s, Began: d.now()}
		fmt.Fprintf(os.Stderr, "chaos: %7.1fs  %s\n", done.Began.Seconds(), s)
		d.mu.Lock()
		d.under = append(d.under, done)
		d.mu.Unlock()
		back, err := d.step(ctx, s)
		if err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		if back == nil {
			d.ended(done)
			continue
		}
		undos = append(undos, undo{done, done.Began + s.For, back})
	}
	return nil
}

// ended notes that a step is over.
func (d *driver) ended(done walk.Done) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.under = slices.DeleteFunc(d.under, func(u walk.Done) bool { return u == done })
	done.Ended = d.now()
	d.done = append(d.done, done)
}

// history is what was done so far; what is not over lasts until now.
func (d *driver) history() []walk.Done {
	out := slices.Clone(d.done)
	for _, u := range d.under {
		u.Ended = d.now()
		out = append(out, u)
	}
	return out
}

// pause waits for a time of the walk.
func (d *driver) pause(ctx context.Context, until time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(until - d.now()):
		return nil
	}
}

// step does a step and returns what undoes it, nil if nothing does.
func (d *driver) step(ctx context.Context, s walk.Step) (func(context.Context) error, error) {
	restore := func(context.Context) error { return d.RestoreLink(s.On) }
	if walk.OfService(s.Do) && d.station(s.On) == nil {
		return nil, nil // the step that made it was left out
	}
	switch s.Do {
	case walk.Make:
		return nil, d.make(ctx, s)
	case walk.Unmake:
		return nil, d.unmake(ctx, s)
	case walk.Remake:
		return nil, errors.Join(d.unmake(ctx, s), d.make(ctx, s))
	case walk.Move:
		return nil, d.move(ctx, s.On)
	case walk.Widen:
		return d.patched(ctx, &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: s.Arg}},
			`{"spec":{"excludeAddresses":["192.0.2.239","198.18.0.127"]}}`, `{"spec":{"excludeAddresses":null}}`)
	case walk.Unadvertise:
		return d.deleted(ctx, map[string]string{"l2": advertiseL2, "bgp": advertiseBGP}[s.Arg])
	case walk.Unpeer:
		return d.deleted(ctx, map[string]string{"router1": peer1, "router2": peer2}[s.On])
	case walk.Drain:
		return d.patched(ctx, node(s.On), `{"metadata":{"annotations":{"clarionlb.io/drain":"true"}}}`, `{"metadata":{"annotations":{"clarionlb.io/drain":null}}}`)
	case walk.Exclude:
		return d.patched(ctx, node(s.On), `{"metadata":{"labels":{"node.kubernetes.io/exclude-from-external-load-balancers":""}}}`,
			`{"metadata":{"labels":{"node.kubernetes.io/exclude-from-external-load-balancers":null}}}`)
	case walk.Unready:
		return func(ctx context.Context) error { return d.pods[s.On].SetReady(ctx, true) }, d.pods[s.On].SetReady(ctx, false)
	case walk.NewKey:
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: lab.Namespace, Name: "clarion-memberlist"}}
		return nil, client.IgnoreNotFound(d.Client().Delete(ctx, secret))

	case walk.Cut:
		return restore, d.CutLink(s.On)
	case walk.Silence:
		return restore, d.SilenceLink(s.On)
	case walk.Mute:
		return restore, d.MuteLink(s.On)
	case walk.Deafen:
		return restore, d.DeafenLink(s.On)
	case walk.Flap:
		return d.flap(ctx, s.On), nil
	case walk.Lose:
		percent, err := strconv.Atoi(s.Arg)
		return restore, errors.Join(err, d.Loss(s.On, percent))
	case walk.Delay:
		delay, err := time.ParseDuration(s.Arg)
		return restore, errors.Join(err, d.Lab.Delay(s.On, delay))
	case walk.CutAPI:
		return func(context.Context) error { return d.Rejoin([]string{s.On}, []string{"control"}) }, d.CutFromAPI(s.On)
	case walk.CutGossip:
		others := slices.DeleteFunc(d.Nodes(), func(n string) bool { return n == s.On })
		return func(context.Context) error { return d.OpenPort([]string{s.On}, others) }, d.ClosePort(7946, []string{s.On}, others)

	case walk.Speaker:
		return d.broken(s.Arg, d.Clarion.Speakers[s.On])
	case walk.Speakers:
		var all []*lab.Process
		for _, n := range d.Nodes() {
			all = append(all, d.Clarion.Speakers[n])
		}
		return d.broken(s.Arg, all...)
	case walk.Controller:
		return d.broken(s.Arg, d.Clarion.Controller)
	case walk.Controllers:
		return d.broken(s.Arg, d.Clarion.Controller, d.Clarion.Standby)
	case walk.APIServer:
		back, err := d.broken(s.Arg, d.Process("control", "kube-apiserver"))
		return func(ctx context.Context) error { return errors.Join(back(ctx), d.apiAnswers(ctx)) }, err
	case walk.Proxy:
		return d.broken(s.Arg, d.Process(s.On, "kube-proxy"))
	case walk.Router:
		return d.broken(s.Arg, d.Process(s.On, "bgpd"))

	case walk.Claim:
		return d.claim(ctx, s.On)
	case walk.Pods:
		return d.interfaces(ctx, s.On, s.Arg)
	case walk.Look:
		return nil, d.look(ctx)
	}
	return nil, errors.New("unknown step")
}

func node(name string) *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }

// broken kills, ends or stops programs, and returns what has them run again.
func (d *driver) broken(how string, all ...*lab.Process) (func(context.Context) error, error) {
	var each sync.WaitGroup
	errs := make([]error, len(all))
	for i, p := range all {
		each.Go(func() {
			switch how {
			case "kill":
				p.Kill()
			case "term":
				errs[i] = p.Stop()
			default:
				p.Signal(unix.SIGSTOP)
			}
		})
	}
	each.Wait()
	return func(context.Context) error {
		var errs []error
		for _, p := range all {
			if p.Signal(unix.SIGCONT); !p.Alive() {
				errs = append(errs, p.Restart())
			}
		}
		return errors.Join(errs...)
	}, errors.Join(errs...)
}

func (d *driver) apiAnswers(ctx context.Context) error {
	return lab.Eventually(ctx, patience, func() error { return d.Get(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}) })
}

// flap cuts a link for half a second in each second until it is undone.
func (d *driver) flap(ctx context.Context, link string) func(context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			change := d.CutLink
			if i%2 > 0 {
				change = d.RestoreLink
			}
			if err := change(link); err != nil {
				ended <- err
				return
			}
			select {
			case <-ctx.Done():
				ended <- nil
				return
			case <-time.After(500 * time.Millisecond):
			}
		}
	}()
	return func(context.Context) error {
		stop()
		return errors.Join(<-ended, d.RestoreLink(link))
	}
}

// interfaces makes interfaces on a node as pods do, and returns what removes them.
func (d *driver) interfaces(ctx context.Context, node, n string) (func(context.Context) error, error) {
	each := func(ctx context.Context, command string) error {
		_, err := d.Exec(ctx, node, "sh", "-c", "for i in $(seq "+n+"); do "+command+" || exit; done")
		return err
	}
	return func(ctx context.Context) error { return each(ctx, "ip link del cali$i") },
		each(ctx, "ip link add cali$i up type veth peer name peer$i")
}

// patched changes an object, and returns what changes it back.
func (d *driver) patched(ctx context.Context, obj client.Object, there, back string) (func(context.Context) error, error) {
	patch := func(ctx context.Context, text string) error {
		return d.Client().Patch(ctx, obj, client.RawPatch(types.MergePatchType, []byte(text)))
	}
	return func(ctx context.Context) error { return patch(ctx, back) }, patch(ctx, there)
}

// deleted deletes objects, and returns what makes them again.
func (d *driver) deleted(ctx context.Context, objects string) (func(context.Context) error, error) {
	return func(ctx context.Context) error { return d.Apply(ctx, objects) }, d.Delete(ctx, objects)
}

// make makes a Service for the web pods, and has it probed from when it has an address.
func (d *driver) make(ctx context.Context, s walk.Step) error {
	what, err := walk.ParseService(s.On, s.Arg)
	if err != nil {
		return err
	}
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: s.On, Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "echo", Port: 7, TargetPort: world.TargetPort, Protocol: corev1.ProtocolUDP}},
		},
	}
	if what.BGP {
		svc.Annotations[v1beta1.AnnotationAddressPool] = "routed"
	}
	if what.Local {
		svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	if what.IPv6 {
		svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
	}
	d.probe(ctx, what)
	return d.Client().Create(ctx, svc)
}

// unmake deletes a Service, which nobody uses from then on.
func (d *driver) unmake(ctx context.Context, s walk.Step) error {
	d.endProbe(s.On)
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: s.On}}
	if err := d.Client().Delete(ctx, svc); err != nil {
		return err
	}
	return lab.Eventually(ctx, patience, func() error {
		if err := d.Get(ctx, svc); !apierrors.IsNotFound(err) {
			return cmp.Or(err, fmt.Errorf("%s is still there", s.On))
		}
		return nil
	})
}

// move has a Service ask for an address that nobody is given otherwise.
func (d *driver) move(ctx context.Context, name string) error {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	if err := d.Get(ctx, svc); err != nil {
		return err
	}
	n := 0
	if _, err := fmt.Sscanf(name, "web%d", &n); err != nil {
		return err
	}
	six := slices.Contains(svc.Spec.IPFamilies, corev1.IPv6Protocol)
	to := map[[2]bool]string{{false, false}: "192.0.2.220", {false, true}: "2001:db8::220", {true, false}: "198.18.0.64", {true, true}: "2001:db8:f::64"}[[2]bool{
		svc.Annotations[v1beta1.AnnotationAddressPool] == "routed", six}]
	addr := netip.MustParseAddr(to)
	for range n % 16 {
		addr = addr.Next()
	}
	_, err := d.patched(ctx, svc, fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, v1beta1.AnnotationAddresses, addr), "")
	return err
}

// claim has a host of the local network use a Service's address.
func (d *driver) claim(ctx context.Context, name string) (func(context.Context) error, error) {
	addr := d.station(name).address()
	if !addr.IsValid() {
		return nil, nil
	}
	command := func(verb string) []string {
		c := []string{"ip", "address", verb, world.Alone(addr).String(), "dev", "eth0"}
		if verb == "add" && addr.Is6() {
			c = append(c, "nodad")
		}
		return c
	}
	_, err := d.Exec(ctx, "control", command("add")...)
	return func(ctx context.Context) error {
		_, err := d.Exec(ctx, "control", command("del")...)
		return err
	}, err
}
