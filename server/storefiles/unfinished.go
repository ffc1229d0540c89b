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
)

const (
	// restoring follows a folder's name in that of the folder which shall replace it, and a time follows that.
	restoring = ".restoring-"
	// unfinished follows that in the name of an empty file beside it, for as long as the folder is being built.
	unfinished = ".unfinished"
)

// Begin names the folder that shall take the place of dir, and notes that it is being built. The caller makes it, and
// has dir to itself. Replace or Abandon ends that.
func Begin(dir, stamp string) (made string, err error) {
	made = dir + restoring + stamp
	// It is empty, so it needs no other name first, under which a power cut would leave it.
	f, err := os.OpenFile(made+unfinished, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(f.Close(), atomicfile.SyncDir(filepath.Dir(made)))
	}
	if err != nil {
		return "", fmt.Errorf("beginning to build %s: %w. Nothing was changed", made, err)
	}
	return made, nil
}

// Abandon removes what was built.
func Abandon(made string) error {
	return errors.Join(os.RemoveAll(made), notMissing(os.Remove(made+unfinished)))
}

// Tidy ends what a power cut, or the end of a process, interrupted while the folder dir was being replaced: what was
// not finished is removed, and what was there before gets the name under which it is kept. So does what was built to
// the end if that is where it ended, a moment before the exchange: it cannot be distinguished from that, and nothing
// that may have been there is removed. The caller has dir to itself.
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
			delete(left, made) // it comes before its file
		} else if e.IsDir() {
			left[path] = true
		}
	}
	for path := range left {
		errs = append(errs, renameNew(path, dir+".before-"+strings.TrimPrefix(path, dir+restoring)))
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
