// SPDX-License-Identifier: Apache-2.0

// Package closefirst has the kernel close some of a process' sockets before everything else when the process dies, however it dies.
//
// The kernel closes what a dead process had open from the highest number to the lowest (exit_files hands each file to task_work, which runs the newest first), and
// for an inotify instance that takes it 8 ms or so, in which it waits until no processor reads the list of watches. Upstream's parts have an
// instance for each certificate that they watch, a dozen and more in one server. The other servers elect a leader as soon as the old one's connections break and its port
// refuses new ones; both were among the lowest numbers, and so the last.
//
// The package only moves a socket to a high number. It decides nothing about which.
package closefirst

import (
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// first is the least number that a socket gets here. A server has 40 to 300 descriptors.
const first = 512

// file is what gives a duplicate of its descriptor: *net.TCPConn, *net.TCPListener.
type file interface{ File() (*os.File, error) }

// Conn returns the same connection under a high number, or, where there is no such number or the connection has no descriptor, the connection as it is.
// Only what is returned may be used afterwards.
func Conn(c net.Conn) net.Conn {
	f, ok := c.(file)
	if !ok {
		return c
	}
	moved, err := move(f, net.FileConn)
	if err != nil {
		return c
	}
	_ = c.Close() // the other descriptor is the connection's, too
	return moved
}

// Listener is Conn for a listener.
func Listener(l net.Listener) net.Listener {
	f, ok := l.(file)
	if !ok {
		return l
	}
	moved, err := move(f, net.FileListener)
	if err != nil {
		return l
	}
	_ = l.Close()
	return moved
}

var mu sync.Mutex

// move duplicates a descriptor while all numbers below first are taken: package net takes the lowest that is free. What others open in this millisecond gets a high number, too.
func move[T any](from file, to func(*os.File) (T, error)) (moved T, err error) {
	mu.Lock()
	defer mu.Unlock()
	release, err := hold()
	defer release()
	if err != nil {
		return moved, err
	}
	f, err := from.File()
	if err != nil {
		return moved, err
	}
	defer f.Close()
	return to(f)
}

// hold takes all free numbers below first until release is called, which has to be in any case.
func hold() (release func(), err error) {
	var held []int
	release = func() {
		for _, fd := range held {
			_ = unix.Close(fd) // nobody else has it
		}
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return release, fmt.Errorf("asking how many files may be open: %w", err)
	}
	if limit.Cur < 2*first {
		return release, fmt.Errorf("only %d files may be open, so that there are no high numbers", limit.Cur)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return release, fmt.Errorf("opening %s: %w", os.DevNull, err)
	}
	for fd := null; fd < first; {
		held = append(held, fd)
		if fd, err = unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return release, fmt.Errorf("holding a file descriptor: %w", err)
		}
		if fd >= first {
			held = append(held, fd)
		}
	}
	return release, nil
}
