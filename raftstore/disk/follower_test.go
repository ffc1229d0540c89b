// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"context"
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

	"github.com/coracle-k8s/coracle/raftstore/appendfilter"
	"github.com/coracle-k8s/coracle/test/diskfaults"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// This file drives one real raft follower on a real directory by a leader that
// is a model: it sends what a leader of hashicorp/raft would send, whatever
// happened before. After each message, and after each crash in the midst of
// one, everything that the follower acknowledged must be on its disk, it must
// have applied nothing but what was committed, never go back, and go by the
// newest members that its log has. What fails once and is no damage to what is on
// the disk, as reading a snapshot back or the removal of an older one, must not
// stop it.

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
	restored func()       // a snapshot is on disk, and the log still as before
	confirm  func() error // Dir.Installed

	mu    sync.Mutex
	state fsmState
	fails bool // to read the next snapshot
	wrong error
}

var _ raft.ConfigurationStore = (*checkedFSM)(nil)

// StoreConfiguration is called for changes of members, as Apply is of commands.
func (f *checkedFSM) StoreConfiguration(index uint64, c raft.Configuration) {
	f.history.mu.Lock()
	defer f.history.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if index > f.history.committed || !bytes.Equal(f.history.at(index).Data, raft.EncodeConfiguration(c)) {
		f.wrong = fmt.Errorf("applied members of entry %d, which were not committed (up to %d)", index, f.history.committed)
	}
	f.state.Index = index
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

func (f *checkedFSM) failing(fails bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails = fails
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
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails {
		f.fails = false
		return errDisk
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if err := f.confirm(); err != nil {
		return err
	}
	was := f.state.Index
	f.state = fsmState{}
	err = json.Unmarshal(data, &f.state)
	if f.state.Index < was {
		f.wrong = fmt.Errorf("the state went back from entry %d to %d", was, f.state.Index)
	}
	return err
}

var errDisk = errors.New("the disk fails")

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
	faults    *diskfaults.Faults
	tasks     sync.WaitGroup
	cancel    context.CancelFunc // ends tasks

	// A crash is a copy of the directory, taken at a moment that counts down.
	crashIn int
	crashed string
}

func (f *follower) open() {
	f.faults = &diskfaults.Faults{Reached: f.moment}
	o := options(f.path)
	o.SegmentSize, o.Faults = 16<<10, f.faults
	var err error
	f.dir, err = Open(o)
	testenv.NoError(f.t, err)
	logs := raft.LogStore(f.dir.Log)
	if f.cached {
		logs = f.dir.CachedLog(2000)
	}
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = "f", hclog.NewNullLogger()
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = time.Hour, time.Hour, time.Hour
	conf.SnapshotThreshold, conf.SnapshotInterval, conf.TrailingLogs = math.MaxUint64, 24*time.Hour, 0
	f.dir.Log.SetTrailing(f.trailing, 0)
	f.fsm = &checkedFSM{history: f.history, confirm: f.dir.Installed}
	f.raft, err = raft.NewRaft(conf, f.fsm, logs, f.dir.Vars, f.dir.Snapshots, f.filtered())
	testenv.NoError(f.t, err)
	f.fsm.restored = f.moment
}

// filteredTransport gives raft what the filter lets through.
type filteredTransport struct {
	*raft.InmemTransport
	rpcs chan raft.RPC
}

func (t filteredTransport) Consumer() <-chan raft.RPC { return t.rpcs }

func (f *follower) filtered() raft.Transport {
	_, f.transport = raft.NewInmemTransportWithTimeout("f", time.Minute)
	t := filteredTransport{f.transport, make(chan raft.RPC)}
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	filter := &appendfilter.Filter{
		Snapshot: f.dir.Log.Snapshot, Install: func() (func(), error) { return func() {}, nil }, Go: f.tasks.Go,
		Raft: func(rpc raft.RPC) bool {
			select {
			case t.rpcs <- rpc:
				return true
			case <-ctx.Done():
				return false
			}
		},
	}
	f.tasks.Go(func() {
		for {
			select {
			case rpc := <-f.transport.Consumer():
				filter.Handle(ctx, rpc)
			case <-ctx.Done():
				return
			}
		}
	})
	return t
}

func (f *follower) close() {
	err := f.raft.Shutdown().Error()
	f.cancel()
	f.tasks.Wait()
	err = errors.Join(err, f.fsm.wrong, f.dir.Close())
	testenv.NoError(f.t, err)
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
		testenv.Require(f.t, wrong == nil, "%v", wrong)
		if done {
			return
		}
		testenv.Require(f.t, !time.Now().After(deadline), "entry %d was never applied", applied)
	}
}

// checkMembers compares raft's members with the newest that the log or the
// snapshot has.
func (f *follower) checkMembers() {
	var newest raft.Log
	list := testenv.Must(f.dir.Snapshots.List())(f.t)
	for _, meta := range list {
		newest.Index, newest.Data = meta.ConfigurationIndex, raft.EncodeConfiguration(meta.Configuration)
		if index, _ := f.dir.Log.Snapshot(); index < meta.Index { // it could not be read back
			newest.Index, newest.Data = f.dir.Log.snapshot.members.index, raft.EncodeConfiguration(f.dir.Log.snapshot.members.all)
		}
	}
	first, _ := f.dir.Log.FirstIndex()
	last, _ := f.dir.Log.LastIndex()
	for i := max(first, newest.Index+1); i <= last; i++ {
		var e raft.Log
		testenv.NoError(f.t, f.dir.Log.GetLog(i, &e))
		if e.Type == raft.LogConfiguration {
			newest = e
		}
	}
	noted, index := f.dir.Log.Members()
	if newest.Index != index || index > 0 && !bytes.Equal(newest.Data, raft.EncodeConfiguration(noted)) {
		f.t.Fatalf("the newest members are those of entry %d, and the log says those of entry %d, %v", newest.Index, index, noted)
	}
	have := f.raft.GetConfiguration().Configuration()
	if index > 0 && !bytes.Equal(newest.Data, raft.EncodeConfiguration(have)) {
		f.t.Fatalf("the newest members are those of entry %d, %v, and raft goes by %v", index, noted, have)
	}
}

func TestFollowersLogMatchesModel(t *testing.T) {
	all, within := memoryDir(t), newBudget(t, 5*time.Second)
	rapid.Check(t, func(t *rapid.T) {
		if within.spent(t) {
			return
		}
		scratch := testenv.Must(os.MkdirTemp(all, ""))(t)
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
			"change members": locked(func(*rapid.T) { l.changeMembers() }),
			"compact":        locked(func(*rapid.T) { l.compact(l.snapshot) }),
			"elect":          locked(func(*rapid.T) { l.elect() }),
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
			"old message":                      func(t *rapid.T) { l.again(rapid.Uint64Range(0, l.last()).Draw(t, "after")) },
			"own snapshot":                     func(*rapid.T) { _ = l.to.raft.Snapshot().Error() }, // there may be nothing new
			"the next snapshot cannot be read": func(*rapid.T) { l.to.fsm.failing(true) },
			"old snapshots cannot be removed": func(*rapid.T) {
				l.to.dir.Snapshots.unlink = func(string) error { return errDisk }
			},
			"": func(*rapid.T) {
				l.to.settle()
				l.to.checkMembers()
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

// The leader's snapshot ends where the follower's log does, which has another entry
// there. The leader has no newer snapshot, and no other server runs.
func TestConflictAtTheEnd(t *testing.T) {
	scratch, played := memoryDir(t), false
	rapid.Check(t, func(t *rapid.T) {
		if played { // there is nothing to draw
			return
		}
		played = true
		l := newLeader(t, scratch)
		l.batch, l.to.cached = 64, true
		replicate := func() {
			for l.next <= l.last() {
				testenv.NoError(t, l.step(false))
			}
		}
		change := func(f func()) { // the follower's state machine reads the history meanwhile
			l.history.mu.Lock()
			defer l.history.mu.Unlock()
			f()
		}
		change(func() {
			l.propose(5)
			l.committed = l.last()
		})
		replicate()
		change(func() { l.propose(1) }) // no other server gets that
		replicate()
		end := l.last()
		change(func() {
			l.log, l.term = l.log[:end-1], l.term+1
			l.propose(3)
			l.committed, l.snapshot, l.first, l.next, l.acked = end, end, end+1, l.last()+1, 0
		})
		for range 10 {
			testenv.NoError(t, l.step(false))
		}
		change(func() { l.committed = l.last() })
		testenv.NoError(t, l.step(false))
		l.to.settle()
		l.check()
		if applied := l.to.raft.AppliedIndex(); applied != l.last() {
			t.Fatalf("the follower has applied %d of %d", applied, l.last())
		}
		l.to.close()
	})
}
