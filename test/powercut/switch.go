// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxFrame is more than an Ethernet frame has.
const maxFrame = 2048

// A Switch connects machines as a network cable does: every frame goes to every
// other machine. Frames for whom there is no room get lost.
type Switch struct {
	mu    sync.Mutex
	ports map[*os.File]struct{}
	tasks sync.WaitGroup
}

// Plug returns the machine's end of a new cable, which is there until that end
// is closed everywhere.
func (s *Switch) Plug() (*os.File, error) {
	// Packets keep their borders, and the other end notices when this one is gone.
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("plug in a machine: %w", err)
	}
	if err := unix.SetNonblock(ends[0], true); err != nil {
		return nil, errors.Join(fmt.Errorf("plug in a machine: %w", err), unix.Close(ends[0]), unix.Close(ends[1]))
	}
	switchEnd, machineEnd := os.NewFile(uintptr(ends[0]), "switch"), os.NewFile(uintptr(ends[1]), "machine")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ports == nil {
		s.ports = map[*os.File]struct{}{}
	}
	s.ports[switchEnd] = struct{}{}
	s.tasks.Go(func() { s.serve(switchEnd) })
	return machineEnd, nil
}

// Wait returns when no machine is plugged in.
func (s *Switch) Wait() { s.tasks.Wait() }

func (s *Switch) serve(port *os.File) {
	frame := make([]byte, maxFrame)
	for {
		n, err := port.Read(frame)
		if err != nil || n == 0 {
			break
		}
		s.mu.Lock()
		for other := range s.ports {
			if other != port {
				send(other, frame[:n])
			}
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ports, port)
	port.Close()
}

// send does not wait: a machine without power takes nothing.
func send(port *os.File, frame []byte) {
	raw, err := port.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Write(func(fd uintptr) bool {
		_ = unix.Sendto(int(fd), frame, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
		return true
	})
}
