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
	// keysLoadedPoll is how often a server with new encryption keys checks whether its API server has loaded them.
	keysLoadedPoll = time.Second
	// keysSettle is the longest time between the encryption of a write, with the earlier keys, and its arrival in the
	// store.
	keysSettle = time.Second
	// keysTakeRetry is the pause after the keys could not be updated.
	keysTakeRetry = 2 * time.Second
)

// sharedEncryption returns access to the encryption keys that servers share, for a server with these folders.
func sharedEncryption(kv clientv3.KV, tlsDir, credDir string) (encryption.Shared, error) {
	secret, err := os.ReadFile(filepath.Join(tlsDir, string(pki.PeerCA)+".key"))
	if err != nil {
		return encryption.Shared{}, fmt.Errorf("reading the authority for servers: %w", err)
	}
	return encryption.Shared{KV: kv, Secret: secret, Dir: credDir}, nil
}

// SharedEncryption returns access to the encryption keys of a cluster, for the server with this folder.
func SharedEncryption(kv clientv3.KV, serverDir string) (encryption.Shared, error) {
	return sharedEncryption(kv, filepath.Join(serverDir, "tls"), filepath.Join(serverDir, "cred"))
}

// EncryptionKeys keeps this server's encryption keys equal to those in the store.
type EncryptionKeys struct {
	serverID string
	log      *slog.Logger
	shared   encryption.Shared
	watcher  clientv3.Watcher
	// drain returns when the writes that have begun are complete.
	drain func(context.Context) error
}

// PullEncryptionKeys updates the keys before the API server starts: with an old key it could write objects that the
// other servers cannot read any more. drain returns when the writes to the store that have begun are complete.
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

// Run follows the keys and confirms when this API server has loaded them, until ctx is done.
func (k *EncryptionKeys) Run(ctx context.Context, config *rest.Config) {
	trouble := "the encryption keys cannot be compared with the other servers'; retrying"
	timers.Retry(ctx, k.log, keysTakeRetry, trouble, func() error {
		return follow(ctx, k.shared.KV, k.watcher, encryption.SharedKey, func(ctx context.Context) error { return k.apply(ctx, config) })
	})
}

// apply updates the keys from the store. It confirms them when the API server has loaded them.
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
			continue // there may be newer keys
		}
		if err := k.awaitOldWrites(ctx); err != nil {
			return err
		}
		if err := k.shared.Confirm(ctx, k.serverID, generation); err != nil {
			return err
		}
		k.log.Info("the API server uses the cluster's present encryption keys", "generation", generation)
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
		return false, nil //nolint:nilerr // it is tried again
	}
	return slices.Equal(hashes, []string{want}), nil
}

// awaitOldWrites returns when no write is pending that was encrypted before the API server had loaded the present keys.
// Such a write may wait for a leader for as long as a request takes. If all servers had the new keys by then and every
// object had been written again, no server could read the written object.
func (k *EncryptionKeys) awaitOldWrites(ctx context.Context) error {
	if !timers.Sleep(ctx, keysSettle) {
		return ctx.Err()
	}
	if err := k.drain(ctx); err != nil {
		return fmt.Errorf("waiting for writes that began before the keys were loaded: %w", err)
	}
	return nil
}
