// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// authority signs certificates of one purpose.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.key = newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, Subject: pkix.Name{CommonName: "an authority"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	testenv.NoError(t, err)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	return testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

func (a *authority) issue(name, group string, usage x509.ExtKeyUsage, until time.Time) *tls.Certificate {
	key := newKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		Subject: pkix.Name{CommonName: name, Organization: []string{group}}, ExtKeyUsage: []x509.ExtKeyUsage{usage}}, a.cert, key.Public(), a.key)
	testenv.NoError(a.t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// TestStreamsBetweenServersAndNodes: servers and nodes have streams with one another, from either side; no other member
// has one, at either end.
func TestStreamsBetweenServersAndNodes(t *testing.T) {
	servers, clients, foreign := newAuthority(t), newAuthority(t), newAuthority(t)
	later := time.Now().Add(time.Hour)
	server := servers.issue("kube-apiserver", "", x509.ExtKeyUsageServerAuth, later)
	node := clients.issue("system:node:n", nodeGroup, x509.ExtKeyUsageClientAuth, later)
	members := map[string]*tls.Certificate{"server": server, "node": node,
		"a server whose authority was renewed": servers.issue("kube-apiserver", "", x509.ExtKeyUsageServerAuth, time.Now().AddDate(1, 0, 0)),
		"a server with a wrong clock":          servers.issue("kube-apiserver", "", x509.ExtKeyUsageServerAuth, time.Now().Add(-time.Minute))}
	unauthenticated := map[string]*tls.Certificate{
		"an administrator":           clients.issue("system:admin", "system:masters", x509.ExtKeyUsageClientAuth, later),
		"a kubelet's serving":        servers.issue("system:node:n", "", x509.ExtKeyUsageServerAuth, later),
		"a node's by the servers'":   servers.issue("system:node:n", nodeGroup, x509.ExtKeyUsageServerAuth, later),
		"a server's by the clients'": clients.issue("kube-apiserver", "", x509.ExtKeyUsageClientAuth, later),
		"a foreign server":           foreign.issue("kube-apiserver", "", x509.ExtKeyUsageServerAuth, later),
		"a foreign node":             foreign.issue("system:node:n", nodeGroup, x509.ExtKeyUsageClientAuth, later),
		"an expired node":            clients.issue("system:node:n", nodeGroup, x509.ExtKeyUsageClientAuth, time.Now().Add(-time.Minute)),
	}
	revoked := clients.issue("system:node:gone", nodeGroup, x509.ExtKeyUsageClientAuth, later)
	unauthenticated["a revoked node"] = revoked
	refuses := func(c *x509.Certificate) error {
		if c.Subject.CommonName == "system:node:gone" {
			return errors.New("revoked")
		}
		return nil
	}
	open := func(cert *tls.Certificate) (Streams, string) {
		l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
		s := NewStreams(l, Trust{Own: func() (*tls.Certificate, error) { return cert, nil }, ServerCA: servers.pool(), ClientCA: clients.pool(),
			Refuses: refuses})
		t.Cleanup(func() {
			if err := s.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		})
		return s, l.Addr().String()
	}
	const patience = 2 * time.Minute
	// talk says whether a word from one reaches the other.
	talk := func(from, to *tls.Certificate) error {
		caller, _ := open(from)
		called, address := open(to)
		heard := make(chan string, 1)
		go func() {
			c, err := called.Accept()
			if err != nil {
				heard <- ""
				return
			}
			defer c.Close()
			word := make([]byte, 4)
			_, _ = io.ReadFull(c, word)
			_, _ = c.Write(word)
			heard <- string(word)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := caller.Dial(ctx, address)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(c, "word"); err != nil {
			return err
		}
		back := make([]byte, 4)
		if _, err := io.ReadFull(c, back); err != nil {
			return err // in TLS 1.3 a refused caller learns of it when it reads
		}
		if got := <-heard; got != "word" {
			return errors.New("heard: " + got)
		}
		return nil
	}
	for from, a := range members {
		for to, b := range members {
			testenv.Check(t, talk(a, b), "from a %s to a %s", from, to)
		}
	}
	for who, s := range unauthenticated {
		testenv.Fails(t, talk(s, server), "%s may call", who)
		testenv.Fails(t, talk(server, s), "%s is called", who)
	}
}
