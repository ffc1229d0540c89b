// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"errors"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// checkReadOnly answers a transaction from a view too.
func (m *machine) checkReadOnly(t *rapid.T, commands []Command) {
	txn, ok := commands[0].Request.(*pb.TxnRequest)
	if !ok || !ReadOnly(txn) {
		return
	}
	if Added(txn) > 0 {
		t.Fatalf("%v is read only, but grows", txn)
	}
	resp, err := m.state.Freeze().Txn(txn)
	want, wantErr := m.model.apply(txn, 0)
	if !errors.Is(err, wantErr) {
		t.Fatalf("%v: got error %v from the view, want %v", txn, err, wantErr)
	}
	if err == nil {
		same(t, "from the view", resp, want)
	}
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
	testenv.NoError(t, <-done)
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
