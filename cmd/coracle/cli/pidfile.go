// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pidFile names the process that uses a run directory. That process holds a lock on the file until it ends.
type pidFile struct{ f *os.File }

// lockTimeout is how long to wait for the lock when the process that the file names has ended. A child process that
// was being started holds the lock from the fork until the exec, also when its parent is killed in between.
const lockTimeout = 5 * time.Second

// lockPIDFile takes the lock, and returns an error when another process holds it.
func lockPIDFile(path, role string) (*pidFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the pid file: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for end := time.Now().Add(lockTimeout); errors.Is(err, unix.EWOULDBLOCK) && ownerEnded(path) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		_ = f.Close() // the other error is the one to report
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("coracle runs already%s, with the pid file %s; see: coracle status. To run a second %s on this "+
				"machine give it its own --data-dir", pidClause(path), path, role)
		}
		return nil, fmt.Errorf("locking the pid file %s: %w", path, err)
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		return nil, errors.Join(fmt.Errorf("writing the pid file: %w", err), f.Close())
	}
	return &pidFile{f}, nil
}

// ownerEnded says whether the file names a process that does not exist any more.
func ownerEnded(path string) bool {
	pid := readPIDFile(path).pid
	return pid > 0 && errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// release empties the file, which marks an orderly end, and releases the lock. It does not remove the file: with
// removal, two new processes could lock two different files.
func (p *pidFile) release() error { return errors.Join(p.f.Truncate(0), p.f.Close()) }

func pidClause(path string) string {
	if o := readPIDFile(path); o.pid > 0 {
		return fmt.Sprintf(" as process %d", o.pid)
	}
	return ""
}

// owner is the content of a pid file.
type owner struct {
	pid   int  // 0 when the last process ended in an orderly way, or none ever ran
	alive bool // a process holds the lock
	found bool
}

func readPIDFile(path string) owner {
	f, err := os.Open(path)
	if err != nil {
		return owner{}
	}
	defer f.Close()
	o := owner{found: true}
	text, err := os.ReadFile(path)
	if err == nil {
		o.pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	o.alive = errors.Is(err, unix.EWOULDBLOCK)
	return o
}

// writableDir makes a directory and checks that files can be made in it. A full disk is no error: a server still
// answers reads then.
func writableDir(dir, what, flag string) error {
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		var f *os.File
		if f, err = os.CreateTemp(dir, ".writable-*"); err == nil {
			return errors.Join(f.Close(), os.Remove(f.Name()))
		}
	}
	if errors.Is(err, unix.ENOSPC) && isDir(dir) {
		return nil
	}
	reason := err
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		reason = pe.Err
	}
	return fmt.Errorf("the %s %s cannot be written to: %w; nothing was changed. Make it writable for this user, free some space, or "+
		"choose another with %s", what, dir, reason, flag)
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}
