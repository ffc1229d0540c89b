// SPDX-License-Identifier: Apache-2.0

// Package unixsocket listens on unix sockets that only root may use.
package unixsocket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// ErrInUse says that a live process answers on the socket.
var ErrInUse = errors.New("another process answers there: stop it first")

// Listen takes a socket over from a process that has died, but never from one that lives: then it returns an error that
// is [ErrInUse].
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the folder of a socket: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close() // it was opened only to see whether a process is there
		return nil, fmt.Errorf("listening on %s: %w", path, ErrInUse)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing the socket of an earlier process: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("closing a socket to other users: %w", err), l.Close())
	}
	return l, nil
}
