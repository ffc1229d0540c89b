// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"

	"github.com/tidwall/btree"
)

// keyspace holds all keys, and what is needed to count those of a range without visiting each. For that, the tree keeps
// the number of items below each of its nodes.
type keyspace struct {
	// tree has every key's newest version. That may be a deletion mark, until compaction removes it.
	tree *btree.BTreeG[*Version]
	// deleted has only the deletion marks of tree. frozenDeleted is a copy of deleted, nil if deleted has changed
	// since.
	deleted, frozenDeleted *btree.BTreeG[*Version]
	// existence has the creations and deletions of keys since the compaction. Views alias it, as they do the history.
	existence existenceChanges
}

func newKeyspace() keyspace { return keyspace{tree: newTree(), deleted: newTree()} }

// freeze returns a copy that does not change.
func (k *keyspace) freeze() keyspace {
	if k.frozenDeleted == nil {
		k.frozenDeleted = k.deleted.Copy()
	}
	return keyspace{tree: k.tree.Copy(), deleted: k.frozenDeleted, existence: k.existence}
}

// set makes v its key's newest version, and notes whether that created or deleted the key.
func (k *keyspace) set(v *Version, existed bool) {
	k.tree.Set(v)
	if v.Deleted() {
		k.deleted.Set(v)
		k.frozenDeleted = nil
	} else if !existed {
		k.notDead(v)
	}
	if v.Deleted() == existed {
		k.existence = k.existence.withChange(existenceChangeOf(v))
	}
}

// remove removes a deletion mark, which compaction has made unnecessary, from both trees.
func (k *keyspace) remove(v *Version) {
	k.tree.Delete(v)
	k.notDead(v)
}

func (k *keyspace) notDead(v *Version) {
	if k.deleted.Len() == 0 {
		return
	}
	if _, was := k.deleted.Delete(v); was {
		k.frozenDeleted = nil
	}
}

// count returns how many keys there are in [key, end) at a revision that is
// readable. An end of one zero byte means all keys from key on.
//
// The result is the number of the tree's items without the deletion marks, less the keys created since the revision,
// plus the keys deleted since.
func (k *keyspace) count(key, end []byte, rev int64) int64 {
	return countItems(k.tree, key, end) - countItems(k.deleted, key, end) - k.existence.net(key, end, rev)
}

// countItems returns how many items of a tree are in [key, end).
func countItems(tree *btree.BTreeG[*Version], key, end []byte) int64 {
	to := tree.Len()
	if to > 0 && !isOpenEnd(end) {
		to = countBefore(tree, end)
	}
	return int64(max(0, to-countBefore(tree, key)))
}

// countBefore returns how many items of a tree are before a key.
func countBefore(tree *btree.BTreeG[*Version], key []byte) int {
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
