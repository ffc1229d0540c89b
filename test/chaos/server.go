// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/storecluster"
)

const (
	peerPort   = "7000"
	clientPort = "2379"
)

// server is one store server: its disk, its namespace, and the process when it runs.
type server struct {
	name string
	host *host
	disk string // mount point of a small file system of its own
	log  string // file
	bin  string
	args []string

	boots atomic.Int64
	gone  chan struct{} // closed when it is no longer part of the cluster

	mu     sync.Mutex
	proc   *storecluster.Process
	paused bool
	asked  bool // the process was, to end, or it was killed
}

// removed says whether it is no longer part of the cluster.
func (s *server) removed() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

func (s *server) peer() string   { return s.host.ip + ":" + peerPort }
func (s *server) client() string { return s.host.ip + ":" + clientPort }
func (s *server) data() string   { return filepath.Join(s.disk, "data") }

// mountDisk gives the server a file system of its own, in memory; with CORACLE_CHAOS_DISK=real only a directory on
// the one that all share, which then is never full.
func (s *server) mountDisk(megabytes int) error {
	if err := os.MkdirAll(s.disk, 0o755); err != nil {
		return err
	}
	if onRealDisk() {
		return nil
	}
	return unix.Mount("chaos", s.disk, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=755", megabytes))
}

func onRealDisk() bool { return os.Getenv("CORACLE_CHAOS_DISK") == "real" }

// start starts the process; join are the other servers' peer addresses.
func (s *server) start(join []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		return fmt.Errorf("%s runs already", s.name)
	}
	args := append([]string{"--bound", "--dir", s.data(), "--name", s.name,
		"--peer-address", s.peer(), "--client-address", s.client()}, s.args...)
	if len(join) > 0 {
		args = append(args, "--join", strings.Join(join, ","))
	}
	cmd := exec.Command(s.bin, args...)
	cmd.Env = append(os.Environ(), "GOTRACEBACK=all", "GOMAXPROCS=2")
	p, err := storecluster.Start(cmd, s.log, s.host.do)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	s.boots.Add(1)
	s.proc, s.asked = p, false
	return nil
}

// ask has the process do an operation of storenode's.
func (s *server) ask(ctx context.Context, op string, args, result any) error {
	s.mu.Lock()
	p := s.proc
	s.mu.Unlock()
	if p == nil {
		return storecluster.ErrNotRunning
	}
	if err := p.Ask(ctx, op, args, result); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}

// signal sends a signal to the process, if it runs.
func (s *server) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return storecluster.ErrNotRunning
	}
	switch sig {
	case syscall.SIGSTOP:
		s.paused = true
	case syscall.SIGCONT:
		s.paused = false
	}
	if err := s.proc.Process.Signal(sig); errors.Is(err, os.ErrProcessDone) {
		return storecluster.ErrNotRunning
	} else if err != nil {
		return fmt.Errorf("%v to %s: %w", sig, s.name, err)
	}
	return nil
}

// end ends the process by a signal and waits for it.
func (s *server) end(sig syscall.Signal, within time.Duration) error {
	s.mu.Lock()
	p := s.proc
	s.asked = true
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	if err := p.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if sig != syscall.SIGKILL {
		_ = s.signal(syscall.SIGCONT)
	}
	select {
	case <-p.Done:
	case <-time.After(within):
		_ = p.Process.Signal(syscall.SIGQUIT) // its goroutines are in the log then
		select {
		case <-p.Done:
		case <-time.After(5 * time.Second):
			p.Kill()
		}
		s.remove()
		return fmt.Errorf("%s did not end within %v of %v; its log has the goroutines", s.name, within, sig)
	}
	s.remove()
	if sig == syscall.SIGTERM && p.Err != nil {
		return fmt.Errorf("%s was asked to end and did it badly: %w", s.name, p.Err)
	}
	return nil
}

func (s *server) remove() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc, s.paused = nil, false
}

func (s *server) kill() error { return s.end(syscall.SIGKILL, time.Minute) }
func (s *server) stop() error { return s.end(syscall.SIGTERM, 2*time.Minute) }

// running says whether there is a process, paused or not.
func (s *server) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc != nil
}

// crashed returns how the process ended if that was not wanted.
func (s *server) crashed() error {
	s.mu.Lock()
	p := s.proc
	asked := s.asked
	s.mu.Unlock()
	if p == nil || asked {
		return nil
	}
	select {
	case <-p.Done:
		return fmt.Errorf("%s ended by itself (%w); the end of %s:\n%s", s.name, p.Err, s.log, storecluster.Tail(s.log, 25))
	default:
		return nil
	}
}
