// SPDX-License-Identifier: Apache-2.0

// Package datadir takes a server's folder for one process: the server itself, or a command that works on the files of a
// stopped one.
//
// It owns the folder's lock and the file that says which server this is and which program wrote here last. It never
// reads what lies beside them.
package datadir

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

// Format is the version of everything below the server's folder. It goes up when an older program would misread what a
// newer one wrote.
const Format = 1

// Names of the files.
const (
	LockFile     = "lock"
	IdentityFile = "identity.json"
	// ResetFile says that --cluster-reset was done; see NoteReset.
	ResetFile = "reset-done"
)

// Options say which folder, and for whom.
type Options struct {
	// DataDir is named in messages.
	DataDir string
	// ServerDir is the folder; it is made if it is missing.
	ServerDir string
	// StoreDir is the store's. If it holds anything, the cluster has data.
	StoreDir string
	// Version is this program's.
	Version string
	// Replace says that everything in the folder is going to be replaced: an identity that is lost, damaged or of a
	// newer program is no obstacle then, and the server gets a new one.
	Replace bool
}

// identity is what a server keeps about itself.
type identity struct {
	// Format is that of the newest program that wrote here, Version that program's.
	Format  int    `json:"format"`
	Version string `json:"version"`
	// ServerID names this server in the store's log, for ever; host and node names may change.
	ServerID string `json:"serverID"`
}

// Dir is a server's folder while this process has it.
type Dir struct {
	path string
	lock *os.File
	id   identity
	// Established says that the cluster has data, so that missing keys are lost ones.
	Established bool
}

// InUseError says that another process has the folder.
type InUseError struct {
	DataDir string
	PID     string // empty if it is not known
}

// By names the other process as far as it is known, with a comma before it.
func (e *InUseError) By() string {
	if e.PID == "" {
		return ""
	}
	return ", process " + e.PID
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("another coracle server%s uses the data directory %s. Nothing was changed: stop that one first, or give this "+
		"one a folder of its own with --data-dir", process(e.PID), e.DataDir)
}

// Open takes the folder for this process alone and refuses one that this program would not understand.
func Open(o Options) (_ *Dir, err error) {
	if err := os.MkdirAll(o.ServerDir, 0o700); err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be used: %w", o.DataDir, err)
	}
	d := &Dir{path: o.ServerDir}
	if d.lock, err = lock(filepath.Join(o.ServerDir, LockFile), o.DataDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	entries, err := os.ReadDir(o.StoreDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("looking into the store's folder: %w", err)
	}
	d.Established = len(entries) > 0
	if err := d.identify(&o); err != nil && o.Replace {
		d.id = identity{Format: Format, Version: o.Version}
		return d, d.newID()
	} else if err != nil {
		return d, err
	}
	return d, nil
}

// ServerID names this server in the store's log, for ever.
func (d *Dir) ServerID() string { return d.id.ServerID }

// identify reads who this server is; Record writes it.
func (d *Dir) identify(o *Options) error {
	path := filepath.Join(d.path, IdentityFile)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && d.Established:
		return fmt.Errorf("%s is missing, although there is a store in %s. Nothing was changed. That file says which server of the "+
			"cluster this is: restore it from a backup, then start again", path, o.StoreDir)
	case errors.Is(err, fs.ErrNotExist):
		if err := d.newID(); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("reading who this server is: %w", err)
	default:
		if err := json.Unmarshal(data, &d.id); err != nil || d.id.ServerID == "" || d.id.Format < 1 {
			return fmt.Errorf("%s is damaged (%v). Nothing was changed. It says which server of the cluster this is: restore it from a "+
				"backup, then start again", path, err)
		}
	}
	if d.id.Format > Format {
		return fmt.Errorf("the data directory %s was written by a newer coracle: %s, data format %d. This is %s and knows formats up to %d. "+
			"Nothing was changed: install %s or newer, or restore a backup made before the upgrade", o.DataDir, d.id.Version, d.id.Format,
			o.Version, Format, d.id.Version)
	}
	d.id.Format, d.id.Version = Format, o.Version
	return nil
}

// newID draws a new id.
func (d *Dir) newID() error {
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return fmt.Errorf("drawing an id for this server: %w", err)
	}
	d.id.ServerID = hex.EncodeToString(id)
	return nil
}

// RecordVersion notes which program writes here from now on.
func (d *Dir) RecordVersion() error {
	data, err := json.MarshalIndent(d.id, "", "  ")
	if err != nil {
		return err
	}
	_, err = atomicfile.WriteIfDifferent(filepath.Join(d.path, IdentityFile), append(data, '\n'), 0o600)
	return err
}

// NoteReset notes in a server's folder what a start with --cluster-reset has done there. A service that has that flag
// among its arguments would do it again at each start, and lose what was written since.
func NoteReset(serverDir, what string) error {
	if err := atomicfile.Write(filepath.Join(serverDir, ResetFile), []byte(what+"\n"), 0o600); err != nil {
		return fmt.Errorf("noting that the reset was done: %w", err)
	}
	return nil
}

// WasReset is what NoteReset noted; "" if that was nothing, or the server has been started since.
func WasReset(serverDir string) (string, error) {
	what, err := os.ReadFile(filepath.Join(serverDir, ResetFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("looking whether a reset was done: %w", err)
	}
	return strings.TrimSpace(string(what)), nil
}

// ClearReset is for a start without --cluster-reset.
func (d *Dir) ClearReset() error {
	if err := os.Remove(filepath.Join(d.path, ResetFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clearing the mark of a reset: %w", err)
	}
	return nil
}

// Close releases the folder. The file stays: removing it would let a third process lock another file of its name.
func (d *Dir) Close() error { return d.lock.Close() }

// lock takes the folder with flock(2), which the kernel releases however this process ends.
func lock(path, dataDir string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be used: %w", dataDir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner, _ := io.ReadAll(io.LimitReader(f, 32)) // only to say more in the message
		err = fmt.Errorf("locking %s: %w", path, err)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = &InUseError{DataDir: dataDir, PID: strings.TrimSpace(string(owner))}
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
	if pid == "" {
		return ""
	}
	return " (process " + pid + ")"
}
