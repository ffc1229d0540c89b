// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"slices"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/coracle-k8s/coracle/raftstore/disk"
)

// bootstrap makes a cluster of this server if its directory is new and it
// knows of none to join.
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
	return raft.BootstrapCluster(conf, logs, r.dir.Vars, r.dir.Snapshots, transport, raft.Configuration{
		Servers: []raft.Server{{ID: conf.LocalID, Address: r.address}},
	})
}

// join notes where the servers are that this one is to join, if no earlier start
// has. Until it has something of theirs, only that note keeps a later start, at which
// no server names them any more, from beginning a second cluster.
func (ms *membership) join(noted bool) error {
	ms.joins = true
	if noted {
		return nil
	}
	peers := slices.Clone(ms.former)
	for _, address := range ms.opts.Join {
		address = dialAddress(raft.ServerAddress(address))
		if !slices.ContainsFunc(peers, func(p disk.Peer) bool { return p.Address == address }) {
			peers = append(peers, disk.Peer{Address: address})
		}
	}
	return ms.dir.StartJoining(peers)
}

// finishedBootstrap says whether the directory holds more than raft's first
// term. raft.BootstrapCluster saves that before the first entry. If the power
// goes between the two, raft takes the directory for one that was in use and
// waits for a leader, of which there is none. So the term is taken back: no
// other server ever has this one, and this server has not voted.
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
