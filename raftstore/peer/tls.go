// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"crypto/x509"
	"errors"
	"net"
	"strings"
)

// tlsFailure returns in plain words why a TLS handshake between two servers failed, or "" if err has another cause. In
// TLS 1.3 the listening server checks the dialing server's certificate last. The dialing server learns of a failure by
// an alert, with the first answer that it reads.
func tlsFailure(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return "the other server does not accept this server's certificate (" + op.Err.Error() + ")"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the other server's certificate was not signed by this cluster's authority for servers"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the other end's certificate is not a server's certificate"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch invalid.Reason {
		case x509.Expired:
			return "the other server's certificate has expired or is not valid yet, or one of the two clocks is wrong: " + invalid.Detail
		case x509.IncompatibleUsage:
			return "the other server's certificate lacks the key usage for its end of the connection"
		}
	}
	// crypto/tls has no types for the rest.
	if i := strings.Index(err.Error(), "tls: "); i >= 0 {
		return "the TLS handshake failed: " + err.Error()[i+len("tls: "):]
	}
	return ""
}
