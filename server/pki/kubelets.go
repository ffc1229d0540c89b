// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// kubeletCALabel separates the key of kubelet-ca from whatever else may be derived from the same secret one day.
const kubeletCALabel = "coracle kubelet-ca 1"

// KubeletTrustFile holds what API servers trust in a kubelet's serving certificate: kubelet-ca, and for a year what
// FormerKubeletCAFile has.
func (p *PKI) KubeletTrustFile() string { return filepath.Join(p.dir, "kubelet-trust.crt") }

// FormerKubeletCAFile is there in clusters that are older than kubelet-ca, in which server-ca signed kubelets' serving
// certificates. It is server-ca once more, with a year to live: no such certificate is valid for longer.
func (p *PKI) FormerKubeletCAFile() string { return filepath.Join(p.dir, FormerKubeletCAName) }

// FormerKubeletCAName is the name of that file.
const FormerKubeletCAName = "kubelet-ca-before.crt"

// openKubeletCA loads kubelet-ca or makes it, and writes what API servers trust.
//
// Its key is derived from that of peer-ca (HKDF, RFC 5869), and the rest of it from peer-ca's certificate: every server
// that starts makes the same one, byte for byte, whichever is the first to, and none has to be told. An operator's own
// pair is used as it is.
func (p *PKI) openKubeletCA(established bool) error {
	_, certErr := os.Stat(p.CAFile(KubeletCA))
	_, keyErr := os.Stat(p.CAKeyFile(KubeletCA))
	missing := errors.Is(certErr, fs.ErrNotExist)
	if missing && errors.Is(keyErr, fs.ErrNotExist) {
		if err := p.writeDerivedKubeletCAKey(); err != nil {
			return err
		}
	}
	var err error
	if missing {
		err = p.makeKubeletCA(established)
	} else {
		p.kubelet, err = p.loadOrCreateAuthority(KubeletCA, established)
	}
	if err != nil {
		return err
	}
	if err := p.checkKubeletCA(); err != nil {
		return err
	}
	trust := slices.Clone(p.kubelet.pem)
	before, err := os.ReadFile(p.FormerKubeletCAFile())
	if err := notMissing(err); err != nil {
		return fmt.Errorf("reading the former authority of kubelets: %w", err)
	}
	_, err = atomicfile.WriteIfDifferent(p.KubeletTrustFile(), append(trust, before...), 0o600)
	return err
}

func (p *PKI) derivedKubeletCAKey() (*ecdsa.PrivateKey, error) {
	secret, err := x509.MarshalPKCS8PrivateKey(p.peer.key)
	if err != nil {
		return nil, fmt.Errorf("deriving the key of %s: %w", KubeletCA, err)
	}
	for i := 0; ; i++ { // a value that is no key of the curve comes once in 2^32
		scalar, err := hkdf.Key(sha256.New, secret, nil, kubeletCALabel+" key "+strconv.Itoa(i), 32)
		if err != nil {
			return nil, fmt.Errorf("deriving the key of %s: %w", KubeletCA, err)
		}
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar); err == nil {
			return key, nil
		}
	}
}

func (p *PKI) writeDerivedKubeletCAKey() error {
	key, err := p.derivedKubeletCAKey()
	if err != nil {
		return err
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return fmt.Errorf("encoding a key: %w", err)
	}
	return atomicfile.Write(p.CAKeyFile(KubeletCA), keyPEM, 0o600)
}

// OwnKubeletCA says that kubelet-ca is an operator's: other servers cannot make it themselves.
func (p *PKI) OwnKubeletCA() bool {
	key, err := p.derivedKubeletCAKey()
	return err != nil || !samePublicKey(p.kubelet.key.Public(), key.Public())
}

// makeKubeletCA makes the certificate for the key in the file. In a cluster that is older than this authority it first
// makes what lets servers trust the kubelets' present certificates: the certificate comes last, so that an interrupted
// start is repeated.
func (p *PKI) makeKubeletCA(established bool) error {
	data, err := os.ReadFile(p.CAKeyFile(KubeletCA))
	if err != nil {
		return fmt.Errorf("reading the key of %s: %w", KubeletCA, err)
	}
	key, err := parseKey(data)
	if err != nil {
		return fmt.Errorf("the key in %s cannot be used: %w. Nothing was changed: restore the file from a backup, or remove it, then "+
			"start again",
			p.CAKeyFile(KubeletCA), err)
	}
	if established && !exists(p.FormerKubeletCAFile()) {
		if err := p.keepFormerKubeletCA(); err != nil {
			return err
		}
	}
	parent := p.peer.cert()
	serial := sha256.Sum256(slices.Concat([]byte(kubeletCALabel+" serial "), parent.Raw))
	c, err := selfSigned(&x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:15]),
		Subject:      pkix.Name{CommonName: fmt.Sprintf("coracle-%s@%d", KubeletCA, parent.NotAfter.Add(-CALifetime).Unix())},
		NotBefore:    epoch,
		NotAfter:     parent.NotAfter,
	}, key, true)
	if err != nil {
		return err
	}
	a := &authority{chain: []*x509.Certificate{c}, key: key}
	if a.pem, err = cert.EncodeCertificates(c); err != nil {
		return err
	}
	if err := atomicfile.Write(p.CAFile(KubeletCA), a.pem, 0o600); err != nil {
		return err
	}
	p.log.Info("made a certificate authority", "name", KubeletCA, "file", p.CAFile(KubeletCA), "until", c.NotAfter)
	p.kubelet = a
	return nil
}

// keepFormerKubeletCA writes server-ca's key and name into a certificate of their own that is valid for as long as the
// last leaf which that signed for a kubelet.
func (p *PKI) keepFormerKubeletCA() error {
	serial, err := newSerial()
	if err != nil {
		return err
	}
	now := p.now()
	if now.Before(p.floor) {
		now = p.floor
	}
	of := p.server.cert()
	c, err := selfSigned(&x509.Certificate{
		SerialNumber: serial, RawSubject: of.RawSubject, SubjectKeyId: of.SubjectKeyId, NotBefore: epoch,
		NotAfter: now.Add(LeafLifetime).Truncate(1e9),
	}, p.server.key, false)
	if err != nil {
		return err
	}
	data, err := cert.EncodeCertificates(c)
	if err != nil {
		return err
	}
	return atomicfile.Write(p.FormerKubeletCAFile(), data, 0o600)
}

// selfSigned makes an authority's certificate of a template with name and dates. One that is deterministic has an
// ECDSA signature by RFC 6979.
func selfSigned(template *x509.Certificate, key crypto.Signer, deterministic bool) (*x509.Certificate, error) {
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign
	template.BasicConstraintsValid, template.IsCA = true, true
	random := rand.Reader
	if deterministic {
		random = nil
	}
	der, err := x509.CreateCertificate(random, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the certificate of an authority: %w", err)
	}
	return x509.ParseCertificate(der)
}

// checkKubeletCA refuses a pair of an operator's with which a node's certificate would pass for an API server's.
func (p *PKI) checkKubeletCA() error {
	known := func(c *x509.Certificate) bool {
		return slices.ContainsFunc(p.server.chain, func(s *x509.Certificate) bool { return c.Equal(s) || c.CheckSignatureFrom(s) == nil })
	}
	if slices.ContainsFunc(p.kubelet.chain, known) || samePublicKey(p.kubelet.key.Public(), p.server.key.Public()) {
		return fmt.Errorf("what %s signs is trusted by whoever trusts %s: a node's certificate would pass for an API server's. Nothing "+
			"was changed: "+
			"remove %[1]s and its key, and another pair is made that has nothing to do with that", p.CAFile(KubeletCA), p.CAFile(ServerCA))
	}
	return nil
}

// FormerKubeletCA is the content of FormerKubeletCAFile, for a server that joins; none when there is no need for it any
// more.
func (p *PKI) FormerKubeletCA() []byte {
	data, err := os.ReadFile(p.FormerKubeletCAFile())
	if err != nil {
		return nil
	}
	certs, err := cert.ParseCertsPEM(data)
	if err != nil || p.now().After(certs[0].NotAfter) {
		return nil
	}
	return data
}

// KeepFormerKubeletCA writes what a server's FormerKubeletCA gave into the folder of one that joins.
func KeepFormerKubeletCA(dir string, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if _, err := cert.ParseCertsPEM(data); err != nil {
		return fmt.Errorf("the former authority of kubelets, as the server gave it: %w", err)
	}
	return atomicfile.Write((&PKI{dir: dir}).FormerKubeletCAFile(), data, 0o600)
}
