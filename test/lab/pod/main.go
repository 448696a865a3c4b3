// Command pod is the server in the lab's pods: HTTP over TCP, echo over UDP and SCTP's INIT, all on one port, each
// answering with its name and the client address it saw.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/clarionlb/clarion/test/lab/internal/wire"
)

func main() {
	name := flag.String("name", "", "name in the answers")
	node := flag.String("node", "", "node in the answers")
	port := flag.Int("port", 8080, "port for TCP, UDP and SCTP")
	drain := flag.Duration("drain", 0, "how long to go on taking connections after SIGTERM")
	flag.Parse()
	s := server{name: *name, node: *node, port: uint16(*port)}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	if err := s.run(ctx, *drain); err != nil {
		log.Fatal(err)
	}
}

type server struct {
	name, node string
	port       uint16
}

func (s server) run(ctx context.Context, drain time.Duration) error {
	address := net.JoinHostPort("", strconv.Itoa(int(s.port)))
	udp, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	for _, network := range []string{"ip4:132", "ip6:132"} {
		c, err := net.ListenPacket(network, "")
		if err != nil {
			return err
		}
		go s.serveSCTP(c)
	}
	go s.serveUDP(udp.(*net.UDPConn))
	tcp, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	h := &http.Server{Handler: s}
	failed := make(chan error, 1)
	go func() { failed <- h.Serve(tcp) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-failed:
		return err
	case <-time.After(drain):
	}
	if err := h.Shutdown(context.Background()); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ServeHTTP answers any path. The query delay=DURATION makes the answer take that long.
func (s server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if d, err := time.ParseDuration(r.URL.Query().Get("delay")); err == nil {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
			return
		}
	}
	local := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	w.Header().Set("Content-Type", "application/json")
	w.Write(s.answer(r.RemoteAddr, local.String(), r.Header.Get("X-Forwarded-For")))
}

func (s server) answer(client, local, forwarded string) []byte {
	b, err := json.Marshal(wire.Answer{Server: s.name, Node: s.node, Client: client, Local: local, Forwarded: forwarded})
	if err != nil {
		panic(err) // strings only
	}
	return append(b, '\n')
}

func (s server) serveUDP(c *net.UDPConn) {
	b := make([]byte, 2048)
	for {
		_, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			log.Fatal(err)
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if _, err := c.WriteToUDPAddrPort(s.answer(from.String(), "", ""), from); err != nil {
			log.Print(err)
		}
	}
}

// serveSCTP answers INIT with INIT ACK. Both IP versions' raw sockets hand over the packet without the IP header.
func (s server) serveSCTP(c net.PacketConn) {
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			log.Fatal(err)
		}
		in, err := wire.ParseInit(b[:n])
		if err != nil || in.Ack || in.DstPort != s.port {
			continue
		}
		ack := wire.Init{Ack: true, SrcPort: in.DstPort, DstPort: in.SrcPort, VerificationTag: in.InitiateTag,
			InitiateTag: rand.Uint32() | 1}
		if _, err := c.WriteTo(ack.Marshal(), from); err != nil {
			log.Print(err)
		}
	}
}
