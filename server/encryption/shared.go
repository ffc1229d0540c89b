// SPDX-License-Identifier: Apache-2.0

package encryption

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/server/storecrypt"
)

const (
	// SharedKey is the store's key with the cluster's encryption keys, sealed. It exists once they were rotated. The
	// API server's own keys in the store have other names.
	SharedKey = "/coracle/encryption/keys"
	// sharedServers, followed by a server's name, is the key with the generation that the server has loaded.
	sharedServers = "/coracle/encryption/servers/"
)

// Shared are the encryption keys that a cluster's servers share. The store has them, sealed with a secret that servers
// have in files and that is not in the store. Each server has a copy in its folder, which its API server reads
// (docs/adr/0051-servers-authority-and-rotation.md).
type Shared struct {
	KV clientv3.KV
	// Secret is known only to the servers of the cluster.
	Secret []byte
	// Dir is this server's Options.Dir.
	Dir string
}

// sharedKeys is the value in the store that all servers share.
type sharedKeys struct {
	// Generation is incremented by each change.
	Generation uint64 `json:"generation"`
	State      state  `json:"state"`
	// Keys are in the order of the configuration: the first one writes, all read.
	Keys []key `json:"keys"`
	// Forgotten are the names of keys that no value in the store needs any more. A server keeps, for reading, a key
	// that is in neither list.
	Forgotten []string `json:"forgotten,omitempty"`

	revision int64 // of the store's key; 0 while there is none
}

// Pull updates this server's files from the store. It returns the generation, or 0 when the store has no keys or the
// configuration was written by hand.
func (s Shared) Pull(ctx context.Context) (uint64, error) {
	// Data read before the lock is held may be older than what another process has written since.
	editing, err := lock(ctx, filepath.Join(s.Dir, editLock), true)
	if err != nil {
		return 0, err
	}
	defer editing.Close()
	r, err := s.read(ctx)
	if err != nil || r.revision == 0 {
		return 0, err
	}
	path := filepath.Join(s.Dir, configFile)
	l, err := readLayout(path)
	if errors.Is(err, errForeign) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	l.keys = r.merged(l.keys)
	if _, err := l.write(ctx, path); err != nil {
		return 0, err
	}
	if now, err := readState(s.Dir); err == nil && now == r.State {
		return r.Generation, nil
	}
	return r.Generation, r.State.write(s.Dir)
}

// merged returns the keys for a server that has the keys have.
func (r sharedKeys) merged(have []key) []key {
	out := slices.Clone(r.Keys)
	for _, k := range have {
		if !slices.ContainsFunc(out, func(o key) bool { return o.Name == k.Name }) && !slices.Contains(r.Forgotten, k.Name) {
			out = append(out, k)
		}
	}
	return out
}

// Confirm records that a server's API server has loaded a generation.
func (s Shared) Confirm(ctx context.Context, server string, generation uint64) error {
	if _, err := s.KV.Put(ctx, sharedServers+server, strconv.FormatUint(generation, 10)); err != nil {
		return fmt.Errorf("recording that this server has the encryption keys: %w", err)
	}
	return nil
}

// confirmed returns the generation that each server has loaded.
func (s Shared) confirmed(ctx context.Context) (map[string]uint64, error) {
	answer, err := s.KV.Get(ctx, sharedServers, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("reading which servers have the encryption keys: %w", err)
	}
	out := map[string]uint64{}
	for _, kv := range answer.Kvs {
		if n, err := strconv.ParseUint(string(kv.Value), 10, 64); err == nil {
			out[strings.TrimPrefix(string(kv.Key), sharedServers)] = n
		}
	}
	return out, nil
}

// ConfigHash returns upstream's name for the configuration in dir, empty if there is none.
func ConfigHash(dir string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, configFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the encryption configuration: %w", err)
	}
	return contentHash(data), nil
}

func (s Shared) box() storecrypt.Box {
	return storecrypt.Box{KV: s.KV, Secret: s.Secret, Key: SharedKey}
}

func (s Shared) read(ctx context.Context) (sharedKeys, error) {
	var r sharedKeys
	revision, err := s.box().Get(ctx, &r)
	if err != nil || revision == 0 {
		return sharedKeys{}, err
	}
	if r.Generation == 0 || len(r.Keys) == 0 || r.State.Stage == "" {
		return sharedKeys{}, errors.New("the encryption keys in the store are incomplete")
	}
	r.revision = revision
	return r, nil
}

var errOtherRotation = errors.New("another server rotates the encryption key at this moment. This rotation stops, everything stays " +
	"readable; when the other one has ended, run it again if the key is to " +
	"be replaced once more")

// writeRecord writes the record as the next generation, unless another server has written one in the meantime.
func (s Shared) writeRecord(ctx context.Context, r sharedKeys) (sharedKeys, error) {
	r.Generation++
	revision, err := s.box().Put(ctx, r, r.revision)
	if errors.Is(err, storecrypt.ErrChanged) {
		return r, errOtherRotation
	}
	if err != nil { // it may have been written nevertheless
		now, readErr := s.read(ctx)
		if readErr != nil || now.Generation != r.Generation || now.State != r.State || !slices.Equal(now.Keys, r.Keys) {
			return r, err
		}
		return now, nil
	}
	r.revision = revision
	return r, nil
}
