// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// verifies says whether somebody who trusts the certificates in PEM takes a leaf for a server at a name.
func verifies(t *testing.T, trusted []byte, c *x509.Certificate, name string, at time.Time) bool {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(trusted) {
		t.Fatal("no certificate to trust")
	}
	_, err := c.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: at})
	return err == nil
}

// A node that was given a certificate with the name and the address of an API server does not pass for one, and an API
// server takes a kubelet's certificate of kubelet-ca alone.
func TestNodesDoNotPassForAPIServers(t *testing.T) {
	p, _ := open(t, t.TempDir(), today)
	l := p.NodeServing(t.TempDir(), "kubernetes", []net.IP{net.ParseIP("10.43.0.1")})
	api := apiServer(p)
	for _, l := range []Leaf{l, api} {
		testenv.NoError(t, p.Ensure(l))
	}
	trust := readFile(t, p.KubeletTrustFile())
	for _, name := range []string{"kubernetes", "10.43.0.1"} {
		testenv.False(t, verifies(t, p.CAPEM(ServerCA), leafCert(t, l), name, today), "clients take a node for the API server at %s", name)
		testenv.True(t, verifies(t, trust, leafCert(t, l), name, today), "API servers do not take the node for the one at %s", name)
	}
	testenv.False(t, verifies(t, trust, leafCert(t, api), "kubernetes", today), "in a new cluster API servers trust server-ca for kubelets")
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	return testenv.Must(os.ReadFile(path))(t)
}

// copied is a folder with some of the files of another one.
func copied(t *testing.T, from string, names ...string) string {
	t.Helper()
	to := t.TempDir()
	for _, name := range names {
		testenv.NoError(t, os.WriteFile(filepath.Join(to, name), readFile(t, filepath.Join(from, name)), 0o600))
	}
	return to
}

var beforeKubeletCA = []string{"server-ca.crt", "server-ca.key", "client-ca.crt", "client-ca.key", "request-header-ca.crt", "request-header-ca.key",
	"peer-ca.crt", "peer-ca.key", "peer.pem", ServiceAccountKey}

// The servers of a cluster that is older than kubelet-ca are updated one after the other, and without a word between
// them they have the same one. What server-ca signed for kubelets before is good for the rest of its year and no
// longer.
func TestClusterFromBeforeKubeletCA(t *testing.T) {
	dir := t.TempDir()
	p, _ := open(t, dir, today)
	testenv.NoError(t, p.Ensure(p.Peer("boat-1")))
	old := p.NodeServing(t.TempDir(), "boat", nil)
	old.Signer = ServerCA
	testenv.NoError(t, p.Ensure(old))
	var first *PKI
	for i, at := range []time.Time{today, today.AddDate(0, 0, 3), today.AddDate(0, 1, 0)} {
		o, _ := options(copied(t, dir, beforeKubeletCA...), at)
		o.Established = true
		q := testenv.Must(Open(o))(t)
		if first == nil {
			first = q
		}
		for _, name := range []string{"kubelet-ca.crt", "kubelet-ca.key"} {
			testenv.True(t, bytes.Equal(readFile(t, filepath.Join(q.Dir(), name)), readFile(t, filepath.Join(first.Dir(), name))), "server %d has another %s", i, name)
		}
		trust := readFile(t, q.KubeletTrustFile())
		testenv.True(t, verifies(t, trust, leafCert(t, old), "boat", at), "server %d does not take the node's certificate", i)
		testenv.False(t, q.OwnKubeletCA(), "the authority that it made is taken for an operator's")
		testenv.NoError(t, q.Ensure(q.NodeServing(filepath.Dir(old.Path), "boat", nil)))
		testenv.True(t, verifies(t, first.CAPEM(KubeletCA), leafCert(t, old), "boat", at), "the server's own node keeps the certificate of server-ca")
		old = p.NodeServing(t.TempDir(), "boat", nil)
		old.Signer = ServerCA
		testenv.NoError(t, p.Ensure(old))
	}
	// One that joins gets it from them, as long as it is good for anything.
	joined := t.TempDir()
	testenv.NoError(t, KeepFormerKubeletCA(joined, first.FormerKubeletCA()))
	if got := readFile(t, filepath.Join(joined, "kubelet-ca-before.crt")); !bytes.Equal(got, first.FormerKubeletCA()) {
		t.Errorf("%s", got)
	}
	later, _ := open(t, first.Dir(), today.Add(LeafLifetime+48*time.Hour))
	testenv.True(t, later.FormerKubeletCA() == nil, "a server that joins after a year is given it still")
}

// The former authority ends by its own date, whatever it signed.
func TestFormerKubeletCAEnds(t *testing.T) {
	dir := t.TempDir()
	p, _ := open(t, dir, today)
	testenv.NoError(t, p.Ensure(p.Peer("boat-1")))
	o, _ := options(copied(t, dir, beforeKubeletCA...), today)
	o.Established = true
	q := testenv.Must(Open(o))(t)
	certs := testenv.Must(cert.ParseCertsPEM(q.FormerKubeletCA()))(t)
	testenv.Equal(t, certs[0].NotAfter.Sub(today), LeafLifetime, "it is valid for")
}

// A pair that would give nodes what is API servers' alone is refused.
func TestKubeletCAOfAnOperator(t *testing.T) {
	of, _ := open(t, t.TempDir(), today)
	own := func(from string) string {
		dir := copied(t, of.Dir(), "server-ca.crt", "server-ca.key")
		for _, ext := range []string{".crt", ".key"} {
			testenv.NoError(t, os.WriteFile(filepath.Join(dir, "kubelet-ca"+ext), readFile(t, filepath.Join(of.Dir(), from+ext)), 0o600))
		}
		return dir
	}
	o, _ := options(own("server-ca"), today)
	testenv.WantError(t, testenv.Err(Open(o)), "would pass for an API server's")
	o, _ = options(own("client-ca"), today) // two of the others are alike: no matter here
	p := testenv.Must(Open(o))(t)
	testenv.True(t, p.OwnKubeletCA(), "an operator's authority is taken for one that every server makes")
	testenv.NoError(t, os.Remove(p.CAKeyFile(KubeletCA)))
	testenv.WantError(t, testenv.Err(Open(o)), "its key")
}
