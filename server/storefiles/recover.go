// SPDX-License-Identifier: Apache-2.0

package storefiles

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/datadir"
)

// Plan describes what Recover would do.
type Plan = raftstore.RecoveryPlan

// PlanRecovery reads the store and returns the Plan for Recover.
func (s *Server) PlanRecovery() (Plan, error) {
	plan, dir, err := s.planRecovery()
	if err != nil {
		return plan, err
	}
	return plan, dir.Close()
}

// planRecovery locks the server's folder. It returns it locked if there is something to recover.
func (s *Server) planRecovery() (Plan, *datadir.Dir, error) {
	dir, err := s.lock()
	if err != nil {
		return Plan{}, nil, err
	}
	plan, err := s.inspect(dir)
	if err != nil {
		return plan, nil, errors.Join(err, dir.Close())
	}
	return plan, dir, nil
}

func (s *Server) inspect(dir *datadir.Dir) (Plan, error) {
	if !dir.Established {
		return Plan{}, fmt.Errorf("there is no store in %s. Nothing was changed", s.StoreDir)
	}
	o, err := s.storeOptions(dir)
	if err != nil {
		return Plan{}, err
	}
	plan, err := raftstore.PlanRecovery(o)
	if err != nil {
		return plan, err
	}
	voters, self := 0, false
	for _, m := range plan.Members {
		if m.Voter {
			voters++
			self = self || m.Self
		}
	}
	if voters == 1 && self {
		return plan, errors.New("this server is the store's only voter, so there is no majority that could be lost. " +
			"Nothing was changed: just start it")
	}
	return plan, nil
}

func (s *Server) storeOptions(dir *datadir.Dir) (raftstore.Options, error) {
	cluster, err := s.cluster()
	return raftstore.Options{
		Dir: s.StoreDir, ClusterID: cluster, NodeID: dir.ServerID(), Logger: slog.New(slog.DiscardHandler),
	}, err
}

// Recover makes this server's store the store of a cluster of one server. The new store is a copy that replaces the
// former one when it is complete, so a kill leaves one or the other. The former store is kept in the folder kept.
func (s *Server) Recover() (plan Plan, kept string, err error) {
	plan, dir, err := s.planRecovery()
	if err != nil {
		return plan, "", err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	o, err := s.storeOptions(dir)
	if err != nil {
		return plan, "", err
	}
	stamp := s.stamp()
	if err := Tidy(s.StoreDir); err != nil {
		return plan, "", err
	}
	o.Dir, err = Begin(s.StoreDir, stamp)
	if err != nil {
		return plan, "", err
	}
	if err := copyStore(s.StoreDir, o.Dir); err != nil {
		return plan, "", errors.Join(fmt.Errorf("copying the store to %s: %w. Nothing was changed", o.Dir, err), Abandon(o.Dir))
	}
	if err := raftstore.Recover(o); err != nil {
		return plan, "", errors.Join(fmt.Errorf("%w. Nothing was changed", err), Abandon(o.Dir))
	}
	kept, err = Replace(s.StoreDir, o.Dir, s.StoreDir+replacedInfix+stamp)
	return plan, kept, err
}

// copyStore copies a store's folder, without the file that reserves disk space.
func copyStore(from, to string) error {
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch target := filepath.Join(to, rel); {
		case d.IsDir():
			return os.Mkdir(target, 0o700)
		case d.Type().IsRegular() && d.Name() != "RESERVE":
			return copyFile(path, target)
		}
		return nil
	})
	return errors.Join(err, atomicfile.SyncDir(filepath.Dir(to)))
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}
