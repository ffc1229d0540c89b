// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/coracle-k8s/coracle/internal/unixsocket"
	"github.com/coracle-k8s/coracle/raftstore"
)

// serveStoreSocket serves etcd's API on a unix socket that only root may use. With an empty path it serves none. The
// returned function stops that and waits until it has ended.
func serveStoreSocket(ctx context.Context, path string, store *raftstore.Store, log *slog.Logger) (stop func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	l, err := unixsocket.Listen(path)
	if err != nil {
		return nil, fmt.Errorf("the store's socket: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := store.ServeGRPC(ctx, l); err != nil && ctx.Err() == nil {
			log.Error("the store's socket is closed; the cluster is not affected, but etcdctl and similar clients cannot connect",
				"socket", path, "error", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}, nil
}
