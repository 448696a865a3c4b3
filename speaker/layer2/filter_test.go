package layer2

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func TestSpans(t *testing.T) {
	words := []uint32{10, 3, 1, 2, 11, 20, 1, 0xffffffff, 0}
	for _, test := range []struct {
		limit int
		want  []span
	}{
		{9, []span{{0, 3}, {10, 11}, {20, 20}, {0xffffffff, 0xffffffff}}},
		{4, []span{{0, 3}, {10, 11}, {20, 20}, {0xffffffff, 0xffffffff}}},
		{3, []span{{0, 11}, {20, 20}, {0xffffffff, 0xffffffff}}}, // 3 to 10 is narrower than 11 to 20
		{2, []span{{0, 20}, {0xffffffff, 0xffffffff}}},
		{1, []span{{0, 0xffffffff}}},
	} {
		if got := spans(words, test.limit); !slices.Equal(got, test.want) {
			t.Errorf("limit %d: %v, want %v", test.limit, got, test.want)
		}
	}
	if got := spans(nil, 1); got != nil {
		t.Errorf("no words: %v", got)
	}
}

// machine runs a filter without the check of the packet type, which only the kernel can do.
func machine(t *testing.T, filter func([]span) []bpf.Instruction, s []span) func(frame []byte) bool {
	t.Helper()
	prog := filter(s)[len(here()):]
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	if len(prog) > 4096-len(here()) {
		t.Fatalf("%d instructions", len(prog))
	}
	return func(frame []byte) bool {
		n, err := vm.Run(frame)
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
}

// arpOf is an ARP frame, ndpOf a solicitation or, with ask false, an advertisement.
func arpOf(t *testing.T, op byte, from, to netip.Addr) []byte {
	t.Helper()
	f, err := arpFrame(1, theirs, broadcast, theirs, from, MAC{}, to)
	if err != nil {
		t.Fatal(err)
	}
	f[21] = op
	return f
}

func ndpOf(t *testing.T, kind byte, from, target netip.Addr) []byte {
	t.Helper()
	f, err := poll(target, theirs, ours, from)
	if err != nil {
		t.Fatal(err)
	}
	f[54] = kind
	return f
}

func TestFilters(t *testing.T) {
	other4, other6 := netip.MustParseAddr("203.0.113.11"), netip.MustParseAddr("2001:db8:1::11")
	for _, test := range []struct {
		name  string
		frame []byte
		pass  bool
	}{
		{"request", arpOf(t, 1, host4, vip4), true},
		{"probe", arpOf(t, 1, any4, vip4), true},
		{"request for another", arpOf(t, 1, host4, other4), false},
		{"request by a claimant", arpOf(t, 1, vip4, other4), true},
		{"gratuitous request", arpOf(t, 1, vip4, vip4), true},
		{"reply by a claimant", arpOf(t, 2, vip4, other4), true},
		{"reply to us", arpOf(t, 2, other4, vip4), false},
		{"operation 3", arpOf(t, 3, vip4, vip4), false},
		{"operation 0x0101", func() []byte { f := arpOf(t, 1, host4, vip4); f[20] = 1; return f }(), false},
		{"protocol length 5", func() []byte { f := arpOf(t, 1, host4, vip4); f[19] = 5; return f }(), false},
		{"hardware type 6", func() []byte { f := arpOf(t, 1, host4, vip4); f[15] = 6; return f }(), false},
		{"cut off", arpOf(t, 1, host4, vip4)[:40], false},
		{"solicitation", ndpOf(t, 135, host6, vip6), true},
		{"solicitation for another", ndpOf(t, 135, host6, other6), false},
		{"solicitation by a claimant", ndpOf(t, 135, vip6, other6), true},
		{"advertisement", ndpOf(t, 136, host6, vip6), true},
		{"advertisement of another", ndpOf(t, 136, host6, other6), false},
		{"router advertisement", ndpOf(t, 134, host6, vip6), false},
		{"echo request", ndpOf(t, 128, host6, vip6), false},
		{"routed", func() []byte { f := ndpOf(t, 135, host6, vip6); f[21] = 64; return f }(), false},
		{"UDP", func() []byte { f := ndpOf(t, 135, host6, vip6); f[20] = 17; return f }(), false},
	} {
		filter, addr := arpFilter, vip4
		if binary.BigEndian.Uint16(test.frame[12:]) == etherIPv6 {
			filter, addr = ndpFilter, vip6
		}
		for _, words := range [][]uint32{{word(addr)}, {5, 6, 7, 9, 100, 200, 300, word(addr), 0xf0000000, 0xff000000}} {
			if got := machine(t, filter, spans(words, maxSpans))(test.frame); got != test.pass {
				t.Errorf("%s, %d addresses: passes %t, want %t", test.name, len(words), got, test.pass)
			}
		}
		if machine(t, filter, nil)(test.frame) {
			t.Errorf("%s passes an empty filter", test.name)
		}
	}
}

// Whatever the set, its own addresses pass; others do not as long as the set has few enough runs.
func TestFilterRandom(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{1, 3, 10, 100, maxSpans, 2500} {
		set := map[uint32]bool{}
		for len(set) < size {
			set[0xc6120000|random.Uint32N(1<<17)] = true // 198.18.0.0/15
		}
		var words []uint32
		for w := range set {
			words = append(words, w)
		}
		pass := machine(t, arpFilter, spans(words, maxSpans))
		for range 5000 {
			w := 0xc6100000 | random.Uint32N(1<<19)
			if random.IntN(2) == 0 {
				w = words[random.IntN(len(words))]
			}
			addr := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, w)))
			got := pass(arpOf(t, 1, host4, addr))
			if set[w] && !got || !set[w] && got && size <= maxSpans {
				t.Fatalf("%d addresses, %s owned %t: passes %t", size, addr, set[w], got)
			}
		}
	}
}

// A socket with little option memory gets a coarser filter rather than none.
func TestFit(t *testing.T) {
	var addrs []netip.Addr
	for i := range 1000 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{198, 18, byte(i >> 4), byte(i << 4)}))
	}
	room := 300
	tooLarge := func(err error) bool { return errors.Is(err, unix.ENOMEM) }
	attach := func(p []bpf.RawInstruction) error {
		if len(p) > room {
			return unix.ENOMEM
		}
		return nil
	}
	if err := fit(addrs, arpFilter, tooLarge, attach); err != nil {
		t.Error(err)
	}
	room = 1
	if err := fit(addrs, arpFilter, tooLarge, attach); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("no room at all: %v", err)
	}
	if err := fit(addrs, arpFilter, tooLarge, func([]bpf.RawInstruction) error { return unix.ENODEV }); !errors.Is(err, unix.ENODEV) {
		t.Errorf("another error: %v", err)
	}
}
