// SPDX-License-Identifier: Apache-2.0

package localvolume

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

func TestMain(m *testing.M) { os.Exit(uml.Main(m, (*testing.M).Run)) }

// TestQuotaLimitsVolumesSize runs in a second kernel, since few machines have a kernel and a filesystem with quotas of
// projects.
func TestQuotaLimitsVolumesSize(t *testing.T) {
	if !uml.Inside() {
		uml.Run(t, uml.Options{Modules: []string{"loop", "quota_v2"}, Within: 8 * time.Minute})
		return
	}
	for kind, mkfs := range map[string][]string{
		"ext4": {"mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"},
		"xfs":  {"mkfs.xfs", "-q"},
	} {
		t.Run(kind, func(t *testing.T) {
			if _, err := exec.LookPath(mkfs[0]); err != nil {
				testenv.Missing(t, testenv.XFS, "%v", err) // ext4's is with loop devices
			}
			file, folder := filepath.Join(t.TempDir(), "disk"), filepath.Join(t.TempDir(), "storage")
			testenv.NoError(t, errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 320<<20), os.Mkdir(folder, 0o700)))
			command(t, append(mkfs, file)...)
			mount(t, file, folder, "loop,prjquota")
			t.Run("limits", func(t *testing.T) { testLimits(t, folder) })
			t.Run("removed", func(t *testing.T) { testLimitRemoved(t, folder) })
			t.Run("taken", func(t *testing.T) { testTaken(t, folder) })
			t.Run("stolen", func(t *testing.T) { testStolen(t, folder) })
			t.Run("folder of a project", func(t *testing.T) { testFolderOfProject(t, folder) })
			command(t, "umount", folder)
			mount(t, file, folder, "loop") // it has the numbers, and enforces nothing
			t.Run("not enforced", func(t *testing.T) { testNotEnforced(t, folder) })
		})
	}
}

func command(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func mount(t *testing.T, file, at, options string) {
	t.Helper()
	command(t, "mount", "-o", options, file, at)
	t.Cleanup(func() { _ = unix.Unmount(at, 0) })
}

// fill writes so many bytes into a volume, as a pod of an ordinary user does, and says how many there are then.
func fill(t *testing.T, path string, bytes string) (int64, error) {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(path, "file"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o666)
	testenv.NoError(t, err)
	defer file.Close()
	c := exec.Command("head", "-c", bytes, "/dev/zero")
	c.Stdout = file // root may write more than a quota allows, and others cannot get into the folder
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	err = c.Run()
	i := testenv.Must(file.Stat())(t)
	return i.Size(), err
}

// other is another volume's name.
func other(begin string) string { return strings.Replace(volume, "0a1b", begin, 1) }

func testLimits(t *testing.T, folder string) {
	f := newFolders(t, folder)
	for range 2 { // who was not heard asks again
		if a := do(t, f, Request{Op: Make, Name: volume, Bytes: 4 << 20}); !a.Quota {
			t.Fatalf("the volume has no quota: %+v", a)
		}
	}
	second := do(t, f, Request{Op: Make, Name: other("ffff"), Bytes: 6 << 20}).Path
	path := filepath.Join(folder, volume)
	if n, err := fill(t, path, "8M"); err == nil || n > 4<<20 || n < 3<<20 {
		t.Errorf("a volume of 4 MiB took %d bytes, %v", n, err)
	}
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil || int64(s.Blocks)*s.Bsize != 4<<20 {
		t.Errorf("its pod sees a disk of %d bytes, %v", int64(s.Blocks)*s.Bsize, err)
	}
	if n, err := fill(t, second, "5M"); err != nil || n != 5<<20 {
		t.Errorf("another volume, of 6 MiB, took %d bytes, %v", n, err)
	}
	if a := do(t, f, Request{Op: Grow, Name: volume, Bytes: 16 << 20}); !a.Quota {
		t.Errorf("a volume that grew has no quota: %+v", a)
	}
	if n, err := fill(t, path, "8M"); err != nil || n != 8<<20 {
		t.Errorf("a volume that grew to 16 MiB took %d bytes, %v", n, err)
	}
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f := testenv.Must(os.Open(path))(t)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func testLimitRemoved(t *testing.T, folder string) {
	f := newFolders(t, folder)
	name := other("aaaa")
	do(t, f, Request{Op: Make, Name: name, Bytes: 4 << 20})
	dir := open(t, folder)
	project := projectOf(int(dir.Fd()), name)
	testenv.Require(t, project != 0, "the volume has no project")
	do(t, f, Request{Op: Remove, Name: name})
	testenv.Check(t, f.removeRenamed(t.Context()))
	testenv.Eventually(t, 2*time.Minute, "nothing is left of the quota of a volume that was removed", func() error { // XFS counts what is gone a moment longer
		var q diskQuota
		err := quotactl(dir, getQuota, project, unsafe.Pointer(&q))
		if errors.Is(err, unix.ENOENT) {
			err = nil
		}
		if err == nil && q.hardLimit|q.space|q.files != 0 {
			err = fmt.Errorf("it is %+v", q)
		}
		return err
	})
}

// TestProjectNumbersAreUniquePerVolume: a volume's numbers are its own, also where they go round and when its directory
// was set aside.
func TestProjectNumbersAreUniquePerVolume(t *testing.T) {
	for _, name := range []string{volume, other("ffff"), other("aaaa")} {
		first := firstProjectOf(name)
		for i, want := range map[uint32]bool{0: true, maxProjectTries - 1: true, maxProjectTries: false, projects - 1: false} {
			project := firstProject + (first+i)%projects
			for _, as := range []string{name, asideName(name, 0), asideName(name, 17)} {
				testenv.True(t, isProjectOf(project, as) == want, "the number %d after the first of %s: %v", i, as, !want)
			}
		}
	}
	if isProjectOf(0, volume) || isProjectOf(7, volume) || isProjectOf(firstProjectOf(other("ffff")), volume) {
		t.Error("another's number is the volume's")
	}
}

// testStolen: a pod gives its volume's directory to another volume's project. The other one's limit stays what it is,
// whatever becomes of the first.
func testStolen(t *testing.T, folder string) {
	f := newFolders(t, folder)
	thief, victim := other("dddd"), other("eeee")
	for _, name := range []string{thief, victim} {
		do(t, f, Request{Op: Make, Name: name, Bytes: 4 << 20})
	}
	mine, victimFile := open(t, filepath.Join(folder, thief)), open(t, filepath.Join(folder, victim))
	a, err := attributes(mine)
	b, err2 := attributes(victimFile)
	a.project = b.project
	testenv.NoError(t, errors.Join(err, err2, ioctl(mine, fsSetXattr, &a)))
	testenv.False(t, do(t, f, Request{Op: Grow, Name: thief, Bytes: 64 << 20}).Quota, "another volume's limit was raised")
	do(t, f, Request{Op: Remove, Name: thief})
	testenv.Check(t, f.removeRenamed(t.Context()))
	if n, err := fill(t, filepath.Join(folder, victim), "8M"); err == nil || n > 4<<20 {
		t.Errorf("the other volume, of 4 MiB, took %d bytes, %v", n, err)
	}
}

// testTaken: a number that another volume has already is not given to a volume.
func testTaken(t *testing.T, folder string) {
	f := newFolders(t, folder)
	name := other("bbbb")
	dir := open(t, folder)
	do(t, f, Request{Op: Make, Name: name, Bytes: 4 << 20})
	first := projectOf(int(dir.Fd()), name)
	do(t, f, Request{Op: Remove, Name: name}) // what it holds stays for now, and has the number
	do(t, f, Request{Op: Make, Name: name, Bytes: 4 << 20})
	if second := projectOf(int(dir.Fd()), name); second == first || !isOurProject(second) {
		t.Errorf("after the number %d, which is taken, comes %d", first, second)
	}
}

func testFolderOfProject(t *testing.T, folder string) {
	own := filepath.Join(folder, "own")
	testenv.NoError(t, os.Mkdir(own, 0o700))
	dir := open(t, own)
	a, err := attributes(dir)
	a.project, a.flags = 7, a.flags|inheritsProject
	testenv.NoError(t, errors.Join(err, ioctl(dir, fsSetXattr, &a)))
	f := newFolders(t, own)
	if a := do(t, f, Request{Op: Make, Name: volume, Bytes: 4 << 20}); a.Quota {
		t.Error("a volume in a folder of a project has a quota of its own")
	}
	testenv.False(t, do(t, f, Request{Op: Grow, Name: volume, Bytes: 8 << 20}).Quota, "and it grows")
	do(t, f, Request{Op: Remove, Name: volume})
	testenv.Check(t, f.removeRenamed(t.Context()))
}

func testNotEnforced(t *testing.T, folder string) {
	f := newFolders(t, folder)
	for _, r := range []Request{{Op: Make, Name: other("cccc"), Bytes: 4 << 20}, {Op: Grow, Name: volume, Bytes: 32 << 20}} {
		testenv.False(t, do(t, f, r).Quota, "%s: the volume has a quota that is not enforced", r.Op)
	}
	if n, err := fill(t, filepath.Join(folder, other("cccc")), "8M"); err != nil {
		t.Errorf("a volume without a quota took %d bytes, %v", n, err)
	}
}
