// SPDX-License-Identifier: Apache-2.0

package localvolume

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const volume = "pvc-0a1b2c3d-0000-4000-8000-00000000abcd_default_data-web-0"

func newFolders(t *testing.T, paths ...string) *Folders {
	t.Helper()
	return New(Options{Paths: paths, Own: paths[0], Logger: slog.New(slog.DiscardHandler)})
}

// do does what has to work.
func do(t *testing.T, f *Folders, r Request) Response {
	t.Helper()
	a, err := f.Do(r)
	testenv.NoError(t, err, "%s", r.Op)
	return a
}

// refuses fails unless an error says so.
func refuses(t *testing.T, f *Folders, r Request, want string) {
	t.Helper()
	if _, err := f.Do(r); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%+v: %v, want %q", r, err, want)
	}
}

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	i := testenv.Must(os.Lstat(path))(t)
	return i.Mode().Perm()
}

func write(t *testing.T, path, text string) {
	t.Helper()
	testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	testenv.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

// run runs the cleaner until the test ends.
func run(t *testing.T, f *Folders, board *status.Board) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx, board.Part("local volumes"))
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func empty(t *testing.T, folder string) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, "nothing is left in the folder", func() error {
		left, err := os.ReadDir(folder)
		if err == nil && len(left) > 0 {
			err = errors.New(left[0].Name())
		}
		return err
	})
}

func TestVolumeFolderIsMadeWithItsMode(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	folder := filepath.Join(t.TempDir(), "data", "storage")
	f := newFolders(t, folder)
	for range 2 { // who was not heard asks again
		a := do(t, f, Request{Op: Make, Name: volume, Bytes: 1})
		if want := filepath.Join(folder, volume); a.Path != want || a.Free <= 0 {
			t.Fatalf("%+v, want %s", a, want)
		}
		testenv.Equal(t, mode(t, a.Path), 0o777, "the volume has mode")
		testenv.Equal(t, mode(t, folder), 0o700, "the folder has mode")
		// A crash between the two steps leaves this.
		testenv.NoError(t, os.Chmod(a.Path, 0o700))
	}
	if a := do(t, f, Request{Op: Space}); a.Path != folder || a.Free <= 0 {
		t.Errorf("space: %+v", a)
	}
}

func TestVolumeNamesAreSplitAndChecked(t *testing.T) {
	long := Name("pvc-0a1b2c3d-0000-4000-8000-00000000abcd", strings.Repeat("n", 63), strings.Repeat("c", 253))
	testenv.False(t, len(long) != 255 || !isVolume(long), "a long name has %d bytes: %s", len(long), long)
	testenv.Equal(t, Name("pvc-0a1b2c3d-0000-4000-8000-00000000abcd", "default", "data-web-0"), volume, "")
	for _, path := range []string{"storage/" + volume, "/storage/../" + volume, "/storage/" + volume + "/", "/", "", "/etc", "/storage/" + volume + "/../x"} {
		if folder, name, ok := Split(path); ok {
			t.Errorf("%q is split into %q and %q", path, folder, name)
		}
	}
	if folder, name, ok := Split("/storage/" + volume); !ok || folder != "/storage" || name != volume {
		t.Errorf("%q, %q, %v", folder, name, ok)
	}
}

// A user who writes PersistentVolumes writes any path; nothing but volumes is touched.
func TestOnlyVolumesAreTouched(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "storage")
	f := newFolders(t, folder)
	do(t, f, Request{Op: Make, Name: volume})
	write(t, filepath.Join(dir, "outside", "file"), "x")
	write(t, filepath.Join(folder, "notes"), "x")
	for _, name := range []string{
		"", ".", "..", "../outside", "/" + volume, volume + "/..", volume + "/../../outside", "notes", ".removing-0-" + volume,
		"pvc-0a1b2c3d-0000-4000-8000-00000000abcd", "pvc-../../_default_x", volume + "\x00", strings.ToUpper(volume), volume + strings.Repeat("x", 255),
		"pvc-0a1b2c3d-0000-4000-8000-00000000abcd_default_../x", "pvc-0a1b2c3d-0000-4000-8000-00000000abcd_.._x",
	} {
		for _, op := range []Op{Make, Remove} {
			refuses(t, f, Request{Op: op, Name: name}, "not the name of a volume")
		}
	}
	for _, other := range []string{dir, filepath.Join(dir, "outside"), "/", folder + "/", folder + "/../outside", volume} {
		for _, op := range []Op{Make, Remove, Space} {
			refuses(t, f, Request{Op: op, Folder: other, Name: volume}, "none of the node's folders")
		}
	}
	refuses(t, f, Request{Op: "format", Name: volume}, "cannot")
	// What has a volume's name and is none: only root can have put it there.
	const link, file = "pvc-00000000-0000-4000-8000-000000000001_default_link", "pvc-00000000-0000-4000-8000-000000000002_default_file"
	testenv.NoError(t, os.Symlink(filepath.Join(dir, "outside"), filepath.Join(folder, link)))
	write(t, filepath.Join(folder, file), "x")
	for _, name := range []string{link, file} {
		refuses(t, f, Request{Op: Make, Name: name}, "no directory")
		refuses(t, f, Request{Op: Remove, Name: name}, "no directory")
	}
	for _, path := range []string{"outside/file", "storage/notes", "storage/" + file, "storage/" + volume} {
		testenv.Check(t, testenv.Err(os.Lstat(filepath.Join(dir, path))))
	}
	testenv.Equal(t, mode(t, filepath.Join(dir, "outside")), 0o755, "the folder behind a link has mode")
}

func TestVolumeLargerThanFreeSpaceIsRefused(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "storage")
	f := New(Options{Paths: []string{folder}, Own: folder, Free: func(*os.File) (int64, error) { return 3 << 30, nil }})
	refuses(t, f, Request{Op: Make, Name: volume, Bytes: 10 << 30}, "10.0 GiB are asked for and 3.0 GiB are free in "+folder)
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	do(t, f, Request{Op: Make, Name: volume, Bytes: 3 << 30})
	for n, want := range map[int64]string{5: "5 bytes", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 5 << 40: "5.0 TiB"} {
		testenv.Equal(t, Size(n), want, "Size(%d) is", n)
	}
}

// A folder of the operator's may be on a disk that is not mounted.
func TestMissingFolderIsNotMade(t *testing.T) {
	dir := t.TempDir()
	own, other := filepath.Join(dir, "own"), filepath.Join(dir, "other")
	f := newFolders(t, own, other)
	for _, op := range []Op{Make, Remove, Space} {
		refuses(t, f, Request{Op: op, Folder: other, Name: volume}, "is not there")
	}
	testenv.ErrorIs(t, testenv.Err(os.Lstat(other)), os.ErrNotExist, "the operator's folder was made")
	testenv.NoError(t, os.Mkdir(other, 0o755))
	a := do(t, f, Request{Op: Make, Folder: other, Name: volume})
	if a.Path != filepath.Join(other, volume) || mode(t, other) != 0o700 {
		t.Errorf("%+v, the folder has mode %o", a, mode(t, other))
	}
	testenv.NoError(t, os.RemoveAll(other))
	refuses(t, f, Request{Op: Remove, Folder: other, Name: volume}, "is not there")
}

// A folder that holds other things is not closed: a user may need them.
func TestFolderWithForeignContentIsKept(t *testing.T) {
	folder := t.TempDir()
	write(t, filepath.Join(folder, "photo"), "x")
	testenv.NoError(t, os.Chmod(folder, 0o755))
	f := newFolders(t, folder)
	refuses(t, f, Request{Op: Make, Name: volume}, "photo")
	testenv.Equal(t, mode(t, folder), 0o755, "the folder has mode")
	testenv.NoError(t, os.Chmod(folder, 0o700))
	do(t, f, Request{Op: Make, Name: volume})
}

func TestRequestsAreServedOverAConnection(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "storage")
	f := newFolders(t, folder)
	ask := func(ctx context.Context, r Request) (Response, error) {
		here, there := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); f.Serve(ctx, there) }()
		a, err := Call(ctx, here, r)
		<-done
		return a, err
	}
	a, err := ask(t.Context(), Request{Op: Make, Name: volume})
	testenv.Require(t, err == nil && a.Path == filepath.Join(folder, volume), "%+v, %v", a, err)
	testenv.WantError(t, testenv.Err(ask(t.Context(), Request{Op: Make, Name: "x"})), "not the name")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	testenv.ErrorIs(t, testenv.Err(ask(ctx, Request{Op: Space})), context.Canceled, "cancelled")
	// Nonsense, and more than a message may have, closes the connection.
	for _, text := range []string{"hello\n", `{"op":"` + strings.Repeat("x", maxMessage)} {
		here, there := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); f.Serve(t.Context(), there) }()
		_, _ = here.Write([]byte(text))
		<-done
		_ = here.Close()
	}
}
