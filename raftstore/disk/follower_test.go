// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

// This file drives one real raft follower on a real directory by a leader that
// is a model: it sends what a leader of hashicorp/raft would send, whatever
// happened before. After each message, and after each crash in the midst of
// one, everything that the follower acknowledged must be on its disk, and it
// must have applied nothing but what was committed.

// history is what the leaders made, as seen by the present one.
type history struct {
	mu        sync.Mutex
	log       []*raft.Log // the leader's, from index 1 on
	committed uint64
}

func (h *history) at(index uint64) *raft.Log { return h.log[index-1] }

func (h *history) last() uint64 { return uint64(len(h.log)) }

// state is the state machine's after an entry, as a snapshot has it.
func (h *history) state(index uint64) []byte {
	s := fsmState{Index: index}
	for _, l := range h.log[:index] {
		if l.Type == raft.LogCommand {
			s.Commands = append(s.Commands, string(l.Data))
		}
	}
	out, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return out
}

type fsmState struct {
	Index    uint64
	Commands []string
}

// checkedFSM applies nothing but what was committed.
type checkedFSM struct {
	history  *history
	restored func() // a snapshot is installed, and the log still as before

	mu    sync.Mutex
	state fsmState
	wrong error
}

func (f *checkedFSM) Apply(l *raft.Log) any {
	f.history.mu.Lock()
	defer f.history.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.Index > f.history.committed || f.history.at(l.Index).Term != l.Term || !bytes.Equal(f.history.at(l.Index).Data, l.Data) {
		f.wrong = fmt.Errorf("applied entry %d of term %d, which was not committed (up to %d)", l.Index, l.Term, f.history.committed)
		return nil
	}
	f.state.Index = l.Index
	f.state.Commands = append(f.state.Commands, string(l.Data))
	if !bytes.Equal(f.history.state(l.Index), f.encode()) {
		f.wrong = fmt.Errorf("another state after entry %d", l.Index)
	}
	return nil
}

func (f *checkedFSM) encode() []byte {
	out, err := json.Marshal(f.state)
	if err != nil {
		panic(err)
	}
	return out
}

func (f *checkedFSM) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fixedSnapshot(f.encode()), nil
}

func (f *checkedFSM) Restore(r io.ReadCloser) error {
	defer r.Close()
	if f.restored != nil {
		f.restored()
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = fsmState{}
	return json.Unmarshal(data, &f.state)
}

type fixedSnapshot []byte

func (s fixedSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(s); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (fixedSnapshot) Release() {}

// follower is the server under test.
type follower struct {
	t         *rapid.T
	scratch   string
	path      string
	cached    bool
	trailing  uint64
	history   *history
	dir       *Dir
	fsm       *checkedFSM
	raft      *raft.Raft
	transport *raft.InmemTransport
	faults    *Faults

	// A crash is a copy of the directory, taken at a moment that counts down.
	crashIn int
	crashed string
}

func (f *follower) open() {
	f.faults = &Faults{reached: f.moment}
	o := options(f.path)
	o.SegmentSize, o.Faults = 16<<10, f.faults
	var err error
	if f.dir, err = Open(o); err != nil {
		f.t.Fatal(err)
	}
	logs := raft.LogStore(f.dir.Log)
	if f.cached {
		logs = f.dir.CachedLog(2000)
	}
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = "f", hclog.NewNullLogger()
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = time.Hour, time.Hour, time.Hour
	conf.SnapshotThreshold, conf.SnapshotInterval, conf.TrailingLogs = math.MaxUint64, 24*time.Hour, f.trailing
	f.fsm = &checkedFSM{history: f.history}
	_, f.transport = raft.NewInmemTransportWithTimeout("f", time.Minute)
	if f.raft, err = raft.NewRaft(conf, f.fsm, logs, f.dir.Vars, f.dir.Snapshots, f.transport); err != nil {
		f.t.Fatal(err)
	}
	f.fsm.restored = f.moment
}

func (f *follower) close() {
	err := f.raft.Shutdown().Error()
	if err = errors.Join(err, f.fsm.wrong, f.dir.Close()); err != nil {
		f.t.Fatal(err)
	}
}

// moment is called wherever a crash would leave something interesting.
func (f *follower) moment() {
	if f.crashIn--; f.crashIn == 0 {
		f.crashed = f.copy()
	}
}

func (f *follower) copy() string {
	to, err := os.MkdirTemp(f.scratch, "")
	if err == nil {
		err = os.CopyFS(to, os.DirFS(f.path))
	}
	if err != nil {
		panic(err)
	}
	return to
}

// settle waits until the state machine has what raft handed to it.
func (f *follower) settle() {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Microsecond) {
		applied := f.raft.AppliedIndex()
		f.fsm.mu.Lock()
		done, wrong := f.fsm.state.Index >= applied || applied <= 1, f.fsm.wrong
		f.fsm.mu.Unlock()
		if wrong != nil {
			f.t.Fatal(wrong)
		}
		if done {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("entry %d was never applied", applied)
		}
	}
}

func TestFollower(t *testing.T) {
	all, within := memoryDir(t), newBudget(t, 5*time.Second)
	rapid.Check(t, func(t *rapid.T) {
		if within.spent(t) {
			return
		}
		scratch, err := os.MkdirTemp(all, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(scratch)
		l := newLeader(t, scratch)
		locked := func(fn func(*rapid.T)) func(*rapid.T) {
			return func(t *rapid.T) {
				l.history.mu.Lock()
				defer l.history.mu.Unlock()
				fn(t)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"propose": locked(func(t *rapid.T) { l.propose(rapid.IntRange(1, 8).Draw(t, "entries")) }),
			"commit": locked(func(t *rapid.T) {
				l.committed = rapid.Uint64Range(l.committed, l.last()).Draw(t, "committed")
			}),
			"compact": locked(func(*rapid.T) { l.compact(l.snapshot) }),
			"elect":   locked(func(*rapid.T) { l.elect() }),
			"replicate": func(t *rapid.T) {
				for range rapid.IntRange(1, 12).Draw(t, "messages") {
					_ = l.step(false) // a snapshot may be refused
				}
			},
			"lost answer": func(*rapid.T) { _ = l.step(true) },
			"crash":       func(t *rapid.T) { l.crash(rapid.IntRange(1, 5).Draw(t, "in")) },
			"old snapshot": func(t *rapid.T) {
				if l.committed < 2 {
					t.Skip("nothing is committed") // rapid draws another action
				}
				_ = l.install(rapid.Uint64Range(2, l.committed).Draw(t, "end"), true)
			},
			"own snapshot": func(*rapid.T) { _ = l.to.raft.Snapshot().Error() }, // there may be nothing new
			"": func(*rapid.T) {
				l.to.settle()
				l.check()
			},
		})
		l.catchUp()
		l.check()
		l.crash(1)
		l.next = l.last() + 1
		l.catchUp()
		l.check()
		l.to.close()
	})
}
