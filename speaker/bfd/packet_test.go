package bfd

import (
	"strings"
	"testing"
	"time"
)

func validPacket() packet {
	return packet{
		diag: DiagNeighborDown, state: Init, poll: true, multiplier: 3, mine: 0x01020304, yours: 0x05060708,
		desiredTx: 300 * time.Millisecond, requiredRx: time.Second, requiredEchoRx: 50 * time.Millisecond,
	}
}

func TestPacketOnTheWire(t *testing.T) {
	got := validPacket().append(nil)
	// RFC 5880 section 4.1, by hand.
	want := "\x23\xa0\x03\x18" + "\x01\x02\x03\x04" + "\x05\x06\x07\x08" + "\x00\x04\x93\xe0" + "\x00\x0f\x42\x40" + "\x00\x00\xc3\x50"
	if string(got) != want {
		t.Errorf("got % x, want % x", got, want)
	}
}

func TestPacketsThatAreDiscarded(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(b []byte) []byte
		want string
	}{
		{"short", func(b []byte) []byte { return b[:23] }, "packet of 23 bytes"},
		{"empty", func(b []byte) []byte { return nil }, "packet of 0 bytes"},
		{"version 0", func(b []byte) []byte { b[0] &= 0x1f; return b }, "version 0"},
		{"length beyond the packet", func(b []byte) []byte { b[3] = 25; return b }, "length field 25"},
		{"length too small", func(b []byte) []byte { b[3] = 23; return b }, "length field 23"},
		{"multiplier 0", func(b []byte) []byte { b[2] = 0; return b }, "multiplier 0"},
		{"multipoint", func(b []byte) []byte { b[1] |= bitMultipoint; return b }, "multipoint"},
		{"no discriminator", func(b []byte) []byte { clear(b[4:8]); return b }, "discriminator 0"},
		{"Init without our discriminator", func(b []byte) []byte { clear(b[8:12]); return b }, "state Init without our discriminator"},
		{"authentication", func(b []byte) []byte { b[1] |= bitAuth; return b }, "authentication"},
	} {
		_, err := parse(tt.edit(validPacket().append(nil)))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func FuzzPacket(f *testing.F) {
	f.Add(validPacket().append(nil))
	f.Add(packet{state: Down, multiplier: 1, mine: 1}.append(nil))
	f.Add(packet{state: Up, final: true, demand: true, independent: true, multiplier: 255, mine: 1<<32 - 1, yours: 1, desiredTx: time.Hour}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parse(b)
		if err != nil {
			return
		}
		q, err := parse(p.append(nil))
		if err != nil || p != q {
			t.Errorf("%+v became %+v, %v", p, q, err)
		}
	})
}
