package bfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// packetLen is the length of a control packet without authentication (RFC 5880 section 4.1).
const packetLen = 24

// packet is a BFD control packet without authentication section (RFC 5880 section 4.1).
type packet struct {
	diag  Diag
	state State
	// poll asks for an answer at once, which has final set; independent is the C bit, demand the D bit.
	poll, final, independent, demand bool
	multiplier                       uint8 // at least 1
	mine, yours                      uint32
	// Whole microseconds, below 2^32 of them.
	desiredTx, requiredRx, requiredEchoRx time.Duration
}

const (
	bitPoll, bitFinal, bitIndependent, bitAuth, bitDemand, bitMultipoint = 0x20, 0x10, 0x08, 0x04, 0x02, 0x01

	version = 1
)

// parse reads a packet. It makes the checks of RFC 5880 section 6.8.6 that need no session, in its order.
func parse(b []byte) (packet, error) {
	if len(b) < packetLen {
		return packet{}, fmt.Errorf("bfd: packet of %d bytes", len(b))
	}
	p := packet{
		diag: Diag(b[0] & 0x1f), state: State(b[1] >> 6),
		poll: b[1]&bitPoll != 0, final: b[1]&bitFinal != 0, independent: b[1]&bitIndependent != 0, demand: b[1]&bitDemand != 0,
		multiplier: b[2], mine: binary.BigEndian.Uint32(b[4:]), yours: binary.BigEndian.Uint32(b[8:]),
		desiredTx: micros(b[12:]), requiredRx: micros(b[16:]), requiredEchoRx: micros(b[20:]),
	}
	switch n := int(b[3]); {
	case b[0]>>5 != version:
		return packet{}, fmt.Errorf("bfd: version %d", b[0]>>5)
	case n < packetLen, n > len(b):
		return packet{}, fmt.Errorf("bfd: length field %d in a packet of %d bytes", n, len(b))
	case p.multiplier == 0:
		return packet{}, errors.New("bfd: detect multiplier 0")
	case b[1]&bitMultipoint != 0:
		return packet{}, errors.New("bfd: multipoint bit set")
	case p.mine == 0:
		return packet{}, errors.New("bfd: discriminator 0")
	case p.yours == 0 && p.state != Down && p.state != AdminDown:
		return packet{}, fmt.Errorf("bfd: state %s without our discriminator", p.state)
	case b[1]&bitAuth != 0: // none is in use here
		return packet{}, errors.New("bfd: authentication bit set")
	}
	return p, nil
}

// append appends the packet to b.
func (p packet) append(b []byte) []byte {
	flags := byte(p.state) << 6
	for _, f := range []struct {
		set bool
		bit byte
	}{{p.poll, bitPoll}, {p.final, bitFinal}, {p.independent, bitIndependent}, {p.demand, bitDemand}} {
		if f.set {
			flags |= f.bit
		}
	}
	b = append(b, version<<5|byte(p.diag), flags, p.multiplier, packetLen)
	for _, v := range []uint32{p.mine, p.yours, toMicros(p.desiredTx), toMicros(p.requiredRx), toMicros(p.requiredEchoRx)} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

func micros(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Microsecond
}

func toMicros(d time.Duration) uint32 { return uint32(min(d/time.Microsecond, math.MaxUint32)) }
