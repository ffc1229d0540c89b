// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// talk sends pieces of bytes, each in a segment of its own, and returns all that comes back until the connection ends.
func talk(t *testing.T, address string, secure bool, pieces ...string) string {
	t.Helper()
	conn := testenv.Must(net.Dial("tcp", address))(t)
	defer conn.Close()
	if secure {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	for _, piece := range pieces {
		testenv.Must(io.WriteString(conn, piece))(t)
	}
	text, _ := io.ReadAll(conn) // a reset after the answer is no matter
	return string(text)
}

// TestTwoLengthsAreRefused: of a request with two lengths, the proxy and a server before it might each use another.
func TestTwoLengthsAreRefused(t *testing.T) {
	seen := make(chan string, 100) // more than any case sends
	backend := backendServer(t, func(_ http.ResponseWriter, r *http.Request) { seen <- r.RequestURI })
	f := newFixture(t, Options{}, site(t, "", backend)...)
	const next = "GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	chunked := func(more string) string {
		return "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + more + "\r\n3\r\nabc\r\n0\r\n\r\n"
	}
	length := "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
	for name, c := range map[string]struct{ request, answers, backend string }{
		"chunks before a length": {chunked("Content-Length: 3\r\n"), "400", ""},
		"a length before chunks": {strings.Replace(chunked(""), "Transfer", "cONTENT-lENGTH: 3\r\nTransfer", 1), "400", ""},
		"a length of 0":          {chunked("Content-Length: 0\r\n"), "400", ""},
		"a length that is none":  {chunked("Content-Length: x\r\n"), "400", ""},
		"after a request":        {length + chunked("Content-Length: 3\r\n"), "200 400", "/x"},
		"after chunks":           {chunked("") + chunked("Content-Length: 3\r\n"), "200 400", "/x"},
		"in HTTP/1.0":            {"POST /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc", "400", ""},
		"in an absolute target":  {strings.Replace(chunked("Content-Length: 3\r\n"), "/x", "http://a/x", 1), "400", ""},
		"a long header":          {chunked("X: " + strings.Repeat("x", 8<<10) + "\r\nContent-Length: 3\r\n"), "400", ""},
		// What was read first is overwritten then. The connection ends, so that no other request is in the body.
		"before a long header":       {chunked("Content-Length: 3\r\nX: " + strings.Repeat("x", 8<<10) + "\r\n"), "200", "/x"},
		"chunks, and a long header":  {chunked("X: " + strings.Repeat("x", 8<<10) + "\r\n"), "200", "/x"},
		"chunks alone":               {chunked(""), "200 200", "/x /next"},
		"chunks with a length":       {chunked("X: Content-Length: 3\r\nX-Content-Length: 3\r\nContent-Length-X: 3\r\n"), "200 200", "/x /next"},
		"chunks with a request line": {chunked("X: POST /x HTTP/1.1\r\n"), "200 200", "/x /next"},
		"a length in a chunk":        {"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n13\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", "200 200", "/x /next"},
		"a length in the body before": {strings.Replace(length, "3\r\n\r\nabc", "19\r\n\r\nContent-Length: 3\r\n", 1) + chunked(""), "200 200 200",
			"/x /x /next"},
		"a length alone": {length, "200 200", "/x /next"},
		"HTTP/1.0":       {"POST /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc", "200 200", "/x /next"},
	} {
		for _, secure := range []bool{false, true} {
			address := map[bool]string{false: f.http, true: f.https}[secure]
			var statuses, uris []string
			for _, part := range strings.Split("\r\n"+talk(t, address, secure, c.request+next), "\r\nHTTP/1.")[1:] {
				statuses = append(statuses, strings.Fields(part)[1])
			}
			for len(seen) > 0 {
				uris = append(uris, <-seen)
			}
			if strings.Join(statuses, " ") != c.answers || strings.Join(uris, " ") != c.backend {
				t.Errorf("%s, TLS %t: answered with %v, want %s; the backend got %v, want %s", name, secure, statuses, c.answers, uris, c.backend)
			}
		}
	}
	for _, pieces := range [][]string{
		{"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + next},
		{"POST /x HTTP/1.1\r\nHost: a\r\nContent-Len", "gth: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + next},
	} {
		// In several segments the header may come whole or not, and is refused or the last one.
		got := talk(t, f.http, false, pieces...)
		testenv.Equal(t, strings.Count(got, "HTTP/1.1 "), 1, "in segments, answered with %q: answers", got)
		testenv.Contains(t, strings.ToLower(got), "connection: close", "in segments, the answer")
	}
}

// TestEarlyResponsesKeepTheEndOfTheConnection: an informational response clears the headers of the response.
func TestEarlyResponsesKeepTheEndOfTheConnection(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Link", "</x>")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusOK)
	})
	f := newFixture(t, Options{}, site(t, "", backend)...)
	got := talk(t, f.http, false, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nX: "+strings.Repeat("x", 8<<10)+"\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
	_, got, early := strings.Cut(got, "HTTP/1.1 103 Early Hints\r\n")
	testenv.True(t, early && strings.Count(got, "HTTP/1.1 ") == 1 && strings.Contains(got, "Connection: close"), "the client got %q", got)
}

// TestEmptyLinesBeforeTheFirstRequestAreIgnored as RFC 9112 has it.
func TestEmptyLinesBeforeTheFirstRequestAreIgnored(t *testing.T) {
	f := newFixture(t, Options{}, append(site(t, "", backendServer(t, showing("w"))), section(t, table.KindSettings, table.Settings{
		TrustedProxies: []string{"127.0.0.9/32"}, ProxyProtocol: true,
	}))...)
	const request = "GET /p HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	for _, pieces := range [][]string{
		{"\r\n" + request}, {"\n" + request}, {"\r\n\r\n" + request}, {"\r\n", request}, {"\r", "\n", "\r", "\n", request},
		{"\r\nG", request[1:]}, {request}, {"\r\nPOST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\r\n" + request},
	} {
		got := talk(t, f.http, false, pieces...)
		testenv.True(t, strings.HasPrefix(got, "HTTP/1.1 200 ") && strings.HasSuffix(got, "w /p"), "%q is answered with %q", pieces, got)
	}
	for _, many := range []string{"\r\n\r\n\r\n", " \r\n", "\r\n "} {
		got := talk(t, f.http, false, many+request)
		testenv.True(t, strings.HasPrefix(got, "HTTP/1.1 400 "), "%q and a request are answered with %q", many, got)
	}
}

// TestDropEmptyLinesIsTrueToTheBytes for each division of the bytes into reads.
func TestDropEmptyLinesIsTrueToTheBytes(t *testing.T) {
	for _, c := range []struct{ sent, want string }{{"\r\n\r\nGET", "GET"}, {"GET\r\n", "GET\r\n"}, {"\r\n\r\n\r\n", "\r\n"}, {"\n\nX\n", "X\n"}, {"\r\n\r\n", ""}, {"", ""}} {
		for size := 1; size <= len(c.sent)+1; size++ {
			rest := strings.NewReader(c.sent)
			read := func(to []byte) (int, error) { return rest.Read(to[:min(size, len(to))]) }
			to := make([]byte, 64)
			n, err := read(to)
			n, err = dropEmptyLines(to, n, err, read)
			got := string(to[:n])
			if err == nil {
				more, _ := io.ReadAll(rest)
				got += string(more)
			}
			testenv.Equal(t, got, c.want, "of %q in pieces of %d bytes remains", c.sent, size)
		}
	}
}
