package bfd

import (
	"testing"
	"time"
)

// The diagram in RFC 5880 section 6.2, with what section 6.8.6 says about AdminDown.
func TestStates(t *testing.T) {
	for _, tt := range []struct {
		state  State
		remote State
		want   State
		diag   Diag
	}{
		{Down, Down, Init, DiagNone},
		{Down, Init, Up, DiagNone},
		{Down, Up, Down, DiagNone},
		{Down, AdminDown, Down, DiagNone},
		{Init, Down, Init, DiagNone},
		{Init, Init, Up, DiagNone},
		{Init, Up, Up, DiagNone},
		{Init, AdminDown, Down, DiagNeighborDown},
		{Up, Down, Down, DiagNeighborDown},
		{Up, Init, Up, DiagNone},
		{Up, Up, Up, DiagNone},
		{Up, AdminDown, Down, DiagNeighborDown},
		{AdminDown, Down, AdminDown, DiagNone},
		{AdminDown, Up, AdminDown, DiagNone},
		{AdminDown, AdminDown, AdminDown, DiagNone},
	} {
		if got, diag := onPacket(tt.state, tt.remote); got != tt.want || diag != tt.diag {
			t.Errorf("%s hears %s: %s, %s; want %s, %s", tt.state, tt.remote, got, diag, tt.want, tt.diag)
		}
	}
	for s, want := range map[State]State{AdminDown: AdminDown, Down: Down, Init: Down, Up: Down} {
		if got, _ := onExpiry(s); got != want {
			t.Errorf("%s hears nothing: %s, want %s", s, got, want)
		}
	}
}

func TestJitter(t *testing.T) {
	for _, tt := range []struct {
		multiplier uint8
		r          float64
		want       time.Duration
	}{{3, 0, 75}, {3, 0.5, 87500 * time.Microsecond / time.Millisecond}, {3, 0.999999, 99}, {1, 0, 75}, {1, 0.999999, 89}} {
		if got := jitter(100*time.Millisecond, tt.multiplier, tt.r).Truncate(time.Millisecond); got != tt.want*time.Millisecond {
			t.Errorf("multiplier %d, %f: %s, want %d ms", tt.multiplier, tt.r, got, tt.want)
		}
	}
}

const ms = time.Millisecond

// up is a machine that is Up, its peer too, with the timers of both settled.
func up(t *testing.T, tx, rx, remoteTx, remoteRx time.Duration) *machine {
	t.Helper()
	m := newMachine(Profile{Receive: rx, Transmit: tx, Multiplier: 3}, 1)
	remote := packet{state: Init, multiplier: 4, mine: 2, yours: 1, desiredTx: remoteTx, requiredRx: remoteRx}
	m.receive(remote, time.Now())
	remote.state, remote.final = Up, true
	m.receive(remote, time.Now())
	if m.state != Up || m.poll {
		t.Fatalf("state %s, poll %v", m.state, m.poll)
	}
	return m
}

// Which timers are in effect when one is changed while Up (RFC 5880 section 6.8.3).
func TestTimerChanges(t *testing.T) {
	for _, tt := range []struct {
		name         string
		tx, rx       time.Duration // after 100 ms each; the peer has 100 ms each and a multiplier of 4
		interval     time.Duration // before the peer has agreed
		detection    time.Duration
		newInterval  time.Duration // afterwards
		newDetection time.Duration
	}{
		{"slower transmission waits", 300 * ms, 100 * ms, 100 * ms, 400 * ms, 300 * ms, 400 * ms},
		{"faster transmission does not", 50 * ms, 100 * ms, 100 * ms, 400 * ms, 100 * ms, 400 * ms}, // the peer's minimum
		{"shorter reception waits", 100 * ms, 50 * ms, 100 * ms, 400 * ms, 100 * ms, 400 * ms},      // the peer's interval
		{"longer reception does not", 100 * ms, 200 * ms, 100 * ms, 800 * ms, 100 * ms, 800 * ms},
	} {
		m := up(t, 100*ms, 100*ms, 100*ms, 100*ms)
		m.configure(Profile{Receive: tt.rx, Transmit: tt.tx, Multiplier: 3})
		if !m.packet().poll || m.packet().desiredTx != tt.tx || m.packet().requiredRx != tt.rx {
			t.Errorf("%s: packet %+v does not poll with the new timers", tt.name, m.packet())
		}
		if m.interval() != tt.interval || m.detection() != tt.detection {
			t.Errorf("%s: before the answer %s, %s; want %s, %s", tt.name, m.interval(), m.detection(), tt.interval, tt.detection)
		}
		m.receive(packet{state: Up, final: true, multiplier: 4, mine: 2, yours: 1, desiredTx: 100 * ms, requiredRx: 100 * ms}, time.Now())
		if m.poll || m.interval() != tt.newInterval || m.detection() != tt.newDetection {
			t.Errorf("%s: after the answer %s, %s; want %s, %s", tt.name, m.interval(), m.detection(), tt.newInterval, tt.newDetection)
		}
	}

	// With a peer that could be faster, shorter reception does shorten the detection time, but only after the answer.
	m := up(t, 100*ms, 200*ms, 50*ms, 100*ms)
	m.configure(Profile{Receive: 50 * ms, Transmit: 100 * ms, Multiplier: 3})
	if m.detection() != 800*ms {
		t.Errorf("detection %s before the answer, want 800ms", m.detection())
	}
	m.receive(packet{state: Up, final: true, multiplier: 4, mine: 2, yours: 1, desiredTx: 50 * ms, requiredRx: 100 * ms}, time.Now())
	if m.detection() != 200*ms {
		t.Errorf("detection %s after the answer, want 200ms", m.detection())
	}
}

func TestWhatIsSent(t *testing.T) {
	m := newMachine(Profile{Receive: 100 * ms, Transmit: 100 * ms, Multiplier: 3}, 1)
	if p := m.packet(); p.state != Down || p.desiredTx != slow || p.requiredRx != 100*ms || p.poll || p.yours != 0 || m.interval() != slow {
		t.Errorf("at first %+v every %s", p, m.interval())
	}
	answer, now := m.receive(packet{state: Down, poll: true, multiplier: 3, mine: 7, desiredTx: slow, requiredRx: 100 * ms}, time.Now())
	if !now || !answer.final || answer.poll || answer.state != Init || answer.yours != 7 {
		t.Errorf("a poll is answered by %+v, %v", answer, now)
	}
	if _, now := m.receive(packet{state: Down, multiplier: 3, mine: 7, yours: 1, desiredTx: slow, requiredRx: 100 * ms}, time.Now()); now {
		t.Error("a packet that changes nothing is answered at once")
	}

	m = up(t, 100*ms, 100*ms, 100*ms, 100*ms)
	m.receive(packet{state: Up, demand: true, multiplier: 3, mine: 2, yours: 1, desiredTx: 100 * ms, requiredRx: 100 * ms}, time.Now())
	if m.interval() != 0 {
		t.Errorf("packets every %s to a peer in demand mode", m.interval())
	}
	m.receive(packet{state: Up, multiplier: 3, mine: 2, yours: 1, desiredTx: 100 * ms}, time.Now())
	if m.interval() != 0 {
		t.Errorf("packets every %s to a peer that takes none", m.interval())
	}

	m = newMachine(Profile{Receive: 100 * ms, Transmit: 100 * ms, Multiplier: 3, Passive: true}, 1)
	if m.interval() != 0 {
		t.Errorf("a passive session sends every %s", m.interval())
	}
}
