// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"github.com/coracle-k8s/coracle/raftstore"
)

// serveStoreSocket offers etcd's API on a unix socket that only root may use; an empty path offers none. The function
// that it returns ends that and waits.
func serveStoreSocket(ctx context.Context, path string, store *raftstore.Store, log *slog.Logger) (stop func(), err error) {
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
			log.Error("the store's socket is closed; the cluster works on, only etcdctl and the like cannot connect",
				"socket", path, "error", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}, nil
}
