// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"context"
	"errors"
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

// EncryptionKeys keep this server's encryption keys what the store says they are.
type EncryptionKeys struct {
	serverID string
	log      *slog.Logger
	shared   encryption.Shared
	watch    func(ctx context.Context, from int64) clientv3.WatchChan
	// drain returns when the writes that have begun are over.
	drain func(context.Context) error
	// atStart names the configuration with which the API server starts.
	atStart string
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
	k := &EncryptionKeys{serverID: serverID, log: log, shared: shared, drain: drain,
		watch: func(ctx context.Context, from int64) clientv3.WatchChan {
			return client.Watcher.Watch(ctx, encryption.SharedKey, clientv3.WithRev(from))
		}}
	k.atStart, err = encryption.ConfigHash(f.Cred)
	return k, err
}

// Run follows the keys and says when this API server goes by them, until ctx is done.
func (k *EncryptionKeys) Run(ctx context.Context, config *rest.Config) {
	trouble := "the encryption keys cannot be compared with the other servers'; it is tried again"
	timers.Retry(ctx, k.log, keysTakeRetry, trouble, func() error { return k.follow(ctx, config) })
}

// follow takes the keys over once and then at each change, as long as the watch lasts.
func (k *EncryptionKeys) follow(ctx context.Context, config *rest.Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the watch
	now, err := k.shared.KV.Get(ctx, encryption.SharedKey, clientv3.WithKeysOnly())
	if err != nil {
		return fmt.Errorf("reading the encryption keys in the store: %w", err)
	}
	changes := k.watch(ctx, now.Header.Revision+1)
	for {
		generation, err := k.shared.Pull(ctx)
		if err != nil {
			return err
		}
		if generation > 0 {
			loaded, err := k.loaded(ctx, config, changes)
			if err != nil {
				return err
			}
			if !loaded { // there are newer ones
				continue
			}
			if err := k.settle(ctx); err != nil {
				return err
			}
			if err := k.shared.Confirm(ctx, k.serverID, generation); err != nil {
				return err
			}
			k.log.Info("the API server goes by the cluster's encryption keys", "generation", generation)
		}
		select {
		case <-ctx.Done():
			return nil
		case w, open := <-changes:
			if err := w.Err(); !open || err != nil {
				return errors.Join(errors.New("the watch for the encryption keys has ended"), err)
			}
		}
	}
}

// loaded returns when the API server has loaded the configuration; false when there is something newer before.
func (k *EncryptionKeys) loaded(ctx context.Context, config *rest.Config, changes clientv3.WatchChan) (bool, error) {
	want, err := encryption.ConfigHash(k.shared.Dir)
	if err != nil {
		return false, err
	}
	for {
		hashes, err := encryption.LoadedHashes(ctx, config)
		if err == nil && len(hashes) == 0 {
			hashes = []string{k.atStart}
		}
		if err == nil && !slices.ContainsFunc(hashes, func(h string) bool { return h != want }) {
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, errors.Join(ctx.Err(), err)
		case w, open := <-changes:
			if err := w.Err(); !open || err != nil {
				return false, errors.Join(errors.New("the watch for the encryption keys has ended"), err)
			}
			return false, nil
		case <-time.After(keysLoadedPoll):
		}
	}
}

// settle returns when nothing is under way any more that was encrypted before the API server had loaded the present
// keys. Such a write may wait for a leader for as long as a request takes; when all servers have the new keys, and
// every object was written again, nobody could read what it brings.
func (k *EncryptionKeys) settle(ctx context.Context) error {
	if !timers.Sleep(ctx, keysSettle) {
		return ctx.Err()
	}
	if err := k.drain(ctx); err != nil {
		return fmt.Errorf("waiting for writes of before the keys were loaded: %w", err)
	}
	return nil
}
