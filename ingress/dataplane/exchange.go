// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// answerTime is the time that a client may take to read a response of the proxy's own after a time-out. It is also the
// time for the rest of a body that is not read.
const answerTime = 5 * time.Second

// maxUnread is how many bytes of an unread body are read so that the connection can be used again.
const maxUnread = 256 << 10

// errIdle is the cause when an exchange ends because no byte moved for too long.
var errIdle = errors.New("nothing moved for too long")

// exchange is one request with its response.
type exchange struct {
	listener *listener
	proxy    *Proxy
	routing  *routing // the same during the whole request
	w        http.ResponseWriter
	ctl      *http.ResponseController
	in       *http.Request
	out      http.Header // of the request to the backend

	stream    netip.Addr // the source that the exchange counts for as a stream, if streaming
	streaming bool
	expanded  int         // bytes of the request that texts of the route have repeated
	steps     steps       // those that comparing the request with expressions may still take
	hops      int         // the number of proxies that the request has passed
	policy    *policy     // of the route; nil for none
	release   func()      // removes the exchange from a limiter's counts; nil for none
	granted   http.Header // of the authentication server's response
	verified  string      // the result of the check of the client's certificate; empty where none is asked for
	selection selection   // of the endpoint
	cookies   []string    // of the authentication server's response, for the client
	trailers  http.Header // of the request, as it announced them
	began     time.Time
	stats     *hostStats
	path      cleanPath
	peer      string // the address of the client or of the last proxy before this one
	fromProxy bool   // peer is a trusted proxy
	scheme    string
	grpc      bool
	backend   *backend // the chosen backend; nil before
	replaced  bool     // a fallback was asked for the response
	ends      func()   // ends the request to the fallback; nil without one
	late      *watch   // ends an exchange that takes longer than the route allows; nil for none
	duplex    bool     // the response may begin before the end of the request's body

	ctx    context.Context // of the request to the backend
	cancel context.CancelCauseFunc
	body   requestBody
	watch  watch
	status int // the status sent to the client; 0 before

	answering atomic.Bool // the header of the response has been, or is being, written
	stalled   atomic.Bool // the client did not send its body
	patient   atomic.Bool // time without bytes is allowed

	earlyMu   sync.Mutex // held while informational responses are written
	earlyOver bool
}

func newExchange(h *listener, w http.ResponseWriter, in *http.Request) *exchange {
	x := &exchange{listener: h, proxy: h.proxy, began: time.Now(), stats: &h.proxy.others, routing: h.proxy.current.Load(), w: w,
		ctl: http.NewResponseController(w), in: in}
	delete(in.Header, headerProxy)
	x.steps = x.newSteps()
	x.peer, x.fromProxy = peer(in.RemoteAddr, x.routing.trusted)
	x.scheme = x.clientScheme()
	x.grpc = strings.HasPrefix(in.Header.Get("Content-Type"), "application/grpc")
	x.body.exchange, x.body.inner = x, in.Body
	x.body.done.Store(in.ContentLength == 0)
	return x
}

// end releases what the exchange holds. whole says that the client got a response. The rest of a body that was not read
// to its end may take answerTime at most. Then the connection ends.
func (x *exchange) end(whole bool) {
	x.watch.stop()
	if x.late != nil {
		x.late.stop()
	}
	x.body.endMirrors(errMirrorCut)
	if x.release != nil {
		x.release()
	}
	if x.cancel != nil {
		x.cancel(nil)
	}
	if x.ends != nil {
		x.ends()
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
	raw := x.in.URL.RawPath
	if raw == "" {
		raw = x.in.URL.EscapedPath()
	}
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
	x.steps.finish()
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
	case s.matchesDecoded(r, name, x.path.match, x):
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

// announceEnd sets Connection: close in a response's header where more of the request's body is still to come than end
// reads. Without it a client would send, and lose, the next request on the connection.
func (x *exchange) announceEnd(h http.Header) {
	if !x.duplex || x.in.ProtoMajor != 1 || x.body.done.Load() {
		return
	}
	if length := x.in.ContentLength; length < 0 || length-x.body.read.Load() > maxUnread {
		h["Connection"] = []string{"close"}
	}
}

// answer sends a short response of the proxy's own.
func (x *exchange) answer(status int, text string) { x.answerText(status, text+"\n") }

func (x *exchange) answerText(status int, text string) {
	x.answering.Store(true)
	x.status = status
	h := x.w.Header()
	if x.speaksGRPC() {
		x.answerGRPC(grpcStatus(status), text)
		return
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	x.announceEnd(h)
	x.w.WriteHeader(status)
	_, _ = io.WriteString(x.w, text) // an error is ignored: the client has closed the connection
}

// redirect sends a redirect. The variables in a target are the client's choice, and so may the scheme be.
func (x *exchange) redirect(status int, target string) {
	scheme := table.SchemeOf(target)
	if scheme != "" && scheme != "http" && scheme != "https" || strings.ContainsFunc(target, unicode.IsControl) {
		x.answer(http.StatusBadRequest, "the redirect of this request is to no URL of http or https")
		return
	}
	x.w.Header().Set("Location", target)
	x.answer(status, "this is served at "+target)
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
	x.patient.Store(x.grpc)
	idle := x.proxy.options.IdleTimeout
	if x.policy != nil && x.policy.IdleSeconds > 0 {
		idle = time.Duration(x.policy.IdleSeconds) * time.Second
	}
	x.watch.begin(idle, x.expire)
	if x.policy != nil && x.policy.longest > 0 {
		x.late = &watch{}
		x.late.begin(x.policy.longest, x.expire)
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

// outgoing returns the request to an endpoint.
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
		out.Body, out.GetBody = &x.body, x.body.again
	}
	return out
}

// sendInformational forwards an informational response. It does not forward 100, since net/http sends one when the
// backend has asked for the body.
func (x *exchange) sendInformational(code int, header textproto.MIMEHeader) error {
	x.earlyMu.Lock()
	defer x.earlyMu.Unlock()
	if x.earlyOver || code == http.StatusContinue || !x.in.ProtoAtLeast(1, 1) {
		return nil
	}
	h := x.w.Header()
	altSvc := h[headerAltSvc]
	maps.Copy(h, header)
	removeHopByHop(h)
	delete(h, headerAltSvc) // the backend's, as in respond
	if altSvc != nil {
		h[headerAltSvc] = altSvc
	}
	x.w.WriteHeader(code)
	clear(h)
	x.listener.setCommonHeaders(h, x.in)
	x.moved()
	return nil
}

// awaitInformational waits until no informational response can be written any more.
func (x *exchange) awaitInformational() {
	x.earlyMu.Lock()
	x.earlyOver = true
	x.earlyMu.Unlock()
}

// moved records that bytes moved, unless time without bytes is allowed.
func (x *exchange) moved() {
	if !x.patient.Load() {
		x.watch.moved()
	}
}

// requestBody is the body of a request to a backend. The transport does not close it, so that another attempt can send
// it as long as nothing was read. net/http closes the client's body after the request.
type requestBody struct {
	exchange *exchange
	inner    io.Reader
	began    atomic.Bool
	reading  atomic.Bool
	done     atomic.Bool
	failed   atomic.Bool
	limit    int64 // in bytes; 0 for none
	read     atomic.Int64
	excess   atomic.Bool // the limit was exceeded
	mirrors  []*mirrorBody
}

var errExcess = errors.New("the request's body is greater than the route allows")

var errBodyBegan = errors.New("a part of the request's body has been sent already")

// Read reads from the client.
func (b *requestBody) Read(to []byte) (int, error) {
	b.began.Store(true)
	b.exchange.moved()
	b.reading.Store(true)
	n, err := b.inner.Read(to)
	b.reading.Store(false)
	if n > 0 {
		b.exchange.moved()
	}
	b.mirror(to[:n])
	if read := b.read.Add(int64(n)); b.limit > 0 && read > b.limit {
		b.excess.Store(true)
		b.failed.Store(true)
		return 0, errExcess
	}
	switch {
	case errors.Is(err, io.EOF):
		b.done.Store(true)
		b.endMirrors(nil)
		removeTrailers(b.exchange.in.Trailer)
		for name := range b.exchange.trailers {
			b.exchange.trailers[name] = b.exchange.in.Trailer[name] // quic-go makes another map, which outgoing does not use
		}
	case err != nil:
		b.failed.Store(true)
	}
	return n, err
}

// Close does nothing.
func (b *requestBody) Close() error { return nil }

// again is the GetBody of the request. net/http calls it before it sends the request on another connection.
func (b *requestBody) again() (io.ReadCloser, error) {
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
