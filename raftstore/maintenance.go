// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"io"
)

// Backup writes the whole state, as of one revision that it returns, to w:
// keys, history and leases. Writes go on meanwhile. Restore reads it.
func (s *Store) Backup(ctx context.Context, w io.Writer) (revision int64, err error) {
	view, err := s.Linearizable(ctx)
	if err != nil {
		return 0, err
	}
	snapshot := view.Snapshot()
	defer snapshot.Release()
	if _, err := snapshot.WriteTo(w); err != nil {
		return 0, fmt.Errorf("raftstore: back up: %w", err)
	}
	return snapshot.Revision(), nil
}
