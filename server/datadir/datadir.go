// SPDX-License-Identifier: Apache-2.0

// Package datadir locks a server's folder for one process: the server itself, or a command that works on the files of a
// stopped one.
//
// It owns the folder's lock, and the file with the identity of the server, its level, and the version of the last
// program that wrote here. It never reads other files in the folder.
package datadir

import (
	"cmp"
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
	"github.com/coracle-k8s/coracle/internal/level"
)

// Names of the files in the server's folder.
const (
	LockFile     = "lock"
	IdentityFile = "identity.json"
	// ResetFile says that --cluster-reset was done (NoteReset).
	ResetFile = "reset-done"
)

// Options are the parameters of Open.
type Options struct {
	// DataDir is named in messages.
	DataDir string
	// ServerDir is the folder. It is made if it is missing.
	ServerDir string
	// StoreDir is the store's folder. If it is not empty, the cluster has data.
	StoreDir string
	// Version is the version of this program.
	Version string
	// Replace says that everything in the folder is going to be replaced. A missing or damaged identity, or one of a
	// newer program, is then no error, and the server gets a new one.
	Replace bool
	// Level is the level of a folder that gets a new identity: that of the cluster which the server joins. 0 means the
	// newest, for a new cluster.
	Level int

	newest int // level.Newest(), or another one in tests
}

// identity is the content of the file that names the server and its format.
type identity struct {
	// Format is the level of everything below the server's folder. Version is that of the last program that wrote here.
	Format  int    `json:"format"`
	Version string `json:"version"`
	// ServerID names this server permanently in the store's log. Host and node names may change.
	ServerID string `json:"serverID"`
}

// Dir is a server's folder while this process has it locked.
type Dir struct {
	path string
	lock *os.File
	id   identity
	// Established says that the cluster has data, so that missing keys are an error.
	Established bool
}

// InUseError says that another process has locked the folder.
type InUseError struct {
	DataDir string
	PID     string // empty if it is not known
}

// By returns the other process's ID for messages, after a comma, or an empty string if it is not known.
func (e *InUseError) By() string {
	if e.PID == "" {
		return ""
	}
	return ", process " + e.PID
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("another coracle server%s uses the data directory %s. Nothing was changed: stop that one first, or give this "+
		"one a folder of its own with --data-dir", processSuffix(e.PID), e.DataDir)
}

// Level returns the level at which the server of a folder runs. It is 0 if the folder does not say so: no server has
// started there, or Open refuses its identity.
func Level(serverDir string) int {
	var id identity
	if data, err := os.ReadFile(filepath.Join(serverDir, IdentityFile)); err != nil || json.Unmarshal(data, &id) != nil {
		return 0
	}
	return max(id.Format, 0)
}

// Open locks the folder for this process. It refuses a folder whose level this program does not know.
func Open(o Options) (_ *Dir, err error) {
	o.newest = cmp.Or(o.newest, level.Newest())
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
		return nil, fmt.Errorf("reading the store's folder: %w", err)
	}
	d.Established = len(entries) > 0
	if err := d.identify(&o); err != nil && o.Replace {
		d.newID(&o)
		return d, nil
	} else if err != nil {
		return d, err
	}
	return d, nil
}

// ServerID returns the permanent name of this server in the store's log.
func (d *Dir) ServerID() string { return d.id.ServerID }

// identify reads the identity of this server. RecordVersion writes it.
func (d *Dir) identify(o *Options) error {
	path := filepath.Join(d.path, IdentityFile)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && d.Established:
		return fmt.Errorf("%s is missing, although there is a store in %s. Nothing was changed. That file says which server of the "+
			"cluster this is: restore it from a backup, then start again", path, o.StoreDir)
	case errors.Is(err, fs.ErrNotExist):
		d.newID(o)
	case err != nil:
		return fmt.Errorf("reading who this server is: %w", err)
	default:
		if err := json.Unmarshal(data, &d.id); err != nil || d.id.ServerID == "" || d.id.Format < 1 {
			return fmt.Errorf("%s is damaged (%v). Nothing was changed. It says which server of the cluster this is: restore it from a "+
				"backup, then start again", path, err)
		}
	}
	if d.id.Format > o.newest {
		return fmt.Errorf("the data directory %s was written by a newer coracle: %s, data format %d. This is %s and knows formats up to %d. "+
			"Nothing was changed: install %s or newer, or restore a backup made before the upgrade", o.DataDir, d.id.Version, d.id.Format,
			o.Version, o.newest, d.id.Version)
	}
	if oldest := level.OldestOf(o.newest); d.id.Format < oldest {
		return fmt.Errorf("the data directory %s has level %d, and was last used by %s. This is %s and knows levels %d to %d. Nothing was "+
			"changed: first install a version between the two, and raise the level to %d with coracle upgrade raise", o.DataDir,
			d.id.Format, d.id.Version, o.Version, oldest, o.newest, oldest)
	}
	if !d.Established && o.Level > 0 { // an earlier join that failed may have recorded another level
		d.id.Format = o.Level
	}
	d.id.Version = o.Version
	return nil
}

// newID makes a new identity.
func (d *Dir) newID(o *Options) {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	d.id = identity{Format: cmp.Or(o.Level, o.newest), Version: o.Version, ServerID: hex.EncodeToString(id)}
}

// SetLevel sets the level that RecordVersion records: that of data which replaced the former ones.
func (d *Dir) SetLevel(level int) { d.id.Format = level }

// RecordLevel records, durably, that the cluster has a level. A lower one changes nothing.
func (d *Dir) RecordLevel(level int) error {
	if level <= d.id.Format {
		return nil
	}
	before := d.id.Format
	d.id.Format = level
	if err := d.RecordVersion(); err != nil {
		d.id.Format = before
		return fmt.Errorf("recording the cluster's level in the data directory: %w", err)
	}
	return nil
}

// RecordVersion records this program's version as the last that wrote here.
func (d *Dir) RecordVersion() error {
	data, err := json.MarshalIndent(d.id, "", "  ")
	if err != nil {
		return err
	}
	_, err = atomicfile.WriteIfDifferent(filepath.Join(d.path, IdentityFile), append(data, '\n'), 0o600)
	return err
}

// NoteReset records in a server's folder what a start with --cluster-reset has done. A service with that flag in its
// arguments would otherwise do it again at each start, and lose what was written since.
func NoteReset(serverDir, what string) error {
	if err := atomicfile.Write(filepath.Join(serverDir, ResetFile), []byte(what+"\n"), 0o600); err != nil {
		return fmt.Errorf("recording that the reset was done: %w", err)
	}
	return nil
}

// WasReset returns the record of NoteReset. It is empty if there is none, or the server has been started since.
func WasReset(serverDir string) (string, error) {
	what, err := os.ReadFile(filepath.Join(serverDir, ResetFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading whether a reset was done: %w", err)
	}
	return strings.TrimSpace(string(what)), nil
}

// ClearReset removes the record of NoteReset, at a start without --cluster-reset.
func (d *Dir) ClearReset() error {
	if err := os.Remove(filepath.Join(d.path, ResetFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the record of a reset: %w", err)
	}
	return nil
}

// Close unlocks the folder. The lock file stays: if it were removed, a third process could lock another file of its
// name.
func (d *Dir) Close() error { return d.lock.Close() }

// lock locks the folder with flock(2), which the kernel releases however this process ends.
func lock(path, dataDir string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be used: %w", dataDir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner, _ := io.ReadAll(io.LimitReader(f, 32)) // only for the message
		err = fmt.Errorf("locking %s: %w", path, err)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = &InUseError{DataDir: dataDir, PID: strings.TrimSpace(string(owner))}
		}
		return nil, errors.Join(err, f.Close())
	}
	// This is only for the message above, in another process. A full disk must not keep this process from starting.
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintln(f, os.Getpid())
	}
	return f, nil
}

func processSuffix(pid string) string {
	if pid == "" {
		return ""
	}
	return " (process " + pid + ")"
}
