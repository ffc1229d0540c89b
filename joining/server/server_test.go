// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/version"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// fixture is a server that lets every machine in that has shown who it is.
type fixture struct {
	*testing.T
	pki       *pki.PKI
	tokens    token.Set
	bootstrap token.Bootstrap
	address   string
	log       *bytes.Buffer // read after stop only
	admitted  chan Machine
	stop      func()
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{T: t, log: &bytes.Buffer{}, admitted: make(chan Machine, 10)}
	logger := slog.New(slog.NewTextHandler(f.log, nil))
	var err error
	f.pki, err = pki.Open(pki.Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	testenv.NoError(t, err)
	f.tokens, err = token.Ensure(token.Options{Dir: t.TempDir(), Root: f.pki.Root(), Logger: logger})
	testenv.NoError(t, err)
	f.bootstrap = token.Bootstrap{ID: "abcdef", Secret: "0123456789abcdef", Expires: time.Now().Add(time.Hour), Groups: []string{token.NodeGroup}, Usages: []string{"authentication"}}
	f.serve(f.leaf(f.pki.APIServer(pki.APIServerNames{NodeName: "a", Domain: "cluster.local"})), logger)
	return f
}

func (f *fixture) serve(certificate *tls.Certificate, logger *slog.Logger) {
	f.Helper()
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(f)
	f.address = l.Addr().String()
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(f.pki.CAPEM(pki.ClientCA))
	s := New(Options{
		Listener: l, ClientCA: clients, Tokens: func() token.Set { return f.tokens }, Logger: logger,
		Certificate: func() (*tls.Certificate, error) { return certificate, nil },
		Bootstrap: func(_ context.Context, id string) (token.Bootstrap, bool, error) {
			return f.bootstrap, id == f.bootstrap.ID, nil
		},
		Admit: func(_ context.Context, m Machine) (*protocol.Response, error) {
			f.admitted <- m
			return &protocol.Response{ServerCA: f.pki.CAPEM(pki.ServerCA)}, nil
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	f.stop = func() {
		cancel()
		testenv.Check(f, <-done)
	}
	f.Cleanup(func() { cancel() })
}

// leaf issues a certificate whose chain ends in the root, as a server shows it.
func (f *fixture) leaf(l pki.Leaf) *tls.Certificate {
	f.Helper()
	key := testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(f)
	request := testenv.Must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))(f)
	chain := testenv.Must(f.pki.Sign(l, request))(f)
	der := testenv.Must(x509.MarshalECPrivateKey(key))(f)
	c := testenv.Must(tls.X509KeyPair(chain, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))(f)
	if l.Signer == pki.ServerCA {
		c.Certificate = append(c.Certificate, f.pki.Root().Raw)
	}
	return &c
}

func (f *fixture) question() protocol.Question {
	return protocol.Question{Address: f.address, Token: f.tokens.Agent, Request: protocol.Request{Role: token.RoleAgent, Time: time.Now(), Node: protocol.Node{Name: "n"}}}
}

func TestWhoMayJoin(t *testing.T) {
	f := newFixture(t)
	defer f.stop()
	other := newFixture(t)
	defer other.stop()
	bare := func(t token.Token) token.Token { return token.Token{Secret: t.Secret} }
	for _, tt := range []struct {
		name   string
		change func(q *protocol.Question)
		code   protocol.Code // of the refusal; empty if it may
		want   string        // of another error, or in the refusal
	}{
		{name: "agent token", change: func(*protocol.Question) {}},
		{name: "its secret alone", change: func(q *protocol.Question) { q.Token = bare(q.Token) }},
		{name: "token that expires", change: func(q *protocol.Question) { q.Token = f.bootstrap.Token(q.Token.CAHash) }},
		{name: "certificate", change: func(q *protocol.Question) { *q = f.byCertificate(f.pki.Node("", "n"), f.pki.Root()) }},

		{name: "the version before", change: func(q *protocol.Question) { q.Request.Protocol = version.Protocol() - 1 }},
		{name: "the next version", change: func(q *protocol.Question) { q.Request.Protocol = version.Protocol() + 1 }},
		{name: "a version that is too new", change: func(q *protocol.Question) { q.Request.Protocol = version.Protocol() + 2 }, code: protocol.CodeVersion},
		{name: "a version that is too old", change: func(q *protocol.Question) { q.Request.Protocol = -1 }, code: protocol.CodeVersion},

		{name: "wrong secret", change: func(q *protocol.Question) { q.Token.Secret = "other" }, code: protocol.CodeToken, want: "`coracle token print` on a server"},
		{name: "wrong secret, to be a server", change: func(q *protocol.Question) {
			q.Request.Role, q.Token = token.RoleServer, f.tokens.Server
			q.Token.Secret = "other"
		}, code: protocol.CodeToken, want: "`coracle token print --server` on a server"},
		{name: "empty secret", change: func(q *protocol.Question) { q.Token.Secret = "" }, code: protocol.CodeToken},
		{name: "server token", change: func(q *protocol.Question) { q.Token = f.tokens.Server }, code: protocol.CodeToken},
		{name: "server token's secret alone", change: func(q *protocol.Question) { q.Token = bare(f.tokens.Server) }, code: protocol.CodeToken},
		{name: "unknown token that expires", change: func(q *protocol.Question) {
			q.Token = token.Bootstrap{ID: "zzzzzz", Secret: f.bootstrap.Secret}.Token(q.Token.CAHash)
		}, code: protocol.CodeToken},
		{name: "wrong secret of a token that expires", change: func(q *protocol.Question) {
			q.Token = token.Bootstrap{ID: f.bootstrap.ID, Secret: "x"}.Token(q.Token.CAHash)
		}, code: protocol.CodeToken},
		{name: "another cluster's token", change: func(q *protocol.Question) { q.Token = other.tokens.Agent }, want: "another cluster"},
		{name: "server token, to be a server", change: func(q *protocol.Question) { q.Request.Role, q.Token = token.RoleServer, f.tokens.Server }},
		{name: "its secret alone, to be a server", change: func(q *protocol.Question) { q.Request.Role, q.Token = token.RoleServer, bare(f.tokens.Server) }},
		{name: "agent token, to be a server", change: func(q *protocol.Question) { q.Request.Role = token.RoleServer }, code: protocol.CodeToken},
		{name: "its secret alone, to be a server, too", change: func(q *protocol.Question) { q.Request.Role, q.Token = token.RoleServer, bare(q.Token) }, code: protocol.CodeToken},
		{name: "token that expires, to be a server", change: func(q *protocol.Question) {
			q.Request.Role, q.Token = token.RoleServer, f.bootstrap.Token(q.Token.CAHash)
		}, code: protocol.CodeToken},
		{name: "certificate, to be a server", change: func(q *protocol.Question) {
			*q = f.byCertificate(f.pki.Node("", "n"), f.pki.Root())
			q.Request.Role = token.RoleServer
		}, code: protocol.CodeToken},
		{name: "to be something else", change: func(q *protocol.Question) { q.Request.Role = "king" }, code: protocol.CodeRequest},
		{name: "clock behind", change: func(q *protocol.Question) { q.Request.Time = time.Unix(0, 0) }, code: protocol.CodeClock},
		{name: "clock ahead", change: func(q *protocol.Question) { q.Request.Time = time.Now().Add(time.Hour) }, code: protocol.CodeClock},
		{name: "no clock", change: func(q *protocol.Question) { q.Request.Time = time.Time{} }, code: protocol.CodeClock},

		{name: "certificate of another node", change: func(q *protocol.Question) { *q = f.byCertificate(f.pki.Node("", "m"), f.pki.Root()) }, code: protocol.CodeCertificate},
		{name: "certificate of a node's network", change: func(q *protocol.Question) { *q = f.byCertificate(f.pki.Network(""), f.pki.Root()) }, code: protocol.CodeCertificate},
		{name: "certificate of an administrator", change: func(q *protocol.Question) { *q = f.byCertificate(f.pki.Admin(), f.pki.Root()) }, code: protocol.CodeCertificate},
		{name: "certificate of a listener", change: func(q *protocol.Question) { *q = f.byCertificate(f.pki.NodeServing("", "n", nil), f.pki.Root()) }, code: protocol.CodeCertificate},
		{name: "another cluster's certificate", change: func(q *protocol.Question) {
			*q = other.byCertificate(other.pki.Node("", "n"), f.pki.Root())
			q.Address = f.address
		}, code: protocol.CodeCertificate},
		{name: "certificate, at another cluster", change: func(q *protocol.Question) {
			*q = f.byCertificate(f.pki.Node("", "n"), f.pki.Root())
			q.Address = other.address
		}, want: "another cluster"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := f.question()
			tt.change(&q)
			_, err := protocol.Ask(t.Context(), q)
			var refusal *protocol.Refusal
			switch {
			case tt.code != "":
				if !errors.As(err, &refusal) || refusal.Code != tt.code || !strings.Contains(refusal.Message, tt.want) {
					t.Errorf("%v, want a refusal with the code %q that says %q", err, tt.code, tt.want)
				}
			case tt.want != "":
				testenv.WantError(t, err, tt.want)
			case err != nil:
				t.Error(err)
			default:
				if m := <-f.admitted; m.Node.Name != "n" || m.Joined != (q.Certificate != nil) {
					t.Errorf("admitted %+v", m)
				}
			}
		})
	}
	testenv.True(t, len(f.admitted)+len(other.admitted) == 0, "somebody was admitted who should not have been")
}

func (f *fixture) byCertificate(l pki.Leaf, root *x509.Certificate) protocol.Question {
	q := f.question()
	q.Token, q.Certificate, q.Root = token.Token{}, f.leaf(l), root
	return q
}

// TestExpiredAndForeignTokens: what a token that expires has to be for.
func TestExpiredAndForeignTokens(t *testing.T) {
	for name, change := range map[string]func(*token.Bootstrap){
		"expired at":        func(b *token.Bootstrap) { b.Expires = time.Now().Add(-time.Second) },
		"is not for":        func(b *token.Bootstrap) { b.Groups = []string{"system:bootstrappers:others"} },
		"there is no token": func(b *token.Bootstrap) { b.Usages = []string{"signing"} },
	} {
		f := newFixture(t)
		q := f.question()
		q.Token = f.bootstrap.Token(q.Token.CAHash)
		change(&f.bootstrap)
		testenv.WantError(t, testenv.Err(protocol.Ask(t.Context(), q)), name)
		f.stop()
		if !strings.Contains(f.log.String(), "code=token") {
			t.Errorf("the log says nothing:\n%s", f.log)
		}
	}
}

// TestImpostorLearnsNothingAndIsNotTrusted: who answers without being a server of the cluster learns nothing of use and
// is not believed.
func TestImpostorLearnsNothingAndIsNotTrusted(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	t.Run("a node", func(t *testing.T) {
		f := newFixture(t)
		f.stop()
		f.serve(f.leaf(f.pki.NodeServing("", "n", nil)), quiet)
		testenv.ErrorIs(t, testenv.Err(protocol.Ask(t.Context(), f.question())), token.ErrOtherCluster)
	})
	t.Run("a node from before nodes had an authority of their own", func(t *testing.T) {
		f := newFixture(t)
		f.stop()
		l := f.pki.NodeServing("", "n", nil)
		l.Signer = pki.ServerCA
		f.serve(f.leaf(l), quiet)
		testenv.WantError(t, testenv.Err(protocol.Ask(t.Context(), f.question())), "system:node:n")
	})
	t.Run("another cluster, for a bare secret", func(t *testing.T) {
		f, other := newFixture(t), newFixture(t)
		q := other.question()
		q.Token = token.Token{Secret: f.tokens.Agent.Secret}
		var refusal *protocol.Refusal
		if _, err := protocol.Ask(t.Context(), q); !errors.As(err, &refusal) {
			t.Error(err)
		}
	})
	t.Run("one that lets everybody in", func(t *testing.T) {
		f := newFixture(t)
		l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
		defer l.Close()
		go liar(l, f.leaf(f.pki.APIServer(pki.APIServerNames{NodeName: "a", Domain: "cluster.local"})), f.pki.CAPEM(pki.ServerCA))
		q := f.question()
		q.Address, q.Token = l.Addr().String(), token.Token{Secret: "chosen"}
		testenv.WantError(t, testenv.Err(protocol.Ask(t.Context(), q)), "does not know the token itself")
	})
	t.Run("another service", func(t *testing.T) {
		f := newFixture(t)
		l := testenv.Must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*f.leaf(f.pki.NodeServing("", "n", nil))}, NextProtos: []string{"h2"}}))(t)
		defer l.Close()
		go testenv.Accept(l, func(c net.Conn) {
			_ = c.(*tls.Conn).Handshake()
			_ = c.Close()
		})
		q := f.question()
		q.Address = l.Addr().String()
		testenv.WantError(t, testenv.Err(protocol.Ask(t.Context(), q)), "is no server of a Coracle cluster")
	})
	t.Run("nobody", func(t *testing.T) {
		f := newFixture(t)
		q := f.question()
		q.Address = "127.0.0.1:1"
		if _, err := protocol.Ask(t.Context(), q); !errors.Is(err, protocol.ErrUnreachable) || strings.Contains(err.Error(), "though a machine is there") {
			t.Error(err)
		}
	})
	// As a node does that reaches no server: the question may or may not have been read by then.
	for name, read := range map[string]int{"one that closes at once": 0, "one that reads and closes": 1} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
			defer l.Close()
			go testenv.Accept(l, func(c net.Conn) {
				_, _ = io.ReadFull(c, make([]byte, read))
				_ = c.Close()
			})
			q := f.question()
			q.Address = l.Addr().String()
			want := "no server answers at " + q.Address + ", though a machine is there: it takes the connection and closes it"
			if _, err := protocol.Ask(t.Context(), q); !errors.Is(err, protocol.ErrUnreachable) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}

// liar answers every request with a yes, and knows no token.
func liar(l net.Listener, c *tls.Certificate, ca []byte) {
	for {
		raw, err := l.Accept()
		if err != nil {
			return
		}
		conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{*c}, NextProtos: []string{protocol.Protocol}})
		if _, err := protocol.ReadRequest(conn); err == nil {
			_ = (&protocol.Response{ServerCA: ca, MAC: make([]byte, 32)}).Write(conn)
		}
		_ = conn.Close()
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
	if err != nil || bytes.Equal(mac, proof.MAC) {
		t.Errorf("a machine's proof can be sent back as the server's: %v", err)
	}
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
	if err != nil || len(said) < 4 {
		t.Fatalf("%d bytes of an answer: %v", len(said), err)
	}
	var a protocol.Response
	testenv.NoError(t, json.Unmarshal(said[4:], &a))
	return a
}

// TestSilentConnectionsKeepNoMachineOut: connections that say nothing keep no machine out.
func TestSilentConnectionsKeepNoMachineOut(t *testing.T) {
	f := newFixture(t)
	defer f.stop()
	var first net.Conn
	for range most + 50 {
		c := testenv.Must(net.Dial("tcp", f.address))(t)
		defer c.Close()
		if first == nil {
			first = c
		}
	}
	testenv.Check(t, testenv.Err(protocol.Ask(t.Context(), f.question())))
	testenv.NoError(t, first.SetReadDeadline(time.Now().Add(identify/2)))
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
		if err == nil && len(answer) > 0 && !bytes.Contains(answer, []byte("refusal")) {
			t.Errorf("%q was answered with %q", said, answer)
		}
		c.Close()
	}
	testenv.Check(t, testenv.Err(protocol.Ask(t.Context(), f.question())), "after all that")
}

// TestRequestsWithoutProofWaitTheirTurn: machines that show neither a token nor a certificate wait for their turn as
// those do that try tokens, and one source has one line in the log.
func TestRequestsWithoutProofWaitTheirTurn(t *testing.T) {
	f := newFixture(t)
	const tries = 60
	begin := time.Now()
	answers := make(chan error, tries)
	for range tries {
		go func() {
			q := f.byCertificate(f.pki.Node("", "n"), f.pki.Root())
			q.Certificate = &tls.Certificate{}
			_, err := protocol.Ask(t.Context(), q)
			answers <- err
		}()
	}
	refused := 0
	for range tries {
		if _, ok := errors.AsType[*protocol.Refusal](<-answers); ok {
			refused++
		}
	}
	if most := sourceBurst + 2 + int(float64(perSource)*time.Since(begin).Seconds()); refused > most || refused < sourceBurst {
		t.Errorf("%d of %d were answered, want %d to %d", refused, tries, sourceBurst, most)
	}
	f.stop()
	if lines := strings.Count(f.log.String(), "a machine was not let in"); lines > 1+int(time.Since(begin)/refusalLogs) {
		t.Errorf("%d lines for %d refusals", lines, refused)
	}
}

// TestTokenGuessesAreRateLimited: tokens are tried at a bounded rate, on however many connections, and who does not
// wait for the answer learns nothing.
func TestTokenGuessesAreRateLimited(t *testing.T) {
	f := newFixture(t)
	defer f.stop()
	const tries = 60
	begin := time.Now()
	answers := make(chan error, tries)
	for range tries {
		go func() {
			q := f.question()
			q.Token.Secret = "wrong"
			_, err := protocol.Ask(t.Context(), q)
			answers <- err
		}()
	}
	refused := 0
	for range tries {
		var refusal *protocol.Refusal
		switch err := <-answers; {
		case errors.As(err, &refusal):
			refused++
		case !errors.Is(err, protocol.ErrUnreachable):
			t.Error(err)
		}
	}
	if most := sourceBurst + 2 + int(float64(perSource)*time.Since(begin).Seconds()); refused > most || refused < sourceBurst {
		t.Errorf("%d of %d tries were answered, want %d to %d", refused, tries, sourceBurst, most)
	}
}
