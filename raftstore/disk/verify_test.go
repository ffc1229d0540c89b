// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

// contents is a checksum of every file below dir.
func contents(t *testing.T, dir string) string {
	t.Helper()
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(sum, "%s %d\n%s", path, len(data), data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

func TestInspect(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	if _, err := Inspect(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	d := mustOpen(t, dir)
	if err := d.Vars.SetUint64([]byte("CurrentTerm"), 3); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(5) {
		if err := d.Log.StoreLog(&raft.Log{Index: i + 1, Term: 3, Data: []byte("entry")}); err != nil {
			t.Fatal(err)
		}
	}
	sink, err := d.Snapshots.Create(1, 2, 3, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write([]byte("state")); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	var inUse *InUseError
	if _, err := Inspect(dir); !errors.As(err, &inUse) {
		t.Errorf("while it is open: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	before := contents(t, dir)
	i, err := Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	if i.FirstIndex != 1 || i.LastIndex != 5 || i.LastTerm != 3 || i.LogBytes != 25 || i.Torn != "" {
		t.Errorf("the log: %+v", i)
	}
	r, err := i.State()
	if err != nil {
		t.Fatal(err)
	}
	if state, err := io.ReadAll(r); err != nil || string(state) != "state" || i.Snapshot.Index != 2 {
		t.Errorf("the snapshot of entry %d: %q, %v", i.Snapshot.Index, state, err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(options(dir)); !errors.As(err, &inUse) {
		t.Errorf("opening what is looked at: %v", err)
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	if contents(t, dir) != before {
		t.Error("looking changed something")
	}

	segment := segmentPath(filepath.Join(dir, logDir), 1)
	data, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	data[segmentHeader+recordHeader] ^= 1
	if err := os.WriteFile(segment, data, 0o600); err != nil {
		t.Fatal(err)
	}
	var damage *DamageError
	if _, err := Inspect(dir); !errors.As(err, &damage) || damage.Path != segment {
		t.Errorf("a flipped bit: %v", err)
	}
}
