// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	"k8s.io/utils/clock"
)

const (
	logFile      = "raft.db"
	snapshotsDir = "snapshots"
)

// Options say which directory to open, and as what.
type Options struct {
	Path string
	// Identity is compared with the directory's; a new directory gets it, with
	// random names for what is empty.
	Identity Identity
	Logger   *slog.Logger
	Clock    clock.Clock
	// Grown is told after each append how many bytes of entries were appended
	// since Open, those found then included. It must not block.
	Grown func(total int64)
	// Reserve is the space in bytes held back for a full disk. Default 16 MiB.
	Reserve int64
}

// A Dir is an opened directory. This process alone has it until Close.
type Dir struct {
	Identity  Identity
	Log       *Log
	Snapshots *Snapshots

	path   string
	lock   *os.File
	space  *space
	cancel context.CancelFunc
}

// Open makes or examines a directory and opens what is in it. It changes
// nothing if it returns an error, save that it may make an empty directory and
// a lock file. Errors that a user can act on have types: DamageError,
// FormatError, InUseError, MismatchError.
func Open(o Options) (*Dir, error) {
	if err := os.MkdirAll(o.Path, 0o700); err != nil {
		return nil, unusable(o.Path, err)
	}
	held, err := lock(o.Path)
	if err != nil {
		return nil, err
	}
	d, err := open(o)
	if err != nil {
		return nil, errors.Join(err, held.Close())
	}
	d.lock = held
	return d, nil
}

func open(o Options) (*Dir, error) {
	id, err := readIdentity(o.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if id, err = create(o.Path, o.Identity.fill()); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	}
	if err := id.match(o.Path, o.Identity); err != nil {
		return nil, err
	}
	snapshots, err := openSnapshots(filepath.Join(o.Path, snapshotsDir))
	if err != nil {
		return nil, err
	}
	newest, err := snapshots.verify()
	if err != nil {
		return nil, err
	}
	d := &Dir{Identity: id, Snapshots: snapshots, path: o.Path}
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	if d.Log, err = openLog(ctx, o, newest); err != nil {
		cancel()
		return nil, err
	}
	d.space = d.Log.space
	return d, nil
}

// create makes a new directory's files, the identity last. A log that was
// never used and has no identity is one whose making was interrupted.
func create(dir string, id Identity) (Identity, error) {
	path := filepath.Join(dir, logFile)
	there, err := exists(path)
	if err != nil {
		return id, err
	}
	if there {
		if err := checkUnused(path); err != nil {
			return id, err
		}
	} else if err := createLog(path); err != nil {
		return id, unusable(dir, err)
	}
	if err := writeIdentity(dir, id); err != nil {
		return id, unusable(dir, err)
	}
	return id, syncDir(filepath.Dir(dir))
}

func createLog(path string) error {
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	bolt, err := openBolt(tmp, false)
	if err != nil {
		return err
	}
	if err := bolt.Close(); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// checkUnused refuses a log that holds anything.
func checkUnused(path string) error {
	return examine(path, func(l *Log, variables int) error {
		_, last, err := l.verify()
		if err == nil && (last != 0 || variables != 0) {
			return damaged(filepath.Join(filepath.Dir(path), identityFile), "it is missing, although the log is in use")
		}
		return err
	})
}

// examine checks a log's file and shows its content to check, opened so that
// nothing can be changed: bbolt writes to a file as soon as it may.
func examine(path string, check func(l *Log, variables int) error) error {
	if err := checkBolt(path); err != nil {
		return err
	}
	variables, err := verifyVariables(path)
	if err != nil {
		return err
	}
	bolt, err := openBolt(path, true)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return errors.Join(check(&Log{path: path, bolt: bolt}, variables), bolt.Close())
}

func openBolt(path string, readOnly bool) (*raftboltdb.BoltStore, error) {
	return raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout:  time.Second,
			ReadOnly: readOnly,
			// The list of free pages is found by reading the file at start,
			// not written with each append. Besides being cheaper, that keeps
			// bbolt right when a commit fails half way: it looks again.
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
	})
}

func openLog(ctx context.Context, o Options, snapshot uint64) (*Log, error) {
	path := filepath.Join(o.Path, logFile)
	if there, err := exists(path); err != nil {
		return nil, err
	} else if !there {
		return nil, damaged(path, "it is missing")
	}
	var size int64
	err := examine(path, func(l *Log, variables int) error {
		first, last, err := l.verify()
		size = l.written.Load()
		return errors.Join(err, l.checkStart(first, last, snapshot, variables))
	})
	if err != nil {
		return nil, err
	}
	bolt, err := openBolt(path, false)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	l := &Log{path: path, bolt: bolt, space: newSpace(o.Path, o.Reserve, o.Logger, o.Clock), ctx: ctx, grown: o.Grown}
	if l.grown == nil {
		l.grown = func(int64) {}
	}
	l.written.Store(size)
	return l, nil
}

// checkStart refuses a log that does not join the newest snapshot: entries
// between them are lost. Once there was any entry, there is a term.
func (l *Log) checkStart(first, last, snapshot uint64, variables int) error {
	switch {
	case last == 0 && snapshot == 0:
		return nil // new
	case variables == 0:
		return damaged(l.path, "the server's term is missing")
	case last != 0 && first > snapshot+1:
		return damaged(l.path, "it starts with entry %d, and the newest snapshot ends with entry %d: entries are missing",
			first, snapshot)
	}
	return nil
}

// Admit returns ErrNoSpace or ErrFailing if new writes should not be tried.
func (d *Dir) Admit() error { return d.space.admit() }

// Abort ends writes that wait for the disk. They fail.
func (d *Dir) Abort() { d.cancel() }

// Close gives the directory back.
func (d *Dir) Close() error {
	d.cancel()
	return errors.Join(d.Log.bolt.Close(), d.lock.Close())
}
