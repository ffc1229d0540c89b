// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func schedule(t *testing.T, text string) cron.Schedule {
	t.Helper()
	return testenv.Must(cron.ParseStandard(text))(t)
}

// TestServersTakeTurnsOnSchedule: servers take turns, and the first one keeps the schedule's times.
func TestServersTakeTurnsOnSchedule(t *testing.T) {
	at := func(hour, minute int) time.Time {
		return start.Add(time.Duration(hour)*time.Hour + time.Duration(minute)*time.Minute)
	}
	for _, c := range []struct {
		cron  string
		place Ordinal
		want  []time.Time
	}{
		{"0 */12 * * *", Ordinal{0, 1}, []time.Time{at(12, 0), at(24, 0), at(36, 0)}},
		{"0 */12 * * *", Ordinal{0, 3}, []time.Time{at(12, 0), at(24, 0), at(36, 0)}},
		{"0 */12 * * *", Ordinal{1, 3}, []time.Time{at(4, 0), at(16, 0), at(28, 0)}},
		{"0 */12 * * *", Ordinal{2, 3}, []time.Time{at(8, 0), at(20, 0), at(32, 0)}},
		{"*/10 * * * *", Ordinal{1, 2}, []time.Time{at(0, 5), at(0, 15), at(0, 25)}},
		{"0 9,17 * * *", Ordinal{1, 2}, []time.Time{at(13, 0), at(21, 0), at(37, 0)}},
	} {
		now := start
		for i, want := range c.want {
			next := newSlot(schedule(t, c.cron), c.place, now).nextAfter(now)
			testenv.True(t, next.Equal(want), "%s, server %+v: time %d is %v, want %v", c.cron, c.place, i, next, want)
			now = next
		}
	}
}

// scheduler runs the schedule of a machine until the test ends.
func (m *machine) scheduler() *status.Board {
	m.t.Helper()
	m.o.Schedule = schedule(m.t, "0 */12 * * *")
	board := status.NewBoard(m.Clock.Now)
	m.o.Part = board.Part("snapshots")
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { m.Run(ctx) })
	m.t.Cleanup(func() { cancel(); running.Wait() })
	m.atRest()
	return board
}

// atRest waits until the schedule waits for the clock.
func (m *machine) atRest() {
	m.t.Helper()
	testenv.Until(m.t, 2*time.Minute, "the schedule waits for the clock", m.Clock.HasWaiters)
}

func (m *machine) pass(d time.Duration) {
	m.t.Helper()
	m.Clock.Step(d)
	m.atRest()
}

// scheduledOnes are the names of the scheduled snapshots.
func (m *machine) scheduledOnes() []string {
	m.t.Helper()
	return scheduled(testenv.Must(m.List(m.t.Context()))(m.t))
}

func scheduled(list []Info) (out []string) {
	for _, i := range list {
		if i.Scheduled {
			out = append(out, i.Name)
		}
	}
	return out
}

func TestScheduledSnapshotIsTakenOnlyAfterChanges(t *testing.T) {
	m := newMachine(t)
	m.Put("/registry/pods/a/one", "1")
	m.Put("/registry/minions/board1", "1")
	m.MustSave()
	m.Put("/registry/pods/a/one", "2")
	board := m.scheduler()
	expect := func(n int, why string) {
		t.Helper()
		if got := m.scheduledOnes(); len(got) != n {
			t.Fatalf("%s: %q, want %d", why, got, n)
		}
		testenv.Equal(t, board.Components()[0].State, status.Running, "%s:", why)
	}
	expect(0, "at the start")
	m.pass(11 * time.Hour)
	expect(0, "before its time")
	m.pass(time.Hour)
	expect(1, "at noon")
	if name := m.scheduledOnes()[0]; !strings.HasPrefix(name, "scheduled-board1-20261121T120001Z") {
		t.Errorf("its name is %s", name)
	}
	half := 12 * time.Hour
	m.pass(half)
	expect(1, "nothing has changed")
	for _, key := range []string{
		"/registry/leases/kube-node-lease/board1", "/registry/events/a/e", "/registry/minions/board1", "compact_rev_key",
	} {
		m.Put(key, "new")
	}
	m.pass(half)
	expect(1, "the cluster has only shown that it lives, and the store has marked what it compacts to")
	m.Put("/registry/minions/board2", "1")
	m.pass(half)
	expect(2, "a node came")
	testenv.Must(m.Store.Client().Delete(t.Context(), "/registry/pods/a/one"))(t)
	m.pass(half)
	expect(3, "a pod went")
	m.Files = map[string][]byte{"key": []byte("new")}
	m.pass(half)
	expect(4, "a key was replaced")
	for range 3 {
		m.Put("/registry/pods/a/one", m.Clock.Now().String())
		m.pass(half)
	}
	expect(5, "as many as are kept")
	if list, _ := m.List(t.Context()); len(list) != 6 || list[0].Scheduled {
		t.Errorf("the one that was asked for is gone: %+v", list)
	}
	newest := m.scheduledOnes()[4]
	testenv.NoError(t, os.Truncate(m.o.Dir+"/"+newest, 4000))
	m.pass(half)
	if got := m.scheduledOnes(); got[len(got)-1] == newest {
		t.Error("the newest one is damaged, and no other was taken")
	}
	m.Clock.SetTime(start) // the clock is set back by days
	m.Put("/registry/pods/a/one", "after the clock was set")
	m.pass(time.Minute)
	before := len(m.scheduledOnes())
	m.pass(half)
	if list, _ := m.List(t.Context()); len(m.scheduledOnes()) < before || list[0].Time.Before(start) || m.counts.failures.Load() > 0 {
		t.Errorf("after the clock was set back: %q", m.scheduledOnes())
	}
}

func TestFailedScheduledSnapshotIsRetried(t *testing.T) {
	m := newMachine(t)
	board := m.scheduler()
	testenv.NoError(t, os.WriteFile(m.o.Dir, []byte("in the way"), 0o600))
	m.pass(12 * time.Hour)
	c := board.Components()[0]
	if c.State != status.Degraded || !strings.Contains(c.Message, "not a directory") || !strings.Contains(c.Message, "retrying every 15m") || m.counts.failures.Load() != 1 {
		t.Errorf("%+v", c)
	}
	testenv.NoError(t, os.Remove(m.o.Dir))
	m.pass(10 * time.Minute)
	testenv.Equal(t, len(m.scheduledOnes()), 0, "too early:")
	m.pass(5 * time.Minute)
	if c := board.Components()[0]; c.State != status.Running || len(m.scheduledOnes()) != 1 || m.counts.lastSuccess.Load() == 0 {
		t.Errorf("%+v, %q", c, m.scheduledOnes())
	}
}

// TestMissedSnapshotIsSavedAtStart: a board that is switched off at night saves when it is on.
func TestMissedSnapshotIsSavedAtStart(t *testing.T) {
	m := newMachine(t)
	m.MustSave()
	m.Put("/registry/pods/a/one", "1")
	m.Clock.Step(13 * time.Hour)
	m.scheduler()
	m.pass(4 * time.Minute)
	testenv.Equal(t, len(m.scheduledOnes()), 0, "before the cluster came to rest:")
	m.pass(time.Minute)
	testenv.Equal(t, len(m.scheduledOnes()), 1, "snapshots:")
}

func TestDisabledScheduleRemovesInterruptedSnapshots(t *testing.T) {
	m := newMachine(t)
	board := status.NewBoard(m.Clock.Now)
	m.o.Part = board.Part("snapshots")
	testenv.NoError(t, errors.Join(os.Mkdir(m.o.Dir, 0o700), os.WriteFile(filepath.Join(m.o.Dir, partialPrefix+"1"), nil, 0o600)))
	m.Run(t.Context()) // ends at once
	if left := names(t, m.o.Dir); len(left) > 0 {
		t.Errorf("what an interrupted snapshot left stays: %q", left)
	}
	testenv.Equal(t, board.Components()[0].State, status.Disabled, "")
}
