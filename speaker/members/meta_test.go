package members

import (
	"fmt"
	"testing"
)

func mac(b byte) [6]byte { return [6]byte{2, 0, 0, 0, 0, b} }

func TestMetaCoding(t *testing.T) {
	for _, m := range []Meta{
		{},
		{Ready: true, ProxyHealthy: true, SessionUp: true},
		{Draining: true, Cut: true},
		{Restarting: true, LinksUnknown: true},
		{Links: []Link{{"eth0", mac(1), true, false}, {"eth0.100", mac(1), false, false}, {"fifteen-letters", mac(2), true, true}}},
		{Links: []Link{{Name: "a"}, {Name: "b"}, {Name: "c"}, {Name: "d"}, {Name: "e"}, {Name: "f"}, {Name: "g"}, {Name: "h"}, {Name: "i", Excluded: true}}},
	} {
		if got := m.Told(); !got.Equal(m) {
			t.Errorf("%+v came back as %+v", m, got)
		}
	}
}

// What does not fit is left out for everybody, and it is said that something was.
func TestMetaLimits(t *testing.T) {
	links := func(n int, macs int) (list []Link) {
		for i := range n {
			list = append(list, Link{fmt.Sprintf("bond0.%04d", i), mac(byte(i % macs)), true, false})
		}
		return list
	}
	for _, test := range []struct {
		name  string
		links []Link
		told  int
		cut   bool
	}{
		{"all fit", links(40, 1), 40, false},
		{"VLANs on one port", links(100, 1), 41, true},
		{"a port each", links(100, 100), 28, true},
		{"impossible names are left out", []Link{{}, {Name: "sixteen-letters!"}, {Name: "eth0"}}, 1, false},
	} {
		m := Meta{Links: test.links}
		b := m.encode()
		got, err := parseMeta(b)
		if err != nil || len(b) > metaMax || len(got.Links) != test.told || got.Cut != test.cut {
			t.Errorf("%s: %d bytes, %d links, cut %t, %v; want %d links, cut %t", test.name, len(b), len(got.Links), got.Cut, err, test.told, test.cut)
		}
		if told := m.Told(); !told.Equal(got) || !told.Told().Equal(told) {
			t.Errorf("%s: a node takes for itself %+v, and the others read %+v", test.name, told, got)
		}
	}
}

// earlier is how the release before additions encoded a Meta, and read one: without what it does not know.
func earlier(m Meta) []byte {
	for i := range m.Links {
		m.Links[i].Excluded = false
	}
	b := m.encode()
	b[1] &= flagReady | flagProxyHealthy | flagDraining | flagLinksUnknown
	return b[:len(b)-(len(m.Links)+7)/8]
}

func TestMetaFromOtherReleases(t *testing.T) {
	m := Meta{Ready: true, Links: []Link{{"eth0", mac(1), true, false}, {"cali1", mac(2), true, true}}}
	if got, err := parseMeta(append(m.encode(), "and more"...)); err != nil || !got.Equal(m) {
		t.Errorf("with an addition: %+v, %v", got, err)
	}
	if got, err := parseMeta(earlier(Meta{Ready: true, Links: []Link{{"eth0", mac(1), true, false}, {"cali1", mac(2), true, false}}})); err != nil || !got.Equal(m) {
		t.Errorf("of the release before, whose links are excluded by the default list: %+v, %v", got, err)
	}
	b := m.encode()
	b[0]++
	if _, err := parseMeta(b); err == nil {
		t.Error("another version is understood")
	}
}

func FuzzMeta(f *testing.F) {
	f.Add(Meta{}.encode())
	f.Add(Meta{Ready: true, Links: []Link{{"eth0", mac(1), true, false}, {"eth1", mac(2), false, true}}}.encode())
	f.Add(earlier(Meta{Ready: true, Links: []Link{{"eth0", mac(1), true, false}, {"eth1", mac(2), false, true}}}))
	f.Add([]byte{metaVersion, 0, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil || len(b) > metaMax {
			return
		}
		if again := m.Told(); !again.Equal(m) && !again.Cut { // an earlier release had room for more links
			t.Errorf("%x is %+v and comes back as %+v", b, m, again)
		}
	})
}
