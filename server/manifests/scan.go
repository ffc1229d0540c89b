// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// source is a file in the folder.
type source struct {
	data []byte
	hash string
	// skip says that the file's objects are left as they are in the cluster, neither applied nor pruned.
	skip bool
	// err says why the file could not be read. It exists nevertheless.
	err error
}

var suffixes = []string{".yaml", ".yml", ".json"}

const skipSuffix = ".skip"

// scan reads the folder. Names are relative to the folder, with slashes. An error means that the list is incomplete. An
// error of a single file's content is in its source instead.
func scan(dir string) (map[string]source, error) {
	found := map[string]source{}
	skipped := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil // removed during the scan
		}
		if err != nil {
			return err
		}
		hidden := strings.HasPrefix(entry.Name(), ".") && path != dir
		switch {
		case hidden && entry.IsDir():
			return fs.SkipDir
		case hidden || entry.IsDir():
			return nil
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if of, ok := strings.CutSuffix(rel, skipSuffix); ok {
			skipped[of] = true
		} else if slices.Contains(suffixes, filepath.Ext(rel)) {
			found[rel] = readSource(path)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for name := range skipped {
		if s, ok := found[name]; ok {
			s.skip = true
			found[name] = s
		}
	}
	return found, nil
}

// readSource reads a file. It follows a link to a file. A link to a folder is an error.
func readSource(path string) source {
	data, err := os.ReadFile(path)
	if err != nil {
		return source{err: err, hash: "unreadable: " + err.Error()}
	}
	sum := sha256.Sum256(data)
	return source{data: data, hash: hex.EncodeToString(sum[:])}
}
