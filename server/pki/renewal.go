// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// RenewedAuthority is the result of a renewal of one authority.
type RenewedAuthority struct {
	Name  Signer
	File  string
	Until time.Time
	// Kept says that the certificate was not replaced, since it ends as late as the new one would.
	Kept bool
	// SignedBy is the authority that has to sign the new certificate. It is empty for one that signs itself.
	SignedBy string
}

// RenewAuthorities replaces the certificates of all authorities that sign themselves by new ones of the same key,
// subject and extensions, valid for twenty years. A certificate depends on the former one and on the year alone: so
// servers on which this runs in the same year have the same files. It replaces one file after the other, and may be
// repeated. A running server uses the new certificates after its next start.
func (p *PKI) RenewAuthorities() (out []RenewedAuthority, err error) {
	if err := p.RecordRoot(); err != nil {
		return nil, fmt.Errorf("recording the first certificate of server-ca: %w. Nothing was changed", err)
	}
	for _, s := range Signers() {
		r, err := p.renewAuthority(s)
		if err != nil {
			return out, fmt.Errorf("renewing the authority %s: %w", s, err)
		}
		out = append(out, r)
	}
	return out, nil
}

func (p *PKI) renewAuthority(s Signer) (RenewedAuthority, error) {
	a := p.authority(s)
	former := a.cert()
	r := RenewedAuthority{Name: s, File: p.CAFile(s), Until: former.NotAfter}
	if len(a.chain) > 1 || !bytes.Equal(former.RawIssuer, former.RawSubject) {
		r.SignedBy = former.Issuer.String()
		return r, nil
	}
	next := *former
	next.NotAfter = time.Date(p.now().Year(), time.January, 1, 0, 0, 0, 0, time.UTC).Add(CALifetime + LeafLifetime)
	if !next.NotAfter.After(former.NotAfter) {
		r.Kept = true
		return r, nil
	}
	serial := sha256.Sum256(append(former.SerialNumber.Bytes(), next.NotAfter.String()...))
	next.SerialNumber = new(big.Int).SetBytes(serial[:16])
	if _, ok := a.key.Public().(*rsa.PublicKey); ok {
		next.SignatureAlgorithm = x509.SHA256WithRSA // PSS needs random numbers, and SHA-1 is refused
	}
	// Without a source of random numbers the signature depends on the key and the content alone (RFC 6979).
	der, err := x509.CreateCertificate(nil, &next, &next, former.PublicKey, a.key)
	if err != nil {
		return r, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return r, err
	}
	if err := c.CheckSignatureFrom(former); err != nil {
		return r, errors.Join(errors.New("the former certificate does not verify the new one"), err)
	}
	text, err := cert.EncodeCertificates(c)
	if err != nil {
		return r, err
	}
	r.Until = c.NotAfter
	return r, atomicfile.Write(r.File, text, os.FileMode(0o600))
}
