// SPDX-License-Identifier: Apache-2.0

// Package server serves the machines that ask to join the cluster (joining/protocol is the protocol).
//
// It owns their connections, checks whether a machine knows one of the cluster's tokens or is a node already, and
// limits the rate of guesses. Options.Admit decides what an admitted machine is given. Every refusal is one sentence
// for the machine. The log has at most one line for each source in ten seconds.
package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/cluster-bootstrap/token/util"

	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/truncate"
	"github.com/coracle-k8s/coracle/internal/version"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
)

const (
	// identifyTimeout limits how long a machine may take to authenticate.
	identifyTimeout = 10 * time.Second
	// maxUnauthenticated is how many unauthenticated connections may be open. One more closes the oldest connection of
	// the source that has the most, so that unknown clients that send nothing cannot keep machines out.
	maxUnauthenticated = 1024
	// maxAdmitted is how many machines may be admitted at a time.
	maxAdmitted = 32
	// maxText limits each of a machine's texts in a line of the log, in bytes.
	maxText = 64
	// maxReason limits a refusal there, which may quote the machine.
	maxReason = 1 << 10
	// maxSkew is how far a machine's clock may be from the server's: certificates are dated back by an hour, and with a
	// larger difference they would not be valid on the machine.
	maxSkew = 30 * time.Minute

	// authenticationUsage is the usage that a bootstrap token needs to authenticate a machine
	// (k8s.io/cluster-bootstrap/token/api, KnownTokenUsages).
	authenticationUsage = "authentication"

	nodeUser  = "system:node:"
	nodeGroup = "system:nodes"
)

// All fields of Options are required, except Logger, Now, Level and Bootstrap.
type Options struct {
	// Listener accepts the connections, on which TLS has not begun. Run closes it.
	Listener net.Listener
	// Certificate returns a server's own certificate, whose chain ends in the root that tokens name.
	Certificate func() (*tls.Certificate, error)
	// ClientCA verifies certificates of nodes.
	ClientCA *x509.CertPool
	// Tokens returns the cluster's lasting tokens.
	Tokens func() token.Set
	// Revoked returns the revoked nodes. nil means none.
	Revoked func() nodecreds.Revoked
	// Level returns the cluster's level. nil means the first one.
	Level func() int
	// Bootstrap finds a bootstrap token. ok is false if there is none with that id.
	Bootstrap func(ctx context.Context, id string) (b token.Bootstrap, ok bool, err error)
	// Admit returns the response to a machine that has proved a token, or presented its certificate. Its error is a
	// *protocol.Refusal, or a problem of the server.
	Admit func(ctx context.Context, m Machine) (*protocol.Response, error)
	// Now returns the time. nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Machine is a request, with what the server knows of the authenticated machine that sent it.
type Machine struct {
	*protocol.Request
	// Joined means that it presented the certificate of a node and no token.
	Joined bool
	// Generation is that of the certificates which the node is given. It was read before the machine authenticated: a
	// machine that a revocation overtakes gets certificates that are refused.
	Generation uint64
	// From is the address of the connection. Another machine may have forwarded the connection.
	From netip.Addr
}

// Server answers the requests of machines that join, or that renew their certificates.
type Server struct {
	o         Options
	guesses   *guesses
	refusals  refusals
	admitting chan struct{}
}

// New returns a Server. Run runs it.
func New(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Revoked == nil {
		o.Revoked = func() nodecreds.Revoked { return nil }
	}
	if o.Level == nil {
		o.Level = func() int { return level.First }
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	return &Server{o: o, guesses: newGuesses(), admitting: make(chan struct{}, maxAdmitted)}
}

// Run serves until ctx is done, and returns when no exchange is running.
func (s *Server) Run(ctx context.Context) error {
	if err := connlimit.Serve(ctx, s.o.Listener, maxUnauthenticated, s.serve); err != nil {
		return fmt.Errorf("waiting for machines that join: %w", err)
	}
	return nil
}

// serve serves one connection.
func (s *Server) serve(ctx context.Context, raw net.Conn, identified func()) {
	ctx, cancel := context.WithTimeout(ctx, protocol.Timeout)
	defer cancel()
	_ = raw.SetDeadline(time.Now().Add(identifyTimeout)) // a connection without deadlines fails at once
	conn := tls.Server(raw, s.config())
	if err := conn.HandshakeContext(ctx); err != nil {
		return // a port scan, or a machine that found that this is not its cluster
	}
	q, err := protocol.ReadRequest(conn)
	if err != nil {
		return
	}
	_ = raw.SetDeadline(time.Now().Add(protocol.Timeout))
	// A node that presents its certificate need not wait: a certificate cannot be guessed, and all nodes may connect at
	// once.
	known := q.Proof.Kind == "" && s.checkCertificate(conn.ConnectionState(), q.Node.Name, s.o.Revoked()) == nil
	if !known && !s.guesses.wait(ctx, raw.RemoteAddr()) {
		return
	}
	log := s.o.Logger.With("from", raw.RemoteAddr().String(), "node", shortenText(q.Node.Name), "version", shortenText(q.Program))
	a, err := s.checkRequest(ctx, conn.ConnectionState(), addressOf(raw), q, identified)
	if err != nil {
		a = &protocol.Response{Refusal: s.refusal(s.rateLimited(log, raw), q, err)}
	}
	writeErr := a.Write(conn)
	switch {
	case writeErr != nil && err == nil:
		s.rateLimited(log, raw).Warn("a joining machine disconnected before it received the response; it retries", "error", writeErr)
	case err != nil || q.Reach != nil:
	case q.Want == "":
		log.Info("a machine has joined", "role", q.Role)
	default:
		log.Debug("sent a node what it requested", "what", q.Want)
	}
}

// rateLimited returns a logger for problems of a machine's request, which logs only some lines of the same source.
func (s *Server) rateLimited(log *slog.Logger, from net.Conn) *slog.Logger {
	since, line := s.refusals.count(from.RemoteAddr(), s.o.Now())
	switch {
	case !line:
		return slog.New(slog.DiscardHandler)
	case since > 0:
		return log.With("more since the last line", since)
	}
	return log
}

func (s *Server) config() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{protocol.Protocol},
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.o.Certificate() },
		ClientAuth:             tls.RequestClientCert, // verified later, so that the refusal can have a message
		SessionTicketsDisabled: true,
	}
}

// refusal converts an error to the response to the machine, and logs it.
func (s *Server) refusal(log *slog.Logger, q *protocol.Request, err error) *protocol.Refusal {
	var r *protocol.Refusal
	if !errors.As(err, &r) {
		r = protocol.Refuse(protocol.CodeInternal, "the server cannot admit the machine at present: %v", err)
	}
	reason := truncate.Text(r.Message, maxReason)
	switch {
	case q.Reach != nil:
		log.Warn("a server cannot be reached at its advertised address", "address", shortenText(q.Reach.Address), "reason", reason)
	case r.Passing():
		log.Info("a joining machine has to wait", "reason", reason)
	default:
		log.Warn("rejected a joining machine", "code", r.Code, "reason", reason)
	}
	return r
}

// shortenText limits a machine's text in the log.
func shortenText(text string) string { return truncate.Text(text, maxText) }

// addressOf returns the address of a connection's other end, or the zero Addr if that is no IP address.
func addressOf(c net.Conn) netip.Addr {
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// checkRequest checks the clock and the proof of a request, and returns the response. The error may be a refusal.
func (s *Server) checkRequest(ctx context.Context, state tls.ConnectionState, from netip.Addr, q *protocol.Request,
	identified func()) (*protocol.Response, error) {
	now := s.o.Now()
	if skew := q.Time.Sub(now); skew.Abs() > maxSkew {
		word := "behind"
		if skew > 0 {
			word = "ahead of"
		}
		return nil, protocol.Refuse(protocol.CodeClock, "this machine's clock shows %s and is %s %s the server's: certificates would not "+
			"be valid on one of the two. "+
			"Set the one that is wrong (NTP) and start again", q.Time.UTC().Format(time.DateTime), skew.Abs().Round(time.Minute), word)
	}
	revoked := s.o.Revoked()
	known, err := s.identifyToken(ctx, state, q, revoked)
	if err != nil {
		return nil, err
	}
	identified()
	if err := checkVersion(q); err != nil {
		return nil, err
	}
	cluster := s.o.Level()
	if err := checkLevel(q, cluster); err != nil {
		return nil, err
	}
	if err := mayBecome(q, known); err != nil {
		return nil, err
	}
	select {
	case s.admitting <- struct{}{}:
		defer func() { <-s.admitting }()
	default:
		return nil, protocol.Refuse(protocol.CodeBusy, "%d machines are being admitted at this moment", maxAdmitted)
	}
	a, err := s.o.Admit(ctx, Machine{Request: q, Joined: known == nil, Generation: revoked[q.Node.Name], From: from})
	if err != nil {
		return nil, err
	}
	a.Level = level.Field(cluster)
	if known != nil {
		a.MAC, err = protocol.ServerProof(state, *known, q.Proof.Kind)
	}
	return a, err
}

// checkVersion rejects programs that are too old or too new for this one.
func checkVersion(q *protocol.Request) error {
	remote, own := q.Protocol, version.Protocol()
	if remote == 0 {
		remote = 1 // it does not send it
	}
	if version.Understands(remote) {
		return nil
	}
	word, who := "older", "Update this machine"
	if remote > own {
		word, who = "newer", "Update the servers first, or start this machine with their version"
	}
	return protocol.Refuse(protocol.CodeVersion, "this machine runs coracle %s, whose protocol %d is more than one version %s than that "+
		"of the server, %s with protocol %d. %s",
		shortenText(q.Program), remote, word, version.Get().Coracle, own, who)
}

// checkLevel rejects programs that do not know the cluster's level. A node that runs already gets the gossip keys.
func checkLevel(q *protocol.Request, cluster int) error {
	newest := max(q.Level, level.First)
	switch {
	case q.Want != "":
	case newest < cluster:
		return protocol.Refuse(protocol.CodeVersion, "the cluster has level %d, and this machine's coracle, %s, knows levels up to %d. Nothing "+
			"was changed on this machine. Install the servers' version, %s", cluster, shortenText(q.Program), newest, version.Get().Coracle)
	case cluster < level.OldestOf(newest):
		return protocol.Refuse(protocol.CodeVersion, "the cluster has level %d, and this machine's coracle, %s, knows the levels %d to %d. "+
			"Nothing was changed on this machine. Install the servers' version, %s, or update the servers and raise the level first: "+
			"`coracle upgrade raise`", cluster, shortenText(q.Program), level.OldestOf(newest), newest, version.Get().Coracle)
	}
	return nil
}

// identifyToken returns the token that the machine has proved. It returns nil if it has presented a node's certificate
// instead.
func (s *Server) identifyToken(ctx context.Context, state tls.ConnectionState, q *protocol.Request,
	revoked nodecreds.Revoked) (*token.Token, error) {
	switch q.Proof.Kind {
	case "":
		return nil, s.checkCertificate(state, q.Node.Name, revoked)
	case token.RoleAgent, token.RoleServer:
		// A bare secret may be of either kind, and its kind decides for what it may be used.
		for _, t := range s.o.Tokens().Accepted(s.o.Now()) {
			if q.Proof.Verify(state, t) {
				return &t, nil
			}
		}
	case token.RoleBootstrap:
		return s.checkBootstrap(ctx, state, q.Proof)
	}
	print := "coracle token print"
	if q.Role == token.RoleServer {
		print += " --server"
	}
	return nil, protocol.Refuse(protocol.CodeToken, "the token is not the cluster's: it was mistyped, cut off, or replaced since. `%s` "+
		"on a server shows the one that works", print)
}

// mayBecome returns an error if the token, or a node's certificate where there is none, does not allow the requested
// role. No kind of token includes another.
func mayBecome(q *protocol.Request, known *token.Token) error {
	switch {
	case q.Role == token.RoleServer && known != nil && known.Role == token.RoleServer:
		return nil
	case q.Role == token.RoleServer && known != nil:
		return protocol.Refuse(protocol.CodeToken, "that is a token for agents, which adds nodes only. A "+
			"server joins with the one for "+
			"servers: `coracle token print --server` on a server shows it")
	case q.Role == token.RoleServer:
		return protocol.Refuse(protocol.CodeToken, "a server joins with the token for servers; `coracle token print --server` on a "+
			"server shows it")
	case q.Role != token.RoleAgent:
		return protocol.Refuse(protocol.CodeRequest, "a machine joins as a server or as an agent, not as %q", q.Role)
	case known != nil && known.Role == token.RoleServer:
		return protocol.Refuse(protocol.CodeToken, "that is the token for servers, with which a machine gets the cluster's keys. A node "+
			"joins with the one for agents: "+
			"`coracle token print` on a server shows it")
	}
	return nil
}

func (s *Server) checkBootstrap(ctx context.Context, state tls.ConnectionState, p protocol.Proof) (*token.Token, error) {
	expired := protocol.Refuse(protocol.CodeToken, "there is no token that expires with the id %q and this secret: it has expired, was "+
		"deleted, or was mistyped. "+
		"`coracle token create` on a server makes another one", shortenText(p.ID))
	if s.o.Bootstrap == nil || !util.IsValidBootstrapTokenID(p.ID) {
		return nil, expired
	}
	b, ok, err := s.o.Bootstrap(ctx, p.ID)
	if err != nil {
		return nil, fmt.Errorf("looking up the token: %w", err)
	}
	t := b.Token("")
	if !ok || !slices.Contains(b.Usages, authenticationUsage) || !p.Verify(state, t) {
		return nil, expired
	}
	if b.Expired(s.o.Now()) {
		return nil, protocol.Refuse(protocol.CodeToken, "the token %s expired at %s; `coracle token create` on a server makes another one",
			b.ID, b.Expires.UTC().Format(time.RFC3339))
	}
	if !slices.Contains(b.Groups, token.NodeGroup) {
		return nil, protocol.Refuse(protocol.CodeToken, "the token %s is not for nodes: it lacks the group %s", b.ID, token.NodeGroup)
	}
	return &t, nil
}

// checkCertificate verifies that the machine is the node that it names.
func (s *Server) checkCertificate(state tls.ConnectionState, name string, revoked nodecreds.Revoked) error {
	refuse := func(format string, args ...any) error {
		return protocol.Refuse(protocol.CodeCertificate, "the node's certificate is not accepted: "+format+
			". `coracle token create` on a server makes a token; with that the node joins again", args...)
	}
	if len(state.PeerCertificates) == 0 {
		return refuse("none was presented")
	}
	leaf := state.PeerCertificates[0]
	o := x509.VerifyOptions{
		Roots: s.o.ClientCA, Intermediates: x509.NewCertPool(), CurrentTime: s.o.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range state.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(o); err != nil {
		return refuse("%v", err)
	}
	if user, ok := strings.CutPrefix(leaf.Subject.CommonName, nodeUser); !ok || user != name ||
		!slices.Contains(leaf.Subject.Organization, nodeGroup) {
		return refuse("it belongs to %s, not to the node %s", leaf.Subject.CommonName, name)
	}
	if err := revoked.Refuses(leaf); err != nil {
		return refuse("%v", err)
	}
	return nil
}
