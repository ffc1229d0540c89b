// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestSummaryCountsSnapshotsAndFailures(t *testing.T) {
	m := newMachine(t)
	testenv.Equal(t, testenv.Must(m.Summary())(t), (status.Snapshots{}), "before the first one:")
	testenv.Must(m.Save(t.Context(), ""))(t)
	m.Clock.Step(time.Hour)
	newest := testenv.Must(m.Save(t.Context(), ""))(t)
	_ = m.count(errors.New("the disk is full"))
	// What is no snapshot does not count.
	testenv.NoError(t, os.WriteFile(filepath.Join(m.o.Dir, "notes.txt"), []byte("hello"), 0o600))
	want := status.Snapshots{Count: 2, Last: start.Add(time.Hour), LastSize: newest.Size, Failures: 1}
	testenv.Equal(t, testenv.Must(m.Summary())(t), want, "")
}
