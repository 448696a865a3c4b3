package members

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// counter counts the connections that a speaker opens.
type counter struct {
	*transport
	dials *atomic.Int64
}

func (c counter) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	conn, err := c.transport.DialAddressTimeout(to, timeout)
	if err == nil {
		c.dials.Add(1)
	}
	return conn, err
}

// startTogether starts speakers at the same time, and returns how many connections they opened until all know all: those
// of complete exchanges, nearly all.
func startTogether(t testing.TB, size int) int64 {
	f := newFleet(t, size)
	var dials atomic.Int64
	var all []speaker
	for i := range size {
		c := New(f.config(i))
		c.create = func(config *memberlist.Config) (*memberlist.Memberlist, error) {
			config.Transport = counter{config.Transport.(*transport), &dials}
			return memberlist.Create(config)
		}
		c.SetPeers(f.peers)
		all = append(all, f.run(c))
	}
	for _, s := range all {
		eventually(t, s.config.Name+" sees all", func() bool { return len(s.View().Members) == size })
	}
	n := dials.Load()
	for _, s := range all {
		s.stop()
	}
	return n
}

// Speakers that start together, as after a power cut, do not each ask all others for all that they know.
func TestStartTogether(t *testing.T) {
	const size = 12
	if n := startTogether(t, size); n > 3*size {
		t.Errorf("%d speakers made %d exchanges to know each other", size, n)
	}
}

func BenchmarkStartTogether(b *testing.B) {
	const size = 40
	var sum int64
	for b.Loop() { // the time is that of their end, mostly
		sum += startTogether(b, size)
	}
	b.ReportMetric(float64(sum)/float64(b.N), "exchanges")
}
