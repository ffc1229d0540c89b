// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"slices"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// bootstrap makes a cluster of this server alone if its directory is new and it knows of no cluster to join.
func (r *replica) bootstrap(conf *raft.Config, logs raft.LogStore, transport raft.Transport, others replication) error {
	exists, err := raft.HasExistingState(logs, r.dir.Vars, r.dir.Snapshots)
	joining, joiningErr := r.dir.Joining()
	err = errors.Join(err, joiningErr)
	knowsOthers := joining || len(r.opts.Join) > 0 || others.hadPeers()
	if err == nil && exists && !knowsOthers {
		exists, err = r.finishedBootstrap(logs)
	}
	if err == nil && knowsOthers && (!exists || joining) {
		err = others.join(joining)
	}
	if err != nil || exists || knowsOthers {
		return err
	}
	first := firstEntries{logs, r.dir.Level()}
	return raft.BootstrapCluster(conf, first, r.dir.Vars, r.dir.Snapshots, transport, raft.Configuration{
		Servers: []raft.Server{{ID: conf.LocalID, Address: r.address}},
	})
}

// firstEntries is the log of a new cluster. It stores the cluster's level together with the first entry: a cluster
// without it would have level.First.
type firstEntries struct {
	raft.LogStore
	level int
}

func (f firstEntries) StoreLog(first *raft.Log) error {
	if f.level == level.First {
		return f.LogStore.StoreLog(first)
	}
	entry, err := mvcc.AppendCommand(mvcc.NewEntry(nil), mvcc.Command{Request: putLevel(f.level)}, f.level)
	if err != nil {
		return err
	}
	second := &raft.Log{Index: first.Index + 1, Term: first.Term, Type: raft.LogCommand, Data: entry}
	return f.StoreLogs([]*raft.Log{first, second})
}

// join notes the addresses of the servers that this one is to join, unless an earlier start noted them (noted). Until
// this server has log entries or a snapshot of that cluster, only the note keeps a later start, at which Options.Join
// may be empty, from beginning a second cluster.
func (ms *membership) join(noted bool) error {
	ms.mustJoin = true
	if noted {
		return nil
	}
	peers := slices.Clone(ms.formerMembers)
	for _, address := range ms.opts.Join {
		address = dialAddress(raft.ServerAddress(address))
		if !slices.ContainsFunc(peers, func(p disk.Peer) bool { return p.Address == address }) {
			peers = append(peers, disk.Peer{Address: address})
		}
	}
	return ms.dir.StartJoining(peers)
}

// finishedBootstrap says whether the directory holds more than raft's first term. raft.BootstrapCluster saves the term
// before the first entry. After a power cut between the two, raft would take the directory for one in use, and would
// wait for a leader that does not exist. In that case finishedBootstrap sets the term back to 0. That is safe: no other
// server ever has this term, and this server has not voted.
func (r *replica) finishedBootstrap(logs raft.LogStore) (bool, error) {
	term, err := r.dir.Vars.GetUint64([]byte("CurrentTerm"))
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return false, err
	}
	last, err := logs.LastIndex()
	if err != nil {
		return false, err
	}
	snapshots, err := r.dir.Snapshots.List()
	if err != nil {
		return false, err
	}
	_, voted := r.dir.Vars.Get([]byte("LastVoteTerm"))
	if term != 1 || last > 0 || len(snapshots) > 0 || !errors.Is(voted, raftboltdb.ErrKeyNotFound) {
		return true, nil
	}
	r.log.Warn("the first start of this store was interrupted; it is started from the beginning", "dir", r.opts.Dir)
	return false, r.dir.Vars.SetUint64([]byte("CurrentTerm"), 0)
}
