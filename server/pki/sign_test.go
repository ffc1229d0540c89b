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
	"strings"
	"testing"

	"k8s.io/client-go/util/cert"
)

// TestSign: the certificate says what the leaf says, whatever the request asks for.
func TestSign(t *testing.T) {
	p, err := Open(Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	greedy := request(t, key)
	chain, err := p.Sign(p.Node("", "n"), greedy)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := cert.ParseCertsPEM(chain)
	if err != nil {
		t.Fatal(err)
	}
	c := certs[0]
	if c.Subject.CommonName != "system:node:n" || !slices.Equal(c.Subject.Organization, []string{"system:nodes"}) || len(c.DNSNames)+len(c.IPAddresses) > 0 ||
		c.IsCA || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || !key.PublicKey.Equal(c.PublicKey) {
		t.Errorf("%+v", c)
	}
	if err := c.CheckSignatureFrom(p.client.cert()); err != nil {
		t.Error(err)
	}
	forged := slices.Clone(greedy)
	forged[len(forged)-1] ^= 1
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for want, bad := range map[string][]byte{"is damaged": []byte("x"), "not signed by its own key": forged, "not ECDSA": request(t, rsaKey)} {
		if _, err := p.Sign(p.Node("", "n"), bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// request asks for everything.
func request(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "system:admin", Organization: []string{"system:masters"}},
		DNSNames: []string{"kubernetes"}, IPAddresses: []net.IP{net.IPv4(10, 43, 0, 1)},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
