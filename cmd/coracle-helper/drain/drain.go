// SPDX-License-Identifier: Apache-2.0

// Package drain relays a container's output to the process that reads it. So a container does not block when that
// process has exited.
//
// Upstream's shim writes into a FIFO that containerd reads. While containerd does not run, the FIFO fills at 64 KiB and
// the container blocks in write(2): a web server that logs its requests stops serving. In coracle, each restart of the
// agent would cause that. A Pipe moves bytes from one FIFO to another inside the kernel (splice) while there is a
// reader, and into files while there is none. A returning reader gets everything in order. The size of the files is
// limited: beyond the limit the oldest output is dropped, and one line in the output gives the number of missing bytes.
//
// A Pipe owns the FIFO that it makes, the files in its folder and at most two goroutines. The package knows nothing of
// containers or logs.
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

// returnPoll is the interval at which a Pipe that has no reader checks whether one has opened Options.Out. A Pipe with
// a reader does not poll.
const returnPoll = 100 * time.Millisecond

// pastDeadline is a deadline in the distant past. Setting it ends the current wait and each later one.
var pastDeadline = time.Unix(1, 0)

// spliceMax is the most that one call moves, in bytes. A FIFO holds 64 KiB unless a program resized it.
const spliceMax = 1 << 20

// Options describe one stream.
type Options struct {
	// In is the path of the FIFO into which the container writes. Start makes it.
	In string
	// Out is the path of the FIFO that the reader opens. It must exist.
	Out string
	// Dir and Name name the files for output without a reader: Dir/Name.N. Each is made when it is first needed.
	Dir, Name string
	// Limit is the maximum total size of those files, in bytes.
	Limit int64
	// Stall is how long a reader may leave Out full before the Pipe treats it as absent. A merely slow reader slows the
	// container down, as without a Pipe. A stuck reader must not.
	Stall time.Duration
}

// Pipe is one running stream.
type Pipe struct {
	opts     Options
	in       *os.File
	out      *os.File
	writeEnd atomic.Pointer[os.File] // a writer of In, kept open until the container has opened its end

	mu       sync.Mutex
	spool    *spool    // nil while the reader keeps up
	progress time.Time // when the reader last read something from the spool

	replays    sync.WaitGroup // the goroutine that empties the spool, while there is one
	spaceFreed chan struct{}  // capacity 1: signalled when the spool has free space
	closed     chan struct{}
	close1     sync.Once
	done       chan struct{}
}

// Start makes the FIFO In and starts the goroutine that moves output.
func Start(o Options) (*Pipe, error) {
	o.Limit = cmp.Or(o.Limit, DefaultLimit)
	o.Stall = cmp.Or(o.Stall, DefaultStall)
	p := &Pipe{opts: o, spaceFreed: make(chan struct{}, 1), closed: make(chan struct{}), done: make(chan struct{})}
	if err := p.open(); err != nil {
		p.closeFiles()
		return nil, fmt.Errorf("drain %s: %w", o.Name, err)
	}
	go p.run()
	return p, nil
}

// open opens both FIFOs in an order in which no open waits for a peer.
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
	p.writeEnd.Store(hold)
	// A FIFO without a reader cannot be opened for writing alone. So Out is opened for both, and that descriptor is
	// closed again: a writer remains to which the kernel reports that the last reader closed. Upstream's shim keeps a
	// reader itself, and so never learns that.
	both, err := os.OpenFile(p.opts.Out, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer both.Close()
	p.out, err = os.OpenFile(p.opts.Out, unix.O_WRONLY|unix.O_NONBLOCK, 0)
	return err
}

// Seal marks In as opened by the container. From then on the stream ends when the container closes In.
func (p *Pipe) Seal() {
	if f := p.writeEnd.Swap(nil); f != nil {
		f.Close()
	}
}

// Done is closed when the stream has ended and the reader got all of it, or after Close.
func (p *Pipe) Done() <-chan struct{} { return p.done }

// HasReader says whether a process has Out open for reading.
func (p *Pipe) HasReader() bool { return hasReader(p.out) }

// Close ends the stream, drops the output that was not delivered, and waits until the goroutines have ended and the
// files are removed.
func (p *Pipe) Close() {
	p.close1.Do(func() { close(p.closed) })
	p.Seal()
	_ = p.in.SetReadDeadline(pastDeadline)
	p.writeDeadline(pastDeadline)
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

// run moves output until the container has closed In, then waits until the reader has the rest.
func (p *Pipe) run() {
	defer close(p.done)
	defer p.closeFiles()
	for !p.isClosed() {
		var ended bool
		if p.spooling() {
			ended = p.store()
		} else {
			ended = p.copyThrough()
		}
		if ended {
			break
		}
	}
	p.awaitDelivery()
}

// outcome is the result of one attempt to move bytes inside the kernel.
type outcome int

const (
	bytesMoved outcome = iota
	streamEnded
	outFull      // Out is full
	readerAbsent // Out has no reader
)

// copyThrough moves output to Out. It returns true when the stream has ended, and false when output has to go to the
// spool because the reader is absent or stalled.
func (p *Pipe) copyThrough() bool {
	for {
		switch p.splice() {
		case bytesMoved:
		case streamEnded:
			return true
		case readerAbsent:
			p.startSpool()
			return false
		case outFull:
			if !p.awaitSpace() {
				p.startSpool()
				return false
			}
		}
	}
}

// splice waits for output and moves it once. Unknown errors end the stream, because there is no caller to report them
// to.
func (p *Pipe) splice() outcome {
	result := streamEnded
	in, err := p.in.SyscallConn()
	if err != nil {
		return streamEnded
	}
	out, err := p.out.SyscallConn()
	if err != nil {
		return streamEnded
	}
	_ = out.Control(func(outFD uintptr) {
		_ = in.Read(func(inFD uintptr) bool {
			for {
				n, err := unix.Splice(int(inFD), nil, int(outFD), nil, spliceMax, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
				switch {
				case err == unix.EINTR:
				case err == nil && n > 0:
					result = bytesMoved
					return true
				case err == nil:
					result = streamEnded
					return true
				case err == unix.EPIPE:
					result = readerAbsent
					return true
				case err == unix.EAGAIN:
					switch ev := pollFD(int(inFD), unix.POLLIN); {
					case ev == 0:
						return false // nothing to move yet
					case ev&unix.POLLIN != 0:
						result = outFull
					}
					return true // ended: while Out is full, splice does not report that
				default:
					result = streamEnded
					return true
				}
			}
		})
	})
	return result
}

// awaitSpace waits until Out takes bytes again, and then returns true. It returns false when the reader has closed Out,
// has stalled, or Close was called.
func (p *Pipe) awaitSpace() bool {
	p.writeDeadline(time.Now().Add(p.opts.Stall))
	defer p.clearDeadline()
	conn, err := p.out.SyscallConn()
	if err != nil {
		return false
	}
	room := false
	_ = conn.Write(func(fd uintptr) bool {
		ev := pollFD(int(fd), unix.POLLOUT)
		room = ev&(unix.POLLOUT|unix.POLLERR) == unix.POLLOUT
		return ev != 0
	})
	return room
}

// clearDeadline removes the write deadline, unless Close has set its final one.
func (p *Pipe) clearDeadline() {
	p.writeDeadline(time.Time{})
	if p.isClosed() {
		p.writeDeadline(pastDeadline)
	}
}

// writeDeadline sets the time at which waiting for Out ends. Setting it fails only for a closed file, on which no call
// waits.
func (p *Pipe) writeDeadline(t time.Time) { _ = p.out.SetWriteDeadline(t) }

// store writes output to the spool. It returns false when the replay has caught up, and true when the stream has ended.
func (p *Pipe) store() bool {
	buf := make([]byte, 64<<10) // allocated only while the reader is absent
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

// awaitInput waits until there is output to read or the stream has ended, and returns false after Close.
func (p *Pipe) awaitInput() bool {
	conn, err := p.in.SyscallConn()
	if err != nil {
		return false
	}
	// The poller reports changes only, and the stream may have ended before this call. So each round asks for the
	// state.
	err = conn.Read(func(fd uintptr) bool { return pollFD(int(fd), unix.POLLIN) != 0 })
	return err == nil
}

// awaitDelivery keeps Out open until a reader has read all of it: the content of a FIFO is lost when its last opener
// closes it.
func (p *Pipe) awaitDelivery() {
	for !p.isClosed() && (p.spooling() || (!p.HasReader() && unreadBytes(p.out) > 0)) {
		p.sleep(returnPoll)
	}
	p.replays.Wait()
}

// sleep waits for d, or until Close.
func (p *Pipe) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.closed:
	}
}

func (p *Pipe) closeFiles() {
	for _, f := range []*os.File{p.in, p.writeEnd.Swap(nil), p.out} {
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
		_ = conn.Control(func(fd uintptr) { present = pollFD(int(fd), unix.POLLOUT)&unix.POLLERR == 0 })
	}
	return present
}

func unreadBytes(f *os.File) int {
	n := 0
	if conn, err := f.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return n
}

// pollFD returns the pending events of fd without waiting. POLLERR (no reader) and POLLHUP (no writer) are reported
// without being asked for.
func pollFD(fd int, want int16) int16 {
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
