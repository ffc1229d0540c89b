// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// refuseWhileRunning returns an error when a running coracle holds the lock on its pid file.
func refuseWhileRunning(pidFile string) error {
	f, err := os.Open(pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("see whether coracle runs: %w", err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		pid, _ := os.ReadFile(pidFile)
		return fmt.Errorf("coracle is running as process %s; nothing was removed. Stop it first, then run this again", bytes.TrimSpace(pid))
	}
	return nil
}
