package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/clarionlb/clarion/test/lab"
)

var figures = flag.Bool("figures", false, "measure the controller and print a table and JSON lines")

// TestFigures measures what a user waits for, with the controller alone beside the API server. It fails on wrong results
// only, never on slow ones.
func TestFigures(t *testing.T) {
	if !*figures {
		t.Skip("needs -figures")
	}
	a := newAPI(t)
	w := newWatcher(t)
	var rows []row
	report := func(name string, value float64, unit, want string) {
		rows = append(rows, row{name, value, unit, want})
	}
	a.pool("bench", nil, "198.18.0.0/16")

	alone := a.createMany(w, "alone", 1000, 16)
	a.deleteMany(w)
	one, two := a.run("one"), a.run("two")
	a.ok(w.create(a, "first"))
	w.wait(1)
	settle()
	writes := w.writes()
	w.reset()
	start := time.Now()
	created := a.createMany(w, "svc", 1000, 16)
	w.wait(1000)
	all := time.Since(start)
	report("1,000 Services by 16 workers: all have addresses / all are created", all.Seconds()/created.Seconds(), "", "≤ 1.05")
	report("the same: / all are created with no controller on the machine", all.Seconds()/alone.Seconds(), "", "")
	report("the same: create → address, p50", w.percentile(50), "s", "≤ 0.3")
	settle()
	report("the same: writes to each Service", float64(w.writes()-writes)/1000-1, "", "1")
	a.deleteMany(w)

	var single []float64
	for n := range 200 {
		w.reset()
		a.ok(w.create(a, fmt.Sprint("single", n)))
		w.wait(1)
		single = append(single, w.percentile(50)*1000)
	}
	slices.Sort(single)
	report("one at a time: create → address, p50", single[len(single)/2], "ms", "≤ 6")
	report("one at a time: create → address, p99", single[len(single)*99/100], "ms", "≤ 20")
	a.deleteMany(w)

	w.reset()
	a.createMany(w, "many", 5000, 16)
	w.wait(5000)
	report("5,000 Services: create → address, p50", w.percentile(50), "s", "≤ 1")
	settle()
	procs := map[string]*lab.Process{"one": one, "two": two}
	leader := a.leader(procs)
	report("memory of the leader with 5,000 Services", rss(t, procs[leader]), "MiB", "≤ 80")

	for _, lease := range []struct {
		name, want string
		args       []string
	}{{"default lease", "≤ 18", nil}, {"fast lease", "≤ 3", fast}} {
		if lease.args != nil {
			for _, p := range procs {
				p.Kill()
			}
			a.freeLease()
			procs = map[string]*lab.Process{"fast1": a.run("fast1", lease.args...), "fast2": a.run("fast2", lease.args...)}
			w.reset()
			a.ok(w.create(a, "before"))
			w.wait(1)
			settle()
			leader = a.leader(procs)
		}
		writes = w.writes()
		w.reset()
		start = time.Now()
		procs[leader].Kill()
		a.ok(w.create(a, strings.ReplaceAll("takeover "+lease.name, " ", "-")))
		w.wait(1)
		report("leader killed, "+lease.name+": the standby gives an address after", time.Since(start).Seconds(), "s", lease.want)
		settle()
		report("the same: writes to the others", float64(w.writes()-writes-2), "", "0")
	}
	for _, p := range procs {
		p.Kill()
	}

	// A controller that starts has to wait for the old one's lease only if that one was killed.
	a.freeLease()
	writes = w.writes()
	w.reset()
	start = time.Now()
	a.ok(w.create(a, "restart"))
	p := a.run("three")
	w.wait(1)
	report("restart with 5,000 Services: first new address after", time.Since(start).Seconds(), "s", "≤ 2")
	settle()
	report("the same: writes to the 5,000", float64(w.writes()-writes-2), "", "0")
	report("memory after the restart", rss(t, p), "MiB", "≤ 80")

	for _, r := range rows {
		t.Logf("%-75s %9.3f %-4s want %s", r.Name, r.Value, r.Unit, r.Want)
	}
	for _, r := range rows {
		b, err := json.Marshal(r)
		a.ok(err)
		fmt.Println(string(b))
	}
}

// freeLease takes the Lease away from a controller that was killed.
func (a *api) freeLease() {
	a.t.Helper()
	a.ok(a.Delete(a.t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: lab.Namespace, Name: "clarion-controller"}}))
}

type row struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
	Want  string  `json:"want"`
}

// settle lets writes that should not happen happen.
func settle() { time.Sleep(3 * time.Second) }

// createMany creates Services as fast as workers can.
func (a *api) createMany(w *watcher, prefix string, n, workers int) time.Duration {
	a.t.Helper()
	start := time.Now()
	a.each(n, workers, func(i int) error {
		return w.create(a, fmt.Sprintf("%s%05d", prefix, i))
	})
	return time.Since(start)
}

func (a *api) each(n, workers int, do func(int) error) {
	a.t.Helper()
	next := make(chan int)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range next {
				if err := do(i); err != nil {
					a.t.Error(err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// deleteMany deletes all Services.
func (a *api) deleteMany(w *watcher) {
	a.t.Helper()
	var list corev1.ServiceList
	a.ok(a.List(context.Background(), &list))
	a.each(len(list.Items), 16, func(i int) error {
		if list.Items[i].Name == "kubernetes" {
			return nil
		}
		return client.IgnoreNotFound(a.Delete(context.Background(), &list.Items[i]))
	})
	settle()
	w.reset()
}

// rss is the resident memory of a process, in MiB.
func rss(t *testing.T, p *lab.Process) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		t.Fatal(err)
	}
	return float64(kib) / 1024
}

// watcher sees Services as a user's watch does.
type watcher struct {
	mu      sync.Mutex
	created map[string]time.Time // when the request to create it was sent
	took    []time.Duration
	changes int
	news    chan struct{}
	t       testing.TB
}

func newWatcher(t testing.TB) *watcher {
	w := &watcher{created: map[string]time.Time{}, news: make(chan struct{}, 1), t: t}
	c, err := cache.New(cluster.Config(), cache.Options{Scheme: cluster.Client().Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	inf, err := c.GetInformer(t.Context(), &corev1.Service{}, cache.BlockUntilSynced(false))
	if err != nil {
		t.Fatal(err)
	}
	_, err = inf.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { w.see(o.(*corev1.Service)) },
		UpdateFunc: func(_, o any) { w.see(o.(*corev1.Service)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if err := c.Start(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	if !c.WaitForCacheSync(t.Context()) {
		t.Fatal("no Services to watch")
	}
	return w
}

func (w *watcher) see(svc *corev1.Service) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changes++
	if sent, ok := w.created[svc.Name]; ok && len(svc.Status.LoadBalancer.Ingress) > 0 {
		delete(w.created, svc.Name)
		w.took = append(w.took, now.Sub(sent))
	}
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// create creates a Service and takes the time.
func (w *watcher) create(a *api, name string) error {
	w.mu.Lock()
	w.created[name] = time.Now()
	w.mu.Unlock()
	return a.Create(context.Background(), newService(name))
}

// wait waits until n Services have got addresses since reset.
func (w *watcher) wait(n int) {
	w.t.Helper()
	deadline := time.After(5 * time.Minute)
	for {
		w.mu.Lock()
		done := len(w.took) >= n
		w.mu.Unlock()
		if done {
			return
		}
		select {
		case <-w.news:
		case <-deadline:
			w.t.Fatalf("%d of %d have addresses", len(w.took), n)
		}
	}
}

func (w *watcher) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.created, w.took = map[string]time.Time{}, nil
}

// writes is how often Services were created or changed.
func (w *watcher) writes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changes
}

// percentile of the times from creation to address, in seconds.
func (w *watcher) percentile(p int) float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Sort(w.took)
	return w.took[(len(w.took)-1)*p/100].Seconds()
}
