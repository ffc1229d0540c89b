// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/volume"

	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/raftstore/upstream"
	"github.com/coracle-k8s/coracle/scheduler"
	"github.com/coracle-k8s/coracle/server/apiserver"
)

// cluster is an API server in this process over an empty store. Upstream allows one to a process, so all tests share it
// and keep to namespaces of their own.
type cluster struct {
	dir    string
	config *rest.Config
	client kubernetes.Interface
	// plugins, when set, are those of the next term.
	plugins func(context.Context, *term.Term) ([]volume.VolumePlugin, error)
	// refusals, when set, are what the next term's scheduler is told of.
	refusals scheduler.Refusals
}

var shared *cluster

// quiet logs nothing of what is not under test.
var quiet = slog.New(slog.DiscardHandler)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "controllers-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		c, stop, err := startCluster(dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, "start the API server:", err)
			return 1
		}
		defer stop()
		shared = c
		return m.Run()
	}())
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

func startCluster(dir string) (*cluster, func(), error) {
	c := &cluster{dir: dir}
	if err := c.writeKeys(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	store, err := startStore(ctx, filepath.Join(dir, "store"))
	if err != nil {
		cancel()
		return nil, nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		cancel()
		return nil, nil, err
	}
	s, err := apiserver.New(ctx, apiserver.Options{
		Listener: listener, AdvertiseAddress: net.IPv4(192, 0, 2, 10),
		TLSCertFile: c.path("server.crt"), TLSKeyFile: c.path("server.key"), ClientCAFile: c.path("ca.crt"),
		ServiceAccountKeyFiles: []string{c.path("sa.pub")}, ServiceAccountSigningKeyFile: c.path("sa.key"),
		ServiceAccountIssuer: "https://kubernetes.default.svc.cluster.local",
		ServiceCIDRs:         []string{"10.43.0.0/16"}, ConfigDir: dir, Logger: quiet,
	})
	if err != nil {
		cancel()
		return nil, nil, err
	}
	done := make(chan error, 1) // the only value, so that the server need not be waited for
	go func() { done <- s.Run(ctx) }()
	stop := func() {
		cancel()
		if err := errors.Join(<-done, store.Close(context.Background())); err != nil {
			fmt.Fprintln(os.Stderr, "stop the API server:", err)
		}
	}
	select {
	case <-s.Ready():
	case err := <-done:
		cancel()
		return nil, nil, errors.Join(fmt.Errorf("it ended: %w", err), store.Close(context.Background()))
	case <-time.After(2 * time.Minute):
		stop()
		return nil, nil, fmt.Errorf("not ready after two minutes")
	}
	c.config = s.LoopbackConfig()
	c.client, err = kubernetes.NewForConfig(c.config)
	return c, stop, err
}

// startStore opens the store and puts it under the API server.
func startStore(ctx context.Context, dir string) (*raftstore.Store, error) {
	store, err := raftstore.Open(ctx, raftstore.Options{Dir: dir, Logger: quiet})
	if err != nil {
		return nil, err
	}
	upstream.Install(store.Client)
	if err := store.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, store.Close(ctx))
	}
	return store, nil
}

func (c *cluster) writeKeys() error {
	caKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test-ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	for name, block := range map[string]*pem.Block{
		"ca.crt":     {Type: "CERTIFICATE", Bytes: caDER},
		"ca.key":     {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(caKey)},
		"server.crt": {Type: "CERTIFICATE", Bytes: leafDER},
		"server.key": {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)},
		"sa.key":     {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)},
		"sa.pub":     {Type: "PUBLIC KEY", Bytes: public},
	} {
		if err := os.WriteFile(c.path(name), pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	return nil
}
