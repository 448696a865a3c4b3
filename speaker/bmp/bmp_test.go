package bmp

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/clarionlb/clarion/speaker/bgp"
)

// sessions are the sessions of a speaker in a test.
type sessions struct {
	mu     sync.Mutex
	up     []netip.AddrPort // established sessions of the BGPPeer "tor", each with one UPDATE sent
	seen   []bgp.Observer
	status []bgp.SessionStatus
}

func (s *sessions) Observe(o bgp.Observer) func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, remote := range s.up {
		o.Up("tor", local, remote, openMessage(64500), openMessage(64501))
		o.Sent("tor", remote, update)
	}
	s.seen = append(s.seen, o)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seen = nil
	}
}

func (s *sessions) Status() []bgp.SessionStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *sessions) observed() bgp.Observer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) == 0 {
		return nil
	}
	return s.seen[0]
}

var (
	local  = netip.MustParseAddrPort("192.0.2.10:40000")
	remote = netip.MustParseAddrPort("192.0.2.1:179")
	// update announces 203.0.113.1/32 (RFC 4271 section 4.3).
	update = mustHex("ffffffffffffffffffffffffffffffff" + "0030" + "02" + "0000" + "0014" + "40010100" + "40020602010000fbf4" + "400304c000020a" + "20cb007101")
)

func mustHex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// openMessage is an OPEN with AS_TRANS and the AS number as a capability (RFC 6793).
func openMessage(asn uint32) []byte {
	b := mustHex("ffffffffffffffffffffffffffffffff" + "0025" + "01" + "04" + "5ba0" + "005a" + "c6120001" + "08" + "0206" + "4104")
	return binary.BigEndian.AppendUint32(b, asn)
}

// wideOpenMessage is the same with optional parameters in the form of RFC 9072.
func wideOpenMessage(asn uint32) []byte {
	b := mustHex("ffffffffffffffffffffffffffffffff" + "0029" + "01" + "04" + "5ba0" + "005a" + "c6120001" + "ff" + "ff0009" + "020006" + "4104")
	return binary.BigEndian.AppendUint32(b, asn)
}

// read is one message from a connection, as its type and what follows the common header.
func read(t *testing.T, c net.Conn) (typ byte, body []byte) {
	t.Helper()
	var head [6]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		t.Fatalf("no message: %v", err)
	}
	if head[0] != 3 {
		t.Fatalf("version %d", head[0])
	}
	body = make([]byte, binary.BigEndian.Uint32(head[1:])-6)
	if _, err := io.ReadFull(c, body); err != nil {
		t.Fatal(err)
	}
	return head[5], body
}

// station starts an Exporter whose station is the test, and gives the connections that it opens.
func station(t *testing.T, s Sessions) (conns chan net.Conn, cancel func()) {
	conns = make(chan net.Conn, 8)
	e := New(Config{
		Log: slog.New(slog.DiscardHandler), Stations: []string{"station:11019"}, Name: "node1", Description: "Clarion", Sessions: s,
		dial: func(context.Context, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			conns <- theirs
			return ours, nil
		},
	})
	ctx, stop := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { _ = e.Run(ctx) })
	t.Cleanup(func() { stop(); done.Wait() })
	return conns, stop
}

// A station hears who speaks, of the sessions that there are with their routes, and then of what happens.
func TestStation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sessions{up: []netip.AddrPort{remote}, status: []bgp.SessionStatus{{Peer: "tor", Address: remote.Addr(), State: bgp.Established, Sent4: 3}}}
		conns, cancel := station(t, s)
		c := <-conns
		if typ, body := read(t, c); typ != initiation || !bytes.Contains(body, []byte("node1")) || !bytes.Contains(body, []byte("Clarion")) {
			t.Fatalf("type %d: %q", typ, body)
		}
		header := func(what string, wantType, wantFlags byte) []byte {
			t.Helper()
			typ, body := read(t, c)
			if typ != wantType || len(body) < 42 {
				t.Fatalf("%s: type %d, %d bytes", what, typ, len(body))
			}
			if body[0] != 0 || body[1] != wantFlags || netip.AddrFrom4([4]byte(body[22:26])) != remote.Addr() ||
				binary.BigEndian.Uint32(body[26:]) != 64501 || [4]byte(body[30:34]) != [4]byte{198, 18, 0, 1} {
				t.Errorf("%s: header %x", what, body[:42])
			}
			return body[42:]
		}
		if got := header("up", peerUp, 0); !bytes.HasSuffix(got, append(openMessage(64500), openMessage(64501)...)) || binary.BigEndian.Uint16(got[16:]) != 40000 {
			t.Errorf("up: %x", got)
		}
		if got := header("route", routeMonitoring, flagPostPolicy|flagAdjRIBOut); !bytes.Equal(got, update) {
			t.Errorf("route: %x", got)
		}
		synctest.Wait()
		o := s.observed()
		o.Sent("tor", remote, update)
		o.Sent("unknown", remote, update) // never came up: not told of
		if got := header("another route", routeMonitoring, flagPostPolicy|flagAdjRIBOut); !bytes.Equal(got, update) {
			t.Errorf("route: %x", got)
		}
		if got := header("statistics", statisticsReport, flagPostPolicy|flagAdjRIBOut); hex.EncodeToString(got) != "00000001"+"000f0008"+"0000000000000003" {
			t.Errorf("statistics: %x", got)
		}
		sent := &bgp.Notification{Sent: true, Code: 6, Subcode: 2}
		for _, tt := range []struct {
			reason error
			code   byte
			data   []byte
		}{
			{sent, downLocalNotification, sent.Bytes()},
			{errors.Join(errors.New("told"), &bgp.Notification{Code: 6, Subcode: 4}), downRemoteNotification, (&bgp.Notification{Code: 6, Subcode: 4}).Bytes()},
			{bgp.ErrClosedByPeer, downRemote, nil},
			{errors.New("hold timer"), downLocal, []byte{0, 0}},
		} {
			o.Down("tor", remote, tt.reason)
			if got := header("down", peerDown, 0); got[0] != tt.code || !bytes.Equal(got[1:], tt.data) {
				t.Errorf("%v: %x", tt.reason, got)
			}
			o.Up("tor", local, remote, openMessage(64500), wideOpenMessage(64501))
			header("up again", peerUp, 0)
		}
		cancel()
		if typ, body := read(t, c); typ != termination || hex.EncodeToString(body) != "00010002"+"0000" {
			t.Errorf("at the end: type %d, %x", typ, body)
		}
	})
}

// A station that does not read costs nobody anything: it is given up, tried again, and told everything then.
func TestStationThatIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sessions{up: []netip.AddrPort{remote}}
		conns, _ := station(t, s)
		c := <-conns
		read(t, c) // Initiation
		read(t, c) // Peer Up
		synctest.Wait()
		o := s.observed()
		for range 2 * queueLen {
			o.Sent("tor", remote, update) // never waits
		}
		again := <-conns
		var got []byte
		for range 3 {
			typ, _ := read(t, again)
			got = append(got, typ)
		}
		if !bytes.Equal(got, []byte{initiation, peerUp, routeMonitoring}) {
			t.Errorf("the next connection begins with %v", got)
		}
		if _, err := again.Write([]byte(strings.Repeat("x", 600))); err != nil { // what a station says is not read
			t.Error(err)
		}
		again.Close()
		if typ, _ := read(t, <-conns); typ != initiation {
			t.Errorf("after the station closed: type %d", typ)
		}
	})
}
