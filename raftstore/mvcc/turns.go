// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"cmp"
	"slices"
	"sort"
)

// pageOfTurns is the number of turns in a page. Up to that many turns are visited one by one. More are searched by key.
const pageOfTurns = 512

// A turn is a revision that created or deleted a key. It keeps the key in memory, but no version.
type turn struct {
	key []byte
	rev int64
	net int32 // 1 for a created key, -1 for a deleted one
}

func turnOf(v *Version) turn {
	if v.Deleted() {
		return turn{v.kv.Key, v.kv.ModRevision, -1}
	}
	return turn{v.kv.Key, v.kv.ModRevision, 1}
}

// turns are sorted by revision. They consist of full pages, which are sorted by key and never change, and of the last
// turns in order of arrival. So all turns of a section of the history are counted in the time of a few hundred
// comparisons, however many they are.
//
// A copy does not change when turns are added to the original.
type turns struct {
	pages []*page
	rest  []turn
}

// page holds turns of successive revisions.
type page struct {
	first, last int64 // revisions
	byKey       []turn
	net         []int32 // net[i] is the sum of byKey[:i]
}

// add returns the turns with one more.
func (t turns) add(next turn) turns {
	t.rest = append(t.rest, next)
	if len(t.rest) == pageOfTurns {
		t.pages, t.rest = append(t.pages, newPage(t.rest)), nil
	}
	return t
}

func newPage(all []turn) *page {
	p := &page{first: all[0].rev, last: all[len(all)-1].rev, byKey: slices.Clone(all), net: make([]int32, len(all)+1)}
	slices.SortFunc(p.byKey, func(a, b turn) int { return cmp.Or(bytes.Compare(a.key, b.key), cmp.Compare(a.rev, b.rev)) })
	for i, t := range p.byKey {
		p.net[i+1] = p.net[i] + t.net
	}
	return p
}

// net returns how many more keys of [key, end) were created than deleted after a revision.
func (t turns) net(key, end []byte, rev int64) (n int64) {
	for i := len(t.rest) - 1; i >= 0 && t.rest[i].rev > rev; i-- {
		if InRange(t.rest[i].key, key, end) {
			n += int64(t.rest[i].net)
		}
	}
	for i := len(t.pages) - 1; i >= 0 && t.pages[i].last > rev; i-- {
		n += t.pages[i].after(key, end, rev)
	}
	return n
}

// after returns the same as turns.net, for one page.
func (p *page) after(key, end []byte, rev int64) (n int64) {
	from, to := p.search(key), len(p.byKey)
	if !isOpenEnd(end) {
		to = max(from, p.search(end))
	}
	if p.first > rev {
		return int64(p.net[to] - p.net[from])
	}
	for _, t := range p.byKey[from:to] {
		if t.rev > rev {
			n += int64(t.net)
		}
	}
	return n
}

// search returns the index of the first turn with this key or a later one.
func (p *page) search(key []byte) int {
	return sort.Search(len(p.byKey), func(i int) bool { return bytes.Compare(p.byKey[i].key, key) >= 0 })
}

// since returns the turns after a revision, and less than a page of earlier ones. The others are not kept in memory.
func (t turns) since(rev int64) turns {
	drop := 0
	for drop < len(t.pages) && t.pages[drop].last <= rev {
		drop++
	}
	if drop > 0 {
		t.pages = slices.Clone(t.pages[drop:])
	}
	if len(t.pages) == 0 {
		kept := sort.Search(len(t.rest), func(i int) bool { return t.rest[i].rev > rev })
		t.rest = slices.Clone(t.rest[kept:])
	}
	return t
}
