package announce

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"
)

// mix spreads every bit of x over all bits of the result: the finalizer of splitmix64 (Steele, Lea and Flood, "Fast
// splittable pseudorandom number generators", 2014). Every speaker computes the same.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// score is what a node scores for an address in rendezvous hashing (highest random weight): the node with the highest
// score comes first, so that a node that goes away changes nothing for the addresses of the others. Both halves are
// hashed once for all pairs.
func score(node, addr uint64) uint64 { return mix(node ^ addr) }

func hashNode(name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return mix(h.Sum64())
}

func hashAddr(addr netip.Addr) uint64 {
	b := addr.As16()
	return mix(mix(binary.BigEndian.Uint64(b[:8])) + binary.BigEndian.Uint64(b[8:]))
}
