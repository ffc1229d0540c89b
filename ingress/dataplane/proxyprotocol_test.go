// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// Headers of version 2, as their specification writes them.
const (
	v2  = "\r\n\r\n\x00\r\nQUIT\n"
	v24 = v2 + "\x21\x11\x00\x0c\xcb\x00\x71\x07\x7f\x00\x00\x01\x11\x22\x00\x50"
	// With further values behind the addresses
	v26 = v2 + "\x21\x21\x00\x2b\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x11\x22\x00\x50" +
		"\x03\x00\x04abcd"
	v2local = v2 + "\x20\x00\x00\x00"
)

// proxied is a fixture whose backend answers with the client's address as it gets it, behind a trusted proxy at
// 127.0.0.1.
func proxied(t *testing.T, o Options, settings table.Settings) *fixture {
	address := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Header.Get("X-Real-Ip"), r.Header.Get("X-Forwarded-For"))
	})
	return newFixture(t, o, append(site(t, "", address), section(t, table.KindSettings, settings))...)
}

var behindProxy = table.Settings{TrustedProxies: []string{"127.0.0.1/32"}, ProxyProtocol: true}

// ask sends a header and a request from an address, and returns the body of the answer, or the status of another one
// than 200.
func ask(t *testing.T, from, to, header string, secure bool) (string, error) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn := testenv.Must(d.Dial("tcp", to))(t)
	defer conn.Close()
	testenv.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	if secure {
		if _, err := io.WriteString(conn, header); err != nil {
			return "", err
		}
		conn, header = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}), ""
	}
	// At once: what comes after an answer of 400 makes the kernel reset the connection, and drop that answer.
	request := header + "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 198.51.100.9\r\nConnection: close\r\n\r\n"
	if _, err := io.WriteString(conn, request); err != nil {
		return "", err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK {
		return fmt.Sprint(res.StatusCode), err
	}
	return string(body), err
}

func TestProxyProtocolNeedsTrustedProxy(t *testing.T) {
	f := proxied(t, Options{}, behindProxy)
	const closed = "closed"
	for _, c := range []struct{ name, from, header, want string }{
		{"version 1", "127.0.0.1", "PROXY TCP4 203.0.113.7 127.0.0.1 4386 80\r\n", "203.0.113.7 203.0.113.7"},
		{"version 1, IPv6", "127.0.0.1", "PROXY TCP6 2001:db8::7 2001:db8::1 4386 80\r\n", "2001:db8::7 2001:db8::7"},
		{"version 1, unknown", "127.0.0.1", "PROXY UNKNOWN\r\n", "198.51.100.9 198.51.100.9, 127.0.0.1"}, // a request of the trusted proxy itself
		{"version 1, the longest", "127.0.0.1", "PROXY UNKNOWN " + strings.Repeat("f", 107-16) + "\r\n", "198.51.100.9 198.51.100.9, 127.0.0.1"},
		{"version 2", "127.0.0.1", v24, "203.0.113.7 203.0.113.7"},
		{"version 2, IPv6, with more", "127.0.0.1", v26, "2001:db8::7 2001:db8::7"},
		{"version 2, the longest", "127.0.0.1", v2 + "\x21\x11\x10\x00\xcb\x00\x71\x07" + strings.Repeat("\x00", 4092), "203.0.113.7 203.0.113.7"},
		{"version 2, too long", "127.0.0.1", v2 + "\x21\x11\x10\x01\xcb\x00\x71\x07" + strings.Repeat("\x00", 4093), closed},
		{"version 2, a health check", "127.0.0.1", v2local, "198.51.100.9 198.51.100.9, 127.0.0.1"},
		{"none, though it has to be there", "127.0.0.1", "", closed},
		{"a line that is too long", "127.0.0.1", "PROXY UNKNOWN " + strings.Repeat("f", 107-15) + "\r\n", closed},
		{"another family than it says", "127.0.0.1", "PROXY TCP4 2001:db8::7 2001:db8::1 4386 80\r\n", closed},
		{"a name", "127.0.0.1", "PROXY TCP4 localhost 127.0.0.1 4386 80\r\n", closed},
		{"version 3", "127.0.0.1", v2 + "\x31\x11\x00\x0c" + strings.Repeat("\x01", 12), closed},
		{"addresses that are cut off", "127.0.0.1", v2 + "\x21\x11\x00\x04\x01\x01\x01\x01", closed},
		{"datagrams", "127.0.0.1", v2 + "\x21\x12\x00\x0c" + strings.Repeat("\x01", 12), closed},
		{"an untrusted client without a header", "127.0.0.2", "", "127.0.0.2 127.0.0.2"},
		{"an untrusted client's header", "127.0.0.2", "PROXY TCP4 203.0.113.7 127.0.0.1 4386 80\r\n", "400"},
	} {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, TLS %t", c.name, secure), func(t *testing.T) {
				to, want := f.http, c.want
				if secure {
					to = f.https
					if want == "400" { // it is no TLS
						want = closed
					}
				}
				got, err := ask(t, c.from, to, c.header, secure)
				if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					got = closed
				}
				testenv.False(t, got != want, "the backend is sent %q, want %q (%v)", got, want, err)
			})
		}
	}
	if settings := (table.Settings{TrustedProxies: behindProxy.TrustedProxies}); true {
		f := proxied(t, Options{}, settings)
		testenv.Equal(t, testenv.Must(ask(t, "127.0.0.1", f.http, "PROXY TCP4 203.0.113.7 127.0.0.1 4386 80\r\n", false))(t), "400", "a header where none is asked for:")
	}
}

// TestProxyProtocolCarriesThePort: the port at which the proxy got the connection is that of the client's URL, and 443
// makes it https, since the proxy has ended TLS.
func TestProxyProtocolCarriesThePort(t *testing.T) {
	f, _ := cluster{
		ingresses: []*networkingv1.Ingress{object("a/x", "nginx", annotations{"force-ssl-redirect": "true"}, "secure/=w"), object("a/y", "nginx", nil, "h/=w")},
		settings:  table.Settings{TrustedProxies: []string{"127.0.0.1/32", "192.168.0.1/32"}, ProxyProtocol: true},
	}.serve(t)
	for _, c := range []struct{ name, header, host, more, want string }{
		{"version 1", "PROXY TCP4 203.0.113.7 192.168.0.11 56324 1234\r\n", "h", "", "w / X-Forwarded-Port=1234 X-Forwarded-Proto=http X-Forwarded-For=203.0.113.7"},
		{"of TLS", "PROXY TCP4 203.0.113.7 192.168.0.11 56324 443\r\n", "secure", "", "w / X-Forwarded-Port=443 X-Forwarded-Proto=https X-Forwarded-For=203.0.113.7"},
		{"version 2", v24, "h", "", "w / X-Forwarded-Port=80 X-Forwarded-Proto=http X-Forwarded-For=203.0.113.7"},
		{"version 2, IPv6", v26, "h", "", "w / X-Forwarded-Port=80 X-Forwarded-Proto=http X-Forwarded-For=2001:db8::7"},
		{"none", "PROXY UNKNOWN\r\n", "h", "", "w / X-Forwarded-Port=80 X-Forwarded-Proto=http X-Forwarded-For=127.0.0.1"},
		{"a client's word", "PROXY TCP4 203.0.113.7 192.168.0.11 56324 1234\r\n", "h", "X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Port: 5\r\n",
			"w / X-Forwarded-Port=1234 X-Forwarded-Proto=http X-Forwarded-For=203.0.113.7"},
		{"a trusted client's word", "PROXY TCP4 192.168.0.1 192.168.0.11 56324 1234\r\n", "h", "X-Forwarded-For: 1.1.1.1\r\n",
			"w / X-Forwarded-Port=1234 X-Forwarded-Proto=http X-Forwarded-For=1.1.1.1, 192.168.0.1"},
		{"no port", "PROXY TCP4 203.0.113.7 192.168.0.11 56324 http\r\n", "h", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := exchangeRaw(t, f.http, c.header+"GET / HTTP/1.1\r\nHost: "+c.host+"\r\nX-Show: X-Forwarded-Port,X-Forwarded-Proto,X-Forwarded-For\r\nConnection: close\r\n"+c.more+"\r\n")
			if _, text, _ := strings.Cut(got, "\r\n\r\n"); text != c.want {
				t.Errorf("the backend is sent %q, want %q", got, c.want)
			}
		})
	}
}

// TestProxyProtocolDoesNotBlockOthers: a trusted proxy that has not sent the header yet keeps no other from being
// served.
func TestProxyProtocolDoesNotBlockOthers(t *testing.T) {
	f := proxied(t, Options{}, behindProxy)
	silent := testenv.Must(net.Dial("tcp", f.http))(t)
	defer silent.Close()
	testenv.Equal(t, testenv.Must(ask(t, "127.0.0.1", f.http, v24, false))(t), "203.0.113.7 203.0.113.7", "")
}

// TestProxyProtocolLimits: of many clients behind a trusted proxy none has more than half of the connections, and all
// of them may have all.
func TestProxyProtocolLimits(t *testing.T) {
	f := proxied(t, Options{MaxConnections: 4}, behindProxy)
	open := func(client int) (io.Closer, bool) {
		conn, err := net.Dial("tcp", f.http)
		testenv.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		testenv.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
		fmt.Fprintf(conn, "PROXY TCP4 203.0.113.%d 127.0.0.1 4386 80\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", client)
		in := bufio.NewReader(conn)
		if _, err = http.ReadResponse(in, nil); err == nil { // what follows keeps it busy
			fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
			_, err = in.ReadString('\n')
		}
		return conn, err == nil
	}
	open(1)
	first, ok := open(1)
	testenv.True(t, ok, "a client does not get half of the connections")
	if _, ok := open(1); ok {
		t.Error("a client gets more than half")
	}
	waitUntil(t, "the refused connection is not counted", func() bool {
		f.limits.connections.mu.Lock()
		defer f.limits.connections.mu.Unlock()
		return f.limits.connections.total == 2
	})
	for _, client := range []int{2, 3} {
		if _, ok := open(client); !ok {
			t.Errorf("client %d gets no connection", client)
		}
	}
	_ = first.Close()
	waitUntil(t, "a connection that ends makes room", func() bool {
		_, ok := open(1)
		return ok
	})
}
