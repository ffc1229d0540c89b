// SPDX-License-Identifier: Apache-2.0

package records

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/podkill"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// node is a node with records, of which containerd may use what is there.
type node struct {
	*Records
	t   *testing.T
	log bytes.Buffer
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t}
	n.Records = &Records{
		Node:   podkill.Node{Root: filepath.Join(dir, "containerd"), State: filepath.Join(dir, "state"), BinDir: filepath.Join(dir, "bin")},
		Logger: slog.New(slog.NewTextHandler(&n.log, nil)), BootIDFile: filepath.Join(dir, "boot_id"),
	}
	testenv.NoError(t, os.MkdirAll(filepath.Join(n.Node.State, "bundle"), 0o700))
	n.boots("one")
	n.fill()
	return n
}

func (n *node) boots(id string) {
	n.t.Helper()
	testenv.NoError(n.t, os.WriteFile(n.BootIDFile, []byte(id+"\n"), 0o600))
}

func (n *node) db() string {
	return filepath.Join(n.Node.Root, "io.containerd.metadata.v1.bolt", "meta.db")
}

// fill makes intact records.
func (n *node) fill() {
	n.t.Helper()
	testenv.NoError(n.t, os.MkdirAll(filepath.Dir(n.db()), 0o700))
	db := testenv.Must(bbolt.Open(n.db(), 0o600, nil))(n.t)
	testenv.NoError(n.t, db.Update(func(tx *bbolt.Tx) error { return testenv.Err(tx.CreateBucketIfNotExists([]byte("v1"))) }))
	testenv.NoError(n.t, db.Close())
}

func (n *node) damage() {
	n.t.Helper()
	testenv.NoError(n.t, os.Truncate(n.db(), 4096*3))
}

// start is a start of containerd that ends with an error.
func (n *node) start(failure error) error {
	err := n.Prepare(context.Background(), func() error { return nil })
	if err == nil {
		n.Ended(failure)
	}
	return err
}

// aside returns the names of the directories that were set aside.
func (n *node) aside() string {
	n.t.Helper()
	var out []string
	for _, path := range setAsideBefore(testenv.Must(filepath.EvalSymlinks(n.Node.Root))(n.t)) {
		out = append(out, filepath.Base(path))
	}
	return strings.Join(out, " ")
}

func TestIntactRecordsStay(t *testing.T) {
	n := newNode(t)
	testenv.NoError(t, n.start(nil))
	testenv.NoError(t, os.WriteFile(n.db(), nil, 0o600))
	testenv.NoError(t, n.start(nil), "killed at its first start")
	testenv.Equal(t, n.aside(), "", "set aside")
	testenv.Equal(t, len(Problems(n.Node.Root)), 0, "problems")
	left := testenv.Must(filepath.Glob(n.Node.Root + ".*"))(t)
	testenv.Equal(t, strings.Join(left, " "), "", "files of a good start")
	testenv.NoError(t, os.RemoveAll(n.Node.Root))
	testenv.NoError(t, n.start(nil), "a new node")
}

func TestRecordsAreSetAsideOnceABoot(t *testing.T) {
	n := newNode(t)
	n.damage()
	testenv.NoError(t, n.start(nil))
	testenv.Equal(t, n.aside(), "containerd.damaged-1", "set aside")
	left := testenv.Must(filepath.Glob(filepath.Join(n.Node.State, "*")))(t)
	testenv.Equal(t, len(left), 0, "bundles of containers that have no records")
	testenv.True(t, strings.Contains(n.log.String(), "level=WARN") && strings.Contains(n.log.String(), "meta.db: it is"), "logged: %s", &n.log)
	problems := Problems(n.Node.Root)
	want := "(meta.db: it is 12288 bytes long, too short for the 6 pages of 4096 bytes that it should have: it was truncated): set aside in " +
		n.Node.Root + ".damaged-1; images are imported and pulled again"
	testenv.True(t, len(problems) == 1 && strings.Contains(problems[0], want), "status: %q", problems)

	n.fill()
	testenv.NoError(t, n.start(nil))
	n.damage()
	testenv.WantError(t, n.start(nil), "although they were set aside since this machine booted; nothing was changed")
	testenv.Equal(t, n.aside(), "containerd.damaged-1", "set aside in the same boot")
	n.boots("two")
	testenv.NoError(t, n.start(nil))
	testenv.Equal(t, n.aside(), "containerd.damaged-1 containerd.damaged-2", "set aside after a reboot")

	testenv.NoError(t, os.RemoveAll(n.Node.Root+".damaged-1"))
	problems = Problems(n.Node.Root)
	testenv.True(t, len(problems) == 1 && strings.Contains(problems[0], "damaged-2;"), "after its removal by hand: %q", problems)
}

func TestTwoSetAsideDirectoriesAreKept(t *testing.T) {
	n := newNode(t)
	for i := range 12 {
		n.boots(fmt.Sprint(i))
		n.fill()
		n.damage()
		testenv.NoError(t, n.start(nil))
	}
	testenv.Equal(t, n.aside(), "containerd.damaged-11 containerd.damaged-12", "kept")
	testenv.True(t, strings.Contains(n.log.String(), "directory="+n.Node.Root+".damaged-10 kept=2"), "the removal of the oldest is logged: %s", &n.log)
	testenv.Equal(t, len(Problems(n.Node.Root)), 2, "problems")
}

func TestFailedStartsInARowSetRecordsAside(t *testing.T) {
	broken := errors.New("failed to recover state: two records have\none name")
	killed := errors.New("the process was killed")
	for name, row := range map[string]struct {
		failures []error // nil is a good start
		want     string
	}{
		"once":                    {[]error{broken}, ""},
		"twice":                   {[]error{broken, broken}, "containerd did not start 2 times in a row: failed to recover state: two records have one name"},
		"not in a row":            {[]error{broken, nil, broken}, ""},
		"killed":                  {[]error{killed, killed, killed}, ""},
		"stopped":                 {[]error{fmt.Errorf("stopped: %w", context.Canceled), context.Canceled}, ""},
		"slow":                    {[]error{context.DeadlineExceeded, context.DeadlineExceeded}, ""},
		"the kernel refuses":      {[]error{fmt.Errorf("listen: %w", unix.EADDRINUSE), unix.EMFILE, unix.ENOSPC}, ""},
		"the kernel, not wrapped": {[]error{errors.New("failed to recover state: x: too many open files"), errors.New("too many open files")}, ""},
		"something else":          {[]error{errors.New("invalid plugin config"), errors.New("invalid plugin config"), errors.New("a bug")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			for _, failure := range row.failures {
				testenv.NoError(t, n.Prepare(t.Context(), func() error { return nil }))
				if !errors.Is(failure, killed) {
					n.Ended(failure)
				}
			}
			testenv.NoError(t, n.start(nil))
			problems := strings.Join(Problems(n.Node.Root), "\n")
			testenv.True(t, strings.Contains(problems, row.want) && (row.want == "") == (problems == ""), "status: %s", problems)
		})
	}
}

// TestFailedStartsOfAnotherBootDoNotCount: a power cut amid a start says nothing about the records.
func TestFailedStartsOfAnotherBootDoNotCount(t *testing.T) {
	n := newNode(t)
	for _, boot := range []string{"one", "two", "three"} {
		n.boots(boot)
		testenv.NoError(t, n.start(errors.New("failed to recover state: two records have one name")))
	}
	testenv.Equal(t, n.aside(), "", "set aside")
	testenv.NoError(t, n.start(errors.New("failed to recover state: two records have one name")))
	testenv.NoError(t, n.start(nil))
	testenv.Equal(t, n.aside(), "containerd.damaged-1", "set aside")
}

// TestKernelsRefusalsAreNoDamage: what cannot be read may be intact, and containerd reports it.
func TestKernelsRefusalsAreNoDamage(t *testing.T) {
	read := func(no unix.Errno) error {
		return fmt.Errorf("read page 4: %w", &fs.PathError{Op: "read", Path: "meta.db", Err: no})
	}
	open := func(no unix.Errno) error {
		return fmt.Errorf("open: %w", &fs.PathError{Op: "open", Path: "meta.db", Err: no})
	}
	for _, row := range []struct {
		err     error
		damaged bool
	}{
		{open(unix.EMFILE), false}, {open(unix.ENFILE), false}, {open(unix.EACCES), false}, {open(unix.EIO), false}, {open(unix.ENOSPC), false},
		{read(unix.ENOMEM), false}, {read(unix.EIO), true}, {read(unix.EUCLEAN), true}, {open(unix.ENOENT), true}, {errors.New("has no folder"), true},
	} {
		n := newNode(t)
		testenv.NoError(t, n.Prepare(t.Context(), func() error { return row.err }))
		n.Ended(nil)
		testenv.Equal(t, n.aside() != "", row.damaged, "%v counts as damage:", row.err)
		testenv.True(t, row.damaged || strings.Contains(n.log.String(), "could not be checked"), "%v: logged: %s", row.err, &n.log)
	}
}

// TestPlaceOfTheRecordsStays: an operator may have put the records on another disk, by a link or by a mount.
func TestPlaceOfTheRecordsStays(t *testing.T) {
	otherDisk := func(n *node) string { return filepath.Join(filepath.Dir(n.Node.Root), "disk", "images") }
	link := func(t *testing.T, n *node) {
		testenv.NoError(t, os.MkdirAll(filepath.Dir(otherDisk(n)), 0o700))
		testenv.NoError(t, os.Rename(n.Node.Root, otherDisk(n)))
		testenv.NoError(t, os.Symlink(otherDisk(n), n.Node.Root))
	}
	bind := func(t *testing.T, n *node) {
		testenv.NoError(t, os.MkdirAll(otherDisk(n), 0o700))
		testenv.NoError(t, os.MkdirAll(filepath.Join(otherDisk(n), "lost+found"), 0o700))
		testenv.NoError(t, unix.Mount(otherDisk(n), n.Node.Root, "", unix.MS_BIND, ""))
		t.Cleanup(func() { testenv.Check(t, unix.Unmount(n.Node.Root, unix.MNT_DETACH)) })
		n.fill()
	}
	for name, row := range map[string]struct {
		place func(*testing.T, *node)
		want  string // where the records are set aside
	}{
		"a link":        {link, "disk/images.damaged-2"},
		"a mount point": {bind, "containerd/damaged-2"},
	} {
		t.Run(name, func(t *testing.T) {
			testenv.RequireRoot(t, "it mounts")
			n := newNode(t)
			row.place(t, n)
			n.damage()
			testenv.NoError(t, n.start(nil))
			n.boots("two")
			n.fill()
			n.damage()
			testenv.NoError(t, n.start(nil))
			dir := filepath.Dir(n.Node.Root)
			testenv.Check(t, testenv.Err(os.Stat(filepath.Join(dir, row.want, "io.containerd.metadata.v1.bolt", "meta.db"))))
			n.fill()
			real := testenv.Must(filepath.EvalSymlinks(n.Node.Root))(t)
			problems := strings.Join(Problems(n.Node.Root), "\n")
			testenv.True(t, strings.Contains(problems, filepath.Join(dir, row.want)+";"), "status: %s", problems)
			testenv.Check(t, testenv.Err(os.Stat(filepath.Join(otherDisk(n), "io.containerd.metadata.v1.bolt", "meta.db"))), "new records are not in %s", real)
		})
	}
}

// TestMountsOfTheOperatorStay: part of the records may be on a disk of its own, which is not unmounted.
func TestMountsOfTheOperatorStay(t *testing.T) {
	testenv.RequireRoot(t, "it mounts")
	n := newNode(t)
	disk := filepath.Join(n.Node.Root, "io.containerd.snapshotter.v1.overlayfs")
	testenv.NoError(t, os.Mkdir(disk, 0o700))
	testenv.NoError(t, unix.Mount("none", disk, "tmpfs", 0, ""))
	t.Cleanup(func() { testenv.Check(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	n.damage()
	testenv.WantError(t, n.start(nil), "could not be set aside: rename "+disk)
}

// TestInterruptedSetAsideIsFinished: a power cut may come while the records are being set aside.
func TestInterruptedSetAsideIsFinished(t *testing.T) {
	for name, leave := range map[string]func(t *testing.T, n *node){
		"before the move": func(*testing.T, *node) {},
		"amid the move": func(t *testing.T, n *node) {
			testenv.NoError(t, os.Mkdir(n.Node.Root+".damaged-1", 0o700))
			testenv.NoError(t, os.Rename(filepath.Dir(n.db()), filepath.Join(n.Node.Root+".damaged-1", "moved")))
			testenv.NoError(t, os.Mkdir(filepath.Join(n.Node.Root, "io.containerd.content.v1.content"), 0o700))
		},
		"after the move": func(t *testing.T, n *node) { testenv.NoError(t, os.Rename(n.Node.Root, n.Node.Root+".damaged-1")) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			testenv.NoError(t, n.save(state{Next: "meta.db: page 7 is used twice"}))
			leave(t, n)
			n.boots("two")
			testenv.NoError(t, n.start(nil))
			left := testenv.Must(os.ReadDir(n.Node.Root))(t)
			testenv.Equal(t, len(left), 0, "left of the damaged records")
			problems := Problems(n.Node.Root)
			testenv.True(t, len(problems) > 0 && strings.Contains(problems[0], "page 7 is used twice): set aside in "+n.Node.Root+".damaged-1;"), "status: %q",
				problems)
		})
	}
}

// TestRemovedRecordsAreNoFailure: an operator may remove the records while coracle is stopped. Then there is nothing
// to set aside.
func TestRemovedRecordsAreNoFailure(t *testing.T) {
	n := newNode(t)
	mounts := filepath.Join(n.Node.State, "io.containerd.mount-manager.v1.bolt", "mounts.db")
	testenv.NoError(t, os.MkdirAll(filepath.Dir(mounts), 0o700))
	testenv.NoError(t, os.Rename(n.db(), mounts))
	testenv.NoError(t, os.RemoveAll(n.Node.Root))
	testenv.NoError(t, n.start(nil))
	testenv.NoError(t, n.start(nil), "the second start")
	testenv.Equal(t, n.aside()+strings.Join(Problems(n.Node.Root), " "), "", "set aside")
}

// TestRepairedRecordsStay: an operator may bring records back from a backup after they could not be set aside.
func TestRepairedRecordsStay(t *testing.T) {
	testenv.RequireRoot(t, "it mounts")
	n := newNode(t)
	disk := filepath.Join(n.Node.Root, "a-disk")
	testenv.NoError(t, os.Mkdir(disk, 0o700))
	testenv.NoError(t, unix.Mount("none", disk, "tmpfs", 0, ""))
	t.Cleanup(func() { testenv.Check(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	sound := testenv.Must(os.ReadFile(n.db()))(t)
	n.damage()
	testenv.WantError(t, n.start(nil), "could not be set aside: rename "+disk)
	testenv.NoError(t, os.WriteFile(n.db(), sound, 0o600))
	testenv.NoError(t, n.start(nil))
	testenv.Equal(t, n.aside(), "", "set aside")
}

// TestTornHeaderIsNoDamage: bbolt itself goes on with the other header page.
func TestTornHeaderIsNoDamage(t *testing.T) {
	for id := range int64(2) {
		n := newNode(t)
		f := testenv.Must(os.OpenFile(n.db(), os.O_WRONLY, 0))(t)
		testenv.Must(f.WriteAt(make([]byte, 4096), id*4096))(t)
		testenv.NoError(t, f.Close())
		testenv.NoError(t, n.start(nil))
		testenv.Equal(t, n.aside(), "", "set aside")
	}
}

// TestUnreadableStateCountsAsNone: the file that says what was set aside may be damaged too.
func TestUnreadableStateCountsAsNone(t *testing.T) {
	n := newNode(t)
	testenv.NoError(t, os.WriteFile(n.Node.Root+".json", []byte("{"), 0o600))
	testenv.Equal(t, len(Problems(n.Node.Root)), 0, "problems")
	n.damage()
	testenv.NoError(t, n.start(nil))
	testenv.Equal(t, n.aside(), "containerd.damaged-1", "set aside")
	testenv.Equal(t, len(Problems(n.Node.Root)), 1, "problems")
}
