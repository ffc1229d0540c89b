// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/certend"
)

// Signer names a CA. It is also the base name of the CA's files.
type Signer string

// These are the cluster's CAs. The package comment says why they are separate.
const (
	ServerCA        Signer = "server-ca"
	ClientCA        Signer = "client-ca"
	RequestHeaderCA Signer = "request-header-ca"
	PeerCA          Signer = "peer-ca"
	KubeletCA       Signer = "kubelet-ca"
)

// Signers returns all CAs.
func Signers() []Signer { return []Signer{ServerCA, ClientCA, RequestHeaderCA, PeerCA, KubeletCA} }

// authority is a loaded CA. chain[0] signs. The other certificates lead to the root.
type authority struct {
	chain []*x509.Certificate
	pem   []byte
	key   crypto.Signer
}

func (a *authority) cert() *x509.Certificate { return a.chain[0] }

func (a *authority) root() *x509.Certificate { return a.chain[len(a.chain)-1] }

// intermediates returns the certificates that are sent after a leaf: all but a self-signed root, which verifiers have.
func (a *authority) intermediates() []*x509.Certificate {
	if bytes.Equal(a.root().RawIssuer, a.root().RawSubject) {
		return a.chain[:len(a.chain)-1]
	}
	return a.chain
}

func (p *PKI) loadOrCreateAuthority(s Signer, established bool) (*authority, error) {
	certFile, keyFile := p.CAFile(s), p.CAKeyFile(s)
	certPEM, certErr := os.ReadFile(certFile)
	keyPEM, keyErr := os.ReadFile(keyFile)
	if err := notMissing(certErr, keyErr); err != nil {
		return nil, fmt.Errorf("reading the certificate authority %s: %w", s, err)
	}
	switch {
	case certErr == nil && keyErr == nil:
		a, err := parseAuthority(certPEM, keyPEM)
		if err != nil {
			return nil, fmt.Errorf("the certificate authority in %s and %s cannot be used: %w. Nothing was changed. "+
				"Every node and kubeconfig of this cluster trusts it, so it is not replaced: restore both files from a "+
				"backup, then start again", certFile, keyFile, err)
		}
		if err := p.checkReplacement(s, a, ownLeaf[s]); err != nil {
			return nil, err
		}
		p.adviseAboutDates(s, a)
		return a, p.restrictMode(keyFile)
	case certErr == nil:
		return nil, fmt.Errorf("%s is there but its key %s is not, and certificates cannot be issued without it. "+
			"Nothing was changed: put the key there (or, for a new cluster, remove %s), then start again",
			certFile, keyFile, certFile)
	case established:
		return nil, fmt.Errorf("%s is missing, although this cluster has data. Nothing was changed. Every node and "+
			"kubeconfig trusts that certificate authority, so no new one is made: restore %s and %s from a backup, "+
			"then start again", certFile, certFile, keyFile)
	}
	// Only the key exists when the first start was interrupted between the two files. It may also be an operator's, so
	// it is used and not overwritten.
	key, err := p.loadOrCreateKey(keyFile, keyPEM, keyErr == nil)
	if err != nil {
		return nil, err
	}
	return p.createAuthority(s, key)
}

// loadOrCreateKey returns the key in data if it exists. Otherwise it makes a key and writes it to file.
func (p *PKI) loadOrCreateKey(file string, data []byte, exists bool) (crypto.Signer, error) {
	if exists {
		key, err := parseKey(data)
		if err != nil {
			return nil, fmt.Errorf("the key in %s cannot be used: %w. Nothing was changed: restore the file from a "+
				"backup (or, for a new cluster, remove it), then start again", file, err)
		}
		return key, p.restrictMode(file)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return key, atomicfile.Write(file, keyPEM, 0o600)
}

func (p *PKI) createAuthority(s Signer, key crypto.Signer) (*authority, error) {
	from := p.now()
	if from.Before(p.floor) {
		from = p.floor
	}
	template := &x509.Certificate{
		// The date distinguishes the CAs of two clusters in error messages.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("coracle-%s@%d", s, from.Unix())},
		NotBefore:             epoch, // the clock of a verifier may be at its start
		NotAfter:              from.Add(CALifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the certificate authority %s: %w", s, err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making the certificate authority %s: %w", s, err)
	}
	a := &authority{chain: []*x509.Certificate{c}, key: key}
	if a.pem, err = cert.EncodeCertificates(c); err != nil {
		return nil, err
	}
	if err := atomicfile.Write(p.CAFile(s), a.pem, 0o600); err != nil {
		return nil, err
	}
	p.log.Info("made a certificate authority", "name", s, "file", p.CAFile(s), "until", c.NotAfter)
	return a, nil
}

// checkKubeletCA refuses an operator's CA by which a node's certificate would be accepted as an API server's.
func (p *PKI) checkKubeletCA() error {
	server, kubelet := p.authority(ServerCA), p.authority(KubeletCA)
	known := func(c *x509.Certificate) bool {
		return slices.ContainsFunc(server.chain, func(s *x509.Certificate) bool { return c.Equal(s) || c.CheckSignatureFrom(s) == nil })
	}
	if slices.ContainsFunc(kubelet.chain, known) || certend.SameKey(kubelet.key.Public(), server.key.Public()) {
		return fmt.Errorf("what %s signs is trusted wherever %s is trusted: a node's certificate would pass for an API server's. Nothing "+
			"was changed: remove %[1]s and its key before the first start, and another pair is made that has nothing to do with that",
			p.CAFile(KubeletCA), p.CAFile(ServerCA))
	}
	return nil
}

func parseAuthority(certPEM, keyPEM []byte) (*authority, error) {
	chain, err := cert.ParseCertsPEM(certPEM)
	if err != nil {
		return nil, fmt.Errorf("the certificate is damaged: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("the key is damaged: %w", err)
	}
	if !chain[0].IsCA {
		return nil, errors.New("the first certificate in the file is not one of an authority")
	}
	if !certend.SameKey(chain[0].PublicKey, key.Public()) {
		return nil, errors.New("certificate and key do not belong together; a new certificate has to be made with the key that is there")
	}
	for i, c := range chain[1:] {
		if err := chain[i].CheckSignatureFrom(c); err != nil {
			return nil, fmt.Errorf("certificate %d in the file did not sign the one before it: %w", i+2, err)
		}
	}
	return &authority{chain: chain, pem: certPEM, key: key}, nil
}

// adviseAboutDates only warns: a server with a CA near its expiry can still be helped.
func (p *PKI) adviseAboutDates(s Signer, a *authority) {
	now := p.now()
	for _, c := range a.chain {
		switch {
		case now.Before(c.NotBefore):
			p.log.Warn("by this machine's clock a certificate authority is not valid yet, and connections will be "+
				"refused until the clock is right: set it (NTP)", "name", s, "clock", now, "validFrom", c.NotBefore)
		case now.After(c.NotAfter):
			p.log.Error("by this machine's clock a certificate authority has expired; connections will be refused. If "+
				"the clock is right: "+RenewalHint, "name", s, "clock", now, "expired", c.NotAfter)
		case now.Add(LeafLifetime).After(c.NotAfter):
			p.log.Warn("a certificate authority expires within a year", "name", s, "expires", c.NotAfter)
		}
	}
}

// RenewalHint says how to renew an authority.
const RenewalHint = "renew it on each server with `coracle certificate renew-authority`, then restart coracle there (docs/security.md)"

// Certificates returns the authorities' certificates with their names. They do not renew themselves.
func (p *PKI) Certificates() (out []certend.Certificate) {
	for _, s := range Signers() {
		out = append(out, certend.Named(string(s), p.authority(s).chain)...)
	}
	return out
}

// Ending says which authorities end soon or have ended, and what to do. It returns "" if there are none.
func (p *PKI) Ending() string {
	now := p.now()
	words := certend.Words(certend.Ending(p.Certificates(), now), now)
	if words == "" {
		return ""
	}
	return "after its end an authority's certificates are refused: the API, kubectl and nodes do not work, and pods keep running. " +
		words + ". " + strings.ToUpper(RenewalHint[:1]) + RenewalHint[1:]
}

func (p *PKI) ensureServiceAccountKey(established bool) error {
	file := p.ServiceAccountKeyFile()
	data, err := os.ReadFile(file)
	if err := notMissing(err); err != nil {
		return fmt.Errorf("reading the ServiceAccount key: %w", err)
	}
	if err != nil && established {
		return fmt.Errorf("%s is missing, although this cluster has data. Nothing was changed. With another key "+
			"every ServiceAccount token would stop working: restore the file from a backup, then start again (or, if "+
			"it is lost for good, make a key there: openssl ecparam -name prime256v1 -genkey -noout -out %s)", file, file)
	}
	_, err = p.loadOrCreateKey(file, data, err == nil)
	return err
}

// restrictMode removes the permissions of group and others from an imported key.
func (p *PKI) restrictMode(file string) error {
	fi, err := os.Stat(file)
	if err != nil {
		return err
	}
	if fi.Mode().Perm()&0o077 == 0 {
		return nil
	}
	p.log.Warn("a private key was readable by others; its mode is now 0600", "file", file, "was", fi.Mode().Perm())
	return os.Chmod(file, 0o600)
}

// restrictCertificateModes does the same for the CAs' certificates. They are not secret. But no other user can read the
// folder, and audits (CIS 1.1.20) require mode 0600 for each. Earlier versions made them 0644.
func (p *PKI) restrictCertificateModes() error {
	files, err := filepath.Glob(filepath.Join(p.dir, "*.crt"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := os.Chmod(file, 0o600); err != nil {
			return fmt.Errorf("closing a certificate's file to other users: %w", err)
		}
	}
	return nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	k, err := keyutil.ParsePrivateKeyPEM(data)
	if err != nil {
		return nil, err
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", k)
	}
	return s, nil
}

// notMissing returns the first error other than "no such file".
func notMissing(errs ...error) error {
	for _, err := range errs {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
