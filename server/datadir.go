// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// dataFormat is the version of everything below the server's folder. It goes up when an older program would misread
// what a newer one wrote.
const dataFormat = 1

const (
	lockFile     = "lock"
	identityFile = "identity.json"
)

// identity is what a server keeps about itself.
type identity struct {
	// Format is the dataFormat of the newest program that wrote here, Version that program's.
	Format  int    `json:"format"`
	Version string `json:"version"`
	// ServerID names this server in the store's log, for ever; host and node names may change.
	ServerID string `json:"serverID"`
}

// dataDir is a server's folder while this process has it.
type dataDir struct {
	path string
	lock *os.File
	identity
	// established says that the cluster has data, so that missing keys are lost ones.
	established bool
}

// openDataDir takes the folder for this process alone and refuses one that it would not understand.
func openDataDir(o *Options) (_ *dataDir, err error) {
	if err := os.MkdirAll(o.ServerDir, 0o700); err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be used: %w", o.DataDir, err)
	}
	d := &dataDir{path: o.ServerDir}
	if d.lock, err = lock(filepath.Join(o.ServerDir, lockFile), o.DataDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	entries, err := os.ReadDir(o.StoreDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("looking into the store's folder: %w", err)
	}
	d.established = len(entries) > 0
	return d, d.identify(o)
}

// identify reads who this server is; record writes it.
func (d *dataDir) identify(o *Options) error {
	path := filepath.Join(d.path, identityFile)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && d.established:
		return fmt.Errorf("%s is missing, although there is a store in %s. Nothing was changed. That file says which server of the "+
			"cluster this is: restore it from a backup, then start again", path, o.StoreDir)
	case errors.Is(err, fs.ErrNotExist):
		id := make([]byte, 8)
		if _, err := rand.Read(id); err != nil {
			return fmt.Errorf("drawing an id for this server: %w", err)
		}
		d.ServerID = hex.EncodeToString(id)
	case err != nil:
		return fmt.Errorf("reading who this server is: %w", err)
	default:
		if err := json.Unmarshal(data, &d.identity); err != nil || d.ServerID == "" || d.Format < 1 {
			return fmt.Errorf("%s is damaged (%v). Nothing was changed. It says which server of the cluster this is: restore it from a "+
				"backup, then start again", path, err)
		}
	}
	if d.Format > dataFormat {
		return fmt.Errorf("the data directory %s was written by a newer coracle: %s, data format %d. This is %s and knows formats up to %d. "+
			"Nothing was changed: install %s or newer, or restore a backup made before the upgrade", o.DataDir, d.Version, d.Format,
			o.Version, dataFormat, d.Version)
	}
	d.Format, d.Version = dataFormat, o.Version
	return nil
}

// record notes which program writes here from now on.
func (d *dataDir) record() error {
	data, err := json.MarshalIndent(d.identity, "", "  ")
	if err != nil {
		return err
	}
	_, err = atomicfile.WriteIfDifferent(filepath.Join(d.path, identityFile), append(data, '\n'), 0o600)
	return err
}

// close gives the folder free. The file stays: removing it would let a third process lock another file of its name.
func (d *dataDir) close() error { return d.lock.Close() }

// lock takes the folder with flock(2), which the kernel gives free however this process ends.
func lock(path, dataDir string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be used: %w", dataDir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner, _ := io.ReadAll(io.LimitReader(f, 32)) // only to say more in the message
		err = fmt.Errorf("locking %s: %w", path, err)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("another coracle server%s uses the data directory %s. Nothing was changed: stop that one first, or give this "+
				"one a folder of its own with --data-dir", process(string(owner)), dataDir)
		}
		return nil, errors.Join(err, f.Close())
	}
	// Only for the message above, in another process; a full disk must not keep this one from starting.
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintln(f, os.Getpid())
	}
	return f, nil
}

func process(pid string) string {
	if pid = strings.TrimSpace(pid); pid == "" {
		return ""
	}
	return " (process " + pid + ")"
}
