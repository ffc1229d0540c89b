// SPDX-License-Identifier: Apache-2.0

package helmjob

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// MaxArchive limits a chart's archive, in bytes. Helm's limit for an unpacked chart is the same.
const MaxArchive = 100 << 20

// SumFile returns a checksum of an archive or of an unpacked chart: the SHA-256 of the archive, or one over the names
// and contents of a folder's files.
func SumFile(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	switch {
	case info.IsDir():
		err = EachFile(path, func(name string, _ fs.FileInfo) error {
			_, _ = fmt.Fprintf(h, "%q\n", "/"+name) // a hash returns no error
			return addFile(h, filepath.Join(path, name))
		})
	case info.Mode().IsRegular():
		err = addFile(h, path)
	default:
		err = fmt.Errorf("%s is no file", path) // reading from a pipe need not end
	}
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// EachFile calls f for each regular file of an unpacked chart, ordered by name. As Helm does when it loads such a
// chart, it follows symbolic links, even if the folder itself is one.
func EachFile(folder string, f func(name string, info fs.FileInfo) error) error {
	info, err := os.Stat(folder)
	if err != nil {
		return err
	}
	return eachFile(folder, "", []fs.FileInfo{info}, f)
}

// eachFile does the work of EachFile in the subfolder within. above are its parent folders, and itself as the last.
func eachFile(folder, within string, above []fs.FileInfo, f func(string, fs.FileInfo) error) error {
	entries, err := os.ReadDir(filepath.Join(folder, within))
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(within, e.Name())
		info, err := os.Stat(filepath.Join(folder, name))
		switch {
		case errors.Is(err, fs.ErrNotExist) && e.Type()&fs.ModeSymlink != 0: // a link to nothing
			continue
		case err != nil:
		case info.Mode().IsRegular():
			err = f(name, info)
		case !info.IsDir():
		case slices.ContainsFunc(above, func(a fs.FileInfo) bool { return os.SameFile(a, info) }):
			err = fmt.Errorf("%s leads back to a folder that it is in", filepath.Join(folder, name))
		default:
			err = eachFile(folder, name, append(slices.Clip(above), info), f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func addFile(h hash.Hash, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(h, f)
	return err
}
