// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"math"
	"slices"
	"sync"
	"time"
)

// Kinds of Op.
const (
	KindPut          = "put"
	KindGet          = "get"
	KindSerializable = "serializable get"
	KindDelete       = "delete"
	KindCAS          = "cas" // put if the key's modification revision is Expect
	KindCASValue     = "cas value"
	KindList         = "list"
	KindTxn          = "txn" // over several keys
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

// Op is one operation of one client: what it asked for, when, and what it got. Times are nanoseconds since the
// history began.
type Op struct {
	ID      int    `json:"id"`
	Client  int    `json:"client"`
	Server  string `json:"server"`
	Boot    int    `json:"boot"` // how often the server's process had started
	Kind    string `json:"kind"`
	Group   string `json:"group"` // keys that are judged together
	Key     string `json:"key,omitempty"`
	Value   string `json:"value,omitempty"`
	Expect  int64  `json:"expect,omitempty"` // KindCAS; KindTxn: of Key
	ExpectV string `json:"expectValue,omitempty"`

	Puts    []KV     `json:"puts,omitempty"` // KindTxn: Key and Value of each
	Deletes []string `json:"deletes,omitempty"`

	Call    int64  `json:"call"`
	Return  int64  `json:"return"`
	Outcome string `json:"outcome"`
	Err     string `json:"err,omitempty"`

	Rev       int64 `json:"rev,omitempty"`       // the answer's header
	Succeeded bool  `json:"succeeded,omitempty"` // a transaction's
	Deleted   int64 `json:"deleted,omitempty"`
	KVs       []KV  `json:"kvs,omitempty"` // what was read, also in a transaction's else
}

// writes says whether the operation, as far as its client knows, changed something at revision Rev.
func (o *Op) writes() bool {
	if o.Outcome != OutcomeOK {
		return false
	}
	switch o.Kind {
	case KindPut:
		return true
	case KindDelete:
		return o.Deleted > 0
	case KindCAS, KindCASValue, KindTxn:
		return o.Succeeded
	}
	return false
}

// history collects operations from many clients.
type history struct {
	start time.Time

	mu  sync.Mutex
	ops []*Op
}

func newHistory() *history { return &history{start: time.Now()} }

func (h *history) now() int64 { return time.Since(h.start).Nanoseconds() }

// add keeps a finished operation.
func (h *history) add(o *Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o.ID = len(h.ops)
	h.ops = append(h.ops, o)
}

func (h *history) all() []*Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ops)
}
