// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// maxBackups is how many backups may be read at the same time. Each keeps in memory what it has not yet written, beyond
// the quota.
const maxBackups = 4

var (
	errTooManyBackups = status.Errorf(codes.ResourceExhausted,
		"raftstore: %d backups are being read already. Wait until one of them is complete, or end it", maxBackups)
	errSlowBackup = status.Error(codes.Aborted,
		"raftstore: the backup was read too slowly: too much was written to the store meanwhile to keep what the backup still needs. "+
			"The store is fine; what was received is no backup. Read it faster, for example to a local disk")
)

// Backup is the whole state at one revision: keys, history and leases. Writes continue meanwhile.
//
// Until Close, the store keeps up to twice Options.HistoryBytes of history for it. If more is needed, writing the
// backup fails.
type Backup struct {
	view     *mvcc.View
	snapshot *mvcc.Snapshot
	close    func()
}

// Level returns the cluster's level in the backup.
func (b *Backup) Level() int { return b.view.Level() }

// BeginBackup begins a backup of the newest state that the cluster has acknowledged.
func (s *Store) BeginBackup(ctx context.Context) (*Backup, error) {
	view, err := s.Linearizable(ctx)
	if err != nil {
		return nil, err
	}
	if s.backups.Add(1) > maxBackups {
		s.backups.Add(-1)
		return nil, errTooManyBackups
	}
	b := &Backup{view: view, snapshot: view.SnapshotWithin(2 * s.replica.opts.HistoryBytes)}
	b.close = sync.OnceFunc(func() {
		b.snapshot.Release()
		s.backups.Add(-1)
	})
	return b, nil
}

// Revision returns the revision of the backup.
func (b *Backup) Revision() int64 { return b.snapshot.Revision() }

// Keys returns how many keys exist.
func (b *Backup) Keys() int64 { return b.view.Stats().Keys }

// Changed describes the keys that begin with none of the prefixes in except: it returns the newest revision of these
// keys, and their number. If both are equal for two backups, these keys are the same in both: a write raises the
// revision, and a deletion lowers the number unless there was a write. The compactor's mark is left out: it is written
// every five minutes, even if only a lease was renewed since.
func (b *Backup) Changed(except ...string) (newest, keys int64) {
	b.view.Walk([]byte{0}, []byte{0}, b.view.Revision(), func(v *mvcc.Version) bool {
		kv := v.KV()
		if string(kv.Key) == compactKey {
			return true
		}
		for _, prefix := range except {
			if bytes.HasPrefix(kv.Key, []byte(prefix)) {
				return true
			}
		}
		newest, keys = max(newest, kv.ModRevision), keys+1
		return true
	})
	return newest, keys
}

// WritePacked writes the backup, compressed. Restore reads it.
func (b *Backup) WritePacked(w io.Writer) error { return backupError(b.snapshot.WritePacked(w)) }

// Close frees what the store has kept for the backup.
func (b *Backup) Close() { b.close() }

// Backup writes a backup to w and returns its revision. Restore reads it.
func (s *Store) Backup(ctx context.Context, w io.Writer) (revision int64, err error) {
	b, err := s.BeginBackup(ctx)
	if err != nil {
		return 0, err
	}
	defer b.Close()
	_, err = b.snapshot.WriteTo(w)
	return b.Revision(), backupError(err)
}

func backupError(err error) error {
	if errors.Is(err, mvcc.ErrOvertaken) {
		return errSlowBackup
	}
	if err != nil {
		return fmt.Errorf("raftstore: back up: %w", err)
	}
	return nil
}
