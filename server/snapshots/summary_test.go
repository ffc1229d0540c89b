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

func TestSummary(t *testing.T) {
	m := newMachine(t)
	if got, err := m.Summary(); err != nil || got != (status.Snapshots{}) {
		t.Errorf("before the first one: %+v, %v", got, err)
	}
	testenv.Must(m.Save(t.Context(), ""))(t)
	m.clock.Step(time.Hour)
	newest := testenv.Must(m.Save(t.Context(), ""))(t)
	_ = m.count(errors.New("the disk is full"))
	// What is no snapshot does not count.
	testenv.NoError(t, os.WriteFile(filepath.Join(m.o.Dir, "notes.txt"), []byte("hello"), 0o600))
	want := status.Snapshots{Count: 2, Last: start.Add(time.Hour), LastSize: newest.Size, Failures: 1}
	if got, err := m.Summary(); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}
