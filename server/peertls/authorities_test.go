// SPDX-License-Identifier: Apache-2.0

package peertls_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/server/peertls"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// signed makes the certificate of an authority, which parent signed with its key; without a parent it signs itself.
func signed(t *testing.T, name string, key, parentKey *ecdsa.PrivateKey, parent *x509.Certificate) *x509.Certificate {
	t.Helper()
	serial := testenv.Must(rand.Int(rand.Reader, big.NewInt(1<<60)))(t)
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	if parent == nil {
		parent, parentKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
	testenv.NoError(t, err)
	c, err = x509.ParseCertificate(der)
	testenv.NoError(t, err)
	return c
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	return testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

// operators gives the cluster authorities that an operator made: each an intermediate of the same root. signers are
// their certificates.
func operators(t *testing.T) (p *pki.PKI, signers map[pki.Signer]*x509.Certificate) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tls")
	testenv.NoError(t, os.MkdirAll(dir, 0o700))
	rootKey := newKey(t)
	root := signed(t, "root of a company", rootKey, nil, nil)
	signers = map[pki.Signer]*x509.Certificate{}
	for _, s := range []pki.Signer{pki.ServerCA, pki.ClientCA, pki.RequestHeaderCA, pki.PeerCA} {
		key := newKey(t)
		signers[s] = signed(t, string(s), key, rootKey, root)
		pkcs8 := testenv.Must(x509.MarshalPKCS8PrivateKey(key))(t)
		var chain []byte
		for _, c := range []*x509.Certificate{signers[s], root} {
			chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		for file, content := range map[string][]byte{string(s) + ".crt": chain, string(s) + ".key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})} {
			testenv.NoError(t, os.WriteFile(filepath.Join(dir, file), content, 0o600))
		}
	}
	p = testenv.Must(pki.Open(pki.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)}))(t)
	return p, signers
}

// neitherWay fails unless a server refuses a certificate, of who calls it and of whom it calls.
func neitherWay(t *testing.T, server *peertls.Identity, what string, c *tls.Certificate) {
	t.Helper()
	config := &tls.Config{Certificates: []tls.Certificate{*c}, NextProtos: []string{peertls.Protocol}}
	testenv.Fails(t, call(t, server, config.Clone()), "%s opened a connection to a server's store", what)
	testenv.Fails(t, answer(t, server, config.Clone()), "%s passed for a server's", what)
}

// bothWays fails unless a server takes a certificate.
func bothWays(t *testing.T, server *peertls.Identity, what string, c *tls.Certificate) {
	t.Helper()
	config := &tls.Config{Certificates: []tls.Certificate{*c}, NextProtos: []string{peertls.Protocol}}
	testenv.Check(t, call(t, server, config.Clone()), "%s, calling", what)
	testenv.Check(t, answer(t, server, config.Clone()), "%s, called", what)
}

// Authorities that have a root in common are as far apart as others.
func TestAuthoritiesWithOneRoot(t *testing.T) {
	p, signers := operators(t)
	server := identity(t, p, "one")
	bothWays(t, server, "another server's certificate", leaf(t, p, p.Peer("two")))
	for _, s := range []pki.Signer{pki.ServerCA, pki.ClientCA, pki.RequestHeaderCA} {
		c := forged(t, p, s, nil)
		neitherWay(t, server, "a certificate of "+string(s), c)
		c.Certificate = append(c.Certificate, signers[s].Raw)
		neitherWay(t, server, "a certificate of "+string(s)+", sent with its authority's", c)
	}
}

// What an authority signed that the authority for servers had signed is not a server's.
func TestAuthorityBelowTheServersOwn(t *testing.T) {
	p := authorities(t)
	pair := func(s pki.Signer) (*x509.Certificate, *ecdsa.PrivateKey) {
		c := testenv.Must(tls.LoadX509KeyPair(p.CAFile(s), p.CAKeyFile(s)))(t)
		return c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)
	}
	above, aboveKey := pair(pki.PeerCA)
	client, clientKey := pair(pki.ClientCA)
	server := identity(t, p, "one")
	bothWays(t, server, "another server's certificate", leaf(t, p, p.Peer("two")))
	c := forged(t, p, pki.ClientCA, nil)
	c.Certificate = append(c.Certificate, signed(t, client.Subject.CommonName, clientKey, aboveKey, above).Raw)
	neitherWay(t, server, "a certificate of an authority below the servers' own", c)
}

// resumesSession connects twice and tells whether the second connection took up the first one's session.
func resumesSession(t *testing.T, address string, dial func(address string) (*tls.Conn, error)) bool {
	t.Helper()
	second := false
	for range 2 {
		c := testenv.Must(dial(address))(t)
		_ = c.SetDeadline(time.Now().Add(patience))
		testenv.Must(c.Write([]byte("x")))(t)
		testenv.NoError(t, testenv.Err(io.ReadFull(c, make([]byte, 1)))) // comes after the ticket
		second = c.ConnectionState().DidResume
		c.Close()
	}
	return second
}

// A session that is taken up again shows no certificate, so an expired one would stay good.
func TestNoSessionIsResumed(t *testing.T) {
	p := authorities(t)
	server := identity(t, p, "one")
	cert := leaf(t, p, p.Peer("two"))
	for _, unchanged := range []string{"neither", "listener", "dialer"} {
		foreign := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{peertls.Protocol}, Certificates: []tls.Certificate{*cert},
			ServerName: pki.PeerName, InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(8)}
		l := listen(t)
		in := tls.NewListener(l, foreign)
		if unchanged == "listener" {
			in = server.Listener(l)
		}
		go testenv.Accept(in, func(c net.Conn) {
			_, _ = io.Copy(c, c)
			c.Close()
		})
		dial := func(address string) (*tls.Conn, error) { return tls.Dial("tcp", address, foreign) }
		if unchanged == "dialer" {
			dial = func(address string) (*tls.Conn, error) {
				c, err := server.Dial(t.Context(), address)
				if err != nil {
					return nil, err
				}
				return c.(*tls.Conn), nil
			}
		}
		if got := resumesSession(t, l.Addr().String(), dial); got != (unchanged == "neither") {
			t.Errorf("%s is this server's: a session was resumed: %v", unchanged, got)
		}
	}
}
