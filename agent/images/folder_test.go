// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/agent/images"
	"github.com/coracle-k8s/coracle/internal/filewatch"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// fakeStore understands archives that consist of "image NAME" lines.
type fakeStore struct {
	mu      sync.Mutex
	images  map[string]bool
	imports []string
	pinned  map[string]images.Origin
	written bool // names stay as they are written, as in versions that did not normalize them
}

func (s *fakeStore) Import(_ context.Context, r io.Reader, fallback string, from images.Origin) ([]string, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.imports = append(s.imports, fallback)
	names := strings.Fields(string(data))
	if len(names) == 0 || names[0] != "images" {
		return nil, errors.New("not an archive")
	}
	for i, n := range names[1:] {
		if !s.written {
			names[i+1], _ = images.Normalize(n)
		}
		s.images[names[i+1]], s.pinned[names[i+1]] = true, from
	}
	return names[1:], nil
}

func (s *fakeStore) Pinned(context.Context) (map[string]images.Origin, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.pinned), nil
}

func (s *fakeStore) SetOrigin(_ context.Context, name string, from images.Origin) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinned[name] = from
	return nil
}

func (s *fakeStore) Unpin(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pinned, name)
	return nil
}

func (s *fakeStore) Complete(_ context.Context, name string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	full, _ := images.Normalize(name)
	return s.images[full] || s.images[name], nil
}

func (s *fakeStore) imported() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.imports)
}

type fixture struct {
	t     *testing.T
	dir   string
	store *fakeStore
	log   *strings.Builder
	logMu sync.Mutex
}

func newFixture(t *testing.T) *fixture {
	return &fixture{t: t, dir: t.TempDir(), store: &fakeStore{images: map[string]bool{}, pinned: map[string]images.Origin{}}, log: &strings.Builder{}}
}

func (x *fixture) Write(p []byte) (int, error) {
	x.logMu.Lock()
	defer x.logMu.Unlock()
	return x.log.Write(p)
}

func (x *fixture) logged() string {
	x.logMu.Lock()
	defer x.logMu.Unlock()
	return x.log.String()
}

func (x *fixture) folder() *images.Folder {
	return &images.Folder{
		Dir: filepath.Join(x.dir, "images"), IndexFile: filepath.Join(x.dir, "record.json"), Store: x.store,
		Logger: slog.New(slog.NewTextHandler(x, nil)), Settle: 20 * time.Millisecond,
	}
}

func (x *fixture) put(name, content string) string {
	x.t.Helper()
	path := filepath.Join(x.dir, "images", name)
	testenv.NoError(x.t, os.MkdirAll(filepath.Dir(path), 0o755))
	testenv.NoError(x.t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func (x *fixture) importAll() {
	x.t.Helper()
	testenv.NoError(x.t, x.folder().ImportAll(context.Background()))
}

func (x *fixture) wantImports(n int) {
	x.t.Helper()
	if got := x.store.imported(); len(got) != n {
		x.t.Fatalf("%d imports, want %d: %v\n%s", len(got), n, got, x.logged())
	}
}

func TestImportSkipsBadArchives(t *testing.T) {
	x := newFixture(t)
	x.put("a.tar", "images a:1 b:1")
	x.put("b.tar.zst", "images c:1")
	x.put("bad.tar.gz", "rubbish")
	x.put("notes.txt", "images no:1")
	x.put(".half.tar", "images no:2")
	x.importAll()
	x.wantImports(3)
	for _, name := range []string{"a:1", "b:1", "c:1"} {
		testenv.True(t, x.store.images["docker.io/library/"+name], "image %s is missing", name)
	}
	if log := x.logged(); !strings.Contains(log, "bad.tar.gz") || !strings.Contains(log, "not an archive") {
		t.Errorf("the bad archive is not named in the log:\n%s", log)
	}
}

func TestRestartImportsNothingAgain(t *testing.T) {
	x := newFixture(t)
	path := x.put("a.tar", "images a:1")
	x.importAll()
	x.importAll()
	x.wantImports(1)

	testenv.NoError(t, os.Chtimes(path, time.Now(), time.Now().Add(time.Hour)))
	x.importAll() // touched only: the hash tells
	x.wantImports(1)

	x.store.images = map[string]bool{}
	x.importAll() // the image has gone
	x.wantImports(2)

	x.put("a.tar", "images a:2")
	x.importAll()
	x.wantImports(3)
}

// TestEarlierNamesAreImportedAgain: an earlier version imported an archive under a name that no pod has.
func TestEarlierNamesAreImportedAgain(t *testing.T) {
	x := newFixture(t)
	x.put("a.tar", "images app:1")
	x.store.written = true
	x.importAll()
	x.store.written = false
	x.importAll()
	x.wantImports(2)
	testenv.True(t, x.store.images["docker.io/library/app:1"], "the store has %v", x.store.images)
	x.importAll()
	x.wantImports(2)
}

func TestDamagedRecordCountsAsNone(t *testing.T) {
	x := newFixture(t)
	x.put("a.tar", "images a:1")
	x.importAll()
	testenv.NoError(t, os.WriteFile(filepath.Join(x.dir, "record.json"), []byte("{"), 0o600))
	x.importAll()
	x.wantImports(2)
}

func TestArchiveAddedWhileRunningIsImported(t *testing.T) {
	x := newFixture(t)
	x.put("first.tar", "images first:1")
	defer testenv.Run(t, x.folder().Run)()
	x.waitFor("the first archive", func() bool { return len(x.store.imported()) == 1 })

	x.put("second.tar", "images second:1")
	x.waitFor("the second archive", func() bool { return len(x.store.imported()) == 2 })

	tmp := x.put(".third.tar.part", "images third:1")
	testenv.NoError(t, os.Rename(tmp, filepath.Join(x.dir, "images", "third.tar")))
	x.waitFor("the renamed archive", func() bool { return len(x.store.imported()) == 3 })
}

// A user has a limited number of inotify instances, and other programs may have them all.
func TestImagesAreImportedWithoutInotify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t)
		x.put("first.tar", "images first:1")
		folder := x.folder()
		folder.SetNewWatcher(func() (*fsnotify.Watcher, error) { return nil, unix.EMFILE })
		stop := testenv.Run(t, folder.Run)
		synctest.Wait()
		x.wantImports(1)

		x.put("second.tar", "images second:1")
		time.Sleep(filewatch.Every) // of the bubble
		synctest.Wait()
		x.wantImports(2)
		testenv.Contains(t, x.logged(), "not noticed at once but within 15s", "the log does not say that files are noticed late:")
		stop()
	})
}

func TestRunWaitsForTheWriter(t *testing.T) {
	x := newFixture(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	path := x.put("slow.tar", "images ")
	f := testenv.Must(os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0))(t)
	probe := testenv.Must(os.Open(path))(t)
	leases := images.BeingWritten(probe)
	probe.Close()
	if !leases {
		t.Skip("the file system of the temporary directory has no leases")
	}
	go func() { done <- x.folder().Run(ctx) }()
	defer func() {
		cancel()
		testenv.Check(t, <-done)
	}()

	x.put("other.tar", "images other:1")
	x.waitFor("the other archive", func() bool { return len(x.store.imported()) == 1 })
	for i := range 5 { // many settle times pass while the writer holds the file
		testenv.Must(fmt.Fprintf(f, "slow:%d ", i))(t)
		time.Sleep(25 * time.Millisecond)
	}
	x.wantImports(1)
	testenv.NoError(t, f.Close())
	x.waitFor("the slow archive", func() bool { has, _ := x.store.Complete(ctx, "slow:4"); return has })
}

func (x *fixture) waitFor(what string, cond func() bool) {
	x.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			x.t.Fatalf("timed out waiting for %s\n%s", what, x.logged())
		}
	}
}

func TestUnchangedArchiveIsImportedOnce(t *testing.T) {
	x := newFixture(t)
	path := x.put("pause.tar", "images pause:1")
	record := filepath.Join(x.dir, "pause.json")
	ctx := context.Background()
	once := func(want int) {
		t.Helper()
		testenv.NoError(t, images.ImportOnce(ctx, x.store, path, "pause:1", record))
		x.wantImports(want)
	}
	once(1)
	once(1)
	x.store.images = map[string]bool{}
	once(2)
	x.put("pause.tar", "images pause:1 other:1")
	once(3)
	x.put("pause.tar", "images other:1")
	x.store.images = map[string]bool{}
	testenv.WantError(t, images.ImportOnce(ctx, x.store, path, "pause:1", record), "pause:1")
}

func TestUnnamedImageIsNamedAfterItsFile(t *testing.T) {
	for file, want := range map[string]string{
		"web.tar":            "docker.io/library/web",
		"My App_1.2.tar.zst": "docker.io/library/my-app_1.2",
		"x.tgz":              "docker.io/library/x",
	} {
		testenv.Equal(t, images.FallbackName(file), want, "%s:", file)
	}
}

func TestBareTagGetsTheFallbackName(t *testing.T) {
	testenv.Equal(t, images.RefName("v1", "docker.io/library/web"), "docker.io/library/web:v1", "")
	testenv.Equal(t, images.RefName("example.org/web:v1", "docker.io/library/web"), "example.org/web:v1", "")
}
