// SPDX-License-Identifier: Apache-2.0

// Package highfd makes the kernel close some of a process's sockets before all others when the process dies, however it
// dies.
//
// The kernel closes the descriptors of a dead process from the highest number to the lowest (exit_files hands each file
// to task_work, which runs the newest first). For an inotify instance that takes about 8 ms, in which the kernel waits
// until no processor reads the list of watches. Upstream's parts have an instance for each watched certificate, a dozen
// and more in one server. The other servers elect a leader as soon as the old leader's connections break and its port
// refuses new ones. Both sockets had low numbers, and so were closed last.
//
// The package only moves a socket to a high number. It does not decide which sockets are moved.
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

// firstDescriptor is the lowest number that a socket gets here. A server has 40 to 300 descriptors.
const firstDescriptor = 512

// maxTries is how often a duplicate is made. Other goroutines may close files in the meantime, and the duplicate may
// get one of their numbers.
const maxTries = 8

// socket is a socket that package net can make again from a duplicate of its descriptor.
type socket interface {
	syscall.Conn
	File() (*os.File, error)
}

// Conn returns the same connection with a high descriptor number. It returns the connection unchanged if there is no
// such number or it is not a TCP connection. Only the returned connection may be used afterwards. Its deadlines are not
// set.
func Conn(c net.Conn) net.Conn {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	moved, err := moveHigh(tcp, net.FileConn)
	if err != nil {
		return c
	}
	_ = c.Close() // the other descriptor also keeps the connection open
	return moved
}

// Listener does for a listener what Conn does. A Unix socket is not moved, as closing it removes its file.
func Listener(l net.Listener) net.Listener {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return l
	}
	moved, err := moveHigh(tcp, net.FileListener)
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

// moveHigh duplicates a descriptor while all numbers below first are in use: package net takes the lowest free number.
// Files that other goroutines open in this millisecond get high numbers, too.
func moveHigh[T io.Closer](from socket, to func(*os.File) (T, error)) (moved T, err error) {
	if n, err := descriptorOf(from); err != nil {
		return moved, err
	} else if n >= firstDescriptor {
		return moved, errThere
	}
	mu.Lock()
	defer mu.Unlock()
	f, err := from.File()
	if err != nil {
		return moved, err
	}
	defer f.Close()
	for range maxTries {
		release, err := reserveLowFDs()
		defer release() // at the end: the next attempt needs other numbers
		if err != nil {
			return moved, err
		}
		if moved, err = to(f); err != nil {
			// Package net has made f blocking, and so all its duplicates. A read of such a connection ignores deadlines
			// and outlasts Close.
			return moved, errors.Join(err, setNonblock(from))
		}
		if n, err := descriptorOf(moved); err == nil && n >= firstDescriptor {
			return moved, nil
		}
		defer moved.Close()
	}
	return moved, errLow
}

// descriptorOf returns the descriptor number of a connection or listener.
func descriptorOf(of any) (n int, err error) {
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

func setNonblock(s socket) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = syscall.SetNonblock(int(fd), true) })
	return errors.Join(err, set)
}

// reserveLowFDs takes all free numbers below first until release is called. release must be called even after an error.
func reserveLowFDs() (release func(), err error) {
	var held []int
	release = func() {
		for _, fd := range held {
			_ = unix.Close(fd) // nothing else uses it
		}
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return release, fmt.Errorf("asking how many files may be open: %w", err)
	}
	if limit.Cur < 2*firstDescriptor {
		return release, fmt.Errorf("only %d files may be open, so that there are no high numbers", limit.Cur)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return release, fmt.Errorf("opening %s: %w", os.DevNull, err)
	}
	for fd := null; ; {
		held = append(held, fd)
		if fd >= firstDescriptor {
			return release, nil
		}
		if fd, err = unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return release, fmt.Errorf("holding a file descriptor: %w", err)
		}
	}
}
