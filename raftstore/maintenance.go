// SPDX-License-Identifier: Apache-2.0

package raftstore

import pb "go.etcd.io/etcd/api/v3/etcdserverpb"

// etcdVersion is the version of etcd whose contract this is. Clients decide by
// it what they may ask for.
const etcdVersion = "3.7.0"

func (s *Store) statusResponse() *pb.StatusResponse {
	view := s.fsm.view()
	st := view.Stats()
	resp := &pb.StatusResponse{
		Header: s.header(), Version: etcdVersion, StorageVersion: "3.7.0",
		DbSize: st.TotalBytes, DbSizeInUse: st.LiveBytes,
		RaftIndex: s.raft.LastIndex(), RaftAppliedIndex: s.raft.AppliedIndex(), RaftTerm: s.raft.CurrentTerm(),
	}
	if _, id := s.raft.LeaderWithID(); id != "" {
		resp.Leader = memberID(string(id))
	}
	return resp
}
