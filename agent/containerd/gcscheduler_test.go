// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/pkg/gc"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// slowStore is a store whose collections take their time, the last one again and again.
type slowStore struct {
	takes   []time.Duration
	changed func(deletion bool)
	done    chan time.Time // unbuffered: a collection that the test does not expect is one too many
	fails   error
}

type took time.Duration

func (t took) Elapsed() time.Duration { return time.Duration(t) }

func (s *slowStore) RegisterMutationCallback(f func(bool)) { s.changed = f }

func (s *slowStore) GarbageCollect(ctx context.Context) (gc.Stats, error) {
	d := s.takes[0]
	if len(s.takes) > 1 {
		s.takes = s.takes[1:]
	}
	time.Sleep(d) // fake time
	select {
	case s.done <- time.Now():
		return took(d), s.fails
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// collecting runs a scheduler for a store.
func collecting(ctx context.Context, s *slowStore) *gcScheduler {
	c := newGCScheduler(s)
	go c.run(ctx)
	return c
}

// TestGarbageCollectionRunsSoonAfterRemoval: the room of what was removed is free a moment later, however slow the disk
// is, and was: the kubelet evicts one pod after the other as long as it sees none. Nothing is collected where nothing
// was removed.
func TestGarbageCollectionRunsSoonAfterRemoval(t *testing.T) {
	for name, takes := range map[string][]time.Duration{
		"a fast disk":                       {2 * time.Millisecond},
		"a memory card":                     {300 * time.Millisecond},
		"a disk that was busy at the start": {30 * time.Second, 20 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				last := takes[len(takes)-1]
				s := &slowStore{takes: takes, done: make(chan time.Time)}
				collecting(ctx, s)
				<-s.done // the one of the start
				for i := range 20 {
					time.Sleep(time.Duration(1+137*i) * time.Millisecond) // fake time
					began := time.Now()
					s.changed(true)
					if wait := (<-s.done).Sub(began); wait > 2*time.Second+last {
						t.Fatalf("what was removed is collected after %v", wait)
					}
				}
				select {
				case <-s.done:
					t.Error("a collection of nothing")
				case <-time.After(time.Hour): // fake time
				}
			})
		})
	}
}

// TestRequestedGarbageCollectionRunsAtOnce: who removes and wants the room gets it at once, by a collection that began
// after the question.
func TestRequestedGarbageCollectionRunsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := &slowStore{takes: []time.Duration{time.Minute}, done: make(chan time.Time)}
		c := collecting(ctx, s)
		answers := make(chan error, 2)
		ask := func() {
			began := time.Now()
			_, err := c.ScheduleAndWait(ctx)
			if took := time.Since(began); took < time.Minute || took > 2*time.Minute {
				t.Errorf("the answer comes after %v", took)
			}
			answers <- err
		}
		go ask()
		time.Sleep(time.Second) // fake time: before the first collection, which then is this one
		go ask()                // while one is under way, which may have passed over what it is about
		<-s.done
		<-s.done
		testenv.Check(t, errors.Join(<-answers, <-answers))
		s.changed(true)
		<-s.done
		late, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		testenv.ErrorIs(t, testenv.Err(c.ScheduleAndWait(late)), context.DeadlineExceeded, "who stops waiting")
		<-s.done // no caller waits for it
		select {
		case <-s.done:
			t.Error("a collection of nothing")
		case <-time.After(time.Hour): // fake time
		}
	})
}

// TestRemovedAmidACollection: what is removed while a collection is under way, which may have passed it over, is
// collected by the next one. So is what a collection that failed left, and many changes without a removal.
func TestRemovedAmidACollection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := &slowStore{takes: []time.Duration{time.Second}, done: make(chan time.Time), fails: errors.New("the disk is full")}
		c := collecting(ctx, s)
		<-s.done
		<-s.done // it is tried again
		asked := make(chan error, 1)
		go func() {
			_, err := c.ScheduleAndWait(ctx)
			asked <- err
		}()
		<-s.done
		testenv.Fails(t, <-asked, "a collection that failed is none")
		s.fails = nil
		<-s.done
		time.Sleep(time.Hour) // fake time
		s.changed(true)
		time.Sleep(collectAfter + 500*time.Millisecond) // fake time: amid the collection
		s.changed(true)
		<-s.done
		<-s.done
		for range changes {
			s.changed(false)
		}
		<-s.done
		select {
		case <-s.done:
			t.Error("a collection of nothing")
		case <-time.After(time.Hour): // fake time
		}
	})
}
