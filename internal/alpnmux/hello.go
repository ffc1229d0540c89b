// SPDX-License-Identifier: Apache-2.0

package alpnmux

import (
	"crypto/tls"
	"errors"
	"net"
	"slices"
)

// maxHello bounds what is read of a connection before it is routed, the heads of TLS records included: a client that is
// not authenticated must not have more memory kept for it. Browsers and Go send less than 2 KiB, with a session ticket
// that holds a chain of certificates a few more. crypto/tls would take 64 KiB, in records of one byte each; nginx, when
// it routes by ALPN, takes 16 KiB as well (preread_buffer_size).
const maxHello = 16 << 10

// errSeen ends crypto/tls's handshake once it has parsed the ClientHello.
var errSeen = errors.New("alpnmux: the ClientHello was seen")

// errTooLong ends it when there is none in as many bytes as are read of a connection.
var errTooLong = errors.New("alpnmux: the ClientHello is too long")

// readHello reads a ClientHello, in however many records and packets it comes, and returns the protocols it offers and
// every byte that was read, maxHello at most. It leaves parsing to crypto/tls. What is no ClientHello offers nothing;
// an error is the connection's, or errTooLong.
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

// recorder keeps what is read, and sends nothing: the alert for the handshake that ends is not the client's business.
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

// conn is a connection whose first bytes have been read already. Reads are not concurrent: net.Conn's may be, but each
// would get an arbitrary part.
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
