// SPDX-License-Identifier: Apache-2.0

// Package storecluster has what tests and benchmarks of a cluster of stores share: a server as a process, and its
// operations if it is a test/storenode. Where servers are and what happens to them is for its users.
package storecluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
)

// ErrNotRunning is returned by Ask when the process has ended.
var ErrNotRunning = errors.New("not running")

// Process is a server that was started: a storenode, or another program that has no operations.
type Process struct {
	*exec.Cmd
	Ready chan struct{} // closed when it printed ready
	Done  chan struct{} // closed when it ended; Err is readable then
	Err   error

	in      io.WriteCloser
	mu      sync.Mutex
	last    int
	waiting map[int]chan response
}

type response struct {
	ID     int             `json:"id"`
	Result json.RawMessage `json:"result"`
	Error  string          `json:"error"`
}

// Start starts a command whose standard error goes to the end of a log, and which ends when this process does, however
// that happens. enter calls what it is given where the process is to start, such as in a namespace; nil: here.
func Start(cmd *exec.Cmd, log string, enter func(func() error) error) (*Process, error) {
	p := &Process{Cmd: cmd, Ready: make(chan struct{}), Done: make(chan struct{}), waiting: map[int]chan response{}}
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	fmt.Fprintf(file, "--- start: %s\n", strings.Join(cmd.Args, " "))
	cmd.Stderr, cmd.SysProcAttr = file, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if enter == nil {
		enter = func(start func() error) error { return start() }
	}
	if err := enter(cmd.Start); err != nil {
		return nil, err
	}
	go func() {
		p.read(out)
		p.Err = cmd.Wait()
		close(p.Done)
	}()
	return p, nil
}

// read takes the process' lines until it ends.
func (p *Process) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r response
		if lines.Text() == "ready" {
			close(p.Ready)
		} else if json.Unmarshal(lines.Bytes(), &r) == nil {
			p.mu.Lock()
			ch := p.waiting[r.ID]
			delete(p.waiting, r.ID)
			p.mu.Unlock()
			if ch != nil {
				ch <- r
			}
		}
	}
}

// Ask has a storenode do one of its operations, and decodes the result unless that is nil.
func (p *Process) Ask(ctx context.Context, op string, args, result any) error {
	ch := make(chan response, 1) // the reader never waits
	p.mu.Lock()
	p.last++
	b, err := json.Marshal(map[string]any{"id": p.last, "op": op, "args": args})
	if err == nil {
		p.waiting[p.last] = ch
		if _, writeErr := p.in.Write(append(b, '\n')); writeErr != nil { // the pipe's other end is closed
			err = ErrNotRunning
		}
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", op, ctx.Err())
	case <-p.Done:
		return ErrNotRunning
	case r := <-ch:
		switch {
		case r.Error != "":
			return fmt.Errorf("%s: %s", op, r.Error)
		case result == nil:
			return nil
		}
		return json.Unmarshal(r.Result, result)
	}
}

// Kill ends the process by SIGKILL and waits for its end.
func (p *Process) Kill() {
	_ = p.Process.Kill() // or it has ended
	<-p.Done
}

// Tail returns the last lines of a log, or why there are none.
func Tail(log string, lines int) string {
	b, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
