// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// An InUseError says that another process has opened the directory.
type InUseError struct {
	Dir string
	PID int // 0 if the process left no number
}

func (e *InUseError) Error() string {
	who := "another process"
	if e.PID != 0 {
		who = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("the store's directory %s is in use by %s. Nothing was changed. "+
		"Stop that process first, or give this one a directory of its own", e.Dir, who)
}

// lock locks the directory for this process until the returned file is closed. If the process exits, the kernel closes
// it.
func lock(dir string) (*os.File, error) {
	path := filepath.Join(dir, "LOCK")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, unusableError(dir, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		held := &InUseError{Dir: dir}
		if text, err := os.ReadFile(path); err == nil {
			held.PID, _ = strconv.Atoi(strings.TrimSpace(string(text))) // 0 if the number cannot be read
		}
		f.Close()
		return nil, held
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// The number is only for InUseError, and may be missing on a full disk.
	if f.Truncate(0) == nil {
		_ = notePID(f)
	}
	return f, nil
}

func notePID(f *os.File) error {
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func unusableError(dir string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("the disk of the store's directory %s is full: %w. Nothing was lost. Free some space and start again", dir, err)
	}
	return fmt.Errorf("the store's directory %s cannot be written: %w. "+
		"Nothing was changed. Give the server's user the right to write there, or choose another directory", dir, err)
}
