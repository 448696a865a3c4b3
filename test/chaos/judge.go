package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/test/chaos/walk"
	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

const (
	every    = 20 * time.Millisecond // between two requests to a Service, each a flow of its own
	askEvery = 2 * time.Second       // between two questions who has an address
)

// station is a client of one Service.
type station struct {
	walk.Service
	end   context.CancelFunc
	ended chan struct{}

	mu   sync.Mutex
	addr netip.Addr // the Service's address; not valid: none yet
	sent int        // read it after ended
}

func (s *station) address() netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// loss is something that a Service's clients should not have met, unless a step excuses it.
type loss struct {
	walk.Service
	what string
	addr netip.Addr
	from time.Duration // all of this time must be excused, or some of it
	to   time.Duration
	err  error
}

func (d *driver) finding(format string, args ...any) {
	text := fmt.Sprintf("%.1fs: ", d.now().Seconds()) + fmt.Sprintf(format, args...)
	fmt.Fprintln(os.Stderr, "chaos: found:", text)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.found = append(d.found, text)
}

// probe begins to use a Service, as soon as it has an address.
func (d *driver) probe(ctx context.Context, svc walk.Service) {
	ctx, cancel := context.WithCancel(ctx)
	s := &station{Service: svc, end: cancel, ended: make(chan struct{})}
	d.mu.Lock()
	d.stations[svc.Name] = s
	d.mu.Unlock()
	from := "client"
	if svc.BGP {
		from = "outside"
	}
	go func() {
		defer close(s.ended)
		var under sync.WaitGroup
		defer under.Wait()
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			addr := s.address()
			if !addr.IsValid() {
				continue
			}
			s.sent++
			under.Go(func() {
				at := d.now()
				// Those under way when the probing ends are waited for.
				r := d.UDP(context.WithoutCancel(ctx), from, netip.AddrPortFrom(addr, 7).String(), 1)[0]
				if r.Err != nil && s.address() == addr {
					d.mu.Lock()
					defer d.mu.Unlock()
					d.losses = append(d.losses, loss{svc, "requests lost", addr, at, at, r.Err})
				}
			})
		}
	}()
}

func (d *driver) endProbe(name string) {
	d.mu.Lock()
	s := d.stations[name]
	delete(d.stations, name)
	d.mu.Unlock()
	if s != nil {
		s.end()
		<-s.ended
		d.mu.Lock()
		defer d.mu.Unlock()
		d.sent += s.sent
	}
}

func (d *driver) endProbes() {
	for _, s := range d.clients() {
		d.endProbe(s.Name)
	}
}

func (d *driver) clients() []*station {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []*station
	for _, name := range slices.Sorted(maps.Keys(d.stations)) {
		out = append(out, d.stations[name])
	}
	return out
}

// station is the client of a Service, nil if there is none.
func (d *driver) station(name string) *station {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stations[name]
}

// assigned is what is known of a Service's addresses.
type assigned struct {
	uid   types.UID
	addrs []netip.Addr
}

// watch judges every change of Services: no address is given to two, and none changes but by an edit that says so.
func (d *driver) watch(ctx context.Context) {
	c, err := client.NewWithWatch(d.Config(), client.Options{Scheme: d.Client().Scheme()})
	if err != nil {
		d.finding("the judge of addresses: %v", err)
		return
	}
	has := map[string]assigned{}
	for ctx.Err() == nil {
		var list corev1.ServiceList
		if err := c.List(ctx, &list, client.InNamespace("default")); err == nil {
			there := map[string]bool{}
			for i := range list.Items {
				there[list.Items[i].Name] = true
				d.changed(has, &list.Items[i])
			}
			maps.DeleteFunc(has, func(name string, _ assigned) bool { return !there[name] })
			w, err := c.Watch(ctx, &corev1.ServiceList{}, client.InNamespace("default"),
				&client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.ResourceVersion}})
			if err == nil {
				for e := range w.ResultChan() {
					svc, ok := e.Object.(*corev1.Service)
					switch {
					case !ok:
					case e.Type == "DELETED":
						delete(has, svc.Name)
					default:
						d.changed(has, svc)
					}
				}
			}
		}
		select { // the API server may be away
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// changed judges a Service as it is now.
func (d *driver) changed(has map[string]assigned, svc *corev1.Service) {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.DeletionTimestamp != nil {
		return
	}
	before, now := has[svc.Name], assigned{svc.UID, world.Ingress(svc)}
	has[svc.Name] = now
	if before.uid == now.uid && len(before.addrs) > 0 && !slices.Equal(before.addrs, now.addrs) {
		d.mu.Lock()
		said := walk.Moved(d.history(), svc.Name, d.now())
		d.mu.Unlock()
		if !said {
			d.finding("%s had %v and has %v: nobody said so", svc.Name, before.addrs, now.addrs)
		}
	}
	for name, other := range has {
		for _, a := range other.addrs {
			if name != svc.Name && slices.Contains(now.addrs, a) {
				d.finding("%s is given to %s and to %s", a, svc.Name, name)
			}
		}
	}
	if s := d.station(svc.Name); s != nil {
		s.mu.Lock()
		if s.addr = (netip.Addr{}); len(now.addrs) > 0 {
			s.addr = now.addrs[0]
		}
		s.mu.Unlock()
	}
}

// ask judges that one node answers for each address on the local network. Two in a row are wrong: a move has two for a moment.
func (d *driver) ask(ctx context.Context) {
	wrong := map[netip.Addr]time.Duration{}
	for ctx.Err() == nil {
		start := d.now()
		var each sync.WaitGroup
		for _, s := range d.clients() {
			addr := s.address()
			if s.BGP || !addr.IsValid() {
				continue
			}
			each.Go(func() {
				at := d.now()
				who, err := d.WhoHas("client", addr, 300*time.Millisecond)
				if s.address() != addr || err == nil && len(who) == 1 {
					d.mu.Lock()
					defer d.mu.Unlock()
					delete(wrong, addr)
					return
				}
				d.mu.Lock()
				defer d.mu.Unlock()
				if first, ok := wrong[addr]; ok {
					d.losses = append(d.losses, loss{s.Service, "questions who has it answered by other than one", addr, first, at, fmt.Errorf("%v, error: %v", who, err)})
				}
				wrong[addr] = at
			})
		}
		each.Wait()
		_ = d.pause(ctx, start+askEvery)
	}
}

// findings are what judges found: what they said at once, and the losses that no step excuses.
func (d *driver) findings() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := slices.Clone(d.found)
	history := d.history()
	excused := map[string]int{}
	var kept []loss
	for _, l := range d.losses {
		why, ok := walk.Excuse(history, l.Service, l.from)
		if !ok {
			why, ok = walk.Excuse(history, l.Service, l.to)
		}
		if ok {
			excused[why.Do]++
			continue
		}
		kept = append(kept, l)
	}
	slices.SortStableFunc(kept, func(a, b loss) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.what, b.what), cmp.Compare(a.from, b.from))
	})
	for len(kept) > 0 {
		n := 1
		for n < len(kept) && kept[n].Service == kept[0].Service && kept[n].what == kept[0].what && kept[n].from-kept[n-1].from < 3*time.Second {
			n++
		}
		f := kept[0]
		out = append(out, fmt.Sprintf("%.1fs to %.1fs: %s (%s) %s: %d %s; the first: %v", f.from.Seconds(), kept[n-1].to.Seconds(),
			f.Name, f.Arg(), f.addr, n, f.what, f.err))
		kept = kept[n:]
	}
	fmt.Fprintf(os.Stderr, "chaos: %d requests, %d losses, of which are excused: %v\n", d.sent, len(d.losses), excused)
	return out
}

// programs are Clarion's.
func (d *driver) programs() []*lab.Process {
	out := []*lab.Process{d.Clarion.Controller, d.Clarion.Standby}
	for _, n := range d.Nodes() {
		out = append(out, d.Clarion.Speakers[n])
	}
	return out
}

// look judges the whole when nothing has happened for a while: all programs run, every Service has an address, one node
// answers for it on the local network, or all routers have all nodes as next hops.
func (d *driver) look(ctx context.Context) error {
	for _, p := range d.programs() {
		if !p.Alive() {
			d.finding("%s on %s has ended: %v", p.Name(), p.Host(), p.Wait())
			if err := p.Restart(); err != nil {
				return err
			}
		}
	}
	for _, s := range d.clients() {
		if err := lab.Eventually(ctx, 3*time.Second, func() error { return d.served(ctx, s) }); err != nil {
			d.finding("%s (%s) in a calm: %v", s.Name, s.Arg(), err)
		}
	}
	return ctx.Err()
}

func (d *driver) served(ctx context.Context, s *station) error {
	addr := s.address()
	if !addr.IsValid() {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: s.Name}}
		err := d.Get(ctx, svc)
		return fmt.Errorf("no address; error: %v, conditions:%s", err, world.Conditions(svc.Status.Conditions))
	}
	if !s.BGP {
		who, err := d.WhoHas("client", addr, 300*time.Millisecond)
		if err == nil && len(who) != 1 {
			err = fmt.Errorf("%s is answered by %v", addr, who)
		}
		return err
	}
	for _, r := range d.Routers() {
		hops, err := r.NextHops(ctx, world.Alone(addr))
		if err != nil {
			return err
		}
		var want []netip.Addr
		for _, n := range d.Nodes() {
			want = append(want, world.AddrOf(d.Host(n), addr))
		}
		if slices.SortFunc(want, netip.Addr.Compare); !slices.Equal(hops, want) {
			return fmt.Errorf("%s has the next hops %v for %s, want %v", r.Name, hops, addr, want)
		}
	}
	return nil
}

// kernelState is what a program may leave in a node's kernel.
func (d *driver) kernelState(ctx context.Context, node string) (string, error) {
	return d.Exec(ctx, node, "sh", "-c", "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all | sed 's/ expires.*//'; ip -br address | sort")
}

// past is what a status says of what has been: when, and the last that went wrong.
var past = regexp.MustCompile(`,"(since|lastError)":"[^"]*"`)

// state is all that the cluster says of itself and that can be seen from outside, as text, but for what is past.
func (d *driver) state(ctx context.Context) (string, error) {
	var b strings.Builder
	var services corev1.ServiceList
	var pools v1beta1.IPAddressPoolList
	var speakers v1beta1.SpeakerList
	var peers v1beta1.BGPPeerList
	var l2 v1beta1.L2AdvertisementList
	var bgp v1beta1.BGPAdvertisementList
	for _, list := range []client.ObjectList{&services, &pools, &speakers, &peers, &l2, &bgp} {
		if err := d.Client().List(ctx, list); err != nil {
			return "", err
		}
	}
	say := func(what, name string, status any, conditions []metav1.Condition) {
		for i := range conditions {
			conditions[i].LastTransitionTime = metav1.Time{}
		}
		text, _ := json.Marshal(status)
		fmt.Fprintf(&b, "%s %s: %s\n", what, name, past.ReplaceAll(text, nil))
	}
	for i := range services.Items {
		s := &services.Items[i].Status
		say("Service", services.Items[i].Name, s, s.Conditions)
	}
	for i := range pools.Items {
		s := &pools.Items[i].Status
		say("IPAddressPool", pools.Items[i].Name, s, s.Conditions)
	}
	for i := range speakers.Items {
		s := &speakers.Items[i].Status
		say("Speaker", speakers.Items[i].Name, s, s.Conditions)
	}
	for i := range peers.Items {
		s := &peers.Items[i].Status
		say("BGPPeer", peers.Items[i].Name, s, s.Conditions)
	}
	for i := range l2.Items {
		s := &l2.Items[i].Status
		say("L2Advertisement", l2.Items[i].Name, s, s.Conditions)
	}
	for i := range bgp.Items {
		s := &bgp.Items[i].Status
		say("BGPAdvertisement", bgp.Items[i].Name, s, s.Conditions)
	}
	for i := range services.Items {
		for _, a := range world.Ingress(&services.Items[i]) {
			if services.Items[i].Annotations[v1beta1.AnnotationAddressPool] == "" {
				who, err := d.WhoHas("client", a, 300*time.Millisecond)
				if err != nil {
					return "", err
				}
				fmt.Fprintf(&b, "%s is answered by %v\n", a, who)
			}
			for _, r := range d.Routers() {
				paths, err := r.BGPPaths(ctx, world.Alone(a))
				if err != nil {
					return "", err
				}
				for _, p := range paths {
					fmt.Fprintf(&b, "%s: %s: %+v\n", r.Name, a, p)
				}
			}
		}
	}
	for _, n := range d.Nodes() {
		text, err := d.kernelState(ctx, n)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "kernel of %s:\n%s", n, text)
	}
	return b.String(), nil
}

// figures are the numbers of goroutines and file descriptors of Clarion's programs.
func (d *driver) figures(ctx context.Context) (map[string][2]int, error) {
	out := map[string][2]int{}
	for _, p := range d.programs() {
		port := "9120"
		if p == d.Clarion.Standby {
			port = "9122"
		}
		text, err := d.Exec(ctx, p.Host(), "curl", "-sS", "-m", "5", "http://127.0.0.1:"+port+"/metrics")
		if err != nil {
			return nil, err
		}
		var f [2]int
		for line := range strings.Lines(text) {
			_, _ = fmt.Sscanf(line, "go_goroutines %d", &f[0])
			_, _ = fmt.Sscanf(line, "process_open_fds %d", &f[1])
		}
		out[p.Host()+"."+p.Name()] = f
	}
	return out, nil
}

// afresh judges that the cluster is in the state that a fresh start of all of Clarion's programs reaches, that they have
// not grown, and that they leave nothing behind when they end.
func (d *driver) afresh(ctx context.Context) error {
	before, err := d.state(ctx)
	if err != nil {
		return err
	}
	grown, err := d.figures(ctx)
	if err != nil {
		return err
	}
	end := func() error {
		var errs []error
		for _, p := range d.programs() {
			errs = append(errs, p.Stop())
		}
		for _, n := range d.Nodes() {
			text, err := d.kernelState(ctx, n)
			errs = append(errs, err)
			if text != d.kernel[n] {
				d.finding("left behind on %s, when all programs have ended:\n%s", n, difference(d.kernel[n], text))
			}
		}
		return errors.Join(errs...)
	}
	if err := end(); err != nil {
		return err
	}
	for _, p := range d.programs() {
		if err := p.Restart(); err != nil {
			return err
		}
	}
	var after string
	err = lab.Eventually(ctx, patience, func() (err error) {
		if after, err = d.state(ctx); err == nil && after != before {
			err = errors.New("differs")
		}
		return err
	})
	if err != nil {
		d.finding("the state is not that of a fresh start: %v\n%s", err, difference(before, after))
	}
	fresh, err := d.figures(ctx)
	if err != nil {
		return err
	}
	for name, f := range fresh {
		for i, what := range []string{"goroutines", "file descriptors"} {
			if grown[name][i] > f[i]+f[i]/4+10 {
				d.finding("%s has %d %s, and %d after a fresh start", name, grown[name][i], what, f[i])
			}
		}
	}
	for _, p := range d.programs() {
		text, err := os.ReadFile(p.Log())
		if err != nil {
			return err
		}
		for _, bad := range []string{"DATA RACE", "panic:", "fatal error:"} {
			if strings.Contains(string(text), bad) {
				d.finding("the log of %s on %s says %q", p.Name(), p.Host(), bad)
			}
		}
	}
	return end()
}

// difference is the lines that one text has and the other has not.
func difference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	var out strings.Builder
	for _, line := range x {
		if !slices.Contains(y, line) {
			fmt.Fprintln(&out, "-", line)
		}
	}
	for _, line := range y {
		if !slices.Contains(x, line) {
			fmt.Fprintln(&out, "+", line)
		}
	}
	return out.String()
}
