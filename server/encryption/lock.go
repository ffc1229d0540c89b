// SPDX-License-Identifier: Apache-2.0

package encryption

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// editLock is held while the configuration is read, changed and written. Otherwise a starting server and a rotation
	// in another process would undo each other's change.
	editLock = ".encryption-edit.lock"
	// rotationLock is held for a whole rotation.
	rotationLock = ".encryption-rotation.lock"

	lockPoll = 20 * time.Millisecond
)

var errLocked = errors.New("another process holds the lock")

// lock locks a file with flock(2). Closing the file releases the lock, and so does the end of the process.
func lock(ctx context.Context, path string, wait bool) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the encryption keys: %w", err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, syscall.EWOULDBLOCK):
			return nil, errors.Join(fmt.Errorf("locking the encryption keys: %w", err), f.Close())
		case !wait:
			return nil, errors.Join(errLocked, f.Close())
		}
		if !timers.Sleep(ctx, lockPoll) {
			return nil, errors.Join(fmt.Errorf("locking the encryption keys: %w", ctx.Err()), f.Close())
		}
	}
}
