// SPDX-License-Identifier: Apache-2.0

package unixsocket_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/unixsocket"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestListenTakesOverStaleSocket: what a process that died has left is taken over, by which only this user may connect.
func TestListenTakesOverStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "s")
	l := testenv.Must(unixsocket.Listen(path))(t)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	testenv.ErrorIs(t, testenv.Err(unixsocket.Listen(path)), unixsocket.ErrInUse, "the socket of a living process")
	testenv.NoError(t, l.Close())
	l = testenv.Must(unixsocket.Listen(path))(t)
	testenv.Equal(t, testenv.Must(os.Stat(path))(t).Mode().Perm(), 0o600, "the socket's mode")
	testenv.NoError(t, l.Close())
}

// TestSocketIsNeverOpenToOthers: the mode is right when the file appears, whatever the umask.
func TestSocketIsNeverOpenToOthers(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	path := filepath.Join(t.TempDir(), "s")
	ended, seen := make(chan struct{}), make(chan os.FileMode)
	go func() {
		var all os.FileMode
		defer func() { seen <- all }()
		for {
			select {
			case <-ended:
				return
			default:
			}
			if fi, err := os.Stat(path); err == nil {
				all |= fi.Mode().Perm()
			}
		}
	}()
	for range 200 {
		testenv.NoError(t, testenv.Must(unixsocket.Listen(path))(t).Close())
	}
	close(ended)
	if all := <-seen; all&0o077 != 0 {
		t.Errorf("the socket had the mode %o", all)
	}
}

// TestBusyProcessLives: one that has as many connections to accept as may wait is not taken for dead.
func TestBusyProcessLives(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	d := testenv.Must(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t)
	defer unix.Close(d)
	testenv.NoError(t, errors.Join(unix.Bind(d, &unix.SockaddrUnix{Name: path}), unix.Listen(d, 0)))
	defer testenv.Must(net.Dial("unix", path))(t).Close()
	testenv.ErrorIs(t, testenv.Err(unixsocket.Listen(path)), unixsocket.ErrInUse, "the socket of a busy process")
}
