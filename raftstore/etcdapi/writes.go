// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/pkg/v3/adt"
)

// checkWrites refuses a transaction that may write a key twice, nested transactions included. Only one branch of a
// transaction is run, so both branches may write the same keys.
func checkWrites(r *pb.TxnRequest) error {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		if len(ops) == 1 && ops[0].GetRequestTxn() == nil {
			continue // nearly every transaction of an API server
		}
		if _, err := collectWrites(ops); err != nil {
			return err
		}
	}
	return nil
}

// writes holds the keys that a list of operations may write. Collecting them takes time that grows with n log² n for n
// operations, however they are nested.
type writes struct{ puts, deletes adt.IntervalTree }

// collectWrites returns an error if a key may be written twice. As in etcd (server/etcdserver/api/v3rpc/key.go,
// checkIntervals), a key may be deleted any number of times.
func collectWrites(ops []*pb.RequestOp) (w writes, err error) {
	w = writes{adt.NewIntervalTree(), adt.NewIntervalTree()}
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			w.deleteRange(string(d.Key), string(d.RangeEnd))
		}
	}
	for _, op := range ops {
		p := op.GetRequestPut()
		if p == nil {
			continue
		}
		key := adt.NewStringAffinePoint(string(p.Key))
		if w.puts.Intersects(key) || w.deletes.Intersects(key) {
			return w, rpctypes.ErrGRPCDuplicateKey
		}
		w.puts.Insert(key, nil)
	}
	for _, op := range ops {
		txn := op.GetRequestTxn()
		if txn == nil {
			continue
		}
		yes, err := collectWrites(txn.Success)
		if err != nil {
			return w, err
		}
		no, err := collectWrites(txn.Failure)
		if err != nil {
			return w, err
		}
		nested := writes{union(yes.puts, no.puts), union(yes.deletes, no.deletes)}
		if overlaps(w.puts, nested.puts) || overlaps(w.puts, nested.deletes) || overlaps(w.deletes, nested.puts) {
			return w, rpctypes.ErrGRPCDuplicateKey
		}
		w = writes{union(w.puts, nested.puts), union(w.deletes, nested.deletes)}
	}
	return w, nil
}

func (w writes) deleteRange(key, end string) {
	switch {
	case end == "":
		w.deletes.Insert(adt.NewStringAffinePoint(key), nil)
	case end == "\x00":
		w.deletes.Insert(adt.NewStringAffineInterval(key, ""), nil) // all keys from there on
	case key < end:
		w.deletes.Insert(adt.NewStringAffineInterval(key, end), nil)
	}
}

var everyKey = adt.NewStringAffineInterval("\x00", "")

// union adds the smaller tree to the larger one, and returns that. So a range is moved only once for each time that its
// tree doubles.
func union(a, b adt.IntervalTree) adt.IntervalTree {
	if a.Len() < b.Len() {
		a, b = b, a
	}
	a.Union(b, everyKey)
	return a
}

func overlaps(a, b adt.IntervalTree) (yes bool) {
	if a.Len() < b.Len() {
		a, b = b, a
	}
	b.Visit(everyKey, func(v *adt.IntervalValue) bool {
		yes = a.Intersects(v.Ivl)
		return !yes
	})
	return yes
}
