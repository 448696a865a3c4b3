package layer2

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/net/bpf"
)

// The kernel runs the filter on every ARP frame (or IPv6 packet) of an interface, and wakes the process only for what
// passes. It lets through a frame that asks for an address of the set or whose sender has one. It is exact while the
// addresses form few enough runs; beyond that the narrowest gaps between them are let through as well. Of an IPv6
// address it compares the last 32 bits. What passes in excess is dropped by the exact table behind it.

// span is an inclusive range of 32-bit words.
type span struct{ lo, hi uint32 }

// word is the part of an address that the filter compares.
func word(a netip.Addr) uint32 {
	b := a.AsSlice()
	return binary.BigEndian.Uint32(b[len(b)-4:])
}

// spans covers all words with at most limit spans, by closing the narrowest gaps. limit is at least 1.
func spans(words []uint32, limit int) []span {
	words = slices.Clone(words)
	slices.Sort(words)
	var runs []span
	for _, w := range words {
		if n := len(runs); n > 0 && w-runs[n-1].hi <= 1 {
			runs[n-1].hi = w
		} else {
			runs = append(runs, span{w, w})
		}
	}
	if len(runs) <= limit {
		return runs
	}
	// The limit-1 widest gaps stay open.
	gaps := make([]int, len(runs)-1)
	for i := range gaps {
		gaps[i] = i
	}
	slices.SortFunc(gaps, func(a, b int) int {
		return cmp.Or(cmp.Compare(runs[b+1].lo-runs[b].hi, runs[a+1].lo-runs[a].hi), cmp.Compare(a, b))
	})
	open := gaps[:limit-1]
	slices.Sort(open)
	var covers []span
	start := 0
	for _, g := range append(open, len(runs)-1) {
		covers = append(covers, span{runs[start].lo, runs[g].hi})
		start = g + 1
	}
	return covers
}

// match returns instructions that accept the frame when the word in A is in one of the sorted spans, and otherwise
// run off their end. A binary tree keeps the way short: a foreign frame is to cost as little as possible.
func match(s []span) []bpf.Instruction {
	const leaf = 4
	var prog []bpf.Instruction
	if len(s) <= leaf {
		for _, r := range s {
			if r.lo == r.hi {
				prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: r.lo, SkipFalse: 1})
			} else {
				prog = append(prog,
					bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: r.lo, SkipFalse: 2},
					bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: r.hi, SkipTrue: 1})
			}
			prog = append(prog, accept)
		}
		return prog
	}
	half := len(s) / 2
	left, right := match(s[:half]), match(s[half:])
	// A conditional jump reaches 255 instructions, an unconditional one any number.
	prog = append(prog,
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: s[half].lo, SkipFalse: 1},
		bpf.Jump{Skip: uint32(len(left)) + 1})
	prog = append(prog, left...)
	prog = append(prog, bpf.Jump{Skip: uint32(len(right))})
	return append(prog, right...)
}

var (
	accept = bpf.RetConstant{Val: 0xffff}
	reject = bpf.RetConstant{}
)

// need rejects the frame unless A equals val.
func need(val uint32) []bpf.Instruction {
	return []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpEqual, Val: val, SkipTrue: 1}, reject}
}

func needAt(off uint32, size int, val uint32) []bpf.Instruction {
	return append([]bpf.Instruction{bpf.LoadAbsolute{Off: off, Size: size}}, need(val)...)
}

// here rejects frames to other stations, among them those of a VLAN that has no interface, and our own.
func here() []bpf.Instruction {
	const multicast = 2 // PACKET_HOST 0, PACKET_BROADCAST 1, PACKET_MULTICAST 2, then others and outgoing
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: multicast, SkipFalse: 1},
		reject,
	}
}

// arpFilter lets through ARP requests for the addresses in s and ARP frames sent by one of them.
func arpFilter(s []span) []bpf.Instruction {
	targets := append([]bpf.Instruction{bpf.LoadAbsolute{Off: 38, Size: 4}}, match(s)...)
	return slices.Concat(here(),
		needAt(12, 2, etherARP),
		needAt(14, 4, 0x0001_0800), // Ethernet, IPv4
		needAt(18, 2, 0x0604),      // address lengths
		[]bpf.Instruction{
			bpf.LoadAbsolute{Off: 20, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 1, SkipFalse: 0, SkipTrue: 3}, // request
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 2, SkipTrue: 1},               // reply
			reject,
			bpf.Jump{Skip: uint32(len(targets))},
		},
		targets,
		[]bpf.Instruction{bpf.LoadAbsolute{Off: 28, Size: 4}}, match(s),
		[]bpf.Instruction{reject},
	)
}

// ndpFilter lets through neighbour solicitations and advertisements about the addresses in s or sent by one of them.
func ndpFilter(s []span) []bpf.Instruction {
	const icmp = etherLen + ipv6Len
	return slices.Concat(here(),
		needAt(12, 2, etherIPv6),
		needAt(20, 2, protoICMP<<8|hopLimit),
		[]bpf.Instruction{
			bpf.LoadAbsolute{Off: icmp, Size: 2},                        // type and code
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 135 << 8, SkipTrue: 2}, // solicitation
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 136 << 8, SkipTrue: 1}, // advertisement
			reject,
			bpf.LoadAbsolute{Off: icmp + 8 + 12, Size: 4}, // end of the target
		},
		match(s),
		[]bpf.Instruction{bpf.LoadAbsolute{Off: etherLen + 8 + 12, Size: 4}}, match(s), // end of the source
		[]bpf.Instruction{reject},
	)
}

// maxSpans keeps a filter below the kernel's 4096 instructions, with two tables of less than four per span.
const maxSpans = 400

// fit calls attach with ever coarser filters for addrs until one fits into the socket's option memory
// (net.core.optmem_max, 20 KiB on older kernels). tooLarge tells that kind of error from the others.
func fit(addrs []netip.Addr, filter func([]span) []bpf.Instruction, tooLarge func(error) bool, attach func([]bpf.RawInstruction) error) error {
	words := make([]uint32, len(addrs))
	for i, a := range addrs {
		words[i] = word(a)
	}
	for limit := maxSpans; ; limit /= 2 {
		prog, err := bpf.Assemble(filter(spans(words, limit)))
		if err != nil {
			return err
		}
		if err := attach(prog); err == nil || limit == 1 || !tooLarge(err) {
			return err
		}
	}
}
