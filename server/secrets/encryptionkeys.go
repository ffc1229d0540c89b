// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/server/encryption"
	"github.com/coracle-k8s/coracle/server/pki"
)

const (
	// keysLoadedPoll is how often a server that has new encryption keys looks whether its API server has loaded them.
	keysLoadedPoll = time.Second
	// keysSettle is how long a write may take between its encryption, with the keys of before, and the store.
	keysSettle = time.Second
	// keysTakeRetry is how long it waits after it could not take them over.
	keysTakeRetry = 2 * time.Second
)

// sharedEncryption are the encryption keys that the servers have in common, as one of them with these folders sees
// them.
func sharedEncryption(kv clientv3.KV, tlsDir, credDir string) (encryption.Shared, error) {
	secret, err := os.ReadFile(filepath.Join(tlsDir, string(pki.PeerCA)+".key"))
	if err != nil {
		return encryption.Shared{}, fmt.Errorf("reading the authority for servers: %w", err)
	}
	return encryption.Shared{KV: kv, Secret: secret, Dir: credDir}, nil
}

// SharedEncryption are the keys of the cluster of the server with this folder.
func SharedEncryption(kv clientv3.KV, serverDir string) (encryption.Shared, error) {
	return sharedEncryption(kv, filepath.Join(serverDir, "tls"), filepath.Join(serverDir, "cred"))
}

// EncryptionKeys keeps this server's encryption keys equal to those in the store.
type EncryptionKeys struct {
	serverID string
	log      *slog.Logger
	shared   encryption.Shared
	watcher  clientv3.Watcher
	// drain returns when the writes that have begun are over.
	drain func(context.Context) error
}

// PullEncryptionKeys takes the keys over before the API server starts: one with an old key could write what the others
// cannot read any more. drain returns when the writes to the store that have begun are over.
func PullEncryptionKeys(ctx context.Context, client *clientv3.Client, drain func(context.Context) error, f Folders, serverID string,
	log *slog.Logger) (*EncryptionKeys, error) {
	shared, err := sharedEncryption(client.KV, f.TLS, f.Cred)
	if err != nil {
		return nil, err
	}
	if _, err := shared.Pull(ctx); err != nil {
		return nil, err
	}
	return &EncryptionKeys{serverID: serverID, log: log, shared: shared, drain: drain, watcher: client.Watcher}, nil
}

// Run follows the keys and says when this API server goes by them, until ctx is done.
func (k *EncryptionKeys) Run(ctx context.Context, config *rest.Config) {
	trouble := "the encryption keys cannot be compared with the other servers'; it is tried again"
	timers.Retry(ctx, k.log, keysTakeRetry, trouble, func() error {
		return follow(ctx, k.shared.KV, k.watcher, encryption.SharedKey, func(ctx context.Context) error { return k.apply(ctx, config) })
	})
}

// apply takes over the newest keys, and says so when the API server goes by them.
func (k *EncryptionKeys) apply(ctx context.Context, config *rest.Config) error {
	for {
		generation, err := k.shared.Pull(ctx)
		if err != nil || generation == 0 {
			return err
		}
		loaded, err := k.loaded(ctx, config)
		if err != nil {
			return err
		}
		if !loaded {
			if !timers.Sleep(ctx, keysLoadedPoll) {
				return ctx.Err()
			}
			continue // there may be newer ones
		}
		if err := k.settle(ctx); err != nil {
			return err
		}
		if err := k.shared.Confirm(ctx, k.serverID, generation); err != nil {
			return err
		}
		k.log.Info("the API server goes by the cluster's encryption keys", "generation", generation)
		return nil
	}
}

// loaded says whether the API server answers, and has loaded the present configuration.
func (k *EncryptionKeys) loaded(ctx context.Context, config *rest.Config) (bool, error) {
	want, err := encryption.ConfigHash(k.shared.Dir)
	if err != nil {
		return false, err
	}
	hashes, err := encryption.LoadedHashes(ctx, config)
	if err != nil {
		return false, nil //nolint:nilerr // it is asked again
	}
	return slices.Equal(hashes, []string{want}), nil
}

// settle returns when nothing is under way any more that was encrypted before the API server had loaded the present
// keys. Such a write may wait for a leader for as long as a request takes; when all servers have the new keys, and
// every object was written again, no server could read what it brings.
func (k *EncryptionKeys) settle(ctx context.Context) error {
	if !timers.Sleep(ctx, keysSettle) {
		return ctx.Err()
	}
	if err := k.drain(ctx); err != nil {
		return fmt.Errorf("waiting for writes of before the keys were loaded: %w", err)
	}
	return nil
}
