package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/kubectl-clarion/page"
)

var screenshots = flag.String("screenshots", "", "the directory to write pictures of the page into")

// patience is how long a browser may take for what takes it a moment; a test that fails waits for so long.
const patience = time.Minute

// browser is Debian's Chromium; a test is skipped where there is none.
func browser(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("no chromium: make deps")
	}
	// What it says to its makers and its sandbox, which root cannot have, are off.
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("no-proxy-server", true), chromedp.WSURLReadTimeout(patience))
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // which waits until its processes have ended
		cancel()
	})
	return ctx
}

// dashboard serves the page of a cluster that is made up, and returns its address; stop ends it.
func dashboard(t *testing.T, m *made) (url string, stop func()) {
	t.Helper()
	a := testApp(m, &bytes.Buffer{})
	a.root()
	a.flags.Context = new("rack-room")
	conn, err := a.open()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := page.New(l, a.follow(conn))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	done := false
	stop = func() {
		if cancel(); !done {
			if done = true; <-ended != nil {
				t.Error("the server ended with an error")
			}
		}
	}
	t.Cleanup(stop)
	return s.URL(), stop
}

// action is something that a browser does.
type action = chromedp.Action[chromedp.Void]

// until waits until an expression in the page is true.
func until(expression string) action {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		limited, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		looks := fmt.Sprintf(`new Promise((done) => { const look = () => %s ? done(true) : setTimeout(look, 30); look(); })`, expression)
		_, err := chromedp.Evaluate[bool](looks, chromedp.EvalAwaitPromise)(limited, target)
		if err == nil {
			return nil
		}
		text, _ := chromedp.Evaluate[string]("document.body.innerText")(ctx, target)
		return fmt.Errorf("%s: %w; the page says:\n%s", expression, err, text)
	})
}

// screen makes the browser's window as large as a screen, in pixels.
func screen(width, height int64, dark bool) action {
	scheme := map[bool]string{false: "light", true: "dark"}[dark]
	var options []chromedp.EmulateViewportOption
	if width < 500 {
		options = append(options, chromedp.EmulateMobile)
	}
	return chromedp.Steps(chromedp.EmulateViewport(width, height, options...), chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
		return err
	}))
}

func shows(selector, text string) string {
	return fmt.Sprintf("[...document.querySelectorAll(%q)].some((e) => e.innerText.includes(%q))", selector, text)
}

// A real browser shows a fault while it is made, says why in explain's words, lights up the way of what is picked, and shows
// no old picture as live.
func TestBrowser(t *testing.T) {
	ctx := browser(t)
	m := makeUp(t, 5, 16)
	url, stop := dashboard(t, m)
	do := func(actions ...action) {
		t.Helper()
		if err := chromedp.Do(ctx, actions...); err != nil {
			t.Fatal(err)
		}
	}
	do(screen(1280, 900, false), chromedp.Navigate(url),
		until(shows(".problems", "No problems.")), until(shows("#health", "Live")), until(`!location.href.includes("token")`),
		until(`document.querySelectorAll(".lines path").length >= 10`), until(`!document.querySelector(".lines path.bad")`))

	m.breakSession("node2", "tor1", "hold timer expired")
	do(until(shows(".problems", "no session with node2: Active (hold timer expired)")), until(shows(`[data-key="Node/node2"].bad`, "hold timer expired")), until(`document.querySelector(".lines path.bad")`))

	// Its explanation is explain's, and goes with the Escape key; the focus is where it was.
	do(chromedp.Focus(`[data-key="Address/203.0.113.0"]`), chromedp.KeyEvent("\r"), until(shows("#panel .answer", "203.0.113.0 is announced by BGP")),
		until(shows("#panel", "node2 has 203.0.113.0/32 for tor1, which it does not reach: Active (hold timer expired)")),
		until(`document.querySelectorAll(".lines path.on").length > 5`), until(`document.querySelector(".lines path.on.bad")`), until(shows(".tag", "endpoints here")),
		chromedp.KeyEvent("\x1b"), until(`document.getElementById("panel").hidden`), until(`document.activeElement.dataset.key === "Address/203.0.113.0"`))

	// A Service that loses its address is first in the list, with the reason.
	svc := corev1.Service{}
	svc.Namespace = "shop"
	m.edit("checkout", &svc, func() { svc.Status.LoadBalancer.Ingress = nil })
	do(chromedp.Click(`[data-key="bad-services"]`), until(`document.querySelectorAll(".rows li").length === 1`),
		chromedp.Click(`[data-key="tab-map"]`), until(`document.querySelector(".map")`))
	do(chromedp.Click(`[data-key="tab-services"]`), chromedp.SendKeys("#choose", "All"), until(`document.querySelectorAll(".rows li").length > 1`), until(shows(".rows li:first-child", "shop/checkout is not reachable: it has no address.")),
		chromedp.SendKeys("#search", "smtp"), until(`document.querySelectorAll(".rows li").length === 1`), until(shows(".rows", "mail/smtp is reachable at")))
	do(chromedp.Click(`[data-key="tab-pools"]`), until(`document.querySelectorAll(".cell.used").length >= 15`), until(`document.querySelector(".cell.quarantined[title*='another host']")`),
		chromedp.Click(`[data-key="tab-sessions"]`), until(shows(".rows li:first-child", "hold timer expired")), until(shows(".rows", "Up · 900 ms")))
	m.settle("node3")
	do(chromedp.Click(`[data-key="tab-time"]`), until(shows(".times", "node3: its speaker is not alive")), until(shows(".times", "no session with node2")))
	do(screen(390, 844, false), chromedp.Click(`[data-key="tab-map"]`), until(`document.querySelector(".map")`))
	if over, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("document.documentElement.scrollWidth > innerWidth")); err != nil || over {
		t.Errorf("the map is wider than a telephone (%v)", err)
	}
	stop()
	do(until(shows("#health", "Not live")), until(shows("#stale", "This is how it was at")), until(`document.body.classList.contains("old-picture")`))
}

// With -screenshots, pictures of the page are taken: of a small cluster with a fault, and of one with 500 nodes.
func TestScreenshots(t *testing.T) {
	if *screenshots == "" {
		t.Skip("no -screenshots")
	}
	if err := os.MkdirAll(*screenshots, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx := browser(t)
	do := func(actions ...action) {
		t.Helper()
		if err := chromedp.Do(ctx, actions...); err != nil {
			t.Fatal(err)
		}
	}
	save := func(name string) {
		t.Helper()
		b, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(*screenshots, name+".png"), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	top := chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := chromedp.Evaluate[any]("scrollTo(0, 0); document.activeElement.blur()")(ctx, target)
		return err
	})
	tab := func(name, there string) {
		t.Helper()
		do(chromedp.Click(`[data-key="tab-`+name+`"]`), until(there), top)
	}
	m := makeUp(t, 5, 16)
	url, stop := dashboard(t, m)
	do(screen(1280, 860, false), chromedp.Navigate(url), until(shows("#health", "Live")), until(shows(".problems", "No problems.")))
	slice := discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "mail", Name: "imap"}}
	if err := m.Delete(t.Context(), &slice); err != nil {
		t.Fatal(err)
	}
	m.settle("node3")
	pool := v1beta1.IPAddressPool{}
	m.edit("lan", &pool, func() { pool.Status.AssignedIPv4, pool.Status.AvailableIPv4 = 9, 73 })
	m.breakSession("node2", "tor1", "hold timer expired")
	do(until(shows(".problems", "hold timer expired")), until(`document.querySelector(".lines path.bad")`))
	for _, as := range []struct {
		name          string
		width, height int64
		dark, all     bool
	}{{"1280", 1280, 860, false, true}, {"1280-dark", 1280, 860, true, false}, {"390", 390, 844, false, false}, {"390-dark", 390, 844, true, false}} {
		do(screen(as.width, as.height, as.dark))
		tab("map", `document.querySelector(".lines path")`)
		save("page-map-" + as.name)
		do(chromedp.Click(`[data-key="Address/203.0.113.0"]`), until(`document.querySelector(".lines path.on")`), top)
		save("page-way-" + as.name)
		do(chromedp.Click("#panel .close"), until(`document.getElementById("panel").hidden`))
		if as.all {
			tab("services", `document.querySelector(".services")`)
			save("page-services-" + as.name)
			tab("pools", `document.querySelector(".history")`)
			save("page-pools-" + as.name)
			tab("sessions", `document.querySelector(".sessions")`)
			save("page-sessions-" + as.name)
			tab("time", `document.querySelector(".times")`)
			save("page-time-" + as.name)
		}
	}
	stop()
	m = makeUp(t, 500, 2000)
	m.settle("node207")
	m.breakSession("node113", "tor2", "hold timer expired")
	url, _ = dashboard(t, m)
	do(screen(1280, 860, false), chromedp.Navigate(url+"#map"), until(shows("#health", "Live")), until(`document.querySelector(".lines path")`))
	save("page-500-nodes-1280")
}
