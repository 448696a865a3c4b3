package wire

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// SCTP packets of an association's first two steps (RFC 9260, sections 3.1 to 3.3.3), for raw sockets: the kernel
// under the lab need not know SCTP.

// Protocol is SCTP's number in the IP header.
const Protocol = 132

const (
	chunkINIT    = 1
	chunkINITACK = 2
	headerLen    = 12
	initLen      = 20 // chunk header and fixed fields
	stateCookie  = 7  // parameter type, mandatory in INIT ACK
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Init is the content of an INIT or, with Ack, of an INIT ACK.
type Init struct {
	Ack              bool
	SrcPort, DstPort uint16
	VerificationTag  uint32 // 0 in an INIT, the peer's initiate tag in an INIT ACK
	InitiateTag      uint32 // not 0
}

// Marshal encodes the packet with its checksum.
func (i Init) Marshal() []byte {
	n := headerLen + initLen
	if i.Ack {
		n += 8
	}
	b := make([]byte, n)
	binary.BigEndian.PutUint16(b[0:], i.SrcPort)
	binary.BigEndian.PutUint16(b[2:], i.DstPort)
	binary.BigEndian.PutUint32(b[4:], i.VerificationTag)
	c := b[headerLen:]
	c[0] = chunkINIT
	binary.BigEndian.PutUint16(c[2:], uint16(len(c)))
	binary.BigEndian.PutUint32(c[4:], i.InitiateTag)
	binary.BigEndian.PutUint32(c[8:], 65536)          // receiver window, bytes
	binary.BigEndian.PutUint16(c[12:], 1)             // outbound streams
	binary.BigEndian.PutUint16(c[14:], 1)             // inbound streams
	binary.BigEndian.PutUint32(c[16:], i.InitiateTag) // initial TSN
	if i.Ack {
		c[0] = chunkINITACK
		binary.BigEndian.PutUint16(c[20:], stateCookie)
		binary.BigEndian.PutUint16(c[22:], 8)
		copy(c[24:], "lab!")
	}
	// The checksum is the one field in little-endian order (RFC 9260, appendix A).
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

// ParseInit decodes an SCTP packet whose first chunk is INIT or INIT ACK, and verifies its checksum.
func ParseInit(b []byte) (Init, error) {
	if len(b) < headerLen+initLen {
		return Init{}, errors.New("sctp: short packet")
	}
	zeroed := append([]byte(nil), b...)
	clear(zeroed[8:12])
	if crc32.Checksum(zeroed, castagnoli) != binary.LittleEndian.Uint32(b[8:]) {
		return Init{}, errors.New("sctp: wrong checksum")
	}
	c := b[headerLen:]
	if c[0] != chunkINIT && c[0] != chunkINITACK {
		return Init{}, errors.New("sctp: not INIT or INIT ACK")
	}
	return Init{
		Ack:             c[0] == chunkINITACK,
		SrcPort:         binary.BigEndian.Uint16(b[0:]),
		DstPort:         binary.BigEndian.Uint16(b[2:]),
		VerificationTag: binary.BigEndian.Uint32(b[4:]),
		InitiateTag:     binary.BigEndian.Uint32(c[4:]),
	}, nil
}
