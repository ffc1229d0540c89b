// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/version"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/server"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestImpostorLearnsNothingAndIsNotTrusted: a machine that answers without being a server of the cluster must learn
// nothing of use, and must not be believed. The machine that asks gets an error.
func TestImpostorLearnsNothingAndIsNotTrusted(t *testing.T) {
	server := func(f *fixture, l pki.Leaf) string {
		f.stop()
		f.serve(f.leaf(l), slog.New(slog.DiscardHandler))
		return f.address
	}
	listener := func(f *fixture, answer func(net.Conn)) string {
		l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(f)
		f.Cleanup(func() { _ = l.Close() })
		go testenv.Accept(l, answer)
		return l.Addr().String()
	}
	closes := func(read int) func(*fixture) string { // as a node does that reaches no server
		return func(f *fixture) string {
			return listener(f, func(c net.Conn) {
				_, _ = io.ReadFull(c, make([]byte, read))
				_ = c.Close()
			})
		}
	}
	const closed = "no server answers at ADDRESS: the machine there accepts the connection and closes it"
	for _, tt := range []struct {
		name string
		at   func(*fixture) string // the address where the impostor is
		bare bool                  // the machine has the token's secret alone
		is   error
		want string
	}{
		{name: "a node", at: func(f *fixture) string { return server(f, f.pki.NodeServing("", "n", nil)) }, is: token.ErrOtherCluster},
		{name: "a node from before nodes had an authority of their own", at: func(f *fixture) string {
			l := f.pki.NodeServing("", "n", nil)
			l.Signer = pki.ServerCA
			return server(f, l)
		}, want: "system:node:n"},
		{name: "another cluster", at: func(f *fixture) string { return newFixture(f.T).address }, bare: true,
			want: "`coracle token print` on a server"},
		{name: "a server that lets every machine in", at: func(f *fixture) string {
			c := f.leaf(f.pki.APIServer(pki.APIServerNames{NodeName: "a", Domain: "cluster.local"}))
			return listener(f, func(raw net.Conn) { // it knows no token
				conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{*c}, NextProtos: []string{protocol.Protocol}})
				if _, err := protocol.ReadRequest(conn); err == nil {
					_ = (&protocol.Response{ServerCA: f.pki.CAPEM(pki.ServerCA), MAC: make([]byte, 32)}).Write(conn)
				}
				_ = conn.Close()
			})
		}, bare: true, want: "could not prove that it knows the token"},
		{name: "another service", at: func(f *fixture) string {
			c := f.leaf(f.pki.NodeServing("", "n", nil))
			return listener(f, func(raw net.Conn) {
				_ = tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{*c}, NextProtos: []string{"h2"}}).Handshake()
				_ = raw.Close()
			})
		}, want: "is no server of a Coracle cluster"},
		{name: "no process", at: func(*fixture) string { return "127.0.0.1:1" }, is: protocol.ErrUnreachable},
		{name: "a process that closes at once", at: closes(0), is: protocol.ErrUnreachable, want: closed},
		{name: "a process that reads and closes", at: closes(1), is: protocol.ErrUnreachable, want: closed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			q := f.question()
			q.Address = tt.at(f)
			if tt.bare {
				q.Token = bare(q.Token)
			}
			_, err := protocol.Send(t.Context(), q)
			testenv.WantError(t, err, strings.ReplaceAll(tt.want, "ADDRESS", q.Address))
			if tt.is != nil {
				testenv.ErrorIs(t, err, tt.is)
			}
			testenv.True(t, tt.want != "" || !strings.Contains(fmt.Sprint(err), "the machine there accepts"), "no machine is there: %v", err)
		})
	}
}

// TestProofHoldsOnlyOnItsConnection: a request that was made for one connection is worth nothing on another, not even
// with the same server.
func TestProofHoldsOnlyOnItsConnection(t *testing.T) {
	f := newFixture(t)
	defer f.stop()
	first, second := f.dial(), f.dial()
	defer first.Close()
	defer second.Close()
	proof := testenv.Must(protocol.MachineProof(first.ConnectionState(), f.tokens.Agent, token.RoleAgent))(t)
	testenv.True(t, proof.Verify(first.ConnectionState(), f.tokens.Agent), "a proof does not hold on its own connection")
	testenv.False(t, proof.Verify(second.ConnectionState(), f.tokens.Agent), "a proof holds on another connection")
	mac, err := protocol.ServerProof(first.ConnectionState(), f.tokens.Agent, token.RoleAgent)
	testenv.True(t, err == nil && !bytes.Equal(mac, proof.MAC), "a machine's proof can be sent back as the server's: %v", err)
}

// TestReplayedJoinRequestIsRefused: a request with which a machine was let in is refused when its bytes are sent
// again, and no machine is admitted by it.
func TestReplayedJoinRequestIsRefused(t *testing.T) {
	f := newFixture(t)
	defer f.stop()
	expires := f.bootstrap.Token(f.tokens.Agent.CAHash)
	for _, tt := range []struct {
		name       string
		role, kind token.Role
		token      token.Token
	}{
		{"an agent's", token.RoleAgent, token.RoleAgent, f.tokens.Agent},
		{"a server's", token.RoleServer, token.RoleServer, f.tokens.Server},
		{"by a token that expires", token.RoleAgent, token.RoleBootstrap, expires},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first, second := f.dial(), f.dial()
			defer first.Close()
			defer second.Close()
			request := protocol.Request{Role: tt.role, Protocol: version.Protocol(), Time: time.Now(), Node: protocol.Node{Name: "n"}}
			var err error
			request.Proof, err = protocol.MachineProof(first.ConnectionState(), tt.token, tt.kind)
			testenv.NoError(t, err)
			captured := testenv.Must(json.Marshal(request))(t)
			if a := exchange(t, first, captured); a.Refusal != nil || len(f.admitted) != 1 {
				t.Fatalf("the machine itself was not let in: %v", a.Refusal)
			}
			<-f.admitted
			if a := exchange(t, second, captured); a.Refusal == nil || a.Refusal.Code != protocol.CodeToken || len(a.MAC) > 0 || len(f.admitted) > 0 {
				t.Errorf("whoever sent it again got %+v, and %d were admitted", a, len(f.admitted))
			}
		})
	}
}

// dial opens a connection as a machine does, to any server that answers.
func (f *fixture) dial() *tls.Conn {
	f.Helper()
	return testenv.Must(tls.Dial("tcp", f.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol.Protocol}}))(f)
}

// exchange sends a request as it is, and returns the answer.
func exchange(t *testing.T, c *tls.Conn, request []byte) protocol.Response {
	t.Helper()
	testenv.Must(c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(request))), request...)))(t)
	said, err := io.ReadAll(c)
	testenv.Require(t, err == nil && len(said) >= 4, "%d bytes of an answer: %v", len(said), err)
	var a protocol.Response
	testenv.NoError(t, json.Unmarshal(said[4:], &a))
	return a
}

// TestSilentConnectionsKeepNoMachineOut: connections that say nothing keep no machine out.
func TestSilentConnectionsKeepNoMachineOut(t *testing.T) {
	f := newFixture(t)
	defer f.stop()
	var first net.Conn
	for range server.Most + 50 {
		c := testenv.Must(net.Dial("tcp", f.address))(t)
		defer c.Close()
		if first == nil {
			first = c
		}
	}
	testenv.Check(t, testenv.Err(protocol.Send(t.Context(), f.question())))
	testenv.NoError(t, first.SetReadDeadline(time.Now().Add(server.Identify/2)))
	if _, err := first.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the one that has said nothing for longest is still connected")
	}
}

// TestGarbageEndsTheConnectionAlone: what is no request ends the connection and nothing else.
func TestGarbageEndsTheConnectionAlone(t *testing.T) {
	f := newFixture(t)
	defer f.stop()
	for _, said := range []string{"", "\x00", "\xff\xff\xff\xff", "\x00\x00\x00\x02{]", "\x00\x00\x00\x04null", "GET / HTTP/1.1\r\n\r\n"} {
		c := testenv.Must(tls.Dial("tcp", f.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol.Protocol}}))(t)
		testenv.Must(io.WriteString(c, said))(t)
		testenv.NoError(t, c.CloseWrite())
		answer, err := io.ReadAll(c)
		testenv.False(t, err == nil && len(answer) > 0 && !bytes.Contains(answer, []byte("refusal")),
			"%q was answered with %q", said, answer)
		c.Close()
	}
	testenv.Check(t, testenv.Err(protocol.Send(t.Context(), f.question())), "after all that")
}

// TestGuessesAreRateLimited: machines without a token must get few answers, on however many connections, and cause one
// line in the log. A machine that does not wait for its answer learns nothing.
func TestGuessesAreRateLimited(t *testing.T) {
	for _, tt := range []struct {
		name string
		ask  func(f *fixture) protocol.Call
		code protocol.Code
	}{
		{"a wrong token", func(f *fixture) protocol.Call {
			q := f.question()
			q.Token.Secret = "wrong"
			return q
		}, protocol.CodeToken},
		{"neither a token nor a certificate", func(f *fixture) protocol.Call {
			q := f.byCertificate(f.pki.Node("", "n"), f.pki.Root())
			q.Certificate = &tls.Certificate{}
			return q
		}, protocol.CodeCertificate},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			const tries = 60
			begin := time.Now()
			answers := make(chan error, tries)
			for range tries {
				go func() { answers <- testenv.Err(protocol.Send(t.Context(), tt.ask(f))) }()
			}
			refused := 0
			for range tries {
				err := <-answers
				if _, ok := errors.AsType[*protocol.Refusal](err); ok {
					refused++
				} else {
					testenv.ErrorIs(t, err, protocol.ErrUnreachable)
				}
			}
			if most := server.SourceBurst + 2 + int(float64(server.PerSource)*time.Since(begin).Seconds()); refused > most || refused < server.SourceBurst {
				t.Errorf("%d of %d were answered, want %d to %d", refused, tries, server.SourceBurst, most)
			}
			f.stop()
			lines := strings.Count(f.log.String(), "code="+string(tt.code))
			testenv.True(t, lines > 0 && lines <= 1+int(time.Since(begin)/server.RefusalLogs), "%d lines for %d refusals:\n%s", lines, refused, f.log)
		})
	}
}
