// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// store is the folder of the volumes: a directory ID for each, and what was asked for in ID.json.
type store string

// volume is what was asked for.
type volume struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// id is a volume's for a name that anybody may choose.
func id(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:16])
}

// path is a volume's directory.
func (s store) path(id string) string { return filepath.Join(string(s), id) }

// isID says whether there can be a volume of that ID.
func isID(id string) bool {
	sum, err := hex.DecodeString(id)
	return err == nil && len(sum) == 16
}

// get finds a volume; fs.ErrNotExist is one that is not there.
func (s store) get(id string) (volume, error) {
	var v volume
	if !isID(id) {
		return v, fs.ErrNotExist
	}
	text, err := os.ReadFile(s.path(id) + ".json")
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	return v, err
}

// make makes a volume's directory. The description comes last: without it there is no volume.
func (s store) make(v volume) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	path := s.path(id(v.Name))
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o777); err != nil { // not by MkdirAll, which heeds the umask
		return err
	}
	if err := os.WriteFile(path+".json.part", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".json.part", path+".json")
}

// remove removes a volume, or finds none.
func (s store) remove(id string) error {
	if !isID(id) {
		return nil
	}
	path := s.path(id)
	if err := os.Remove(path + ".json"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(path)
}
