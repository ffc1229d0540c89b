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

// maxBackups is how many backups may be read at the same time. Each keeps the
// memory of what it still has to read, beside the quota.
const maxBackups = 4

var (
	errTooManyBackups = status.Errorf(codes.ResourceExhausted,
		"raftstore: %d backups are being read already. Wait until one of them is complete, or end it", maxBackups)
	errSlowBackup = status.Error(codes.Aborted,
		"raftstore: the backup was read too slowly: too much was written to the store meanwhile to keep what the backup still needs. "+
			"The store is fine; what was received is no backup. Read it faster, for example to a local disk")
)

// Backup is the whole state as of one revision: keys, history and leases. Writes
// go on meanwhile.
//
// Until Close, the store keeps up to twice Options.HistoryBytes of history for
// it. Beyond that, writing it fails.
type Backup struct {
	view     *mvcc.View
	snapshot *mvcc.Snapshot
	close    func()
}

// BeginBackup takes the newest state that the cluster has acknowledged.
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

// Revision is the store's revision that the backup is of.
func (b *Backup) Revision() int64 { return b.snapshot.Revision() }

// Keys is how many keys exist.
func (b *Backup) Keys() int64 { return b.view.Stats().Keys }

// Changed says what the keys that do not begin with any of the prefixes are: how
// many, and the revision of the newest. Two backups for which both are equal
// hold the same of them: a write raises the revision, and a deletion lowers the
// number unless there was a write. The compactor's mark is none of them: it is
// written every five minutes, also when a lease alone was renewed since.
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

// Close lets the store forget what the backup needed.
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
