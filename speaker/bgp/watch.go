package bgp

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/clarionlb/clarion/speaker/bfd"
)

// watchPath has BFD watch the path to the peer, if p says so.
func (s *session) watchPath(p Peer, remote netip.Addr) {
	if p.BFD == (bfd.Profile{}) {
		s.speaker.watch(s.at, nil)
		return
	}
	local := p.Source
	if !local.IsValid() && p.VRF == "" { // in a VRF the kernel chooses for each packet
		var err error
		if local, err = localFor(remote); err != nil {
			return // there is no route; the attempt to connect says so
		}
	}
	// Of internal peers it is not configured how far they are.
	multihop := p.MultiHop || !p.external() && !onLink(remote, p.VRF)
	s.speaker.watch(s.at, &bfd.Session{
		Peer:    bfd.Peer{Remote: remote, Local: local.WithZone(""), Multihop: multihop, VRF: p.VRF},
		Profile: p.BFD,
	})
}

// watch makes want the BFD session beside a BGP session, nil for none.
func (s *Speaker) watch(at place, want *bfd.Session) {
	if s.bfd == nil {
		return
	}
	s.bfdMu.Lock()
	defer s.bfdMu.Unlock()
	have, ok := s.bfdWant[at]
	if want == nil && !ok || want != nil && ok && have == *want {
		return
	}
	delete(s.bfdWant, at)
	if want != nil {
		s.bfdWant[at] = *want
	}
	s.bfd.Set(slices.Collect(maps.Values(s.bfdWant)))
}

// bfdChanged passes the state of a BFD session on to the sessions that it watches the path of.
func (s *Speaker) bfdChanged(st bfd.Status) {
	s.bfdMu.Lock()
	var places []place
	for at, w := range s.bfdWant {
		if w.Peer == st.Peer {
			places = append(places, at)
		}
	}
	s.bfdMu.Unlock()
	for _, at := range places {
		s.mu.Lock()
		ses := s.sessions[at]
		s.mu.Unlock()
		if ses != nil {
			ses.bfdChanged(st)
		}
	}
}

// bfdChanged takes note of the state of the BFD session. When it goes down, so does the BGP session, unless it was the
// peer's wish to end BFD only (RFC 5882 section 4.2).
func (s *session) bfdChanged(st bfd.Status) {
	if st.Was == bfd.Up && st.State != bfd.Up && st.RemoteState != bfd.AdminDown {
		select {
		case s.bfdDown <- st.Diag.String():
		default:
		}
		s.mu.Lock()
		if s.conn != nil && s.status.State == Established {
			s.conn.hasten() // a write that hangs would not notice
		}
		s.mu.Unlock()
	}
	s.speaker.report()
}

// bfdStatus is the status of the BFD session beside each BGP session that has one.
func (s *Speaker) bfdStatus() map[place]*bfd.Status {
	if s.bfd == nil {
		return nil
	}
	byPeer := map[bfd.Peer]*bfd.Status{}
	for _, st := range s.bfd.Status() {
		byPeer[st.Peer] = &st
	}
	s.bfdMu.Lock()
	defer s.bfdMu.Unlock()
	all := make(map[place]*bfd.Status, len(s.bfdWant))
	for at, w := range s.bfdWant {
		all[at] = byPeer[w.Peer]
	}
	return all
}
