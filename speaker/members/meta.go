package members

import (
	"errors"
	"fmt"
	"slices"
)

// Meta is what a speaker tells its fellows about itself, so that they need not wait for the API server to know it.
type Meta struct {
	// Ready is set when the speaker knows enough of the cluster to announce what it is chosen for.
	Ready bool
	// ProxyHealthy is set when the node's Service proxy answers its health check.
	ProxyHealthy bool
	// Draining is set when the speaker is about to stop, or its node to be emptied.
	Draining bool
	// Links are the links of the node that can carry announcements. What fits into 512 bytes is told: about 20 links
	// with a hardware address each, 40 that share one.
	Links []Link
	// MoreLinks is set when there were more.
	MoreLinks bool
}

// Link is a link of a speaker's node.
type Link struct {
	Name    string // 1 to 15 bytes, the kernel's limit
	MAC     [6]byte
	Carrier bool
}

// Equal reports whether two Metas say the same.
func (m Meta) Equal(o Meta) bool {
	return m.Ready == o.Ready && m.ProxyHealthy == o.ProxyHealthy && m.Draining == o.Draining &&
		m.MoreLinks == o.MoreLinks && slices.Equal(m.Links, o.Links)
}

// The encoding: version, flags, the number of hardware addresses, those, the number of links, and for each of these the
// length of its name, the name, and a byte with the number of its hardware address and, in the highest bit, whether it
// has carrier. Bytes after that come from a later release that says more, and are ignored; what an earlier release must
// not ignore takes another version.
const (
	metaVersion = 1
	metaMax     = 512 // memberlist's limit
	maxName     = 15
	maxMACs     = 64 // more would not fit
	carrierBit  = 0x80

	flagReady        = 0x01
	flagProxyHealthy = 0x02
	flagDraining     = 0x04
	flagMoreLinks    = 0x08
)

// encode returns at most metaMax bytes, leaving out the last links if need be, and links that the kernel cannot have.
func (m Meta) encode() []byte {
	var macs, links []byte
	index := map[[6]byte]byte{}
	count := byte(0)
	more := m.MoreLinks
	for _, l := range m.Links {
		if len(l.Name) == 0 || len(l.Name) > maxName {
			continue
		}
		i, known := index[l.MAC]
		size := 4 + len(macs) + len(links) + 2 + len(l.Name)
		if !known {
			i, size = byte(len(index)), size+len(l.MAC)
		}
		if size > metaMax || int(i) >= maxMACs {
			more = true
			break
		}
		if !known {
			index[l.MAC] = i
			macs = append(macs, l.MAC[:]...)
		}
		if l.Carrier {
			i |= carrierBit
		}
		links = append(links, byte(len(l.Name)))
		links = append(links, l.Name...)
		links = append(links, i)
		count++
	}
	var flags byte
	for bit, set := range map[byte]bool{flagReady: m.Ready, flagProxyHealthy: m.ProxyHealthy, flagDraining: m.Draining, flagMoreLinks: more} {
		if set {
			flags |= bit
		}
	}
	return slices.Concat([]byte{metaVersion, flags, byte(len(index))}, macs, []byte{count}, links)
}

var errMeta = errors.New("cut off or inconsistent")

// parseMeta reads what encode wrote.
func parseMeta(b []byte) (Meta, error) {
	if len(b) < 3 {
		return Meta{}, fmt.Errorf("member data: %w", errMeta)
	}
	if b[0] != metaVersion {
		return Meta{}, fmt.Errorf("member data: version %d is not known here", b[0])
	}
	flags, n := b[1], int(b[2])
	m := Meta{
		Ready:        flags&flagReady != 0,
		ProxyHealthy: flags&flagProxyHealthy != 0,
		Draining:     flags&flagDraining != 0,
		MoreLinks:    flags&flagMoreLinks != 0,
	}
	b = b[3:]
	if n > maxMACs || len(b) < n*6+1 {
		return Meta{}, fmt.Errorf("member data: hardware addresses: %w", errMeta)
	}
	macs, count, b := b[:n*6], int(b[n*6]), b[n*6+1:]
	for range count {
		if len(b) == 0 {
			return Meta{}, fmt.Errorf("member data: links: %w", errMeta)
		}
		size := int(b[0])
		if size == 0 || size > maxName || len(b) < size+2 {
			return Meta{}, fmt.Errorf("member data: links: %w", errMeta)
		}
		last := b[size+1]
		i := int(last &^ carrierBit)
		if i >= n {
			return Meta{}, fmt.Errorf("member data: links: %w", errMeta)
		}
		m.Links = append(m.Links, Link{Name: string(b[1 : size+1]), MAC: [6]byte(macs[i*6:]), Carrier: last&carrierBit != 0})
		b = b[size+2:]
	}
	return m, nil
}
