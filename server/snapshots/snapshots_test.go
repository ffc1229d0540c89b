// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/datadir"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/storefiles"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var start = time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)

// machine is a server with a store, as far as snapshots are concerned.
type machine struct {
	*Keeper
	t     *testing.T
	store *raftstore.Store
	clock *clocktesting.FakeClock
	files map[string][]byte
	token string
	key   Key
}

var required = []string{
	"tls/server-ca.crt", "tls/server-ca.key", "tls/client-ca.crt", "tls/client-ca.key", "tls/request-header-ca.crt", "tls/request-header-ca.key",
	"tls/peer-ca.crt", "tls/peer-ca.key", "tls/kubelet-ca.crt", "tls/kubelet-ca.key", "tls/service-account.key",
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	dir := t.TempDir()
	keys := testenv.Must(pki.Open(pki.Options{Dir: filepath.Join(dir, "tls"), Logger: slog.New(slog.DiscardHandler)}))(t)
	tok := testenv.Must(token.New(keys.Root(), token.RoleServer))(t)
	cluster := token.Hash(keys.Root())
	store, err := raftstore.Open(t.Context(), raftstore.Options{Dir: filepath.Join(dir, "store"), NodeID: "one", ClusterID: cluster, Logger: slog.New(slog.DiscardHandler)})
	testenv.NoError(t, err)
	t.Cleanup(func() { testenv.Check(t, store.Close(context.Background())) })
	testenv.NoError(t, store.WaitReady(t.Context()))
	m := &machine{t: t, store: store, clock: clocktesting.NewFakeClock(start), files: map[string][]byte{}, token: tok.String()}
	for _, name := range required {
		m.files[name], err = os.ReadFile(filepath.Join(dir, name))
		testenv.NoError(t, err)
	}
	m.key = mustKey(t, m.token)
	m.key.work = 8 // for speed; TestClusterIsRestoredOnBlankMachine has the real one
	m.Keeper = NewKeeper(Options{
		Dir: filepath.Join(dir, "snapshots"), Cluster: cluster, Server: "board1", Version: "v1", Retention: DefaultRetention, BeginBackup: store.BeginBackup,
		Contents: func() (Contents, error) { return Contents{Files: m.files}, nil },
		Key:      func() (Key, error) { return m.key, nil },
		Clock:    m.clock, Logger: slog.New(slog.DiscardHandler),
	})
	return m
}

func (m *machine) put(key, value string) {
	m.t.Helper()
	testenv.Must(m.store.Client().Put(m.t.Context(), key, value))(m.t)
}

func (m *machine) mustSave() Info {
	m.t.Helper()
	m.clock.Step(time.Second)
	info := testenv.Must(m.Save(m.t.Context(), ""))(m.t)
	return info
}

func target(t *testing.T) Target {
	data := t.TempDir()
	return Target{DataDir: data, ServerDir: filepath.Join(data, "server"), Version: "v1", Required: required, Now: func() time.Time { return start }}
}

func mustKey(t *testing.T, text string) Key {
	t.Helper()
	return testenv.Must(KeyOfToken(text))(t)
}

// names are what is in a folder.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// TestClusterIsRestoredOnBlankMachine: a file and the token make the cluster again, and its revision is ahead of all
// that was seen.
func TestClusterIsRestoredOnBlankMachine(t *testing.T) {
	m := newMachine(t)
	m.key = mustKey(t, m.token)
	m.put("/registry/secrets/a/b", "treasure")
	info := m.mustSave()
	if info.Name != "on-demand-board1-20261121T000001Z" || info.Keys != 1 || info.Revision != 2 || info.Key != TokenKey || info.Server != "board1" {
		t.Errorf("%+v", info)
	}
	if st, err := os.Stat(info.Location); err != nil || st.Mode().Perm() != 0o600 || st.Size() != info.Size {
		t.Errorf("%v, %v", st, err)
	}
	data, err := os.ReadFile(info.Location)
	if err != nil || bytes.Contains(data, []byte("treasure")) || bytes.Contains(data, []byte("PRIVATE KEY")) || bytes.Contains(data, []byte(m.token)) {
		t.Errorf("the file is readable without a key, or not at all: %v", err)
	}
	m.put("/registry/secrets/a/b", "later")
	seen := m.store.Status().Revision

	to := target(t)
	secret := mustKey(t, m.token[strings.LastIndex(m.token, ":")+1:]) // the secret alone does, too
	r := testenv.Must(Restore(to, info.Location, secret))(t)
	testenv.False(t, r.Kept != "" || r.Revision != 2, "%+v", r)
	for name, want := range m.files {
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
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "treasure" {
		t.Fatalf("%v, %v", got, err)
	}
	testenv.True(t, got.Header.Revision > seen, "revision %d, and clients have seen %d", got.Header.Revision, seen)
	testenv.Equal(t, len(names(t, to.DataDir)), 1, "left over:")
}

// TestRestoreKeepsWhatWasThere: and keeps this server's identity.
func TestRestoreKeepsWhatWasThere(t *testing.T) {
	m := newMachine(t)
	m.put("a", "1")
	info := m.mustSave()
	to := target(t)
	testenv.Must(Restore(to, info.Location, m.key))(t)
	id := testenv.Must(os.ReadFile(filepath.Join(to.ServerDir, "identity.json")))(t)
	testenv.NoError(t, os.WriteFile(filepath.Join(to.ServerDir, "peers.json"), []byte(`["10.0.0.2:6443"]`), 0o600))
	r := testenv.Must(Restore(to, info.Location, m.key))(t)
	testenv.Equal(t, r.Kept, to.ServerDir+".before-20261121T000000Z", "kept in")
	testenv.Check(t, testenv.Err(os.Stat(filepath.Join(r.Kept, "peers.json"))), "the earlier folder")
	testenv.Fails(t, testenv.Err(os.Stat(filepath.Join(to.ServerDir, "peers.json"))), "the restored server still knows the other servers: it would not begin by itself")
	if now, err := os.ReadFile(filepath.Join(to.ServerDir, "identity.json")); err != nil || !bytes.Equal(now, id) {
		t.Errorf("identity %s, %v; was %s", now, err, id)
	}
	// What is damaged is replaced, too.
	testenv.NoError(t, os.WriteFile(filepath.Join(to.ServerDir, "identity.json"), []byte("{"), 0o600))
	to.Now = func() time.Time { return start.Add(time.Minute) }
	testenv.Check(t, testenv.Err(Restore(to, info.Location, m.key)))
}

// TestDamagedSnapshotIsNotRestored: whichever part of a file is changed, and wherever it is cut, nothing is restored
// from it.
func TestDamagedSnapshotIsNotRestored(t *testing.T) {
	m := newMachine(t)
	m.put("a", "1")
	whole := testenv.Must(os.ReadFile(m.mustSave().Location))(t)
	path := filepath.Join(t.TempDir(), "file")
	refuses := func(what string, data []byte, words ...string) {
		t.Helper()
		testenv.NoError(t, os.WriteFile(path, data, 0o600))
		to := target(t)
		_, err := Restore(to, path, m.key)
		if err == nil {
			t.Fatalf("%s: it was restored", what)
		}
		for _, w := range append(words, path, "Nothing was changed") {
			testenv.True(t, strings.Contains(err.Error(), w), "%s: %v; it should say %q", what, err, w)
		}
		if left := names(t, to.ServerDir); len(left) > 1 || len(names(t, to.DataDir)) > 1 {
			t.Errorf("%s: it left %q, %q", what, names(t, to.DataDir), left)
		}
	}
	header := bytes.IndexByte(whole[len(magic):], '\n') + len(magic)
	for i := 0; i < len(whole); i += 1 + len(whole)/61 {
		changed := bytes.Clone(whole)
		changed[i] ^= 1
		refuses("changed", changed)
		refuses("cut", whole[:i])
		if i > header && i%4 == 0 { // each costs a derived key
			// An attacker who changes the file can change its checksum. Then the encryption notices.
			refuses("changed, with a checksum that fits", resum(changed))
		}
	}
	refuses("longer", append(bytes.Clone(whole), 0))
	refuses("empty", nil, "no snapshot of coracle")
	other := bytes.Replace(whole, []byte(`"keys":1`), []byte(`"keys":2`), 1)
	refuses("another header", resum(other), "header was changed")
	newer := bytes.Replace(whole, []byte(`"format":1`), []byte(`"format":2`), 1)
	refuses("newer", resum(newer), "newer coracle", "format 2")
}

// resum puts the right checksum at the end.
func resum(data []byte) []byte {
	out := bytes.Clone(data[:len(data)-sha256.Size])
	sum := sha256.Sum256(out)
	return append(out, sum[:]...)
}

func TestSnapshotOpensOnlyWithItsKey(t *testing.T) {
	m, other := newMachine(t), newMachine(t)
	info := m.mustSave()
	agent := strings.Replace(m.token, "::server:", "::agent:", 1)
	testenv.WantError(t, testenv.Err(KeyOfToken(agent)), "token for agents")
	file := filepath.Join(t.TempDir(), "key")
	testenv.NoError(t, os.WriteFile(file, []byte("short\n"), 0o600))
	testenv.WantError(t, testenv.Err(KeyOfFile(file)), "at least 16")
	testenv.NoError(t, os.WriteFile(file, []byte("0123456789abcdef\n"), 0o600))
	own := testenv.Must(KeyOfFile(file))(t)
	for want, key := range map[string]Key{
		"another cluster than the token":         mustKey(t, other.token),
		"cannot be decrypted with this token":    mustKey(t, "0123456789abcdef"),
		"encrypted with the server token, and n": own,
	} {
		testenv.WantError(t, testenv.Err(Restore(target(t), info.Location, key)), want)
	}
	m.key = own
	info = m.mustSave()
	testenv.WantError(t, testenv.Err(Restore(target(t), info.Location, mustKey(t, m.token))), "--snapshot-key-file")
	testenv.Check(t, testenv.Err(Restore(target(t), info.Location, own)), "with its own key")
}

// TestSnapshotNameCannotLeaveFolder: a file's name cannot lead out of the folder, and one that no server has is not
// written.
func TestSnapshotNameCannotLeaveFolder(t *testing.T) {
	m := newMachine(t)
	for _, name := range []string{"../outside", "tls/../../outside", "/etc/passwd", "surprise"} {
		m.files[name] = []byte("x")
		info := m.mustSave()
		if _, err := Restore(target(t), info.Location, m.key); err == nil || !strings.Contains(err.Error(), "does not know") {
			t.Errorf("%s: %v", name, err)
		}
		delete(m.files, name)
	}
	ca := m.files[required[0]]
	delete(m.files, required[0])
	testenv.WantError(t, testenv.Err(Restore(target(t), m.mustSave().Location, m.key)), "lacks tls/server-ca.crt")
	m.files[required[0]] = ca
}

// TestKeysAreReplacedMeanwhile: the state and the keys in a file are of the same moment.
func TestKeysAreReplacedMeanwhile(t *testing.T) {
	m := newMachine(t)
	read := 0
	m.o.Contents = func() (Contents, error) {
		if read++; read <= 3 {
			return Contents{Files: map[string][]byte{"key": {byte(read)}}}, nil
		}
		return Contents{Files: m.files}, nil
	}
	if _, err := Restore(target(t), m.mustSave().Location, m.key); err != nil || read != 5 {
		t.Errorf("%v, the keys were read %d times", err, read)
	}
	testenv.WantError(t, testenv.Err(m.Save(t.Context(), "")), "there is a snapshot")
}

// TestNothingIsLeftOfAFailure: neither a file nor a half of one.
func TestNothingIsLeftOfAFailure(t *testing.T) {
	m := newMachine(t)
	broken := errors.New("broken")
	if _, err := m.folder.save("name", func(w io.Writer) error {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			return err
		}
		return broken
	}); !errors.Is(err, broken) || !strings.Contains(err.Error(), "nothing was kept") {
		t.Error(err)
	}
	if _, err := m.folder.save("name", func(w io.Writer) error {
		_, err := io.WriteString(w, magic+strings.Repeat("something else ", 10))
		return err
	}); !errors.Is(err, ErrDamaged) {
		t.Errorf("what was written is no snapshot: %v", err)
	}
	if left := names(t, m.o.Dir); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
	for _, name := range []string{"", "../x", "a/b", ".x", "a b", strings.Repeat("x", 300)} {
		testenv.Fails(t, testenv.Err(m.folder.save(name, nil)), "%q is a name", name)
		if name == "" {
			continue // stands for the default
		}
		testenv.Fails(t, testenv.Err(m.Save(t.Context(), name)), "%q is a name", name)
		testenv.Fails(t, testenv.Err(m.Delete(t.Context(), []string{name})), "%q could be deleted", name)
	}
}

func TestListPruneDelete(t *testing.T) {
	m := newMachine(t)
	testenv.Equal(t, len(testenv.Must(m.List(t.Context()))(t)), 0, "")
	var infos []Info
	for range 4 {
		infos = append(infos, m.mustSave())
	}
	for name, text := range map[string]string{"notes.txt": "mine", ".half-1": magic, "damaged": magic + "x", "newer": magic + `{"format":2,"version":"v9"}` + "\n"} {
		testenv.NoError(t, os.WriteFile(filepath.Join(m.o.Dir, name), []byte(text), 0o600))
	}
	list, err := m.List(t.Context())
	if err != nil || len(list) != 6 || list[0].Problem == "" || list[1].Problem == "" || list[2].Name != infos[0].Name || list[5].Header != infos[3].Header {
		t.Errorf("%+v, %v", list, err)
	}
	if deleted, err := m.Prune(t.Context(), "nightly", 0); err != nil || len(deleted) > 0 {
		t.Errorf("of another name: %q, %v", deleted, err)
	}
	// Another program's, of a name that begins like ours.
	data := testenv.Must(os.ReadFile(infos[0].Location))(t)
	for i, header := range []string{`"server":"other"`, `"cluster":"other"`} {
		key, _, _ := strings.Cut(header, ":")
		foreign := regexp.MustCompile(key+`:"[^"]*"`).ReplaceAll(data, []byte(header))
		if bytes.Equal(foreign, data) {
			t.Fatalf("the header has no %s", key)
		}
		testenv.NoError(t, os.WriteFile(filepath.Join(m.o.Dir, fmt.Sprintf("%s-%d", infos[0].Name, i)), foreign, 0o600))
	}
	deleted, err := m.Prune(t.Context(), "", 3)
	for i := range 2 {
		testenv.Check(t, os.Remove(filepath.Join(m.o.Dir, fmt.Sprintf("%s-%d", infos[0].Name, i))), "another's snapshot")
	}
	testenv.False(t, err != nil || len(deleted) != 1 || deleted[0] != infos[0].Name, "pruned %q, %v", deleted, err)
	deleted, err = m.Delete(t.Context(), []string{infos[1].Name, infos[0].Name, "notes.txt", "damaged"})
	if len(deleted) != 2 || err == nil || !strings.Contains(err.Error(), infos[0].Name+": there is no such snapshot") || !strings.Contains(err.Error(), "notes.txt: there is no") {
		t.Errorf("deleted %q, %v", deleted, err)
	}
	testenv.Check(t, m.folder.removeHalves())
	testenv.Equal(t, len(names(t, m.o.Dir)), 4, "left:")
}

// TestFutureSnapshotsAreNotNewest: snapshots that were taken while the clock was years ahead do not count as the newest
// for ever. What goes is what has the oldest state.
func TestFutureSnapshotsAreNotNewest(t *testing.T) {
	m := newMachine(t)
	m.o.Retention = 2
	take := func(i int) string {
		t.Helper()
		m.put("/registry/pods/a/one", fmt.Sprint(i))
		m.clock.Step(time.Second)
		before := m.scheduledOnes()
		testenv.NoError(t, m.scheduled(t.Context()))
		for _, name := range m.scheduledOnes() {
			if !slices.Contains(before, name) {
				return name
			}
		}
		t.Fatalf("the snapshot that was just taken is gone: %q", m.scheduledOnes())
		return ""
	}
	m.clock.SetTime(start.AddDate(10, 0, 0))
	ahead := []string{take(1), take(2)}
	m.clock.SetTime(start)
	third := take(3)
	if got := m.scheduledOnes(); len(got) != 2 || !slices.Contains(got, ahead[1]) || !slices.Contains(got, third) {
		t.Errorf("after the third: %q", got)
	}
	fourth := take(4)
	if got := m.scheduledOnes(); len(got) != 2 || !slices.Contains(got, third) || !slices.Contains(got, fourth) {
		t.Errorf("after the fourth: %q", got)
	}
	testenv.Equal(t, testenv.Must(m.newest())(t).Name, fourth, "the newest is")
	// Whatever the numbers say, what was just made stays.
	if got := surplus([]Info{{Name: "made", Header: Header{Revision: 1}}, {Name: "other", Header: Header{Revision: 2}}}, 1, func(Info) bool { return true }, "made"); len(got) != 0 {
		t.Errorf("goes: %+v", got)
	}
}

// TestPowerCutWhileRestoring: what a restore left that was cut off is removed, and what was there before it is kept.
func TestPowerCutWhileRestoring(t *testing.T) {
	m := newMachine(t)
	m.put("a", "1")
	info := m.mustSave()
	to := target(t)
	half, err := storefiles.Begin(to.ServerDir, "20250101T000000Z")
	testenv.NoError(t, err)
	whole := to.ServerDir + ".restoring-20250202T000000Z" // exchanged already: it is what was there before
	for _, dir := range []string{half, whole, to.ServerDir + ".mine"} {
		testenv.NoError(t, os.MkdirAll(filepath.Join(dir, "store"), 0o700))
	}
	testenv.Must(Restore(to, info.Location, m.key))(t)
	if got, want := names(t, to.DataDir), []string{"server", "server.before-20250202T000000Z", "server.mine"}; !slices.Equal(got, want) {
		t.Errorf("left: %q, want %q", got, want)
	}
	// A start without a restore tidies up as well.
	half, err = storefiles.Begin(to.ServerDir, "20250303T000000Z")
	testenv.NoError(t, err)
	testenv.Check(t, errors.Join(storefiles.Tidy(to.ServerDir), storefiles.Tidy(filepath.Join(to.DataDir, "none", "server"))))
	if got := names(t, to.DataDir); len(got) != 3 {
		t.Errorf("left: %q, with %s", got, half)
	}
}

// TestRestoreMarkIsForgottenAtTheNextStart: what was asked for by a flag is noted in the folder that takes the place,
// and a start forgets it.
func TestRestoreMarkIsForgottenAtTheNextStart(t *testing.T) {
	m := newMachine(t)
	m.put("a", "1")
	info := m.mustSave()
	to := target(t)
	to.Mark = "it is restored"
	testenv.Must(Restore(to, info.Location, m.key))(t)
	testenv.Equal(t, testenv.Must(datadir.WasReset(to.ServerDir))(t), to.Mark, "")
	d := testenv.Must(datadir.Open(datadir.Options{DataDir: to.DataDir, ServerDir: to.ServerDir, StoreDir: filepath.Join(to.ServerDir, "store"), Version: "v1"}))(t)
	testenv.Check(t, errors.Join(d.ClearReset(), d.ClearReset(), d.Close()))
	testenv.Equal(t, testenv.Must(datadir.WasReset(to.ServerDir))(t), "", "")
}

// TestStateIsStreamed: what saving allocates does not grow with the store.
func TestStateIsStreamed(t *testing.T) {
	m := newMachine(t)
	saving := func() (allocated, size int64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		info := m.mustSave()
		runtime.ReadMemStats(&after)
		return int64(after.TotalAlloc - before.TotalAlloc), info.Size
	}
	m.put("a", "1")
	small, _ := saving()
	noise := make([]byte, 200<<10)
	for i := range 100 {
		testenv.Must(rand.Read(noise))(t)
		m.put(fmt.Sprintf("key-%d", i), string(noise))
	}
	large, size := saving()
	t.Logf("%d bytes allocated for a file of %d bytes, %d for a small one", large, size, small)
	// It is 0.2 MB; under the race detector 7 MB, since sync.Pool then drops, at random, a quarter of the buffers that
	// S2 gives back. A second copy of the state would be 20 MB.
	if size < 20_000_000 || large-small > size*2/3 {
		t.Errorf("%d bytes allocated for a file of %d bytes", large-small, size)
	}
}

// TestRevisionNeverGoesBack: a snapshot is restored twice, the first time while the machine's clock is decades ahead.
// Clients have seen revisions of then.
func TestRevisionNeverGoesBack(t *testing.T) {
	m := newMachine(t)
	m.put("a", "1")
	info := m.mustSave()
	to := target(t)
	testenv.Must(Restore(to, info.Location, m.key))(t)
	store := filepath.Join(to.ServerDir, "store")
	first := testenv.Must(storefiles.CheckStore(store))(t)
	f, size, err := openFile(info.Location)
	testenv.NoError(t, err)
	defer f.Close()
	_, _, state, err := open(f, size, m.key)
	if err == nil {
		err = os.RemoveAll(store)
	}
	testenv.NoError(t, err)
	ahead := clocktesting.NewFakeClock(time.Now().AddDate(30, 0, 0))
	testenv.NoError(t, raftstore.Restore(raftstore.Options{Dir: store, ClusterID: info.Cluster, NodeID: "one", Logger: slog.New(slog.DiscardHandler), Clock: ahead}, state, 0))
	seen, err := storefiles.CheckStore(store)
	if err != nil || seen.Revision <= first.Revision {
		t.Fatalf("%+v, %v", seen, err)
	}
	testenv.Must(Restore(to, info.Location, m.key))(t)
	if again, err := storefiles.CheckStore(store); err != nil || again.Revision <= seen.Revision {
		t.Errorf("restored again it is at revision %d, and was at %d: %v", again.Revision, seen.Revision, err)
	}
}

// TestDiskFailsAtTheHeader: a file that cannot be read is not passed over as another program's.
func TestDiskFailsAtTheHeader(t *testing.T) {
	broken := errors.New("input/output error")
	for _, start := range []string{"", magic[:5], magic, magic + `{"format":1`} {
		_, _, err := readHeader(bufio.NewReader(io.MultiReader(strings.NewReader(start), iotest.ErrReader(broken))))
		if !errors.Is(err, errUnreadable) || !errors.Is(err, broken) || errors.Is(err, ErrNoSnapshot) || errors.Is(err, ErrDamaged) {
			t.Errorf("after %q: %v", start, err)
		}
	}
}

// TestDeleteTakesFilesOnly: of a snapshot's name, in its folder, and no file.
func TestDeleteTakesFilesOnly(t *testing.T) {
	m := newMachine(t)
	info := m.mustSave()
	at := func(name string) string { return filepath.Join(m.o.Dir, name) }
	testenv.NoError(t, errors.Join(os.Mkdir(at("folder"), 0o700), unix.Mkfifo(at("pipe"), 0o600), os.Symlink(info.Name, at("link"))))
	for _, name := range []string{"folder", "pipe", "link"} {
		if deleted, err := m.Delete(t.Context(), []string{name}); len(deleted) > 0 || err == nil || !strings.Contains(err.Error(), "no such snapshot") {
			t.Errorf("%s: deleted %q, %v", name, deleted, err)
		}
	}
	testenv.Equal(t, len(names(t, m.o.Dir)), 4, "left:")
	testenv.Equal(t, len(testenv.Must(m.List(t.Context()))(t)), 1, "")
}
