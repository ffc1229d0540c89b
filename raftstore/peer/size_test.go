// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"testing"

	"github.com/hashicorp/raft"
)

// TestMessageSizeFollowsResponseTime: messages grow while they are answered quickly, and shrink when they are not
// answered in time. An entry that is larger goes alone.
func TestMessageSizeFollowsResponseTime(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		entry := func(index uint64, bytes int) *raft.Log {
			return &raft.Log{Index: index, Term: 3, Data: make([]byte, bytes-EntryBytes(&raft.Log{}))}
		}
		a := start(t, m, 0, "a.1", func(o *Options) {
			o.Next = func(_, after uint64, bytes int) (out []*raft.Log) {
				for ; bytes >= 1<<10; bytes -= 1 << 10 {
					after++
					out = append(out, entry(after, 1<<10))
				}
				return out
			}
		})
		b := start(t, m, 1, "b.1", nil)
		newest := uint64(1)
		message := func(bytes ...int) (count int, err error) {
			r := a.entries(3, newest+1)
			r.Entries = r.Entries[:0]
			for i, size := range bytes {
				r.Entries = append(r.Entries, entry(newest+1+uint64(i), size))
			}
			answer := new(raft.AppendEntriesResponse)
			if err = a.AppendEntries(b.id, b.address, r, answer); err == nil && !answer.Success {
				t.Fatalf("%+v", answer)
			}
			if err == nil {
				newest = r.Entries[len(r.Entries)-1].Index
			}
			return len(r.Entries), err
		}
		wants := func(entries int, bytes ...int) {
			t.Helper()
			if count, err := message(bytes...); err != nil || count != entries {
				t.Errorf("%d entries, not %d: %v", count, entries, err)
			}
		}
		for _, kb := range []int{64, 128, 256, 512, 1024, 1024} {
			wants(kb, 1<<10, 1<<10)
		}
		wants(2, 600<<10, 400<<10, 600<<10) // raft's, which are too many
		wants(1, 1<<20+1, 1<<10)

		m.Rate("a", "b", 8<<10)
		for _, kb := range []int{1024, 512, 256, 128, 64} {
			if count, err := message(1<<10, 1<<10); err == nil || count != kb {
				t.Errorf("%d entries, not %d: %v", count, kb, err)
			}
		}
		wants(32, 1<<10, 1<<10)
		m.Rate("a", "b", 64<<10)
		wants(1, 1536<<10) // a client's largest write takes 24 s
	})
}
