// SPDX-License-Identifier: Apache-2.0

// Package unixsocket listens on unix sockets that only root may use.
package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse says that a running process listens on the socket.
var ErrInUse = errors.New("another process answers there: stop it first")

// Listen listens on a socket. It replaces the socket of a process that has exited, but never that of a running process:
// then its error wraps [ErrInUse].
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the folder of a socket: %w", err)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = c.Close() // it was opened only to see whether a process listens
		fallthrough
	case errors.Is(err, unix.EAGAIN): // the queue of the socket's listener is full
		return nil, fmt.Errorf("listening on %s: %w", path, ErrInUse)
	case !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("looking whether another process listens: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing the socket of an earlier process: %w", err)
	}
	return (&net.ListenConfig{Control: makePrivate}).Listen(context.Background(), "unix", path)
}

// makePrivate sets the mode of a socket before its file is made. So the file has that mode from the start, and no other
// user can ever connect, whatever the umask.
func makePrivate(_, _ string, socket syscall.RawConn) error {
	var failure error
	err := socket.Control(func(d uintptr) { failure = unix.Fchmod(int(d), 0o600) })
	return errors.Join(err, failure)
}
