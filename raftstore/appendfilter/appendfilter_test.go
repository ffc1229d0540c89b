// SPDX-License-Identifier: Apache-2.0

package appendfilter_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/appendfilter"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func entries(from, to uint64) []*raft.Log {
	var out []*raft.Log
	for i := from; i <= to; i++ {
		out = append(out, &raft.Log{Index: i, Term: 1 + i/10})
	}
	return out
}

// Messages as they come, and as raft gets them where a snapshot covers entries up
// to 20, which is of term 3.
func TestEntriesCoveredByASnapshotAreCut(t *testing.T) {
	message := func(prev, prevTerm, commit uint64, e []*raft.Log) raft.AppendEntriesRequest {
		return raft.AppendEntriesRequest{Term: 7, PrevLogEntry: prev, PrevLogTerm: prevTerm, LeaderCommitIndex: commit, Entries: e}
	}
	for name, test := range map[string]struct{ received, want raft.AppendEntriesRequest }{
		"a heartbeat":                   {message(0, 0, 0, nil), message(0, 0, 0, nil)},
		"from the beginning":            {message(0, 0, 5, entries(1, 8)), message(0, 0, 5, nil)},
		"all covered":                   {message(10, 2, 30, entries(11, 20)), message(0, 0, 20, nil)},
		"nothing new":                   {message(12, 2, 12, nil), message(0, 0, 12, nil)},
		"some covered":                  {message(10, 2, 30, entries(11, 25)), message(0, 0, 25, entries(21, 25))},
		"right after the snapshot":      {message(20, 3, 30, entries(21, 25)), message(0, 0, 25, entries(21, 25))},
		"another term at its end":       {message(20, 2, 30, entries(21, 25)), message(20, 2, 30, entries(21, 25))},
		"another entry at its end":      {message(19, 2, 30, []*raft.Log{{Index: 20, Term: 9}}), message(19, 2, 30, []*raft.Log{{Index: 20, Term: 9}})},
		"later":                         {message(21, 3, 30, entries(22, 25)), message(21, 3, 30, entries(22, 25))},
		"a gap":                         {message(10, 2, 30, entries(22, 25)), message(10, 2, 30, entries(22, 25))},
		"more committed than is proven": {message(15, 2, 99, nil), message(0, 0, 20, nil)},
	} {
		t.Run(name, func(t *testing.T) {
			f := appendfilter.Filter{Snapshot: func() (uint64, uint64) { return 20, 3 }}
			received := test.received
			got := f.After(&received)
			if len(got.Entries) == 0 {
				got.Entries = nil
			}
			if !reflect.DeepEqual(*got, test.want) || !reflect.DeepEqual(received, test.received) {
				t.Errorf("got %+v, want %+v", *got, test.want)
			}
			f.Snapshot = func() (uint64, uint64) { return 0, 0 }
			if got := f.After(&received); got != &received {
				t.Errorf("without a snapshot it became %+v", got)
			}
		})
	}
}

// fake answers as raft does, or with an error as the transport does for a raft that takes no message.
type fake struct {
	got    []any
	append func(*raft.AppendEntriesRequest) *raft.AppendEntriesResponse
	read   int

	refusesQuestion, refusesSnapshot error
}

func (f *fake) take(rpc raft.RPC) bool {
	f.got = append(f.got, rpc.Command)
	switch m := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		if f.refusesQuestion != nil {
			rpc.Respond(nil, f.refusesQuestion)
			break
		}
		rpc.Respond(f.append(m), nil)
	case *raft.InstallSnapshotRequest:
		if f.refusesSnapshot != nil {
			rpc.Respond(nil, f.refusesSnapshot)
			break
		}
		data, err := io.ReadAll(rpc.Reader)
		f.read = len(data)
		rpc.Respond(&raft.InstallSnapshotResponse{Term: m.Term, Success: true}, err)
	}
	return true
}

func TestSnapshotIsSkippedWhereRaftHasItsEntries(t *testing.T) {
	busy := errors.New("busy")
	for name, test := range map[string]struct {
		raft      raft.AppendEntriesResponse // to the question
		busy      error
		installed bool
		want      raft.InstallSnapshotResponse
	}{
		"raft has its last entry":       {raft: raft.AppendEntriesResponse{Term: 7, Success: true}, want: raft.InstallSnapshotResponse{Term: 7, Success: true}},
		"raft is in a later term":       {raft: raft.AppendEntriesResponse{Term: 8}, want: raft.InstallSnapshotResponse{Term: 8}},
		"raft lacks its last entry":     {raft: raft.AppendEntriesResponse{Term: 7}, installed: true, want: raft.InstallSnapshotResponse{Term: 7, Success: true}},
		"another snapshot is under way": {raft: raft.AppendEntriesResponse{Term: 7}, busy: busy},
	} {
		t.Run(name, func(t *testing.T) {
			r := &fake{append: func(*raft.AppendEntriesRequest) *raft.AppendEntriesResponse { return &test.raft }}
			var tasks sync.WaitGroup
			ended := 0
			f := appendfilter.Filter{
				Snapshot: func() (uint64, uint64) { return 0, 0 }, Raft: r.take, Go: tasks.Go,
				Install: func() (func(), error) { return func() { ended++ }, test.busy },
			}
			data := strings.Repeat("x", 1000)
			reader := bytes.NewReader([]byte(data))
			answer := make(chan raft.RPCResponse, 1)
			m := &raft.InstallSnapshotRequest{RPCHeader: raft.RPCHeader{ID: []byte("l")}, Term: 7, LastLogIndex: 30, LastLogTerm: 4}
			testenv.Require(t, f.Handle(context.Background(), raft.RPC{Command: m, Reader: reader, RespChan: answer}), "there is no raft")
			tasks.Wait()
			response := <-answer
			if !errors.Is(response.Error, test.busy) {
				t.Errorf("the answer is %v", response.Error)
			} else if got, ok := response.Response.(*raft.InstallSnapshotResponse); test.busy == nil && (!ok || !reflect.DeepEqual(*got, test.want)) {
				t.Errorf("the answer is %+v", response.Response)
			}
			if reader.Len() > 0 || (r.read > 0) != test.installed || (ended > 0) != test.installed {
				t.Errorf("%d bytes are left, raft got %d, the end was reported %d times", reader.Len(), r.read, ended)
			}
			question, ok := r.got[0].(*raft.AppendEntriesRequest)
			if !ok || question.PrevLogEntry != 30 || question.PrevLogTerm != 4 || question.Term != 7 || question.LeaderCommitIndex != 30 ||
				string(question.ID) != "l" || len(question.Entries) > 0 {
				t.Errorf("raft was asked %+v", r.got[0])
			}
		})
	}
}

// A snapshot whose question, or which itself, is answered with an error was not installed. The sender gets the error,
// and the connection is of use again. Without an answer to the question no snapshot reaches raft: raft may have its
// last entry, and newer members.
func TestInstallRefused(t *testing.T) {
	busy := errors.New("busy")
	for name, test := range map[string]struct {
		raft fake
		want int // messages that raft got
	}{
		"the question": {fake{refusesQuestion: busy}, 1},
		"the snapshot": {fake{refusesSnapshot: busy}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			r := &test.raft
			r.append = func(*raft.AppendEntriesRequest) *raft.AppendEntriesResponse {
				return &raft.AppendEntriesResponse{Term: 7}
			}
			var tasks sync.WaitGroup
			f := appendfilter.Filter{
				Snapshot: func() (uint64, uint64) { return 0, 0 }, Raft: r.take, Go: tasks.Go,
				Install: func() (func(), error) { return func() {}, nil },
			}
			reader := strings.NewReader(strings.Repeat("x", 1000))
			answer := make(chan raft.RPCResponse, 1)
			m := &raft.InstallSnapshotRequest{Term: 7, LastLogIndex: 30, LastLogTerm: 4}
			testenv.Require(t, f.Handle(context.Background(), raft.RPC{Command: m, Reader: reader, RespChan: answer}), "there is no raft")
			tasks.Wait()
			if got := <-answer; !errors.Is(got.Error, busy) {
				t.Errorf("the answer is %+v, %v", got.Response, got.Error)
			}
			testenv.False(t, len(r.got) != test.want, "raft got %d messages, want %d: %+v", len(r.got), test.want, r.got)
			testenv.False(t, reader.Len() > 0, "%d bytes are left", reader.Len())
		})
	}
}

// A filter whose raft has ended does not wait for an answer.
func TestFilterEndsWithItsRaft(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	f := appendfilter.Filter{Snapshot: func() (uint64, uint64) { return 0, 0 }, Raft: func(raft.RPC) bool { cancel(); return true }}
	testenv.True(t, !f.Handle(ctx, raft.RPC{Command: &raft.InstallSnapshotRequest{}}), "there is a raft")
}
