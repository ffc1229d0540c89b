// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"net/http"
	"reflect"
)

// framed reports whether the request's body has one length. A request with Transfer-Encoding and Content-Length is
// answered with 400, as is one of HTTP/1.0 with Transfer-Encoding, and its connection ends (RFC 9112, 6.1): a server
// before this one may read another length. net/http drops the header that it does not use, so framed looks for it in
// the bytes that net/http has read. Where these are not all there any more, the connection ends after the response.
func (x *exchange) framed() bool {
	in, dropped := x.in, "Content-Length"
	switch {
	case in.ProtoMajor != 1:
		return true
	case in.ProtoMinor == 0:
		dropped = "Transfer-Encoding"
	case len(in.TransferEncoding) == 0:
		return true
	}
	header, whole := headerOf(x.writer, in)
	two := false
	for line := range bytes.Lines(header) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		two = two || bytes.EqualFold(name, []byte(dropped))
	}
	if whole && !two {
		return true
	}
	in.Close = true // for the headers of all responses
	x.listener.setCommonHeaders(x.writer.Header(), in)
	if two {
		x.answer(http.StatusBadRequest, "the request states the length of its body in two ways")
	}
	return !two
}

// headerOf returns the header of a request of HTTP/1, as the client sent it. It has to be called before the body is
// read. whole is false where the beginning of the header was overwritten: then header is its end.
func headerOf(w http.ResponseWriter, in *http.Request) (header []byte, whole bool) {
	header = lastRead(w)
	line := []byte("\n" + in.Method + " " + in.RequestURI + " " + in.Proto)
	if at := bytes.LastIndex(header, line); at >= 0 {
		return header[at+len(line):], true
	}
	rest, whole := bytes.CutPrefix(header, line[1:])
	return rest, whole
}

// lastRead returns the bytes of a connection of HTTP/1 that net/http has used and still has in its buffer. They end
// with the header of the current request. It returns nothing when net/http's fields are others than in this version of
// Go.
func lastRead(w http.ResponseWriter) []byte {
	at := reflect.ValueOf(w)
	for _, name := range []string{"conn", "bufr"} {
		if at = field(at, name); !at.IsValid() {
			return nil
		}
	}
	buffer, used := field(at, "buf"), field(at, "r")
	if !buffer.IsValid() || buffer.Type() != reflect.TypeFor[[]byte]() || !used.IsValid() || !used.CanInt() ||
		used.Int() > int64(buffer.Len()) {
		return nil
	}
	return buffer.Bytes()[:used.Int()]
}

// field returns a field of the struct that a pointer is to. It returns the zero Value when there is none.
func field(of reflect.Value, name string) reflect.Value {
	if of.Kind() != reflect.Pointer || of.IsNil() || of.Elem().Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return of.Elem().FieldByName(name)
}

// maxEmptyLines limits the bytes of empty lines before the first request of a connection, as net/http does after a
// POST.
const maxEmptyLines = 4

// dropEmptyLines removes empty lines from the first bytes of a connection, of which n are in to already (RFC 9112,
// 2.2). It reads on as long as there is nothing else. read is the connection's.
func dropEmptyLines(to []byte, n int, err error, read func([]byte) (int, error)) (int, error) {
	for dropped := 0; err == nil; {
		line := bytes.IndexFunc(to[:n], func(r rune) bool { return r != '\r' && r != '\n' })
		if line < 0 {
			line = n
		}
		line = min(line, maxEmptyLines-dropped)
		dropped += line
		if n = copy(to, to[line:n]); n > 0 || dropped == maxEmptyLines {
			break
		}
		n, err = read(to)
	}
	return n, err
}
