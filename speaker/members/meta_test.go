package members

import (
	"fmt"
	"testing"
)

func mac(b byte) [6]byte { return [6]byte{2, 0, 0, 0, 0, b} }

func TestMetaCoding(t *testing.T) {
	for _, m := range []Meta{
		{},
		{Ready: true, ProxyHealthy: true},
		{Draining: true, MoreLinks: true},
		{Links: []Link{{"eth0", mac(1), true}, {"eth0.100", mac(1), false}, {"fifteen-letters", mac(2), true}}},
	} {
		got, err := parseMeta(m.encode())
		if err != nil || !got.Equal(m) {
			t.Errorf("%+v came back as %+v, %v", m, got, err)
		}
	}
}

func TestMetaLimits(t *testing.T) {
	links := func(n int, macs int) (list []Link) {
		for i := range n {
			list = append(list, Link{fmt.Sprintf("bond0.%04d", i), mac(byte(i % macs)), true})
		}
		return list
	}
	for _, test := range []struct {
		name  string
		links []Link
		told  int
		more  bool
	}{
		{"all fit", links(40, 1), 40, false},
		{"VLANs on one port", links(100, 1), 41, true},
		{"a port each", links(100, 100), 28, true},
		{"impossible names are left out", []Link{{}, {Name: "sixteen-letters!"}, {Name: "eth0"}}, 1, false},
	} {
		b := Meta{Links: test.links}.encode()
		got, err := parseMeta(b)
		if err != nil || len(b) > metaMax || len(got.Links) != test.told || got.MoreLinks != test.more {
			t.Errorf("%s: %d bytes, %d links, more %t, %v; want %d links, more %t", test.name, len(b), len(got.Links), got.MoreLinks, err, test.told, test.more)
		}
	}
}

func TestMetaFromOtherReleases(t *testing.T) {
	m := Meta{Ready: true, Links: []Link{{"eth0", mac(1), true}}}
	if got, err := parseMeta(append(m.encode(), "and more"...)); err != nil || !got.Equal(m) {
		t.Errorf("with an addition: %+v, %v", got, err)
	}
	b := m.encode()
	b[0]++
	if _, err := parseMeta(b); err == nil {
		t.Error("another version is understood")
	}
}

func FuzzMeta(f *testing.F) {
	f.Add(Meta{}.encode())
	f.Add(Meta{Ready: true, Links: []Link{{"eth0", mac(1), true}, {"eth1", mac(2), false}}}.encode())
	f.Add([]byte{metaVersion, 0, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil || len(b) > metaMax {
			return
		}
		again, err := parseMeta(m.encode())
		if err != nil || !again.Equal(m) {
			t.Errorf("%x is %+v and comes back as %+v, %v", b, m, again, err)
		}
	})
}
