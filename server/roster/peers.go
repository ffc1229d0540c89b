// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore"
)

const (
	// PeersFile contains the addresses of the other servers' stores. It is not in the store's folder: a server whose
	// store was lost or removed still belongs to its cluster, and must not start another one with the same keys.
	PeersFile = "peers.json"
	// peersEvery is how often the members are compared with the file. The file is written when they differ.
	peersEvery = 5 * time.Second
)

// ReadPeerAddresses returns the addresses of the other servers when a server of this folder ran last. It returns none
// if that was the only server.
func ReadPeerAddresses(serverDir string) ([]string, error) {
	path := filepath.Join(serverDir, PeersFile)
	var peers []string
	if _, err := atomicfile.ReadJSON(path, &peers); err != nil {
		return nil, fmt.Errorf("reading who the other servers are: %s: %w. Nothing was changed: write the addresses of the cluster's "+
			"servers there, like "+
			`["10.0.0.2:6443"], or remove the file if this is the only one`, path, err)
	}
	return peers, nil
}

// SyncPeers writes the members to PeersFile when they have changed, until ctx is done.
func (r *Roster) SyncPeers(ctx context.Context) {
	last := ""
	for {
		if err := savePeers(r.o.Dir, r.o.Store.Members()); err != nil && err.Error() != last {
			last = err.Error()
			r.o.Logger.Warn("the other servers' addresses could not be saved; retrying", "error", err)
		}
		if !timers.Sleep(ctx, peersEvery) {
			return
		}
	}
}

// SavePeers writes PeersFile at once.
func (r *Roster) SavePeers() {
	if err := savePeers(r.o.Dir, r.o.Store.Members()); err != nil {
		r.o.Logger.Warn("the other servers' addresses could not be saved; retrying", "error", err)
	}
}

// HasPeers says whether PeersFile exists, which means that this server knew other servers.
func HasPeers(serverDir string) bool {
	_, err := os.Lstat(filepath.Join(serverDir, PeersFile))
	return err == nil
}

func savePeers(dir string, members []raftstore.Member) error {
	if len(members) == 0 {
		return nil // not known yet
	}
	peers := otherAddresses(members)
	path := filepath.Join(dir, PeersFile)
	if len(peers) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	slices.Sort(peers)
	return atomicfile.WriteJSON(path, peers, 0o600)
}
