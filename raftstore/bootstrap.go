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
func (s *Store) bootstrap(conf *raft.Config, logs raft.LogStore, transport raft.Transport) error {
	exists, err := raft.HasExistingState(logs, s.dir.Vars, s.dir.Snapshots)
	joining, joiningErr := s.dir.Joining()
	err = errors.Join(err, joiningErr)
	knowsOthers := joining || len(s.opts.Join) > 0 || s.replication.hadPeers()
	if err == nil && exists && !knowsOthers {
		exists, err = s.finishedBootstrap(logs)
	}
	if err == nil && knowsOthers && (!exists || joining) {
		err = s.replication.join(joining)
	}
	if err != nil || exists || knowsOthers {
		return err
	}
	return raft.BootstrapCluster(conf, logs, s.dir.Vars, s.dir.Snapshots, transport, raft.Configuration{
		Servers: []raft.Server{{ID: conf.LocalID, Address: s.address}},
	})
}

// join notes where the servers are that this one is to join, if no earlier start
// has. Until it has something of theirs, only that note keeps a later start, at which
// nobody tells of them any more, from beginning a second cluster.
func (p *clustered) join(noted bool) error {
	p.joins = true
	if noted {
		return nil
	}
	peers := slices.Clone(p.former)
	for _, address := range p.s.opts.Join {
		address = dialAddress(raft.ServerAddress(address))
		if !slices.ContainsFunc(peers, func(p disk.Peer) bool { return p.Address == address }) {
			peers = append(peers, disk.Peer{Address: address})
		}
	}
	return p.s.dir.StartJoining(peers)
}

// finishedBootstrap says whether the directory holds more than raft's first
// term. raft.BootstrapCluster saves that before the first entry. If the power
// goes between the two, raft takes the directory for one that was in use and
// waits for a leader, of which there is none. So the term is taken back: no
// other server ever has this one, and this server has not voted.
func (s *Store) finishedBootstrap(logs raft.LogStore) (bool, error) {
	term, err := s.dir.Vars.GetUint64([]byte("CurrentTerm"))
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return false, err
	}
	last, err := logs.LastIndex()
	if err != nil {
		return false, err
	}
	snapshots, err := s.dir.Snapshots.List()
	if err != nil {
		return false, err
	}
	_, voted := s.dir.Vars.Get([]byte("LastVoteTerm"))
	if term != 1 || last > 0 || len(snapshots) > 0 || !errors.Is(voted, raftboltdb.ErrKeyNotFound) {
		return true, nil
	}
	s.log.Warn("the first start of this store was interrupted; starting it anew", "dir", s.opts.Dir)
	return false, s.dir.Vars.SetUint64([]byte("CurrentTerm"), 0)
}
