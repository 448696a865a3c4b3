package bfd

import "time"

// slow is the shortest time between packets of a session that is not Up (RFC 5880 section 6.8.3).
const slow = time.Second

// onPacket is the state after a packet in which the peer reports its own, and why it changes (RFC 5880 section 6.8.6,
// and the diagram in section 6.2).
func onPacket(s, remote State) (State, Diag) {
	switch {
	case s == AdminDown: // such packets are ignored
		return AdminDown, DiagNone
	case remote == AdminDown && s != Down:
		return Down, DiagNeighborDown
	case s == Down && remote == Down:
		return Init, DiagNone
	case s == Down && remote == Init:
		return Up, DiagNone
	case s == Init && (remote == Init || remote == Up):
		return Up, DiagNone
	case s == Up && remote == Down:
		return Down, DiagNeighborDown
	}
	return s, DiagNone
}

// onExpiry is the state after the detection time without a packet (RFC 5880 section 6.8.4).
func onExpiry(s State) (State, Diag) {
	if s == Init || s == Up {
		return Down, DiagTimeExpired
	}
	return s, DiagNone
}

// machine holds the state variables of a session (RFC 5880 section 6.8.1). Its methods are section 6.8; they do no I/O
// and are told the time.
type machine struct {
	profile Profile

	state, remoteState State
	diag, remoteDiag   Diag
	mine, yours        uint32 // discriminators; yours is 0 while the peer's is not known
	poll               bool   // a poll sequence is under way
	remoteDemand       bool
	remoteMinRx        time.Duration
	remoteTx           time.Duration // the peer's desired interval
	remoteMultiplier   uint8
	remoteMinEchoRx    time.Duration // the shortest time between echo packets that the peer sends back, 0: it sends none back

	// What is sent as ours. While a poll sequence is under way in a session that is Up, txHeld or rxHeld, if not 0, is
	// in effect in their place (section 6.8.3).
	desiredTx, requiredRx time.Duration
	txHeld, rxHeld        time.Duration

	heard  time.Time // the last packet, zero if there was none or the detection time has passed since
	echoed time.Time // the last echo packet that came back since the session is Up, zero if none has
}

func newMachine(p Profile, discriminator uint32) *machine {
	m := &machine{profile: p, state: Down, mine: discriminator, remoteMinRx: time.Microsecond}
	m.desiredTx, m.requiredRx = max(p.Transmit, slow), p.Receive
	return m
}

// configure takes over other settings.
func (m *machine) configure(p Profile) {
	m.profile = p
	if m.state == AdminDown { // the client has changed its mind
		m.enter(Down, DiagNone)
	}
	m.retime()
}

// retime follows the settings and the state with the timers that are announced to the peer. Every change is a poll
// sequence; while Up, what makes packets rarer, or the peer's silence shorter, waits for its end (section 6.8.3).
func (m *machine) retime() {
	tx, rx := m.profile.Transmit, m.profile.Receive
	if m.state != Up {
		tx, m.txHeld, m.rxHeld = max(tx, slow), 0, 0
	}
	if tx == m.desiredTx && rx == m.requiredRx {
		return
	}
	if m.state == Up {
		if tx > m.desiredTx && m.txHeld == 0 {
			m.txHeld = m.desiredTx
		}
		if rx < m.requiredRx && m.rxHeld == 0 {
			m.rxHeld = m.requiredRx
		}
	}
	m.desiredTx, m.requiredRx, m.poll = tx, rx, m.yours != 0
}

// enter changes the state.
func (m *machine) enter(s State, why Diag) {
	if why != DiagNone {
		m.diag = why
	}
	if s == Up {
		m.diag = DiagNone
	}
	m.state, m.echoed = s, time.Time{}
	if s != Up {
		m.poll = false
	}
	m.retime()
}

// receive takes in a packet of the session and says whether to answer at once, with answer as the packet (section
// 6.8.6).
func (m *machine) receive(p packet, now time.Time) (answer packet, atOnce bool) {
	m.yours, m.remoteState, m.remoteDiag, m.remoteDemand = p.mine, p.state, p.diag, p.demand
	m.remoteMinRx, m.remoteTx, m.remoteMultiplier, m.remoteMinEchoRx = p.requiredRx, p.desiredTx, p.multiplier, p.requiredEchoRx
	m.heard = now
	if p.final && m.poll {
		m.poll, m.txHeld, m.rxHeld = false, 0, 0
	}
	before := m.state
	if s, why := onPacket(m.state, p.state); s != before {
		m.enter(s, why)
	}
	switch {
	case m.state == AdminDown:
		return packet{}, false
	case p.poll:
		answer = m.packet()
		answer.poll, answer.final = false, true
		return answer, true
	case m.state != before: // section 6.8.7: tell of a change without waiting for the interval
		return m.packet(), true
	}
	return packet{}, false
}

// expire notes that the detection time has passed, and says whether the state has changed by that.
func (m *machine) expire() bool {
	m.heard, m.yours = time.Time{}, 0 // section 6.8.1, bfd.RemoteDiscr
	m.remoteMinRx = time.Microsecond
	s, why := onExpiry(m.state)
	if s == m.state {
		return false
	}
	m.enter(s, why)
	return true
}

// packet is what is to be sent now (section 6.8.7).
func (m *machine) packet() packet {
	return packet{
		diag: m.diag, state: m.state, poll: m.poll, multiplier: m.profile.Multiplier,
		mine: m.mine, yours: m.yours, desiredTx: m.desiredTx, requiredRx: m.requiredRx, requiredEchoRx: m.profile.Echo,
	}
}

// interval is the time between our packets before jitter, 0 if none are to be sent (section 6.8.7).
func (m *machine) interval() time.Duration {
	switch {
	case m.profile.Passive && m.yours == 0,
		m.remoteMinRx == 0,
		m.remoteDemand && m.state == Up && m.remoteState == Up && !m.poll:
		return 0
	}
	tx := m.desiredTx
	if m.txHeld != 0 {
		tx = m.txHeld
	}
	return max(tx, m.remoteMinRx)
}

// detection is the time without a packet after which the peer counts as down, 0 before its first packet (section 6.8.4).
func (m *machine) detection() time.Duration {
	if m.heard.IsZero() {
		return 0
	}
	rx := m.requiredRx
	if m.rxHeld != 0 {
		rx = m.rxHeld
	}
	return time.Duration(m.remoteMultiplier) * max(rx, m.remoteTx)
}

// echoInterval is the time between our echo packets before jitter, 0 if none are to be sent (section 6.8.9).
func (m *machine) echoInterval() time.Duration {
	if m.profile.Echo == 0 || m.state != Up || m.remoteMinEchoRx == 0 {
		return 0
	}
	return max(m.profile.Echo, m.remoteMinEchoRx)
}

// echoDetection is the time without an echo packet that came back after which the path counts as down (section 6.8.5),
// 0 before the first one: a peer that sends none back, because it does not forward, must not make the session flap.
func (m *machine) echoDetection() time.Duration {
	if m.echoed.IsZero() {
		return 0
	}
	return time.Duration(m.profile.Multiplier) * m.echoInterval()
}

// expireEcho notes that no echo packet has come back in time (section 6.8.5), and says whether the state has changed.
func (m *machine) expireEcho() bool {
	if m.state != Up {
		return false
	}
	m.enter(Down, DiagEchoFailed)
	return true
}

// jitter shortens an interval to between 75 and 100 % of it, with r from 0 to below 1; with a multiplier of 1 to 90 % at
// most, for otherwise the peer's detection time could pass between two packets (section 6.8.7).
func jitter(interval time.Duration, multiplier uint8, r float64) time.Duration {
	high := 1.0
	if multiplier == 1 {
		high = 0.9
	}
	return time.Duration(float64(interval) * (0.75 + r*(high-0.75)))
}
