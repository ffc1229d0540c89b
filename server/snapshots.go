// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/robfig/cron/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/s3settings"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/joinrequest"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/secrets"
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
	// S3 says whether they are kept in an object store too, with the settings S3Settings and, behind those, the ones in
	// the Secret S3Secret of kube-system, if it is named.
	S3         bool
	S3Settings map[string]string
	S3Secret   string
	// KeyFile holds the key that encrypts them; empty for the server token.
	KeyFile string
}

// SnapshotFiles are the files of a snapshot, by their path below the server's folder. Those of the second kind may be
// missing.
func SnapshotFiles() (required, optional []string) {
	required, optional = secrets.CommonFiles()
	// A server that joins gets it in another way, and only as long as it is of use.
	return append(required, joinrequest.File), append(optional, filepath.Join("tls", pki.FormerKubeletCAName))
}

// Snapshots answers on the admin socket.
func (s *Server) Snapshots() http.Handler { return s.snapshots.Handler() }

func (s *Server) newSnapshots() *snapshots.Keeper {
	return snapshots.NewKeeper(snapshots.Options{
		Dir: s.o.Snapshots.Dir, Retention: s.o.Snapshots.Retention, Cluster: token.Hash(s.pki.Root()), Server: s.o.NodeName, Version: s.o.Version,
		Store: openStore{s}, Contents: s.snapshotContents, Key: s.snapshotKey,
		Schedule: s.o.Snapshots.Schedule, Ordinal: s.snapshotOrdinal, S3: s.snapshotS3,
		Part: s.board.snapshots, Clock: s.o.Clock, Logger: s.log.With("part", "snapshots"),
	})
}

// snapshotOrdinal is this server's among all, by their names in the store.
func (s *Server) snapshotOrdinal() snapshots.Ordinal {
	store := s.store.Load()
	if store == nil {
		return snapshots.Ordinal{Of: 1}
	}
	return ordinalAmong(store.Cluster().Members(), s.data.ServerID())
}

// ordinalAmong is a server's ordinal among the members of the store. All servers have the same members, so that no two
// have one ordinal.
func ordinalAmong(members []raftstore.Member, server string) snapshots.Ordinal {
	out := snapshots.Ordinal{Of: max(1, len(members))}
	for _, m := range members {
		if m.Name < server {
			out.Number++
		}
	}
	return out
}

// snapshotS3 returns nil if snapshots are kept on this machine only. What a request says of S3 goes before what this
// server was told.
func (s *Server) snapshotS3(ctx context.Context) (*s3settings.S3, error) {
	o, asked := &s.o.Snapshots, snapshots.Asked(ctx)
	on := o.S3
	if asked.On != nil {
		on = *asked.On
	}
	switch {
	case !on && asked.On == nil && len(asked.Values) > 0:
		return nil, errors.New("settings for S3 were given, but this server keeps snapshots on its machine only: add --snapshot-s3")
	case !on:
		return nil, nil
	}
	values := o.S3Settings
	if o.S3Secret != "" {
		client, err := s.admission.API()
		if err != nil {
			return nil, fmt.Errorf("the settings for S3 are in a Secret: %w", err)
		}
		if values, err = s3Values(ctx, client, o.S3Secret, values); err != nil {
			return nil, err
		}
	}
	out, err := s3settings.Parse(s3settings.Over(values, asked.Values))
	if err != nil {
		return nil, fmt.Errorf("the settings for S3: %w", err)
	}
	return out, nil
}

// s3Values puts the settings that were given over those in the Secret. The certificate of an authority may be in a
// ConfigMap that the Secret names, as with k3s.
func s3Values(ctx context.Context, client kubernetes.Interface, name string, given map[string]string) (map[string]string, error) {
	secret, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the settings for S3: %w", err)
	}
	values := s3settings.FromSecret(secret.Data)
	if ca := values[s3settings.EndpointCAName]; ca != "" {
		cm, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, ca, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("reading the authority of the S3 server: %w", err)
		}
		for _, key := range slices.Sorted(maps.Keys(cm.Data)) {
			values[s3settings.EndpointCA] += cm.Data[key] + "\n"
		}
	}
	return s3settings.Over(values, given), nil
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
	return snapshots.KeyOfToken(s.tokens.Now().Server.String())
}

// snapshotContents reads what a server that joins would get, too.
func (s *Server) snapshotContents() (snapshots.Contents, error) {
	joined, err := json.Marshal(&joinrequest.Joined{Settings: s.o.Cluster, NodePortRange: s.o.NodePortRange, EncryptResources: s.o.EncryptResources})
	if err != nil {
		return snapshots.Contents{}, err
	}
	out := snapshots.Contents{Files: map[string][]byte{joinrequest.File: joined}}
	required, optional := SnapshotFiles()
	for _, name := range slices.Concat(required, optional) {
		if name == joinrequest.File {
			continue // above
		}
		data, err := os.ReadFile(s.o.folders().Path(name))
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
