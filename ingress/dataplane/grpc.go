// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/http"
	"strconv"
	"strings"
)

// grpcUnavailable is gRPC's status UNAVAILABLE, after which a client may try again.
const grpcUnavailable = 14

// grpcStatus returns the status of gRPC for one of HTTP, as clients translate it (gRPC,
// doc/http-grpc-status-mapping.md).
func grpcStatus(status int) int {
	switch status {
	case http.StatusBadRequest:
		return 13 // INTERNAL
	case http.StatusUnauthorized:
		return 16 // UNAUTHENTICATED
	case http.StatusForbidden:
		return 7 // PERMISSION_DENIED
	case http.StatusNotFound:
		return 12 // UNIMPLEMENTED
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return grpcUnavailable
	}
	return 2 // UNKNOWN
}

// speaksGRPC reports whether the client reads errors in gRPC's form. Clients of gRPC-Web, which may use HTTP/1.1, read
// errors in HTTP's form.
func (r *request) speaksGRPC() bool {
	if !r.grpc || r.in.ProtoMajor < 2 {
		return false
	}
	rest := strings.TrimPrefix(r.in.Header.Get("Content-Type"), "application/grpc")
	return rest == "" || rest[0] == '+' || rest[0] == ';'
}

// answerGRPC sends an error of the proxy's own in gRPC's form: trailers without a response before them.
func (w *response) answerGRPC(status int, text string) {
	h := w.writer.Header()
	h["Content-Type"] = []string{"application/grpc"}
	h["Grpc-Status"] = []string{strconv.Itoa(status)}
	h["Grpc-Message"] = []string{grpcMessage(text)}
	w.writer.WriteHeader(http.StatusOK)
}

// grpcMessage escapes characters that a status message may not hold.
func grpcMessage(text string) string {
	const hexDigits = "0123456789ABCDEF"
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		if c := text[i]; c >= ' ' && c <= '~' && c != '%' {
			out = append(out, c)
		} else {
			out = append(out, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(out)
}

// answerInvalid answers a request for which a backend was chosen that cannot be used.
func (w *response) answerInvalid() {
	const text = "the backend of this route cannot be used; the status of its object says why"
	if w.request.speaksGRPC() {
		w.answering.Store(true)
		w.status = http.StatusInternalServerError
		w.answerGRPC(grpcUnavailable, text)
		return
	}
	w.answer(http.StatusInternalServerError, text)
}
