// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/ingress/variable"
)

// external is a compiled table.External.
type external struct {
	url, signIn, redirect variable.Text
	method                string
	endpoints             *endpointSet // of the Service; nil for Self and for outside names
	self                  bool
	alwaysSetCookie       bool
	headers               []string // in canonical form
	sent                  *modification
}

func (c compiler) compileExternal(from *table.External) (*external, error) {
	out := &external{method: from.Method, self: from.Self, alwaysSetCookie: from.AlwaysSetCookie}
	out.method = cmp.Or(out.method, http.MethodGet)
	redirect := from.RequestRedirect
	redirect = cmp.Or(redirect, "$request_uri")
	for _, text := range []struct {
		to   *variable.Text
		from string
	}{{&out.url, from.URL}, {&out.signIn, from.SignIn}, {&out.redirect, redirect}} {
		var err error
		if *text.to, err = variable.Parse(text.from); err != nil {
			return nil, fmt.Errorf("reading a URL of external authentication: %w", err)
		}
	}
	for _, name := range from.ResponseHeaders {
		if name = textproto.CanonicalMIMEHeaderKey(name); hopByHop(name) || name == "Host" || name == "Content-Length" {
			return nil, fmt.Errorf("the header %s cannot come from external authentication", name)
		}
		out.headers = append(out.headers, name)
	}
	var err error
	if out.sent, err = compileHeaders(&table.Headers{Set: from.Headers}, true); err != nil {
		return nil, err
	}
	if from.Backend != nil {
		out.endpoints = objectOf(c.endpoints, from.Backend.Key())
	}
	return out, nil
}

// askServer asks the server of external authentication. It returns false when it has answered the request.
func (a *authentication) askServer(r *route) bool {
	e := r.policy.external
	ctx, cancel := context.WithTimeout(a.in.Context(), a.proxy.options.IdleTimeout)
	defer cancel()
	res, err := a.requestVerdict(ctx, r)
	if err != nil {
		if a.in.Context().Err() != nil {
			panic(http.ErrAbortHandler) // the client has closed the connection
		}
		a.proxy.options.Logger.Debug("external authentication failed", "host", a.in.Host, "error", err)
		a.answer(http.StatusInternalServerError, "the authentication server could not be asked")
		return false
	}
	_, _ = io.CopyN(io.Discard, res.Body, maxUnread)
	_ = res.Body.Close()
	a.cookies = res.Header["Set-Cookie"]
	switch {
	case res.StatusCode/100 == 2:
		a.granted = res.Header
		return true
	case res.StatusCode == http.StatusUnauthorized && len(e.signIn) > 0:
		a.addCookies()
		if target, ok := a.expand(e.signIn); ok {
			a.redirect(http.StatusFound, target)
		} else {
			a.tooLong()
		}
	case res.StatusCode == http.StatusUnauthorized, res.StatusCode == http.StatusForbidden:
		if v := res.Header["Www-Authenticate"]; len(v) > 0 {
			a.writer.Header()["Www-Authenticate"] = v
		}
		if e.alwaysSetCookie {
			a.addCookies()
		}
		a.answer(res.StatusCode, "the authentication server does not let this request in")
	default:
		a.answer(http.StatusInternalServerError, "the authentication server failed")
	}
	return false
}

// requestVerdict sends the request to the server and returns its response. A redirect is returned, not followed.
func (a *authentication) requestVerdict(ctx context.Context, r *route) (*http.Response, error) {
	e := r.policy.external
	text, ok := a.expand(e.url)
	if !ok {
		return nil, errors.New("the URL of external authentication repeats too much of the request")
	}
	target, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("making the URL of external authentication: %w", err)
	}
	set := e.endpoints
	if e.self {
		if set, err = a.ownEndpoints(r, target); err != nil {
			return nil, err
		}
	}
	req := (&http.Request{Method: e.method, URL: target, Host: target.Host, Header: a.question(e), Proto: "HTTP/1.1", ProtoMajor: 1,
		ProtoMinor: 1}).WithContext(ctx)
	if set == nil {
		return a.proxy.upstream.outside.RoundTrip(req)
	}
	var res *http.Response
	err = selection{}.attempt(set, func(to *endpoint) (err error) {
		again := *target
		again.Host = to.address
		one := req.Clone(to.context(ctx))
		one.URL = &again
		res, err = a.proxy.upstream.http1.RoundTrip(one) //nolint:bodyclose // askServer closes it
		return err
	}, func() bool { return ctx.Err() == nil })
	return res, err
}

// ownEndpoints returns the endpoints of the route, of the request's own host, that serves the URL. Only a route of an
// object in the same namespace may decide about access, since a client chooses the host that it names.
func (a *authentication) ownEndpoints(r *route, target *url.URL) (*endpointSet, error) {
	path, err := normalise(target.EscapedPath())
	if err != nil {
		return nil, err
	}
	name, _ := hostName(a.in.Host)
	from := a.newSteps()
	found, v := a.routing.sites[a.listener.site].route(name, path.match, a.in, &from)
	from.releaseQueue()
	switch {
	case v != matches || found.refused != "" || len(found.backends) != 1 || found.backends[0].invalid || found.backends[0].http2 ||
		found.backends[0].tls:
		return nil, errors.New("the host has no route to its authentication server")
	case found.policy != nil:
		return nil, errors.New("the route to the authentication server has a policy of its own")
	case found.namespace != r.namespace:
		return nil, errors.New("the route to the authentication server is of another namespace")
	}
	return found.backends[0].endpoints, nil
}

func (a *authentication) question(e *external) http.Header {
	h := a.in.Header.Clone()
	removeHopByHop(h)
	removeUnderscores(h)
	for _, name := range []string{"Host", "Content-Length", "Expect", "Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since",
		"If-Unmodified-Since"} {
		delete(h, name)
	}
	a.forwarded(h)
	redirect, _ := a.expand(e.redirect) // "" where it is too long
	for name, value := range map[string]string{
		"X-Original-Url": a.scheme + "://" + a.in.Host + a.requestURI(), "X-Original-Method": a.in.Method,
		"X-Auth-Request-Redirect": redirect, "X-Sent-From": "nginx-ingress-controller", // some servers check for it
	} {
		h[name] = []string{value}
	}
	e.sent.apply(h)
	return h
}

// changeResponseHeaders sets the CORS headers and the authentication server's cookies in a backend's response.
func (x *exchange) changeResponseHeaders(status int) {
	if x.policy.CORS != nil {
		x.share(x.policy.CORS)
	}
	switch status { // the statuses for which nginx adds headers
	case 200, 201, 204, 206, 301, 302, 303, 304, 307, 308:
		x.addCookies()
	default:
		if e := x.policy.external; e != nil && e.alwaysSetCookie {
			x.addCookies()
		}
	}
}

// grant copies the headers of the authentication server's response into the request, in place of the client's own.
func (a *authentication) grant(e *external, h http.Header) {
	for _, name := range e.headers {
		delete(h, name)
		if v := a.granted[name]; len(v) > 0 && strings.Join(v, "") != "" {
			h[name] = v
		}
	}
}
