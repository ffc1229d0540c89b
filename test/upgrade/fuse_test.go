//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// What the kernel asks of a file system (include/uapi/linux/fuse.h). All else is answered with ENOSYS, which the kernel
// takes for "never ask again".
const (
	fuseLookup      = 1
	fuseForget      = 2
	fuseGetattr     = 3
	fuseSetattr     = 4
	fuseReadlink    = 5
	fuseSymlink     = 6
	fuseMknod       = 8
	fuseMkdir       = 9
	fuseUnlink      = 10
	fuseRmdir       = 11
	fuseRename      = 12
	fuseOpen        = 14
	fuseRead        = 15
	fuseWrite       = 16
	fuseStatfs      = 17
	fuseRelease     = 18
	fuseFsync       = 20
	fuseFlush       = 25
	fuseInit        = 26
	fuseOpendir     = 27
	fuseReaddir     = 28
	fuseReleasedir  = 29
	fuseFsyncdir    = 30
	fuseCreate      = 35
	fuseInterrupt   = 36
	fuseBatchForget = 42
	fuseRename2     = 45

	fuseMinor     = 31 // of protocol 7
	fuseMaxWrite  = 1 << 20
	fuseKeepCache = 1 << 1                  // files change through the kernel alone
	fuseFlags     = 1<<0 | 1<<5 | 1<<22     // reads in parallel, large writes, and requests of many pages
	sizeSet       = 1 << 3                  // of a setattr
	modeSet       = 1 << 0                  //
	requestHeader = 40                      //
	replyHeader   = 16                      //
	diskBytes     = 4 << 30                 // what the disk says of its size
	forever       = uint64(365 * 24 * 3600) // seconds: names and attributes change through the kernel alone
)

var native = binary.NativeEndian

// mount is a folder of a disk as a machine has mounted it.
type mount struct {
	*forgetful
	root    *inode
	listing map[uint64][]string // open folders
	opened  uint64
}

// mountOn mounts a folder of the disk on a machine, until that is switched off.
func (d *forgetful) mountOn(m *harness.Machine, folder, point string) {
	t := m.T
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		testenv.Missing(t, testenv.FUSE, "%v", err)
	}
	file := os.NewFile(uintptr(fd), "/dev/fuse")
	c := m.Command(t.Context(), "mount", "-i", "-t", "fuse", "-o", "fd=3,rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions",
		"coracle-disk", point)
	c.ExtraFiles = []*os.File{file}
	out, err := c.CombinedOutput()
	testenv.NoError(t, err, "%s", out)
	mounted := &mount{forgetful: d, root: d.folder(folder), listing: map[uint64][]string{}}
	var serving sync.WaitGroup
	for range 4 { // one waits where a test wants it to
		serving.Go(func() {
			request := make([]byte, fuseMaxWrite+4096)
			for {
				n, err := unix.Read(fd, request)
				switch {
				case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT): // the asker was interrupted
					continue
				case err != nil:
					return // ENODEV: it is unmounted
				}
				if reply := mounted.answer(request[:n]); reply != nil {
					_, _ = unix.Write(fd, reply) // ENOENT: the asker has ended
				}
			}
		})
	}
	go func() { serving.Wait(); _ = file.Close() }()
}

func (m *mount) inode(number uint64) *inode {
	if number == 1 {
		return m.root
	}
	return m.inodes[number]
}

// answer does what a request asks, and returns the reply, which is nil for one that wants none.
func (m *mount) answer(request []byte) []byte {
	code, unique, pid := native.Uint32(request[4:]), slices.Clone(request[8:16]), native.Uint32(request[32:])
	if code == fuseForget || code == fuseBatchForget || code == fuseInterrupt {
		return nil
	}
	m.notify(code, native.Uint64(request[16:]), pid)
	m.mu.Lock()
	defer m.mu.Unlock()
	out, err := []byte(nil), error(unix.EIO)
	if !m.isOff() {
		out, err = m.serve(code, m.inode(native.Uint64(request[16:])), request[requestHeader:], pid)
	}
	b := make([]byte, replyHeader, replyHeader+len(out))
	if err != nil {
		errno := unix.EIO
		errors.As(err, &errno)
		out = nil
		native.PutUint32(b[4:], uint32(-int32(errno)))
	}
	native.PutUint32(b, uint32(replyHeader+len(out)))
	copy(b[8:], unique)
	return append(b, out...)
}

// notify calls the test before some requests.
func (m *mount) notify(code uint32, number uint64, pid uint32) {
	m.mu.Lock()
	call, asked, n := map[uint32]string{fuseReadlink: "readlink ", fuseFsyncdir: "sync "}[code], m.asked, m.inode(number)
	if n != nil {
		call += n.path()
	}
	m.mu.Unlock()
	if n != nil && code == fuseReadlink || code == fuseFsyncdir {
		if asked != nil {
			asked(call, pid)
		}
	}
}

// serve does what a request asks of an inode.
func (m *mount) serve(code uint32, n *inode, in []byte, pid uint32) (out []byte, err error) {
	if n == nil && code != fuseInit {
		return nil, unix.ESTALE
	}
	change := func(call string, f func()) error { return m.do(call, pid, func() error { f(); return nil }) }
	switch code {
	case fuseInit:
		out = make([]byte, 64)
		native.PutUint32(out, 7)
		native.PutUint32(out[4:], fuseMinor)
		native.PutUint32(out[8:], native.Uint32(in[8:]))
		native.PutUint32(out[12:], fuseFlags)
		native.PutUint32(out[20:], fuseMaxWrite)
		native.PutUint32(out[24:], 1)
		native.PutUint16(out[28:], fuseMaxWrite/4096)
	case fuseLookup:
		child := n.names[text(in)]
		if child == nil {
			return nil, unix.ENOENT
		}
		out = m.entry(child)
	case fuseGetattr:
		out = append(attributesValid(), n.attributes()...)
	case fuseSetattr:
		valid := native.Uint32(in)
		if valid&modeSet != 0 {
			mode := n.mode&unix.S_IFMT | native.Uint32(in[68:])&^unix.S_IFMT
			err = change("chmod "+n.path(), func() { n.mode = mode })
		}
		if valid&sizeSet != 0 && err == nil {
			size := int(native.Uint64(in[16:]))
			err = change("truncate "+n.path(), func() {
				n.data = append(slices.Clone(n.data[:min(size, len(n.data))]), make([]byte, max(0, size-len(n.data)))...)
			})
		}
		out = append(attributesValid(), n.attributes()...)
	case fuseReadlink:
		out = []byte(n.target)
	case fuseSymlink:
		name := text(in)
		out, err = m.add(n, "symlink", name, unix.S_IFLNK|0o777, text(in[len(name)+1:]), pid)
	case fuseMknod:
		out, err = m.add(n, "create", text(in[16:]), native.Uint32(in), "", pid)
	case fuseMkdir:
		out, err = m.add(n, "mkdir", text(in[8:]), unix.S_IFDIR|native.Uint32(in), "", pid)
	case fuseCreate:
		if out, err = m.add(n, "create", text(in[16:]), native.Uint32(in[4:]), "", pid); err == nil {
			out = append(out, m.open(nil)...)
		}
	case fuseUnlink, fuseRmdir:
		name := text(in)
		child := n.names[name]
		switch {
		case child == nil:
			return nil, unix.ENOENT
		case len(child.names) > 0:
			return nil, unix.ENOTEMPTY
		}
		err = change(map[uint32]string{fuseUnlink: "unlink ", fuseRmdir: "rmdir "}[code]+child.path(), func() { delete(n.names, name) })
	case fuseRename, fuseRename2:
		to, names, flags := m.inode(native.Uint64(in)), in[8:], uint32(0)
		if code == fuseRename2 {
			names, flags = in[16:], native.Uint32(in[8:])
		}
		old, name := text(names), text(names[len(text(names))+1:])
		child := n.names[old]
		switch {
		case child == nil:
			return nil, unix.ENOENT
		case flags&^unix.RENAME_NOREPLACE != 0:
			return nil, unix.EINVAL
		case flags != 0 && to.names[name] != nil:
			return nil, unix.EEXIST
		}
		err = change("rename "+child.path()+" "+to.path()+"/"+name, func() { delete(n.names, old); to.put(name, child) })
	case fuseOpen, fuseOpendir:
		out = m.open(n)
	case fuseRead:
		at, size := int(native.Uint64(in[8:])), int(native.Uint32(in[16:]))
		out = n.data[min(at, len(n.data)):min(at+size, len(n.data))]
	case fuseWrite:
		size := int(native.Uint32(in[16:]))
		out = make([]byte, 8)
		native.PutUint32(out, uint32(size))
		err = change("write "+n.path(), func() { n.write(int(native.Uint64(in[8:])), in[40:40+size]) })
	case fuseStatfs:
		out = statfs(diskBytes)
	case fuseRelease, fuseFlush: // closing a file syncs nothing
	case fuseReleasedir:
		delete(m.listing, native.Uint64(in))
	case fuseFsync, fuseFsyncdir:
		err = change("sync "+n.path(), n.sync)
	case fuseReaddir:
		out = m.readdir(n, m.listing[native.Uint64(in)], native.Uint64(in[8:]), int(native.Uint32(in[16:])))
	default:
		err = unix.ENOSYS
	}
	return out, err
}

// add makes something with a name in a folder.
func (m *mount) add(folder *inode, call, name string, mode uint32, target string, pid uint32) (out []byte, err error) {
	if folder.names[name] != nil {
		return nil, unix.EEXIST
	}
	err = m.do(call+" "+folder.path()+"/"+name, pid, func() error {
		child := m.make(folder, name, mode)
		child.target = target
		folder.put(name, child)
		out = m.entry(child)
		return nil
	})
	return out, err
}

// open returns a handle, which a folder's names are kept by (struct fuse_open_out).
func (m *mount) open(n *inode) []byte {
	b := make([]byte, 16)
	m.opened++
	native.PutUint64(b, m.opened)
	native.PutUint32(b[8:], fuseKeepCache)
	if n != nil && n.is(unix.S_IFDIR) {
		m.listing[m.opened] = slices.Sorted(maps.Keys(n.names))
	}
	return b
}

// readdir returns names from an offset on (struct fuse_dirent).
func (m *mount) readdir(n *inode, names []string, from uint64, size int) []byte {
	var b []byte
	for i, name := range names {
		child := n.names[name]
		if uint64(i) < from || child == nil {
			continue
		}
		entry := make([]byte, (24+len(name)+7)/8*8)
		if len(b)+len(entry) > size {
			break
		}
		native.PutUint64(entry, child.number)
		native.PutUint64(entry[8:], uint64(i+1))
		native.PutUint32(entry[16:], uint32(len(name)))
		native.PutUint32(entry[20:], child.mode>>12)
		copy(entry[24:], name)
		b = append(b, entry...)
	}
	return b
}

// entry is what the kernel learns of a name (struct fuse_entry_out).
func (m *mount) entry(n *inode) []byte {
	m.inodes[n.number] = n
	b := make([]byte, 40)
	native.PutUint64(b, n.number)
	native.PutUint64(b[16:], forever)
	native.PutUint64(b[24:], forever)
	return append(b, n.attributes()...)
}

// attributesValid is before the attributes in a struct fuse_attr_out.
func attributesValid() []byte { return append(native.AppendUint64(nil, forever), make([]byte, 8)...) }

// attributes is a struct fuse_attr.
func (n *inode) attributes() []byte {
	b := make([]byte, 88)
	size := uint64(len(n.data) + len(n.target))
	native.PutUint64(b, n.number)
	native.PutUint64(b[8:], size)
	native.PutUint64(b[16:], (size+511)/512)
	for i := range 3 { // of access, data and attributes
		native.PutUint64(b[24+8*i:], uint64(n.changed.Unix()))
		native.PutUint32(b[48+4*i:], uint32(n.changed.Nanosecond()))
	}
	native.PutUint32(b[60:], n.mode)
	native.PutUint32(b[64:], 1) // links
	native.PutUint32(b[80:], 4096)
	return b
}

// statfs is a struct fuse_statfs_out of an empty file system.
func statfs(size uint64) []byte {
	b := make([]byte, 80)
	for i, v := range []uint64{size / 4096, size / 4096, size / 4096, 1 << 20, 1 << 20} {
		native.PutUint64(b[8*i:], v)
	}
	native.PutUint32(b[40:], 4096)
	native.PutUint32(b[44:], 255)
	native.PutUint32(b[48:], 4096)
	return b
}

// text is what is before a zero byte.
func text(b []byte) string {
	before, _, _ := bytes.Cut(b, []byte{0})
	return string(before)
}
