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

// Fingerprint stands for the keys in the folder dir, "" if there are none: two servers with the same one read and write
// the same. It reveals nothing of the keys, which cannot be guessed.
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
	default: // the resources follow the settings that servers share, and a start may write them again
		for _, k := range l.keys {
			fmt.Fprintf(sum, "%q %q\n", k.Name, k.Secret)
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// holdPatience is how long to wait for another server that is admitted at the same moment: less than a server waits for
// the answer, which says why.
const holdPatience = 300 * time.Millisecond

// errChanging is the answer to a server that joins while the keys are replaced.
var errChanging = errors.New("the key that encrypts Secrets is being replaced; a server can join when that is done: coracle " +
	"secrets-encrypt status")

// HoldStill keeps the keys in dir from being replaced until release is called. It is refused while that is going on, or
// was interrupted.
func HoldStill(dir string) (release func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), holdPatience)
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
	return func() { _ = f.Close() }, nil // which only unlocks
}
