// SPDX-License-Identifier: Apache-2.0

package encryption

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Fingerprint returns a hash of the keys in the folder dir, empty if there are none. Two servers with the same hash
// have the same keys. It reveals nothing about the keys, which cannot be guessed.
func Fingerprint(dir string) (string, error) {
	path := filepath.Join(dir, configFile)
	sum := sha256.New()
	l, err := readLayout(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case errors.Is(err, errForeign):
		data, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("reading the encryption keys: %w", err)
		}
		_, _ = sum.Write(data) // a hash does not fail
	case err != nil:
		return "", fmt.Errorf("reading the encryption keys: %w", err)
	default: // not the resources: they follow the shared settings, and a start may write them again
		for _, k := range l.keys {
			fmt.Fprintf(sum, "%q %q\n", k.Name, k.Secret)
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// lockTimeout is how long to wait for another server that is admitted at the same moment. It is less than a server
// waits for the response, which contains the reason.
const lockTimeout = 300 * time.Millisecond

// errChanging is the response to a joining server while the keys are replaced.
var errChanging = errors.New("the key that encrypts Secrets is being replaced; a server can join when that is done: coracle " +
	"secrets-encrypt status")

// LockRotation keeps the keys in dir from being replaced until release is called. It fails with errChanging during a
// rotation, or after an interrupted one.
func LockRotation(dir string) (release func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	f, err := lock(ctx, filepath.Join(dir, rotationLock), true)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, errChanging
	}
	if err != nil {
		return nil, err
	}
	st, err := ReadStatus(dir)
	if err == nil && !st.ByHand && st.Stage != StageDone {
		err = errChanging
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil // closing only unlocks
}
