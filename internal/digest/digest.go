// Package digest gives a set of addresses a number of 64 bits. A speaker writes the number of what it
// announces, the controller works out that of what it should announce, and need compare only these: no list that grows
// with the cluster goes through the API.
//
// The digest of a set is the sum, modulo 2^64, of the first eight bytes of the SHA-256 of each of its items. It does not
// depend on the order, follows each item that comes or goes at the cost of one hash, and those of disjoint sets add up.
// Two sets that differ have the same digest with a chance of 2^-64, about 5e-20: a thousand nodes that each differ once
// a second for a hundred years agree by mistake with a chance of 2e-7. It is no seal: who writes a digest can write any.
// It must stay what it is, because speakers and controllers of different releases compare theirs.
package digest

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
)

// Sum is the digest of a set. Add an item's digest when it comes, subtract it when it goes; that of the empty set is 0.
type Sum uint64

// Address is the digest of an address: of its four or sixteen bytes, four for an IPv4 address that is mapped into IPv6.
func Address(a netip.Addr) Sum {
	h := sha256.Sum256(a.Unmap().AsSlice())
	return Sum(binary.BigEndian.Uint64(h[:8]))
}

// String is the sum as sixteen hexadecimal digits.
func (s Sum) String() string { return fmt.Sprintf("%016x", uint64(s)) }

// Parse reads what String wrote.
func Parse(text string) (Sum, error) {
	n, err := strconv.ParseUint(text, 16, 64)
	if err != nil || len(text) != 16 {
		return 0, fmt.Errorf("digest %q must be sixteen hexadecimal digits", text)
	}
	return Sum(n), nil
}
