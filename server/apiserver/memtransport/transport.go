// SPDX-License-Identifier: Apache-2.0

// Package memtransport passes HTTP requests to a handler in the same process: an http.RoundTripper without sockets, TLS
// or framing.
//
// It owns the goroutine of every request that it started, and keeps the contract of net/http as far as a caller can
// see: headers are sent with the first byte or flush, bodies stream with back-pressure, a cancelled request or closed
// body cancels the handler's context, and a panicking handler breaks the body. There are no trailers, which no client
// in this process reads. Context values never pass from client to handler. A transport may add values of its own on the
// handler's side (Options.Context).
//
// It never authenticates: the handler sees exactly the headers that the caller sent. It refuses protocol upgrades, as
// those need a connection.
package memtransport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
)

// ErrNotServing is wrapped by the error of RoundTrip after Close.
var ErrNotServing = errors.New("the in-process server is not serving")

// Options configures a Transport.
type Options struct {
	// Context, when set, receives the context of every request on the handler's side. It returns the context for the
	// handler.
	Context func(context.Context) context.Context
	// Logger logs handlers that panic. When nil it is slog.Default().
	Logger *slog.Logger
}

// Transport is an http.RoundTripper that calls an http.Handler.
type Transport struct {
	handlerContext func(context.Context) context.Context // Options.Context
	logger         *slog.Logger

	ctx    context.Context // parent of every handler's context
	cancel context.CancelFunc

	serving chan struct{} // closed by the first SetHandler

	mu       sync.Mutex
	handler  http.Handler
	closed   bool
	inFlight sync.WaitGroup
}

// New returns a Transport whose requests wait until SetHandler is called, as they would at an open port that is not
// served yet.
func New(o Options) *Transport {
	t := &Transport{handlerContext: o.Context, logger: o.Logger, serving: make(chan struct{})}
	if t.handlerContext == nil {
		t.handlerContext = func(ctx context.Context) context.Context { return ctx }
	}
	t.logger = cmp.Or(t.logger, slog.Default())
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// SetHandler sets the handler. Requests under way keep the handler with which they began.
func (t *Transport) SetHandler(h http.Handler) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.handler == nil {
		close(t.serving)
	}
	t.handler = h
}

// Close refuses new requests and cancels those under way. It waits until their handlers have returned or ctx is done.
func (t *Transport) Close(ctx context.Context) error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	done := make(chan struct{})
	go func() {
		t.inFlight.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for in-process requests to end: %w", ctx.Err())
	}
}

// register registers a request in inFlight and returns the handler that will serve it.
func (t *Transport) register(ctx context.Context) (http.Handler, error) {
	select {
	case <-t.serving:
	case <-t.ctx.Done():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrNotServing
	}
	t.inFlight.Add(1)
	return t.handler, nil
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.roundTrip(req, t.handlerContext)
}

// Marked returns the same transport with another Options.Context, which is called in the goroutine of RoundTrip, before
// RoundTrip returns.
func (t *Transport) Marked(mark func(context.Context) context.Context) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) { return t.roundTrip(req, mark) })
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func (t *Transport) roundTrip(req *http.Request, mark func(context.Context) context.Context) (*http.Response, error) {
	fail := func(err error) (*http.Response, error) {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	if req.URL == nil {
		return fail(errors.New("memtransport: nil Request.URL"))
	}
	if req.Header.Get("Upgrade") != "" {
		return fail(fmt.Errorf("memtransport: %s %s asks to upgrade the connection to %q; the in-process transport has none, use the "+
			"server's address",
			req.Method, req.URL.Path, req.Header.Get("Upgrade")))
	}
	if err := req.Context().Err(); err != nil {
		return fail(err)
	}
	handler, err := t.register(req.Context())
	if err != nil {
		return fail(fmt.Errorf("%s %s: %w", req.Method, req.URL.Path, err))
	}

	// The handler gets a fresh context: the caller's values (its audit event, user, trace) belong to another request.
	// Only cancellation is passed on.
	ctx, cancel := context.WithCancelCause(t.ctx)
	ex := newExchange(req, cancel)
	stop := context.AfterFunc(req.Context(), func() { ex.abort(context.Cause(req.Context())) })
	sreq := serverRequest(mark(ctx), req, ex)

	go func() {
		defer t.inFlight.Done()
		defer stop()
		t.serve(handler, sreq, ex)
	}()

	select {
	case <-ex.headerReady:
		// When the client's context is done the handler has not answered, though finish may have sent a header.
		if err := req.Context().Err(); err != nil {
			return nil, err
		}
		return ex.response, ex.headerErr
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
}

// serve runs the handler and ends the exchange, even if the handler panics.
func (t *Transport) serve(handler http.Handler, sreq *http.Request, ex *exchange) {
	completed := false
	defer func() {
		if completed {
			ex.end(nil)
			return
		}
		// Recover keeps a panicking handler from ending the process, as net/http does.
		reason := recover()
		if reason != nil && reason != http.ErrAbortHandler { //nolint:errorlint // net/http compares panic values the same way
			t.logger.Error("panic while serving an in-process request", "method", sreq.Method, "path", sreq.URL.Path,
				"panic", fmt.Sprint(reason), "stack", string(debug.Stack()))
		}
		ex.end(errAborted)
	}()
	handler.ServeHTTP(ex, sreq)
	completed = true
}
