// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"github.com/tidwall/btree"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// checkWrites refuses a transaction that may write a key twice, nested transactions included. Only one branch of a
// transaction is run, so both branches may write the same keys.
func checkWrites(r *pb.TxnRequest) error {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		if len(ops) == 1 && ops[0].GetRequestTxn() == nil {
			continue // nearly every transaction of an API server
		}
		if _, err := touches(ops); err != nil {
			return err
		}
	}
	return nil
}

// touched holds the keys that a list of operations may write. Collecting them takes time that grows with n log² n for n
// operations, however they are nested.
type touched struct {
	puts btree.Set[string]
	// deletes are ranges that do not overlap: from the first key (the map's key) to the end, which is not part of the
	// range. An end of "" means no end.
	deletes btree.Map[string, string]
}

// touches collects the keys that a list of operations may write. It returns an error if a key may be written twice.
func touches(ops []*pb.RequestOp) (*touched, error) {
	t := &touched{}
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			t.deleteRange(d)
		}
	}
	for _, op := range ops {
		p := op.GetRequestPut()
		if p == nil {
			continue
		}
		key := string(p.Key)
		if t.puts.Contains(key) || t.deletesKey(key) {
			return nil, rpctypes.ErrGRPCDuplicateKey
		}
		t.puts.Insert(key)
	}
	for _, op := range ops {
		txn := op.GetRequestTxn()
		if txn == nil {
			continue
		}
		yes, err := touches(txn.Success)
		if err != nil {
			return nil, err
		}
		no, err := touches(txn.Failure)
		if err != nil {
			return nil, err
		}
		nested := union(yes, no)
		if t.meets(nested) {
			return nil, rpctypes.ErrGRPCDuplicateKey
		}
		t = union(t, nested)
	}
	return t, nil
}

func (t *touched) size() int { return t.puts.Len() + t.deletes.Len() }

// union adds the smaller set to the larger one, and returns that. So a key is moved only once for each time that its
// set doubles.
func union(a, b *touched) *touched {
	if a.size() < b.size() {
		a, b = b, a
	}
	b.puts.Scan(func(key string) bool {
		a.puts.Insert(key)
		return true
	})
	b.deletes.Scan(func(from, end string) bool {
		a.addRange(from, end)
		return true
	})
	return a
}

// meets says whether there is a key that one set puts and the other writes.
func (t *touched) meets(o *touched) bool {
	if t.size() < o.size() {
		t, o = o, t
	}
	met := false
	o.puts.Scan(func(key string) bool {
		met = t.puts.Contains(key) || t.deletesKey(key)
		return !met
	})
	o.deletes.Scan(func(from, end string) bool {
		met = met || t.putsWithin(from, end)
		return !met
	})
	return met
}

func (t *touched) deleteRange(d *pb.DeleteRangeRequest) {
	from, end := string(d.Key), string(d.RangeEnd)
	switch {
	case end == "":
		t.addRange(from, from+"\x00") // the one key
	case end == "\x00":
		t.addRange(from, "") // all keys from there on
	case from < end:
		t.addRange(from, end)
	}
}

// addRange adds a range to deletes. It merges the range with all ranges that overlap or touch it.
func (t *touched) addRange(from, end string) {
	t.deletes.Descend(from, func(f, e string) bool {
		if reaches(e, from) {
			from, end = f, later(e, end)
		}
		return false
	})
	var within []string
	t.deletes.Ascend(from, func(f, e string) bool {
		if !reaches(end, f) {
			return false
		}
		end = later(end, e)
		within = append(within, f)
		return true
	})
	for _, f := range within {
		t.deletes.Delete(f)
	}
	t.deletes.Set(from, end)
}

// reaches says whether a range with this end extends to key or beyond.
func reaches(end, key string) bool { return end == "" || end >= key }

func later(a, b string) string {
	if a == "" || b == "" {
		return ""
	}
	return max(a, b)
}

func (t *touched) deletesKey(key string) (yes bool) {
	t.deletes.Descend(key, func(_, end string) bool {
		yes = end == "" || key < end
		return false
	})
	return yes
}

func (t *touched) putsWithin(from, end string) (yes bool) {
	t.puts.Ascend(from, func(key string) bool {
		yes = end == "" || key < end
		return false
	})
	return yes
}
