//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodepower

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/powercut"
)

// What the kernel asks of the file (include/uapi/linux/fuse.h). The file is the file system's root, so nothing is
// looked up. All else is answered with ENOSYS, which the kernel takes for "never ask again".
const (
	fuseForget      = 2
	fuseGetattr     = 3
	fuseSetattr     = 4
	fuseOpen        = 14
	fuseRead        = 15
	fuseWrite       = 16
	fuseRelease     = 18
	fuseFsync       = 20
	fuseFlush       = 25
	fuseInit        = 26
	fuseInterrupt   = 36
	fuseBatchForget = 42

	fuseMinor     = 31 // of protocol 7
	fuseMaxWrite  = 128 << 10
	fuseKeepCache = 1 << 1 // the file changes through the kernel alone
	requestHeader = 40
	replyHeader   = 16
)

var host = binary.NativeEndian

// serveFile mounts the disk as a file on another file, and serves it until it is unmounted or the process ends.
func serveFile(d *powercut.Disk, path string) error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0", fd, unix.S_IFREG)
	if err := unix.Mount("coracle-disk", path, "fuse.coracle", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount a file of FUSE: %w", err)
	}
	go func() {
		request := make([]byte, fuseMaxWrite+4096)
		for {
			n, err := unix.Read(fd, request)
			switch {
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT): // the asker was interrupted
				continue
			case err != nil:
				return // ENODEV: it is unmounted
			}
			if reply := answer(d, request[:n]); reply != nil {
				_, _ = unix.Write(fd, reply) // ENOENT: the asker has ended
			}
		}
	}()
	return nil
}

// answer does what a request asks, and returns the reply, which is nil for one that wants none.
func answer(d *powercut.Disk, request []byte) []byte {
	unique, in := request[8:16], request[requestHeader:]
	var out []byte
	var err error
	switch host.Uint32(request[4:]) {
	case fuseForget, fuseBatchForget, fuseInterrupt:
		return nil
	case fuseInit:
		out = make([]byte, 64)
		host.PutUint32(out, 7)
		host.PutUint32(out[4:], fuseMinor)
		host.PutUint32(out[20:], fuseMaxWrite)
	case fuseGetattr, fuseSetattr:
		out = attributes(d.Size())
	case fuseOpen:
		out = make([]byte, 16)
		host.PutUint32(out[8:], fuseKeepCache)
	case fuseRelease, fuseFlush: // closing a file flushes nothing
	case fuseRead:
		out = make([]byte, host.Uint32(in[16:]))
		err = d.Read(out, int64(host.Uint64(in[8:])))
	case fuseWrite:
		size := host.Uint32(in[16:])
		out = make([]byte, 8)
		host.PutUint32(out, size)
		err = d.Write(in[40:40+size], int64(host.Uint64(in[8:])))
	case fuseFsync:
		err = d.Flush()
	default:
		err = unix.ENOSYS
	}
	return reply(unique, out, err)
}

func reply(unique, out []byte, err error) []byte {
	code := unix.Errno(0)
	if err != nil {
		out, code = nil, unix.EIO
		errors.As(err, &code)
	}
	b := make([]byte, replyHeader, replyHeader+len(out))
	host.PutUint32(b, uint32(replyHeader+len(out)))
	host.PutUint32(b[4:], uint32(-int32(code)))
	copy(b[8:], unique)
	return append(b, out...)
}

// attributes are those of a regular file of that size (struct fuse_attr_out), valid for an hour.
func attributes(size int64) []byte {
	b := make([]byte, 104)
	host.PutUint64(b, 3600)
	host.PutUint64(b[16:], 1) // inode
	host.PutUint64(b[24:], uint64(size))
	host.PutUint64(b[32:], uint64(size/512))
	host.PutUint32(b[76:], unix.S_IFREG|0o600)
	host.PutUint32(b[80:], 1) // links
	host.PutUint32(b[96:], 4096)
	return b
}
