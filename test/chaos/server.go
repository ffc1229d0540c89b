// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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
	proc   *process
	paused bool
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

// process is a running storenode.
type process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	ready chan struct{} // closed when it printed ready
	done  chan struct{} // closed when it ended; err is readable then
	err   error
	asked bool // to end, or killed: guarded by the server's mu

	mu      sync.Mutex
	next    int
	waiting map[int]chan response
}

type response struct {
	ID     int             `json:"id"`
	Result json.RawMessage `json:"result"`
	Error  string          `json:"error"`
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
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append([]string{"--bound", "--dir", s.data(), "--name", s.name,
		"--peer-address", s.peer(), "--client-address", s.client()}, s.args...)
	if len(join) > 0 {
		args = append(args, "--join", strings.Join(join, ","))
	}
	p := &process{
		cmd: exec.Command(s.bin, args...), ready: make(chan struct{}), done: make(chan struct{}),
		waiting: map[int]chan response{},
	}
	p.cmd.Stderr = log
	p.cmd.Env = append(os.Environ(), "GOTRACEBACK=all", "GOMAXPROCS=2")
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	fmt.Fprintf(log, "--- start %d of %s: %s\n", s.boots.Load()+1, s.name, strings.Join(args, " "))
	if err := s.host.do(p.cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	s.boots.Add(1)
	s.proc = p
	go func() {
		p.read(out)
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return nil
}

// read takes the process's lines until it ends.
func (p *process) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if lines.Text() == "ready" {
			close(p.ready)
			continue
		}
		var a response
		if json.Unmarshal(lines.Bytes(), &a) != nil {
			continue
		}
		p.mu.Lock()
		ch := p.waiting[a.ID]
		delete(p.waiting, a.ID)
		p.mu.Unlock()
		if ch != nil {
			ch <- a
		}
	}
}

var errNotRunning = errors.New("not running")

// ask has the process do an operation of storenode's.
func (s *server) ask(ctx context.Context, op string, args, result any) error {
	s.mu.Lock()
	p := s.proc
	s.mu.Unlock()
	if p == nil {
		return errNotRunning
	}
	b, err := json.Marshal(args)
	if err != nil {
		return err
	}
	ch := make(chan response, 1) // the reader never waits
	p.mu.Lock()
	p.next++
	id := p.next
	p.waiting[id] = ch
	_, err = fmt.Fprintf(p.in, `{"id":%d,"op":%q,"args":%s}`+"\n", id, op, bytes.TrimSpace(b))
	p.mu.Unlock()
	if err != nil { // the pipe's other end is gone
		return errNotRunning
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s of %s: %w", op, s.name, ctx.Err())
	case <-p.done:
		return errNotRunning
	case a := <-ch:
		if a.Error != "" {
			return fmt.Errorf("%s of %s: %s", op, s.name, a.Error)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(a.Result, result)
	}
}

// signal sends a signal to the process, if it runs.
func (s *server) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return errNotRunning
	}
	switch sig {
	case syscall.SIGSTOP:
		s.paused = true
	case syscall.SIGCONT:
		s.paused = false
	}
	if err := s.proc.cmd.Process.Signal(sig); errors.Is(err, os.ErrProcessDone) {
		return errNotRunning
	} else if err != nil {
		return fmt.Errorf("%v to %s: %w", sig, s.name, err)
	}
	return nil
}

// end ends the process by a signal and waits for it.
func (s *server) end(sig syscall.Signal, within time.Duration) error {
	s.mu.Lock()
	p := s.proc
	if p != nil {
		p.asked = true
	}
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if sig != syscall.SIGKILL {
		_ = s.signal(syscall.SIGCONT)
	}
	select {
	case <-p.done:
	case <-time.After(within):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines are in the log then
		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.done
		}
		s.remove(p)
		return fmt.Errorf("%s did not end within %v of %v; its log has the goroutines", s.name, within, sig)
	}
	s.remove(p)
	if sig == syscall.SIGTERM && p.err != nil {
		return fmt.Errorf("%s was asked to end and did it badly: %w", s.name, p.err)
	}
	return nil
}

func (s *server) remove(p *process) {
	p.in.Close()
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
	asked := p != nil && p.asked
	s.mu.Unlock()
	if p == nil || asked {
		return nil
	}
	select {
	case <-p.done:
		return fmt.Errorf("%s ended by itself (%w); the end of %s:\n%s", s.name, p.err, s.log, tail(s.log, 25))
	default:
		return nil
	}
}

func tail(file string, lines int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
