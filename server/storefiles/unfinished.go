// SPDX-License-Identifier: Apache-2.0

package storefiles

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/raftstore"
)

const (
	// restoring follows the replaced folder's name in the name of the new folder. A time follows it.
	restoring = ".restoring-"
	// unfinished follows the new folder's name in the name of an empty file beside it. That file exists while the
	// folder is being built.
	unfinished = ".unfinished"
	// replacedInfix follows the replaced folder's name in the name under which it is kept. A time follows it.
	replacedInfix = ".before-"
)

// Begin returns the name of the new folder that is to replace dir, and records that it is being built. The caller
// creates it, and must be the only user of dir. Replace or Abandon removes the record.
func Begin(dir, stamp string) (made string, err error) {
	made = dir + restoring + stamp
	// The file is empty, so a power cut cannot leave it incomplete.
	f, err := os.OpenFile(made+unfinished, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(f.Close(), atomicfile.SyncDir(filepath.Dir(made)))
	}
	if err != nil {
		return "", fmt.Errorf("beginning to build %s: %w. Nothing was changed", made, err)
	}
	return made, nil
}

// Abandon removes an unfinished folder, and what raftstore.Restore had begun beside it.
func Abandon(made string) error {
	return errors.Join(os.RemoveAll(made), os.RemoveAll(made+raftstore.Beside), notMissing(os.Remove(made+unfinished)))
}

// unusedName returns the name, or the name with the first number after it that is not in use. So no run takes the name
// of what another run kept in the same second. The caller must be the only user of the folder.
func unusedName(name string) string {
	path := name
	for n := 2; ; n++ {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return path
		}
		path = fmt.Sprintf("%s-%d", name, n)
	}
}

// Tidy completes a replacement of the folder dir that a power cut, or the end of a process, interrupted. It removes an
// unfinished folder. A former folder gets the name under which it is kept. So does a finished folder if the
// interruption was a moment before the exchange: the two cannot be distinguished, and no former folder is ever removed.
// The caller must be the only user of dir.
func Tidy(dir string) error {
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		return notMissing(err)
	}
	var errs []error
	left := map[string]bool{}
	for _, e := range entries {
		path := filepath.Join(filepath.Dir(dir), e.Name())
		if !strings.HasPrefix(path, dir+restoring) {
			continue
		}
		if made, ok := strings.CutSuffix(path, unfinished); ok {
			errs = append(errs, Abandon(made))
			delete(left, made) // the folders precede their file in the list
			delete(left, made+raftstore.Beside)
		} else if e.IsDir() {
			left[path] = true
		}
	}
	for path := range left {
		errs = append(errs, renameNew(path, unusedName(dir+replacedInfix+strings.TrimPrefix(path, dir+restoring))))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("tidying up after a restore that was interrupted: %w", err)
	}
	return nil
}

func notMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
