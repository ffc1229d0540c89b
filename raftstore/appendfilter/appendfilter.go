// SPDX-License-Identifier: Apache-2.0

// Package appendfilter works between a server's transport and raft. It keeps from raft what the server has already:
// entries that its own snapshot covers, and snapshots whose entries are all in its log. It owns nothing. It starts no
// goroutine, except one that reads the rest of a snapshot that is not needed. It never decides anything that raft would
// not decide.
//
// What a server's snapshot covers is committed, and so is all that a leader's snapshot covers. So a leader whose term
// raft accepts has the same entries there (Ongaro's dissertation, 3.6.3, Leader Completeness). The server need not
// compare them, nor store them again. hashicorp/raft 1.8.0 does both:
//
//   - raft.go, appendEntries: it looks up the entry before the message's in its log only. If its own snapshot has
//     replaced that entry, it refuses the message. The leader then goes back step by step, until it sends its own
//     snapshot.
//   - raft.go, installSnapshot: a snapshot whose last entry is in the log replaces the state machine's newer state. It
//     also replaces the newer configuration from the log's later entries, while these entries stay (fsm.go: restore;
//     setLatestConfiguration, setCommittedConfiguration). The server then counts majorities of former members.
//
// etcd's raft does neither. In raft.go, handleAppendEntries ("m.Index < r.raftLog.committed") answers with what is
// committed, and restore ("fast-forwards commit") leaves log, state and configuration unchanged. A Filter does the same
// with hashicorp's messages:
//
//   - it removes from an AppendEntries message the entries that the server's snapshot covers;
//   - before it passes on a snapshot, it sends raft an AppendEntries message without entries, which asks whether the
//     snapshot's last entry is in the log. If so, that message has done all that is needed, and its result is the answer.
//     If raft does not answer, it does not get the snapshot.
package appendfilter

import (
	"context"
	"io"

	"github.com/hashicorp/raft"
)

// A Filter passes messages on to raft. All messages with entries and all snapshots must go through one Filter, one
// after the other. Otherwise a message between raft's answer about a snapshot's last entry and the snapshot itself
// could add that entry to the log.
type Filter struct {
	// Snapshot returns the last entry that this server's newest snapshot covers, zeros if there is none. The snapshot
	// must be on disk, and raft must have its state: a snapshot that raft could not read does not count. The function
	// must not wait for the disk.
	Snapshot func() (index, term uint64)
	// Install is called before raft gets a snapshot. done is called after raft's answer. If Install returns an error,
	// that is the answer.
	Install func() (done func(), err error)
	// Raft passes a message to raft's main goroutine, or answers it with an error if raft does not take it. It returns
	// false once raft has ended.
	Raft func(raft.RPC) bool
	// Go runs a function in a goroutine of the transport.
	Go func(func())
}

// Handle passes a message on, unless it can be answered without raft. It waits until raft takes the message, and for
// the answer if it is a snapshot. It returns false once raft or ctx has ended.
func (f *Filter) Handle(ctx context.Context, rpc raft.RPC) bool {
	switch m := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		rpc.Command = f.withoutCovered(m)
	case *raft.InstallSnapshotRequest:
		return f.install(ctx, rpc, m)
	}
	return f.Raft(rpc)
}

// withoutCovered returns a message without the entries that this server's snapshot covers. The rest begins with the
// entry after those, so raft has nothing to compare.
//
// A newer snapshot may replace that one and shorten the log before raft handles the message. Then raft refuses the
// message, and the leader sends it again.
func (f *Filter) withoutCovered(m *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	index, term := f.Snapshot()
	if index == 0 || m.PrevLogEntry > index || m.PrevLogEntry == 0 && len(m.Entries) == 0 {
		return m
	}
	left, proven := m.Entries, max(m.PrevLogEntry, index)
	for len(left) > 0 && left[0].Index <= index {
		if left[0].Index == index && left[0].Term != term {
			return m // from a leader whose term raft does not accept
		}
		left = left[1:]
	}
	if m.PrevLogEntry == index && m.PrevLogTerm != term || len(left) > 0 && left[0].Index != index+1 {
		return m // from a leader whose term raft does not accept
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
	said, ok := f.deliver(ctx, raft.RPC{Command: f.withoutCovered(question)})
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
	said, ok = f.deliver(ctx, raft.RPC{Command: m, Reader: rpc.Reader})
	if ok { // raft has read the snapshot, unless it did not take the message
		f.discard(rpc, said.Response, said.Error)
	}
	return ok
}

// deliver sends raft a message and returns the answer.
func (f *Filter) deliver(ctx context.Context, rpc raft.RPC) (raft.RPCResponse, bool) {
	answer := make(chan raft.RPCResponse, 1) // capacity 1, since raft does not wait for a reader
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

// discard answers a message whose snapshot raft does not read any further. It first reads the rest, since the
// connection can be used again only then.
func (f *Filter) discard(rpc raft.RPC, response any, err error) {
	f.Go(func() {
		_, _ = io.Copy(io.Discard, rpc.Reader) // if this fails, so does the answer
		rpc.Respond(response, err)
	})
}
