// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// fsm lets raft drive the state machine. Raft calls it from one goroutine; it
// publishes a view after each batch, and readers take the newest.
type fsm struct {
	state     *mvcc.State
	published atomic.Pointer[mvcc.View]
	// onPublish is told of every new view, before the writers whose commands
	// it holds are answered. It must not block.
	onPublish func()
}

var _ raft.BatchingFSM = (*fsm)(nil)

func newFSM(onPublish func()) *fsm {
	f := &fsm{state: mvcc.New(), onPublish: onPublish}
	f.publish()
	return f
}

func (f *fsm) publish() {
	f.published.Store(f.state.Freeze())
	f.onPublish()
}

// view is the newest applied state.
func (f *fsm) view() *mvcc.View { return f.published.Load() }

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
	reqs, err := mvcc.DecodeEntry(l.Data)
	if err != nil {
		// Its checksum was right, so a newer version wrote it. To go on
		// without it would make this server differ from the others.
		panic(fmt.Sprintf("raftstore: log entry %d: %v; nothing was changed: run the version that wrote it", l.Index, err))
	}
	f.state.Prune() // what a snapshot kept it from freeing
	results := make([]mvcc.Result, len(reqs))
	for i, req := range reqs {
		results[i] = f.state.Apply(req)
	}
	return results
}

// Snapshot captures the state for raft to write out beside further commands.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	return &fsmSnapshot{f.view().Snapshot()}, nil
}

// Restore replaces the state by a snapshot's.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	state, err := mvcc.Restore(r)
	if err != nil {
		return err
	}
	f.state = state
	f.publish()
	return nil
}

type fsmSnapshot struct{ *mvcc.Snapshot }

func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := s.WriteTo(sink); err != nil {
		_ = sink.Cancel() // the write's error says more
		return err
	}
	return sink.Close()
}
