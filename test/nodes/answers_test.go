//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// answers asks for an address all the time, by ARP or by neighbour discovery, and notes which machine says that it has
// it.
type answers struct {
	address netip.Addr

	mu     sync.Mutex
	runs   []int // machines, one after the other
	last   time.Time
	frames int
}

// watchAnswers watches until the test ends.
func watchAnswers(t *testing.T, site *harness.Site, address string) *answers {
	t.Helper()
	w := &answers{address: netip.MustParseAddr(address)}
	var fd int
	var bridge *net.Interface
	var ask func()
	err := site.Do(func() (err error) {
		if bridge, err = net.InterfaceByName("site"); err != nil {
			return err
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL))) // for one protocol alone they would come from the bridge, and not from its ports
		if err == nil {
			err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, w.filter())
		}
		if err == nil {
			err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000})
		}
		if err == nil {
			ask, err = w.asker(t, bridge, fd)
		}
		return err
	})
	testenv.NoError(t, err)
	stop, done := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() {
		close(stop)
		<-done
		_ = unix.Close(fd)
	})
	go func() {
		defer close(done)
		buffer := make([]byte, 256)
		var asked time.Time
		for {
			select {
			case <-stop:
				return
			default:
			}
			if time.Since(asked) > 20*time.Millisecond {
				asked = time.Now()
				ask()
			}
			n, from, err := unix.Recvfrom(fd, buffer, 0)
			l, ok := from.(*unix.SockaddrLinklayer)
			if err != nil || !ok || l.Pkttype == unix.PACKET_OUTGOING || l.Ifindex == bridge.Index {
				continue
			}
			if machine := w.claimant(buffer[:n]); machine > 0 {
				w.note(machine)
			}
		}
	}()
	return w
}

// The Ethernet types and the ICMPv6 messages that say who has an address, and where they are in a frame.
const (
	solicitation, advertisement = 135, 136

	ethernetLen = 14
	icmp6At     = ethernetLen + 40
)

// filter has the kernel pass ARP, or neighbour advertisements.
func (w *answers) filter() *unix.SockFprog {
	load := func(size uint16, at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | size | unix.BPF_ABS, K: at}
	}
	equal := func(want uint32, orSkip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: want, Jf: orSkip}
	}
	program := []unix.SockFilter{load(unix.BPF_H, 12), equal(unix.ETH_P_ARP, 1)}
	if w.address.Is6() {
		program = []unix.SockFilter{load(unix.BPF_H, 12), equal(unix.ETH_P_IPV6, 5), load(unix.BPF_B, ethernetLen+6), equal(unix.IPPROTO_ICMPV6, 3), load(unix.BPF_B, icmp6At), equal(advertisement, 1)}
	}
	program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff}, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K})
	return &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
}

// asker asks everybody on the bridge for the address. The packet socket is for ARP. An ICMPv6 socket of its own has the
// kernel choose a source and count the checksum.
func (w *answers) asker(t *testing.T, bridge *net.Interface, packets int) (func(), error) {
	if w.address.Is4() {
		question := slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, bridge.HardwareAddr, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, bridge.HardwareAddr,
			netip.MustParseAddr(harness.OutsideIP).AsSlice(), make([]byte, 6), w.address.AsSlice(), make([]byte, 18))
		return func() {
			_ = unix.Sendto(packets, question, 0, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: bridge.Index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}})
		}, nil
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil { // less is for what was routed
		return nil, err
	}
	var none unix.ICMPv6Filter // that is received here
	for i := range none.Data {
		none.Data[i] = ^uint32(0)
	}
	if err := unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &none); err != nil {
		return nil, err
	}
	question := slices.Concat([]byte{solicitation, 0, 0, 0, 0, 0, 0, 0}, w.address.AsSlice(), []byte{1, 1}, bridge.HardwareAddr)
	group := [16]byte{0xff, 0x02, 11: 1, 12: 0xff} // of those that may have it (RFC 4291, 2.7.1)
	copy(group[13:], w.address.AsSlice()[13:])
	return func() {
		_ = unix.Sendto(fd, question, 0, &unix.SockaddrInet6{ZoneId: uint32(bridge.Index), Addr: group})
	}, nil
}

// claimant is the machine that says with a frame that it has the address; 0 for all others. It is known by its Ethernet
// address: its port is another one after it was off.
func (w *answers) claimant(frame []byte) int {
	at, kind := 28, uint16(unix.ETH_P_ARP)
	if w.address.Is6() {
		at, kind = icmp6At+8, unix.ETH_P_IPV6
	}
	size := w.address.BitLen() / 8
	if len(frame) < at+size || binary.BigEndian.Uint16(frame[12:]) != kind || !bytes.Equal(frame[at:at+size], w.address.AsSlice()) {
		return 0
	}
	machine := int(frame[11])
	if address, err := net.ParseMAC(harness.LinkAddress(machine)); err != nil || !bytes.Equal(frame[6:12], address) {
		return 0
	}
	return machine
}

func htons(n uint16) uint16 { return binary.NativeEndian.Uint16([]byte{byte(n >> 8), byte(n)}) }

func (w *answers) note(machine int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.runs) == 0 || w.runs[len(w.runs)-1] != machine {
		w.runs = append(w.runs, machine)
	}
	w.last = time.Now()
	w.frames++
}

// state is who answered, one after the other, and how long ago the last answer was.
func (w *answers) state() (runs []int, ago time.Duration, frames int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.runs), time.Since(w.last), w.frames
}

// now is the machine that answered last; 0 if none did.
func (w *answers) now() int {
	runs, _, _ := w.state()
	if len(runs) == 0 {
		return 0
	}
	return runs[len(runs)-1]
}

// oneAtATime: each change of the address's holder, as the servers say, is one run of answers at most. More would be two
// that answer side by side.
func (w *answers) oneAtATime(t *testing.T, servers []*harness.Server) {
	t.Helper()
	changed := regexp.MustCompile(`another node answers for an address.* address=` + regexp.QuoteMeta(w.address.String()) + " ")
	changes := 0
	for _, s := range servers {
		log := testenv.Must(os.ReadFile(s.Log))(t)
		changes += len(changed.FindAll(log, -1))
	}
	runs, _, frames := w.state()
	t.Logf("%s: %d answers and announcements, by machines %v", w.address, frames, runs)
	if len(runs) == 0 || len(runs) > changes {
		t.Errorf("%s had %d holders one after the other, and there were %d runs of answers: %v", w.address, changes, len(runs), runs)
	}
}
