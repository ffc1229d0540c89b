// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
)

// forward sends the request to a backend of the route. It sends the response to the client.
func (x *exchange) forward(r *route) {
	b := r.choose()
	if x.policy != nil {
		b = x.selection.balance(&x.request, &x.response, r, b)
		if x.policy.fallback != nil {
			b = x.policy.fallback.choose(b)
		}
	}
	if b == nil {
		x.answer(http.StatusServiceUnavailable, "the route has no backend")
		return
	}
	if b.invalid {
		x.answerInvalid()
		return
	}
	x.backend = b
	websocket := x.isWebsocket() // before prepare removes the headers that say so
	x.prepare()
	if x.policy != nil && x.policy.fallback != nil && b == &x.policy.fallback.backend {
		x.policy.fallback.explain(&x.request, x.out, http.StatusServiceUnavailable)
	}
	if x.policy != nil && !websocket {
		x.mirror()
	}
	b.request.apply(x.out)
	if websocket {
		x.forwardWebsocket(b)
		return
	}
	transport := x.proxy.upstream.client(b)
	if x.grpc {
		x.timeouts.idle.pause()
	}
	var res *http.Response
	err := x.selection.attempt(b.endpoints, func(e *endpoint) (err error) {
		res, err = transport.RoundTrip(x.outgoing(e)) //nolint:bodyclose // respond closes it
		return err
	}, x.repeatable)
	x.awaitInformational()
	if err != nil {
		x.failed(err)
		return
	}
	x.respond(res)
}

// repeatable reports whether the request can be sent to another endpoint: it goes on, and no part of its body was sent.
func (x *exchange) repeatable() bool { return x.ctx.Err() == nil && !x.body.began.Load() }

// failed answers a request that got no response from a backend.
func (x *exchange) failed(err error) {
	switch {
	case x.stalled.Load():
		x.answer(http.StatusRequestTimeout, "the body of the request did not arrive in time")
	case errors.Is(context.Cause(x.ctx), errIdle):
		x.answerOrFallback(http.StatusGatewayTimeout, "the backend did not answer in time")
	case x.in.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the client has closed the connection
	case x.body.tooLarge.Load():
		x.answer(http.StatusRequestEntityTooLarge, "the body of the request is greater than the route allows")
	case x.body.failed.Load():
		x.answer(http.StatusBadRequest, "the body of the request could not be read")
	case errors.Is(err, errNoEndpoints):
		x.answerOrFallback(http.StatusServiceUnavailable, "the backend has no endpoints")
	default:
		x.proxy.options.Logger.Debug("a backend failed", "site", x.listener.site, "host", x.in.Host, "error", err)
		x.answerOrFallback(http.StatusBadGateway, "the backend could not be reached or sent no valid response")
	}
}

// answerOrFallback answers a request that got no response from a backend. Where there is a fallback for the status, its
// response is sent.
func (x *exchange) answerOrFallback(status int, text string) {
	if res := x.replace(status, true); res != nil {
		x.respond(res)
		return
	}
	x.answer(status, text)
}

func (x *exchange) respond(res *http.Response) {
	if other := x.replace(res.StatusCode, false); other != nil {
		x.cancel(nil)
		_ = res.Body.Close()
		res = other
	}
	defer func() {
		x.cancel(nil) // otherwise Close waits for the request's body when a backend with HTTP/2 answered before its end
		_ = res.Body.Close()
	}()
	if res.StatusCode == http.StatusSwitchingProtocols {
		x.answer(http.StatusBadGateway, "the backend switched to a protocol that was not requested")
		return
	}
	if res.StatusCode < 100 || res.StatusCode > 999 { // net/http would panic
		x.answer(http.StatusBadGateway, "the backend sent no valid response")
		return
	}
	removeHopByHop(res.Header)
	delete(res.Header, headerAltSvc) // it is valid for all of the host, which other backends and other tenants may share
	h := x.writer.Header()
	maps.Copy(h, res.Header)
	if x.policy != nil {
		x.policy.rewriteResponse(&x.request, h)
		x.policy.response.apply(h)
	}
	x.backend.response.apply(h)
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // otherwise net/http would guess one
	}
	if x.policy != nil {
		x.changeResponseHeaders(res.StatusCode)
	}
	announced := len(res.Trailer)
	for name := range res.Trailer {
		h["Trailer"] = append(h["Trailer"], name)
	}
	if announced > 0 && x.in.ProtoMajor == 1 {
		delete(h, "Content-Length") // HTTP/1.1 has trailers only after chunks
	}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
		x.timeouts.streams.Store(true)
	}
	x.answering.Store(true)
	x.timeouts.idle.recordBytes()
	x.status = res.StatusCode
	x.announceEnd(h)
	x.writer.WriteHeader(res.StatusCode)
	if res.Body != http.NoBody {
		x.copy(res)
	}
	if len(res.Trailer) > 0 {
		_ = x.ctl.Flush() // without it a response with no body would get a length and lose its trailers
	}
	for name, values := range res.Trailer {
		if len(res.Trailer) != announced {
			name = http.TrailerPrefix + name
		}
		h[name] = values
	}
}

// Buffers of copies. A stream, which may send nothing for hours, holds a small one.
type (
	buffer      [32 << 10]byte
	smallBuffer [4 << 10]byte
)

var (
	buffers      = sync.Pool{New: func() any { return new(buffer) }}
	smallBuffers = sync.Pool{New: func() any { return new(smallBuffer) }}
)

// copy sends the body. It sends each piece as soon as it is read.
func (x *exchange) copy(res *http.Response) {
	var buf []byte
	if x.timeouts.streams.Load() || x.proxy.limits.memory.exceeds(copiesLimited) {
		b := smallBuffers.Get().(*smallBuffer)
		defer smallBuffers.Put(b)
		buf = b[:]
	} else {
		b := buffers.Get().(*buffer)
		defer buffers.Put(b)
		buf = b[:]
	}
	left := res.ContentLength
	if left < 0 {
		x.flush()
	}
	for {
		if x.timeouts.streams.Load() {
			x.timeouts.idle.pause()
		}
		n, err := res.Body.Read(buf)
		if n > 0 {
			x.timeouts.idle.recordBytes() // from here the client has to read, however long the backend sent nothing
			if _, err := x.writer.Write(buf[:n]); err != nil {
				panic(http.ErrAbortHandler)
			}
			if left -= int64(n); left != 0 && err == nil {
				x.flush()
			}
			x.timeouts.idle.recordBytes()
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler) // so that the client sees that the response is incomplete
		}
	}
}
