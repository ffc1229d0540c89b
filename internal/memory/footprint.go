// SPDX-License-Identifier: Apache-2.0

// This file gives back memory that only the start needed: pages of the program's own file, and free heap.
//
// A process with all of Kubernetes touches most of its 150 MB of code and read-only data while it starts, and a third
// of that afterwards. The kernel keeps these pages mapped, and charges the process for them, until memory is short; by
// then a small board is swapping or killing processes. Dropping the pages is safe at any time: the next use reads them
// from the page cache or the file.

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

// mapping is a range of addresses. end is not included.
type mapping struct{ start, end uintptr }

// Trim returns free heap to the kernel and drops the program's own clean pages. The advice to expect random access
// stays in force: without it, a fault would read large sections of the file again. Objects in a sync.Pool are freed by
// the second collection. So with pools set, Trim collects twice. Otherwise, objects that were put into a pool since the
// last collection stay.
func Trim(pools bool) error {
	if pools {
		runtime.GC()
	}
	debug.FreeOSMemory()
	mapPagesSingly()
	return advisePages(unix.MADV_RANDOM, unix.MADV_DONTNEED)
}

// mapPagesSingly makes a fault in the program's own pages map only the page that is used, from now on. By default,
// Linux also maps the fifteen pages around it, so that a process at rest had 85 MB mapped, of which it used 20 MB.
// Linux does not map pages around a fault where userfaultfd(2) tracks writes, which it can do for files since Linux
// 6.7. Nothing is ever written here, so no fault ever waits. Where the page cache has 2 MB of the file in one piece, as
// after an installation, Linux maps all of these, tracked or not, unless huge pages are disabled. It does nothing on
// kernels that refuse.
var mapPagesSingly = sync.OnceFunc(func() {
	_ = advisePages(unix.MADV_NOHUGEPAGE) // fails on kernels without huge pages
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
		_ = unix.Close(int(fd)) // closing it would end the tracking, so it stays open if there is tracking
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

// ReadPagesSingly makes the kernel read only those pages of the program's file that are used, when they are used. The
// start is slower, but a control group with a tight limit is not charged for other pages. Newer kernels (seen on Linux
// 6.18) still read pages around a fault in code. Data and Go's tables are the larger half of the program.
func ReadPagesSingly() error { return advisePages(unix.MADV_RANDOM) }

// advisePages calls madvise(2) with this advice for the program's own clean pages.
func advisePages(advice ...uintptr) error {
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
	own, err := cleanMappings(f, exe)
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

// cleanMappings returns the mappings of a file to which this process can never have written (proc_pid_maps(5)). Written
// content would be lost when pages are dropped.
func cleanMappings(maps io.Reader, exe string) ([]mapping, error) {
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
