// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/client-go/util/cert"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/certend"
)

// FirstRootFile, in the folder of the CAs, has the root certificate of server-ca with which the cluster was made. Its
// hash is the cluster's id for good: in tokens, in the store, in snapshots and in what nodes' passwords are derived
// from. So server-ca may get a new certificate of the same key.
const FirstRootFile = "first-root.json"

// firstRootVersion is the version of that file's form.
const firstRootVersion = 1

type firstRoot struct {
	Version int `json:"version"`
	// Certificate is in PEM.
	Certificate string `json:"certificate"`
}

// ReadRoot returns the root that names the cluster whose CAs are in a folder.
func ReadRoot(dir string) (*x509.Certificate, error) {
	file := filepath.Join(dir, FirstRootFile)
	var f firstRoot
	found, err := atomicfile.ReadJSON(file, &f)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w. Nothing was changed: restore it from a backup or from another server", file, err)
	}
	if !found {
		chain, err := cert.CertsFromFile(filepath.Join(dir, string(ServerCA)+".crt"))
		if err != nil {
			return nil, fmt.Errorf("reading the cluster's authority: %w", err)
		}
		return chain[len(chain)-1], nil
	}
	if f.Version != firstRootVersion {
		return nil, fmt.Errorf("%s has the version %d, and this program knows version %d: a newer one wrote it. Nothing was changed: start "+
			"that one", file, f.Version, firstRootVersion)
	}
	certs, err := cert.ParseCertsPEM([]byte(f.Certificate))
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w. Nothing was changed: restore it from a backup or from another server", file, err)
	}
	return certs[0], nil
}

// readRoot sets the root that names the cluster. It refuses one that has another key than server-ca.
func (p *PKI) readRoot() (err error) {
	if p.root, err = ReadRoot(p.dir); err != nil {
		return err
	}
	if !certend.SameKey(p.root.PublicKey, p.authority(ServerCA).root().PublicKey) {
		return fmt.Errorf("%s has another key than the authority with which this cluster was made (%s): no node, token or kubeconfig trusts "+
			"it. Nothing was changed: put the former certificate and key back, or a new certificate of the former key, then start again",
			p.CAFile(ServerCA), filepath.Join(p.dir, FirstRootFile))
	}
	return nil
}

// RecordRoot writes FirstRootFile if it is missing. It may be called once it is certain that server-ca still has its
// first certificate, as after the store has accepted its hash.
func (p *PKI) RecordRoot() error {
	file := filepath.Join(p.dir, FirstRootFile)
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	text, err := cert.EncodeCertificates(p.root)
	if err != nil {
		return err
	}
	return atomicfile.WriteJSON(file, firstRoot{firstRootVersion, string(text)}, 0o600)
}

// Root returns the certificate that names the cluster: the root of server-ca when the cluster was made. Join tokens pin
// it. The present root has the same key.
func (p *PKI) Root() *x509.Certificate { return p.root }

// rootRenewed reports whether server-ca has another root than its first one.
func (p *PKI) rootRenewed() bool { return !p.root.Equal(p.authority(ServerCA).root()) }

// NodesServerCA returns server-ca's chain for nodes, in PEM. After a renewal it ends with the first root, by which
// nodes know the cluster.
func (p *PKI) NodesServerCA() []byte {
	present := p.CAPEM(ServerCA)
	if !p.rootRenewed() {
		return present
	}
	return slices.Concat(present, []byte("\n"), pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: p.root.Raw}))
}

// RootRenewed reports whether server-ca in a folder has another root than its first one. Only then do other machines
// need FirstRootFile: servers of earlier versions refuse it.
func RootRenewed(dir string) (bool, error) {
	first, err := ReadRoot(dir)
	if err != nil {
		return false, err
	}
	chain, err := cert.CertsFromFile(filepath.Join(dir, string(ServerCA)+".crt"))
	if err != nil {
		return false, fmt.Errorf("reading the cluster's authority: %w", err)
	}
	return !first.Equal(chain[len(chain)-1]), nil
}

// KeepRenewed copies the authorities' certificates of a folder into another one where they have the same key and end
// later than those there, and FirstRootFile with them. Both folders are of the same cluster.
func KeepRenewed(from, to string) error {
	for _, s := range Signers() {
		name := string(s) + ".crt"
		next, err := os.ReadFile(filepath.Join(from, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		have, err2 := os.ReadFile(filepath.Join(to, name))
		if err := errors.Join(err, err2); err != nil {
			return fmt.Errorf("comparing the authorities' certificates: %w", err)
		}
		if !certend.IsRenewal(have, next) || !bytes.Equal(certend.Later(next, have), next) {
			continue
		}
		if s == ServerCA { // before the certificate: it names the cluster from then on
			if err := keepRoot(from, to); err != nil {
				return err
			}
		}
		if err := atomicfile.Write(filepath.Join(to, name), next, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// keepRoot writes FirstRootFile for the cluster of one folder into another one.
func keepRoot(from, to string) error {
	root, err := ReadRoot(from)
	if err != nil {
		return err
	}
	return (&PKI{dir: to, root: root}).RecordRoot()
}

// checkReplacement refuses a certificate that was put in place of an authority's former one and cannot replace it. The
// leaf of this authority that the server has shows the former one's subject and, since no leaf outlives its authority,
// a time at which that was still valid.
func (p *PKI) checkReplacement(s Signer, a *authority, leaf string) error {
	chain, err := cert.CertsFromFile(filepath.Join(p.dir, leaf))
	if err != nil || a.cert().CheckSignature(chain[0].SignatureAlgorithm, chain[0].RawTBSCertificate, chain[0].Signature) != nil {
		return nil // there is none, or a new one is made
	}
	refuse := func(what string) error {
		return fmt.Errorf("the certificate in %s cannot replace the authority's former one: %s. Nothing was changed: put the former one back, "+
			"or make another one with the key %s", p.CAFile(s), what, p.CAKeyFile(s))
	}
	if !bytes.Equal(chain[0].RawIssuer, a.cert().RawSubject) {
		return refuse(fmt.Sprintf("its subject is %s, and it has to be %s, since the certificates that were signed name that", a.cert().Subject,
			chain[0].Issuer))
	}
	signed, roots := *chain[0], x509.NewCertPool()
	signed.NotBefore, signed.NotAfter = a.cert().NotBefore, a.cert().NotAfter // dates are another matter
	roots.AddCert(a.cert())
	if _, err := signed.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: signed.NotAfter, KeyUsages: signed.ExtKeyUsage}); err != nil {
		return refuse(fmt.Sprintf("clients would refuse what was signed, such as %s: %v", leaf, err))
	}
	if end := a.cert().NotAfter; p.now().After(end) && chain[0].NotAfter.After(end) {
		return refuse("it ended on " + end.Format("2006-01-02 15:04 UTC") + ", before the former one")
	}
	return nil
}
