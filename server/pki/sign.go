// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"

	"k8s.io/client-go/util/cert"
)

// Sign issues a leaf for another machine's key. request is that machine's certificate request (PKCS #10, DER). The
// certificate's content comes from l. Only the key is taken from the request, and its signature proves that the
// requester has the private key. Sign returns the PEM of the chain. It does not use l.Path and l.Use.
func (p *PKI) Sign(l Leaf, request []byte) ([]byte, error) {
	r, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, fmt.Errorf("the certificate request for %s is damaged: %w", l.Name, err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the certificate request for %s is not signed by its own key: %w", l.Name, err)
	}
	if _, ok := r.PublicKey.(*ecdsa.PublicKey); !ok {
		return nil, fmt.Errorf("the certificate request for %s has a key of type %T, not ECDSA", l.Name, r.PublicKey)
	}
	chain, err := p.sign(&l, r.PublicKey)
	if err != nil {
		return nil, err
	}
	return cert.EncodeCertificates(chain...)
}

// sign issues the certificate of a leaf for a key and returns it with its chain.
func (p *PKI) sign(l *Leaf, public crypto.PublicKey) ([]*x509.Certificate, error) {
	a := p.authority(l.Signer)
	notBefore, notAfter := p.validity(a)
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: l.CommonName, Organization: l.Organizations},
		DNSNames:              l.DNSNames,
		IPAddresses:           l.IPs,
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           l.usages(),
		BasicConstraintsValid: true,
	}
	if l.Identity.Node != "" {
		template.URIs = []*url.URL{l.Identity.URI()}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert(), public, a.key)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of %s: %w", l.Name, err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of %s: %w", l.Name, err)
	}
	return append([]*x509.Certificate{c}, a.intermediates()...), nil
}
