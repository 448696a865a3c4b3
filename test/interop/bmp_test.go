package interop

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clarionlb/clarion/speaker/bgp"
	"github.com/clarionlb/clarion/speaker/bmp"
)

// What a monitoring station is told of a session with a router, as tshark reads it.
func TestMonitoringStation(t *testing.T) {
	r := newRouter(t)
	r.frr(external4)
	n := newNode(t, bgp.Config{})
	station, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer station.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	exporter := bmp.New(bmp.Config{
		Log: slog.New(slog.DiscardHandler), Stations: []string{station.Addr().String()}, Name: "node1", Description: "Clarion", Sessions: n.speaker,
	})
	go exporter.Run(ctx)
	n.speaker.Set([]bgp.Session{r.session(nil, routes("203.0.113.1/32", "203.0.113.2/32")...)})
	n.established(r.ns, 5*time.Second)

	conn, err := station.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var told [][]byte
	next := func() (typ byte) {
		t.Helper()
		b := make([]byte, 6)
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Fatalf("after %d messages: %v", len(told), err)
		}
		b = append(b, make([]byte, binary.BigEndian.Uint32(b[1:])-6)...)
		if _, err := io.ReadFull(conn, b[6:]); err != nil {
			t.Fatal(err)
		}
		told = append(told, b)
		return b[5]
	}
	for range 4 { // Initiation, Peer Up, the routes, End-of-RIB
		next()
	}
	n.speaker.Set([]bgp.Session{r.session(nil, routes("203.0.113.2/32")...)})
	next()
	n.speaker.Set(nil)
	next()

	var dump strings.Builder
	for _, b := range told {
		for i := 0; i < len(b); i += 16 {
			fmt.Fprintf(&dump, "%06x % x\n", i, b[i:min(i+16, len(b))])
		}
	}
	hex, pcap := filepath.Join(t.TempDir(), "bmp.txt"), filepath.Join(t.TempDir(), "bmp.pcap")
	if err := os.WriteFile(hex, []byte(dump.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "text2pcap -q -T 40000,11019 %s %s", hex, pcap)
	got := sh(t, "tshark -r %s -d tcp.port==11019,bmp -T fields -E separator=/s -E aggregator=, -e bmp.type -e bmp.peer.ip.addr -e bmp.peer.asn -e bmp.peer.flags -e bgp.type -e bgp.nlri_prefix -e bgp.withdrawn_prefix 2>/dev/null", pcap)
	got = strings.ReplaceAll(got, "203.0.113.2,203.0.113.1", "203.0.113.1,203.0.113.2") // in no order
	var lines []string
	for _, line := range strings.Split(strings.TrimSpace(got), "\n") {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	// Initiation; Peer Up with two OPENs; UPDATEs of the Adj-RIB-Out after policy; Peer Down with the NOTIFICATION.
	want := []string{
		"4", "3 PEER 64512 0x00 1,1", "0 PEER 64512 0x50 2 203.0.113.1,203.0.113.2", "0 PEER 64512 0x50 2", "0 PEER 64512 0x50 2 203.0.113.1", "2 PEER 64512 0x00 3",
	}
	if got, want := strings.Join(lines, "\n"), strings.ReplaceAll(strings.Join(want, "\n"), "PEER", r.peer.v4.String()); got != want {
		t.Errorf("the station was told:\n%s\nwant:\n%s", got, want)
	}
}
