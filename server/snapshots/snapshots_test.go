// SPDX-License-Identifier: Apache-2.0

package snapshots_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/datadir"
	"github.com/coracle-k8s/coracle/server/snapshots"
	"github.com/coracle-k8s/coracle/server/storefiles"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestClusterIsRestoredOnBlankMachine: a file and the token make the cluster again, and its revision is ahead of all
// that was seen.
func TestClusterIsRestoredOnBlankMachine(t *testing.T) {
	m := snapshots.NewMachine(t)
	m.Key = snapshots.MustKey(t, m.Token)
	m.Put("/registry/secrets/a/b", "treasure")
	info := m.MustSave()
	if info.Name != "on-demand-board1-20261121T000001Z" || info.Keys != 1 || info.Revision != 2 || info.Key != snapshots.TokenKey || info.Server != "board1" {
		t.Errorf("%+v", info)
	}
	if st, err := os.Stat(info.Location); err != nil || st.Mode().Perm() != 0o600 || st.Size() != info.Size {
		t.Errorf("%v, %v", st, err)
	}
	data, err := os.ReadFile(info.Location)
	if err != nil || bytes.Contains(data, []byte("treasure")) || bytes.Contains(data, []byte("PRIVATE KEY")) || bytes.Contains(data, []byte(m.Token)) {
		t.Errorf("the file is readable without a key, or not at all: %v", err)
	}
	m.Put("/registry/secrets/a/b", "later")
	seen := m.Store.Status().Revision

	to := snapshots.NewTarget(t)
	secret := snapshots.MustKey(t, m.Token[strings.LastIndex(m.Token, ":")+1:]) // the secret alone does, too
	r := testenv.Must(snapshots.Restore(to, info.Location, secret))(t)
	testenv.False(t, r.Kept != "" || r.Revision != 2, "%+v", r)
	for name, want := range m.Files {
		if got, err := os.ReadFile(filepath.Join(to.ServerDir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := testenv.Must(
		datadir.Open(datadir.Options{DataDir: to.DataDir, ServerDir: to.ServerDir, StoreDir: filepath.Join(to.ServerDir, "store")}))(t)
	defer dir.Close()
	s := testenv.Must(raftstore.Open(t.Context(), raftstore.Options{Dir: filepath.Join(to.ServerDir, "store"), NodeID: dir.ServerID(), ClusterID: info.Cluster, Logger: slog.New(slog.DiscardHandler)}))(t)
	defer s.Close(context.Background())
	testenv.NoError(t, s.WaitReady(t.Context()))
	got, err := s.Client().KV.Get(t.Context(), "/registry/secrets/a/b")
	testenv.Require(t, err == nil && len(got.Kvs) == 1 && string(got.Kvs[0].Value) == "treasure", "%v, %v", got, err)
	testenv.True(t, got.Header.Revision > seen, "revision %d, and clients have seen %d", got.Header.Revision, seen)
	testenv.Equal(t, len(snapshots.Names(t, to.DataDir)), 1, "left over:")
}

// TestRestoreKeepsWhatWasThere: and keeps this server's identity.
func TestRestoreKeepsWhatWasThere(t *testing.T) {
	m := snapshots.NewMachine(t)
	m.Put("a", "1")
	info := m.MustSave()
	to := snapshots.NewTarget(t)
	testenv.Must(snapshots.Restore(to, info.Location, m.Key))(t)
	id := testenv.Must(os.ReadFile(filepath.Join(to.ServerDir, "identity.json")))(t)
	testenv.NoError(t, os.WriteFile(filepath.Join(to.ServerDir, "peers.json"), []byte(`["10.0.0.2:6443"]`), 0o600))
	r := testenv.Must(snapshots.Restore(to, info.Location, m.Key))(t)
	testenv.Equal(t, r.Kept, to.ServerDir+".before-20261121T000000Z", "kept in")
	testenv.Check(t, testenv.Err(os.Stat(filepath.Join(r.Kept, "peers.json"))), "the earlier folder")
	testenv.Fails(t, testenv.Err(os.Stat(filepath.Join(to.ServerDir, "peers.json"))), "the restored server still knows the other servers: it would not begin by itself")
	if now, err := os.ReadFile(filepath.Join(to.ServerDir, "identity.json")); err != nil || !bytes.Equal(now, id) {
		t.Errorf("identity %s, %v; was %s", now, err, id)
	}
	// What is damaged is replaced, too.
	testenv.NoError(t, os.WriteFile(filepath.Join(to.ServerDir, "identity.json"), []byte("{"), 0o600))
	to.Now = func() time.Time { return snapshots.Start.Add(time.Minute) }
	testenv.Check(t, testenv.Err(snapshots.Restore(to, info.Location, m.Key)))
}

// TestSnapshotOfLevelThatIsNotKnown: a program cannot restore what it cannot read. At the first level, the header has
// the form from before there were levels.
func TestSnapshotOfLevelThatIsNotKnown(t *testing.T) {
	m := snapshots.NewMachine(t)
	file := m.MustSave().Location
	data := testenv.Must(os.ReadFile(file))(t)
	testenv.Equal(t, bytes.Contains(data, []byte(`"level"`)), level.Newest() > level.First, "the header has a level:")
	data = bytes.Replace(data, []byte(`"format":1`), []byte(`"level":9,"format":1`), 1)
	testenv.NoError(t, os.WriteFile(file, data, 0o600))
	to := snapshots.NewTarget(t)
	testenv.WantError(t, testenv.Err(snapshots.Restore(to, file, m.Key)), "of a cluster of level 9", "knows levels up to",
		"Nothing was changed")
	testenv.Fails(t, testenv.Err(os.Stat(to.ServerDir)), "the server's folder was made")
}

func TestSnapshotOpensOnlyWithItsKey(t *testing.T) {
	m, other := snapshots.NewMachine(t), snapshots.NewMachine(t)
	info := m.MustSave()
	agent := strings.Replace(m.Token, "::server:", "::agent:", 1)
	testenv.WantError(t, testenv.Err(snapshots.KeyOfToken(agent)), "token for agents")
	file := filepath.Join(t.TempDir(), "key")
	testenv.NoError(t, os.WriteFile(file, []byte("short\n"), 0o600))
	testenv.WantError(t, testenv.Err(snapshots.KeyOfFile(file)), "at least 16")
	testenv.NoError(t, os.WriteFile(file, []byte("0123456789abcdef\n"), 0o600))
	own := testenv.Must(snapshots.KeyOfFile(file))(t)
	for want, key := range map[string]snapshots.Key{
		"another cluster than the token":         snapshots.MustKey(t, other.Token),
		"cannot be decrypted with this token":    snapshots.MustKey(t, "0123456789abcdef"),
		"encrypted with the server token, and n": own,
	} {
		testenv.WantError(t, testenv.Err(snapshots.Restore(snapshots.NewTarget(t), info.Location, key)), want)
	}
	m.Key = own
	info = m.MustSave()
	testenv.WantError(t, testenv.Err(snapshots.Restore(snapshots.NewTarget(t), info.Location, snapshots.MustKey(t, m.Token))), "--snapshot-key-file")
	testenv.Check(t, testenv.Err(snapshots.Restore(snapshots.NewTarget(t), info.Location, own)), "with its own key")
}

// TestSnapshotNameCannotLeaveFolder: a file's name cannot lead out of the folder, and one that no server has is not
// written.
func TestSnapshotNameCannotLeaveFolder(t *testing.T) {
	m := snapshots.NewMachine(t)
	for _, name := range []string{"../outside", "tls/../../outside", "/etc/passwd", "surprise"} {
		m.Files[name] = []byte("x")
		info := m.MustSave()
		if _, err := snapshots.Restore(snapshots.NewTarget(t), info.Location, m.Key); err == nil || !strings.Contains(err.Error(), "does not know") {
			t.Errorf("%s: %v", name, err)
		}
		delete(m.Files, name)
	}
	ca := m.Files[snapshots.Required[0]]
	delete(m.Files, snapshots.Required[0])
	testenv.WantError(t, testenv.Err(snapshots.Restore(snapshots.NewTarget(t), m.MustSave().Location, m.Key)), "lacks tls/server-ca.crt")
	m.Files[snapshots.Required[0]] = ca
}

// TestPowerCutWhileRestoring: what a restore left that was cut off is removed, and what was there before it is kept.
func TestPowerCutWhileRestoring(t *testing.T) {
	m := snapshots.NewMachine(t)
	m.Put("a", "1")
	info := m.MustSave()
	to := snapshots.NewTarget(t)
	half, err := storefiles.Begin(to.ServerDir, "20250101T000000Z")
	testenv.NoError(t, err)
	whole := to.ServerDir + ".restoring-20250202T000000Z" // exchanged already: it is what was there before
	for _, dir := range []string{half, whole, to.ServerDir + ".mine"} {
		testenv.NoError(t, os.MkdirAll(filepath.Join(dir, "store"), 0o700))
	}
	testenv.Must(snapshots.Restore(to, info.Location, m.Key))(t)
	if got, want := snapshots.Names(t, to.DataDir), []string{"server", "server.before-20250202T000000Z", "server.mine"}; !slices.Equal(got, want) {
		t.Errorf("left: %q, want %q", got, want)
	}
	// A start without a restore tidies up as well.
	half, err = storefiles.Begin(to.ServerDir, "20250303T000000Z")
	testenv.NoError(t, err)
	testenv.Check(t, errors.Join(storefiles.Tidy(to.ServerDir), storefiles.Tidy(filepath.Join(to.DataDir, "none", "server"))))
	if got := snapshots.Names(t, to.DataDir); len(got) != 3 {
		t.Errorf("left: %q, with %s", got, half)
	}
}

// TestRestoreMarkIsForgottenAtTheNextStart: what was asked for by a flag is noted in the folder that takes the place,
// and a start forgets it.
func TestRestoreMarkIsForgottenAtTheNextStart(t *testing.T) {
	m := snapshots.NewMachine(t)
	m.Put("a", "1")
	info := m.MustSave()
	to := snapshots.NewTarget(t)
	to.Mark = "it is restored"
	testenv.Must(snapshots.Restore(to, info.Location, m.Key))(t)
	testenv.Equal(t, testenv.Must(datadir.WasReset(to.ServerDir))(t), to.Mark, "")
	d := testenv.Must(datadir.Open(datadir.Options{DataDir: to.DataDir, ServerDir: to.ServerDir, StoreDir: filepath.Join(to.ServerDir, "store"), Version: "v1"}))(t)
	testenv.Check(t, errors.Join(d.ClearReset(), d.ClearReset(), d.Close()))
	testenv.Equal(t, testenv.Must(datadir.WasReset(to.ServerDir))(t), "", "")
}

// TestStateIsStreamed: what saving allocates does not grow with the store.
func TestStateIsStreamed(t *testing.T) {
	m := snapshots.NewMachine(t)
	saving := func() (allocated, size int64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		info := m.MustSave()
		runtime.ReadMemStats(&after)
		return int64(after.TotalAlloc - before.TotalAlloc), info.Size
	}
	m.Put("a", "1")
	small, _ := saving()
	noise := make([]byte, 200<<10)
	for i := range 100 {
		testenv.Must(rand.Read(noise))(t)
		m.Put(fmt.Sprintf("key-%d", i), string(noise))
	}
	large, size := saving()
	t.Logf("%d bytes allocated for a file of %d bytes, %d for a small one", large, size, small)
	// It is 0.2 MB; under the race detector 7 MB, since sync.Pool then drops, at random, a quarter of the buffers that
	// S2 gives back. A second copy of the state would be 20 MB.
	testenv.False(t, size < 20_000_000 || large-small > size*2/3, "%d bytes allocated for a file of %d bytes", large-small, size)
}
