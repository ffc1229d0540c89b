// SPDX-License-Identifier: Apache-2.0

// Package history judges what the clients of a store and its watches saw: whether it is linearizable, and whether all
// that was answered is true of the revision that it names. Revisions order all writes, so no order has to be searched
// for.
//
// The scenarios of raftstore and test/chaos write such histories. Every value is written once.
package history

import (
	"fmt"
	"math"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Kinds of Op.
const (
	KindPut          = "put"
	KindGet          = "get"
	KindSerializable = "serializable get"
	KindDelete       = "delete"
	KindCAS          = "cas" // writes if the modification revision of Key is Expect
	KindCASValue     = "cas value"
	KindList         = "list"
)

// Outcomes of Op.
const (
	OutcomeOK     = "ok"
	OutcomeFailed = "failed" // it did not happen and never will
	OutcomeMaybe  = "maybe"  // it may have happened, or still will
)

// Never is the return time of an operation that may still happen.
const Never = math.MaxInt64

// KV is a key as a client saw it.
type KV struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Create  int64  `json:"create"`
	Mod     int64  `json:"mod"`
	Version int64  `json:"version"`
	Lease   int64  `json:"lease,omitempty"`
}

// KVOf is a key of etcd's API.
func KVOf(kv *mvccpb.KeyValue) KV {
	return KV{
		Key: string(kv.Key), Value: string(kv.Value), Create: kv.CreateRevision, Mod: kv.ModRevision,
		Version: kv.Version, Lease: kv.Lease,
	}
}

// KVsOf are keys of etcd's API.
func KVsOf(kvs []*mvccpb.KeyValue) []KV {
	var out []KV
	for _, kv := range kvs {
		out = append(out, KVOf(kv))
	}
	return out
}

// Op is one operation of one client: what it asked for, when, and what it got. Times are those of the history's clock.
type Op struct {
	ID      int    `json:"id"`
	Client  int    `json:"client"`
	Server  string `json:"server"`
	Boot    int    `json:"boot"` // how often the server's process had started; 0 if it ended meanwhile
	Kind    string `json:"kind"`
	Key     string `json:"key,omitempty"`    // what it compares, or reads
	Prefix  string `json:"prefix,omitempty"` // it reads all keys with it instead
	Expect  int64  `json:"expect,omitempty"`
	ExpectV string `json:"expectValue,omitempty"` // KindCASValue
	Term    uint64 `json:"term,omitempty"`        // only the leader of this term may do it

	Puts    []KV     `json:"puts,omitempty"` // Key and Value of each
	Deletes []string `json:"deletes,omitempty"`

	Call    int64  `json:"call"`
	Return  int64  `json:"return"`
	Outcome string `json:"outcome"`
	Err     string `json:"err,omitempty"`

	Rev       int64 `json:"rev,omitempty"`       // the answer's header
	Succeeded bool  `json:"succeeded,omitempty"` // Puts and Deletes were done; otherwise it has read
	Deleted   int64 `json:"deleted,omitempty"`   // keys, where there are no Puts
	KVs       []KV  `json:"kvs,omitempty"`       // what was read, also because a comparison failed
}

// Wrote says whether the operation, as far as its client knows, changed something at revision Rev.
func (o *Op) Wrote() bool {
	return o.Outcome == OutcomeOK && o.Succeeded && (len(o.Puts) > 0 || o.Deleted > 0)
}

func (o *Op) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "#%d %s %s %s%s", o.ID, o.Server, o.Kind, o.Key, o.Prefix)
	switch o.Kind {
	case KindCAS:
		fmt.Fprintf(&b, " if mod %d", o.Expect)
	case KindCASValue:
		fmt.Fprintf(&b, " if %s", o.ExpectV)
	}
	for _, kv := range o.Puts {
		fmt.Fprintf(&b, " %s=%s", kv.Key, kv.Value)
	}
	for _, key := range o.Deletes {
		fmt.Fprintf(&b, " delete %s", key)
	}
	fmt.Fprintf(&b, " in term %d from %d to %d", o.Term, o.Call, o.Return)
	if o.Outcome != OutcomeOK {
		return fmt.Sprintf("%s → %s: %s", b.String(), o.Outcome, o.Err)
	}
	return fmt.Sprintf("%s → revision %d, done %v, deleted %d, found %+v", b.String(), o.Rev, o.Succeeded, o.Deleted, o.KVs)
}
