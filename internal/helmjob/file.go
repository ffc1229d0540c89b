// SPDX-License-Identifier: Apache-2.0

package helmjob

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// MaxArchive bounds a chart's archive, in bytes: Helm unpacks no more of a chart either.
const MaxArchive = 100 << 20

// SumFile tells archives and unpacked charts apart by what is in them: the SHA-256 of an archive, or one over the files of a folder and their names.
func SumFile(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	switch {
	case info.IsDir():
		err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			_, _ = fmt.Fprintf(h, "%q\n", strings.TrimPrefix(p, path)) // a hash takes all
			return addFile(h, p)
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

func addFile(h hash.Hash, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(h, f)
	return err
}
