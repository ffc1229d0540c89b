// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	testclock "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const day = 24 * time.Hour

// ownAuthorities writes all authorities of an operator into a folder, or renews them.
func ownAuthorities(t *testing.T, dir string, left time.Duration) {
	t.Helper()
	for _, s := range Signers() {
		testenv.NoError(t, testca.WriteOwn(dir, string(s), time.Now().Add(left)))
	}
}

// openIn opens the authorities in a folder at a time from now.
func openIn(dir string, later time.Duration) (*PKI, error) {
	return Open(Options{Dir: dir, Clock: testclock.NewFakeClock(time.Now().Add(later)), Logger: slog.New(slog.DiscardHandler)})
}

func ownLeaves(p *PKI) []Leaf {
	return []Leaf{apiServer(p), p.Admin(), p.FrontProxy(), p.Peer("boat-1")}
}

// contents are the files of a folder.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, e := range testenv.Must(os.ReadDir(dir))(t) {
		out[e.Name()] = string(testenv.Must(os.ReadFile(filepath.Join(dir, e.Name())))(t))
	}
	return out
}

// TestRenewedAuthoritiesKeepTheCluster: certificates that were renewed with their keys are taken, before and after the
// former ones' end, and the cluster keeps the name that it had.
func TestRenewedAuthoritiesKeepTheCluster(t *testing.T) {
	for _, later := range []time.Duration{10 * day, 60 * day} {
		dir := t.TempDir()
		ownAuthorities(t, dir, 30*day)
		p := testenv.Must(openIn(dir, 0))(t)
		for _, l := range ownLeaves(p) {
			testenv.NoError(t, p.Ensure(l))
		}
		testenv.NoError(t, p.RecordRoot())
		first := p.Root()
		testenv.Equal(t, string(p.NodesServerCA()), string(p.CAPEM(ServerCA)), "before a renewal nodes get:")

		ownAuthorities(t, dir, 400*day)
		q := testenv.Must(openIn(dir, later))(t)
		testenv.True(t, q.Root().Equal(first), "the cluster has another name")
		for _, l := range ownLeaves(q) {
			testenv.NoError(t, q.Ensure(l))
			verify(t, q, l, time.Now().Add(later))
			testenv.True(t, leafCert(t, l).NotAfter.After(time.Now().Add(300*day)), "%s still ends with the former authority", l.Name)
		}
		shown := testenv.Must(q.Serving())(t).Certificate
		testenv.False(t, len(shown) != 3 || !bytes.Equal(shown[1], q.authority(ServerCA).root().Raw) || !bytes.Equal(shown[2], first.Raw),
			"the chain that machines see")
		nodes := testenv.Must(cert.ParseCertsPEM(q.NodesServerCA()))(t)
		testenv.False(t, len(nodes) != 2 || !nodes[0].Equal(q.authority(ServerCA).root()) || !nodes[1].Equal(first), "what nodes get")
		testenv.NoError(t, q.RecordRoot())
		testenv.Equal(t, q.Ending(), "", "after the renewal:")
		again := testenv.Must(openIn(dir, later))(t)
		testenv.True(t, again.Root().Equal(first), "the name was replaced")
	}
}

// TestUnfitReplacementIsRefused: what was put in place of an authority and cannot replace it is refused with a reason,
// and nothing is lost: with the former files the server starts again.
func TestUnfitReplacementIsRefused(t *testing.T) {
	template := func(t *testing.T, dir string) (*x509.Certificate, *authority) {
		a, err := parseAuthority(testenv.Must(os.ReadFile(filepath.Join(dir, "server-ca.crt")))(t), testenv.Must(os.ReadFile(filepath.Join(dir, "server-ca.key")))(t))
		testenv.NoError(t, err)
		return a.cert(), a
	}
	put := func(t *testing.T, dir string, change func(*x509.Certificate)) {
		c, a := template(t, dir)
		change(c)
		der := testenv.Must(x509.CreateCertificate(nil, c, c, a.key.Public(), a.key))(t)
		text := testenv.Must(cert.EncodeCertificates(testenv.Must(x509.ParseCertificate(der))(t)))(t)
		testenv.NoError(t, atomicfile.Write(filepath.Join(dir, "server-ca.crt"), text, 0o600))
	}
	for name, tt := range map[string]struct {
		replace func(t *testing.T, dir string)
		want    string
	}{
		"certificate of another key": {func(t *testing.T, dir string) {
			other := t.TempDir()
			ownAuthorities(t, other, 400*day)
			testenv.NoError(t, os.Rename(filepath.Join(other, "client-ca.crt"), filepath.Join(dir, "client-ca.crt")))
		}, "a new certificate has to be made with the key that is there"},
		"another authority": {func(t *testing.T, dir string) {
			testenv.NoError(t, os.Remove(filepath.Join(dir, "server-ca.key")))
			testenv.NoError(t, testca.WriteOwn(dir, "server-ca", time.Now().Add(400*day)))
		}, "has another key than the authority with which this cluster was made"},
		"no authority": {func(t *testing.T, dir string) {
			put(t, dir, func(c *x509.Certificate) { c.IsCA = false })
		}, "not one of an authority"},
		"another subject": {func(t *testing.T, dir string) {
			put(t, dir, func(c *x509.Certificate) { c.RawSubject, c.Subject.CommonName = nil, "other" })
		}, "its subject is CN=other, and it has to be CN=server-ca-own"},
		"no right to sign": {func(t *testing.T, dir string) {
			put(t, dir, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })
		}, "clients would refuse what was signed"},
		"other names only": {func(t *testing.T, dir string) {
			put(t, dir, func(c *x509.Certificate) {
				c.PermittedDNSDomainsCritical, c.PermittedDNSDomains = true, []string{"example.org"}
			})
		}, "is not permitted by any constraint"},
		"another use": {func(t *testing.T, dir string) {
			put(t, dir, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} })
		}, "incompatible key usage"},
		"ended": {func(t *testing.T, dir string) {
			put(t, dir, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		}, "it ended on "},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ownAuthorities(t, dir, 30*day)
			p := testenv.Must(openIn(dir, 0))(t)
			for _, l := range ownLeaves(p) {
				testenv.NoError(t, p.Ensure(l))
			}
			testenv.NoError(t, p.RecordRoot())
			before := contents(t, dir)
			tt.replace(t, dir)
			replaced := contents(t, dir)
			_, err := openIn(dir, 0)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "Nothing was changed") {
				t.Fatalf("%v, want %q", err, tt.want)
			}
			testenv.True(t, maps.Equal(contents(t, dir), replaced), "the refused start changed files")
			for name, text := range before {
				testenv.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
			}
			testenv.Check(t, testenv.Err(openIn(dir, 0)), "with the former files")
		})
	}
}

// TestNewerFormOfFirstRootIsRefused: a later version may store more.
func TestNewerFormOfFirstRootIsRefused(t *testing.T) {
	dir := t.TempDir()
	p := testenv.Must(Open(Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)}))(t)
	testenv.NoError(t, p.RecordRoot())
	file := filepath.Join(dir, FirstRootFile)
	text := string(testenv.Must(os.ReadFile(file))(t))
	testenv.NoError(t, os.WriteFile(file, []byte(strings.Replace(text, `"version":1`, `"version":2`, 1)), 0o600))
	testenv.WantError(t, testenv.Err(openIn(dir, 0)), "a newer one wrote it")
	testenv.NoError(t, os.WriteFile(file, []byte(text[:len(text)/2]), 0o600))
	testenv.WantError(t, testenv.Err(openIn(dir, 0)), "damaged")
}

// TestRenewAuthorities: all that sign themselves get the same new certificate on each server, and an interrupted run
// is repeated. One that another authority signed is named.
func TestRenewAuthorities(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	ownAuthorities(t, dir, 30*day)
	testenv.NoError(t, os.CopyFS(other, os.DirFS(dir)))
	p, q := testenv.Must(openIn(dir, 40*day))(t), testenv.Must(openIn(other, 41*day))(t)
	first := p.Root()
	for i, r := range testenv.Must(p.RenewAuthorities())(t) {
		testenv.True(t, !r.Kept && r.SignedBy == "" && r.Name == Signers()[i] && !r.Until.Before(time.Now().Add(CALifetime)), "%+v", r)
	}
	testenv.Must(q.renewAuthority(ServerCA))(t) // interrupted
	testenv.Must(testenv.Must(openIn(other, 41*day))(t).RenewAuthorities())(t)
	for _, s := range Signers() {
		one, two := testenv.Must(os.ReadFile(p.CAFile(s)))(t), testenv.Must(os.ReadFile(q.CAFile(s)))(t)
		testenv.Equal(t, string(two), string(one), "%s on two servers:", s)
	}
	p = testenv.Must(openIn(dir, 40*day))(t)
	testenv.False(t, !p.Root().Equal(first) || p.Ending() != "", "after the renewal: %s", p.Ending())
	for _, r := range testenv.Must(p.RenewAuthorities())(t) {
		testenv.True(t, r.Kept, "%s was made once more", r.Name)
	}
	for _, l := range ownLeaves(p) {
		testenv.NoError(t, p.Ensure(l))
		verify(t, p, l, time.Now().Add(40*day))
	}
}

// TestKeepRenewed: an older copy of the authorities gets the certificates that were renewed since, and the first root.
func TestKeepRenewed(t *testing.T) {
	dir, old := t.TempDir(), t.TempDir()
	ownAuthorities(t, dir, 30*day)
	testenv.NoError(t, os.CopyFS(old, os.DirFS(dir)))
	p := testenv.Must(openIn(dir, 0))(t)
	testenv.NoError(t, p.RecordRoot())
	testenv.NoError(t, testca.WriteOwn(dir, "server-ca", time.Now().Add(400*day)))
	testenv.NoError(t, testca.WriteOwn(dir, "peer-ca", time.Now().Add(20*day))) // ends earlier
	peer := contents(t, old)["peer-ca.crt"]
	testenv.NoError(t, KeepRenewed(dir, old))
	got := contents(t, old)
	testenv.Equal(t, got["server-ca.crt"], contents(t, dir)["server-ca.crt"], "server-ca:")
	testenv.Equal(t, got["peer-ca.crt"], peer, "one that ends earlier:")
	testenv.True(t, testenv.Must(ReadRoot(old))(t).Equal(p.Root()), "the copy has another name")
	testenv.NoError(t, KeepRenewed(old, old))
}

// TestRenewAuthorityOfAnyRSAKind: an operator's authority may have signed itself in a way that needs random numbers, or
// that is refused by now.
func TestRenewAuthorityOfAnyRSAKind(t *testing.T) {
	key := testenv.Must(rsa.GenerateKey(rand.Reader, 2048))(t)
	for _, how := range []x509.SignatureAlgorithm{x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.SHA1WithRSA} {
		dir := t.TempDir()
		ownAuthorities(t, dir, 30*day)
		c := &x509.Certificate{SerialNumber: big.NewInt(5), Subject: pkix.Name{CommonName: "own"}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(30 * day), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SignatureAlgorithm: how}
		der := testenv.Must(x509.CreateCertificate(rand.Reader, c, c, key.Public(), key))(t)
		text := testenv.Must(cert.EncodeCertificates(testenv.Must(x509.ParseCertificate(der))(t)))(t)
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, "server-ca.crt"), text, 0o600))
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, "server-ca.key"), testenv.Must(keyutil.MarshalPrivateKeyToPEM(key))(t), 0o600))
		p := testenv.Must(openIn(dir, 0))(t)
		testenv.NoError(t, p.Ensure(apiServer(p)), "%v", how)
		testenv.Must(p.RenewAuthorities())(t)
		p = testenv.Must(openIn(dir, 60*day))(t)
		testenv.NoError(t, p.Ensure(apiServer(p)), "%v", how)
		verify(t, p, apiServer(p), time.Now().Add(60*day))
	}
}
