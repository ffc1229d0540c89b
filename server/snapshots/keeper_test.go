// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/storefiles"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestDamagedSnapshotIsNotRestored: whichever part of a file is changed, and wherever it is cut, nothing is restored
// from it.
func TestDamagedSnapshotIsNotRestored(t *testing.T) {
	m := newMachine(t)
	m.Put("a", "1")
	whole := testenv.Must(os.ReadFile(m.MustSave().Location))(t)
	path := filepath.Join(t.TempDir(), "file")
	refuses := func(what string, data []byte, words ...string) {
		t.Helper()
		testenv.NoError(t, os.WriteFile(path, data, 0o600))
		to := target(t)
		_, err := Restore(to, path, m.Key)
		testenv.Require(t, err != nil, "%s: it was restored", what)
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

// TestKeysAreReplacedMeanwhile: the state and the keys in a file are of the same moment.
func TestKeysAreReplacedMeanwhile(t *testing.T) {
	m := newMachine(t)
	read := 0
	m.o.Contents = func() (Contents, error) {
		if read++; read <= 3 {
			return Contents{Files: map[string][]byte{"key": {byte(read)}}}, nil
		}
		return Contents{Files: m.Files}, nil
	}
	if _, err := Restore(target(t), m.MustSave().Location, m.Key); err != nil || read != 5 {
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
		infos = append(infos, m.MustSave())
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
		testenv.Require(t, !bytes.Equal(foreign, data), "the header has no %s", key)
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
		m.Put("/registry/pods/a/one", fmt.Sprint(i))
		m.Clock.Step(time.Second)
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
	m.Clock.SetTime(start.AddDate(10, 0, 0))
	ahead := []string{take(1), take(2)}
	m.Clock.SetTime(start)
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
	if got := surplusSnapshots([]Info{{Name: "made", Header: Header{Revision: 1}}, {Name: "other", Header: Header{Revision: 2}}}, 1, func(Info) bool { return true }, "made"); len(got) != 0 {
		t.Errorf("goes: %+v", got)
	}
}

// TestRevisionNeverGoesBack: a snapshot is restored twice, the first time while the machine's clock is decades ahead.
// Clients have seen revisions of then.
func TestRevisionNeverGoesBack(t *testing.T) {
	m := newMachine(t)
	m.Put("a", "1")
	info := m.MustSave()
	to := target(t)
	testenv.Must(Restore(to, info.Location, m.Key))(t)
	store := filepath.Join(to.ServerDir, "store")
	first := testenv.Must(storefiles.CheckStore(store))(t)
	f, size, err := openFile(info.Location)
	testenv.NoError(t, err)
	defer f.Close()
	_, _, state, err := open(f, size, m.Key)
	if err == nil {
		err = os.RemoveAll(store)
	}
	testenv.NoError(t, err)
	ahead := clocktesting.NewFakeClock(time.Now().AddDate(30, 0, 0))
	testenv.NoError(t, raftstore.Restore(raftstore.Options{Dir: store, ClusterID: info.Cluster, NodeID: "one", Logger: slog.New(slog.DiscardHandler), Clock: ahead}, state, 0))
	seen, err := storefiles.CheckStore(store)
	testenv.Require(t, err == nil && seen.Revision > first.Revision, "%+v, %v", seen, err)
	testenv.Must(Restore(to, info.Location, m.Key))(t)
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
	info := m.MustSave()
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
