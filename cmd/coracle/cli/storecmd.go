// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/version"
	"github.com/coracle-k8s/coracle/server/storefiles"
)

// storeTimeout is how long to wait for a response of the store.
const storeTimeout = 15 * time.Second

func storeCommand(a *App) *cobra.Command {
	return commandGroup(&cobra.Command{
		Use: "store", Aliases: []string{"etcd"}, GroupID: groupUse, Short: "Inspect, back up and restore the cluster's store",
		Long: `The store holds everything that the API server knows. These commands inspect it, write backups, and restore one.

"status", "usage", "members", "remove" and "backup" ask the server that runs on this machine; "restore", "verify" and
"recover" work on the files of one that is stopped, as does "usage" there. A backup is the store alone; "coracle snapshot" saves the whole cluster.
docs/operations/store.md has the procedures.`,
	}, storeStatusCommand(a), storeUsageCommand(a), hideFormer(memberListCommand(a), "members", "member-list"),
		hideFormer(memberRemoveCommand(a), "remove NAME", "member-remove"),
		storeBackupCommand(a), storeRestoreCommand(a), storeVerifyCommand(a), storeRecoverCommand(a))
}

// withStore calls f with a client for the store of the server that runs on this machine. SIGINT and SIGTERM end f's
// context, so that f can clean up.
func withStore(ctx context.Context, t *config.Tool, f func(context.Context, *clientv3.Client) error) error {
	path := t.Paths.StoreSocket
	if err := reachable(ctx, path); err != nil {
		return err
	}
	ctx, stop := untilInterrupted(ctx)
	defer stop()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + path}, Context: ctx, Logger: zap.NewNop()})
	if err != nil {
		return fmt.Errorf("connecting to the store: %w", err)
	}
	defer func() { _ = c.Close() }() // the client has nothing left to send
	err = f(ctx, c)
	if ctx.Err() != nil {
		return errors.Join(errors.New("interrupted"), err)
	}
	return explainError(err)
}

// reachable returns an error that says why the store's socket cannot be connected to. Without this check the client
// would only retry.
func reachable(ctx context.Context, path string) error {
	conn, err := (&net.Dialer{Timeout: storeTimeout}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, fs.ErrPermission):
		return errors.New("only root may ask the store; use sudo")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no server runs on this machine: nothing answers at %s. coracle status says more", path)
	}
	return fmt.Errorf("connecting to the store: %w", err)
}

// explainError removes gRPC's prefix from an error's message.
func explainError(err error) error {
	if s, ok := grpcstatus.FromError(err); ok && s != nil {
		return errors.New(s.Message())
	}
	return err
}

// stoppedServer returns this machine's server for commands that work on its files while it is stopped.
func stoppedServer(t *config.Tool) *storefiles.Server {
	p := t.Paths
	return &storefiles.Server{
		DataDir: p.DataDir, ServerDir: p.ServerDir, TLSDir: p.TLSDir, StoreDir: p.StoreDir,
		Version: version.Get().Coracle, Now: time.Now,
	}
}

// forRoot adds the hint to use sudo to an error about a file that only root may read.
func forRoot(err error) error {
	if errors.Is(err, fs.ErrPermission) && !isRoot() {
		return fmt.Errorf("only root may do this; use sudo (%w)", err)
	}
	return err
}

func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&fs.ModeCharDevice != 0
}

// bytesText formats a size for users.
func bytesText(n int64) string { return status.Bytes(n) }
