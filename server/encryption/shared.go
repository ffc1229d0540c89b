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
	// SharedKey is where the store has the cluster's keys, sealed, once they were rotated. What the API server keeps
	// has other names.
	SharedKey = "/coracle/encryption/keys"
	// sharedServers, with a server's name behind it, is where that server says which generation of them it goes by.
	sharedServers = "/coracle/encryption/servers/"
)

// Shared are the keys that a cluster's servers have in common. The store has them, sealed with a secret that the
// servers have in files and the store does not hold, and each server has a copy in its folder, which its API server
// reads (docs/adr/0051-servers-authority-and-rotation.md).
type Shared struct {
	KV clientv3.KV
	// Secret is known to the servers of the cluster alone.
	Secret []byte
	// Dir is this server's Options.Dir.
	Dir string
}

// sharedKeys is what the store has.
type sharedKeys struct {
	// Generation grows with each change.
	Generation uint64 `json:"generation"`
	State      state  `json:"state"`
	// Keys are in the order of the configuration: the first one writes, all read.
	Keys []key `json:"keys"`
	// Forgotten are the names of keys that nothing in the store needs any more. A key that a server has and that stands
	// nowhere here is kept for reading.
	Forgotten []string `json:"forgotten,omitempty"`

	revision int64 // of the store's key; 0 while there is none
}

// Pull makes this server's files say what the store does, and returns the generation; 0 when the store has no keys, or
// the configuration was written by hand.
func (s Shared) Pull(ctx context.Context) (uint64, error) {
	// What is read before the lock is held may be older than what another process has written since.
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

// merged are the keys that a server with these has to have.
func (r sharedKeys) merged(have []key) []key {
	out := slices.Clone(r.Keys)
	for _, k := range have {
		if !slices.ContainsFunc(out, func(o key) bool { return o.Name == k.Name }) && !slices.Contains(r.Forgotten, k.Name) {
			out = append(out, k)
		}
	}
	return out
}

// Confirm says that the API server of a server goes by a generation.
func (s Shared) Confirm(ctx context.Context, server string, generation uint64) error {
	if _, err := s.KV.Put(ctx, sharedServers+server, strconv.FormatUint(generation, 10)); err != nil {
		return fmt.Errorf("telling the other servers that this one has the encryption keys: %w", err)
	}
	return nil
}

// confirmed are the servers with the generation that each goes by.
func (s Shared) confirmed(ctx context.Context) (map[string]uint64, error) {
	answer, err := s.KV.Get(ctx, sharedServers, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("asking which servers have the encryption keys: %w", err)
	}
	out := map[string]uint64{}
	for _, kv := range answer.Kvs {
		if n, err := strconv.ParseUint(string(kv.Value), 10, 64); err == nil {
			out[strings.TrimPrefix(string(kv.Key), sharedServers)] = n
		}
	}
	return out, nil
}

// ConfigHash is how upstream names the configuration in dir; "" if there is none.
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

// put writes the record as the next generation, if no other server has meanwhile.
func (s Shared) put(ctx context.Context, r sharedKeys) (sharedKeys, error) {
	r.Generation++
	revision, err := s.box().Put(ctx, r, r.revision)
	if errors.Is(err, storecrypt.ErrChanged) {
		return r, errOtherRotation
	}
	if err != nil { // it may have been written all the same
		now, readErr := s.read(ctx)
		if readErr != nil || now.Generation != r.Generation || now.State != r.State || !slices.Equal(now.Keys, r.Keys) {
			return r, err
		}
		return now, nil
	}
	r.revision = revision
	return r, nil
}
