// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
)

// Leaf describes a certificate that should exist. Its file contains the chain and then the key. So a renewal is one
// rename, and a reader never pairs a new certificate with an old key. Go's TLS, the API server, the kubelet and
// client-go accept the same path as certificate file and as key file.
type Leaf struct {
	// Name is the leaf's name in log lines and in the status.
	Name string
	// Path is the path of the leaf's file, which has mode 0600.
	Path string
	// Signer decides the certificate's use: server-ca and kubelet-ca make serving certificates, peer-ca certificates
	// for clients and servers, the others client certificates.
	Signer Signer
	// CommonName is the user name of a client certificate.
	CommonName string
	// Organizations are the groups of a client certificate.
	Organizations []string
	// DNSNames and IPs are the names and addresses in a serving certificate.
	DNSNames []string
	IPs      []net.IP
	// Identity says to which machine a node's client certificate is issued. Other certificates have none.
	Identity nodecreds.Identity
	// Use, when set, is called with the PEM of chain and key when the leaf is first ensured and after each renewal, for
	// owners of a copy. Its error is reported like a failed renewal, and the call is repeated.
	Use func(certPEM, keyPEM []byte) error
}

// Pair is the content of a leaf's file.
type Pair struct {
	Chain []*x509.Certificate
	Cert  []byte // PEM
	Key   []byte // PEM
}

// For returns a client certificate's leaf for the machine of a node, after so many revocations of nodes with that name.
func (l Leaf) For(node string, generation uint64) Leaf {
	l.Identity = nodecreds.Identity{Node: node, Generation: generation}
	return l
}

func (l *Leaf) usages() []x509.ExtKeyUsage {
	switch l.Signer {
	case ServerCA, KubeletCA:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	case PeerCA: // servers are both clients and servers of one another
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
}

// load reads a leaf's file. It returns fs.ErrNotExist if the file is missing.
func (l *Leaf) load() (*Pair, error) {
	data, err := os.ReadFile(l.Path)
	if err != nil {
		return nil, err
	}
	// tls checks that the blocks parse, and that the key belongs to the certificate.
	if _, err := tls.X509KeyPair(data, data); err != nil {
		return nil, err
	}
	chain, err := cert.ParseCertsPEM(data)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, err
	}
	return newPair(chain, key)
}

func newPair(chain []*x509.Certificate, key any) (*Pair, error) {
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the key is a %T, not ECDSA", key)
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(k)
	if err != nil {
		return nil, err
	}
	certPEM, err := cert.EncodeCertificates(chain...)
	if err != nil {
		return nil, err
	}
	return &Pair{Chain: chain, Cert: certPEM, Key: keyPEM}, nil
}

// unfit returns why a loaded leaf has to be replaced, or an empty string.
func (p *PKI) unfit(l *Leaf, pair *Pair) string {
	a, c := p.authority(l.Signer), pair.Chain[0]
	if err := c.CheckSignatureFrom(a.cert()); err != nil {
		return "it was signed by another authority"
	}
	if !bytes.Equal(c.RawIssuer, a.cert().RawSubject) || !bytes.Equal(c.AuthorityKeyId, a.cert().SubjectKeyId) {
		return "the authority's certificate was renewed" // some verifiers compare these
	}
	if !slices.EqualFunc(pair.Chain[1:], a.intermediates(), (*x509.Certificate).Equal) {
		return "the authority's chain changed"
	}
	if c.Subject.CommonName != l.CommonName || !equalSets(c.Subject.Organization, l.Organizations) {
		return "its identity changed"
	}
	if nodecreds.IdentityOf(c) != l.Identity {
		return "it does not name its machine"
	}
	if !equalSets(c.DNSNames, l.DNSNames) || !equalSets(clusterconfig.Strings(c.IPAddresses), clusterconfig.Strings(l.IPs)) {
		return "the names and addresses it covers changed"
	}
	if !slices.Equal(c.ExtKeyUsage, l.usages()) {
		return "it is for another use"
	}
	return p.stale(a, c)
}

// stale returns why a leaf's dates are not acceptable, or an empty string.
func (p *PKI) stale(a *authority, c *x509.Certificate) string {
	now := p.now()
	switch {
	case now.Before(c.NotBefore):
		return "by this machine's clock it is not valid yet"
	case c.NotAfter.Equal(a.cert().NotAfter):
		return "" // it cannot outlive its CA
	case now.After(c.NotAfter):
		return "it has expired"
	case c.NotAfter.Sub(now) < renewBefore:
		return "it expires on " + c.NotAfter.Format(time.DateOnly)
	case c.NotBefore.Equal(epoch) && !p.clockIsWrong():
		return "it was dated while the clock was wrong"
	}
	return ""
}

// validity chooses the dates of a new leaf. With a wrong clock the leaf is valid both by that clock and after the clock
// is set, however old this program is by then. It is issued again once the clock is right.
func (p *PKI) validity(a *authority) (notBefore, notAfter time.Time) {
	now := p.now()
	if now.Before(p.floor) {
		notBefore, notAfter = epoch, p.floor.Add(CALifetime/2)
	} else {
		notBefore, notAfter = now.Add(-Backdate), now.Add(LeafLifetime)
	}
	if end := a.cert().NotAfter; notAfter.After(end) {
		notAfter = end
	}
	return notBefore.Truncate(time.Second), notAfter.Truncate(time.Second)
}

// issue makes a leaf with a new key and writes its file.
func (p *PKI) issue(l *Leaf) (*Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key for %s: %w", l.Name, err)
	}
	chain, err := p.sign(l, key.Public())
	if err != nil {
		return nil, err
	}
	pair, err := newPair(chain, key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(l.Path), 0o700); err != nil {
		return nil, fmt.Errorf("making the folder for the certificate of %s: %w", l.Name, err)
	}
	return pair, atomicfile.Write(l.Path, slices.Concat(pair.Cert, pair.Key), 0o600)
}

// current returns the leaf in its file. It issues the leaf again if it is missing, damaged or unfit.
func (p *PKI) current(l *Leaf) (*Pair, error) {
	pair, err := l.load()
	var why string
	switch {
	case errors.Is(err, fs.ErrNotExist):
		why = "there was none"
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("reading the certificate of %s: %w", l.Name, err)
	case err != nil:
		why = "its file was damaged: " + err.Error()
	default:
		why = p.unfit(l, pair)
	}
	if why == "" {
		return pair, nil
	}
	if pair, err = p.issue(l); err != nil {
		return nil, err
	}
	p.log.Info("issued a certificate", "for", l.Name, "because", why, "until", pair.Chain[0].NotAfter)
	return pair, nil
}

func equalSets(a, b []string) bool { return sets.New(a...).Equal(sets.New(b...)) }
