// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// maxEarly limits the informational responses before a backend's response to a websocket's handshake.
const maxEarly = 5

// isWebsocket reports whether the request asks for a websocket. Other upgrades are not forwarded: requests on an h2c
// connection would not be routed.
func (r *request) isWebsocket() bool {
	in := r.in
	upgrade := in.Header["Upgrade"]
	return len(upgrade) == 1 && in.ProtoMajor == 1 && in.ProtoMinor == 1 && in.Method == http.MethodGet && in.ContentLength == 0 &&
		strings.EqualFold(upgrade[0], "websocket") && hasToken(in.Header["Connection"], "upgrade")
}

// forwardWebsocket sends the handshake to a backend on a connection of its own. When the backend agrees, both
// connections become a tunnel. It does not use http.Transport, whose connection would hold its buffers for as long as
// the tunnel is open.
func (x *exchange) forwardWebsocket(b *backend) {
	x.out["Connection"] = []string{"Upgrade"}
	x.out["Upgrade"] = []string{"websocket"}
	var conn net.Conn
	var out *http.Request
	err := x.selection.attempt(b.endpoints, func(e *endpoint) (err error) {
		out = x.outgoing(e)
		conn, err = x.proxy.upstream.dialTunnel(x.ctx, e)
		if err == nil && b.tls {
			conn = tls.Client(conn, b.client.config())
		}
		return err
	}, x.repeatable)
	if err != nil {
		x.failed(err)
		return
	}
	release := context.AfterFunc(x.ctx, func() { _ = conn.Close() })
	handed := false
	defer func() {
		if !handed {
			_ = conn.Close()
		}
	}()
	limited := &io.LimitedReader{R: conn, N: maxResponseHeader}
	reader := bufio.NewReader(limited)
	res, err := shakeHands(conn, reader, out)
	if err != nil {
		x.failed(err)
		return
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		limited.N = math.MaxInt64
		x.respond(res)
		return
	}
	if !hasToken(res.Header["Upgrade"], "websocket") {
		x.answer(http.StatusBadGateway, "the backend switched to a protocol that was not requested")
		return
	}
	if !release() {
		panic(http.ErrAbortHandler) // the client has closed the connection or the time is over
	}
	early, _ := reader.Peek(reader.Buffered())
	handed = true
	x.tunnel(conn, res, bytes.Clone(early))
}

// shakeHands sends the request and returns the first response that is not informational.
func shakeHands(conn net.Conn, reader *bufio.Reader, out *http.Request) (*http.Response, error) {
	if err := out.Write(conn); err != nil {
		return nil, fmt.Errorf("sending the handshake of a websocket: %w", err)
	}
	for range maxEarly {
		res, err := http.ReadResponse(reader, out)
		if err != nil {
			return nil, fmt.Errorf("reading the response to the handshake of a websocket: %w", err)
		}
		if res.StatusCode == http.StatusSwitchingProtocols || res.StatusCode >= 200 {
			return res, nil
		}
		_ = res.Body.Close() // has no content
	}
	return nil, errors.New("the backend sent informational responses only")
}

// tunnel sends the backend's response to the client and makes a tunnel of both connections. The request's goroutine,
// with the stack that it has grown, ends then.
func (x *exchange) tunnel(conn net.Conn, res *http.Response, early []byte) {
	removeHopByHop(res.Header)
	res.Header["Connection"] = []string{"Upgrade"}
	res.Header["Upgrade"] = []string{"websocket"}
	var head bytes.Buffer
	head.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = res.Header.Write(&head) // a bytes.Buffer returns no error
	head.WriteString("\r\n")

	x.timeouts.stop()
	client, rw, err := x.ctl.Hijack()
	if err != nil {
		_ = conn.Close()
		panic(fmt.Errorf("taking the connection of a websocket over: %w", err))
	}
	x.status = http.StatusSwitchingProtocols
	late, _ := rw.Reader.Peek(rw.Reader.Buffered())
	t := &tunnel{listener: x.listener, client: client, backend: conn, stall: x.proxy.options.IdleTimeout, release: x.releaseLimiter}
	x.releaseLimiter = nil
	if !x.listener.add(t) {
		t.close()
		t.released()
		return
	}
	t.openDirections.Store(2)
	go t.pipe(conn, client, bytes.Clone(late))
	go t.pipe(client, conn, append(head.Bytes(), early...))
}

// tunnel is two connections whose bytes are copied to each other. It ends when both have ended, one has failed, or
// close is called.
type tunnel struct {
	listener        *listener
	client, backend net.Conn
	stall           time.Duration // how long a peer may not read, or not send after the other has ended
	openDirections  atomic.Int32  // directions that have not ended
	half            atomic.Bool   // one direction has ended
	release         func()        // removes the tunnel from a limiter's counts; nil for none
	cancel          func()        // ends the attempt to connect; nil for none

	mu     sync.Mutex // guards closed; also client and backend until both are set
	closed bool
}

// released removes the tunnel from a limiter's counts.
func (t *tunnel) released() {
	if t.release != nil {
		t.release()
	}
}

// close ends both directions at once.
func (t *tunnel) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.closed = true
	if t.cancel != nil {
		t.cancel()
	}
	_ = t.client.Close()
	if t.backend != nil {
		_ = t.backend.Close()
	}
}

// setConns sets the connections. When the tunnel was closed, it closes backend and returns false. backend may be nil.
func (t *tunnel) setConns(client, backend net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.client, t.backend = client, backend
	if t.closed && backend != nil {
		_ = backend.Close()
	}
	return !t.closed
}

// pipe copies one direction. At the end of the bytes it closes only this direction of the connection to.
func (t *tunnel) pipe(to, from net.Conn, first []byte) {
	err := t.write(to, first)
	if err == nil {
		err = t.copy(to, from)
	}
	if err == nil {
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			_ = to.SetWriteDeadline(time.Now().Add(t.stall))
			err = half.CloseWrite()
		}
	}
	if err != nil {
		t.close()
	}
	t.half.Store(true)
	_ = to.SetReadDeadline(time.Now().Add(t.stall)) // the other direction renews the deadline with each piece
	if t.openDirections.Add(-1) == 0 {
		t.close()
		t.listener.remove(t)
	}
}

// copy copies what it reads from the connection from. It returns nil at the end of from.
func (t *tunnel) copy(to, from net.Conn) error {
	read, err := pieceReader(from)
	if err != nil {
		return err
	}
	for {
		if t.half.Load() {
			_ = from.SetReadDeadline(time.Now().Add(t.stall))
		}
		n, err := read(func(piece []byte) error { return t.write(to, piece) })
		if errors.Is(err, io.EOF) || err == nil && n == 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (t *tunnel) write(to net.Conn, piece []byte) error {
	if len(piece) == 0 {
		return nil
	}
	_ = to.SetWriteDeadline(time.Now().Add(t.stall))
	_, err := to.Write(piece)
	return err
}

// pieceReader returns a function that reads one piece from a connection and passes it to use. For a TCP connection it
// takes a buffer from the pool only once there are bytes to read. TLS reads into a small buffer that the tunnel holds,
// since TLS does not report whether it has more decrypted bytes.
func pieceReader(conn net.Conn) (func(use func([]byte) error) (int, error), error) {
	plain, ok := conn.(syscall.Conn)
	if !ok {
		held := make([]byte, 4<<10)
		return func(use func([]byte) error) (int, error) {
			n, err := conn.Read(held)
			if n > 0 {
				if failure := use(held[:n]); failure != nil {
					return n, failure
				}
			}
			return n, err
		}, nil
	}
	raw, err := plain.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("taking hold of the socket of a tunnel: %w", err)
	}
	return func(use func([]byte) error) (int, error) {
		b, n, err := receive(raw)
		if b == nil {
			return 0, err
		}
		defer buffers.Put(b)
		if n > 0 {
			err = use(b[:n])
		}
		return n, err
	}, nil
}

// receive waits until the socket has bytes, or has ended. It reads them into a buffer of the pool.
func receive(raw syscall.RawConn) (*buffer, int, error) {
	var b *buffer
	var n int
	var failure error
	err := raw.Read(func(fd uintptr) bool {
		b = buffers.Get().(*buffer)
		for {
			n, failure = syscall.Read(int(fd), b[:])
			if failure != syscall.EINTR {
				break
			}
		}
		if failure == syscall.EAGAIN {
			buffers.Put(b)
			b = nil
			return false
		}
		return true
	})
	if err != nil {
		return nil, 0, err
	}
	if failure != nil {
		buffers.Put(b)
		return nil, 0, os.NewSyscallError("read", failure)
	}
	return b, n, nil
}
