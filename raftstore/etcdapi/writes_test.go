// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"encoding/binary"
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"pgregory.net/rapid"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func opPut(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
}

func opDelete(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)},
	}}
}

func opTxn(r *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
}

// writesTwice is checkWrites as plainly as can be: it compares any two lists'
// operations with one another.
func writesTwice(ops []*pb.RequestOp) bool {
	var parts [][]*pb.RequestOp // what each operation of the list may write
	for _, op := range ops {
		if txn := op.GetRequestTxn(); txn != nil {
			if writesTwice(txn.Success) || writesTwice(txn.Failure) {
				return true
			}
		}
		parts = append(parts, writesOf(op))
	}
	for i, a := range parts {
		for _, b := range parts[:i] {
			for _, x := range a {
				for _, y := range b {
					if sameKey(x, y) || sameKey(y, x) {
						return true
					}
				}
			}
		}
	}
	return false
}

func writesOf(op *pb.RequestOp) (out []*pb.RequestOp) {
	txn := op.GetRequestTxn()
	if txn == nil {
		return []*pb.RequestOp{op}
	}
	for _, ops := range [][]*pb.RequestOp{txn.Success, txn.Failure} {
		for _, op := range ops {
			out = append(out, writesOf(op)...)
		}
	}
	return out
}

// sameKey says whether x puts a key that y writes.
func sameKey(x, y *pb.RequestOp) bool {
	put := x.GetRequestPut()
	if put == nil {
		return false
	}
	if p := y.GetRequestPut(); p != nil {
		return string(p.Key) == string(put.Key)
	}
	d := y.GetRequestDeleteRange()
	return d != nil && mvcc.InRange(put.Key, d.Key, d.RangeEnd)
}

func TestTransactionsThatWriteTwice(t *testing.T) {
	twice, once := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		var draw func(depth int) *pb.TxnRequest
		key := rapid.StringMatching(`[abcdef]{1,2}`)
		end := rapid.OneOf(rapid.Just(""), rapid.Just("\x00"), key)
		draw = func(depth int) *pb.TxnRequest {
			r := &pb.TxnRequest{}
			for _, ops := range []*[]*pb.RequestOp{&r.Success, &r.Failure} {
				for range rapid.IntRange(0, 3).Draw(t, "operations") {
					switch kind := rapid.IntRange(0, 3+depth).Draw(t, "kind"); {
					case kind <= 2:
						*ops = append(*ops, opPut(key.Draw(t, "key")))
					case kind == 3:
						*ops = append(*ops, opDelete(key.Draw(t, "key"), end.Draw(t, "end")))
					default:
						*ops = append(*ops, opTxn(draw(depth-1)))
					}
				}
			}
			return r
		}
		r := draw(3)
		want := writesTwice(r.Success) || writesTwice(r.Failure)
		if err := checkWrites(r); errors.Is(err, rpctypes.ErrGRPCDuplicateKey) != want {
			t.Fatalf("%v for %v, want %v", err, r, want)
		}
		if want {
			twice++
		} else {
			once++
		}
	})
	testenv.False(t, twice < 10 || once < 10, "%d transactions write a key twice, %d do not: the test says little", twice, once)
}

// manyOps nests transactions so that there are many operations and none too
// many in a list: half of them put keys, half delete others.
func manyOps(count, width int) *pb.TxnRequest {
	n := 0
	key := func(kind byte) string {
		return string(binary.BigEndian.AppendUint32([]byte{kind}, uint32(n)))
	}
	var level func(depth int) *pb.TxnRequest
	level = func(depth int) *pb.TxnRequest {
		r := &pb.TxnRequest{}
		for i := 0; i < width && n < count; i++ {
			switch n++; {
			case depth > 0:
				n--
				r.Success = append(r.Success, opTxn(level(depth-1)))
			case n%2 == 0:
				r.Success = append(r.Success, opPut(key('p')))
			default:
				r.Success = append(r.Success, opDelete(key('d'), ""))
			}
		}
		return r
	}
	return level(2)
}

// TestBudgetOfNestedTransactions: as in etcd, a transaction in another one may
// only have what its own list leaves of the 128 operations.
func TestBudgetOfNestedTransactions(t *testing.T) {
	a := &API{o: Options{MaxTxnOps: 128, MaxRequestBytes: 3 << 19}}
	testenv.ErrorIs(t, a.checkTxn(manyOps(50_000, 128)), rpctypes.ErrGRPCTooManyOps, "three levels of 128 operations each")
	testenv.Check(t, a.checkTxn(manyOps(50_000, 42)), "three levels of 42 operations each")
	two := func(inner int) *pb.TxnRequest {
		nested := &pb.TxnRequest{}
		for range inner {
			nested.Success = append(nested.Success, opDelete("x", ""))
		}
		r := &pb.TxnRequest{Success: []*pb.RequestOp{opTxn(nested)}}
		for range 27 {
			r.Success = append(r.Success, opDelete("x", ""))
		}
		return r
	}
	testenv.Check(t, a.checkTxn(two(100)), "28 and 100 operations")
	testenv.ErrorIs(t, a.checkTxn(two(101)), rpctypes.ErrGRPCTooManyOps, "28 and 101 operations")
}
