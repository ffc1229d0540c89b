// SPDX-License-Identifier: Apache-2.0

// Package drain stands between a container's output and the process that reads it, so that a container never stops
// because its reader went away.
//
// Upstream's shim writes into a FIFO that containerd reads. While containerd is gone the FIFO fills at 64 KiB and the
// container blocks in write(2): a web server that logs its requests stops serving. For us that would be every restart
// of the agent. A Pipe moves bytes from one FIFO to another inside the kernel (splice) for as long as there is a
// reader, and into files when there is none; a returning reader gets everything in order. The files are bounded: beyond
// the limit the oldest output is dropped, and one line in the output says how much.
//
// It owns the FIFO it makes, the files in its folder and two goroutines at most. It knows nothing of containers or
// logs.
package drain

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Defaults of Options.
const (
	DefaultLimit = 64 << 20
	DefaultStall = 2 * time.Second
)

// returnPoll is how often an absent reader is looked for. It costs nothing while one is there.
const returnPoll = 100 * time.Millisecond

// long is a deadline that has long passed: it ends each wait, now and later.
var long = time.Unix(1, 0)

// spliceMax is the most to move at once, in bytes; a FIFO holds 64 KiB unless a program resized it.
const spliceMax = 1 << 20

// Options describe one stream.
type Options struct {
	// In is the FIFO for the container's side; Start makes it.
	In string
	// Out is the FIFO that the reader opens; it must exist.
	Out string
	// Dir and Name say where output goes without a reader: Dir/Name.N, made when first needed.
	Dir, Name string
	// Limit bounds those files, in bytes.
	Limit int64
	// Stall is how long a reader may leave Out full before it counts as away. A reader that is merely slow slows the
	// container down, as without a Pipe; one that is stuck must not.
	Stall time.Duration
}

// Pipe is one running stream.
type Pipe struct {
	opts Options
	in   *os.File
	out  *os.File
	hold atomic.Pointer[os.File] // a writer of In, kept until the container's side has opened its own

	mu       sync.Mutex
	spool    *spool    // nil while the reader keeps up
	progress time.Time // when the reader last took something from the spool

	replays sync.WaitGroup // the goroutine that empties the spool, while there is one
	room    chan struct{}  // capacity 1: signalled when there is room
	closed  chan struct{}
	close1  sync.Once
	done    chan struct{}
}

// Start makes In and begins to move.
func Start(o Options) (*Pipe, error) {
	o.Limit = cmp.Or(o.Limit, DefaultLimit)
	o.Stall = cmp.Or(o.Stall, DefaultStall)
	p := &Pipe{opts: o, room: make(chan struct{}, 1), closed: make(chan struct{}), done: make(chan struct{})}
	if err := p.open(); err != nil {
		p.closeFiles()
		return nil, fmt.Errorf("drain %s: %w", o.Name, err)
	}
	go p.run()
	return p, nil
}

// open opens both ends in an order that never waits for a peer.
func (p *Pipe) open() (err error) {
	if err := unix.Mkfifo(p.opts.In, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make %s: %w", p.opts.In, err)
	}
	if p.in, err = os.OpenFile(p.opts.In, unix.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return err
	}
	hold, err := os.OpenFile(p.opts.In, unix.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	p.hold.Store(hold)
	// A FIFO without a reader cannot be opened for writing alone. Opening it for both and closing that again leaves a
	// writer that the kernel tells when the last reader goes: upstream's shim keeps a reader itself and never learns.
	both, err := os.OpenFile(p.opts.Out, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer both.Close()
	p.out, err = os.OpenFile(p.opts.Out, unix.O_WRONLY|unix.O_NONBLOCK, 0)
	return err
}

// Seal says that the container's side has opened In: from now on its closing ends the stream.
func (p *Pipe) Seal() {
	if f := p.hold.Swap(nil); f != nil {
		f.Close()
	}
}

// Done is closed when the stream has ended and everything was handed over, or after Close.
func (p *Pipe) Done() <-chan struct{} { return p.done }

// HasReader says whether a process has Out open for reading.
func (p *Pipe) HasReader() bool { return hasReader(p.out) }

// Close gives the stream up, with what was not handed over, and waits until nothing of it is left.
func (p *Pipe) Close() {
	p.close1.Do(func() { close(p.closed) })
	p.Seal()
	_ = p.in.SetReadDeadline(long)
	p.writeDeadline(long)
	<-p.done
}

func (p *Pipe) isClosed() bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}

// run moves until the container's side has closed, then sees to it that the reader gets the rest.
func (p *Pipe) run() {
	defer close(p.done)
	defer p.closeFiles()
	for !p.isClosed() {
		var ended bool
		if p.spooling() {
			ended = p.store()
		} else {
			ended = p.pass()
		}
		if ended {
			break
		}
	}
	p.awaitDelivery()
}

// outcome of one attempt to move bytes inside the kernel.
type outcome int

const (
	moved outcome = iota
	ended
	full   // Out has no room
	absent // Out has no reader
)

// pass waits for output and hands it on, until the stream ends (true) or the reader has to be bypassed.
func (p *Pipe) pass() bool {
	for {
		switch p.splice() {
		case moved:
		case ended:
			return true
		case absent:
			p.startSpool()
			return false
		case full:
			if !p.awaitRoom() {
				p.startSpool()
				return false
			}
		}
	}
}

// splice waits for output and moves it once. Errors that it does not know end the stream: there is no caller to report
// them to.
func (p *Pipe) splice() outcome {
	result := ended
	in, err := p.in.SyscallConn()
	if err != nil {
		return ended
	}
	out, err := p.out.SyscallConn()
	if err != nil {
		return ended
	}
	_ = out.Control(func(outFD uintptr) {
		_ = in.Read(func(inFD uintptr) bool {
			for {
				n, err := unix.Splice(int(inFD), nil, int(outFD), nil, spliceMax, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
				switch {
				case err == unix.EINTR:
				case err == nil && n > 0:
					result = moved
					return true
				case err == nil:
					result = ended
					return true
				case err == unix.EPIPE:
					result = absent
					return true
				case err == unix.EAGAIN:
					if waiting, _ := unix.IoctlGetInt(int(inFD), unix.TIOCINQ); waiting == 0 {
						return false // nothing to move yet
					}
					result = full
					return true
				default:
					result = ended
					return true
				}
			}
		})
	})
	return result
}

// awaitRoom waits until Out takes bytes again, true, or its reader has gone or stalled.
func (p *Pipe) awaitRoom() bool {
	p.writeDeadline(time.Now().Add(p.opts.Stall))
	defer p.clearDeadline()
	conn, err := p.out.SyscallConn()
	if err != nil {
		return false
	}
	room := false
	_ = conn.Write(func(fd uintptr) bool {
		ev := poll(int(fd), unix.POLLOUT)
		room = ev&(unix.POLLOUT|unix.POLLERR) == unix.POLLOUT
		return ev != 0
	})
	return room
}

// clearDeadline takes the deadline back, except where Close has set one for good.
func (p *Pipe) clearDeadline() {
	p.writeDeadline(time.Time{})
	if p.isClosed() {
		p.writeDeadline(long)
	}
}

// writeDeadline ends waiting for Out. It fails for a closed file alone, where no call waits any more.
func (p *Pipe) writeDeadline(t time.Time) { _ = p.out.SetWriteDeadline(t) }

// store keeps output in the spool until the replay has caught up (false) or the stream has ended (true).
func (p *Pipe) store() bool {
	buf := make([]byte, 64<<10) // only for as long as the reader is away
	for p.awaitInput() && p.spooling() {
		n, err := p.in.Read(buf)
		if n > 0 {
			p.spoolOutput(buf[:n])
		}
		if err != nil {
			return true
		}
	}
	return p.isClosed()
}

// awaitInput waits until there is output to read or the stream has ended; false after Close.
func (p *Pipe) awaitInput() bool {
	conn, err := p.in.SyscallConn()
	if err != nil {
		return false
	}
	// The poller reports changes only, and the end may have come before this call: ask for the state each time.
	err = conn.Read(func(fd uintptr) bool { return poll(int(fd), unix.POLLIN) != 0 })
	return err == nil
}

// awaitDelivery keeps Out open until a reader has it all: what lies in a FIFO is lost with its last opener.
func (p *Pipe) awaitDelivery() {
	for !p.isClosed() && (p.spooling() || (!p.HasReader() && unread(p.out) > 0)) {
		p.sleep(returnPoll)
	}
	p.replays.Wait()
}

// sleep waits, but not beyond Close.
func (p *Pipe) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.closed:
	}
}

func (p *Pipe) closeFiles() {
	for _, f := range []*os.File{p.in, p.hold.Swap(nil), p.out} {
		if f != nil {
			f.Close()
		}
	}
	os.Remove(p.opts.In)
	matches, _ := filepath.Glob(filepath.Join(p.opts.Dir, p.opts.Name+".*"))
	for _, m := range matches {
		os.Remove(m)
	}
}

func hasReader(f *os.File) bool {
	present := false
	if conn, err := f.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { present = poll(int(fd), unix.POLLOUT)&unix.POLLERR == 0 })
	}
	return present
}

// unread is how many bytes lie in the FIFO.
func unread(f *os.File) int {
	n := 0
	if conn, err := f.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return n
}

// poll asks without waiting for the wanted events. POLLERR (no reader) and POLLHUP (no writer) come unasked.
func poll(fd int, want int16) int16 {
	fds := []unix.PollFd{{Fd: int32(fd), Events: want}}
	for {
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return 0
		}
		return fds[0].Revents
	}
}
