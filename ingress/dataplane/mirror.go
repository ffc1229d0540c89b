// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
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

// Bounds of mirrored requests, so that mirrors that are stuck or lag cost memory up to a bound and requests nothing.
// What exceeds one is not mirrored.
const (
	// maxMirrors bounds the mirrored requests under way; those of one mirror may be half of them.
	maxMirrors = 256
	// maxMirrorLag bounds how much of a request's body has been read and not been sent to the mirror yet,
	// maxMirrorMemory that of all requests together.
	maxMirrorLag    = 1 << 20
	maxMirrorMemory = 32 << 20
)

var (
	errMirrorCut = errors.New("the request ended before its body")
	errMirrorLag = errors.New("the mirror takes the request's body too slowly")
)

// mirror is a compiled table.Mirror.
type mirror struct {
	backend                backend       // without endpoints for a URL outside of the cluster
	url                    variable.Text // empty for the request's own
	noBody                 bool
	numerator, denominator uint64
	turn                   atomic.Uint64
	open                   atomic.Int64
}

func (p *Proxy) compileMirror(from *table.Mirror) (*mirror, error) {
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
	out.backend, err = p.compileBackend(from.Backend)
	return out, err
}

// mirror sends copies of the request to the mirrors whose turn it is. The request goes on meanwhile.
func (x *exchange) mirror() {
	for _, m := range x.policy.mirrors {
		if m.backend.invalid || spread(&m.turn, m.denominator) >= m.numerator {
			continue
		}
		open, all := m.open.Add(1), x.proxy.mirrors.Add(1)
		c := x.copyFor(m)
		if c.req == nil || open > maxMirrors/2 || all > maxMirrors || !x.listener.mirror(c.run) {
			x.proxy.stats.MirrorsDropped.Add(1)
			c.end()
			continue
		}
		if c.body != nil {
			x.body.mirrors = append(x.body.mirrors, c.body)
		}
	}
}

// mirror runs a mirrored request in a goroutine that a drain waits for; false says that the listener has been drained.
func (h *listener) mirror(run func(context.Context)) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.mirrors.Go(func() { run(h.mirroring) })
	return true
}

// mirrored is a copy of a request on its way to a mirror.
type mirrored struct {
	proxy *Proxy
	to    *mirror
	req   *http.Request
	body  *mirrorBody // nil for a request without a body
}

func (x *exchange) copyFor(m *mirror) *mirrored {
	c := &mirrored{proxy: x.proxy, to: m}
	c.req = &http.Request{
		Method: x.in.Method, Host: x.in.Host, Header: x.out.Clone(), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		URL: &url.URL{Scheme: "http", Opaque: x.path.forward, RawQuery: x.in.URL.RawQuery, ForceQuery: x.in.URL.ForceQuery},
	}
	x.policy.rename(c.req)
	if len(m.url) > 0 {
		target, err := url.Parse(x.expand(m.url))
		if err != nil || target.Host == "" {
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
		c.body = &mirrorBody{proxy: x.proxy}
		c.body.filled.L = &c.body.mu
		c.req.Body, c.req.ContentLength = c.body, x.in.ContentLength
	}
	return c
}

// end gives back the copy's part of the bounds.
func (c *mirrored) end() {
	if c.body != nil {
		c.body.discard()
	}
	c.to.open.Add(-1)
	c.proxy.mirrors.Add(-1)
}

// run sends the copy and discards the answer. It ends at the latest when nothing of the body has come for
// Options.IdleTimeout.
func (c *mirrored) run(ctx context.Context) {
	defer c.end()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	limit := time.AfterFunc(c.proxy.options.IdleTimeout, cancel)
	defer limit.Stop()
	if c.body != nil {
		c.body.onRead(func() { limit.Reset(c.proxy.options.IdleTimeout) })
		defer context.AfterFunc(ctx, func() { c.body.end(context.Cause(ctx)) })()
	}
	var err error
	if c.to.backend.endpoints == nil {
		err = c.send(ctx, c.proxy.foreignClients, c.req.URL.Host)
	} else {
		err = c.proxy.tries(c.to.backend.endpoints, func(e *endpoint) error {
			return c.send(ctx, c.proxy.to(&c.to.backend), e.address)
		}, func() bool { return c.body == nil || !c.body.read.Load() })
	}
	if err != nil {
		c.proxy.stats.MirrorsFailed.Add(1)
		c.proxy.options.Logger.Debug("a mirror failed", "host", c.req.Host, "error", err)
	}
}

// send sends the copy to an address.
func (c *mirrored) send(ctx context.Context, by *http.Transport, address string) error {
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

// tries calls try with one endpoint after the other until the connection to one succeeds, or again says that no other
// may be tried.
func (p *Proxy) tries(set *endpointSet, try func(*endpoint) error, again func() bool) error {
	var tried []*endpoint
	err := errNoEndpoints
	for len(tried) < maxAttempts {
		e := set.pick(tried, time.Now())
		if e == nil {
			return err
		}
		tried = append(tried, e)
		if err = try(e); err == nil {
			e.failed.Store(0)
			return nil
		}
		var failure *dialError
		if !errors.As(err, &failure) {
			return err
		}
		e.failed.Store(time.Now().UnixNano())
		if !again() {
			return err
		}
	}
	return err
}

// mirrorBody is the copy of a request's body, which is read as it comes. It holds what the mirror has not taken yet.
type mirrorBody struct {
	proxy *Proxy
	read  atomic.Bool // the mirror has begun to take the body

	mu     sync.Mutex
	filled sync.Cond
	held   bytes.Buffer
	err    error // why there is no more; io.EOF at the body's end; nil before
	moved  func()
}

// onRead has f called for each piece of the body.
func (b *mirrorBody) onRead(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.moved = f
}

// write adds a piece, or ends a body that is not taken fast enough. It does not wait for the mirror.
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
	if b.proxy.mirrorMemory.Add(int64(len(piece))) > maxMirrorMemory {
		b.stop(errMirrorLag)
		return
	}
	if b.moved != nil {
		b.moved()
	}
	b.filled.Signal()
}

// end says that no more comes; nil is the body's end. The first call counts.
func (b *mirrorBody) end(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if cause == nil {
		cause = io.EOF
	}
	if b.err == nil {
		b.stop(cause)
	}
}

// stop must be called with the lock. What is held stays for the mirror at the body's end alone.
func (b *mirrorBody) stop(cause error) {
	b.err = cause
	if !errors.Is(cause, io.EOF) {
		b.drop()
	}
	b.filled.Signal()
}

func (b *mirrorBody) drop() {
	b.proxy.mirrorMemory.Add(-int64(b.held.Len()))
	b.held = bytes.Buffer{}
}

// Read waits for the client's next piece.
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
	b.proxy.mirrorMemory.Add(-int64(n))
	return n, nil
}

// Close drops what the mirror has not taken. A transport closes the body after an attempt to connect, too, when the
// next attempt is still to send it.
func (b *mirrorBody) Close() error {
	if b.read.Load() {
		b.discard()
	}
	return nil
}

// discard drops what the mirror has not taken and what comes.
func (b *mirrorBody) discard() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stop(io.ErrClosedPipe)
}

// mirror passes a piece of the body on to the mirrors.
func (b *requestBody) mirror(piece []byte) {
	if len(piece) == 0 {
		return
	}
	for _, m := range b.mirrors {
		m.write(piece)
	}
}

// endMirrors says that no more of the body comes.
func (b *requestBody) endMirrors(cause error) {
	for _, m := range b.mirrors {
		m.end(cause)
	}
}
