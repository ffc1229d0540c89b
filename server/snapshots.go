// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"

	"github.com/robfig/cron/v3"

	"github.com/coracle-k8s/coracle/internal/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/snapshots"
)

// SnapshotOptions say when the cluster is saved, and where to.
type SnapshotOptions struct {
	// Dir is the folder for the files.
	Dir string
	// Retention is how many scheduled ones are kept.
	Retention int
	// Schedule says when they are taken; nil for never.
	Schedule cron.Schedule
	// KeyFile holds the key that encrypts them; empty for the server token.
	KeyFile string
}

// SnapshotFiles are the files of a snapshot, by their path below the server's folder. Those of the second kind may be missing.
func SnapshotFiles() (required, optional []string) {
	required, optional = commonFiles()
	return append(required, joinedFile), optional
}

// Snapshots answers on the admin socket.
func (s *Server) Snapshots() http.Handler { return s.snapshots.Handler() }

func (s *Server) newSnapshots() *snapshots.Keeper {
	return snapshots.NewKeeper(snapshots.Options{
		Dir: s.o.Snapshots.Dir, Retention: s.o.Snapshots.Retention, Cluster: token.Hash(s.pki.Root()), Server: s.o.NodeName, Version: s.o.Version,
		Store: openStore{s}, Contents: s.snapshotContents, Key: s.snapshotKey,
		Schedule: s.o.Snapshots.Schedule, Place: s.snapshotPlace,
		Part: s.board.snapshots, Clock: s.o.Clock, Logger: s.log.With("part", "snapshots"),
	})
}

// snapshotPlace is this server's among all, by their names in the store.
func (s *Server) snapshotPlace() snapshots.Place {
	store := s.store.Load()
	if store == nil {
		return snapshots.Place{Of: 1}
	}
	members := store.Members()
	out := snapshots.Place{Of: max(1, len(members))}
	for _, m := range members {
		if m.Name < s.data.ServerID() {
			out.Number++
		}
	}
	return out
}

// openStore is the server's store, which is there some time after the server.
type openStore struct{ s *Server }

func (o openStore) BeginBackup(ctx context.Context) (*raftstore.Backup, error) {
	store := o.s.store.Load()
	if store == nil {
		return nil, errors.New("the store is not ready yet; coracle status says why")
	}
	return store.BeginBackup(ctx)
}

func (s *Server) snapshotKey() (snapshots.Key, error) {
	if s.o.Snapshots.KeyFile != "" {
		return snapshots.KeyOfFile(s.o.Snapshots.KeyFile)
	}
	return snapshots.KeyOfToken(s.tokens.Server.String())
}

// snapshotContents reads what a server that joins would get, too.
func (s *Server) snapshotContents() (snapshots.Contents, error) {
	joined, err := json.Marshal(&Joined{Settings: s.o.Cluster, NodePortRange: s.o.NodePortRange, EncryptResources: s.o.EncryptResources})
	if err != nil {
		return snapshots.Contents{}, err
	}
	out := snapshots.Contents{Files: map[string][]byte{joinedFile: joined}}
	required, optional := commonFiles()
	for _, name := range slices.Concat(required, optional) {
		data, err := os.ReadFile(s.o.path(name))
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(optional, name) {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("reading the cluster's keys: %w", err)
		}
		out.Files[name] = data
	}
	return out, nil
}
