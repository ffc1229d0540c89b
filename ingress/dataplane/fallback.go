// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// fallback is a compiled table.Fallback.
type fallback struct {
	*table.Fallback
	backend backend
	headers *modification
}

func (c compiler) compileFallback(from *table.Fallback) (*fallback, error) {
	out := &fallback{Fallback: from}
	var err error
	if out.headers, err = compileHeaders(&table.Headers{Set: from.Headers}, true); err != nil {
		return nil, err
	}
	if out.backend, err = c.compileBackend(from.Backend); err == nil && out.backend.invalid {
		err = fmt.Errorf("the fallback cannot be used: %s", from.Backend.Invalid)
	}
	return out, err
}

// choose returns the backend that serves the request: the fallback where b has no endpoint and the fallback has one.
func (f *fallback) choose(b *backend) *backend {
	if b != nil && (b.invalid || len(b.endpoints.endpoints()) > 0) || len(f.backend.endpoints.endpoints()) == 0 {
		return b
	}
	return &f.backend
}

// replace asks the fallback for a response that replaces one of the given status. own says that the proxy itself made
// that one. It returns nil where that one stays, also when the fallback fails.
func (x *exchange) replace(status int, own bool) *http.Response {
	if x.policy == nil || x.policy.fallback == nil || x.replaced || x.backend == &x.policy.fallback.backend {
		return nil
	}
	f := x.policy.fallback
	if f.Own && !own || !slices.Contains(f.Statuses, status) {
		return nil
	}
	x.replaced = true // once
	ctx, cancel := context.WithTimeout(x.in.Context(), x.proxy.options.IdleTimeout)
	x.closeFallback = cancel
	method := http.MethodGet
	if x.in.Method == http.MethodHead {
		method = http.MethodHead
	}
	h := x.out.Clone()
	for _, name := range bodyHeaders {
		delete(h, name)
	}
	f.explain(&x.request, h, status)
	f.backend.request.apply(h)
	req := &http.Request{Method: method, Host: x.in.Host, Header: h, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	var res *http.Response
	err := selection{}.attempt(f.backend.endpoints, func(e *endpoint) (err error) {
		req.URL = &url.URL{Scheme: "http", Host: e.address, Path: "/"}
		if f.backend.tls {
			req.URL.Scheme = "https"
		}
		res, err = x.proxy.upstream.client(&f.backend).RoundTrip(req.WithContext(e.context(ctx))) //nolint:bodyclose // respond closes it
		return err
	}, func() bool { return ctx.Err() == nil })
	if err != nil {
		x.proxy.options.Logger.Debug("a fallback failed", "host", x.in.Host, "error", err)
		return nil
	}
	return res
}

// explain sets the headers of a request to the fallback that describe the failure.
func (f *fallback) explain(in *request, h http.Header, status int) {
	h["X-Code"] = []string{strconv.Itoa(status)}
	h["X-Format"] = []string{in.in.Header.Get("Accept")}
	h["X-Original-Uri"] = []string{in.requestURI()}
	f.headers.apply(h)
}

// bodyHeaders are the headers that describe a request's body, or make a response depend on what the client has in its
// cache.
var bodyHeaders = []string{
	"Content-Length", "Content-Type", "Content-Encoding", "Expect", "Range", "If-Range", "If-Match", "If-None-Match",
	"If-Modified-Since", "If-Unmodified-Since",
}
