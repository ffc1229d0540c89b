// SPDX-License-Identifier: Apache-2.0

// Package wallclock corrects the clock of a machine without a battery for it. After a power loss, such a clock begins
// in 1970, or at the time at which the machine was switched off.
//
// The package sets a clock that is behind forward to the newest time that the machine is known to have seen. It never
// sets a clock back: NTP corrects a clock that is ahead. A clock that shows a time after the program was built may be
// right, and the files may come from a time when the clock ran ahead. So such a clock is set forward by a month at
// most. While the machine writes files, the package needs to write none of its own: the times of the other files show
// how late it was.
//
// Its goroutines: one that notices steps of the clock.
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
	// noteEvery is how often a running process records the time. A machine that runs and writes no files starts at most
	// this far behind.
	noteEvery = 12 * time.Hour
	// programLifetime is how long a program is used at most after it was built. A file with a later time was written
	// under a clock that ran ahead.
	programLifetime = 20 * 365 * 24 * time.Hour
	// maxAdvance is how far a clock that may be right is set forward at most. A clock that stopped while the machine
	// was off is behind the files by noteEvery at most, or by a day where a file replaces the battery.
	maxAdvance = 30 * 24 * time.Hour
	// saveInterval is the minimum time between two records when the clock is set again and again.
	saveInterval = 10 * time.Second
)

// Clock is the machine's clock.
type Clock struct {
	// File is the path of the file whose modification time records the time.
	File string
	// Patterns match other files that coracle writes, as filepath.Glob does.
	Patterns []string
	// Built is when the program was built. It is zero if that is not known.
	Built  time.Time
	Logger *slog.Logger

	now func() time.Time      // nil: the machine's clock; others are for tests
	set func(time.Time) error // nil: sets the machine's clock
	// sync replaces os.File.Sync in tests.
	sync func(*os.File) error
	// steps replaces followSteps in tests.
	steps func(context.Context) (<-chan struct{}, error)
}

func (c *Clock) read() time.Time {
	if c.now != nil {
		return c.now()
	}
	return time.Now().Round(0)
}

// Forward sets the clock forward if it is behind. When the clock cannot be set, as in most containers, Forward logs
// that and leaves it as it is.
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
		log.Warn("this machine's clock was behind, and was set forward to the newest known time; NTP corrects it")
	case errors.Is(err, unix.EPERM):
		log.Warn("this machine's clock is behind, and coracle lacks the permission to set it, perhaps in a container. Set it on the host (NTP): " +
			"until then other machines' " +
			"certificates may not be valid yet")
	default:
		log.Warn("this machine's clock is behind and could not be set; set it (NTP)", "error", err)
	}
}

// floor returns the newest known time, and the reason for it, when the clock shows now.
func (c *Clock) floor(now time.Time) (time.Time, string) {
	floor, what := c.Built, "the program was built then"
	latest := c.latest(now)
	for _, path := range c.files() {
		if at, ok := modTime(path); ok && at.After(floor) && (latest.IsZero() || !at.After(latest)) {
			floor, what = at, path+" was written then"
		}
	}
	return floor, what
}

// latest returns the latest plausible time of a file. It returns zero when every time is plausible.
func (c *Clock) latest(now time.Time) time.Time {
	switch {
	case c.Built.IsZero():
		return time.Time{}
	case now.Before(c.Built):
		return c.Built.Add(programLifetime)
	}
	return now.Add(maxAdvance)
}

func (c *Clock) files() []string {
	out := []string{c.File}
	for _, p := range c.Patterns {
		found, _ := filepath.Glob(p) // fails only for a malformed pattern
		out = append(out, found...)
	}
	return out
}

func modTime(path string) (time.Time, bool) {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return time.Time{}, false
	}
	return info.ModTime(), true
}

// Run records the time at its start, twice a day, when the clock is set, and when ctx is done.
func (c *Clock) Run(ctx context.Context) {
	follow := c.steps
	if follow == nil {
		follow = followSteps
	}
	steps, err := follow(ctx)
	set := steps
	if err != nil {
		c.Logger.Warn("changes of this machine's clock cannot be detected; the time is saved twice a day only", "error", err)
	}
	last := ""
	for {
		if err := c.save(); err != nil && err.Error() != last {
			last = err.Error()
			c.Logger.Warn("the time could not be saved for a later start with a clock that is behind", "error", err)
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
		for range steps { // until followSteps has closed it
		}
	}
}

// save sets the file's time to now. It also sets file times that lie in the future to now: they come from a clock that
// ran ahead, and the next start would take them for the present time. All of this is on the disk when save returns: the
// power may fail in the next second, and a file system would write it later.
func (c *Clock) save() error {
	now := c.read()
	_, made := os.Lstat(c.File)
	errs := []error{c.setModTime(c.File, os.O_CREATE, now)}
	if errors.Is(made, fs.ErrNotExist) {
		errs = append(errs, c.flushFolder(filepath.Dir(c.File)))
	}
	for _, path := range c.files() {
		if at, ok := modTime(path); ok && at.After(now.Add(time.Minute)) {
			if err := c.setModTime(path, 0, now); !errors.Is(err, fs.ErrNotExist) { // a file that was removed meanwhile is no error
				errs = append(errs, err)
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("noting the time: %w", err)
	}
	return nil
}

// setModTime sets the modification time of a file and flushes it to the disk.
func (c *Clock) setModTime(path string, flags int, at time.Time) error {
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return err
	}
	if err = os.Chtimes(path, time.Time{}, at); err == nil {
		err = c.flush(f)
	}
	return errors.Join(err, f.Close())
}

// flushFolder flushes a folder to the disk, so that a new file in it is durable.
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
