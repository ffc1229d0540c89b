// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/datadir"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/snapshots"
	"github.com/coracle-k8s/coracle/server/storeusage"
)

// runStore runs a real store in a server's folder, as a server does, until ctx ends. It calls ready when it serves.
func runStore(ctx context.Context, p config.Paths, admin *status.Server, ready func()) (err error) {
	log := slog.New(slog.DiscardHandler)
	dir, err := datadir.Open(datadir.Options{DataDir: p.DataDir, ServerDir: p.ServerDir, StoreDir: p.StoreDir, Version: "v0"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	keys, err := pki.Open(pki.Options{Dir: p.TLSDir, Established: dir.Established, Logger: log})
	if err != nil {
		return err
	}
	if err := dir.RecordVersion(); err != nil {
		return err
	}
	s, err := raftstore.Open(ctx, raftstore.Options{Dir: p.StoreDir, NodeID: dir.ServerID(), ClusterID: token.Hash(keys.Root()), Logger: log})
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, s.Close(closing))
	}()
	if err := s.WaitReady(ctx); err != nil {
		return err
	}
	tokens, err := token.Ensure(token.Options{Dir: p.ServerDir, Root: keys.Root(), Logger: log})
	if errors.Is(err, token.ErrOtherCluster) { // writeAdmin's, of a made-up one
		if err := errors.Join(os.Remove(p.TokenFile), os.Remove(p.AgentTokenFile)); err != nil {
			return err
		}
		tokens, err = token.Ensure(token.Options{Dir: p.ServerDir, Root: keys.Root(), Logger: log})
	}
	if err != nil {
		return err
	}
	keeper := snapshots.NewKeeper(snapshots.Options{
		Dir: filepath.Join(p.DataDir, "snapshots"), Cluster: token.Hash(keys.Root()), Server: "board1", Version: "v0", Retention: 2, BeginBackup: s.BeginBackup, Logger: log,
		Contents: func() (snapshots.Contents, error) { return fakeContents(p.ServerDir) },
		Key:      func() (snapshots.Key, error) { return snapshots.KeyOfToken(tokens.Server.String()) },
		S3: func(ctx context.Context) (*config.S3, error) {
			if a := snapshots.QueryOf(ctx); a.On != nil && *a.On {
				return config.ParseS3(a.Values)
			}
			return nil, nil
		},
	})
	admin.Handle("GET "+status.UsagePath, storeusage.Handler(func() *raftstore.Store { return s }))
	admin.Handle(snapshots.Path, keeper.Handler())
	admin.Handle(snapshots.Path+"/", keeper.Handler())
	_ = os.Remove(p.StoreSocket) // of a process before, if there is one
	l, err := net.Listen("unix", p.StoreSocket)
	if err != nil {
		return err
	}
	ready()
	return s.ServeGRPC(ctx, l)
}

// fakeFiles are those of a snapshot.
func fakeFiles() (required, optional []string) {
	for _, s := range []pki.Signer{pki.ServerCA, pki.ClientCA, pki.RequestHeaderCA, pki.PeerCA, pki.KubeletCA} {
		required = append(required, filepath.Join("tls", string(s)+".crt"), filepath.Join("tls", string(s)+".key"))
	}
	return append(required, filepath.Join("tls", pki.ServiceAccountKey), token.ServerFile), nil
}

func fakeContents(serverDir string) (snapshots.Contents, error) {
	out := snapshots.Contents{Files: map[string][]byte{}}
	required, _ := fakeFiles()
	for _, name := range required {
		data, err := os.ReadFile(filepath.Join(serverDir, name))
		if err != nil {
			return out, err
		}
		out.Files[name] = data
	}
	return out, nil
}

// put and gets are script commands that use the running store: put KEY VALUE; gets KEY [VALUE], no value for none.
func put(ts *testscript.TestScript, _ bool, args []string) {
	withScriptStore(ts, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Put(ctx, args[0], args[1])
		return err
	})
}

func gets(ts *testscript.TestScript, _ bool, args []string) {
	withScriptStore(ts, func(ctx context.Context, c *clientv3.Client) error {
		r, err := c.Get(ctx, args[0])
		if err != nil {
			return err
		}
		got := ""
		for _, kv := range r.Kvs {
			got = string(kv.Value)
		}
		if want := append(args, "")[1]; got != want {
			ts.Fatalf("%s is %q, want %q", args[0], got, want)
		}
		return nil
	})
}

func withScriptStore(ts *testscript.TestScript, f func(context.Context, *clientv3.Client) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	socket := filepath.Join(ts.Getenv("CORACLE_RUN_DIR"), "store.sock")
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, Logger: zap.NewNop()})
	ts.Check(err)
	defer c.Close()
	ts.Check(f(ctx, c))
}

// flip changes a bit in the middle of a file, halve cuts it.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	data, err := os.ReadFile(path)
	ts.Check(err)
	data[len(data)/2] ^= 1
	ts.Check(os.WriteFile(path, data, 0o600))
}

func halve(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	info, err := os.Stat(path)
	ts.Check(err)
	ts.Check(os.Truncate(path, info.Size()/2))
}
