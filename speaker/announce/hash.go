package announce

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"path"
	"slices"
)

// hash is a node's score for an address in rendezvous hashing (highest random weight): the node with the highest score
// owns the address, so that a node that leaves moves only what it owned. Every speaker computes the same score.
func hash(node string, addr netip.Addr) uint64 {
	b := addr.As16()
	sum := sha256.Sum256(append(b[:], node...))
	return binary.BigEndian.Uint64(sum[:8])
}

// MatchAny says whether a name matches one of the names or shell patterns.
func MatchAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, name)
		return err == nil && ok || p == name
	})
}
