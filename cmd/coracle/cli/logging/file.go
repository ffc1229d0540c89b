// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxFile is the size at which a log file is rotated, in bytes. The file then replaces FILE.1, and a new one begins.
const maxFile = 50_000_000

// file is a log file. Only this process writes to it, through the log and through its standard output and error, which
// may be the same file. It has one writer at a time.
type file struct {
	path string
	f    *os.File
	size int64
	max  int64
	std  []int // descriptors that move to the new file with the log, if they were the old file: panics are written there
}

// openFile opens a log file to append to it.
func openFile(path string) (*file, error) {
	l := &file{path: path, max: maxFile, std: []int{unix.Stdout, unix.Stderr}}
	return l, l.open()
}

func (l *file) open() error {
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("opening the log file: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close() // nothing was written to it
		return fmt.Errorf("opening the log file: %w", err)
	}
	l.f, l.size = f, info.Size()
	return nil
}

// Write implements io.Writer.
func (l *file) Write(p []byte) (int, error) {
	if l.size+int64(len(p)) > l.max {
		l.rotate()
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

// rotate begins a new file. It continues with the open file when that fails, and when another program has moved or
// truncated the file.
func (l *file) rotate() {
	l.size = 0 // after a failure, the next attempt comes after as many bytes
	old, err := l.f.Stat()
	if err != nil || !old.Mode().IsRegular() {
		return
	}
	if old.Size() < l.max/2 {
		l.size = old.Size()
		return
	}
	named, err := os.Stat(l.path)
	if err != nil || !os.SameFile(old, named) {
		return
	}
	before := l.f
	if err := l.replace(); err != nil {
		own := slog.New(&Handler{sink: &sink{w: l.f, time: true}})
		own.Warn("the log file is full, and no new one could be created; "+
			"logging continues in this one, and a new one is tried later", "bytes", l.max, "error", err)
		return
	}
	l.moveStd(old)
	_ = before.Close() // all of it was written
}

// replace renames the file to FILE.1 and opens a new one. On an error it leaves everything as it was.
func (l *file) replace() error {
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		return err
	}
	if err := l.open(); err != nil {
		return errors.Join(err, os.Rename(l.path+".1", l.path))
	}
	return nil
}

// moveStd points the process' standard output and error to the new file. Dup3 does not fail for open descriptors.
func (l *file) moveStd(old os.FileInfo) {
	was, ok := old.Sys().(*syscall.Stat_t)
	for _, fd := range l.std {
		var now unix.Stat_t
		if ok && unix.Fstat(fd, &now) == nil && now.Ino == was.Ino && now.Dev == was.Dev {
			_ = unix.Dup3(int(l.f.Fd()), fd, 0)
		}
	}
}

func (l *file) close() error { return l.f.Close() }
