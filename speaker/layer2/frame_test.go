package layer2

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

var (
	ours   = MAC{0x02, 0, 0, 0, 0, 0x01}
	theirs = MAC{0x02, 0, 0, 0, 0, 0x02}
	third  = MAC{0x02, 0, 0, 0, 0, 0x03}
	vip4   = netip.MustParseAddr("203.0.113.10")
	vip6   = netip.MustParseAddr("2001:db8:1::10")
	host4  = netip.MustParseAddr("192.0.2.1")
	host6  = netip.MustParseAddr("fe80::1")
)

// unhex reads hex digits with white space between them.
func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The frames as they go out, field by field. The checksums were computed by another program.
func TestFrames(t *testing.T) {
	one := func(f []byte, err error) [][]byte {
		if err != nil {
			t.Fatal(err)
		}
		return [][]byte{f}
	}
	many := func(f [][]byte, err error) [][]byte {
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	const (
		arp4 = " 0001 0800 06 04 "
		v6   = " 86dd 6000 0000 0020 3a ff "
		v6s  = " 86dd 6000 0000 0018 3a ff "
	)
	for _, test := range []struct {
		name string
		got  [][]byte
		want []string
	}{
		{"ARP reply", one(answer(message{ask: true, target: vip4, asker: host4, askerMAC: theirs}, ours, ours)), []string{
			"020000000002 020000000001 0806" + arp4 + "0002  020000000001 cb00710a  020000000002 c0000201"}},
		{"ARP reply to a probe", one(answer(message{ask: true, target: vip4, asker: any4, askerMAC: theirs}, ours, ours)), []string{
			"020000000002 020000000001 0806" + arp4 + "0002  020000000001 cb00710a  020000000002 00000000"}},
		{"ARP reply for another station", one(answer(message{ask: true, target: vip4, asker: host4, askerMAC: theirs}, ours, third)), []string{
			"020000000002 020000000001 0806" + arp4 + "0002  020000000003 cb00710a  020000000002 c0000201"}},
		{"gratuitous ARP", many(announcement(vip4, ours)), []string{
			"ffffffffffff 020000000001 0806" + arp4 + "0001  020000000001 cb00710a  000000000000 cb00710a",
			"ffffffffffff 020000000001 0806" + arp4 + "0002  020000000001 cb00710a  020000000001 cb00710a"}},
		{"ARP probe", one(probe(vip4, ours)), []string{
			"ffffffffffff 020000000001 0806" + arp4 + "0001  020000000001 00000000  000000000000 cb00710a"}},
		{"ARP poll", one(poll(vip4, ours, theirs, netip.Addr{})), []string{
			"020000000002 020000000001 0806" + arp4 + "0001  020000000001 00000000  000000000000 cb00710a"}},
		{"solicited advertisement", one(answer(message{ask: true, target: vip6, asker: host6, askerMAC: theirs}, ours, ours)), []string{
			"020000000002 020000000001" + v6 + "20010db8000100000000000000000010 fe800000000000000000000000000001" +
				"88 00 b98c 60000000 20010db8000100000000000000000010 02 01 020000000001"}},
		{"advertisement for a duplicate address probe", one(answer(message{ask: true, target: vip6, asker: any6, askerMAC: theirs}, ours, ours)), []string{
			"333300000001 020000000001" + v6 + "20010db8000100000000000000000010 ff020000000000000000000000000001" +
				"88 00 f90a 20000000 20010db8000100000000000000000010 02 01 020000000001"}},
		{"unsolicited advertisement", many(announcement(vip6, ours)), []string{
			"333300000001 020000000001" + v6 + "20010db8000100000000000000000010 ff020000000000000000000000000001" +
				"88 00 f90a 20000000 20010db8000100000000000000000010 02 01 020000000001"}},
		{"duplicate address probe", one(probe(vip6, ours)), []string{
			"3333ff000010 020000000001" + v6s + "00000000000000000000000000000000 ff0200000000000000000001ff000010" +
				"87 00 4cce 00000000 20010db8000100000000000000000010"}},
		{"solicitation poll", one(poll(vip6, ours, theirs, host6)), []string{
			"020000000002 020000000001" + v6 + "fe800000000000000000000000000001 ff0200000000000000000001ff000010" +
				"87 00 4b42 00000000 20010db8000100000000000000000010 01 01 020000000001"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if len(test.got) != len(test.want) {
				t.Fatalf("%d frames, want %d", len(test.got), len(test.want))
			}
			for i, want := range test.want {
				if !bytes.Equal(test.got[i], unhex(t, want)) {
					t.Errorf("frame %d\n got %x\nwant %x", i, test.got[i], unhex(t, want))
				}
			}
		})
	}
}

func TestParse(t *testing.T) {
	const arp4 = "ffffffffffff 020000000002 0806 0001 0800 06 04 "
	must := func(f []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	first := func(f [][]byte, err error) []byte { return must(f[0], err) }
	for _, test := range []struct {
		name  string
		frame []byte
		want  message // the zero message: malformed
	}{
		{"ARP request", unhex(t, arp4+"0001 020000000002 c0000201 000000000000 cb00710a"),
			message{ask: true, target: vip4, asker: host4, askerMAC: theirs, claim: host4, claimMAC: theirs}},
		{"ARP request, padded", unhex(t, arp4+"0001 020000000002 c0000201 000000000000 cb00710a 000000000000000000000000000000000000"),
			message{ask: true, target: vip4, asker: host4, askerMAC: theirs, claim: host4, claimMAC: theirs}},
		{"ARP probe", must(probe(vip4, theirs)), message{ask: true, target: vip4, asker: any4, askerMAC: theirs}},
		{"gratuitous ARP request", first(announcement(vip4, theirs)), message{claim: vip4, claimMAC: theirs}},
		{"ARP reply", unhex(t, arp4+"0002 020000000002 cb00710a 020000000001 c0000201"), message{claim: vip4, claimMAC: theirs}},
		{"ARP reply for another station", must(answer(message{ask: true, target: vip4, asker: host4, askerMAC: ours}, third, theirs)), message{claim: vip4, claimMAC: theirs, by: third}},
		{"ARP for another kind of hardware", unhex(t, "ffffffffffff 020000000002 0806 0006 0800 06 04 0001 020000000002 c0000201 000000000000 cb00710a"), message{}},
		{"ARP with a protocol address of 5 bytes", unhex(t, "ffffffffffff 020000000002 0806 0001 0800 06 05 0001 020000000002 c000020100 000000000000 cb00710a00"), message{}},
		{"ARP with a hardware address of 255 bytes", unhex(t, "ffffffffffff 020000000002 0806 0001 0800 ff 04 0001 020000000002 c0000201 000000000000 cb00710a"), message{}},
		{"ARP cut off", unhex(t, arp4+"0001 020000000002 c0000201 000000000000 cb0071"), message{}},
		{"ARP request for no address", unhex(t, arp4+"0001 020000000002 c0000201 000000000000 00000000"), message{}},
		{"ARP operation 3", unhex(t, arp4+"0003 020000000002 c0000201 000000000000 cb00710a"), message{}},
		{"ARP from a group address", unhex(t, arp4+"0001 ffffffffffff c0000201 000000000000 cb00710a"), message{}},
		{"ARP from nobody", unhex(t, arp4+"0001 000000000000 c0000201 000000000000 cb00710a"), message{}},

		{"solicitation", must(poll(vip6, theirs, ours, host6)), message{ask: true, target: vip6, asker: host6, askerMAC: theirs, poll: true, claim: host6, claimMAC: theirs}},
		{"duplicate address probe", must(probe(vip6, theirs)), message{ask: true, target: vip6, asker: any6, askerMAC: theirs}},
		{"advertisement", first(announcement(vip6, theirs)), message{claim: vip6, claimMAC: theirs}},
		{"advertisement for another station", must(answer(message{ask: true, target: vip6, asker: host6, askerMAC: ours}, third, theirs)), message{claim: vip6, claimMAC: theirs, by: third}},
		{"solicitation without an option", resum(must(poll(vip6, theirs, ours, host6)), func(b []byte) []byte { return b[:78] }),
			message{ask: true, target: vip6, asker: host6, askerMAC: theirs, poll: true, claim: host6, claimMAC: theirs}},
		{"solicitation with an unknown option", resum(must(poll(vip6, theirs, ours, host6)), func(b []byte) []byte { b[78] = 200; return b }),
			message{ask: true, target: vip6, asker: host6, askerMAC: theirs, poll: true, claim: host6, claimMAC: theirs}},
		{"solicitation, checksum left to the hardware", partial(must(poll(vip6, theirs, ours, host6))),
			message{ask: true, target: vip6, asker: host6, askerMAC: theirs, poll: true, claim: host6, claimMAC: theirs}},
		{"routed: hop limit 254", resum(must(poll(vip6, theirs, ours, host6)), func(b []byte) []byte { b[21] = 254; return b }), message{}},
		{"code 1", resum(must(poll(vip6, theirs, ours, host6)), func(b []byte) []byte { b[55] = 1; return b }), message{}},
		{"wrong checksum", flip(must(poll(vip6, theirs, ours, host6)), 57), message{}},
		{"wrong target", flip(must(poll(vip6, theirs, ours, host6)), 77), message{}},
		{"option of length 0", resum(must(poll(vip6, theirs, ours, host6)), func(b []byte) []byte { b[79] = 0; return b }), message{}},
		{"option longer than the packet", resum(must(poll(vip6, theirs, ours, host6)), func(b []byte) []byte { b[79] = 9; return b }), message{}},
		{"target is a group", resum(must(poll(vip6, theirs, ours, host6)), func(b []byte) []byte { b[62] = 0xff; return b }), message{}},
		{"cut off", must(poll(vip6, theirs, ours, host6))[:70], message{}},
		{"duplicate address probe with an option", resum(must(poll(vip6, theirs, ours, any6)), func(b []byte) []byte { return b }), message{}},
		{"duplicate address probe to one station", resum(must(probe(vip6, theirs)), func(b []byte) []byte { copy(b[38:], b[62:78]); return b }), message{}},
		{"solicited advertisement to a group", resum(first(announcement(vip6, theirs)), func(b []byte) []byte { b[58] |= 0x40; return b }), message{}},
		{"router advertisement", resum(must(probe(vip6, theirs)), func(b []byte) []byte { b[54] = 134; return b }), message{}},

		{"IPv4", unhex(t, "ffffffffffff 020000000002 0800 4500"), message{}},
		{"nothing", nil, message{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := parse(test.frame)
			if got != test.want || (err == nil) == (test.want == message{}) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, test.want)
			}
		})
	}
}

// resum changes an NDP frame and makes its length and checksum right again.
func resum(b []byte, change func([]byte) []byte) []byte {
	b = change(b)
	icmp := b[54:]
	b[18], b[19] = byte(len(icmp)>>8), byte(len(icmp))
	icmp[2], icmp[3] = 0, 0
	c := ^fold(sum(sum(0, b[22:54])+uint32(len(icmp))+protoICMP, icmp))
	icmp[2], icmp[3] = byte(c>>8), byte(c)
	return b
}

func flip(b []byte, i int) []byte {
	b[i] ^= 1
	return b
}

// partial leaves the checksum as a sender with hardware support hands it to the driver.
func partial(b []byte) []byte {
	c := fold(sum(0, b[22:54]) + uint32(len(b)-54) + protoICMP)
	b[56], b[57] = byte(c>>8), byte(c)
	return b
}

// What is parsed is either refused or makes sense, and its answer is a frame that says what was meant.
func FuzzParse(f *testing.F) {
	for _, addr := range []netip.Addr{vip4, vip6} {
		a, _ := announcement(addr, theirs)
		p, _ := probe(addr, theirs)
		q, _ := poll(addr, theirs, ours, host6)
		for _, frame := range append(a, p, q) {
			f.Add(frame)
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		m, err := parse(frame)
		if err != nil {
			if m != (message{}) {
				t.Errorf("%x: refused, and yet %+v", frame, m)
			}
			return
		}
		if m.claim.IsValid() && !m.claimMAC.station() || m.ask && (!unicast(m.target) || !m.askerMAC.station()) {
			t.Errorf("%x: %+v", frame, m)
		}
		if !m.ask {
			return
		}
		reply, err := answer(m, ours, ours)
		if err != nil {
			t.Fatalf("%x: %v", frame, err)
		}
		said, err := parse(reply)
		if err != nil || said.claim != m.target || said.claimMAC != ours || said.ask {
			t.Errorf("%x: the answer %x says %+v, %v", frame, reply, said, err)
		}
	})
}
