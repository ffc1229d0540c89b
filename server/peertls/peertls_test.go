// SPDX-License-Identifier: Apache-2.0

package peertls_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/server/peertls"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const patience = 2 * time.Minute

func authorities(t *testing.T) *pki.PKI {
	t.Helper()
	return testenv.Must(pki.Open(pki.Options{Dir: filepath.Join(t.TempDir(), "tls"), Logger: slog.New(slog.DiscardHandler)}))(t)
}

// leaf issues a certificate.
func leaf(t *testing.T, p *pki.PKI, l pki.Leaf) *tls.Certificate {
	t.Helper()
	testenv.NoError(t, p.Ensure(l))
	c := testenv.Must(tls.LoadX509KeyPair(l.Path, l.Path))(t)
	return &c
}

// identity is a server's.
func identity(t *testing.T, p *pki.PKI, id string) *peertls.Identity {
	t.Helper()
	i := testenv.Must(peertls.New(peertls.Options{CA: p.CAPEM(pki.PeerCA), Name: pki.PeerName}))(t)
	l := p.Peer(id)
	l.Use = i.Use
	l.Path = filepath.Join(t.TempDir(), "peer.pem")
	testenv.NoError(t, p.Ensure(l))
	return i
}

// forged is a certificate of an authority's key that its package would not issue; change makes it so.
func forged(t *testing.T, p *pki.PKI, s pki.Signer, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	ca := testenv.Must(tls.LoadX509KeyPair(p.CAFile(s), p.CAKeyFile(s)))(t)
	key := testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "two"}, DNSNames: []string{pki.PeerName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	der := testenv.Must(x509.CreateCertificate(rand.Reader, template, ca.Leaf, key.Public(), ca.PrivateKey))(t)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// dated changes the dates of a certificate, to days from now.
func dated(from, to int) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().AddDate(0, 0, from), time.Now().AddDate(0, 0, to)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { l.Close() })
	return l
}

// call lets a foreign client, which trusts any server, call a server. The error is the server's.
func call(t *testing.T, server *peertls.Identity, client *tls.Config) error {
	t.Helper()
	l := listen(t)
	result := make(chan error, 1)
	go func() {
		c, err := server.Listener(l).Accept()
		if err != nil {
			result <- err
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err = io.ReadFull(c, make([]byte, 1))
		result <- err
	}()
	client.InsecureSkipVerify = true
	if len(client.Certificates) > 0 { // whatever the server says that it accepts
		client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &client.Certificates[0], nil }
	}
	if c, err := tls.Dial("tcp", l.Addr().String(), client); err == nil {
		defer c.Close()
		_, _ = c.Write([]byte("x")) // the server says whether it was heard
	}
	return <-result
}

// answer lets a server call a foreign server, which takes any client. The error is the server's.
func answer(t *testing.T, server *peertls.Identity, client *tls.Config) error {
	t.Helper()
	l := listen(t)
	client.ClientAuth = tls.RequestClientCert
	go func() {
		c, err := tls.NewListener(l, client).Accept()
		if err == nil {
			_, _ = c.Write([]byte("x")) // the server says what it heard
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	c, err := server.Dial(t.Context(), l.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

// TestOnlyServersGetIn tries every certificate there is, and such as no authority issues, in both directions.
func TestOnlyServersGetIn(t *testing.T) {
	p, other := authorities(t), authorities(t)
	dir := t.TempDir()
	server := identity(t, p, "one")
	for _, c := range []struct {
		name       string
		cert       *tls.Certificate
		call, back string // what the server says when it is called, and when it calls; empty when that may be
	}{
		{"another server", forged(t, p, pki.PeerCA, nil), "", ""},
		{"another server, as issued", leaf(t, p, p.Peer("two")), "", ""},
		{"administrator", leaf(t, p, p.Admin()), "unknown authority", "failed to verify certificate"},
		{"API server to kubelets", leaf(t, p, p.KubeletClient()), "unknown authority", "failed to verify certificate"},
		{"kubelet", leaf(t, p, p.Node(dir, "n")), "unknown authority", "failed to verify certificate"},
		{"node's network", leaf(t, p, p.Network(dir)), "unknown authority", "failed to verify certificate"},
		{"kubelet's port", leaf(t, p, p.NodeServing(dir, "n", nil)), "unknown authority", "failed to verify certificate"},
		{"API server", leaf(t, p, p.APIServer(pki.APIServerNames{NodeName: "n"})), "unknown authority", "failed to verify certificate"},
		{"front proxy", leaf(t, p, p.FrontProxy()), "unknown authority", "failed to verify certificate"},
		{"a client's that looks like a server's", forged(t, p, pki.ClientCA, nil), "unknown authority", "failed to verify certificate"},
		{"a port's that looks like a server's", forged(t, p, pki.ServerCA, nil), "unknown authority", "failed to verify certificate"},
		{"a front proxy's that looks like a server's", forged(t, p, pki.RequestHeaderCA, nil), "unknown authority", "failed to verify certificate"},
		{"another cluster's server", leaf(t, other, other.Peer("two")), "unknown authority", "failed to verify certificate"},
		{"expired", forged(t, p, pki.PeerCA, dated(-500, -100)), "", ""}, // a clock that is wrong ends no quorum
		{"not yet valid", forged(t, p, pki.PeerCA, dated(100, 500)), "", ""},
		{"made by a clock past its authority's end", forged(t, p, pki.PeerCA, dated(30*365, 19*365)), "", ""},
		{"of the authority's next certificate, which ends later", forged(t, p, pki.PeerCA, dated(-1, 40*365)), "", ""},
		{"expired, a client's", forged(t, p, pki.ClientCA, dated(-500, -100)), "unknown authority", "failed to verify certificate"},
		{"for serving only", forged(t, p, pki.PeerCA, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), "incompatible key usage", ""},
		{"for calling only", forged(t, p, pki.PeerCA, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }), "", "incompatible key usage"},
		{"without a server's name", forged(t, p, pki.PeerCA, func(c *x509.Certificate) { c.DNSNames = []string{"n"} }), "not server.peer", "not server.peer"},
	} {
		for direction, do := range map[string]func(*testing.T, *peertls.Identity, *tls.Config) error{"calls": call, "is called": answer} {
			want := c.call
			if direction == "is called" {
				want = c.back
			}
			err := do(t, server, &tls.Config{Certificates: []tls.Certificate{*c.cert}, NextProtos: []string{peertls.Protocol}})
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s %s: %v, want %q", c.name, direction, err, want)
			}
		}
	}
	testenv.WantError(t, call(t, server, &tls.Config{NextProtos: []string{peertls.Protocol}}), "didn't provide a certificate")
	good := *forged(t, p, pki.PeerCA, nil)
	for name, config := range map[string]*tls.Config{
		"without ALPN": {}, "with another's ALPN": {NextProtos: []string{"h2"}}, "TLS 1.2": {NextProtos: []string{peertls.Protocol}, MaxVersion: tls.VersionTLS12},
	} {
		config.Certificates = []tls.Certificate{good}
		for direction, do := range map[string]func(*testing.T, *peertls.Identity, *tls.Config) error{"calls": call, "is called": answer} {
			if err := do(t, server, config); err == nil || !strings.Contains(err.Error(), "tls: ") {
				t.Errorf("%s, %s: %v", name, direction, err)
			}
		}
	}
}

// TestServersWithFormerAndRenewedAuthority: one server after the other gets a new certificate of the authority.
// Meanwhile they reach one another, before the former one's end and after it.
func TestServersWithFormerAndRenewedAuthority(t *testing.T) {
	for _, left := range []time.Duration{30 * 24 * time.Hour, -24 * time.Hour} {
		folder := t.TempDir()
		with := func(until time.Time, id string) *peertls.Identity {
			for _, s := range pki.Signers() {
				testenv.NoError(t, testca.WriteOwn(folder, string(s), until))
			}
			return identity(t, testenv.Must(pki.Open(pki.Options{Dir: folder, Logger: slog.New(slog.DiscardHandler)}))(t), id)
		}
		former := with(time.Now().Add(left), "one")
		renewed := with(time.Now().AddDate(20, 0, 0), "two")
		for _, pair := range [][2]*peertls.Identity{{former, renewed}, {renewed, former}} {
			l := listen(t)
			answers := make(chan error, 1)
			go func() {
				c, err := pair[1].Listener(l).Accept()
				if err == nil {
					defer c.Close()
					_, err = io.ReadFull(c, make([]byte, 1))
				}
				answers <- err
			}()
			c, err := pair[0].Dial(t.Context(), l.Addr().String())
			if err != nil {
				t.Errorf("%v before the end: calling: %v", left, err)
				continue
			}
			_, _ = c.Write([]byte("x"))
			if err := <-answers; err != nil {
				t.Errorf("%v before the end: called: %v", left, err)
			}
			c.Close()
		}
	}
}

// A renewed certificate serves the next connection; before the first there is none.
func TestRenewedCertificateServesNextConnection(t *testing.T) {
	p := authorities(t)
	server, second := identity(t, p, "one"), identity(t, p, "two")
	l := listen(t)
	serials := make(chan string, 2)
	go func() {
		in := server.Listener(l)
		for range 2 {
			c, err := in.Accept()
			if err != nil {
				return
			}
			tc := c.(*tls.Conn)
			_ = tc.Handshake() // the state says it
			if certs := tc.ConnectionState().PeerCertificates; len(certs) > 0 {
				serials <- certs[0].SerialNumber.String()
			} else {
				serials <- ""
			}
			c.Close()
		}
	}()
	for range 2 {
		c := testenv.Must(second.Dial(t.Context(), l.Addr().String()))(t)
		_, _ = io.Copy(io.Discard, c)
		c.Close()
		renewed := p.Peer("two")
		renewed.Path = filepath.Join(t.TempDir(), "new.pem")
		renewed.Use = second.Use
		testenv.NoError(t, p.Ensure(renewed))
	}
	if a, b := <-serials, <-serials; a == "" || b == "" || a == b {
		t.Errorf("serial numbers %q, %q", a, b)
	}
	none := testenv.Must(peertls.New(peertls.Options{CA: p.CAPEM(pki.PeerCA), Name: pki.PeerName}))(t)
	testenv.ErrorIs(t, answer(t, none, &tls.Config{Certificates: []tls.Certificate{*forged(t, p, pki.PeerCA, nil)}, NextProtos: []string{peertls.Protocol}}), peertls.ErrNoCertificate, "without a certificate")
}
