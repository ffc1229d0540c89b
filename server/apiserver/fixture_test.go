// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/raftstore/upstream"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	// patience bounds every wait of a test: far more than a loaded machine needs.
	patience = 2 * time.Minute
	issuer   = "https://kubernetes.default.svc.cluster.local"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if !testing.Verbose() {
		klog.LogToStderr(false)
		klog.SetOutput(io.Discard)
	}
	os.Exit(m.Run())
}

// fixture is everything a server needs: keys, certificates and a store.
type fixture struct {
	dir     string
	pki     *pki.PKI
	servers servers
	store   *raftstore.Store // the first of them
	log     *slog.Logger
	leaf    struct{ serving, kubelet, proxy, admin, node pki.Leaf }
}

func newFixture(t testing.TB) *fixture { t.Helper(); return newFixtureOf(t, nil) }

// newFixtureOf is a fixture on the first of the servers that open opens; on one alone when it is nil.
func newFixtureOf(t testing.TB, open func(testing.TB, *fixture) servers) *fixture {
	t.Helper()
	f := &fixture{dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	var err error
	f.pki, err = pki.Open(pki.Options{Dir: filepath.Join(f.dir, "tls"), Logger: f.log})
	testenv.NoError(t, err)
	f.leaf.serving = f.pki.APIServer(pki.APIServerNames{NodeName: "one", Domain: "cluster.local"})
	f.leaf.kubelet, f.leaf.proxy, f.leaf.admin = f.pki.KubeletClient(), f.pki.FrontProxy(), f.pki.Admin()
	f.leaf.node = f.pki.Node(f.dir, "one")
	for _, l := range []pki.Leaf{f.leaf.serving, f.leaf.kubelet, f.leaf.proxy, f.leaf.admin, f.leaf.node} {
		testenv.NoError(t, f.pki.Ensure(l))
	}
	if open == nil {
		f.servers = servers{openStore(t, raftstore.Options{Dir: filepath.Join(f.dir, "store"), NodeID: "one", Logger: f.log})}
	} else {
		f.servers = open(t, f)
	}
	f.store = f.servers[0]
	upstream.Install(f.store.Client)
	return f
}

func (f *fixture) options(t testing.TB) Options {
	t.Helper()
	listener := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	return Options{
		Listener: listener, AdvertiseAddress: net.IPv4(192, 0, 2, 10),
		TLSCertFile: f.leaf.serving.Path, TLSKeyFile: f.leaf.serving.Path,
		ClientCAFile:           f.pki.CAFile(pki.ClientCA),
		ServiceAccountKeyFiles: []string{f.pki.ServiceAccountKeyFile()}, ServiceAccountSigningKeyFile: f.pki.ServiceAccountKeyFile(),
		ServiceAccountIssuer:  issuer,
		KubeletClientCertFile: f.leaf.kubelet.Path, KubeletClientKeyFile: f.leaf.kubelet.Path, KubeletCAFile: f.pki.CAFile(pki.KubeletCA),
		RequestHeaderCAFile: f.pki.CAFile(pki.RequestHeaderCA), RequestHeaderAllowedNames: []string{pki.FrontProxyUser},
		ProxyClientCertFile: f.leaf.proxy.Path, ProxyClientKeyFile: f.leaf.proxy.Path,
		Cluster: clusterconfig.Settings{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
			Disabled: clusterconfig.Disabled{clusterconfig.PartMetrics}},
		ConfigDir: f.dir, AnonymousHealthOnly: true, Logger: f.log,
		seriesKept: time.Second,
	}
}

// running is a server that serves.
type running struct {
	*Server
	stop func()
	url  string
	f    *fixture
}

// start runs a server until the returned stop, or the end of the test, and waits for it to be ready.
func (f *fixture) start(t testing.TB, o Options) *running {
	t.Helper()
	s := testenv.Must(New(t.Context(), o))(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	r := &running{Server: s, f: f, url: "https://" + o.Listener.Addr().String()}
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			testenv.Check(t, err, "Run")
		case <-time.After(patience):
			t.Fatal("the server does not stop")
		}
	}
	t.Cleanup(r.stop)
	select {
	case <-s.Ready():
	case err := <-done:
		stopped = true
		t.Fatalf("the server ended before it was ready: %v", err)
	case <-time.After(patience):
		t.Fatal("the server does not become ready")
	}
	return r
}

// admin is a client configuration over TLS with the administrator's certificate.
func (r *running) admin() *rest.Config { return r.withLeaf(r.f.leaf.admin) }

func (r *running) withLeaf(l pki.Leaf) *rest.Config {
	return &rest.Config{Host: r.url, QPS: -1, TLSClientConfig: rest.TLSClientConfig{
		CAFile: r.f.pki.CAFile(pki.ServerCA), CertFile: l.Path, KeyFile: l.Path,
	}}
}

// anonymous is an HTTP client without credentials.
func (r *running) anonymous(t *testing.T, change func(*tls.Config)) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(r.f.pki.CAPEM(pki.ServerCA))
	c := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if change != nil {
		change(c)
	}
	transport := &http.Transport{TLSClientConfig: c}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// eventually waits until check returns nil.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		testenv.Require(t, !time.Now().After(deadline), "%s: %v", what, err)
		time.Sleep(20 * time.Millisecond) // between two looks, not a wait for luck
	}
}
