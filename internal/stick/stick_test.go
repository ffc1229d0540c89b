// SPDX-License-Identifier: Apache-2.0

package stick

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// fat returns a file system of FAT with one entry in its root folder, behind that of a removed label.
func fat(kind string, root, label string) []byte {
	disk := make([]byte, 64<<10)
	le := binary.LittleEndian
	le.PutUint16(disk[510:], 0xAA55)
	le.PutUint16(disk[11:], 512)
	le.PutUint16(disk[14:], 4) // sectors before the tables
	disk[13], disk[16] = 8, 2  // sectors of a cluster; tables
	at := (4 + 2*3) * 512
	switch kind {
	case "FAT32":
		copy(disk[82:], "FAT32   ")
		copy(disk[71:], fmt.Sprintf("%-11s", label))
		le.PutUint32(disk[36:], 3)
		le.PutUint32(disk[44:], 3) // the root's cluster
		at += 8 * 512
	default:
		copy(disk[54:], "FAT16   ")
		copy(disk[43:], fmt.Sprintf("%-11s", label))
		le.PutUint16(disk[22:], 3)
	}
	entry := func(name string, attributes byte) {
		copy(disk[at:], name)
		disk[at+11] = attributes
		at += entrySize
	}
	entry("\xe5EMOVED    ", 0x08)
	entry("Along name.", 0x0F)
	entry("FILE       ", 0x20)
	if root != "" {
		entry(fmt.Sprintf("%-11s", root), 0x28)
	}
	return disk
}

func exfat(label string) []byte {
	disk := make([]byte, 64<<10)
	copy(disk[3:], "EXFAT   ")
	disk[108], disk[109] = 9, 3
	binary.LittleEndian.PutUint32(disk[88:], 16) // sectors before the clusters
	binary.LittleEndian.PutUint32(disk[96:], 4)  // the root's cluster
	at := (16 + 2*8) * 512
	disk[at] = 0x81
	at += entrySize
	disk[at], disk[at+1] = 0x83, byte(len(label))
	for i, r := range label {
		binary.LittleEndian.PutUint16(disk[at+2+2*i:], uint16(r))
	}
	return disk
}

func TestLabelsAreRead(t *testing.T) {
	for _, tt := range []struct {
		name        string
		disk        []byte
		kind, label string
	}{
		{"FAT32", fat("FAT32", "CORACLE", "OLD"), "vfat", "CORACLE"},
		{"FAT32 with the label in its boot sector", fat("FAT32", "", "CORACLE"), "vfat", "CORACLE"},
		{"FAT16", fat("FAT16", "CORACLE", "NO NAME"), "vfat", "CORACLE"},
		{"FAT16 without a label", fat("FAT16", "", "NO NAME"), "vfat", ""},
		{"exFAT", exfat("CORACLE"), "exfat", "CORACLE"},
		{"nothing", make([]byte, 4096), "", ""},
		{"a small disk", make([]byte, 512), "", ""},
	} {
		kind, label := labelOf(bytes.NewReader(tt.disk))
		testenv.Equal(t, kind+" "+label, tt.kind+" "+tt.label, "%s", tt.name)
	}
}

func FuzzLabelOf(f *testing.F) {
	f.Add(fat("FAT32", "CORACLE", "X"))
	f.Add(fat("FAT16", "CORACLE", "X"))
	f.Add(exfat("CORACLE"))
	f.Fuzz(func(t *testing.T, disk []byte) {
		if _, label := labelOf(bytes.NewReader(disk)); len(label) > 4*16 {
			t.Errorf("a label of %d bytes", len(label))
		}
	})
}

// attach makes a disk of a folder's content, and returns its label and device.
func attach(t *testing.T, dir string) (label, device string) {
	t.Helper()
	testenv.RequireRoot(t, "it attaches a loop device")
	label = fmt.Sprintf("T%d", os.Getpid())
	image := filepath.Join(t.TempDir(), "stick")
	testenv.NoError(t, os.WriteFile(image, nil, 0o600))
	testenv.NoError(t, os.Truncate(image, 16<<20))
	run := func(program string, args ...string) string {
		out, err := exec.Command(program, args...).CombinedOutput()
		if err != nil {
			testenv.Missing(t, testenv.LoopDevice, "%s: %v: %s", program, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("mkfs.ext4", "-q", "-L", label, "-d", dir, image)
	device = run("losetup", "--find", "--show", image)
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", device, err, out)
		}
	})
	return label, device
}

func TestStickIsReadAndNotTrusted(t *testing.T) {
	dir := t.TempDir()
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "good.bundle"), []byte("content"), 0o644))
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "other.txt"), nil, 0o644))
	testenv.NoError(t, os.Mkdir(filepath.Join(dir, "folder.bundle"), 0o755))
	testenv.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "link.bundle")))
	testenv.NoError(t, os.Symlink("good.bundle", filepath.Join(dir, "near.bundle")))
	testenv.NoError(t, unix.Mkfifo(filepath.Join(dir, "pipe.bundle"), 0o644))
	if os.Geteuid() == 0 {
		testenv.NoError(t, unix.Mknod(filepath.Join(dir, "zero.bundle"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	}
	label, device := attach(t, dir)
	before := testenv.Must(os.ReadFile("/proc/self/mountinfo"))(t)

	found, err := Find(label) // the error may be of another disk of this machine
	testenv.Require(t, len(found) == 1 && found[0] == Stick{device, "ext4"}, "found %v, %v, want %s", found, err, device)
	root := testenv.Must(found[0].Open())(t)
	names, err := root.Files(".bundle")
	testenv.NoError(t, err)
	testenv.EqualSlices(t, names, []string{"good.bundle"}, "files")
	for _, name := range []string{"link.bundle", "near.bundle", "pipe.bundle", "zero.bundle", "folder.bundle", "../etc/passwd", "/etc/passwd", "..", ""} {
		if _, err := root.OpenFile(name); err == nil {
			t.Errorf("%q was opened", name)
		}
	}
	f := testenv.Must(root.OpenFile("good.bundle"))(t)
	var fs unix.Statfs_t
	testenv.NoError(t, unix.Fstatfs(int(f.Fd()), &fs))
	const limits = unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
	testenv.Equal(t, fs.Flags&limits, int64(limits), "flags of the mount")
	after := testenv.Must(os.ReadFile("/proc/self/mountinfo"))(t)
	testenv.False(t, bytes.Contains(after, []byte(device+" ")), "the stick is mounted for others: %s", after)
	testenv.True(t, len(before) > 0, "no mounts are listed")

	// An open file can be read until it is closed. Then nothing uses the disk.
	testenv.NoError(t, root.Close())
	testenv.Equal(t, string(testenv.Must(io.ReadAll(f))(t)), "content", "the file")
	testenv.NoError(t, f.Close())
	fd, err := unix.Open(device, unix.O_RDONLY|syscall.O_EXCL, 0) // refused for a disk that is mounted
	testenv.NoError(t, err, "the disk is still in use")
	testenv.NoError(t, unix.Close(fd))
}

func TestDiskWithoutTheLabelIsNoStick(t *testing.T) {
	label, device := attach(t, t.TempDir())
	found, err := Find(label + "x")
	testenv.Require(t, len(found) == 0, "found %v, %v", found, err)
	_, err = Stick{device, "vfat"}.Open()
	testenv.True(t, err != nil && strings.Contains(err.Error(), device), "an ext4 as FAT: %v", err)
}
