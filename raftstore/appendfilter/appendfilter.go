// SPDX-License-Identifier: Apache-2.0

// Package appendfilter stands between a server's transport and raft, and keeps
// from raft what the server holds already: entries that its own snapshot covers,
// and snapshots whose entries are all in its log. It owns nothing, starts no
// goroutine but one that reads a snapshot that is not needed any more to its end, and never
// decides anything that raft would not.
//
// What a server's snapshot covers is committed, and so is all that a leader's
// snapshot covers. So a leader whose term raft accepts has the same entries there
// (Ongaro's dissertation, 3.6.3, Leader Completeness), and the server need not
// compare them, nor take them again. hashicorp/raft 1.8.0 does both:
//
//   - raft.go, appendEntries: it looks for the entry before the message's in its
//     log only. Where its own snapshot has replaced that, it refuses. The leader
//     goes back, and further back, to its own snapshot.
//   - raft.go, installSnapshot: a snapshot whose last entry is in the log takes
//     the place of the state machine's newer state and of the newer configuration
//     that the log's entries brought, and those entries stay (fsm.go: restore;
//     setLatestConfiguration, setCommittedConfiguration). The server then counts
//     majorities of members that are no longer the members.
//
// etcd's raft does neither: raft.go, handleAppendEntries ("m.Index <
// r.raftLog.committed") answers with what is committed, and restore
// ("fast-forwards commit") leaves log, state and configuration alone. A Filter
// does the same with hashicorp's messages:
//
//   - of an AppendEntries message it cuts off what the server's snapshot covers;
//   - a snapshot it first puts to raft as the question of an AppendEntries message
//     without entries: is the snapshot's last entry in the log? If so, that
//     message has done all there is to do, and is the answer. Without an answer
//     raft does not get the snapshot.
package appendfilter

import (
	"context"
	"io"

	"github.com/hashicorp/raft"
)

// A Filter passes messages on to raft. All messages with entries and all
// snapshots must go through one Filter, one after the other: between raft's
// answer about a snapshot's last entry and the snapshot itself nothing may come
// that puts that entry into the log.
type Filter struct {
	// Snapshot returns the last entry that this server's newest snapshot covers,
	// zeros if it has none. The snapshot must be on disk, and raft must have its
	// state: one that raft could not read back does not count. It must not wait
	// for the disk.
	Snapshot func() (index, term uint64)
	// Install is asked before raft gets a snapshot; done is called after raft's
	// answer. With an error, that is the answer.
	Install func() (done func(), err error)
	// Raft hands a message to raft's main goroutine, or answers it with an error
	// if raft does not take it. It returns false once there is no raft any more.
	Raft func(raft.RPC) bool
	// Go runs a function in a goroutine of the transport.
	Go func(func())
}

// Handle passes a message on, unless it can be answered without raft. It waits
// until raft takes it, and for the answer if it is a snapshot. It returns false
// once there is no raft any more, or ctx ends.
func (f *Filter) Handle(ctx context.Context, rpc raft.RPC) bool {
	switch m := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		rpc.Command = f.after(m)
	case *raft.InstallSnapshotRequest:
		return f.install(ctx, rpc, m)
	}
	return f.Raft(rpc)
}

// after returns a message without the entries that this server's snapshot covers.
// What is left begins with the entry after those, so raft has nothing to compare.
//
// The snapshot may be replaced by a newer one, and the log shortened, before raft
// comes to the message. Then raft refuses it, and the leader sends it again.
func (f *Filter) after(m *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	index, term := f.Snapshot()
	if index == 0 || m.PrevLogEntry > index || m.PrevLogEntry == 0 && len(m.Entries) == 0 {
		return m
	}
	left, proven := m.Entries, max(m.PrevLogEntry, index)
	for len(left) > 0 && left[0].Index <= index {
		if left[0].Index == index && left[0].Term != term {
			return m // from no leader that raft listens to
		}
		left = left[1:]
	}
	if m.PrevLogEntry == index && m.PrevLogTerm != term || len(left) > 0 && left[0].Index != index+1 {
		return m // likewise
	}
	if n := len(left); n > 0 {
		proven = left[n-1].Index
	}
	out := *m // the sender may still hold the message
	out.PrevLogEntry, out.PrevLogTerm, out.Entries = 0, 0, left
	out.LeaderCommitIndex = min(m.LeaderCommitIndex, proven)
	return &out
}

// install passes a snapshot on if raft lacks its last entry.
func (f *Filter) install(ctx context.Context, rpc raft.RPC, m *raft.InstallSnapshotRequest) bool {
	question := &raft.AppendEntriesRequest{
		RPCHeader: m.RPCHeader, Term: m.Term, Leader: m.Leader, //nolint:staticcheck // passed on as it came
		PrevLogEntry: m.LastLogIndex, PrevLogTerm: m.LastLogTerm, LeaderCommitIndex: m.LastLogIndex,
	}
	said, ok := f.ask(ctx, raft.RPC{Command: f.after(question)})
	if !ok {
		return false
	}
	if said.Error != nil { // raft may have the last entry, and newer members
		f.discard(rpc, nil, said.Error)
		return true
	}
	if r, ok := said.Response.(*raft.AppendEntriesResponse); ok && (r.Success || r.Term > m.Term) {
		f.discard(rpc, &raft.InstallSnapshotResponse{RPCHeader: r.RPCHeader, Term: r.Term, Success: r.Success}, nil)
		return true
	}
	done, err := f.Install()
	if err != nil {
		f.discard(rpc, nil, err)
		return true
	}
	defer done()
	said, ok = f.ask(ctx, raft.RPC{Command: m, Reader: rpc.Reader})
	if ok { // raft has read the snapshot, unless it did not take the message
		f.discard(rpc, said.Response, said.Error)
	}
	return ok
}

// ask has raft answer a message.
func (f *Filter) ask(ctx context.Context, rpc raft.RPC) (raft.RPCResponse, bool) {
	answer := make(chan raft.RPCResponse, 1) // raft does not wait
	rpc.RespChan = answer
	if !f.Raft(rpc) {
		return raft.RPCResponse{}, false
	}
	select {
	case said := <-answer:
		return said, true
	case <-ctx.Done():
		return raft.RPCResponse{}, false
	}
}

// discard answers a snapshot of which raft needs no more. The connection is of
// use again when all of it was read.
func (f *Filter) discard(rpc raft.RPC, response any, err error) {
	f.Go(func() {
		_, _ = io.Copy(io.Discard, rpc.Reader) // the answer then fails too
		rpc.Respond(response, err)
	})
}
