// SPDX-License-Identifier: Apache-2.0

package wallclock

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func write(t *testing.T, path string, at time.Time) string {
	t.Helper()
	testenv.NoError(t, os.WriteFile(path, nil, 0o600))
	testenv.NoError(t, os.Chtimes(path, at, at))
	return path
}

// TestOnlyASlowClockIsSet: a clock that is behind is set to the newest time that can be true, and no other clock is
// set.
func TestOnlyASlowClockIsSet(t *testing.T) {
	built := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	later := built.AddDate(1, 0, 0)
	for name, tt := range map[string]struct {
		now, noted, written time.Time // of the file, and of one that is written anyway; zero: there is none
		unset               error
		want                time.Time // zero: it is not set
		clockAt             string
	}{
		"right":                            {now: later, noted: built, written: built},
		"ahead by years":                   {now: later.AddDate(9, 0, 0), noted: later},
		"1970, never ran":                  {now: time.Unix(7, 0), want: built, clockAt: "built"},
		"1970, noted":                      {now: time.Unix(7, 0), noted: later, written: built, want: later, clockAt: "clock was written"},
		"1970, written":                    {now: time.Unix(7, 0), noted: built, written: later, want: later, clockAt: "log was written"},
		"right, files of a clock ahead":    {now: later, noted: later.AddDate(12, 0, 0)},
		"right, one file of a clock ahead": {now: later.Add(-time.Hour), noted: later, written: later.AddDate(12, 0, 0), want: later, clockAt: "clock was written"},
		"weeks behind":                     {now: later.AddDate(0, 0, -21), noted: later, want: later, clockAt: "set forward"},
		"a minute behind":                  {now: later.Add(-time.Minute), noted: later, want: later, clockAt: "set forward"},
		"1970, files of a clock in 2099":   {now: time.Unix(7, 0), noted: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), want: built, clockAt: "built"},
		"1970, in a container":             {now: time.Unix(7, 0), unset: unix.EPERM, want: built, clockAt: "container"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var set time.Time
			var log bytes.Buffer
			c := Clock{
				File: filepath.Join(dir, "clock"), Patterns: []string{filepath.Join(dir, "store", "*")}, Built: built,
				Logger: slog.New(slog.NewTextHandler(&log, nil)),
				now:    func() time.Time { return tt.now },
				set:    func(to time.Time) error { set = to; return tt.unset },
			}
			testenv.NoError(t, os.Mkdir(filepath.Join(dir, "store"), 0o700))
			if !tt.noted.IsZero() {
				write(t, c.File, tt.noted)
			}
			if !tt.written.IsZero() {
				write(t, filepath.Join(dir, "store", "log"), tt.written)
			}
			c.Forward()
			if !set.Equal(tt.want) || !strings.Contains(log.String(), tt.clockAt) || (tt.clockAt == "") != (log.Len() == 0) {
				t.Errorf("set to %v, want %v; said %s", set, tt.want, log.String())
			}
		})
	}
}

// TestNotedTimeIsOnTheDisk: a time that is noted survives the loss of power in the next moment, and so does one that is
// taken back, of a clock that ran ahead.
func TestNotedTimeIsOnTheDisk(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	c := Clock{File: filepath.Join(dir, "clock"), Patterns: []string{filepath.Join(dir, "*.pem")}, Logger: slog.New(slog.DiscardHandler), now: func() time.Time { return now }}
	synced := map[string]time.Time{}
	c.sync = func(f *os.File) error {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		synced[f.Name()] = info.ModTime()
		return f.Sync()
	}
	for i := range 3 { // the file is made, and is there
		now = now.Add(time.Hour)
		want := map[string]time.Time{c.File: now}
		if i == 2 {
			want[write(t, filepath.Join(dir, "leaf.pem"), now.AddDate(3, 0, 0))] = now
		}
		clear(synced)
		testenv.NoError(t, c.save())
		if _, ok := synced[dir]; ok != (i == 0) {
			t.Errorf("note %d: that the file is in its folder was given to the disk: %v", i, ok)
		}
		delete(synced, dir)
		testenv.True(t, maps.EqualFunc(synced, want, time.Time.Equal), "note %d: the disk was given %v, want %v", i, synced, want)
	}
}

// TestTimeIsSavedAtStartAndEnd: the time is noted at once and at the end, and files of a clock that ran ahead do not
// say a wrong time any more.
func TestTimeIsSavedAtStartAndEnd(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	ahead := write(t, filepath.Join(dir, "leaf.pem"), now.AddDate(3, 0, 0))
	before := write(t, filepath.Join(dir, "old.pem"), now.AddDate(-1, 0, 0))
	c := Clock{File: filepath.Join(dir, "clock"), Patterns: []string{filepath.Join(dir, "*.pem")}, Logger: slog.New(slog.DiscardHandler)}
	c.now = func() time.Time { now = now.Add(time.Second); return now }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.Run(ctx)
	for path, want := range map[string]time.Time{c.File: now, ahead: now, before: now.AddDate(-1, 0, 0)} {
		if at, ok := modTime(path); !ok || at.Sub(want).Abs() > 2*time.Second {
			t.Errorf("%s: %v, want %v", path, at, want)
		}
	}
	if floor, what := c.floor(now); floor.Sub(now).Abs() > 2*time.Second {
		t.Errorf("the next start would take %v for the time: %s", floor, what)
	}
}

// TestPowerLossAfterAClockAhead: the clock ran ahead once and was set right while coracle ran, and then the power went,
// before the time was noted again. The battery keeps the right time, and the next starts leave it alone.
func TestPowerLossAfterAClockAhead(t *testing.T) {
	dir := t.TempDir()
	built := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	right, now := built.AddDate(0, 1, 0), built.AddDate(12, 0, 0)
	c := Clock{File: filepath.Join(dir, "clock"), Patterns: []string{filepath.Join(dir, "*.pem")}, Built: built, Logger: slog.New(slog.DiscardHandler)}
	c.now = func() time.Time { return now }
	c.set = func(to time.Time) error {
		t.Errorf("the clock showed %v, which was right, and was set to %v", now, to)
		return nil
	}
	c.Forward() // under the clock that is ahead
	testenv.NoError(t, c.save())
	write(t, filepath.Join(dir, "leaf.pem"), now)
	for _, now = range []time.Time{right.Add(time.Hour), right.Add(48 * time.Hour)} {
		c.Forward()
		testenv.NoError(t, c.save())
	}
}

// TestKeepNotesAStep: when the clock is set back while coracle runs, the files say the right time at once. One that has
// no battery would be set to the wrong one at its next start.
func TestKeepNotesAStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		right := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
		steps := make(chan struct{})
		var now atomic.Pointer[time.Time]
		set := func(to time.Time) { now.Store(&to) }
		set(right.AddDate(9, 0, 0))
		c := Clock{File: filepath.Join(dir, "clock"), Patterns: []string{filepath.Join(dir, "*.pem")}, Logger: slog.New(slog.DiscardHandler)}
		c.now = func() time.Time { return *now.Load() }
		c.steps = func(context.Context) (<-chan struct{}, error) { return steps, nil }
		leaf := write(t, filepath.Join(dir, "leaf.pem"), right.AddDate(9, 0, 0))
		ctx, cancel := context.WithCancel(t.Context())
		kept := make(chan struct{})
		go func() {
			defer close(kept)
			c.Run(ctx)
		}()
		synctest.Wait()
		set(right)
		steps <- struct{}{}
		synctest.Wait()
		for _, path := range []string{c.File, leaf} {
			if at, ok := modTime(path); !ok || !at.Equal(right) {
				t.Errorf("%s: %v, want %v", path, at, right)
			}
		}
		close(steps)
		cancel()
		<-kept
	})
}

// TestClockStepsChannelClosesAtEnd: the kernel takes the timer, says nothing while the clock is not set, and the
// channel is closed at the end.
func TestClockStepsChannelClosesAtEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	steps := testenv.Must(followSteps(ctx))(t)
	cancel()
	for range steps { // a step at this very moment is none of the test's
	}
}

// TestKeepWithoutNewsOfSteps: where the clock cannot be followed, the time is noted at the start and at the end.
func TestKeepWithoutNewsOfSteps(t *testing.T) {
	for name, follow := range map[string]func(context.Context) (<-chan struct{}, error){
		"refused": func(context.Context) (<-chan struct{}, error) { return nil, unix.EPERM },
		"ended": func(context.Context) (<-chan struct{}, error) {
			steps := make(chan struct{})
			close(steps)
			return steps, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				notes := 0
				c := Clock{File: filepath.Join(t.TempDir(), "clock"), Logger: slog.New(slog.DiscardHandler), steps: follow}
				c.now = func() time.Time { notes++; return time.Now() }
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				c.Run(ctx)
				testenv.True(t, notes <= 3, "noted %d times in an hour", notes)
			})
		})
	}
}
