// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/raftstore"
)

const (
	// peersFile has the addresses of the other servers' stores. It lies beside the store: a server whose store is lost
	// or was taken away belongs to a cluster nevertheless, and must not begin another one with the same keys.
	peersFile = "peers.json"
	// peersEvery is how often the members are compared with the file; it is written when they differ.
	peersEvery = 5 * time.Second
)

// OtherServers reads who the other servers were when a server of this folder ran last; none if it was the only one.
func OtherServers(serverDir string) ([]string, error) {
	path := filepath.Join(serverDir, peersFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var peers []string
	if err == nil {
		err = json.Unmarshal(data, &peers)
	}
	if err != nil {
		return nil, fmt.Errorf("reading who the other servers are: %s: %w. Nothing was changed: write the addresses of the cluster's servers there, like "+
			`["10.0.0.2:6443"], or remove the file if this is the only one`, path, err)
	}
	return peers, nil
}

// keepPeers keeps that file until ctx is done.
func (s *Server) keepPeers(ctx context.Context, store *raftstore.Store) {
	last := ""
	for {
		if err := savePeers(s.o.ServerDir, store.Members()); err != nil && err.Error() != last {
			last = err.Error()
			s.log.Warn("the other servers' addresses could not be kept; it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(peersEvery):
		}
	}
}

func savePeers(dir string, members []raftstore.Member) error {
	if len(members) == 0 {
		return nil // not known yet
	}
	var peers []string
	for _, m := range members {
		if !m.Self {
			peers = append(peers, m.Address)
		}
	}
	path := filepath.Join(dir, peersFile)
	if len(peers) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	slices.Sort(peers)
	data, err := json.Marshal(peers)
	if err != nil {
		return err
	}
	_, err = atomicfile.WriteIfDifferent(path, append(data, '\n'), 0o600)
	return err
}
