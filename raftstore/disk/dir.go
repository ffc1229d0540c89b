// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/level"
)

const (
	varsFile     = "vars.db"
	logDir       = "log"
	snapshotsDir = "snapshots"
)

// Options select the directory to open, and how it is used.
type Options struct {
	Path string
	// Identity is compared with that of the directory. A new directory gets it, with random names for empty fields.
	Identity Identity
	// Newest is the newest level that the program knows. Default: level.Newest. Level is that of a new directory.
	// Default: Newest.
	Newest, Level int
	Logger        *slog.Logger
	Clock         clock.Clock
	// Grown is called after each append with the total bytes of entries that were found by Open or appended since. It
	// must not block.
	Grown func(total int64)
	// Flushed is called after each append to the log with the duration of its write and flush, and with the bytes of
	// its records. It must not block.
	Flushed func(took time.Duration, bytes int)
	// Faults, if not nil, are injected faults of the disk, for tests (test/diskfaults).
	Faults Faults
	// Reserve is the space in bytes held back for a full disk. Default 16 MiB.
	Reserve int64
	// SegmentSize is the length in bytes of each of the log's files. Default
	// 8 MiB.
	SegmentSize int64
}

// Faults injects faults into a disk's writes.
type Faults interface {
	// Strike delays a flush until ctx is done at most. It returns the error with which the flush must fail.
	Strike(ctx context.Context, c clock.Clock, snapshot bool) error
	// Full says whether the disk must seem full.
	Full() bool
}

type noFaults struct{}

func (noFaults) Strike(context.Context, clock.Clock, bool) error { return nil }
func (noFaults) Full() bool                                      { return false }

// A Dir is an opened directory. Only this process uses it until Close.
type Dir struct {
	Identity  Identity
	Log       *Log
	Vars      *Vars
	Snapshots *Snapshots

	level  atomic.Int64
	path   string
	lock   *os.File
	space  *space
	stall  *stall
	cancel context.CancelFunc
	cache  atomic.Pointer[cachedLog]
	// arrived is the end of the newest snapshot if raft has not read that snapshot yet. Raft writes one snapshot at a
	// time, and reads none meanwhile.
	arrived *snapshotEnd

	peers struct {
		sync.Mutex
		known bool // saved is equal to the file
		saved []Peer
	}
}

// Open makes a directory, or examines an existing one, and opens what is in it. If it returns an error it has changed
// nothing, except that it may have made an empty directory and a lock file. Errors that a user can act on have types:
// DamageError, FormatError, InUseError, MismatchError.
func Open(o Options) (*Dir, error) {
	o.Faults = cmp.Or[Faults](o.Faults, noFaults{})
	o.Reserve, o.SegmentSize = cmp.Or(o.Reserve, defaultReserve), cmp.Or(o.SegmentSize, defaultSegment)
	o.Newest = cmp.Or(o.Newest, level.Newest())
	o.Level = cmp.Or(o.Level, o.Newest)
	if err := finishStartOver(o.Path); err != nil {
		return nil, unusableError(o.Path, err)
	}
	if err := os.MkdirAll(o.Path, 0o700); err != nil {
		return nil, unusableError(o.Path, err)
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
	id, format, err := readIdentity(o.Path, o.Newest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if id, err = create(o); err != nil {
			return nil, err
		}
		format = formatOf(o.Level)
	case err != nil:
		return nil, err
	}
	if err := id.checkMatch(o.Path, o.Identity); err != nil {
		return nil, err
	}
	snapshots, err := openSnapshots(filepath.Join(o.Path, snapshotsDir), o.Logger)
	if err != nil {
		return nil, err
	}
	newest, err := snapshots.verify()
	if err != nil {
		return nil, err
	}
	scanned, variables, err := scan(o.Path, newest)
	if err != nil {
		return nil, err
	}
	// All checks have succeeded. Files are changed only from here on.
	vars := filepath.Join(o.Path, varsFile)
	bolt, err := openBolt(vars)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", vars, err), scanned.close())
	}
	d := &Dir{Identity: id, Snapshots: snapshots, path: o.Path, space: newSpace(o), stall: newStall(o.Clock)}
	d.level.Store(int64(format - formatOf(0)))
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	snapshots.level = d.Level
	snapshots.strike = func() error { return o.Faults.Strike(ctx, o.Clock, true) }
	d.Vars = &Vars{path: vars, bolt: bolt, space: d.space, stall: d.stall, ctx: ctx, values: variables.values}
	d.Log = newLog(ctx, o, d, scanned)
	if err := d.Log.readMembers(scanned.members); err != nil {
		cancel()
		return nil, errors.Join(err, bolt.Close(), scanned.close())
	}
	if scanned.tornSegment != nil {
		o.Logger.Warn("dropped the end of the store's log, which a crash had left incomplete; it was never acknowledged",
			"file", scanned.tornSegment.path)
	}
	err = d.Log.fitToSnapshot(newest, false, func() {
		o.Logger.Info("a snapshot from another server replaced the entries of the log", "index", newest.index)
	})
	if err == nil {
		err = scanned.repair(d.Log)
	}
	if err != nil {
		cancel()
		return nil, errors.Join(err, bolt.Close(), scanned.close())
	}
	snapshots.checkNewer, snapshots.onComplete = d.Log.checkNewer, d.onSnapshotComplete
	if d.peers.saved, err = ReadPeers(o.Path); err != nil {
		o.Logger.Warn("the saved addresses of the other servers cannot be used", "err", err)
	} else {
		d.peers.known = true
	}
	return d, nil
}

// scan reads and verifies a directory's variables and log, and compares them with its newest snapshot.
func scan(dir string, newest snapshotEnd) (*scannedLog, savedVars, error) {
	vars := filepath.Join(dir, varsFile)
	if found, err := exists(vars); err != nil {
		return nil, savedVars{}, err
	} else if !found {
		return nil, savedVars{}, newDamageError(vars, "it is missing")
	}
	variables, err := verifyVars(vars)
	if err != nil {
		return nil, savedVars{}, err
	}
	scanned, err := scanLog(filepath.Join(dir, logDir))
	if err != nil {
		return nil, savedVars{}, err
	}
	if err := scanned.checkStart(newest, variables); err != nil {
		return nil, savedVars{}, errors.Join(err, scanned.close())
	}
	return scanned, variables, nil
}

func newLog(ctx context.Context, o Options, d *Dir, scanned *scannedLog) *Log {
	l := &Log{
		dir: scanned.dir, writing: newWriteLock(), space: d.space, stall: d.stall, ctx: ctx, size: o.SegmentSize, onGrown: o.Grown,
		onFlushed: o.Flushed, level: d.Level,
		segments: scanned.segments, firstIndex: scanned.firstIndex, positions: scanned.positions, unlink: os.Remove,
	}
	if l.onGrown == nil {
		l.onGrown = func(int64) {}
	}
	if l.onFlushed == nil {
		l.onFlushed = func(time.Duration, int) {}
	}
	l.writtenBytes.Store(scanned.bytes)
	return l
}

// create makes a new directory's files, the identity last. It replaces unused files in a directory without an identity:
// they are left from an interrupted start.
func create(o Options) (Identity, error) {
	dir, id := o.Path, o.Identity.withRandomNames()
	if err := checkUnused(dir); err != nil {
		return id, err
	}
	vars, log := filepath.Join(dir, varsFile), filepath.Join(dir, logDir)
	err := errors.Join(os.RemoveAll(vars), os.RemoveAll(log))
	if err == nil {
		err = createVars(vars)
	}
	if err == nil {
		err = os.Mkdir(log, 0o700)
	}
	if err != nil {
		return id, unusableError(dir, err)
	}
	s, err := createSegment(log, o.Level, 1, 1, o.SegmentSize, 0)
	if err != nil {
		return id, unusableError(dir, err)
	}
	if err := errors.Join(s.f.Close(), writeIdentity(dir, id, o.Level)); err != nil {
		return id, unusableError(dir, err)
	}
	return id, atomicfile.SyncDir(filepath.Dir(dir))
}

func createVars(path string) error {
	bolt, err := openBolt(path)
	if err != nil {
		return err
	}
	return bolt.Close()
}

// checkUnused refuses a directory that has no identity although something was stored in it.
func checkUnused(dir string) error {
	used := newDamageError(filepath.Join(dir, identityFile), "it is missing, although the store was in use")
	vars := filepath.Join(dir, varsFile)
	if found, err := exists(vars); err != nil {
		return err
	} else if found {
		// A file that bbolt had not finished making counts as unused too.
		if v, err := verifyVars(vars); err == nil && len(v.values) > 0 {
			return used
		}
	}
	if snapshots, err := filepath.Glob(filepath.Join(dir, snapshotsDir, "*"+snapshotSuffix)); err != nil || len(snapshots) > 0 {
		return errors.Join(used, err)
	}
	numbers, err := segmentNumbers(filepath.Join(dir, logDir))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(numbers) == 0 {
		return nil
	}
	scanned, err := scanLog(filepath.Join(dir, logDir))
	if err != nil {
		return errors.Join(used, err)
	}
	if err := scanned.close(); err != nil {
		return err
	}
	if len(scanned.segments) > 1 || scanned.segments[0].endOffset > segmentHeader {
		return used
	}
	return nil
}

// Admit returns ErrNoSpace or ErrFailing if new writes should not be tried.
func (d *Dir) Admit() error { return d.space.admit() }

// Abort makes writes that wait for the disk fail.
func (d *Dir) Abort() { d.cancel() }

// Close closes the directory's files and unlocks it.
func (d *Dir) Close() error {
	d.cancel()
	return errors.Join(d.Log.close(), d.Vars.close(), d.lock.Close())
}
