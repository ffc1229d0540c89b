// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestPacerFollowsTheHeap(t *testing.T) {
	now := time.Unix(0, 0)
	var set []int
	var collections, live uint64
	p := &Pacer{idle: 25, busy: 100, now: func() time.Time { return now }, setGOGC: func(n int) { set = append(set, n) },
		heap: func() (uint64, uint64) { return collections, live }, lastAutomatic: now,
		afterFunc: func(time.Duration, func()) stopper { return time.NewTimer(time.Hour) }}
	p.change(800) // as NewPacer does
	for i, step := range []struct {
		after     time.Duration
		automatic uint64
		live      uint64 // MB
		want      int
	}{
		// A start's is over with the first collection, however late that is.
		{0, 0, 40, 800}, {3 * time.Second, 1, 40, 100}, {11 * time.Second, 1, 40, 25},
		{5 * time.Second, 1, 40, 25}, {time.Second, 1, 40, 100}, {5 * time.Second, 1, 40, 100}, {11 * time.Second, 1, 40, 25}, {3 * time.Second, 1, 40, 25},
		// Trim collects twice, one right after the other. The next collection is a long time after the last that
		// counts.
		{0, 0, 40, 25}, {time.Millisecond, 0, 40, 25}, {time.Second, 0, 40, 25}, {3 * time.Second, 1, 40, 25},
		// Under load less piles up the more there is, down to half.
		{time.Second, 1, 64, 100}, {time.Second, 1, 80, 80}, {time.Second, 1, 81, 70}, {time.Second, 1, 250, 50}, {time.Second, 1, 60, 100},
		// Where very much lives, down to a fifth.
		{time.Second, 1, 256, 50}, {time.Second, 1, 320, 40}, {time.Second, 1, 512, 25}, {time.Second, 1, 5000, 20}, {time.Second, 1, 60, 100},
		// At rest less piles up where much lives, down to a tenth.
		{11 * time.Second, 1, 60, 25}, {11 * time.Second, 1, 256, 25}, {11 * time.Second, 1, 257, 20}, {11 * time.Second, 1, 500, 10}, {11 * time.Second, 1, 5000, 10}, {11 * time.Second, 1, 100, 25},
	} {
		now, collections, live = now.Add(step.after), collections+step.automatic, step.live<<20
		p.afterCollection()
		testenv.Equal(t, set[len(set)-1], step.want, "step %d, %v after the last collection:", i, step.after)
	}
	testenv.True(t, len(set) == 19, "set to %v: a value that does not change is not set again", set)
}

// TestGarbageIsBoundedBeforeFirstCollection: before the first collection 32 MB of garbage pile up at most, however much
// lives by then.
func TestGarbageIsBoundedBeforeFirstCollection(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	kept := make([]byte, 32<<20)
	runtime.GC()
	NewPacer(800, 25, 100, time.Now)
	goal := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}}
	metrics.Read(goal)
	_, live := readHeap()
	runtime.KeepAlive(kept)
	if most := live + startRoom; goal[0].Value.Uint64() > most {
		t.Errorf("the first collection is at %d MB of heap, want %d MB at most", goal[0].Value.Uint64()>>20, most>>20)
	}
}

// TestRestEndsAStart: the first collection after Rest does not set the percentage for load.
func TestRestEndsAStart(t *testing.T) {
	now, collections, set := time.Unix(0, 0), uint64(0), 0
	p := &Pacer{idle: 25, busy: 100, now: func() time.Time { return now }, setGOGC: func(n int) { set = n },
		heap: func() (uint64, uint64) { return collections, 40 << 20 }, lastAutomatic: now,
		afterFunc: func(time.Duration, func()) stopper { return time.NewTimer(time.Hour) }}
	p.change(800) // as NewPacer does
	p.Rest()
	now, collections = now.Add(time.Minute), 1
	p.afterCollection()
	testenv.True(t, set == 25, "%d%% a minute after Rest, want 25%%", set)
}

// TestPacerSeesTheEndOfABurst: ten seconds without a collection that Go began of its own accord, and only where much
// garbage may have piled up.
func TestPacerSeesTheEndOfABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var collections, live uint64
		p := &Pacer{
			idle: 25, busy: 100, now: time.Now, setGOGC: func(int) {}, lastAutomatic: time.Now(),
			heap:      func() (uint64, uint64) { return collections, live },
			afterFunc: func(d time.Duration, f func()) stopper { return time.AfterFunc(d, f) }, burstEnded: make(chan struct{}, 1),
		}
		p.Rest()
		over := func() bool {
			select {
			case <-p.BurstEnded():
				return true
			default:
				return false
			}
		}
		collect := func(after time.Duration, megabytes uint64) {
			time.Sleep(after) // the bubble's time
			collections, live = collections+1, megabytes<<20
			p.afterCollection()
		}
		wait := func(d time.Duration) {
			time.Sleep(d) // the bubble's time
			synctest.Wait()
		}
		for range 5 {
			collect(time.Second, 80)
		}
		if wait(time.Minute); over() {
			t.Error("a small heap's burst has left much")
		}
		for range 3 {
			collect(time.Second, 400)
			collect(9*time.Second, 400) // it still works
		}
		testenv.False(t, over(), "a burst is over while Go collects")
		if wait(9 * time.Second); over() {
			t.Error("a burst is over after nine seconds")
		}
		if wait(2 * time.Second); !over() {
			t.Error("a burst is not over after eleven seconds")
		}
		p.Rest()
		collect(5*time.Second, 400)
		if wait(time.Minute); over() {
			t.Error("a process at rest has ended a burst")
		}
	})
}

// TestPacerKnowsAnEnd: of work that Go does not see as a burst.
func TestPacerKnowsAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var collections uint64
		p := &Pacer{
			idle: 25, busy: 100, now: time.Now, setGOGC: func(int) {}, lastAutomatic: time.Now(),
			heap:      func() (uint64, uint64) { return collections, 40 << 20 },
			afterFunc: func(d time.Duration, f func()) stopper { return time.AfterFunc(d, f) }, burstEnded: make(chan struct{}, 1),
		}
		over := func(after time.Duration) bool {
			time.Sleep(after) // the bubble's time
			synctest.Wait()
			return len(p.BurstEnded()) > 0
		}
		p.Ended()
		testenv.False(t, over(9*time.Second), "it is over after nine seconds")
		collections++
		p.afterCollection() // a small heap: no burst by itself, and it still works
		testenv.False(t, over(9*time.Second), "it is over nine seconds after a collection")
		testenv.True(t, over(2*time.Second), "it is not over eleven seconds after a collection")
		<-p.BurstEnded()
		p.Ended()
		testenv.False(t, over(30*time.Second), "it is over twice in half a minute")
		testenv.True(t, over(31*time.Second), "it is not over after a minute")
		<-p.BurstEnded()
		collections++
		if p.afterCollection(); over(5 * time.Minute) {
			t.Error("it is over once more")
		}
	})
}

// TestBurstsThatComeAgainAndAgain are not ended one by one.
func TestBurstsThatComeAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var collections uint64
		p := &Pacer{
			idle: 25, busy: 100, now: time.Now, setGOGC: func(int) {}, lastAutomatic: time.Now(),
			heap:      func() (uint64, uint64) { return collections, 400 << 20 },
			afterFunc: func(d time.Duration, f func()) stopper { return time.AfterFunc(d, f) }, burstEnded: make(chan struct{}, 1),
		}
		p.Rest()
		ended := 0
		sample := func() {
			synctest.Wait()
			select {
			case <-p.BurstEnded():
				ended++
				p.Rest()
			default:
			}
		}
		began := time.Now()
		for time.Since(began) < 10*time.Minute {
			for range 3 {
				time.Sleep(time.Second) // the bubble's time
				sample()
				collections++
				p.afterCollection()
			}
			time.Sleep(11 * time.Second) // the bubble's time
			sample()
		}
		time.Sleep(2 * time.Minute) // the bubble's time
		if sample(); ended > 11 || ended == 0 {
			t.Errorf("%d bursts were ended in ten minutes", ended)
		}
	})
}

// Collections that Go begins are noticed, again and again.
func TestPacerSeesCollections(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	seen := make(chan struct{}, 1) // one value says it
	NewPacer(100, 25, 100, func() time.Time {
		select {
		case seen <- struct{}{}:
		default:
		}
		return time.Now()
	})
	<-seen // at its making
	deadline := time.Now().Add(2 * time.Minute)
	for found := 0; found < 3; {
		garbage = make([]byte, 1<<20)
		select {
		case <-seen:
			found++
		default:
		}
		testenv.Require(t, !time.Now().After(deadline), "%d collections were noticed in two minutes", found)
	}
}

// What Go takes its percentage of counts, and with thousands of goroutines that is much more than the heap.
func TestPacerCountsStacks(t *testing.T) {
	runtime.GC()
	_, before := readHeap()
	end := make(chan struct{})
	var ready, ended sync.WaitGroup
	for range 1000 {
		ready.Add(1)
		ended.Go(func() { waitDeep(&ready, end) })
	}
	ready.Wait()
	runtime.GC()
	_, with := readHeap()
	close(end)
	ended.Wait()
	testenv.False(t, with < before+1000*deep, "%d bytes with a thousand stacks of more than %d, %d before", with, deep, before)
}

// deep is how many bytes of a stack waitDeep has.
const deep = 16 << 10

func waitDeep(ready *sync.WaitGroup, end <-chan struct{}) {
	var room [deep]byte
	room[len(room)-1] = 1
	ready.Done()
	<-end
	if room[0] != 0 {
		panic("a stack is not kept")
	}
}

// Trim leaves the process at rest.
func TestTrimIsNoLoad(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // Go begins no collection of its own accord: such a one would be load
	runtime.GC()                                     // ends the one that may be under way
	samples := make(chan uint64, 100)                // more than the collections of this test
	p := &Pacer{idle: 1000, busy: 2000, now: time.Now, setGOGC: func(int) {}, lastAutomatic: time.Now(),
		afterFunc: func(time.Duration, func()) stopper { return time.NewTimer(time.Hour) }, heap: func() (uint64, uint64) {
			automatic, live := readHeap()
			samples <- automatic
			return automatic, live
		}}
	p.counted, _ = readHeap()
	p.Rest()
	p.arm()
	for range 3 {
		testenv.NoError(t, Trim(true))
	}
	<-samples
	<-samples
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heap = readHeap // looks are not read any more, and this pacer looks as long as the process lives
	testenv.True(t, p.current == 1000, "after Trim %d%% of garbage may pile up, as under load", p.current)
}

// garbage keeps the compiler from leaving an allocation out.
var garbage []byte
