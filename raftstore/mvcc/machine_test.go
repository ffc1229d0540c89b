// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// machine drives the state, a replica and the model with the same entries.
// The state is restarted from snapshots now and then, the replica never.
type machine struct {
	state   *State
	replica *State
	model   *model
	pins    []pinned
	index   uint64
	term    uint64
	clients []*client
	seen    int // of the model's events, those compared already
	ops     int
}

// pinned is a snapshot being written, and what it must be, whatever happens.
type pinned struct {
	snapshot *Snapshot
	file     []byte
}

// client is a session that a server uses, be it open or replaced by now.
type client struct {
	session uint64
	next    uint64
	sent    map[uint64]Request
}

func newMachine() *machine {
	return &machine{state: New(), replica: New(), model: newModel(), term: 1, clients: []*client{newClient(12345)}}
}

func newClient(session uint64) *client { return &client{session: session, sent: map[uint64]Request{}} }

// command makes a command: without conditions, or fenced, or of a session, and
// then new, late, again, or too late.
func (m *machine) command(t *rapid.T) Command {
	c := Command{Request: genRequest(t, m.model.rev(), m.model.compacted)}
	if rapid.IntRange(0, 7).Draw(t, "fenced") == 0 {
		c.Fence = rapid.Uint64Range(max(m.term, 2)-1, m.term+1).Draw(t, "fence")
	}
	if rapid.IntRange(0, 2).Draw(t, "identified") == 0 {
		return c
	}
	// The newest sessions are open, most likely.
	cl := m.clients[max(0, len(m.clients)-1-rapid.IntRange(0, 3).Draw(t, "session"))]
	c.Session, c.Seq = cl.session, cl.next
	if rapid.Bool().Draw(t, "out of order") {
		c.Seq = rapid.Uint64Range(max(cl.next, 9)-9, cl.next+2).Draw(t, "seq")
	}
	cl.next = max(cl.next, c.Seq+1)
	c.Floor = c.Seq - min(c.Seq, rapid.Uint64Range(0, 8).Draw(t, "back"))
	if old, ok := cl.sent[c.Seq]; ok {
		c.Request = old
	}
	cl.sent[c.Seq] = c.Request
	return c
}

// entry sends commands through the encodings that a log entry goes through:
// some are gathered on another server.
func (m *machine) entry(t *rapid.T, commands []Command) {
	local := rapid.IntRange(0, len(commands)).Draw(t, "local")
	entry := encode(t, commands[:local])
	forwarded := encode(t, commands[local:])
	if n, err := CommandsOf(forwarded); err != nil || n != len(commands)-local {
		t.Fatalf("%d of %d commands: %v", n, len(commands)-local, err)
	}
	entry = AppendEncoded(entry, Encoded(forwarded))
	decoded, err := DecodeEntry(entry)
	testenv.Require(t, err == nil && len(decoded) == len(commands), "decoded %d of %d commands: %v", len(decoded), len(commands), err)
	for i, c := range decoded {
		want := commands[i]
		testenv.Require(t, proto.Equal(c.Request, want.Request), "decoded %v as %v", want.Request, c.Request)
		if c.Request = want.Request; c != want {
			t.Fatalf("decoded %+v as %+v", want, c)
		}
	}
	m.index += rapid.Uint64Range(1, 2).Draw(t, "index")
	m.state.Prune()
	m.checkReadOnly(t, decoded)
	got := m.state.ApplyEntry(m.index, m.term, decoded)
	m.replica.Prune()
	again := testenv.Must(DecodeEntry(entry))(t)
	m.compare(t, commands, got, m.replica.ApplyEntry(m.index, m.term, again), m.model.entry(m.index, m.term, commands))
	m.ops += len(commands)
}

func encode(t *rapid.T, commands []Command) []byte {
	entry := NewEntry(nil)
	for _, c := range commands {
		before := len(entry)
		var err error
		entry, err = AppendCommand(entry, c, 1)
		testenv.NoError(t, err)
		if size := len(entry) - before; size > CommandSize(c) || CommandSize(c) > size+45 {
			t.Fatalf("a command of %d bytes was to have %d", size, CommandSize(c))
		}
	}
	return entry
}

// compare compares the results of an entry: the state's, the replica's, and
// the state's as another server reads them, with the model's.
func (m *machine) compare(t *rapid.T, commands []Command, got, replica []Result, want []modelAnswer) {
	sent := testenv.Must(EncodeResults(got))(t)
	read, err := DecodeResults(sent)
	if err != nil || len(read) != len(want) || len(got) != len(want) || len(replica) != len(want) {
		t.Fatalf("%d, %d and %d results instead of %d: %v", len(got), len(replica), len(read), len(want), err)
	}
	for i, w := range want {
		for _, r := range []Result{got[i], replica[i], read[i]} {
			if r.Err != w.err || w.err == nil && r.Response == nil { // the very same value
				t.Fatalf("%+v: got error %v, want %v", commands[i], r.Err, w.err)
			}
			if w.err == nil {
				same(t, fmt.Sprint(commands[i].Request), r.Response.(proto.Message), w.resp)
				m.complete(t, commands[i], r.Response, w.rev)
			}
		}
		if id, ok := got[i].Response.(*wrapperspb.UInt64Value); ok && commands[i].Session == 0 {
			m.clients = append(m.clients, newClient(id.Value))
		}
		for _, r := range []Result{got[i], replica[i], read[i]} {
			if r.Err == nil {
				proto.Reset(r.Response.(proto.Message)) // of no consequence to a repeat
			}
		}
	}
}

// complete checks a header and completes it, as the caller does.
func (m *machine) complete(t *rapid.T, c Command, resp any, rev int64) {
	r, ok := resp.(headerResponse)
	if !ok {
		return
	}
	h := r.GetHeader()
	testenv.Require(t, h.GetRevision() == rev && h.ClusterId == 0, "%+v: header %v, want revision %d", c, h, rev)
	h.Revision, h.ClusterId, h.MemberId, h.RaftTerm = -1, 1, 2, m.term
}

func (m *machine) read(t *rapid.T, r *pb.RangeRequest) {
	got, err := m.state.Freeze().Range(r)
	want, wantErr := m.model.read(r, m.model.now())
	testenv.Require(t, errors.Is(err, wantErr), "%v: got error %v, want %v", r, err, wantErr)
	if wantErr == nil {
		same(t, fmt.Sprint(r), got, want)
	}
}

// glance compares what is quickly compared: the newest keys and events.
func (m *machine) glance(t *rapid.T) {
	view := m.state.Freeze()
	if view.Revision() != m.model.rev() || view.Compacted() != m.model.compacted || view.Applied() != m.model.applied {
		t.Fatalf("at revision %d compacted to %d, entry %d, want %d, %d and %d",
			view.Revision(), view.Compacted(), view.Applied(), m.model.rev(), m.model.compacted, m.model.applied)
	}
	m.read(t, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	m.checkEvents(t, view, m.model.events[m.seen:])
	m.seen = len(m.model.events)
}

// check compares everything readable: each revision, each event, each lease.
func (m *machine) check(t *rapid.T) {
	view := m.state.Freeze()
	for rev := max(1, m.model.compacted); rev <= m.model.rev(); rev++ {
		m.read(t, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
	}
	m.checkEvents(t, view, m.model.events)
	m.checkLeases(t, view)
	m.checkSizes(t, view)
	m.checkReplica(t)
}

// checkEvents compares the history's end with the model's, as far as it was
// not compacted.
func (m *machine) checkEvents(t *rapid.T, view *View, events []*mvccpb.Event) {
	if len(events) == 0 {
		return
	}
	history := view.History(max(events[0].Kv.ModRevision, m.model.compacted))
	i := 0
	for _, want := range events {
		if want.Kv.ModRevision < m.model.compacted {
			continue
		}
		testenv.Require(t, i != len(history), "event missing: %v", want)
		v := history[i]
		i++
		got := &mvccpb.Event{Kv: v.KV(), PrevKv: v.Before()}
		if v.Deleted() {
			got.Type = mvccpb.Event_DELETE
		}
		if v.Revision() == m.model.compacted { // whether it has one depends on pruning
			got.PrevKv, want = nil, &mvccpb.Event{Type: want.Type, Kv: want.Kv}
		}
		same(t, "event", got, want)
	}
	testenv.Require(t, i == len(history), "%d events too many", len(history)-i)
}

func (m *machine) checkLeases(t *rapid.T, view *View) {
	if leases := view.Leases(); len(leases) != len(m.model.leases) {
		t.Fatalf("leases %v, want %v", leases, m.model.leases)
	}
	for id, ttl := range m.model.leases {
		keys, gotTTL, ok := view.Lease(id)
		var want [][]byte
		for _, kv := range in(m.model.now(), []byte{0}, []byte{0}) {
			if kv.Lease == id {
				want = append(want, kv.Key)
			}
		}
		testenv.Require(t, ok && gotTTL == ttl && fmt.Sprint(keys) == fmt.Sprint(want), "lease %d has %q, want %q", id, keys, want)
	}
}

// checkReplica compares the two servers' states: what clients may compare, and
// every byte of what they would write to disk.
func (m *machine) checkReplica(t *rapid.T) {
	a, b := m.state.Freeze(), m.replica.Freeze()
	for rev := max(1, m.model.compacted); rev <= m.model.rev(); rev++ {
		if x, y := a.Hash(rev), b.Hash(rev); x != y {
			t.Fatalf("at revision %d the hash is %x here and %x there", rev, x, y)
		}
	}
	testenv.Require(t, bytes.Equal(snapshotOf(t, m.state), snapshotOf(t, m.replica)),
		"snapshots differ: %+v and %+v", a.sessions, b.sessions)
}

// restart reads the state back from its snapshot.
func (m *machine) restart(t *rapid.T) {
	restored := testenv.Must(Restore(bytes.NewReader(snapshotOf(t, m.state))))(t)
	m.state, m.pins = restored, nil
}

// leap does what the restore of a backup does.
func (m *machine) leap(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "leap") != 0 {
		return // now and then: it ends all history
	}
	const n = 3
	m.index = 1
	m.state.Leap(n, 0, m.index)
	m.replica.Leap(n, 0, m.index)
	m.model.leap(n, m.index)
}

// checkSizes compares the running totals with a count.
func (m *machine) checkSizes(t *rapid.T, view *View) {
	if len(m.pins) > 0 {
		return // pruning waits, so more is held than is reachable
	}
	var want Stats
	seen := map[*Version]bool{}
	view.tree.Scan(func(v *Version) bool {
		if v.Deleted() && v.Revision() <= m.model.compacted {
			t.Fatalf("%q is deleted, and still there", v.KV().Key)
		}
		if !v.Deleted() {
			want.Keys++
			want.LiveBytes += v.Size()
		}
		for ; v != nil; v = v.prev.Load() {
			if !seen[v] {
				seen[v] = true
				want.TotalBytes += v.Size()
			}
		}
		return true
	})
	want.Versions = int64(len(view.history))
	if got := view.Stats(); got != want {
		t.Fatalf("sizes %+v, want %+v", got, want)
	}
}

// TestStateMachineEqualsModel runs random commands on the state machine and the model, and compares every answer and
// everything readable. CORACLE_MODEL_OPS says how many commands and reads; the default takes seconds.
func TestStateMachineEqualsModel(t *testing.T) {
	budget, done := 60_000, 0
	if env := os.Getenv("CORACLE_MODEL_OPS"); env != "" {
		var err error
		if budget, err = strconv.Atoi(env); err != nil {
			t.Fatalf("CORACLE_MODEL_OPS: %v", err)
		}
	}
	defer steps(t, 30)
	for round := 0; done < budget && !t.Failed(); round++ {
		steps(t, []int{30, 200}[round%2])
		rapid.Check(t, func(t *rapid.T) {
			m := newMachine()
			t.Repeat(m.actions())
			m.glance(t)
			m.check(t)
			done += m.ops
		})
	}
	t.Logf("%d operations", done)
}

// steps makes rapid's sequences that long, on average: short ones show a
// failure better, long ones have a past.
func steps(t *testing.T, n int) {
	testenv.NoError(t, flag.Set("rapid.steps", strconv.Itoa(n)))
}

func (m *machine) actions() map[string]func(*rapid.T) {
	send := func(t *rapid.T) {
		commands := make([]Command, rapid.IntRange(1, 5).Draw(t, "commands"))
		for i := range commands {
			commands[i] = m.command(t)
		}
		m.entry(t, commands)
	}
	read := func(t *rapid.T) {
		m.read(t, genRange(t, m.model.rev()))
		m.ops++
	}
	return map[string]func(*rapid.T){
		"send": send, "send2": send, "send3": send, "send4": send, "send5": send, "read": read, "read2": read,
		"elect": func(*rapid.T) { m.term++ },
		"pin": func(t *rapid.T) {
			if len(m.pins) < 2 {
				snapshot := m.state.Freeze().Snapshot()
				m.pins = append(m.pins, pinned{snapshot, bytesOf(t, snapshot)})
			}
		},
		"unpin": func(t *rapid.T) {
			for _, p := range m.pins {
				testenv.Require(t, bytes.Equal(bytesOf(t, p.snapshot), p.file), "a snapshot changed")
				p.snapshot.Release()
			}
			m.pins = nil
			m.state.Prune()
		},
		"restart": m.restart,
		"leap":    m.leap,
		"check":   m.check,
		"":        m.glance,
	}
}
