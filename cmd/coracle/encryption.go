// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/encryption"
	"github.com/coracle-k8s/coracle/server/revocation"
	"github.com/coracle-k8s/coracle/server/secrets"
)

// keys implements cli.Encryption with the server's package encryption.
type keys struct{}

func (keys) Status(dir string) (cli.EncryptionStatus, error) {
	s, err := encryption.ReadStatus(dir)
	if err != nil {
		return cli.EncryptionStatus{}, err
	}
	out := cli.EncryptionStatus{Key: s.Key, Readable: s.Readable, Encrypted: s.Encrypted, ByHand: s.ByHand, Started: s.Started,
		Finished: s.Finished}
	if s.Stage != encryption.StageDone {
		out.Rotating = string(s.Stage)
	}
	return out, nil
}

func (keys) Rotate(ctx context.Context, dir string, client *rest.Config,
	open func(context.Context, func(context.Context, *clientv3.Client) error) error,
	progress func(stage string, objects int, waiting []string)) error {
	return open(ctx, func(ctx context.Context, store *clientv3.Client) error {
		shared, err := secrets.SharedEncryption(store, filepath.Dir(dir))
		if err != nil {
			return err
		}
		return encryption.Rotation{
			Shared: shared, Client: client, Servers: func(ctx context.Context) ([]string, error) { return storeServers(ctx, store) },
			Progress: func(stage encryption.Stage, n int, waiting []string) { progress(string(stage), n, waiting) },
		}.Run(ctx)
	})
}

// tokenTimeout is how long a rotation waits until every server uses the new token. Then it reports the servers that do
// not.
const tokenTimeout = 15 * time.Second

func rotateToken(ctx context.Context, store *clientv3.Client, serverDir string, r token.RotationRequest) (token.Token, []string, error) {
	servers, err := storeServers(ctx, store)
	if err != nil {
		return token.Token{}, nil, err
	}
	return secrets.RotateToken(ctx, store, serverDir, r, servers, tokenTimeout)
}

func revokeNode(ctx context.Context, r cli.RevokeRequest) error {
	servers, err := storeServers(ctx, r.Store)
	if err != nil {
		return err
	}
	return revocation.Revocation{
		Node: r.Node, Deleted: r.Deleted, KV: r.Store.KV, ServerDir: r.ServerDir, Servers: servers, Timeout: tokenTimeout,
		Client: r.Client, Members: r.Members, Progress: r.Progress, Now: time.Now,
	}.Run(ctx)
}

// storeServers returns the names of the store's members.
func storeServers(ctx context.Context, store *clientv3.Client) ([]string, error) {
	answer, err := store.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing the servers: %w", err)
	}
	return convert.Slice(answer.Members, (*etcdserverpb.Member).GetName), nil
}
