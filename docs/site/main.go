// Command site builds a web site from the documents: README.md and its neighbours, and docs/*.md. A link that leads nowhere is an
// error.
//
//	go run ./docs/site -o dist/site
package main

import (
	"bytes"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/renderer/html"
	"github.com/yuin/goldmark/text"
)

// repository is where files are that are no pages of the site.
const repository = "https://github.com/clarionlb/clarion/blob/main/"

func main() {
	out := flag.String("o", "dist/site", "the directory to write")
	flag.Parse()
	if err := build(".", *out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// group is pages that stand together in the navigation.
type group struct {
	Title string
	Pages []*page
}

// groups are all pages, by their files, in the order in which they are read.
var groups = []struct {
	title string
	files []string
}{
	{"Clarion", []string{"README.md"}},
	{"To use it", []string{"docs/quickstart.md", "docs/allocation.md", "docs/layer2.md", "docs/bgp.md", "docs/clusterip.md"}},
	{"To run it", []string{"docs/operations.md", "docs/cli.md", "docs/troubleshooting.md", "docs/security.md", "docs/moving.md"}},
	{"To look up", []string{"docs/api.md", "docs/glossary.md", "docs/compatibility.md", "docs/conformance.md", "docs/datapath.md", "CHANGELOG.md"}},
	{"To change it", []string{"CONTRIBUTING.md", "docs/architecture.md", "SECURITY.md"}},
}

// page is one document.
type page struct {
	Title string // its first heading
	URL   string
	Body  template.HTML
	Parts []part // its second-level headings

	file    string // from the repository's root folder
	source  []byte
	tree    ast.Node
	anchors map[string]bool
}

// part is a heading that the navigation shows.
type part struct{ Title, Anchor string }

var (
	//go:embed page.html
	layout string
	//go:embed icon.svg
	icon []byte
)

// build writes the site of the repository in root into the directory out, which is made if it is not there.
func build(root, out string) error {
	markdown := goldmark.New(
		goldmark.WithExtensions(extension.GFM),
		goldmark.WithParserOptions(parser.WithAutoHeadingID()),
		goldmark.WithRendererOptions(html.WithUnsafe()), // the documents are ours
	)
	pages := map[string]*page{}
	var nav []group
	for _, g := range groups {
		in := group{Title: g.title}
		for _, file := range g.files {
			source, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				return err
			}
			p := &page{file: file, source: source, URL: url(file), anchors: map[string]bool{}}
			p.tree = markdown.Parser().Parse(text.NewReader(source), parser.WithContext(parser.NewContext(parser.WithIDs(p))))
			p.headings()
			pages[file] = p
			in.Pages = append(in.Pages, p)
		}
		nav = append(nav, in)
	}
	if err := missing(root, pages); err != nil {
		return err
	}
	t, err := template.New("page").Parse(layout)
	if err != nil {
		return err
	}
	images := filepath.Join(out, "images")
	if err := errors.Join(os.RemoveAll(images), os.CopyFS(images, os.DirFS(filepath.Join(root, "docs", "images"))), os.WriteFile(filepath.Join(images, "icon.svg"), icon, 0o644)); err != nil {
		return err
	}
	var dead []error
	for _, g := range nav {
		for _, p := range g.Pages {
			dead = append(dead, p.link(root, pages))
			var body, whole bytes.Buffer
			if err := markdown.Renderer().Render(&body, p.source, p.tree); err != nil {
				return err
			}
			// A table that is wider than the screen is moved by itself.
			tables := strings.NewReplacer("<table>", `<div class="table" tabindex="0"><table>`, "</table>", "</table></div>").Replace(body.String())
			p.Body = template.HTML(strings.ReplaceAll(tables, `"docs/images/`, `"images/`))
			if err := t.Execute(&whole, map[string]any{"Groups": nav, "Page": p}); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(out, p.URL), whole.Bytes(), 0o644); err != nil {
				return err
			}
		}
	}
	return errors.Join(dead...)
}

// missing says which documents are in no group.
func missing(root string, pages map[string]*page) error {
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		for _, f := range files {
			file, err := filepath.Rel(root, f)
			if err != nil {
				return err
			}
			if pages[filepath.ToSlash(file)] == nil {
				return fmt.Errorf("%s is in no group of the navigation", file)
			}
		}
	}
	return nil
}

// url is the address of a document in the site.
func url(file string) string {
	name := strings.ToLower(strings.TrimSuffix(path.Base(file), ".md")) + ".html"
	switch {
	case file == "README.md":
		return "index.html"
	case path.Dir(file) == ".": // there is a SECURITY.md beside docs/security.md
		return "project-" + name
	}
	return name
}

// Generate makes the anchor of a heading as GitHub does.
func (p *page) Generate(value []byte, _ ast.NodeKind) []byte {
	var b strings.Builder
	for _, r := range strings.ToLower(string(value)) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			b.WriteRune(r)
		}
	}
	anchor := b.String()
	for n := 1; p.anchors[anchor]; n++ {
		anchor = fmt.Sprintf("%s-%d", b.String(), n)
	}
	p.anchors[anchor] = true
	return []byte(anchor)
}

// Put is for anchors that a document sets itself.
func (p *page) Put(value []byte) { p.anchors[string(value)] = true }

// headings reads the title and the parts.
func (p *page) headings() {
	for n := p.tree.FirstChild(); n != nil; n = n.NextSibling() {
		h, ok := n.(*ast.Heading)
		if !ok {
			continue
		}
		anchor, _ := h.AttributeString("id")
		id, _ := anchor.([]byte)
		switch title := plain(h, p.source); {
		case h.Level == 1 && p.Title == "":
			p.Title = title
		case h.Level == 2:
			p.Parts = append(p.Parts, part{title, string(id)})
		}
	}
}

// plain is the text of a node without its marks.
func plain(n ast.Node, source []byte) string {
	var b strings.Builder
	for c := n.FirstChild(); c != nil; c = c.NextSibling() {
		if t, ok := c.(*ast.Text); ok {
			b.Write(t.Value(source))
		} else {
			b.WriteString(plain(c, source))
		}
	}
	return b.String()
}

// link turns the page's links into the site's, and says which lead nowhere.
func (p *page) link(root string, pages map[string]*page) error {
	var dead []error
	nowhere := func(to, why string) {
		dead = append(dead, fmt.Errorf("%s: link to %s: %s", p.file, to, why))
	}
	_ = ast.Walk(p.tree, func(n ast.Node, entering bool) (ast.WalkStatus, error) { // the function returns no error
		var to *[]byte
		switch n := n.(type) {
		case *ast.Link:
			to = &n.Destination
		case *ast.Image:
			to = &n.Destination
		}
		if !entering || to == nil || strings.Contains(string(*to), "://") {
			return ast.WalkContinue, nil
		}
		name, anchor, hash := strings.Cut(string(*to), "#")
		file := p.file
		if name != "" {
			file = path.Join(path.Dir(p.file), name)
		}
		target := pages[file]
		if _, err := os.Stat(filepath.Join(root, file)); err != nil {
			nowhere(string(*to), "there is no such file")
			return ast.WalkContinue, nil
		}
		if hash && (target == nil || !target.anchors[anchor]) {
			nowhere(string(*to), "there is no such heading")
		}
		switch {
		case target != nil && name != "":
			*to = []byte(target.URL)
		case target == nil && strings.HasPrefix(file, "docs/images/"):
			*to = []byte(strings.TrimPrefix(file, "docs/"))
		case target == nil:
			*to = []byte(repository + file)
		default:
			*to = nil
		}
		if hash {
			*to = append(*to, "#"+anchor...)
		}
		return ast.WalkContinue, nil
	})
	dead = append(dead, p.images(root))
	return errors.Join(dead...)
}

// images says which images that the page has as HTML are not there.
func (p *page) images(root string) error {
	var dead []error
	for _, attribute := range slices.Concat(strings.Split(string(p.source), ` src="`)[1:], strings.Split(string(p.source), `srcset="`)[1:]) {
		image, _, _ := strings.Cut(attribute, `"`)
		if _, err := os.Stat(filepath.Join(root, path.Dir(p.file), image)); err != nil {
			dead = append(dead, fmt.Errorf("%s: there is no image %s", p.file, image))
		}
	}
	return errors.Join(dead...)
}
