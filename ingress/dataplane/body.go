// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
)

// requestBody is the body of a request to a backend. The transport does not close it, so that another attempt can send
// it as long as nothing was read. net/http closes the client's body after the request.
type requestBody struct {
	request  *request
	inner    io.Reader
	began    atomic.Bool
	reading  atomic.Bool
	done     atomic.Bool
	failed   atomic.Bool
	limit    int64 // in bytes; 0 for none
	read     atomic.Int64
	tooLarge atomic.Bool // the limit was exceeded
	mirrors  []*mirrorBody
}

var errBodyTooLarge = errors.New("the request's body is greater than the route allows")

var errBodyBegan = errors.New("a part of the request's body has been sent already")

// Read reads from the client.
func (b *requestBody) Read(to []byte) (int, error) {
	b.began.Store(true)
	b.request.timeouts.recordBytes()
	b.reading.Store(true)
	n, err := b.inner.Read(to)
	b.reading.Store(false)
	if n > 0 {
		b.request.timeouts.recordBytes()
	}
	b.mirror(to[:n])
	if read := b.read.Add(int64(n)); b.limit > 0 && read > b.limit {
		b.tooLarge.Store(true)
		b.failed.Store(true)
		return 0, errBodyTooLarge
	}
	switch {
	case errors.Is(err, io.EOF):
		b.done.Store(true)
		b.endMirrors(nil)
		removeTrailers(b.request.in.Trailer)
		for name := range b.request.trailers {
			b.request.trailers[name] = b.request.in.Trailer[name] // quic-go makes another map, which outgoing does not use
		}
	case err != nil:
		b.failed.Store(true)
	}
	return n, err
}

// Close does nothing.
func (b *requestBody) Close() error { return nil }

// reopen is the request's GetBody. net/http calls it before it sends the request on another connection.
func (b *requestBody) reopen() (io.ReadCloser, error) {
	if b.began.Load() {
		return nil, errBodyBegan
	}
	return b, nil
}

// removeTrailers removes trailers that a client may not send, since some backends add trailers to the headers.
func removeTrailers(h http.Header) {
	removeHopByHop(h)
	removeUnderscores(h)
	delete(h, headerProxy)
	for name := range h {
		if forwarding(name) {
			delete(h, name)
		}
	}
}
