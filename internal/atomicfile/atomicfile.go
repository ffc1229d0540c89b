// SPDX-License-Identifier: Apache-2.0

// Package atomicfile replaces files. A reader sees the old or the new content, never a mixture or an empty file, even
// after a crash or a power cut. It owns nothing; its callers choose paths and modes.
package atomicfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write replaces the file at path with data. The new file appears with the given mode, so that others can never read a
// secret. Its folder must exist. The data and the rename are on disk when Write returns.
func Write(path string, data []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	// CreateTemp makes the file 0600. A dot keeps half-written files out of folders that are watched by suffix.
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(f.Name()))
		}
	}()
	if err := writeAll(f, data, mode); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

func writeAll(f *os.File, data []byte, mode fs.FileMode) error {
	if _, err := f.Write(data); err != nil {
		return err
	}
	// After the data: the mode may be read-only. Chmod is explicit, because umask must not decide.
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return f.Sync()
}

// SyncDir makes files that were made, renamed or removed in dir durable. fsync(2) says why flushing the file itself is
// not enough.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// WriteIfDifferent does the same as Write, but writes nothing if the file already has the data and the mode. That
// avoids wear of the disk and wake-ups of the file's watchers. It reports whether it wrote.
func WriteIfDifferent(path string, data []byte, mode fs.FileMode) (bool, error) {
	old, err := os.ReadFile(path)
	if err == nil && string(old) == string(data) {
		if fi, err := os.Stat(path); err == nil && fi.Mode().Perm() == mode.Perm() {
			return false, nil
		}
	}
	return true, Write(path, data, mode)
}

// ReadJSON decodes a file that WriteJSON wrote into value. If there is no file, it returns false without an error.
func ReadJSON(path string, value any) (found bool, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, value)
	}
	return err == nil, err
}

// WriteJSON writes a value as one line of JSON by WriteIfDifferent.
func WriteJSON(path string, value any, mode fs.FileMode) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	_, err = WriteIfDifferent(path, append(data, '\n'), mode)
	return err
}
