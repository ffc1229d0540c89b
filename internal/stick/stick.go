// SPDX-License-Identifier: Apache-2.0

// Package stick finds file systems on removable disks by their label, and reads the files in their root. It mounts them
// nowhere: a mount exists only for the files that a process has opened, read-only, and without set-user-ID programs,
// devices and links. What is on a disk is not trusted. The package never writes to a disk.
package stick

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Label is the label that coracle status looks for.
const Label = "CORACLE"

// Stick is a file system on a removable disk.
type Stick struct {
	Device string // its path
	Kind   string // the file system, by the kernel's name
}

// Find returns the file systems with a label. It reads a few blocks of each disk that is removable, on USB, a memory
// card, virtual, or a file, and no block of others, which may sleep. The error is the last one; the list may lack what
// could not be read.
func Find(label string) (found []Stick, err error) {
	devices, err := filepath.Glob("/sys/class/block/*")
	for _, device := range devices {
		if !mayBeStick(device) {
			continue
		}
		path := "/dev/" + strings.ReplaceAll(filepath.Base(device), "!", "/")
		kind, have, openErr := labelOfDevice(path)
		if openErr != nil && !errors.Is(openErr, unix.ENXIO) && !errors.Is(openErr, unix.ENOMEDIUM) {
			err = openErr
		}
		if kind != "" && have == label {
			found = append(found, Stick{path, kind})
		}
	}
	return found, err
}

// mayBeStick decides by what the kernel knows of a disk or a part of one.
func mayBeStick(device string) bool {
	name := filepath.Base(device)
	for _, prefix := range []string{"sr", "fd", "ram", "zram", "dm-", "md", "nbd"} { // drives that start when they are opened; no disks
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	value := func(file string) string {
		data, _ := os.ReadFile(filepath.Join(device, file)) // of a disk that is gone
		return strings.TrimSpace(string(data))
	}
	if size := value("size"); size == "" || size == "0" {
		return false
	}
	place, err := filepath.EvalSymlinks(device)
	if err != nil {
		return false
	}
	// A part of a disk is a folder in that of the disk.
	return value("removable") == "1" || value("../removable") == "1" || strings.Contains(place, "/usb") ||
		strings.Contains(place, "/virtio") || strings.HasPrefix(name, "mmcblk") || strings.HasPrefix(name, "loop")
}

func labelOfDevice(path string) (kind, label string, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Mode().Type() != fs.ModeDevice {
		return "", "", err
	}
	kind, label = labelOf(f)
	return kind, label, nil
}

// FS is a stick that is mounted for this process. It ends with Close, and at the latest with the process.
type FS struct {
	root int
	name string
}

// Open mounts a stick. Its tree is attached to no folder, so that no other process sees it.
func (s Stick) Open() (*FS, error) {
	fail := func(err error) (*FS, error) {
		if errors.Is(err, unix.ENODEV) {
			return nil, fmt.Errorf("%s has the file system %s, which this kernel does not know. Format the stick with ext4", s.Device, s.Kind)
		}
		return nil, fmt.Errorf("mounting %s (%s): %w", s.Device, s.Kind, err)
	}
	options, err := unix.Fsopen(s.Kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(options)
	if err := unix.FsconfigSetString(options, "source", s.Device); err != nil {
		return fail(err)
	}
	if err := unix.FsconfigSetFlag(options, "ro"); err != nil {
		return fail(err)
	}
	if s.Kind == "ext4" {
		if err := unix.FsconfigSetFlag(options, "noload"); err != nil { // else its journal would be written back
			return fail(err)
		}
	}
	if err := unix.FsconfigCreate(options); err != nil {
		return fail(err)
	}
	const limits = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC |
		unix.MOUNT_ATTR_NOSYMFOLLOW
	root, err := unix.Fsmount(options, unix.FSMOUNT_CLOEXEC, limits)
	if err != nil {
		return fail(err)
	}
	return &FS{root, s.Device}, nil
}

// Close unmounts the stick once its files are closed.
func (f *FS) Close() error { return unix.Close(f.root) }

// most is how many names are read from the root of a stick.
const most = 1000

// Files returns the names in the root that have an ending and are those of files, sorted.
func (f *FS) Files(ending string) (names []string, err error) {
	fd, err := unix.Openat(f.root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.name, err)
	}
	dir := os.NewFile(uintptr(fd), f.name)
	defer dir.Close()
	all, err := dir.Readdirnames(most)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	for _, name := range all {
		if strings.HasSuffix(name, ending) && f.isFile(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, err
}

func (f *FS) isFile(name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(f.root, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// OpenFile opens a file in the root. Links, devices and pipes are not opened.
func (f *FS) OpenFile(name string) (*os.File, error) {
	if strings.Contains(name, "/") || !f.isFile(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	fd, err := unix.Openat(f.root, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
