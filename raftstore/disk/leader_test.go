// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/coracle-k8s/coracle/test/testenv"
)

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
		l.t.Fatalf("the follower refuses the log from its start: %+v", resp)
	case !resp.Success:
		l.next = max(min(l.next-1, resp.LastLog+1), 1)
	case len(req.Entries) > 0:
		l.next += uint64(len(req.Entries))
		l.acked = max(l.acked, l.next-1)
	}
	return nil
}

// again sends entries that were sent before, perhaps, as a message that was late.
func (l *leader) again(after uint64) {
	req := &raft.AppendEntriesRequest{RPCHeader: l.header(), Term: l.term, PrevLogEntry: after, LeaderCommitIndex: min(after, l.committed)}
	if after > 0 {
		req.PrevLogTerm = l.at(after).Term
	}
	req.Entries = append(req.Entries, l.log[after:min(l.last(), after+l.batch)]...)
	_ = l.transport.AppendEntries("f", "f", req, &raft.AppendEntriesResponse{}) // it may be refused
}

// changeMembers proposes other members. The one before must be committed.
func (l *leader) changeMembers() {
	if l.members(l.last()).Index > l.committed {
		return
	}
	c := raft.Configuration{Servers: slices.Clone(votersOfThree.Servers)}
	c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Nonvoter, ID: raft.ServerID(fmt.Sprint("n", l.last())), Address: "n"})
	l.log = append(l.log, &raft.Log{Index: l.last() + 1, Term: l.term, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)})
}

// members is the newest change of members up to an entry.
func (l *leader) members(end uint64) *raft.Log {
	for l.at(end).Type != raft.LogConfiguration {
		end--
	}
	return l.at(end)
}

// install sends a snapshot.
func (l *leader) install(end uint64, lost bool) error {
	data := l.state(end)
	req := &raft.InstallSnapshotRequest{
		RPCHeader: l.header(), SnapshotVersion: raft.SnapshotVersionMax, Term: l.term, Leader: l.transport.EncodePeer("l", "l"),
		LastLogIndex: end, LastLogTerm: l.at(end).Term, Size: int64(len(data)),
		Configuration: l.members(end).Data, ConfigurationIndex: l.members(end).Index,
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
	keep := rapid.Uint64Range(max(l.committed, 1), l.last()).Draw(l.t, "keeps")
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
	testenv.NoError(l.t, err, "after a crash here")
	defer d.Close()
	end := uint64(0)
	list := testenv.Must(d.Snapshots.List())(l.t)
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

// catchUp lets the leader replicate undisturbed, with the snapshot that it has.
func (l *leader) catchUp() {
	l.to.fsm.failing(false)
	l.commitAll()
	for range 1000 {
		if l.acked == l.last() {
			testenv.NoError(l.t, l.step(false)) // tells what is committed
			if l.to.settle(); l.to.raft.AppliedIndex() == l.last() {
				return
			}
		}
		if err := l.step(false); err != nil {
			l.t.Fatalf("the follower refuses a message: %v (next %d, the leader's snapshot ends at %d, its log begins at %d)", err, l.next, l.snapshot, l.first)
		}
	}
	l.t.Fatalf("the follower never caught up: next %d, acknowledged %d of %d", l.next, l.acked, l.last())
}

func newLeader(t *rapid.T, scratch string) *leader {
	path := testenv.Must(os.MkdirTemp(scratch, ""))(t)
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
