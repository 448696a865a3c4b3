package wire

import (
	"encoding/hex"
	"testing"
)

func TestInitRoundTrip(t *testing.T) {
	for _, want := range []Init{
		{SrcPort: 40000, DstPort: 8080, InitiateTag: 7},
		{Ack: true, SrcPort: 8080, DstPort: 40000, VerificationTag: 7, InitiateTag: 9},
	} {
		got, err := ParseInit(want.Marshal())
		if err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
}

func TestParseInitRefuses(t *testing.T) {
	good := Init{SrcPort: 1, DstPort: 2, InitiateTag: 3}.Marshal()
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)-1] ^= 1
	data := append([]byte(nil), good...)
	data[headerLen] = 0
	for name, b := range map[string][]byte{"empty": nil, "short": good[:20], "checksum": flipped, "other chunk": data} {
		if _, err := ParseInit(b); err == nil {
			t.Errorf("%s: accepted %s", name, hex.EncodeToString(b))
		}
	}
}
