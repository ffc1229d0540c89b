// SPDX-License-Identifier: Apache-2.0

// Package highfd has the kernel close some of a process' sockets before everything else when the process dies, however
// it dies.
//
// The kernel closes what a dead process had open from the highest number to the lowest (exit_files hands each file to
// task_work, which runs the newest first), and for an inotify instance that takes it 8 ms or so, in which it waits
// until no processor reads the list of watches. Upstream's parts have an instance for each certificate that they watch,
// a dozen and more in one server. The other servers elect a leader as soon as the old one's connections break and its
// port refuses new ones; both were among the lowest numbers, and so the last.
//
// The package only moves a socket to a high number. It decides nothing about which.
package highfd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// first is the least number that a socket gets here. A server has 40 to 300 descriptors.
const first = 512

// tries is how often a duplicate is made: others may close files meanwhile, and it gets the number of one of these.
const tries = 8

// socket is what package net can make again from a duplicate of its descriptor.
type socket interface {
	syscall.Conn
	File() (*os.File, error)
}

// Conn returns the same connection under a high number, or, where there is no such number or it is not one of TCP's,
// the connection as it is. Only what is returned may be used afterwards. Deadlines that were set are gone.
func Conn(c net.Conn) net.Conn {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	moved, err := move(tcp, net.FileConn)
	if err != nil {
		return c
	}
	_ = c.Close() // the other descriptor is the connection's, too
	return moved
}

// Listener is Conn for a listener. One of a Unix socket stays, for closing it removes the file by which it is found.
func Listener(l net.Listener) net.Listener {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return l
	}
	moved, err := move(tcp, net.FileListener)
	if err != nil {
		return l
	}
	_ = l.Close()
	return moved
}

var (
	mu       sync.Mutex
	errThere = errors.New("the number is high already")
	errLow   = errors.New("others close files with low numbers all the time")
)

// move duplicates a descriptor while all numbers below first are taken: package net takes the lowest that is free. What
// others open in this millisecond gets a high number, too.
func move[T io.Closer](from socket, to func(*os.File) (T, error)) (moved T, err error) {
	if n, err := number(from); err != nil {
		return moved, err
	} else if n >= first {
		return moved, errThere
	}
	mu.Lock()
	defer mu.Unlock()
	f, err := from.File()
	if err != nil {
		return moved, err
	}
	defer f.Close()
	for range tries {
		release, err := hold()
		defer release() // at the end: the next try needs other numbers
		if err != nil {
			return moved, err
		}
		if moved, err = to(f); err != nil {
			// It has made f blocking, and so all duplicates. A read of such a connection heeds no deadline and outlasts
			// Close.
			return moved, errors.Join(err, unblock(from))
		}
		if n, err := number(moved); err == nil && n >= first {
			return moved, nil
		}
		defer moved.Close()
	}
	return moved, errLow
}

// number is the descriptor's of a connection or listener.
func number(of any) (n int, err error) {
	s, ok := of.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("%T has no descriptor", of)
	}
	raw, err := s.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { n = int(fd) })
	}
	return n, err
}

func unblock(s socket) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = syscall.SetNonblock(int(fd), true) })
	return errors.Join(err, set)
}

// hold takes all free numbers below first until release is called, which has to be in any case.
func hold() (release func(), err error) {
	var held []int
	release = func() {
		for _, fd := range held {
			_ = unix.Close(fd) // nothing else has it
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
	for fd := null; ; {
		held = append(held, fd)
		if fd >= first {
			return release, nil
		}
		if fd, err = unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return release, fmt.Errorf("holding a file descriptor: %w", err)
		}
	}
}
