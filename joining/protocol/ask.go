// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/coracle-k8s/coracle/internal/certend"
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/version"
	"github.com/coracle-k8s/coracle/joining/token"
)

// ErrUnreachable means that no server replied, or that the connection broke. The caller may try again.
var ErrUnreachable = errors.New("no server answers")

// Call is one request to a server, with what authenticates both ends.
type Call struct {
	// Address is host:port of a server.
	Address string
	// Token is the cluster's token. Its hash pins the cluster's authority. A bare secret has none; then only the
	// server's proof identifies the cluster.
	Token token.Token
	// Certificate, when set, is the node's own and replaces the token. Root is then the only trusted root.
	Certificate *tls.Certificate
	Root        *x509.Certificate
	// Request is sent with its proof filled in.
	Request Request
	// Dialer opens the connection. It may be the zero value.
	Dialer net.Dialer
}

// Send asks one server. The error is a *Refusal if that is the response, and wraps ErrUnreachable if there was none.
func Send(ctx context.Context, q Call) (*Response, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	raw, err := q.Dialer.DialContext(ctx, "tcp", q.Address)
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %w", ErrUnreachable, q.Address, err)
	}
	defer func() { _ = raw.Close() }() // all data has been sent
	defer context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })()
	v := verifier{token: q.Token, root: q.Root}
	conn := tls.Client(raw, q.config(&v))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, explainHandshake(q.Address, err)
	}
	state := conn.ConnectionState()
	request := q.Request
	if request.Protocol == 0 {
		request.Protocol = version.Protocol()
	}
	if request.Level == 0 {
		request.Level = level.Field(level.Newest())
	}
	request.Node.Password = passwordFor(v.presentedRoot, request.Node.Password)
	if q.Certificate == nil {
		kind := q.Token.Role
		if kind == "" { // a secret that an operator chose counts as the token for the requested role
			kind = request.Role
		}
		if request.Proof, err = MachineProof(state, q.Token, kind); err != nil {
			return nil, err
		}
	}
	if err := write(conn, maxRequest, request); err != nil {
		return nil, fmt.Errorf("%w at %s any more: %w", ErrUnreachable, q.Address, err)
	}
	a := &Response{}
	if err := read(conn, maxAnswer, a); err != nil {
		return nil, fmt.Errorf("%w at %s any more: %w", ErrUnreachable, q.Address, err)
	}
	if a.Refusal != nil {
		return nil, a.Refusal
	}
	if q.Certificate == nil {
		want, err := proof(state, fromServer, request.Proof.Kind, q.Token)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(want, a.MAC) { // constant time is not needed: the server has received the proof already
			return nil,
				fmt.Errorf("the server at %s could not prove that it knows the token, so it is not one of the cluster's. Nothing from it was used",
					q.Address)
		}
	}
	return a, v.sameRoot(a.ServerCA)
}

func (q *Call) config(v *verifier) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{Protocol},
		// The address may be any that leads to a server. VerifyConnection checks the certificate instead.
		InsecureSkipVerify: true,
		VerifyConnection:   v.verify,
	}
	if q.Certificate != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return q.Certificate, nil }
	}
	return c
}

// verifier decides whether the other end is a server of the cluster.
type verifier struct {
	token         token.Token
	root          *x509.Certificate // nil: the token's hash decides
	presentedRoot *x509.Certificate // the presented root that names the cluster
}

var errNoServer = errors.New("is no server of a Coracle cluster")

func (v *verifier) verify(s tls.ConnectionState) error {
	if s.NegotiatedProtocol != Protocol {
		return errNoServer
	}
	named := s.PeerCertificates[len(s.PeerCertificates)-1]
	if v.root != nil && !named.Equal(v.root) {
		return token.ErrOtherCluster
	}
	if err := v.token.VerifyCA(named); err != nil {
		return err
	}
	root := renewedRoot(s.PeerCertificates)
	at := root.NotBefore                   // not this machine's clock: if that is wrong, the server's refusal explains it
	for _, c := range s.PeerCertificates { // a leaf may be dated back to before its authority was made
		if c.NotBefore.After(at) {
			at = c.NotBefore
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	if err := verifyServer(s.PeerCertificates, roots, at); err != nil {
		return fmt.Errorf("%w: %w", errNoServer, err)
	}
	v.presentedRoot = named
	return nil
}

// renewedRoot returns the root by which a chain is verified. The last certificate names the cluster. After a renewal
// that is the first root, which may have ended, and the present one is before it, with the same key. Otherwise they are
// the same.
func renewedRoot(chain []*x509.Certificate) *x509.Certificate {
	named := chain[len(chain)-1]
	if len(chain) > 2 {
		c := chain[len(chain)-2]
		if c.IsCA && certend.SameKey(c.PublicKey, named.PublicKey) && c.CheckSignatureFrom(named) == nil {
			return c
		}
	}
	return named
}

// passwordFor derives the password that a cluster receives from a machine's password. So an impostor of a server
// receives none that the real cluster would accept.
func passwordFor(root *x509.Certificate, password string) string {
	if password == "" {
		return ""
	}
	mac := hmac.New(sha256.New, []byte(password))
	_, _ = mac.Write(root.Raw) // a hash does not fail
	return hex.EncodeToString(mac.Sum(nil))
}

// sameRoot checks that the authority in a response is the one that signed the connection's certificate.
func (v *verifier) sameRoot(serverCA []byte) error {
	chain, _ := cert.ParseCertsPEM(serverCA)
	if !slices.ContainsFunc(chain, v.presentedRoot.Equal) {
		return errors.New("the certificate authority in the server's response is not the one of its connection. Nothing from it was used")
	}
	return nil
}

// explainHandshake explains what the other end may be.
func explainHandshake(address string, err error) error {
	var notTLS tls.RecordHeaderError
	switch {
	case errors.Is(err, token.ErrOtherCluster):
		return fmt.Errorf("the server at %s: %w", address, err)
	case errors.Is(err, errNoServer):
		return fmt.Errorf("what answers at %s %w", address, err)
	case strings.Contains(err.Error(), "no application protocol"): // crypto/tls has no type for a received alert
		return fmt.Errorf("what answers at %s %w: it speaks TLS, but does not know how machines join. Is it another kind of cluster?",
			address, errNoServer)
	case errors.As(err, &notTLS):
		return fmt.Errorf("what answers at %s %w: it does not speak TLS", address, errNoServer)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w at %s: the machine there accepts the connection and closes it again. It may be a node that reaches no "+
			"server, "+
			"or a server that is starting or stopping: %w", ErrUnreachable, address, err)
	}
	return fmt.Errorf("%w at %s: %w", ErrUnreachable, address, err)
}
