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

// source is a file as it lies in the folder.
type source struct {
	data []byte
	hash string
	// skip: the file is to be left as it is in the cluster, neither applied nor pruned.
	skip bool
	// err says why it could not be read; the file is there all the same.
	err error
}

var suffixes = []string{".yaml", ".yml", ".json"}

const skipSuffix = ".skip"

// scan reads the folder. Names are relative to it, with slashes. Any error but one of a single file's content makes the
// list incomplete and is returned.
func scan(dir string) (map[string]source, error) {
	found := map[string]source{}
	skipped := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil // it went while we looked
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

// readSource follows a link to a file; a folder behind a link is not one of ours.
func readSource(path string) source {
	data, err := os.ReadFile(path)
	if err != nil {
		return source{err: err, hash: "unreadable: " + err.Error()}
	}
	sum := sha256.Sum256(data)
	return source{data: data, hash: hex.EncodeToString(sum[:])}
}
