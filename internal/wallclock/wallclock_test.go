// SPDX-License-Identifier: Apache-2.0

package wallclock

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, path string, at time.Time) string {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestForward: a clock that is behind is set to the newest time that can be true, and no other clock is set.
func TestForward(t *testing.T) {
	built := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	later := built.AddDate(1, 0, 0)
	for name, tt := range map[string]struct {
		now, noted, written time.Time // of the file, and of one that is written anyway; zero: there is none
		unset               error
		want                time.Time // zero: it is not set
		says                string
	}{
		"right":                          {now: later, noted: built, written: built},
		"ahead by years":                 {now: later.AddDate(9, 0, 0), noted: later},
		"1970, never ran":                {now: time.Unix(7, 0), want: built, says: "built"},
		"1970, noted":                    {now: time.Unix(7, 0), noted: later, written: built, want: later, says: "clock was written"},
		"1970, written":                  {now: time.Unix(7, 0), noted: built, written: later, want: later, says: "log was written"},
		"a minute behind":                {now: later.Add(-time.Minute), noted: later, want: later, says: "set forward"},
		"1970, files of a clock in 2099": {now: time.Unix(7, 0), noted: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), want: built, says: "built"},
		"1970, in a container":           {now: time.Unix(7, 0), unset: unix.EPERM, want: built, says: "container"},
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
			if err := os.Mkdir(filepath.Join(dir, "store"), 0o700); err != nil {
				t.Fatal(err)
			}
			if !tt.noted.IsZero() {
				write(t, c.File, tt.noted)
			}
			if !tt.written.IsZero() {
				write(t, filepath.Join(dir, "store", "log"), tt.written)
			}
			c.Forward()
			if !set.Equal(tt.want) || !strings.Contains(log.String(), tt.says) || (tt.says == "") != (log.Len() == 0) {
				t.Errorf("set to %v, want %v; said %s", set, tt.want, log.String())
			}
		})
	}
}

// TestKeep: the time is noted at once and at the end, and files of a clock that ran ahead do not say a wrong time any more.
func TestKeep(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	ahead := write(t, filepath.Join(dir, "leaf.pem"), now.AddDate(3, 0, 0))
	before := write(t, filepath.Join(dir, "old.pem"), now.AddDate(-1, 0, 0))
	c := Clock{File: filepath.Join(dir, "clock"), Patterns: []string{filepath.Join(dir, "*.pem")}, Logger: slog.New(slog.DiscardHandler)}
	c.now = func() time.Time { now = now.Add(time.Second); return now }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.Keep(ctx)
	for path, want := range map[string]time.Time{c.File: now, ahead: now, before: now.AddDate(-1, 0, 0)} {
		if at, ok := changed(path); !ok || at.Sub(want).Abs() > 2*time.Second {
			t.Errorf("%s: %v, want %v", path, at, want)
		}
	}
	if floor, what := c.floor(); floor.Sub(now).Abs() > 2*time.Second {
		t.Errorf("the next start would take %v for the time: %s", floor, what)
	}
}
