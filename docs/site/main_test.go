package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// site builds the site of the repository, or of a copy of its documents, in which one is edited.
func site(t *testing.T, file string, edit func(string) string) (string, error) {
	t.Helper()
	root, out := filepath.Join("..", ".."), t.TempDir()
	if file != "" {
		above := root
		root = t.TempDir()
		if err := os.CopyFS(filepath.Join(root, "docs"), os.DirFS(filepath.Join(above, "docs"))); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(above, "*.md"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range append(files, filepath.Join(above, "LICENSE")) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, filepath.Base(f)), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(filepath.Join(root, file))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, file), []byte(edit(string(b))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return out, build(root, out)
}

// No document has a link that leads nowhere.
func TestLinks(t *testing.T) {
	out, err := site(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(out, "troubleshooting.html"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`href="layer2.html#what-may-stand-in-the-way"`, `href="#a-bgp-session-is-down"`, `<h2 id="a-bgp-session-is-down">`,
		`<h2 id="no-external-address-external-ip-is-pending">`, `aria-current="page">Troubleshooting`, `href="index.html"`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("troubleshooting.html has no %s", want)
		}
	}
}

func TestDeadLinks(t *testing.T) {
	for _, tt := range []struct{ file, add, want string }{
		{"docs/bgp.md", "\n[a](layer3.md)\n", "docs/bgp.md: link to layer3.md: there is no such file"},
		{"docs/bgp.md", "\n[a\nb](layer2.md#nothing)\n", "docs/bgp.md: link to layer2.md#nothing: there is no such heading"},
		{"docs/bgp.md", "\n[a](#failures) [b](#failure)\n", "docs/bgp.md: link to #failure: there is no such heading"},
		{"README.md", "\n[a](LICENSE) ![b](docs/images/none.svg)\n", "README.md: link to docs/images/none.svg: there is no such file"},
		{"docs/cli.md", "\n<img src=\"images/none.png\">\n", "docs/cli.md: there is no image images/none.png"},
		{"docs/new.md", "# New\n", "docs/new.md is in no group of the navigation"},
		{"docs/bgp.md", "\n`[a](none.md)` [b](https://example.com/none.md)\n", ""},
	} {
		if _, err := site(t, tt.file, func(s string) string { return s + tt.add }); tt.want == "" && err != nil || tt.want != "" && (err == nil || err.Error() != tt.want) {
			t.Errorf("%q: got %v, want %q", tt.add, err, tt.want)
		}
	}
}

// Every page is as wide as the screen of a telephone, and of a computer: what is wider is moved by itself.
func TestWidths(t *testing.T) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("no chromium: make deps")
	}
	out, err := site(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(out)))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("no-proxy-server", true), chromedp.WSURLReadTimeout(time.Minute))...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer func() {
		_ = chromedp.Cancel(ctx) // which waits until its processes have ended
		cancel()
	}()
	for _, width := range []int64{390, 1280} {
		for _, g := range groups {
			for _, file := range g.files {
				if err := chromedp.Do(ctx, chromedp.EmulateViewport(width, 900), chromedp.Navigate(server.URL+"/"+url(file))); err != nil {
					t.Fatal(err)
				}
				var wide int64
				err := chromedp.Do(ctx, chromedp.Func(func(ctx context.Context, target *chromedp.Target) (err error) {
					wide, err = chromedp.Evaluate[int64]("document.documentElement.scrollWidth")(ctx, target)
					return err
				}))
				if err != nil {
					t.Fatal(err)
				}
				if wide > width {
					t.Errorf("%s is %d pixels wide on a screen of %d", file, wide, width)
				}
			}
		}
	}
}
