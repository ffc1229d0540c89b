// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"

	"github.com/tidwall/btree"
)

// keyspace is all keys, with what it takes to count those of a range without
// looking at each: the tree keeps how many items each of its nodes has.
type keyspace struct {
	// tree has every key's newest version, a deletion's mark included, until
	// compaction removes it.
	tree *btree.BTreeG[*Version]
	// dead has the deletions' marks of the tree alone. frozenDead is a copy of
	// it, nil if it has changed since.
	dead, frozenDead *btree.BTreeG[*Version]
	// turns are the revisions since the compaction that made a key or
	// deleted it. Views alias it as they do the history.
	turns turns
}

func newKeyspace() keyspace { return keyspace{tree: newTree(), dead: newTree()} }

// freeze returns a copy that does not change.
func (k *keyspace) freeze() keyspace {
	if k.frozenDead == nil {
		k.frozenDead = k.dead.Copy()
	}
	return keyspace{tree: k.tree.Copy(), dead: k.frozenDead, turns: k.turns}
}

// set makes v its key's newest version, and notes whether the key came or went.
func (k *keyspace) set(v *Version, existed bool) {
	k.tree.Set(v)
	if v.Deleted() {
		k.dead.Set(v)
		k.frozenDead = nil
	} else if !existed {
		k.notDead(v)
	}
	if v.Deleted() == existed {
		k.turns = k.turns.add(turnOf(v))
	}
}

// remove forgets a deletion's mark.
func (k *keyspace) remove(v *Version) {
	k.tree.Delete(v)
	k.notDead(v)
}

func (k *keyspace) notDead(v *Version) {
	if k.dead.Len() == 0 {
		return
	}
	if _, was := k.dead.Delete(v); was {
		k.frozenDead = nil
	}
}

// count returns how many keys there are in [key, end) at a revision that is
// readable. An end of one zero byte means all keys from key on.
//
// Those of now are what the tree has less what was deleted. Whatever came since
// the revision was not there then, and whatever went was.
func (k *keyspace) count(key, end []byte, rev int64) int64 {
	return items(k.tree, key, end) - items(k.dead, key, end) - k.turns.net(key, end, rev)
}

// items counts what a tree has in [key, end).
func items(tree *btree.BTreeG[*Version], key, end []byte) int64 {
	to := tree.Len()
	if to > 0 && !isOpenEnd(end) {
		to = rank(tree, end)
	}
	return int64(max(0, to-rank(tree, key)))
}

// rank is how many items of a tree are before a key.
func rank(tree *btree.BTreeG[*Version], key []byte) int {
	low, high := 0, tree.Len()
	for low < high {
		middle := int(uint(low+high) >> 1)
		if v, _ := tree.GetAt(middle); bytes.Compare(v.kv.Key, key) < 0 {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low
}
