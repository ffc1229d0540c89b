// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/transport"
	"k8s.io/client-go/util/cert"
	testclock "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/joining/node"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/server"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var settings = clusterconfig.Settings{
	PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	Domain: "cluster.local",
}

// servers is a cluster's end of the protocol, with real authorities.
type servers struct {
	t        *testing.T
	pki      *pki.PKI
	tokens   token.Set
	shown    tls.Certificate
	address  string
	password string
	joins    []server.Machine
	refuse   *protocol.Refusal
	gossip   *clusterconfig.GossipKeys
	level    atomic.Int64 // the cluster's, the first one at 0
	stop     func()

	servingIPs    []net.IP
	servingSigner pki.Signer
	earlier       bool // it is of a version whose certificates name no machine
}

func newServers(t *testing.T) *servers { return newServersWith(t, t.TempDir()) }

// newServersWith is newServers with the authorities in a folder.
func newServersWith(t *testing.T, authorities string) *servers {
	t.Helper()
	s := &servers{t: t}
	var err error
	s.pki, err = pki.Open(pki.Options{Dir: authorities, Logger: slog.New(slog.DiscardHandler)})
	testenv.NoError(t, err)
	s.tokens, err = token.Ensure(token.Options{Dir: t.TempDir(), Root: s.pki.Root(), Logger: slog.New(slog.DiscardHandler)})
	testenv.NoError(t, err)
	s.show(t)
	s.start("127.0.0.1:0")
	return s
}

// show makes the servers' certificate.
func (s *servers) show(t *testing.T) {
	t.Helper()
	key := testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	request := testenv.Must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))(t)
	chain := testenv.Must(s.pki.Sign(s.pki.APIServer(pki.APIServerNames{NodeName: "a", Domain: "cluster.local"}), request))(t)
	der, err := x509.MarshalECPrivateKey(key)
	testenv.NoError(t, err)
	s.shown, err = tls.X509KeyPair(chain, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	testenv.NoError(t, err)
	roots := testenv.Must(cert.ParseCertsPEM(s.pki.NodesServerCA()))(t)
	for _, c := range roots {
		s.shown.Certificate = append(s.shown.Certificate, c.Raw)
	}
}

func (s *servers) start(address string) {
	s.t.Helper()
	l, err := net.Listen("tcp", testenv.Address(s.t, address)) // which may be listened on again
	testenv.NoError(s.t, err)
	s.address = l.Addr().String()
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(s.pki.CAPEM(pki.ClientCA))
	admitting := server.New(server.Options{
		Listener: l, ClientCA: clients, Tokens: func() token.Set { return s.tokens }, Logger: slog.New(slog.DiscardHandler),
		Certificate: func() (*tls.Certificate, error) { return &s.shown, nil }, Admit: s.admit,
		Level: func() int { return max(int(s.level.Load()), level.First) },
	})
	stop := testenv.Run(s.t, admitting.Run)
	stopped := false
	s.stop = func() {
		if stopped {
			return
		}
		stopped = true
		stop()
	}
	s.t.Cleanup(s.stop)
}

// admit is called for one machine at a time here.
func (s *servers) admit(_ context.Context, m server.Machine) (*protocol.Response, error) {
	if s.refuse != nil {
		return nil, s.refuse
	}
	s.joins = append(s.joins, m)
	if s.password == "" {
		s.password = m.Node.Password
	}
	if s.password != m.Node.Password {
		return nil, protocol.Refuse(protocol.CodeName, "another password")
	}
	a := &protocol.Response{Settings: settings, ServerCA: s.pki.NodesServerCA(), ClientCA: s.pki.CAPEM(pki.ClientCA), Gossip: s.gossip}
	var errs [3]error
	serving := s.pki.NodeServing("", m.Node.Name, s.servingIPs)
	if s.servingSigner != "" {
		serving.Signer = s.servingSigner
	}
	if s.earlier {
		a.Kubelet, errs[0] = s.pki.Sign(s.pki.Node("", m.Node.Name), m.Node.KubeletRequest)
		a.Network, errs[1] = s.pki.Sign(s.pki.Network(""), m.Node.NetworkRequest)
		a.Serving, errs[2] = s.pki.Sign(serving, m.Node.ServingRequest)
		return a, errors.Join(errs[:]...)
	}
	a.Kubelet, errs[0] = s.pki.Sign(s.pki.Node("", m.Node.Name).For(m.Node.Name, m.Generation), m.Node.KubeletRequest)
	a.Serving, errs[1] = s.pki.Sign(serving, m.Node.ServingRequest)
	a.Network, errs[2] = s.pki.Sign(s.pki.Network("").For(m.Node.Name, m.Generation), m.Node.NetworkRequest)
	return a, errors.Join(errs[:]...)
}

func (s *servers) options(dir string) node.Options {
	return node.Options{
		Dir: filepath.Join(dir, "cred"), StateDir: dir, Server: &url.URL{Scheme: "https", Host: s.address}, API: "https://127.0.0.1:6444", Token: s.tokens.Agent.String(),
		NodeName: "n", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, Logger: slog.New(slog.DiscardHandler),
	}
}

// TestJoinByTokenThenByCertificate follows a machine through its first start and later ones.
func TestJoinByTokenThenByCertificate(t *testing.T) {
	s, dir := newServers(t), t.TempDir()
	n := testenv.Must(node.Join(t.Context(), s.options(dir)))(t)
	testenv.False(t, n.Settings.Domain != "cluster.local" || len(s.joins) != 1 || s.joins[0].Joined, "%+v, %d", n.Settings, len(s.joins))
	f := nodecreds.In(filepath.Join(dir, "cred"))
	for path, name := range map[string]string{f.KubeletPair: "system:node:n", f.KubeletServing: "system:node:n", f.NetworkPair: "system:coracle:network"} {
		pair, err := tls.LoadX509KeyPair(path, path)
		testenv.False(t, err != nil || pair.Leaf.Subject.CommonName != name, "%s: %v, want the certificate of %s", path, err, name)
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, fi.Mode(), err)
		}
	}

	t.Run("again, by certificate", func(t *testing.T) {
		o := s.options(dir)
		o.Token = s.tokens.Agent.String()[:len("CRC1")+64] + "::agent:replaced" // the secret was, and the node stays
		testenv.Must(node.Join(t.Context(), o))(t)
		testenv.False(t, len(s.joins) != 2 || !s.joins[1].Joined, "asked %d times", len(s.joins))
	})
	t.Run("while no server answers", func(t *testing.T) {
		s.stop()
		testenv.Equal(t, testenv.Must(node.Join(t.Context(), s.options(dir)))(t).Settings.Domain, "cluster.local", "")
		s.start(s.address)
	})
	t.Run("while the server is not ready", func(t *testing.T) {
		s.refuse = protocol.Refuse(protocol.CodeStarting, "starting")
		defer func() { s.refuse = nil }()
		testenv.Check(t, testenv.Err(node.Join(t.Context(), s.options(dir))))
	})
	t.Run("when it is not taken any more", func(t *testing.T) { // another machine has the name
		s.refuse = protocol.Refuse(protocol.CodeName, "no")
		defer func() { s.refuse = nil }()
		testenv.WantError(t, testenv.Err(node.Join(t.Context(), s.options(dir))), "no longer accepts this machine")
	})
	t.Run("API at another address", func(t *testing.T) {
		s.stop()
		o := s.options(dir)
		o.API = "https://127.0.0.1:7444"
		testenv.Check(t, testenv.Err(node.Join(t.Context(), o)))
		text, err := os.ReadFile(f.KubeletKubeconfig)
		testenv.True(t, err == nil && strings.Contains(string(text), o.API),
			"%v: the kubelet looks for the API where it was:\n%s", err, text)
		s.start(s.address)
	})
	t.Run("the server that was named is gone", func(t *testing.T) {
		before := len(s.joins)
		o := s.options(dir)
		o.Server, o.Others = &url.URL{Scheme: "https", Host: "127.0.0.1:1"}, func() []string { return []string{"127.0.0.1:1", s.address} }
		if _, err := node.Join(t.Context(), o); err != nil || len(s.joins) == before {
			t.Errorf("%v, asked %d times", err, len(s.joins)-before)
		}
	})
	for name, change := range map[string]func(o *node.Options){
		"another name":    func(o *node.Options) { o.NodeName = "m" },
		"another address": func(o *node.Options) { o.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.3")} },
	} {
		t.Run(name, func(t *testing.T) { // needs a certificate that says so
			s.refuse = protocol.Refuse(protocol.CodeName, "no such")
			defer func() { s.refuse = nil }()
			o := s.options(dir)
			change(&o)
			testenv.WantError(t, testenv.Err(node.Join(t.Context(), o)), "no such")
		})
	}
	for _, file := range []string{filepath.Join(dir, "cluster.json"), f.KubeletPair, f.KubeletServing, f.NetworkPair, f.ServerCAFile} {
		t.Run("damaged "+filepath.Base(file), func(t *testing.T) {
			before := len(s.joins)
			testenv.NoError(t, os.WriteFile(file, []byte("{"), 0o600))
			if _, err := node.Join(t.Context(), s.options(dir)); err != nil || len(s.joins) == before {
				t.Errorf("%v, asked %d times", err, len(s.joins)-before)
			}
		})
	}
	t.Run("without the authority of callers", func(t *testing.T) {
		before := len(s.joins)
		testenv.NoError(t, os.Remove(f.ClientCAFile))
		if _, err := node.Join(t.Context(), s.options(dir)); err != nil || len(s.joins) == before {
			t.Errorf("%v, asked %d times", err, len(s.joins)-before)
		}
		testenv.Check(t, testenv.Err(os.Stat(f.ClientCAFile)))
	})
	t.Run("by a clock that is 400 days ahead", func(t *testing.T) {
		o := s.options(dir)
		o.Now = func() time.Time { return time.Now().AddDate(0, 0, 400) }
		_, err := node.Join(t.Context(), o)
		var refusal *protocol.Refusal
		testenv.True(t, errors.As(err, &refusal) && refusal.Code == protocol.CodeClock, "%v: the machine did not ask, with its token", err)
	})
}

// at is the cluster's authorities as they were at another time: what they sign is valid for a year from then.
func (s *servers) at(t *testing.T, then time.Time) *pki.PKI {
	t.Helper()
	p := testenv.Must(pki.Open(pki.Options{Dir: s.pki.Dir(), Established: true, BuildTime: then.AddDate(-1, 0, 0), Clock: testclock.NewFakeClock(then), Logger: slog.New(slog.DiscardHandler)}))(t)
	return p
}

// serial is that of the certificate in a file.
func serial(t *testing.T, path string) string {
	t.Helper()
	pair := testenv.Must(tls.LoadX509KeyPair(path, path))(t)
	return pair.Leaf.SerialNumber.String()
}

// TestRestartedNodeKeepsItsFiles: a node that starts again has what it had, except where a server would give it
// something else.
func TestRestartedNodeKeepsItsFiles(t *testing.T) {
	s, dir := newServers(t), t.TempDir()
	f := nodecreds.In(filepath.Join(dir, "cred"))
	pairs := []string{f.KubeletPair, f.KubeletServing, f.NetworkPair}
	serials := func() (out []string) {
		testenv.Must(node.Join(t.Context(), s.options(dir)))(t)
		for _, path := range pairs {
			out = append(out, serial(t, path))
		}
		return out
	}
	first := serials()
	if again := serials(); !slices.Equal(again, first) {
		t.Errorf("a second start made new certificates: %v, and before %v", again, first)
	}
	s.servingIPs = []net.IP{net.IPv4(10, 0, 0, 9)}
	moved := serials()
	if moved[0] != first[0] || moved[1] == first[1] || moved[2] != first[2] {
		t.Errorf("after the serving certificate's addresses changed: %v, and before %v", moved, first)
	}
	s.servingSigner = pki.ServerCA
	testenv.False(t, serials()[1] == moved[1], "a certificate of another authority was not taken")
	last := serials()
	s.earlier = true
	if earlier := serials(); !slices.Equal(earlier, last) {
		t.Errorf("a server of an earlier version answered: %v, and before %v", earlier, last)
	}
}

// TestCertificatesNameTheirMachine: a node whose certificates do not name it, since a server of an earlier version
// signed them, asks again while it runs, and has those that do, with no restart.
func TestCertificatesNameTheirMachine(t *testing.T) {
	s, dir := newServers(t), t.TempDir()
	s.earlier = true
	n := testenv.Must(node.Join(t.Context(), s.options(dir)))(t)
	named := func() bool {
		for _, path := range []string{n.Credentials.KubeletPair, n.Credentials.NetworkPair} {
			pair := testenv.Must(tls.LoadX509KeyPair(path, path))(t)
			if nodecreds.IdentityOf(pair.Leaf) != (nodecreds.Identity{Node: "n"}) {
				return false
			}
		}
		return true
	}
	testenv.Require(t, !named(), "the certificates name the machine already")
	s.earlier = false
	stop := testenv.Run(t, n.Run)
	testenv.Until(t, 2*time.Minute, "the certificates name the machine", named)
	stop()
}

// TestExpiredCertificatesNeedTheToken: a machine whose certificates have run out joins again with its token, and not
// with them.
func TestExpiredCertificatesNeedTheToken(t *testing.T) {
	s, dir := newServers(t), t.TempDir()
	now := s.pki
	s.pki = s.at(t, time.Now().AddDate(0, 0, -400))
	testenv.Must(node.Join(t.Context(), s.options(dir)))(t)
	path := nodecreds.In(filepath.Join(dir, "cred")).KubeletPair
	if pair, err := tls.LoadX509KeyPair(path, path); err != nil || time.Since(pair.Leaf.NotAfter) < 30*24*time.Hour {
		t.Fatalf("the certificate is to have run out: %v, %v", pair.Leaf.NotAfter, err)
	}
	s.pki = now
	without := s.options(dir)
	without.Token = s.tokens.Agent.String()[:len("CRC1")+64] + "::agent:replaced"
	var refusal *protocol.Refusal
	if _, err := node.Join(t.Context(), without); !errors.As(err, &refusal) || refusal.Code != protocol.CodeToken {
		t.Errorf("without a token that works: %v", err)
	}
	testenv.Must(node.Join(t.Context(), s.options(dir)))(t)
	pair, err := tls.LoadX509KeyPair(path, path)
	testenv.False(t, err != nil || time.Until(pair.Leaf.NotAfter) < 300*24*time.Hour, "%v, %v", pair.Leaf.NotAfter, err)
	if last := s.joins[len(s.joins)-1]; last.Joined || last.Node.Password != s.password {
		t.Error("it did not join with its token, as the machine that it was")
	}
}

// TestCertificatesOfTheFuture: the clocks of the servers and of a node were ahead when the node joined, and were then
// set right. A start of the node keeps the certificates that it gets then, and a node that runs asks for them within
// two minutes.
func TestCertificatesOfTheFuture(t *testing.T) {
	const ahead = 8 * time.Hour // as of a clock in local time
	f := func(dir string) []string {
		c := nodecreds.In(filepath.Join(dir, "cred"))
		return []string{c.KubeletPair, c.KubeletServing, c.NetworkPair}
	}
	valid := func(dir string) error {
		for _, path := range f(dir) {
			pair, err := tls.LoadX509KeyPair(path, path)
			if err != nil || time.Now().Before(pair.Leaf.NotBefore) {
				return fmt.Errorf("%s is valid from %v on: %w", filepath.Base(path), pair.Leaf.NotBefore, cmp.Or(err, errors.ErrUnsupported))
			}
		}
		return nil
	}
	joined := func(t *testing.T) (*servers, string, *node.Node) {
		s, dir := newServers(t), t.TempDir()
		right := s.pki
		s.pki = s.at(t, time.Now().Add(ahead))
		n := testenv.Must(node.Join(t.Context(), s.options(dir)))(t)
		testenv.Fails(t, valid(dir), "the certificates are not of the future")
		s.pki = right
		return s, dir, n
	}
	t.Run("started again", func(t *testing.T) {
		s, dir, _ := joined(t)
		testenv.Must(node.Join(t.Context(), s.options(dir)))(t)
		testenv.Check(t, valid(dir))
	})
	t.Run("while it runs", func(t *testing.T) {
		_, dir, n := joined(t)
		defer testenv.Run(t, n.Run)()
		testenv.Eventually(t, 2*time.Minute, "valid certificates", func() error { return valid(dir) })
	})
	t.Run("the clock is set while it runs", func(t *testing.T) {
		s, dir := newServers(t), t.TempDir()
		began, offset, o := time.Now(), time.Duration(0), s.options(dir)
		var log testenv.Log
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		o.Now = func() time.Time { return began.Add(offset) }
		s.pki = s.at(t, began.Add(ahead))
		n := testenv.Must(node.Join(t.Context(), o))(t)
		s.stop() // a request can be seen in the log: it fails
		synctest.Test(t, func(t *testing.T) {
			offset = ahead
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { testenv.Check(t, n.Run(ctx)) })
			time.Sleep(30 * time.Minute) // fake time
			synctest.Wait()
			testenv.Equal(t, log.String(), "", "with valid certificates")
			offset = 0
			time.Sleep(2 * time.Minute) // fake time
			cancel()
			running.Wait()
			testenv.True(t, strings.Contains(log.String(), "could not be renewed"), "two minutes after the clock was set: %q", log.String())
		})
	})
}

// TestRenewedCertificateIsUsedWithoutRestart: certificates that are about to run out are renewed, and a client that was
// made with the kubelet's kubeconfig before shows the new one, with no restart.
func TestRenewedCertificateIsUsedWithoutRestart(t *testing.T) {
	defer func(every time.Duration) { transport.CertCallbackRefreshDuration = every }(transport.CertCallbackRefreshDuration)
	transport.CertCallbackRefreshDuration = 100 * time.Millisecond // upstream looks every five minutes
	s, dir := newServers(t), t.TempDir()
	now := s.pki
	s.pki = s.at(t, time.Now().Add(-pki.LeafLifetime+5*time.Minute))
	o := s.options(dir)
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.TLS.PeerCertificates[0].SerialNumber)
	}))
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(s.pki.CAPEM(pki.ClientCA))
	api.TLS = &tls.Config{Certificates: []tls.Certificate{s.shown}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert}
	api.StartTLS()
	defer api.Close()
	o.API = api.URL
	n := testenv.Must(node.Join(t.Context(), o))(t)
	config := testenv.Must(clientcmd.BuildConfigFromFlags("", n.Credentials.KubeletKubeconfig))(t)
	client := testenv.Must(rest.HTTPClientFor(config))(t)
	shown := func() string {
		r := testenv.Must(client.Get(api.URL))(t)
		defer r.Body.Close()
		text := testenv.Must(io.ReadAll(r.Body))(t)
		return string(text)
	}
	first := shown()
	testenv.Require(t, first == serial(t, n.Credentials.KubeletPair), "the client shows %s", first)
	s.pki = now
	stop := testenv.Run(t, n.Run)
	for deadline := time.Now().Add(2 * time.Minute); shown() == first; time.Sleep(50 * time.Millisecond) { // between two looks
		testenv.Require(t, !time.Now().After(deadline), "the client shows the certificate that runs out")
	}
	stop()
	testenv.Equal(t, shown(), serial(t, n.Credentials.KubeletPair), "the client shows")
	if last := s.joins[len(s.joins)-1]; len(s.joins) != 2 || !last.Joined {
		t.Errorf("asked %d times", len(s.joins))
	}
}

// TestJoinRetriesUntilServerIsReady: a server that does not answer yet, or is not ready, is asked again.
func TestJoinRetriesUntilServerIsReady(t *testing.T) {
	s := newServers(t)
	s.stop()
	done := make(chan error, 1)
	o := s.options(t.TempDir())
	var log testenv.Log
	o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	go func() {
		_, err := node.Join(t.Context(), o)
		done <- err
	}()
	waits := func(reason string) {
		t.Helper()
		testenv.Eventually(t, 2*time.Minute, "it waits: "+reason, func() error {
			select {
			case err := <-done:
				t.Fatalf("it did not wait: %v", err)
			default:
			}
			if !strings.Contains(log.String(), reason) {
				return errors.New(log.String())
			}
			return nil
		})
	}
	waits("connection refused")
	s.refuse = protocol.Refuse(protocol.CodeStarting, "its store is being opened")
	s.start(s.address)
	waits("its store is being opened")
	s.stop()
	s.refuse = nil
	s.start(s.address)
	testenv.Check(t, <-done)
}

func TestTokensThatNeverLeave(t *testing.T) {
	s := newServers(t)
	o := s.options(t.TempDir())
	for _, bad := range []string{"", s.tokens.Server.String(), "K10abc::server:x"} {
		o.Token = bad
		if _, err := node.Join(t.Context(), o); err == nil || !strings.Contains(err.Error(), "--token") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	testenv.True(t, len(s.joins) == 0, "a server was asked")
}

// TestLevelIsKept: a node has the level of the last response, also while no server answers. At the first level its file
// is as before there were levels.
func TestLevelIsKept(t *testing.T) {
	s, dir := newServers(t), t.TempDir()
	s.level.Store(int64(level.Oldest()))
	testenv.Equal(t, testenv.Must(node.Join(t.Context(), s.options(dir)))(t).Level, level.Oldest(), "the level of a new node is")
	file := filepath.Join(dir, "cluster.json")
	testenv.Equal(t, strings.Contains(string(testenv.Must(os.ReadFile(file))(t)), `"level"`), level.Oldest() > level.First,
		"the file has a level:")
	s.level.Store(int64(level.Newest()))
	testenv.Equal(t, testenv.Must(node.Join(t.Context(), s.options(dir)))(t).Level, level.Newest(), "the level after a raise is")
	s.stop()
	testenv.Equal(t, testenv.Must(node.Join(t.Context(), s.options(dir)))(t).Level, level.Newest(), "the level without a server is")
}

// TestUnknownLevelChangesNothing: a program that does not know the cluster's level does not join it, and says why. One
// that has joined, and then was replaced by such a program, waits for a server: the cluster may have another level.
func TestUnknownLevelChangesNothing(t *testing.T) {
	s, dir := newServers(t), t.TempDir()
	unknown := level.Newest() + 1
	s.level.Store(int64(unknown))
	testenv.WantError(t, testenv.Err(node.Join(t.Context(), s.options(dir))), fmt.Sprintf("the cluster has level %d", unknown),
		"Install the servers' version")
	_, err := os.Lstat(filepath.Join(dir, "cred"))
	testenv.True(t, errors.Is(err, fs.ErrNotExist), "there are credentials: %v", err)

	s.level.Store(level.First)
	testenv.Must(node.Join(t.Context(), s.options(dir)))(t)
	file := filepath.Join(dir, "cluster.json")
	had := string(testenv.Must(os.ReadFile(file))(t))
	newer := strings.Replace(had, `"settings"`, fmt.Sprintf(`"level": %d, "settings"`, unknown), 1)
	testenv.NoError(t, os.WriteFile(file, []byte(newer), 0o600))
	s.stop()
	ctx, cancel := context.WithCancel(t.Context())
	o := s.options(dir)
	o.Logger = slog.New(slog.NewTextHandler(writerFunc(func(line []byte) {
		if strings.Contains(string(line), "retrying") {
			cancel()
		}
	}), nil))
	testenv.True(t, errors.Is(testenv.Err(node.Join(ctx, o)), context.Canceled), "the node has not waited for a server")
	s.start(s.address)
	testenv.Equal(t, testenv.Must(node.Join(t.Context(), s.options(dir)))(t).Level, level.First, "the level that a server says is")
}

// writerFunc is called with each line of a log.
type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}
