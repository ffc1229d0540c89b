// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
)

func TestSummary(t *testing.T) {
	m := newMachine(t)
	if got, err := m.Summary(); err != nil || got != (status.Snapshots{}) {
		t.Errorf("before the first one: %+v, %v", got, err)
	}
	if _, err := m.Save(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	m.clock.Step(time.Hour)
	newest, err := m.Save(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	_ = m.count(errors.New("the disk is full"))
	// What is no snapshot does not count.
	if err := os.WriteFile(filepath.Join(m.o.Dir, "notes.txt"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := status.Snapshots{Count: 2, Last: start.Add(time.Hour), LastSize: newest.Size, Failures: 1}
	if got, err := m.Summary(); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}
