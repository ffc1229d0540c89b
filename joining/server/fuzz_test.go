// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// FuzzAnswer: a machine may ask anything. A stranger is let in for nothing; who has the agents' token is let in as an
// agent at most; and no question writes much into the log, or ends without an answer that fits.
func FuzzAnswer(f *testing.F) {
	quiet := slog.New(slog.DiscardHandler)
	p := testenv.Must(pki.Open(pki.Options{Dir: f.TempDir(), Logger: quiet}))(f)
	tokens := testenv.Must(token.Ensure(token.Options{Dir: f.TempDir(), Root: p.Root(), Logger: quiet}))(f)
	leaf := p.APIServer(pki.APIServerNames{NodeName: "a", Domain: "cluster.local"})
	testenv.NoError(f, p.Ensure(leaf))
	shown := testenv.Must(tls.LoadX509KeyPair(leaf.Path, leaf.Path))(f)
	now := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	var admitted []Machine
	s := New(Options{
		Certificate: func() (*tls.Certificate, error) { return &shown, nil }, ClientCA: x509.NewCertPool(),
		Tokens:    func() token.Set { return tokens },
		Bootstrap: func(context.Context, string) (token.Bootstrap, bool, error) { return token.Bootstrap{}, false, nil },
		Admit: func(_ context.Context, m Machine) (*protocol.Response, error) {
			admitted = append(admitted, m)
			return &protocol.Response{}, nil
		},
		Now: func() time.Time { return now }, Logger: quiet,
	})
	state := spoken(f, s)
	agents := tokens.Accepted(now)[0]
	for _, t := range tokens.Accepted(now) {
		if t.Role == token.RoleAgent {
			agents = t
		}
	}
	known := testenv.Must(protocol.MachineProof(state, agents, token.RoleAgent))(f)
	for _, q := range []protocol.Request{
		{Role: token.RoleAgent, Time: now, Node: protocol.Node{Name: "n", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}},
		{Role: token.RoleServer, Time: now, Proof: protocol.Proof{Kind: token.RoleServer, MAC: []byte{1}}},
		{Role: token.RoleAgent, Time: now, Proof: protocol.Proof{Kind: token.RoleBootstrap, ID: "abcdef"}},
		{Role: "other", Time: now, Protocol: 99, Program: "v1"},
		{Role: token.Role(strings.Repeat("x", 20<<10)), Time: now},
		{Role: token.RoleAgent, Time: now.AddDate(1, 0, 0), Want: protocol.WantGossipKeys},
	} {
		said := testenv.Must(json.Marshal(q))(f)
		f.Add(said, true)
		f.Add(said, false)
	}
	f.Fuzz(func(t *testing.T, said []byte, holder bool) {
		q, err := protocol.ReadRequest(bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, uint32(len(said))), said...)))
		if err != nil {
			return
		}
		if holder {
			q.Proof = known
		}
		admitted = nil
		identified := false
		a, err := s.checkRequest(t.Context(), state, netip.Addr{}, q, func() { identified = true })
		switch {
		case (err == nil) != (a != nil):
			t.Fatalf("%v and %v", a, err)
		case !holder && (identified || len(admitted) > 0):
			t.Errorf("a stranger was let in: %+v", q)
		case len(admitted) > 0 && (admitted[0].Role != token.RoleAgent || admitted[0].Joined):
			t.Errorf("let in with the agents' token: %+v", q)
		case err == nil && len(a.MAC) == 0:
			t.Error("an answer without the server's proof")
		}
		if err != nil {
			var log bytes.Buffer
			a = &protocol.Response{Refusal: s.refusal(slog.New(slog.NewTextHandler(&log, nil)).With("node", shortenText(q.Node.Name), "version", shortenText(q.Program)), q, err)}
			testenv.False(t, log.Len() > 8<<10, "%d bytes in the log", log.Len())
		}
		testenv.Check(t, a.Write(io.Discard))
	})
}

// spoken is the server's end of a connection with a machine without a certificate.
func spoken(f *testing.F, s *Server) tls.ConnectionState {
	f.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	other := tls.Client(b, &tls.Config{NextProtos: []string{protocol.Protocol}, InsecureSkipVerify: true})
	done := make(chan error, 1)
	go func() { done <- other.HandshakeContext(f.Context()) }()
	conn := tls.Server(a, s.config())
	testenv.NoError(f, conn.HandshakeContext(f.Context()))
	testenv.NoError(f, <-done)
	return conn.ConnectionState()
}
