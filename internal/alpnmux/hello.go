// SPDX-License-Identifier: Apache-2.0

package alpnmux

import (
	"crypto/tls"
	"errors"
	"net"
	"slices"
)

// maxHello is how many bytes of a connection are read before it is routed, including the headers of TLS records. The
// limit keeps an unauthenticated client from using more memory. Browsers and Go send less than 2 KiB, or a few more
// with a session ticket that holds a chain of certificates. crypto/tls would accept 64 KiB, in records of one byte
// each. nginx, when it routes by ALPN, also accepts 16 KiB (preread_buffer_size).
const maxHello = 16 << 10

// errSeen ends the handshake of crypto/tls once it has parsed the ClientHello.
var errSeen = errors.New("alpnmux: the ClientHello was seen")

// errTooLong ends the handshake when the first maxHello bytes of a connection hold no whole ClientHello.
var errTooLong = errors.New("alpnmux: the ClientHello is too long")

// readHello reads a ClientHello, which may span several records and packets, and leaves parsing to crypto/tls. It
// returns the offered protocols and every byte that it read, maxHello at most. For anything but a ClientHello it
// returns no protocols. An error is the connection's, or errTooLong.
func readHello(c net.Conn) (protocols []string, read []byte, err error) {
	r := &recorder{Conn: c}
	err = tls.Server(r, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			protocols = slices.Clone(h.SupportedProtos)
			return nil, errSeen
		},
	}).Handshake()
	if !errors.Is(err, errSeen) && r.err != nil {
		return nil, nil, r.err
	}
	return protocols, r.read, nil
}

// recorder keeps the bytes that are read, and sends nothing: the client must not get the alert of the handshake that
// ends here.
type recorder struct {
	net.Conn
	read []byte
	err  error
}

func (r *recorder) Read(b []byte) (int, error) {
	left := maxHello - len(r.read)
	if left == 0 {
		r.err = errTooLong
		return 0, r.err
	}
	b = b[:min(len(b), left)]
	n, err := r.Conn.Read(b)
	r.read, r.err = append(r.read, b[:n]...), err
	return n, err
}

func (r *recorder) Write(b []byte) (int, error) { return len(b), nil }

// conn is a connection whose first bytes have been read already. Read must not be called concurrently. A net.Conn
// allows that, but each caller would get an arbitrary piece.
type conn struct {
	net.Conn
	read []byte
}

func (c *conn) Read(b []byte) (int, error) {
	if len(c.read) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.read)
	if c.read = c.read[n:]; len(c.read) == 0 {
		c.read = nil
	}
	return n, nil
}
