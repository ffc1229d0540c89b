// SPDX-License-Identifier: Apache-2.0

package memtransport

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
)

// errAborted is the error that a client reads when the handler panicked.
var errAborted = errors.New("memtransport: the server aborted the request")

// errClientClosed is the cause of the handler's context when the response body was closed early.
var errClientClosed = errors.New("memtransport: the client closed the response")

// exchange is one request and its response. It is the handler's http.ResponseWriter.
type exchange struct {
	method   string
	cancel   context.CancelCauseFunc
	body     *pipe
	reqBody  *requestBody
	header   http.Header // the handler's; copied when the header is sent
	response *http.Response

	headerReady chan struct{} // closed once response or headerErr is set
	headerErr   error
	headerOnce  sync.Once
	wroteHeader bool
	noBody      bool

	closeNotify     chan bool // capacity 1: CloseNotify's contract is one value
	closeNotifyOnce sync.Once
}

func newExchange(req *http.Request, cancel context.CancelCauseFunc) *exchange {
	ex := &exchange{
		method:      req.Method,
		cancel:      cancel,
		header:      http.Header{},
		headerReady: make(chan struct{}),
		closeNotify: make(chan bool, 1),
	}
	ex.body = newPipe()
	ex.response = &http.Response{
		Proto: "HTTP/2.0", ProtoMajor: 2,
		ContentLength: -1,
		Body:          &responseBody{ex: ex},
		Request:       req,
	}
	if req.Body != nil && req.Body != http.NoBody {
		ex.reqBody = &requestBody{rc: req.Body}
	}
	return ex
}

// serverRequest returns the request as a server would have parsed it.
func serverRequest(ctx context.Context, req *http.Request, ex *exchange) *http.Request {
	s := req.Clone(ctx)
	s.RequestURI = req.URL.RequestURI()
	s.RemoteAddr = "127.0.0.1:0" // upstream reads an address from it
	s.Proto, s.ProtoMajor, s.ProtoMinor = "HTTP/2.0", 2, 0
	s.Response, s.GetBody, s.TLS = nil, nil, nil
	s.Host = cmp.Or(s.Host, req.URL.Host)
	// A server's URL has neither scheme nor host.
	s.URL.Scheme, s.URL.Host, s.URL.User = "", "", nil
	s.Method = cmp.Or(s.Method, http.MethodGet)
	if s.Header == nil {
		s.Header = http.Header{}
	}
	if ex.reqBody != nil {
		s.Body = ex.reqBody
	} else {
		s.Body, s.ContentLength = http.NoBody, 0
	}
	return s
}

// Header implements http.ResponseWriter.
func (ex *exchange) Header() http.Header { return ex.header }

// WriteHeader implements http.ResponseWriter. It sends the header at once.
func (ex *exchange) WriteHeader(code int) {
	if ex.wroteHeader || (code >= 100 && code < 200) {
		return // informational responses are not passed on
	}
	ex.wroteHeader = true
	r := ex.response
	r.StatusCode = code
	r.Status = strconv.Itoa(code) + " " + http.StatusText(code)
	r.Header = ex.header.Clone()
	ex.noBody = ex.method == http.MethodHead || code == http.StatusNoContent || code == http.StatusNotModified
	if n, err := strconv.ParseInt(r.Header.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		r.ContentLength = n
	}
	if code == http.StatusNoContent {
		r.ContentLength = 0
	}
	ex.sendHeader(nil)
}

func (ex *exchange) sendHeader(err error) {
	ex.headerOnce.Do(func() {
		ex.headerErr = err
		if err != nil {
			ex.response = nil
		}
		close(ex.headerReady)
	})
}

// Write implements http.ResponseWriter. It blocks while the client has not read enough.
func (ex *exchange) Write(p []byte) (int, error) {
	if !ex.wroteHeader {
		if ex.header.Get("Content-Type") == "" && ex.header.Get("Content-Encoding") == "" && len(p) > 0 {
			ex.header.Set("Content-Type", http.DetectContentType(p))
		}
		ex.WriteHeader(http.StatusOK)
	}
	if ex.noBody {
		if ex.method == http.MethodHead {
			return len(p), nil
		}
		return 0, http.ErrBodyNotAllowed
	}
	return ex.body.write(p)
}

// Flush implements http.Flusher. Written bytes are visible at once, so only the header may have to be sent.
func (ex *exchange) Flush() {
	if !ex.wroteHeader {
		ex.WriteHeader(http.StatusOK)
	}
}

// CloseNotify implements http.CloseNotifier. Upstream's response wrappers pass Flush through only for writers that have
// both.
func (ex *exchange) CloseNotify() <-chan bool { return ex.closeNotify }

// abort ends the exchange when the client's context ended or the client closed the body.
func (ex *exchange) abort(cause error) {
	ex.cancel(cause)
	ex.body.closeRead(cause)
	ex.closeNotifyOnce.Do(func() { ex.closeNotify <- true })
}

// end ends the exchange after the handler has returned. err is not nil when the handler panicked.
func (ex *exchange) end(err error) {
	if err == nil && !ex.wroteHeader {
		ex.header.Set("Content-Length", "0")
		ex.WriteHeader(http.StatusOK)
	}
	if err != nil {
		ex.sendHeader(err)
	}
	if ex.reqBody != nil {
		_ = ex.reqBody.Close() // the client closes it too and gets the error
	}
	if err != nil {
		ex.body.closeWrite(io.ErrUnexpectedEOF)
	} else {
		ex.body.closeWrite(io.EOF)
	}
	ex.cancel(context.Canceled)
}
