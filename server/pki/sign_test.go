// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"net"
	"slices"
	"testing"

	"k8s.io/client-go/util/cert"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestSignIgnoresWhatTheRequestAsksFor: the certificate says what the leaf says, whatever the request asks for.
func TestSignIgnoresWhatTheRequestAsksFor(t *testing.T) {
	p := testenv.Must(Open(Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}))(t)
	key := testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	greedy := request(t, key)
	chain := testenv.Must(p.Sign(p.Node("", "n"), greedy))(t)
	certs := testenv.Must(cert.ParseCertsPEM(chain))(t)
	c := certs[0]
	if c.Subject.CommonName != "system:node:n" || !slices.Equal(c.Subject.Organization, []string{"system:nodes"}) || len(c.DNSNames)+len(c.IPAddresses) > 0 ||
		c.IsCA || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || !key.PublicKey.Equal(c.PublicKey) {
		t.Errorf("%+v", c)
	}
	testenv.Check(t, c.CheckSignatureFrom(p.authority(ClientCA).cert()))
	forged := slices.Clone(greedy)
	forged[len(forged)-1] ^= 1
	rsaKey := testenv.Must(rsa.GenerateKey(rand.Reader, 2048))(t)
	for want, bad := range map[string][]byte{"is damaged": []byte("x"), "not signed by its own key": forged, "not ECDSA": request(t, rsaKey)} {
		testenv.WantError(t, testenv.Err(p.Sign(p.Node("", "n"), bad)), want)
	}
}

// request asks for everything.
func request(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der := testenv.Must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "system:admin", Organization: []string{"system:masters"}},
		DNSNames: []string{"kubernetes"}, IPAddresses: []net.IP{net.IPv4(10, 43, 0, 1)},
	}, key))(t)
	return der
}
