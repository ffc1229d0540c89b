// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/version"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/server"
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
	others    []token.Bootstrap // that are good for something else, or were
	revoked   atomic.Pointer[nodecreds.Revoked]
	address   string
	level     atomic.Int64  // the cluster's, the first one at 0
	log       *bytes.Buffer // read after stop only
	admitted  chan server.Machine

	whileIdentified func() // called when a token that expires is looked up
	stop            func()
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{T: t, log: &bytes.Buffer{}, admitted: make(chan server.Machine, 10)}
	f.revoked.Store(&nodecreds.Revoked{})
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
	s := server.New(server.Options{
		Listener: l, ClientCA: clients, Tokens: func() token.Set { return f.tokens }, Logger: logger,
		Revoked:     func() nodecreds.Revoked { return *f.revoked.Load() },
		Level:       func() int { return max(int(f.level.Load()), level.First) },
		Certificate: func() (*tls.Certificate, error) { return certificate, nil },
		Bootstrap: func(_ context.Context, id string) (token.Bootstrap, bool, error) {
			if f.whileIdentified != nil {
				f.whileIdentified()
			}
			for _, b := range append(f.others, f.bootstrap) {
				if b.ID == id {
					return b, true, nil
				}
			}
			return token.Bootstrap{}, false, nil
		},
		Admit: func(_ context.Context, m server.Machine) (*protocol.Response, error) {
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

func (f *fixture) question() protocol.Call {
	return protocol.Call{Address: f.address, Token: f.tokens.Agent, Request: protocol.Request{Role: token.RoleAgent, Time: time.Now(), Node: protocol.Node{Name: "n"}}}
}

// An attacker who has a token or a certificate for something else, an old one or another cluster's, asks to join; the
// machine must not be admitted. Rows without a refusal are those that may join.
func TestWhoMayJoin(t *testing.T) {
	f := newFixture(t)
	defer f.stop()
	other := newFixture(t)
	defer other.stop()
	expired, foreign, signing := f.bootstrap, f.bootstrap, f.bootstrap
	expired.ID, expired.Expires = "expire", time.Now().Add(-time.Second)
	foreign.ID, foreign.Groups = "others", []string{"system:bootstrappers:others"}
	signing.ID, signing.Usages = "signer", []string{"signing"}
	f.others = []token.Bootstrap{expired, foreign, signing}
	for _, tt := range []struct {
		name   string
		change func(q *protocol.Call)
		code   protocol.Code // of the refusal; empty if it may
		want   string        // of another error, or in the refusal
	}{
		{name: "agent token", change: func(*protocol.Call) {}},
		{name: "its secret alone", change: func(q *protocol.Call) { q.Token = bare(q.Token) }},
		{name: "token that expires", change: func(q *protocol.Call) { q.Token = f.bootstrap.Token(q.Token.CAHash) }},
		{name: "certificate", change: func(q *protocol.Call) { *q = f.byCertificate(f.pki.Node("", "n"), f.pki.Root()) }},

		{name: "the version before", change: func(q *protocol.Call) { q.Request.Protocol = version.Protocol() - 1 }},
		{name: "the next version", change: func(q *protocol.Call) { q.Request.Protocol = version.Protocol() + 1 }},
		{name: "a version that is too new", change: func(q *protocol.Call) { q.Request.Protocol = version.Protocol() + 2 },
			code: protocol.CodeVersion},
		{name: "a version that is too old", change: func(q *protocol.Call) { q.Request.Protocol = -1 }, code: protocol.CodeVersion},

		{name: "wrong secret", change: func(q *protocol.Call) { q.Token.Secret = "other" }, code: protocol.CodeToken,
			want: "`coracle token print` on a server"},
		{name: "wrong secret, to be a server", change: func(q *protocol.Call) {
			q.Request.Role, q.Token = token.RoleServer, f.tokens.Server
			q.Token.Secret = "other"
		}, code: protocol.CodeToken, want: "`coracle token print --server` on a server"},
		{name: "empty secret", change: func(q *protocol.Call) { q.Token.Secret = "" }, code: protocol.CodeToken},
		{name: "server token", change: func(q *protocol.Call) { q.Token = f.tokens.Server }, code: protocol.CodeToken},
		{name: "server token's secret alone", change: func(q *protocol.Call) { q.Token = bare(f.tokens.Server) }, code: protocol.CodeToken},
		{name: "unknown token that expires", change: func(q *protocol.Call) {
			q.Token = token.Bootstrap{ID: "zzzzzz", Secret: f.bootstrap.Secret}.Token(q.Token.CAHash)
		}, code: protocol.CodeToken},
		{name: "wrong secret of a token that expires", change: func(q *protocol.Call) {
			q.Token = token.Bootstrap{ID: f.bootstrap.ID, Secret: "x"}.Token(q.Token.CAHash)
		}, code: protocol.CodeToken},
		{name: "token that has expired", change: func(q *protocol.Call) { q.Token = expired.Token(q.Token.CAHash) },
			code: protocol.CodeToken, want: "expired at"},
		{name: "token for other machines", change: func(q *protocol.Call) { q.Token = foreign.Token(q.Token.CAHash) },
			code: protocol.CodeToken, want: "is not for"},
		{name: "token to sign with", change: func(q *protocol.Call) { q.Token = signing.Token(q.Token.CAHash) },
			code: protocol.CodeToken, want: "there is no token"},
		{name: "another cluster's token", change: func(q *protocol.Call) { q.Token = other.tokens.Agent }, want: "another cluster"},
		{name: "server token, to be a server", change: func(q *protocol.Call) { q.Request.Role, q.Token = token.RoleServer, f.tokens.Server }},
		{name: "its secret alone, to be a server", change: func(q *protocol.Call) { q.Request.Role, q.Token = token.RoleServer, bare(f.tokens.Server) }},
		{name: "agent token, to be a server", change: func(q *protocol.Call) { q.Request.Role = token.RoleServer }, code: protocol.CodeToken},
		{name: "its secret alone, to be a server, too", change: func(q *protocol.Call) { q.Request.Role, q.Token = token.RoleServer, bare(q.Token) }, code: protocol.CodeToken},
		{name: "token that expires, to be a server", change: func(q *protocol.Call) {
			q.Request.Role, q.Token = token.RoleServer, f.bootstrap.Token(q.Token.CAHash)
		}, code: protocol.CodeToken},
		{name: "certificate, to be a server", change: func(q *protocol.Call) {
			*q = f.byCertificate(f.pki.Node("", "n"), f.pki.Root())
			q.Request.Role = token.RoleServer
		}, code: protocol.CodeToken},
		{name: "to be something else", change: func(q *protocol.Call) { q.Request.Role = "king" }, code: protocol.CodeRequest},
		{name: "clock behind", change: func(q *protocol.Call) { q.Request.Time = time.Unix(0, 0) }, code: protocol.CodeClock},
		{name: "clock ahead", change: func(q *protocol.Call) { q.Request.Time = time.Now().Add(time.Hour) }, code: protocol.CodeClock},
		{name: "no clock", change: func(q *protocol.Call) { q.Request.Time = time.Time{} }, code: protocol.CodeClock},

		{name: "certificate of another node", change: func(q *protocol.Call) { *q = f.byCertificate(f.pki.Node("", "m"), f.pki.Root()) }, code: protocol.CodeCertificate},
		{name: "certificate of a node's network", change: func(q *protocol.Call) { *q = f.byCertificate(f.pki.Network(""), f.pki.Root()) }, code: protocol.CodeCertificate},
		{name: "certificate of an administrator", change: func(q *protocol.Call) { *q = f.byCertificate(f.pki.Admin(), f.pki.Root()) }, code: protocol.CodeCertificate},
		{name: "certificate of a listener", change: func(q *protocol.Call) { *q = f.byCertificate(f.pki.NodeServing("", "n", nil), f.pki.Root()) }, code: protocol.CodeCertificate},
		{name: "another cluster's certificate", change: func(q *protocol.Call) {
			*q = other.byCertificate(other.pki.Node("", "n"), f.pki.Root())
			q.Address = f.address
		}, code: protocol.CodeCertificate},
		{name: "certificate, at another cluster", change: func(q *protocol.Call) {
			*q = f.byCertificate(f.pki.Node("", "n"), f.pki.Root())
			q.Address = other.address
		}, want: "another cluster"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := f.question()
			tt.change(&q)
			_, err := protocol.Send(t.Context(), q)
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

// TestLevelsThatMayJoin: a machine gets the cluster's level. Its program has to know that, as its newest level or the
// one before. A program that sends none knows the first level alone.
func TestLevelsThatMayJoin(t *testing.T) {
	f := newFixture(t)
	defer f.stop()
	for _, tt := range []struct {
		cluster, newest int
		want, want2     string // what is in the refusal
	}{
		{cluster: 1, newest: 1}, {cluster: 1, newest: 2}, {cluster: 2, newest: 2}, {cluster: 2, newest: 3},
		{cluster: 2, newest: 1, want: "knows levels up to 1. Nothing was changed on this machine",
			want2: "Install the servers' version, " + version.Get().Coracle},
		{cluster: 1, newest: 3, want: "knows the levels 2 to 3. Nothing was changed on this machine", want2: "coracle upgrade raise"},
	} {
		f.level.Store(int64(tt.cluster))
		q := f.question()
		q.Request.Level = tt.newest
		a, err := protocol.Send(t.Context(), q)
		var refusal *protocol.Refusal
		switch {
		case tt.want == "":
			testenv.NoError(t, err, "a program of level %d, a cluster of level %d", tt.newest, tt.cluster)
			testenv.Equal(t, max(a.Level, level.First), tt.cluster, "the response has level")
			<-f.admitted
		case !errors.As(err, &refusal) || refusal.Code != protocol.CodeVersion:
			t.Errorf("a program of level %d, a cluster of level %d: %v", tt.newest, tt.cluster, err)
		default:
			testenv.WantError(t, err, tt.want, tt.want2)
		}
	}
	f.level.Store(2)
	q := f.byCertificate(f.pki.Node("", "n"), f.pki.Root())
	q.Request.Level, q.Request.Want = 1, protocol.WantGossipKeys
	testenv.Must(protocol.Send(t.Context(), q))(t) // it runs already
}

// TestRevokedNodeJoinsWithANewTokenAlone: the certificate of a revoked node renews nothing. A machine of the same name
// that shows a token gets certificates of the next generation, and renews these. One that a revocation overtakes, after
// its token was accepted, gets certificates that are refused already.
func TestRevokedNodeJoinsWithANewTokenAlone(t *testing.T) {
	f := newFixture(t)
	defer f.stop()
	ask := func(q protocol.Call) (generation uint64, err error) {
		if _, err = protocol.Send(t.Context(), q); err == nil {
			generation = (<-f.admitted).Generation
		}
		return generation, err
	}
	stolen := f.byCertificate(f.pki.Node("", "n").For("n", 0), f.pki.Root())
	testenv.Equal(t, testenv.Must(ask(stolen))(t), 0, "the generation of a node that is not revoked:")
	f.revoked.Store(&nodecreds.Revoked{"n": 1})
	for what, q := range map[string]protocol.Call{
		"its certificate":                        stolen,
		"its certificate of an earlier version":  f.byCertificate(f.pki.Node("", "n"), f.pki.Root()),
		"its certificate, for the gossip's keys": func() protocol.Call { q := stolen; q.Request.Want = protocol.WantGossipKeys; return q }(),
	} {
		_, err := ask(q)
		var refusal *protocol.Refusal
		if !errors.As(err, &refusal) || refusal.Code != protocol.CodeCertificate || !strings.Contains(refusal.Message, "was revoked") {
			t.Errorf("%s: %v", what, err)
		}
	}
	testenv.Equal(t, testenv.Must(ask(f.question()))(t), 1, "the generation with a token:")
	testenv.Equal(t, testenv.Must(ask(f.byCertificate(f.pki.Node("", "n").For("n", 1), f.pki.Root())))(t), 1, "the generation of a renewal:")

	f.whileIdentified = func() { f.revoked.Store(&nodecreds.Revoked{"n": 2}) }
	q := f.question()
	q.Token = f.bootstrap.Token(q.Token.CAHash)
	testenv.Equal(t, testenv.Must(ask(q))(t), 1, "the generation of a machine that a revocation overtakes:")
}

// bare is what a user has who copied a token's secret alone.
func bare(t token.Token) token.Token { return token.Token{Secret: t.Secret} }

func (f *fixture) byCertificate(l pki.Leaf, root *x509.Certificate) protocol.Call {
	q := f.question()
	q.Token, q.Certificate, q.Root = token.Token{}, f.leaf(l), root
	return q
}
