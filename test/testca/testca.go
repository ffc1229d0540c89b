// SPDX-License-Identifier: Apache-2.0

// Package testca is a throw-away certificate authority for tests and benchmarks, whose certificates serve and call
// alike. It owns the files in the folder it is given, and is never part of what ships.
package testca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Authority signs certificates. It is for one goroutine.
type Authority struct {
	dir    string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

// New makes an authority, and the folder if there is none, with its certificate as ca.crt and its key as ca.key in it.
// It has the folder's name. What it signs is valid from an hour ago, for a year.
func New(dir string) (*Authority, error) {
	a := &Authority{dir: dir, serial: 1, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: filepath.Base(dir)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	return a, errors.Join(writeKey(filepath.Join(dir, "ca.key"), a.key), a.sign(a.cert, a.key.Public(), a.File()))
}

// File is where the authority's certificate is.
func (a *Authority) File() string { return filepath.Join(a.dir, "ca.crt") }

// Files is where a certificate, its key and its authority's certificate are, in PEM.
type Files struct{ CA, Cert, Key string }

// Issue writes a certificate for hosts, which are names, addresses or URIs, as NAME.crt and NAME.key.
func (a *Authority) Issue(name string, hosts ...string) (Files, error) {
	return a.IssueTo(pkix.Name{CommonName: name}, hosts...)
}

// IssueTo is Issue for a subject that is more than its common name, such as a member of a group.
func (a *Authority) IssueTo(subject pkix.Name, hosts ...string) (Files, error) {
	name := subject.CommonName
	f := Files{a.File(), filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return f, err
	}
	a.serial++
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: subject,
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		} else if u, err := url.Parse(host); err == nil && u.Scheme != "" {
			leaf.URIs = append(leaf.URIs, u)
		} else {
			leaf.DNSNames = append(leaf.DNSNames, host)
		}
	}
	if err := a.sign(leaf, key.Public(), f.Cert); err != nil {
		return f, err
	}
	return f, writeKey(f.Key, key)
}

func writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(file, "PRIVATE KEY", der)
}

func (a *Authority) sign(c *x509.Certificate, key any, file string) error {
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key, a.key)
	if err != nil {
		return fmt.Errorf("sign a certificate: %w", err)
	}
	return writePEM(file, "CERTIFICATE", der)
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// MutualTLS is a configuration for both ends of a connection: each shows the certificate and wants one of the
// authority.
func (f Files) MutualTLS() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("read a certificate: %w", err)
	}
	ca, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("no certificate in %s", f.CA)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	}, nil
}
