// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/disk"
)

// A RecoveryPlan says which state Recover would keep, and so what may be lost: whatever the other voters acknowledged
// without this server.
type RecoveryPlan struct {
	Cluster, Node string
	// Members are the servers as this server last knew them.
	Members []Member
	// LastIndex and LastTerm are those of the newest log entry here. Later entries of the others are lost, even if they
	// were acknowledged by a majority.
	LastIndex, LastTerm uint64
	// Written is when the leader wrote that entry, by its clock. It is zero if there is only a snapshot and no log
	// entry.
	Written time.Time
	// Revision, Keys and Bytes are those of the state.
	Revision, Keys, Bytes int64
}

// PlanRecovery reads a stopped server's directory and returns what Recover would do. It changes nothing that a start of
// the server would not change.
func PlanRecovery(o Options) (RecoveryPlan, error) {
	r, err := openRecovery(o)
	if err != nil {
		return RecoveryPlan{}, err
	}
	return r.plan, r.dir.Close()
}

// Recover makes a cluster of one server from a stopped server's directory, for when the majority of its cluster is lost
// for good. It keeps everything that this server has, acknowledged or not. The server gets another raft identity, which
// the lost servers do not know, should they ever start again. Clients may have seen revisions of writes that only the
// lost servers had. So, as after Restore, the revision moves ahead, all older ones are compacted, and watches start
// over.
//
// The caller must make sure that none of the others runs, and that their directories are emptied before they join
// again.
func Recover(o Options) error {
	r, err := openRecovery(o)
	if err != nil {
		return err
	}
	if err = errors.Join(r.reset(), r.dir.Close()); err != nil {
		return fmt.Errorf("raftstore: recover: %w", err)
	}
	return nil
}

// reset writes everything as a snapshot whose only member is this server. The snapshot ends one entry after the log,
// since the log leads to the state without the leap, and no server that joins may get its state from the log.
// disk.Log's fit then drops the log.
func (r *recovery) reset() error {
	was := r.dir.Identity.Member
	if err := r.dir.RecordLevel(r.fsm.state.Freeze().Level()); err != nil {
		return err
	}
	if err := r.dir.ChangeMember(""); err != nil {
		return err
	}
	index := r.plan.LastIndex + 1
	leap(r.options, r.fsm.state, 0, index)
	if err := writeAlone(r.dir, r.fsm.state, index, r.plan.LastTerm); err != nil {
		return errors.Join(err, r.dir.ChangeMember(was)) // the others may come back, and count this server
	}
	return r.dir.Joined() // this server is not to join others
}

type recovery struct {
	options Options // with their defaults

	dir  *disk.Dir
	fsm  *fsm
	conf *raft.Config
	plan RecoveryPlan
}

func openRecovery(o Options) (*recovery, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	if there, err := disk.Used(o.Dir); err != nil || !there {
		return nil, errors.Join(fmt.Errorf("raftstore: recover: there is no store in %s", o.Dir), err)
	}
	s := newStore(o)
	s.replica.cancel()
	dir, err := disk.Open(disk.Options{
		Newest: o.newest, Path: o.Dir, Identity: disk.Identity{Cluster: o.ClusterID, Node: o.NodeID}, Logger: o.Logger, Clock: o.Clock,
	})
	if err != nil {
		return nil, fmt.Errorf("raftstore: recover: %w", err)
	}
	s.replica.dir, s.replica.id = dir, raft.ServerID(dir.Identity.Member)
	r := &recovery{options: o, dir: dir, fsm: s.replica.fsm, conf: s.replica.raftConfig(s.leadership.notices)}
	if err := r.fillPlan(); err != nil {
		return nil, errors.Join(fmt.Errorf("raftstore: recover: %w", err), dir.Close())
	}
	return r, nil
}

// fillPlan fills the plan. For that it runs the log's entries, committed or not.
func (r *recovery) fillPlan() error {
	_, transport := raft.NewInmemTransport("")
	servers, err := raft.GetConfiguration(r.conf, r.fsm, r.dir.Log, r.dir.Vars, r.dir.Snapshots, transport)
	if err != nil {
		return err
	}
	id := r.dir.Identity
	r.plan = RecoveryPlan{Cluster: id.Cluster, Node: id.Node}
	for _, server := range servers.Servers {
		r.plan.Members = append(r.plan.Members, Member{
			ID: memberID(string(server.ID)), Name: disk.NodeOf(string(server.ID)), RaftID: string(server.ID),
			Address: dialAddress(server.Address), Voter: server.Suffrage == raft.Voter, Self: string(server.ID) == id.Member,
		})
	}
	snapshots, err := r.dir.Snapshots.List()
	if err != nil {
		return err
	}
	for _, meta := range snapshots {
		r.plan.LastIndex, r.plan.LastTerm = meta.Index, meta.Term
	}
	last, err := r.dir.Log.LastIndex()
	if err != nil {
		return err
	}
	for index := r.plan.LastIndex + 1; index <= last; index++ {
		var entry raft.Log
		if err := r.dir.Log.GetLog(index, &entry); err != nil {
			return err
		}
		if entry.Type == raft.LogCommand {
			r.fsm.Apply(&entry)
		}
		r.plan.LastIndex, r.plan.LastTerm, r.plan.Written = index, entry.Term, entry.AppendedAt
	}
	view := r.fsm.view()
	r.plan.Revision, r.plan.Keys, r.plan.Bytes = view.Revision(), view.Stats().Keys, view.Stats().LiveBytes
	return nil
}
