// Command metallb stands for a speaker of MetalLB's in a lab: it answers ARP for some addresses, and keeps plain BGP
// sessions, without capabilities, in which it announces some routes. It ends without a word to anybody, so that a
// router sees the connection close.
package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
)

func main() {
	name := flag.String("interface", "eth0", "the `interface` to answer on")
	answers := flag.String("answers", "", "`addresses` to answer ARP for, separated by commas")
	self := flag.String("self", "", "this node's `address`, the BGP identifier and the next hop")
	asn := flag.Uint("asn", 64500, "its AS `number`")
	peers := flag.String("peers", "", "the routers' `addresses`")
	routes := flag.String("routes", "", "`addresses` to announce")
	flag.Parse()
	errs := make(chan error)
	if *answers != "" {
		go func() { errs <- answer(*name, addresses(*answers)) }()
	}
	if *peers != "" {
		for _, p := range addresses(*peers) {
			go func() {
				for {
					err := speak(p, netip.MustParseAddr(*self), uint16(*asn), addresses(*routes))
					fmt.Fprintf(os.Stderr, "%s: %v\n", p, err)
					time.Sleep(time.Second) // before the next attempt
				}
			}()
		}
	}
	fmt.Fprintln(os.Stderr, <-errs)
	os.Exit(1)
}

func addresses(list string) (out []netip.Addr) {
	for s := range strings.SplitSeq(list, ",") {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// answer says once that this host has addresses, and then answers whoever asks for them.
func answer(name string, addrs []netip.Addr) error {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	c, err := arp.Dial(ifi)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		p, err := arp.NewPacket(arp.OperationReply, ifi.HardwareAddr, a, ethernet.Broadcast, a)
		if err != nil {
			return err
		}
		if err := c.WriteTo(p, ethernet.Broadcast); err != nil {
			return err
		}
	}
	for {
		p, _, err := c.Read()
		if err != nil {
			return err
		}
		if p.Operation == arp.OperationRequest && slices.Contains(addrs, p.TargetIP) {
			if err := c.Reply(p, ifi.HardwareAddr, p.TargetIP); err != nil {
				return err
			}
		}
	}
}

// speak keeps a session with a router until it ends (RFC 4271).
func speak(router, self netip.Addr, asn uint16, routes []netip.Addr) error {
	c, err := net.DialTimeout("tcp", netip.AddrPortFrom(router, 179).String(), 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	const hold = 90
	open := binary.BigEndian.AppendUint16([]byte{4}, asn)
	open = append(binary.BigEndian.AppendUint16(open, hold), self.AsSlice()...)
	if err := send(c, 1, append(open, 0)); err != nil {
		return err
	}
	up := false
	last := time.Now()
	for {
		if err := c.SetReadDeadline(time.Now().Add(hold / 3 * time.Second)); err != nil {
			return err
		}
		kind, err := receive(c)
		var late net.Error
		switch {
		case errors.As(err, &late) && late.Timeout() && time.Since(last) < hold*time.Second:
		case err != nil:
			return err
		case kind == 3:
			return errors.New("a NOTIFICATION")
		}
		last = time.Now()
		if err := send(c, 4, nil); err != nil { // a KEEPALIVE for whatever comes, and when nothing does
			return err
		}
		if kind != 4 || up {
			continue
		}
		up = true
		// ORIGIN IGP, AS_PATH with the own AS, NEXT_HOP.
		attributes := []byte{0x40, 1, 1, 0, 0x40, 2, 4, 2, 1, byte(asn >> 8), byte(asn), 0x40, 3, 4}
		attributes = append(attributes, self.AsSlice()...)
		update := append(binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(attributes))), attributes...)
		for _, r := range routes {
			update = append(append(update, 32), r.AsSlice()...)
		}
		if err := send(c, 2, update); err != nil {
			return err
		}
	}
}

func send(c net.Conn, kind byte, body []byte) error {
	b := slices.Repeat([]byte{0xff}, 16)
	b = append(binary.BigEndian.AppendUint16(b, uint16(19+len(body))), kind)
	_, err := c.Write(append(b, body...))
	return err
}

func receive(c net.Conn) (kind byte, err error) {
	var h [19]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return 0, err
	}
	_, err = io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(h[16:]))-19)
	return h[18], err
}
