// SPDX-License-Identifier: Apache-2.0

// Package testapi is an API server in the test's own process over an empty store: everything is real but nodes and
// controllers. Upstream allows one to a process, so the tests of a package share it and keep to namespaces of their
// own.
package testapi

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/raftstore/upstream"
	"github.com/coracle-k8s/coracle/server/apiserver"
	"github.com/coracle-k8s/coracle/test/testca"
)

// Start runs an API server on what it keeps in dir until stop is called. Both configurations' users may do everything:
// remote is for connections over TLS, and loopback stays within the process, without connections.
// Among the files of dir are ca.crt and ca.key, the authority of its clients and of itself, and server.key, which signs
// the tokens of service accounts, too.
func Start(dir string) (remote, loopback *rest.Config, stop func() error, err error) {
	if err := writeKeys(dir); err != nil {
		return nil, nil, nil, err
	}
	quiet := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	store, err := raftstore.Open(ctx, raftstore.Options{Dir: filepath.Join(dir, "store"), Logger: quiet})
	if err != nil {
		cancel()
		return nil, nil, nil, err
	}
	upstream.Install(store.Client)
	done := make(chan error, 1) // the only value, so that the server need not be waited for
	started := false
	stop = func() error {
		cancel()
		var err error
		if started {
			err = <-done
		}
		return errors.Join(err, store.Close(context.Background()))
	}
	if err := store.WaitReady(ctx); err != nil {
		return nil, nil, nil, errors.Join(err, stop())
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, nil, errors.Join(err, stop())
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	s, err := apiserver.New(ctx, apiserver.Options{
		Listener: listener, AdvertiseAddress: net.IPv4(192, 0, 2, 10),
		TLSCertFile: path("server.crt"), TLSKeyFile: path("server.key"), ClientCAFile: path("ca.crt"),
		ServiceAccountKeyFiles: []string{path("server.crt")}, ServiceAccountSigningKeyFile: path("server.key"),
		ServiceAccountIssuer: "https://kubernetes.default.svc.cluster.local",
		Cluster: clusterconfig.Settings{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
			Disabled: clusterconfig.Disabled{clusterconfig.PartMetrics}},
		ConfigDir: dir, Logger: quiet,
	})
	if err != nil {
		return nil, nil, nil, errors.Join(err, stop())
	}
	started = true
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		started = false
		return nil, nil, nil, errors.Join(fmt.Errorf("it ended: %w", err), stop())
	case <-time.After(2 * time.Minute):
		return nil, nil, nil, errors.Join(errors.New("not ready after two minutes"), stop())
	}
	remote = &rest.Config{Host: "https://" + listener.Addr().String(), QPS: -1, TLSClientConfig: rest.TLSClientConfig{
		CAFile: path("ca.crt"), CertFile: path("admin.crt"), KeyFile: path("admin.key"),
	}}
	return remote, s.LoopbackConfig(), stop, nil
}

// writeKeys writes what an API server cannot do without.
func writeKeys(dir string) error {
	ca, err := testca.New(dir)
	if err != nil {
		return err
	}
	_, server := ca.Issue("server", "127.0.0.1")
	_, admin := ca.IssueTo(pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}})
	return errors.Join(server, admin)
}
