// SPDX-License-Identifier: Apache-2.0

package drain

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func (p *Pipe) spooling() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spool != nil
}

// startSpool makes the spool and starts the goroutine that writes the spool's content to Out when there is a reader
// again.
func (p *Pipe) startSpool() {
	p.mu.Lock()
	p.spool = newSpool(p.opts.Dir, p.opts.Name, p.opts.Limit)
	p.progress = time.Time{}
	p.mu.Unlock()
	p.replays.Go(p.replay)
}

// spoolOutput appends output to the spool. While the spool is full, a reader that makes progress slows the container
// down, as a FIFO would. Without such a reader the oldest output is dropped.
func (p *Pipe) spoolOutput(b []byte) {
	p.mu.Lock()
	for p.spool != nil && p.spool.exceedsLimit(len(b)) && p.HasReader() && time.Since(p.progress) < p.opts.Stall && !p.isClosed() {
		p.mu.Unlock()
		p.awaitReplay()
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	if p.spool == nil { // the replay has just finished: begin a new spool with these bytes, their order is kept
		p.spool = newSpool(p.opts.Dir, p.opts.Name, p.opts.Limit)
		p.replays.Go(p.replay)
	}
	p.spool.append(b)
}

// awaitReplay waits until the replay has freed space, or for Options.Stall, after which the caller checks the replay's
// progress again.
func (p *Pipe) awaitReplay() {
	t := time.NewTimer(p.opts.Stall)
	defer t.Stop()
	select {
	case <-p.spaceFreed:
	case <-t.C:
	case <-p.closed:
	}
}

// replay writes the spool's content to Out. It ends when the spool is empty and the reader keeps up.
func (p *Pipe) replay() {
	buf := make([]byte, 64<<10)
	for !p.isClosed() {
		if !p.HasReader() {
			p.sleep(returnPoll)
			continue
		}
		p.mu.Lock()
		seg, chunk := p.spool.peek(buf)
		p.mu.Unlock()
		if len(chunk) == 0 {
			if p.awaitSpace() && p.endSpool() {
				return
			}
			continue
		}
		p.writeDeadline(time.Now().Add(p.opts.Stall))
		n, err := p.out.Write(chunk)
		p.clearDeadline()
		p.mu.Lock()
		if n > 0 {
			p.spool.advance(seg, n)
			p.progress = time.Now()
		}
		p.mu.Unlock()
		p.signalSpace()
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, unix.EPIPE) {
			p.sleep(returnPoll) // no known error gets here; the pause prevents a busy loop
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spool.remove()
	p.spool = nil
	p.signalSpace()
}

// endSpool removes the spool, so that output moves directly again. It returns false, and keeps the spool, when output
// was added meanwhile.
func (p *Pipe) endSpool() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.spool.empty() {
		return false
	}
	p.spool.remove()
	p.spool = nil
	p.signalSpace()
	return true
}

func (p *Pipe) signalSpace() {
	select {
	case p.spaceFreed <- struct{}{}:
	default:
	}
}
