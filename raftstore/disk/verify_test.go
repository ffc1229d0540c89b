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

	"github.com/coracle-k8s/coracle/test/testenv"
)

// contents is a checksum of every file below dir.
func contents(t *testing.T, dir string) string {
	t.Helper()
	sum := sha256.New()
	testenv.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(sum, "%s %d\n%s", path, len(data), data)
		return err
	}))
	return fmt.Sprintf("%x", sum.Sum(nil))
}

func TestInspectReportsWithoutOpening(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	testenv.ErrorIs(t, testenv.Err(Inspect(dir)), fs.ErrNotExist, "nothing there")
	d := mustOpen(t, dir)
	testenv.NoError(t, d.Vars.SetUint64([]byte("CurrentTerm"), 3))
	for i := range uint64(5) {
		testenv.NoError(t, d.Log.StoreLog(&raft.Log{Index: i + 1, Term: 3, Data: []byte("entry")}))
	}
	sink := testenv.Must(d.Snapshots.Create(1, 2, 3, raft.Configuration{}, 1, nil))(t)
	testenv.Must(sink.Write([]byte("state")))(t)
	testenv.NoError(t, sink.Close())
	var inUse *InUseError
	if _, err := Inspect(dir); !errors.As(err, &inUse) {
		t.Errorf("while it is open: %v", err)
	}
	testenv.NoError(t, d.Close())
	before := contents(t, dir)
	i := testenv.Must(Inspect(dir))(t)
	testenv.False(t, i.FirstIndex != 1 || i.LastIndex != 5 || i.LastTerm != 3 || i.LogBytes != 25 || i.Torn != "", "the log: %+v", i)
	r := testenv.Must(i.State())(t)
	if state, err := io.ReadAll(r); err != nil || string(state) != "state" || i.Snapshot.Index != 2 {
		t.Errorf("the snapshot of entry %d: %q, %v", i.Snapshot.Index, state, err)
	}
	testenv.NoError(t, r.Close())
	if _, err := Open(options(dir)); !errors.As(err, &inUse) {
		t.Errorf("opening what is looked at: %v", err)
	}
	testenv.NoError(t, i.Close())
	testenv.Equal(t, contents(t, dir), before, "looking changed something:")

	segment := segmentPath(filepath.Join(dir, logDir), 1)
	data := testenv.Must(os.ReadFile(segment))(t)
	data[segmentHeader+recordHeader] ^= 1
	testenv.NoError(t, os.WriteFile(segment, data, 0o600))
	var damage *DamageError
	if _, err := Inspect(dir); !errors.As(err, &damage) || damage.Path != segment {
		t.Errorf("a flipped bit: %v", err)
	}
}
