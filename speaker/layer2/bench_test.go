package layer2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkAnswer asks for one of a thousand addresses after the other, as a neighbour on the network does, a little apart
// so that the answering goroutine has to be woken each time, and reports how long the answers take. "busy" has another
// goroutine of the process allocate and compute, as the rest of a speaker does now and then.
func BenchmarkAnswer(b *testing.B) {
	for _, busy := range []int{0, 1} {
		b.Run(fmt.Sprintf("busy=%d", busy), func(b *testing.B) {
			l := newLAN(b, 2)
			var addrs []Address
			for i := range 1000 {
				addrs = append(addrs, Address{Addr: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})})
			}
			r := l.hosts[1].start(b, Config{Refresh: -1})
			r.Set(addrs)
			eventually(b, "all are announced", func() bool {
				s := r.Status().Addresses
				return len(s) == len(addrs) && !slices.ContainsFunc(s, func(a AddressStatus) bool { return a.Announcements < 5 })
			})
			end := make(chan bool)
			defer close(end)
			for range busy {
				go burn(end)
			}
			var took []time.Duration
			err := l.hosts[0].Enter(func() error {
				ask, err := newAsker(l.hosts[0].mac(b, "eth0"))
				if err != nil {
					return err
				}
				defer unix.Close(ask.fd)
				for i := range b.N {
					d, err := ask.once(addrs[i%len(addrs)].Addr)
					if err != nil {
						return err
					}
					took = append(took, d)
					unix.Nanosleep(&unix.Timespec{Nsec: 1_000_000}, nil)
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
			slices.Sort(took)
			for _, p := range []int{50, 99} {
				b.ReportMetric(float64(took[len(took)*p/100].Nanoseconds())/1e6, fmt.Sprintf("ms-p%d", p))
			}
			b.ReportMetric(float64(took[len(took)-1].Nanoseconds())/1e6, "ms-max")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// burn keeps a processor and the garbage collector busy.
func burn(end chan bool) {
	var keep [1 << 10][]byte
	for i := 0; ; i++ {
		select {
		case <-end:
			runtime.KeepAlive(&keep)
			return
		default:
			keep[i%len(keep)] = make([]byte, 1<<12)
		}
	}
}

// asker is a packet socket that has the kernel say when an answer came, whenever this process gets round to reading it.
type asker struct {
	fd  int
	mac MAC
}

func newAsker(mac MAC) (*asker, error) {
	ifi, err := net.InterfaceByName("eth0")
	if err != nil {
		return nil, err
	}
	const arp = 0x0608 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, arp)
	if err != nil {
		return nil, err
	}
	return &asker{fd, mac}, errors.Join(
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: arp, Ifindex: ifi.Index}),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
}

// once asks for an address and waits for the answer.
func (a *asker) once(addr netip.Addr) (time.Duration, error) {
	frame, err := arpFrame(1, a.mac, broadcast, a.mac, host4, MAC{}, addr)
	if err != nil {
		return 0, err
	}
	buf, oob := make([]byte, 2048), make([]byte, 128)
	var sent, came unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &sent); err != nil {
		return 0, err
	}
	if _, err := unix.Write(a.fd, frame); err != nil {
		return 0, err
	}
	for {
		n, oobn, _, _, err := unix.Recvmsg(a.fd, buf, oob, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("%s is not answered: %w", addr, err)
		}
		m, err := parse(buf[:n])
		if err != nil || m.claim != addr {
			continue
		}
		controls, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(controls) != 1 {
			return 0, fmt.Errorf("%d control messages: %w", len(controls), err)
		}
		if _, err := binary.Decode(controls[0].Data, binary.NativeEndian, &came); err != nil {
			return 0, err
		}
		return time.Duration(came.Nano() - sent.Nano()), nil
	}
}
