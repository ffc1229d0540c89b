// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unicode"

	"github.com/coracle-k8s/coracle/ingress/table"
)

type response struct {
	request   *request
	writer    http.ResponseWriter
	ctl       *http.ResponseController
	status    int         // the status sent to the client; 0 before
	answering atomic.Bool // the header of the response has been, or is being, written
	duplex    bool        // the response may begin before the end of the request's body
	cookies   []string    // of the authentication server's response, and of the client's session

	informationalMu   sync.Mutex // held while informational responses are written
	informationalOver bool
}

// announceEnd sets Connection: close in a response's header where more of the request's body is still to come than
// close reads. Without it a client would send, and lose, the next request on the connection.
func (w *response) announceEnd(h http.Header) {
	if !w.duplex || w.request.in.ProtoMajor != 1 || w.request.body.done.Load() {
		return
	}
	if length := w.request.in.ContentLength; length < 0 || length-w.request.body.read.Load() > maxUnread {
		h["Connection"] = []string{"close"}
	}
}

// answer sends a short response of the proxy's own.
func (w *response) answer(status int, text string) { w.answerText(status, text+"\n") }

func (w *response) answerText(status int, text string) {
	w.answering.Store(true)
	w.status = status
	h := w.writer.Header()
	if w.request.speaksGRPC() {
		w.answerGRPC(grpcStatus(status), text)
		return
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.announceEnd(h)
	w.writer.WriteHeader(status)
	_, _ = io.WriteString(w.writer, text) // an error is ignored: the client has closed the connection
}

// redirect sends a redirect. The variables in a target are the client's choice, and so may the scheme be.
func (w *response) redirect(status int, target string) {
	scheme := table.SchemeOf(target)
	if scheme != "" && scheme != "http" && scheme != "https" || strings.ContainsFunc(target, unicode.IsControl) {
		w.answer(http.StatusBadRequest, "the redirect of this request is to no URL of http or https")
		return
	}
	w.writer.Header().Set("Location", target)
	w.answer(status, "this is served at "+target)
}

// tooLong answers a request whose parts would be repeated too often.
func (w *response) tooLong() {
	w.answer(http.StatusRequestURITooLong, "the request is too long for the texts of its route, which repeat parts of it")
}

// addCookies adds the authentication server's cookies to the response for the client.
func (w *response) addCookies() {
	if len(w.cookies) > 0 {
		h := w.writer.Header()
		h["Set-Cookie"] = append(h["Set-Cookie"], w.cookies...)
	}
}

func (w *response) flush() {
	if err := w.ctl.Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// sendInformational forwards an informational response. It does not forward 100, since net/http sends one when the
// backend has asked for the body.
func (w *response) sendInformational(code int, header textproto.MIMEHeader) error {
	w.informationalMu.Lock()
	defer w.informationalMu.Unlock()
	if w.informationalOver || code == http.StatusContinue || !w.request.in.ProtoAtLeast(1, 1) {
		return nil
	}
	h := w.writer.Header()
	altSvc := h[headerAltSvc]
	maps.Copy(h, header)
	removeHopByHop(h)
	delete(h, headerAltSvc) // the backend's, as in respond
	if altSvc != nil {
		h[headerAltSvc] = altSvc
	}
	w.writer.WriteHeader(code)
	clear(h)
	w.request.listener.setCommonHeaders(h, w.request.in)
	w.request.timeouts.recordBytes()
	return nil
}

// awaitInformational waits until no informational response can be written any more.
func (w *response) awaitInformational() {
	w.informationalMu.Lock()
	w.informationalOver = true
	w.informationalMu.Unlock()
}
