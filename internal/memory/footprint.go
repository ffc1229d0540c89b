// SPDX-License-Identifier: Apache-2.0

// This file gives back memory that a start-up used once: pages of the program's own file, and free heap.
//
// A process that carries all of Kubernetes touches most of its 150 MB of text and read-only data while it starts and a
// third of that afterwards. The kernel keeps those pages mapped, and charges them, until memory is short; by then a
// small board is swapping or killing. Forgetting them is safe at any time: the next use reads them from the page
// cache or the file.

package memory

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapping is one range of addresses, end not included.
type mapping struct{ start, end uintptr }

// Trim returns free heap to the kernel and forgets the program's own clean pages. The advice to expect random access
// stays in force: without it a fault reads whole stretches of the file back in. Pools give what is in them to the
// collection after the next one. So with pools it collects twice; without, what was in them since the last collection
// stays.
func Trim(pools bool) error {
	if pools {
		runtime.GC()
	}
	debug.FreeOSMemory()
	mapPagesSingly()
	return advise(unix.MADV_RANDOM, unix.MADV_DONTNEED)
}

// mapPagesSingly makes a fault in the program's own pages map the page that is used and no other, from now on. Linux
// maps the fifteen around it too, which made of 20 MB in use 85 MB that a process at rest has. It leaves that out only
// where userfaultfd(2) tracks writes, which it does for files since Linux 6.7; nothing is ever written here, so that
// no fault waits for anybody. Where the page cache has 2 MB of the file in one piece, as after an installation, it maps
// all of these, tracked or not, unless huge pages are declined. It does nothing on kernels that refuse.
var mapPagesSingly = sync.OnceFunc(func() {
	_ = advise(unix.MADV_NOHUGEPAGE) // kernels without huge pages do not know it
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|userModeOnly, 0, 0)
	if errno != 0 {
		return
	}
	tracking := false
	api := [3]uint64{uffdAPI, asyncWriteProtect}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uffdioAPI, uintptr(unsafe.Pointer(&api))); errno == 0 {
		_ = eachOwn(func(m mapping) error {
			register := [4]uint64{uint64(m.start), uint64(m.end - m.start), writeProtectMode}
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uffdioRegister, uintptr(unsafe.Pointer(&register)))
			tracking = tracking || errno == 0
			return nil
		})
	}
	if !tracking {
		_ = unix.Close(int(fd)) // closing it ends the tracking, so that it stays open otherwise
	}
})

// From linux/userfaultfd.h.
const (
	userModeOnly      = 1
	uffdAPI           = 0xAA
	asyncWriteProtect = 1 << 15
	writeProtectMode  = 1 << 1
	uffdioAPI         = 0xC018AA3F
	uffdioRegister    = 0xC020AA00
)

// ReadPagesSingly makes the kernel read of the program's file only the pages that are used, each when it is: a slower
// start, in which a control group with a tight limit is not charged for what was not requested. Newer kernels (seen on
// Linux 6.18) read around a fault in code all the same; data and Go's tables are the larger half of the program.
func ReadPagesSingly() error { return advise(unix.MADV_RANDOM) }

// advise gives the kernel advice on the program's own clean pages.
func advise(advice ...uintptr) error {
	return eachOwn(func(m mapping) error {
		for _, a := range advice {
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, a); errno != 0 {
				return fmt.Errorf("advice on pages %x-%x: %w", m.start, m.end, errno)
			}
		}
		return nil
	})
}

// eachOwn calls do for each mapping of the program's own clean pages.
func eachOwn(do func(mapping) error) error {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("reading this process' mappings: %w", err)
	}
	defer f.Close()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("finding this program's file: %w", err)
	}
	own, err := clean(f, exe)
	if err != nil {
		return fmt.Errorf("reading this process' mappings: %w", err)
	}
	for _, m := range own {
		if err := do(m); err != nil {
			return err
		}
	}
	return nil
}

// clean lists the mappings of a file that this process can never have written to (proc_pid_maps(5)): what was written
// would be lost.
func clean(maps io.Reader, exe string) ([]mapping, error) {
	var out []mapping
	s := bufio.NewScanner(maps)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 6 || strings.Join(f[5:], " ") != exe || strings.Contains(f[1], "w") {
			continue
		}
		from, to, ok := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if !ok || err1 != nil || err2 != nil || end <= start {
			return nil, fmt.Errorf("a line that is not understood: %q", s.Text())
		}
		out = append(out, mapping{uintptr(start), uintptr(end)})
	}
	return out, s.Err()
}
