package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// delayer holds up a link's frames in user space, since not every kernel has netem: the switch's port is taken from the
// bridge, a tap device takes its place, and two goroutines carry the frames between them, each delay later.
type delayer struct {
	port *packet.Conn
	tap  *os.File
}

func delayPort(link string) string { return "d-" + link }

// Delay holds up a link's frames by d in each direction, so that a round trip takes 2d longer; 0 ends it. It lasts as
// long as this process. Delays of the order of a millisecond are kept to some tenths of it.
func (l *Lab) Delay(link string, d time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.delays[link]; old != nil {
		old.close()
		delete(l.delays, link)
		if err := l.rePlug(link, delayPort(link), link); err != nil {
			return fmt.Errorf("delay %s: %w", link, err)
		}
	}
	if d <= 0 {
		return nil
	}
	new, err := l.delay(link, d)
	if err != nil {
		return fmt.Errorf("delay %s: %w", link, err)
	}
	l.delays[link] = new
	return nil
}

func (l *Lab) delay(link string, d time.Duration) (_ *delayer, err error) {
	host, iface := link, "eth0"
	if h, ok := strings.CutSuffix(link, "-wan"); ok {
		host, iface = h, "eth1"
	}
	// What the host sends must be complete frames: no segments or checksums left to a network card.
	if _, err := l.Exec(context.Background(), host, "ethtool", "-K", iface, "tx", "off", "tso", "off", "gso", "off"); err != nil {
		return nil, err
	}
	dl := &delayer{}
	defer func() {
		if err != nil {
			dl.close()
		}
	}()
	err = l.In("switch", func() error {
		if dl.tap, err = openTap(delayPort(link)); err != nil {
			return err
		}
		ifi, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		if dl.port, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, nil); err != nil {
			return err
		}
		return ignoreOutgoing(dl.port)
	})
	if err != nil {
		return nil, err
	}
	if err := l.rePlug(link, link, delayPort(link)); err != nil {
		return nil, err
	}
	go carry(d, dl.readPort, dl.tap.Write)
	go carry(d, dl.tap.Read, dl.writePort)
	return dl, nil
}

// rePlug takes one port from its bridge and puts another in its place. A tap device that was taken out is gone already.
func (l *Lab) rePlug(link, from, to string) error {
	return l.at("switch", func(h *netlink.Handle) error {
		bridge := "lan"
		if _, wan := strings.CutSuffix(link, "-wan"); wan || link == "outside" {
			bridge = "wan"
		}
		br, err := h.LinkByName(bridge)
		if err != nil {
			return err
		}
		if old, err := h.LinkByName(from); err == nil {
			if err := h.LinkSetNoMaster(old); err != nil {
				return err
			}
		}
		port, err := h.LinkByName(to)
		if err != nil {
			return err
		}
		if err := h.LinkSetMaster(port, br); err != nil {
			return err
		}
		if from == link {
			return h.LinkSetUp(port)
		}
		return nil
	})
}

func (d *delayer) close() {
	if d.port != nil {
		d.port.Close()
	}
	if d.tap != nil {
		d.tap.Close()
	}
}

func (d *delayer) readPort(b []byte) (int, error) {
	for {
		n, _, err := d.port.ReadFrom(b)
		if errors.Is(err, unix.ENETDOWN) {
			continue // the cable is pulled: said once, then reads wait
		}
		return n, err
	}
}

func (d *delayer) writePort(b []byte) (int, error) {
	n, err := d.port.WriteTo(b, &packet.Addr{HardwareAddr: net.HardwareAddr(b[:6])})
	if errors.Is(err, unix.ENETDOWN) {
		return len(b), nil
	}
	return n, err
}

// carry passes frames on in order, each after d, until reading fails.
func carry(d time.Duration, read, write func([]byte) (int, error)) {
	type frame struct {
		due time.Time
		b   []byte
	}
	queue := make(chan frame, 4096)
	go func() {
		for f := range queue {
			time.Sleep(time.Until(f.due))
			// A frame that cannot be sent is a frame lost, as on any cable.
			_, _ = write(f.b)
		}
	}()
	defer close(queue)
	b := make([]byte, 65536)
	for {
		n, err := read(b)
		if err != nil {
			return
		}
		select {
		case queue <- frame{time.Now().Add(d), append([]byte(nil), b[:n]...)}:
		default: // the cable holds no more
		}
	}
}

// openTap makes a tap device in the calling thread's namespace. It goes when the file is closed.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// ignoreOutgoing keeps a packet socket from reading what it writes.
func ignoreOutgoing(c *packet.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	})
	return errors.Join(err, serr)
}
