// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"
	testclock "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var today = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

func options(dir string, now time.Time) (Options, *testclock.FakeClock) {
	c := testclock.NewFakeClock(now)
	return Options{Dir: dir, Clock: c, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}, c
}

func open(t *testing.T, dir string, now time.Time) (*PKI, *testclock.FakeClock) {
	t.Helper()
	o, c := options(dir, now)
	p := testenv.Must(Open(o))(t)
	return p, c
}

func apiServer(p *PKI) Leaf {
	return p.APIServer(APIServerNames{NodeName: "boat", Domain: "cluster.local",
		IPs: []net.IP{net.ParseIP("192.0.2.7"), net.ParseIP("10.43.0.1")}, ExtraSANs: []string{"api.example.org", "198.51.100.9"}})
}

func leafCert(t *testing.T, l Leaf) *x509.Certificate {
	t.Helper()
	pair := testenv.Must(l.load())(t)
	return pair.Chain[0]
}

func verify(t *testing.T, p *PKI, l Leaf, at time.Time) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.CAPEM(l.Signer))
	for _, usage := range l.usages() { // each, and not one of them
		testenv.NoError(t, testenv.Err(leafCert(t, l).Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}})), "%s at %s", l.Name, at)
	}
}

func TestPKIIsMadeFromNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	p, _ := open(t, dir, today)
	agent := t.TempDir()
	leaves := []Leaf{apiServer(p), p.Admin(), p.KubeletClient(), p.FrontProxy(), p.Node(agent, "boat"),
		p.NodeServing(agent, "boat", []net.IP{net.ParseIP("192.0.2.7")}), p.Network(agent), p.Peer("boat-1")}
	for _, l := range leaves {
		testenv.NoError(t, p.Ensure(l))
		verify(t, p, l, today)
		if fi, err := os.Stat(l.Path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", l.Path, fi.Mode(), err)
		}
		testenv.Check(t, testenv.Err(tls.LoadX509KeyPair(l.Path, l.Path)), "%s", l.Path)
	}
	for _, name := range []string{"server-ca.key", "client-ca.key", "request-header-ca.key", "peer-ca.key", "service-account.key"} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, fi.Mode(), err)
		}
	}
	serving := leafCert(t, leaves[0])
	for _, host := range []string{"127.0.0.1", "::1", "192.0.2.7", "10.43.0.1", "198.51.100.9", "localhost", "boat", "kubernetes",
		"kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "api.example.org"} {
		testenv.Check(t, serving.VerifyHostname(host))
	}
	node := leafCert(t, leaves[4])
	testenv.True(t, node.Subject.CommonName == "system:node:boat" && node.Subject.Organization[0] == "system:nodes",
		"node identity is %s", node.Subject)
}

func TestSecondOpenChangesNothing(t *testing.T) {
	dir := t.TempDir()
	p, _ := open(t, dir, today)
	l := apiServer(p)
	testenv.NoError(t, p.Ensure(l))
	before := leafCert(t, l)
	o, _ := options(dir, today.Add(24*time.Hour))
	o.Established = true
	q := testenv.Must(Open(o))(t)
	testenv.NoError(t, q.Ensure(apiServer(q)))
	testenv.False(t, !leafCert(t, l).Equal(before) || !q.Root().Equal(p.Root()), "a second start made new certificates")
}

func TestNewNamesReissue(t *testing.T) {
	p, _ := open(t, t.TempDir(), today)
	l := apiServer(p)
	testenv.NoError(t, p.Ensure(l))
	l.DNSNames = append(l.DNSNames, "later.example.org")
	testenv.NoError(t, p.Ensure(l))
	testenv.Check(t, leafCert(t, l).VerifyHostname("later.example.org"))
	testenv.Equal(t, len(p.leaves), 1, "the same file is managed twice: leaves:")
}

func TestDamagedLeafIsReplaced(t *testing.T) {
	p, _ := open(t, t.TempDir(), today)
	l := p.Admin()
	for name, content := range map[string]string{"empty": "", "garbage": "not PEM", "truncated": "half"} {
		testenv.NoError(t, p.Ensure(l))
		if name == "truncated" {
			whole, _ := os.ReadFile(l.Path)
			content = string(whole[:len(whole)/2])
		}
		testenv.NoError(t, os.WriteFile(l.Path, []byte(content), 0o600))
		testenv.NoError(t, p.Ensure(l), "%s", name)
		verify(t, p, l, today)
	}
}

func TestDamagedAuthorityIsRefused(t *testing.T) {
	for _, file := range []string{"server-ca.crt", "server-ca.key", "client-ca.crt", "service-account.key"} {
		dir := t.TempDir()
		open(t, dir, today)
		path := filepath.Join(dir, file)
		whole, err := os.ReadFile(path)
		testenv.NoError(t, err)
		half := whole[:len(whole)/2]
		testenv.NoError(t, os.WriteFile(path, half, 0o600))
		o, _ := options(dir, today)
		_, err = Open(o)
		testenv.True(t, err != nil && strings.Contains(err.Error(), path) && strings.Contains(err.Error(), "backup"),
			"damaged %s: %v", file, err)
		if now, _ := os.ReadFile(path); string(now) != string(half) {
			t.Errorf("%s was overwritten", file)
		}
	}
}

func TestMissingAuthorityOfClusterIsRefused(t *testing.T) {
	for _, file := range []string{"server-ca.crt", "client-ca.crt", "peer-ca.crt", "kubelet-ca.crt", "service-account.key"} {
		dir := t.TempDir()
		open(t, dir, today)
		testenv.NoError(t, os.Remove(filepath.Join(dir, file)))
		o, _ := options(dir, today)
		o.Established = true
		if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "missing") {
			t.Errorf("%s missing from a cluster with data: %v", file, err)
		}
		// The same remains of a first start that was cut off are completed.
		o.Established = false
		testenv.Check(t, testenv.Err(Open(o)), "%s missing from a new cluster", file)
	}
	dir := t.TempDir()
	open(t, dir, today)
	testenv.NoError(t, os.Remove(filepath.Join(dir, "server-ca.key")))
	o, _ := options(dir, today)
	testenv.WantError(t, testenv.Err(Open(o)), "server-ca.key")
}

func TestInterruptedFirstStartKeepsTheKey(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, today)
	key := testenv.Must(os.ReadFile(filepath.Join(dir, "server-ca.key")))(t)
	testenv.NoError(t, os.Remove(filepath.Join(dir, "server-ca.crt")))
	open(t, dir, today)
	if again, _ := os.ReadFile(filepath.Join(dir, "server-ca.key")); string(again) != string(key) {
		t.Error("the key was overwritten")
	}
}

// TestOperatorsIntermediateAuthorityIsUsed puts an intermediate of a company's authority in place, as an operator
// would.
func TestOperatorsIntermediateAuthorityIsUsed(t *testing.T) {
	company, _ := open(t, t.TempDir(), today)
	dir := t.TempDir()
	key := testenv.Must(company.loadOrCreateKey(filepath.Join(dir, "server-ca.key"), nil, false))(t)
	template := *company.Root()
	template.Subject.CommonName = "intermediate"
	template.SerialNumber = nil // another one
	der := testenv.Must(x509.CreateCertificate(rand.Reader, &template, company.Root(), key.Public(), company.authority(ServerCA).key))(t)
	intermediate := testenv.Must(x509.ParseCertificate(der))(t)
	bundle := testenv.Must(cert.EncodeCertificates(intermediate, company.Root()))(t)
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "server-ca.crt"), bundle, 0o644))
	p, _ := open(t, dir, today)
	l := apiServer(p)
	testenv.NoError(t, p.Ensure(l))
	pair, err := l.load()
	testenv.Require(t, err == nil && len(pair.Chain) == 2, "the leaf does not carry its intermediate: %d, %v", len(pair.Chain), err)
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(company.Root())
	between.AddCert(pair.Chain[1])
	testenv.Must(pair.Chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: today}))(t)
	testenv.True(t, p.Root().Equal(company.Root()), "the pin is not the root")
}

// TestClockInThePast starts a board whose clock is at its beginning.
func TestClockInThePast(t *testing.T) {
	born := time.Unix(60, 0)
	p, c := open(t, t.TempDir(), born)
	l := apiServer(p)
	testenv.NoError(t, p.Ensure(l))
	first := leafCert(t, l)
	verify(t, p, l, born)
	// The network sets the clock, by years: what was issued holds until the renewer has come by.
	for _, later := range []time.Time{today, today.AddDate(6, 0, 0)} {
		verify(t, p, l, later)
	}
	c.SetTime(today)
	testenv.NoError(t, p.renew(false))
	testenv.False(t, leafCert(t, l).Equal(first), "still the certificate of the wrong clock")
	testenv.True(t, !leafCert(t, l).NotAfter.After(today.Add(LeafLifetime)), "valid until %s", leafCert(t, l).NotAfter)
	verify(t, p, l, today)
	// A power cut without a battery: back at the beginning, and still a start.
	q, _ := open(t, p.dir, born)
	testenv.NoError(t, q.Ensure(apiServer(q)))
	verify(t, q, l, born)
}

func TestRenewsInPlace(t *testing.T) {
	p, c := open(t, t.TempDir(), today)
	l := p.Admin()
	var seen []string
	fail := errors.New("disk full")
	l.Use = func(certPEM, _ []byte) error {
		if len(seen) == 1 && fail != nil {
			return fail
		}
		seen = append(seen, string(certPEM))
		return nil
	}
	testenv.NoError(t, p.Ensure(l))
	first := leafCert(t, l)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx, nil) }()
	step := func(d time.Duration) {
		t.Helper()
		waitFor(t, "the renewer to wait", c.HasWaiters)
		c.Step(d)
	}
	step(LeafLifetime - renewBefore - 2*Backdate)
	testenv.NoError(t, p.renew(false))
	testenv.Require(t, leafCert(t, l).Equal(first), "renewed early")
	step(4 * Backdate)
	waitFor(t, "the renewal", func() bool { return !leafCert(t, l).Equal(first) })
	verify(t, p, l, c.Now())
	testenv.Fails(t, p.renew(false), "the user's failure was swallowed")
	p.mu.Lock()
	fail = nil
	p.mu.Unlock()
	step(checkEvery)
	waitFor(t, "the user to be notified again", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(seen) == 2 })
	// A damaged file is noticed within a day.
	testenv.NoError(t, os.WriteFile(l.Path, []byte("x"), 0o600))
	step(rereadEvery)
	waitFor(t, "the damage to be repaired", func() bool { _, err := l.load(); return err == nil })
	cancel()
	<-done
}

func TestAuthorityNearItsEnd(t *testing.T) {
	p, _ := open(t, t.TempDir(), today)
	late := p.Root().NotAfter.AddDate(0, -1, 0)
	q, c := open(t, p.dir, late)
	l := q.Admin()
	testenv.NoError(t, q.Ensure(l))
	first := leafCert(t, l)
	testenv.False(t, first.NotAfter.After(q.Root().NotAfter), "outlives its authority")
	c.Step(time.Hour)
	if err := q.renew(true); err != nil || !leafCert(t, l).Equal(first) {
		t.Errorf("renewed without gain, %v", err)
	}
}

// TestCertificateFilesAreClosed: and keys, also those that an earlier version or an operator made for others to read.
func TestCertificateFilesAreClosed(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, today)
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	testenv.Require(t, err == nil && len(files) >= 11, "%v %v", files, err)
	for _, again := range []bool{false, true} {
		for _, file := range files {
			if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
				t.Errorf("%s, opened again: %t: mode %v, %v", file, again, fi.Mode(), err)
			}
			testenv.NoError(t, os.Chmod(file, 0o644))
		}
		open(t, dir, today)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testenv.Until(t, 2*time.Minute, what, ok)
}
