package bgp

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/clarionlb/clarion/speaker/bfd"
)

// watchPath has BFD watch the path to the peer, if the Peer says so.
func (s *session) watchPath(remote netip.Addr) {
	if s.peer.BFD == (bfd.Profile{}) {
		s.speaker.watch(s, nil)
		return
	}
	local := s.peer.Source
	if !local.IsValid() && s.peer.VRF == "" { // in a VRF the kernel chooses for each packet
		var err error
		if local, err = localFor(remote); err != nil {
			return // there is no route; the attempt to connect says so
		}
	}
	// Of internal peers it is not configured how far they are.
	multihop := s.peer.MultiHop || !s.peer.external() && !onLink(remote)
	s.speaker.watch(s, &bfd.Session{
		Peer:    bfd.Peer{Remote: remote, Local: local.WithZone(""), Multihop: multihop, VRF: s.peer.VRF},
		Profile: s.peer.BFD,
	})
}

// watch makes want the BFD session beside a BGP session, nil for none.
func (s *Speaker) watch(ses *session, want *bfd.Session) {
	if s.bfd == nil {
		return
	}
	s.bfdMu.Lock()
	defer s.bfdMu.Unlock()
	name := ses.peer.Name
	have, ok := s.bfdWant[name]
	if want == nil && !ok || want != nil && ok && have == *want {
		return
	}
	delete(s.bfdWant, name)
	if want != nil {
		s.bfdWant[name] = *want
	}
	s.bfd.Set(slices.Collect(maps.Values(s.bfdWant)))
}

// bfdChanged passes the state of a BFD session on to the sessions that it watches the path of.
func (s *Speaker) bfdChanged(st bfd.Status) {
	s.bfdMu.Lock()
	var names []string
	for name, w := range s.bfdWant {
		if w.Peer == st.Peer {
			names = append(names, name)
		}
	}
	s.bfdMu.Unlock()
	for _, name := range names {
		s.mu.Lock()
		ses := s.sessions[name]
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
	}
	s.speaker.report()
}

// bfdStatus is the status of the BFD session beside each BGP session that has one, by name.
func (s *Speaker) bfdStatus() map[string]*bfd.Status {
	if s.bfd == nil {
		return nil
	}
	byPeer := map[bfd.Peer]*bfd.Status{}
	for _, st := range s.bfd.Status() {
		byPeer[st.Peer] = &st
	}
	s.bfdMu.Lock()
	defer s.bfdMu.Unlock()
	byName := make(map[string]*bfd.Status, len(s.bfdWant))
	for name, w := range s.bfdWant {
		byName[name] = byPeer[w.Peer]
	}
	return byName
}
