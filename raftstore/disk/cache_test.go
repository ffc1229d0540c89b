// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// sameEntry compares an entry from memory with one from the disk, which knows
// no empty slices and no time zones.
func sameEntry(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && bytes.Equal(a.Data, b.Data) &&
		bytes.Equal(a.Extensions, b.Extensions) && a.AppendedAt.Equal(b.AppendedAt)
}

func drawEntry(t *rapid.T, index uint64) *raft.Log {
	e := &raft.Log{
		Index: index, Term: rapid.Uint64Range(1, 4).Draw(t, "term"), Type: raft.LogCommand,
		Data:       rapid.SliceOfN(rapid.Byte(), 0, 1<<rapid.IntRange(0, 11).Draw(t, "size")).Draw(t, "data"),
		AppendedAt: time.Unix(0, rapid.Int64Range(1, 1<<40).Draw(t, "time")),
	}
	if rapid.Bool().Draw(t, "extended") {
		e.Extensions = []byte("extension")
	}
	return e
}

// TestCachedLogMatchesDisk does what raft does, and more, to a log with a cache, and
// compares what it reads with what is on disk: always the same, whatever is
// read back, also over cuts, leaps and overwriting.
func TestCachedLogMatchesDisk(t *testing.T) {
	scratch := memoryDir(t)
	rapid.Check(t, func(t *rapid.T) {
		path := testenv.Must(os.MkdirTemp(scratch, ""))(t)
		o := options(path)
		o.SegmentSize = 16 << 10
		d := testenv.Must(Open(o))(t)
		defer d.Close()
		most := rapid.Int64Range(1, 10_000).Draw(t, "cache")
		cache := d.CachedLog(most).(*cachedLog)
		next := uint64(1)
		wanted := false // the newest entry, when it was stored
		store := func(t *rapid.T) {
			var batch []*raft.Log
			unread := cache.unreadBytes.Load()
			for range rapid.IntRange(1, 5).Draw(t, "entries") {
				e := drawEntry(t, next)
				if wanted = unread < most/unreadFraction; memorySize(e) <= most {
					unread += memorySize(e)
				}
				batch = append(batch, e)
				next++
			}
			testenv.NoError(t, cache.StoreLogs(batch))
		}
		t.Repeat(map[string]func(*rapid.T){
			"store":      store,
			"store more": store,
			"delete": func(t *rapid.T) {
				first, _ := cache.FirstIndex()
				last, _ := cache.LastIndex()
				if last == 0 {
					t.Skip("nothing there") // rapid draws another action
				}
				wanted = false
				from := rapid.Uint64Range(first-1, last+1).Draw(t, "from")
				to := rapid.Uint64Range(first-1, last+1).Draw(t, "to")
				err := cache.DeleteRange(from, to)
				if middle := from <= to && from > first && to < last; (err != nil) != middle {
					t.Fatalf("delete %d to %d of %d to %d: %v", from, to, first, last, err)
				}
				if last, _ := cache.LastIndex(); last != 0 {
					next = last + 1
				} else {
					next = d.Log.snapshot.index + 1
				}
			},
			"snapshot from the leader": func(t *rapid.T) {
				// One that ends before, in or behind the log, and agrees with it or not.
				wanted = false
				end := snapshotEnd{rapid.Uint64Range(d.Log.snapshot.index, next+5).Draw(t, "index"), 9, members{}}
				testenv.NoError(t, d.fitToSnapshot(end))
				if last, _ := cache.LastIndex(); last == 0 {
					next = d.Log.snapshot.index + 1
				}
			},
			"refused": func(t *rapid.T) {
				if err := cache.StoreLog(drawEntry(t, next+1)); err == nil {
					t.Fatal("stored an entry behind a gap")
				}
			},
			"": func(t *rapid.T) { checkCache(t, cache, next, wanted) },
		})
	})
}

func checkCache(t *rapid.T, cache *cachedLog, next uint64, wanted bool) {
	for i := uint64(0); i < next+3; i++ {
		var got, want raft.Log
		errGot, errWant := cache.GetLog(i, &got), cache.Log.GetLog(i, &want)
		testenv.Require(t, errors.Is(errGot, errWant) && sameEntry(&got, &want),
			"entry %d: %v, %v; on disk %v, %v", i, got, errGot, want, errWant)
	}
	var held int64
	for i := range cache.entries {
		held += memorySize(&cache.entries[i])
	}
	testenv.Require(t, held == cache.bytes && held <= cache.maxBytes,
		"the cache holds %d bytes, counts %d, may %d", held, cache.bytes, cache.maxBytes)
	// The newest entry is there, if it can be.
	var newest raft.Log
	if last, _ := cache.LastIndex(); last != 0 && len(cache.entries) == 0 {
		testenv.NoError(t, cache.Log.GetLog(last, &newest))
		if memorySize(&newest) <= cache.maxBytes && wanted && last+1 == next && cache.firstIndex == last {
			t.Fatalf("entry %d is not in the cache", last)
		}
	}
}

// TestCacheKeepsNewest reads back what was just appended without the disk.
func TestCacheKeepsNewest(t *testing.T) {
	d := mustOpen(t, filepath.Join(memoryDir(t), "store"))
	defer closeDir(t, d)
	cache := d.CachedLog(1 << 20).(*cachedLog)
	const size = 10_000
	for i := uint64(1); i <= 1000; i++ {
		e := &raft.Log{Index: i, Term: 1, Data: make([]byte, size)}
		testenv.NoError(t, cache.StoreLog(e))
		var got raft.Log
		if err := cache.GetLog(i, &got); err != nil || &got.Data[0] != &e.Data[0] {
			t.Fatalf("entry %d came from the disk, %v", i, err)
		}
	}
	testenv.True(t, len(cache.entries) >= 100 && len(cache.entries) <= 1<<20/size, "%d entries in the cache", len(cache.entries))
	if n := cap(cache.entries); n > 4*len(cache.entries) {
		t.Errorf("places for %d entries", n)
	}
	testenv.False(t, cache.IsMonotonic(), "raft must leave a snapshot's consequences to the log")
}

// A log that is not read is not kept in memory; the first read brings that back.
func TestUnreadLogIsNotCached(t *testing.T) {
	d := mustOpen(t, filepath.Join(memoryDir(t), "store"))
	defer closeDir(t, d)
	const most, size = 1 << 20, 10_000
	cache := d.CachedLog(most).(*cachedLog)
	index := uint64(0)
	store := func(t *testing.T) *raft.Log {
		t.Helper()
		index++
		e := &raft.Log{Index: index, Term: 1, Data: make([]byte, size)}
		testenv.NoError(t, cache.StoreLog(e))
		return e
	}
	for range 2 {
		first := store(t)
		var got raft.Log
		if err := cache.GetLog(index, &got); err != nil || got.Index != index {
			t.Fatalf("entry %d: %v, %v", index, got.Index, err)
		}
		next := store(t)
		if err := cache.GetLog(index, &got); err != nil || &got.Data[0] != &next.Data[0] {
			t.Fatalf("entry %d came from the disk after entry %d had been read, %v", index, first.Index, err)
		}
		for range most / unreadFraction / size * 3 / 4 {
			store(t)
		}
		testenv.Require(t, len(cache.entries) != 0, "the cache was given up while a reader may only be late")
		for range most / size {
			store(t)
		}
		testenv.Require(t, cache.bytes == 0 && cache.entries == nil, "%d bytes of entries that are not read are kept", cache.bytes)
	}
}

// TestCacheBesideCompaction reads, appends and compacts at the same time, as
// raft does. The race detector has its say here.
func TestCacheBesideCompaction(t *testing.T) {
	d := mustOpen(t, filepath.Join(memoryDir(t), "store"))
	defer closeDir(t, d)
	cache := d.CachedLog(20_000)
	const entries = 2000
	var tasks sync.WaitGroup
	defer tasks.Wait()
	read := func() {
		for last := uint64(0); last < entries; {
			last, _ = cache.LastIndex()
			for _, index := range []uint64{last, last / 2} {
				var got raft.Log
				err := cache.GetLog(index, &got)
				if first, _ := cache.FirstIndex(); errors.Is(err, raft.ErrLogNotFound) && index < first {
					continue
				}
				if last > 1 && (err != nil || got.Index != index) {
					t.Errorf("entry %d: %v, %v", index, got.Index, err)
					return
				}
			}
		}
	}
	tasks.Go(read)
	tasks.Go(read)
	tasks.Go(func() {
		for last := uint64(0); last < entries; {
			first, _ := cache.FirstIndex()
			if last, _ = cache.LastIndex(); last > first+200 {
				if err := cache.DeleteRange(first, last-100); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for i := uint64(1); i <= entries; i++ {
		if err := cache.StoreLog(&raft.Log{Index: i, Term: 1, Data: make([]byte, i%500)}); err != nil {
			t.Error(err)
			return
		}
	}
}

// Of the entries that a snapshot covers, those stay that are asked for, however
// long the log has become since.
func TestCoveredEntriesStayUpToTheTrail(t *testing.T) {
	const entries, size, end = 1000, 1000, 700 // of several files
	fill := func(t *testing.T) *Dir {
		d := mustOpen(t, filepath.Join(memoryDir(t), "store"))
		t.Cleanup(func() { closeDir(t, d) })
		for i := uint64(1); i <= entries; i++ {
			testenv.NoError(t, d.Log.StoreLog(&raft.Log{Index: i, Term: 1, Data: make([]byte, size)}))
		}
		testenv.NoError(t, d.fitToSnapshot(snapshotEnd{end, 1, members{}}))
		return d
	}
	for _, test := range []struct {
		entries uint64
		bytes   int64
		stay    uint64
	}{
		{0, 0, 0}, {1, 0, 1}, {128, 0, 128}, {699, 0, 699}, {5000, 0, 700},
		{0, 64 * (recordHeader + size), 64}, {10, 64 * (recordHeader + size), 64}, {100, 64 * (recordHeader + size), 100}, {0, 1 << 40, 700},
	} {
		t.Run(fmt.Sprint(test.entries, test.bytes), func(t *testing.T) {
			d := fill(t)
			d.Log.SetTrailing(test.entries, test.bytes)
			log := d.CachedLog(64 << 10)
			testenv.NoError(t, log.DeleteRange(1, end))
			first, _ := log.FirstIndex()
			// Records that end a file may count as part of an entry.
			if stay := end + 1 - first; stay > test.stay || stay+7 < test.stay || test.bytes == 0 && stay != test.stay {
				t.Errorf("%d entries up to the snapshot's end stay, not %d", stay, test.stay)
			}
			var e raft.Log
			if err := log.GetLog(first, &e); err != nil || e.Index != first {
				t.Errorf("the first entry that stays: %v, %v", e, err)
			}
			testenv.NoError(t, log.DeleteRange(end+1, entries)) // another leader has other ones
			if last, _ := log.LastIndex(); last != end && (test.stay > 0 || last != 0) {
				t.Errorf("the log ends with entry %d", last)
			}
		})
	}
}
