// SPDX-License-Identifier: Apache-2.0

package storefiles

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/datadir"
	"github.com/coracle-k8s/coracle/server/pki"
)

// Server describes the server whose store is changed. It must not run.
type Server struct {
	// DataDir is named in messages. The folders below are in it.
	DataDir, ServerDir, TLSDir, StoreDir string
	// Version is the version of this program.
	Version string
	// Now is the clock.
	Now func() time.Time
}

// lock locks the server's folder. It returns an error if the server runs or there never was one.
func (s *Server) lock() (*datadir.Dir, error) {
	for _, need := range []struct{ path, what string }{
		{s.ServerDir, "no server has run with this data directory"},
		{filepath.Join(s.TLSDir, string(pki.ServerCA)+".crt"), "a store belongs to a cluster, and the cluster's keys are not there"},
	} {
		if _, err := os.Stat(need.path); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is missing: %s. Nothing was changed. Put back the copy of %s that was made with the backup; "+
				"without one, start coracle server once and stop it: what is encrypted in the backup stays unreadable then", need.path,
				need.what, s.ServerDir)
		} else if err != nil {
			return nil, fmt.Errorf("checking the server's files: %w", err)
		}
	}
	dir, err := datadir.Open(datadir.Options{DataDir: s.DataDir, ServerDir: s.ServerDir, StoreDir: s.StoreDir, Version: s.Version})
	if inUse, ok := errors.AsType[*datadir.InUseError](err); ok {
		return nil, fmt.Errorf("the server runs%s. Nothing was changed. Stop it first: systemctl stop coracle, or end the process",
			inUse.By())
	}
	return dir, err
}

// stamp returns a time that makes names of kept folders unique.
func (s *Server) stamp() string { return s.Now().UTC().Format("20060102T150405Z") }

func (s *Server) cluster() (string, error) {
	keys, err := pki.Open(pki.Options{Dir: s.TLSDir, Established: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return "", fmt.Errorf("reading the cluster's keys: %w", err)
	}
	return token.Hash(keys.Root()), nil
}

// Restore replaces the store by a backup. The new store belongs to a cluster of one server. kept is the name under
// which the earlier store is kept, empty if there was none.
func (s *Server) Restore(backup string) (b *Backup, kept string, err error) {
	dir, err := s.lock()
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if b, err = CheckBackup(backup); err != nil {
		return nil, "", err
	}
	cluster, err := s.cluster()
	if err != nil {
		return nil, "", err
	}
	stamp := s.stamp()
	if err := Tidy(s.StoreDir); err != nil {
		return nil, "", err
	}
	made, err := Begin(s.StoreDir, stamp)
	if err != nil {
		return nil, "", err
	}
	if err := s.makeStore(made, cluster, dir.ServerID(), backup, Seen(s.StoreDir, cluster)); err != nil {
		return nil, "", errors.Join(err, Abandon(made))
	}
	dir.SetLevel(b.level)
	if err := dir.RecordVersion(); err != nil {
		return nil, "", errors.Join(fmt.Errorf("saving this server's identity: %w", err), Abandon(made))
	}
	kept, err = Replace(s.StoreDir, made, s.StoreDir+replacedInfix+stamp)
	if err != nil {
		return nil, "", err
	}
	return b, kept, nil
}

func (s *Server) makeStore(made, cluster, node, backup string, seen int64) error {
	f, err := openBackup(backup)
	if err != nil {
		return err
	}
	defer f.Close()
	return raftstore.Restore(raftstore.Options{Dir: made, ClusterID: cluster, NodeID: node, Logger: slog.New(slog.DiscardHandler)}, f, seen)
}

// Replace replaces dir by the folder made, and returns the name under which the former dir is kept: keep, with a number
// if that is in use. dir is one or the
// other at every moment, if the file system supports that.
func Replace(dir, made, keep string) (kept string, err error) {
	keep = unusedName(keep)
	// From here on the folder is complete. After the exchange the former folder has its name, and must not be removed.
	if err := errors.Join(notMissing(os.Remove(made+unfinished)), atomicfile.SyncDir(filepath.Dir(dir))); err != nil {
		return "", errors.Join(fmt.Errorf("finishing %s: %w. Nothing was changed", made, err), os.RemoveAll(made))
	}
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return "", errors.Join(renameNew(made, dir), atomicfile.SyncDir(filepath.Dir(dir)))
	}
	err = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, made, unix.RENAME_EXCHANGE)
	switch {
	case err == nil:
		if err := os.Rename(made, keep); err != nil {
			keep = made // it keeps this name then
		}
		return keep, atomicfile.SyncDir(filepath.Dir(dir))
	case errors.Is(err, unix.EBUSY):
		return "", errors.Join(fmt.Errorf("%s is a mount point, so it cannot be renamed. Nothing was changed. Mount the disk "+
			"at %s instead, with everything that is there now and the store in it, and try again", dir,
			filepath.Dir(dir)), os.RemoveAll(made))
	case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS):
		return "", errors.Join(fmt.Errorf("replacing %s: %w. Nothing was changed", dir, err), os.RemoveAll(made))
	}
	if err := os.Rename(dir, keep); err != nil {
		return "", errors.Join(fmt.Errorf("keeping the earlier store: %w. Nothing was changed", err), os.RemoveAll(made))
	}
	if err := os.Rename(made, dir); err != nil {
		return keep, fmt.Errorf("replacing the store: %w. Now rename %s to %s to have the earlier store back", err, keep, dir)
	}
	return keep, atomicfile.SyncDir(filepath.Dir(dir))
}
