// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DelayDatagrams has the UDP datagrams to one port that one machine sends to another one arrive later by that time,
// without that part of them, in percent, which is lost by chance. The kernel's own means, netem, is not in every
// kernel, so this process holds them back: rules drop what comes through the bridge, and a copy that was taken where it
// entered goes to the receiver's link, with a mark that the rules let through.
func (s *Site) DelayDatagrams(from, to *Machine, port int, by time.Duration, lossPercent int) {
	s.T.Helper()
	l := link{from.Number, to.Number}
	if s.delays[l] != nil {
		s.T.Fatalf("machine %d's datagrams to machine %d are delayed already", from.Number, to.Number)
	}
	d, err := s.newDelay(l, port, by, lossPercent)
	if err != nil {
		s.T.Fatalf("delay datagrams: %v", err)
	}
	s.delays[l] = d
	s.change(from, to, func(f *fault) { f.delayed, f.udpPort = true, port })
}

// stopDelays ends all of them and waits.
func (s *Site) stopDelays() {
	for l, d := range s.delays {
		d.stop()
		delete(s.delays, l)
	}
}

// delay is one link's: a goroutine that reads where frames of the sender enter the bridge, and one that writes to the
// receiver.
type delay struct {
	read, write *os.File
	running     sync.WaitGroup
	cancel      context.CancelFunc
}

// heldFrames is how many frames may be held back on one link; more are lost, as in a full queue of a router.
const heldFrames = 4096

// heldFrame is a frame with the kernel's header for it (checksums that are not made yet), and when it goes on.
type heldFrame struct {
	bytes []byte
	due   time.Time
}

func (s *Site) newDelay(l link, port int, by time.Duration, lossPercent int) (*delay, error) {
	network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", s.holder.Process.Pid))
	if err != nil {
		return nil, err
	}
	defer network.Close()
	d := &delay{}
	err = inNetwork(network, func() (err error) {
		if d.read, err = packetSocket(fmt.Sprintf("machine%d", l.from), unix.ETH_P_ALL); err != nil {
			return err
		}
		d.write, err = packetSocket(fmt.Sprintf("machine%d", l.to), 0)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	held := make(chan heldFrame, heldFrames)
	d.running.Go(func() {
		defer close(held)
		for {
			b := make([]byte, vnetHeader+64<<10)
			n, err := d.read.Read(b)
			if err != nil {
				return // closed
			}
			if !isDatagram(b[vnetHeader:n], l, port) || rand.IntN(100) < lossPercent {
				continue
			}
			select {
			case held <- heldFrame{b[:n], time.Now().Add(by)}:
			default:
			}
		}
	})
	d.running.Go(func() {
		for f := range held {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Until(f.due)):
			}
			_, _ = d.write.Write(f.bytes) // a receiver that is off gets nothing
		}
	})
	return d, nil
}

func (d *delay) close() error {
	var errs []error
	for _, f := range []*os.File{d.read, d.write} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

func (d *delay) stop() {
	d.cancel()
	_ = d.close() // ends the reader
	d.running.Wait()
}

// vnetHeader is the size of struct virtio_net_hdr, which packet sockets put before each frame when asked to.
const vnetHeader = 10

// delayedMark is what the rules know a frame by that was held back.
const delayedMark = 77

// packetSocket opens a socket for a device's whole frames.
func packetSocket(device string, protocol uint16) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	ifreq, err := unix.NewIfreq(device)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifreq)
	}
	if err == nil {
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, delayedMark),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: hostToNetwork(protocol), Ifindex: int(ifreq.Uint32())}),
		)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("packet socket of %s: %w", device, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packets of "+device), nil
}

func hostToNetwork(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// isDatagram says whether a frame is an IPv4 UDP datagram on that link to that port.
func isDatagram(frame []byte, l link, port int) bool {
	const ethernet, ipv4, udp = 14, 20, 8
	if len(frame) < ethernet+ipv4+udp || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP {
		return false
	}
	if frame[5] != byte(l.to) || frame[11] != byte(l.from) || frame[0] != 2 || frame[6] != 2 {
		return false
	}
	packet := frame[ethernet:]
	header := int(packet[0]&0xf) * 4
	return packet[9] == unix.IPPROTO_UDP && len(packet) >= header+udp && int(binary.BigEndian.Uint16(packet[header+2:])) == port
}
