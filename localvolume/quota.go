// SPDX-License-Identifier: Apache-2.0

package localvolume

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Both ext4 and XFS count the space of a project, and limit it where they are mounted with prjquota or pquota. A
// project is a number that new entries of a directory inherit from it. Each volume gets its own project there
// (quotactl(2), ioctl_xfs_fsgetxattr(2), linux/fs.h, linux/quota.h).
const (
	// firstProject and projects are the range of volumes' project numbers: far from those that administrators write to
	// /etc/projid, and that a kubelet counts from 1048577.
	firstProject = 1 << 30
	projects     = 1 << 30
	// maxProjectTries is how many numbers are tried before a volume is rejected.
	maxProjectTries = 1000

	quotaBlock = 1024 // bytes: the unit of limits (QIF_DQBLKSIZE)
)

const (
	fsGetXattr      = 0x801c581f // FS_IOC_FSGETXATTR
	fsSetXattr      = 0x401c5820 // FS_IOC_FSSETXATTR
	inheritsProject = 0x200      // FS_XFLAG_PROJINHERIT

	quotaOfProjects  = 2        // PRJQUOTA
	getQuota         = 0x800007 // Q_GETQUOTA
	setQuota         = 0x800008 // Q_SETQUOTA
	getQuotaState    = 0x5808   // Q_XGETQSTATV
	limitOfBlocks    = 1        // QIF_BLIMITS
	projectsEnforced = 1 << 5   // FS_QUOTA_PDQ_ENFD
)

// fileAttributes is struct fsxattr.
type fileAttributes struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

// diskQuota is struct if_dqblk.
type diskQuota struct {
	hardLimit, softLimit, space, filesHardLimit, filesSoftLimit, files, spaceTime, filesTime uint64
	valid                                                                                    uint32
}

// quotaState is struct fs_quota_statv.
type quotaState struct {
	version uint8
	_       uint8
	flags   uint16
	_       [156]byte
}

// attributes returns the attributes of an open file or directory.
func attributes(f *os.File) (a fileAttributes, err error) {
	return a, ioctl(f, fsGetXattr, &a)
}

func ioctl(f *os.File, request uintptr, a *fileAttributes) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(a)))
	runtime.KeepAlive(f)
	return orNil(errno)
}

// quotactl executes a command on the project quotas of an open directory's filesystem. Linux has it since 5.14.
func quotactl(dir *os.File, command, project uint32, at unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, dir.Fd(), uintptr(command<<8|quotaOfProjects), uintptr(project), uintptr(at), 0, 0)
	runtime.KeepAlive(dir)
	return orNil(errno)
}

func orNil(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// enforcesProjects reports whether a directory's filesystem enforces the limits of projects.
func enforcesProjects(dir *os.File) bool {
	s := quotaState{version: 1}
	return quotactl(dir, getQuotaState, 0, unsafe.Pointer(&s)) == nil && s.flags&projectsEnforced != 0
}

// hasLimits reports whether the volumes of a folder get limits. They do not in a folder that already belongs to a
// project: the operator has one limit for all of them.
func hasLimits(folder *os.File) bool {
	if !enforcesProjects(folder) {
		return false
	}
	a, err := attributes(folder)
	return err == nil && a.project == 0 && a.flags&inheritsProject == 0
}

// isProjectOf reports whether giveProject may have given the number to a volume, whose directory may have been renamed
// for removal. A pod can move its own files to any project (the kernel only checks a file's owner), and that must not
// change another volume's limit.
func isProjectOf(project uint32, name string) bool {
	if rest, was := strings.CutPrefix(name, removingPrefix); was {
		_, name, _ = strings.Cut(rest, "-")
	}
	return isOurProject(project) && (project-firstProjectOf(name))%projects < maxProjectTries
}

// firstProjectOf returns the number at which the search for a volume's number begins.
func firstProjectOf(name string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	return firstProject + h.Sum32()%projects
}

// isOurProject reports whether this package uses such numbers.
func isOurProject(project uint32) bool {
	return project >= firstProject && project-firstProject < projects
}

// limitVolume limits a volume to so many bytes, and returns whether its filesystem supports that. It is idempotent,
// also after an interruption at any point.
func (f *Folders) limitVolume(root *os.Root, name string, bytes int64) (bool, error) {
	folder, err := root.Open(".")
	if err != nil {
		return false, err
	}
	defer folder.Close()
	if !hasLimits(folder) {
		return false, nil
	}
	dir, err := root.Open(name)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	f.assigningProject.Lock()
	defer f.assigningProject.Unlock()
	project, err := giveProject(folder, dir, name)
	if err == nil {
		err = setProjectLimit(folder, project, bytes)
	}
	if errors.Is(err, unix.EPERM) { // root in a container may not set limits
		f.o.Logger.Warn("the filesystem has project quotas, and this process may not set them: what the volume holds is not limited",
			"path", dir.Name())
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("limiting the volume to %s by a project quota: %w", Size(bytes), err)
	}
	return true, nil
}

// giveProject gives a directory an unused project, unless it has one.
func giveProject(folder, dir *os.File, name string) (uint32, error) {
	a, err := attributes(dir)
	if err != nil || a.project != 0 {
		return a.project, err
	}
	for i := range uint32(maxProjectTries) {
		project := firstProject + (firstProjectOf(name)+i)%projects // firstProject is a multiple of projects
		var q diskQuota
		err := quotactl(folder, getQuota, project, unsafe.Pointer(&q))
		if err != nil && !errors.Is(err, unix.ENOENT) { // XFS returns it for an unknown project
			return 0, err
		}
		if q.hardLimit|q.space|q.files != 0 {
			continue
		}
		a.project = project
		a.flags |= inheritsProject
		return project, ioctl(dir, fsSetXattr, &a)
	}
	return 0, fmt.Errorf("%d numbers of projects in a row are taken", maxProjectTries)
}

// setProjectLimit limits a project to so many bytes, rounded up. 0 removes its limit.
func setProjectLimit(folder *os.File, project uint32, bytes int64) error {
	q := diskQuota{hardLimit: (uint64(bytes) + quotaBlock - 1) / quotaBlock, valid: limitOfBlocks}
	return quotactl(folder, setQuota, project, unsafe.Pointer(&q))
}

// grow raises a volume's limit, if it has one, and reports whether it has.
func (f *Folders) grow(r Request) (Response, error) {
	root, err := f.open(r.Folder)
	if err != nil {
		return Response{}, err
	}
	defer func() { _ = root.Close() }() // nothing was written through it
	folder, err := root.Open(".")
	if err != nil {
		return Response{}, fmt.Errorf("opening the folder for volumes: %w", err)
	}
	defer folder.Close()
	project := projectOf(int(folder.Fd()), r.Name)
	if project == 0 || !enforcesProjects(folder) {
		return Response{}, nil
	}
	if err := setProjectLimit(folder, project, r.Bytes); err != nil {
		return Response{}, fmt.Errorf("raising the volume's project quota to %s: %w", Size(r.Bytes), err)
	}
	return Response{Quota: true}, nil
}

// projectOf returns the project that this package gave to a directory, or 0.
func projectOf(folder int, name string) uint32 {
	fd, err := openDirectory(folder, name)
	if err != nil {
		return 0
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	a, err := attributes(dir)
	if err != nil || !isProjectOf(a.project, name) {
		return 0
	}
	return a.project
}
