// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"
)

// answerTime is the time that a client may take to read a response of the proxy's own after a time-out. It is also the
// time for the rest of a body that is not read.
const answerTime = 5 * time.Second

// maxUnread is how many bytes of an unread body are read so that the connection can be used again.
const maxUnread = 256 << 10

// errIdle is the cause when an exchange ends because no byte moved for too long.
var errIdle = errors.New("nothing moved for too long")

// exchange serves one request of a client, from its routing to the end of the response.
type exchange struct {
	request
	response
	authentication authentication
	selection      selection   // of the endpoint
	out            http.Header // of the request to the backend

	stream         netip.Addr // the source that the exchange counts for as a stream, if streaming
	streaming      bool
	releaseLimiter func()  // removes the exchange from a limiter's counts; nil for none
	policy         *policy // of the route; nil for none
	began          time.Time
	stats          *hostStats
	backend        *backend // the chosen backend; nil before
	replaced       bool     // a fallback was asked for the response
	closeFallback  func()   // ends the request to the fallback; nil without one

	ctx     context.Context // of the request to the backend
	cancel  context.CancelCauseFunc
	stalled atomic.Bool // the client did not send its body
}

func newExchange(h *listener, w http.ResponseWriter, in *http.Request) *exchange {
	x := &exchange{began: time.Now(), stats: &h.proxy.objects.uncountedStats}
	x.request.init(h, in)
	x.response = response{request: &x.request, writer: w, ctl: http.NewResponseController(w)}
	x.authentication = authentication{request: &x.request, response: &x.response}
	return x
}

// close releases what the exchange holds. whole says that the client got a response. The rest of a body that was not
// read to its end may take answerTime at most. Then the connection ends.
func (x *exchange) close(whole bool) {
	x.timeouts.stop()
	x.body.endMirrors(errMirrorCut)
	if x.releaseLimiter != nil {
		x.releaseLimiter()
	}
	if x.cancel != nil {
		x.cancel(nil)
	}
	if x.closeFallback != nil {
		x.closeFallback()
	}
	if x.in.ProtoMajor != 1 || x.body.done.Load() {
		return
	}
	_ = x.ctl.SetReadDeadline(time.Now().Add(answerTime)) // fails only after Hijack, when it has no meaning
	waits := !x.body.began.Load() && x.in.Header.Get("Expect") != ""
	if x.duplex && whole && !waits && x.ctl.Flush() == nil {
		// net/http discards the rest of a body otherwise. After a handler with full duplex it loses the connection when
		// it meets the body's end.
		_, _ = io.CopyN(io.Discard, x.in.Body, maxUnread)
	}
}

// acquire counts the exchange for the limits of requests under way. It returns false when it has answered the request.
// A connection of HTTP/1 has one request at a time, so the connection alone is counted.
func (x *exchange) acquire() bool {
	if x.hops = hopsOf(x.in.Header); x.hops >= maxHops {
		x.answer(http.StatusLoopDetected,
			"the request has passed too many ingress proxies: a backend or an authentication server leads back here")
		return false
	}
	if len(x.in.Header) > maxFields {
		x.answer(http.StatusRequestHeaderFieldsTooLarge, "the header of the request has too many fields")
		return false
	}
	if x.in.ProtoMajor < 2 && !x.proxy.limits.memory.exceeds(sourcesLimited) {
		return true
	}
	var source netip.Addr
	if !x.fromProxy { // a trusted proxy sends many clients' requests
		at, _ := netip.ParseAddrPort(x.in.RemoteAddr) // net/http sets a valid address
		source = sourceOfAddress(at.Addr().Unmap().WithZone(""))
	}
	if !x.proxy.limits.hasMemory(source) {
		if x.in.ProtoMajor < 3 { // HTTP/3 has no such header
			x.writer.Header().Set("Connection", "close")
		}
		x.proxy.stats.Limited.Memory.Add(1)
		x.answer(http.StatusServiceUnavailable, "the ingress proxy has no memory left for this client")
		return false
	}
	if x.in.ProtoMajor < 2 {
		return true
	}
	if !x.proxy.limits.requests.acquire(source) {
		x.proxy.stats.Limited.Requests.Add(1)
		x.answer(http.StatusServiceUnavailable, "this client has too many requests under way")
		return false
	}
	x.stream, x.streaming = source, true
	return true
}

// releaseStream ends what acquire has counted.
func (x *exchange) releaseStream() {
	if x.streaming {
		x.proxy.limits.requests.release(x.stream)
	}
}

// serve routes the request and answers it.
func (x *exchange) serve() {
	if !x.framed() {
		return
	}
	name, ok := hostName(x.in.Host)
	if !ok {
		x.answer(http.StatusBadRequest, "the Host header is no host")
		return
	}
	if x.in.Method == http.MethodConnect || x.in.Method == http.MethodTrace {
		x.answer(http.StatusMethodNotAllowed, "the ingress proxy does not serve this method")
		return
	}
	raw := cmp.Or(x.in.URL.RawPath, x.in.URL.EscapedPath())
	if raw != "" && raw[0] != '/' {
		x.answer(http.StatusBadRequest, "the target is no path") // such as the "*" of a preface of HTTP/2 that net/http takes for a request
		return
	}
	var err error
	if x.path, err = normalise(raw); err != nil {
		x.answer(http.StatusBadRequest, err.Error())
		return
	}
	x.in.URL.RawQuery = cleanQuery(x.in.URL.RawQuery)
	s := x.routing.sites[x.listener.site]
	if s == nil {
		if x.challenge(name, nil) {
			return
		}
		x.answer(http.StatusNotFound, "no route for this host and path")
		return
	}
	x.stats = x.statsOf(s, name)
	r, v := s.route(name, x.path.match, x.in, &x.steps)
	x.steps.releaseQueue()
	switch {
	case s.closed != "":
		x.answer(http.StatusServiceUnavailable, "the port is closed; the events of its object say why")
	case x.challenge(name, r):
	case x.in.TLS != nil && (s.misdirected(serverName(x.in.TLS), name) || s.streams > 0 && s.isStream(name)):
		x.answer(http.StatusMisdirectedRequest, "this host is served on connections of its own")
	case r == nil:
		x.answer(http.StatusNotFound, "no route for this host and path")
	case v == undecided:
		x.answer(http.StatusServiceUnavailable, "the path, the query or a header is too long for the expressions of the route "+
			"that may be for it, or too many such requests wait")
	case s.matchesDecoded(r, name, x.path.match, &x.request):
		x.answer(http.StatusBadRequest, "a backend may read this path as one that is protected: send it without encoded slashes, "+
			"backslashes and semicolons")
	case r.refused != "":
		x.answer(http.StatusServiceUnavailable, "the route is closed; the events of its object say why")
	case r.redirect != 0 && x.scheme == "http":
		x.redirect(r.redirect, "https://"+name+x.requestURI())
	case r.policy != nil:
		x.applyPolicy(r)
	default:
		x.forward(r)
	}
}

// expire ends an exchange in which no byte moved. A client that has not received a header gets a response of the
// proxy's own. A response that has begun is cut off.
func (x *exchange) expire() {
	begun := x.answering.Load() // before cancel, after which the proxy's own response begins
	x.stalled.Store(x.body.reading.Load())
	limit := time.Now().Add(answerTime)
	past := time.Unix(1, 0)
	if begun {
		limit = past
	}
	_ = x.ctl.SetWriteDeadline(limit)
	x.cancel(errIdle)
	if !x.body.done.Load() {
		_ = x.ctl.SetReadDeadline(past)
	}
}

// prepare makes the context and the headers, which all attempts to reach a backend share.
func (x *exchange) prepare() {
	x.ctx, x.cancel = context.WithCancelCause(x.in.Context())
	x.ctx = httptrace.WithClientTrace(x.ctx, &httptrace.ClientTrace{Got1xxResponse: x.sendInformational})
	x.timeouts.streams.Store(x.grpc)
	idle := x.proxy.options.IdleTimeout
	if x.policy != nil && x.policy.IdleSeconds > 0 {
		idle = time.Duration(x.policy.IdleSeconds) * time.Second
	}
	x.timeouts.idle.startTimer(idle, x.expire)
	if x.policy != nil && x.policy.longest > 0 {
		x.timeouts.deadline = &watch{}
		x.timeouts.deadline.startTimer(x.policy.longest, x.expire)
	}

	if x.in.ContentLength != 0 {
		// Otherwise net/http would read 256 KiB of the body before it sends the header of a response. Only wrapped
		// writers could return an error.
		x.duplex = true
		_ = x.ctl.EnableFullDuplex()
	}
	h := x.in.Header // net/http made it for this request alone
	trailers := hasToken(h["Te"], "trailers")
	x.trailers = x.in.Trailer
	removeHopByHop(h)
	removeUnderscores(h)
	delete(h, "Host") // HTTP/2 allows one beside :authority
	if trailers {
		h["Te"] = []string{"trailers"}
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = nil // otherwise net/http would add its own
	}
	x.forwarded(h)
	if x.policy != nil {
		x.changeRequestHeaders(h)
	}
	x.out = h
}

func (x *exchange) outgoing(e *endpoint) *http.Request {
	out := x.in.WithContext(e.context(x.ctx))
	out.Header = x.out
	// Opaque is sent as it is. Path would be escaped again.
	out.URL = &url.URL{Scheme: "http", Host: e.address, Opaque: x.path.forward, RawQuery: x.in.URL.RawQuery,
		ForceQuery: x.in.URL.ForceQuery}
	if x.policy != nil {
		x.policy.rename(out)
	}
	if x.backend.request != nil && x.backend.request.host != "" {
		out.Host = x.backend.request.host
	}
	if x.backend.tls {
		out.URL.Scheme = "https"
	}
	out.RequestURI, out.TransferEncoding, out.Close = "", nil, false
	out.Body, out.GetBody = http.NoBody, nil
	if x.in.ContentLength != 0 {
		out.Body, out.GetBody = &x.body, x.body.reopen
	}
	return out
}
