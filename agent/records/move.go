// SPDX-License-Identifier: Apache-2.0

package records

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// suffix is between the name of a directory that was set aside and its number.
const suffix = "damaged-"

// moveContent moves all that is in the directory root to root.damaged-N, or to root/damaged-N where root is a mount
// point or its parent may not be written. root itself stays.
func moveContent(root string) error {
	number := 1
	if before := setAsideBefore(root); len(before) > 0 {
		number = numberOf(before[len(before)-1]) + 1
	}
	name := fmt.Sprint(suffix, number)
	err := moveTo(root+"."+name, root)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EROFS) {
		err = moveTo(filepath.Join(root, name), root)
	}
	return err
}

// moveTo moves all that is in the directory root to the new directory to. Nothing is moved if the first rename fails.
func moveTo(to, root string) error {
	entries, err := os.ReadDir(root)
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return e.Name() == "lost+found" || strings.HasPrefix(e.Name(), suffix)
	})
	if err != nil || len(entries) == 0 {
		return err
	}
	if err := os.Mkdir(to, 0o711); err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(root, e.Name()), filepath.Join(to, e.Name())); err != nil {
			_ = os.Remove(to) // fails unless it is empty
			return err
		}
	}
	return errors.Join(atomicfile.SyncDir(filepath.Dir(to)), atomicfile.SyncDir(root), atomicfile.SyncDir(to))
}

// setAsideBefore returns the directories that were set aside for root, the oldest first.
func setAsideBefore(root string) []string {
	var out []string
	for _, pattern := range []string{root + "." + suffix + "*", filepath.Join(root, suffix+"*")} {
		found, _ := filepath.Glob(pattern) // only a malformed pattern is an error, and finds nothing
		out = append(out, found...)
	}
	out = slices.DeleteFunc(out, func(path string) bool { return numberOf(path) == 0 })
	slices.SortFunc(out, func(a, b string) int { return numberOf(a) - numberOf(b) })
	return out
}

// numberOf returns the number of a directory that was set aside, and 0 for another.
func numberOf(path string) int {
	number, _ := strconv.Atoi(path[strings.LastIndex(path, suffix)+len(suffix):]) // 0 for no number
	return number
}
