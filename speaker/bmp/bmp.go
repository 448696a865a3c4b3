// Package bmp tells monitoring stations what BGP sessions do: when they come up and go down, and every route that is
// announced in them, by the BGP Monitoring Protocol (RFC 7854) for the Adj-RIB-Out (RFC 8671). A station that connects
// hears of everything there is, and then of what changes. A station that is slow or away costs a session nothing.
//
// It knows neither Kubernetes nor how sessions are held. message.go is the encoding.
package bmp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/clarionlb/clarion/speaker/bgp"
)

const (
	// queueLen is how many messages may wait for a station before it is taken for stuck.
	queueLen = 8192
	// dialTimeout is for one attempt to connect, sendTimeout for one message. RFC 7854 section 3.2 wants attempts to be
	// spaced out, 30 s at first and up to 720 s; a station that restarts is wanted back sooner here.
	dialTimeout = 10 * time.Second
	sendTimeout = 30 * time.Second
	retryFirst  = time.Second
	retryMost   = 2 * time.Minute
	// statsEvery is the time between statistics.
	statsEvery = time.Minute
)

// Sessions are what is told of; *bgp.Speaker has these methods.
type Sessions interface {
	// Observe shows to o every session that is established with what it has announced, and then what happens in all
	// sessions, until stop is called.
	Observe(o bgp.Observer) (stop func())
	// Status is the status of every session.
	Status() []bgp.SessionStatus
}

// Config are the settings of an Exporter.
type Config struct {
	// Log receives one line when a station can be told, or cannot any more, with the reason.
	Log *slog.Logger
	// Stations are TCP addresses, as host:port; the port usually is 11019 (IANA).
	Stations []string
	// Name and Description are said of this side: its host name, and what it is (RFC 7854 section 4.4).
	Name, Description string
	// Sessions are what is told of.
	Sessions Sessions

	// dial connects; nil for the network. Tests replace it.
	dial func(ctx context.Context, address string) (net.Conn, error)
}

// Exporter tells stations.
type Exporter struct{ config Config }

// New is an Exporter that does nothing before Run.
func New(c Config) *Exporter {
	if c.dial == nil {
		c.dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", address)
		}
	}
	return &Exporter{c}
}

// Run tells every station until ctx ends.
func (e *Exporter) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, address := range e.config.Stations {
		all.Go(func() { e.station(ctx, address) })
	}
	all.Wait()
	return nil
}

// station tells one station, as often as it can be reached.
func (e *Exporter) station(ctx context.Context, address string) {
	log := e.config.Log.With("station", address)
	wait, said := retryFirst, ""
	for ctx.Err() == nil {
		conn, err := e.config.dial(ctx, address)
		if err == nil {
			log.Info("BMP station is told")
			since := time.Now()
			err = e.tell(ctx, conn)
			said = ""
			if time.Since(since) > retryMost {
				wait = retryFirst
			}
		}
		if ctx.Err() != nil {
			return
		}
		if said != err.Error() {
			said = err.Error()
			log.Warn("BMP station is not told", "reason", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, retryMost)
	}
}

// tell tells a station over a connection until that fails, or ctx ends, which is a nil error.
func (e *Exporter) tell(ctx context.Context, conn net.Conn) error {
	q := &queue{messages: make(chan []byte, queueLen), full: make(chan struct{}), peers: map[key]peer{}}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer conn.Close()
	wg.Go(func() { // a station says nothing (RFC 7854 section 3.2), but for the end of the connection
		var b [512]byte
		for {
			if _, err := conn.Read(b[:]); err != nil {
				cancel(fmt.Errorf("it has closed the connection: %w", err))
				return
			}
		}
	})
	send := func(b []byte) error {
		if err := conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
			return err
		}
		_, err := conn.Write(b)
		return err
	}
	if err := send(message(initiation, tlv(tlvSysDescr, []byte(e.config.Description)), tlv(tlvSysName, []byte(e.config.Name)))); err != nil {
		return err
	}
	defer e.config.Sessions.Observe(q)()
	stats := time.NewTicker(statsEvery)
	defer stats.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
				return cause
			}
			return send(message(termination, tlv(tlvReason, binary.BigEndian.AppendUint16(nil, reasonClosed))))
		case <-q.full:
			return fmt.Errorf("it does not keep up: %d messages wait for it", queueLen)
		case b := <-q.messages:
			err = send(b)
		case <-stats.C:
			for _, b := range q.stats(e.config.Sessions.Status(), time.Now()) {
				if err = send(b); err != nil {
					break
				}
			}
		}
		if err != nil {
			return err
		}
	}
}

// key identifies a session: a BGPPeer may have several.
type key struct {
	name   string
	remote netip.Addr
}

// queue holds the messages for one station. It is the bgp.Observer.
type queue struct {
	messages chan []byte
	full     chan struct{} // closed when a message found no room
	once     sync.Once

	mu    sync.Mutex
	peers map[key]peer
}

func (q *queue) put(b []byte) {
	select {
	case q.messages <- b:
	default:
		q.once.Do(func() { close(q.full) })
	}
}

// peer is the session, as of its Up.
func (q *queue) peer(name string, remote netip.AddrPort) (peer, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	p, ok := q.peers[key{name, remote.Addr()}]
	return p, ok
}

// Up implements bgp.Observer.
func (q *queue) Up(name string, local, remote netip.AddrPort, sent, received []byte) {
	p := peer{addr: remote.Addr().WithZone("")}
	p.asn, p.id = bgp.Opened(received)
	q.mu.Lock()
	q.peers[key{name, remote.Addr()}] = p
	q.mu.Unlock()
	q.put(p.up(local, remote, sent, received, time.Now()))
}

// Sent implements bgp.Observer.
func (q *queue) Sent(name string, remote netip.AddrPort, update []byte) {
	if p, ok := q.peer(name, remote); ok {
		q.put(p.route(update, time.Now()))
	}
}

// Down implements bgp.Observer.
func (q *queue) Down(name string, remote netip.AddrPort, reason error) {
	p, ok := q.peer(name, remote)
	if !ok {
		return
	}
	q.mu.Lock()
	delete(q.peers, key{name, remote.Addr()})
	q.mu.Unlock()
	code, data := why(reason)
	q.put(p.down(code, data, time.Now()))
}

// why is how a session ended, as RFC 7854 section 4.9 tells it.
func why(reason error) (code byte, data []byte) {
	var n *bgp.Notification
	switch {
	case errors.As(reason, &n) && n.Sent:
		return downLocalNotification, n.Bytes()
	case errors.As(reason, &n):
		return downRemoteNotification, n.Bytes()
	case errors.Is(reason, bgp.ErrClosedByPeer):
		return downRemote, nil
	}
	return downLocal, []byte{0, 0}
}

// stats are the statistics of the sessions that the station knows.
func (q *queue) stats(all []bgp.SessionStatus, at time.Time) (out [][]byte) {
	for _, s := range all {
		if p, ok := q.peer(s.Peer, netip.AddrPortFrom(s.Address, 0)); ok && s.State == bgp.Established {
			out = append(out, p.stats(s.Sent4+s.Sent6, at))
		}
	}
	return out
}
