// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"

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

// Backup writes the whole state, as of one revision that it returns, to w:
// keys, history and leases. Writes go on meanwhile. Restore reads it.
//
// While w takes nothing, the store keeps up to twice Options.HistoryBytes of
// history for the backup. Beyond that the backup fails.
func (s *Store) Backup(ctx context.Context, w io.Writer) (revision int64, err error) {
	view, err := s.Linearizable(ctx)
	if err != nil {
		return 0, err
	}
	if s.backups.Add(1) > maxBackups {
		s.backups.Add(-1)
		return 0, errTooManyBackups
	}
	defer s.backups.Add(-1)
	snapshot := view.SnapshotWithin(2 * s.opts.HistoryBytes)
	defer snapshot.Release()
	if _, err := snapshot.WriteTo(w); errors.Is(err, mvcc.ErrOvertaken) {
		return 0, errSlowBackup
	} else if err != nil {
		return 0, fmt.Errorf("raftstore: back up: %w", err)
	}
	return snapshot.Revision(), nil
}
