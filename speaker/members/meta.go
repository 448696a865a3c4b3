package members

import (
	"errors"
	"fmt"
	"slices"

	"github.com/clarionlb/clarion/internal/interfaces"
)

// Meta is what a speaker tells the others about itself, so that they need not wait for the API server to know it.
type Meta struct {
	// Ready is set when the speaker knows enough of the cluster to announce what it is chosen for.
	Ready bool
	// ProxyHealthy is set when the node's Service proxy answers its health check.
	ProxyHealthy bool
	// Draining is set when the speaker is about to stop, or its node to be emptied: others are to take over.
	Draining bool
	// Restarting is set when the speaker is about to stop and to come back, while its node goes on to forward: others
	// may stand in for it instead of taking over.
	Restarting bool
	// SessionUp is set when a BGP session of the node is established.
	SessionUp bool
	// Links are the links of the node that addresses can be announced on, the most important first. What fits into 512
	// bytes is told: some 28 links with a hardware address each, 40 that share one. See Told.
	Links []Link
	// Cut is set when there were more links than fit. Those that did not fit do not exist, for the node itself either.
	Cut bool
	// LinksUnknown is set when an earlier release had more links than it told, and knows the others itself.
	LinksUnknown bool
}

// Link is a link of a speaker's node.
type Link struct {
	Name     string // 1 to 15 bytes, the kernel's limit
	MAC      [6]byte
	Carrier  bool
	Excluded bool // carries only addresses whose advertisement names it
}

// Told is what others read of m. It is what the node itself has to go by, so that all decide alike.
func (m Meta) Told() Meta {
	told, err := parseMeta(m.encode())
	if err != nil {
		panic(err) // encode and parseMeta do not agree
	}
	return told
}

// Equal says whether two Metas say the same.
func (m Meta) Equal(o Meta) bool {
	return m.flags() == o.flags() && slices.Equal(m.Links, o.Links)
}

// The encoding: version, flags, the number of hardware addresses, those, the number of links, and for each of these the
// length of its name, the name, and a byte with the number of its hardware address and, in the highest bit, whether it
// has carrier. Then come additions, of which there is one: a bit for each link, the lowest first, that says whether it is
// excluded.
//
// Releases that run side by side have to read the same out of the same bytes, or they choose different owners. So what
// is there keeps its meaning, and what is new is an addition at the end or a flag, both of which earlier releases ignore;
// it must be such that they decide as before without it. What they must not ignore takes another version, which a release
// has to read before a later one writes it: a member whose version is not known announces, and its links are not known,
// which the member itself sees otherwise. Where an addition is missing, an earlier release wrote it: its links are
// excluded by the default list, as it does itself.
const (
	metaVersion = 1
	metaMax     = 512 // memberlist's limit
	maxName     = 15
	maxMACs     = 64 // more would not fit
	carrierBit  = 0x80

	flagReady        = 0x01
	flagProxyHealthy = 0x02
	flagDraining     = 0x04
	flagLinksUnknown = 0x08 // written by earlier releases only, in place of flagCut
	flagCut          = 0x10
	flagRestarting   = 0x20
	flagSessionUp    = 0x40
)

func (m Meta) flags() (flags byte) {
	for bit, set := range map[byte]bool{
		flagReady: m.Ready, flagProxyHealthy: m.ProxyHealthy, flagDraining: m.Draining, flagLinksUnknown: m.LinksUnknown,
		flagCut: m.Cut, flagRestarting: m.Restarting, flagSessionUp: m.SessionUp,
	} {
		if set {
			flags |= bit
		}
	}
	return flags
}

// encode returns at most metaMax bytes. It leaves out the last links and sets Cut if need be; links that the kernel
// cannot have are left out too.
func (m Meta) encode() []byte {
	var macs, links, excluded []byte
	index := map[[6]byte]byte{}
	count := 0
	for _, l := range m.Links {
		if len(l.Name) == 0 || len(l.Name) > maxName {
			continue
		}
		i, known := index[l.MAC]
		size := 4 + len(macs) + len(links) + 2 + len(l.Name) + count/8 + 1
		if !known {
			i, size = byte(len(index)), size+len(l.MAC)
		}
		if size > metaMax || int(i) >= maxMACs {
			m.Cut = true
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
		if count%8 == 0 {
			excluded = append(excluded, 0)
		}
		if l.Excluded {
			excluded[count/8] |= 1 << (count % 8)
		}
		count++
	}
	return slices.Concat([]byte{metaVersion, m.flags(), byte(len(index))}, macs, []byte{byte(count)}, links, excluded)
}

var errMeta = errors.New("cut off or inconsistent")

// parseMeta reads what encode wrote, of this release or an earlier one.
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
		LinksUnknown: flags&flagLinksUnknown != 0,
		Cut:          flags&flagCut != 0,
		Restarting:   flags&flagRestarting != 0,
		SessionUp:    flags&flagSessionUp != 0,
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
	told := len(b) >= (count+7)/8
	for i := range m.Links {
		if told {
			m.Links[i].Excluded = b[i/8]&(1<<(i%8)) != 0
		} else {
			m.Links[i].Excluded = interfaces.Match(interfaces.DefaultExclude(), m.Links[i].Name)
		}
	}
	return m, nil
}
