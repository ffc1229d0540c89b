// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/ingress/variable"
)

// Limits of mirrored requests. A mirror that is stuck or slow thus takes limited memory and delays no request. A
// request that exceeds a limit is not mirrored.
const (
	// maxMirrors limits the mirrored requests under way. One mirror may have half of them.
	maxMirrors = 256
	// maxMirrorLag limits the bytes of a request's body that were read but not yet sent to the mirror. maxMirrorMemory
	// limits the same bytes over all requests.
	maxMirrorLag    = 1 << 20
	maxMirrorMemory = 32 << 20
)

var (
	errMirrorCut = errors.New("the request ended before its body")
	errMirrorLag = errors.New("the mirror takes the request's body too slowly")
)

// mirrors counts what all mirrors of a proxy have.
type mirrors struct {
	open   atomic.Int64 // mirrored requests under way
	memory atomic.Int64 // bytes of their bodies that are held
}

// mirror is a compiled table.Mirror.
type mirror struct {
	backend                backend       // without endpoints for a URL outside of the cluster
	url                    variable.Text // empty for the request's own
	noBody                 bool
	numerator, denominator uint64
	requests               atomic.Uint64
	open                   atomic.Int64
}

func (c compiler) compileMirror(from *table.Mirror) (*mirror, error) {
	if from.Numerator < 0 || from.Denominator < 1 {
		return nil, fmt.Errorf("%d of %d requests cannot be mirrored", from.Numerator, from.Denominator)
	}
	out := &mirror{numerator: uint64(from.Numerator), denominator: uint64(from.Denominator)}
	out.noBody = from.NoBody
	var err error
	if out.url, err = variable.Parse(from.URL); err != nil {
		return nil, fmt.Errorf("reading the URL of a mirror: %w", err)
	}
	if from.Backend.Service == "" && len(out.url) > 0 {
		out.backend.request, err = compileHeaders(from.Backend.RequestHeaders, true)
		return out, err
	}
	out.backend, err = c.compileBackend(from.Backend)
	return out, err
}

// mirror sends a copy of the request to each mirror whose turn it is. It does not wait for the mirrors.
func (x *exchange) mirror() {
	for _, m := range x.policy.mirrors {
		if m.backend.invalid || spread(&m.requests, m.denominator) >= m.numerator {
			continue
		}
		open, all := m.open.Add(1), x.proxy.mirrors.open.Add(1)
		c := m.copyOf(x)
		if c.req == nil || open > maxMirrors/2 || all > maxMirrors || !x.listener.mirror(c.run) {
			x.proxy.stats.MirrorsDropped.Add(1)
			c.finish()
			continue
		}
		if c.body != nil {
			x.body.mirrors = append(x.body.mirrors, c.body)
		}
	}
}

// mirror runs a mirrored request in a goroutine that a drain waits for. It returns false when the listener was drained.
func (h *listener) mirror(run func(context.Context)) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.mirrors.Go(func() { run(h.mirroring) })
	return true
}

// mirrorRequest is a copy of a request on its way to a mirror.
type mirrorRequest struct {
	proxy  *Proxy
	mirror *mirror
	req    *http.Request
	body   *mirrorBody // nil for a request without a body
}

func (m *mirror) copyOf(x *exchange) *mirrorRequest {
	c := &mirrorRequest{proxy: x.proxy, mirror: m}
	c.req = &http.Request{
		Method: x.in.Method, Host: x.in.Host, Header: x.out.Clone(), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		URL: &url.URL{Scheme: "http", Opaque: x.path.forward, RawQuery: x.in.URL.RawQuery, ForceQuery: x.in.URL.ForceQuery},
	}
	x.policy.rename(c.req)
	if len(m.url) > 0 {
		text, ok := x.expand(m.url)
		target, err := url.Parse(text)
		if !ok || err != nil || target.Host == "" {
			c.req = nil
			return c
		}
		c.req.URL, c.req.Host = target, target.Host
	}
	delete(c.req.Header, "Expect")
	m.backend.request.apply(c.req.Header)
	if m.backend.request != nil && m.backend.request.host != "" {
		c.req.Host = m.backend.request.host
	}
	if m.backend.tls {
		c.req.URL.Scheme = "https"
	}
	if m.noBody {
		delete(c.req.Header, "Content-Length")
	} else if x.in.ContentLength != 0 {
		c.body = &mirrorBody{mirrors: &x.proxy.mirrors}
		c.body.filled.L = &c.body.mu
		c.req.Body, c.req.ContentLength = c.body, x.in.ContentLength
	}
	return c
}

// finish stops counting the copy for the limits, and drops its body.
func (c *mirrorRequest) finish() {
	if c.body != nil {
		c.body.discard()
	}
	c.mirror.open.Add(-1)
	c.proxy.mirrors.open.Add(-1)
}

// run sends the copy and discards the response. It ends at the latest when no byte of the body was received for
// Options.IdleTimeout.
func (c *mirrorRequest) run(ctx context.Context) {
	defer c.finish()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	limit := time.AfterFunc(c.proxy.options.IdleTimeout, cancel)
	defer limit.Stop()
	if c.body != nil {
		c.body.onRead(func() { limit.Reset(c.proxy.options.IdleTimeout) })
		defer context.AfterFunc(ctx, func() { c.body.finish(context.Cause(ctx)) })()
	}
	var err error
	if c.mirror.backend.endpoints == nil {
		err = c.send(ctx, c.proxy.upstream.outside, c.req.URL.Host)
	} else {
		err = selection{}.attempt(c.mirror.backend.endpoints, func(e *endpoint) error {
			return c.send(e.context(ctx), c.proxy.upstream.client(&c.mirror.backend), e.address)
		}, func() bool { return c.body == nil || !c.body.read.Load() })
	}
	if err != nil {
		c.proxy.stats.MirrorsFailed.Add(1)
		c.proxy.options.Logger.Debug("a mirror failed", "host", c.req.Host, "error", err)
	}
}

func (c *mirrorRequest) send(ctx context.Context, by *http.Transport, address string) error {
	out := c.req.WithContext(ctx)
	target := *c.req.URL
	target.Host = address
	out.URL = &target
	res, err := by.RoundTrip(out)
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.Discard, res.Body, maxUnread)
	_ = res.Body.Close()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// mirrorBody is the copy of a request's body, filled while the client sends it. It holds the bytes that the mirror has
// not read yet.
type mirrorBody struct {
	mirrors *mirrors
	read    atomic.Bool // the mirror has begun to read the body

	mu      sync.Mutex
	filled  sync.Cond
	held    bytes.Buffer
	err     error // why no more bytes follow; io.EOF at the body's end; nil before
	onPiece func()
}

// onRead makes write call f for each piece of the body.
func (b *mirrorBody) onRead(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.onPiece = f
}

// write adds a piece. If the mirror reads too slowly, write ends the body. It does not wait for the mirror.
func (b *mirrorBody) write(piece []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return
	}
	if b.held.Len()+len(piece) > maxMirrorLag {
		b.stop(errMirrorLag)
		return
	}
	b.held.Write(piece)
	if b.mirrors.memory.Add(int64(len(piece))) > maxMirrorMemory {
		b.stop(errMirrorLag)
		return
	}
	if b.onPiece != nil {
		b.onPiece()
	}
	b.filled.Signal()
}

// finish records that no more bytes follow. A nil cause means the end of the body. Only the first call has an effect.
func (b *mirrorBody) finish(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	cause = cmp.Or(cause, io.EOF)
	if b.err == nil {
		b.stop(cause)
	}
}

// stop must be called with mu held. The mirror can read the remaining bytes only if cause is io.EOF.
func (b *mirrorBody) stop(cause error) {
	b.err = cause
	if !errors.Is(cause, io.EOF) {
		b.dropHeld()
	}
	b.filled.Signal()
}

func (b *mirrorBody) dropHeld() {
	b.mirrors.memory.Add(-int64(b.held.Len()))
	b.held = bytes.Buffer{}
}

// Read returns held bytes. If there are none, it waits for the client's next piece.
func (b *mirrorBody) Read(to []byte) (int, error) {
	b.read.Store(true)
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.held.Len() == 0 {
		if b.err != nil {
			return 0, b.err
		}
		b.filled.Wait()
	}
	n, _ := b.held.Read(to)
	b.mirrors.memory.Add(-int64(n))
	return n, nil
}

// Close drops the bytes that the mirror has not read. It keeps them if the mirror has read none: a transport closes the
// body after a failed dial, too, and the next attempt has still to send it.
func (b *mirrorBody) Close() error {
	if b.read.Load() {
		b.discard()
	}
	return nil
}

// discard drops the bytes that the mirror has not read and all further ones.
func (b *mirrorBody) discard() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stop(io.ErrClosedPipe)
}

func (b *requestBody) mirror(piece []byte) {
	if len(piece) == 0 {
		return
	}
	for _, m := range b.mirrors {
		m.write(piece)
	}
}

func (b *requestBody) endMirrors(cause error) {
	for _, m := range b.mirrors {
		m.finish(cause)
	}
}
