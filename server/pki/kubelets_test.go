// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// verifies says whether a client that trusts the certificates in PEM takes a leaf for a server at a name.
func verifies(t *testing.T, trusted []byte, c *x509.Certificate, name string, at time.Time) bool {
	t.Helper()
	roots := x509.NewCertPool()
	testenv.Require(t, roots.AppendCertsFromPEM(trusted), "no certificate to trust")
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
	trust := p.CAPEM(KubeletCA)
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

// A pair that would give nodes what is API servers' alone is refused.
func TestKubeletCAOfAnOperator(t *testing.T) {
	of, _ := open(t, t.TempDir(), today)
	own := func(from string) string {
		dir := copied(t, of.dir, "server-ca.crt", "server-ca.key")
		for _, ext := range []string{".crt", ".key"} {
			testenv.NoError(t, os.WriteFile(filepath.Join(dir, "kubelet-ca"+ext), readFile(t, filepath.Join(of.dir, from+ext)), 0o600))
		}
		return dir
	}
	o, _ := options(own("server-ca"), today)
	testenv.WantError(t, testenv.Err(Open(o)), "would pass for an API server's")
	o, _ = options(own("client-ca"), today) // two of the others are alike: no matter here
	p := testenv.Must(Open(o))(t)
	testenv.NoError(t, os.Remove(p.CAKeyFile(KubeletCA)))
	testenv.WantError(t, testenv.Err(Open(o)), "its key")
}
