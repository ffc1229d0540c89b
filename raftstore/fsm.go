// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// fsm connects raft to the state machine. Raft calls it from one goroutine. It publishes a view after each batch, and
// readers take the newest view.
type fsm struct {
	state     *mvcc.State
	published atomic.Pointer[mvcc.View]
	// onPublish is called for every new view, before the writers of its commands get their answers. It must not block.
	onPublish func()
	// onCommand is called with every command and its result, in order, before they are published. It is not called for
	// a repeated command: that changed nothing, and much may have happened since the command was run. It must not
	// block.
	onCommand func(mvcc.Command, mvcc.Result)

	// onRestore is called when a state was read from a snapshot, before that state replaces the present one. If it
	// returns an error, the present state stays.
	onRestore func() error

	newest   int              // the newest level that this program knows
	outdated func(why string) // ends the program, since it does not know the cluster's level
	// connectLevel and level are the level that is stored, 0 before the first entry that stores one: the one at which
	// this server connects to others, and the one in whose forms it writes. The former changes first. Then onLevel is
	// called, which must not block. Last, leveled is sent.
	connectLevel, level atomic.Int64
	onLevel             func()
	leveled             timers.Signal

	publications timers.Broadcast
}

var _ raft.BatchingFSM = (*fsm)(nil)

func newFSM(onPublish func(), onCommand func(mvcc.Command, mvcc.Result)) *fsm {
	f := &fsm{
		state: mvcc.New(), onPublish: onPublish, onCommand: onCommand, onRestore: func() error { return nil },
		newest: level.Newest(), leveled: timers.NewSignal(), onLevel: func() {},
		outdated: func(why string) { panic(why) },
	}
	f.published.Store(f.state.Freeze()) // without a callback: an empty state needs none
	return f
}

func (f *fsm) publish() {
	f.published.Store(f.state.Freeze())
	f.publications.Send()
	f.onPublish()
}

// view returns the newest applied state.
func (f *fsm) view() *mvcc.View { return f.published.Load() }

// waitApplied returns the first view that holds the entry with this index. The entry must be one of commands.
func (f *fsm) waitApplied(ctx context.Context, index uint64) (*mvcc.View, error) {
	for {
		if view := f.view(); view.Applied() >= index { // without a channel, which is seldom necessary
			return view, nil
		}
		published := f.publications.Next()
		if view := f.view(); view.Applied() >= index {
			return view, nil
		}
		select {
		case <-ctx.Done():
			return nil, contextError(ctx)
		case <-published:
		}
	}
}

// Apply runs one entry and returns its []mvcc.Result.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch runs entries in order and publishes one view of them all.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	for i, l := range logs {
		if l.Type == raft.LogCommand {
			out[i] = f.apply(l)
		}
	}
	f.publish()
	return out
}

func (f *fsm) apply(l *raft.Log) []mvcc.Result {
	commands, err := mvcc.DecodeEntry(l.Data)
	if err != nil {
		// The entry's checksum was right, so a newer version wrote it. Skipping it would make this server's state
		// differ from the others'.
		panic(fmt.Sprintf("raftstore: log entry %d was written by a newer version (%v). Nothing was changed, and what the store holds is safe: "+
			"start the version that the other servers run, or the one that ran here before", l.Index, err))
	}
	f.state.Prune() // versions that a snapshot has kept from being freed
	results := f.state.ApplyEntry(l.Index, l.Term, commands)
	for i, c := range commands {
		if results[i].Repeated {
			continue
		}
		if put, ok := c.Request.(*pb.PutRequest); ok && string(put.Key) == level.Key && results[i].Err == nil {
			f.noteLevel(l.Index)
		}
		f.onCommand(c, results[i])
	}
	return results
}

// noteLevel takes over the level that the state has after an entry. A level that this program does not know ends it:
// the entries that follow may have forms that it cannot read.
func (f *fsm) noteLevel(index uint64) {
	now := f.state.Freeze().Level()
	if now > f.newest {
		f.outdated(fmt.Sprintf("raftstore: with log entry %d the cluster has level %d, and this version knows levels up to %d. "+
			"Nothing was changed, and what the store holds is safe: start the version that the other servers run", index, now, f.newest))
	}
	if int64(now) > f.level.Load() {
		f.connectLevel.Store(int64(now))
		f.onLevel()
		f.level.Store(int64(now))
		f.leveled.Send()
	}
}

// Snapshot captures the state. Raft writes it to disk while further commands are run.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	return &fsmSnapshot{f.view().Snapshot()}, nil
}

// Restore replaces the state by that of a snapshot.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	state, err := mvcc.Restore(r)
	if err != nil {
		return err
	}
	if err := f.onRestore(); err != nil {
		return err
	}
	f.state = state
	f.noteLevel(state.Freeze().Applied())
	f.publish()
	return nil
}

type fsmSnapshot struct{ *mvcc.Snapshot }

func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.WritePacked(sink); err != nil {
		_ = sink.Cancel() // the write's error says more
		return err
	}
	return sink.Close()
}
