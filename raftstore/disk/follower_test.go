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

// leader is the model.
type leader struct {
	t *rapid.T
	*history
	term, first, snapshot uint64
	next, acked           uint64
	kept                  uint64 // acknowledged and committed, ever
	batch                 uint64
	transport             *raft.InmemTransport
	to                    *follower
}

var votersOfThree = raft.Configuration{Servers: []raft.Server{{ID: "f", Address: "f"}, {ID: "l", Address: "l"}, {ID: "x", Address: "x"}}}

func (l *leader) propose(n int) {
	for range n {
		e := &raft.Log{Index: l.last() + 1, Term: l.term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "%d.%d", l.term, l.last()+1)}
		l.log = append(l.log, e)
	}
}

func (l *leader) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("l"), Addr: l.transport.EncodePeer("l", "l")}
}

// errAtTheStart is raft's way to go wrong when a follower has compacted entries
// that its leader believes to be missing: the leader goes back to the first
// one, and only a snapshot helps. TrailingLogs must make that rare.
var errAtTheStart = errors.New("the follower refuses the log from its start")

// step sends one message, as raft's replicateTo does, and returns its error. A
// lost answer is one that the leader does not learn of.
func (l *leader) step(lost bool) error {
	req := &raft.AppendEntriesRequest{
		RPCHeader: l.header(), Term: l.term, LeaderCommitIndex: l.committed, PrevLogEntry: l.next - 1,
	}
	switch {
	case l.next == 1:
	case l.next-1 == l.snapshot || l.next-1 >= l.first:
		req.PrevLogTerm = l.at(l.next - 1).Term
	default:
		return l.install(l.snapshot, lost)
	}
	for i := l.next; i <= min(l.last(), l.next+l.batch-1); i++ {
		if i < l.first {
			return l.install(l.snapshot, lost)
		}
		req.Entries = append(req.Entries, l.at(i))
	}
	var resp raft.AppendEntriesResponse
	if err := l.transport.AppendEntries("f", "f", req, &resp); err != nil || lost {
		return err
	}
	switch {
	case !resp.Success && l.next == 1:
		return errAtTheStart
	case !resp.Success:
		l.next = max(min(l.next-1, resp.LastLog+1), 1)
	case len(req.Entries) > 0:
		l.next += uint64(len(req.Entries))
		l.acked = max(l.acked, l.next-1)
	}
	return nil
}

// install sends a snapshot.
func (l *leader) install(end uint64, lost bool) error {
	data := l.state(end)
	req := &raft.InstallSnapshotRequest{
		RPCHeader: l.header(), SnapshotVersion: raft.SnapshotVersionMax, Term: l.term, Leader: l.transport.EncodePeer("l", "l"),
		LastLogIndex: end, LastLogTerm: l.at(end).Term, Size: int64(len(data)),
		Configuration: raft.EncodeConfiguration(votersOfThree), ConfigurationIndex: 1,
	}
	var resp raft.InstallSnapshotResponse
	err := l.transport.InstallSnapshot("f", "f", req, &resp, bytes.NewReader(data))
	if err == nil && resp.Success && !lost {
		l.next, l.acked = end+1, max(l.acked, end)
	}
	return err
}

// elect makes another server the leader. It has everything that was committed,
// and perhaps some of what was not; it compacted its log somewhere else.
func (l *leader) elect() {
	keep := rapid.Uint64Range(l.committed, l.last()).Draw(l.t, "keeps")
	l.log = l.log[:keep]
	l.term += rapid.Uint64Range(1, 2).Draw(l.t, "terms")
	l.propose(1)
	l.next, l.acked = l.last()+1, 0
	l.compact(0)
}

func (l *leader) compact(from uint64) {
	l.snapshot = rapid.Uint64Range(from, l.committed).Draw(l.t, "snapshot")
	if l.snapshot == 1 { // never happens: see Log.beyond
		l.snapshot = 0
	}
	l.first = rapid.Uint64Range(max(l.first*min(from, 1), 1), l.snapshot+1).Draw(l.t, "first")
}

// check opens a copy of the follower's disk and looks for all that must be there.
func (l *leader) check() {
	l.kept = max(l.kept, min(l.acked, l.committed))
	held := max(l.kept, l.acked)
	path := l.to.copy()
	defer os.RemoveAll(path)
	o := options(path)
	o.SegmentSize = 16 << 10
	d, err := Open(o)
	if err != nil {
		l.t.Fatalf("after a crash here: %v", err)
	}
	defer d.Close()
	end := uint64(0)
	list, err := d.Snapshots.List()
	if err != nil {
		l.t.Fatal(err)
	}
	if len(list) > 0 {
		if end = list[0].Index; end > l.committed || list[0].Term != l.at(end).Term {
			l.t.Fatalf("a snapshot up to entry %d of term %d, committed are %d", end, list[0].Term, l.committed)
		}
	}
	for i := end + 1; i <= held; i++ {
		var e raft.Log
		if err := d.Log.GetLog(i, &e); err != nil || e.Term != l.at(i).Term || !bytes.Equal(e.Data, l.at(i).Data) {
			l.t.Fatalf("entry %d was acknowledged, and is now %v, %v (snapshot up to %d)", i, e, err, end)
		}
	}
}

// crash cuts the power in the midst of a message and starts again with what
// was on disk at that moment.
func (l *leader) crash(in int) {
	f := l.to
	f.crashIn, f.crashed = in, ""
	_ = l.step(true) // whatever it answers is lost
	f.settle()
	f.crashIn = 0
	if f.crashed == "" {
		f.crashed = f.copy()
	}
	f.close()
	f.path = f.crashed
	f.open()
	l.transport.Connect("f", f.transport)
}

func (l *leader) commitAll() {
	l.history.mu.Lock()
	defer l.history.mu.Unlock()
	l.propose(1)
	l.committed = l.last()
}

// catchUp lets the leader replicate undisturbed. It may take a new snapshot when the
// follower refuses one.
func (l *leader) catchUp() {
	l.commitAll()
	for range 1000 {
		if l.acked == l.last() {
			if err := l.step(false); err != nil { // tells what is committed
				l.t.Fatal(err)
			}
			if l.to.settle(); l.to.raft.AppliedIndex() == l.last() {
				return
			}
		}
		if err := l.step(false); err != nil {
			l.commitAll()
			l.snapshot, l.first = l.last(), l.last()+1
		}
	}
	l.t.Fatalf("the follower never caught up: next %d, acknowledged %d of %d", l.next, l.acked, l.last())
}

func newLeader(t *rapid.T, scratch string) *leader {
	path, err := os.MkdirTemp(scratch, "")
	if err != nil {
		t.Fatal(err)
	}
	h := &history{log: []*raft.Log{{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(votersOfThree)}}}
	l := &leader{t: t, history: h, term: 1, first: 1, next: 2, batch: rapid.Uint64Range(1, 6).Draw(t, "batch")}
	l.to = &follower{
		t: t, scratch: scratch, path: path, history: h,
		cached: rapid.Bool().Draw(t, "cached"), trailing: rapid.Uint64Range(0, 6).Draw(t, "trailing"),
	}
	_, l.transport = raft.NewInmemTransportWithTimeout("l", time.Minute)
	l.to.open()
	l.transport.Connect("f", l.to.transport)
	return l
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
					t.Skip("nothing is committed")
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

// budget bounds a random test in time: it is long enough for a change that
// breaks something to show soon, and CORACLE_RANDOM_TIME=10m makes it thorough.
type budget struct {
	until  time.Time
	failed bool // what follows is rapid looking for a smaller case
}

func newBudget(t *testing.T, usual time.Duration) *budget {
	t.Helper()
	if text := os.Getenv("CORACLE_RANDOM_TIME"); text != "" {
		var err error
		if usual, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	return &budget{until: time.Now().Add(usual)}
}

func (b *budget) spent(t *rapid.T) bool {
	t.Cleanup(func() { b.failed = b.failed || t.Failed() })
	return !b.failed && time.Now().After(b.until)
}
