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

// MaxArchive bounds a chart's archive, in bytes: Helm unpacks no more of a chart either.
const MaxArchive = 100 << 20

// SumFile tells archives and unpacked charts apart by what is in them: the SHA-256 of an archive, or one over the files
// of a folder and their names.
func SumFile(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	switch {
	case info.IsDir():
		err = EachFile(path, func(name string, _ fs.FileInfo) error {
			_, _ = fmt.Fprintf(h, "%q\n", "/"+name) // a hash takes all
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

// EachFile calls f for each regular file of an unpacked chart, in the order of their names in it. As Helm does when it
// loads such a chart, it follows symbolic links, that by which the folder itself is named among them.
func EachFile(folder string, f func(name string, info fs.FileInfo) error) error {
	info, err := os.Stat(folder)
	if err != nil {
		return err
	}
	return eachFile(folder, "", []fs.FileInfo{info}, f)
}

// eachFile does so within one of its folders. above are those that it is in, itself the last.
func eachFile(folder, within string, above []fs.FileInfo, f func(string, fs.FileInfo) error) error {
	entries, err := os.ReadDir(filepath.Join(folder, within))
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(within, e.Name())
		info, err := os.Stat(filepath.Join(folder, name))
		switch {
		case errors.Is(err, fs.ErrNotExist) && e.Type()&fs.ModeSymlink != 0: // it leads nowhere
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
