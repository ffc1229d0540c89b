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
	"sync/atomic"

	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/admission"
	"github.com/coracle-k8s/coracle/server/secrets"
	"github.com/coracle-k8s/coracle/server/snapshots"
)

// SnapshotFiles are the files of a snapshot, by their path below the server's folder. Those of the second kind may be
// missing.
func SnapshotFiles() (required, optional []string) {
	required, optional = secrets.CommonFiles()
	return append(required, admission.JoinedFile), optional
}

// SnapshotsHandler answers on the admin socket.
func (s *Server) SnapshotsHandler() http.Handler { return s.snapshots.Handler() }

func (s *Server) newSnapshots() *snapshots.Keeper {
	o, members := s.o.Snapshots, membersOf(&s.store)
	return snapshots.NewKeeper(snapshots.Options{
		Dir: o.Dir, Retention: o.Retention, Cluster: token.Hash(s.pki.Root()), Server: s.o.NodeName, Version: s.o.Version,
		Store: openStore{&s.store}, Contents: s.o.snapshotContents, Schedule: o.Schedule,
		Key: func() (snapshots.Key, error) {
			if o.KeyFile != "" {
				return snapshots.KeyOfFile(o.KeyFile)
			}
			return snapshots.KeyOfToken(s.tokens.Now().Server.String())
		},
		Ordinal: func() snapshots.Ordinal { return snapshots.OrdinalAmong(members(), s.data.ServerID()) },
		S3: snapshots.S3Settings{
			On: o.S3, Values: o.S3Settings, Secret: o.S3Secret, API: s.admission.API,
		}.For,
		Part: s.board.snapshots, Clock: s.o.Clock, Logger: s.log.With("part", "snapshots"),
	})
}

// openStore is the server's store, which is there some time after the server.
type openStore struct {
	now *atomic.Pointer[raftstore.Store]
}

func (o openStore) BeginBackup(ctx context.Context) (*raftstore.Backup, error) {
	store := o.now.Load()
	if store == nil {
		return nil, errors.New("the store is not ready yet; coracle status says why")
	}
	return store.BeginBackup(ctx)
}

// snapshotContents reads what a server that joins would get, too.
func (o *Options) snapshotContents() (snapshots.Contents, error) {
	joined, err := json.Marshal(&admission.Joined{
		Settings: o.Cluster, NodePortRange: o.NodePortRange, EncryptResources: o.EncryptResources,
	})
	if err != nil {
		return snapshots.Contents{}, err
	}
	out := snapshots.Contents{Files: map[string][]byte{admission.JoinedFile: joined}}
	required, optional := SnapshotFiles()
	for _, name := range slices.Concat(required, optional) {
		if name == admission.JoinedFile {
			continue // above
		}
		data, err := os.ReadFile(o.folders().Path(name))
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
