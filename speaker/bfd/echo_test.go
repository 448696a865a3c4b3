package bfd

import (
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/bpf"
)

var echoing = Profile{Receive: time.Second, Transmit: time.Second, Multiplier: 3, Echo: 50 * ms}

func (n *network) set(f func(*network)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n)
}

// Echo packets find a dead path long before control packets do, and go on at the pace of the slower side.
func TestEchoDetects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(1)
		slow := echoing
		slow.Echo = 80 * ms
		a, b := pair(t, n, echoing, slow)
		if st := a.client.Status()[0]; st.Echo != 80*ms || !st.Echoes || st.Problem != "" {
			t.Fatalf("status %+v", st)
		}
		n.set(func(n *network) { n.echoes = 0 })
		time.Sleep(10 * time.Second)
		n.set(func(n *network) { // both sides send ten seconds' worth, 75 to 100 % of 80 ms apart
			if n.echoes < 250 || n.echoes > 335 {
				t.Errorf("%d echo packets", n.echoes)
			}
			n.cut = true
		})
		cut := time.Now()
		time.Sleep(time.Second)
		for _, e := range []*end{a, b} {
			if got := e.told().Since.Sub(cut); e.state() != Down || got < 160*ms || got > 240*ms || e.told().Diag != DiagEchoFailed {
				t.Errorf("%s is %s after %s: %s", e.addr, e.state(), got, e.told().Diag)
			}
		}
		n.set(func(n *network) { n.cut = false })
		time.Sleep(10 * time.Second)
		if st := a.client.Status()[0]; a.state() != Up || b.state() != Up || !st.Echoes {
			t.Errorf("after the path was back: a %+v, b %s", st, b.log())
		}
	})
}

// A peer that sends nothing back, or something else, or wants no echo packets, has a session all the same: it does not
// flap, and its status says what is wrong.
func TestEchoThatCannotWork(t *testing.T) {
	off := echoing
	off.Echo = 0
	for _, tt := range []struct {
		what    string
		set     func(*network)
		peer    Profile
		sent    bool
		problem string
	}{
		{"the peer forwards nothing", func(n *network) { n.deaf = true }, echoing, true, "echo: the peer sends no echo packets back, so only control packets watch the path; it must forward IPv4"},
		{"what comes back is forged", func(n *network) { n.forge = true }, echoing, true, "echo: the peer sends no echo packets back, so only control packets watch the path; it must forward IPv4"},
		{"the peer wants none", func(*network) {}, off, false, ""},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(2)
				tt.set(n)
				a, b := pair(t, n, echoing, tt.peer)
				time.Sleep(time.Minute)
				st := a.client.Status()[0]
				if st.State != Up || st.Downs != 0 || st.Echoes || st.Problem != tt.problem {
					t.Errorf("%+v", st)
				}
				n.set(func(n *network) {
					if (n.echoes > 0) != tt.sent {
						t.Errorf("%d echo packets were sent", n.echoes)
					}
				})
				n.set(func(n *network) { n.cut = true }) // control packets still notice
				time.Sleep(4 * time.Second)
				if a.state() != Down || b.state() != Down || a.told().Diag != DiagTimeExpired {
					t.Errorf("a dead path: %s, %s (%s)", a.state(), b.state(), a.told().Diag)
				}
			})
		})
	}
}

// Echo packets that went to the hardware address that the peer had do not end the session.
func TestEchoFollowsThePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(3)
		a, _ := pair(t, n, echoing, echoing)
		n.set(func(n *network) { n.deaf, n.moves = true, true })
		time.Sleep(time.Second)
		n.set(func(n *network) { n.deaf, n.moves = false, false })
		time.Sleep(time.Second)
		if st := a.client.Status()[0]; st.State != Up || st.Downs != 0 || !st.Echoes {
			t.Errorf("%+v", st)
		}
	})
}

// The filter lets through what is sent, one router later, and nothing else.
func TestEchoFilter(t *testing.T) {
	vm, err := bpf.NewVM(echoFilter)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what string
		edit func(b []byte)
		pass bool
	}{
		{"ours", func(b []byte) { b[8]-- }, true},
		{"another port", func(b []byte) { b[23]++ }, false},
		{"TCP", func(b []byte) { b[9] = 6 }, false},
		{"a fragment", func(b []byte) { b[7] = 1 }, false},
		{"more fragments follow", func(b []byte) { b[6] = 0x20 }, false},
		{"IP options", func(b []byte) { b[0] = 0x46 }, false},
		{"longer", func(b []byte) { b[3]++ }, false},
	} {
		b := echoPacket([4]byte{192, 0, 2, 1}, [packetLen]byte{1, 2, 3})
		tt.edit(b)
		n, err := vm.Run(b)
		if err != nil || n > 0 != tt.pass {
			t.Errorf("%s: %d bytes pass, %v", tt.what, n, err)
		}
	}
	if sum := headerChecksum(echoPacket([4]byte{192, 0, 2, 1}, [packetLen]byte{})[:20]); sum != 0 {
		t.Errorf("the header's checksum is off by %#x", sum)
	}
}
