// SPDX-License-Identifier: Apache-2.0

package memtransport

import (
	"cmp"
	"io"
	"net/http"
	"sync"
)

// pipeBuffer is how many bytes a handler may write before its client reads them. Most objects fit, so a handler returns
// before the client has begun to decode.
const pipeBuffer = 128 << 10

// pipe is a bounded byte queue with an error for the reader and one for the writer.
type pipe struct {
	mu         sync.Mutex
	changed    sync.Cond
	buf        []byte
	readOffset int   // buf[:readOffset] has been read
	writeErr   error // what the reader gets once buf is empty
	readErr    error // what the reader gets after closeRead
}

func newPipe() *pipe {
	p := &pipe{}
	p.changed.L = &p.mu
	return p
}

// write appends b, and waits for space. It never keeps b.
func (p *pipe) write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for {
		if p.readErr != nil {
			return n, errClientClosed
		}
		if p.writeErr != nil {
			return n, io.ErrClosedPipe
		}
		if n == len(b) {
			return n, nil
		}
		if room := pipeBuffer - (len(p.buf) - p.readOffset); room > 0 {
			chunk := b[n:min(len(b), n+room)]
			if p.readOffset > 0 && len(p.buf)+len(chunk) > cap(p.buf) {
				p.buf = append(p.buf[:0], p.buf[p.readOffset:]...)
				p.readOffset = 0
			}
			p.buf = append(p.buf, chunk...)
			n += len(chunk)
			p.changed.Broadcast()
			continue
		}
		p.changed.Wait()
	}
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.readErr != nil {
			return 0, p.readErr
		}
		if p.readOffset < len(p.buf) {
			n := copy(b, p.buf[p.readOffset:])
			p.readOffset += n
			if p.readOffset == len(p.buf) {
				p.buf, p.readOffset = p.buf[:0], 0
				if cap(p.buf) > 16<<10 {
					p.buf = nil // a watch must not keep the buffer of its largest event
				}
			}
			p.changed.Broadcast()
			return n, nil
		}
		if p.writeErr != nil {
			return 0, p.writeErr
		}
		if len(b) == 0 {
			return 0, nil
		}
		p.changed.Wait()
	}
}

func (p *pipe) closeWrite(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writeErr = cmp.Or(p.writeErr, err)
	p.changed.Broadcast()
}

func (p *pipe) closeRead(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readErr == nil {
		p.readErr = err
		p.buf, p.readOffset = nil, 0
	}
	p.changed.Broadcast()
}

// responseBody is the response body that the client reads.
type responseBody struct{ ex *exchange }

func (b *responseBody) Read(p []byte) (int, error) { return b.ex.body.read(p) }

// Close cancels the handler unless it has returned.
func (b *responseBody) Close() error {
	b.ex.body.closeRead(http.ErrBodyReadAfterClose)
	b.ex.abort(errClientClosed)
	return nil
}

// requestBody lets the handler read the client's body until the handler returns. It closes the body exactly once.
type requestBody struct {
	mu     sync.Mutex
	rc     io.ReadCloser
	closed bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.rc.Read(p)
}

func (b *requestBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	return b.rc.Close()
}
