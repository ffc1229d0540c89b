// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"crypto/x509"
	"errors"
	"net"
	"strings"
)

// tlsFailure says in plain words what a TLS handshake between two servers
// failed of; "" if err is of something else. In TLS 1.3 the server that is
// called checks the caller's certificate last: the caller learns of it with the
// first answer that it reads, as an alert.
func tlsFailure(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return "the other server does not accept this server's certificate (" + op.Err.Error() + ")"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the other side's certificate is not of this cluster's authority for servers"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the other side's certificate is not one of a server"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch invalid.Reason {
		case x509.Expired:
			return "the other side's certificate has expired or is not valid yet, or one of the two clocks is wrong: " + invalid.Detail
		case x509.IncompatibleUsage:
			return "the other side's certificate is not for this end of a connection between servers"
		}
	}
	// crypto/tls has no types for the rest.
	if i := strings.Index(err.Error(), "tls: "); i >= 0 {
		return "the TLS handshake failed: " + err.Error()[i+len("tls: "):]
	}
	return ""
}
