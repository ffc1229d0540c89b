// SPDX-License-Identifier: Apache-2.0

// Package wallclock keeps a machine whose clock has no battery from working with a time that cannot be: such a clock
// begins in
// 1970 after a power loss, or where it stood when the machine was switched off.
//
// It sets a clock that is behind forward to the newest time that the machine is known to have seen, and never sets one
// back: what is too late is for NTP to find out. A clock that shows a time at which the program existed may be right
// while the files were written under one that ran ahead: it is set forward by a month at most. It needs no file of its
// own to be written while the machine works: the times of files that are written anyway say how late it was.
package wallclock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// noteEvery is how often a running process notes the time: a machine that works, and writes nothing, begins at most
	// so far behind.
	noteEvery = 12 * time.Hour
	// lifetime is how long after it was built a program is used at most. A file that is later was written under a clock
	// that ran ahead.
	lifetime = 20 * 365 * 24 * time.Hour
	// doubt is how far a clock that can be right is set forward at most. One that stood still while the machine was off
	// is behind the files by noteEvery at most, or by a day where a file has to stand for the battery.
	doubt = 30 * 24 * time.Hour
	// between is how far notes are apart at least when the clock is set again and again.
	between = 10 * time.Second
)

// Clock is the machine's.
type Clock struct {
	// File is touched to note the time.
	File string
	// Patterns are of files that are written anyway, as filepath.Glob has them.
	Patterns []string
	// Built is when the program was; zero if that is not known.
	Built  time.Time
	Logger *slog.Logger

	now func() time.Time      // nil: the machine's; others are for tests
	set func(time.Time) error // nil: the machine's
	// sync stands for os.File.Sync in tests.
	sync func(*os.File) error
	// steps stands for followSteps in tests.
	steps func(context.Context) (<-chan struct{}, error)
}

func (c *Clock) read() time.Time {
	if c.now != nil {
		return c.now()
	}
	return time.Now().Round(0)
}

// Forward sets the clock forward if it is behind. A clock that cannot be set, as in most containers, is logged and
// left as it is.
func (c *Clock) Forward() {
	now := c.read()
	floor, what := c.floor(now)
	if !now.Before(floor) {
		return
	}
	set := c.set
	if set == nil {
		set = setClock
	}
	log := c.Logger.With("clock", now.UTC().Format(time.DateTime), "known", floor.UTC().Format(time.DateTime), "because", what)
	switch err := set(floor); {
	case err == nil:
		log.Warn("this machine's clock was behind, and was set forward to the newest time that is known; NTP sets it right")
	case errors.Is(err, unix.EPERM):
		log.Warn("this machine's clock is behind, and coracle may not set it here, in a container perhaps. Set it on the host (NTP): " +
			"until then other machines' " +
			"certificates may not be valid yet")
	default:
		log.Warn("this machine's clock is behind and could not be set; set it (NTP)", "error", err)
	}
}

// floor is the newest time that is known, and how, by a clock that shows now.
func (c *Clock) floor(now time.Time) (time.Time, string) {
	floor, what := c.Built, "the program was built then"
	latest := c.latest(now)
	for _, path := range c.files() {
		if at, ok := changed(path); ok && at.After(floor) && (latest.IsZero() || !at.After(latest)) {
			floor, what = at, path+" was written then"
		}
	}
	return floor, what
}

// latest is the last time that is believed of a file; zero if each is.
func (c *Clock) latest(now time.Time) time.Time {
	switch {
	case c.Built.IsZero():
		return time.Time{}
	case now.Before(c.Built):
		return c.Built.Add(lifetime)
	}
	return now.Add(doubt)
}

func (c *Clock) files() []string {
	out := []string{c.File}
	for _, p := range c.Patterns {
		found, _ := filepath.Glob(p) // fails for a malformed pattern only
		out = append(out, found...)
	}
	return out
}

func changed(path string) (time.Time, bool) {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return time.Time{}, false
	}
	return info.ModTime(), true
}

// Run notes the time now, twice a day, when the clock is set, and when ctx is done.
func (c *Clock) Run(ctx context.Context) {
	follow := c.steps
	if follow == nil {
		follow = followSteps
	}
	steps, err := follow(ctx)
	set := steps
	if err != nil {
		c.Logger.Warn("it is not noticed when this machine's clock is set; the time is noted twice a day", "error", err)
	}
	last := ""
	for {
		if err := c.save(); err != nil && err.Error() != last {
			last = err.Error()
			c.Logger.Warn("the time could not be noted for a start with a clock that is behind", "error", err)
		}
		if ctx.Err() != nil {
			break
		}
		select {
		case <-ctx.Done():
		case _, open := <-set:
			if !open {
				set = nil
			}
		case <-time.After(noteEvery):
		}
	}
	if steps != nil {
		for range steps { // until it is closed
		}
	}
}

// save touches the file, and takes times back that are still to come: they are of a clock that ran ahead, and would be
// taken for the present one at the next start. All of that is on the disk then: the power may go in the next second,
// and a file system would write it later.
func (c *Clock) save() error {
	now := c.read()
	_, made := os.Lstat(c.File)
	errs := []error{c.touch(c.File, os.O_CREATE, now)}
	if errors.Is(made, fs.ErrNotExist) {
		errs = append(errs, c.flushFolder(filepath.Dir(c.File)))
	}
	for _, path := range c.files() {
		if at, ok := changed(path); ok && at.After(now.Add(time.Minute)) {
			if err := c.touch(path, 0, now); !errors.Is(err, fs.ErrNotExist) { // one that was removed meanwhile says nothing
				errs = append(errs, err)
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("noting the time: %w", err)
	}
	return nil
}

// touch gives a file a time.
func (c *Clock) touch(path string, flags int, at time.Time) error {
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return err
	}
	if err = os.Chtimes(path, time.Time{}, at); err == nil {
		err = c.flush(f)
	}
	return errors.Join(err, f.Close())
}

// flushFolder makes durable that the file is in its folder.
func (c *Clock) flushFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(c.flush(f), f.Close())
}

func (c *Clock) flush(f *os.File) error {
	if c.sync != nil {
		return c.sync(f)
	}
	return f.Sync()
}

func setClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}
