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

// ErrInUse says that a live process answers on the socket.
var ErrInUse = errors.New("another process answers there: stop it first")

// Listen takes a socket over from a process that has died, but never from one that lives: then it returns an error that
// is [ErrInUse].
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the folder of a socket: %w", err)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = c.Close() // it was opened only to see whether a process is there
		fallthrough
	case errors.Is(err, unix.EAGAIN): // as many wait for it as may
		return nil, fmt.Errorf("listening on %s: %w", path, ErrInUse)
	case !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("looking whether another process listens: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing the socket of an earlier process: %w", err)
	}
	return (&net.ListenConfig{Control: private}).Listen(context.Background(), "unix", path)
}

// private gives a socket the mode that its file is made with: whatever the umask, no other user reaches it before it
// could be changed.
func private(_, _ string, socket syscall.RawConn) error {
	var failure error
	err := socket.Control(func(d uintptr) { failure = unix.Fchmod(int(d), 0o600) })
	return errors.Join(err, failure)
}
