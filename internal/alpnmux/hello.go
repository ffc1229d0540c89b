// SPDX-License-Identifier: Apache-2.0

package alpnmux

import (
	"crypto/tls"
	"errors"
	"net"
	"slices"
)

// errSeen ends crypto/tls's handshake once it has parsed the ClientHello.
var errSeen = errors.New("alpnmux: the ClientHello was seen")

// readHello reads a ClientHello, in however many records and packets it comes, and returns the protocols it offers and
// every byte that was read. It leaves parsing, and its limit of 64 KiB, to crypto/tls. What is no ClientHello offers
// nothing; an error is the connection's.
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
