package probe

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// destination is where the kernel's connection tracking sends a connection of this node's. tracked is false when it does
// not know the connection, or may not be asked.
func destination(network string, from, to netip.AddrPort) (now netip.AddrPort, tracked bool) {
	proto, family := uint8(unix.IPPROTO_TCP), uint8(unix.AF_INET)
	if network == "udp" {
		proto = unix.IPPROTO_UDP
	}
	src, dst := nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
	if to.Addr().Is6() {
		family, src, dst = unix.AF_INET6, nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	tuple := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	ip := tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil)
	ip.AddRtAttr(src, from.Addr().AsSlice())
	ip.AddRtAttr(dst, to.Addr().AsSlice())
	ports := tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
	ports.AddRtAttr(nl.CTA_PROTO_NUM, []byte{proto})
	ports.AddRtAttr(nl.CTA_PROTO_SRC_PORT, binary.BigEndian.AppendUint16(nil, from.Port()))
	ports.AddRtAttr(nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, to.Port()))

	const table = 1 // NFNL_SUBSYS_CTNETLINK
	req := nl.NewNetlinkRequest(table<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_ACK)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	req.AddData(tuple)
	answer, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil || len(answer) == 0 || len(answer[0]) < nl.SizeofNfgenmsg {
		return netip.AddrPort{}, false
	}
	// What answers comes from where the connection went.
	reply := nested(answer[0][nl.SizeofNfgenmsg:], nl.CTA_TUPLE_REPLY)
	addr, ok := netip.AddrFromSlice(nested(nested(reply, nl.CTA_TUPLE_IP), src))
	port := nested(nested(reply, nl.CTA_TUPLE_PROTO), nl.CTA_PROTO_SRC_PORT)
	if !ok || len(port) < 2 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(port)), true
}

// nested is the value of an attribute among others, nil when it is not there.
func nested(b []byte, kind int) []byte {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil
	}
	for _, a := range attrs {
		if int(a.Attr.Type&^unix.NLA_F_NESTED) == kind {
			return a.Value
		}
	}
	return nil
}
