// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/encryption"
	"github.com/coracle-k8s/coracle/server/pki"
)

// Status describes a running server.
type Status struct {
	ServerID     string             `json:"serverID"`
	URL          string             `json:"url"`
	Ready        bool               `json:"ready"`
	Store        *raftstore.Status  `json:"store,omitempty"`
	Certificates []pki.Info         `json:"certificates"`
	Encryption   *encryption.Status `json:"encryption,omitempty"`
}

// Status reports without waiting for anything.
func (s *Server) Status() Status {
	out := Status{ServerID: s.data.ServerID(), URL: s.URL(), Certificates: s.pki.Certificates()}
	select {
	case <-s.ready:
		out.Ready = true
	default:
	}
	s.mu.Lock()
	store := s.store
	s.mu.Unlock()
	if store != nil {
		st := store.Status()
		out.Store = &st
	}
	if e, err := encryption.ReadStatus(s.o.CredDir); err == nil {
		out.Encryption = &e
	}
	return out
}

// RotateEncryptionKey replaces the key with which the store's secrets are encrypted; see encryption.Rotate. progress may
// be nil.
func (s *Server) RotateEncryptionKey(ctx context.Context, progress func(stage encryption.Stage, objects int)) error {
	config := s.LoopbackConfig()
	if config == nil {
		return errors.New("the API server is not ready yet: nothing was changed")
	}
	return encryption.Rotate(ctx, encryption.RotateOptions{Dir: s.o.CredDir, Client: config, Progress: progress, Logger: s.log.With("part", "encryption")})
}

// serveStoreSocket offers etcd's API on a unix socket that only root may use. The function it returns ends that and
// waits.
func (s *Server) serveStoreSocket(ctx context.Context, store *raftstore.Store) (stop func(), err error) {
	path := s.o.StoreSocket
	if path == "" {
		return func() {}, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the folder for the store's socket: %w", err)
	}
	// We hold the data directory's lock, so a socket that is there is of a process that has died.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the store's socket of an earlier process: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("opening the store's socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the store's socket: %w", err), l.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := store.ServeGRPC(ctx, l); err != nil && ctx.Err() == nil {
			s.log.Error("the store's socket is closed; the cluster works on, only etcdctl and the like cannot connect", "socket", path, "error", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}, nil
}
