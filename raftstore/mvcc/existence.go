// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"cmp"
	"slices"
	"sort"
)

// changesPerPage is the number of changes in a page. Up to that many are visited one by one. More are searched by key.
const changesPerPage = 512

// existenceChange is a revision that created or deleted a key. It keeps the key in memory, but no version.
type existenceChange struct {
	key []byte
	rev int64
	net int32 // 1 for a created key, -1 for a deleted one
}

func existenceChangeOf(v *Version) existenceChange {
	if v.Deleted() {
		return existenceChange{v.kv.Key, v.kv.ModRevision, -1}
	}
	return existenceChange{v.kv.Key, v.kv.ModRevision, 1}
}

// existenceChanges are sorted by revision. They consist of full pages, which are sorted by key and never change, and of
// the newest changes in order of arrival. So all changes of a section of the history are counted in the time of a few
// hundred comparisons, however many they are.
//
// A copy does not change when changes are added to the original.
type existenceChanges struct {
	pages  []*changePage
	recent []existenceChange
}

// changePage holds the changes of successive revisions.
type changePage struct {
	firstRev, lastRev int64 // revisions
	byKey             []existenceChange
	net               []int32 // net[i] is the sum of byKey[:i]
}

// withChange returns the changes, and next after them.
func (t existenceChanges) withChange(next existenceChange) existenceChanges {
	t.recent = append(t.recent, next)
	if len(t.recent) == changesPerPage {
		t.pages, t.recent = append(t.pages, newChangePage(t.recent)), nil
	}
	return t
}

func newChangePage(all []existenceChange) *changePage {
	p := &changePage{firstRev: all[0].rev, lastRev: all[len(all)-1].rev, byKey: slices.Clone(all), net: make([]int32, len(all)+1)}
	slices.SortFunc(p.byKey, func(a, b existenceChange) int { return cmp.Or(bytes.Compare(a.key, b.key), cmp.Compare(a.rev, b.rev)) })
	for i, t := range p.byKey {
		p.net[i+1] = p.net[i] + t.net
	}
	return p
}

// net returns how many more keys of [key, end) were created than deleted after a revision.
func (t existenceChanges) net(key, end []byte, rev int64) (n int64) {
	for i := len(t.recent) - 1; i >= 0 && t.recent[i].rev > rev; i-- {
		if InRange(t.recent[i].key, key, end) {
			n += int64(t.recent[i].net)
		}
	}
	for i := len(t.pages) - 1; i >= 0 && t.pages[i].lastRev > rev; i-- {
		n += t.pages[i].netAfter(key, end, rev)
	}
	return n
}

// netAfter returns how many more keys of [key, end) the page has created than deleted after a revision.
func (p *changePage) netAfter(key, end []byte, rev int64) (n int64) {
	from, to := p.search(key), len(p.byKey)
	if !isOpenEnd(end) {
		to = max(from, p.search(end))
	}
	if p.firstRev > rev {
		return int64(p.net[to] - p.net[from])
	}
	for _, t := range p.byKey[from:to] {
		if t.rev > rev {
			n += int64(t.net)
		}
	}
	return n
}

// search returns the index of the first change with this key or a later one.
func (p *changePage) search(key []byte) int {
	return sort.Search(len(p.byKey), func(i int) bool { return bytes.Compare(p.byKey[i].key, key) >= 0 })
}

// keepSince returns the changes after a revision, and less than a page of earlier ones. It does not keep the others in
// memory.
func (t existenceChanges) keepSince(rev int64) existenceChanges {
	drop := 0
	for drop < len(t.pages) && t.pages[drop].lastRev <= rev {
		drop++
	}
	if drop > 0 {
		t.pages = slices.Clone(t.pages[drop:])
	}
	if len(t.pages) == 0 {
		kept := sort.Search(len(t.recent), func(i int) bool { return t.recent[i].rev > rev })
		t.recent = slices.Clone(t.recent[kept:])
	}
	return t
}
