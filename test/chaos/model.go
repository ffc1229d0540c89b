// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"fmt"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
)

// groupKeys is how many keys at most are judged together.
const groupKeys = 4

// keyState is what is known of a key. Revisions are zero while nobody has seen them: a write whose answer got lost
// has one that the next reader tells.
type keyState struct {
	exists      bool
	value       string
	create, mod int64
	version     int64
}

// state is that of a group of keys. It is comparable. Rev is the greatest revision that an operation was seen to
// have: what comes later has no smaller one.
type state struct {
	keys [groupKeys]keyState
	rev  int64
}

// modelOf is etcd's contract for the named keys.
func modelOf(keys []string) porcupine.Model {
	index := func(key string) int { return slices.Index(keys, key) }
	return porcupine.Model{
		Init: func() any { return state{} },
		Step: func(s, input, _ any) (bool, any) {
			st, op := s.(state), input.(*Op)
			if op.Outcome != OutcomeOK {
				return true, stepMaybe(st, op, index)
			}
			return stepOK(st, op, index)
		},
		DescribeOperation: func(input, _ any) string { return describeOp(input.(*Op)) },
		DescribeState:     func(s any) string { return describeState(s.(state), keys) },
	}
}

// stepOK takes an operation that was answered.
func stepOK(st state, op *Op, index func(string) int) (bool, any) {
	wrote := op.writes()
	if op.Rev < st.rev || (wrote && op.Rev == st.rev) {
		return false, st
	}
	st.rev = op.Rev
	switch op.Kind {
	case KindPut:
		st.put(index(op.Key), op.Value, op.Rev)
		return true, st
	case KindDelete:
		k := &st.keys[index(op.Key)]
		if k.exists != wrote {
			return false, st
		}
		*k = keyState{}
		return true, st
	case KindGet:
		return st.sees([]string{op.Key}, op.KVs, index), st
	case KindList:
		return st.seesAll(op.KVs, index), st
	}
	// A transaction.
	k := &st.keys[index(op.Key)]
	if !k.compare(op, op.Succeeded) {
		return false, st
	}
	if !op.Succeeded {
		if op.Kind == KindTxn {
			return st.seesAll(op.KVs, index), st
		}
		return st.sees([]string{op.Key}, op.KVs, index), st
	}
	st.apply(op, op.Rev, index)
	return true, st
}

// stepMaybe takes an operation whose answer is unknown, and that happens here if it can. That it did not happen is
// the same as that it happens after everything else.
func stepMaybe(st state, op *Op, index func(string) int) state {
	switch op.Kind {
	case KindPut:
		st.put(index(op.Key), op.Value, 0)
	case KindDelete:
		st.keys[index(op.Key)] = keyState{}
	case KindCAS, KindCASValue, KindTxn:
		if st.keys[index(op.Key)].compare(op, true) {
			st.apply(op, 0, index)
		}
	}
	return st
}

// compare says whether the transaction's comparison can come out as want, and notes what follows from that.
func (k *keyState) compare(op *Op, want bool) bool {
	if op.Kind == KindCASValue {
		return (k.exists && k.value == op.ExpectV) == want
	}
	if k.exists && k.mod == 0 && op.Expect != 0 {
		if want {
			k.mod = op.Expect
		}
		return true
	}
	return (k.mod == op.Expect && k.exists == (op.Expect != 0)) == want
}

// apply does a transaction's writes; rev is zero when it is unknown.
func (st *state) apply(op *Op, rev int64, index func(string) int) {
	if op.Kind != KindTxn {
		st.put(index(op.Key), op.Value, rev)
		return
	}
	for _, key := range op.Deletes {
		st.keys[index(key)] = keyState{}
	}
	for _, kv := range op.Puts {
		st.put(index(kv.Key), kv.Value, rev)
	}
}

func (st *state) put(i int, value string, rev int64) {
	k := &st.keys[i]
	if !k.exists {
		*k = keyState{exists: true, create: rev}
	}
	k.value, k.mod = value, rev
	k.version++
}

// sees says whether a read of keys can have returned kvs, and notes the revisions that it tells.
func (st *state) sees(keys []string, kvs []KV, index func(string) int) bool {
	seen := 0
	for _, key := range keys {
		k := &st.keys[index(key)]
		i := slices.IndexFunc(kvs, func(kv KV) bool { return kv.Key == key })
		if k.exists != (i >= 0) {
			return false
		}
		if i < 0 {
			continue
		}
		seen++
		kv := kvs[i]
		if kv.Value != k.value || kv.Version != k.version || !learn(&k.mod, kv.Mod) || !learn(&k.create, kv.Create) {
			return false
		}
	}
	return seen == len(kvs)
}

func (st *state) seesAll(kvs []KV, index func(string) int) bool {
	seen := 0
	for _, kv := range kvs {
		if index(kv.Key) < 0 || !st.sees([]string{kv.Key}, []KV{kv}, index) {
			return false
		}
		seen++
	}
	for _, k := range st.keys {
		if k.exists {
			seen--
		}
	}
	return seen == 0
}

func learn(known *int64, seen int64) bool {
	if *known == 0 {
		*known = seen
	}
	return *known == seen
}

func describeOp(o *Op) string {
	var b strings.Builder
	fmt.Fprintf(&b, "#%d %s %s %s", o.ID, o.Server, o.Kind, short(o.Key))
	switch o.Kind {
	case KindPut:
		fmt.Fprintf(&b, "=%s", o.Value)
	case KindCAS:
		fmt.Fprintf(&b, " if mod %d =%s", o.Expect, o.Value)
	case KindCASValue:
		fmt.Fprintf(&b, " if %s =%s", o.ExpectV, o.Value)
	case KindTxn:
		fmt.Fprintf(&b, " if mod %d", o.Expect)
		for _, kv := range o.Puts {
			fmt.Fprintf(&b, " %s=%s", short(kv.Key), kv.Value)
		}
		for _, key := range o.Deletes {
			fmt.Fprintf(&b, " delete %s", short(key))
		}
	}
	if o.Outcome != OutcomeOK {
		fmt.Fprintf(&b, " → %s: %s", o.Outcome, o.Err)
		return b.String()
	}
	fmt.Fprintf(&b, " → rev %d", o.Rev)
	switch o.Kind {
	case KindCAS, KindCASValue, KindTxn:
		fmt.Fprintf(&b, " %v", o.Succeeded)
	case KindDelete:
		fmt.Fprintf(&b, " deleted %d", o.Deleted)
	}
	for _, kv := range o.KVs {
		fmt.Fprintf(&b, " %s=%s@%d v%d", short(kv.Key), kv.Value, kv.Mod, kv.Version)
	}
	return b.String()
}

// short is a key without what its group has in common.
func short(key string) string { return key[strings.LastIndexByte(key, '/')+1:] }

func describeState(st state, keys []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "rev ≥ %d", st.rev)
	for i, k := range st.keys {
		if k.exists {
			fmt.Fprintf(&b, ", %s=%s@%d v%d", short(keys[i]), k.value, k.mod, k.version)
		}
	}
	return b.String()
}
