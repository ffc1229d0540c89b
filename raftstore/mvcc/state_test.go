// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"
)

// The generators use few keys, values, leases and revisions, so that commands
// meet.
var (
	genKey   = rapid.Map(rapid.SampledFrom([]string{"a", "ab", "abc", "b", "ba", "c"}), func(s string) []byte { return []byte(s) })
	genValue = rapid.Map(rapid.SampledFrom([]string{"", "x", "y", "zz"}), func(s string) []byte { return []byte(s) })
	genLease = rapid.SampledFrom([]int64{0, 0, 0, 1, 2, 3})
)

func genEnd(t *rapid.T) []byte {
	return rapid.SampledFrom([][]byte{nil, nil, {0}, []byte("b"), []byte("ac"), []byte("d"), []byte("a")}).Draw(t, "end")
}

func genRev(t *rapid.T, current int64) int64 {
	if rapid.Bool().Draw(t, "newest") {
		return 0
	}
	return rapid.Int64Range(max(0, current-12), current+1).Draw(t, "rev")
}

func genRange(t *rapid.T, current int64) *pb.RangeRequest {
	r := &pb.RangeRequest{
		Key: genKey.Draw(t, "key"), RangeEnd: genEnd(t), Revision: genRev(t, current),
		Limit:    rapid.SampledFrom([]int64{0, 0, 1, 2}).Draw(t, "limit"),
		KeysOnly: rapid.Bool().Draw(t, "keysOnly"), CountOnly: rapid.IntRange(0, 5).Draw(t, "count") == 0,
	}
	if rapid.Bool().Draw(t, "sorted") {
		r.SortOrder = pb.RangeRequest_SortOrder(rapid.Int32Range(0, 2).Draw(t, "order"))
		r.SortTarget = pb.RangeRequest_SortTarget(rapid.Int32Range(0, 4).Draw(t, "target"))
	}
	if rapid.IntRange(0, 3).Draw(t, "filtered") == 0 {
		r.MinModRevision = rapid.Int64Range(0, current).Draw(t, "minMod")
		r.MaxCreateRevision = rapid.Int64Range(0, current).Draw(t, "maxCreate")
	}
	return r
}

func genPut(t *rapid.T) *pb.PutRequest {
	r := &pb.PutRequest{Key: genKey.Draw(t, "key"), Value: genValue.Draw(t, "value"), Lease: genLease.Draw(t, "lease"), PrevKv: rapid.Bool().Draw(t, "prev")}
	switch rapid.IntRange(0, 6).Draw(t, "ignore") {
	case 0:
		r.IgnoreValue, r.Value = true, nil
	case 1:
		r.IgnoreLease, r.Lease = true, 0
	}
	return r
}

func genDelete(t *rapid.T) *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: genKey.Draw(t, "key"), RangeEnd: genEnd(t), PrevKv: rapid.Bool().Draw(t, "prev")}
}

func genCompare(t *rapid.T, current int64) *pb.Compare {
	c := &pb.Compare{Key: genKey.Draw(t, "key"), RangeEnd: genEnd(t), Result: pb.Compare_CompareResult(rapid.Int32Range(0, 3).Draw(t, "result"))}
	n := rapid.Int64Range(0, 3).Draw(t, "n")
	switch c.Target = pb.Compare_CompareTarget(rapid.Int32Range(0, 4).Draw(t, "target")); c.Target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: n}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: genRev(t, current)}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: genRev(t, current)}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: genValue.Draw(t, "value")}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: n}
	}
	return c
}

func genTxn(t *rapid.T, current int64, depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range rapid.IntRange(0, 2).Draw(t, "compares") {
		r.Compare = append(r.Compare, genCompare(t, current))
	}
	for _, ops := range []*[]*pb.RequestOp{&r.Success, &r.Failure} {
		// No key is put twice: the store refuses that before it gets here.
		keys := rapid.Permutation([]string{"a", "ab", "abc", "b", "ba", "c"}).Draw(t, "keys")
		for range rapid.IntRange(0, 3).Draw(t, "ops") {
			*ops = append(*ops, genOp(t, current, depth, &keys))
		}
	}
	return r
}

func genOp(t *rapid.T, current int64, depth int, keys *[]string) *pb.RequestOp {
	switch kind := rapid.IntRange(0, 7).Draw(t, "op"); {
	case kind < 3 && depth == 0:
		put := genPut(t)
		put.Key, *keys = []byte((*keys)[0]), (*keys)[1:]
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}}
	case kind < 4 && depth == 0:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("z"), RangeEnd: []byte{0}}}}
	case kind < 5 && depth < 2:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: genTxn(t, current, depth+1)}}
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: genRange(t, current)}}
}

// same compares messages, headers aside.
func same(t *rapid.T, what string, got, want proto.Message) {
	t.Helper()
	got = proto.Clone(got)
	dropHeaders(got.ProtoReflect())
	want = proto.Clone(want)
	dropHeaders(want.ProtoReflect())
	if !proto.Equal(got, want) {
		t.Fatalf("%s\ngot  %v\nwant %v", what, got, want)
	}
}

func dropHeaders(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Name() == "header":
			m.Clear(f)
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				dropHeaders(v.List().Get(i).Message())
			}
		case f.Message() != nil && !f.IsMap():
			dropHeaders(v.Message())
		}
		return true
	})
}

// machine drives the state and the model with the same commands.
type machine struct {
	state *State
	model *model
	pins  []*Snapshot
}

func (m *machine) run(t *rapid.T, req Request) {
	// Through the encoding, as a log entry would go.
	entry, err := AppendCommand(NewEntry(nil), Command{Request: req})
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := DecodeEntry(entry)
	if err != nil || len(decoded) != 1 || !proto.Equal(decoded[0].Request, req) {
		t.Fatalf("decoded %v as %v: %v", req, decoded, err)
	}
	m.state.Prune()
	view := m.state.Freeze()
	got := m.state.ApplyEntry(1, 1, decoded)[0]
	if txn, ok := req.(*pb.TxnRequest); ok && ReadOnly(txn) {
		resp, err := view.Txn(txn)
		if !errors.Is(err, got.Err) {
			t.Fatalf("%v: got error %v from the view, %v from the state", req, err, got.Err)
		}
		if err == nil {
			same(t, "from the view", resp, got.Response.(proto.Message))
		}
	}
	want, wantErr := m.model.apply(req)
	if !errors.Is(got.Err, wantErr) {
		t.Fatalf("%v: got error %v, want %v", req, got.Err, wantErr)
	}
	if wantErr == nil {
		same(t, fmt.Sprint(req), got.Response.(proto.Message), want)
		if rev := got.Response.(interface{ GetHeader() *pb.ResponseHeader }).GetHeader().GetRevision(); rev != m.model.rev() {
			t.Fatalf("%v: header says revision %d, not %d", req, rev, m.model.rev())
		}
	}
}

func (m *machine) read(t *rapid.T, r *pb.RangeRequest) {
	got, err := m.state.Freeze().Range(r)
	want, wantErr := m.model.read(r, m.model.now())
	if !errors.Is(err, wantErr) {
		t.Fatalf("%v: got error %v, want %v", r, err, wantErr)
	}
	if wantErr == nil {
		same(t, fmt.Sprint(r), got, want)
	}
}

// check compares everything readable: each revision, each event, each lease.
func (m *machine) check(t *rapid.T) {
	view := m.state.Freeze()
	if view.Revision() != m.model.rev() || view.Compacted() != m.model.compacted {
		t.Fatalf("at revision %d compacted to %d, want %d and %d", view.Revision(), view.Compacted(), m.model.rev(), m.model.compacted)
	}
	for rev := max(1, m.model.compacted); rev <= m.model.rev(); rev++ {
		m.read(t, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
	}
	history := view.History(max(1, m.model.compacted))
	i := 0
	for _, want := range m.model.events {
		if want.Kv.ModRevision < m.model.compacted {
			continue
		}
		if i == len(history) {
			t.Fatalf("event missing: %v", want)
		}
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
	if i != len(history) {
		t.Fatalf("%d events too many", len(history)-i)
	}
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
		if !ok || gotTTL != ttl || fmt.Sprint(keys) != fmt.Sprint(want) {
			t.Fatalf("lease %d has %q, want %q", id, keys, want)
		}
	}
	m.checkSizes(t, view)
}

// checkSizes compares the running totals with a count.
func (m *machine) checkSizes(t *rapid.T, view *View) {
	if len(m.pins) > 0 {
		return // pruning waits, so more is held than is reachable
	}
	var want Stats
	seen := map[*Version]bool{}
	view.tree.Scan(func(v *Version) bool {
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

// TestModel runs random commands on the state machine and the model, and
// compares every answer and everything readable.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{state: New(), model: newModel()}
		t.Repeat(map[string]func(*rapid.T){
			"put":    func(t *rapid.T) { m.run(t, genPut(t)) },
			"put2":   func(t *rapid.T) { m.run(t, genPut(t)) },
			"delete": func(t *rapid.T) { m.run(t, genDelete(t)) },
			"txn":    func(t *rapid.T) { m.run(t, genTxn(t, m.model.rev(), 0)) },
			"range":  func(t *rapid.T) { m.read(t, genRange(t, m.model.rev())) },
			"grant": func(t *rapid.T) {
				m.run(t, &pb.LeaseGrantRequest{ID: genLease.Draw(t, "id"), TTL: rapid.Int64Range(1, 9).Draw(t, "ttl")})
			},
			"revoke": func(t *rapid.T) { m.run(t, &pb.LeaseRevokeRequest{ID: genLease.Draw(t, "id")}) },
			"compact": func(t *rapid.T) {
				m.run(t, &pb.CompactionRequest{Revision: rapid.Int64Range(m.model.compacted, m.model.rev()+1).Draw(t, "rev")})
			},
			"pin": func(t *rapid.T) {
				if len(m.pins) < 2 {
					m.pins = append(m.pins, m.state.Freeze().Snapshot())
				}
			},
			"unpin": func(t *rapid.T) {
				for _, s := range m.pins {
					s.Release()
				}
				m.pins = nil
				m.state.Prune()
			},
			"restart": func(t *rapid.T) {
				snapshot := m.state.Freeze().Snapshot()
				defer snapshot.Release()
				var file bytes.Buffer
				if _, err := snapshot.WriteTo(&file); err != nil {
					t.Fatal(err)
				}
				restored, err := Restore(&file)
				if err != nil {
					t.Fatal(err)
				}
				if a, b := m.state.Freeze().Hash(m.model.rev()), restored.Freeze().Hash(m.model.rev()); a != b {
					t.Fatalf("hash %x became %x", a, b)
				}
				m.state, m.pins = restored, nil
			},
			"": m.check,
		})
	})
}

// TestPinnedSnapshot writes a snapshot after much was compacted and deleted
// that it needs.
func TestPinnedSnapshot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{state: New(), model: newModel()}
		for range rapid.IntRange(1, 30).Draw(t, "before") {
			m.run(t, genPut(t))
			m.run(t, genDelete(t))
		}
		snapshot := m.state.Freeze().Snapshot()
		then := &machine{model: &model{states: m.model.states, events: m.model.events, compacted: 0, leases: map[int64]int64{}}}
		for range rapid.IntRange(1, 30).Draw(t, "after") {
			m.run(t, genPut(t))
			m.run(t, genDelete(t))
		}
		m.run(t, &pb.CompactionRequest{Revision: m.model.rev()})
		var file bytes.Buffer
		if _, err := snapshot.WriteTo(&file); err != nil {
			t.Fatal(err)
		}
		snapshot.Release()
		var err error
		if then.state, err = Restore(&file); err != nil {
			t.Fatal(err)
		}
		then.check(t)
	})
}

// TestViewsDoNotChange reads old views while and after the state moves on.
func TestViewsDoNotChange(t *testing.T) {
	s := New()
	var views []*View
	put := func(i int) {
		s.Apply(&pb.PutRequest{Key: fmt.Appendf(nil, "/k/%03d", i%50), Value: fmt.Appendf(nil, "%d", i)})
	}
	for i := range 500 {
		put(i)
		views = append(views, s.Freeze())
	}
	done := make(chan error)
	go func() {
		for i, v := range views {
			got, err := v.Range(&pb.RangeRequest{Key: fmt.Appendf(nil, "/k/%03d", i%50)})
			if err == nil && string(got.Kvs[0].Value) != fmt.Sprint(i) {
				err = fmt.Errorf("got %v", got)
			}
			if err != nil {
				done <- fmt.Errorf("view %d: %w", i, err)
				return
			}
		}
		done <- nil
	}()
	for i := range 5000 {
		put(i)
		if i%500 == 499 {
			s.Apply(&pb.CompactionRequest{Revision: s.rev - 10})
		}
		s.Freeze()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
